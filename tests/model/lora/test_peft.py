"""PEFT as the oracle: the same numbers and gradients from the same files, in both directions."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import build_flavour, save_model, write_checkpoint
from model.config import Flavour
from model.lora.adapters import adapters_of, add_adapters, targeted_layers, train_adapters_alone
from model.lora.merge import merged_tensors
from model.lora.peft_files import CONFIG, WEIGHTS, add_stored_adapters, read_adapters, write_adapters
from model.sail_vl2 import SailVL2
from tests.conftest import require_extra
from tests.model.lora.test_adapters import EVERYWHERE, FLAVOURS, adapted, build, inputs_of, shake


@pytest.fixture(autouse=True)
def peft_is_there() -> None:
    require_extra("dev", "peft")


def by_peft(folder: Path, flavour: Flavour):
    from peft import PeftModel

    return PeftModel.from_pretrained(build(flavour), str(folder), is_trainable=True)


def rewrite(folder: Path, **changes: object) -> None:
    settings = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**settings, **changes}))


@FLAVOURS
def test_peft_loads_our_folder_and_computes_the_same_numbers_and_gradients(flavour, tmp_path):
    """float64; the files hold float32, so ours is rounded to it first. 1e-6 is asked for, 1e-12 is what it is."""
    model, inputs = adapted(flavour), inputs_of(60)
    with torch.no_grad():
        for adapter in adapters_of(model):
            for matrix in (adapter.a, adapter.b):
                matrix.copy_(matrix.float())
    write_adapters(tmp_path / "adapters", model, 4, 8)
    theirs = by_peft(tmp_path / "adapters", flavour).double()
    with torch.no_grad():
        changed = (theirs.base_model.model(inputs).logprobs - build(flavour)(inputs).logprobs).abs().max()
    assert changed > 1e-3
    ours, peft = model(inputs).logprobs, theirs.base_model.model(inputs).logprobs
    assert (ours - peft).abs().max() <= 1e-12
    ours.sum().backward()
    peft.sum().backward()
    trained = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(adapters_of(model)) and all(grad is not None for grad in trained.values())
    gradients = {name.replace(".default", ""): grad for name, grad in trained.items()}
    names = set(load_file(tmp_path / "adapters" / WEIGHTS))
    assert names == gradients.keys()
    with torch.no_grad():
        for adapter in adapters_of(model):
            adapter.a.copy_(adapter.a.grad), adapter.b.copy_(adapter.b.grad)
    write_adapters(tmp_path / "gradients", model, 4, 8)
    for name, grad in load_file(tmp_path / "gradients" / WEIGHTS).items():
        assert (grad - gradients[name]).norm() <= 1e-6 * gradients[name].norm(), name


@FLAVOURS
def test_we_load_a_folder_of_peft_and_compute_the_same_numbers(flavour, tmp_path):
    from peft import LoraConfig, get_peft_model

    experts = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"] if flavour is Flavour.tiny_moe else None
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["q_proj", "v_proj", "down_proj", "mlp1.1", "fc1"],
        target_parameters=experts,
        init_lora_weights="gaussian",
        use_rslora=True,
    )
    theirs, inputs = get_peft_model(build(flavour), config), inputs_of()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_((0.05 * torch.randn(parameter.shape)).double())
    theirs.save_pretrained(str(tmp_path))
    model = build(flavour)
    stored = add_stored_adapters(model, tmp_path)
    assert stored.rank == 3 and stored.scale == 5 / 3**0.5
    with torch.no_grad():
        plain, ours, peft = (one(inputs).logprobs for one in (build(flavour), model, theirs.base_model.model))
    assert (ours - plain).abs().max() > 1e-3
    assert (ours - peft).abs().max() <= 1e-6  # PEFT stores float64 as it is, we take float32


def test_names_of_the_transformers_class_are_ours_too(tmp_path):
    model = adapted(Flavour.tiny)
    write_adapters(tmp_path, model, 4, 8)
    renames = {".language_model.model.": ".model.language_model.", ".mlp1.": ".model.mlp1."}
    renames |= {".vision_model.": ".model.vision_model."}
    tensors = {}
    for name, tensor in load_file(tmp_path / WEIGHTS).items():
        for ours, theirs in renames.items():
            name = name.replace(f"base_model.model{ours}", f"base_model.model{theirs}")
        tensors[name] = tensor
    before = read_adapters(tmp_path)
    save_file(tensors, tmp_path / WEIGHTS)
    assert read_adapters(tmp_path).tensors.keys() == before.tensors.keys()


def test_targets_are_written_as_short_ends_of_names(tmp_path):
    write_adapters(tmp_path, adapted(Flavour.tiny_moe), 4, 8)
    settings = json.loads((tmp_path / CONFIG).read_text())
    assert {"q_proj", "o_proj", "mlp1.1", "mlp1.3", "attn.proj"} <= set(settings["target_modules"])
    assert len(settings["target_modules"]) <= 16 and len(settings["target_parameters"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, r"use_dora: expected False, found True"),
        ({"peft_type": "IA3"}, r"peft_type: expected LORA, found 'IA3'"),
        ({"rank_pattern": {"q_proj": 8}}, r"rank_pattern: expected \{\}, found"),
        ({"init_lora_weights": "pissa"}, r"init_lora_weights: .*'pissa', which changes the weights below"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save: expected None, found \['lm_head'\]"),
        ({"r": 0}, r"r, lora_alpha: expected positive numbers, found 0"),
        ({"r": 5}, r"q_proj\.lora_A|lora_A: expected \[5, \d+\], found \[4, \d+\]"),
    ],
)
def test_adapters_that_are_more_than_a_low_rank_product_are_refused(changes, message, tmp_path):
    write_adapters(tmp_path, adapted(Flavour.tiny), 4, 8)
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        add_stored_adapters(build(Flavour.tiny), tmp_path)


def test_a_folder_for_another_model_is_refused(tmp_path):
    write_adapters(tmp_path, adapted(Flavour.tiny_moe), 4, 8)
    with pytest.raises(ValueError, match="expected adapters of linear layers of this model, found one of"):
        add_stored_adapters(build(Flavour.tiny), tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="expected a whole safetensors file"):
        read_adapters(tmp_path)
    (tmp_path / CONFIG).unlink()
    with pytest.raises(ValueError, match=r"expected a folder of adapters with adapter_config\.json"):
        read_adapters(tmp_path)


def test_what_is_written_is_read_back_exactly(tmp_path):
    model = adapted(Flavour.tiny_moe, torch.float32)
    write_adapters(tmp_path, model, 4, 8)
    again: SailVL2 = build(Flavour.tiny_moe, torch.float32)
    add_stored_adapters(again, tmp_path)
    train_adapters_alone(again, [])
    for one, other in zip(adapters_of(model), adapters_of(again), strict=True):
        assert one.name == other.name and one.scale == other.scale
        assert torch.equal(one.a, other.a) and torch.equal(one.b, other.b)


@pytest.mark.parametrize("flavour", [Flavour.tiny, Flavour.tiny_moe], ids=lambda flavour: flavour.value)
def test_our_folder_acts_on_the_transformers_class_as_its_merged_model_does(flavour, tmp_path):
    """Logits of an image and text, about 3 in size: 1e-5 is some thirty roundings of float32."""
    from peft import PeftModel

    from model.hf import SailVLForConditionalGeneration

    model, processor = build_flavour(flavour, 0)
    save_model(tmp_path / "base", model, processor)
    add_adapters(model, targeted_layers(model, EVERYWHERE[flavour]), rank=4, alpha=8, seed=0)
    shake(model, 5)
    write_adapters(tmp_path / "adapters", model, 4, 8)
    write_checkpoint(tmp_path / "merged", model.config, processor, merged_tensors(model, torch.float32))
    inputs = {
        "input_ids": torch.tensor([[*[processor.placeholder_id] * 4, 5, 6, 7, 8]]),
        "pixel_values": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
    }
    with torch.no_grad():
        base, merged = (
            SailVLForConditionalGeneration.from_pretrained(tmp_path / name)(**inputs).logits
            for name in ("base", "merged")
        )
        loaded = SailVLForConditionalGeneration.from_pretrained(tmp_path / "base")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # PEFT only warns of adapters that it leaves out
            adapted_class = PeftModel.from_pretrained(loaded, str(tmp_path / "adapters"))
        found = adapted_class(**inputs).logits
    assert (merged - base).abs().max() > 1e-2
    assert (found - merged).abs().max() <= 1e-5
