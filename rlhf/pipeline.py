"""From nothing to a Thinking checkpoint: `python -m rlhf.pipeline recipe=quickstart`.

Stages are processes of their own (`pretrain`, `longcot_sft`, `rl`, `think_fusion`); each is evaluated afterwards.
The same command after an interruption continues where it stopped.
"""

import ctypes
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conf.cli import launch, load_config
from model.engine.config import Start
from rlhf.config import PipelineConfig

_PR_SET_PDEATHSIG = 1
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
        "pretrain": [f"data.path={data / 'pretrain.jsonl'}"],
        "longcot_sft": [
            f"checkpoint={root / 'pretrain' / 'final'}",
            f"data.demonstrations={data / 'demonstrations.jsonl'}",
        ],
        "rl": [f"checkpoint={root / 'longcot_sft' / 'final'}", f"prompts={data / 'train.jsonl'}"],
        "think_fusion": [
            f"checkpoint={root / 'rl' / 'final'}",
            f"data.rollouts={root / 'rl' / 'rollouts'}",
            f"data.prompts={data / 'train.jsonl'}",
        ],
    }
    entries = {"pretrain": ("pretrain", "model.pretrain.train"), "rl": ("rlhf", "rlhf.train")}
    stages = []
    for name in STAGE_NAMES:
        entry, module = entries.get(name, ("sft", "sft.train"))
        overrides = [*inputs[name], *common, f"run.dir={root / name}", *getattr(config.stages, name)]
        load_config(entry, overrides)
        stages.append(Stage(name, entry, module, overrides))
    return stages


def run_pipeline(config: PipelineConfig, resolved: str) -> None:
    """Run every stage that is not complete, evaluate, and write summary.json, curves.png and export/."""
    from model.engine.run import Run

    begin = process_start()
    stages = plan(config)
    run = Run(config.run, resolved)
    if config.run.start is Start.fresh:
        stages = [replace(stage, overrides=[*stage.overrides, "run.start=fresh"]) for stage in stages]
        for result in run.folder.glob("evaluations/*.json"):
            result.unlink()
    earlier = _read(run.folder / "elapsed.json").get("seconds", 0.0) if config.run.start is Start.resume else 0.0
    preload = threading.Thread(target=_preload)
    preload.start()
    _prepare_data(config)
    preload.join()
    results = []
    for stage in stages:
        path = run.folder / "evaluations" / f"{stage.name}.json"
        seconds_path = path.with_name(f"{stage.name}.seconds.json")
        if not path.exists():
            _run_and_evaluate(config, stage, run.folder, path, seconds_path)
        results.append({"name": stage.name, **_read(seconds_path), **_read(path)})
        _write(run.folder / "elapsed.json", {"seconds": earlier + time.time() - begin})
    _finish(config, run.folder, stages, results, earlier, begin)


def _run_and_evaluate(config: PipelineConfig, stage: Stage, folder: Path, path: Path, seconds_path: Path) -> None:
    print(f"== {stage.name}: python -m {stage.module} {' '.join(stage.overrides)}", flush=True)
    begin = time.time()
    _run_module(stage.name, stage.module, stage.overrides)
    _write(seconds_path, {"seconds": time.time() - begin})
    _run_module(f"evaluation of {stage.name}", "rlhf.evaluate", [*_evaluation(config, stage, folder), f"output={path}"])


def _evaluation(config: PipelineConfig, stage: Stage, folder: Path) -> list[str]:
    """Overrides that evaluate a stage with the RL stage's sampler limits, at temperature 1."""
    rollouts = load_config("rlhf", ["checkpoint=-", "prompts=-", *config.stages.rl])[0].rollouts
    return [
        f"checkpoint={folder / stage.name / 'final'}",
        f"prompts={Path(config.data) / config.split}.jsonl",
        f"num_prompts={config.num_eval}",
        f"seed={config.run.seed}",
        f"num_threads={config.num_threads}",
        f"rollouts.max_prompt_tokens={rollouts.max_prompt_tokens}",
        f"rollouts.max_completion_tokens={rollouts.max_completion_tokens}",
    ]


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
    from rlhf.report import plot_curves, stage_table

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


def _prepare_data(config: PipelineConfig) -> None:
    command = [sys.executable, "-m", config.prepare, f"out={config.data}", *config.prepare_arguments]
    code = subprocess.run(command).returncode
    if code:
        raise StageFailed("data preparation", code)


def _preload() -> None:
    """Import once what every stage needs. This process never computes, so that its forks start clean."""
    for name in ("torch._dynamo", "torch.utils.tensorboard", "model.checkpoint", "rollouts.embedded", "rich.progress"):
        importlib.import_module(name)


def _run_module(title: str, module: str, overrides: list[str]) -> None:
    """`python -m MODULE OVERRIDES` as a process; on Linux a fork, which saves four seconds of imports each time.

    On Linux a stage does not outlive a pipeline that is killed. `StageFailed` if it ends with an error.
    """
    if sys.platform != "linux":
        code = subprocess.run([sys.executable, "-m", module, *overrides]).returncode
    else:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os._exit(_main_of(module, overrides))
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise StageFailed(title, code)


def _main_of(module: str, overrides: list[str]) -> int:
    """Run a module as a program in this (forked) process; returns its exit code."""
    sys.argv = [module, *overrides]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


class StageFailed(RuntimeError):
    """A stage ended with an error, which it has printed itself."""

    def __init__(self, stage: str, exit_code: int) -> None:
        super().__init__(
            f"stage {stage} ended with exit code {exit_code}; mend what it says, then run the same command"
        )
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
    from model.engine.durable import write_file

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(content, indent=2).encode())


def main() -> int:
    return launch("pipeline", PipelineConfig, run_pipeline)


if __name__ == "__main__":
    sys.exit(main())
