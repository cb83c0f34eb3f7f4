"""A local reward model: `reward.functions=[rewards.reward_model:preference]`.

It is the only module of `rewards` that imports torch, and runs in a scorer process. The model may be any sequence
classifier with one output that transformers can load from a folder; settings come from
`reward.options={preference: {model: FOLDER}}`.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rewards.result import RewardInput

_TRANSFORMS = ("sigmoid", "none")


def preference(
    batch: Sequence[RewardInput],
    model: str = "",
    device: str = "cpu",
    transform: str = "sigmoid",
    max_tokens: int = 4096,
) -> list[float]:
    """Return the model's scalar for each completion after its messages; `sigmoid` maps it to 0..1.

    The messages go through the tokenizer's chat template where it has one, else they are joined by blank lines.
    `ValueError` for a folder without a model, several outputs, images (a text model cannot see them), too many tokens.
    """
    import torch

    if transform not in _TRANSFORMS:
        raise ValueError(
            f"reward.options.preference.transform: expected {' or '.join(_TRANSFORMS)}, found {transform!r}"
        )
    tokenizer, scorer = _load(model, device)
    values = []
    for item in batch:
        if item.images:
            raise ValueError("rewards.reward_model: expected text prompts, found images; the model cannot see them")
        ids = _encode(tokenizer, item)
        if len(ids) > max_tokens:
            raise ValueError(f"rewards.reward_model: expected at most {max_tokens} tokens, found {len(ids)}")
        with torch.no_grad():
            logit = scorer(torch.tensor([ids], device=device)).logits.float().reshape(-1)
        if logit.numel() != 1:
            raise ValueError(f"{model}: expected a classifier with one output, found {logit.numel()}")
        values.append((logit.sigmoid() if transform == "sigmoid" else logit).item())
    return values


preference.timeout_seconds = 600.0  # type: ignore[attr-defined]  (the first call loads the model)
preference.memory_mb = 0  # type: ignore[attr-defined]  (no limit: a model is large)


@cache
def _load(folder: str, device: str) -> tuple[Any, Any]:
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"reward.options.preference.model: expected a model folder with config.json, found {folder!r}")
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ModuleNotFoundError:
        raise ValueError("rewards.reward_model: expected transformers; pip install 'sailvl2-rl[hf]'") from None
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True)
    return tokenizer, scorer.to(device).eval()


def _encode(tokenizer: Any, item: RewardInput) -> list[int]:
    messages = [*({"role": m["role"], "content": _text(m["content"])} for m in item.messages)]
    messages.append({"role": "assistant", "content": item.completion})
    if getattr(tokenizer, "chat_template", None):
        return list(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
    return list(tokenizer("\n\n".join(message["content"] for message in messages))["input_ids"])


def _text(content: str | Sequence[Mapping[str, object]]) -> str:
    if isinstance(content, str):
        return content
    return "".join(str(part.get("text", "")) for part in content)
