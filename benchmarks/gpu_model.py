"""A flavour on one GPU: `python -m benchmarks.gpu_model [--model sailvl2_2b] [--tiles 4] [--completion 512] ...`.

Random weights, fp32 behind bfloat16 arithmetic. One update (forward, policy loss, backward, clipping, fused AdamW) of
groups as packed rows, and of one group's completions as rows of their own with a vision pass each; both through the
engine. Sampling by the embedded sampler, by its decode path alone, recorded as CUDA graphs and launched one by one, and
by transformers' `generate` on its own Qwen3 with our embeddings of the prompt as input (no vision pass in its times).
Utilisation is the model's matmul FLOPs (attention: what causality leaves; recomputation not counted) over what the
device does in a large square product of the same type. The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.parts.flops import forward_flops, padded_row, shared_row, total
from benchmarks.parts.measure import environment
from benchmarks.parts.sampling_models import twin_of
from benchmarks.parts.sampling_rivals import Rivals
from model.batch import Row, TrainBatch, pack_rows
from model.config import Flavour, SailVL2Config, flavour_config
from model.decoding.decoder import PromptDecoder
from model.decoding.graph import DecodeGraph
from model.decoding.group_cache import prefix_room
from model.engine.config import Device, EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.logprobs import TokenScores
from model.sail_vl2 import SailVL2
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import RolloutRequest, generate
from rollouts.weights.sync import fill_worker

REPEATS = 5


def seconds(run: Callable[[], object], device: torch.device, repeats: int = REPEATS, warm_up: int = 2) -> float:
    """Median of `repeats`."""

    def once() -> float:
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(warm_up):
        once()
    return statistics.median(once() for _ in range(repeats))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, device)


def build(config: SailVL2Config, device: torch.device) -> SailVL2:
    with torch.device(device):
        model = SailVL2(config)
    model.language_model.tie()
    for weight in model.parameters():
        weight.data.normal_(0.0, 0.02)
    return model


def loss(scores: TokenScores, batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
    """A policy gradient with the ratio at 1."""
    ratio = (scores.logprobs - scores.logprobs.detach()).exp()
    return -(ratio * batch.loss_weights).sum(), {}


def update_figures(engine: LocalEngine, batches: Sequence[TrainBatch], device: torch.device) -> dict[str, float]:
    def update() -> None:
        for batch in batches:
            engine.accumulate([batch], loss, float(len(batch.loss_weights)))
        engine.step()

    update()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = seconds(update, device)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return {"seconds": round(taken, 4), "peak_gib": round(peak, 2)}


def make_batch(rows: Sequence[Row], placeholder: int, config: SailVL2Config) -> TrainBatch:
    inputs = pack_rows(rows, placeholder, config.pixels_per_token)
    return TrainBatch(inputs, torch.linspace(-1.0, 1.0, len(inputs.target_ids)))


def sampling_figures(model: SailVL2, row: Row, placeholder: int, args: argparse.Namespace) -> dict[str, Any]:
    """Completion tokens a second of 1 and of 16 groups, prefill with vision pass included."""
    device, config, figures = model.device, model.config, {}
    decoder = PromptDecoder(model)
    for num_prompts in (1, 16):
        prompts = [Row(row.prefix_ids, [], row.images)] * num_prompts
        inputs = pack_rows(prompts, placeholder, config.pixels_per_token).to(device)
        ways = {"launched": lambda: decoder.decode}
        if DecodeGraph.fits(model):
            ways["graphs"] = lambda: DecodeGraph(decoder).decode
        for name, make in ways.items():

            def decode_greedily(make: Callable[[], Any] = make, inputs: Any = inputs) -> None:
                decode = make()
                logits, cache = decoder.prefill(inputs, args.group, prefix_room(len(row.prefix_ids)))
                for _ in range(args.completion - 1):
                    logits = decode(logits.argmax(-1), [cache])

            tokens = num_prompts * args.group * args.completion
            figures[f"{num_prompts}_groups_{name}"] = round(
                tokens / seconds(decode_greedily, device, repeats=1, warm_up=1)
            )
        figures[f"{num_prompts}_groups_sampler"] = sampler_rate(model, row, placeholder, args, num_prompts)
    return figures


def sampler_rate(model: SailVL2, row: Row, placeholder: int, args: argparse.Namespace, num_prompts: int) -> int:
    """The same through the embedded sampler, which draws, records and gives out completions."""
    tokenizer = SimpleNamespace(end_id=model.config.language.vocab_size)  # none ends before the limit
    stand_in: Any = SimpleNamespace(placeholder_id=placeholder, barred_ids=[placeholder], tokenizer=tokenizer)
    limits = RolloutConfig(max_prompt_tokens=len(row.prefix_ids), max_completion_tokens=args.completion)
    worker = fill_worker(EmbeddedWorker(model, stand_in, limits, 0), model)
    requests = [
        RolloutRequest(number, str(number), row.prefix_ids, row.prefix_ids, row.images, args.group)
        for number in range(num_prompts)
    ]
    taken = seconds(lambda: generate(worker, requests), model.device, repeats=1, warm_up=1)
    return round(num_prompts * args.group * args.completion / taken)


def rival_figures(model: SailVL2, row: Row, placeholder: int, args: argparse.Namespace) -> dict[str, Any]:
    """Completion tokens a second of transformers; what it cannot run has its error as figure."""
    request = RolloutRequest(0, "0", row.prefix_ids, row.prefix_ids, row.images, args.group)
    twin, (prompt,) = twin_of(model, placeholder, [request])
    figures: dict[str, Any] = {}
    for num_prompts in (1, 16):
        rivals = Rivals(twin, [prompt] * num_prompts, args.group, args.completion, end_id=-1)
        ways = {"dynamic": False, "static": False, "static, compiled": True}
        for name, compiled in ways.items():
            try:
                sample = rivals.generate(num_prompts, name.partition(",")[0], compiled)
                tokens = num_prompts * args.group * args.completion
                taken = seconds(lambda sample=sample: sample(0), model.device, repeats=1, warm_up=int(compiled))
                figures[f"{num_prompts}_groups_{name}"] = round(tokens / taken)
            except Exception as error:  # whatever a rival raises is its figure
                figures[f"{num_prompts}_groups_{name}"] = f"{type(error).__name__}: {error}"
            print(figures, file=sys.stderr, flush=True)
    return figures


def measure(args: argparse.Namespace) -> dict[str, Any]:
    config, device, group, own = flavour_config(args.model), args.device, args.group, args.completion
    placeholder, side = config.language.vocab_size - 1, config.vision.image_size
    prefix = [placeholder] * (config.num_image_tokens * args.tiles) + list(range(1, args.prompt + 1))
    images = [torch.randn(args.tiles, 3, side, side)]
    completions = [list(range(1 + i, own + 1 + i)) for i in range(group)]
    model = build(config, device)
    settings = EngineConfig(device=Device(device.type), gradient_checkpointing=args.checkpointing)
    engine = LocalEngine(model, settings, OptimizerConfig(learning_rate=1e-6), 1000)
    rate = matmul_rate(device, engine.compute_model.dtype)
    row, single = Row(prefix, completions, images), [Row(prefix, [c], images) for c in completions]
    shared = {
        f"{n}_groups": update_figures(engine, [make_batch([row] * n, placeholder, config)], device) for n in args.groups
    }
    separate = update_figures(engine, [make_batch(single, placeholder, config)], device)
    length = len(prefix)
    work = {
        "shared": 3 * forward_flops(config, shared_row(length, [own] * group, args.tiles)),
        "padded": 3 * forward_flops(config, total([padded_row(length + own, own, args.tiles)] * group)),
    }
    separate["share_of_matmul_rate"] = round(work["padded"] / separate["seconds"] / rate, 3)
    for n, figures in zip(args.groups, shared.values(), strict=True):
        figures["share_of_matmul_rate"] = round(n * work["shared"] / figures["seconds"] / rate, 3)
        figures["speedup_over_padded"] = round(n * separate["seconds"] / figures["seconds"], 2)
    sampler, prompt = engine.compute_model, Row(prefix, [], images)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    print(json.dumps({"shared": shared, "padded": separate}), file=sys.stderr, flush=True)
    own_speeds = sampling_figures(sampler, prompt, placeholder, args)
    print(json.dumps(own_speeds), file=sys.stderr, flush=True)
    return {
        "model": args.model.value,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": str(sampler.dtype).removeprefix("torch."),
        "visual_tokens": config.num_image_tokens * args.tiles,
        "prompt_tokens": length,
        "group": group,
        "completion_tokens": own,
        "activation_checkpointing": args.checkpointing,
        "matmul_tflops": round(rate / 1e12, 2),
        "update": {"shared": shared, "padded": separate},
        "ideal_ratio": round(work["padded"] / work["shared"], 2),
        "sampled_tokens_per_second": own_speeds,
        "transformers_tokens_per_second": {} if args.no_rival else rival_figures(sampler, prompt, placeholder, args),
        "environment": environment(torch.get_num_threads()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Flavour, default=Flavour.sailvl2_2b)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--prompt", type=int, default=64, help="text tokens of the prompt beside its image")
    parser.add_argument("--tiles", type=int, default=4, help="tiles of the image, 256 visual tokens each")
    parser.add_argument("--completion", type=int, default=512, help="tokens of each completion")
    parser.add_argument("--group", type=int, default=8, help="completions of the prompt")
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 4], help="groups of a micro-batch, each tried")
    parser.add_argument("--no_rival", action="store_true", help="leave transformers out, which takes minutes")
    parser.add_argument("--checkpointing", action="store_true", help="keep only each block's input for the backward")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device: expected a CUDA device, found none; --model tiny --device cpu runs without one")
    print(json.dumps(measure(args)))


if __name__ == "__main__":
    main()
