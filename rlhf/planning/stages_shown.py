"""The lines of `action=plan`: what each stage of a pipeline would do, from its command line and its own settings."""

from collections.abc import Sequence
from pathlib import Path

from conf.cli import assign, load_config
from model.config import Tower
from model.data.config import StreamConfig
from model.engine.config import AdaLrsConfig, EngineConfig, OptimizerConfig, SupervisedConfig
from rlhf.config import PipelineConfig, RlConfig
from rlhf.planning.stages import StagePlan, check_starts, known_shapes, launcher_of


def plan_lines(config: PipelineConfig, stages: Sequence[StagePlan], evaluations: dict[str, StagePlan]) -> list[str]:
    """Lines for a person: the model, then each stage with its command, rate, towers, lengths, figures and inputs.

    Nothing has to be there for a plan; what is missing is said, because `action=run` refuses it.
    """
    counts = _parameters(config)
    lines = [_of_model(config, counts, stages)]
    for number, stage in enumerate(stages, 1):
        begin = " ".join(launcher_of(config, stage)) or "python"
        lines += ["", f"{number}. {stage.name}: {begin} {' '.join(stage.command)}"]
        match stage.config:
            case SupervisedConfig() | RlConfig() as settings:
                lines.append(f"   trains    {_trained(settings.engine, counts)}")
                lines.append(f"   rate      {_rate(settings.optimizer)}{_search(settings)}")
                lines.append(f"   length    {_length(settings)}")
        if stage.report:
            lines.append(f"   report    {stage.report}")
        lines += [f"   costs     {line}" for line in cost_lines(config, stage)]
        lines += [f"   {line}" for line in _inputs(stage)]
        if stage.name in evaluations:
            lines.append(f"   then      python {' '.join(evaluations[stage.name].command)}")
            lines += [f"   {line}" for line in _inputs(evaluations[stage.name])]
    everything = [
        path for one in (*stages, *evaluations.values()) for path in (*one.files.values(), *one.sources.values())
    ]
    missing = sum(not path.exists() for path in set(everything))
    written = f", but for what {config.prepare} writes before the first stage" if config.prepare_command else ""
    verdict = (
        f"{missing} are missing{written}; action=run refuses to start without them" if missing else "are all there"
    )
    return [*lines, "", f"inputs that no stage writes: {verdict}"]


_NOT_ESTIMATED = ("checkpoint", "prompts", "evaluation.prompts", "engine.num_threads")


def cost_lines(config: PipelineConfig, stage: StagePlan) -> list[str]:
    """Memory of a GPU, time, GPU hours and disk of a stage that trains by the estimator, with what that rests on.

    None where the plan names no kind of GPU or no model.
    """
    from rlhf.estimate import facts, shapes_of, verdict
    from rlhf.planning.costs import disk_line

    machine, shapes = config.machine, known_shapes(config)
    if machine.gpu is None or shapes is None:
        return []
    if isinstance(stage.config, SupervisedConfig):
        return _supervised_costs(config, stage, stage.config)
    if not isinstance(stage.config, RlConfig):
        return []
    kept = [
        override
        for override in stage.overrides
        if (key := override.partition("=")[0]) not in _NOT_ESTIMATED and not key.startswith(("run.", "report."))
    ]
    where = [f"gpu={machine.gpu.value}", f"gpus={machine.gpus}", f"nodes={machine.nodes}", _model(config)]
    try:
        estimated, _ = load_config("estimate", [*kept, *where])
        found = facts(estimated, shapes_of(estimated))
    except ValueError as error:
        return [f"not estimated: {error}"]
    steps = stage.config.trainer.max_steps
    hours = found["seconds_of_step"] * steps * found["processes"] / 3600
    total = f", {steps} steps: {hours:,.0f} GPU hours" if steps else ", so many steps as one pass over the prompts has"
    return [
        f"{found['processes']} x {found['machine']}: {found['needed_gib']:.1f} of {found['memory_of_gpu_gib']} GiB, "
        f"{verdict(found)}",
        f"{found['seconds_of_step']:,.0f} s a step at {found['tokens_per_second']:,} tokens a second, every completion "
        f"at its limit{total}",
        found["checked"],
        *(f"never measured: {one}" for one in found["never_measured"]),
        disk_line(stage.config, shapes),
    ]


def _supervised_costs(config: PipelineConfig, stage: StagePlan, settings: SupervisedConfig) -> list[str]:
    """The same of a stage of supervised training."""
    from rlhf.estimate import CHECKED, CHECKED_ON_CPU, machine_of, updates_never_measured
    from rlhf.planning.costs import disk_line, makers_of, supervised_lines

    machine, shapes = config.machine, known_shapes(config)
    assert machine.gpu is not None and shapes is not None
    where = [f"gpu={machine.gpu.value}", f"gpus={machine.gpus}", f"nodes={machine.nodes}", _model(config)]
    makers = makers_of(path for path in stage.reads if not path.endswith("/final"))
    try:
        kind, _ = load_config("estimate", [*where, f"engine={settings.engine.name}"])
        device = machine_of(kind)
        found = supervised_lines(settings, shapes, device, machine.gpus, machine.nodes, makers)
    except ValueError as error:
        return [f"not estimated: {error}", disk_line(settings, shapes)]
    if len(found) > 1:
        unmeasured = updates_never_measured(kind, settings.engine, settings.adapter, device.is_gpu)
        found.append(CHECKED if device.is_gpu else CHECKED_ON_CPU)
        found.append(f"never measured: {'; '.join(['a supervised stage as a whole', *unmeasured])}")
    return [*found, disk_line(settings, shapes)]


def _model(config: PipelineConfig) -> str:
    """The setting of the estimate that names the model of a pipeline."""
    return f"model={config.model.value}" if config.model is not None else assign("checkpoint", Path(config.base))


def _of_model(config: PipelineConfig, counts: dict[str, int], stages: Sequence[StagePlan]) -> str:
    known = f", {sum(counts.values()):,} parameters" if counts else ""
    if config.base:
        return f"model: starts from {config.base}{known}"
    if config.model is not None:
        try:
            check_starts(config, stages)
        except ValueError as error:
            return f"model: shapes of {config.model.value}{known}; action=run refuses to start from it: {error}"
        return f"model: {config.model.value}{known}, built from random weights"
    return "model: what the recipes of the stages say"


def _parameters(config: PipelineConfig) -> dict[str, int]:
    """Tower -> parameters that train when it does; empty where the pipeline names no model that can be looked at."""
    from model.describe import describe

    shapes = known_shapes(config)
    if shapes is None:
        return {}
    return {name: tower["trainable"] for name, tower in describe(shapes)["towers"].items()}


def _trained(engine: EngineConfig, counts: dict[str, int]) -> str:
    towers = [tower for tower in Tower if tower not in engine.freeze]
    names = ", ".join(tower.name for tower in towers)
    trained = f": {sum(counts[tower.name] for tower in towers):,} parameters" if counts else ""
    return ("all towers" if len(towers) == len(Tower) else f"{names} alone") + trained


def _rate(optimizer: OptimizerConfig) -> str:
    warmup = f", {optimizer.warmup_steps} updates of warm-up" if optimizer.warmup_steps else ""
    return f"{optimizer.learning_rate:g}, {optimizer.schedule.value}{warmup}"


def _search(settings: SupervisedConfig | RlConfig) -> str:
    """The search of the rate, where there is one."""
    search = getattr(settings, "adalrs", AdaLrsConfig())
    return f", searched by AdaLRS in windows of {search.window} updates" if search.window else ""


def _length(settings: SupervisedConfig | RlConfig) -> str:
    length = settings.engine.micro_batch_tokens
    data = getattr(settings, "data", None)
    rows = data.micro_batches_per_step if isinstance(data, StreamConfig) else 0
    return f"{length:,} tokens a packed row" + (f", {rows} rows and {rows * length:,} tokens an update" if rows else "")


def _inputs(stage: StagePlan) -> list[str]:
    """One line for each file or folder that must be there."""
    files = {**stage.files, **stage.sources}
    return [f"reads     {path}: {'there' if path.exists() else 'missing'} ({key})" for key, path in files.items()]
