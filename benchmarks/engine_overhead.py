"""The cost of one process leading the others: `python -m benchmarks.engine_overhead [SIZE] [ROUNDS]`.

`added_share` is the part of an update's time in which any of two processes packs, sends or unpacks what rank 0 deals
out and what comes back. `scatter_seconds` is the time to deal an update whose images decode to 1 GiB, which travel as
references; `pixels_seconds` the same as pixels. `bin_efficiency` is the share of their time in which eight processes
work, for seeded groups of the 8B model that are packed and dealt by what they cost (calculated). The last line is one
JSON object.
"""

import json
import random
import statistics

from benchmarks.parts import measure  # noqa: F401  (before torch: it sets how long idle threads spin)
from benchmarks.parts.arguments import arguments
from benchmarks.parts.engine_ranks import launch
from model.batch import split_by_tokens
from model.config import Flavour, flavour_config
from model.engine.parts import Costs, efficiency

_RANKS, _GROUPS, _SIZE = 8, 64, 8


def bin_efficiency(budget: int, seed: int) -> float:
    """That of 64 groups of 8 completions with ragged lengths and 1 to 12 tiles."""
    config = flavour_config(Flavour.sailvl2_8b)
    costs, draw = Costs.of(config), random.Random(seed)
    lengths, prices = [], []
    for _ in range(_GROUPS):
        tiles = draw.randrange(1, 13)
        prefix = tiles * config.num_image_tokens + draw.randrange(50, 400)
        completions = [min(4096, 1 + int(draw.expovariate(1 / 1000))) for _ in range(_SIZE)]
        lengths.append(prefix + sum(completions))
        prices.append(costs.row(prefix, completions, [(tiles, config.num_image_tokens)]))
    bins = split_by_tokens(lengths, budget, _RANKS, prices)
    return efficiency([sum(prices[row] for row in own) for own in bins], _RANKS)


def main() -> None:
    given = arguments(__doc__)
    size, rounds = (given + ["M", "9"][len(given) :])[:2]
    timed = launch(2, "overhead", size, rounds)[0]
    shares = [a / b for a, b in zip(timed["added_seconds"], timed["step_seconds"], strict=True)]
    sent = launch(2, "scatter", "1")[0]
    figures = {
        "size": size,
        "added_share": round(statistics.median(shares), 4),
        "added_share_spread": [round(min(shares), 4), round(max(shares), 4)],
        "step_seconds": round(statistics.median(timed["step_seconds"]), 3),
        "scatter_seconds": round(sent["reference_seconds"], 4),
        "pixels_seconds": round(sent["pixels_seconds"], 3),
        "bin_efficiency": {
            str(budget): round(min(bin_efficiency(budget, seed) for seed in range(5)), 3) for budget in (16384, 41984)
        },
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
