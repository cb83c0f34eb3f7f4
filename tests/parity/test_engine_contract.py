"""The contract of `TrainEngine`, case by case, for every engine and number of processes.

An engine joins by one line in `SUBJECTS`: how it is built, and how many processes it runs over. The reference is
`LocalEngine`; another engine may differ from it by the order of sums: 1e-6 relative in float32 (bfloat16: 2^-8).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.config import Flavour
from model.engine.local import LocalEngine
from tests.parity import engine_cases as cases
from tests.parity.engine_cases import FLAVOURS, OPTIMIZER, Setting


@dataclass(frozen=True)
class Subject:
    """An engine over a number of processes. `build` is called where the case runs, in the process that leads."""

    name: str
    num_processes: int
    build: Callable[[Setting], object]


def local(setting: Setting) -> LocalEngine:
    return LocalEngine(setting.model(), setting.config, OPTIMIZER, total_steps=10)


REFERENCE = Subject("local", 1, local)
SUBJECTS = [REFERENCE]


@pytest.fixture(params=SUBJECTS, ids=lambda subject: f"{subject.name}-{subject.num_processes}")
def subject(request) -> Subject:
    return request.param


@cache
def expected(case: str, flavour: Flavour) -> dict[str, Tensor]:
    return getattr(cases, case)(REFERENCE.build, flavour)


def compare(found: dict[str, Tensor], reference: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    assert found.keys() == reference.keys() and found
    for name, tensor in reference.items():
        assert torch.isfinite(tensor).all(), name
        assert (found[name] - tensor).abs().max() <= tolerance * tensor.abs().max().clamp(min=1e-30), name


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda flavour: flavour.value)
@pytest.mark.parametrize("case", ["updates", "figures", "scores", "not_finite", "frozen_towers"])
def test_case(subject, case, flavour):
    compare(getattr(cases, case)(subject.build, flavour), expected(case, flavour))


@pytest.mark.parametrize("flavour", [Flavour.tiny, Flavour.tiny_moe], ids=lambda flavour: flavour.value)
def test_bfloat16(subject, flavour):
    compare(cases.narrow(subject.build, flavour), expected("narrow", flavour), 2**-8)


@pytest.mark.parametrize("image_rows", [(), (5,), (0, 1, 2, 3, 4, 5)], ids=["no images", "one", "all"])
def test_images_anywhere(subject, image_rows):
    """An update without images leaves the tower's weights and moments alone; one micro-batch with images is enough."""
    found = cases.updates(subject.build, Flavour.tiny, image_rows)
    compare(found, cases.updates(REFERENCE.build, Flavour.tiny, image_rows))
    start = dict(cases.sorted_tensors(Setting(Flavour.tiny).model()))
    moved = {name for name, tensor in found.items() if not torch.equal(tensor, start[name])}
    assert any(name.startswith("vision_model.") for name in moved) == bool(image_rows)


@pytest.mark.parametrize("flavour", [Flavour.tiny, Flavour.tiny_moe], ids=lambda flavour: flavour.value)
def test_saving_and_loading(subject, flavour, tmp_path: Path):
    (tmp_path / "reference").mkdir()
    reference = cases.resumed(REFERENCE.build, flavour, tmp_path / "reference")
    (tmp_path / "own").mkdir()
    compare(cases.resumed(subject.build, flavour, tmp_path / "own"), reference)


def test_export(subject, tiny, tmp_path: Path):
    reference = cases.exported(REFERENCE.build, tiny[1], tmp_path / "reference")
    compare(cases.exported(subject.build, tiny[1], tmp_path / "own"), reference)


def test_two_engines_of_one_seed_are_equal_to_the_bit(subject):
    first, second = (cases.updates(subject.build, Flavour.tiny_moe) for _ in range(2))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
