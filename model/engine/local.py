"""The reference engine: one process, CPU or one GPU."""

import copy
import json
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.utils import get_total_norm

from model.batch import ModelInputs
from model.checkpoint import write_checkpoint
from model.config import AttentionKernel, StoredDtype, Tower
from model.engine import adapted
from model.engine.base import AnyBatch, LossFn, LossSums, ModelShape, NonFiniteError, Scorer, StepResult
from model.engine.config import EngineConfig, OptimizerConfig, Schedule
from model.engine.device import free_memory, pick_device, pick_dtype, prepare_cpu
from model.engine.master_weights import MasterWeights
from model.engine.optimizer import AdamW
from model.engine.schedule import learning_rate_at
from model.json_values import read_json_object
from model.logprobs import TokenScores
from model.lora.adapters import is_adapted, train_adapters_alone
from model.lora.merge import merged_tensors
from model.processing.processor import Processor
from model.run.durable import write_stream
from model.run.manifest import Digests, FileDigest
from model.run.tensor_files import all_finite, write_tensors
from model.sail_vl2 import SailVL2

_WEIGHTS, _MOMENTS, _STATE = "weights.safetensors", "optimizer.safetensors", "engine.json"


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


class LocalEngine:
    """`TrainEngine` on one device with fp32 weights and fused AdamW.

    `model` holds the fp32 weights; `compute_model` is what runs: the same, or its bfloat16 copy. A model with adapters
    runs itself: fp32 adapters train beside weights that are stored in the dtype that computes.
    """

    num_parts = 1

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
        self.total_steps = total_steps
        self.step_count = 0
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
        self._skipped_in_a_row = 0

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
        ]

    def logprobs(self, batches: Sequence[ModelInputs]) -> list[TokenScores]:
        return self._scorer.logprobs(batches)

    @torch.no_grad()
    def embeddings(self, inputs: ModelInputs) -> Tensor:
        return self.compute_model.embed(inputs.to(self._device))

    def step(self) -> StepResult:
        learning_rate = learning_rate_at(self.step_count, self.total_steps, self.optimizer_config)
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
        self.step_count += 1
        self._skipped_in_a_row = 0 if applied else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= self.config.max_skipped_updates:
            raise NonFiniteError(
                f"loss or gradient was not finite in {self._skipped_in_a_row} updates in a row (latest gradient norm "
                f"{norm}); the weights are those before them: lower optimizer.learning_rate or look at the data of "
                "these steps"
            )
        return StepResult(learning_rate, norm, applied, {name: value.item() for name, value in tower_norms.items()})

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        return merged_tensors(self.compute_model, self.compute_model.dtype)

    def frozen(self) -> Scorer:
        return adapted.AdaptedReference(self._scorer, self.model) if self._is_adapted else self._scorer.frozen()

    def save(self, folder: Path) -> Digests:
        counts = {"step_count": self.step_count, "skipped_in_a_row": self._skipped_in_a_row}
        state = {**counts, "total_steps": self.total_steps, **self._identity()}
        return {
            _WEIGHTS: _write(folder / _WEIGHTS, self._own_weights()),
            _MOMENTS: _write(folder / _MOMENTS, self._optimizer.state()),
            _STATE: write_stream(folder / _STATE, [json.dumps(state).encode()]),
        }

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        state = read_json_object(folder / _STATE)
        for name, ours in self._identity().items():
            if state.get(name) != ours:
                raise ValueError(
                    f"resume: {name}: the checkpoint was made with {state.get(name)}, this run has {ours}; "
                    f"use {state.get(name)} again, or start anew with run.start=fresh"
                )
        planned = state.get("total_steps")
        if planned != self.total_steps and self.optimizer_config.schedule is not Schedule.constant:
            print(
                f"resume: the learning rates are those of {self.total_steps} updates from here on; the checkpoint was "
                f"made in a run of {planned}",
                file=sys.stderr,
            )
        counts = [state.get("step_count"), state.get("skipped_in_a_row")]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"{folder / _STATE}: expected step_count and skipped_in_a_row, 0 or more, found {counts}")
        files = [
            (folder / _WEIGHTS, list(self._own_weights())),
            (folder / _MOMENTS, list(self._optimizer.state())),
        ]
        for path, targets in files:
            _check(path, targets)
        for path, targets in files:
            _read(path, targets)
        self._refresh()
        self.step_count, self._skipped_in_a_row = state["step_count"], state["skipped_in_a_row"]

    def export(self, folder: Path, processor: Processor, dtype: StoredDtype | str = StoredDtype.keep) -> None:
        if self._is_adapted:
            adapted.export_adapters(folder, self.model)
        write_checkpoint(folder, self.model.config, processor, merged_tensors(self.model, torch.float32), dtype=dtype)

    def _own_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the weights that a checkpoint keeps: all of them, or the adapters alone, which alone change."""
        return iter(self._optimizer.parameters.items() if self._is_adapted else self.model.named_parameters())

    def _identity(self) -> dict[str, object]:
        """Settings that a continued run must share with its checkpoint, because they change last bits."""
        own = {"rank_and_scale": list(adapted.rank_and_scale(self.model))} if self._is_adapted else {}
        return {
            "num_threads": self.config.num_threads,
            "compute_dtype": str(self.compute_model.dtype).removeprefix("torch."),
            **own,
        }

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


def _write(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> FileDigest:
    """One file of float32 tensors."""
    named = dict(tensors)
    shapes = {name: tensor.shape for name, tensor in named.items()}
    return write_tensors(path, shapes, torch.float32, sorted(named.items()))


def _check(path: Path, targets: Iterable[tuple[str, Tensor]]) -> None:
    """`ValueError` unless a file's tensors fit `targets`, and are finite, second moments and counts also 0 or more."""
    try:
        with safe_open(path, "pt") as stored:
            names = set(stored.keys())
        for name, tensor in targets:
            if name not in names:
                raise ValueError(f"{path}: expected a tensor {name}, found none")
            with safe_open(path, "pt") as stored:
                found = stored.get_tensor(name)
            if found.dtype != torch.float32 or found.shape != tensor.shape:
                raise ValueError(
                    f"{path}: {name}: expected float32 {list(tensor.shape)}, found "
                    f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
                )
            if not all_finite(found):
                raise ValueError(
                    f"{path}: {name}: expected finite numbers, found NaN or infinity; remove this checkpoint to go on "
                    "from an older one, or start anew with run.start=fresh"
                )
            if name.endswith(("/exp_avg_sq", "/step")) and float(found.min()) < 0:
                raise ValueError(f"{path}: {name}: expected numbers of 0 or more, found {float(found.min()):g}")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected a whole safetensors file, found: {error}") from None


def _read(path: Path, targets: Iterable[tuple[str, Tensor]]) -> None:
    """Copy a file's tensors into those of the same names, one after the other.

    The file is opened anew for each, because pages that were read stay in memory as long as it is open.
    """
    for name, tensor in targets:
        with safe_open(path, "pt") as stored:
            tensor.copy_(stored.get_tensor(name))
