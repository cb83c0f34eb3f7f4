"""A short run of engine=deepspeed against the reference; `test_engine_contract.py` has all cases, which take minutes."""

import json
import os
import stat

import pytest

from tests.conftest import require_extra
from tests.parity.ranks import launch
from tests.parity.test_engine_contract import distance, expected

CASES = [("updates", "tiny", []), ("not_finite", "tiny", [])]


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_updates_are_those_of_one_process_and_nothing_is_compiled(tmp_path, monkeypatch, stage):
    """Compilers that fail, and write down what they are called for, stand in front of the real ones.

    When DeepSpeed is imported it tries whether a library is there by compiling `test.c`; it may not be.
    """
    require_extra("deepspeed", "deepspeed")
    for name in ("gcc", "g++", "cc", "c++", "clang", "nvcc", "ninja"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/compiled\nexit 1\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    job = {"engine": "deepspeed", "overrides": {"stage": stage}, "cases": CASES}
    found = launch(2, "tests.parity.engine_cases", job, tmp_path / "ranks")
    for case in CASES:
        key = f"{case[0]}-{case[1]}-{case[2]}/"
        own = {name: tensor for name, tensor in found.items() if name.startswith(key)}
        assert distance(own, expected(json.dumps(case), 2, tmp_path)) <= 1e-6
    log = tmp_path / "compiled"
    calls = log.read_text().splitlines() if log.exists() else []
    assert not [call for call in calls if "/test.c " not in call]
    assert not (tmp_path / "extensions").exists()
