"""Training with moments, gradients and weights sharded over processes, by DeepSpeed's ZeRO.

DeepSpeed adds gradients up and keeps each process's part of them; clipping, AdamW, the decision to skip an update, and
checkpoints are those of the other engines. It is driven through its optimizer's own fields, so its version is pinned.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.batch import ModelInputs
from model.config import MoeLanguageConfig, Tower
from model.engine.base import StepResult
from model.engine.config import DeepspeedConfig, OptimizerConfig, require_for_deepspeed
from model.engine.device import free_memory, pick_dtype, prepare_cpu
from model.engine.fsdp import FsdpScorer, fill_shards, sharded_model
from model.engine.ranks import Ranks
from model.engine.sharded import ShardedEngine, ShardedScorer, layers_of
from model.engine.shards import MOMENTS, WEIGHTS, Shard, StoredShards, write_shards
from model.engine.source import ModelSource, Rows
from model.engine.updates import UpdateCount
from model.engine.zero_groups import (
    KINDS,
    Fragment,
    GroupedAdamW,
    copy_part,
    decay_groups,
    key_of,
    read_rows,
    tower_of,
)
from model.lora.adapters import is_adapted
from model.lora.merge import merged_tensors
from model.run.manifest import Digests
from model.sail_vl2 import SailVL2

dist: Any = torch.distributed
_BUCKET = 200_000_000
"""Elements of a buffer in which gradients of several tensors are added up at once."""


class DeepspeedEngine(ShardedEngine):
    """Do one process's part of `TrainEngine`'s verbs, by DeepSpeed."""

    def __init__(
        self,
        ranks: Ranks,
        source: ModelSource,
        config: DeepspeedConfig,
        optimizer: OptimizerConfig,
        total_steps: int,
        temperature: float = 1.0,
        barred_ids: Sequence[int] | None = None,
    ) -> None:
        """`total_steps` optimizer updates shape the schedule; `temperature` and `barred_ids` are the sampler's."""
        prepare_cpu(config.num_threads)
        self.ranks, self.config, self.optimizer_config = ranks, config, optimizer
        self._dtype = pick_dtype(config.compute_dtype, ranks.device)
        self.model, rows = whole_model(source, config, self._dtype)
        self._shapes = {name: tuple(one.shape) for name, one in self.model.named_parameters()}
        self._shape_of = {id(one): tuple(one.shape) for one in self.model.parameters()}
        self._group_key = {name: (tower_of(name), one.dim() >= 2) for name, one in self.model.named_parameters()}
        self.model.freeze(config.freeze)
        self.model.checkpoint_gradients(config.gradient_checkpointing)
        self._optimizer = GroupedAdamW(decay_groups(self.model, optimizer.weight_decay), optimizer)
        self._engine = _initialised(self.model, self._optimizer, self._settings(), ranks)
        self._zero: Any = self._engine.optimizer
        self._optimizer.begin(self._flats)
        self._fragments = self._found_fragments()
        if self._dtype is torch.bfloat16:  # DeepSpeed has rounded the float32 weights, too
            self._fill_weights(lambda name, shard: rows(name, shard.start, shard.stop))
        self._take_over_norm()
        self._mark_layers()
        attention = config.attention_kernel
        self._scorer = ShardedScorer(
            self.model, ranks, self._dtype, temperature, barred_ids, attention, forward=self._engine
        )
        self._updates = UpdateCount(config, optimizer, total_steps, self._dtype)
        self._loss_is_finite = True
        self._measured = 0.0, True, [0.0] * len(Tower)  # norm, whether to update, norms of the towers

    def described(self) -> list[str]:
        """Say in a few lines what trains, where, and what it takes of the memory of each process for sure."""
        ranks, stage = self.ranks, self.config.stage
        total = sum(math.prod(shape) for shape in self._shapes.values())
        trained = sum(math.prod(self._shapes[name]) for name, _ in self._trained())
        held = total * self._dtype.itemsize / (ranks.num_ranks if stage == 3 else 1)
        held += 4 * trained / (ranks.num_ranks if stage > 1 else 1)
        optimizer = 12 * trained / ranks.num_ranks
        is_on_host = self.config.offload_optimizer
        on_host = f" and {optimizer / 2**30:.2f} GiB on the host" if is_on_host else ""
        held += 0 if is_on_host else optimizer
        frozen = ", ".join(tower.value for tower in self.config.freeze)
        sharded = {1: "moments", 2: "moments and gradients", 3: "moments, gradients and weights"}[stage]
        threads = f" with {self.config.num_threads} threads" if ranks.device.type == "cpu" else ""
        return [
            f"{total:,} parameters, {f'{trained:,} of them trained, frozen: {frozen}' if frozen else 'all trained'}",
            f"engine: deepspeed, ZeRO stage {stage}, {sharded} sharded over {ranks.num_ranks} processes",
            f"device: {ranks.device}{threads}, computing in {str(self._dtype).removeprefix('torch.')}",
            f"memory: {held / 2**30:.2f} GiB a process for its part of weights, gradients and AdamW's moments"
            f"{on_host}; buffers, activations, samplers and a reference come on top; "
            f"{free_memory(ranks.device) / 2**30:.1f} GiB free here",
        ]

    def step(self, rate_scale: float = 1.0) -> StepResult:
        """Clip, check, update at so many times the scheduled rate, and clear the gradient."""
        learning_rate = self._updates.learning_rate(rate_scale)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._measured = 0.0, True, [0.0] * len(Tower)
        if any(group["is_touched"] for group in self._optimizer.param_groups):
            self._engine.step()
        norm, applied, towers = self._measured
        self._loss_is_finite = True
        self._forget_gradients()
        self._updates.add(applied, norm)
        return StepResult(learning_rate, norm, applied, {t.value: v for t, v in zip(Tower, towers, strict=True)})

    @torch.no_grad()
    def embeddings(self, inputs: ModelInputs) -> Tensor:
        """The input of the decoder; of sharded weights it is caught within a whole forward pass, which gathers them."""
        if self.config.stage < 3:
            return self.model.embed(inputs.to(self.ranks.device))
        caught: list[Tensor] = []
        layer = self.model.language_model.model.layers[0]
        hook = layer.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0]))
        try:
            self._scorer.scores(inputs.to(self.ranks.device))
        finally:
            hook.remove()
        return caught[0]

    def frozen(self) -> FsdpScorer:
        """A scorer with a copy of the present weights, which FSDP2 shards whatever the stage."""
        config, device = self.model.config, self.ranks.device
        copy = sharded_model(config, self.ranks, self._dtype, self._dtype, freeze=tuple(Tower))
        own = dict(self.model.named_parameters())
        wholes = ((name, self._whole(own[name])) for name, _ in copy.named_parameters())
        held: dict[str, Tensor] = {}

        def rows(name: str, start: int, stop: int) -> Tensor:
            return held[name][start:stop].to(device, self._dtype)

        for name, whole in wholes:  # every process gathers each, and keeps its rows
            held = {name: whole}
            fill_shards(copy, rows, only=name)
        return FsdpScorer(copy, self.ranks, self._dtype, *self._scorer.settings)

    def weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """(released name, whole tensor) sorted by name, on every process; one tensor is gathered at a time."""
        gather = self._whole if dtype in (None, self._dtype) else self._exact
        for name, tensor in merged_tensors(self.model, dtype or self._dtype, gather):
            self.ranks.watch.marks.one()
            yield name, tensor

    def export_adapters(self, folder: Path) -> None:
        """Do nothing: there are no adapters."""

    def check(self, folder: Path) -> None:
        super().check(folder)
        moments, counts = StoredShards(folder, MOMENTS), dict[tuple[Tower, bool], dict[str, float]]()
        for name, _ in self._trained():
            count = read_rows(moments, f"{name}/step", Shard.whole(torch.empty(()))).item()
            counts.setdefault(self._group_key[name], {})[name] = count
        for own in counts.values():
            first, *_ = own
            for name, count in own.items():
                if count != own[first]:
                    raise ValueError(
                        f"{folder}: expected as many updates of {name} as of {first}, {own[first]:g}, found {count:g}; "
                        "DeepSpeed has one count for all; go on with engine=fsdp or engine=local"
                    )

    def _before_micro_batch(self, is_last: bool, with_tiles: bool) -> None:
        for group in self._optimizer.param_groups:
            group["is_touched"] |= with_tiles or group["tower"] is Tower.language
        self._engine.train()

    def _backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def _settings(self) -> dict[str, Any]:
        """Return DeepSpeed's settings: float32 sums and communication, no accumulation and no files of its own."""
        size = min(_BUCKET, sum(math.prod(shape) for shape in self._shapes.values()))
        zero: dict[str, Any] = {"stage": self.config.stage, "overlap_comm": False, "reduce_bucket_size": size}
        if self.config.stage < 3:
            zero["allgather_bucket_size"] = size
        else:
            zero |= {f"stage3_{name}": 0 for name in ("param_persistence_threshold", "prefetch_bucket_size")}
        if self.config.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.ranks.device.type == "cuda"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,
            "gradient_clipping": self.optimizer_config.max_grad_norm,
            "communication_data_type": "fp32",
            "data_types": {"grad_accum_dtype": "fp32"},
            "bf16": {"enabled": self._dtype is torch.bfloat16, "check_grad_overflow": True},
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
        }

    @property
    def _flats(self) -> list[Tensor]:
        """The flat float32 parts that this process updates."""
        stage_3 = self.config.stage == 3
        return self._zero.fp32_partitioned_groups_flat if stage_3 else self._zero.single_partition_of_fp32_groups

    def _group_of(self, number: int) -> dict[str, Any]:
        """The group to which a flat part belongs."""
        own = self._zero.sub_group_to_group_id[number] if self.config.stage == 3 else number
        return self._optimizer.param_groups[own]

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, one) for name, one in self.model.named_parameters() if one.requires_grad)

    def _found_fragments(self) -> dict[int, Fragment]:
        """This process's part of each trained parameter, by its identity; none where it has no part."""
        found = {}
        for name, parameter in self._trained():
            if self.config.stage == 3:
                number, offset, length = self._zero.grad_position[self._zero.get_param_id(parameter)]
                start = self.ranks.rank * length
                length = min(length, math.prod(self._shapes[name]) - start)  # the last parts are filled up
            else:
                mapping = getattr(parameter, "_hp_mapping", None)
                if mapping is None:
                    continue
                number, place = mapping.param_group_index, mapping.lp_fragment_address
                start, length, offset = place.start, place.numel, mapping.hp_fragment_address.start
            if length > 0:
                flat = self._flats[number]
                state = self._optimizer.state[flat]
                moments = {kind: state[kind].narrow(0, offset, length) for kind in KINDS}
                weight = flat.detach().narrow(0, offset, length)
                found[id(parameter)] = Fragment(start, weight, moments, state["step"])
        return found

    def _take_over_norm(self) -> None:
        """Let this engine measure the gradient and decide about the update, in the midst of DeepSpeed's step."""
        if self.config.stage == 3:
            self._zero._get_norm_groups = lambda: [self._measure()]
        else:
            self._zero.scaled_global_norm = lambda norm_type=2: self._measure()
            self._zero.check_overflow = lambda partition_gradients=True: None

    def _measure(self) -> Tensor:
        """Norm of the whole gradient, by which DeepSpeed clips; infinity where the update is to be skipped."""
        towers = list(Tower)
        numbers = torch.zeros(len(towers) + 1, dtype=torch.float64)
        numbers[-1] = float(not self._loss_is_finite)
        for number, flat in enumerate(self._flats):
            group = self._group_of(number)
            if group["is_touched"]:
                own = [flat.grad] if self.config.offload_optimizer else self._zero.averaged_gradients[number]
                for gradient in own:
                    norm = torch.linalg.vector_norm(gradient, dtype=torch.float64).cpu()
                    numbers[towers.index(group["tower"])] += norm.square()
        numbers = numbers.to(self.ranks.device)
        dist.all_reduce(numbers)
        norm = numbers[:-1].sum().sqrt()
        applied = not numbers[-1].item() and math.isfinite(norm.item())
        self._measured = norm.item(), applied, numbers[:-1].sqrt().tolist()
        self.ranks.watch.marks.one()
        return norm.float() if applied else torch.full_like(norm, math.inf, dtype=torch.float32)

    def _forget_gradients(self) -> None:
        """Clear what DeepSpeed would add the next update's gradients to."""
        for group in self._optimizer.param_groups:
            group["is_touched"] = False
        if self.config.stage == 3:
            for kept in self._zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition.values():
                kept.zero_()

    @torch.no_grad()
    def _whole(self, parameter: nn.Parameter) -> Tensor:
        """A parameter in the type that computes; of sharded ones gathered, which all processes call at once."""
        if self.config.stage < 3:
            return parameter.detach()
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    @torch.no_grad()
    def _exact(self, parameter: nn.Parameter) -> Tensor:
        """A parameter in float32 as the optimizer has it; a frozen one as it computes."""
        return self._gathered(parameter, "weight") if parameter.requires_grad else self._whole(parameter).float()

    @torch.no_grad()
    def _gathered(self, parameter: nn.Parameter, kind: str) -> Tensor:
        """The float32 weight or moment of a trained parameter, from all processes: each gives its part, others 0."""
        shape = self._shape_of[id(parameter)]
        whole = torch.zeros(math.prod(shape), device=self.ranks.device)
        if (own := self._fragments.get(id(parameter))) is not None:
            part = own.weight if kind == "weight" else own.moments[kind]
            whole[own.start : own.start + len(part)].copy_(part)
        dist.all_reduce(whole)
        return whole.view(shape)

    def _wanted(self, name: str, parameter: nn.Parameter) -> Shard:
        """The rows, as a shape, that cover this process's part; of a frozen parameter all."""
        shape = self._shapes[name]
        if not parameter.requires_grad:
            return Shard(torch.empty(shape, device="meta"), 0, shape)
        own = self._fragments.get(id(parameter))
        if own is None:
            return Shard(torch.empty((0, *shape[1:]), device="meta"), shape[0], shape)
        row = math.prod(shape[1:])
        first, last = own.start // row, -(-(own.start + len(own.weight)) // row)
        return Shard(torch.empty((last - first, *shape[1:]), device="meta"), first, shape)

    def _weight_shards(self) -> dict[str, Shard]:
        return {name: self._wanted(name, one) for name, one in self.model.named_parameters()}

    def _moment_shards(self) -> dict[str, Shard]:
        found = {}
        for name, parameter in self._trained():
            found |= {f"{name}/{kind}": self._wanted(name, parameter) for kind in KINDS}
            found[f"{name}/step"] = Shard(torch.empty((), device="meta"), 0, ())
        return found

    def _write(self, folder: Path) -> Digests:
        """Write an equal share of the rows of each tensor, which all processes gather one after the other."""
        rank, num_ranks = self.ranks.rank, self.ranks.num_ranks
        parameters = dict(self.model.named_parameters())

        def share(count: int) -> slice:
            return slice(rank * count // num_ranks, (rank + 1) * count // num_ranks)

        def place(shape: tuple[int, ...]) -> Shard:
            own = share(shape[0])
            return Shard(torch.empty((own.stop - own.start, *shape[1:]), device="meta"), own.start, shape)

        def rows(kinds: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
            keys = [(name, "weight") for name in parameters] if not kinds else []
            keys += [(name, kind) for name, _ in self._trained() for kind in kinds]
            named = ((name if kind == "weight" else f"{name}/{kind}", name, kind) for name, kind in keys)
            for key, name, kind in sorted(named):
                self.ranks.watch.marks.one()
                if kind == "step":
                    yield key, self._steps_of(name)[0]
                    continue
                whole = self._exact(parameters[name]) if kind == "weight" else self._gathered(parameters[name], kind)
                yield key, whole[share(whole.shape[0])]

        weights = {name: place(self._shapes[name]) for name in parameters}
        moments = {f"{name}/{kind}": weights[name] for name, _ in self._trained() for kind in KINDS}
        moments |= {f"{name}/step": Shard(torch.empty(()), 0, ()) for name, _ in self._trained()}
        return {
            **write_shards(folder, WEIGHTS, weights, rank, num_ranks, rows(())),
            **write_shards(folder, MOMENTS, moments, rank, num_ranks, rows((*KINDS, "step"))),
        }

    def _steps_of(self, name: str) -> list[Tensor]:
        """Adam's counts for a parameter: those of the flat parts of its group, which are equal."""
        group = self._group_key[name]
        numbers = [n for n in range(len(self._flats)) if key_of(self._group_of(n)) == group]
        return [self._optimizer.state[self._flats[number]]["step"] for number in numbers]

    @torch.no_grad()
    def _fill(self, folder: Path) -> None:
        weights, moments = StoredShards(folder, WEIGHTS), StoredShards(folder, MOMENTS)
        self._fill_weights(lambda name, shard: read_rows(weights, name, shard))
        for name, parameter in self._trained():
            shard, own = self._wanted(name, parameter), self._fragments.get(id(parameter))
            if own is not None:
                for kind in KINDS:
                    copy_part(own.moments[kind], own.start, read_rows(moments, f"{name}/{kind}", shard), shard)
            for step in self._steps_of(name):
                step.copy_(read_rows(moments, f"{name}/step", Shard.whole(torch.empty(()))))

    @torch.no_grad()
    def _fill_weights(self, rows: Callable[[str, Shard], Tensor]) -> None:
        """Copy rows into this process's parts of the weights, and from there into the weights that compute."""
        if self.config.stage == 3:
            self._zero._partition_all_parameters()
        for name, parameter in self.model.named_parameters():
            shard = self._wanted(name, parameter)
            if own := self._fragments.get(id(parameter)):
                copy_part(own.weight, own.start, rows(name, shard), shard)
            elif not parameter.requires_grad and self.config.stage < 3:
                parameter.copy_(rows(name, shard))
            elif not parameter.requires_grad:
                held: Tensor = parameter.ds_tensor  # pyright: ignore[reportAttributeAccessIssue]
                start = self.ranks.rank * held.numel()
                length = max(0, min(held.numel(), math.prod(shard.shape) - start))
                copy_part(held.data[:length], start, rows(name, shard), shard)
        if self.config.stage < 3:
            self._zero.update_lp_params()
            return
        for number, flat in enumerate(self._flats):
            self._zero.fp16_partitioned_groups_flat[number].data.copy_(flat.data)
            self._zero._unflatten_partitioned_parameters(number)


def whole_model(source: ModelSource, config: DeepspeedConfig, dtype: torch.dtype) -> tuple[SailVL2, Rows]:
    """The model of a source in float32, in the memory of the host, and its rows; `dtype` computes.

    `ValueError` for what this engine does not do.
    """
    model_config, rows = source.open()
    if config.stage == 1 and dtype is torch.bfloat16:
        raise ValueError(
            "engine.stage: expected 2 or 3 with bfloat16, found 1; there DeepSpeed's ZeRO-1 keeps whole float32 "
            "gradients in another optimizer, and ZeRO-2 does the same in less memory"
        )
    if rows("language_model.model.norm.weight", 0, 1).dtype is torch.float64:
        raise ValueError(
            "engine: expected weights of float32 at most, found float64; DeepSpeed would "
            "make them float32 without a word; engine=fsdp and engine=local train in float64"
        )
    with torch.device("meta"):
        model = SailVL2(model_config)
    source.prepare(model)
    require_for_deepspeed(config, isinstance(model_config.language, MoeLanguageConfig), is_adapted(model))
    model.to_empty(device="cpu").float()
    model.language_model.tie()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(rows(name, 0, parameter.shape[0]))
    return model, rows


def _initialised(model: SailVL2, optimizer: GroupedAdamW, settings: dict[str, Any], ranks: Ranks) -> Any:
    """DeepSpeed's engine around a model. No compiler is called."""
    os.environ.setdefault("DS_ACCELERATOR", ranks.device.type)
    os.environ.setdefault("LOCAL_RANK", "0")
    import deepspeed

    # On a CPU it would compile an operation for processes that share memory, which takes minutes and a compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # pyright: ignore[reportAttributeAccessIssue]
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", r"`torch\.distributed\..* is deprecated", FutureWarning)  # DeepSpeed's own calls
    if settings["zero_optimization"]["stage"] == 3:
        deepspeed.utils.set_z3_leaf_modules(model, list({type(layer) for layer in layers_of(model)}))
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=settings,
        dist_init_required=False,  # pyright: ignore
    )
    if settings["zero_optimization"]["stage"] == 3:
        _settle_stage_3(model, engine.optimizer)
    return engine


def _settle_stage_3(model: SailVL2, zero: Any) -> None:
    """Make all processes gather the same weights in the same order, whatever the sizes of their tiles."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import ZeRoTraceMode

    preprocessor = model.vision_model.preprocessor
    for parameter in preprocessor.parameters():  # called once for each size of tiles: kept whole until the update
        parameter.is_external_param = True  # pyright: ignore[reportAttributeAccessIssue]
    # DeepSpeed records in which order modules run, and expects the same of all processes and later passes.
    coordinator = zero._get_param_coordinator()
    begin_anew = coordinator.reset_step

    def record_nothing() -> None:
        begin_anew()
        coordinator._PartitionedParameterCoordinator__trace_mode = ZeRoTraceMode.INVALID

    coordinator._PartitionedParameterCoordinator__trace_mode = ZeRoTraceMode.INVALID
    coordinator.reset_step = record_nothing
    # Their weights are read, and gathered then, by code that refuses hooks, or takes another way in their presence.
    for layer in (model.language_model.lm_head, preprocessor.patchifier.proj):
        layer._forward_hooks.clear()
        layer._forward_pre_hooks.clear()
        layer._backward_hooks.clear()
        layer._backward_pre_hooks.clear()
