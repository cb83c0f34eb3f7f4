"""Keys and values of prompts and of the completions that share them, for sampling.

The prefix of a group is stored once. Completions are rows of their own, so that a finished one can leave; the rows of
one cache were started together and are equally long, so that no masked key is ever read among their own.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.attention import decode_over_prefix

_FIRST_ROOM = 32  # completion tokens; room is doubled when it is full


@dataclass
class GroupCache:
    """N prompts, each with up to G live completions; R rows are live, in the order of `cells`. Lists: one per layer."""

    group_size: int
    prefix_lengths: Tensor  # [N]
    cells: Tensor  # [R] prompt number * G + sibling number of each live row, ascending
    prefix_k: list[Tensor] = field(default_factory=list)  # [N, Hkv, P, K]
    prefix_v: list[Tensor] = field(default_factory=list)
    own_k: list[Tensor] = field(default_factory=list)  # [R, Hkv, room, K]
    own_v: list[Tensor] = field(default_factory=list)
    length: int = 0  # tokens of each completion so far
    prefix_bias: Tensor | None = None  # [N, 1, 1, P] 0 or -inf; None where all prefixes fill their room

    @classmethod
    def empty(cls, prefix_lengths: Tensor, group_size: int, room: int, dtype: torch.dtype) -> "GroupCache":
        """For prompts of `prefix_lengths` [N] in `room` slots each; layers are added by `add_layer`."""
        num_rows = len(prefix_lengths) * group_size
        cache = cls(group_size, prefix_lengths, torch.arange(num_rows, device=prefix_lengths.device))
        visible = torch.arange(room, device=prefix_lengths.device) < prefix_lengths[:, None]
        if not visible.all():
            bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            cache.prefix_bias = bias.masked_fill(~visible, float("-inf"))[:, None, None]
        return cache

    @property
    def num_rows(self) -> int:
        return len(self.cells)

    @property
    def positions(self) -> Tensor:
        """[R] of the next token of each row."""
        return self.prefix_lengths[self.cells // self.group_size] + self.length

    def add_layer(self, prefix_k: Tensor, prefix_v: Tensor) -> None:
        """[N, Hkv, P, K] each."""
        self.prefix_k.append(prefix_k)
        self.prefix_v.append(prefix_v)
        _, heads, _, width = prefix_k.shape
        for own in (self.own_k, self.own_v):
            own.append(prefix_k.new_zeros(self.num_rows, heads, _FIRST_ROOM, width))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The next token of every row: q [R, H, K], k and v [R, Hkv, K] -> [R, H, K]. `advance` after all layers."""
        if self.length == self.own_k[layer].shape[2]:
            for own in (self.own_k, self.own_v):
                own[layer] = torch.cat((own[layer], torch.zeros_like(own[layer])), dim=2)
        stop = self.length + 1
        own_k, own_v = self.own_k[layer], self.own_v[layer]
        own_k[:, :, self.length], own_v[:, :, self.length] = k, v
        prefix = (self.prefix_k[layer], self.prefix_v[layer], self.prefix_bias)
        return decode_over_prefix(q, prefix, (own_k[:, :, :stop], own_v[:, :, :stop]), self.cells, self.group_size)

    def advance(self) -> None:
        """One token more in every row."""
        self.length += 1

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these (indices, ascending), and prompts that have none left."""
        self.own_k = [own.index_select(0, rows) for own in self.own_k]
        self.own_v = [own.index_select(0, rows) for own in self.own_v]
        prompts, prompt_of_row = (self.cells[rows] // self.group_size).unique(return_inverse=True)
        self.cells = prompt_of_row * self.group_size + self.cells[rows] % self.group_size
        if len(prompts) < len(self.prefix_lengths):
            self.prefix_lengths = self.prefix_lengths[prompts]
            self.prefix_k = [prefix.index_select(0, prompts) for prefix in self.prefix_k]
            self.prefix_v = [prefix.index_select(0, prompts) for prefix in self.prefix_v]
            self.prefix_bias = None if self.prefix_bias is None else self.prefix_bias[prompts]


def prefix_room(length: int) -> int:
    """Slots for a prefix of `length` tokens: at most a quarter more, in few sizes, and the same in any company."""
    step = max(32, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step
