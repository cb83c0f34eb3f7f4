"""A sampler that is driven by messages: what a worker of a pool runs, in whatever process it is."""

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from model.checkpoint import empty_model
from model.config import SailVL2Config
from model.processing.processor import Processor
from rollouts.config import RolloutConfig
from rollouts.probe import Probe
from rollouts.rollout import RolloutRequest
from rollouts.sampler import Sampler, build_sampler
from rollouts.weights.handles import TensorHandle, WeightsLost

Message = tuple[Any, ...]


@dataclass(frozen=True)
class StartMessage:
    """What a worker samples with. Weights come apart from it."""

    model_config: SailVL2Config
    processor: Processor
    config: RolloutConfig
    run_seed: int
    dtype: torch.dtype

    def build(self) -> Sampler:
        """A sampler that has no weights yet."""
        model = empty_model(self.model_config, self.dtype)
        return build_sampler(model, self.processor, self.config, self.run_seed, is_filled=False)


class Session:
    """Messages: ("submit", [(handle, request)]), ("abort", handle), ("update", version, manifest, handle),
    ("probe", request).

    Answers: ("done", [(handle, rollouts)], groups still open), ("updated", version, checksums) or, if the handle was
    lost, ("missed", version), ("probed", probe).
    """

    def __init__(self, worker: Sampler) -> None:
        self._worker = worker
        self._handles: dict[int, int] = {}  # ours -> the pool's

    def answer(self, messages: Sequence[Message]) -> list[Message]:
        """Take the messages, sample for a moment if there is work, and say what came of it."""
        answers: list[Message] = []
        for message in messages:
            match message:
                case ("submit", requests):
                    self._handles |= {self._worker.submit(request): handle for handle, request in requests}
                case ("abort", handle):
                    for own in [own for own, theirs in self._handles.items() if theirs == handle]:
                        self._worker.abort(own)
                        del self._handles[own]
                case ("update", version, manifest, tensor_handle):
                    answers.append(self._update(version, manifest, tensor_handle))
                case ("probe", request):
                    answers.append(("probed", self._probe(request)))
        done = [(self._handles.pop(own), rollouts) for own, rollouts in self._worker.poll()]
        return [*answers, ("done", done, len(self._handles))]

    def _probe(self, request: RolloutRequest) -> Probe:
        try:
            return self._worker.probe(request)[0][1]
        except Exception:  # a diagnosis must not end what it looks at
            traceback.print_exc()
            return {}

    def _update(self, version: int, manifest: dict[str, int], tensor_handle: TensorHandle) -> Message:
        try:
            return ("updated", version, self._worker.receive(version, manifest, tensor_handle))
        except WeightsLost as error:
            print(error, file=sys.stderr)
            return ("missed", version)

    def close(self) -> None:
        self._worker.close()
