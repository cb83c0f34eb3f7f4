"""Prompts chosen by the share of right completions that a model gives: sampled, counted, written as prompts again."""

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from model.checkpoint import load_model, load_processor
from model.data.media_store import CarriedMedia
from model.data.order import KeyedOrder
from model.data.sources import DataFolders
from model.engine.config import ComputeDtype
from model.engine.device import pick_device, pick_dtype, prepare_cpu
from model.interface import Mode
from model.json_values import JsonObject
from model.processing.processor import Processor
from model.run.durable import write_file
from model.run.identity import code_input, digest_of_files
from model.run.progress import StageProgress
from rewards.rubric import Rubric
from rlhf.evaluation.responses import Responses
from rlhf.prompts import PromptRow, PromptSet, Task
from rlhf.rewarding import name_failures, reward
from rlhf.selection.config import BLOCK, PassAtKConfig
from rollouts.build import build_worker
from rollouts.config import RolloutConfig
from rollouts.rollout import Rollout, RolloutWorker, generate
from rollouts.weights.sync import fill_worker

_PORTION = 32  # prompts that are sampled before their completions are on the disk
_FIRST_OF_BLOCK = 2**32  # the groups of a block have indices of their own, so that blocks do not repeat each other

ALL_RIGHT, ALL_WRONG, TOO_HARD, UNSCORABLE, UNREAD = "all_right", "all_wrong", "too_hard", "unscorable", "unread"
"""Why a prompt is dropped: too easy, never right, right too rarely, no completion could be scored, its image could not
be read."""


GENERAL = "general"
"""Column `chosen_by` of a prompt that was added without a choice, and the head of its id where another has the same."""


@dataclass(frozen=True)
class Counted:
    """How a prompt's completions were judged."""

    num_right: int
    num_judged: int

    @property
    def pass_rate(self) -> float | None:
        return self.num_right / self.num_judged if self.num_judged else None


def drop_reason(counted: Counted | None, config: PassAtKConfig) -> str:
    """Return why a prompt is dropped; empty where it is kept."""
    if counted is None:
        return UNREAD
    rate = counted.pass_rate
    if rate is None:
        return UNSCORABLE
    if rate >= config.max_pass_rate:
        return ALL_RIGHT
    if config.drop_all_wrong and rate == 0:
        return ALL_WRONG
    return TOO_HARD if rate < config.min_pass_rate else ""


def select(config: PassAtKConfig) -> None:
    """Sample, count, and write `out`: prompts.jsonl, unfiltered.jsonl, dropped.jsonl, summary.json and media.

    `ValueError` where nothing is left, after summary.json and dropped.jsonl say why.
    """
    config.rollouts.require_packages()
    out = Path(config.out)
    if out.is_file():
        raise ValueError(f"out: expected a folder, found the file {out}")
    for path in filter(None, (config.prompts, config.general.prompts)):
        if Path(path).resolve().is_relative_to(out.resolve()):
            raise ValueError(f"out: expected another folder than that of the prompts, found {path} in it")
    prepare_cpu(config.num_threads)
    processor = load_processor(Path(config.checkpoint))
    limits = config.rollouts.within(processor.config.language.max_position_embeddings)
    folders = DataFolders(out / "media", out / "bad_rows.jsonl")
    prompts = PromptSet(Path(config.prompts), processor, Mode.think, limits, config.data, folders)
    general = _general(config, processor, limits, folders)
    count = min(config.num_prompts or len(prompts), len(prompts))
    responses = _responses(config, prompts, out, limits)
    device = pick_device(config.device)
    model, _ = load_model(Path(config.checkpoint))
    model = model.to(device, pick_dtype(ComputeDtype.auto, device))
    counts: dict[str, Counted] = {}
    with (
        Rubric(config.reward) as rubric,
        closing(build_worker(model, processor, limits, config.seed)) as worker,
        StageProgress("pass_at_k", count) as progress,
    ):
        rubric.check_datasets(row.prompt.meta for row in (*prompts.items, *general))
        rubric.check_functions()
        fill_worker(worker, model)
        first = 0
        for tasks in prompts.portions(count, _PORTION):
            groups = _sampled(tasks, first, worker, responses)
            for task, rewarded in zip(tasks, reward(tasks, groups, rubric, processor.tokenizer), strict=True):
                judged = [result for _, result in rewarded if result.is_judged]
                counts[task.prompt.id] = Counted(sum(one.correct for one in judged), len(judged))
            first += len(tasks)
            progress.advance(len(counts), "prompts")
    _write(config, prompts.items[:count], counts, general, out)


def _general(
    config: PassAtKConfig, processor: Processor, limits: RolloutConfig, folders: DataFolders
) -> list[PromptRow]:
    """The prompts that may be added without a choice."""
    if not config.general.prompts:
        return []
    path, own = Path(config.general.prompts), folders.named("general")
    return PromptSet(path, processor, Mode.think, limits, config.general.data, own, "general").items


def _responses(config: PassAtKConfig, prompts: PromptSet, out: Path, limits: RolloutConfig) -> list[Responses]:
    """The completions of each block that are kept, by all that they depend on."""
    inputs = [one.sha256 for _, one in sorted(prompts.inputs.items())]
    settings = [limits.temperature, limits.max_prompt_tokens, limits.max_completion_tokens, config.seed]
    try:
        inputs.append(digest_of_files([Path(config.checkpoint)]))
    except OSError as error:
        raise ValueError(f"checkpoint: expected files that can be read, found: {error}") from None
    text = json.dumps([*inputs, *settings, code_input().sha256])
    key = hashlib.sha256(text.encode()).hexdigest()
    blocks = [Responses(out / "samples" / f"{block}.jsonl", key) for block in range(config.k // BLOCK)]
    if kept := sum(one.num_kept for one in blocks):
        print(f"{kept} completions are there already and are not sampled again")
    return blocks


def _sampled(
    tasks: Sequence[Task], first: int, worker: RolloutWorker, responses: Sequence[Responses]
) -> list[list[Rollout]]:
    """The completions of some tasks, block after block."""
    groups: list[list[Rollout]] = [[] for _ in tasks]
    for block, kept in enumerate(responses):

        def generated(start: int = first + block * _FIRST_OF_BLOCK) -> list[list[Rollout]]:
            found = generate(worker, [task.request(number, BLOCK) for number, task in enumerate(tasks, start)])
            name_failures(found)
            return found

        for group, found in zip(groups, kept.rollouts(first, tasks, generated), strict=True):
            group += found
    return groups


def _write(
    config: PassAtKConfig,
    rows: Sequence[PromptRow],
    counts: Mapping[str, Counted],
    general: Sequence[PromptRow],
    out: Path,
) -> None:
    reasons = {row.prompt.id: drop_reason(counts.get(row.prompt.id), config) for row in rows}
    kept = [row for row in rows if not reasons[row.prompt.id]]
    dropped = [
        {"id": row.prompt.id, "reason": reasons[row.prompt.id], "pass_rate": _rate(counts, row)}
        for row in rows
        if reasons[row.prompt.id]
    ]
    read = [row for row in rows if row.prompt.id in counts]
    numbers = Counter(one.num_right for one in counts.values() if one.num_judged == config.k)
    rates = [rate for row in read if (rate := _rate(counts, row)) is not None]
    added = _added(config, len(kept), general, {row.prompt.id for row in rows})
    summary: JsonObject = {
        "num_prompts": len(rows),
        "kept": len(kept),
        "dropped": dict(sorted(Counter(filter(None, reasons.values())).items())),
        "k": config.k,
        "mean_pass_rate": sum(rates) / len(rates) if rates else None,
        **({"general": _share_of(added, general, len(kept))} if config.general.prompts else {}),
        "num_right_of_k": {str(number): numbers[number] for number in range(config.k + 1)},
    }
    _write_lines(out / "dropped.jsonl", dropped)
    write_file(out / "summary.json", json.dumps(summary, indent=2).encode())
    print("\n".join(_lines(summary)))
    if not kept:
        for name in ("prompts.jsonl", "unfiltered.jsonl"):  # those of an earlier call do not stay
            (out / name).unlink(missing_ok=True)
        raise ValueError(f"prompts: expected some to be left, found none of {len(rows)}: {summary['dropped']}")
    carried = CarriedMedia(out)
    places = KeyedOrder(len(read), config.seed, "unfiltered").rows(0, len(kept))
    control = [read[place] for place in sorted(places)]
    others = [{**_prompt_line(row, {}, carried), "chosen_by": GENERAL} for row in added]
    for name, chosen in (("unfiltered.jsonl", control), ("prompts.jsonl", kept)):
        _write_lines(out / name, [*(_prompt_line(row, counts, carried) for row in chosen), *others])
    print(f"kept: {out / 'prompts.jsonl'}; as many of all: {out / 'unfiltered.jsonl'}")


def _added(config: PassAtKConfig, num_kept: int, general: Sequence[PromptRow], taken: set[str]) -> list[PromptRow]:
    """The general prompts that are added, drawn by the seed, with ids that no prompt in `taken` has."""
    share = config.general.share
    wanted = round(num_kept * share / (1 - share)) if general else 0
    if wanted > len(general):
        print(
            f"general: expected {wanted} prompts for general.share = {share:g} beside {num_kept} chosen ones, found "
            f"{len(general)}; all of them are added",
            file=sys.stderr,
        )
    count = min(wanted, len(general))
    places = sorted(KeyedOrder(len(general), config.seed, GENERAL).rows(0, count)) if count else []
    found: list[PromptRow] = []
    for place in places:
        row_id = general[place].prompt.id
        while row_id in taken:
            row_id = f"{GENERAL}/{row_id}"
        taken.add(row_id)
        found.append(replace(general[place], prompt=replace(general[place].prompt, id=row_id)))
    return found


def _share_of(added: Sequence[PromptRow], general: Sequence[PromptRow], num_kept: int) -> JsonObject:
    """Count the general prompts for the summary."""
    share = len(added) / (len(added) + num_kept) if added else 0.0
    return {"num_prompts": len(general), "added": len(added), "share": share}


def _rate(counts: Mapping[str, Counted], row: PromptRow) -> float | None:
    counted = counts.get(row.prompt.id)
    return counted.pass_rate if counted else None


def _lines(summary: JsonObject) -> list[str]:
    """The histogram and the counts for a person."""
    most = max(summary["num_right_of_k"].values(), default=0) or 1
    bars = [
        f"{number:>4} right {count:6d} {'#' * round(40 * count / most)}"
        for number, count in summary["num_right_of_k"].items()
    ]
    reasons = ", ".join(f"{reason} {count}" for reason, count in summary["dropped"].items()) or "none"
    return [*bars, f"{summary['kept']} of {summary['num_prompts']} prompts kept; dropped: {reasons}"]


def _prompt_line(row: PromptRow, counts: Mapping[str, Counted], carried: CarriedMedia) -> JsonObject:
    """A prompt as a line that RL reads: its messages with their media carried, its other columns, its pass rate."""
    prompt = row.prompt
    return {
        **{name: value for name, value in prompt.meta.items() if name not in ("images", "image", "image_path")},
        "id": prompt.id,
        "messages": carried.messages(prompt.messages, row.root),
        "reference": prompt.reference,
        "dataset": row.dataset,
        "pass_rate": _rate(counts, row),
        "chosen_by": "pass_rate",
    }


def _write_lines(path: Path, lines: Sequence[JsonObject]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
