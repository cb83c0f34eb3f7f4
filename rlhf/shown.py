"""Rollouts of a step as trackers show them: a few, with small images."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from PIL.Image import Image

from model.data.media import open_image
from model.data.media_error import MediaError
from model.run.shown.trackers import Sample

MOST = 4
"""Completions of a step that are shown: half of them the best of their step, half the worst."""
MOST_IMAGES = 4
LONGEST_SIDE = 256
"""Pixels of the longer side of an image, at most."""


def samples_of(stored: Sequence[Mapping[str, object]], run: Path) -> list[Sample]:
    """Some of the rollouts that a step stored, of different prompts: those with the highest and the lowest reward.

    `stored` is what `rlhf.metrics.stored_rollouts` gave. An image that cannot be opened is left out.
    """
    ordered = sorted(stored, key=_reward)
    chosen: dict[object, Mapping[str, object]] = {}
    for pair in zip(reversed(ordered), ordered, strict=True):
        for record in pair:
            if len(chosen) < MOST:
                chosen.setdefault(record["prompt_id"], record)
    return [_sample(record, run) for record in chosen.values()]


def _reward(record: Mapping[str, object]) -> float:
    value = record["reward"]
    return float(value) if isinstance(value, int | float) else 0.0


def _sample(record: Mapping[str, object], run: Path) -> Sample:
    names = record["images"]
    paths = [run / str(name) for name in names[:MOST_IMAGES]] if isinstance(names, list) else []
    answer, reward = record["answer"], record["reward"]
    return Sample(
        f"{record['prompt_id']}, sample {record['sample_index']}",
        str(record["question"]),
        str(record["text"]),
        "(none found)" if answer is None else str(answer),
        str(record["reference"]),
        float(reward) if isinstance(reward, int | float) else None,
        [image for path in paths for image in _opened(path)],
    )


def _opened(path: Path) -> list[Image]:
    with suppress(MediaError):
        image = open_image(Path("/"), str(path.absolute()))
        image.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
        return [image]
    return []
