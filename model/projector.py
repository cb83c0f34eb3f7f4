"""2x2 pixel-shuffle (version v2) and the LayerNorm-MLP adapter `mlp1`."""

from torch import Tensor, nn


def pixel_shuffle(features: Tensor, columns: int, merge: int) -> Tensor:
    """[I, P, D], a grid of P patches with `columns` in each row -> [I, P/merge^2, merge^2 * D].

    Output tokens are row-major; channel blocks are ordered (0,0), (0,1), (1,0), (1,1) within each merged square.
    """
    num_images, num_patches, width = features.shape
    rows = num_patches // columns
    squares = features.reshape(num_images, rows // merge, merge, columns // merge, merge, width)
    return squares.permute(0, 1, 3, 2, 4, 5).reshape(num_images, num_patches // merge**2, merge**2 * width)


def visual_tokens(tower: nn.Module, adapter: nn.Module, pixels: Tensor, patch_size: int, merge: int) -> Tensor:
    """Tiles [I, 3, height, width] of one size -> [I, tokens per tile, D]."""
    return adapter(pixel_shuffle(tower(pixels), pixels.shape[3] // patch_size, merge))


def build_adapter(vision_width: int, language_width: int, merge: int) -> nn.Sequential:
    """`mlp1`: LayerNorm, Linear, GELU (exact), Linear; indices 0, 1, 3 hold weights."""
    merged = vision_width * merge**2
    return nn.Sequential(
        nn.LayerNorm(merged),
        nn.Linear(merged, language_width),
        nn.GELU(),
        nn.Linear(language_width, language_width),
    )
