"""The answer in a reference column: alone, or inside a solution, as other projects' data sets store it."""

import json
import re
from math import isfinite

from model.data.config import ReferenceForm
from model.data.tables import as_json

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped character is skipped as a pair
_CLOSES_MATHEMATICS = re.compile(r"(?:\\[)\]]|[$\s.*。])*")
_HASHES = re.compile(r"^####[ \t]*(.*)$", re.MULTILINE)
_NUMBER = re.compile(r"[-+]?\$?[0-9][0-9,]*(?:\.[0-9]+)?%?", re.ASCII)
_MARKS = ("####", "\\boxed", "\\fbox", "<answer>")
_VERL_KEYS = {"ground_truth", "style"}
"""The fields of verl's column `reward_model`: an object with others is an answer of its own."""

PLAIN, OBJECT, LEFT = "plain", "object", "left"
"""`read_reference` says these beside the names of the forms: nothing had to be read; verl's object; a text in which
auto recognised nothing although it holds a form's mark."""


def read_reference(value: object, form: ReferenceForm) -> tuple[str, str]:
    """(the answer, how it was found). `ValueError` where there is no answer, or not in this form.

    Lists and objects become JSON text, as verifiers of several answers and of fields take them.
    """
    if isinstance(value, dict) and "ground_truth" in value and value.keys() <= _VERL_KEYS:
        text, found = read_reference(value["ground_truth"], form)
        return text, OBJECT if found == PLAIN else found
    text = _as_text(value)
    if not text.strip():
        raise ValueError("reference: expected an answer, found nothing")
    if form is ReferenceForm.plain:
        return text, PLAIN
    if form is ReferenceForm.auto:
        return _recognised(text)
    answer = {
        ReferenceForm.gsm8k: _behind_hashes,
        ReferenceForm.boxed: _last_box,
        ReferenceForm.answer_tag: _last_tagged,
    }[form](text)
    if not answer:
        raise ValueError(f"reference: expected an answer as data.reference_form={form.value} says, found {text!r:.80}")
    return answer, form.value


def _as_text(value: object) -> str:
    if isinstance(value, list | dict) and value:
        return json.dumps(as_json(value), ensure_ascii=False)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"reference: expected str, found {value!r:.80}")
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"reference: expected a finite number, found {value}")
    return str(value)


def _recognised(text: str) -> tuple[str, str]:
    """(answer, form) of a text that is a solution without doubt; else the text itself."""
    if not any(mark in text for mark in _MARKS):
        return text, PLAIN
    body = _behind_thinking(text).strip()
    if (answer := _sole_number_behind_hashes(body)) is not None:
        return answer, ReferenceForm.gsm8k.value
    if (answer := _sole_tagged(body)) is not None:
        return answer, ReferenceForm.answer_tag.value
    if (answer := _sole_last_box(body)) is not None:
        return answer, ReferenceForm.boxed.value
    return text, LEFT


def _behind_thinking(text: str) -> str:
    """The text behind one closed think block at its beginning."""
    before, closed, after = text.partition("</think>")
    is_block = before.lstrip().startswith("<think>") and before.count("<think>") == 1
    return after if closed and is_block and "think>" not in after else text


def _sole_number_behind_hashes(body: str) -> str | None:
    """A number behind the only #### that begins a line, which is the last line."""
    found = list(_HASHES.finditer(body))
    if len(found) != 1 or body.count("####") != 1 or found[0].end() != len(body):
        return None
    answer = found[0][1].strip()
    return answer.replace(",", "") if _NUMBER.fullmatch(answer) else None


def _sole_tagged(body: str) -> str | None:
    """The content of the only <answer> ... </answer>, outside of which there is nothing."""
    if not (body.startswith("<answer>") and body.endswith("</answer>")):
        return None
    if body.count("<answer>") != 1 or body.count("</answer>") != 1:
        return None
    content = body.removeprefix("<answer>").removesuffix("</answer>").strip()
    return (_whole_box(content) or content) or None


def _sole_last_box(body: str) -> str | None:
    """The content of the only box, behind which mathematics and sentences only close."""
    opening = _BOX.search(body)
    if opening is None or _BOX.search(body, opening.end()):
        return None
    content, end = _box_at(body, opening)
    return content if content and _CLOSES_MATHEMATICS.fullmatch(body, end) else None


def _behind_hashes(text: str) -> str:
    """The rest of the last line that #### begins."""
    found = _HASHES.findall(text)
    answer = found[-1].strip() if found else ""
    return answer.replace(",", "") if _NUMBER.fullmatch(answer) else answer


def _last_tagged(text: str) -> str:
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    content = text[start + len("<answer>") : end].strip() if 0 <= start < end else ""
    return _whole_box(content) or content


def _last_box(text: str) -> str:
    *_, last = [None, *_BOX.finditer(text)]
    return _box_at(text, last)[0] if last else ""


def _whole_box(content: str) -> str:
    """The content of a text that is one box and nothing else."""
    opening = _BOX.match(content)
    inner, end = _box_at(content, opening) if opening else ("", -1)
    return inner if end == len(content) else ""


def _box_at(text: str, opening: re.Match[str]) -> tuple[str, int]:
    """(content, end) of a box; empty where it does not close."""
    depth = 1
    for brace in _BRACE.finditer(text, opening.end()):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return text[opening.end() : brace.start()].strip(), brace.end()
    return "", len(text)
