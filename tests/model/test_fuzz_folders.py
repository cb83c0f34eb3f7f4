"""Damaged model folders and checkpoints: whatever happened to a file, another model is never loaded in its place."""

import dataclasses
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import load_model, save_model
from model.config import FLAVOUR_FOLDER, Flavour, flavour_config
from model.engine.config import Device, EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.processing.processor import Processor
from model.processing.tokenizer import Tokenizer
from model.run.config import RunConfig
from model.run.folder import RunFolder
from model.sail_vl2 import SailVL2

FAST, ALL = 40, 1500


def small_model() -> tuple[SailVL2, Processor]:
    """A model of some ten thousand weights."""
    config = flavour_config(Flavour.tiny)
    vision = dataclasses.replace(
        config.vision, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    language = dataclasses.replace(
        config.language, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4,
    )  # fmt: skip
    model = SailVL2(dataclasses.replace(config, vision=vision, language=language))
    model.initialise(0)
    return model, Processor(model.config, Tokenizer.from_folder(FLAVOUR_FOLDER / "tiny"))


def flip(file: Path, rng: random.Random) -> None:
    content = bytearray(file.read_bytes())
    for _ in range(rng.choice([1, 1, 8])):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def cut(file: Path, rng: random.Random) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: rng.randrange(len(content))])


def overwrite(file: Path, rng: random.Random) -> None:
    file.write_bytes(rng.choice([b"", b"{}", b"[]", b"null", b"\xff" * 100, b"[" * 50_000, rng.randbytes(300)]))


def lengthen(file: Path, rng: random.Random) -> None:
    file.write_bytes(file.read_bytes() + rng.randbytes(rng.randrange(1, 50)))


def remove(file: Path, rng: random.Random) -> None:
    file.unlink()


def become_folder(file: Path, rng: random.Random) -> None:
    file.unlink()
    file.mkdir()


def change_json(file: Path, rng: random.Random) -> None:
    """Another value somewhere in a JSON file; another file is flipped."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        return flip(file, rng)
    places = list(walk(content))
    if not places:
        return overwrite(file, rng)
    holder, key = rng.choice(places)
    odd = [None, -1, 0, 10**9, 1e308, float("nan"), "x", "\ud800", [], {}, True, 3.5, 2**70]
    holder[key] = rng.choice(odd)
    file.write_text(json.dumps(content))


def walk(value):
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items)[:40]:
        yield value, key
        yield from walk(inner)


def change_tensor(file: Path, rng: random.Random) -> None:
    """Numbers of another type, shape or kind, or another name, in a safetensors file; another file is flipped."""
    try:
        tensors = load_file(file)
    except Exception:
        return flip(file, rng)
    name = rng.choice(sorted(tensors))
    match rng.randrange(5):
        case 0:
            tensors[name] = tensors[name].to(rng.choice([torch.int8, torch.int64, torch.bool]))
        case 1:
            tensors[name] = tensors[name].flatten()[:-1].clone()
        case 2:
            tensors[name].view(-1)[0] = rng.choice([float("nan"), float("inf")])
        case 3:
            tensors["surplus"] = tensors.pop(name)
        case 4:
            del tensors[name]
    save_file(tensors, file, metadata={"format": "pt"})


DAMAGES = [flip, cut, overwrite, lengthen, remove, become_folder, change_json, change_tensor]


def sign_anew(folder: Path) -> None:
    """A manifest that fits the files as they are: sums alone prove nothing."""
    files = [path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json"]
    entries = {p.name: {"bytes": p.stat().st_size, "sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in files}
    (folder / "manifest.json").write_text(json.dumps(entries))


def weights_of(model: SailVL2) -> bytes:
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    "trials", [range(FAST), pytest.param(range(FAST, ALL), marks=pytest.mark.nightly)], ids=["fast", "all"]
)
def test_a_damaged_model_folder_is_refused_or_is_the_same_model(tmp_path, trials):
    model, processor = small_model()
    save_model(tmp_path / "whole", model, processor)
    expected, refused = weights_of(model), 0
    for trial in trials:
        rng = random.Random(trial)
        folder = shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
        signed = rng.choice(["as written", "as written", "anew", "not"])
        damage = rng.choice(DAMAGES)
        file = rng.choice(
            sorted(path for path in folder.iterdir() if signed == "as written" or path.name != "manifest.json")
        )
        damage(file, rng)
        if signed == "anew":
            sign_anew(folder)
        elif signed == "not":
            (folder / "manifest.json").unlink()
        try:
            found, again = load_model(folder)
        except ValueError as error:
            refused += 1
            assert str(error), trial
        else:
            what = (trial, damage.__name__, file.name, signed)
            if signed == "as written":
                assert weights_of(found) == expected and again.barred_ids == processor.barred_ids, what
            for name, tensor in found.state_dict().items():
                assert torch.isfinite(tensor).all() and tensor.shape == model.state_dict()[name].shape, what
        shutil.rmtree(folder)
    assert refused > len(trials) / 3


@pytest.mark.parametrize(
    "trials", [range(FAST), pytest.param(range(FAST, ALL), marks=pytest.mark.nightly)], ids=["fast", "all"]
)
def test_a_damaged_checkpoint_is_rejected_for_the_older_one_or_refused(tmp_path, trials, capfd):
    def engine() -> LocalEngine:
        return LocalEngine(small_model()[0], EngineConfig(device=Device.cpu), OptimizerConfig(learning_rate=0.1), 4)

    def run(folder: Path) -> RunFolder:
        return RunFolder(RunConfig(dir=str(folder), save_every=1, keep_checkpoints=2), "a: 1\n")

    first, weights = engine(), {}
    with run(tmp_path / "whole") as folder:
        folder.restore(first)
        for step in (1, 2):
            for parameter in first.model.parameters():
                parameter.grad = torch.full_like(parameter, 0.1 * step)
            first.step()
            weights[step] = weights_of(first.model)
            folder.log(step, {"loss": 1.0})
            folder.save(first, {"step": step})
    seen = set()
    for trial in trials:
        rng = random.Random(trial)
        copy = shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
        newest = copy / "checkpoints" / "step_00000002"
        signed_anew = rng.random() < 0.3
        damage = rng.choice(DAMAGES)
        file = rng.choice(sorted(path for path in newest.iterdir() if not signed_anew or path.name != "manifest.json"))
        damage(file, rng)
        if signed_anew:
            sign_anew(newest)
        second = engine()
        what = (trial, damage.__name__, file.name, signed_anew)
        try:
            with run(copy) as folder:
                step = folder.restore(second)["step"]
        except ValueError as error:
            assert str(error), what
            seen.add("refused")
        else:
            seen.add(step)
            # Whoever changes a number and signs for it is believed.
            if not (signed_anew and damage in (flip, change_json, change_tensor)):
                assert weights_of(second.model) == weights[step] and second.step_count == step, what
        shutil.rmtree(copy)
        capfd.readouterr()
    assert seen == {1, 2, "refused"}
