"""The usual way as well as can be: every completion with its own copy of the prompt, rows padded to [B, L].

The same blocks of the same model. Rows are sorted by length, so that those of one forward pass are nearly of one
length; padding stands on the right, where causal attention needs no mask to keep it out; the head sees completion
tokens alone. The vision tower runs once per row, or once per group with its gradient collected over all passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.parts.flops import Work, padded_row, total
from benchmarks.parts.update_cases import fast_kernels, gradients, placeholder_id, policy_loss
from model.batch import ModelInputs, Row, pack_rows
from model.engine.local import LocalEngine
from model.kernels.sdpa_attention import attend_padded
from model.logprobs import score_tokens
from model.sail_vl2 import SailVL2
from rlhf.trajectory import Group, Trajectory

PAD = 0


@dataclass(frozen=True)
class PaddedBatch:
    """B rows of L tokens. `inputs` packs them without branches: tokens are slots, attention is SDPA's causal one."""

    inputs: ModelInputs
    groups: Tensor  # [B] whose row it is
    advantages: Tensor  # [N]
    completions: tuple[int, ...]  # [B] lengths

    @property
    def work(self) -> Work:
        rows = len(self.completions)
        length, tiles = self.inputs.num_tokens // rows, self.inputs.num_tiles // rows
        return total(padded_row(length, completion, tiles) for completion in self.completions)


def padded_batches(groups: Sequence[Group], rows_per_pass: int, model: SailVL2) -> list[PaddedBatch]:
    """Rows of all groups by length, so many in each forward pass."""
    rows = [(number, group, t) for number, group in enumerate(groups) for t in group.trajectories]
    rows.sort(key=lambda row: len(row[2].rollout.completion_ids))
    return [_pad(rows[start : start + rows_per_pass], model) for start in range(0, len(rows), rows_per_pass)]


def _pad(rows: Sequence[tuple[int, Group, Trajectory]], model: SailVL2) -> PaddedBatch:
    completions = [t.rollout.completion_ids for _, _, t in rows]
    longest = max(map(len, completions))
    packed = pack_rows(
        [
            Row(t.rollout.prompt_ids, [[*ids, *[PAD] * (longest - len(ids))]], group.images)
            for (_, group, t), ids in zip(rows, completions, strict=True)
        ],
        placeholder_id(model.config),
        model.config.pixels_per_token,
    )
    real = torch.cat([torch.arange(longest) < len(ids) for ids in completions])
    advantages = [torch.full((len(ids),), t.advantage) for (_, _, t), ids in zip(rows, completions, strict=True)]
    return PaddedBatch(
        replace(packed, source_index=packed.source_index[real], target_ids=packed.target_ids[real]),
        torch.tensor([number for number, _, _ in rows]),
        torch.cat(advantages),
        tuple(map(len, completions)),
    )


class PaddedUpdate:
    """One update of stored groups by padded rows. The optimizer step is the engine's, as on the other side."""

    def __init__(self, engine: LocalEngine, groups: Sequence[Group], rows_per_pass: int, one_vision: bool) -> None:
        self.engine, self.one_vision = engine, one_vision
        self.batches = padded_batches(groups, rows_per_pass, engine.model)
        algorithm = policy_loss()
        self._clips = 1.0 - algorithm.config.clip_low, 1.0 + algorithm.config.clip_high
        self._denominator = algorithm.denominator(groups)
        self._images = torch.cat([image for group in groups for image in group.images])
        self._num_groups = len(groups)

    @property
    def work(self) -> Work:
        """The work of way (a): the vision tower on every row."""
        return total(batch.work for batch in self.batches)

    def accumulate(self) -> float:
        """Gradients of one update; returns its loss."""
        with fast_kernels():
            if self.one_vision:
                return self._with_one_vision_pass()
            return sum(self._backward(batch, self._visual(batch)) for batch in self.batches)

    def update(self) -> None:
        self.accumulate()
        self.engine.step()

    def gradients(self) -> dict[str, Tensor]:
        return gradients(self.engine.model)

    def one_pass(self) -> None:
        """Forward and backward of the batch in the middle."""
        batch = self.batches[len(self.batches) // 2]
        with fast_kernels():
            if self.one_vision:
                shape = (*batch.inputs.visual_index.shape, self.engine.model.config.language.hidden_size)
                self._backward(batch, torch.zeros(shape))
            else:
                self._backward(batch, self._visual(batch))
        self.engine.model.zero_grad()

    def largest_pass(self) -> None:
        """Forward and backward of the batch with most tokens, which decides the peak of memory."""
        batch = max(self.batches, key=lambda batch: batch.inputs.num_tokens)
        with fast_kernels():
            self._backward(batch, self._visual(batch))

    def _with_one_vision_pass(self) -> float:
        """Rows read the visual tokens of their group; the tower's backward pass runs once, at the end."""
        visual = self.engine.model.visual_tokens([self._images])[0].unflatten(0, (self._num_groups, -1))
        tokens = visual.detach().requires_grad_()
        loss = sum(self._backward(batch, tokens.index_select(0, batch.groups)) for batch in self.batches)
        visual.backward(tokens.grad)
        return loss

    def _visual(self, batch: PaddedBatch) -> Tensor:
        return self.engine.model.visual_tokens(batch.inputs.pixels)[0]

    def _backward(self, batch: PaddedBatch, visual: Tensor) -> float:
        inputs, model = batch.inputs, self.engine.model.language_model
        embeddings = model.model.embed_tokens(inputs.token_ids)
        embeddings = embeddings.index_copy(0, inputs.visual_index, visual.reshape(-1, embeddings.shape[1]))
        hidden, _ = model.model(
            embeddings, inputs.positions, lambda layer, q, k, v: attend_padded(q, k, v, inputs.layout)
        )
        hidden = hidden.index_select(0, inputs.source_index)
        logprobs = score_tokens(hidden, model.lm_head.weight, inputs.target_ids).logprobs
        ratio = (logprobs - logprobs.detach()).exp()
        objective = torch.minimum(ratio * batch.advantages, ratio.clamp(*self._clips) * batch.advantages)
        loss = -objective.sum() / self._denominator
        loss.backward()
        return loss.item()
