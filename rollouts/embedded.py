"""The reference sampler: in this process, with our own model; one prefill and one vision pass per group."""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.batch import Row, pack_rows
from model.checkpoint import fill, released_tensors
from model.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.config import RolloutConfig
from rollouts.randomness import sample_seed, uniforms
from rollouts.rollout import FinishReason, Rollout, RolloutRequest

_MIN_ROWS = 8  # fp32 `linear` gives other last bits on fewer rows


class EmbeddedWorker:
    """`RolloutWorker` in the trainer's process. Owns a copy of the weights; `model` is only read at construction."""

    def __init__(self, model: SailVL2, processor: Processor, config: RolloutConfig, run_seed: int) -> None:
        self.config = config
        self.run_seed = run_seed
        self.version = 0
        self._processor = processor
        self._model = SailVL2(model.config).to(next(model.parameters()).dtype)
        self._model.load_state_dict(model.state_dict())
        self._model.requires_grad_(False)
        self._barred = torch.zeros(model.config.language.vocab_size, dtype=torch.bool)
        self._barred[processor.barred_ids] = True
        self._queue: dict[int, RolloutRequest] = {}
        self._next_handle = 0
        self._manifest: dict[str, int] = {}
        self._received: dict[str, Tensor] = {}

    def submit(self, request: RolloutRequest) -> int:
        if len(request.prompt_ids) > self.config.max_prompt_tokens:
            raise ValueError(
                f"prompt {request.prompt_id}: expected at most rollouts.max_prompt_tokens = "
                f"{self.config.max_prompt_tokens} tokens, found {len(request.prompt_ids)}"
            )
        handle, self._next_handle = self._next_handle, self._next_handle + 1
        self._queue[handle] = request
        return handle

    def poll(self) -> list[tuple[int, list[Rollout]]]:
        if not self._queue:
            return []
        first = next(iter(self._queue.values()))
        alike = [h for h, r in self._queue.items() if (r.group_size, r.greedy) == (first.group_size, first.greedy)]
        handles = alike[: max(1, self.config.max_rows // first.group_size)]
        requests = [self._queue.pop(handle) for handle in handles]
        return list(zip(handles, self._sample(requests), strict=True))

    def abort(self, handle: int) -> None:
        self._queue.pop(handle, None)

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
        held = released_tensors(self._model)
        return {name: tensor_checksum(held[name]) for name in self._manifest}

    def close(self) -> None:
        self._queue.clear()

    @torch.no_grad()
    def _sample(self, requests: Sequence[RolloutRequest]) -> list[list[Rollout]]:
        """All requests share group size and greediness."""
        group, limit = requests[0].group_size, self.config.max_completion_tokens
        # Repeating a prompt fills the batch up to the row count from which arithmetic does not depend on it.
        filler = [requests[0]] * max(0, -(-_MIN_ROWS // group) - len(requests))
        padded = [*requests, *filler]
        rows = [Row(request.prompt_ids, [], request.images) for request in padded]
        inputs = pack_rows(rows, self._processor.placeholder_id, self._model.config.pixels_per_token)
        logits, cache = self._model.prefill(inputs, group, self.config.max_prompt_tokens, limit)
        seeds = np.array(
            [[sample_seed(self.run_seed, r.draw, i) for i in range(group)] for r in padded], dtype=np.uint64
        )
        tokens = torch.zeros(len(padded), group, limit, dtype=torch.long)
        logprobs = torch.zeros(len(padded), group, limit, dtype=torch.float64)
        lengths = torch.full((len(padded), group), limit)
        ended = torch.zeros(len(padded), group, dtype=torch.bool)
        live = torch.arange(len(padded))  # prompts with an unfinished completion
        for step in range(limit):
            chosen, chosen_logprobs = self._draw(logits, seeds[live.numpy()], step, requests[0].greedy)
            tokens[live, :, step] = chosen
            logprobs[live, :, step] = chosen_logprobs
            stops = (chosen == self._processor.tokenizer.end_id) & ~ended[live]
            lengths[live] = torch.where(stops, step + 1, lengths[live])
            ended[live] |= stops
            unfinished = ~ended[live].all(dim=1)
            if step + 1 == limit or not unfinished.any():
                break
            # Whole groups leave together, and only when it pays for the copy of the cache.
            if unfinished.sum() <= 0.75 * len(live) and unfinished.sum() * group >= _MIN_ROWS:
                keep = unfinished.nonzero().squeeze(1)
                live, cache, chosen = live[keep], cache.select(keep), chosen[keep]
            logits = self._model.decode(chosen, step, cache)
        return [
            [self._rollout(request, n, i, tokens, logprobs, lengths, ended) for i in range(group)]
            for n, request in enumerate(requests)
        ]

    def _draw(self, logits: Tensor, seeds: np.ndarray, step: int, greedy: bool) -> tuple[Tensor, Tensor]:
        """Token ids and their log-probabilities [n, G] from logits [n, G, V]; inverse CDF at one keyed uniform.

        Where logits are not finite: the end of turn, and NaN.
        """
        logits = logits.float().masked_fill(self._barred, float("-inf")) / self.config.temperature
        log_all = logits.log_softmax(-1)
        if greedy:
            chosen = log_all.argmax(-1)
        else:
            cumulative = log_all.double().exp().cumsum(-1)
            target = torch.from_numpy(uniforms(seeds, step))[..., None] * cumulative[..., -1:]
            chosen = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        finite = torch.isfinite(log_all.amax(-1))
        chosen = torch.where(finite, chosen, self._processor.tokenizer.end_id)
        chosen_logprobs = log_all.gather(-1, chosen[..., None]).squeeze(-1).double()
        return chosen, torch.where(finite, chosen_logprobs, torch.nan)

    def _rollout(
        self,
        request: RolloutRequest,
        n: int,
        sample_index: int,
        tokens: Tensor,
        logprobs: Tensor,
        lengths: Tensor,
        ended: Tensor,
    ) -> Rollout:
        length = int(lengths[n, sample_index])
        reason = FinishReason.stop if ended[n, sample_index] else FinishReason.length
        if logprobs[n, sample_index, :length].isnan().any():
            reason = FinishReason.error
        return Rollout(
            draw=request.draw,
            prompt_id=request.prompt_id,
            sample_index=sample_index,
            prompt_ids=request.prompt_ids,
            completion_ids=tokens[n, sample_index, :length].tolist(),
            completion_mask=[1] * length,
            rollout_logprobs=logprobs[n, sample_index, :length].tolist(),
            policy_versions=((0, self.version),),
            finish_reason=reason,
        )


def tensor_checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's bytes."""
    return zlib.crc32(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
