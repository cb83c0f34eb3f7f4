"""Does AdaLRS find a learning rate that is as good as the best fixed one? `python -m benchmarks.adalrs [seeds=3]`.

The task is the report's basic stage in miniature: a tiny model learns to read handwritten digits, its adapter is made
anew, and the adapter alone is trained on captions and questions at a constant rate after a short warm-up. Runs with a
fixed rate, five of them around the best one, stand beside runs that start from a tenth of the best rate and from ten
times it, with the search and without. All make equally many updates over the same rows. The figure of a run is the mean
loss over its last fifth.

The last line is one JSON object: `worst_excess` is the largest final loss of a search relative to that of the best
fixed rate of its seed, less 1; `below_fixed_start` says whether every search ends below the run that kept its starting
rate. `python -m benchmarks.adalrs plot=FILE` also keeps the picture of the search from ten times the best rate, seed 0.
"""

import contextlib
import io
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from benchmarks.parts.arguments import arguments
from conf.cli import load_config
from examples.digits.write import write
from model.checkpoint import build_flavour, load_model, save_model
from model.config import Flavour
from model.pretrain.stage import run_stage

BEST = 1.5e-3
"""The best rate of a coarse grid on seed 0, around which the five rates of the benchmark lie."""
GRID = (BEST / 4, BEST / 2, BEST, 2 * BEST, 4 * BEST)
STARTS = (BEST / 10, 10 * BEST)
BASE_STEPS, STEPS, WINDOW, LAST = 1000, 400, 12, 80
SHARE = 0.25


@dataclass(frozen=True)
class Result:
    """One run."""

    loss: float  # mean over the last updates, nats per token
    extra_updates: float
    scale: float  # factor of the scheduled rate at the end
    seconds: float

    def shown(self, best: float) -> str:
        """The loss, also relative to the best fixed rate's, and the time."""
        return f"loss {self.loss:.4f} ({self.loss / best - 1:+.1%})  {self.seconds:.0f} s"


class Task:
    """Runs in a scratch folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write(folder / "digits", 0, SHARE)
        self._base = folder / "base"

    def prepare(self) -> None:
        """Train the model that all runs start from, and make its adapter anew."""
        self._train(["data.mixture={caption: 8, worked: 8, direct: 8}", f"max_steps={BASE_STEPS}", "run.seed=7"])
        model, processor = load_model(self.folder / "run" / "final")
        fresh, _ = build_flavour(Flavour.tiny, 11)
        model.mlp1.load_state_dict(fresh.mlp1.state_dict())
        save_model(self._base, model, processor)

    def run(self, rate: float, seed: int, searches: bool) -> Result:
        """Train the adapter from a starting rate."""
        own = ["model=null", f"checkpoint={self._base}", "engine.freeze=[vision,language]", f"max_steps={STEPS}"]
        own += ["data.mixture={caption: 12, worked: 0, direct: 6}", "adalrs.decay=0.95", f"run.seed={seed}"]
        own += [f"optimizer.learning_rate={rate}", "optimizer.warmup_steps=10", "optimizer.schedule=constant"]
        begin = time.monotonic()
        lines = self._train([*own, f"adalrs.window={WINDOW if searches else 0}"])
        loss = sum(line["nll_per_token"] for line in lines[-LAST:]) / LAST
        last = lines[-1]
        extra, scale = last.get("adalrs/extra_updates", 0.0), last.get("adalrs/rate_scale", 1.0)
        return Result(loss, extra, scale, time.monotonic() - begin)

    def _train(self, own: list[str]) -> list[dict]:
        """The lines of a run's metrics."""
        run = self.folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        common = ["recipe=quickstart", f"data.path={self.folder}/digits/pretrain.jsonl", "engine.num_threads=1"]
        common += [f"run.dir={run}", "run.save_every=100000"]
        config, resolved = load_config("pretrain", [*common, *own])
        with contextlib.redirect_stdout(io.StringIO()):
            run_stage(config, resolved)
        return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    options = dict(argument.split("=", 1) for argument in arguments(__doc__))
    begin = time.monotonic()
    excesses: list[float] = []
    is_below, extra = True, 0.0
    with tempfile.TemporaryDirectory(prefix="sailvl2-adalrs-") as scratch:
        task = Task(Path(scratch))
        task.prepare()
        for seed in range(int(options.get("seeds", "3"))):
            fixed = {rate: task.run(rate, seed, searches=False) for rate in (*GRID, *STARTS)}
            best = min(fixed[rate].loss for rate in GRID)
            for rate, one in sorted(fixed.items()):
                print(f"seed {seed} fixed  {rate:8.3g}  {one.shown(best)}", flush=True)
            for rate in STARTS:
                found = task.run(rate, seed, searches=True)
                excesses.append(found.loss / best - 1)
                is_below &= found.loss < fixed[rate].loss
                extra = max(extra, found.extra_updates)
                end = f"ends at {rate * found.scale:.3g}, {found.extra_updates:.0f} extra updates"
                print(f"seed {seed} search {rate:8.3g}  {found.shown(best)}, {end}", flush=True)
            if "plot" in options and seed == 0:
                shutil.copyfile(task.folder / "run" / "adalrs.png", options["plot"])
    result = {"worst_excess": round(max(excesses), 4), "below_fixed_start": is_below, "steps": STEPS}
    result |= {"most_extra_updates": extra, "seconds": round(time.monotonic() - begin)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
