"""Which files a source names, and the shard of each."""

from functools import lru_cache
from glob import glob, has_magic
from pathlib import Path

from model.corpus.lines import JsonArray, JsonLines, TabSeparated
from model.corpus.shard import Shard
from model.corpus.tables import ArrowShard, ParquetShard
from model.corpus.tar import TarShard
from model.data.columnar import saved_files

_KINDS: dict[str, type[Shard]] = {
    ".jsonl": JsonLines,
    ".json": JsonArray,
    ".parquet": ParquetShard,
    ".tar": TarShard,
    ".tsv": TabSeparated,
    ".arrow": ArrowShard,
}
_OPEN_SHARDS = 256


def shard_files(key: str, folder: str, paths: list[str]) -> list[Path]:
    """The files of a source, in the order in which their rows are numbered.

    A path is a file, a pattern such as `shards/*.tar`, a folder of files of one kind, or one that `datasets` saved.
    `ValueError`, headed by the setting `key`, for one that gives no file.
    """
    if not paths:
        raise ValueError(f"{key}: expected at least one file, folder or pattern, found none")
    found: list[Path] = []
    for text in paths:
        path = Path(folder) / text
        if has_magic(str(path)):
            files = sorted(Path(name) for name in glob(str(path), recursive=True))
        elif path.is_dir():
            files = _folder_files(key, path)
        else:
            files = [path]
        if not files:
            raise ValueError(f"{key}: expected files at {path}, found none; correct the pattern or the folder")
        for file in files:
            _require_known(key, file)
        found += files
    if twice := sorted({str(file) for file in found if found.count(file) > 1}):
        raise ValueError(f"{key}: expected every file once, found {twice[0]} again")
    return found


@lru_cache(maxsize=_OPEN_SHARDS)
def open_shard(path: Path) -> Shard:
    """The shard of a file, by the ending of its name."""
    return _KINDS[path.suffix.lower()](path)


def _folder_files(key: str, folder: Path) -> list[Path]:
    if (folder / "state.json").is_file():
        return saved_files(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in _KINDS)
    if len(kinds := sorted({path.suffix.lower() for path in files})) > 1:
        raise ValueError(f"{key}: {folder}: expected files of one kind, found {', '.join(kinds)}; give a pattern")
    return files


def _require_known(key: str, file: Path) -> None:
    if not file.exists():
        raise ValueError(f"{key}: expected a file at {file}, found none; write it or correct the path")
    if file.suffix.lower() not in _KINDS:
        packed = "; unpack it, so that its rows can be read in any order" if ".tar" in file.suffixes else ""
        raise ValueError(f"{key}: {file}: expected one of {', '.join(_KINDS)}, found {file.suffix!r}{packed}")
