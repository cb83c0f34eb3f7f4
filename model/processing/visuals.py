"""Images and videos of a prompt: first how many tokens each takes, later its pixels, both from one plan. Torch-free."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from model.config import SailVL2Config
from model.data.media import Picture, as_rgb, check_images, image_size, open_image
from model.data.media_error import MediaError
from model.data.video import check_video, read_frames, video_size
from model.processing.messages import ImageSource, Media
from model.processing.settings import ProcessorSettings
from model.processing.tiling import Cutter, Shape, normalised, stacked


@dataclass(frozen=True)
class Visual:
    """One image, or the frames of one video, and how it is cut: what the prompt's ids were expanded for."""

    media: Media
    cutter: Cutter
    shape: Shape  # (tiles, height, width) of the image, or of each frame
    tokens_each: int  # visual tokens of the image, or of each frame

    @property
    def source(self) -> ImageSource:
        return self.media.source

    @property
    def num_pictures(self) -> int:
        return self.media.num_frames or 1


def plan_visuals(
    media: Sequence[Media],
    config: SailVL2Config,
    settings: ProcessorSettings,
    root: Path | None,
    max_tiles: int | None,
) -> list[Visual]:
    """A plan for each image and video of one prompt. Headers are read only where the size decides the shape."""
    single = len(media) == 1 and not media[0].num_frames
    still = settings.cutter(config, max_tiles, single)
    frame = settings.cutter(config, 1, False)  # as published: one tile for a frame
    visuals = []
    for item in media:
        cutter = frame if item.num_frames else still
        shape = cutter.fixed_shape or cutter.shape(media_size(item, root))
        visuals.append(Visual(item, cutter, shape, _tokens_of(shape, config)))
    return visuals


def tokens_of_sizes(
    sizes: np.ndarray, is_frame: bool, single: bool, config: SailVL2Config, settings: ProcessorSettings
) -> np.ndarray:
    """[N] visual tokens of images, or of single frames, of these sizes [N, 2] of width and height.

    `single`: each is the only image of its prompt.
    """
    cutter = settings.cutter(config, 1, False) if is_frame else settings.cutter(config, None, single)
    if cutter.fixed_shape:
        return np.full(len(sizes), _tokens_of(cutter.fixed_shape, config))
    tiles, height, width = cutter.shapes(sizes).T
    return tiles * (height // config.pixels_per_token) * (width // config.pixels_per_token)


def _tokens_of(shape: Shape, config: SailVL2Config) -> int:
    tiles, height, width = shape
    return tiles * (height // config.pixels_per_token) * (width // config.pixels_per_token)


def open_visual(visual: Visual, settings: ProcessorSettings, root: Path | None) -> list[np.ndarray]:
    """Pixels [tiles, 3, height, width] of the image, or of each frame. `MediaError` if it cannot be used."""
    return [normalised(tiles, settings.image_mean, settings.image_std) for tiles in cut_visual(visual, root)]


def cut_visual(visual: Visual, root: Path | None) -> list[np.ndarray]:
    """The same as bytes, before `normalised`."""
    media = visual.media
    if isinstance(media.source, Image.Image):
        return [_tiles(as_rgb(media.source), visual)]
    if isinstance(media.source, Picture):
        return [_tiles(media.source.open(), visual)]
    folder = _folder(media.source, root)
    if media.num_frames:
        return read_frames(folder, media.source, media.num_frames, lambda frame: _tiles(frame, visual))
    return [_tiles(open_image(folder, media.source), visual)]


def check_visuals(root: Path, visuals: Iterable[Visual]) -> None:
    """`MediaError` for the first file that is missing, too large or no image or video; pixels are not decoded."""
    files = [(visual.source, visual.media.num_frames) for visual in visuals if isinstance(visual.source, str)]
    check_images(root, (name for name, num_frames in files if not num_frames))
    for name in dict.fromkeys(name for name, num_frames in files if num_frames):
        check_video(root, name)


def _tiles(image: Image.Image, visual: Visual) -> np.ndarray:
    tiles = visual.cutter.cut(image)
    found = (len(tiles), tiles[0].height, tiles[0].width)
    if found != visual.shape:
        raise MediaError(
            f"image {visual.source!r}: expected the size it had when its prompt was built, for {visual.shape} tiles, "
            f"height and width, found {found}; keep files as they are while they are used"
        )
    return stacked(tiles)


def media_size(media: Media, root: Path | None) -> tuple[int, int]:
    """(width, height) of an image upright, or of a video's frames. `MediaError` for a file that cannot be used."""
    if isinstance(media.source, Image.Image):
        return as_rgb(media.source).size
    if isinstance(media.source, Picture):
        return media.source.size
    read = video_size if media.num_frames else image_size
    return read(_folder(media.source, root), media.source)


def _folder(name: str, root: Path | None) -> Path:
    if root is None:
        raise ValueError(f"root: expected the folder of {name!r}, found None; say where the data's files are")
    return Path(root)
