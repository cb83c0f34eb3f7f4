"""Decoding steps on a GPU as recorded CUDA graphs: one launch a token instead of hundreds.

A graph holds for the same tensors; when completions come or leave, or room grows, it is recorded anew.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from model.config import MoeLanguageConfig
from model.decoding.decoder import PromptDecoder
from model.decoding.group_cache import GroupCache
from model.kernels.available import sampling
from model.sail_vl2 import SailVL2


class DecodeGraph:
    """`PromptDecoder.decode` by replay."""

    def __init__(self, decoder: PromptDecoder) -> None:
        self._decoder = decoder
        self._recorded_for: list[int] = []
        self._graph = torch.cuda.CUDAGraph()
        self._side = torch.cuda.Stream()  # one for all: libraries keep memory for each stream they have met
        self._tokens = self._logits = torch.empty(0)

    @staticmethod
    def fits(model: SailVL2) -> bool:
        """On a GPU; the routing of an MoE counts on the host, which a graph cannot hold."""
        return model.device.type == "cuda" and not isinstance(model.config.language, MoeLanguageConfig)

    @sampling()
    def decode(self, token_ids: Tensor, caches: Sequence[GroupCache]) -> Tensor:
        """As `PromptDecoder.decode`; the logits are overwritten by the next step."""
        for cache in caches:
            cache.make_room()
        layouts = [cache.layout_id for cache in caches]
        if layouts != self._recorded_for:
            self._record(token_ids, caches)
            self._recorded_for = layouts
        self._tokens.copy_(token_ids)
        self._graph.replay()
        for cache in caches:
            cache.advance()
        return self._logits

    def _record(self, token_ids: Tensor, caches: Sequence[GroupCache]) -> None:
        self._tokens = token_ids.clone()
        self._logits = torch.empty(0)  # frees the old graph's memory
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            self._decoder.decode_in_place(self._tokens, caches)
        torch.cuda.current_stream().wait_stream(self._side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._decoder.decode_in_place(self._tokens, caches)
