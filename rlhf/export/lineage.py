"""Where a model comes from: the runs that made it, their data and their measured figures, read off their folders.

Nothing is invented: what no file says is None, and the card then says that it is not known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from model.json_values import JsonObject, read_json_config, read_json_object
from model.run.folder import MARK
from model.run.identity import digest_of_files
from model.run.manifest import MANIFEST
from rlhf.export.figures import Figure, figures_of
from rlhf.reporting.state import state_of

_STAGES = "stages"
_MODELS = ("final", "best")
_MOST_RUNS = 64  # a chain of checkpoints that is longer goes in a circle


@dataclass(frozen=True)
class Source:
    """Something that a run read: its name, without the folders that lead to it, and a checksum of its content."""

    name: str
    sha256: str | None


@dataclass(frozen=True)
class Stage:
    """A run, or a step that merged models."""

    name: str
    command: str | None = None
    recipe: str | None = None  # "" where the command took none
    overrides: list[str] | None = None  # KEY=VALUE behind the recipe
    start: Source | None = None  # the model it began with
    is_from_nothing: bool = False
    steps: int | None = None
    seconds: float | None = None
    seed: int | None = None
    inputs: dict[str, Source] = field(default_factory=dict)
    code: Source | None = None
    settings: JsonObject = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)


@dataclass(frozen=True)
class Lineage:
    """The stages that led to a model, the first one first. `model` is the name of the folder that was exported."""

    model: str
    dtype: str  # number type of the weights that were measured
    sha256: str  # checksum of the folder that was exported
    stages: list[Stage]
    figures: list[Figure]  # from results that the user named
    note: str = ""  # why the stages, or the end of the last one, are not known

    def to_json(self) -> JsonObject:
        return asdict(self)


@dataclass(frozen=True)
class Found:
    """A model's folder, the run that wrote it, and the pipeline that the run is a stage of, as far as there are any."""

    model: Path
    run: Path | None = None
    pipeline: Path | None = None


def find_model(folder: Path) -> Found:
    """The model of a pipeline, of a run, or in a model folder. `ValueError` says what is missing in any other."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise ValueError(f"run: expected the folder of a pipeline, a run or a model at {folder}, found none")
    if (folder / "config.json").is_file():
        return _around(folder)
    settings = _settings(folder)
    if settings is None:
        read_json_config(folder)  # says what is missing
    is_pipeline = settings is not None and _STAGES in settings
    model = folder / ("export" if is_pipeline else "final")
    if not (model / "config.json").is_file():
        what = "pipeline" if is_pipeline else "run"
        raise ValueError(
            f"run: {folder}: expected a finished {what}, whose model is {model.name}/, found none; let it end, or give "
            f"the folder of a model, such as {'STAGE/final' if is_pipeline else 'RUN/best'}"
        )
    return _around(model)


def _around(model: Path) -> Found:
    above = [folder for folder in list(model.parents)[:3] if _settings(folder) is not None]
    pipeline = next((folder for folder in above if _STAGES in (_settings(folder) or {})), None)
    run = next((folder for folder in above if folder != pipeline), None)
    if pipeline and not run:
        run = _stage_folder(pipeline, model)
    return Found(model, run, pipeline)


def _stage_folder(pipeline: Path, model: Path) -> Path | None:
    """The stage of a pipeline whose `final/` is this model, or has the same content."""
    names = [name for name in _stage_names(pipeline) if (pipeline / name / "final" / MANIFEST).is_file()]
    if model.parent.name in names and model.parent.parent == pipeline:
        return model.parent
    digest = digest_of_files([model])
    same = [name for name in names if digest_of_files([pipeline / name / "final"]) == digest]
    return pipeline / same[-1] if same else None


def lineage_of(found: Found, dtype: str, evaluations: Iterable[Path]) -> Lineage:
    """The lineage of a model that was found. `ValueError` for a file of the lineage that is damaged."""
    named = [figure for path in evaluations for figure in figures_of(path)]
    stages: list[Stage] = []
    note = ""
    if found.run is None:
        note = (
            "none of the pipeline's stages holds these weights"
            if found.pipeline
            else "the folder is no part of a run, so it does not say how it was made"
        )
    elif found.pipeline:
        names = _stage_names(found.pipeline)
        until = names.index(found.run.name) + 1 if found.run.name in names else 0
        chain = [found.pipeline / name for name in names[:until]] or [found.run]
        stages = [_stage(folder, found.pipeline) for folder in chain if (folder / "final").is_dir()]
    else:
        stages = [_stage(folder, None) for folder in _chain(found.run)]
    if stages and found.run and not _is_final(found.model, found.run):
        stages[-1] = replace(stages[-1], steps=None, seconds=None, figures=[])
        note = (
            f"the weights are {found.model.name} of the last stage, not its end, whose steps and figures are left out"
        )
    name = f"{found.model.parent.name}/{found.model.name}"
    return Lineage(name, dtype, digest_of_files([found.model]), stages, named, note)


def _is_final(model: Path, run: Path) -> bool:
    """Whether a model is the one that a run ended with, or has its content."""
    final = run / "final"
    if model == final:
        return True
    return (final / MANIFEST).is_file() and digest_of_files([model]) == digest_of_files([final])


def _chain(run: Path) -> list[Path]:
    """The run and the runs before it, each of which wrote the checkpoint that the next one began with."""
    chain = [run]
    while len(chain) < _MOST_RUNS:
        start = _identity(chain[0]).get("inputs", {}).get("checkpoint")
        before = _writer_of(chain[0], start) if isinstance(start, dict) else None
        if before is None or before in chain:
            break
        chain.insert(0, before)
    return chain


def _writer_of(run: Path, start: Mapping[str, object]) -> Path | None:
    """The run whose model has the content that `run` began with, among its neighbours and where it lay then."""
    there = Path(str(start.get("path", ""))).resolve()
    models = [there, *(folder / name for folder in sorted(run.parent.iterdir()) for name in _MODELS)]
    for model in models:
        is_run = _settings(model.parent) is not None and model.parent != run
        if is_run and (model / MANIFEST).is_file() and digest_of_files([model]) == start.get("sha256"):
            return model.parent
    return None


def _stage(folder: Path, pipeline: Path | None) -> Stage:
    """Read what the files of a run, and those of its pipeline, say about it."""
    identity = _identity(folder)
    settings, inputs = identity.get("settings", {}), identity.get("inputs", {})
    sources = {str(name): _source(one) for name, one in inputs.items() if isinstance(one, dict)}
    start, code = sources.pop("checkpoint", None), sources.pop("code", None)
    planned = _planned(pipeline, folder.name) if pipeline else {}
    record = _optional(pipeline / "graph" / f"{folder.name}.json") if pipeline else {}
    seconds = record.get("seconds")
    done = _optional(folder / "done.json")
    steps = done.get("steps", done.get("updates"))
    evaluated = pipeline / "evaluations" / f"{folder.name}.json" if pipeline else folder / "evaluation.json"
    return Stage(
        folder.name,
        command=str(planned["command"]) if "command" in planned else None,
        recipe=str(planned.get("recipe") or "") if planned else None,
        overrides=[str(one) for one in planned.get("overrides") or []] if planned else None,
        start=start,
        is_from_nothing=bool(settings) and start is None,
        steps=steps if isinstance(steps, int) and not record.get("went_back") else None,  # the best model has fewer
        seconds=seconds if isinstance(seconds, int | float) else state_of(folder).seconds,
        seed=settings.get("run.seed"),
        inputs=sources,
        code=Source(str(inputs["code"].get("path")), code.sha256) if code else None,
        settings=settings,
        figures=figures_of(evaluated) if evaluated.is_file() else [],
    )


def _source(record: Mapping[str, object]) -> Source:
    """An input by the last two names of its path: the folders before them are those of one machine. Words before the
    path stay."""
    words, of, path = str(record.get("path", "")).rpartition(" of ")
    name = f"{words}{of}{'/'.join(Path(path).parts[-2:])}"
    return Source(name, str(record["sha256"]) if "sha256" in record else None)


def _planned(pipeline: Path, name: str) -> JsonObject:
    """A stage as the pipeline's recipe describes it."""
    return next((one for one in _stages(pipeline) if one.get("name") == name), {})


def _stage_names(pipeline: Path) -> list[str]:
    return [str(one.get("name")) for one in _stages(pipeline)]


def _stages(pipeline: Path) -> list[JsonObject]:
    found = (_settings(pipeline) or {}).get(_STAGES)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _settings(folder: Path) -> JsonObject | None:
    """The settings of the run or pipeline in a folder, None where there is none."""
    return _identity(folder).get("settings") if (folder / MARK).is_file() else None


def _identity(folder: Path) -> JsonObject:
    identity = _optional(folder / MARK).get("identity", {})
    return identity if isinstance(identity, dict) else {}


def _optional(path: Path) -> JsonObject:
    """The JSON object of a file, empty where there is none. `ValueError` for a damaged one."""
    return read_json_object(path) if path.is_file() else {}
