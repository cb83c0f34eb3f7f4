"""The reference sampler: in this process, with our own model, and with one prefill and one vision pass per group.

Batching is continuous: a finished completion frees its place, and waiting prompts move in while others go on.
"""

import time
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from model.batch import Row, pack_rows
from model.checkpoint import check_names, empty_model, fill, released_tensors
from model.config import MoeLanguageConfig
from model.decoding.decoder import PromptDecoder
from model.decoding.graph import DecodeGraph
from model.decoding.group_cache import prefix_room
from model.kernels.available import sampling
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.config import RolloutConfig
from rollouts.decode_batch import DecodeBatch
from rollouts.intake import Intake, require_weights
from rollouts.probe import Probe, probe_model
from rollouts.rollout import MOMENT, NO_WEIGHTS, Proof, Rollout, RolloutRequest
from rollouts.routes import compact_dtype
from rollouts.sampling import TokenSampler
from rollouts.transit import HostCopies, to_device
from rollouts.weights.buffer import lay_out
from rollouts.weights.handles import TensorHandle
from rollouts.weights.sync import streamed, tensor_checksum
from rollouts.weights.template import ModelTemplate

_PREFILL_TOKENS = (8192, 32768)
"""Tokens of prompts that are run side by side, on CPU and on GPU."""

_FULL_ENOUGH = (0.875, 0.5)
"""A batch gives the rows of finished completions up once its share of live rows falls to this, on CPU and on GPU. It
is lower on a GPU, because a batch of another size is recorded anew."""


class EmbeddedWorker:
    """`RolloutWorker` in the trainer's process. It owns its weights, and has none until they are loaded."""

    def __init__(
        self,
        template: ModelTemplate,
        processor: Processor,
        config: RolloutConfig,
        run_seed: int,
        shared: SailVL2 | None = None,
    ) -> None:
        """`shared` is a model to sample with as it is; see `sharing`."""
        self.config = config = config.within(template.config.language.max_position_embeddings)
        self.run_seed = run_seed
        self.version = NO_WEIGHTS if shared is None else 0
        self._processor = processor
        self._device = template.device
        own = shared or empty_model(template.config, template.dtype).to(self._device)
        self._decoder = PromptDecoder(own)
        self._runs_ahead = DecodeGraph.fits(own)  # all other decoding waits for the device
        self._decode = DecodeGraph(self._decoder).decode if self._runs_ahead else self._decoder.decode
        self._full_enough = _FULL_ENOUGH[self._device.type == "cuda"]
        self._prefill_tokens = _PREFILL_TOKENS[self._device.type == "cuda"]
        self._sample = TokenSampler(
            processor.barred_ids,
            template.config.language.vocab_size,
            config.temperature,
            processor.tokenizer.end_id,
            self._device,
        )
        self._intake = Intake(config)
        self._queue: dict[int, RolloutRequest] = {}
        self._batches: list[DecodeBatch] = []

    @classmethod
    def sharing(cls, model: SailVL2, processor: Processor, config: RolloutConfig, run_seed: int) -> "EmbeddedWorker":
        """Build a worker that samples with this very model. Nothing is copied; the model must not change meanwhile."""
        return cls(model, processor, config, run_seed, model)

    @property
    def is_idle(self) -> bool:
        return not (self._queue or self._batches)

    def submit(self, request: RolloutRequest) -> int:
        self._require_routers(request)
        handle = self._intake.accept(request, self.version)
        self._queue[handle] = request
        return handle

    @sampling()
    def poll(self) -> list[tuple[int, list[Rollout]]]:
        if not self.is_idle:
            require_weights(self.version)
        done: list[tuple[int, list[Rollout]]] = []
        end = time.monotonic() + MOMENT
        while not done and not self.is_idle and time.monotonic() < end:
            self._admit()
            done = self._step()
        return done

    def abort(self, handle: int) -> None:
        self._queue.pop(handle, None)
        for batch in self._batches:
            batch.abort(handle)
        self._batches = [batch for batch in self._batches if not batch.is_done]

    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> Proof:
        """Copy each tensor into the model as it comes. If one is missing or wrong, sampling is refused until all have
        come."""
        places, _ = lay_out(released_tensors(self._decoder.model))
        sent: dict[str, int] = {}
        return self._fill(version, streamed(version, tensors, places, sent), sent)

    def receive(self, version: int, tensor_handle: TensorHandle, manifest: Mapping[str, int]) -> Proof:
        """See `rollouts.sampler.Sampler`. All tensors are here before the first is copied into the model."""
        tensors = dict(tensor_handle.open())
        shapes = {name: tensor.shape for name, tensor in released_tensors(self._decoder.model).items()}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        check_names(found, shapes, f"weight sync to version {version}", set())
        return self._fill(version, tensors.items(), manifest)

    def release(self) -> bool:
        """See `rollouts.sampler.Sampler`. Its memory is free as soon as nobody holds it."""
        return True

    def _fill(self, version: int, tensors: Iterable[tuple[str, Tensor]], sent: Mapping[str, int]) -> Proof:
        self.version = NO_WEIGHTS
        fill(self._decoder.model, tensors)
        held = {name: tensor_checksum(tensor) for name, tensor in released_tensors(self._decoder.model).items()}
        proof = Proof(version, sent, held)
        if proof.wrong:
            return proof
        self.version = version
        for batch in self._batches:
            batch.change_version(version)
        return proof

    @sampling()
    def probe(self, request: RolloutRequest) -> list[tuple[str, Probe]]:
        return [("sampler", probe_model(self._decoder.model, request, self._processor.placeholder_id))]

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._queue.clear()
        self._batches.clear()

    def _admit(self) -> None:
        """Start waiting prompts once a quarter of the rows is free, so that batches are few and prefills large."""
        live = sum(batch.num_live for batch in self._batches)
        free = self.config.max_rows - live
        if not self._queue or (live and free < max(self.config.max_rows // 4, self._next_group_size())):
            return
        admitted: list[tuple[int, RolloutRequest]] = []
        while self._queue and (self._next_group_size() <= free or not (live or admitted)):
            free -= self._next_group_size()
            handle = next(iter(self._queue))
            admitted.append((handle, self._queue.pop(handle)))
        alike: dict[tuple[int, int, bool], list[tuple[int, RolloutRequest]]] = {}
        for handle, request in admitted:
            key = (prefix_room(len(request.prompt_ids)), request.group_size, request.returns_routes)
            alike.setdefault(key, []).append((handle, request))
        for (room, _, _), requests in alike.items():
            at_once = max(1, self._prefill_tokens // room)
            for start in range(0, len(requests), at_once):
                self._start(requests[start : start + at_once], room)

    def _next_group_size(self) -> int:
        return next(iter(self._queue.values())).group_size if self._queue else 0

    def _start(self, requests: list[tuple[int, RolloutRequest]], room: int) -> None:
        """Prefill prompts that share a group size, the room of their prefix cache, and whether routes are kept."""
        rows = [Row(request.prompt_ids, [], request.images) for _, request in requests]
        inputs = pack_rows(rows, self._processor.placeholder_id, self._decoder.model.config.pixels_per_token)
        self._decoder.keeps_routes = requests[0][1].returns_routes
        logits, cache = self._decoder.prefill(inputs.to(self._device), requests[0][1].group_size, room)
        limit, routes = self.config.max_completion_tokens, None
        if self._decoder.routes is not None:
            ends = np.cumsum([len(request.prompt_ids) for _, request in requests])
            routes = [own.copy() for own in np.split(self._compact(self._decoder.routes), ends[:-1])]
        self._batches.append(DecodeBatch(requests, cache, logits, self.run_seed, limit, self.version, routes))

    def _step(self) -> list[tuple[int, list[Rollout]]]:
        """Sample one token of every completion and return the groups that are then complete.

        Recorded decoding goes on before the host has seen which completions have finished, so neither waits for the
        other. The next token of a finished completion is thrown away.
        """
        batches = self._batches
        logits = torch.cat([batch.logits for batch in batches]) if len(batches) > 1 else batches[0].logits
        points = torch.cat([batch.points() for batch in batches])
        chosen, logprobs = self._sample(logits, to_device(points, self._device))
        sizes = [batch.cache.num_rows for batch in batches]
        copies = HostCopies(chosen, logprobs)
        if self._runs_ahead:
            self._decode_next([(c, own) for c, own in zip(batches, chosen.split(sizes), strict=True) if c.may_go_on])
        tokens, logprobs = copies.wait()
        end_id = self._processor.tokenizer.end_id
        done = []
        for batch, own, own_logprobs in zip(batches, tokens.split(sizes), logprobs.split(sizes), strict=True):
            done += batch.record(own, own_logprobs, end_id)
        self._leave()
        if not self._runs_ahead:
            self._decode_next([(batch, to_device(batch.next_tokens(), self._device)) for batch in self._batches])
        return done

    def _decode_next(self, drawn: list[tuple[DecodeBatch, Tensor]]) -> None:
        """Compute the logits of the token after `drawn`, which has the latest tokens [R] of each batch."""
        if not drawn:
            return
        batches, tokens = zip(*drawn, strict=True)
        self._decoder.keeps_routes = any(batch.keeps_routes for batch in batches)
        logits = self._decode(torch.cat(tokens), [batch.cache for batch in batches])
        sizes = [len(own) for own in tokens]
        for batch, own in zip(batches, logits.split(sizes), strict=True):
            batch.logits = own
        if self._decoder.routes is not None:
            found = np.split(self._compact(self._decoder.routes), np.cumsum(sizes)[:-1])
            for batch, own in zip(batches, found, strict=True):
                batch.take_routes(own)

    def _compact(self, routes: Tensor) -> np.ndarray:
        """The experts [tokens, L, k] on the host, in the smallest type that holds them."""
        language = self._decoder.model.config.language
        assert isinstance(language, MoeLanguageConfig)
        return routes.cpu().numpy().astype(compact_dtype(language.num_experts))

    def _require_routers(self, request: RolloutRequest) -> None:
        if request.returns_routes and not isinstance(self._decoder.model.config.language, MoeLanguageConfig):
            raise ValueError(
                f"prompt {request.prompt_id}: returns_routes: expected False, because this decoder has no routers, "
                "found True"
            )

    def _leave(self) -> None:
        """Free the rows of finished completions where that is worth the copy of the cache."""
        self._batches = [batch for batch in self._batches if not batch.is_done]
        for batch in self._batches:
            if batch.num_live <= self._full_enough * batch.cache.num_rows:
                batch.drop_finished(self._runs_ahead)
