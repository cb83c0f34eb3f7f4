"""From nothing to a Thinking checkpoint: `python -m rlhf.pipeline recipe=quickstart`.

Stages are processes of their own (`pretrain`, `longcot_sft`, `rl`, `think_fusion`); each is evaluated afterwards.
The same command after an interruption continues where it stopped.
"""

import ctypes
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.cli import assign, launch, load_config
from model.run.config import StartMode
from rewards.rubric import Rubric
from rlhf.config import EvaluateConfig, PipelineConfig, RlConfig
from rollouts.config import RolloutConfig

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # opened here: a forked child may only call it
STAGE_NAMES = ("pretrain", "longcot_sft", "rl", "think_fusion")


@dataclass(frozen=True)
class Stage:
    """One process of the pipeline."""

    name: str
    entry: str  # entry point of conf/
    module: str
    overrides: list[str]


def plan(config: PipelineConfig) -> list[Stage]:
    """The stages with complete command lines. `ValueError` if any of them would be refused."""
    root, data = Path(config.run.dir), Path(config.data)
    common = [f"run.seed={config.run.seed}", f"engine.num_threads={config.num_threads}"]
    inputs = {
        "pretrain": [assign("data.path", data / "pretrain.jsonl")],
        "longcot_sft": [
            assign("checkpoint", root / "pretrain" / "final"),
            assign("data.demonstrations", data / "demonstrations.jsonl"),
        ],
        "rl": [assign("checkpoint", root / "longcot_sft" / "final"), assign("prompts", data / "train.jsonl")],
        "think_fusion": [
            assign("checkpoint", root / "rl" / "final"),
            assign("data.rollouts", root / "rl" / "rollouts"),
            assign("data.prompts", data / "train.jsonl"),
        ],
    }
    entries = {"pretrain": ("pretrain", "model.pretrain.train"), "rl": ("rlhf", "rlhf.train")}
    stages = []
    for name in STAGE_NAMES:
        entry, module = entries.get(name, ("sft", "sft.train"))
        overrides = [*inputs[name], *common, assign("run.dir", root / name), *getattr(config.stages, name)]
        try:
            stage_config, _ = load_config(entry, overrides)
        except ValueError as error:
            raise ValueError(f"stages.{name}: {error}") from None
        if isinstance(stage_config, RlConfig) and stage_config.reward.functions:
            with Rubric(stage_config.reward) as rubric:
                rubric.check_functions()
        stages.append(Stage(name, entry, module, overrides))
    if importlib.util.find_spec(config.prepare) is None:
        raise ValueError(
            f"prepare: expected a module that can be imported, found {config.prepare!r}; the examples are in the "
            "checkout, not in the installed package"
        )
    return stages


def run_pipeline(config: PipelineConfig, resolved: str) -> None:
    """Run every stage that is not complete, evaluate, and write summary.json, curves.png and export/."""
    from model.run.folder import RunFolder

    begin = process_start()
    stages = plan(config)
    run = RunFolder(config.run, resolved)
    if config.run.start is StartMode.fresh:
        _clear(run.folder)
    earlier = _read(run.folder / "elapsed.json").get("seconds", 0.0)
    threading.Thread(target=_preload, daemon=True).start()
    _run_module("data preparation", config.prepare, [f"out={config.data}", *config.prepare_arguments])
    split = Path(config.data) / f"{config.split}.jsonl"
    if not split.is_file():
        raise ValueError(f"split: expected a file {split}, found none")
    results = []
    for stage in stages:
        path = run.folder / "evaluations" / f"{stage.name}.json"
        seconds_path = path.with_name(f"{stage.name}.seconds.json")
        if not path.exists():
            _run_and_evaluate(config, stage, run.folder, path, seconds_path)
        results.append({"name": stage.name, **_read(seconds_path), **_read(path)})
        _write(run.folder / "elapsed.json", {"seconds": earlier + time.time() - begin})
    _finish(config, run.folder, stages, results, earlier, begin)


def _clear(folder: Path) -> None:
    """Delete what an earlier pipeline left in the folder, and nothing else."""
    for name in ("evaluations", *STAGE_NAMES, "export"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("summary.json", "curves.png", "elapsed.json"):
        (folder / name).unlink(missing_ok=True)


def _run_and_evaluate(config: PipelineConfig, stage: Stage, folder: Path, path: Path, seconds_path: Path) -> None:
    from rlhf.evaluate import run_evaluation

    print(f"== {stage.name}: python -m {stage.module} {' '.join(stage.overrides)}", flush=True)
    begin = time.time()
    _run_module(f"stage {stage.name}", stage.module, stage.overrides)
    if not seconds_path.exists():  # a restart whose stage was complete already finds its time here
        _write(seconds_path, {"seconds": time.time() - begin})
    run_evaluation(_evaluation(config, stage, folder, path), "")


def _evaluation(config: PipelineConfig, stage: Stage, folder: Path, output: Path) -> EvaluateConfig:
    """Evaluate with the RL stage's sampler limits, at temperature 1."""
    rl, _ = load_config("rlhf", ["checkpoint=-", "prompts=-", *config.stages.rl])
    return EvaluateConfig(
        checkpoint=str(folder / stage.name / "final"),
        prompts=str(Path(config.data) / f"{config.split}.jsonl"),
        output=str(output),
        num_prompts=config.num_eval,
        seed=config.run.seed,
        num_threads=config.num_threads,
        # Our own sampler, alone: starting more, or vLLM, takes longer than it saves.
        rollouts=RolloutConfig(
            max_prompt_tokens=rl.rollouts.max_prompt_tokens,
            max_completion_tokens=rl.rollouts.max_completion_tokens,
            max_rows=rl.rollouts.max_rows,
        ),
    )


def _finish(
    config: PipelineConfig,
    folder: Path,
    stages: list[Stage],
    results: list[dict[str, Any]],
    earlier: float,
    begin: float,
) -> None:
    from rich.console import Console

    from model.checkpoint import load_model, save_model
    from rlhf.console import plot_curves, stage_table

    save_model(folder / "export", *load_model(folder / stages[-1].name / "final"))
    curves = plot_curves(folder, [stage.name for stage in stages])
    majority = results[-1]["majority_answer_rate"]
    summary = {
        "stages": results,
        "total_seconds": earlier + time.time() - begin,
        "seed": config.run.seed,
        "majority_answer_rate": majority,
        "majority_answer_rate_per_family": results[-1]["majority_answer_rate_per_family"],
    }
    _write(folder / "summary.json", summary)
    console = Console()
    console.print(stage_table(results, majority))
    console.print(
        f"Thinking checkpoint: {folder / 'export'}\nsummary: {folder / 'summary.json'}\ncurves: {curves}\n"
        f"total: {summary['total_seconds']:.0f} s",
        highlight=False,
        soft_wrap=True,
    )


def _run_module(title: str, module: str, arguments: list[str]) -> None:
    """`python -m MODULE ARGUMENTS` as a process. `StageFailed` if it ends with an error.

    SIGTERM is passed on: the stage saves its state and ends with its own exit code.
    """
    command = [sys.executable, "-m", module, *arguments]
    with subprocess.Popen(command, preexec_fn=_die_with_parent) as stage:
        previous = signal.signal(signal.SIGTERM, lambda *_: stage.terminate())
        try:
            code = stage.wait()
        finally:
            signal.signal(signal.SIGTERM, previous)
    if code:
        raise StageFailed(title, code)


def _die_with_parent() -> None:
    """Linux: a stage does not outlive a pipeline that is killed."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _preload() -> None:
    """Evaluation runs in this process; its imports take seconds that writing the data and the first stage can hide."""
    for name in ("model.checkpoint", "rlhf.collect", "rollouts.build"):
        importlib.import_module(name)


class StageFailed(RuntimeError):
    """A stage ended with an error, which it has printed itself."""

    def __init__(self, stage: str, exit_code: int) -> None:
        super().__init__(f"{stage} ended with exit code {exit_code}; mend what it says, then run the same command")
        self.exit_code = exit_code if exit_code > 0 else 128 - exit_code


def process_start() -> float:
    """Unix time at which this process started, from the kernel's books where they are to be had."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def _write(path: Path, content: dict[str, Any]) -> None:
    from model.run.durable import write_file

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(content, indent=2).encode())


def main() -> int:
    return launch("pipeline", PipelineConfig, run_pipeline)


if __name__ == "__main__":
    sys.exit(main())
