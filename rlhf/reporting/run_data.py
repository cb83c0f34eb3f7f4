"""The folders of runs and pipelines as the report reads them. Nothing here imports a trainer."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from model.json_values import JsonObject, parse_json, read_json_object
from model.run.logs import read_lines
from model.run.shown.history import read_history
from rlhf.reporting.state import RunState, state_of

MARKS = ("run.json", "config.yaml", "metrics.jsonl")
"""A folder with any of these files is taken for a run's."""


@dataclass(frozen=True)
class RunData:
    """One run: a whole one, or a stage of a pipeline."""

    name: str
    folder: Path
    state: RunState
    settings: dict[str, object] = field(default_factory=dict)  # dotted key -> value
    metrics: list[JsonObject] = field(default_factory=list)  # lines of metrics.jsonl, by step
    evaluations: list[JsonObject] = field(default_factory=list)  # those during training, each with its step
    events: list[JsonObject] = field(default_factory=list)
    ends: dict[str, int] = field(default_factory=dict)  # `trained`, or the reason of a drop -> draws of the ledger

    @property
    def is_rl(self) -> bool:
        return any("reward" in row for row in self.metrics[:1])


@dataclass(frozen=True)
class FolderData:
    """Everything that a report says of one folder, rollouts aside."""

    path: Path
    name: str
    is_pipeline: bool
    state: RunState
    stages: list[RunData]  # in the order in which they run; of a single run itself
    settings: dict[str, object]
    results: dict[str, JsonObject]  # stage, or name of a file -> an evaluation's result
    seconds: dict[str, float]  # stage -> seconds that the pipeline counted
    problems: list[str]  # files that could not be read, with the reason


def read_folder(path: Path) -> FolderData:
    """Read a run's or a pipeline's folder. `ValueError` where it is none; a file that is damaged is a problem to say.

    A run that is still going on can be read: a line without its end is passed over.
    """
    if not path.is_dir() or not any((path / mark).is_file() for mark in MARKS):
        found = "another folder" if path.is_dir() else "a file" if path.exists() else "nothing"
        raise ValueError(f"run: expected the folder of a run or of a pipeline at {path}, found {found}")
    problems: list[str] = []
    config = _yaml(path / "config.yaml", problems)
    names = _stage_names(config)
    name = path.resolve().name or str(path)
    stages = [_read_run(path / stage, stage, problems) for stage in names if _is_run(path / stage)]
    if not names:
        stages = [_read_run(path, name, problems)]
    results, seconds = _results(path, names, problems)
    settings = flat({key: value for key, value in config.items() if key != "stages"})
    state = state_of(path)
    return FolderData(path, name, bool(names), state, stages, settings, results, seconds, problems)


def _read_run(folder: Path, name: str, problems: list[str]) -> RunData:
    events = read_history(folder)
    return RunData(
        name,
        folder,
        state_of(folder, events),
        flat(_yaml(folder / "config.yaml", problems)),
        _lines(folder / "metrics.jsonl", problems),
        _lines(folder / "evaluations.jsonl", problems),
        events,
        dict(_ends(folder / "ledger.jsonl", problems)),
    )


def _is_run(folder: Path) -> bool:
    return any((folder / mark).is_file() for mark in MARKS)


def _stage_names(config: JsonObject) -> list[str]:
    """The names of a pipeline's stages; none for the settings of a run."""
    stages = config.get("stages")
    if not isinstance(stages, list):
        return []
    names = [str(stage["name"]) for stage in stages if isinstance(stage, dict) and stage.get("name")]
    return [name for name in names if Path(name).name == name]  # a folder elsewhere is no stage of this pipeline


def _results(path: Path, names: list[str], problems: list[str]) -> tuple[dict[str, JsonObject], dict[str, float]]:
    """Results of evaluations, and the seconds of stages. Files that are no results of evaluations are passed over."""
    if not names:
        files = {file.stem: file for file in sorted(path.glob("*.json")) if file.name not in ("run.json", "done.json")}
    else:
        files = {name: path / "evaluations" / f"{name}.json" for name in names}
    results = {name: found for name, file in files.items() if "modes" in (found := _json(file, problems))}
    seconds: dict[str, float] = {}
    for name in names:
        counted = _json(path / "graph" / f"{name}.json", problems).get("seconds")
        if isinstance(counted, int | float):
            seconds[name] = float(counted)
    return results, seconds


def _lines(path: Path, problems: list[str]) -> list[JsonObject]:
    try:
        return sorted(read_lines(path), key=lambda row: row["step"])
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
        return []


def _ends(path: Path, problems: list[str]) -> Iterator[tuple[str, int]]:
    """How many draws of a ledger ended how. The file of a long run is large, so it is read line by line."""
    counts: Counter[str] = Counter()
    try:
        with path.open("rb") as file:
            for line in file:
                try:
                    record = parse_json(line) if line.endswith(b"\n") else None
                except ValueError:
                    continue
                if isinstance(record, dict) and isinstance(record.get("end"), str):
                    counts[str(record.get("reason") or record["end"])] += 1
    except FileNotFoundError:
        pass
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    yield from counts.most_common()


def _json(path: Path, problems: list[str]) -> JsonObject:
    try:
        return read_json_object(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        problems.append(str(error))
        return {}


def _yaml(path: Path, problems: list[str]) -> JsonObject:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        problems.append(f"{path}: expected settings as YAML, found: {str(error).splitlines()[0]}")
        return {}
    return found if isinstance(found, dict) else {}


def flat(settings: JsonObject, prefix: str = "") -> dict[str, object]:
    """Dotted key -> value of nested settings."""
    found: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found
