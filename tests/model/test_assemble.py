"""A checkpoint from towers that transformers, or AIMv2's authors, wrote."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.assemble import assemble
from model.checkpoint import build_flavour, load_model, save_model
from model.config import FLAVOUR_FOLDER, AnyResVisionConfig, AssembleConfig, Flavour, Resolution, flavour_config
from model.sail_vl2 import SailVL2


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> Path:
    """Aimv2VisionModel in bfloat16, as transformers writes it; every weight is random, norms and biases too."""
    from transformers import Aimv2VisionConfig, Aimv2VisionModel

    twin = Aimv2VisionModel(
        Aimv2VisionConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=8,
            use_head=False,
        )
    )
    return write_twin(twin, tmp_path_factory.mktemp("towers") / "vision")


@pytest.fixture(scope="module", params=["qwen3", "qwen3_moe", "qwen3 untied"])
def language(request, tmp_path_factory) -> Path:
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    shapes = {
        "vocab_size": 528,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "tie_word_embeddings": request.param != "qwen3 untied",
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
    }
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}
    if request.param == "qwen3_moe":
        twin = Qwen3MoeForCausalLM(Qwen3MoeConfig(**shapes, **moe))
    else:
        twin = Qwen3ForCausalLM(Qwen3Config(**shapes))
    folder = write_twin(twin, tmp_path_factory.mktemp("towers") / "language")
    shutil.copy(FLAVOUR_FOLDER / "tiny" / "tokenizer.json", folder)
    return folder


def write_twin(twin, folder: Path) -> Path:
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.normal_(0.0, 0.1, generator=generator)
    twin.bfloat16().save_pretrained(folder)
    return folder


def original_names(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """What the authors of AIMv2 publish, from what transformers writes; the map is written anew here."""
    out = {
        "preprocessor.patchifier.proj.weight": tensors["embeddings.patch_embed.weight"],
        "preprocessor.patchifier.proj.bias": tensors["embeddings.patch_embed.bias"],
        "preprocessor.patchifier.norm.weight": tensors["embeddings.rms_norm.weight"],
        "preprocessor.pos_embed": tensors["embeddings.position_embedding.weight"][None],
        "trunk.post_trunk_norm.weight": tensors["rms_norm.weight"],
    }
    for i in range(num_layers):
        theirs, ours = f"encoder.layers.{i}.", f"trunk.blocks.{i}."
        out[ours + "attn.qkv.weight"] = torch.cat([tensors[f"{theirs}attention.{n}_proj.weight"] for n in "qkv"])
        out[ours + "attn.proj.weight"] = tensors[theirs + "attention.out_proj.weight"]
        out[ours + "mlp.fc1.weight"] = tensors[theirs + "ffn.gate_proj.weight"]
        out[ours + "mlp.fc2.weight"] = tensors[theirs + "ffn.down_proj.weight"]
        out[ours + "mlp.fc3.weight"] = tensors[theirs + "ffn.up_proj.weight"]
        out[ours + "norm_1.weight"] = tensors[theirs + "rms_norm1.weight"]
        out[ours + "norm_2.weight"] = tensors[theirs + "rms_norm2.weight"]
    return out


def write_original(vision: Path, folder: Path) -> Path:
    folder.mkdir()
    tensors = original_names(load_file(vision / "model.safetensors"), 2)
    save_file({n: t.clone().contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    raw = json.loads((vision / "config.json").read_text())
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size", "patch_size")
    published = {"model_type": "aimv2", "qkv_bias": False, "use_bias": False, "rms_norm_eps": 1e-5}
    (folder / "config.json").write_text(json.dumps(published | {key: raw[key] for key in keys}))
    return folder


@pytest.mark.parametrize("source", ["transformers", "original"])
@pytest.mark.parametrize("any_resolution", [False, True])
def test_towers_of_the_result_are_the_sources(vision, language, source, any_resolution, tmp_path):
    folder = vision if source == "transformers" else write_original(vision, tmp_path / "original")
    out = tmp_path / "out"
    assemble(
        AssembleConfig(
            str(folder), str(language), str(out), resolution=Resolution.any if any_resolution else Resolution.fixed
        )
    )
    stored = load_file(out / "model.safetensors")
    towers = {f"vision_model.{n}": t for n, t in original_names(load_file(vision / "model.safetensors"), 2).items()}
    towers |= {f"language_model.{n}": t for n, t in load_file(language / "model.safetensors").items()}
    for name, tensor in towers.items():
        assert torch.equal(stored[name], tensor), name
    tied = json.loads((language / "config.json").read_text())["tie_word_embeddings"]
    head = {"language_model.lm_head.weight"} if tied else set()
    adapter = {f"mlp1.{i}.{kind}" for i in (0, 1, 3) for kind in ("weight", "bias")}
    assert stored.keys() == towers.keys() | adapter | head
    model, processor = load_model(out)
    assert isinstance(model.config.vision, AnyResVisionConfig) == any_resolution
    assert model.config.language.tie_word_embeddings == tied
    assert model.config.language.rope_theta == 5e5
    assert processor.tokenizer.num_entries == 518


def test_the_result_computes_what_the_sources_compute(vision, language, tmp_path):
    """float32 on weights that bfloat16 holds exactly; bar as in tests/parity/test_transformers.py."""
    from transformers import Aimv2VisionModel, AutoModelForCausalLM

    from model.batch import Row, pack_rows

    assemble(AssembleConfig(str(vision), str(language), str(tmp_path / "out")))
    model, _ = load_model(tmp_path / "out")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ids = torch.randint(0, 500, (40,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        tower = Aimv2VisionModel.from_pretrained(vision, dtype=torch.float32).eval()
        decoder = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32).eval()
        hidden, _ = model.hidden_states(pack_rows([Row(ids.tolist(), [])], 519, 16))
        pairs = [
            (model.vision_model([pixels])[0], tower(pixels).last_hidden_state),
            (model.language_model.lm_head(hidden), decoder(ids[None]).logits[0]),
        ]
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()


def test_the_adapter_depends_on_the_seed_alone(vision, language, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assemble(AssembleConfig(str(vision), str(language), str(tmp_path / name), seed=seed))
    a, b, c = (load_file(tmp_path / name / "model.safetensors")["mlp1.1.weight"] for name in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert a.float().std().item() == pytest.approx(256**-0.5, rel=0.05)


def test_control_tokens_that_the_tokenizer_lacks_are_appended(vision, language, tmp_path):
    bare = shutil.copytree(language, tmp_path / "bare")
    description = json.loads((bare / "tokenizer.json").read_text())
    names = [token["content"] for token in description["added_tokens"]]
    description["added_tokens"] = description["added_tokens"][:3]
    (bare / "tokenizer.json").write_text(json.dumps(description))
    assemble(AssembleConfig(str(vision), str(bare), str(tmp_path / "out")))
    _, processor = load_model(tmp_path / "out")
    assert set(names) == set(processor.tokenizer.control)
    assert len(set(processor.tokenizer.control.values())) == len(names)


def test_a_sail_vl2_checkpoint_serves_as_both_sources(tmp_path, tiny):
    parts = SailVL2(flavour_config(Flavour.tiny))
    parts.initialise(3)
    save_model(tmp_path / "source", parts.bfloat16(), tiny[1], dtype="bfloat16")
    source = str(tmp_path / "source")
    assemble(AssembleConfig(source, source, str(tmp_path / "out"), seed=9))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "out"))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in ("mlp1.1.weight", "mlp1.3.weight")), name


@pytest.mark.parametrize("any_resolution", [False, True])
def test_the_tower_of_a_checkpoint_keeps_its_way_to_cut_images(tmp_path, tiny, any_resolution):
    model, processor = build_flavour(Flavour.tiny_base, 0)
    kept, out = tmp_path / "source", tmp_path / "out"
    processor = processor.with_settings(max_tiles=3, image_mean=(0.5, 0.25, 0.5))  # not what its config.json implies
    save_model(kept, model, processor)
    resolution = Resolution.any if any_resolution else Resolution.fixed
    assemble(AssembleConfig(str(kept), str(kept), str(out), resolution=resolution))
    assemble(AssembleConfig(str(out), str(kept), str(tmp_path / "again")))
    first, second = (load_model(folder)[0].config for folder in (out, tmp_path / "again"))
    assert first == second and isinstance(second.vision, AnyResVisionConfig) == any_resolution
    assert (second.max_dynamic_patch, second.use_thumbnail) == ((1, False) if any_resolution else (2, False))
    if not any_resolution:
        settings = load_model(tmp_path / "again")[1].settings
        assert settings == processor.settings


class TestWrongFolders:
    def refuse(self, message: str, vision: Path, language: Path, out: Path) -> None:
        with pytest.raises(ValueError, match=message):
            assemble(AssembleConfig(str(vision), str(language), str(out)))
        assert not out.is_dir() or any(out.iterdir())

    def test_exchanged(self, vision, language, tmp_path):
        self.refuse("model_type: expected aimv2 or sailvit, found 'qwen3", language, vision, tmp_path / "out")
        self.refuse("model_type: expected qwen3 or qwen3_moe, found 'aimv2", vision, vision, tmp_path / "out")

    def test_not_a_folder(self, vision, language, tmp_path):
        self.refuse("nowhere: expected a checkpoint folder", tmp_path / "nowhere", language, tmp_path / "out")
        self.refuse("nowhere: expected a checkpoint folder", vision, tmp_path / "nowhere", tmp_path / "out")

    def test_out_in_use(self, vision, language, tmp_path):
        (tmp_path / "file").write_text("kept")
        self.refuse("out: expected a new folder", vision, language, tmp_path)
        self.refuse("out: expected a new folder", vision, language, tmp_path / "file")
        assert (tmp_path / "file").read_text() == "kept"

    def test_no_tokenizer(self, vision, language, tmp_path):
        bare = shutil.copytree(language, tmp_path / "bare")
        (bare / "tokenizer.json").unlink()
        self.refuse("expected a tokenizer.json", vision, bare, tmp_path / "out")

    def test_vocabulary_too_small_for_the_control_tokens(self, vision, language, tmp_path):
        small = shutil.copytree(language, tmp_path / "small")
        raw = json.loads((small / "config.json").read_text())
        (small / "config.json").write_text(json.dumps({**raw, "vocab_size": 500}))
        self.refuse("at most llm_config.vocab_size = 500 entries, found 518", vision, small, tmp_path / "out")

    @pytest.mark.parametrize("which", ["vision", "language"])
    def test_missing_tensor(self, vision, language, which, tmp_path):
        broken = shutil.copytree({"vision": vision, "language": language}[which], tmp_path / "broken")
        tensors = load_file(broken / "model.safetensors")
        name, message = {
            "vision": ("encoder.layers.1.attention.k_proj.weight", r"missing vision_model.trunk.blocks.1.attn.qkv"),
            "language": ("model.norm.weight", "missing language_model.model.norm.weight"),
        }[which]
        del tensors[name]
        save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
        folders = {"vision": vision, "language": language} | {which: broken}
        self.refuse(message, folders["vision"], folders["language"], tmp_path / "out")

    def test_a_tower_with_biases_is_another_model(self, vision, language, tmp_path):
        other = shutil.copytree(vision, tmp_path / "other")
        raw = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**raw, "qkv_bias": True}))
        self.refuse("qkv_bias: expected False, found True", other, language, tmp_path / "out")


def test_command_line_refuses_with_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "model.assemble", f"vision={tmp_path}", f"language={tmp_path}", "out=x"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "found no config.json" in done.stderr
    assert "Traceback" not in done.stderr
