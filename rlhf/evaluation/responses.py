"""Completions of an evaluation that are kept while it runs, so that an interrupted one asks only what is missing.

One file for each data set and mode. Its first line is a key of all that the completions depend on: checkpoint, prompts
and settings of sampling. Each further line holds a portion of prompts whole, and is on the disk before the next one
begins: an evaluation that goes on asks the same portions in the same order, and so gets the same completions to the bit
where the sampler gives them to the bit.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from model.json_values import JsonObject, parse_json
from model.run.durable import write_file
from model.run.failpoints import reach
from model.run.printable import printable
from rlhf.prompts import Task
from rollouts.rollout import FinishReason, Rollout

FORMAT = 1


class Responses:
    """The completions of one data set in one mode."""

    def __init__(self, path: Path, key: str) -> None:
        """Completions of another key are deleted, which is said."""
        self.path, self.key = path, key
        self._portions: dict[int, JsonObject] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        kept, is_other = _read(path, key)
        if is_other:
            print(
                f"{printable(str(path))}: completions of another checkpoint, other prompts or settings; they are asked "
                "for anew",
                file=sys.stderr,
            )
        lines = [{"format": FORMAT, "key": key}, *kept]
        write_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._portions = {line["portion"]: line for line in kept}

    @property
    def num_kept(self) -> int:
        """Completions that were there at the beginning or came since."""
        return sum(len(group) for line in self._portions.values() for group in line["groups"])

    def rollouts(
        self, portion: int, tasks: Sequence[Task], generate: Callable[[], list[list[Rollout]]]
    ) -> list[list[Rollout]]:
        """The completions of a portion: those that are kept, else what `generate` gives, which is then kept.

        A portion with completions that the sampler failed at is not kept, so that they are tried again.
        """
        kept = self._portions.get(portion)
        if kept is not None and kept["ids"] == [task.prompt.id for task in tasks]:
            pairs = zip(tasks, kept["groups"], strict=True)
            return [_restored(task, group, portion + place) for place, (task, group) in enumerate(pairs)]
        found = generate()
        if not any(rollout.finish_reason.is_failure for group in found for rollout in group):
            self._keep(portion, tasks, found)
        return found

    def _keep(self, portion: int, tasks: Sequence[Task], found: list[list[Rollout]]) -> None:
        line: JsonObject = {
            "portion": portion,
            "ids": [task.prompt.id for task in tasks],
            "groups": [[[one.completion_ids, one.finish_reason.value] for one in group] for group in found],
        }
        self._portions[portion] = line
        reach("response")
        with self.path.open("ab") as file:
            file.write((json.dumps(line) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path, key: str) -> tuple[list[JsonObject], bool]:
    """(whole portions of this key, whether the file is of another key). A line that is cut off is left out."""
    if not path.is_file():
        return [], False
    head, *lines = path.read_bytes().split(b"\n")
    try:
        first = parse_json(head)
    except ValueError:
        first = None
    if first != {"format": FORMAT, "key": key}:
        return [], bool(head)
    kept: list[JsonObject] = []
    for line in lines[:-1]:
        try:
            record = parse_json(line)
        except ValueError:
            break
        if not isinstance(record, dict) or not {"portion", "ids", "groups"} <= record.keys():
            break
        kept.append(record)
    return kept, False


def _restored(task: Task, group: Sequence[tuple[list[int], str]], group_index: int) -> list[Rollout]:
    """Rollouts as the sampler gave them, without the log-probabilities, which no evaluation looks at."""
    return [
        Rollout(
            group_index=group_index,
            prompt_id=task.prompt.id,
            sample_index=number,
            prompt_ids=task.tokens.ids,
            completion_ids=ids,
            completion_mask=[1] * len(ids),
            rollout_logprobs=[],
            policy_versions=((0, 0),),
            finish_reason=FinishReason(reason),
        )
        for number, (ids, reason) in enumerate(group)
    ]
