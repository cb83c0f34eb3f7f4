"""Stages of a pipeline as data: from a recipe's list to command lines that are all checked before the first starts."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

from conf.cli import assign, command_of, entry_of, load_config, recipe_file
from model.config import MoeLanguageConfig, SailVL2Config, StoredDtype, flavour_config
from model.data.config import StreamConfig
from model.engine.config import SupervisedConfig
from model.json_values import JsonObject
from model.pretrain.config import PretrainConfig
from model.run.config import RunConfig
from rewards.config import RewardConfig
from rewards.rubric import Rubric
from rlhf.config import PipelineConfig, RlConfig, split_command
from rlhf.evaluation.config import EvaluateConfig
from rlhf.planning.gates import Gate, Otherwise, read_gates
from rlhf.planning.inputs import digest_of_functions
from rlhf.selection.config import PassAtKConfig

_EVALUATE = "evaluate"
_FIELDS = ("name", "command", "from", "recipe", "inputs", "overrides", "gates", "report")
_KINDS = {
    "inputs": (Mapping, "a mapping of keys to paths"),
    "overrides": (list, "a list"),
    "gates": (list, "a list"),
    "report": (str, "a text"),
}
_TAKEN = (_EVALUATE, "base", "evaluations", "export", "graph", "superseded")  # folders and words of the pipeline
_MEASURES = (_EVALUATE, "probe")  # they write figures, and no model
_SUPERVISED = ("pretrain", "sft")
_MERGES = ("soup", "assemble")  # they make one model of several
_MAKERS = {
    # entry point: the file that it writes last, which later stages read
    "pass_at_k": "prompts.jsonl",
    "prepare_longcot": "demonstrations.jsonl",
    "prepare_fusion": "demonstrations.jsonl",
    "prepare_free_response": "prompts.jsonl",
}
"""They make data of data, in a folder of rows with their media."""
_SETTINGS_OF_MAKERS = {
    "pass_at_k": ("seed", "num_threads"),
    "prepare_longcot": ("seed",),
    "prepare_fusion": ("seed",),
    "prepare_free_response": (),
}
"""Settings of a maker that the pipeline gives it, where the maker has them."""
_COMMANDS = (*_SUPERVISED, "rlhf", *_MERGES, *_MEASURES, *_MAKERS)  # entry points that may be stages

RECIPE = "recipe"
"""The name of a stage's own recipe file among what it reads."""

_NO_BASE = "{base}"
"""Stands for the pipeline's base where it has none, which a plan may."""


@dataclass(frozen=True)
class StagePlan:
    """One process of the pipeline."""

    name: str
    entry: str  # entry point of conf/
    module: str
    overrides: list[str]
    where: str = ""  # the key of the pipeline that it comes from, for messages
    files: dict[str, Path] = field(default_factory=dict)  # field of the recipe -> what must be there before it starts
    writes_model: bool = False
    config: object = None  # the command's own, composed and checked
    report: str = ""  # the paper's figures for this stage, which a plan shows
    sources: dict[str, Path] = field(default_factory=dict)  # key of the command -> what else must be there: corpora
    reads: frozenset[str] = frozenset()  # paths below run.dir that earlier stages write for it
    gates: tuple[Gate, ...] = ()

    @property
    def is_merge(self) -> bool:
        """Whether it makes one model of several: it writes the model whole or not at all, and no run's folder."""
        return self.entry in _MERGES

    @property
    def is_maker(self) -> bool:
        """Whether it writes a folder of rows that later stages read."""
        return self.entry in _MAKERS

    def product(self, run: Path) -> Path:
        """The file or folder below the pipeline's `run` that is there once the stage is complete."""
        if self.is_maker:
            return run / self.name / _MAKERS[self.entry]
        return run / self.name / "final" if self.writes_model else run / "evaluations" / f"{self.name}.json"

    @property
    def has_run(self) -> bool:
        """Whether it writes a run's folder, with metrics and checkpoints."""
        return self.writes_model and not self.is_merge

    @property
    def writes_folder(self) -> bool:
        """Whether what it writes is a folder of its own, and not only figures."""
        return self.writes_model or self.is_maker

    @property
    def command(self) -> list[str]:
        """Arguments behind the Python interpreter."""
        return ["-m", *self.module.split(), *self.overrides]


def plan(config: PipelineConfig) -> tuple[list[StagePlan], dict[str, StagePlan]]:
    """(the stages, the evaluation after each stage by the stage's name), with complete command lines.

    `ValueError` names the stage and its field where one would be refused.
    """
    if (module := next(iter(config.prepare_command), "")) and not _can_import(module):
        raise ValueError(
            f"prepare: expected a module that can be imported, found {module!r}; start where Python "
            "finds it, or correct the name"
        )
    if not config.stages:
        raise ValueError("stages: expected at least one stage, found none; choose a recipe, such as recipe=quickstart")
    stages: list[StagePlan] = []
    for number, fields in enumerate(config.stages):
        stages.append(_stage(config, number, fields, stages))
    evaluations = _evaluations(config, stages)
    return [_gated(stage, config, stages[:number], evaluations) for number, stage in enumerate(stages)], evaluations


def _gated(
    stage: StagePlan, config: PipelineConfig, earlier: Sequence[StagePlan], evaluations: Mapping[str, "StagePlan"]
) -> StagePlan:
    """The stage with its gates. `ValueError` for gates without an evaluation, or a best model that no stage keeps."""
    given = next(fields.get("gates") for fields in config.stages if fields.get("name") == stage.name) or []
    if given and stage.name not in evaluations and stage.entry != _EVALUATE:
        raise ValueError(
            f"{stage.where}.gates: expected an evaluation after the stage, found none; add evaluation.inputs, and the "
            "stage to evaluation.after where that is not empty"
        )
    evaluated = [one.name for one in earlier if one.name in evaluations or one.entry == _EVALUATE]
    gates = read_gates(given, stage.where, evaluated)
    keeps_best = isinstance(stage.config, RlConfig) and bool(stage.config.evaluation.prompts)
    if not keeps_best and any(gate.otherwise is Otherwise.best for gate in gates):
        raise ValueError(
            f"{stage.where}.gates: otherwise=best: expected a stage of rlhf.train with evaluation.prompts, which keeps "
            "its best model, found another one; choose stop or warn"
        )
    return replace(stage, gates=tuple(gates))


def _can_import(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:  # a package runs as its __main__
            spec = importlib.util.find_spec(f"{module}.__main__")
        return spec is not None
    except Exception:  # a package on the way is missing, or does not import; a name that begins with a dot
        return False


def check_starts(config: PipelineConfig, stages: Sequence[StagePlan]) -> None:
    """`ValueError` for a flavour that cannot be built, a stage that would keep random weights as they are, and an input
    `@base` without a base."""
    for stage in stages:
        if key := next((key for key, path in stage.files.items() if path.parts[:1] == (_NO_BASE,)), ""):
            raise ValueError(
                f"{stage.where}.{key}: @base: expected the folder of a model in the pipeline's `base`, found nothing"
                f"{'; model=FLAVOUR is for plans, and for pre-training from random weights' if config.model else ''}"
            )
        if not isinstance(stage.config, PretrainConfig) or stage.config.model is None:
            continue
        if frozen := [tower.name for tower in stage.config.engine.freeze]:
            raise ValueError(
                f"{stage.where}: engine.freeze: expected no tower with model={stage.config.model.value}, whose weights "
                f"are random, found [{', '.join(frozen)}]; start from trained towers: base=DIR, a folder that "
                "python -m model.assemble vision=DIR language=DIR out=DIR makes"
            )
        if stage.config.model is config.model:
            from model.checkpoint import flavour_processor

            flavour_processor(stage.config.model)


def launcher_of(config: PipelineConfig, stage: StagePlan) -> list[str]:
    """The command in front of a stage that trains on several devices; empty: it is one process."""
    return split_command(config.machine.launcher, "machine.launcher") if stage.has_run else []


def check_inputs(stages: Sequence[StagePlan]) -> None:
    """`ValueError` for the first input that is not there. What an earlier stage writes is not looked for."""
    for stage in stages:
        for key, path in {**stage.files, **stage.sources}.items():
            if not path.exists():
                raise ValueError(f"{stage.where}.{key}: expected a file or folder at {path}, found none")


def _stage(config: PipelineConfig, number: int, fields: Mapping[str, Any], earlier: Sequence[StagePlan]) -> StagePlan:
    name = fields.get("name")
    if not isinstance(name, str) or not name or not name.replace("_", "").replace("-", "").isalnum():
        raise ValueError(f"stages: stage {number}: name: expected letters, digits, _ and -, found {name!r}")
    for key, (kind, described) in _KINDS.items():
        if fields.get(key) is not None and not isinstance(fields[key], kind):
            raise ValueError(f"stages.{name}.{key}: expected {described}, found {fields[key]!r:.80}")
    if unknown := [key for key in fields if key not in _FIELDS]:
        raise ValueError(f"stages.{name}: expected the fields {', '.join(_FIELDS)}, found {unknown[0]!r}")
    if name in (*_TAKEN, *(stage.name for stage in earlier)):
        raise ValueError(f"stages: expected names of their own, found {name!r}, which is taken; rename the stage")
    entry = entry_of(str(fields.get("command", "")), f"stages.{name}.command", _COMMANDS)
    values, files = _inputs(config, fields.get("inputs") or {}, earlier, f"stages.{name}")
    if start := str(fields.get("from") or ""):
        value, file = _start(config, entry, start, earlier, f"stages.{name}.from")
        values |= value
        files |= {"from": file} if file else {}
    named = _recipe(config, fields.get("recipe"), f"stages.{name}.recipe")
    recipe = [f"recipe={named}"] if named else []
    own = [str(override) for override in fields.get("overrides") or []]
    own += config.overrides if entry in _SUPERVISED else []
    _refuse_owned(own, f"stages.{name}", [key for key in ("checkpoint", "model") if key in values])
    overrides = [*recipe, *(assign(key, value) for key, value in values.items()), *_common(config, entry, name), *own]
    report = str(fields.get("report") or "")
    where, writes_model = f"stages.{name}", entry not in (*_MEASURES, *_MAKERS)
    files |= {RECIPE: file} if (file := recipe_file(overrides)) else {}
    planned = StagePlan(name, entry, command_of(entry), overrides, where, files, writes_model, report=report)
    checked = _checked(planned, config.action.starts)
    sources = _sources(config, checked)
    reads = _reads(config, values, sources, earlier)
    run = Path(config.run.dir)  # it may hold the data too
    kept = {key: path for key, path in sources.items() if not {*path.parents, path} & {run / one for one in reads}}
    return replace(planned, config=checked, sources=kept, reads=reads)


def _recipe(config: PipelineConfig, given: object, where: str) -> str:
    """The recipe of a stage; of two, for dense and for MoE models, the one that fits the pipeline's model."""
    if not isinstance(given, Mapping):
        return str(given or "")
    if sorted(map(str, given)) != ["dense", "moe"]:
        raise ValueError(f"{where}: expected a recipe, or one for `dense` and one for `moe`, found {dict(given)}")
    shapes = known_shapes(config)
    return str(given["moe" if shapes is not None and isinstance(shapes.language, MoeLanguageConfig) else "dense"])


def known_shapes(config: PipelineConfig) -> SailVL2Config | None:
    """The shapes of the model that the pipeline starts from; None where it is not known, or not there."""
    if config.model is not None:
        return flavour_config(config.model)
    if config.base and (Path(config.base) / "config.json").is_file():
        return SailVL2Config.from_folder(Path(config.base))
    return None


def _reads(
    config: PipelineConfig, values: JsonObject, sources: Mapping[str, Path], earlier: Sequence[StagePlan]
) -> frozenset[str]:
    """Paths below run.dir that earlier stages write for a stage."""
    run, names = Path(config.run.dir), {stage.name for stage in earlier}
    given = [one for value in values.values() for one in (value if isinstance(value, list) else [value])]
    paths = [path for path in (*given, *sources.values()) if isinstance(path, Path) and path.is_relative_to(run)]
    below = [path.relative_to(run) for path in paths]
    return frozenset(str(path) for path in below if path.parts and path.parts[0] in names)


def _common(config: PipelineConfig, entry: str, name: str) -> list[str]:
    """The settings that the pipeline itself gives a command: where it writes, seed, threads, number type."""
    dtype = [] if config.dtype is StoredDtype.keep else [f"dtype={config.dtype.value}"]
    if entry in _MEASURES:
        output = Path(config.run.dir) / "evaluations" / f"{name}.json"
        number = [f"num_prompts={config.num_eval}"] if config.num_eval and entry == _EVALUATE else []
        return [assign("output", output), f"seed={config.run.seed}", f"num_threads={config.num_threads}", *number]
    if entry in _MERGES:
        fresh = [f"seed={config.run.seed}", *dtype] if entry == "assemble" else []
        return [assign("out", Path(config.run.dir) / name / "final"), *fresh]
    if entry in _MAKERS:
        known = {"seed": config.run.seed, "num_threads": config.num_threads}
        own = [f"{key}={value}" for key, value in known.items() if key in _SETTINGS_OF_MAKERS[entry]]
        return [assign("out", Path(config.run.dir) / name), *own]
    settings = [f"run.seed={config.run.seed}", f"engine.num_threads={config.num_threads}"]
    if config.run.trackers != RunConfig(dir="default").trackers:
        settings.append(f"run.trackers=[{','.join(one.value for one in config.run.trackers)}]")
    return [*settings, assign("run.dir", Path(config.run.dir) / name), *dtype]


def _sources(config: PipelineConfig, stage: object) -> dict[str, Path]:
    """The corpora of a supervised stage, the files beside them and its held-out rows; of a pattern the folder that it
    searches."""
    found: dict[str, Path] = {}
    data = _stream_of(stage) or StreamConfig()
    if isinstance(stage, SupervisedConfig) and stage.evaluation.data:
        path = Path(stage.evaluation.data)
        found["evaluation.data"] = _searched(path) if data.sources else path
    if data.source_weights:
        found["data.source_weights"] = Path(data.source_weights)
    for name, source in data.sources.items():
        key = f"data.sources.{name}"
        for number, pattern in enumerate(source.paths):
            found[f"{key}.paths[{number}]"] = _searched(Path(data.folder, pattern))
        if source.media:
            found[f"{key}.media"] = Path(data.folder, source.media)
        if source.row_weights:
            found[f"{key}.row_weights"] = Path(source.row_weights)
    return found


def _searched(pattern: Path) -> Path:
    """The path itself, or the folder in which a pattern searches."""
    return Path(*takewhile(lambda part: not set(part) & set("*?["), pattern.parts))


def _stream_of(stage: object) -> StreamConfig | None:
    """The settings of a stage's corpora, where it reads any."""
    data: object = getattr(stage, "data", None)
    return data if isinstance(data, StreamConfig) and data.sources else None


def digests_of(stage: StagePlan) -> dict[str, str]:
    """Checksums of what a stage reads and no earlier stage writes, as far as it is there.

    A corpus stands for its files' sizes and ends, as in the stage's own checkpoints, and not for the folder it lies in.
    """
    from model.corpus.files import shard_files
    from model.corpus.open import inputs_of_sources
    from model.run.identity import digest_of_ends, digest_of_files

    data, files = _stream_of(stage.config), dict(stage.files)
    found: dict[str, str] = {}
    if data is not None:
        files.pop("inputs.data.folder", None)
        files |= {key: path for key, path in stage.sources.items() if key == "data.source_weights"}
        held_out = stage.sources.get("evaluation.data")
        if held_out is not None and held_out.exists() and isinstance(stage.config, SupervisedConfig):
            own = shard_files("evaluation.data", "", [stage.config.evaluation.data])
            found["evaluation.data"] = digest_of_ends(own)
        for name, source in data.sources.items():
            key = f"data.sources.{name}"
            own = [path for one, path in stage.sources.items() if one.startswith(f"{key}.")]
            is_read = [f"{key}.paths[{number}]" in stage.sources for number in range(len(source.paths))]
            if all(is_read) and all(path.exists() for path in own):
                weights = source.row_weights if f"{key}.row_weights" in stage.sources else ""
                one = {name: replace(source, row_weights=weights)}
                inputs = inputs_of_sources(replace(data, sources=one, source_weights=""))
                found |= {key: each.sha256 for key, each in inputs.items()}
    reward = getattr(stage.config, "reward", None)
    if isinstance(reward, RewardConfig) and (functions := digest_of_functions(reward)):
        found["reward.functions"] = functions
    return found | {key: digest_of_files([path]) for key, path in files.items() if path.exists()}


def _refuse_owned(overrides: Sequence[str], where: str, starts: Sequence[str]) -> None:
    """`ValueError` for keys that the pipeline sets itself, because later stages look where it put things. `starts`:
    those that say what the command starts from."""
    owned = {"run.dir", "output", "out", *starts}
    for override in overrides:
        if (key := override.partition("=")[0].lstrip("+")) in owned:
            raise ValueError(f"{where}: {key}: the pipeline sets it, found {override!r}; leave it out")


def _checked(stage: StagePlan, starts: bool) -> object:
    """Compose the stage's own config, and check the reward that it names, and the packages if it `starts` here."""
    try:
        config, _ = load_config(stage.entry, stage.overrides)
    except ValueError as error:
        raise ValueError(f"{stage.where}: {error}") from None
    if isinstance(config, RlConfig | EvaluateConfig | PassAtKConfig):
        if starts:
            config.rollouts.require_packages()
        with Rubric(config.reward) as rubric:
            rubric.check_functions()
    return config


def _inputs(
    config: PipelineConfig, given: Mapping[str, Any], earlier: Sequence[StagePlan], where: str
) -> tuple[JsonObject, dict[str, Path]]:
    """(key -> value, field -> path that must be there). `@STAGE/...` is in the folder of an earlier stage, `@base`
    is the pipeline's base; other relative paths are in its data folder."""
    values: JsonObject = {}
    files: dict[str, Path] = {}
    for key, value in given.items():
        listed = value if isinstance(value, list) and value else [value]
        paths = [_input(config, text, earlier, f"{where}.inputs.{key}") for text in listed]
        values[key] = [path for path, _ in paths] if isinstance(value, list) else paths[0][0]
        names = [f"inputs.{key}[{n}]" for n in range(len(paths))] if isinstance(value, list) else [f"inputs.{key}"]
        files |= {name: path for name, (path, is_there) in zip(names, paths, strict=True) if is_there}
    return values, files


def _input(config: PipelineConfig, text: object, earlier: Sequence[StagePlan], where: str) -> tuple[Path, bool]:
    """(the path that an input means, whether it must be there before the pipeline starts)."""
    if not isinstance(text, str) or not text:
        raise ValueError(f"{where}: expected a path, found {text!r:.80}")
    if not text.startswith("@"):
        return Path(config.data) / text, True
    name, _, rest = text[1:].partition("/")
    names = [stage.name for stage in earlier]
    if name not in (*names, "base"):
        known = ", ".join(names) or "none"
        raise ValueError(f"{where}: expected @base, or @ and an earlier stage ({known}), found {name!r}")
    if ".." in Path(rest).parts:
        raise ValueError(f"{where}: expected a path in the folder of {name}, found {text!r}")
    if name != "base":
        return Path(config.run.dir) / name / rest, False
    return Path(config.base or _NO_BASE, rest), True


def _start(
    config: PipelineConfig, entry: str, start: str, earlier: Sequence[StagePlan], where: str
) -> tuple[JsonObject, Path | None]:
    """(keys of the command that say what it starts from, what must be there). `from` is base, an earlier stage, or a
    folder; base is the folder `base`, or for pre-training the flavour `model` with random weights."""
    if start == "base" and config.base:
        return {"checkpoint": Path(config.base)}, Path(config.base)
    if start == "base" and entry == "pretrain" and config.model is not None:
        return {"model": config.model.value}, None
    if start == "base" and config.model is not None:
        return {"checkpoint": Path(_NO_BASE)}, Path(_NO_BASE)  # enough for a plan; a run is refused
    if start == "base":
        more = ", or a flavour in its `model`" if entry == "pretrain" else ""
        raise ValueError(f"{where}: base: expected the folder of a model in the pipeline's `base`{more}, found nothing")
    if "/" in start:
        return {"checkpoint": Path(start)}, Path(start)
    _require_earlier(start, earlier, where)
    return {"checkpoint": Path(config.run.dir) / start / "final"}, None


def _require_earlier(name: str, earlier: Sequence[StagePlan], where: str) -> None:
    names = [stage.name for stage in earlier if stage.writes_model]
    if name not in names:
        known = ", ".join(names) or "none"
        raise ValueError(f"{where}: expected base, a folder, or an earlier stage ({known}), found {name!r}")


def _evaluations(config: PipelineConfig, stages: Sequence[StagePlan]) -> dict[str, StagePlan]:
    evaluation = config.evaluation
    if not evaluation.inputs:
        return {}
    models = [stage.name for stage in stages if stage.writes_model]
    if unknown := [name for name in evaluation.after if name not in models]:
        raise ValueError(
            f"evaluation.after: expected stages that write a model ({', '.join(models)}), found {unknown[0]!r}"
        )
    planned = {}
    _refuse_owned(evaluation.overrides, "evaluation.overrides", ["checkpoint"])
    for name in evaluation.after or models:
        values, files = _inputs(config, evaluation.inputs, stages, "evaluation")
        values["checkpoint"] = Path(config.run.dir) / name / "final"
        overrides = [assign(key, value) for key, value in values.items()]
        overrides += [*_common(config, _EVALUATE, name), *evaluation.overrides]
        files |= {RECIPE: file} if (file := recipe_file(overrides)) else {}
        reads = _reads(config, values, {}, stages)
        planned[name] = StagePlan(name, _EVALUATE, command_of(_EVALUATE), overrides, "evaluation", files, reads=reads)
        planned[name] = replace(planned[name], config=_checked(planned[name], config.action.starts))
    return planned
