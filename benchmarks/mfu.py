"""How near to the machine's matmul rate is a policy update? `python -m benchmarks.mfu [--sizes L,W] [--ratio 1:1]`.

The project's own path, packing and optimizer step included, on groups of 8 about one image; widths 512 and 768, float32
on 2 threads. On a GPU a flavour in bfloat16: `--device cuda --model sailvl2_2b`. FLOPs are those that each group needs
once, three times the forward pass, attention by what causality leaves. The rate beside it is that of the fastest of
several products of the same type, square ones and the model's own, in turns with the update; the last line, one JSON
object, says which it was.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from benchmarks.measure import environment, spread, take_turns  # isort: skip  (before torch)

import torch
from torch import Tensor

from benchmarks.flops import forward_flops, once_per_group
from benchmarks.update_cases import GROUP_SIZE, RATIOS, SIZES, SharedUpdate, build_group, prompt_length, ragged
from model.config import Flavour, SailVL2Config, flavour_config
from model.sail_vl2 import SailVL2
from rlhf.trajectory import Group

THREADS = 2
BAR = 0.5
SQUARES = {"cpu": (768, 1024, 1536, 2048), "cuda": (4096, 8192, 16384)}
FLOPS_OF_A_TURN = {"cpu": 3e10, "cuda": 2e13}
"""So much of each product is done in one round: long enough to time."""


def random_model(config: SailVL2Config, device: torch.device, dtype: torch.dtype) -> SailVL2:
    """Weights drawn on the device: drawing billions of keyed ones on a CPU takes minutes."""
    with torch.device(device):
        torch.manual_seed(0)
        model = SailVL2(config).to(dtype)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, 0.0, 0.02) if weight.dim() >= 2 else torch.nn.init.ones_(weight)
    return model


def groups_of(config: SailVL2Config, count: int, mean_completion: int, dtype: torch.dtype) -> list[Group]:
    groups = [build_group(config, i, ragged(mean_completion, GROUP_SIZE, f"group {i}")) for i in range(count)]
    return [replace(group, images=[image.to(dtype) for image in group.images]) for group in groups]


def products(
    config: SailVL2Config, tokens: int, device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[int, ...]]:
    """Name -> (rows, inner, columns): squares, and what a micro-batch of so many tokens asks for."""
    text = config.language
    heads = (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim
    own = {
        "query, key and value": (tokens, text.hidden_size, heads),
        "gate and up": (tokens, text.hidden_size, 2 * text.intermediate_size),
        "down": (tokens, text.intermediate_size, text.hidden_size),
        "head": (tokens, text.hidden_size, text.vocab_size),
    }
    return {**{f"square {side}": (side, side, side) for side in SQUARES[device.type]}, **own}


def timed_product(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[], object], float]:
    """(what does it as often as a turn asks for, its FLOPs)."""
    rows, inner, columns = shape
    a, b = (torch.randn(size, device=device, dtype=dtype) for size in ((rows, inner), (columns, inner)))
    flops = 2.0 * rows * inner * columns
    times = max(1, round(FLOPS_OF_A_TURN[device.type] / flops))

    def run() -> None:
        out: Tensor | None = None
        for _ in range(times):
            out = torch.mm(a, b.t(), out=out) if out is not None else a @ b.t()

    return run, flops * times


def waited(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`run`, and then wait for the device."""

    def both() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return both


def measure(
    model: SailVL2, groups: Sequence[Group], budget: int, rounds: int, device: torch.device, dtype: torch.dtype
) -> dict[str, Any]:
    update = SharedUpdate(model, groups, budget, THREADS)
    tokens = max(batch.inputs.num_tokens for batch in update.batches())
    runs: dict[str, Callable[[], object]] = {"update": update.update}
    flops = {"update": 3 * forward_flops(model.config, once_per_group(groups))}
    for name, shape in products(model.config, tokens, device, dtype).items():
        label = f"{name} {list(shape)}"
        runs[label], flops[label] = timed_product(shape, device, dtype)
    seconds = take_turns({name: waited(run, device) for name, run in runs.items()}, rounds, warm_up=2)
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


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="float32 on CPU, bfloat16 on CUDA")
    parser.add_argument("--sizes", default="L,W", help="of the benchmark's own models, where --model is not given")
    parser.add_argument("--model", type=Flavour, help="a named flavour instead")
    parser.add_argument("--ratio", choices=RATIOS, default="1:1", help="prompt : mean completion")
    parser.add_argument("--groups", type=int, help="groups in an update: 1 on CPU, 4 on CUDA")
    parser.add_argument("--budget", type=int, help="tokens of a micro-batch: 2600 on CPU, 8192 on CUDA")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    args = parse()
    on_cuda = args.device.type == "cuda"
    if on_cuda and not torch.cuda.is_available():
        raise SystemExit("--device: expected a CUDA device, found none; --device cpu runs without one")
    dtype = getattr(torch, args.dtype or ("bfloat16" if on_cuda else "float32"))
    torch.set_num_threads(THREADS)
    configs = (
        {args.model.value: flavour_config(args.model)}
        if args.model
        else {size: SIZES[size] for size in args.sizes.split(",")}
    )
    found = {}
    for name, config in configs.items():
        model = random_model(config, args.device, dtype)
        mean = round(prompt_length(config) * RATIOS[args.ratio])
        groups = groups_of(config, args.groups or (4 if on_cuda else 1), mean, dtype)
        budget = args.budget or (8192 if on_cuda else 2600)
        width = config.language.hidden_size
        found[name] = {"width": width, **measure(model, groups, budget, args.rounds, args.device, dtype)}
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    result = {
        "share_of_matmul_rate": min(figures["share_of_matmul_rate"] for figures in found.values()),
        "bar": BAR,
        "ratio": args.ratio,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(args.device) if on_cuda else "cpu",
        "models": found,
        "environment": environment(torch.get_num_threads()),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
