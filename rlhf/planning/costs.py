"""Estimate a supervised stage of a pipeline from its settings, and the disk that the checkpoints of a stage take.

Amounts that depend on rows that nobody has read, and that no setting bounds, are said to be unknown, with the reason.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import ceil

import torch

from model.config import Device, SailVL2Config
from model.data.config import StreamConfig
from model.engine.config import SupervisedConfig
from model.engine.parts import Costs
from model.engine.planning.estimate import Job, MicroBatch, Sizes, memory, update_seconds
from model.engine.planning.fitting import job_of
from model.engine.planning.machines import GIB, Machine
from model.lora.config import LoraConfig
from rlhf.config import RlConfig
from rlhf.planning.step import spread_of

_BILLION = 10**9


def supervised_lines(
    settings: SupervisedConfig,
    shapes: SailVL2Config,
    machine: Machine,
    gpus: int,
    nodes: int,
    maker: str = "",
) -> list[str]:
    """Memory of a GPU, tokens, operations and GPU hours of a supervised stage, each with what it rests on.

    `maker`: the earlier stage that writes its rows, "" where they lie there before. `ValueError` for an engine that
    does not fit so many GPUs.
    """
    if getattr(getattr(settings, "trainer", None), "name", "") == "trl":
        return ["not estimated: trainer=trl trains with TRL on the CPU, which the estimator does not know"]
    job = _job(settings, shapes, machine, gpus, nodes)
    found = memory(job)
    fits = "it fits" if found.total <= machine.memory else "it does not fit"
    size = settings.engine.micro_batch_tokens
    return [
        f"{job.spread.ranks} x {machine.name}: {found.total / GIB:.1f} of {machine.memory / GIB:.1f} GiB, {fits}; "
        f"assumed: micro-batches of {size:,} text tokens in one row, half of them trained; images and longer "
        "rows need more",
        *_amounts(settings, shapes, machine, job, maker),
    ]


def _job(settings: SupervisedConfig, shapes: SailVL2Config, machine: Machine, gpus: int, nodes: int) -> Job:
    device = torch.device("cuda" if machine.is_gpu and settings.engine.device is not Device.cpu else "cpu")
    spread = spread_of(settings.engine, gpus, nodes)
    return replace(job_of(settings.engine, shapes, settings.adapter, device, spread.ranks), spread=spread)


def _amounts(settings: SupervisedConfig, shapes: SailVL2Config, machine: Machine, job: Job, maker: str) -> list[str]:
    """Tokens, operations and GPU hours: of a billion tokens, and of the stage where its settings bound them."""
    size, ranks, steps = settings.engine.micro_batch_tokens, job.spread.ranks, settings.max_steps
    per_token, hours_per_token = _of_a_token(job, shapes, machine)
    step = update_seconds(replace(job, num_batches=1), machine).step
    lines = [
        f"a billion packed tokens: {per_token * _BILLION:.2e} FLOPs and {hours_per_token * _BILLION:,.1f} GPU hours, "
        f"and {step:.3f} s of every update for clipping and AdamW; assumed: rows of that length, so attention "
        "costs more than with shorter ones; no images; FLOPs count no layer twice, hours do where layers are recomputed"
    ]
    if num_batches := _streamed(settings):
        tokens = num_batches * size
        seconds = update_seconds(replace(job, num_batches=ceil(num_batches / ranks)), machine).total
        lines.append(
            f"an update: at most {tokens:,} tokens (data.micro_batches_per_step x engine.micro_batch_tokens), "
            f"{per_token * tokens:.2e} FLOPs, {seconds:,.1f} s"
        )
        if steps:
            lines.append(
                f"in all: at most {steps * tokens:,} tokens in {steps:,} updates, {per_token * steps * tokens:.2e} "
                f"FLOPs, {seconds * steps * ranks / 3600:,.1f} GPU hours"
            )
        else:
            lines.append(f"in all: not known: {_unread(maker)}; max_steps would bound the updates")
        return lines
    completions, longest = getattr(settings, "batch_size", 0), shapes.language.max_position_embeddings
    if steps and completions:
        tokens = steps * completions * longest
        alone = longest // 2  # tokens that train of a row that takes all positions; a row longer than `size` is alone
        batch = MicroBatch(longest - alone, 1, alone)
        per_token, hours_per_token = _of_a_token(replace(job, batch=batch) if longest > size else job, shapes, machine)
        hours = tokens * hours_per_token + steps * ranks * step / 3600
        lines.append(
            f"in all: at most {tokens:,} tokens, {per_token * tokens:.2e} FLOPs and {hours:,.1f} GPU hours, the vision "
            f"tower apart: {steps:,} updates of {completions:,} completions of which each takes all {longest:,} "
            f"positions; how long they are is not known: {_unread(maker)}"
        )
    else:
        lines.append(f"in all: tokens, FLOPs and GPU hours are not known: {_unread(maker)}; max_steps would bound them")
    return lines


def _of_a_token(job: Job, shapes: SailVL2Config, machine: Machine) -> tuple[float, float]:
    """Return the FLOPs and the GPU hours of a token of the job's micro-batches, clipping and AdamW apart."""
    passes = 3.0 if job.sizes.trained == job.sizes.total else 2.0 + job.sizes.trained / job.sizes.total
    operations = passes * job.batch.operations(Costs.of(shapes), shapes.num_image_tokens)
    one = update_seconds(replace(job, num_batches=1), machine)
    return operations / job.batch.tokens, (one.compute + one.traffic) / job.batch.tokens / 3600


def _streamed(settings: SupervisedConfig) -> int:
    """Micro-batches of an update, where the rows come as a stream of packed ones; else 0."""
    data = getattr(settings, "data", None)
    return data.micro_batches_per_step if isinstance(data, StreamConfig) else 0


def _unread(maker: str) -> str:
    return f"stage {maker} writes the rows" if maker else "a plan reads no rows"


def disk_line(settings: SupervisedConfig | RlConfig, shapes: SailVL2Config) -> str:
    """Say what the checkpoints and models of a stage take on the disk at most."""
    run, sizes = settings.run, Sizes.of(shapes, settings.engine.freeze, settings.adapter)
    is_adapted = isinstance(settings.adapter, LoraConfig)
    checkpoint = 12 * sizes.trained if is_adapted else 4 * sizes.total + 8 * sizes.trained
    what = "float32 adapters and their moments" if is_adapted else "float32 weights and AdamW's moments"
    if isinstance(settings, RlConfig) and settings.algorithm.kl.refresh_every:
        checkpoint += 4 * sizes.total
        what += ", weights of the reference"
    dtype = shapes.stored_dtype(settings.dtype)
    # A folder holds a tied head twice, once under each name; adapters lie in a folder of their own beside the model.
    weights = sizes.total - sizes.adapters + (sizes.head if sizes.is_tied else 0)
    model = weights * (4 if dtype == "float32" else 2) + 4 * sizes.adapters
    held_out = settings.evaluation.prompts if isinstance(settings, RlConfig) else settings.evaluation.data
    names = ["final", *(["best"] if held_out else [])]
    exports = run.keep_checkpoints + 1 if run.export_checkpoints else 0
    kept = run.keep_checkpoints + 1
    total = kept * checkpoint + (len(names) + exports) * model
    return (
        f"disk: at most {total / GIB:,.1f} GiB: {kept} checkpoints of {checkpoint / GIB:,.1f} ({what}; "
        f"run.keep_checkpoints={run.keep_checkpoints}, and one while it is written), {' and '.join(names)} of "
        f"{model / GIB:,.1f} each in {dtype}"
        + (f", {exports} exports of the same size" if exports else "")
        + "; logs, rollouts and media come on top and are not known"
    )


def makers_of(reads: Iterable[str]) -> str:
    """Names of the stages that write what another reads, such as `longcot_data/demonstrations.jsonl`."""
    return " and ".join(sorted({one.partition("/")[0] for one in reads}))
