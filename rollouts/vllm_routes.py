"""The experts of every token inside a process of vLLM on CPU.

vLLM's own way (`enable_return_routed_experts`) needs its second model runner, which needs Triton, so it is a GPU's.
Here the routers write what they chose beside the keys and values: one place for each slot of the cache. So the experts
of a prefix that requests share are there for all of them, computed once.
"""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

from rollouts.routes import compact_dtype


class RouteRecorder:
    """Writes the experts of each token into the slot that its keys and values have. [slots, L, k]"""

    def __init__(self, model_runner: Any) -> None:
        """`model_runner` is vLLM's first one. `RuntimeError` unless each layer has a router that tells its choice."""
        self._runner = model_runner
        runners = [module for module in model_runner.get_model().modules() if isinstance(module, MoERunner)]
        routers = [runner.router for runner in runners if isinstance(runner.router, BaseRouter)]
        if not routers or len(routers) != len(runners):
            raise RuntimeError(
                "algorithm.correction.routing_replay: expected routers that tell their choice in all of "
                f"{len(runners)} layers of vLLM's model, found {len(routers)}; set it to false"
            )
        for layer, router in enumerate(routers):
            router.set_capture_fn(partial(self._record, layer))
        self._dtype = compact_dtype(routers[0].global_num_experts)
        self._places = torch.full((0, len(routers), routers[0].top_k), -1, dtype=torch.int16)

    def routes(self, request_id: str, num_tokens: int) -> np.ndarray:
        """Return the experts of the first `num_tokens` tokens of a request that finished in the latest step."""
        batch = self._runner.input_batch
        (row,) = [row for name, row in batch.req_id_to_index.items() if name.rpartition("-")[0] == request_id]
        table = batch.block_table[0]
        positions = np.arange(num_tokens)
        blocks = table.get_numpy_array()[row, positions // table.block_size]
        found = self._places[torch.from_numpy(blocks * table.block_size + positions % table.block_size)]
        if (found < 0).any():
            raise RuntimeError(f"request {request_id}: expected the experts of {num_tokens} tokens, found gaps")
        return found.numpy().astype(self._dtype)

    def _record(self, layer: int, chosen: Tensor) -> None:
        """Take the experts [tokens, k] of a layer for the tokens of the present step."""
        mappings = get_forward_context().slot_mapping
        if not isinstance(mappings, dict) or not mappings:
            return  # vLLM warms up: these tokens are nobody's
        slots = next(iter(mappings.values()))[: len(chosen)]
        is_real = slots >= 0
        if len(slots) and (most := int(slots.max())) >= len(self._places):
            more = self._places.new_full((2 * most + 1 - len(self._places), *self._places.shape[1:]), -1)
            self._places = torch.cat((self._places, more))
        self._places[slots[is_real], layer] = chosen[: len(slots)][is_real].to(torch.int16)
