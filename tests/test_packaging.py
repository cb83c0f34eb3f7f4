"""The wheel: complete without the checkout, and nothing in it that does not ship."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = ("model", "sft", "rewards", "rollouts", "rlhf", "sailvl2_rl", "conf", "examples")
START = "import sys, conf.cli, model.pretrain.train as train; print(conf.cli.ROOT, flush=True); sys.exit(train.main())"


def pip(*arguments: str | Path) -> None:
    """Without network: everything that is needed is here."""
    command = [sys.executable, "-m", "pip", *map(str, arguments), "--no-deps", "--no-index", "-q"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: a build inside the checkout would leave, and later ship, stale files."""
    copy = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in (*ROOMS, "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file in ("pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]):
        shutil.copy(ROOT / file, copy / file)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "-w", out, copy)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-compile", "--target", folder, wheel)
    return folder


def test_wheel_holds_every_source_and_data_file_of_the_rooms_and_no_other(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and path.suffix not in (".ipynb", ".md")  # they are to be read
    }
    assert names == wanted
    assert {
        "conf/rlhf/recipe/quickstart.yaml",
        "model/flavours/tiny/tokenizer.json",
        "model/flavours/tiny/config.json",
    } <= names


def test_wheel_carries_the_license_and_asks_for_the_core_only(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA"))
    assert any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    asked = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert len(asked) == len(PROJECT["project"]["dependencies"])
    assert not [line for line in asked if any(name in line for name in ("vllm", "deepspeed", "ray", "trl", "pytest"))]


@pytest.mark.parametrize("script", PROJECT["project"]["scripts"])
def test_console_scripts_point_at_functions(script):
    module, _, function = PROJECT["project"]["scripts"][script].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_the_quickstart_starts_from_the_installed_package(installed, tmp_path):
    """Its data preparation is a module of ours, and its recipe is found; nothing is taken from the checkout."""
    start = "import sys; from rlhf.pipeline import main; sys.exit(main())"
    process = subprocess.run(
        [
            *(sys.executable, "-c", start, "recipe=quickstart_smoke", "data=data", "run.dir=run"),
            "stages.pretrain.max_steps=1",
            "stages.longcot_sft.data.demonstrations=there/is/none.jsonl",  # ends it after the first stage
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 2 and "there/is/none.jsonl" in process.stderr
    assert (tmp_path / "run" / "pretrain" / "final" / "model.safetensors").is_file()


def test_installed_package_trains_from_another_directory(installed, tmp_path):
    """One step of pre-training, started where neither the checkout nor its data can be seen."""
    Image.new("L", (32, 32), 128).save(tmp_path / "a.png")
    rows = [
        {"id": "1", "kind": "caption", "images": ["a.png"], "prefix": "Digits:", "texts": ["1234"]},
        {"id": "2", "kind": "worked", "images": [], "prefix": "What is 1+2?", "texts": ["1+2=3"]},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = [
        "model=tiny",
        "optimizer.learning_rate=1e-3",
        "max_steps=1",
        "data.path=data.jsonl",
        "data.mixture={caption: 1, worked: 1, direct: 0}",
    ]
    process = subprocess.run(
        [sys.executable, "-c", START, *overrides, "run.dir=run", "engine.num_threads=1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert Path(process.stdout.splitlines()[0]) == installed.resolve()
    final = {path.name for path in (tmp_path / "run" / "final").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"} <= final
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    metrics = json.loads(line)
    # A fresh model knows nothing: about ln(number of entries) nats a token.
    entries = json.loads((installed / "model/flavours/tiny/config.json").read_text())["llm_config"]["vocab_size"]
    assert metrics["step"] == 1 and metrics["grad_norm"] > 0
    assert abs(metrics["nll_per_token"] - math.log(entries)) < 1.5
