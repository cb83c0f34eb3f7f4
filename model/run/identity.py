"""The identity of a run: its settings, the content of its inputs, and the code. A checkpoint keeps it, and a restart
compares.

Where a folder lies, how a path is spelt, and settings that change no number are no part of it.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import yaml

from model.json_values import refuse_special_file
from model.run.manifest import MANIFEST, Manifest
from model.run.state import State

_ENDS = 1 << 14
_CHUNK = 1 << 22
_WHOLE = 1 << 28
_SHOWN = 8


@dataclass(frozen=True)
class Input:
    """Something that a run reads: where it lies, for messages, and a checksum of what it holds."""

    path: str
    sha256: str


@dataclass
class Identity:
    """The settings of a run by key, its inputs by name."""

    settings: dict[str, object]
    inputs: dict[str, Input] = field(default_factory=dict)

    def to_json(self) -> State:
        return {
            "settings": self.settings,
            "inputs": {name: {"path": one.path, "sha256": one.sha256} for name, one in self.inputs.items()},
        }

    @classmethod
    def from_json(cls, record: State) -> "Identity":
        """`ValueError` for anything that `to_json` did not give."""
        try:
            inputs = {name: Input(one["path"], one["sha256"]) for name, one in record["inputs"].items()}
            return cls(dict(record["settings"]), inputs)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"expected the settings and inputs of a run, found: {error!r}") from None

    def changed_settings(self, before: "Identity") -> dict[str, str]:
        """Key -> a text with both values, for each that differs."""
        keys = sorted(self.settings.keys() | before.settings.keys())
        return {
            key: f"{key}: {_shown(before.settings, key)} in the folder, {_shown(self.settings, key)} now"
            for key in keys
            if before.settings.get(key, _ABSENT) != self.settings.get(key, _ABSENT)
        }

    def growth(self, before: "Identity", key: str, is_extended: bool) -> str:
        """How many steps the run gets instead of how many, "" where it gets no more.

        `ValueError` where its learning rates were laid out for its old end and `is_extended` does not accept that.
        """
        old, new = before.settings.get(key), self.settings.get(key)
        if not isinstance(old, int | float) or not isinstance(new, int | float) or not 0 < old < new:
            return ""
        schedule = self.settings.get("optimizer.schedule", "constant")
        if schedule != "constant" and not is_extended:
            raise ValueError(
                f"{key}: optimizer.schedule={schedule} laid out the learning rates for {old}, found {new}; "
                f"run.extend=true goes on with the learning rates of a run of {new}"
            )
        return f"{key} {old} -> {new}"

    def changed_inputs(self, before: "Identity") -> dict[str, str]:
        """Name -> a text, for each input whose content differs."""
        found: dict[str, str] = {}
        for name in sorted(self.inputs.keys() | before.inputs.keys()):
            one, earlier = self.inputs.get(name), before.inputs.get(name)
            if one is None:
                found[name] = f"{name}: the run began with {before.inputs[name].path}, found none now"
            elif earlier is None or earlier.sha256 != one.sha256:
                was = f" ({earlier.path})" if earlier and earlier.path != one.path else ""
                found[name] = f"{name}: {one.path} does not hold what the run began with{was}"
        return found


_ABSENT = object()


def _shown(settings: Mapping[str, object], key: str) -> str:
    return repr(settings[key])[:80] if key in settings else "absent"


def listed(texts: Sequence[str]) -> str:
    """Some texts as one, cut to a readable length."""
    more = f"; and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more


def outside_keys(config: object, prefix: str = "") -> set[str]:
    """The dotted keys of a config whose fields carry `model.run.config.OUTSIDE`."""
    if not is_dataclass(config):
        return set()
    keys: set[str] = set()
    for one in fields(config):
        key = f"{prefix}{one.name}"
        if one.metadata.get("outside"):
            keys.add(key)
            continue
        value = getattr(config, one.name)
        inner = {f"{key}.{name}": entry for name, entry in value.items()} if isinstance(value, dict) else {key: value}
        for name, entry in inner.items():
            keys |= outside_keys(entry, f"{name}.")
    return keys


def settings_of(resolved: str, outside: Iterable[str]) -> dict[str, object]:
    """Dotted key -> value of a resolved config, less the keys `outside` and all that lies below them."""
    found: dict[str, object] = {}
    left_out = set(outside)

    def walk(value: object, key: str) -> None:
        if key in left_out:
            return
        if isinstance(value, dict) and value:
            for name, inner in value.items():
                walk(inner, f"{key}.{name}" if key else str(name))
        else:
            found[key] = value

    walk(yaml.safe_load(resolved), "")
    return found


def input_of(*paths: Path) -> Input:
    """Files or folders that a run reads, with a checksum of their content. `ValueError` for one that cannot be read."""
    try:
        return Input(", ".join(map(str, paths)), digest_of_files(paths))
    except OSError as error:
        raise ValueError(f"expected a file that can be read, found: {error}") from None


def digest_of_files(paths: Iterable[Path]) -> str:
    """A checksum over the names and the bytes of files; a folder stands for the files that lie directly in it.

    A folder's manifest stands for the files that it lists. `OSError` for a file that cannot be read.
    """
    total = hashlib.sha256()
    for path in paths:
        if not path.is_dir():
            total.update(f"{path.name}\0{_digest(path)}\n".encode())
        elif (path / MANIFEST).is_file():
            entries = Manifest.read(path).entries
            total.update("".join(f"{name}\0{entries[name].sha256}\n" for name in sorted(entries)).encode())
        else:
            for file in sorted(one for one in path.iterdir() if one.is_file()):
                total.update(f"{file.name}\0{_digest(file)}\n".encode())
    return total.hexdigest()


def _digest(path: Path) -> str:
    refuse_special_file(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_ends(paths: Iterable[Path]) -> str:
    """A checksum over files in their order: of their bytes, or where all of them together have more than 256 MiB, which
    would take long to read, of the size and the ends of each. `ValueError` for one that cannot be read."""
    total, files = hashlib.sha256(), list(paths)
    try:
        sizes = [path.stat().st_size for path in files]
        for path, size in zip(files, sizes, strict=True):
            if sum(sizes) <= _WHOLE:
                total.update(f"{path.name}\0{_digest(path)}\n".encode())
                continue
            with path.open("rb") as file:
                head = file.read(_ENDS)
                file.seek(max(0, size - _ENDS))
                total.update(f"{path.name}\0{size}\n".encode() + head + file.read(_ENDS))
    except OSError as error:
        raise ValueError(f"expected a file that can be read, found: {error}") from None
    return total.hexdigest()


class MediaDigest:
    """A checksum over media files, whatever the order in which they come: name, size, first and last 16 KiB of each.

    Reading all of every image would take as long as a pass over the data. A changed pixel of a PNG, WebP or JPEG
    changes its size or its end; an uncompressed picture of more than 32 KiB can change unseen in its middle.
    """

    def __init__(self) -> None:
        self._total = 0
        self._seen: set[Path] = set()

    def add(self, path: Path, name: str) -> None:
        if path in self._seen:
            return
        self._seen.add(path)
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass"))
        with path.open("rb") as file:
            digest.update(file.read(_ENDS))
            size = file.seek(0, 2)
            file.seek(max(_ENDS, size - _ENDS))
            digest.update(file.read(_ENDS))
        digest.update(size.to_bytes(8, "little"))
        self._total = (self._total + int.from_bytes(digest.digest(), "little")) % (1 << 256)

    def finish(self) -> str:
        """The checksum in hexadecimal digits; what was seen is forgotten, because a run keeps this for ever."""
        self._seen.clear()
        return f"{self._total:064x}"


def code_input() -> Input:
    """The toolkit itself: its version, the version of torch, and the bytes of its own modules."""
    root = Path(__file__).resolve().parents[2]
    names = ("conf", "model", "rewards", "rlhf", "rollouts", "sft")
    files = [file for name in names for file in sorted((root / name).rglob("*.py"))]
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\n")
    versions = " ".join(f"{name} {_version(name)}" for name in ("sailvl2-rl", "torch"))
    total.update(versions.encode())
    return Input(versions, total.hexdigest())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
