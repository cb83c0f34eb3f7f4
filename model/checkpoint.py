"""Model folders in the released format: config.json, safetensors (sharded with an index), tokenizer and preprocessor.

In memory the experts of an MoE layer are stacked; on disk each has its own tensors under the Hub's names.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.config import FLAVOUR_FOLDER, Flavour, SailVL2Config, StoredDtype, flavour_config
from model.json_values import read_json_object
from model.processing.processor import Processor
from model.processing.tokenizer import Tokenizer
from model.run.durable import write_folder
from model.run.failpoints import reach
from model.run.manifest import Digests, verify_files
from model.run.tensor_files import all_finite, write_tensors
from model.sail_vl2 import SailVL2

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, GENERATION = "config.json", "generation_config.json"
MAX_SHARD_BYTES = 5 * 10**9
_TOKENIZER_OF = {
    Flavour.tiny: "tiny",
    Flavour.tiny_moe: "tiny",
    Flavour.tiny_anyres: "tiny",
    Flavour.tiny_base: "tiny_base",
}
"""Flavour -> the folder in flavours/ whose tokenizer it has."""
HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


class NonFiniteWeights(RuntimeError):
    """A model whose weights hold NaN or infinity is never written as a checkpoint folder."""

    exit_code = 4


def build_flavour(flavour: Flavour, seed: int) -> tuple[SailVL2, Processor]:
    """A flavour with fresh weights and the tokenizer that the package has for it. `ValueError` where it has none."""
    processor = flavour_processor(flavour)
    model = SailVL2(processor.config)
    model.initialise(seed)
    return model, processor


def flavour_processor(flavour: Flavour) -> Processor:
    """The processor of a flavour, without a model. `ValueError` where the package has no tokenizer for it."""
    if flavour not in _TOKENIZER_OF:
        names = ", ".join(known.value for known in _TOKENIZER_OF)
        raise ValueError(
            f"model: expected a flavour whose tokenizer the package has ({names}), found {flavour.value}; the others "
            "start from trained towers: python -m model.assemble vision=DIR language=DIR out=DIR"
        )
    return Processor(flavour_config(flavour), Tokenizer.from_folder(FLAVOUR_FOLDER / _TOKENIZER_OF[flavour]))


def released_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Released name -> tensor, sharing memory with the module: copying into one changes the model."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        stem, _, leaf = name.rpartition(".")
        if not stem.endswith(".experts"):
            tensors[name] = tensor
        elif leaf == "gate_up_proj":
            gates, ups = tensor.chunk(2, dim=1)
            tensors |= {f"{stem}.{e}.gate_proj.weight": gate for e, gate in enumerate(gates)}
            tensors |= {f"{stem}.{e}.up_proj.weight": up for e, up in enumerate(ups)}
        else:
            tensors |= {f"{stem}.{e}.{leaf}.weight": matrix for e, matrix in enumerate(tensor)}
    return tensors


def save_model(
    folder: Path,
    model: SailVL2,
    processor: Processor,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: StoredDtype | str = StoredDtype.keep,
) -> None:
    """Write a checkpoint folder, whole or not at all. Both head and embedding are stored, tied or not.

    `dtype` keep is that of the folder that the model was loaded from.
    """
    write_checkpoint(Path(folder), model.config, processor, sorted_tensors(model), max_shard_bytes, dtype)


def write_checkpoint(
    folder: Path,
    config: SailVL2Config,
    processor: Processor,
    tensors: Iterable[tuple[str, Tensor]],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    dtype: StoredDtype | str = StoredDtype.keep,
) -> None:
    """`save_model` for tensors that come one by one: under released names, sorted by name.

    The extra memory is one tensor. `ValueError` where they are not those of `config`.
    """
    written_as = config.stored_dtype(dtype)
    target = getattr(torch, written_as)
    shards = _shard(released_shapes(config), target.itemsize, max_shard_bytes)
    names = [WEIGHTS] if len(shards) == 1 else [_shard_name(i, len(shards)) for i in range(len(shards))]
    files = description_files(config, processor, written_as)
    if len(shards) > 1:
        total = sum(shape.numel() for shard in shards for shape in shard.values()) * target.itemsize
        where = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        files[INDEX] = json.dumps({"metadata": {"total_size": total}, "weight_map": where}, indent=2).encode()
    waiting = _finite(tensors, target, folder)

    def fill(staging: Path) -> Digests:
        digests = {
            name: write_tensors(staging / name, shard, target, islice(waiting, len(shard)), {"format": "pt"})
            for name, shard in zip(names, shards, strict=True)
        }
        if (extra := next(waiting, None)) is not None:
            raise ValueError(f"{folder}: expected {sum(map(len, shards))} tensors, found {extra[0]} besides")
        return digests

    write_folder(folder, files, fill)


def _other_place(folder: Path) -> str:
    """Return what to do about a folder that is not there."""
    if len(folder.parts) == 2 and not folder.parent.exists():
        return f"for a model of the Hugging Face hub: hf download {folder} --local-dir DIR, then checkpoint=DIR"
    return "train one or correct the path"


def _finite(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors as `dtype`. `NonFiniteWeights` at the first that is not finite then."""
    for name, tensor in tensors:
        written = tensor.detach().to(dtype)
        if not all_finite(written):
            raise NonFiniteWeights(
                f"{folder}: {name}: expected finite numbers as {str(dtype).removeprefix('torch.')}, found NaN or "
                "infinity; nothing was written"
            )
        yield name, written


def sorted_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(released name, tensor) sorted by name, which is the order of the files."""
    yield from sorted(released_tensors(module).items())


def released_shapes(config: SailVL2Config) -> dict[str, torch.Size]:
    """Released name -> shape of every tensor of such a model, sorted by name."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in sorted_tensors(SailVL2(config))}


def description_files(config: SailVL2Config, processor: Processor, dtype: str = "float32") -> dict[str, bytes]:
    """Name -> content of the files of a checkpoint folder that are not weights."""
    published = {**config.to_published(), "dtype": dtype, "image_token_id": processor.placeholder_id}
    with tempfile.TemporaryDirectory() as scratch:
        processor.save(Path(scratch))
        files = {path.name: path.read_bytes() for path in Path(scratch).iterdir()}
    generation = json.dumps(processor.generation_settings, indent=2).encode()
    return {CONFIG: json.dumps(published, indent=2).encode(), GENERATION: generation, **files}


def _shard(shapes: Mapping[str, torch.Size], itemsize: int, limit: int) -> list[dict[str, torch.Size]]:
    shards: list[dict[str, torch.Size]] = [{}]
    used = 0
    for name, shape in shapes.items():
        size = shape.numel() * itemsize
        if shards[-1] and used + size > limit:
            shards.append({})
            used = 0
        shards[-1][name] = shape
        used += size
    return shards


def _shard_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[SailVL2, Processor]:
    """Read a checkpoint folder. `ValueError` names the file or every tensor that does not fit."""
    processor = load_processor(folder)
    reach("load")
    return load_weights(SailVL2Config.from_folder(Path(folder)), StoredTensors(Path(folder)), dtype), processor


def load_processor(folder: Path) -> Processor:
    """The processor of a checkpoint folder, without the model: what data is checked with before weights are read."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"checkpoint: expected a folder at {folder}, found none; {_other_place(folder)}")
    return Processor.from_folder(folder)


def load_weights(config: SailVL2Config, stored: "StoredTensors", dtype: torch.dtype = torch.float32) -> SailVL2:
    """A model with these tensors. Head and embedding are tied exactly when they are stored equal, or the head is not
    stored and the config says so."""
    config = fitting_config(config, stored)
    model = empty_model(config, dtype)
    fill(model, stored.read())
    return model


def fitting_config(config: SailVL2Config, stored: "StoredTensors") -> SailVL2Config:
    """`config` with its head tied or not, and its dtype, as the stored tensors say. `ValueError` unless their names and
    shapes fit."""
    tied = stored.is_tied(config)
    published = {**config.published, "dtype": stored.dtype}
    config = replace(config, language=replace(config.language, tie_word_embeddings=tied), published=published)
    check_names(stored.shapes, released_shapes(config), str(stored.folder), {HEAD} if tied else set())
    return config


@torch.no_grad()
def fill(model: SailVL2, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy tensors under released names into the model, one after the other."""
    targets = released_tensors(model)
    for name, tensor in tensors:
        targets[name].copy_(tensor)


def check_names(
    found: Mapping[str, torch.Size], wanted: Mapping[str, torch.Size], where: str, optional: set[str]
) -> None:
    """One `ValueError` that lists every missing, unexpected and mis-shaped name. `where` begins its message."""
    problems = [f"missing {name}" for name in sorted(wanted.keys() - found.keys() - optional)]
    problems += [f"unexpected {name}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name}: expected {list(wanted[name])}, found {list(found[name])}"
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name] != found[name]
    ]
    if problems:
        raise ValueError(f"{where}: tensors do not fit the model's config.json:\n  " + "\n  ".join(problems))


def empty_model(config: SailVL2Config, dtype: torch.dtype) -> SailVL2:
    """A model whose weights are still to be filled in: nothing is drawn, memory is taken once."""
    with torch.device("meta"):
        model = SailVL2(config)
    model = model.to(dtype).to_empty(device="cpu")
    model.language_model.tie()
    return model


@dataclass(frozen=True)
class _Place:
    file: Path
    stored_name: str
    shape: torch.Size
    kind: str  # one of `STORED_TYPES`


class StoredTensors:
    """The safetensors files of a folder, verified and opened but not read.

    `rename` maps stored names to released ones; tensors that it maps to None are left out.
    """

    def __init__(self, folder: Path, rename: Callable[[str], str | None] = str) -> None:
        """`ValueError` for files that are damaged, or differ from the folder's manifest; for numbers in another type
        than those of `STORED_TYPES`; and where two files, or two names, give one tensor."""
        self.folder = Path(folder)
        self._places: dict[str, _Place] = {}
        files, index = weight_files(self.folder)
        for file in files:
            try:
                with safe_open(file, "pt") as shard:
                    for name in shard.keys():  # noqa: SIM118  (not a dict)
                        if (ours := rename(name)) is not None:
                            self._add(ours, name, file, shard.get_slice(name))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{file}: expected a whole safetensors file, found: {error}") from None
        self._check_index(index, rename)
        others = [name for name in (INDEX if index else "", CONFIG) if name and (self.folder / name).exists()]
        verify_files(self.folder, [path.name for path in files] + others)

    @property
    def shapes(self) -> dict[str, torch.Size]:
        return {name: place.shape for name, place in self._places.items()}

    @property
    def dtypes(self) -> dict[str, str]:
        """Tensor -> name of the type that its numbers are stored in."""
        return {name: STORED_TYPES[place.kind] for name, place in self._places.items()}

    @property
    def dtype(self) -> str:
        """Name of the type that most numbers are stored in."""
        counts = Counter[str]()
        for place in self._places.values():
            counts[place.kind] += place.shape.numel()
        return STORED_TYPES[max(counts, key=lambda kind: counts[kind])] if counts else "float32"

    def get(self, name: str) -> Tensor:
        place = self._places[name]
        with safe_open(place.file, "pt") as shard:
            return shard.get_tensor(place.stored_name)

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor; only those are read."""
        place = self._places[name]
        with safe_open(place.file, "pt") as shard:
            return shard.get_slice(place.stored_name)[start:stop]

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor, file by file. `ValueError` for NaN or infinity."""
        for name in self._places:
            tensor = self.get(name)
            if not all_finite(tensor):
                raise ValueError(f"{self.folder}: {name}: expected finite numbers, found NaN or infinity")
            yield name, tensor

    def is_tied(self, config: SailVL2Config) -> bool:
        """Stored head and embedding are equal; without a stored head, what the config says."""
        shapes = self.shapes
        if HEAD not in shapes or EMBEDDING not in shapes:
            return config.language.tie_word_embeddings
        return shapes[HEAD] == shapes[EMBEDDING] and torch.equal(self.get(HEAD), self.get(EMBEDDING))

    def _add(self, name: str, stored_name: str, file: Path, tensor: Any) -> None:
        if (kind := tensor.get_dtype()) not in STORED_TYPES:
            raise ValueError(
                f"{file}: {stored_name}: expected numbers as {', '.join(STORED_TYPES)}, found {kind}; quantised "
                "weights mean nothing without their scales: give the folder of the model before it was quantised"
            )
        if name in self._places:
            other = self._places[name]
            raise ValueError(
                f"{file}: {stored_name}: expected every tensor once, found it in {other.file.name} too (as "
                f"{other.stored_name}); remove the file that is not meant"
            )
        self._places[name] = _Place(file, stored_name, torch.Size(tensor.get_shape()), kind)

    def _check_index(self, index: Mapping[str, str], rename: Callable[[str], str | None]) -> None:
        """`ValueError` where an index names another file for a tensor than the one that has it."""
        for stored_name, file in index.items():
            place = self._places.get(rename(stored_name) or "")
            if place is not None and place.file.name != file:
                raise ValueError(
                    f"{self.folder / INDEX}: {stored_name}: expected it in {file}, found it in {place.file.name}"
                )


STORED_TYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""How safetensors files may store weights, and what torch calls it."""


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """(the files that hold a folder's weights, tensor -> file name of its index), by the rule of transformers.

    `model.safetensors` holds all, or `model.safetensors.index.json` names the shards; other files are no matter.
    `ValueError` where there is neither, and where there are both and they disagree.
    """
    single, index = folder / WEIGHTS, folder / INDEX
    for path in (single, index):
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: expected a file, found a folder, a pipe or a device")
    if not index.is_file():
        if not single.is_file():
            raise ValueError(f"{folder}: expected {WEIGHTS} or {INDEX} beside config.json, found neither")
        return [single], {}
    try:
        where = {str(name): str(file) for name, file in read_json_object(index)["weight_map"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: expected a JSON object with weight_map, found: {error!r}") from None
    names = sorted(set(where.values()))
    if strange := [name for name in names if not name or name != Path(name).name]:
        raise ValueError(f"{index}: expected names of files in its folder, found {strange[0]!r:.80}")
    if single.is_file() and names != [WEIGHTS]:
        raise ValueError(
            f"{folder}: expected {WEIGHTS} or {INDEX}, found both, and the index names other files ({names[0]} ...); "
            "remove the one that is old"
        )
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ValueError(f"{index}: expected the files {names}, found no {', '.join(missing)}")
    return [folder / name for name in names], where
