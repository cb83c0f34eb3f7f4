"""How near to the machine's matmul rate is a policy update? `python -m benchmarks.mfu [--sizes L,W] [--ratio 1:1]`.

The project's own path, packing and optimizer step included, on a group of 8 about one image; widths 512 and 768,
float32 on 2 threads of a CPU (`benchmarks.gpu_model` does the same for a GPU). FLOPs are those that each group needs
once, three times the forward pass, attention by what causality leaves. The rate beside it is that of the fastest of
several products of the same type, square ones and the model's own, in turns with the update; the last line, one JSON
object, says which it was.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.parts.measure import environment, spread, take_turns  # isort: skip  (before torch)

import torch

from benchmarks.parts.flops import forward_flops, once_per_group
from benchmarks.parts.update_cases import (
    GROUP_SIZE,
    RATIOS,
    SIZES,
    SharedUpdate,
    build_group,
    build_model,
    prompt_length,
    ragged,
)
from model.config import SailVL2Config
from model.sail_vl2 import SailVL2
from rlhf.trajectory import Group

THREADS = 2
BAR = 0.5
SQUARES = (768, 1024, 1536, 2048)
FLOPS_OF_A_TURN = 3e10
"""So much of each product is done in one round: long enough to time."""


def products(config: SailVL2Config, tokens: int) -> dict[str, tuple[int, ...]]:
    """Name -> (rows, inner, columns): squares, and what a micro-batch of so many tokens asks for."""
    text = config.language
    heads = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    own = {
        "query, key and value": (tokens, text.hidden_size, heads),
        "gate and up": (tokens, text.hidden_size, 2 * text.intermediate_size),
        "down": (tokens, text.intermediate_size, text.hidden_size),
        "head": (tokens, text.hidden_size, text.vocab_size),
    }
    return {**{f"square {side}": (side, side, side) for side in SQUARES}, **own}


def timed_product(shape: tuple[int, ...]) -> tuple[Callable[[], object], float]:
    """(what does it as often as a turn asks for, its FLOPs)."""
    rows, inner, columns = shape
    a, b, out = torch.randn(rows, inner), torch.randn(columns, inner), torch.empty(rows, columns)
    flops = 2.0 * rows * inner * columns
    times = max(1, round(FLOPS_OF_A_TURN / flops))

    def run() -> None:
        for _ in range(times):
            torch.mm(a, b.t(), out=out)

    return run, flops * times


def measure(model: SailVL2, groups: Sequence[Group], budget: int, rounds: int) -> dict[str, Any]:
    update = SharedUpdate(model, groups, budget, THREADS)
    tokens = max(batch.inputs.num_tokens for batch in update.batches())
    runs: dict[str, Callable[[], object]] = {"update": update.update}
    flops = {"update": 3 * forward_flops(model.config, once_per_group(groups))}
    for name, shape in products(model.config, tokens).items():
        label = f"{name} {list(shape)}"
        runs[label], flops[label] = timed_product(shape)
    seconds = take_turns(runs, rounds, warm_up=2)
    rates = {name: flops[name] / statistics.median(values) for name, values in seconds.items()}
    best = max((name for name in rates if name != "update"), key=lambda name: rates[name])
    shares = [
        flops["update"] / mine * other / flops[best]
        for mine, other in zip(seconds["update"], seconds[best], strict=True)
    ]
    return {
        "share_of_matmul_rate": round(statistics.median(shares), 3),
        "share_quartiles": [round(value, 3) for value in statistics.quantiles(shares, n=4)[::2]],
        "update_seconds": round(statistics.median(seconds["update"]), 4),
        "update_gflops_per_second": round(rates["update"] / 1e9, 1),
        "fastest_product": best,
        "matmul_gflops_per_second": {name: round(rates[name] / 1e9, 1) for name in rates if name != "update"},
        "micro_batches": len(update.batches()),
        "largest_micro_batch_tokens": tokens,
        "a_a_spread": {"update": spread(seconds["update"]), "product": spread(seconds[best])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="L,W", help="of the benchmark's models")
    parser.add_argument("--ratio", choices=RATIOS, default="1:1", help="prompt : mean completion")
    parser.add_argument("--groups", type=int, default=1, help="groups in an update")
    parser.add_argument("--budget", type=int, default=8192, help="tokens of a micro-batch")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    found = {}
    for name in args.sizes.split(","):
        model = build_model(SIZES[name])
        mean = round(prompt_length(model.config) * RATIOS[args.ratio])
        groups = [build_group(model.config, i, ragged(mean, GROUP_SIZE, f"group {i}")) for i in range(args.groups)]
        width = model.config.language.hidden_size
        found[name] = {"width": width, **measure(model, groups, args.budget, args.rounds)}
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    result = {
        "share_of_matmul_rate": min(figures["share_of_matmul_rate"] for figures in found.values()),
        "bar": BAR,
        "ratio": args.ratio,
        "models": found,
        "environment": environment(THREADS),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
