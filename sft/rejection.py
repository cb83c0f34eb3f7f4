"""Rejection sampling: which rollouts that an RL run stored are good enough to be trained on."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rollouts.records import StoredRollout, read_rollouts

WRONG, ILL_FORMED, UNFINISHED, REPEATED = "not_correct", "not_well_formed", "not_finished", "repeated"
"""Why a rollout is left out; one whose further reward part is too low is `part_NAME`."""


def rollout_files(folder: Path, last_steps: int, key: str = "data.rollouts") -> list[Path]:
    """The files of the last steps of an RL run. `ValueError`, which begins with `key`, where there are none."""
    files = sorted(folder.glob("step_*.jsonl"))[-last_steps:]
    if not files:
        raise ValueError(f"{key}: expected step_*.jsonl in {folder}, found none; run the RL stage first")
    return files


def left_out(rollout: StoredRollout, min_parts: Mapping[str, float]) -> str:
    """Return why a rollout is left out; empty where it is correct, well-formed and finished, and no further part of its
    reward is below its least value or unknown."""
    parts = rollout.parts
    if parts.get("answer") != 1.0:
        return WRONG
    if parts.get("format") != 1.0:
        return ILL_FORMED
    if rollout.finish_reason != "stop":
        return UNFINISHED
    for name, least in min_parts.items():
        value = parts.get(name)
        if value is None or value < least:
            return f"part_{name}"
    return ""


def judged_rollouts(
    files: Sequence[Path], min_parts: Mapping[str, float]
) -> Iterator[tuple[Path, int, StoredRollout, str]]:
    """Yield (file, line, rollout, why it is left out) of every stored rollout; a rollout is chosen once.

    `ValueError` for a rollout that was asked in another mode than thinking: it would be taught as a thinking one.
    """
    chosen: set[tuple[str, tuple[int, ...]]] = set()
    for file in files:
        for number, rollout in enumerate(read_rollouts(file), 1):
            if rollout.context.prompt_mode != "think":
                raise ValueError(
                    f"{file}: line {number}: expected rollouts of a run with mode=think, found one of "
                    f"mode={rollout.context.prompt_mode}, which thinking rows are not made of"
                )
            key = (rollout.prompt_id, tuple(rollout.completion_ids))
            reason = left_out(rollout, min_parts) or (REPEATED if key in chosen else "")
            if not reason:
                chosen.add(key)
            yield file, number, rollout, reason


def select_rollouts(files: Sequence[Path]) -> list[StoredRollout]:
    """The rollouts that are correct, well-formed and complete, once each. `ValueError` where there are none."""
    chosen = [rollout for _, _, rollout, reason in judged_rollouts(files, {}) if not reason]
    if not chosen:
        raise ValueError(
            f"data.rollouts: expected correct, well-formed rollouts in {files[0].parent}, found none in the last "
            f"{len(files)} steps"
        )
    return chosen
