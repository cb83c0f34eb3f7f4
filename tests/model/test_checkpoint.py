"""Model folders: exact round trip, and errors that name what does not fit."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.checkpoint import NonFiniteWeights, build_flavour, load_model, save_model
from model.config import Flavour, SailVL2Config

HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A folder without a manifest, as one from the Hub."""
    copy = shutil.copytree(tiny_folder, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    return copy


def edit_weights(folder, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_round_trip_is_exact_and_keeps_both_head_and_embedding(tiny, tiny_folder):
    model, _ = load_model(tiny_folder)
    stored = load_file(tiny_folder / "model.safetensors")
    assert torch.equal(stored[HEAD], stored[EMBEDDING])
    for name, tensor in tiny[0].state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor) and torch.equal(stored[name], tensor)
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight


def test_state_dict_names_are_the_released_ones(tiny):
    names = set(tiny[0].state_dict())
    layer, block = "language_model.model.layers.0", "vision_model.trunk.blocks.2"
    expected = {
        "vision_model.preprocessor.patchifier.proj.weight",
        "vision_model.preprocessor.patchifier.proj.bias",
        "vision_model.preprocessor.patchifier.norm.weight",
        "vision_model.preprocessor.pos_embed",
        "vision_model.trunk.post_trunk_norm.weight",
        "language_model.model.norm.weight",
        HEAD,
        EMBEDDING,
        *(f"mlp1.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")),
        *(
            f"{block}.{part}.weight"
            for part in ("norm_1", "norm_2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "mlp.fc3")
        ),
        *(f"{layer}.{part}.weight" for part in ("input_layernorm", "post_attention_layernorm")),
        *(f"{layer}.self_attn.{part}.weight" for part in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
        *(f"{layer}.mlp.{part}.weight" for part in ("gate_proj", "up_proj", "down_proj")),
    }
    assert expected <= names
    per_block = {
        name.replace(".0.", ".N.").replace(".1.", ".N.").replace(".2.", ".N.").replace(".3.", ".N.") for name in names
    }
    assert len(per_block) == len(
        {n.replace(".0.", ".N.").replace(".1.", ".N.").replace(".2.", ".N.").replace(".3.", ".N.") for n in expected}
    )


def test_stored_head_decides_about_the_tie(folder, tmp_path):
    """Equal to the embedding: tied. Different: kept apart, whatever the config says. Not stored: the config decides."""
    edit_weights(folder, lambda t: t.pop(HEAD))
    model, processor = load_model(folder)
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight
    edit_weights(folder, lambda t: t.__setitem__(HEAD, t[EMBEDDING] + 1))
    model, processor = load_model(folder)
    assert not model.config.language.tie_word_embeddings
    assert torch.equal(model.language_model.lm_head.weight, model.language_model.model.embed_tokens.weight + 1)
    save_model(tmp_path / "again", model, processor)
    raw = json.loads((tmp_path / "again" / "config.json").read_text())
    assert raw["llm_config"]["tie_word_embeddings"] is False
    (tmp_path / "again" / "manifest.json").unlink()
    edit_weights(tmp_path / "again", lambda t: t.pop(HEAD))
    with pytest.raises(ValueError, match=f"missing {HEAD}"):
        load_model(tmp_path / "again")


def test_one_error_lists_every_tensor_that_does_not_fit(folder):
    def change(tensors) -> None:
        del tensors["mlp1.0.weight"]
        tensors["surplus"] = torch.zeros(1)
        tensors["mlp1.3.bias"] = torch.zeros(7)

    edit_weights(folder, change)
    with pytest.raises(ValueError) as caught:
        load_model(folder)
    text = str(caught.value)
    for part in ("missing mlp1.0.weight", "unexpected surplus", "mlp1.3.bias: expected [128], found [7]"):
        assert part in text


def test_nan_in_a_tensor_is_named(folder):
    edit_weights(folder, lambda t: t["mlp1.1.bias"].__setitem__(3, float("nan")))
    with pytest.raises(ValueError, match=r"mlp1\.1\.bias: expected finite numbers, found NaN"):
        load_model(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "found no config.json"),
        (lambda f: (f / "config.json").write_text("{"), "expected a JSON object, found"),
        (lambda f: (f / "config.json").write_text('{"model_type": "qwen3"}'), "expected 'sailvl', found 'qwen3'"),
        (lambda f: (f / "tokenizer.json").unlink(), "expected a tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "added_tokens"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            r"expected model.safetensors or model.safetensors.index.json beside",
        ),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 50), "expected a whole safetensors file"),
    ],
)
def test_foreign_or_damaged_folders(folder, damage, message):
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_model(folder)


def test_missing_folder(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder at .*nowhere, found none"):
        load_model(tmp_path / "nowhere")


def test_config_keeps_published_keys_it_does_not_read(folder, tmp_path):
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"template": "another", "auto_map": {"AutoConfig": "x"}}
    again = SailVL2Config.from_published(SailVL2Config.from_published(raw).to_published())
    assert again.to_published()["template"] == "another"
    assert "auto_map" not in again.to_published(), "that code is not written beside it"
    assert again.language == SailVL2Config.from_published(raw).language


def test_weights_depend_on_the_seed_alone(tmp_path):
    first, processor = build_flavour(Flavour.tiny, 5)
    second, _ = build_flavour(Flavour.tiny, 5)
    other, _ = build_flavour(Flavour.tiny, 6)
    name = "language_model.model.layers.1.mlp.up_proj.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
    save_model(tmp_path / "a", first, processor)
    save_model(tmp_path / "a", other, processor)  # replaces the folder as a whole
    assert torch.equal(load_model(tmp_path / "a")[0].state_dict()[name], other.state_dict()[name])


class TestManifest:
    """`folder` here is as our own commands write one, with its manifest."""

    @pytest.fixture
    def folder(self, tiny_folder, tmp_path):
        return shutil.copytree(tiny_folder, tmp_path / "copy")

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "preprocessor_config.json"])
    def test_a_flipped_bit_is_refused(self, folder, name):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 64
        (folder / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: (its bytes differ from the checksum|expected)"):
            load_model(folder)

    def test_a_file_that_is_not_listed_is_not_opened(self, folder):
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["preprocessor_config.json"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(
            ValueError, match=r"manifest.json does not list preprocessor_config.json; copy the folder anew"
        ):
            load_model(folder)

    def test_a_manifest_that_lists_nothing_is_no_leave_to_load(self, folder):
        (folder / "manifest.json").write_text("{}")
        with pytest.raises(ValueError, match=r"manifest.json does not list config.json"):
            load_model(folder)

    def test_a_listed_file_that_is_gone_is_refused(self, folder):
        (folder / "chat_template.jinja").unlink()
        with pytest.raises(
            ValueError, match=r"expected the files that manifest.json lists, found no chat_template.jinja"
        ):
            load_model(folder)

    @pytest.mark.parametrize("name", ["preprocessor_config.json", "model.safetensors.index.json", "tokenizer.json"])
    def test_a_pipe_is_no_absent_file(self, folder, name):
        (folder / "manifest.json").unlink()
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match=rf"{name}: expected a file, found a folder, a pipe or a device"):
            load_model(folder)

    def test_notes_beside_the_model_are_no_matter(self, folder):
        (folder / "README.md").write_text("mine")
        (folder / ".ipynb_checkpoints").mkdir()
        load_model(folder)


class TestWhichFileHoldsATensor:
    """The rule is that of transformers; what it would choose in silence is refused."""

    def test_another_file_beside_the_model_is_no_matter(self, folder):
        shutil.copy(folder / "model.safetensors", folder / "model_backup.safetensors")
        edit_weights(folder, lambda t: t["mlp1.1.bias"].fill_(7))
        assert (load_model(folder)[0].state_dict()["mlp1.1.bias"] == 7).all()

    def test_shards_and_a_single_file_are_refused(self, folder):
        shutil.copy(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
        names = load_file(folder / "model.safetensors")
        index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"expected model.safetensors or model.safetensors.index.json, found both"):
            load_model(folder)
        (folder / "model.safetensors").unlink()
        load_model(folder)

    def test_a_tensor_in_two_shards_is_refused_with_both_names(self, folder):
        tensors = load_file(folder / "model.safetensors")
        names = sorted(tensors)
        where = {name: f"model-0000{1 + (n % 2)}-of-00002.safetensors" for n, name in enumerate(names)}
        for file in set(where.values()):
            shard = {name: tensors[name] for name in names if where[name] == file or name == names[0]}
            save_file(shard, folder / file, metadata={"format": "pt"})
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        with pytest.raises(
            ValueError, match=rf"00002-of-00002.*{names[0]}: expected every tensor once, found it in .*00001-of"
        ):
            load_model(folder)

    @pytest.mark.parametrize("file", ["../model.safetensors", "/tmp/model.safetensors", "a/b.safetensors", ""])
    def test_an_index_names_files_of_its_own_folder(self, folder, file):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"mlp1.1.bias": file}}))
        with pytest.raises(ValueError, match=r"index.json: expected"):
            load_model(folder)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.float8_e4m3fn])
def test_numbers_that_are_no_weights_are_refused_by_type(folder, dtype):
    edit_weights(folder, lambda t: t.update({"mlp1.1.weight": t["mlp1.1.weight"].to(dtype)}))
    with pytest.raises(
        ValueError, match=r"model.safetensors: mlp1.1.weight: expected numbers as F64, F32, F16, BF16, found"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("llm_config", "num_hidden_layers", 10**9), ("llm_config", "num_hidden_layers", 100_000),
        ("vision_config", "num_hidden_layers", 10**6), ("llm_config", "vocab_size", 10**12),
        ("llm_config", "hidden_size", 10**18), ("vision_config", "image_size", 10**9),
        ("llm_config", "head_dim", 1e400), ("llm_config", "num_hidden_layers", 1.5), ("llm_config", "num_hidden_layers", True),
    ],
)  # fmt: skip
def test_sizes_beyond_reason_are_refused_before_anything_is_built(folder, section, key, value):
    raw = json.loads((folder / "config.json").read_text())
    raw[section][key] = value
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=rf"config.json: {section}.{key}: expected"):
        load_model(folder)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors.index.json"]
)
def test_json_that_is_nested_too_deeply_is_one_message(folder, name):
    (folder / name).write_text("[" * 100_000)
    with pytest.raises(ValueError, match=name):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_a_model_that_is_not_finite_is_never_written(folder, tmp_path, value):
    model, processor = load_model(folder)
    with torch.no_grad():
        model.mlp1[1].bias[3] = value
    with pytest.raises(NonFiniteWeights, match=r"mlp1.1.bias: expected finite numbers as float16.*nothing was written"):
        save_model(tmp_path / "new", model, processor, dtype="float16")
    assert not list(tmp_path.glob("new*"))
