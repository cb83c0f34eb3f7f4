"""Greedy completions of a model folder that vLLM loads itself, to compare them with another program's."""

import os
from collections.abc import Sequence

from torch import Tensor


def greedy_completions(
    folder: str,
    prompts: Sequence[tuple[Sequence[int], Sequence[Tensor]]],
    limits: Sequence[int],
    context: int,
) -> list[list[int]]:
    """The most likely tokens behind each prompt, in float32, at most `limits` of them.

    `prompts`: ids with one placeholder an image, and pixels of each image [tiles, 3, height, width]. `context`: most
    tokens of a prompt and its completion together. Call it in a process of its own. Whatever vLLM raises goes on.
    """
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import LLM, SamplingParams

    from rollouts.vllm_plugin import register
    from rollouts.vllm_worker import cpu_arguments, sees_gpu

    register()
    on_gpu = sees_gpu()
    llm = LLM(
        folder,
        dtype="float32",
        max_model_len=context,
        max_num_seqs=8,
        limit_mm_per_prompt={"image": max(1, *(len(images) for _, images in prompts))},
        generation_config="vllm",
        enable_prefix_caching=False,
        seed=0,
        **({} if on_gpu else {"kv_cache_memory_bytes": 2**30, **cpu_arguments(context)}),
    )
    asked = [
        {"prompt_token_ids": list(ids), **({"multi_modal_data": {"image": list(images)}} if images else {})}
        for ids, images in prompts
    ]
    sampling = [SamplingParams(temperature=0.0, max_tokens=limit, detokenize=False) for limit in limits]
    return [list(done.outputs[0].token_ids) for done in llm.generate(asked, sampling, use_tqdm=False)]  # pyright: ignore
