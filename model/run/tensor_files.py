"""Safetensors files, written tensor by tensor: the header first, from names and shapes, then each tensor as it comes.

The library's own writer wants all tensors at once, and copies them. Here the extra memory of a file is one tensor. The
bytes are those of the library for tensors of one dtype.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from model.run.durable import write_stream
from model.run.manifest import FileDigest

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ALIGNMENT = 8
_PIECE = 1 << 16


def write_tensors(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None = None,
) -> FileDigest:
    """Write `tensors`, which come sorted by name and are exactly those of `shapes`, as `dtype`.

    `ValueError` names the first tensor that is not the one expected, and what is missing at the end.
    """
    return write_stream(path, _chunks(dict(sorted(shapes.items())), dtype, iter(tensors), metadata))


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity, in pieces, so that no copy of its size is made."""
    return all(bool(torch.isfinite(piece).all()) for piece in tensor.detach().reshape(-1).split(_PIECE))


def _chunks(
    shapes: Mapping[str, Sequence[int]],
    dtype: torch.dtype,
    tensors: Iterator[tuple[str, Tensor]],
    metadata: Mapping[str, str] | None,
) -> Iterator[bytes | memoryview]:
    yield _header(shapes, dtype, metadata)
    for name, shape in shapes.items():
        found, tensor = next(tensors, ("", torch.empty(0)))
        if found != name or tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"tensors: expected {name} {list(shape)} next, found {found!r} {list(tensor.shape)}")
        yield _bytes_of(tensor, dtype)
    if (extra := next(tensors, None)) is not None:
        raise ValueError(f"tensors: expected no more than {len(shapes)}, found {extra[0]} besides")


def _header(shapes: Mapping[str, Sequence[int]], dtype: torch.dtype, metadata: Mapping[str, str] | None) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, shape in shapes.items():
        size = dtype.itemsize * torch.Size(shape).numel()
        entries[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor, dtype: torch.dtype) -> memoryview:
    """The tensor's bytes on the CPU; a view of them where it is there, contiguous and of that dtype."""
    plain = tensor.detach().to("cpu", dtype).contiguous().reshape(-1)
    return memoryview(plain.view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
