"""Our decoding kernels against the portable way in float64."""

import pytest
import torch

from model.decoding.attention import decode_over_prefix
from model.kernels.available import fits_decode_kernels, has_triton
from model.layers import apply_rope, rms_norm, rope_tables
from tests.gpu.device import DEVICE, MARKS, ON_GPU

pytestmark = MARKS
TOLERANCE = {torch.float32: 2e-5}
if ON_GPU:
    TOLERANCE[torch.bfloat16] = 2**-7
# prompts, siblings, heads, kv heads, width, prefix room, own room, slot of the new token, live cells
CASES = {
    "two of six have left, slot at a tile's end": (2, 3, 4, 2, 32, 96, 128, 63, [0, 2, 3, 5]),
    "first token, all live": (2, 3, 4, 2, 16, 64, 128, 0, [0, 1, 2, 3, 4, 5]),
    "slot at a part's end, odd share": (1, 2, 3, 1, 16, 160, 256, 127, [0, 1]),
    "more queries than a block takes, a part behind the slot": (1, 30, 9, 3, 16, 64, 256, 100, list(range(0, 30, 2))),
    "wide heads": (1, 2, 2, 1, 128, 64, 128, 40, [1]),
    "parts of more than two tiles": (1, 2, 2, 1, 16, 6144, 64, 40, [0, 1]),
}
if ON_GPU:
    CASES |= {
        "heads of the 2B flavour": (1, 8, 16, 8, 128, 1152, 512, 300, list(range(8))),
        "both sides long": (3, 30, 9, 3, 64, 6144, 4096, 2500, list(range(0, 90, 2))),
    }


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("case", CASES)
def test_decode_attention(case, dtype):
    """What lies behind the slot is NaN: it must not be read."""
    from model.kernels.decode_kernels import decode_attention

    num_prompts, siblings, heads, kv_heads, width, prefix_room, room, slot, live = CASES[case]
    assert (fits_decode_kernels(dtype, width) and has_triton(DEVICE)) == ON_GPU
    generator = torch.Generator(DEVICE).manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=DEVICE, generator=generator).to(dtype)

    cells = torch.tensor(live, device=DEVICE)
    joint = numbers(len(live), heads + 2 * kv_heads, width)
    q, k, v = joint.split((heads, kv_heads, kv_heads), dim=1)
    prefix_k, prefix_v = (numbers(num_prompts, kv_heads, prefix_room, width) for _ in range(2))
    lengths = torch.randint(prefix_room * 3 // 4, prefix_room + 1, (num_prompts,), device=DEVICE, generator=generator)
    own_k, own_v = (numbers(len(live), kv_heads, room, width) for _ in range(2))
    whole_k, whole_v = own_k[:, :, : slot + 1].clone(), own_v[:, :, : slot + 1].clone()
    whole_k[:, :, slot], whole_v[:, :, slot] = k, v
    own_k[:, :, slot:], own_v[:, :, slot:] = float("nan"), float("nan")
    hidden = torch.arange(prefix_room, device=DEVICE) >= lengths[:, None]
    bias = torch.zeros_like(hidden, dtype=torch.float64).masked_fill(hidden, float("-inf"))[:, None, None]
    wanted = decode_over_prefix(
        q.double(),
        (prefix_k.double(), prefix_v.double(), bias),
        (whole_k.double(), whole_v.double(), None),
        cells,
        siblings,
    )
    row_of_cell = torch.full((num_prompts * siblings,), -1, device=DEVICE)
    row_of_cell[cells] = torch.arange(len(live), device=DEVICE)
    for tensor in (prefix_k, prefix_v):
        tensor.masked_fill_(hidden[:, None, :, None], float("nan"))
    at = torch.tensor([slot], device=DEVICE)
    found = decode_attention(q, (k, v), (prefix_k, prefix_v, lengths), (own_k, own_v, at), row_of_cell)
    assert (found.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()
    assert torch.equal(own_k[:, :, slot], k) and torch.equal(own_v[:, :, slot], v)
    assert own_k[:, :, slot + 1 :].isnan().all()  # nothing was written elsewhere


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_norm_and_rotate(dtype):
    from model.kernels.decode_kernels import norm_and_rotate

    generator = torch.Generator(DEVICE).manual_seed(1)
    joint, *weights = (
        torch.randn(*shape, device=DEVICE, generator=generator).to(dtype) for shape in ((5, 8, 64), (64,), (64,))
    )
    q, k, _ = joint.split((4, 2, 2), dim=1)
    rope = rope_tables(torch.tensor([3, 7, 100, 20000, 5], device=DEVICE), 64, 1e6, dtype)
    tables = tuple(table.double() for table in rope)
    found = norm_and_rotate(q, k, (weights[0], weights[1]), 1e-6, rope)
    with torch.no_grad():
        for x, weight, one in zip((q, k), weights, found, strict=True):
            wanted = apply_rope(rms_norm(x.double(), weight.double(), 1e-6), tables)
            assert (one.double() - wanted).norm() <= TOLERANCE[dtype] * wanted.norm()
