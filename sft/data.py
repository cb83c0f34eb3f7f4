"""Samples for SFT: demonstrations, and the think-fusion mix of own correct rollouts with direct answers.

The report's think-fusion (section 4.2.4) mixes thinking samples rejected-sampled from RL's rollouts with direct pairs;
thinking samples carry the thinking instruction, direct ones do not: that is how the mode is chosen afterwards.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from model.batch import Row
from model.data.order import KeyedOrder
from model.data.records import read_records, require_texts
from model.interface import Mode
from model.processing.processor import Processor
from model.processing.visuals import check_visuals
from rollouts.records import StoredRollout, read_rollouts
from sft.config import SftConfig


def build_samples(config: SftConfig, processor: Processor) -> Callable[[int], list[Row]]:
    """step -> rows of that step: about `batch_size` completions, `direct_share` of them direct."""
    data, seed = config.data, config.run.seed
    num_direct = round(config.batch_size * data.direct_share)
    num_thinking = config.batch_size - num_direct
    sources: list[Callable[[int], list[Row]]] = []
    if num_thinking and data.demonstrations:
        sources.append(_Demonstrations(Path(data.demonstrations), processor, num_thinking, seed))
    elif num_thinking:
        sources.append(_Rollouts(config, processor, num_thinking))
    if num_direct:
        sources.append(_DirectPairs(Path(data.prompts), processor, num_direct, seed))
    return lambda step: [row for source in sources for row in source(step)]


class _Demonstrations:
    """Prompts with one or more completions each, which share the prompt in one packed row."""

    def __init__(self, path: Path, processor: Processor, per_step: int, seed: int) -> None:
        self._records = read_records(path, {"mode": str, "messages": list, "completions": list})
        for record in self._records:
            require_texts(record, "completions", str(path))
            if record["mode"] not in ("think", "direct"):
                raise ValueError(
                    f"data: {path}: row {record['id']}: mode: expected think or direct, found {record['mode']!r}"
                )
        widest = max(len(record["completions"]) for record in self._records)
        self._per_step = max(1, per_step // widest)
        self._order = KeyedOrder(len(self._records), seed, "demonstrations")
        self._processor, self._root = processor, path.parent
        self._prompts = [processor.prompt(r["messages"], Mode(r["mode"]), path.parent) for r in self._records]
        check_visuals(self._root, (image for prompt in self._prompts for image in prompt.images))
        self._row = cache(self._build)

    def __call__(self, step: int) -> list[Row]:
        return [self._row(index) for index in self._order.rows(step * self._per_step, self._per_step)]

    def _build(self, index: int) -> Row:
        prompt = self._prompts[index]
        completions = [self._processor.completion(text) for text in self._records[index]["completions"]]
        return Row(prompt.ids, completions, self._processor.open_images(self._root, prompt.images))


class _DirectPairs:
    """Prompts without the thinking instruction, answered by the boxed reference alone."""

    def __init__(self, path: Path, processor: Processor, per_step: int, seed: int) -> None:
        self._records = read_records(path, {"messages": list, "reference": str})
        self._per_step = per_step
        self._order = KeyedOrder(len(self._records), seed, "direct")
        self._processor, self._root = processor, path.parent
        self._prompts = [processor.prompt(r["messages"], Mode.direct, path.parent) for r in self._records]
        check_visuals(self._root, (image for prompt in self._prompts for image in prompt.images))
        self._row = cache(self._build)

    def __call__(self, step: int) -> list[Row]:
        return [self._row(index) for index in self._order.rows(step * self._per_step, self._per_step)]

    def _build(self, index: int) -> Row:
        prompt = self._prompts[index]
        completion = self._processor.completion(f"\\boxed{{{self._records[index]['reference']}}}")
        return Row(prompt.ids, [completion], self._processor.open_images(self._root, prompt.images))


class _Rollouts:
    """Correct, well-formed rollouts that an RL run stored, by token ids exactly as sampled."""

    def __init__(self, config: SftConfig, processor: Processor, per_step: int) -> None:
        path = Path(config.data.prompts)
        prompts = {record["id"]: record for record in read_records(path, {"messages": list})}
        self._chosen = select_rollouts(Path(config.data.rollouts), config.data.last_rollout_steps)
        unknown = {rollout.prompt_id for rollout in self._chosen} - prompts.keys()
        if unknown:
            raise ValueError(
                f"data.prompts: {path}: expected the prompts of data.rollouts, found no row for {sorted(unknown)[:3]}"
            )
        self._root, self._processor = path.parent, processor
        used = {rollout.prompt_id for rollout in self._chosen}
        self._prompts = {
            name: processor.prompt(prompts[name]["messages"], Mode.think, path.parent) for name in sorted(used)
        }
        check_visuals(self._root, (image for prompt in self._prompts.values() for image in prompt.images))
        self._per_step = per_step
        self._order = KeyedOrder(len(self._chosen), config.run.seed, "rollouts")

    def __call__(self, step: int) -> list[Row]:
        return [self._build(index) for index in self._order.rows(step * self._per_step, self._per_step)]

    def _build(self, index: int) -> Row:
        rollout = self._chosen[index]
        prompt = self._prompts[rollout.prompt_id]
        images = self._processor.open_images(self._root, prompt.images)
        return Row(prompt.ids, [rollout.completion_ids], images)


def select_rollouts(folder: Path, last_steps: int) -> list[StoredRollout]:
    """Rejection sampling: stored rollouts of the last steps that are correct, well-formed and complete, once each."""
    files = sorted(folder.glob("step_*.jsonl"))[-last_steps:]
    if not files:
        raise ValueError(f"data.rollouts: expected step_*.jsonl in {folder}, found none; run the RL stage first")
    chosen: dict[tuple[str, tuple[int, ...]], StoredRollout] = {}
    for file in files:
        for rollout in read_rollouts(file):
            parts = rollout.parts
            if parts.get("answer") == 1.0 and parts.get("format") == 1.0 and rollout.finish_reason == "stop":
                chosen.setdefault((rollout.prompt_id, tuple(rollout.completion_ids)), rollout)
    if not chosen:
        raise ValueError(f"data.rollouts: expected correct, well-formed rollouts in {folder}, found none")
    return list(chosen.values())
