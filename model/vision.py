"""SAIL-ViT, fixed resolution and AnyRes: AIMv2 topology under the released key names."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import AnyResVisionConfig, VisionConfig
from model.kernels.sdpa_attention import sdpa
from model.layers import RMSNorm, add_and_norm, is_plain, maybe_checkpoint, swiglu

Grids = Sequence[tuple[int, int]]
"""(I tiles, P patches of each) per tile size, in the order in which their patches are packed."""


class Patchifier(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        side = config.patch_size
        self.proj = nn.Conv2d(config.num_channels, config.hidden_size, kernel_size=side, stride=side)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, pixels: Tensor) -> Tensor:
        """[I, channels, height, width] -> [I, P, D], patches row by row."""
        if not is_plain(self.proj, nn.Conv2d):
            return self.norm(self.proj(pixels.to(self.norm.weight.dtype)).flatten(2).transpose(1, 2))
        side = self.proj.kernel_size[0]
        patches = F.unfold(pixels.to(self.proj.weight.dtype), side, stride=side).transpose(1, 2)
        return self.norm(F.linear(patches, self.proj.weight.flatten(1), self.proj.bias))


class Preprocessor(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.side = config.patches_per_side
        self.patch_size = config.patch_size
        self.patchifier = Patchifier(config)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.num_patches, config.hidden_size))

    def forward(self, pixels: Tensor) -> Tensor:
        rows, columns = pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size
        return self.patchifier(pixels) + self.positions(rows, columns)

    def positions(self, rows: int, columns: int) -> Tensor:
        """Learned positions [1, rows * columns, D]: as stored for the square grid, else interpolated (bicubic)."""
        if (rows, columns) == (self.side, self.side):
            return self.pos_embed
        wide = self.pos_embed.to(torch.promote_types(self.pos_embed.dtype, torch.float32))
        grid = wide.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2)
        resized = F.interpolate(grid, (rows, columns), mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2).to(self.pos_embed.dtype)


class VisionAttention(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, grids: Grids) -> Tensor:
        """[patches of all tiles, D] -> the same shape; a patch sees those of its own tile."""
        heads = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).split([tiles * length for tiles, length in grids])
        attended = []
        for own, grid in zip(heads, grids, strict=True):
            q, k, v = own.unflatten(0, grid).permute(2, 0, 3, 1, 4)  # [I, H, P, K] each
            attended.append(sdpa(q, k, v, None, is_causal=False).transpose(1, 2).flatten(2).flatten(0, 1))
        return self.proj(attended[0] if len(attended) == 1 else torch.cat(attended))


class VisionMLP(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.fc3 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(swiglu(x, self.fc1, self.fc3))


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm_1 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attn = VisionAttention(config)
        self.norm_2 = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = VisionMLP(config)

    def forward(self, x: Tensor, grids: Grids) -> Tensor:
        x, hidden = add_and_norm(x, self.attn(self.norm_1(x), grids), self.norm_2)
        return x + self.mlp(hidden)


class Trunk(nn.Module):
    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.num_hidden_layers))
        self.post_trunk_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False

    def forward(self, x: Tensor, grids: Grids) -> Tensor:
        """[patches of all tiles, D] -> the same shape."""
        for block in self.blocks:
            x = maybe_checkpoint(self, block, x, grids)
        return self.post_trunk_norm(x)


class VisionModel(nn.Module):
    """Pixels -> patch features; bidirectional, no RoPE, no class token.

    A fixed-resolution tower takes only its own square; AnyRes takes any grid with an even number of patches each way.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.preprocessor = Preprocessor(config)
        self.trunk = Trunk(config)

    def forward(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Tiles, one [I, 3, height, width] per size -> [I, P, D] of each size; every layer is called once for all."""
        for tiles in pixels:
            self._check_size(tiles)
        patches = [self.preprocessor(tiles) for tiles in pixels]
        grids = [(own.shape[0], own.shape[1]) for own in patches]
        packed = [own.flatten(0, 1) for own in patches]
        features = self.trunk(packed[0] if len(packed) == 1 else torch.cat(packed), grids)
        parts = features.split([tiles * length for tiles, length in grids])
        return [part.unflatten(0, grid) for part, grid in zip(parts, grids, strict=True)]

    def _check_size(self, pixels: Tensor) -> None:
        if pixels.dim() != 4:
            raise ValueError(f"pixels: expected [tiles, 3, height, width], found {list(pixels.shape)}")
        height, width = pixels.shape[2:]
        config = self.config
        if not isinstance(config, AnyResVisionConfig):
            if (height, width) != (config.image_size, config.image_size):
                raise ValueError(
                    f"pixels: expected tiles of {config.image_size} x {config.image_size}, found {height} x {width}"
                )
            return
        step = 2 * config.patch_size
        patches = height * width // config.patch_size**2
        if height % step or width % step or not 0 < patches <= config.max_patches:
            raise ValueError(
                f"pixels: expected sides that are multiples of {step} and 1 to {config.max_patches} patches, "
                f"found {height} x {width}"
            )
