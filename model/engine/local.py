"""The reference engine: one process, CPU or one GPU."""

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from model.batch import Batch, ModelInputs
from model.checkpoint import write_checkpoint
from model.config import AttentionKernel, StoredDtype, Tower
from model.engine import adapted
from model.engine.base import AnyBatch, LossFn, LossSums, ModelShape, Scorer, StepResult
from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.device import free_memory, pick_device, pick_dtype, prepare_cpu
from model.engine.master_weights import MasterWeights
from model.engine.optimizer import AdamW
from model.engine.shards import MOMENTS, STATE, WEIGHTS, Shard, StoredShards, copied, whole_shards, write_shards
from model.engine.updates import UpdateCount, say_other_ranks
from model.json_values import read_json_object
from model.logprobs import TokenScores
from model.lora.adapters import is_adapted, train_adapters_alone
from model.lora.merge import merged_tensors
from model.processing.opener import OpenAhead
from model.processing.processor import Processor
from model.run.durable import write_stream
from model.run.manifest import Digests
from model.run.saving import ThreadWriting, Writing
from model.run.state import State
from model.sail_vl2 import SailVL2

REFERENCE = "reference"
"""Name of the file with the weights of a reference that was refreshed."""


class LocalScorer:
    """`Scorer` by a model on one device."""

    def __init__(
        self, model: SailVL2, temperature: float, barred_ids: Sequence[int] | None, attention: AttentionKernel
    ) -> None:
        """`temperature` and `barred_ids` are the sampler's."""
        self.model = model
        self._settings = temperature, barred_ids, attention
        self._temperature, self._attention = temperature, attention
        self._barred_ids = torch.tensor(barred_ids, device=model.device) if barred_ids else None

    def scores(self, inputs: ModelInputs) -> TokenScores:
        """Scores of inputs on the model's device, with gradient where that is enabled."""
        return self.model(inputs, self._temperature, self._barred_ids, self._attention)

    @torch.no_grad()
    def logprobs(self, batches: Sequence[ModelInputs]) -> list[TokenScores]:
        """Scores on the model's device."""
        return [self.scores(inputs.to(self.model.device)) for inputs in batches]

    def frozen(self) -> "LocalScorer":
        """A scorer with a copy of the weights."""
        return LocalScorer(copy.deepcopy(self.model).requires_grad_(False), *self._settings)

    @torch.no_grad()
    def take(self, other: "LocalScorer") -> None:
        """Compute by a copy of another's present weights from now on; the model stays in its place."""
        for own, new in zip(self.model.parameters(), other.model.parameters(), strict=True):
            own.copy_(new)


class LocalEngine:
    """`TrainEngine` on one device with fp32 weights and fused AdamW.

    `model` holds the fp32 weights; `compute_model` is what runs: the same, or its bfloat16 copy. A model with adapters
    runs itself: fp32 adapters train beside weights that are stored in the dtype that computes.
    """

    num_parts = 1
    estimated = ""
    """the line about an update that the start of a run prints; `open_engine` sets it"""

    def __init__(
        self,
        model: SailVL2,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        total_steps: int,
        temperature: float = 1.0,
        barred_ids: Sequence[int] | None = None,
    ) -> None:
        """`total_steps` optimizer updates shape the schedule; `temperature` and `barred_ids` are the sampler's."""
        prepare_cpu(config.num_threads)
        self._device = pick_device(config.device)
        self._dtype = pick_dtype(config.compute_dtype, self._device)
        self._is_adapted = is_adapted(model)
        if self._is_adapted:
            adapted.place(model, self._device, self._dtype)
        self.model = model.to(self._device)
        self.config = config
        self.optimizer_config = optimizer
        if self._is_adapted:
            train_adapters_alone(model, config.freeze)
        else:
            model.freeze(config.freeze)
        model.checkpoint_gradients(config.gradient_checkpointing)
        has_copy = self._dtype is torch.bfloat16 and not self._is_adapted
        self._master = MasterWeights(model, self._dtype) if has_copy else None
        self.compute_model = self._master.compute if self._master else model
        self._scorer = LocalScorer(self.compute_model, temperature, barred_ids, config.attention_kernel)
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._optimizer = AdamW(trained, optimizer)
        self._loss_is_finite = True
        own = {"rank_and_scale": list(adapted.rank_and_scale(model))} if self._is_adapted else {}
        self._updates = UpdateCount(config, optimizer, total_steps, self.compute_model.dtype, **own)

    @property
    def step_count(self) -> int:
        return self._updates.step_count

    def expect(self, batches: Sequence[Batch], how: OpenAhead) -> None:
        """Nothing is begun: rows of one process come with their images."""

    def accumulate(self, batches: Sequence[AnyBatch], loss: LossFn[AnyBatch], denominator: float) -> LossSums:
        return LossSums(tuple(self._accumulate(batch.to(self._device), loss, denominator) for batch in batches))

    @property
    def shape(self) -> ModelShape:
        return ModelShape(self.model.config, self.compute_model.dtype, self._device)

    def described(self, start: str) -> list[str]:
        """Say in a few lines what trains, from which `start`, where, and what it takes of the memory for sure."""
        model, master = self.model, self._master
        total = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(parameter.numel() for parameter in self._optimizer.parameters.values())
        stored = sum(parameter.nbytes for parameter in model.parameters())
        held = stored + 12 * trained + (self._dtype.itemsize * total if master else 0)
        frozen = ", ".join(tower.value for tower in self.config.freeze)
        share = f"{trained:,} of them trained, frozen: {frozen}" if frozen else "all trained"
        if self._is_adapted:
            share = adapted.described(model, trained, total)
        threads = f" with {self.config.num_threads} threads" if self._device.type == "cpu" else ""
        return [
            f"model: {start}, {total:,} parameters, {share}",
            f"device: {self._device}{threads}, computing in {str(self._dtype).removeprefix('torch.')}",
            f"memory: {held / 2**30:.2f} GiB for weights, gradients and AdamW's moments; activations, samplers and a "
            f"reference come on top; {free_memory(self._device) / 2**30:.1f} GiB free here",
            *([self.estimated] if self.estimated else []),
        ]

    def logprobs(self, batches: Sequence[ModelInputs]) -> list[TokenScores]:
        return self._scorer.logprobs(batches)

    @torch.no_grad()
    def embeddings(self, inputs: ModelInputs) -> Tensor:
        return self.compute_model.embed(inputs.to(self._device))

    def step(self, rate_scale: float = 1.0) -> StepResult:
        learning_rate = self._updates.learning_rate(rate_scale)
        tower_norms = {tower.value: self._tower_norm(tower) for tower in Tower}
        total = torch.linalg.vector_norm(torch.stack(list(tower_norms.values())))
        norm = total.item()
        applied = self._loss_is_finite and math.isfinite(norm)
        if applied:
            # As torch clips, up to rounding: by (norm + 1e-6) / max_grad_norm where that is above 1.
            excess = (total.float() + 1e-6) / self.optimizer_config.max_grad_norm
            self._optimizer.step(learning_rate, excess if excess > 1.0 else None)
            self._refresh()
        self._optimizer.zero_grad()
        self._loss_is_finite = True
        self._updates.add(applied, norm)
        return StepResult(learning_rate, norm, applied, {name: value.item() for name, value in tower_norms.items()})

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return merged_tensors(self.compute_model, self.compute_model.dtype)

    def moving_reference(self) -> "MovingReference":
        """As `frozen`, but one that may become the present weights later. Whole models only."""
        assert not self._is_adapted
        return MovingReference(self, self._scorer)

    def frozen(self) -> Scorer:
        return adapted.AdaptedReference(self._scorer, self.model) if self._is_adapted else self._scorer.frozen()

    def save(self, folder: Path) -> Digests:
        return self._write(folder, whole_shards(self._own_weights()), whole_shards(self._optimizer.state()))

    def save_in_background(self, folder: Path) -> Writing:
        copies = copied(whole_shards(self._own_weights())), copied(whole_shards(self._optimizer.state()))
        state = self._updates.state()
        return ThreadWriting(lambda: self._write(folder, *copies, state))

    def _write(
        self, folder: Path, weights: Mapping[str, Shard], moments: Mapping[str, Shard], state: State | None = None
    ) -> Digests:
        content = {**(state or self._updates.state()), "num_ranks": 1}
        return {
            **write_shards(folder, WEIGHTS, weights),
            **write_shards(folder, MOMENTS, moments),
            STATE: write_stream(folder / STATE, [json.dumps(content).encode()]),
        }

    def load(self, folder: Path) -> None:
        state = read_json_object(folder / STATE)
        self._updates.check(state, str(folder / STATE))
        files = [
            (StoredShards(folder, WEIGHTS), whole_shards(self._own_weights())),
            (StoredShards(folder, MOMENTS), whole_shards(self._optimizer.state())),
        ]
        for stored, targets in files:
            stored.check(targets)
        for stored, targets in files:
            stored.fill(targets)
        self._refresh()
        self._updates.restore(state)
        say_other_ranks(state, 1)

    def export(self, folder: Path, processor: Processor, dtype: StoredDtype | str = StoredDtype.keep) -> None:
        if self._is_adapted:
            adapted.export_adapters(folder, self.model)
        write_checkpoint(folder, self.model.config, processor, merged_tensors(self.model, torch.float32), dtype=dtype)

    def _own_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights that a checkpoint keeps: all of them, or the adapters alone, which alone change."""
        return iter(self._optimizer.parameters.items() if self._is_adapted else self.model.named_parameters())

    def _accumulate(self, batch: AnyBatch, loss: LossFn[AnyBatch], denominator: float) -> dict[str, float]:
        loss_sum, figures = loss(self._scorer.scores(batch.inputs), batch)
        self._loss_is_finite &= bool(torch.isfinite(loss_sum))
        (loss_sum / denominator).backward()
        return {**figures, "loss": loss_sum.item() / denominator}

    def _refresh(self) -> None:
        """The compute copy follows the fp32 weights."""
        if self._master:
            self._master.refresh()

    def _tower_norm(self, tower: Tower) -> Tensor:
        """Norm of the gradient of one tower, a scalar tensor; 0 for a frozen one."""
        parameters = getattr(self.model, tower.value).parameters()
        gradients = [p.grad for p in parameters if p.grad is not None]
        return get_total_norm(gradients) if gradients else torch.zeros((), device=self._device)


class MovingReference:
    """`Scorer` by the weights that an engine had once, which `refresh` replaces by its present ones.

    Weights that differ from those that the run started from are nowhere else, so it saves and loads the engine, and
    itself with it. Before the first refresh a checkpoint holds nothing of it.
    """

    def __init__(self, engine: LocalEngine, scorer: LocalScorer) -> None:
        """`scorer` is the engine's own, by the weights that it trains."""
        self._engine, self._present = engine, scorer
        self._past = scorer.frozen()
        self._is_refreshed = False

    def logprobs(self, batches: Sequence[ModelInputs]) -> list[TokenScores]:
        return self._past.logprobs(batches)

    def refresh(self) -> None:
        """Become the policy as it is now."""
        self._past.take(self._present)
        self._is_refreshed = True

    def save(self, folder: Path) -> Digests:
        """Write the engine's files, and the weights of the reference in float32."""
        return {**self._engine.save(folder), **self._write(folder, self._weights())}

    def save_in_background(self, folder: Path) -> Writing:
        """`save` of copies, while the engine goes on and the reference may move."""
        own, engine = copied(self._weights()), self._engine.save_in_background(folder)
        return ThreadWriting(lambda: {**self._write(folder, own), **engine.wait()})

    def load(self, folder: Path) -> None:
        """Read both again. `ValueError`, with nothing changed, for a file that does not fit."""
        if not (folder / f"{REFERENCE}.safetensors").exists():
            return self._engine.load(folder)
        stored, own = StoredShards(folder, REFERENCE), whole_shards(self._past.model.named_parameters())
        stored.check(own)
        self._engine.load(folder)
        stored.fill(own)
        self._is_refreshed = True

    def _weights(self) -> dict[str, Shard]:
        return whole_shards(self._past.model.named_parameters()) if self._is_refreshed else {}

    def _write(self, folder: Path, weights: Mapping[str, Shard]) -> Digests:
        return write_shards(folder, REFERENCE, weights) if weights else {}
