"""A local reward model: `reward.functions=[rewards.reward_model:preference]`.

It is the only module of `rewards` that imports torch, and runs in a scorer process. The model may be any sequence
classifier with one output that transformers can load from a folder; settings come from
`reward.options={preference: {model: FOLDER}}`.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from rewards.result import Options, RewardInput

_TRANSFORMS = ("sigmoid", "none")
_DEVICE = re.compile(r"cpu|mps|cuda(:\d+)?")


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

    check_options({"model": model, "device": device, "transform": transform, "max_tokens": max_tokens})
    model = str(Path(model).expanduser())
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


def check_options(options: Options) -> None:
    """`ValueError` names the option that `preference` does not take, or the missing package."""
    model, transform = options.get("model", ""), options.get("transform", "sigmoid")
    if not isinstance(model, str) or not model or not (Path(model).expanduser() / "config.json").is_file():
        raise ValueError(f"reward.options.preference.model: expected a model folder with config.json, found {model!r}")
    if transform not in _TRANSFORMS:
        raise ValueError(
            f"reward.options.preference.transform: expected {' or '.join(_TRANSFORMS)}, found {transform!r}"
        )
    device = options.get("device", "cpu")
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise ValueError(f"reward.options.preference.device: expected cpu, cuda, cuda:NUMBER or mps, found {device!r}")
    max_tokens = options.get("max_tokens", 4096)
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise ValueError(f"reward.options.preference.max_tokens: expected at least 1, found {max_tokens!r}")
    if importlib.util.find_spec("transformers") is None:
        raise ValueError("rewards.reward_model: expected transformers, found none; pip install 'sailvl2-rl[hf]'")


preference.check_options = check_options  # type: ignore[attr-defined]  (called before a run)
preference.timeout_seconds = 600.0  # type: ignore[attr-defined]  (the first call loads the model)
preference.memory_mb = 0  # type: ignore[attr-defined]  (no limit: a model is large)


@cache
def _load(folder: str, device: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

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
