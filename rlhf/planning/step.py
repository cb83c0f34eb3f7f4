"""Estimate a step of RL: memory of a GPU and of the host, seconds by part, and what to change where it does not fit."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import combinations
from math import ceil
from typing import Any

from model.config import MoeLanguageConfig, SailVL2Config
from model.engine.config import DeepspeedConfig, EngineConfig, FsdpConfig, ShardedConfig, require_for_deepspeed
from model.engine.parts import Costs
from model.engine.planning.estimate import Job, Memory, MicroBatch, Sizes, Spread, memory, pass_seconds, update_seconds
from model.engine.planning.machines import Machine
from model.lora.config import LoraConfig
from rlhf.algorithms.algorithm import Algorithm
from rlhf.planning.config import EstimateConfig
from rollouts.config import Placement, RolloutConfig, VllmRolloutConfig

SAMPLER_BANDWIDTH = 0.5  # share of the memory's bytes a second that decoding reaches; with the next, fitted on an H200
SAMPLER_LAYER_SECONDS = 28e-6  # time that a layer takes for a token whatever its size
CHECKSUM_RATE = 4.1e9  # bytes a second of CRC-32, measured on the two cores of benchmarks/RESULTS.md
WRITE_RATE = 1.8e9  # bytes a second that a rank hashes and writes, measured there


Change = Callable[[EstimateConfig], EstimateConfig]


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step with the completions at their limit."""

    sampling: float
    scores: float
    update: float
    sync: float
    save: float

    @property
    def total(self) -> float:
        return sum(getattr(self, one.name) for one in fields(self))


@dataclass(frozen=True)
class Estimate:
    """The needs of a run."""

    job: Job
    machine: Machine
    memory: Memory
    sampler: float  # bytes of a sampler's weights on the trainer's GPU
    keys: float  # bytes of its keys and values
    seconds: StepTime
    tokens: int  # that a step trains
    processes: int
    utilisation: float  # share of the data sheet's FLOP/s, by the trainer, in its updates

    @property
    def needed(self) -> float:
        """Bytes of a GPU at the worst moment."""
        return max(self.memory.total + self.sampler, self.memory.certain + self.sampler + self.keys)

    @property
    def fits(self) -> bool:
        return self.needed <= self.machine.memory


def spread_of(config: EngineConfig, gpus: int, nodes: int) -> Spread:
    """How the engine of a config spreads a model over so many GPUs. `ValueError` where replicas do not divide them."""
    if not isinstance(config, ShardedConfig):
        return Spread()
    ranks = gpus * nodes
    if ranks % config.replicas:
        raise ValueError(f"engine.replicas: expected a divisor of the {ranks} processes, found {config.replicas}")
    own: dict[str, Any] = {}
    if isinstance(config, FsdpConfig):
        own = {"offload_moments": config.offload_moments, "reduce_each": config.reduce_each}
    if isinstance(config, DeepspeedConfig):
        own = {"offload_moments": config.offload_optimizer, "stage": config.stage}
    return Spread(True, ranks, config.replicas, gpus, **own)


def micro_batch(config: EstimateConfig, shapes: SailVL2Config) -> tuple[MicroBatch, int]:
    """The largest micro-batch of rows at their limits, and how many of them hold the groups of an update.

    A group that is larger than engine.micro_batch_tokens becomes pieces that repeat the prompt.
    """
    prompt, completion = config.rollouts.max_prompt_tokens, config.rollouts.max_completion_tokens
    group, budget = config.algorithm.group_size, config.engine.micro_batch_tokens
    groups = max(1, min(config.trainer.groups_per_step, config.trainer.mini_batch_size // group))
    tiles = int(prompt * config.visual_share) // shapes.num_image_tokens
    per_piece = min(group, max(1, (budget - prompt) // completion))
    per_batch = max(1, budget // (prompt + group * completion)) if per_piece == group else 1
    pieces = ceil(group / per_piece)
    batch = MicroBatch(prompt, per_piece, completion, tiles, min(per_batch, groups))
    return batch, ceil(groups * pieces / per_batch)


def job_of(config: EstimateConfig, shapes: SailVL2Config, has_reference: bool, on_gpu: bool) -> Job:
    batch, batches = micro_batch(config, shapes)
    spread = spread_of(config.engine, config.gpus, config.nodes)
    return Job(
        config=shapes,
        batch=batch,
        num_batches=ceil(batches / spread.ranks),
        spread=spread,
        checkpointing=config.engine.gradient_checkpointing,
        on_gpu=on_gpu,
        freeze=tuple(config.engine.freeze),
        adapter=config.adapter,
        has_reference=has_reference,
    )


def estimate(config: EstimateConfig, shapes: SailVL2Config, algorithm: Algorithm, machine: Machine) -> Estimate:
    """The estimate of a config whose limits fit the model."""
    job = job_of(config, shapes, algorithm.needs_reference, machine.is_gpu)
    language, trainer, rollouts = shapes.language, config.trainer, config.rollouts
    processes = job.spread.ranks
    rows = max(1, min(rollouts.max_rows, trainer.groups_per_step * config.algorithm.group_size))
    samplers = rollouts.pool.workers if rollouts.pool.is_apart else processes
    rows = ceil(rows / samplers)
    width = job.width
    sampled = job.sizes.total * width
    row_keys = 2 * width * language.num_hidden_layers * language.num_key_value_heads * language.head_dim
    prompts = ceil(rows / config.algorithm.group_size)
    keys = row_keys * (prompts * rollouts.max_prompt_tokens + rows * rollouts.max_completion_tokens)
    is_here = rollouts.pool.placement in (Placement.trainer, Placement.ranks) or (
        rollouts.name == "embedded" and machine.is_gpu
    )
    # Our own sampler of the engine in one process reads the engine's weights; any other has its own.
    is_shared = rollouts.name == "embedded" and not job.spread.is_sharded
    seconds, utilisation = _seconds(config, job, machine, algorithm.needs_reference, samplers, rows)
    group = rollouts.max_prompt_tokens + config.algorithm.group_size * rollouts.max_completion_tokens
    return Estimate(
        job=job,
        machine=machine,
        memory=memory(job),
        sampler=float(sampled) if is_here and not is_shared else 0.0,
        keys=float(keys) if is_here else 0.0,
        seconds=seconds,
        tokens=trainer.groups_per_step * group,
        processes=processes,
        utilisation=utilisation,
    )


def _seconds(
    config: EstimateConfig, job: Job, machine: Machine, has_reference: bool, samplers: int, rows: int
) -> tuple[StepTime, float]:
    """Seconds of a step, and the share of the machine's peak that the updates reach."""
    shapes, trainer, rollouts = job.config, config.trainer, config.rollouts
    update = update_seconds(job, machine).total
    updates = config.updates_per_step
    per_pass = updates // trainer.passes
    forward = sum(pass_seconds(job, machine, 1.0)) * job.num_batches * per_pass
    scores = forward * ((1 if updates > 1 else 0) + (1 if has_reference else 0))
    completions = trainer.groups_per_step * config.algorithm.group_size
    sampling = ceil(completions / (samplers * rows)) * sampling_seconds(
        job, machine, rows, config.algorithm.group_size, rollouts.max_prompt_tokens, rollouts.max_completion_tokens
    )
    sync = job.sizes.total * job.width / CHECKSUM_RATE
    stored = 12 * job.sizes.trained / job.spread.shards
    save = stored / WRITE_RATE / max(1, config.run.save_every)
    operations = 3 * job.batch.operations(Costs.of(shapes), shapes.num_image_tokens) * job.num_batches
    return StepTime(sampling, scores, updates * update, sync, save), operations / update / machine.peak


def sampling_seconds(job: Job, machine: Machine, rows: int, group: int, prompt: int, completion: int) -> float:
    """Seconds in which `rows` completions of a sampler come to an end together, their prompts' pass included."""
    language, width = job.config.language, job.width
    prompts = ceil(rows / group)
    tiles = job.batch.tiles
    prefill = replace(job, batch=MicroBatch(prompt, 0, 0, tiles), spread=Spread())
    seconds = prompts * pass_seconds(prefill, machine, 1.0)[0]
    costs = Costs.of(job.config)
    active = (costs.token + costs.target) / 2 * width
    row_keys = 2 * width * language.num_hidden_layers * language.num_key_value_heads * language.head_dim
    read = active + row_keys * (prompts * prompt + rows * completion / 2)
    products = rows * (costs.token + costs.target) / (machine.peak * 0.5)
    bandwidth = machine.bandwidth * SAMPLER_BANDWIDTH
    step = max(read / bandwidth, products) + language.num_hidden_layers * SAMPLER_LAYER_SECONDS
    return seconds + completion * step


def changes(config: EstimateConfig) -> Iterator[tuple[str, EstimateConfig]]:
    """(keys to set, the config with them): every set of the changes that save memory, those of fewest keys first."""
    known = list(_single_changes(config))
    for count in range(1, len(known) + 1):
        for chosen in combinations(known, count):
            changed = config
            for _, change in chosen:
                changed = change(changed)
            yield " ".join(keys for keys, _ in chosen), changed


def _single_changes(config: EstimateConfig) -> Iterator[tuple[str, Change]]:
    """The mildest first. Those of engines of several processes stand only where one is chosen or possible."""
    engine, rollouts = config.engine, config.rollouts
    if not engine.gradient_checkpointing:
        yield "engine.gradient_checkpointing=true", _with_engine(gradient_checkpointing=True)
    if not isinstance(engine, ShardedConfig) and config.gpus * config.nodes > 1:
        yield "engine=fsdp", _sharded
    if isinstance(engine, FsdpConfig) and not engine.offload_moments:
        yield "engine.offload_moments=true", _with_engine(offload_moments=True)
    least = rollouts.max_prompt_tokens + rollouts.max_completion_tokens
    if engine.micro_batch_tokens > least:
        yield f"engine.micro_batch_tokens={least}", _with_engine(micro_batch_tokens=least)
    rows = max(rollouts.max_rows // 4, config.algorithm.group_size)
    if rows < rollouts.max_rows:
        yield (
            f"rollouts.max_rows={rows}",
            lambda one: replace(one, rollouts=replace(one.rollouts, max_rows=rows)),
        )
    if rollouts.name == "embedded" and (isinstance(engine, ShardedConfig) or config.gpus * config.nodes > 1):
        yield "rollouts=vllm", _with_vllm  # on GPUs of its own
    if not isinstance(config.adapter, LoraConfig):
        yield "adapter=lora", lambda one: replace(one, adapter=LoraConfig())
    if isinstance(engine, ShardedConfig):
        yield f"nodes={2 * config.nodes}", lambda one: replace(one, nodes=2 * one.nodes)


def _with_engine(**values: Any) -> Change:
    return lambda one: replace(one, engine=replace(one.engine, **values))


def _sharded(config: EstimateConfig) -> EstimateConfig:
    own = {name: value for name, value in vars(config.engine).items() if name != "name"}
    return replace(config, engine=FsdpConfig(**own))


def _with_vllm(config: EstimateConfig) -> EstimateConfig:
    names = {one.name for one in fields(RolloutConfig)} - {"name", "pool"}
    return replace(config, rollouts=VllmRolloutConfig(**{name: getattr(config.rollouts, name) for name in names}))


def advice(
    config: EstimateConfig, shapes: SailVL2Config, algorithm: Algorithm, machine: Machine
) -> tuple[str, Estimate] | None:
    """The mildest change that fits, found by trying; None where none of those tried does."""
    for keys, changed in changes(config):
        with suppress(ValueError):
            require_possible(changed, shapes)
            found = estimate(changed, shapes, algorithm, machine)
            if found.fits:
                return keys, found
    return None


def require_possible(config: EstimateConfig, shapes: SailVL2Config) -> None:
    """`ValueError` for what a run with this config would refuse."""
    has_experts = isinstance(shapes.language, MoeLanguageConfig)
    require_for_deepspeed(config.engine, has_experts, isinstance(config.adapter, LoraConfig))


def parameters_text(sizes: Sizes) -> str:
    return f"{sizes.total:,} parameters, {sizes.trained:,} of them trained"
