"""wandb and trackio, which take the same calls. Neither is imported unless `run.trackers` names it."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.run.config import TrackerName
from model.run.shown.trackers import Sample
from model.run.state import State

PROJECT = "sailvl2-rl"
"""Project under which runs stand where the tracker's own environment variable names none."""
_COLUMNS = ("rollout", "question", "completion", "answer", "reference", "reward")


class HostedTracker:
    """One run of wandb or trackio at a time.

    Neither can take back steps. Where a run goes back to a checkpoint, another run of the tracker begins in the same
    group and is told all steps that count; the earlier one stays as it is, with the steps that do not.
    """

    def __init__(self, name: TrackerName, folder: Path, settings: Mapping[str, object]) -> None:
        self._name, self._folder, self._settings = name, folder, settings
        self._run: Any = None
        self._last = 0

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        numbers = {name: value for name, value in metrics.items() if value is not None}
        self._open().log(numbers, step=step)
        self._last = step

    def show(self, step: int, samples: Sequence[Sample]) -> None:
        module, run = self._module(), self._open()
        rows = [[s.title, s.question, s.completion, s.answer, s.reference, s.reward] for s in samples]
        shown: dict[str, Any] = {"rollouts": module.Table(columns=list(_COLUMNS), data=rows)}
        for number, sample in enumerate(samples):
            for place, image in enumerate(sample.images):
                shown[f"rollout_{number}/image_{place}"] = module.Image(image, caption=sample.title)
        run.log(shown, step=step)

    def write_anew(self, lines: Iterable[State]) -> None:
        known = list(lines)
        last = known[-1]["step"] if known else 0
        if (not known and self._run is None) or (self._run is not None and last == self._last):
            return  # nothing is shown yet, or nothing of it was taken back
        self.close()
        self._open(f", from step {last}")
        print(
            f"run.trackers: {self._name.value} cannot take back steps: the run goes on from step {last} as another one "
            "of the same group, which is told all steps up to there; the earlier one stays as it is",
            file=sys.stderr,
            flush=True,
        )
        for metrics in known:
            self.write(metrics["step"], {name: value for name, value in metrics.items() if name != "step"})

    def close(self) -> None:
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()

    def _open(self, more: str = "") -> Any:
        """The tracker's run; it begins with the first call."""
        if self._run is None:
            module, place = self._module(), self._folder.resolve()
            group = f"{place.parent.name}/{place.name}".strip("/")
            own = {"project": PROJECT, "embed": False}
            if self._name is TrackerName.wandb:
                _require_key(module)
                # Output of the terminal is the run's own; figures of the machine are in metrics.jsonl.
                quiet = module.Settings(console="off", silent=True)
                own = {
                    "project": os.environ.get("WANDB_PROJECT", PROJECT),
                    "dir": str(self._folder),
                    "settings": quiet,
                    "reinit": "create_new",
                }
            self._run = module.init(name=f"{group}{more}", group=group, config=dict(self._settings), **own)
        return self._run

    def _module(self) -> Any:
        if self._name is TrackerName.wandb:
            import wandb

            return wandb
        import trackio

        return trackio


def _require_key(wandb: Any) -> None:
    """`RuntimeError` where wandb would ask a person for a key, which would hold the run up."""
    mode = os.environ.get("WANDB_MODE", "")
    if mode in ("offline", "disabled", "dryrun") or wandb.setup().settings.mode in ("offline", "disabled"):
        return
    if not wandb.api.api_key:
        raise RuntimeError("wandb has no key; run `wandb login` first, set WANDB_API_KEY, or set WANDB_MODE=offline")
