"""The thinking instruction in prompts that were written for another trainer: it is not given twice."""

from collections.abc import Sequence

from model.data.media_cells import Message
from model.interface import JUDGE_START, THINK_END, THINK_START, Mode

_ASKS_FOR_BOX = "\\boxed"


def without_instruction(messages: Sequence[object]) -> bool:
    """Take the instruction of a mode from the end of the last user's text; whether it was there.

    The mode that is asked for then decides about it, and puts it where and as the model knows it: with think tags that
    are tokens. `messages` are changed; contents that are lists must be their own.
    """
    message = _last_of_user(messages)
    if message is None:
        return False
    content = message.get("content")
    if isinstance(content, str):
        if (kept := _without(content)) is not None:
            message["content"] = kept
        return kept is not None
    if not isinstance(content, list) or not content or not isinstance(last := content[-1], dict):
        return False
    if last.get("type") != "text" or not isinstance(last.get("text"), str):
        return False
    kept = _without(last["text"])
    if kept is None:
        return False
    if kept or len(content) == 1:
        last["text"] = kept
    else:
        content.pop()
    return True


def has_own_instruction(messages: Sequence[object]) -> bool:
    """Whether the system or the last user's message asks for what the published instruction asks for: a thought within
    think tags, and an answer in a box."""
    asking = [message for message in messages if isinstance(message, dict) and message.get("role") == "system"]
    last = _last_of_user(messages)
    text = "\n".join(_text(message) for message in [*asking, *([last] if last else [])])
    return all(part in text for part in (THINK_START, THINK_END, _ASKS_FOR_BOX))


def asks_for_judgement(messages: Sequence[object]) -> bool:
    """Whether a message asks in its own words for a judge section, as `Mode.auto` does."""
    return any(JUDGE_START in _text(message) for message in messages if isinstance(message, dict))


def _last_of_user(messages: Sequence[object]) -> Message | None:
    return next((m for m in reversed(messages) if isinstance(m, dict) and m.get("role") == "user"), None)


def _without(text: str) -> str | None:
    """The text before the instruction at its end; None where there is none."""
    kept = text.rstrip()
    for instruction in filter(None, (mode.instruction for mode in Mode)):
        if kept.endswith(instruction):
            return kept.removesuffix(instruction).rstrip()
    return None


def _text(message: Message) -> str:
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))
