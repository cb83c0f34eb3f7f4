"""How near visual tokens lie to the decoder's embeddings (SAIL-VL2 report, table 7).

The report names 5 images, all of their tokens, a PCA to two dimensions, and three figures. Ours are the details: the
PCA is that of both sets together, distances are Euclidean in its plane without further scaling, and the Wasserstein
distance is the exact one between equally many points of both sets.
"""

import numpy as np
import torch

_MOST_POINTS = 1024
"""Points of each set that are matched for the Wasserstein distance: its cost grows with the third power."""
_MOST_EMBEDDINGS = 20_000
"""Embeddings that stand for the table where all pairs are formed."""


@torch.no_grad()
def affinity(visual: torch.Tensor, embeddings: torch.Tensor, seed: int) -> dict[str, float]:
    """Distances in the plane of the first two principal components; lower is nearer.

    visual [M, D] tokens behind the adapter, embeddings [V, D]. `nearest_neighbour`: mean over the visual tokens of the
    distance to the nearest embedding. `wasserstein`: mean distance of the best one-to-one matching. `mean_distance`:
    mean over all pairs. `seed` chooses points where there are too many.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial import KDTree
    from scipy.spatial.distance import cdist
    from sklearn.decomposition import PCA

    ours, table = visual.double().cpu().numpy(), embeddings.double().cpu().numpy()
    plane = PCA(n_components=2, svd_solver="covariance_eigh").fit_transform(np.concatenate([ours, table]))
    ours, table = plane[: len(ours)], plane[len(ours) :]
    nearest = KDTree(table).query(ours)[0].mean()
    count = min(len(ours), len(table), _MOST_POINTS)
    costs = cdist(_drawn(ours, count, seed), _drawn(table, count, seed))
    matched = costs[linear_sum_assignment(costs)].mean()
    pairs = cdist(ours, _drawn(table, min(len(table), _MOST_EMBEDDINGS), seed))
    return {
        "nearest_neighbour": float(nearest),
        "wasserstein": float(matched),
        "mean_distance": float(pairs.mean()),
    }


def _drawn(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    return points[np.sort(np.random.default_rng(seed).choice(len(points), count, replace=False))]
