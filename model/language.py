"""Qwen3 and Qwen3-MoE decoders over packed token rows, with a decode path for sampling."""

from typing import Protocol

import torch
from torch import Tensor, nn

from model.config import LanguageConfig, MoeLanguageConfig
from model.layers import (
    WIDE,
    RMSNorm,
    add_and_norm,
    apply_rope,
    joint_linear,
    maybe_checkpoint,
    rms_norm,
    rope_tables,
    side_by_side,
    swiglu,
)
from model.moe import MoeMLP, Routing


class Attend(Protocol):
    """How keys and values are found: packed rows when training, a cache when sampling."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [..., H, K], k and v [..., Hkv, K] -> [..., H, K]."""
        ...


class SelfAttention(nn.Module):
    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        width, head = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * head, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head, width, bias=False)
        self.q_norm = RMSNorm(head, config.rms_norm_eps)
        self.k_norm = RMSNorm(head, config.rms_norm_eps)
        self.has_kernels = False  # of our own, for sampling on this GPU

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        q, k, v = self._heads(x, rope)
        return self.o_proj(attend(self.layer, q, k, v).flatten(-2))

    def _heads(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        """q [..., H, K], k and v [..., Hkv, K], normed and rotated."""
        if x.device.type != "cpu" or x.dtype not in WIDE:
            projected = side_by_side(x, self.q_proj, self.k_proj, self.v_proj)
            q, k, v = (heads.unflatten(-1, (-1, self.head_dim)) for heads in projected)
            if self.has_kernels:
                from model.decode_kernels import norm_and_rotate  # where there is Triton

                return *norm_and_rotate(q, k, (self.q_norm.weight, self.k_norm.weight), self.q_norm.eps, rope), v
            q, k = self.q_norm(q), self.k_norm(k)
            if torch.is_grad_enabled():  # many rows: one more copy of them costs more than the calls
                return apply_rope(q, rope), apply_rope(k, rope), v
            return *apply_rope(torch.cat((q, k), dim=-2), rope).tensor_split((self.num_heads,), dim=-2), v
        # Queries and keys in one go: of a sampler's few rows every call costs more than its arithmetic.
        heads = joint_linear(x, self.q_proj, self.k_proj, self.v_proj).unflatten(-1, (-1, self.head_dim))
        qk, v = heads.tensor_split((self.num_heads + self.num_kv_heads,), dim=-2)
        weights = (self.q_norm.weight.expand(self.num_heads, -1), self.k_norm.weight.expand(self.num_kv_heads, -1))
        qk = apply_rope(rms_norm(qk, torch.cat(weights), self.q_norm.eps), rope)
        q, k = qk.tensor_split((self.num_heads,), dim=-2)
        return q, k, v


class MLP(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(swiglu(x, self.gate_proj, self.up_proj))


class DecoderLayer(nn.Module):
    def __init__(self, config: LanguageConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MoeMLP(config) if isinstance(config, MoeLanguageConfig) else MLP(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, token_weights: Tensor | None
    ) -> tuple[Tensor, Routing | None]:
        attended = self.self_attn(self.input_layernorm(x), rope, attend)
        x, hidden = add_and_norm(x, attended, self.post_attention_layernorm)
        if isinstance(self.mlp, MoeMLP):
            out, routing = self.mlp(hidden, token_weights)
            return x + out, routing
        return x + self.mlp(hidden), None


class Decoder(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.gradient_checkpointing = False

    def forward(
        self, embeddings: Tensor, positions: Tensor, attend: Attend, token_weights: Tensor | None = None
    ) -> tuple[Tensor, Routing | None]:
        """embeddings [..., D] at integer positions [...] -> final hidden states [..., D] and, of an MoE, the routing.

        `token_weights` [...] is how much each token counts in the routing.
        """
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, embeddings.dtype)
        x, routings = embeddings, []
        for layer in self.layers:
            x, routing = maybe_checkpoint(self, layer, x, rope, attend, token_weights)
            if routing is not None:
                routings.append(routing)
        return self.norm(x), Routing.of_layers(routings) if routings else None


class LanguageModel(nn.Module):
    """`language_model.model` and `language_model.lm_head`; a tied head is the embedding itself."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tied = config.tie_word_embeddings
        self.tie()

    def tie(self) -> None:
        """Make the head the embedding again, if it is meant to be: moving a model off the meta device parts them."""
        if self.tied:
            self.lm_head.weight = self.model.embed_tokens.weight
