"""Where the figures of a run, and some of its completions, are shown beside its own files. `run.trackers` names them.

A tracker that fails never stops a run: it says so once, and the run goes on without it.
"""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from model.run.config import TrackerName
from model.run.durable import OUT_OF_SPACE
from model.run.printable import printable
from model.run.state import State

if TYPE_CHECKING:
    from PIL.Image import Image

_EVENTS = "events.out.tfevents.*"


@dataclass(frozen=True)
class Sample:
    """A completion that is shown, with its images, which are small."""

    title: str
    question: str
    completion: str
    answer: str
    reference: str
    reward: float | None
    images: list["Image"] = field(default_factory=list)


class Tracker(Protocol):
    """Something that shows a run while it goes on."""

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Add the figures of one step. None is a mean of nothing."""
        ...

    def show(self, step: int, samples: Sequence[Sample]) -> None:
        """Add some completions of one step."""
        ...

    def write_anew(self, lines: Iterable[State]) -> None:
        """Begin with these lines of metrics.jsonl. It happens at the start, and where a run goes back to a checkpoint:
        what was shown of later steps no longer counts."""
        ...

    def close(self) -> None:
        """End what is open; `write` begins again."""
        ...


class EventFiles:
    """TensorBoard. Where a run goes back to a checkpoint its files are written anew, and completions of later steps are
    deleted, so that they hold exactly the steps that count."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: Any = None

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder))
        for name, value in metrics.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def show(self, step: int, samples: Sequence[Sample]) -> None:
        """Each step has a file of its own, whose name ends in the step, so that a restart can delete it."""
        import numpy as np
        from torch.utils.tensorboard import SummaryWriter

        with closing(SummaryWriter(str(self._rollouts), filename_suffix=f".step_{step:08d}")) as writer:
            for number, sample in enumerate(samples):
                writer.add_text(f"rollout {number}", _markdown(sample), step)
                for place, image in enumerate(sample.images):
                    pixels = np.asarray(image.convert("RGB"))
                    writer.add_image(f"rollout {number}/image {place}", pixels, step, dataformats="HWC")

    def write_anew(self, lines: Iterable[State]) -> None:
        self.close()
        for file in self._folder.glob(_EVENTS):
            file.unlink()
        last = 0
        for metrics in lines:
            last = metrics["step"]
            self.write(last, {name: value for name, value in metrics.items() if name != "step"})
        for file in self._rollouts.glob(f"{_EVENTS}.step_*"):
            if not (step := file.name.rpartition("_")[2]).isdigit() or int(step) > last:
                file.unlink()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    @property
    def _rollouts(self) -> Path:
        return self._folder / "rollouts"


class Trackers:
    """All trackers of a run. Only a full disk ends the run: everything else is the tracker's own failure."""

    def __init__(self, found: Mapping[str, Tracker], note: Callable[..., None]) -> None:
        """`note` is told what failed, as an event of the run."""
        self._found = dict(found)
        self._note = note

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self._each(lambda tracker: tracker.write(step, metrics))

    def show(self, step: int, samples: Callable[[], Sequence[Sample]]) -> None:
        """`samples` is asked once, and only where there is a tracker."""
        made: list[Sequence[Sample]] = []

        def show_by(tracker: Tracker) -> None:
            made[:] = made or [samples()]
            tracker.show(step, made[0])

        self._each(show_by)

    def write_anew(self, lines: Sequence[State]) -> None:
        self._each(lambda tracker: tracker.write_anew(lines))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._found.items()):
            try:
                call(tracker)
            except Exception as error:
                if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
                    raise
                del self._found[name]
                said = printable(f"{type(error).__name__}: {error}")
                print(
                    f"run.trackers: {name} failed and shows no more of this run, which goes on ({said})",
                    file=sys.stderr,
                    flush=True,
                )
                self._note("tracker_failed", tracker=name, error=said)
                with suppress(Exception):
                    tracker.close()


def trackers_of(
    names: Sequence[TrackerName], folder: Path, settings: Mapping[str, object], note: Callable[..., None]
) -> Trackers:
    """The trackers that a run names. None of them writes anything before it is told something."""
    found: dict[str, Tracker] = {}
    for name in names:
        if name is TrackerName.tensorboard:
            found[name.value] = EventFiles(folder / "events")
        else:
            from model.run.shown.hosted_tracker import HostedTracker

            found[name.value] = HostedTracker(name, folder, settings)
    return Trackers(found, note)


def _markdown(sample: Sample) -> str:
    """A completion as Markdown, in which none of its characters means anything: a line that is indented is code."""
    facts = f"answer: {sample.answer}\nreference: {sample.reference}\nreward: {sample.reward}"
    parts = (sample.title, sample.question, sample.completion, facts)
    return "\n\n---\n\n".join("\n".join(f"    {line}" for line in part.split("\n")) for part in parts)
