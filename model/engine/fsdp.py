"""Training with weights, gradients and moments sharded over processes, by torch's FSDP2.

Every process makes the same calls at the same time, with micro-batches of its own; `model.engine.lead` sees to that.
Each layer gathers its weights for its own pass and frees them. The weights that train are float32 shards; on a GPU
they are gathered in bfloat16, and gradients are added up in float32.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from model.batch import ModelInputs
from model.checkpoint import released_shapes
from model.config import SailVL2Config, Tower
from model.engine import adapted
from model.engine.base import StepResult
from model.engine.config import FsdpConfig, OptimizerConfig
from model.engine.device import free_memory, pick_dtype, prepare_cpu
from model.engine.optimizer import AdamW
from model.engine.ranks import Ranks
from model.engine.sharded import ShardedEngine, ShardedScorer, layers_of
from model.engine.shards import MOMENTS, WEIGHTS, Shard, copied, write_shards
from model.engine.source import ModelSource, Rows
from model.engine.updates import UpdateCount
from model.logprobs import TokenScores
from model.lora.adapters import adapters_of, is_adapted, train_adapters_alone, without_adapters
from model.lora.merge import merged_tensors
from model.run.manifest import Digests
from model.run.saving import ThreadWriting
from model.sail_vl2 import SailVL2

dist: Any = torch.distributed


class FsdpScorer(ShardedScorer):
    """Log-probabilities by a model that FSDP2 shards."""

    def frozen(self) -> "FsdpScorer":
        """A scorer with a copy of the shards, in the type that computes."""
        config = self.model.config
        own = dict(self.model.named_parameters())
        copy = sharded_model(config, self._ranks, self._dtype, self._dtype, freeze=tuple(Tower))
        with torch.no_grad():
            for name, parameter in copy.named_parameters():
                local_of(parameter).copy_(local_of(own[name]))
        return FsdpScorer(copy, self._ranks, self._dtype, *self.settings)


class FsdpEngine(ShardedEngine):
    """The part of one process in `TrainEngine`'s verbs, by FSDP2."""

    _scorer: FsdpScorer

    def __init__(
        self,
        ranks: Ranks,
        source: ModelSource,
        config: FsdpConfig,
        optimizer: OptimizerConfig,
        total_steps: int,
        temperature: float = 1.0,
        barred_ids: Sequence[int] | None = None,
    ) -> None:
        """`total_steps` optimizer updates shape the schedule; `temperature` and `barred_ids` are the sampler's."""
        prepare_cpu(config.num_threads, keeps_freed=False)
        self.ranks, self.config, self.optimizer_config = ranks, config, optimizer
        model_config, rows = source.open()
        master = rows("language_model.model.norm.weight", 0, 1).dtype
        master = master if master is torch.float64 else torch.float32
        dtype = pick_dtype(config.compute_dtype, ranks.device)
        self._dtype = dtype if dtype is torch.bfloat16 else master
        self.model = sharded_model(model_config, ranks, master, self._dtype, config.freeze, source.prepare)
        fill_shards(self.model, rows)
        self._is_adapted = is_adapted(self.model)
        self.model.checkpoint_gradients(config.gradient_checkpointing)
        self._mark_layers()
        self._embed = _Embedding(self.model)
        self._scorer: FsdpScorer = FsdpScorer(
            self.model, ranks, self._dtype, temperature, barred_ids, config.attention_kernel
        )
        moments_device = torch.device("cpu") if config.offload_moments else None
        trained = ((name, local_of(p)) for name, p in self.model.named_parameters() if p.requires_grad)
        self._optimizer = AdamW(trained, optimizer, moments_device)
        own = {"rank_and_scale": list(adapted.rank_and_scale(self.model))} if self._is_adapted else {}
        self._updates = UpdateCount(config, optimizer, total_steps, self._dtype, **own)
        self._loss_is_finite = True

    def described(self) -> list[str]:
        """Say in a few lines what trains, where, and what it takes of the memory of each process for sure."""
        total = sum(parameter.numel() for parameter in self.model.parameters())
        trained = sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)
        moments = 8 * trained / self.ranks.num_shards
        stored = sum(parameter.numel() * parameter.dtype.itemsize for parameter in self.model.parameters())
        held = (stored + 4 * trained) / self.ranks.num_shards
        on_host = f" and {moments / 2**30:.2f} GiB for moments on the host" if self.config.offload_moments else ""
        held += 0 if self.config.offload_moments else moments
        frozen = ", ".join(tower.value for tower in self.config.freeze)
        share = f"{trained:,} of them trained, frozen: {frozen}" if frozen else "all trained"
        if self._is_adapted:
            share = adapted.described(self.model, trained, total)
        device = self.ranks.device
        threads = f" with {self.config.num_threads} threads" if device.type == "cpu" else ""
        return [
            f"{total:,} parameters, {share}",
            self.ranks.described(),
            f"device: {device}{threads}, computing in {str(self._dtype).removeprefix('torch.')}",
            f"memory: {held / 2**30:.2f} GiB a process for its shards of weights, gradients and AdamW's moments"
            f"{on_host}; gathered layers, activations, samplers and a reference come on top; "
            f"{free_memory(device) / 2**30:.1f} GiB free here",
        ]

    def step(self, rate_scale: float = 1.0) -> StepResult:
        """Clip, check, update the shards at so many times the scheduled rate, and clear the gradient."""
        learning_rate = self._updates.learning_rate(rate_scale)
        squares = [self._square_sum(tower) for tower in Tower]
        numbers = torch.stack([*squares, torch.tensor(float(not self._loss_is_finite), dtype=torch.float64)])
        numbers = numbers.to(self.ranks.device)
        dist.all_reduce(numbers, group=self.ranks.shard_mesh.get_group())
        if self.config.replicas > 1:  # replicas have equal gradients, and their own losses
            dist.all_reduce(numbers[3:], group=self.ranks.mesh["replica"].get_group())
        norms = numbers[:3].sqrt()
        total = numbers[:3].sum().sqrt()
        norm = total.item()
        applied = not numbers[3].item() and math.isfinite(norm)
        self.ranks.watch.marks.one()
        if applied:
            # As torch clips, up to rounding: by (norm + 1e-6) / max_grad_norm where that is above 1.
            excess = (total.float() + 1e-6) / self.optimizer_config.max_grad_norm
            self._optimizer.step(learning_rate, excess if excess > 1.0 else None)
        self._optimizer.zero_grad()
        self.model.zero_grad(set_to_none=True)
        self._loss_is_finite = True
        self._updates.add(applied, norm)
        towers = {tower.value: value for tower, value in zip(Tower, norms.tolist(), strict=True)}
        return StepResult(learning_rate, norm, applied, towers)

    @torch.no_grad()
    def embeddings(self, inputs: ModelInputs) -> Tensor:
        return self._embed(inputs.to(self.ranks.device))

    def frozen(self) -> "FsdpScorer | AdaptedReference":
        return AdaptedReference(self._scorer) if self._is_adapted else self._scorer.frozen()

    def weights(self, dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """(released name, whole tensor) sorted by name, on every process; one tensor is whole at a time.

        Of a model with adapters, with these added, the stacks of experts of one layer.
        """
        if self._is_adapted:
            return merged_tensors(self.model, dtype or self._dtype, whole_of)
        return whole_tensors(self.model, dtype or self._dtype, self.ranks)

    def export_adapters(self, folder: Path) -> None:
        """Rank 0 writes the adapters, where the model has some, beside the folder of the merged model."""
        whole = {id(own): whole_of(own) for one in adapters_of(self.model) for own in (one.a, one.b)}
        if whole and self.ranks.rank == 0:
            adapted.export_adapters(folder, self.model, lambda parameter: whole[id(parameter)])

    def save_in_background(self, folder: Path) -> ThreadWriting:
        """`save` for a copy of this rank's present state in the host's memory, by a thread."""
        weights, moments = copied(self._weight_shards()), copied(self._moment_shards())
        state = self._state()

        def write() -> Digests:
            part = self.ranks.shard, self.ranks.num_shards
            digests = dict(self._write_state(folder, state))
            if self.ranks.writes:
                digests |= write_shards(folder, WEIGHTS, weights, *part)
                digests |= write_shards(folder, MOMENTS, moments, *part)
            return digests

        return ThreadWriting(write)

    def _before_micro_batch(self, is_last: bool, with_tiles: bool) -> None:
        assert isinstance(self.model, FSDPModule)
        self.model.set_requires_gradient_sync(self.config.reduce_each or is_last)

    def _weight_shards(self) -> dict[str, Shard]:
        """All weights, or the adapters alone, which alone change."""
        own = (self._optimizer.parameters if self._is_adapted else dict(self.model.named_parameters())).keys()
        return {name: _shard_of(parameter) for name, parameter in self.model.named_parameters() if name in own}

    def _moment_shards(self) -> dict[str, Shard]:
        places = {name: _shard_of(parameter) for name, parameter in self.model.named_parameters()}
        found = {}
        for name, tensor in self._optimizer.state():
            place = places[name.rpartition("/")[0]]
            found[name] = Shard(tensor, place.start, place.shape) if tensor.dim() else Shard.whole(tensor)
        return found

    def _square_sum(self, tower: Tower) -> Tensor:
        """Sum of the squares of this rank's part of a tower's gradient, and the parts handed to the optimizer."""
        total = torch.zeros((), dtype=torch.float64)
        prefix = f"{tower.value}."
        for name, parameter in self.model.named_parameters():
            if not name.startswith(prefix) or parameter.grad is None:
                continue
            # FSDP2 may have moved the shard since the last update.
            local = self._optimizer.parameters[name] = local_of(parameter)
            local.grad = local_of(parameter.grad)
            if local.grad.numel():
                total += torch.linalg.vector_norm(local.grad, dtype=torch.float64).cpu().square()
        return total


class AdaptedReference:
    """A scorer by the adapters that the model has now, whatever they become, or by none where these change nothing."""

    def __init__(self, scorer: FsdpScorer) -> None:
        self._scorer = scorer
        own = [parameter for one in adapters_of(scorer.model) for parameter in (one.a, one.b)]
        changes = torch.stack([local_of(one.b).abs().sum() for one in adapters_of(scorer.model)]).sum().double()
        dist.all_reduce(changes)
        self._kept = [(parameter, local_of(parameter).clone()) for parameter in own] if changes.item() else []

    @torch.no_grad()
    def logprobs(self, inputs: Sequence[ModelInputs | None], with_tiles: bool) -> list[TokenScores]:
        """Scores of this rank's inputs; see `FsdpScorer`."""
        if not self._kept:
            with without_adapters(self._scorer.model):
                return self._scorer.logprobs(inputs, with_tiles)
        present = [(parameter, local_of(parameter).clone()) for parameter, _ in self._kept]
        try:
            for parameter, kept in self._kept:
                local_of(parameter).copy_(kept)
            return self._scorer.logprobs(inputs, with_tiles)
        finally:
            for parameter, values in present:
                local_of(parameter).copy_(values)


class _Embedding:
    """The input of the decoder, outside of a whole forward pass."""

    def __init__(self, model: SailVL2) -> None:
        # Under another name: within a forward pass `embed` must not free what the root goes on to need.
        object.__setattr__(model, "embed_alone", MethodType(SailVL2.embed, model))
        register_fsdp_forward_method(model, "embed_alone")
        self._call: Callable[[ModelInputs], Tensor] = model.__dict__["embed_alone"]

    def __call__(self, inputs: ModelInputs) -> Tensor:
        return self._call(inputs)


def sharded_model(
    config: SailVL2Config,
    ranks: Ranks,
    dtype: torch.dtype,
    compute: torch.dtype,
    freeze: Sequence[Tower],
    prepare: Callable[[SailVL2], None] = lambda model: None,
) -> SailVL2:
    """A model whose weights of type `dtype` are sharded over the ranks, and still to be filled in.

    It is made without memory first, so no process ever holds all of it; `prepare` may give it adapters then, beside
    which its own weights stay as they are, in the type that computes. The embedding, the head, the norms outside of
    the layers, and the adapter are one group, which is gathered at the beginning.
    """
    with torch.device("meta"):
        model = SailVL2(config).to(dtype)
    prepare(model)
    if is_adapted(model):
        adapted.place(model, torch.device("meta"), compute, dtype, lies_together=False)
        train_adapters_alone(model, freeze)
    else:
        model.freeze(freeze)
    policy = MixedPrecisionPolicy(
        param_dtype=compute if compute is not dtype else None,
        reduce_dtype=torch.float32 if compute is torch.bfloat16 else None,
        cast_forward_inputs=False,
    )
    for layer in layers_of(model):
        fully_shard(layer, mesh=ranks.mesh, mp_policy=policy)
    # The root too frees its weights after the forward pass: kept ones would go stale at a step that no backward
    # pass precedes.
    fully_shard(model, mesh=ranks.mesh, mp_policy=policy, reshard_after_forward=True)
    model.to_empty(device=ranks.device)
    model.language_model.tie()
    return model


@torch.no_grad()
def fill_shards(model: SailVL2, rows: Rows, only: str = "") -> None:
    """Give every shard its rows, or the shard of one parameter alone."""
    chosen = ((only, model.get_parameter(only)),) if only else model.named_parameters()
    for name, parameter in chosen:
        shard = _shard_of(parameter)
        if shard.tensor.numel():
            shard.tensor.copy_(rows(name, shard.start, shard.stop))


def local_of(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds; shares its memory."""
    held = tensor.detach()
    return held.to_local() if isinstance(held, DTensor) else held


def _shard_of(parameter: Tensor) -> Shard:
    assert isinstance(parameter, DTensor)
    shape = tuple(parameter.shape)
    _, offset = compute_local_shape_and_global_offset(shape, parameter.device_mesh, parameter.placements)
    local = local_of(parameter)
    return Shard(local, offset[0] if local.numel() else shape[0], shape)


@torch.no_grad()
def whole_of(parameter: Tensor) -> Tensor:
    """A parameter gathered from all processes, which all call this at the same time."""
    held = parameter.detach()
    return held.full_tensor() if isinstance(held, DTensor) else held


def whole_tensors(model: SailVL2, dtype: torch.dtype, ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
    """(released name, whole tensor) sorted by name, in `dtype`; every process draws them at the same time.

    A stack of experts is never whole: each expert comes from the rank that holds it.
    """
    parameters: Mapping[str, Tensor] = dict(model.named_parameters())
    marks = ranks.watch.marks
    for name in released_shapes(model.config):
        marks.one()
        yield name, _whole(name, parameters, dtype, ranks).detach()


@torch.no_grad()
def _whole(name: str, parameters: Mapping[str, Tensor], dtype: torch.dtype, ranks: Ranks) -> Tensor:
    stem, _, expert_leaf = name.partition(".experts.")
    group = ranks.shard_mesh.get_group()
    if not expert_leaf:
        held = parameters.get(name)
        if held is None:  # a tied head
            held = parameters["language_model.model.embed_tokens.weight"]
        own = _shard_of(held)
        found = torch.empty(own.shape, dtype=dtype, device=own.tensor.device)
        found[own.start : own.stop] = own.tensor.to(dtype)  # rounded before it travels: half of it, the same bytes
        for number, rows in enumerate(found.split(-(-own.num_rows // ranks.num_shards))):
            dist.broadcast(rows, dist.get_global_rank(group, number), group)
        return found
    number, kind, _ = expert_leaf.split(".")
    leaf = "down_proj" if kind == "down_proj" else "gate_up_proj"
    stack = _shard_of(parameters[f"{stem}.experts.{leaf}"])
    expert = int(number) - stack.start
    one = stack.shape[1:] if leaf == "down_proj" else (stack.shape[1] // 2, stack.shape[2])
    if 0 <= expert < len(stack.tensor):
        matrix = stack.tensor[expert]
        if leaf == "gate_up_proj":
            matrix = matrix.chunk(2)[kind == "up_proj"]
        matrix = matrix.to(dtype).contiguous()
    else:
        matrix = torch.empty(one, dtype=dtype, device=stack.tensor.device)
    per_rank = -(-stack.num_rows // ranks.num_shards)  # FSDP2 gives every rank so many rows until there are no more
    dist.broadcast(matrix, dist.get_global_rank(group, int(number) // per_rank), group)
    return matrix
