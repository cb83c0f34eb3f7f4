"""Sampling of tokens from logits: the inverse of the cumulative distribution at a uniform number."""

import torch
from torch import Tensor

from model.kernels.available import has_triton

GREEDY = -1.0
"""Stands in place of a uniform number and asks for the most likely token."""


class TokenSampler:
    """Samples tokens from logits. Barred ids of the vocabulary are never chosen."""

    def __init__(
        self, barred_ids: list[int], vocab_size: int, temperature: float, end_id: int, device: torch.device
    ) -> None:
        self._barred = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._barred[torch.tensor(barred_ids, dtype=torch.long, device=device)] = True
        self._temperature, self._end_id = temperature, end_id
        self._has_kernels = has_triton(device)

    def __call__(self, logits: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return token ids [R] and their log-probabilities [R] in float64 for logits [R, V].

        `points` [R] in float64 are uniform in [0, 1), or GREEDY. A row whose logits are not finite gives the end of
        turn and NaN.
        """
        if self._has_kernels:
            from rollouts.sampling_kernels import sample_tokens  # needs Triton

            return sample_tokens(logits, points, self._barred, self._temperature, self._end_id)
        logits = logits.float().masked_fill(self._barred, float("-inf")).div_(self._temperature)
        # Softmax works row by row. The exp of a whole tensor rounds a number by where it stands in the tensor.
        cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
        mass, greedy = cumulative[:, -1:], points == GREEDY
        chosen = torch.searchsorted(cumulative, points[:, None] * mass, right=True)
        if points.is_cuda or greedy.any():
            chosen = torch.where(greedy[:, None], logits.argmax(-1, keepdim=True), chosen)
        finite = torch.isfinite(mass)
        chosen = torch.where(finite, chosen, self._end_id)
        logprobs = logits.log_softmax(-1).gather(-1, chosen).double()
        return chosen.squeeze(-1), torch.where(finite, logprobs, torch.nan).squeeze(-1)
