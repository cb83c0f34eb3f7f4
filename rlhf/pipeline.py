"""From nothing to a Thinking checkpoint: `python -m rlhf.pipeline recipe=quickstart`.

Stages are processes of their own (`pretrain`, `longcot_sft`, `rl`, `think_fusion`); each is evaluated afterwards.
The same command after an interruption continues where it stopped.
"""

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conf.cli import launch, load_config
from rlhf.config import EvaluateConfig, PipelineConfig, RlConfig

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
    if config.run.start.value == "fresh":
        stages = [Stage(s.name, s.entry, s.module, [*s.overrides, "run.start=fresh"]) for s in stages]
        for result in run.folder.glob("evaluations/*.json"):
            result.unlink()
    # Evaluation runs in this process; its imports take seconds that the first stage's process can hide.
    threading.Thread(target=importlib.import_module, args=("model.checkpoint",), daemon=True).start()
    earlier = _read(run.folder / "elapsed.json").get("seconds", 0.0)
    _prepare_data(config)
    results = []
    for stage in stages:
        path = run.folder / "evaluations" / f"{stage.name}.json"
        result = _read(path)
        if not result:
            result = _run_and_evaluate(config, stage, run.folder, path)
        results.append({"name": stage.name, **result})
        _write(run.folder / "elapsed.json", {"seconds": earlier + time.time() - begin})
    _finish(config, run.folder, stages, results, earlier, begin)


def _run_and_evaluate(config: PipelineConfig, stage: Stage, folder: Path, path: Path) -> dict[str, Any]:
    from rlhf.evaluate import evaluate_folder

    print(f"== {stage.name}: python -m {stage.module} {' '.join(stage.overrides)}", flush=True)
    begin = time.time()
    command = [sys.executable, "-m", stage.module, *stage.overrides]
    code = subprocess.run(command, preexec_fn=_die_with_parent).returncode
    if code:
        raise StageFailed(stage.name, code)
    seconds = time.time() - begin
    result = {"seconds": seconds, **evaluate_folder(_evaluation(config, stage, folder))}
    _write(path, result)
    print(
        f"   {stage.name}: think {result['accuracy_think']:.1%} (T=1 {result['accuracy_think_sampled']:.1%}), "
        f"direct {result['accuracy_direct']:.1%}, mean length {result['mean_length']:.1f}, {seconds:.0f} s",
        flush=True,
    )
    return result


def _evaluation(config: PipelineConfig, stage: Stage, folder: Path) -> EvaluateConfig:
    """Evaluate with the RL stage's sampler limits and answer rule, at temperature 1, without own reward functions."""
    rl_overrides = ["checkpoint=-", "prompts=-", *config.stages.rl]
    rl, _ = load_config("rlhf", rl_overrides)
    assert isinstance(rl, RlConfig)
    rl.reward.functions, rl.reward.function_weights, rl.rollouts.temperature = [], [], 1.0
    return EvaluateConfig(
        checkpoint=str(folder / stage.name / "final"),
        prompts=str(Path(config.data) / f"{config.split}.jsonl"),
        num_prompts=config.num_eval,
        seed=config.run.seed,
        num_threads=config.num_threads,
        rollouts=rl.rollouts,
        reward=rl.reward,
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
    code = subprocess.run(command, preexec_fn=_die_with_parent).returncode
    if code:
        raise StageFailed("prepare", code)


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


def _die_with_parent() -> None:
    """Linux: a stage does not outlive a pipeline that is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


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
