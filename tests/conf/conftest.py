"""Running entry points in this process, and what each needs to have a valid configuration."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import conf.cli
from conf.schema import ENTRIES

REQUIRED = {
    "pretrain": ["model=tiny", "data.path=d", "optimizer.learning_rate=1e-3"],
    "sft": ["checkpoint=c", "data.demonstrations=d", "data.prompts=p"],
    "rlhf": ["checkpoint=c", "prompts=p"],
    "estimate": [],
    "evaluate": ["checkpoint=c", "prompts=p"],
    "pass_at_k": ["checkpoint=c", "prompts=p", "out=o"],
    "generate": ["checkpoint=c", "prompts=p", "out=o"],
    "pipeline": ["recipe=quickstart"],
    "report": ["run=r"],
    "convert": ["dataset=geometry3k", "source=s", "out=o"],
    "describe": [],
    "assemble": ["vision=v", "language=l", "out=o"],
    "chat": ["checkpoint=c"],
    "export": ["checkpoint=c", "out=o"],
    "prepare_longcot": ["rows=[r]", "out=o"],
    "prepare_fusion": ["rollouts=r", "prompts=[p]", "direct=[d]", "out=o"],
    "prepare_free_response": ["prompts=[p]", "out=o"],
    "export_run": ["run=r", "out=o"],
    "serve": ["checkpoint=c"],
    "soup": ["checkpoints=[a,b]", "out=o"],
    "probe": ["checkpoints=[a]", "data=d"],
    "expert_load": ["checkpoint=c", "text=t"],
}


class Outcome(NamedTuple):
    code: int
    config: Any  # what the entry point's function was given, None if it was not called
    out: str
    err: str


@pytest.fixture
def required() -> dict[str, list[str]]:
    """Overrides without which an entry point refuses to start."""
    return REQUIRED


@pytest.fixture
def run(monkeypatch, capsys) -> Callable[..., Outcome]:
    """Call `launch` as the command line would."""

    def launch(entry: str, *arguments: str, function: Callable[[Any, str], None] | None = None) -> Outcome:
        given: list[Any] = []
        monkeypatch.setattr(sys, "argv", ["program", *arguments])
        code = conf.cli.launch(entry, ENTRIES[entry], function or (lambda config, _: given.append(config)))
        return Outcome(code, given[0] if given else None, *capsys.readouterr())

    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")  # launch sets a default; this undoes it afterwards
    return launch


@pytest.fixture
def own_conf(tmp_path, monkeypatch) -> Path:
    """A copy of conf/ that stands in for it and may be changed."""
    shutil.copytree(conf.cli.ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(conf.cli, "ROOT", tmp_path)
    return tmp_path / "conf"
