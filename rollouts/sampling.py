"""How tokens are drawn from logits: inverse CDF at a uniform number."""

import torch
from torch import Tensor

from model.kernels.available import has_triton

GREEDY = -1.0  # in the place of a uniform number: the most likely token


class Draw:
    """Draws tokens of a vocabulary without its barred ids."""

    def __init__(
        self, barred_ids: list[int], vocab_size: int, temperature: float, end_id: int, device: torch.device
    ) -> None:
        self._barred = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        self._barred[torch.tensor(barred_ids, dtype=torch.long, device=device)] = True
        self._temperature, self._end_id = temperature, end_id
        self._has_kernels = has_triton(device)

    def __call__(self, logits: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [R] and their log-probabilities [R] in float64 from logits [R, V]; `points` [R] in float64 are
        uniform in [0, 1), or GREEDY.

        Where logits are not finite: the end of turn, and NaN.
        """
        if self._has_kernels:
            from rollouts.sampling_kernels import draw  # where there is Triton

            return draw(logits, points, self._barred, self._temperature, self._end_id)
        logits = logits.float().masked_fill(self._barred, float("-inf")).div_(self._temperature)
        # Softmax works row by row; exp of a whole tensor would round by where in it a number stands.
        cumulative = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
        mass, greedy = cumulative[:, -1:], points == GREEDY
        chosen = torch.searchsorted(cumulative, points[:, None] * mass, right=True)
        if points.is_cuda or greedy.any():
            chosen = torch.where(greedy[:, None], logits.argmax(-1, keepdim=True), chosen)
        finite = torch.isfinite(mass)
        chosen = torch.where(finite, chosen, self._end_id)
        logprobs = logits.log_softmax(-1).gather(-1, chosen).double()
        return chosen.squeeze(-1), torch.where(finite, logprobs, torch.nan).squeeze(-1)
