"""Parameters of a model by its config alone; free of torch, because a model without memory imports a compiler first."""

from collections.abc import Iterator
from dataclasses import dataclass

from model.config import MoeLanguageConfig, SailVL2Config


@dataclass(frozen=True)
class Part:
    """A linear layer, a stack of experts, or whatever else has weights."""

    name: str  # the module as in a checkpoint, or the stack
    weights: int
    sides: tuple[int, int, int] | None = None  # matrices, in, out; None where no adapter can be

    def adapter(self, rank: int) -> int:
        """Weights of its adapter."""
        count, width, height = self.sides or (0, 0, 0)
        return count * rank * (width + height)


def linear(name: str, width: int, height: int, bias: bool = False) -> Part:
    return Part(name, width * height + (height if bias else 0), (1, width, height))


def parts_of(config: SailVL2Config) -> Iterator[Part]:
    """Every module that has weights; a tied head is not among them."""
    vision, language = config.vision, config.language
    width, inner = vision.hidden_size, vision.intermediate_size
    yield Part("vision_model.preprocessor.patchifier", width * (vision.num_channels * vision.patch_size**2 + 2))
    yield Part("vision_model.preprocessor.pos_embed", width * vision.num_patches)
    for number in range(vision.num_hidden_layers):
        block = f"vision_model.trunk.blocks.{number}"
        yield Part(f"{block}.norms", 2 * width)
        yield linear(f"{block}.attn.qkv", width, 3 * width)
        yield linear(f"{block}.attn.proj", width, width)
        yield from (linear(f"{block}.mlp.{name}", width, inner) for name in ("fc1", "fc3"))
        yield linear(f"{block}.mlp.fc2", inner, width)
    yield Part("vision_model.trunk.post_trunk_norm", width)
    merged, hidden = width * config.merge_side**2, language.hidden_size
    yield Part("mlp1.0", 2 * merged)
    yield linear("mlp1.1", merged, hidden, bias=True)
    yield linear("mlp1.3", hidden, hidden, bias=True)
    yield Part("language_model.model.embed_tokens", language.vocab_size * hidden)
    for number in range(language.num_hidden_layers):
        yield from _layer(config, f"language_model.model.layers.{number}")
    yield Part("language_model.model.norm", hidden)
    if not language.tie_word_embeddings:
        yield Part("language_model.lm_head", language.vocab_size * hidden)


def _layer(config: SailVL2Config, layer: str) -> Iterator[Part]:
    language = config.language
    hidden, heads = language.hidden_size, language.num_attention_heads * language.head_dim
    keys = language.num_key_value_heads * language.head_dim
    yield Part(f"{layer}.norms", 2 * hidden + 2 * language.head_dim)
    for name, height in (("q_proj", heads), ("k_proj", keys), ("v_proj", keys)):
        yield linear(f"{layer}.self_attn.{name}", hidden, height)
    yield linear(f"{layer}.self_attn.o_proj", heads, hidden)
    if not isinstance(language, MoeLanguageConfig):
        for name in ("gate_proj", "up_proj"):
            yield linear(f"{layer}.mlp.{name}", hidden, language.intermediate_size)
        yield linear(f"{layer}.mlp.down_proj", language.intermediate_size, hidden)
        return
    count, inner = language.num_experts, language.moe_intermediate_size
    yield linear(f"{layer}.mlp.gate", hidden, count)
    for width, height in ((hidden, 2 * inner), (inner, hidden)):
        yield Part(f"{layer}.mlp.experts", count * width * height, (count, width, height))
