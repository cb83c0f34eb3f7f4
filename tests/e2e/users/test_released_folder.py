"""An engineer with a released folder: SFT, RL, evaluation and export, in which no value of the quickstart appears.

The folder has the layout of SAIL-VL2-2B in small widths: the same tiles, patches and context, bfloat16, several shards,
no manifest. Its head reads the end of a turn loudest, so that completions of random weights end before 4,096 tokens.
"""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from model.checkpoint import build_flavour, load_model, save_model
from model.config import Flavour, flavour_config
from model.interface import IM_END
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from tests.e2e.conftest import ROOT, Runner

pytestmark = pytest.mark.slow
REWARD = """
def brevity(completion):
    return 1 / (1 + len(completion.token_ids))
"""


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    shapes = flavour_config(Flavour.sailvl2_2b)
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = replace(shapes.vision, **widths, num_hidden_layers=1)
    language = replace(
        shapes.language, **widths, num_hidden_layers=2, num_key_value_heads=1, head_dim=16, vocab_size=520
    )
    small = replace(shapes, vision=vision, language=language)
    model, processor = SailVL2(small), Processor(small, build_flavour(Flavour.tiny, 0)[1].tokenizer)
    model.initialise(0)
    with torch.no_grad():
        model.language_model.lm_head.weight[processor.tokenizer.control[IM_END]] *= 40.0
    folder = tmp_path_factory.mktemp("released") / "SAIL-VL2-2B"
    save_model(folder, model, processor, max_shard_bytes=40_000, dtype="bfloat16")
    (folder / "manifest.json").unlink()
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six rows with a picture of one tile, in the columns that SFT, RL and evaluation read."""
    folder = tmp_path_factory.mktemp("data")
    chance = random.Random(0)
    rows = []
    for number in range(6):
        Image.new("RGB", (56, 56), (40 * number, 90, 120)).save(folder / f"{number}.png")
        row = {
            "image": f"{number}.png",
            "question": "How many?",
            "thinking": "I count.",
            "answer": str(chance.randint(1, 9)),
        }
        rows.append(json.dumps(row) + "\n")
    (folder / "rows.jsonl").write_text("".join(rows))
    (folder / "my_rewards.py").write_text(REWARD)
    return folder


def leaves(values: dict, prefix: str = "") -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def settings(run: Path) -> dict[str, object]:
    return leaves(yaml.safe_load((run / "config.yaml").read_text()))


def of_the_quickstart(found: dict[str, object], room: str, given: list[str]) -> list[str]:
    """Keys that are not among `given`, and whose value is one of a quickstart's recipe."""
    wrong = []
    for recipe in sorted((ROOT / "conf" / room / "recipe").glob("quickstart*.yaml")):
        values = leaves(yaml.safe_load(recipe.read_text()))
        wrong += [
            f"{recipe.name}: {key}={values[key]}" for key in values.keys() - set(given) if found[key] == values[key]
        ]
    return wrong


def test_sft_rl_evaluation_and_export_have_the_values_of_the_report(
    runner: Runner, released: Path, data: Path, tmp_path
):
    sft, rl, rows = tmp_path / "sft", tmp_path / "rl", data / "rows.jsonl"
    runner.run("sft.train", [f"checkpoint={released}", f"data.demonstrations={rows}", f"run.dir={sft}"])
    found = settings(sft)
    assert (found["optimizer.learning_rate"], found["batch_size"], found["optimizer.schedule"]) == (
        1e-6,
        1024,
        "cosine",
    )
    assert (found["max_steps"], found["epochs"]) == (0, 0) and "steps: 1 (1 passes over" in runner.log.read_text()
    assert not of_the_quickstart(found, "sft", ["optimizer.schedule"])  # cosine is the report's, too

    sizes = {"trainer.max_steps": "1", "trainer.groups_per_step": "2", "trainer.mini_batch_size": "16"}
    given = [f"{key}={value}" for key, value in sizes.items()]
    reward = ["reward.verifier=none", f"reward.functions=[{data / 'my_rewards.py'}:brevity]"]
    runner.run("rlhf.train", [f"checkpoint={sft / 'final'}", f"prompts={rows}", f"run.dir={rl}", *given, *reward])
    found, said = settings(rl), runner.log.read_text()
    assert (found["optimizer.learning_rate"], found["optimizer.schedule"], found["trainer.passes"]) == (
        1e-6,
        "constant",
        2,
    )
    assert "limits: 16384 + 4096 tokens" in said and "learning rate 1e-06, dapo" in said
    assert not of_the_quickstart(found, "rlhf", [*sizes, "algorithm.group_size"])  # 8 is the default of every recipe

    result = tmp_path / "result.json"
    runner.run("rlhf.evaluate", [f"checkpoint={rl / 'final'}", f"prompts={rows}", f"output={result}", "num_prompts=2"])
    assert "at most 4096 tokens a completion" in runner.log.read_text()
    assert len((tmp_path / "result.answers.jsonl").read_text().splitlines()) == 6
    runner.run("model.export", [f"checkpoint={rl / 'final'}", f"out={tmp_path / 'export'}"])
    for folder in (sft / "final", rl / "final", tmp_path / "export"):
        assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert load_model(tmp_path / "export")[0].config.language == load_model(released)[0].config.language
