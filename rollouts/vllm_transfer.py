"""Weights on their way into vLLM: a backend of its weight-transfer interface that opens our handles in its processes.

Every process compares every tensor with its checksum before it loads any, so vLLM holds all of an update or stops with
the names of the tensors that are wrong.
"""

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from model.checkpoint import released_tensors
from model.sail_vl2 import SailVL2
from rollouts.probe import probe_weights
from rollouts.rollout import NO_WEIGHTS, Proof
from rollouts.weights.handles import TensorHandle, WeightsLost
from rollouts.weights.sync import tensor_checksum

# vLLM warns about layers that have no weights at all. Missing tensors are found by name here instead.
logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").addFilter(
    lambda record: "Failed to load weights" not in record.getMessage()
)


@dataclass
class NoInit(WeightTransferInitInfo):
    """Nothing has to be agreed before the first update."""


@dataclass
class WeightUpdate(WeightTransferUpdateInfo):
    """The version and the checksums of the tensors that were fetched."""

    version: int
    checksums: dict[str, int]  # released name -> CRC-32 of its bytes


class HandleTransfer(WeightTransferEngine[NoInit, WeightUpdate]):
    """Loads what `WorkerExtension.fetch_weights` brought.

    `version` and `checksums` say which weights this process's model was filled with last.
    """

    init_info_cls = NoInit
    update_info_cls = WeightUpdate

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.version = NO_WEIGHTS
        self.checksums: dict[str, int] = {}
        self.fetched: dict[str, Tensor] = {}
        self._model: Any = self.model
        with torch.device("meta"):
            self.expected = {name: t.shape for name, t in released_tensors(SailVL2(self._model.shapes)).items()}

    def init_transfer_engine(self, init_info: NoInit) -> None:
        pass

    def start_weight_update(self) -> None:
        self.version, self.checksums = NO_WEIGHTS, {}

    def update_weights(self, update_info: dict[str, object]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":  # the sender may change its tensors when this returns
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: WeightUpdate) -> None:
        """Load an update. `RuntimeError` names tensors that are missing, misshapen or have other bytes than were sent;
        nothing is loaded then."""
        found, self.fetched = self.fetched, {}
        sums = {name: tensor_checksum(tensor) for name, tensor in found.items()}
        missing = sorted(self.expected.keys() - found.keys())
        shapes = [n for n in found.keys() & self.expected.keys() if found[n].shape != self.expected[n]]
        sent = {name: update_info.checksums.get(name, -1) for name in found}
        other = Proof(update_info.version, sent, sums).wrong
        if missing or shapes or other:
            raise RuntimeError(
                f"weight sync to policy version {update_info.version}: missing {missing}, of another shape "
                f"{sorted(shapes)}, with other bytes than were sent {other}"
            )
        if self.device.type == "cpu":
            self._forget_packed_experts()
        initialize_layerwise_reload(self.model)
        self._model.load_weights(found.items())
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu":
            self._refresh_head()
        self.version, self.checksums = update_info.version, sums

    def finish_weight_update(self) -> None:
        if self.version == NO_WEIGHTS:
            raise RuntimeError("weight sync: finished before any weights came")

    def shutdown(self) -> None:
        pass

    def _refresh_head(self) -> None:
        """Pack a head that is tied to the embedding anew. It keeps a packed copy, which reloading leaves as it was."""
        head = self._model.language_model.lm_head
        if self._model.shapes.language.tie_word_embeddings:
            head.quant_method.process_weights_after_loading(head)

    def _forget_packed_experts(self) -> None:
        """Drop the kernel of packed experts, because vLLM 0.32 packs them only when it makes their kernel."""
        for layer in self.model.modules():
            method = getattr(layer, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None  # pyright: ignore


class WorkerExtension:
    """Has the methods that vLLM mixes into each of its workers."""

    weight_transfer_engine: Any
    model_runner: Any
    route_recorder: Any = None

    def fetch_weights(self, tensor_handle: TensorHandle) -> str:
        """Hold the tensors of a handle for the update that follows. The model stays as it is.

        Returns why the handle was lost, or nothing, because exceptions from a process of vLLM lose their type.
        """
        engine = self.weight_transfer_engine
        try:
            engine.fetched = dict(tensor_handle.open(engine.parallel_config.rank))
        except WeightsLost as error:
            return str(error)
        return ""

    def forget_weights(self) -> None:
        """Drop what was fetched. No update follows, because another process's handle was lost."""
        self.weight_transfer_engine.fetched = {}

    def weight_proof(self) -> tuple[int, dict[str, int]]:
        """Return (policy version, checksums) of the weights that this worker's model was filled with last."""
        return self.weight_transfer_engine.version, self.weight_transfer_engine.checksums

    def record_routes(self) -> None:
        """Write down from now on which experts each token takes. This is for vLLM on CPU."""
        from rollouts.vllm_routes import RouteRecorder

        self.route_recorder = RouteRecorder(self.model_runner)

    def recorded_routes(self, requests: list[tuple[str, int]]) -> list[np.ndarray]:
        """Return the experts [tokens, L, k] of finished requests, given as pairs of an id and a number of tokens."""
        return [self.route_recorder.routes(name, num_tokens) for name, num_tokens in requests]

    @torch.inference_mode()
    def probe(self, images: list[Tensor]) -> dict[str, Tensor]:
        """Return checksums of the weights that are laid out as they were sent, and the visual tokens."""
        model = self.model_runner.get_model()
        expected = self.weight_transfer_engine.expected
        held = {n: p for n, p in model.named_parameters() if n in expected and p.shape == expected[n]}
        visual = [model.visual_tokens(image.to(self.model_runner.device)).flatten(0, 1) for image in images]
        return {
            **probe_weights(held, self.model_runner.dtype),
            **{f"visual.{number}": tokens.cpu() for number, tokens in enumerate(visual)},
        }
