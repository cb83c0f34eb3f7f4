"""SAIL-VL2: vision tower, adapter and decoder joined at the image placeholders."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from model.attention import has_decode_kernels, packed_attention, pick_kernel
from model.batch import ModelInputs
from model.config import AttentionKernel, SailVL2Config, Tower
from model.group_cache import GroupCache
from model.language import MLP, Attend, LanguageModel, SelfAttention
from model.layers import RMSNorm, has_triton, lay_side_by_side
from model.logprobs import TokenScores, score_tokens
from model.moe import Routing
from model.projector import build_adapter, visual_tokens
from model.split_attention import split_attention
from model.varlen_attention import VarlenPlan, varlen_attention
from model.vision import VisionMLP, VisionModel

_MIN_ROWS = 8  # of a decoding step


class SailVL2(nn.Module):
    """Module names are the released state-dict names: `vision_model`, `mlp1`, `language_model`."""

    def __init__(self, config: SailVL2Config) -> None:
        super().__init__()
        self.config = config
        self.attention_kernel = AttentionKernel.auto
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

    def visual_tokens(self, pixels: Tensor) -> Tensor:
        """Tiles [I, 3, height, width] of one size -> [I, tokens per tile, D]."""
        config = self.config
        return visual_tokens(self.vision_model, self.mlp1, pixels, config.vision.patch_size, config.merge_side)

    def embed(self, inputs: ModelInputs) -> Tensor:
        """Token embeddings [T, D] with visual tokens at the placeholders; the vision tower runs once per tile."""
        embeddings = self.language_model.model.embed_tokens(inputs.token_ids)
        if not inputs.num_tiles:
            return embeddings
        visual = torch.cat([self.visual_tokens(pixels).flatten(0, 1) for pixels in inputs.pixels])
        return embeddings.index_copy(0, inputs.visual_index, visual.to(embeddings.dtype))

    def hidden_states(self, inputs: ModelInputs, token_weights: Tensor | None = None) -> tuple[Tensor, Routing | None]:
        """[T, D] after the final norm and, of an MoE, the routing of tokens that weigh `token_weights` [T]."""
        attend = self._attend_packed(inputs)
        return self.language_model.model(self.embed(inputs), inputs.positions, attend, token_weights)

    def _attend_packed(self, inputs: ModelInputs) -> Attend:
        """By the best kernel of the device; packed rows of one length need none but SDPA's causal one."""
        layout = inputs.layout
        device, head_dim = layout.slot_of_token.device, self.config.language.head_dim
        kernel = pick_kernel(self.attention_kernel, device, self.dtype, head_dim, layout)
        if kernel is AttentionKernel.varlen and not layout.is_plain:
            plan = VarlenPlan(layout)
            return lambda layer, q, k, v: varlen_attention(q, k, v, plan)
        if kernel is AttentionKernel.flex and not layout.is_plain:
            # Imported here: it brings the compiler along, about a second of every process.
            from model.flex_attention import attend_packed, visibility

            mask = visibility(layout)
            return lambda layer, q, k, v: attend_packed(q, k, v, mask)
        if kernel is AttentionKernel.split and not layout.is_plain:
            return lambda layer, q, k, v: split_attention(q, k, v, layout)
        return lambda layer, q, k, v: packed_attention(q, k, v, layout)

    def _attend_prompts(self, inputs: ModelInputs) -> Attend:
        """Of prompts that are sampled from: on CPU each by itself, so that its bits do not depend on its company."""
        on_cpu = inputs.layout.slot_of_token.device.type == "cpu"
        if on_cpu and self.attention_kernel in (AttentionKernel.auto, AttentionKernel.split):
            return lambda layer, q, k, v: split_attention(q, k, v, inputs.layout)
        return self._attend_packed(inputs)

    def forward(
        self,
        inputs: ModelInputs,
        temperature: float = 1.0,
        barred_ids: Tensor | None = None,
        token_weights: Tensor | None = None,
    ) -> TokenScores:
        """Log-probabilities and entropies [N] of the batch's target tokens, as the sampler defines them."""
        hidden, routing = self.hidden_states(inputs, token_weights)
        hidden = hidden.index_select(0, inputs.source_index)
        scores = score_tokens(hidden, self.language_model.lm_head.weight, inputs.target_ids, temperature, barred_ids)
        return scores._replace(routing=routing)

    def freeze(self, groups: Collection[Tower]) -> None:
        """Train every tower but these."""
        for tower in Tower:
            getattr(self, tower.value).requires_grad_(tower not in groups)

    def prepare_for_sampling(self) -> None:
        """Freeze everything; weights that meet the same input move together in memory."""
        self.requires_grad_(False)
        has_kernels = has_decode_kernels(self.device, self.dtype, self.config.language.head_dim)
        for module in self.modules():
            match module:
                case RMSNorm():
                    module.has_kernel = has_triton(self.device)
                case SelfAttention():
                    module.has_kernels = has_kernels
                    lay_side_by_side(module.q_proj, module.k_proj, module.v_proj)
                case MLP():
                    lay_side_by_side(module.gate_proj, module.up_proj)
                case VisionMLP():
                    lay_side_by_side(module.fc1, module.fc3)

    def checkpoint_gradients(self, enabled: bool = True) -> None:
        """Keep only each block's input for the backward pass: less memory, one more forward pass."""
        self.vision_model.trunk.gradient_checkpointing = enabled
        self.language_model.model.gradient_checkpointing = enabled

    @torch.no_grad()
    def prefill(self, inputs: ModelInputs, group_size: int, room: int) -> tuple[Tensor, GroupCache]:
        """Run N prompts (roots only) once. Returns next-token logits [N * G, V], the same for all siblings, and the
        cache of their completions, with `room` slots for each prompt.

        Equal room gives equal arithmetic whatever else is in the batch; see `prefix_room`.
        """
        layout = inputs.layout
        num_prompts, longest = layout.root_tokens.shape
        if longest > room:
            raise ValueError(f"room: expected at least the {longest} tokens of the longest prompt, found {room}")
        attend_packed = self._attend_prompts(inputs)
        cache = GroupCache.empty(inputs.root_lengths, group_size, room, next(self.parameters()).dtype)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            slots = (x.new_zeros(num_prompts, x.shape[1], room, x.shape[2]) for x in (k, v))
            prefix_k, prefix_v = slots
            prefix_k[:, :, :longest] = k[layout.root_tokens].transpose(1, 2)
            prefix_v[:, :, :longest] = v[layout.root_tokens].transpose(1, 2)
            cache.add_layer(prefix_k, prefix_v)
            return attend_packed(layer, q, k, v)

        hidden, _ = self.language_model.model(self.embed(inputs), inputs.positions, attend)
        last = hidden[layout.root_tokens[torch.arange(num_prompts), inputs.root_lengths - 1]]
        logits = self.language_model.lm_head(_padded(last))[:num_prompts]
        return logits.repeat_interleave(group_size, 0), cache

    @torch.no_grad()
    def decode(self, token_ids: Tensor, caches: Sequence[GroupCache]) -> Tensor:
        """Feed the next token of every row, ids [R] cache by cache -> next-token logits [R, V]."""
        for cache in caches:
            cache.make_room()
        logits = self.decode_in_place(token_ids, caches)
        for cache in caches:
            cache.advance()
        return logits

    def decode_in_place(self, token_ids: Tensor, caches: Sequence[GroupCache]) -> Tensor:
        """`decode` between making room and moving on: on a GPU the same launches on the same memory each time."""
        rows = [cache.num_rows for cache in caches]
        num_rows = sum(rows)
        for cache in caches:
            cache.begin_step()

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            parts = zip(caches, *(x[:num_rows].split(rows) for x in (q, k, v)), strict=True)
            out = [cache.attend(layer, *part) for cache, *part in parts]
            return _padded(out[0] if len(out) == 1 else torch.cat(out))

        positions = torch.cat([cache.positions for cache in caches])
        embeddings = self.language_model.model.embed_tokens(_padded(token_ids))
        hidden, _ = self.language_model.model(embeddings, _padded(positions), attend)
        return self.language_model.lm_head(hidden)[:num_rows]


def _padded(rows: Tensor) -> Tensor:
    """At least 8 rows, zeros behind the given ones: on CPU fewer have other last bits than many."""
    missing = _MIN_ROWS - rows.shape[0]
    return rows if missing <= 0 else torch.cat((rows, rows.new_zeros(missing, *rows.shape[1:])))
