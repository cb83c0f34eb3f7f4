"""Frames of videos that somebody else supplied: inside one folder, of known containers, of bounded size and length.

Needs PyAV, the extra `sailvl2-rl[video]`; it is imported where it is used, so that everything else works without.
"""

import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from model.data.config import VIDEO_DEADLINE_S
from model.data.media import MAX_PIXELS, inside
from model.data.media_error import MediaError, MissingLibrary

CONTAINERS = ("mov", "mp4", "m4a", "3gp", "3g2", "mj2", "matroska", "webm", "avi")
MAX_VIDEO_BYTES = 512 * 2**20
MAX_VIDEO_FRAMES = 20_000
"""Frames in the file, all of which may have to be decoded to reach the last one that is wanted."""
MAX_VIDEO_PIXELS = 2**35
"""Frames times their pixels: about ten minutes of 1920 x 1080 at 25 frames a second."""

T = TypeVar("T")


def read_frames(root: Path, name: str, num_frames: int, use: Callable[[Image.Image], T]) -> list[T]:
    """`use(frame)` for `num_frames` upright RGB frames, uniformly spread; a shorter video repeats frames.

    The video is taken as `num_frames` equal stretches; the frame in the middle of each stands for it. Frames pass one
    by one, so only what `use` returns is kept. `MediaError` for a file that cannot be read to its end.
    """
    with _opened(root, name) as (container, stream):
        expected = _count_packets(container, stream, name)
    until = time.monotonic() + VIDEO_DEADLINE_S
    used, found = _use_frames(root, name, _middles(expected, num_frames), use, until)
    if len(used) < num_frames:  # a packet need not show a frame of its own
        if found == 0:
            raise MediaError(f"video {name}: expected at least one frame, found none that decodes")
        used, found = _use_frames(root, name, _middles(found, num_frames), use, until)
    if len(used) < num_frames:
        raise MediaError(f"video {name}: expected the frames of the first reading, found {found} in the second")
    return used


def video_size(root: Path, name: str) -> tuple[int, int]:
    """(width, height) of the first frame, upright."""
    with _opened(root, name) as (container, stream):
        for frame in container.decode(stream):
            _check_frame(frame, name)
            turned = round(frame.rotation) % 180 == 90
            return (frame.height, frame.width) if turned else (frame.width, frame.height)
    raise MediaError(f"video {name}: expected at least one frame, found none that decodes")


def check_video(root: Path, name: str) -> None:
    """`MediaError` if the file is missing, too large or no video; frames are not decoded."""
    with _opened(root, name) as (container, stream):
        _count_packets(container, stream, name)


def _middles(total: int, num_frames: int) -> list[int]:
    return [(2 * k + 1) * total // (2 * num_frames) for k in range(num_frames)]


def _use_frames(
    root: Path, name: str, wanted: list[int], use: Callable[[Image.Image], T], until: float
) -> tuple[list[T], int]:
    """(what `use` returned for the wanted frames, as far as the video goes; number of frames seen)."""
    used: list[T] = []
    seen = 0
    with _opened(root, name) as (container, stream):
        size = None
        for frame in container.decode(stream):
            _check_frame(frame, name)
            size = size or (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise MediaError(f"video {name}: expected frames of one size, found {size} and later {frame}")
            repeats = wanted.count(seen)
            if repeats:
                used += [use(_upright(frame))] * repeats
            seen += 1
            if time.monotonic() > until:
                raise MediaError(
                    f"video {name}: expected one that is decoded within {VIDEO_DEADLINE_S:g} s, found one that takes "
                    "longer"
                )
            _check_total(seen, frame.width * frame.height, name)  # the file's own account may be wrong
            if len(used) == len(wanted):
                break
    return used, seen


@contextmanager
def _opened(root: Path, name: str) -> Iterator[tuple[Any, Any]]:
    """(container, video stream)."""
    av = _library()
    path = inside(root, name, "video")
    try:
        status = path.stat()
        if status.st_size > MAX_VIDEO_BYTES:
            raise MediaError(f"video {path}: expected at most {MAX_VIDEO_BYTES} bytes, found {status.st_size}")
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"video {path}: expected a file, found a folder or a device")
        # A playlist could name other files and addresses: only real containers, and no name it could be relative to.
        options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": ""}
        with path.open("rb") as file, av.open(file, container_options=options) as container:
            if not container.streams.video:
                raise MediaError(f"video {path}: expected a video stream, found none")
            stream = container.streams.video[0]
            codec = stream.codec_context
            if codec is None:
                raise MediaError(f"video {path}: expected a codec that this PyAV decodes, found another")
            if not 0 < codec.width * codec.height <= MAX_PIXELS:
                found = f"{codec.width} x {codec.height}"
                raise MediaError(f"video {path}: expected frames of 1 to {MAX_PIXELS} pixels, found {found}")
            yield container, stream
    except FileNotFoundError:
        raise MediaError(f"video {path}: expected a file, found none") from None
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        if isinstance(error, MediaError):
            raise
        raise MediaError(
            f"video {path}: expected a whole video in one of {', '.join(CONTAINERS)}, found damage or another format: "
            f"{error}"
        ) from None


def _count_packets(container: Any, stream: Any, name: str) -> int:
    """Packets with content: how many frames to expect."""
    pixels = stream.codec_context.width * stream.codec_context.height
    count = 0
    for packet in container.demux(stream):
        count += packet.size > 0
        _check_total(count, pixels, name)
    if count == 0:
        raise MediaError(f"video {name}: expected at least one frame, found none")
    return count


def _check_total(num_frames: int, pixels_each: int, name: str) -> None:
    if num_frames > MAX_VIDEO_FRAMES or num_frames * pixels_each > MAX_VIDEO_PIXELS:
        raise MediaError(
            f"video {name}: expected at most {MAX_VIDEO_FRAMES} frames and {MAX_VIDEO_PIXELS} pixels in all, found "
            "more; cut or shrink it"
        )


def _check_frame(frame: Any, name: str) -> None:
    if frame.is_corrupt:
        raise MediaError(f"video {name}: expected a whole video, found a damaged frame")
    if frame.width * frame.height > MAX_PIXELS:
        raise MediaError(f"video {name}: expected frames of at most {MAX_PIXELS} pixels, found {frame}")


def _upright(frame: Any) -> Image.Image:
    """RGB, turned as the container says (telephones store portraits lying)."""
    image = frame.to_image().convert("RGB")
    return image.rotate(frame.rotation, expand=True) if round(frame.rotation) % 360 else image


def _library() -> Any:
    try:
        import av
    except ImportError:
        raise MissingLibrary(
            "video: expected PyAV to decode it with, found none; install the extra: pip install 'sailvl2-rl[video]'"
        ) from None
    return av
