"""Our towers against transformers' own Qwen3 and AIMv2, same random weights, float32.

Tolerance: float32 has 6e-8 relative rounding; a few thousand additions per output leave some 1e-6 of the logit scale.
2e-5 of the scale is the bar.
"""

import pytest
import torch

from model.batch import Row, pack_rows
from model.config import Flavour, flavour_config
from model.sail_vl2 import SailVL2


@pytest.fixture(scope="module")
def model() -> SailVL2:
    model = SailVL2(flavour_config(Flavour.tiny))
    model.initialise(1)
    return model


def test_decoder_equals_transformers_qwen3(model):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    c = model.config.language
    twin = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=c.vocab_size,
            hidden_size=c.hidden_size,
            intermediate_size=c.intermediate_size,
            num_hidden_layers=c.num_hidden_layers,
            num_attention_heads=c.num_attention_heads,
            num_key_value_heads=c.num_key_value_heads,
            head_dim=c.head_dim,
            rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            rms_norm_eps=c.rms_norm_eps,
            tie_word_embeddings=True,
        )
    ).eval()
    own = {name.removeprefix("language_model."): t for name, t in model.state_dict().items() if "language" in name}
    twin.load_state_dict(own)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 500, (4, 128), generator=generator)
    with torch.no_grad():
        theirs = twin(ids).logits
        inputs = pack_rows([Row(row[:1], [row[1:]]) for row in ids.tolist()], 519, 4)
        hidden = model.hidden_states(inputs)
        ours = (hidden @ model.language_model.lm_head.weight.T).unflatten(0, (4, 128))
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()
    assert (ours.argmax(-1) == theirs.argmax(-1)).all()


def test_vision_tower_equals_transformers_aimv2(model):
    from transformers import Aimv2VisionConfig, Aimv2VisionModel

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
    ours = {n.removeprefix("vision_model."): t for n, t in model.state_dict().items() if n.startswith("vision_model.")}
    renamed = {
        "embeddings.patch_embed.weight": ours["preprocessor.patchifier.proj.weight"],
        "embeddings.patch_embed.bias": ours["preprocessor.patchifier.proj.bias"],
        "embeddings.rms_norm.weight": ours["preprocessor.patchifier.norm.weight"],
        "embeddings.position_embedding.weight": ours["preprocessor.pos_embed"][0],
        "rms_norm.weight": ours["trunk.post_trunk_norm.weight"],
    }
    for i in range(c.num_hidden_layers):
        block = f"trunk.blocks.{i}"
        q, k, v = ours[f"{block}.attn.qkv.weight"].chunk(3)
        renamed |= {
            f"encoder.layers.{i}.attention.q_proj.weight": q,
            f"encoder.layers.{i}.attention.k_proj.weight": k,
            f"encoder.layers.{i}.attention.v_proj.weight": v,
            f"encoder.layers.{i}.attention.out_proj.weight": ours[f"{block}.attn.proj.weight"],
            f"encoder.layers.{i}.ffn.gate_proj.weight": ours[f"{block}.mlp.fc1.weight"],
            f"encoder.layers.{i}.ffn.up_proj.weight": ours[f"{block}.mlp.fc3.weight"],
            f"encoder.layers.{i}.ffn.down_proj.weight": ours[f"{block}.mlp.fc2.weight"],
            f"encoder.layers.{i}.rms_norm1.weight": ours[f"{block}.norm_1.weight"],
            f"encoder.layers.{i}.rms_norm2.weight": ours[f"{block}.norm_2.weight"],
        }
    twin.load_state_dict(renamed)
    pixels = torch.randn(3, 3, c.image_size, c.image_size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        theirs = twin(pixels).last_hidden_state
        mine = model.vision_model(pixels)
    assert (mine - theirs).abs().max() <= 2e-5 * theirs.abs().max()


def test_pixel_shuffle_orders_tokens_and_channels():
    from model.projector import pixel_shuffle

    features = torch.arange(16.0).reshape(1, 16, 1)  # patch number as its only channel, 4 x 4 patches
    merged = pixel_shuffle(features, 2)[0]
    assert merged.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
