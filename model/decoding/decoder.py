"""A model that samples: prompts run once, then one token of every completion at a time.

All of it happens inside `model.kernels.available.sampling`, which is how the layers know that kernels without a
backward pass may be used.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.batch import ModelInputs
from model.config import AttentionKernel
from model.decoding.group_cache import GroupCache
from model.kernels.attention import PackedAttention, packed_attention
from model.kernels.available import sampling
from model.kernels.split_attention import SplitAttention
from model.language import Attend
from model.sail_vl2 import SailVL2

_MIN_ROWS = 8  # a decoding step has at least so many rows


class PromptDecoder:
    """Prefill and decode with a model that it owns: nobody else may train or hook it.

    Where `keeps_routes` is set, `routes` [T or R, L, k] holds the experts that an MoE chose for the tokens of the
    latest prefill or decoding step.
    """

    def __init__(self, model: SailVL2, attention: AttentionKernel = AttentionKernel.auto) -> None:
        """Freezes the model and moves weights that meet the same input together in memory."""
        self.model = model.requires_grad_(False)
        self.keeps_routes = False
        self.routes: Tensor | None = None
        self._attention = attention
        model.lay_side_by_side()

    @sampling()
    def prefill(self, inputs: ModelInputs, group_size: int, room: int) -> tuple[Tensor, GroupCache]:
        """Run N prompts (roots only) once. Returns next-token logits [N * G, V], the same for all siblings, and the
        cache of their completions, with `room` slots for each prompt.

        Equal room gives equal arithmetic whatever else is in the batch; see `prefix_room`.
        """
        model, layout = self.model, inputs.layout
        num_prompts, longest = layout.root_tokens.shape
        if longest > room:
            raise ValueError(f"room: expected at least the {longest} tokens of the longest prompt, found {room}")
        embeddings = model.embed(inputs)
        attend_packed = self._attend_prompts(inputs, embeddings.dtype)
        cache = GroupCache.empty(inputs.root_lengths, group_size, room, embeddings.dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            prefix_k, prefix_v = (x.new_zeros(num_prompts, x.shape[1], room, x.shape[2]) for x in (k, v))
            prefix_k[:, :, :longest] = k[layout.root_tokens].transpose(1, 2)
            prefix_v[:, :, :longest] = v[layout.root_tokens].transpose(1, 2)
            cache.add_layer(prefix_k, prefix_v)
            return attend_packed(layer, q, k, v)

        hidden = self._hidden_states(embeddings, inputs.positions, attend, inputs.num_tokens)
        last = hidden[layout.root_tokens[torch.arange(num_prompts), inputs.root_lengths - 1]]
        logits = model.language_model.lm_head(_padded(last))[:num_prompts]
        return logits.repeat_interleave(group_size, 0), cache

    @sampling()
    def decode(self, token_ids: Tensor, caches: Sequence[GroupCache]) -> Tensor:
        """Feed the next token of every row, ids [R] cache by cache -> next-token logits [R, V]."""
        for cache in caches:
            cache.make_room()
        logits = self.decode_in_place(token_ids, caches)
        for cache in caches:
            cache.advance()
        return logits

    @sampling()
    def decode_in_place(self, token_ids: Tensor, caches: Sequence[GroupCache]) -> Tensor:
        """`decode` between making room and moving on: on a GPU the same launches on the same memory each time."""
        language = self.model.language_model
        rows = [cache.num_rows for cache in caches]
        num_rows = sum(rows)
        for cache in caches:
            cache.begin_step()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = zip(caches, *(x[:num_rows].split(rows) for x in (q, k, v)), strict=True)
            out = [cache.attend(layer, *part) for cache, *part in parts]
            return _padded(out[0] if len(out) == 1 else torch.cat(out))

        positions = torch.cat([cache.positions for cache in caches])
        embeddings = language.model.embed_tokens(_padded(token_ids))
        hidden = self._hidden_states(embeddings, _padded(positions), attend, num_rows)
        return language.lm_head(hidden)[:num_rows]

    def _hidden_states(self, embeddings: Tensor, positions: Tensor, attend: Attend, num_tokens: int) -> Tensor:
        """Return hidden states of padded tokens [.., D], and keep the experts of the first `num_tokens` if asked."""
        decoder = self.model.language_model.model
        hidden, routing = decoder(embeddings, positions, attend, keeps_routes=self.keeps_routes)
        self.routes = routing.chosen[:num_tokens] if routing is not None and routing.chosen is not None else None
        return hidden

    def _attend_prompts(self, inputs: ModelInputs, dtype: torch.dtype) -> PackedAttention:
        """On CPU each prompt by itself, so that its bits do not depend on its company."""
        on_cpu = inputs.layout.slot_of_token.device.type == "cpu"
        if on_cpu and self._attention in (AttentionKernel.auto, AttentionKernel.split):
            return SplitAttention(inputs.layout)
        return packed_attention(self._attention, inputs.layout, dtype, self.model.config.language.head_dim)


def _padded(rows: Tensor) -> Tensor:
    """At least 8 rows, zeros behind the given ones: on CPU fewer have other last bits than many."""
    missing = _MIN_ROWS - rows.shape[0]
    return rows if missing <= 0 else torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:])))
