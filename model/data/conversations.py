"""Conversations in the words that others use for them, and which mode a row is in."""

import re
from collections.abc import Sequence

from model.interface import JUDGE_START, THINK_END, THINK_START, Mode
from model.json_values import JsonObject

_ROLES = {name: name for name in ("user", "assistant", "system")}
_FROM = {**_ROLES, "human": "user", "gpt": "assistant", "model": "assistant"}  # LLaVA's and ShareGPT's words
_BLANK_THOUGHT = re.compile(rf"{THINK_START}\s*{THINK_END}\s*")


def conversation(column: str, turns: Sequence[object], system: object) -> list[JsonObject]:
    """Messages with role and content, from those or from LLaVA's and ShareGPT's `from` and `value`."""
    messages: list[JsonObject] = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise ValueError(f"{column}: expected objects with role and content, found {turn!r:.80}")
        roles = _ROLES if turn.get("role") else _FROM
        said, content = turn.get("role") or turn.get("from"), turn.get("content")
        content = turn.get("value") if content is None else content
        if not isinstance(said, str) or said not in roles:
            raise ValueError(f"{column}: expected turns of {', '.join(roles)}, found one of {said!r:.80}")
        if turn.get("tool_calls"):
            raise ValueError(f"{column}: expected turns without tool_calls, found {turn['tool_calls']!r:.80}")
        thought = turn.get("reasoning_content")
        if isinstance(thought, str) and thought.strip() and isinstance(content, str):
            content = f"{THINK_START}{thought.strip()}{THINK_END}{content}"
        messages.append({"role": roles[said], "content": content})
    if isinstance(system, str) and system.strip() and messages and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def assistant_text(message: JsonObject) -> str:
    """The text of an assistant's message. `ValueError` for one without, or with other parts."""
    content = message.get("content")
    if isinstance(content, str) and content:
        return content
    parts = content if isinstance(content, list) else []
    texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    if not "".join(texts) or len(texts) != len(parts):
        raise ValueError(f"messages: expected the assistant to say a text, found {content!r:.80}")
    return "".join(texts)


def mode_of(given: object, completions: Sequence[str]) -> tuple[Mode, list[str], list[str]]:
    """(the mode, the completions, remarks): as the row says, else auto where all completions begin with a judge
    section, else thinking where a completion has a thought.

    A blank thought, as Qwen3 writes it where it does not think, is taken out of completions of direct mode.
    """
    if given is not None and given not in [mode.value for mode in Mode]:
        raise ValueError(f"mode: expected think, direct or auto, found {given!r:.80}")
    judged = [text.lstrip().startswith(JUDGE_START) for text in completions]
    if given == "auto" or (given is None and any(judged)):
        if not all(judged):
            raise ValueError(
                "completions: expected a <judge> section at the beginning of each in mode auto, found one without; set "
                "mode to think or direct where they are not of mode auto"
            )
        return Mode.auto, list(completions), [] if given else ["say no mode and have a judge section: taken as auto"]
    kept = [_BLANK_THOUGHT.sub("", text, count=1) for text in completions]
    think = [THINK_END in text for text in kept]
    if given is not None:
        return Mode(given), kept if given == "direct" else list(completions), []
    if any(think) and not all(think):
        raise ValueError("mode: expected think or direct where some completions have a thought, found none")
    if not any(think):
        blank = ["hold a blank thought, which is left out"] if kept != list(completions) else []
        return Mode.direct, kept, ["say no mode and have no thought: taken as direct", *blank]
    remarks = ["say no mode and have a thought: taken as think"]
    if any("\\boxed" not in text.rpartition(THINK_END)[2] for text in completions):
        remarks.append("of mode think have no \\boxed answer, which the instruction asks for")
    return Mode.think, list(completions), remarks
