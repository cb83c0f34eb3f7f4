"""Does AdaLRS find a learning rate that is as good as the best fixed one? `python -m benchmarks.adalrs [seeds=3]`.

The task is the quickstart's pre-training, shortened: a tiny model from nothing, on documents of handwritten digits and
of arithmetic. Runs with a fixed rate, five of them around the best one, stand beside runs that start from a tenth of
the best rate and from ten times it, with the search and without. All make equally many updates over the same rows; the
figure of a run is the mean loss over its last updates, whose rows no run has seen before. The last line is one JSON
object: `worst_excess` is the largest final loss of a search relative to that of the best fixed rate of its seed, less
1; `below_fixed_start` says whether every search ends below the run that kept its starting rate.
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
from model.pretrain.stage import run_stage

BEST = 2e-3
"""The best rate of a coarse grid on seed 0, around which the five rates of the benchmark lie."""
GRID = (BEST / 4, BEST / 2, BEST, 2 * BEST, 4 * BEST)
STARTS = (BEST / 10, 10 * BEST)
STEPS, WINDOW, LAST = 240, 8, 30
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

    def run(self, rate: float, seed: int, searches: bool) -> Result:
        """Train a fresh model from a starting rate."""
        own = ["data.mixture={caption: 5, worked: 5, direct: 6}", f"max_steps={STEPS}", f"run.seed={seed}"]
        own += [f"optimizer.learning_rate={rate}", "optimizer.warmup_steps=10"]
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
    result = {"worst_excess": round(max(excesses), 4), "below_fixed_start": is_below, "steps": STEPS}
    result |= {"most_extra_updates": extra, "seconds": round(time.monotonic() - begin)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
