"""Embedded sampler, vLLM and transformers on the same checkpoint: `python -m benchmarks.rollouts
[cases=quickstart,T] [rounds=5] [prompts=0]`.

Models, prompts, stop rule, rivals and conditions are those of `benchmarks.sampling`, whose docstring says how they are
fair; vLLM is our plugin and worker, its number of processes and rows chosen by measuring like everybody's. First,
parity along vLLM's draws: log-probabilities and, place by place, the most likely token, against our model, in float32
and bfloat16. Beside speed: seconds to bring new weights to vLLM, to start it until its first completion, and the memory
of its process. The last line is one JSON object.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.parts.arguments import arguments
from benchmarks.parts.measure import environment, spread, take_turns

# isort: split
import torch
import transformers

from benchmarks.parts.sampling_models import SIZES, planted_model, twin_of
from benchmarks.parts.sampling_rivals import Rivals, Sample
from benchmarks.sampling import (
    CASES,
    GROUP,
    LIMIT_OVER_MEAN,
    THREADS,
    Case,
    ours,
    quotients,
    ranked,
    requests_of,
    screen,
    screen_rivals,
)
from model.batch import Row, pack_rows
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.build import build_worker
from rollouts.config import Placement, PoolConfig, VllmRolloutConfig
from rollouts.pool.processes import ProcessMember
from rollouts.rollout import RolloutRequest, generate
from rollouts.weights.sync import fill_worker

BARS = {"vllm": 8.0, "embedded": 5.0}
PARITY_TOKENS = 2048
NEAR_TIE = 1e-5  # logits: closer ones may change places by rounding


def vllm_config(requests: Sequence[RolloutRequest], limit: int, rows: int, workers: int) -> VllmRolloutConfig:
    pool = PoolConfig(Placement.process, workers) if workers else PoolConfig(Placement.trainer)
    longest = max(len(request.prompt_ids) for request in requests)
    return VllmRolloutConfig(
        max_prompt_tokens=longest, max_completion_tokens=limit, max_rows=rows, pool=pool, kv_cache_gib=1.0
    )


def vllm(model: SailVL2, processor: Processor, requests: list[RolloutRequest], config: VllmRolloutConfig) -> Sample:
    worker = fill_worker(build_worker(model, processor, config, run_seed=0), model)

    def sample(seed: int) -> int:
        first = seed * len(requests)
        rollouts = generate(worker, [replace(request, group_index=first + n) for n, request in enumerate(requests)])
        return sum(len(rollout.completion_ids) for group in rollouts for rollout in group)

    sample(10_000)  # the first pass of an engine takes several times as long as the next
    return sample


@torch.no_grad()
def parity(model: SailVL2, processor: Processor, requests: list[RolloutRequest], limit: int) -> dict[str, Any]:
    """vLLM's draws and, at each of their places, its most likely token, against our own model in the same dtype."""
    barred = torch.tensor(processor.barred_ids)
    config = vllm_config(requests, limit, 64, 0)
    worker: Any = fill_worker(build_worker(model, processor, config, run_seed=0), model)
    best: dict[int, list[int]] = {}
    parameters, finish = worker._parameters, worker._finish

    def with_best(request: RolloutRequest, sample: int) -> Any:
        asked = parameters(request, sample)
        asked.logprobs = 1
        return asked

    def noted(opened: Any, sample: int, output: Any) -> None:
        places = output.outputs[0].logprobs
        best[opened.request.group_index] = [max(place, key=lambda token: place[token].logprob) for place in places]
        finish(opened, sample, output)

    worker._parameters, worker._finish = with_best, noted
    gaps: list[float] = []
    mismatches = ties = first_index = 0
    with closing(worker):
        while len(gaps) < PARITY_TOKENS:
            asked = [replace(request, group_index=first_index + n, group_size=1) for n, request in enumerate(requests)]
            first_index += len(asked)
            for one, (rollout,) in zip(asked, generate(worker, asked), strict=True):
                row = Row(one.prompt_ids, [rollout.completion_ids], one.images)
                inputs = pack_rows([row], processor.placeholder_id, model.config.pixels_per_token)
                own = model(inputs, 1.0, barred).logprobs.float()
                gaps += (own - torch.tensor(rollout.rollout_logprobs)).abs().tolist()
                hidden = model.hidden_states(inputs)[0].index_select(0, inputs.source_index)
                logits = (hidden @ model.language_model.lm_head.weight.T).float()
                top = logits.index_fill(-1, barred, float("-inf")).topk(2)
                differs = top.indices[:, 0] != torch.tensor(best[one.group_index])
                mismatches += int(differs.sum())
                ties += int((differs & (top.values[:, 0] - top.values[:, 1] < NEAR_TIE)).sum())
    return {
        "max_logprob_difference": max(gaps),
        "mean_logprob_difference": statistics.mean(gaps),
        "argmax_mismatches": mismatches,
        "of_them_near_ties": ties,
        "tokens": len(gaps),
    }


def upkeep(model: SailVL2, processor: Processor, config: VllmRolloutConfig, request: RolloutRequest) -> dict[str, Any]:
    """The cost of one vLLM in a process of its own, beside sampling."""
    begin = time.perf_counter()
    worker = build_worker(model, processor, replace(config, pool=PoolConfig(Placement.process)), run_seed=0)
    with closing(worker):
        fill_worker(worker, model)
        generate(worker, [request])
        started = time.perf_counter() - begin
        seconds = []
        for version in range(1, 7):
            begin = time.perf_counter()
            fill_worker(worker, model, version)
            seconds.append(time.perf_counter() - begin)
        (member,) = [slot.member for slot in worker._slots]  # pyright: ignore
        assert isinstance(member, ProcessMember)
        status = Path(f"/proc/{member.process.pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]
    return {
        "start_seconds": round(started, 2),
        "weight_sync_seconds": round(statistics.median(seconds[1:]), 4),
        "resident_mebibytes": round(int(resident) / 1024),
        "kv_cache_gib": config.kv_cache_gib,
    }


def compare(case: Case, rounds: int) -> dict[str, Any]:
    model, processor = planted_model(SIZES[case.size], case.visual_tokens, LIMIT_OVER_MEAN / case.limit)
    requests = requests_of(case, processor, case.prompts)
    twin, prompts = twin_of(model, processor.placeholder_id, requests)
    rivals = Rivals(twin, prompts, GROUP, case.limit, processor.tokenizer.end_id)
    equality = {"float32": parity(model, processor, requests, case.limit)}
    half, _ = planted_model(SIZES[case.size], case.visual_tokens, LIMIT_OVER_MEAN / case.limit)
    equality["bfloat16"] = parity(half.to(torch.bfloat16), processor, requests, case.limit)
    rows = [count for count in (256, 512, 1024) if count <= case.prompts * GROUP]
    embedded: dict[str, Callable[[], Sample]] = {
        f"embedded, max_rows={count}, processes={processes}": lambda count=count, processes=processes: ours(
            model, processor, requests, case.limit, count, processes
        )
        for count in rows
        for processes in (1, 2)
    }
    engines: dict[str, Callable[[], Sample]] = {
        f"vLLM, max_rows={count}, workers={workers}": lambda count=count, workers=workers: vllm(
            model, processor, requests, vllm_config(requests, case.limit, count, workers)
        )
        for count in rows
        for workers in (0, 2)  # in this process with two threads, or two of one thread
    }
    speeds: dict[str, dict[str, float | str]] = {"embedded": {}, "vllm": {}}
    screen(embedded, speeds["embedded"])
    screen(engines, speeds["vllm"])
    field = screen_rivals(case, twin, prompts, rivals)
    best = {"embedded": embedded[ranked(speeds["embedded"])[0]], "vllm": engines[ranked(speeds["vllm"])[0]]}
    timed = {**{name: make() for name, make in best.items()}, "vllm again": best["vllm"]()}
    timed |= {name: make() for name, make in field.finalists.items()}
    figures = measure(timed, rounds)
    costs = upkeep(model, processor, vllm_config(requests, case.limit, 256, 1), requests[0])
    return {**figures, "parity": equality, "vllm": costs, "screening": {**speeds, "transformers": field.speeds}}


def measure(samples: dict[str, Sample], rounds: int) -> dict[str, Any]:
    """Contenders in turns; the rival that counts is the fastest of transformers' ways."""
    tokens: dict[str, list[int]] = {name: [] for name in samples}

    def counted(name: str) -> Callable[[], None]:
        return lambda: tokens[name].append(samples[name](100 + len(tokens[name])))

    seconds = take_turns({name: counted(name) for name in samples}, rounds)
    speeds = {n: [count / s for count, s in zip(tokens[n][1:], seconds[n], strict=True)] for n in samples}
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    rival = max(samples.keys() - {"embedded", "vllm", "vllm again"}, key=medians.__getitem__)
    return {
        "speedup_over_transformers": {
            name: round(statistics.median(quotients(speeds[name], speeds[rival])), 3) for name in BARS
        },
        "a_a_ratios": [round(ratio, 3) for ratio in quotients(speeds["vllm again"], speeds["vllm"])],
        "theirs": rival,
        "tokens_per_second": {name: round(value, 1) for name, value in medians.items()},
        "completion_tokens": {name: sum(counts[1:]) for name, counts in tokens.items()},
        "seconds_spread": {name: spread(values) for name, values in seconds.items()},
    }


def main() -> None:
    settings = dict(argument.split("=", 1) for argument in arguments(__doc__))
    torch.set_num_threads(THREADS)
    transformers.logging.set_verbosity_error()
    cases = {}
    for name in settings.get("cases", "quickstart,T").split(","):
        case = CASES[name]
        if int(settings.get("prompts", "0")):
            case = replace(case, prompts=int(settings["prompts"]))
        print(name, file=sys.stderr, flush=True)
        cases[name] = compare(case, int(settings.get("rounds", "5")))
        print(f"{name}: {cases[name]['speedup_over_transformers']} times {cases[name]['theirs']}", flush=True)
    lowest = {name: min(case["speedup_over_transformers"][name] for case in cases.values()) for name in BARS}
    full = [case["parity"]["float32"] for case in cases.values()]
    result = {
        "speedup_over_transformers": lowest,
        "bars": BARS,
        "parity": {
            "max_logprob_difference": max(one["max_logprob_difference"] for one in full),
            "argmax_mismatches": sum(one["argmax_mismatches"] for one in full),
        },
        "weight_sync_seconds": max(case["vllm"]["weight_sync_seconds"] for case in cases.values()),
        "start_seconds": max(case["vllm"]["start_seconds"] for case in cases.values()),
        "resident_mebibytes": max(case["vllm"]["resident_mebibytes"] for case in cases.values()),
        "cases": cases,
        "environment": environment(THREADS),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
