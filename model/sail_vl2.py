"""SAIL-VL2: vision tower, adapter and decoder joined at the image placeholders."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from model.batch import ModelInputs
from model.config import AttentionKernel, MoeLanguageConfig, SailVL2Config, Tower
from model.kernels.attention import packed_attention
from model.language import MLP, LanguageModel, SelfAttention
from model.layers import lay_side_by_side
from model.logprobs import TokenScores, score_tokens
from model.moe import Routing
from model.projector import build_adapter, visual_tokens
from model.vision import VisionMLP, VisionModel


class SailVL2(nn.Module):
    """Module names are the released state-dict names: `vision_model`, `mlp1`, `language_model`."""

    def __init__(self, config: SailVL2Config) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionModel(config.vision)
        self.mlp1 = build_adapter(config.vision.hidden_size, config.language.hidden_size, config.merge_side)
        self.language_model = LanguageModel(config.language)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def initialise(self, seed: int) -> None:
        """Fresh weights from a seed: std 1/sqrt(fan_in), residual outputs divided by sqrt(2 L)."""
        generator = torch.Generator().manual_seed(seed)
        depths = {
            "vision_model": self.config.vision.num_hidden_layers,
            "language_model": self.config.language.num_hidden_layers,
        }
        residual = ("attn.proj.weight", "mlp.fc2.weight", "o_proj.weight", "down_proj.weight", "experts.down_proj")
        with torch.no_grad():
            for name, weight in self.named_parameters():
                if name.endswith("embed_tokens.weight") or name.endswith("lm_head.weight"):
                    std = self.config.language.initializer_range
                elif name.endswith("pos_embed"):
                    std = 0.02
                elif weight.dim() >= 2:
                    # A stack of experts is many matrices; a patch kernel is one.
                    std = (weight.shape[-1] if ".experts." in name else weight[0].numel()) ** -0.5
                    if name.endswith(residual):
                        std /= (2 * depths[name.split(".")[0]]) ** 0.5
                else:
                    weight.zero_() if name.endswith("bias") else weight.fill_(1.0)
                    continue
                weight.normal_(0.0, std, generator=generator)

    def visual_tokens(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Tiles, one [I, 3, height, width] per size -> [I, tokens per tile, D] of each size; one call of the tower."""
        config = self.config
        return visual_tokens(self.vision_model, self.mlp1, pixels, config.vision.patch_size, config.merge_side)

    def embed(self, inputs: ModelInputs) -> Tensor:
        """Token embeddings [T, D] with visual tokens at the placeholders.

        Inputs with images call the vision tower exactly once, whatever the number and sizes of their tiles: ranks of a
        sharded engine meet in its layers.
        """
        embeddings = self.language_model.model.embed_tokens(inputs.token_ids)
        if not inputs.num_tiles:
            return embeddings
        visual = torch.cat([tokens.flatten(0, 1) for tokens in self.visual_tokens(inputs.tiles)])
        if inputs.has_filler_tile:
            visual = visual[:0]
        return embeddings.index_copy(0, inputs.visual_index, visual.to(embeddings.dtype))

    def hidden_states(
        self, inputs: ModelInputs, attention: AttentionKernel = AttentionKernel.auto
    ) -> tuple[Tensor, Routing | None]:
        """[T, D] after the final norm and, of an MoE, the routing of its tokens, weighed as `inputs` say."""
        embeddings = self.embed(inputs)
        attend = packed_attention(attention, inputs.layout, embeddings.dtype, self.config.language.head_dim)
        return self.language_model.model(
            embeddings, inputs.positions, attend, inputs.routing_weights, self._routes_of(inputs)
        )

    def _routes_of(self, inputs: ModelInputs) -> Tensor | None:
        """The experts to take, [T, L, k]. `ValueError` where they are not those of this decoder."""
        routes, language = inputs.routes, self.config.language
        if routes is None:
            return None
        if not isinstance(language, MoeLanguageConfig):
            raise ValueError("routes: expected none, because this decoder has no routers, found some; leave them out")
        expected = (inputs.num_tokens, language.num_hidden_layers, language.num_experts_per_tok)
        if tuple(routes.shape) != expected:
            raise ValueError(
                f"routes: expected [tokens, layers, experts per token] {list(expected)}, found {list(routes.shape)}; "
                "replay the routes of the same model and tokens"
            )
        return routes

    def forward(
        self,
        inputs: ModelInputs,
        temperature: float = 1.0,
        barred_ids: Tensor | None = None,
        attention: AttentionKernel = AttentionKernel.auto,
    ) -> TokenScores:
        """Log-probabilities and entropies [N] of the batch's target tokens, as the sampler defines them.

        `attention` names the kernel for packed rows. `ValueError` where it does not run on these inputs.
        """
        hidden, routing = self.hidden_states(inputs, attention)
        hidden = hidden.index_select(0, inputs.source_index)
        scores = score_tokens(hidden, self.language_model.head_weight(), inputs.target_ids, temperature, barred_ids)
        return scores._replace(routing=routing)

    def freeze(self, groups: Collection[Tower]) -> None:
        """Train every tower but these."""
        for tower in Tower:
            getattr(self, tower.value).requires_grad_(tower not in groups)

    def lay_side_by_side(self) -> None:
        """Move frozen weights that meet the same input together in memory: each such set becomes one product."""
        for module in self.modules():
            match module:
                case SelfAttention():
                    lay_side_by_side(module.q_proj, module.k_proj, module.v_proj)
                case MLP():
                    lay_side_by_side(module.gate_proj, module.up_proj)
                case VisionMLP():
                    lay_side_by_side(module.fc1, module.fc3)

    def checkpoint_gradients(self, enabled: bool = True) -> None:
        """Keep only each block's input for the backward pass: less memory, one more forward pass."""
        self.vision_model.trunk.gradient_checkpointing = enabled
        self.language_model.model.gradient_checkpointing = enabled
