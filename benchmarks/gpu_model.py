"""Tokens per second and model-FLOPs utilisation of a flavour with random weights.

`python -m benchmarks.gpu_model [--model sailvl2_2b] [--device cuda]`. bfloat16 on CUDA, float32 on CPU (with a tiny
flavour: it shows that the measurement runs). Rows are what RL trains on: one prompt with one tile and its completions.
Utilisation is the model's matmul FLOPs over what the device does in a large square product of the same type; attention
counts what causality leaves. The last line is one JSON object.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.flops import forward_flops, shared_row
from model.batch import Row, pack_rows
from model.config import Flavour, flavour_config
from model.sail_vl2 import SailVL2

REPEATS = 7


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median of `REPEATS` after two runs to warm up."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    once(), once()
    return statistics.median(once() for _ in range(REPEATS))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device)


def measure(flavour: Flavour, device: torch.device, prompt: int, completion: int, group: int) -> dict[str, object]:
    config = flavour_config(flavour)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with torch.device(device):
        model = SailVL2(config).to(dtype)
    for weight in model.parameters():
        weight.data.normal_(0.0, 0.02)
    placeholder = config.language.vocab_size - 1
    side = config.vision.image_size
    visual = (side // config.pixels_per_token) ** 2
    image = torch.randn(1, 3, side, side, dtype=dtype)
    prefix = [placeholder] * visual + list(range(1, prompt + 1))
    row = Row(prefix, [list(range(1, completion + 1))] * group, [image])
    inputs = pack_rows([row], placeholder, config.pixels_per_token).to(device)
    flops = 3 * forward_flops(config, shared_row(len(prefix), [completion] * group, tiles=1))

    def update() -> None:
        model.zero_grad(set_to_none=True)
        model(inputs).logprobs.sum().backward()

    update_seconds = seconds(update, device)
    model.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    prompt_inputs = pack_rows([Row(prefix, [], [image])], placeholder, config.pixels_per_token).to(device)
    steps = 32

    def generate() -> None:
        _, cache = model.prefill(prompt_inputs, group, len(prefix), steps)
        tokens = torch.ones(1, group, dtype=torch.long, device=device)
        for step in range(steps):
            tokens = model.decode(tokens, step, cache).argmax(-1)

    rate = matmul_rate(device, dtype)
    return {
        "model": flavour.value,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": str(dtype).removeprefix("torch."),
        "packed_tokens": inputs.num_tokens,
        "update_seconds": round(update_seconds, 4),
        "update_tokens_per_second": round(inputs.num_tokens / update_seconds),
        "model_flops_utilisation": round(flops / update_seconds / rate, 3),
        "matmul_tflops": round(rate / 1e12, 2),
        "generated_tokens_per_second": round(group * steps / seconds(generate, device)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Flavour, default=Flavour.sailvl2_2b)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--prompt", type=int, default=256, help="text tokens of the prompt beside its image")
    parser.add_argument("--completion", type=int, default=512, help="tokens of each completion")
    parser.add_argument("--group", type=int, default=8, help="completions of the prompt")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device: expected a CUDA device, found none; --model tiny --device cpu runs without one")
    print(json.dumps(measure(args.model, args.device, args.prompt, args.completion, args.group)))


if __name__ == "__main__":
    main()
