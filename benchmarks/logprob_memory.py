"""Memory and time of token log-probabilities: `python -m benchmarks.logprob_memory [repeats]`.

A policy loss with an entropy term over T = 2,048 tokens of the released vocabulary, forward and backward, float32 on
CPU, the head trained: blocks of the vocabulary (`model.logprobs.score_tokens`) against a full matrix of logits and
log_softmax. Each measurement is a process of its own. Memory is the peak of the process (ru_maxrss) beyond its level
before the pass, less the head's gradient, which both ways must hold; the weights are part of the level before. The last
line is one JSON object.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as our entry points set it; the same for both ways

import torch
from torch import Tensor

from benchmarks.parts.arguments import arguments

VOCAB, TOKENS = 151_936, 2_048
WIDTHS = (256, 1_024)
REPEATS = 3
BARS = {"memory_ratio": 0.25, "speed_ratio": 0.9}


def full(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_all = torch.nn.functional.linear(hidden, head).log_softmax(-1)
    return log_all.gather(-1, targets[:, None]).squeeze(-1), -(log_all.exp() * log_all).sum(-1)


def blocked(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    from model.logprobs import score_tokens

    scores = score_tokens(hidden, head, targets)
    return scores.logprobs, scores.entropy


WAYS = {"full": full, "blocked": blocked}


def measure(way: str, width: int) -> dict[str, float]:
    """One forward and backward in this process."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, width, generator=generator).requires_grad_()
    head = torch.randn(VOCAB, width, generator=generator).mul_(width**-0.5).requires_grad_()
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    advantages = torch.randn(TOKENS, generator=generator)
    small = slice(0, 8)  # thread pools and kernels are set up before the level is taken
    torch.autograd.grad(WAYS[way](hidden[small], head[small], targets[small] % 8)[0].sum(), hidden)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begin = time.perf_counter()
    logprobs, entropy = WAYS[way](hidden, head, targets)
    ratio = (logprobs - logprobs.detach()).exp()
    loss = -(ratio * advantages).mean() - 0.01 * entropy.mean()
    loss.backward()
    seconds = time.perf_counter() - begin
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if head.grad is None or hidden.grad is None:
        raise RuntimeError("expected gradients of head and hidden, found none")
    return {
        "bytes": peak - head.grad.nbytes,
        "seconds": seconds,
        "loss": loss.item(),
        "gradient_norms": head.grad.norm().item() + hidden.grad.norm().item(),
    }


def in_fresh_process(way: str, width: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.logprob_memory", way, str(width)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(width: int, repeats: int) -> dict[str, Any]:
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for i in range(repeats):
        for way in WAYS if i % 2 else reversed(WAYS):
            runs[way].append(in_fresh_process(way, width))
    for key in ("loss", "gradient_norms"):
        found = [run[key] for way in WAYS for run in runs[way]]
        if max(found) - min(found) > 1e-3 * abs(found[0]):
            raise RuntimeError(f"{key} differs between the ways: {found}; the comparison would be void")
    middle = {
        way: {key: statistics.median(run[key] for run in runs[way]) for key in ("bytes", "seconds")} for way in WAYS
    }
    speed = [a["seconds"] / b["seconds"] for a, b in zip(runs["full"], runs["blocked"], strict=True)]
    return {
        "memory_ratio": round(middle["blocked"]["bytes"] / middle["full"]["bytes"], 4),
        "speed_ratio": round(statistics.median(speed), 3),
        "speed_ratios": [round(value, 3) for value in speed],
        "mebibytes": {way: round(value["bytes"] / 2**20) for way, value in middle.items()},
        "seconds": {way: round(value["seconds"], 2) for way, value in middle.items()},
    }


def main() -> None:
    if len(arguments(__doc__)) == 2:
        print(json.dumps(measure(arguments(__doc__)[0], int(arguments(__doc__)[1]))))
        return
    repeats = int([*arguments(__doc__), REPEATS][0])
    details = {}
    for width in WIDTHS:
        details[f"D={width}"] = compare(width, repeats)
        print(f"D={width}: {details[f'D={width}']}", flush=True)
    first = details[f"D={WIDTHS[0]}"]
    result = {"memory_ratio": first["memory_ratio"], "speed_ratio": first["speed_ratio"], "bars": BARS}
    print(json.dumps({**result, "repeats": repeats, "threads": torch.get_num_threads(), "details": details}))


if __name__ == "__main__":
    main()
