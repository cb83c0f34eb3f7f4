"""Completions that were started together: the tokens of each so far, and which are unfinished."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.decoding.group_cache import GroupCache
from rollouts.randomness import sample_seed, uniforms
from rollouts.rollout import FinishReason, Rollout, RolloutRequest
from rollouts.routes import Routes
from rollouts.sampling import GREEDY
from rollouts.transit import to_device


class DecodeBatch:
    """Decodes N requests of one group size G side by side.

    A *cell* is a completion, with the number n * G + sibling. A *row* is a completion that is still decoded; the row of
    a finished one is dropped now and then.
    """

    def __init__(
        self,
        requests: Sequence[tuple[int, RolloutRequest]],
        cache: GroupCache,
        logits: Tensor,
        run_seed: int,
        limit: int,
        version: int,
        prompt_routes: Sequence[np.ndarray] | None = None,
    ) -> None:
        """`logits` [N * G, V] are those of the first token. Completions end at `limit` tokens.

        With `prompt_routes`, one [tokens, L, k] a request, the experts of completion tokens are kept too.
        """
        self.cache, self.logits = cache, logits
        self._requests, self._limit = list(requests), limit
        self._group_size = requests[0][1].group_size
        cells = [(request, sibling) for _, request in requests for sibling in range(self._group_size)]
        self._seeds = np.array([sample_seed(run_seed, r.group_index, sibling) for r, sibling in cells], dtype=np.uint64)
        self._greedy = np.array([request.greedy for request, _ in cells])
        self._tokens = np.zeros((len(cells), limit), dtype=np.int64)
        self._logprobs = np.zeros((len(cells), limit))
        self._lengths = np.zeros(len(cells), dtype=np.int64)
        self._live = np.ones(len(cells), dtype=bool)
        self._ended = np.zeros(len(cells), dtype=bool)  # the completion came to its end of turn
        self._open = np.ones(len(requests), dtype=bool)  # the group was not returned yet
        self._cell_of_row = np.arange(len(cells))
        self._step = 0
        self._versions = [(0, version)]
        self._prompt_routes = prompt_routes
        self._routes: list[np.ndarray] = []  # [cells, L, k] of each token that was fed

    @property
    def keeps_routes(self) -> bool:
        return self._prompt_routes is not None

    @property
    def num_live(self) -> int:
        return int(self._live.sum())

    @property
    def is_done(self) -> bool:
        return not self._live.any()

    @property
    def may_go_on(self) -> bool:
        """Whether there is room for a token after the next one."""
        return self._step + 1 < self._limit

    def points(self) -> Tensor:
        """Return the uniform number of each row's next token, or GREEDY. [R]"""
        rows = self._cell_of_row
        return torch.from_numpy(np.where(self._greedy[rows], GREEDY, uniforms(self._seeds[rows], self._step)))

    def record(self, chosen: Tensor, logprobs: Tensor, end_id: int) -> list[tuple[int, list[Rollout]]]:
        """Take the next token of every row [R] and return the requests that are then complete, by handle."""
        live = self._live[self._cell_of_row]
        cells, tokens = self._cell_of_row[live], chosen.numpy()[live]
        self._tokens[cells, self._step] = tokens
        self._logprobs[cells, self._step] = logprobs.numpy()[live]
        self._step += 1
        self._lengths[cells] = self._step
        self._ended[cells] = tokens == end_id
        self._live[cells] = (tokens != end_id) & (self._step < self._limit)
        complete = self._open & ~self._live.reshape(-1, self._group_size).any(1)
        self._open &= ~complete
        return [(self._requests[n][0], self._rollouts(n)) for n in np.flatnonzero(complete)]

    def take_routes(self, routes: np.ndarray) -> None:
        """Keep the experts of the latest token of every row, which was just fed. [R, L, k]"""
        if self.keeps_routes:
            own = np.zeros((len(self._lengths), *routes.shape[1:]), routes.dtype)
            own[self._cell_of_row] = routes
            self._routes.append(own)

    def next_tokens(self) -> Tensor:
        """Return the latest token of every row of the cache. [R]"""
        return torch.from_numpy(self._tokens[self._cell_of_row, self._step - 1])

    def drop_finished(self, has_next: bool) -> None:
        """Free the rows of finished completions. `has_next` says whether the next token's logits are there already."""
        rows = np.flatnonzero(self._live[self._cell_of_row])
        self._cell_of_row = self._cell_of_row[rows]
        kept = to_device(torch.from_numpy(rows), self.cache.cells.device)
        self.cache.keep(kept)
        if has_next:
            self.logits = self.logits.index_select(0, kept)

    def change_version(self, version: int) -> None:
        """Note that other weights come from here on.

        The next token's logits still come from the old weights, and so do the keys and values of earlier tokens.
        """
        start = self._step + 1
        self._versions = [run for run in self._versions if run[0] < start] + [(start, version)]

    def abort(self, handle: int) -> None:
        """Give up a request's completions."""
        for n, (own, _) in enumerate(self._requests):
            if own == handle:
                self._open[n] = False
                self._live[n * self._group_size : (n + 1) * self._group_size] = False

    def _rollouts(self, n: int) -> list[Rollout]:
        return [self._rollout(n * self._group_size + sibling, sibling) for sibling in range(self._group_size)]

    def _rollout(self, cell: int, sibling: int) -> Rollout:
        request, length = self._requests[cell // self._group_size][1], int(self._lengths[cell])
        logprobs = self._logprobs[cell, :length]
        reason = FinishReason.stop if self._ended[cell] else FinishReason.length
        return Rollout(
            group_index=request.group_index,
            prompt_id=request.prompt_id,
            sample_index=sibling,
            prompt_ids=request.prompt_ids,
            completion_ids=self._tokens[cell, :length].tolist(),
            completion_mask=[1] * length,
            rollout_logprobs=logprobs.tolist(),
            policy_versions=tuple(run for run in self._versions if run[0] < length),
            finish_reason=FinishReason.error if np.isnan(logprobs).any() else reason,
            routes=self._routes_of(cell, length),
        )

    def _routes_of(self, cell: int, length: int) -> Routes | None:
        if self._prompt_routes is None:
            return None
        prompt = self._prompt_routes[cell // self._group_size]
        fed = [routes[cell] for routes in self._routes[: length - 1]]
        return Routes(prompt, np.stack(fed) if fed else prompt[:0])
