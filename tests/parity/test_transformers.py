"""Our towers against transformers' own Qwen3, Qwen3-MoE and AIMv2, same random weights.

Tolerance in float32: rounding is 6e-8 relative; a few thousand additions per output, in another order on each side,
leave some 1e-6 of the logit scale. 2e-5 of the scale is the bar. Greedy tokens must agree wherever the best logit leads
by more than 1e-4: both sides err by less than half of that.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.batch import Row, pack_rows
from model.checkpoint import released_tensors
from model.config import Flavour, LanguageConfig, MoeLanguageConfig, flavour_config
from model.sail_vl2 import SailVL2

ROWS, LENGTH = 16, 256
NEAR_TIE, MAX_NEAR_TIES = 1e-4, 16  # of 4,096 tokens: a tie rarer than 1 in 256 does not hide a fault
BAR = 2e-5


@pytest.fixture(scope="module", params=[Flavour.tiny, Flavour.tiny_moe], ids=lambda flavour: flavour.value)
def model(request) -> SailVL2:
    model = SailVL2(flavour_config(request.param))
    model.initialise(1)
    return model


def language_tensors(model: SailVL2) -> dict[str, Tensor]:
    prefix = "language_model."
    return {n.removeprefix(prefix): t for n, t in released_tensors(model).items() if n.startswith(prefix)}


def twin_config(c: LanguageConfig):
    from transformers import Qwen3Config, Qwen3MoeConfig

    kwargs = {
        "vocab_size": c.vocab_size,
        "hidden_size": c.hidden_size,
        "intermediate_size": c.intermediate_size,
        "num_hidden_layers": c.num_hidden_layers,
        "num_attention_heads": c.num_attention_heads,
        "num_key_value_heads": c.num_key_value_heads,
        "head_dim": c.head_dim,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "rms_norm_eps": c.rms_norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
    }
    if not isinstance(c, MoeLanguageConfig):
        return Qwen3Config(**kwargs)
    return Qwen3MoeConfig(
        **kwargs,
        num_experts=c.num_experts,
        num_experts_per_tok=c.num_experts_per_tok,
        moe_intermediate_size=c.moe_intermediate_size,
        norm_topk_prob=True,
    )


def twin_of(model: SailVL2, folder: Path):
    """transformers' model, read by transformers from a folder with our stored names."""
    from transformers import AutoModelForCausalLM

    config = twin_config(model.config.language)
    config.architectures = [f"Qwen3{'Moe' * isinstance(model.config.language, MoeLanguageConfig)}ForCausalLM"]
    config.save_pretrained(folder)
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in language_tensors(model).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    twin, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"], report
    return twin.eval()


@torch.no_grad()
def both_logits(model: SailVL2, twin, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(ours, theirs), [ROWS, LENGTH, V] in float32."""
    ids = torch.randint(0, 500, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    inputs = pack_rows([Row(row[:1], [row[1:]]) for row in ids.tolist()], 519, 16)
    model, twin = model.to(dtype), twin.to(dtype)
    hidden, _ = model.hidden_states(inputs)
    ours = model.language_model.lm_head(hidden).unflatten(0, (ROWS, LENGTH))
    return ours.float(), twin(ids).logits.float()


def test_decoder_equals_transformers(model, tmp_path):
    ours, theirs = both_logits(model, twin_of(model, tmp_path), torch.float32)
    assert (ours - theirs).abs().max() <= BAR * theirs.abs().max()
    best = theirs.topk(2, dim=-1).values
    near_tie = best[..., 0] - best[..., 1] < NEAR_TIE
    assert near_tie.sum() <= MAX_NEAR_TIES
    assert ((ours.argmax(-1) == theirs.argmax(-1)) | near_tie).all()


def test_decoder_in_bfloat16(model, tmp_path, record_property):
    """Figures for the record. bfloat16 rounds by 2^-9 = 0.2 % some ten times a layer and the two sides round at other
    places; a router that is nearly undecided then takes another expert, so only the bulk of the tokens is held to
    anything: a wrong formula changes them all."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twin = twin_of(model, tmp_path)
    try:
        ours, theirs = both_logits(model, twin, torch.bfloat16)
    finally:
        model.float().load_state_dict(weights)
    error = (ours - theirs).abs().amax(-1).flatten() / theirs.abs().max()
    agreement = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    figures = {"median": error.median().item(), "max": error.max().item(), "same argmax": agreement}
    record_property("bfloat16", figures)
    print(f"{type(twin).__name__} bfloat16: {figures}")
    assert figures["median"] <= 0.03 and agreement >= 0.8


def test_transformers_writes_the_names_we_read(model, tmp_path):
    twin = twin_of(model, tmp_path / "ours")
    twin.save_pretrained(tmp_path / "theirs")
    written = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = language_tensors(model)
    if model.config.language.tie_word_embeddings:
        ours.pop("lm_head.weight")
        written.pop("lm_head.weight", None)
    assert written.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(written[name], tensor), name


def test_vision_tower_equals_transformers_aimv2():
    from transformers import Aimv2VisionConfig, Aimv2VisionModel

    from model.assemble import vision_name

    model = SailVL2(flavour_config(Flavour.tiny))
    model.initialise(1)
    c = model.config.vision
    twin = Aimv2VisionModel(
        Aimv2VisionConfig(
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            image_size=c.image_size,
            patch_size=c.patch_size,
            rms_norm_eps=c.rms_norm_eps,
            use_head=False,
        )
    ).eval()
    ours = model.state_dict()
    for i in range(c.num_hidden_layers):
        stem = f"vision_model.trunk.blocks.{i}.attn."
        ours |= {f"{stem}{n}.weight": t for n, t in zip("qkv", ours[f"{stem}qkv.weight"].chunk(3), strict=True)}
    shapes = {name: tensor.shape for name, tensor in twin.named_parameters()}
    twin.load_state_dict({n: ours[vision_name(n)].view(s) for n, s in shapes.items()}, strict=False)
    pixels = torch.randn(64, 3, c.image_size, c.image_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = twin(pixels).last_hidden_state
        mine = model.vision_model([pixels])[0]
        assert (mine - theirs).abs().max() <= BAR * theirs.abs().max()
        wide = (
            twin.bfloat16()(pixels.bfloat16()).last_hidden_state,
            model.vision_model.bfloat16()([pixels.bfloat16()])[0],
        )
    error = (wide[0].float() - wide[1].float()).abs().max() / theirs.abs().max()
    print(f"AIMv2 bfloat16: largest difference {error:.1e} of the scale")
    assert error <= 0.1  # a wrong formula gives about 1


def test_pixel_shuffle_orders_tokens_and_channels():
    from model.projector import pixel_shuffle

    features = torch.arange(16.0).reshape(1, 16, 1)  # patch number as its only channel, 4 x 4 patches
    merged = pixel_shuffle(features, 4, 2)[0]
    assert merged.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    wide = torch.arange(8.0).reshape(1, 8, 1)  # 2 x 4 patches
    assert pixel_shuffle(wide, 4, 2)[0].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
