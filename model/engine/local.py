"""The reference engine: one process, CPU or one GPU."""

import copy
import json
import math
from typing import Any

import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.nn.utils import get_total_norm

from model.batch import ModelInputs
from model.checkpoint import released_tensors
from model.config import Tower
from model.engine.base import LossFn, NonFiniteError, StepResult
from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.device import pick_device, pick_dtype, prepare_cpu
from model.engine.master_weights import MasterWeights
from model.engine.optimizer import AdamW
from model.engine.schedule import learning_rate_at
from model.logprobs import TokenScores
from model.sail_vl2 import SailVL2


class LocalEngine:
    """`TrainEngine` on one device with fp32 weights and fused AdamW.

    `model` holds the fp32 weights; `compute_model` is what runs: the same, or its bfloat16 copy.
    """

    def __init__(
        self,
        model: SailVL2,
        config: EngineConfig,
        optimizer: OptimizerConfig,
        total_steps: int,
        temperature: float = 1.0,
        barred_ids: list[int] | None = None,
    ) -> None:
        """`total_steps` optimizer updates shape the schedule; `temperature` and `barred_ids` are the sampler's."""
        prepare_cpu(config.num_threads)
        self._device = pick_device(config.device)
        self._dtype = pick_dtype(config.compute_dtype, self._device)
        self.model = model.to(self._device)
        self.config = config
        self.optimizer_config = optimizer
        self.total_steps = total_steps
        self.step_count = 0
        self._temperature = temperature
        self._barred_ids = torch.tensor(barred_ids, device=self._device) if barred_ids else None
        model.freeze(config.freeze)
        model.checkpoint_gradients(config.gradient_checkpointing)
        self._master = MasterWeights(model, self._dtype) if self._dtype is torch.bfloat16 else None
        self.compute_model = self._master.compute if self._master else model
        trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._optimizer = AdamW(trained, optimizer)
        self._loss_is_finite = True
        self._skipped_in_a_row = 0

    def forward_backward(self, batch: Any, loss_fn: LossFn, denominator: float) -> dict[str, float]:
        batch = batch.to(self._device)
        loss_sum, metrics = loss_fn(self._scores(batch.inputs), batch)
        self._loss_is_finite &= bool(torch.isfinite(loss_sum))
        (loss_sum / denominator).backward()
        return {**metrics, "loss": loss_sum.item() / denominator}

    @torch.no_grad()
    def logprobs(self, inputs: ModelInputs) -> TokenScores:
        return self._scores(inputs.to(self._device))

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

    def save(self) -> dict[str, bytes]:
        weights = {name: parameter.detach().cpu().contiguous() for name, parameter in self.model.named_parameters()}
        state = {
            "step_count": self.step_count,
            "skipped_in_a_row": self._skipped_in_a_row,
            "num_threads": self.config.num_threads,
            "total_steps": self.total_steps,
            "compute_dtype": self._dtype_name,
        }
        return {
            "weights.safetensors": to_safetensors(weights),
            "optimizer.safetensors": to_safetensors(self._optimizer.state()),
            "engine.json": json.dumps(state).encode(),
        }

    def load(self, files: dict[str, bytes]) -> None:
        state = {"compute_dtype": "float32", **json.loads(files["engine.json"])}  # older ones knew no other
        own = {
            "num_threads": self.config.num_threads,
            "total_steps": self.total_steps,
            "compute_dtype": self._dtype_name,
        }
        for name, ours in own.items():
            if state[name] != ours:
                raise ValueError(
                    f"resume: {name}: the checkpoint was made with {state[name]}, this run has {ours}; "
                    f"use {state[name]} again, or start anew with run.start=fresh"
                )
        weights = from_safetensors(files["weights.safetensors"])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(weights[name])
        self._refresh()
        self._optimizer.load(from_safetensors(files["optimizer.safetensors"]))
        self.step_count = state["step_count"]
        self._skipped_in_a_row = state["skipped_in_a_row"]

    def publish_weights(self) -> tuple[int, dict[str, Tensor]]:
        return self.step_count, released_tensors(self.compute_model)

    def frozen_copy(self) -> "LocalEngine":
        """An engine over a copy of the present weights, for reference log-probabilities only."""
        frozen = copy.copy(self)
        frozen.model = frozen.compute_model = copy.deepcopy(self.compute_model).requires_grad_(False)
        return frozen

    @property
    def _dtype_name(self) -> str:
        return str(self.compute_model.dtype).removeprefix("torch.")

    def _refresh(self) -> None:
        """The compute copy follows the fp32 weights."""
        if self._master:
            self._master.refresh()

    def _tower_norm(self, tower: Tower) -> Tensor:
        """Norm of the gradient of one tower, a scalar tensor; 0 for a frozen one."""
        parameters = getattr(self.model, tower.value).parameters()
        gradients = [p.grad for p in parameters if p.grad is not None]
        return get_total_norm(gradients) if gradients else torch.zeros((), device=self._device)

    def _scores(self, inputs: ModelInputs) -> TokenScores:
        return self.compute_model(inputs, self._temperature, self._barred_ids, self.config.attention_kernel)
