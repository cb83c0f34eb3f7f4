"""Keys and values of prompts and of the completions that share them, for sampling.

The prefix of a group is stored once. Completions are rows of their own, so that a finished one can leave; the rows of
one cache were started together and are equally long, so that on CPU no masked key is ever read among their own. On a
GPU shapes and addresses stay the same from token to token, so that a step can be recorded once as a CUDA graph.
"""

import itertools
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model.decoding.attention import decode_over_prefix
from model.kernels.available import fits_decode_kernels, has_triton

_layouts = itertools.count()
_FIRST_ROOM = 32  # completion tokens; room is doubled when it is full
_FIRST_ROOM_WITH_KERNELS = 128  # each doubling records a graph anew; kernels of our own do not read what is empty


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
    slot: Tensor | None = None  # [1] `length` on the GPU; None on CPU
    own_bias: Tensor | None = None  # [room] 0 or -inf, of this step; None on CPU and with kernels of our own
    row_of_cell: Tensor | None = None  # [N * G] live row of each sibling, or -1; None on CPU
    has_kernels: bool = False  # whether our own kernels run on this GPU
    layout_id: int = field(default_factory=lambda: next(_layouts))  # another one when tensors are replaced

    @classmethod
    def empty(cls, prefix_lengths: Tensor, group_size: int, room: int, dtype: torch.dtype) -> "GroupCache":
        """For prompts of `prefix_lengths` [N] in `room` slots each; layers are added by `add_layer`."""
        num_rows = len(prefix_lengths) * group_size
        cache = cls(group_size, prefix_lengths, torch.arange(num_rows, device=prefix_lengths.device))
        visible = torch.arange(room, device=prefix_lengths.device) < prefix_lengths[:, None]
        if not visible.all():
            bias = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
            cache.prefix_bias = bias.masked_fill(~visible, float("-inf"))[:, None, None]
        if prefix_lengths.is_cuda:
            cache.slot = torch.zeros(1, dtype=torch.long, device=prefix_lengths.device)
            cache.row_of_cell = cache.cells.clone()
        return cache

    @property
    def num_rows(self) -> int:
        return len(self.cells)

    @property
    def positions(self) -> Tensor:
        """[R] of the next token of each row."""
        at = self.length if self.slot is None else self.slot
        return self.prefix_lengths[self.cells // self.group_size] + at

    @property
    def room(self) -> int:
        """Completion tokens that fit."""
        return self.own_k[0].shape[2]

    def add_layer(self, prefix_k: Tensor, prefix_v: Tensor) -> None:
        """[N, Hkv, P, K] each."""
        self.has_kernels = fits_decode_kernels(prefix_k.dtype, prefix_k.shape[-1]) and has_triton(prefix_k.device)
        self.prefix_k.append(prefix_k)
        self.prefix_v.append(prefix_v)
        _, heads, _, width = prefix_k.shape
        room = _FIRST_ROOM_WITH_KERNELS if self.has_kernels else _FIRST_ROOM
        for own in (self.own_k, self.own_v):
            own.append(prefix_k.new_zeros(self.num_rows, heads, room, width))

    def make_room(self) -> None:
        """For one token more, before a step."""
        if self.length == self.room:
            self.layout_id = next(_layouts)
            self.own_k, self.own_v = (
                [torch.cat((own, torch.zeros_like(own)), dim=2) for own in side] for side in (self.own_k, self.own_v)
            )

    def begin_step(self) -> None:
        """On a GPU without kernels of our own: which own slots are visible, once for all layers."""
        if self.slot is not None and not self.has_kernels:
            hidden = torch.arange(self.room, device=self.slot.device) > self.slot
            self.own_bias = torch.zeros_like(hidden, dtype=self.own_k[0].dtype).masked_fill_(hidden, float("-inf"))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The next token of every row: q [R, H, K], k and v [R, Hkv, K] -> [R, H, K]. `advance` after all layers."""
        own_k, own_v = self.own_k[layer], self.own_v[layer]
        prefix_k, prefix_v = self.prefix_k[layer], self.prefix_v[layer]
        if self.has_kernels and self.slot is not None and self.row_of_cell is not None:
            from model.kernels.decode_kernels import decode_attention  # where there is Triton

            prefix, own = (prefix_k, prefix_v, self.prefix_lengths), (own_k, own_v, self.slot)
            return decode_attention(q, (k, v), prefix, own, self.row_of_cell)
        if self.slot is None:
            stop = self.length + 1
            own_k[:, :, self.length], own_v[:, :, self.length] = k, v
            own_k, own_v = own_k[:, :, :stop], own_v[:, :, :stop]
        else:
            own_k.index_copy_(2, self.slot, k.unsqueeze(2))
            own_v.index_copy_(2, self.slot, v.unsqueeze(2))
        prefix = (prefix_k, prefix_v, self.prefix_bias)
        return decode_over_prefix(q, prefix, (own_k, own_v, self.own_bias), self.cells, self.group_size)

    def advance(self) -> None:
        """One token more in every row."""
        self.length += 1
        if self.slot is not None:
            self.slot += 1

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these (indices, ascending), and prompts that have none left."""
        self.layout_id = next(_layouts)
        self.own_k = [own.index_select(0, rows) for own in self.own_k]
        self.own_v = [own.index_select(0, rows) for own in self.own_v]
        prompts, prompt_of_row = (self.cells[rows] // self.group_size).unique(return_inverse=True)
        self.cells = prompt_of_row * self.group_size + self.cells[rows] % self.group_size
        if len(prompts) < len(self.prefix_lengths):
            self.prefix_lengths = self.prefix_lengths[prompts]
            self.prefix_k = [prefix.index_select(0, prompts) for prefix in self.prefix_k]
            self.prefix_v = [prefix.index_select(0, prompts) for prefix in self.prefix_v]
            self.prefix_bias = None if self.prefix_bias is None else self.prefix_bias[prompts]
        if self.row_of_cell is not None:
            live = torch.arange(self.num_rows, device=self.cells.device)
            empty = self.cells.new_full((len(prompts) * self.group_size,), -1)
            self.row_of_cell = empty.index_copy(0, self.cells, live)


def prefix_room(length: int) -> int:
    """Slots for a prefix of `length` tokens: at most a quarter more, in few sizes, and the same in any company."""
    step = max(32, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step
