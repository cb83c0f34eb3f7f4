"""Folders of runs and pipelines around models, as far as a lineage reads them."""

import json
import shutil
from pathlib import Path

from model.run.identity import digest_of_files


def write_run(folder: Path, model: Path, start: Path | None = None, steps: int = 7, name: str = "final") -> Path:
    """A finished run with this model, which began with `start`."""
    shutil.copytree(model, folder / name, dirs_exist_ok=True)
    inputs = {
        "prompts": {"path": "/home/me/data/train.jsonl", "sha256": "ab" * 32},
        "prompts.media": {"path": "a picture or video of /home/me/data/train.jsonl", "sha256": "cd" * 32},
        "code": {"path": "sailvl2-rl 0.1.0 torch 2.13.0", "sha256": "ef" * 32},
    }
    if start is not None:
        inputs["checkpoint"] = {"path": str(start), "sha256": digest_of_files([start])}
    mark = {"format": 1, "identity": {"settings": {"run.seed": 3, "algorithm.name": "dapo"}, "inputs": inputs}}
    (folder / "run.json").write_text(json.dumps(mark))
    (folder / "done.json").write_text(json.dumps({"updates": steps}))
    return folder


def write_result(file: Path, accuracy: float = 0.5, **more: object) -> Path:
    """A result of rlhf.evaluate."""
    file.parent.mkdir(parents=True, exist_ok=True)
    mode = {
        "accuracy": accuracy,
        "interval": [accuracy - 0.1, accuracy + 0.1],
        "format_rate": 1.0,
        "mode_obedience": None,
        "mean_length": 20.5,
        "num_prompts": 64,
        "protocol": "0123456789ab",
    }
    file.write_text(json.dumps({"num_eval": 64, "modes": {"think": mode, "direct": {**mode, **more}}}))
    return file


def write_pipeline(folder: Path, models: dict[str, Path]) -> Path:
    """A finished pipeline with a stage for each model, in their order; the last one is exported."""
    stages, before = [], None
    for name, model in models.items():
        write_run(folder / name, model, before)
        before = folder / name / "final"
        write_result(folder / "evaluations" / f"{name}.json")
        (folder / "graph").mkdir(exist_ok=True)
        (folder / "graph" / f"{name}.json").write_text('{"seconds": 12.4}')
        stages.append({"name": name, "command": "sft.train", "recipe": f"{name}_recipe", "overrides": ["max_steps=7"]})
    shutil.copytree(before, folder / "export")
    mark = {"format": 1, "identity": {"settings": {"stages": stages, "run.seed": 3}, "inputs": {}}}
    (folder / "run.json").write_text(json.dumps(mark))
    return folder
