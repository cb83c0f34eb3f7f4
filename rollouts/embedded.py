"""The reference sampler: in this process, with our own model; one prefill and one vision pass per group.

Batching is continuous: a finished completion frees its place, and waiting prompts move in while others go on.
"""

import time

import torch
from torch import Tensor

from model.batch import Row, pack_rows
from model.checkpoint import fill, released_tensors
from model.decode_graph import DecodeGraph
from model.group_cache import prefix_room
from model.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.cohort import Cohort
from rollouts.config import RolloutConfig
from rollouts.parcels import Parcel
from rollouts.probe import Probe, probe_model
from rollouts.rollout import MOMENT, Rollout, RolloutRequest
from rollouts.weight_sync import tensor_checksum

_PREFILL_TOKENS = (8192, 32768)  # of prompts run side by side, on CPU and GPU
_FULL_ENOUGH = (0.875, 0.5)  # share of a cohort's rows that is live, on CPU and GPU; leaving records a graph anew


class EmbeddedWorker:
    """`RolloutWorker` in the trainer's process. Owns a copy of the weights; `model` is only read at construction."""

    def __init__(self, model: SailVL2, processor: Processor, config: RolloutConfig, run_seed: int) -> None:
        self.config = config
        self.run_seed = run_seed
        self.version = 0
        self._processor = processor
        self._model = SailVL2(model.config).to(model.device, model.dtype)
        self._model.load_state_dict(model.state_dict())
        self._model.prepare_for_sampling()
        self._device = model.device
        self._decode = DecodeGraph(self._model).decode if DecodeGraph.fits(self._model) else self._model.decode
        self._full_enough = _FULL_ENOUGH[self._device.type == "cuda"]
        self._prefill_tokens = _PREFILL_TOKENS[self._device.type == "cuda"]
        self._barred = torch.tensor(processor.barred_ids, device=self._device)
        self._queue: dict[int, RolloutRequest] = {}
        self._cohorts: list[Cohort] = []
        self._next_handle = 0
        self._manifest: dict[str, int] = {}
        self._received: dict[str, Tensor] = {}

    @property
    def is_idle(self) -> bool:
        return not (self._queue or self._cohorts)

    def submit(self, request: RolloutRequest) -> int:
        self.config.check_length(request.prompt_id, len(request.prompt_ids))
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._queue[handle] = request
        return handle

    @torch.no_grad()
    def poll(self) -> list[tuple[int, list[Rollout]]]:
        done: list[tuple[int, list[Rollout]]] = []
        end = time.monotonic() + MOMENT
        while not done and not self.is_idle and time.monotonic() < end:
            self._admit()
            done = self._step()
        return done

    def abort(self, handle: int) -> None:
        self._queue.pop(handle, None)
        for cohort in self._cohorts:
            cohort.abort(handle)
        self._cohorts = [cohort for cohort in self._cohorts if not cohort.is_done]

    def begin_update(self, version: int, manifest: dict[str, int]) -> None:
        self._manifest, self._received = manifest, {}

    def load(self, name: str, tensor: Tensor) -> None:
        self._received[name] = tensor

    def finish_update(self, version: int) -> dict[str, int]:
        missing = self._manifest.keys() - self._received.keys()
        if missing:
            raise RuntimeError(f"weight sync to version {version}: tensors never arrived: {sorted(missing)}")
        fill(self._model, self._received.items())
        self._received = {}
        self.version = version
        for cohort in self._cohorts:
            cohort.change_version(version)
        held = released_tensors(self._model)
        return {name: tensor_checksum(held[name]) for name in self._manifest}

    def receive(self, version: int, manifest: dict[str, int], parcel: Parcel) -> dict[str, int]:
        """As an update with the tensors of a parcel. `ParcelLost` if they did not come."""
        self.begin_update(version, manifest)
        for name, tensor in parcel.open():
            self.load(name, tensor)
        return self.finish_update(version)

    def probe(self, request: RolloutRequest) -> list[tuple[str, Probe]]:
        return [("sampler", probe_model(self._model, request, self._processor.placeholder_id))]

    def close(self) -> None:
        self._queue.clear()
        self._cohorts.clear()

    def _admit(self) -> None:
        """Start waiting prompts once a quarter of the rows is free: cohorts are then few, and prefills large."""
        live = sum(cohort.num_live for cohort in self._cohorts)
        free = self.config.max_rows - live
        if not self._queue or (live and free < max(self.config.max_rows // 4, self._next_group_size())):
            return
        admitted: list[tuple[int, RolloutRequest]] = []
        while self._queue and (self._next_group_size() <= free or not (live or admitted)):
            free -= self._next_group_size()
            handle = next(iter(self._queue))
            admitted.append((handle, self._queue.pop(handle)))
        alike: dict[tuple[int, int], list[tuple[int, RolloutRequest]]] = {}
        for handle, request in admitted:
            key = (prefix_room(len(request.prompt_ids)), request.group_size)
            alike.setdefault(key, []).append((handle, request))
        for (room, _), requests in alike.items():
            at_once = max(1, self._prefill_tokens // room)
            for start in range(0, len(requests), at_once):
                self._start(requests[start : start + at_once], room)

    def _next_group_size(self) -> int:
        return next(iter(self._queue.values())).group_size if self._queue else 0

    def _start(self, requests: list[tuple[int, RolloutRequest]], room: int) -> None:
        """Prefill prompts that share group size and room."""
        rows = [Row(request.prompt_ids, [], request.images) for _, request in requests]
        inputs = pack_rows(rows, self._processor.placeholder_id, self._model.config.pixels_per_token)
        logits, cache = self._model.prefill(inputs.to(self._device), requests[0][1].group_size, room)
        limit = self.config.max_completion_tokens
        self._cohorts.append(Cohort(requests, cache, logits, self.run_seed, limit, self.version))

    def _step(self) -> list[tuple[int, list[Rollout]]]:
        """One token of every completion; returns the groups that are then complete."""
        cohorts = self._cohorts
        logits = torch.cat([cohort.logits for cohort in cohorts]) if len(cohorts) > 1 else cohorts[0].logits
        points, greedy = zip(*(cohort.points() for cohort in cohorts), strict=True)
        chosen, logprobs = self._draw(logits, torch.cat(points), torch.cat(greedy))
        sizes = [cohort.cache.num_rows for cohort in cohorts]
        end_id = self._processor.tokenizer.end_id
        done = []
        drawn = zip(cohorts, chosen.cpu().split(sizes), logprobs.cpu().split(sizes), strict=True)
        for cohort, tokens, own_logprobs in drawn:
            done += cohort.record(tokens, own_logprobs, end_id)
        self._leave()
        if self._cohorts:
            tokens = torch.cat([cohort.next_tokens() for cohort in self._cohorts]).to(self._device)
            logits = self._decode(tokens, [cohort.cache for cohort in self._cohorts])
            sizes = [cohort.cache.num_rows for cohort in self._cohorts]
            for cohort, own in zip(self._cohorts, logits.split(sizes), strict=True):
                cohort.logits = own
        return done

    def _leave(self) -> None:
        """Finished completions free their rows, when it pays for the copy of the cache."""
        self._cohorts = [cohort for cohort in self._cohorts if not cohort.is_done]
        for cohort in self._cohorts:
            if cohort.num_live <= self._full_enough * cohort.cache.num_rows:
                cohort.drop_finished()

    def _draw(self, logits: Tensor, points: Tensor, greedy: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and their log-probabilities [R] from logits [R, V]: inverse CDF at the uniform numbers `points`
        [R], or the most likely token where `greedy` [R].

        Where logits are not finite: the end of turn, and NaN.
        """
        logits = logits.float().index_fill(-1, self._barred, float("-inf")).div_(self.config.temperature)
        # Softmax works row by row; exp of a whole tensor would round by where in it a number stands.
        cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
        mass = cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, points.to(mass.device)[:, None] * mass, right=True)
        if greedy.any():
            drawn = torch.where(greedy.to(mass.device)[:, None], logits.argmax(-1, keepdim=True), drawn)
        finite = torch.isfinite(mass)
        chosen = torch.where(finite, drawn, self._processor.tokenizer.end_id)
        logprobs = logits.log_softmax(-1).gather(-1, chosen).double()
        return chosen.squeeze(-1), torch.where(finite, logprobs, torch.nan).squeeze(-1)
