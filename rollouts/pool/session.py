"""A sampler that is driven by messages. Each worker of a pool runs one, in whatever process it is."""

import sys
import traceback
from collections.abc import Sequence

import torch

from model.engine.base import ModelShape
from rollouts.pool.messages import (
    Abort,
    Answer,
    Done,
    Generate,
    Message,
    Missed,
    Probed,
    ProbePrompt,
    StartMessage,
    Update,
    Updated,
)
from rollouts.probe import Probe
from rollouts.rollout import RolloutRequest
from rollouts.sampler import Sampler, build_sampler
from rollouts.weights.handles import WeightsLost


class Session:
    """Answers messages with a sampler, which samples for a moment each time."""

    def __init__(self, worker: Sampler) -> None:
        self._worker = worker
        self._handles: dict[int, int] = {}  # the worker's handle of a request -> the pool's

    @classmethod
    def begin(cls, start: StartMessage) -> "Session":
        """Build a sampler that has no weights yet."""
        template = ModelShape(start.model_config, start.dtype, torch.device("cpu"))
        return cls(build_sampler(template, start.processor, start.config, start.run_seed, start.returns_routes))

    def answer(self, messages: Sequence[Message]) -> list[Answer]:
        """Take the messages, sample for a moment if there is work, and say what came of it."""
        answers: list[Answer] = []
        for message in messages:
            match message:
                case Generate(requests):
                    self._handles |= {self._worker.submit(request): handle for handle, request in requests}
                case Abort(handle):
                    for own in [own for own, theirs in self._handles.items() if theirs == handle]:
                        self._worker.abort(own)
                        del self._handles[own]
                case Update():
                    answers.append(self._update(message))
                case ProbePrompt(request):
                    answers.append(Probed(self._probe(request)))
        done = [(self._handles.pop(own), rollouts) for own, rollouts in self._worker.poll()]
        return [*answers, Done(done, len(self._handles))]

    def close(self) -> None:
        self._worker.close()

    def _update(self, update: Update) -> Updated | Missed:
        try:
            proof = self._worker.receive(update.version, update.tensor_handle, update.manifest)
        except WeightsLost as error:
            print(error, file=sys.stderr)
            return Missed(update.version)
        return Updated(proof.version, dict(proof.held))

    def _probe(self, request: RolloutRequest) -> Probe:
        try:
            return self._worker.probe(request)[0][1]
        except Exception:  # a diagnosis must not end the sampler that it looks at
            traceback.print_exc()
            return {}
