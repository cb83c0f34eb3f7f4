"""What `test_rank_checkpoints.py` runs in the processes of an engine: load, train, save, and give the state."""

from pathlib import Path

from torch import Tensor

from model.config import Flavour
from model.engine.shards import MOMENTS, WEIGHTS, StoredShards
from tests.parity.engine_cases import Build, Setting, train, weights


def saved_tensors(folder: Path) -> dict[str, Tensor]:
    """All weights and moments of a saved state, whole, whatever files they are in."""
    import torch

    from model.engine.shards import Shard

    found = {}
    for kind in (WEIGHTS, MOMENTS):
        stored = StoredShards(folder, kind)
        targets = {name: Shard.whole(torch.empty(shape)) for name, shape in stored.shapes.items()}
        stored.check(targets)
        stored.fill(targets)
        found |= {f"{kind}/{name}": shard.tensor for name, shard in targets.items()}
    return found


def run(job: dict, build: Build, folder: Path) -> dict[str, Tensor]:
    """Load `job["load"]` where it is given, train the steps `job["steps"]`, save to `job["save"]`."""
    engine = build(Setting(Flavour(job["flavour"]), seed=3 + job.get("other_seed", 0)))
    if job.get("load"):
        engine.load(Path(job["load"]))
    first, last = job["steps"]
    # As many micro-batches as two processes take, whoever works on them: then only the order of sums differs.
    engine.__class__.num_parts = 2  # pyright: ignore[reportAttributeAccessIssue]
    train(engine, Flavour(job["flavour"]), range(first, last))
    if job.get("save"):
        engine.save(Path(job["save"]))
    return weights(engine)
