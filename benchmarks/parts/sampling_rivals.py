"""The ways in which transformers can sample groups of completions, for `benchmarks.sampling`."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.parts.sampling_models import TwinPrompt

Sample = Callable[[int], int]
"""Samples all prompts with this seed; returns the number of completion tokens, ends included, padding not."""

CONTINUOUS_BATCHING: dict[str, dict[str, Any]] = {
    f"generate_batch, {rows} requests, {tokens} tokens a batch": {
        "max_requests_per_batch": rows,
        "max_batch_tokens": tokens,
        "page_size": 32,
    }
    for rows, tokens in ((8, 320), (16, 320), (32, 512), (64, 1024))
}


@dataclass(frozen=True)
class Rivals:
    """transformers' twin with its prompts, `group` completions each, of at most `limit` tokens."""

    twin: Any
    prompts: Sequence[TwinPrompt]
    group: int
    limit: int
    end_id: int

    def generate(self, batch: int, cache: str, compiled: bool = False) -> Sample:
        """`generate` with `num_return_sequences`, `batch` prompts a call."""
        batches = self._batches(batch)
        config = self._config(self.group, cache, compiled)

        def sample(seed: int) -> int:
            torch.manual_seed(seed)
            with torch.inference_mode():
                return sum(
                    self._count(self.twin.generate(inputs_embeds=e, attention_mask=m, generation_config=config))
                    for e, m, _ in batches
                )

        if compiled:
            sample(0)  # compiling is never in the times
        return sample

    def generate_after_shared_prefill(self, batch: int) -> Sample:
        """Each prompt goes through the model once, its cache is repeated, `generate` continues: not a call of the
        library but a recipe that an expert would write."""
        from transformers import DynamicCache

        batches, config = self._batches(batch), self._config(1, "dynamic")

        def sample(seed: int) -> int:
            torch.manual_seed(seed)
            tokens = 0
            with torch.inference_mode():
                for embeddings, mask, ids in batches:
                    cache = DynamicCache(config=self.twin.config)
                    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, :-1]
                    before = {"attention_mask": mask[:, :-1], "position_ids": positions}
                    self.twin.model(inputs_embeds=embeddings[:, :-1], past_key_values=cache, **before)
                    cache.batch_repeat_interleave(self.group)
                    ids, mask = (x.repeat_interleave(self.group, dim=0) for x in (ids, mask))
                    out = self.twin.generate(ids, attention_mask=mask, past_key_values=cache, generation_config=config)
                    tokens += self._count(out[:, ids.shape[1] :])
            return tokens

        return sample

    def generate_batch(self, settings: dict[str, Any]) -> Sample:
        """transformers' continuous batching. Sizes are given: those it infers take all of a machine's memory."""
        from transformers import ContinuousBatchingConfig

        logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
        twin = copy.deepcopy(self.twin)  # it changes the attention implementation
        ids = [prompt.ids for prompt in self.prompts]
        pages = -(-(max(map(len, ids)) + self.limit) // settings["page_size"]) + 1
        config = self._config(self.group)

        def sample(seed: int) -> int:
            batching = ContinuousBatchingConfig(
                **settings, num_blocks=pages * settings["max_requests_per_batch"], seed=seed
            )
            # Its own thread makes tensors that this one changes: inference mode would forbid that.
            with torch.no_grad():
                outputs = twin.generate_batch(
                    ids,
                    generation_config=config,
                    continuous_batching_config=batching,
                    persistent_manager=True,  # its cache is made once
                )
            errors = [str(output.error) for output in outputs.values() if output.error]
            missing = len(ids) * self.group - len(outputs)
            if errors or missing:
                raise RuntimeError(f"generate_batch: {missing} of its completions are missing; errors: {errors[:1]}")
            return sum(len(output.generated_tokens) for output in outputs.values())

        return sample

    @torch.inference_mode()
    def greedy(self, prompt: TwinPrompt, length: int) -> tuple[list[int], list[float]]:
        """The most likely continuation by `generate`, and its log-probabilities."""
        config = self._config(1)
        config.update(do_sample=False, max_new_tokens=length, output_logits=True, return_dict_in_generate=True)
        out = self.twin.generate(inputs_embeds=prompt.embeddings[None], generation_config=config)
        ids = out.sequences[0]
        logprobs = torch.stack(out.logits, dim=1)[0].log_softmax(-1)
        return ids.tolist(), logprobs.gather(-1, ids[:, None]).squeeze(-1).tolist()

    @torch.inference_mode()
    def logprobs(self, prompt: TwinPrompt, completion: Sequence[int]) -> list[float]:
        """The log-probability of each token of a given completion."""
        ids = torch.tensor(completion)
        row = torch.cat((prompt.embeddings, self.twin.model.embed_tokens(ids)))
        logits = self.twin(inputs_embeds=row[None]).logits[0, len(prompt.ids) - 1 : -1]
        return logits.log_softmax(-1).gather(-1, ids[:, None]).squeeze(-1).tolist()

    def _batches(self, batch: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Embeddings [b, L, D], mask and ids [b, L] of prompts of like length, padded on the left."""
        ordered = sorted(self.prompts, key=lambda prompt: len(prompt.ids))
        batches = []
        for start in range(0, len(ordered), batch):
            chosen = ordered[start : start + batch]
            longest = max(len(prompt.ids) for prompt in chosen)
            embeddings = torch.zeros(len(chosen), longest, chosen[0].embeddings.shape[1], dtype=self.twin.dtype)
            mask, ids = torch.zeros(2, len(chosen), longest, dtype=torch.long)
            for row, prompt in enumerate(chosen):
                embeddings[row, -len(prompt.ids) :] = prompt.embeddings
                ids[row, -len(prompt.ids) :] = torch.tensor(prompt.ids)
                mask[row, -len(prompt.ids) :] = 1
            batches.append(tuple(x.to(self.twin.device) for x in (embeddings, mask, ids)))
        return batches

    def _config(self, copies: int, cache: str = "dynamic", compiled: bool = False) -> Any:
        """Plain draws from the softmax: nothing in it makes transformers process logits."""
        from transformers import CompileConfig, GenerationConfig

        config = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=copies,
            max_new_tokens=self.limit,
            eos_token_id=self.end_id,
            pad_token_id=0,
            cache_implementation=None if cache == "dynamic" else cache,
            disable_compile=not compiled,
        )
        if compiled:
            mode = "reduce-overhead" if self.twin.device.type == "cuda" else "default"
            compiling: Any = CompileConfig(mode=mode, fullgraph=False, dynamic=False)
            compiling._compile_all_devices = True  # else CPUs are left out
            config.compile_config = compiling
        return config

    def _count(self, tokens: Tensor) -> int:
        """Tokens of completions [B, C] up to and including the first end."""
        earlier_ends = (tokens == self.end_id).cumsum(-1).roll(1, dims=-1)
        earlier_ends[:, 0] = 0
        return int((earlier_ends == 0).sum())
