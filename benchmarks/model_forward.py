"""Our decoder against transformers' own: `python -m benchmarks.model_forward [pairs]`.

Forward and backward of the same weights on the same tokens, loss on every token, float32 on CPU. Both sides are given
their best: ours packs rows without padding and takes log-probabilities from hidden states; theirs runs in its fastest
CPU attention, pads rows of other lengths and masks them, with the loss function of its own class, and for MoE in the
fastest of the experts implementations it offers. Gradients of both sides are compared before anything is timed. Ratios
are theirs / ours in time, the median over interleaved pairs. The last line is one JSON object.
"""

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # both sides alike: idle threads that spin slow a shared machine down

import torch
from torch import Tensor, nn

from benchmarks.parts.arguments import arguments
from model.batch import Row, pack_rows
from model.config import Flavour, LanguageConfig, MoeLanguageConfig, SailVL2Config, flavour_config
from model.sail_vl2 import SailVL2

PAIRS = 15
IGNORED = -100
SHAPES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 2048,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": False,
}
MOE: dict[str, Any] = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
EQUAL = [256] * 8
MOE_ROWS = [256] * 4  # batched_mm copies an expert for every token: more would not fit beside other work
MIXED = [64, 96, 128, 176, 224, 304, 400, 512]
BARS = {"equal": 0.97, "mixed": 1.4, "moe": 0.97}

Pass = Callable[[], float]
"""One forward and backward; returns the loss."""


@dataclass(frozen=True)
class Contender:
    name: str
    run: Pass


def build(config: LanguageConfig) -> SailVL2:
    shapes = flavour_config(Flavour.tiny)
    model = SailVL2(SailVL2Config(shapes.vision, config, max_dynamic_patch=1, use_thumbnail=False))
    model.initialise(0)
    return model


def ours(model: SailVL2, rows: list[list[int]]) -> Pass:
    def run() -> float:
        inputs = pack_rows([Row(row[:1], [row[1:]]) for row in rows], -1, 16)
        model.zero_grad()
        loss = -model(inputs).logprobs.mean()
        loss.backward()
        return loss.item()

    return run


def twin_of(model: SailVL2) -> Any:
    """transformers' model with our weights, in memory."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    c = model.config.language
    shared = {**SHAPES, "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta}, "use_cache": False}
    if isinstance(c, MoeLanguageConfig):
        twin = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shared, **MOE, norm_topk_prob=True))
    else:
        twin = Qwen3ForCausalLM(Qwen3Config(**shared))
    # In memory both stack the experts in the same order.
    twin.load_state_dict(model.language_model.state_dict())
    return twin.train()


def theirs(twin: Any, rows: list[list[int]], attention: str, experts: str | None) -> Pass:
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED)
    mask = torch.zeros(len(rows), longest, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = labels[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    kwargs = {} if mask.all() else {"attention_mask": mask}

    def run() -> float:
        twin.set_attn_implementation(attention)
        if experts:
            twin.set_experts_implementation(experts)
        twin.zero_grad()
        loss = twin(input_ids=ids, labels=labels, **kwargs).loss
        loss.backward()
        return loss.item()

    return run


def seconds(run: Pass) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def fastest(contenders: list[Contender]) -> tuple[Contender, dict[str, float]]:
    """The best by median of five, and every median in seconds; one that takes three times the best is tried twice."""
    medians: dict[str, float] = {}
    for contender in contenders:
        contender.run()
        first = seconds(contender.run)
        lost = bool(medians) and first > 3 * min(medians.values())
        medians[contender.name] = first if lost else statistics.median(seconds(contender.run) for _ in range(5))
    return min(contenders, key=lambda c: medians[c.name]), medians


def check_same(model: SailVL2, twin: Any, mine: Pass, other: Pass) -> None:
    """Loss to 1e-5 and every gradient to 1e-3 of its largest entry: float32 sums over thousands of tokens."""
    losses = (mine(), other())
    if abs(losses[0] - losses[1]) > 1e-5 * abs(losses[1]):
        raise RuntimeError(f"losses differ: ours {losses[0]}, theirs {losses[1]}; the comparison would be void")
    expected: dict[str, Tensor] = {n: p.grad for n, p in twin.named_parameters()}
    module: nn.Module = model.language_model
    for name, parameter in module.named_parameters():
        gradient = parameter.grad
        if gradient is None or (gradient - expected[name]).abs().max() > 1e-3 * expected[name].abs().max():
            raise RuntimeError(f"gradients of {name} differ; the comparison would be void")


def compare(lengths: list[int], moe: bool, pairs: int) -> dict[str, Any]:
    config = MoeLanguageConfig(**SHAPES, **MOE) if moe else LanguageConfig(**SHAPES)
    model = build(config)
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, SHAPES["vocab_size"], (length,), generator=generator).tolist() for length in lengths]
    twin, mine = twin_of(model), ours(model, rows)
    experts = ["grouped_mm", "eager", "batched_mm"] if moe else [None]
    candidates = [
        Contender(f"{attention} {implementation or ''}".strip(), theirs(twin, rows, attention, implementation))
        for attention in ("sdpa", "eager")
        for implementation in experts
    ]
    best, medians = fastest(candidates)
    check_same(model, twin, mine, best.run)
    ratios, same, own = [], [], []
    for i in range(pairs):
        first, second = (mine, best.run) if i % 2 else (best.run, mine)
        times = {id(run): seconds(run) for run in (first, second)}
        again = seconds(mine)
        ratios.append(times[id(best.run)] / times[id(mine)])
        same.append(again / times[id(mine)])
        own.append(times[id(mine)])
    return {
        "speed_ratio": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
        "a_a_quartiles": [round(q, 3) for q in statistics.quantiles(same, n=4)[::2]],
        "ours_seconds": round(statistics.median(own), 4),
        "theirs": best.name,
        "theirs_seconds": {name: round(value, 4) for name, value in medians.items()},
    }


def main() -> None:
    pairs = int([*arguments(__doc__), PAIRS][0])
    cases = {"equal": (EQUAL, False), "mixed": (MIXED, False), "moe": (MOE_ROWS, True)}
    details = {}
    for name, (lengths, moe) in cases.items():
        details[name] = compare(lengths, moe, pairs)
        print(f"{name}: {details[name]}", flush=True)
    result = {
        "speed_ratio": {name: detail["speed_ratio"] for name, detail in details.items()},
        "bars": BARS,
        "pairs": pairs,
        "threads": torch.get_num_threads(),
        "details": details,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
