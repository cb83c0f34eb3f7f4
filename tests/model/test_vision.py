"""AnyRes positions and which pixels a tower takes."""

import pytest
import torch
import torch.nn.functional as F

from model.batch import Row, pack_rows
from model.config import Flavour, flavour_config
from model.sail_vl2 import SailVL2
from model.vision import VisionModel

PLACEHOLDER = 519


def tower(flavour: Flavour, dtype: torch.dtype = torch.float32) -> VisionModel:
    model = VisionModel(flavour_config(flavour).vision).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(1.0 if weight.dim() == 1 else 0.0, 0.1, generator=generator)
    return model


def test_the_square_grid_is_exactly_the_stored_positions():
    for dtype in (torch.float32, torch.bfloat16):
        preprocessor = tower(Flavour.tiny_anyres, dtype).preprocessor
        assert torch.equal(preprocessor.positions(4, 4), preprocessor.pos_embed)


@pytest.mark.parametrize("grid", [(2, 8), (6, 4), (8, 8), (4, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_grids_are_the_stored_grid_interpolated(grid, dtype):
    """Channel by channel from the stored rows of patches; in bfloat16 only the result is rounded."""
    preprocessor = tower(Flavour.tiny_anyres, dtype).preprocessor
    stored = preprocessor.pos_embed.detach()[0]
    expected = torch.empty(grid[0] * grid[1], stored.shape[1], dtype=dtype)
    for channel in range(stored.shape[1]):
        plane = torch.tensor([[stored[4 * row + column, channel].item() for column in range(4)] for row in range(4)])
        resized = F.interpolate(plane[None, None], grid, mode="bicubic", align_corners=False)
        expected[:, channel] = resized.flatten().to(dtype)
    # One rounding of the last place, where the interpolation of many channels at once adds in another order.
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    assert torch.allclose(preprocessor.positions(*grid)[0], expected, rtol=tolerance, atol=1e-6)


def test_rows_and_columns_are_not_exchanged():
    """Positions that grow down the rows only stay so on a wide and on a tall grid."""
    preprocessor = tower(Flavour.tiny_anyres).preprocessor
    with torch.no_grad():
        preprocessor.pos_embed.copy_(torch.arange(4.0).repeat_interleave(4)[None, :, None].expand(1, 16, 128))
    for rows, columns in ((2, 8), (8, 2)):
        grid = preprocessor.positions(rows, columns).detach()[0, :, 0].view(rows, columns)
        assert torch.allclose(grid, grid[:, :1].expand(rows, columns), atol=1e-5)
        assert (grid[1:, 0] > grid[:-1, 0]).all()


def test_interpolated_positions_are_trained():
    model = tower(Flavour.tiny_anyres)
    model([torch.randn(1, 3, 16, 48, generator=torch.Generator().manual_seed(1))])[0].sum().backward()
    assert model.preprocessor.pos_embed.grad.abs().amax(-1).min() > 0  # every stored position takes part


def test_an_anyres_tower_on_its_square_equals_the_fixed_tower():
    fixed, anyres = tower(Flavour.tiny), tower(Flavour.tiny_anyres)
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    assert torch.equal(*(model([pixels])[0] for model in (fixed, anyres)))


@pytest.mark.parametrize(
    ("flavour", "height", "width", "message"),
    [
        (Flavour.tiny, 32, 48, "expected tiles of 32 x 32, found 32 x 48"),
        (Flavour.tiny, 16, 16, "expected tiles of 32 x 32, found 16 x 16"),
        (Flavour.tiny_anyres, 24, 32, "multiples of 16 and 1 to 256 patches, found 24 x 32"),
        (Flavour.tiny_anyres, 32, 40, "multiples of 16 and 1 to 256 patches, found 32 x 40"),
        (Flavour.tiny_anyres, 128, 144, "multiples of 16 and 1 to 256 patches, found 128 x 144"),
        (Flavour.tiny_anyres, 0, 32, "and 1 to 256 patches, found 0 x 32"),
    ],
)
def test_other_sizes_are_refused(flavour, height, width, message):
    with pytest.raises(ValueError, match=message):
        tower(flavour)([torch.zeros(1, 3, height, width)])


def test_the_largest_allowed_image_passes():
    assert tower(Flavour.tiny_anyres)([torch.zeros(1, 3, 128, 128)])[0].shape == (1, 256, 128)


def test_tiles_of_several_sizes_in_one_call_equal_calls_of_their_own():
    """float64: joint products of other heights add the same terms, some in another order; 1e-12 of the scale."""
    model = tower(Flavour.tiny_anyres, torch.float64)
    generator = torch.Generator().manual_seed(3)
    sizes = [(2, 32, 32), (1, 16, 48), (3, 64, 32)]
    tiles = [torch.randn(n, 3, h, w, generator=generator, dtype=torch.float64) for n, h, w in sizes]
    together = model(tiles)
    for own, found in zip(tiles, together, strict=True):
        (alone,) = model([own])
        assert found.shape == alone.shape
        assert (found - alone).abs().max() <= 1e-12 * alone.abs().max()


@pytest.mark.parametrize("sizes", [[(32, 32)], [(32, 32), (16, 48)], [(16, 16), (64, 32), (16, 16), (32, 48)]])
def test_a_micro_batch_with_images_calls_every_layer_of_the_tower_once(sizes):
    """Ranks of a sharded engine meet in these calls, so their number must not depend on the images."""
    model = SailVL2(flavour_config(Flavour.tiny_anyres))
    rows = [Row([PLACEHOLDER] * (h * w // 256) + [7], [[1, 2]], [torch.zeros(1, 3, h, w)]) for h, w in sizes]
    calls: list[str] = []
    for name, module in [*model.vision_model.trunk.named_modules(), *model.mlp1.named_modules(prefix="mlp1")]:
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    model(pack_rows(rows, PLACEHOLDER, 16))
    assert calls and len(calls) == len(set(calls))
