"""Qwen3 and Qwen3-MoE decoders. How a token finds the keys of others is the caller's: `Attend`."""

from typing import Protocol

from torch import Tensor, nn

from model.config import LanguageConfig, MoeLanguageConfig
from model.layers import RMSNorm, add_and_norm, is_plain, maybe_checkpoint, project_heads, rope_tables, swiglu
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
        width, head = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, config.num_attention_heads * head, bias=False)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * head, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * head, width, bias=False)
        self.q_norm = RMSNorm(head, config.rms_norm_eps)
        self.k_norm = RMSNorm(head, config.rms_norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        q, k, v = project_heads(x, (self.q_proj, self.k_proj, self.v_proj), (self.q_norm, self.k_norm), rope)
        return self.o_proj(attend(self.layer, q, k, v).flatten(-2))


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
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        attend: Attend,
        token_weights: Tensor | None,
        routes: Tensor | None = None,
    ) -> tuple[Tensor, Routing | None]:
        attended = self.self_attn(self.input_layernorm(x), rope, attend)
        x, hidden = add_and_norm(x, attended, self.post_attention_layernorm)
        if isinstance(self.mlp, MoeMLP):
            out, routing = self.mlp(hidden, token_weights, routes)
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
        self,
        embeddings: Tensor,
        positions: Tensor,
        attend: Attend,
        token_weights: Tensor | None = None,
        routes: Tensor | None = None,
        keeps_routes: bool = False,
    ) -> tuple[Tensor, Routing | None]:
        """embeddings [..., D] at integer positions [...] -> final hidden states [..., D] and, of an MoE, the routing.

        `token_weights` [...] is how much each token counts in the routing, `routes` [T, L, k] the experts that an MoE
        takes instead of its routers' choice. With `keeps_routes` the routing holds the experts of every token.
        """
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, embeddings.dtype)
        x, routings = embeddings, []
        for number, layer in enumerate(self.layers):
            given = None if routes is None else routes[:, number]
            x, routing = maybe_checkpoint(self, layer, x, rope, attend, token_weights, given)
            if routing is not None:
                routings.append(routing if keeps_routes else routing._replace(chosen=None))
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

    def head_weight(self) -> Tensor:
        """[V, D] for code that scores without calling the head. `ValueError` where the head is more than its weight."""
        if not is_plain(self.lm_head, nn.Linear) or self.lm_head.bias is not None:
            raise ValueError(
                f"lm_head: expected torch.nn.Linear without bias or hooks, found {type(self.lm_head).__name__}; "
                "log-probabilities read its weight, so an adapter on it would do nothing: leave lm_head out"
            )
        return self.lm_head.weight
