"""Where packed tokens sit, and which of them see which.

`Layout` says where the T packed tokens sit: *roots* are causal sequences of their own; *branches* continue a root and
see it and themselves only. A group of RL is one root (the prompt) with G branches; an ordinary sequence is a root
without branches.
"""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True)
class Span:
    """Packed tokens start..stop of a root; its branches stand behind it, without gaps."""

    start: int
    stop: int
    branch_stops: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Behind the last branch."""
        return self.branch_stops[-1] if self.branch_stops else self.stop

    @property
    def branches(self) -> list[tuple[int, int]]:
        """(start, stop) of each."""
        return list(pairwise((self.stop, *self.branch_stops)))

    @property
    def longest(self) -> int:
        """Most keys that a token of it sees."""
        return self.stop - self.start + max((stop - start for start, stop in self.branches), default=0)

    def pieces(self, longest: int) -> list["Piece"]:
        """Cut the root and its branches into pieces of at most `longest` tokens.

        The first piece holds the root, whose length is not counted, and the first branches. A piece is longer where one
        branch alone is.
        """
        cuts, start = [], self.stop
        for begin, end in self.branches:
            if end - start > longest and begin > self.stop:
                cuts.append(begin)
                start = begin
        found = []
        for start, stop in pairwise((self.start, *cuts, self.end)):
            places = torch.arange(start, stop)
            branch = torch.bucketize(places, torch.tensor((self.stop, *self.branch_stops)), right=True)
            sees = (places <= places[:, None]) & ((branch == 0) | (branch == branch[:, None]))
            prefix = None if start == self.start else (self.start, self.stop)
            if prefix is not None:
                sees = torch.cat((sees.new_ones(len(places), self.stop - self.start), sees), dim=1)
            found.append(Piece(start, stop, prefix, torch.zeros(sees.shape).masked_fill_(~sees, float("-inf"))))
        return found


@dataclass(frozen=True)
class Piece:
    """Packed tokens start..stop, of a root and branches or of branches alone, and all that they see."""

    start: int
    stop: int
    prefix: tuple[int, int] | None  # (start, stop) of the root, where it is not in the piece
    bias: Tensor  # [tokens, prefix + tokens] 0 where a token (row) sees another one (column), else -inf

    def keys(self, x: Tensor) -> Tensor:
        """x [H, T, K] -> what the piece sees of it [H, prefix + tokens, K]."""
        own = x[:, self.start : self.stop]
        return own if self.prefix is None else torch.cat((x[:, slice(*self.prefix)], own), dim=1)


@dataclass(frozen=True)
class Layout:
    """Slots of T packed tokens in padded roots [R, P] and padded branches [B, C]."""

    root_tokens: Tensor  # [R, P] token in each slot, 0 in padding
    branch_tokens: Tensor  # [B, C] token in each slot, 0 in padding; B may be 0
    branch_root: Tensor  # [B] the root each branch continues
    slot_of_token: Tensor  # [T] position in (roots flattened, then branches flattened)
    token_of_slot: Tensor  # [R*P + B*C] token of each slot, T (one past the end) in padding
    is_plain: bool  # roots of one length and no branches: tokens are slots, nothing need be moved
    spans: tuple[Span, ...]  # the same roots and branches as spans of packed tokens
    _pieces: dict[tuple[int, int], list[Piece]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def longest(self) -> int:
        """Most keys that a token sees."""
        return max((span.longest for span in self.spans), default=0)

    def short_pieces(self, longest: int, longest_piece: int) -> list[Piece]:
        """`Span.pieces` of every span whose tokens see at most `longest`; made once for all layers."""
        key = longest, longest_piece
        if key not in self._pieces:
            short = [span for span in self.spans if span.longest <= longest]
            self._pieces[key] = [piece for span in short for piece in span.pieces(longest_piece)]
        return self._pieces[key]

    @cached_property
    def branch_mask(self) -> Tensor:
        """[B, 1, C, P + C] True where a branch slot may attend; made when a kernel asks for it, once for all layers."""
        device, (_, prefix), (_, length) = self.branch_root.device, self.root_tokens.shape, self.branch_tokens.shape
        lengths = torch.tensor([span.stop - span.start for span in self.spans], device=device)[self.branch_root]
        to_prefix = (torch.arange(prefix, device=device) < lengths[:, None])[:, None].expand(-1, length, -1)
        to_own = torch.ones(length, length, dtype=torch.bool, device=device).tril().expand(len(lengths), -1, -1)
        return torch.cat((to_prefix, to_own), dim=2).unsqueeze(1)
