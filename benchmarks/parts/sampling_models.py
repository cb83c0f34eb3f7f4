"""Models for `benchmarks.sampling` whose turns end by a known law, their prompts, and their twins."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.batch import Row, pack_rows
from model.checkpoint import build_flavour
from model.config import Flavour, LanguageConfig, SailVL2Config, VisionConfig
from model.processing.processor import Processor
from model.sail_vl2 import SailVL2
from rollouts.rollout import RolloutRequest

PATCH = 8
VOCABULARY = 520
FEATURE = 0  # the one entry of a hidden state that is the same for every token
NEVER = -100.0


@dataclass(frozen=True)
class Size:
    """Widths of both towers; every head is 32 or 64 wide, keys and values have half the heads."""

    vision_width: int
    vision_layers: int
    width: int
    layers: int
    heads: int
    head_dim: int

    def config(self, visual_tokens: int) -> SailVL2Config:
        """One square tile gives `visual_tokens`."""
        vision = VisionConfig(
            hidden_size=self.vision_width,
            intermediate_size=3 * self.vision_width,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=self.vision_width // 32,
            patch_size=PATCH,
            image_size=2 * PATCH * round(visual_tokens**0.5),
        )
        language = LanguageConfig(
            hidden_size=self.width,
            intermediate_size=3 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads // 2,
            head_dim=self.head_dim,
            vocab_size=VOCABULARY,
            max_position_embeddings=1024,
            rope_theta=1e4,
            tie_word_embeddings=False,
            initializer_range=0.2,
        )
        return SailVL2Config(vision, language, max_dynamic_patch=1, use_thumbnail=False)


# Hardly a vision tower: the twin has none.
SIZES = {
    "T": Size(32, 1, 128, 4, 4, 32),
    "M": Size(32, 1, 384, 4, 6, 64),
    "L": Size(32, 1, 640, 6, 10, 64),
}


@torch.no_grad()
def planted_model(size: Size, visual_tokens: int, chance_of_end: float) -> tuple[SailVL2, Processor]:
    """Random weights, but at every token the turn ends with about `chance_of_end`, and no barred id is ever drawn.

    Both follow from one entry of the residual stream that no layer writes to: head rows that read nothing else add a
    constant to a token's logit. So both sides draw from one law with a plain softmax, without logits processors.
    """
    processor = Processor(size.config(visual_tokens), build_flavour(Flavour.tiny, 0)[1].tokenizer)
    model = SailVL2(processor.config)
    model.initialise(0)
    model.requires_grad_(False)
    decoder, head = model.language_model.model, model.language_model.lm_head.weight
    # So large that it alone makes up the norm of a hidden state: then what it adds to a logit hardly varies.
    constant = 2.0 * size.width**0.5
    decoder.embed_tokens.weight[:, FEATURE] = constant
    adapter_out: Any = model.mlp1[-1]
    adapter_out.weight[FEATURE], adapter_out.bias[FEATURE] = 0.0, constant
    for name, weight in decoder.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[FEATURE] = 0.0
    head[:, FEATURE] = 0.0
    head[processor.barred_ids, FEATURE] = NEVER
    end = processor.tokenizer.end_id
    head[end] = 0.0
    head[end, FEATURE] = NEVER
    hidden = _hidden_of_random_text(model, processor)
    others, feature = (hidden @ head.T).logsumexp(-1), hidden[:, FEATURE]
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        too_rare = torch.sigmoid(middle * feature - others).mean() < chance_of_end
        low, high = (middle, high) if too_rare else (low, middle)
    head[end, FEATURE] = middle
    return model, processor


def _hidden_of_random_text(model: SailVL2, processor: Processor) -> Tensor:
    texts = [_random_text(processor, 128, seed) for seed in range(16)]
    inputs = pack_rows([Row(ids, []) for ids in texts], processor.placeholder_id, model.config.pixels_per_token)
    return model.hidden_states(inputs)[0]


def _random_text(processor: Processor, length: int, seed: int) -> list[int]:
    spoken = torch.tensor(sorted(set(range(VOCABULARY)) - {*processor.barred_ids, processor.tokenizer.end_id}))
    generator = torch.Generator().manual_seed(seed)
    return spoken[torch.randint(0, len(spoken), (length,), generator=generator)].tolist()


def make_requests(processor: Processor, text_lengths: Sequence[int], group: int) -> list[RolloutRequest]:
    """One prompt of an image and random text for each length."""
    side, visual = processor.config.vision.image_size, processor.config.num_image_tokens
    requests = []
    for number, length in enumerate(text_lengths):
        text = _random_text(processor, length, 1000 + number)
        pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(number))
        ids, short = ([*text[:4], *[processor.placeholder_id] * count, *text[4:]] for count in (visual, 1))
        requests.append(RolloutRequest(number, str(number), ids, short, [pixels], group))
    return requests


@dataclass(frozen=True)
class TwinPrompt:
    """A prompt as the twin takes it."""

    embeddings: Tensor  # [L, D] visual tokens in their places
    ids: list[int]  # the same, where visual tokens are further rows of the twin's embedding table


@torch.no_grad()
def twin_of(model: SailVL2, placeholder: int, requests: Sequence[RolloutRequest]) -> tuple[Any, list[TwinPrompt]]:
    """transformers' Qwen3ForCausalLM with our decoder's weights, on its device, and the prompts for it.

    Its embedding table gets a row for every visual token behind the vocabulary: its continuous batching takes ids only.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM

    language = model.config.language
    settings: dict[str, Any] = {name: value for name, value in vars(language).items() if name != "rope_theta"}
    config = Qwen3Config(**settings, rope_parameters={"rope_type": "default", "rope_theta": language.rope_theta})
    with torch.device(model.device):
        twin: Any = Qwen3ForCausalLM(config).to(model.dtype).eval().requires_grad_(False)
    twin.set_attn_implementation("sdpa")
    twin.load_state_dict(model.language_model.state_dict())
    prompts, rows, used = [], [twin.model.embed_tokens.weight], language.vocab_size
    for request in requests:
        row = Row(request.prompt_ids, [], request.images)
        inputs = pack_rows([row], placeholder, model.config.pixels_per_token)
        embeddings = model.embed(inputs.to(model.device))
        visual = torch.tensor(request.prompt_ids) == placeholder
        ids = torch.tensor(request.prompt_ids)
        ids[visual] = torch.arange(used, used + int(visual.sum()))
        used += int(visual.sum())
        rows.append(embeddings[visual])
        prompts.append(TwinPrompt(embeddings, ids.tolist()))
    twin.model.embed_tokens = torch.nn.Embedding.from_pretrained(torch.cat(rows))
    return twin, prompts
