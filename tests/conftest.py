"""Shared pieces: a tiny model, a tiny data set, deterministic CPU arithmetic."""

import importlib.util
import json
import os
from pathlib import Path

os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as commands set it, before MKL is used

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

from model.checkpoint import build_flavour, save_model
from model.config import Flavour
from model.engine.device import prepare_cpu

os.environ.setdefault("SAILVL2_REPORT", "0")  # each costs a second of every run; tests of reports ask for theirs
settings.register_profile("busy machine", deadline=None)  # an example's seconds depend on what else runs
settings.load_profile("busy machine")


def require_extra(extra: str, module: str) -> None:
    """Skip a test whose optional package is absent; with REQUIRE_EXTRAS=1, as in CI, fail instead."""
    if importlib.util.find_spec(module) is None:
        reason = f"{module} is not installed: pip install 'sailvl2-rl[{extra}]'"
        if os.environ.get("REQUIRE_EXTRAS") == "1":
            pytest.fail(f"REQUIRE_EXTRAS=1, but {reason}")
        pytest.skip(reason)


@pytest.fixture(autouse=True)
def deterministic_cpu() -> None:
    prepare_cpu(1)


@pytest.fixture(scope="session")
def tiny():
    """(model, processor) with fresh weights; tests must not change the weights."""
    torch.set_num_threads(1)
    return build_flavour(Flavour.tiny, seed=0)


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory) -> Path:
    """A checkpoint folder of `tiny`."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save_model(folder, *tiny)
    return folder


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory) -> Path:
    """The digits task, two per cent of its size."""
    from examples.digits.write import write

    folder = tmp_path_factory.mktemp("data") / "digits"
    write(folder, seed=0, share=0.02)
    return folder


@pytest.fixture
def easy_prompts(tmp_path) -> Path:
    """Twelve one-image prompts as JSONL; references are plain digits."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(12):
        name = f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(tmp_path / name)
        content = [{"type": "image", "image": name}, {"type": "text", "text": f"Question {index}?"}]
        messages = [{"role": "user", "content": content}]
        rows.append({"id": f"p{index}", "messages": messages, "reference": str(index % 10), "family": "easy"})
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ALONE = ("e2e/test_chaos.py", "e2e/test_ray_cluster.py", "e2e/test_torchrun.py", "e2e/test_launch.py", "rollouts/")
ALONE += ("rewards/test_time_limits.py", "parity/test_engine_contract.py", "rlhf/reporting/test_browser.py")
"""Tests with limits of time of their own, or that use all cores: when they are slow, no other runs beside them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        if path.startswith(ALONE):
            item.add_marker(pytest.mark.alone)
