"""A group as one packed row with one vision pass equals separate padded rows: values and every gradient.

The other side is written here from the definition, with plain padded batches and a dense causal mask, and shares no
attention or packing code with the model. float64; both sides differ in summation order only, which costs a few hundred
roundings of 1e-16 relative to the largest term; 1e-6 relative is the bar, 1e-9 is what is asserted.
"""

import pytest
import torch
import torch.nn.functional as F

from model.batch import Row, pack_rows, split_by_tokens
from model.config import AnyResVisionConfig, AttentionKernel, Flavour, flavour_config
from model.layers import rope_tables
from model.moe import MoeMLP
from model.projector import pixel_shuffle
from model.sail_vl2 import SailVL2

PLACEHOLDER, PIXELS_PER_TOKEN = 519, 16


FLAVOURS = (Flavour.tiny, Flavour.tiny_moe, Flavour.tiny_anyres)


@pytest.fixture(scope="module", params=FLAVOURS, ids=lambda flavour: flavour.value)
def model(request) -> SailVL2:
    model = SailVL2(flavour_config(request.param)).double()
    model.initialise(3)
    return model


def make_row(model: SailVL2, generator: torch.Generator, num_images: int, text: int, lengths: list[int]) -> Row:
    """The images of an AnyRes model alternate between three sizes; the others take squares only."""

    def ids(count: int) -> list[int]:
        return torch.randint(0, 500, (count,), generator=generator).tolist()

    sizes = [(48, 32), (32, 32), (16, 64)] if isinstance(model.config.vision, AnyResVisionConfig) else [(32, 32)]
    prefix, images = ids(text), []
    for i in range(num_images):
        height, width = sizes[(text + i) % len(sizes)]
        prefix += [PLACEHOLDER] * (height * width // PIXELS_PER_TOKEN**2) + ids(2)
        images.append(torch.randn(1, 3, height, width, generator=generator, dtype=torch.float64))
    return Row(prefix, [ids(length) for length in lengths], images)


def reference_logprobs(model: SailVL2, rows: list[Row]) -> torch.Tensor:
    """Every completion as a row of its own, right-padded, the vision tower run again for each."""
    sequences = [(row, list(completion)) for row in rows for completion in row.completions]
    longest = max(len(row.prefix_ids) + len(completion) for row, completion in sequences)
    ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    for i, (row, completion) in enumerate(sequences):
        tokens = [*row.prefix_ids, *completion]
        ids[i, : len(tokens)] = torch.tensor(tokens)
    x = model.language_model.model.embed_tokens(ids)
    patched = []
    for i, (row, _) in enumerate(sequences):
        if not row.images:
            patched.append(x[i])
            continue
        visual = torch.cat([dense_visual_tokens(model, image) for image in row.images])
        index = torch.tensor([p for p, token in enumerate(row.prefix_ids) if token == PLACEHOLDER])
        patched.append(x[i].clone().index_copy(0, index, visual))
    hidden = dense_decoder(model, torch.stack(patched))
    scores = F.log_softmax(F.linear(hidden, model.language_model.lm_head.weight), -1)
    picked = []
    for i, (row, completion) in enumerate(sequences):
        start = len(row.prefix_ids)
        where = torch.arange(start - 1, start + len(completion) - 1)
        picked.append(scores[i, where, torch.tensor(completion)])
    return torch.cat(picked)


def dense_visual_tokens(model: SailVL2, image: torch.Tensor) -> torch.Tensor:
    """One image [1, 3, height, width] alone -> [tokens, D]."""
    columns = image.shape[3] // model.config.vision.patch_size
    return model.mlp1(pixel_shuffle(model.vision_model([image])[0], columns, 2))[0]


def dense_experts(mlp: MoeMLP, x: torch.Tensor) -> torch.Tensor:
    """Qwen3-MoE from its definition: every expert works on every token, all but the chosen ones weigh 0."""
    probabilities = mlp.gate(x).softmax(-1)
    floor = probabilities.topk(mlp.top_k, dim=-1).values[..., -1:]
    weights = torch.where(probabilities >= floor, probabilities, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for e, (gate_up, down) in enumerate(zip(mlp.experts.gate_up_proj, mlp.experts.down_proj, strict=True)):
        gate, up = gate_up.chunk(2)
        out = out + weights[..., e, None] * F.linear(F.silu(F.linear(x, gate)) * F.linear(x, up), down)
    return out


def dense_decoder(model: SailVL2, x: torch.Tensor) -> torch.Tensor:
    """Qwen3 from its definition: rotate-half RoPE, per-head q/k norm, grouped heads, explicit softmax."""
    config = model.config.language
    batch, length, _ = x.shape
    cos, sin = (t.squeeze(-2) for t in rope_tables(torch.arange(length), config.head_dim, config.rope_theta, x.dtype))
    cos, sin = torch.cat((cos, cos), -1), torch.cat((sin, sin), -1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()

    def norm(v: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return v / (v.pow(2).mean(-1, keepdim=True) + config.rms_norm_eps).sqrt() * weight

    def rotate(v: torch.Tensor) -> torch.Tensor:
        first, second = v.chunk(2, -1)
        return v * cos + torch.cat((-second, first), -1) * sin

    for layer in model.language_model.model.layers:
        a = layer.self_attn
        h = norm(x, layer.input_layernorm.weight)
        q = a.q_proj(h).view(batch, length, -1, config.head_dim).transpose(1, 2)
        k = a.k_proj(h).view(batch, length, -1, config.head_dim).transpose(1, 2)
        v = a.v_proj(h).view(batch, length, -1, config.head_dim).transpose(1, 2)
        q, k = rotate(norm(q, a.q_norm.weight)), rotate(norm(k, a.k_norm.weight))
        share = config.num_attention_heads // config.num_key_value_heads
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        weights = (q @ k.transpose(-1, -2) / config.head_dim**0.5).masked_fill(~causal, float("-inf")).softmax(-1)
        x = x + a.o_proj((weights @ v).transpose(1, 2).flatten(2))
        h = norm(x, layer.post_attention_layernorm.weight)
        m = layer.mlp
        x = x + (dense_experts(m, h) if isinstance(m, MoeMLP) else m.down_proj(F.silu(m.gate_proj(h)) * m.up_proj(h)))
    return norm(x, model.language_model.model.norm.weight)


CASES = {
    "one group, ragged": [(1, 6, [5, 1, 9, 3])],
    "several groups, several images, text only": [(2, 3, [4, 7]), (0, 5, [2, 2, 8]), (1, 1, [6, 1, 1, 3, 5])],
    "lone completions": [(1, 4, [7]), (0, 1, [3]), (0, 9, [1])],
    "mixed lone and grouped": [(0, 8, [4]), (3, 2, [1, 2, 3])],
}


@pytest.mark.parametrize("kernel", [AttentionKernel.sdpa, AttentionKernel.split], ids=lambda kernel: kernel.value)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_packed_groups_equal_separate_padded_rows(model, case, kernel):
    generator = torch.Generator().manual_seed(len(case))
    rows = [make_row(model, generator, *spec) for spec in case]
    weights = torch.randn(sum(len(c) for r in rows for c in r.completions), generator=generator, dtype=torch.float64)

    def gradients(logprobs: torch.Tensor) -> dict[str, torch.Tensor]:
        model.zero_grad()
        (logprobs * weights).sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    packed = model(pack_rows(rows, PLACEHOLDER, PIXELS_PER_TOKEN), attention=kernel).logprobs
    separate = reference_logprobs(model, rows)
    assert torch.allclose(packed, separate, rtol=1e-9, atol=1e-11)
    ours, theirs = gradients(packed), gradients(separate)
    assert ours.keys() == theirs.keys()
    has_images = any(row.images for row in rows)
    assert any(name.startswith("vision_model") for name in ours) == has_images
    for name, gradient in theirs.items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert (ours[name] - gradient).abs().max() <= 1e-9 * scale, name


def test_micro_batch_split_keeps_the_gradient(model):
    generator = torch.Generator().manual_seed(9)
    rows = [make_row(model, generator, 1, 3, [4, 2]) for _ in range(5)]
    gradients = []
    for budget in (1, 40, 10_000):
        model.zero_grad()
        for part in split_by_tokens([row.num_tokens for row in rows], budget):
            model(pack_rows([rows[number] for number in part], PLACEHOLDER, PIXELS_PER_TOKEN)).logprobs.sum().backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert len(split_by_tokens([row.num_tokens for row in rows], 1)) == 5
    for name, gradient in gradients[0].items():
        for other in gradients[1:]:
            assert torch.allclose(gradient, other[name], rtol=1e-9, atol=1e-12), name


def test_placeholder_count_must_match_tiles():
    with pytest.raises(ValueError, match="expected 4 tokens for 1 images of 1 tiles, found 3"):
        pack_rows([Row([PLACEHOLDER] * 3, [[1]], [torch.zeros(1, 3, 32, 32)])], PLACEHOLDER, PIXELS_PER_TOKEN)
    with pytest.raises(ValueError, match="found 1"):
        pack_rows([Row([1], [[2, PLACEHOLDER]])], PLACEHOLDER, PIXELS_PER_TOKEN)


def test_images_of_one_row_never_fill_another():
    image = torch.zeros(1, 3, 32, 32)
    rows = [Row([1, PLACEHOLDER], [[2]], [image]), Row([PLACEHOLDER] * 7, [[3]], [image])]
    with pytest.raises(ValueError, match="row 0: expected 4 tokens for 1 images of 1 tiles, found 1"):
        pack_rows(rows, PLACEHOLDER, PIXELS_PER_TOKEN)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_flex_attention_equals_sdpa(case, monkeypatch):
    """Uncompiled and forward only, as flex_attention offers it on CPU; tests/gpu compares gradients of the kernel.

    float32: both sides round differently a few times a layer, 1e-5 of the scale of ln p is some 100 roundings.
    """
    model = SailVL2(flavour_config(Flavour.tiny))
    model.initialise(3)
    generator = torch.Generator().manual_seed(len(case))
    rows = [make_row(model, generator, *spec) for spec in case]
    rows = [Row(row.prefix_ids, row.completions, [image.float() for image in row.images]) for row in rows]
    inputs = pack_rows(rows, PLACEHOLDER, PIXELS_PER_TOKEN)
    with torch.no_grad():
        portable = model(inputs).logprobs
        monkeypatch.setattr("model.kernels.sdpa_attention.attend_padded", None)
        flexible = model(inputs, attention=AttentionKernel.flex).logprobs
    assert (portable - flexible).abs().max() <= 1e-5 * portable.abs().max()
