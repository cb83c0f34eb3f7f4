"""Weights and moments in a checkpoint: whole in one file, or rows of them in a file for each process.

Both are read the same way, so that a run can go on with another number of processes, or another engine. A file of rows
names them in its safetensors header.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.run.manifest import FileDigest
from model.run.tensor_files import all_finite, write_tensors

WEIGHTS, MOMENTS, STATE = "weights", "optimizer", "engine.json"
_ROWS = "rows"


@dataclass(frozen=True)
class Shard:
    """Rows of a tensor that a process holds. A tensor without dimensions is one row."""

    tensor: Tensor
    start: int
    shape: tuple[int, ...]  # shape of the whole tensor

    @classmethod
    def whole(cls, tensor: Tensor) -> "Shard":
        return cls(tensor, 0, tuple(tensor.shape))

    @property
    def stop(self) -> int:
        return self.start + (self.tensor.shape[0] if self.tensor.dim() else 1)

    @property
    def num_rows(self) -> int:
        """Rows that the whole tensor has."""
        return self.shape[0] if self.shape else 1


def write_shards(
    folder: Path,
    kind: str,
    shards: Mapping[str, Shard],
    part: int = 0,
    num_parts: int = 1,
    rows: Iterable[tuple[str, Tensor]] | None = None,
) -> dict[str, FileDigest]:
    """Write what one of `num_parts` processes holds, as float32 tensors; the extra memory is one of them.

    `rows` gives the numbers, sorted by name, where the tensors of `shards` have shapes alone; all of it is drawn.
    """
    # Only the first process writes tensors without rows, which all of them hold.
    held = {name: one for name, one in sorted(shards.items()) if one.tensor.numel() and (one.shape or part == 0)}
    shapes = {name: shard.tensor.shape for name, shard in held.items()}
    tensors = ((name, shard.tensor) for name, shard in held.items()) if rows is None else _held(rows, held)
    name, metadata = f"{kind}.safetensors", None
    if num_parts > 1:
        name = f"{kind}-{part + 1:05d}-of-{num_parts:05d}.safetensors"
        places = {name: [shard.start, shard.stop, *shard.shape] for name, shard in held.items()}
        metadata = {_ROWS: json.dumps(places, separators=(",", ":"))}
    return {name: write_tensors(folder / name, shapes, torch.float32, tensors, metadata)}


def _held(rows: Iterable[tuple[str, Tensor]], held: Mapping[str, Shard]) -> Iterator[tuple[str, Tensor]]:
    return ((name, tensor) for name, tensor in rows if name in held)


@dataclass(frozen=True)
class _Piece:
    file: Path
    start: int
    stop: int


class StoredShards:
    """The tensors of one kind in a checkpoint folder, opened but not read."""

    def __init__(self, folder: Path, kind: str) -> None:
        """`ValueError` for files that are no safetensors, or where a tensor's rows are not all there once."""
        self._folder, self._kind = folder, kind
        self._pieces: dict[str, list[_Piece]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        files = sorted(folder.glob(f"{kind}.safetensors")) or sorted(folder.glob(f"{kind}-*-of-*.safetensors"))
        if not files:
            raise ValueError(f"{folder / kind}.safetensors: expected a file, found none")
        for file in files:
            self._open(file)
        for name, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.start)
            rows = self.shapes[name][0] if self.shapes[name] else 1
            ends = [0, *(piece.stop for piece in pieces)]
            if [piece.start for piece in pieces] != ends[:-1] or ends[-1] != rows:
                found = ", ".join(f"{piece.start} to {piece.stop}" for piece in pieces)
                raise ValueError(f"{folder}: {name}: expected rows 0 to {rows}, each once, found {found}")

    def check(self, targets: Mapping[str, Shard]) -> None:
        """`ValueError` unless the stored tensors fit, and the rows that are wanted are finite; second moments and
        counts also 0 or more."""
        for name, target in targets.items():
            where = f"{self._folder / self._kind}.safetensors"
            if name not in self.shapes:
                raise ValueError(f"{where}: expected a tensor {name}, found none")
            if self.shapes[name] != target.shape:
                raise ValueError(
                    f"{where}: {name}: expected float32 {list(target.shape)}, found {list(self.shapes[name])}"
                )
            for piece in self.read(name, target):
                found = piece[1]
                if found.dtype != torch.float32:
                    kind = str(found.dtype).removeprefix("torch.")
                    raise ValueError(f"{where}: {name}: expected float32 {list(target.shape)}, found {kind}")
                if not all_finite(found):
                    raise ValueError(
                        f"{where}: {name}: expected finite numbers, found NaN or infinity; remove this checkpoint to "
                        "go on from an older one, or start anew with run.start=fresh"
                    )
                if found.numel() and name.endswith(("/exp_avg_sq", "/step")) and float(found.min()) < 0:
                    raise ValueError(f"{where}: {name}: expected numbers of 0 or more, found {float(found.min()):g}")

    @torch.no_grad()
    def fill(self, targets: Mapping[str, Shard]) -> None:
        """Copy the rows that are wanted into the targets' tensors, piece by piece."""
        for name, target in targets.items():
            for start, found in self.read(name, target):
                if target.tensor.dim():
                    target.tensor[start : start + len(found)].copy_(found)
                else:
                    target.tensor.copy_(found)

    def read(self, name: str, target: Shard) -> Iterator[tuple[int, Tensor]]:
        """(first row within the target, rows) of the parts of a target.

        A file is opened anew for each, because pages that were read stay in memory as long as it is open.
        """
        for piece in self._pieces[name]:
            start, stop = max(piece.start, target.start), min(piece.stop, target.stop)
            if start >= stop:
                continue
            with safe_open(piece.file, "pt") as stored:
                if target.tensor.dim():
                    yield start - target.start, stored.get_slice(name)[start - piece.start : stop - piece.start]
                else:
                    yield 0, stored.get_tensor(name)

    def _open(self, file: Path) -> None:
        try:
            with safe_open(file, "pt") as stored:
                rows = json.loads((stored.metadata() or {}).get(_ROWS, "{}"))
                for name in stored.keys():  # noqa: SIM118  (not a dict)
                    own = tuple(stored.get_slice(name).get_shape())
                    start, stop, *shape = rows.get(name, (0, own[0] if own else 1, *own))
                    if name in self.shapes and self.shapes[name] != tuple(shape):
                        raise ValueError(f"{file}: {name}: expected a part of {self.shapes[name]}, found {shape}")
                    self.shapes[name] = tuple(shape)
                    self._pieces.setdefault(name, []).append(_Piece(file, start, stop))
        except (SafetensorError, OSError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: expected a whole safetensors file, found: {error}") from None


def copied(shards: Mapping[str, Shard]) -> dict[str, Shard]:
    """Copies in the host's memory, which stay as they are while the originals change."""
    return {name: Shard(one.tensor.detach().to("cpu", copy=True), one.start, one.shape) for name, one in shards.items()}


def whole_shards(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Shard]:
    """Take whole tensors, as one process holds them."""
    return {name: Shard.whole(tensor) for name, tensor in tensors}
