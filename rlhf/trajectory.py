"""Groups of rewarded rollouts, and their way into packed tensors: one row per group, one vision pass per group."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.batch import ModelInputs, Row, RowRoutes, StoredImage, move_batch, pack_rows, split_by_tokens
from model.engine.base import Scorer
from model.engine.parts import Costs
from model.interface import Mode
from rewards.result import RewardResult, Status
from rollouts.rollout import FinishReason, Prompt, Rollout


@dataclass(frozen=True)
class Trajectory:
    """A rollout with its reward; `advantage` is 0 until the algorithm assigns it."""

    rollout: Rollout
    reward: RewardResult
    shaped_reward: float  # the reward after the algorithm's own terms, such as the overlong penalty
    advantage: float = 0.0
    token_advantages: list[float] | None = None  # one per completion token, where they are not all `advantage`
    ref_logprobs: Tensor | None = None  # [tokens] by the frozen reference, when a KL to it is asked for

    @property
    def is_overlong(self) -> bool:
        return self.rollout.finish_reason is FinishReason.length

    @property
    def num_trained_tokens(self) -> int:
        return sum(self.rollout.completion_mask)

    @property
    def has_advantage(self) -> bool:
        return any(self.token_advantages) if self.token_advantages is not None else self.advantage != 0

    @property
    def mean_advantage(self) -> float:
        """`advantage`, or the mean over tokens where they differ."""
        values = self.token_advantages
        return sum(values) / max(1, len(values)) if values is not None else self.advantage

    @property
    def is_scored(self) -> bool:
        return self.reward.status is Status.ok


@dataclass(frozen=True)
class Group:
    """The completions of one prompt that were sampled together."""

    group_index: int  # number of the group within the run
    prompt: Prompt
    images: Sequence[Tensor | StoredImage]  # images of the prompt, pixels of each [tiles, 3, height, width]
    trajectories: tuple[Trajectory, ...]
    files: Sequence[str] = ()  # paths of the prompt's images and videos
    mode: Mode = Mode.think  # how the prompt was asked

    @property
    def scored(self) -> tuple[Trajectory, ...]:
        """Those whose reward is known; the others never enter means or the loss."""
        return tuple(t for t in self.trajectories if t.is_scored)

    @property
    def policy_version(self) -> int:
        """The policy version of the oldest token."""
        return min(version for t in self.trajectories for _, version in t.rollout.policy_versions)

    def with_trajectories(self, trajectories: Sequence[Trajectory]) -> "Group":
        return replace(self, trajectories=tuple(trajectories))


@dataclass(frozen=True)
class PolicyBatch:
    """RL micro-batch over N completion tokens of S trajectories."""

    inputs: ModelInputs
    loss_mask: Tensor  # [N] True where a token trains
    advantages: Tensor  # [N] fp32
    rollout_logprobs: Tensor  # [N] by the sampler
    old_logprobs: Tensor | None  # [N] by the policy at the start of the step; None: detach the policy's own
    ref_logprobs: Tensor | None  # [N] by the frozen reference; None when no KL is asked for
    sequence: Tensor  # [N] trajectory number within this micro-batch, 0 .. S-1
    token_weights: Tensor  # [N] what each token's loss is multiplied by before the sum
    prompt_ids: tuple[str, ...] = ()  # ids of the prompts behind these trajectories, for messages

    def to(self, device: torch.device) -> "PolicyBatch":
        return move_batch(self, device)


@dataclass(frozen=True)
class Packing:
    """How groups become micro-batches: what an engine and a processor say about it."""

    budget: int  # packed tokens of a micro-batch
    placeholder_id: int
    pixels_per_token: int
    num_parts: int = 1  # see `TrainEngine.num_parts`
    costs: Costs | None = None  # prices of rows, where there are several parts

    def pack(self, groups: Sequence[Group], mean_per_sequence: bool = False) -> list[PolicyBatch]:
        """Groups -> micro-batches of at most `budget` tokens; a larger group becomes rows that repeat its prefix.

        Every scored trajectory of the groups is packed. `mean_per_sequence` gives each token the weight
        1 / (trained tokens of its trajectory), otherwise 1.
        """
        return [self._batch(pieces, mean_per_sequence) for pieces in self._dealt(groups)]

    def logprobs(self, scorer: Scorer, groups: Sequence[Group], replays: bool = True) -> list[list[Tensor]]:
        """The scorer's log-probabilities [tokens] of every scored trajectory, group by group, on CPU.

        An MoE takes the experts that the rollouts bring, unless `replays` is False.
        """
        dealt = self._dealt(groups)
        batches = [self._batch(pieces, False, replays) for pieces in dealt]
        found: dict[int, Tensor] = {}
        scores = scorer.logprobs([batch.inputs for batch in batches])
        for pieces, batch, one in zip(dealt, batches, scores, strict=True):
            columns = one.logprobs.cpu().split(torch.bincount(batch.sequence).tolist())
            trajectories = [t for piece in pieces for t in piece.trajectories]
            found |= {id(t): column for t, column in zip(trajectories, columns, strict=True)}
        return [[found[id(t)] for t in group.scored] for group in groups]

    def _dealt(self, groups: Sequence[Group]) -> list[list["_Piece"]]:
        """The pieces of each micro-batch."""
        pieces = [piece for group in groups for piece in _split_group(group, self.budget)]
        costs = [self.costs.of_row(piece.row(replays=False)) for piece in pieces] if self.costs else None
        bins = split_by_tokens([piece.num_tokens for piece in pieces], self.budget, self.num_parts, costs)
        return [[pieces[number] for number in numbers] for numbers in bins]

    def _batch(self, pieces: Sequence["_Piece"], mean_per_sequence: bool, replays: bool = True) -> PolicyBatch:
        rows = [piece.row(replays) for piece in pieces]
        trajectories = [t for piece in pieces for t in piece.trajectories]
        try:
            inputs = pack_rows(rows, self.placeholder_id, self.pixels_per_token)
        except ValueError as error:
            prompts = sorted({t.rollout.prompt_id for t in trajectories})
            raise ValueError(f"prompts {prompts}: {error}") from None
        inputs = replace(inputs, routing_weights=routing_weights(rows))
        return _policy_batch(inputs, trajectories, mean_per_sequence)


def routing_weights(rows: Sequence[Row]) -> Tensor:
    """[T] how much each token counts in load balancing: a prompt token as often as it has siblings behind it.

    So the sum over a group is the same however the group is split over rows.
    """
    counts = [(len(row.completions), len(row.prefix_ids)) for row in rows]
    lengths = [sum(map(len, row.completions)) for row in rows]
    parts = [
        torch.cat((torch.full((prefix,), float(siblings)), torch.ones(length)))
        for (siblings, prefix), length in zip(counts, lengths, strict=True)
    ]
    return torch.cat(parts)


@dataclass(frozen=True)
class _Piece:
    """Trajectories of a group that make one row."""

    trajectories: list[Trajectory]
    images: Sequence[Tensor | StoredImage]

    @property
    def num_tokens(self) -> int:
        lengths = [len(t.rollout.completion_ids) for t in self.trajectories]
        return len(self.trajectories[0].rollout.prompt_ids) + sum(lengths)

    def row(self, replays: bool) -> Row:
        completions = [t.rollout.completion_ids for t in self.trajectories]
        routes = self._routes() if replays else None
        return Row(self.trajectories[0].rollout.prompt_ids, completions, self.images, routes)

    def _routes(self) -> RowRoutes | None:
        """The experts that the sampler took, those of the prompt once for all its completions."""
        found = [t.rollout.routes for t in self.trajectories]
        first = next((routes for routes in found if routes is not None), None)
        if first is None:
            return None
        return RowRoutes(first.prompt, [routes.completion if routes else first.prompt[:0] for routes in found])


def _split_group(group: Group, budget: int) -> list[_Piece]:
    pieces: list[list[Trajectory]] = [[]]
    prefix = len(group.trajectories[0].rollout.prompt_ids)
    used = prefix
    for trajectory in group.scored:
        length = len(trajectory.rollout.completion_ids)
        if pieces[-1] and used + length > budget:
            pieces.append([])
            used = prefix
        pieces[-1].append(trajectory)
        used += length
    return [_Piece(piece, group.images) for piece in pieces if piece]


def _policy_batch(inputs: ModelInputs, trajectories: Sequence[Trajectory], mean_per_sequence: bool) -> PolicyBatch:
    lengths = [len(t.rollout.completion_ids) for t in trajectories]
    sequence = torch.repeat_interleave(torch.arange(len(trajectories)), torch.tensor(lengths))
    mask = torch.tensor([bit for t in trajectories for bit in t.rollout.completion_mask], dtype=torch.bool)
    trained = torch.zeros(len(trajectories)).index_add(0, sequence, mask.float())
    weights = 1.0 / trained.clamp(min=1.0) if mean_per_sequence else torch.ones(len(trajectories))
    advantages = [
        a
        for t, length in zip(trajectories, lengths, strict=True)
        for a in (t.token_advantages or [t.advantage] * length)
    ]
    references = [t.ref_logprobs for t in trajectories if t.ref_logprobs is not None]
    return PolicyBatch(
        inputs=inputs,
        loss_mask=mask,
        advantages=torch.tensor(advantages, dtype=torch.float32),
        rollout_logprobs=torch.tensor([x for t in trajectories for x in t.rollout.rollout_logprobs]),
        old_logprobs=None,
        ref_logprobs=torch.cat(references) if references else None,
        sequence=sequence,
        token_weights=weights[sequence],
        prompt_ids=tuple(dict.fromkeys(t.rollout.prompt_id for t in trajectories)),
    )
