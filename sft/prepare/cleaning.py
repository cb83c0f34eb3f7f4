"""Cleaning of what Chain-of-Thought data sets say: one form of a thought and its answer, questions without hints."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from model.data.config import ReferenceForm
from model.data.media_cells import Message
from model.data.references import LEFT, PLAIN, read_reference
from model.interface import THINK_END, THINK_START
from rewards.answers import AnswerRule, complete_boxes, extract, parse_completion

NO_THOUGHT, MALFORMED, NO_ANSWER = "no_thought", "malformed", "no_answer"
"""Why a completion cannot be brought into the one form."""

_MARKS = {
    "<|begin_of_thought|>": "<think>",
    "<|end_of_thought|>": "</think>",
    "<|begin_of_solution|>": "<answer>",
    "<|end_of_solution|>": "</answer>",
    "◁think▷": "<think>",
    "◁/think▷": "</think>",
    "[THINK]": "<think>",
    "[/THINK]": "</think>",
}
_THOUGHT_NAMES = "think|thinking|thought|thoughts|reasoning|rationale|cot|summary|caption"
_ANSWER_NAMES = "answer|final_answer|conclusion|solution"
_OPENS = re.compile(rf"\s*<\s*(?P<name>{_THOUGHT_NAMES}|{_ANSWER_NAMES})\s*>", re.IGNORECASE)
_THOUGHT_TAG = re.compile(r"<\s*/?\s*(?:think|thinking|thought|thoughts|reasoning)\s*>", re.IGNORECASE)
_CLOSES_THOUGHT = re.compile(r"<\s*/\s*(?:think|thinking|thought|thoughts|reasoning)\s*>", re.IGNORECASE)
_TWICE = re.compile(r"(</?think>)(?:\s*\1)+")
_HASHES = re.compile(r"^####[ \t]*[-+]?\$?[0-9][0-9,]*(?:\.[0-9]+)?%?\s*\Z", re.MULTILINE | re.ASCII)
_TAGGED_ANSWER = re.compile(r"<answer>(.*?)</answer>\s*", re.IGNORECASE | re.DOTALL)
_EAST_ASIAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_EAST_ASIAN}]|[^\W{_EAST_ASIAN}]+|[^\w\s]")
_MAX_CHARACTERS = 1_000_000
_LONGEST_HINT = 600  # characters

_HINTS = (
    r"(?:please\s+)?answer(?:\s+the\s+question)?\s+(?:using|with|in)\s+(?:only\s+)?a\s+(?:single|short)\s+(?:word|phrase)"
    r"(?:\s+or\s+(?:short\s+)?phrase)?\.?",
    r"(?:please\s+)?(?:answer|respond|reply)\s+(?:directly\s+)?with\s+(?:only\s+)?(?:the|an)\s+(?:correct\s+)?"
    r"(?:option|choice|letter)[^\n.?!]{0,80}?(?:directly|only|nothing\s+else|choices|letter|option)\.?",
    r"(?:please\s+)?(?:give|provide)\s+(?:only\s+)?(?:a\s+short\s+answer|the\s+final\s+answer\s+only)\.?",
    r"(?:please\s+)?answer\s+(?:directly|briefly|concisely)(?:\s+without\s+(?:explanation|thinking|reasoning))?\.?",
    r"do\s+not\s+(?:explain|think|reason)[^\n.]{0,60}\.?",
    r"please\s+(?:select|choose)\s+the\s+(?:correct|right)\s+(?:answer|option)[^\n.]{0,60}\.?",
    r"please\s+try\s+to\s+answer\s+the\s+question\s+with\s+short\s+words\s+or\s+phrases\s+if\s+possible\.?",
    r"hint:\s*please\s+(?:answer|solve|provide)[^\n]{0,250}?at\s+the\s+end\.",
    r"(?:let'?s\s+|let\s+us\s+|please\s+)?(?:think|reason|solve(?:\s+(?:it|this|the\s+problem))?)\s+step[-\s]by[-\s]step"
    r"(?:,?\s+(?:and\s+)?(?:then\s+)?(?:answer|put|give|provide|box|write)[^\n.?!]{0,120})?[.!:]?",
    r"you\s+first\s+think\s+about\s+the\s+reasoning\s+process[^\n.]{0,120}\.",
    r"[^\n.?!]{0,200}<\s*(?:think|answer)\s*>[^\n]{0,80}<\s*/\s*(?:think|answer)\s*>[^\n.?!]{0,200}[.!]?",
    r"[^\n.?!]{0,200}\\boxed\s*\{\s*\}[^\n.?!]{0,60}[.!]?",
    r"one\s+of\s+these\s+is\s+right:\s+give\s+its\s+letter\.",
)
_LEADS = (r"question\s*:",)
"""Marks that may stand before a question; they are cut only there."""


@dataclass(frozen=True)
class Thought:
    """A completion taken apart."""

    thought: str
    said: str  # everything behind the thought, as it was given
    answer: str  # without its box
    is_split: bool = False  # a solution without think tags, whose end became the answer

    @property
    def text(self) -> str:
        """The one form: the thought between think tags, the answer in a box."""
        return f"{THINK_START}{self.thought}{THINK_END}\\boxed{{{self.answer}}}"


class NotUsable(Exception):
    """A completion that cannot be brought into the one form: the text is the reason under which it is counted."""


def unify(completion: str, split_solutions: bool = True) -> Thought:
    """Take a completion apart, in whatever tags it has its thought and its answer. `NotUsable` says why it cannot."""
    if len(completion) > _MAX_CHARACTERS:
        raise NotUsable(MALFORMED)
    text = _with_tags(completion.strip())
    thought, said = _tagged(text) or _split(text, split_solutions)
    is_split = not _THOUGHT_TAG.search(text) and not _OPENS.match(text)
    thought = unwrapped(thought)
    if not thought:
        raise NotUsable(NO_THOUGHT)
    if not said.strip():
        raise NotUsable(NO_ANSWER)
    found = Thought(thought, said.strip(), answer_in(said), is_split)
    if not found.answer:
        raise NotUsable(NO_ANSWER)
    if not parse_completion(found.text).well_formed:
        raise NotUsable(MALFORMED)
    return found


def answer_in(said: str) -> str:
    """The answer in what stands behind a thought: the last box, an answer tag, "the answer is ...", else all of it."""
    answer, form = read_reference(said, ReferenceForm.auto)
    if form not in (PLAIN, LEFT):
        return answer
    found = extract(said, [AnswerRule.boxed, AnswerRule.answer_tag, AnswerRule.answer_line])
    return (said if found is None else found).strip()


def tokens_of(text: str) -> list[str]:
    """The tokens by which lengths are counted: words, numbers, signs, and each character of East Asian scripts."""
    return _TOKEN.findall(text.casefold())


def overlap(thought: str, said: str) -> float:
    """Return the share of the thought's tokens that the answer repeats, each as often as it stands there."""
    inside, answered = Counter(tokens_of(thought)), Counter(tokens_of(said))
    return (inside & answered).total() / max(1, inside.total())


def has_think_tags(text: str) -> bool:
    """Tell whether a text has a tag of a thought, in any spelling that `unify` reads."""
    return _THOUGHT_TAG.search(text) is not None or any(mark in text for mark in _MARKS)


def _with_tags(text: str) -> str:
    """The text with tags where others have marks of their own, and each tag once where it stands twice in a row."""
    for mark, tag in _MARKS.items():
        text = text.replace(mark, tag)
    return _TWICE.sub(r"\1", text)


def _tagged(text: str) -> tuple[str, str] | None:
    """(thought, what stands behind it) of a text in tags; None where it has none."""
    if not _OPENS.match(text):
        closed = _CLOSES_THOUGHT.search(text)
        if closed is None:
            if _THOUGHT_TAG.search(text):
                raise NotUsable(MALFORMED)
            return None
        return text[: closed.start()], _free_of_tags(text[closed.end() :])
    thoughts: list[str] = []
    answer, position = "", 0
    while opened := _OPENS.match(text, position):
        name = opened["name"]
        closed = re.compile(rf"<\s*/\s*{name}\s*>", re.IGNORECASE).search(text, opened.end())
        if closed is None or answer:
            raise NotUsable(MALFORMED)
        inner, position = text[opened.end() : closed.start()], closed.end()
        if re.fullmatch(_ANSWER_NAMES, name, re.IGNORECASE):
            answer = inner
        else:
            if thoughts and _is_thought(name) and _THOUGHT_TAG.search(text[: opened.start()]):
                raise NotUsable(MALFORMED)  # a second thought, behind the first
            thoughts.append(inner.strip())
    rest = text[position:]
    if answer and rest.strip():
        raise NotUsable(MALFORMED)
    if not thoughts:
        return None
    return "\n".join(thoughts), answer or _free_of_tags(rest)


def _is_thought(name: str) -> bool:
    return _THOUGHT_TAG.fullmatch(f"<{name}>") is not None


def _free_of_tags(rest: str) -> str:
    if _THOUGHT_TAG.search(rest):
        raise NotUsable(MALFORMED)
    tagged = _TAGGED_ANSWER.fullmatch(rest.strip())
    return tagged[1] if tagged else rest


def unwrapped(thought: str) -> str:
    """The thought without tags around it, in whatever spelling. `NotUsable` for tags inside of it."""
    thought = _with_tags(thought.strip())
    while (opened := _OPENS.match(thought)) and _is_thought(opened["name"]):
        closing = [*_CLOSES_THOUGHT.finditer(thought)]
        if not closing or closing[-1].end() != len(thought):
            break
        thought = thought[opened.end() : closing[-1].start()].strip()
    if THINK_START in thought or THINK_END in thought:
        raise NotUsable(MALFORMED)
    return thought


def _split(text: str, split_solutions: bool) -> tuple[str, str]:
    """(thought, answer) of a solution whose end is its answer. `NotUsable` where its end is none."""
    if not split_solutions:
        raise NotUsable(NO_THOUGHT)
    if hashes := _HASHES.search(text):
        return text[: hashes.start()], hashes[0]
    if boxes := complete_boxes(text):
        end, answer = boxes[-1]
        start = max(text.rfind(command, 0, end) for command in ("\\boxed", "\\fbox"))
        if len(boxes) == 1 and re.fullmatch(r"[\s.$)\]*。\\]*", text[end:]) and text[:start].strip("$ \\([*"):
            return f"{text[:start]}{answer}{text[end:]}", f"\\boxed{{{answer}}}"
        raise NotUsable(NO_THOUGHT)
    if (tagged := [*_TAGGED_ANSWER.finditer(text)]) and tagged[-1].end() == len(text):
        return text[: tagged[-1].start()], tagged[-1][1]
    before, _, last = text.rpartition("\n")
    answer = extract(last, [AnswerRule.answer_line])
    if before.strip() and answer:
        return before, answer
    raise NotUsable(NO_THOUGHT)


@dataclass
class HintCutter:
    """Cuts instructions about the form of an answer from both ends of questions; counts what it cut."""

    more: Sequence[str] = ()
    num_cut: int = 0
    _at_begin: list[re.Pattern[str]] = field(init=False)
    _at_end: list[re.Pattern[str]] = field(init=False)

    def __post_init__(self) -> None:
        hints = [*_HINTS, *self.more]
        self._at_begin = [re.compile(rf"\s*(?:{hint})(?:\s+|\Z)", re.IGNORECASE) for hint in [*hints, *_LEADS]]
        edge = r"(?:\A|(?<=[\s.?!:;)\]}。？！]))"
        self._at_end = [re.compile(rf"{edge}(?:{hint})\s*\Z", re.IGNORECASE) for hint in hints]

    def cut(self, text: str) -> str:
        """The text without hints at its ends; a text without any stays as it is, white space included."""
        kept, was_cut = text, True
        while was_cut and kept:
            was_cut = False
            for pattern in self._at_begin:
                if found := pattern.match(kept):
                    kept, was_cut = kept[found.end() :], True
            for pattern in self._at_end:
                if found := pattern.search(kept, max(0, len(kept) - _LONGEST_HINT)):
                    kept, was_cut = kept[: found.start()].rstrip(), True
        return text if kept == text else kept.strip()

    def messages(self, messages: Sequence[Message]) -> list[Message]:
        """The messages with the texts of users cut; a part that becomes empty goes."""
        kept = [self._message(message) if message.get("role") == "user" else message for message in messages]
        self.num_cut += kept != list(messages)
        return kept

    def _message(self, message: Message) -> Message:
        content = message.get("content")
        if isinstance(content, str):
            return {**message, "content": self.cut(content)}
        if not isinstance(content, list):
            return message
        parts: list[object] = []
        for part in content:
            if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
                text = self.cut(part["text"])
                if text:
                    parts.append({**part, "text": text})
            else:
                parts.append(part)
        return {**message, "content": parts}


def question_text(messages: Sequence[Message]) -> str:
    """The text of all users' messages, their media apart."""
    texts: list[str] = []
    for message in messages:
        if message.get("role") == "user":
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
            texts += [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "\n".join(texts)
