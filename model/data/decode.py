"""Decoding of costly images in a process of its own, `model.data.decode_process`, which is killed at a deadline.

A progressive JPEG may say the same pixels again in scan after scan: a hundred kilobytes take half a minute, in one call
that nothing can break off.
"""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

from model.data.media_error import MediaError
from model.run.parent import die_with_parent

DEADLINE_SECONDS = 6.0


def decode_apart(path: Path) -> Image.Image:
    """The RGB image of a file, upright. `MediaError` past the deadline, and for what cannot be decoded."""
    root = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-P", "-m", "model.data.decode_process", str(path)]
    environment = {**os.environ, "PYTHONPATH": root}
    try:
        done = subprocess.run(
            command, capture_output=True, env=environment, timeout=DEADLINE_SECONDS, preexec_fn=die_with_parent
        )
    except subprocess.TimeoutExpired:
        raise MediaError(
            f"image {path}: expected one that is decoded within {DEADLINE_SECONDS:g} s, found one that takes longer"
        ) from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().split("\n")[-1]
        raise MediaError(said or f"image {path}: the process that decodes it ended with code {done.returncode}")
    size, _, pixels = done.stdout.partition(b"\n")
    width, height = map(int, size.split())
    return Image.frombytes("RGB", (width, height), pixels)
