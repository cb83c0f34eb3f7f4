"""MoE folders: per-expert names of the Hub, shards with an index, and errors that name what is missing."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import build_flavour, load_model, released_tensors, save_model
from model.config import Flavour

INDEX = "model.safetensors.index.json"
LIMIT = 400_000  # bytes: a dozen shards, and a few tensors that are larger alone


@pytest.fixture(scope="module")
def tiny_moe():
    return build_flavour(Flavour.tiny_moe, seed=0)


@pytest.fixture(scope="module")
def sharded(tiny_moe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("moe") / "sharded"
    save_model(folder, *tiny_moe, max_shard_bytes=LIMIT)
    return folder


@pytest.fixture
def folder(sharded, tmp_path) -> Path:
    """A folder without a manifest, as one from the Hub."""
    copy = shutil.copytree(sharded, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    return copy


def weight_map(folder: Path) -> dict[str, str]:
    return json.loads((folder / INDEX).read_text())["weight_map"]


def test_sharded_round_trip_is_exact(tiny_moe, sharded):
    model, _ = load_model(sharded)
    assert model.config == tiny_moe[0].config
    for name, tensor in tiny_moe[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight


def test_one_file_and_shards_hold_the_same(tiny_moe, sharded, tmp_path):
    save_model(tmp_path / "whole", *tiny_moe)
    assert not (tmp_path / "whole" / INDEX).exists()
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    parts = {}
    for file in sharded.glob("*.safetensors"):
        parts |= load_file(file)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_shards_and_index_as_on_the_hub(sharded):
    places, stored_bytes = weight_map(sharded), 0
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 5
    assert files == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    for file in files:
        tensors = load_file(sharded / file)
        size = sum(tensor.nbytes for tensor in tensors.values())
        assert size <= LIMIT or len(tensors) == 1
        assert set(tensors) == {name for name, where in places.items() if where == file}
        stored_bytes += size
    assert json.loads((sharded / INDEX).read_text())["metadata"]["total_size"] == stored_bytes


def test_stored_names_are_those_of_single_experts(tiny_moe, sharded):
    names = {name for name in weight_map(sharded) if ".mlp." in name and name.startswith("language_model.")}
    layer = "language_model.model.layers.{}.mlp."
    expected = {layer.format(i) + "gate.weight" for i in range(4)}
    kinds = {"gate_proj": (192, 128), "up_proj": (192, 128), "down_proj": (128, 192)}
    expected |= {f"{layer.format(i)}experts.{e}.{kind}.weight" for i in range(4) for e in range(8) for kind in kinds}
    assert names == expected
    for name, tensor in released_tensors(tiny_moe[0]).items():
        if ".experts." in name:
            assert tuple(tensor.shape) == kinds[name.split(".")[-2]], name


def test_released_tensors_share_memory_with_the_model(tiny_moe):
    model, _ = build_flavour(Flavour.tiny_moe, seed=1)
    experts = model.language_model.model.layers[2].mlp.experts
    with torch.no_grad():
        released_tensors(model)["language_model.model.layers.2.mlp.experts.5.up_proj.weight"].fill_(7.0)
    assert (experts.gate_up_proj[5, 192:] == 7.0).all()
    assert (experts.gate_up_proj == 7.0).sum() == 192 * 128


def test_a_missing_shard(folder):
    victim = weight_map(folder)["mlp1.1.weight"]
    (folder / victim).unlink()
    with pytest.raises(ValueError, match=f"found no {victim}"):
        load_model(folder)


def test_a_truncated_shard(folder):
    victim = folder / weight_map(folder)["language_model.model.layers.3.mlp.experts.7.down_proj.weight"]
    victim.write_bytes(victim.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"{victim.name}: expected a whole safetensors file"):
        load_model(folder)


def test_missing_experts_are_all_named_at_once(folder):
    missing = [f"language_model.model.layers.{i}.mlp.experts.6.up_proj.weight" for i in (0, 2)]
    for name in missing:
        file = folder / weight_map(folder)[name]
        tensors = load_file(file)
        del tensors[name]
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError) as caught:
        load_model(folder)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [f"missing {name}" for name in missing]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index(folder, content):
    (folder / INDEX).write_text(content)
    with pytest.raises(ValueError, match=f"{INDEX}: expected"):
        load_model(folder)


def test_an_index_does_not_lead_out_of_its_folder(folder):
    victim = weight_map(folder)["mlp1.1.weight"]
    (folder / victim).rename(folder.parent / "elsewhere.safetensors")
    (folder / INDEX).write_text((folder / INDEX).read_text().replace(victim, "../elsewhere.safetensors"))
    with pytest.raises(ValueError, match=r"\.\./elsewhere\.safetensors"):
        load_model(folder)


def test_bfloat16_is_the_rounded_model(tiny_moe, tmp_path):
    save_model(tmp_path / "half", *tiny_moe, dtype="bfloat16")
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.bfloat16}
    model, _ = load_model(tmp_path / "half")
    for name, tensor in tiny_moe[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor.bfloat16().float()), name


def test_experts_that_do_not_add_up_to_one_are_another_model(folder):
    raw = json.loads((folder / "config.json").read_text())
    for change in ({"norm_topk_prob": False}, {"norm_topk_prob": None}, {"decoder_sparse_step": 2}):
        section = {**raw["llm_config"], **change}
        section = {key: value for key, value in section.items() if value is not None}  # None: leave the key out
        (folder / "config.json").write_text(json.dumps({**raw, "llm_config": section}))
        with pytest.raises(ValueError, match=f"llm_config.{next(iter(change))}: expected .* this is another model"):
            load_model(folder)
