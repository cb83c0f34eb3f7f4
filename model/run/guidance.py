"""The last lines of a command: where its result is, and what can be done with it next."""

import os
from pathlib import Path

IN_PIPELINE = "SAILVL2_IN_PIPELINE"
"""Environment variable of a pipeline's stages, which are followed by other stages and not by what a user does next."""


REPORT = "report.html"
"""Name of the report in the folder of a run or of a pipeline."""


def say_report(folder: Path) -> None:
    """Print where the report of a run or of a pipeline is, if there is one."""
    if (folder / REPORT).is_file():
        print(f"report: {folder / REPORT}", flush=True)


def say_result(result: Path | str, what: str, *commands: str) -> None:
    """Print the path of a result and the commands that go on from it."""
    print(f"{what}: {result}", flush=True)
    if os.environ.get(IN_PIPELINE):
        return
    for number, command in enumerate(commands):
        print(f"{'next: ' if number == 0 else '      '}{command}", flush=True)


def after_training(run: Path, *, is_rl: bool = False) -> None:
    """Print where a run's models are, and how they are evaluated and watched."""
    if (run / "best").is_dir():
        print(f"best in the held-out evaluations: {run / 'best'}", flush=True)
    if (run / "final_adapter").is_dir():
        print(f"adapters, already added to the model below: {run / 'final_adapter'}", flush=True)
    say_report(run)
    looks = [f"python -m rlhf.look {run}"] if is_rl else [f"python -m rlhf.train checkpoint={run}/final prompts=FILE"]
    say_result(
        run / "final",
        "model",
        f"python -m rlhf.evaluate checkpoint={run}/final prompts=FILE output={run}/evaluation.json",
        *looks,
        f"tensorboard --logdir {run}/events",
    )
