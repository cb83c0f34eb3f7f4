"""Memory of sharded training: `python -m benchmarks.engine_memory [SIZE]`. The last line is one JSON object.

`peak_share` is the largest peak of two processes over that of one process of the same engine while the model is built
and while the optimizer steps: weights, gradients and AdamW's moments. `update_share` is the same for the peak of
forward and backward of one image and two tokens for each process, with gathered layers and activations.
`save_extra_share` is what a process needs on top while it saves, over what it holds. `publish_extra_layers` is what it
needs on top while all weights are drawn for samplers, in decoder layers. Resident memory of processes of their own;
libraries and buffers are taken before.
"""

import json

from benchmarks.parts import measure  # noqa: F401  (before torch: it sets how long idle threads spin)
from benchmarks.parts.arguments import arguments
from benchmarks.parts.engine_ranks import launch
from benchmarks.parts.update_cases import SIZES
from model.sail_vl2 import SailVL2


def layer_mib(size: str) -> float:
    """MiB of one decoder layer in float32."""
    import torch

    with torch.device("meta"):
        model = SailVL2(SIZES[size])
    return sum(parameter.nbytes for parameter in model.language_model.model.layers[0].parameters()) / 2**20


def main() -> None:
    given = arguments(__doc__)
    size = given[0] if given else "L"
    (alone,), both = launch(1, "memory", size), launch(2, "memory", size)
    held = max(one["held_mib"] for one in both)
    figures = {
        "size": size,
        "peak_share": round(held / alone["held_mib"], 3),
        "update_share": round(max(one["update_mib"] for one in both) / alone["update_mib"], 3),
        "save_extra_share": round(max(one["save_mib"] / one["held_mib"] for one in both), 4),
        "publish_extra_layers": round(max(one["publish_mib"] for one in both) / layer_mib(size), 3),
        "layer_mib": round(layer_mib(size), 1),
        "one_process": {name: round(value, 1) for name, value in alone.items()},
        "two_processes": [{name: round(value, 1) for name, value in one.items()} for one in both],
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
