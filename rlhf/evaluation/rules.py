"""How benchmarks read an answer and compare it: the protocols of VLMEvalKit, of August 2026 (commit e8e78f05).

These are measures, not rewards: they follow the protocol where it is lenient and where it is strict, so that figures
can stand beside published ones. `rewards/verifiers` holds what we hold to be right. `docs/benchmarks.md` says how each
rule was compared with VLMEvalKit's own.
"""

import ast
import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from rewards.answers import complete_boxes

REFUSED = "Z"
"""The option that stands for a refusal to answer. No question has it."""


@dataclass(frozen=True)
class Question:
    """All that a rule may look at beside the prediction."""

    answer: str
    options: Mapping[str, str] = field(default_factory=dict)  # letter -> text, in order
    columns: Mapping[str, str] = field(default_factory=dict)  # the other cells of the row


@dataclass(frozen=True)
class Ruling:
    """The finding of a rule about a prediction. `score` is None where the rule finds no answer in it."""

    score: float | None  # from 0 to 1; 1 is right
    answer: str | None  # the answer that was found


NOTHING = Ruling(None, None)

Rule = Callable[[str, Question], Ruling]

_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_WORDS = (
    4  # a letter counts as the choice if it is one of so many words at the end, or fewer than five stand there
)
_SAID = re.compile(r"(?i)(?:correct\s+)?answer\s+is\s+\**([ABCD])\**")
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
API_FAILED = "Failed to obtain answer via API"
"""The text that stands in VLMEvalKit's files for a prediction that never came."""


def infer_option(prediction: str, options: Mapping[str, str]) -> str | None:
    """Return the letter that a prediction picks, `REFUSED` for a refusal, None where it picks none.

    The letter is the only one of the options' that stands among the words, and stands near the end; else it follows
    "answer is"; else the text of one option alone is part of a prediction that is short enough.
    """
    if API_FAILED not in prediction and (letter := _letter(prediction, options)):
        return letter
    text = prediction.lower()
    if len(text) > 2 * sum(len(option) for option in options.values()):
        return None
    named = [letter for letter, option in options.items() if option.lower() in text]
    return named[0] if len(named) == 1 else None


def _letter(prediction: str, options: Mapping[str, str]) -> str | None:
    if any(refusal in prediction for refusal in _REFUSALS):
        return REFUSED
    words = prediction.translate(_MARKS).split()
    found = [letter for letter in options if letter in words]
    if len(found) == 1 and words.index(found[0]) >= len(words) - _LAST_WORDS:
        return found[0]
    if not found and REFUSED in words:
        return REFUSED
    said = _SAID.search(prediction)
    return said[1].upper() if said and said[1].upper() in options else None


def choice(prediction: str, question: Question) -> Ruling:
    """The option that the prediction picks is the right one."""
    letter = infer_option(prediction, question.options)
    return NOTHING if letter is None else Ruling(float(letter == question.answer), letter)


def listed_choice(prediction: str, question: Question) -> Ruling:
    """`choice` with the options as a Python list in column `choices`; a question without any has no rule."""
    options = dict(zip(string.ascii_uppercase, as_list(question.columns.get("choices", "[]")), strict=False))
    letter = infer_option(prediction, options) if options else None
    return NOTHING if letter is None else Ruling(float(letter == question.answer), letter)


def mathvista(prediction: str, question: Question) -> Ruling:
    """MathVista's check without its judge: the option by `choice`, or the prediction is the same number."""
    columns = question.columns
    if columns.get("question_type") == "multi_choice":
        options = dict(zip(string.ascii_uppercase, as_list(columns.get("choices", "[]")), strict=False))
        letter = infer_option(prediction, options)
        right = columns.get("answer_option", question.answer)
        return NOTHING if letter is None else Ruling(float(letter == right), letter)
    kinds: dict[str, Callable[[str], object]] = {"integer": int, "float": float}
    kind = kinds.get(columns.get("answer_type", ""))
    if kind is None:
        return NOTHING
    try:
        found, wanted = kind(prediction), kind(question.answer)
    except ValueError:
        return NOTHING
    return Ruling(1.0, str(found)) if found == wanted else NOTHING


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_LOOSE_PERIOD = re.compile(r"(?<!\d)\.(?!\d)")
_MOST_PERIODS = int(re.UNICODE)
"""VLMEvalKit gives a flag where the number of replacements belongs, so that no more than 32 periods go."""


def without_punctuation(text: str) -> str:
    """Remove a mark that stands beside a blank, and make others a blank; with a comma in a number all go."""
    drops_all = _COMMA_IN_NUMBER.search(text) is not None
    cleaned = text
    for mark in _PUNCTUATION:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if drops_all or beside_blank else " ")
    return _LOOSE_PERIOD.sub("", cleaned, count=_MOST_PERIODS)


def said_truth(prediction: str) -> str | None:
    """Return Yes or No if the words of the prediction hold one of them and not the other."""
    words = without_punctuation(prediction.lower()).split()
    if ("yes" in words) == ("no" in words):
        return None
    return "Yes" if "yes" in words else "No"


def yes_no(prediction: str, question: Question) -> Ruling:
    said = said_truth(prediction)
    return NOTHING if said is None else Ruling(float(said == question.answer), said)


def yes_no_any_case(prediction: str, question: Question) -> Ruling:
    said = said_truth(prediction)
    return NOTHING if said is None else Ruling(float(said.lower() == question.answer.lower()), said)


_DIGIT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBER_WORDS = {"none": "0", **{word: str(number) for number, word in enumerate(_DIGIT_WORDS)}}
_ARTICLES = ("a", "an", "the")
_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's "
    "isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've "
    "shouldn't that's there'd there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll "
    "what're what's what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't "
    "would've wouldn't y'all you'd you'll you're you've someone'd someone'll someone's something'd something'll"
)
_TWO_APOSTROPHES = (
    "couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've someone'd've something'd've there'd've "
    "they'd've we'd've who'd've wouldn't've y'all'll you'd've"
)


def _contractions() -> dict[str, str]:
    """The contractions that VQA's evaluation writes out: without an apostrophe, or with one of two."""
    table = {word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()}
    for word in _TWO_APOSTROPHES.split():
        first, second, third = word.split("'")
        table[f"{first}'{second}{third}"] = table[f"{first}{second}'{third}"] = word
    for word in ("y'all'd've",):
        table |= dict.fromkeys(("yall'd've", "y'alld've", "y'all'dve"), word)
    table |= {"yall'll": "y'all'll", "y'allll": "y'all'll", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at"}
    table |= {"'ow'sat": "'ow's'at", "somebody'd": "somebodyd", "somebodyd've": "somebody'd've"}
    table |= {"somebody'dve": "somebody'd've", "somebodyll": "somebody'll", "somebodys": "somebody's"}
    return table


_CONTRACTIONS = _contractions()


def vqa_text(text: str) -> str:
    """Return a text as VQA's evaluation compares it: lower case, no articles, digits for small numbers."""
    cleaned = without_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_NUMBER_WORDS.get(word, word) for word in cleaned.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_consensus(prediction: str, question: Question) -> Ruling:
    """Mean over the references of min(1, number of equal ones among the others / 3): VQA accuracy, as for TextVQA."""
    said, references = vqa_text(prediction), [vqa_text(one) for one in references_of(question.answer)]
    equal = [reference == said for reference in references]
    scores = [min(1.0, (sum(equal) - one) / 3) for one in equal]
    return Ruling(sum(scores) / len(scores) if scores else 0.0, said)


def vqa_equal(prediction: str, question: Question) -> Ruling:
    """Share of the references that are the prediction after `vqa_text`."""
    said, references = vqa_text(prediction), [vqa_text(one) for one in references_of(question.answer)]
    return Ruling(sum(one == said for one in references) / len(references) if references else 0.0, said)


def anls(prediction: str, question: Question) -> Ruling:
    """1 - edit distance / longer length for the best reference, and 0 below one half: DocVQA, InfoVQA."""
    best = max((1 - _distance_share(one, prediction) for one in references_of(question.answer)), default=0.0)
    return Ruling(best if best >= 0.5 else 0.0, prediction)


def _distance_share(reference: str, prediction: str) -> float:
    """Blanks are joined before texts are compared, but their length is that of the texts as they stand."""
    length = max(len(reference.upper()), len(prediction.upper()))
    joined = (" ".join(text.strip().lower().split()) for text in (reference, prediction))
    return edit_distance(*joined) / length if length else 0.0


def edit_distance(one: str, other: str) -> int:
    """Levenshtein distance, row by row over the shorter text."""
    short, long = sorted((one, other), key=len)
    row = list(range(len(short) + 1))
    for number, character in enumerate(long, 1):
        diagonal, row[0] = row[0], number
        for place, own in enumerate(short, 1):
            cost = diagonal if own == character else 1 + min(diagonal, row[place], row[place - 1])
            diagonal, row[place] = row[place], cost
    return row[-1]


_TOLERANCE = 0.05


def relaxed(prediction: str, question: Question) -> Ruling:
    """The best reference is within 5 %, or the same text in any case: ChartQA."""
    said = prediction.strip()
    return Ruling(max((_relaxed(said, one) for one in references_of(question.answer)), default=0.0), said)


def _relaxed(said: str, reference: str) -> float:
    number, wanted = _number(said), _number(reference)
    if number is not None and wanted:
        return float(abs(number - wanted) / abs(wanted) <= _TOLERANCE)
    return float(said.lower() == reference.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def same_text(prediction: str, question: Question) -> Ruling:
    """One of the references is the prediction, in any case: OCRVQA, GQA."""
    said = prediction.strip()
    return Ruling(float(any(one.strip().lower() == said.lower() for one in references_of(question.answer))), said)


_FORMULAS = "Handwritten Mathematical Expression Recognition"


def ocrbench(prediction: str, question: Question) -> Ruling:
    """A reference is part of the prediction; formulas are compared without blanks and with their case."""
    if question.columns.get("category") == _FORMULAS:
        said = prediction.strip().replace("\n", " ").replace(" ", "")
        wanted = [one.strip().replace("\n", " ").replace(" ", "") for one in references_of(question.answer)]
    else:
        said = prediction.lower().strip().replace("\n", " ")
        wanted = [one.lower().strip().replace("\n", " ") for one in references_of(question.answer)]
    return Ruling(float(any(one in said for one in wanted)), said)


def contains(prediction: str, question: Question) -> Ruling:
    """The reference is part of the prediction, in any case and without periods: MTVQA."""
    said, wanted = (text.strip().lower().replace(".", "") for text in (prediction, question.answer))
    return Ruling(float(wanted in said), said)


def crpe(prediction: str, question: Question) -> Ruling:
    """The first letter is the answer's; a longer text that begins with no letter from A to D holds its words."""
    if not prediction:
        return Ruling(0.0, None)
    if len(prediction) == 1 or prediction[0] in "ABCD":
        return Ruling(float(prediction[0] == question.answer[:1]), prediction[0])
    return Ruling(float(question.answer[4:].lower() in prediction.lower()), prediction)


_COORDINATE = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_GAP = r"(?:\s*,\s*|\s+)"
_BOX = re.compile(rf"\[\s*({_COORDINATE}){_GAP}({_COORDINATE}){_GAP}({_COORDINATE}){_GAP}({_COORDINATE})\s*\]")
_LEAST_OVERLAP = 0.5
Box = tuple[float, float, float, float]


def box_of(text: str) -> Box | None:
    """Return the first four numbers in brackets, else the first four of the text."""
    match = _BOX.search(text)
    numbers = list(match.groups()) if match else re.findall(_COORDINATE, text)
    if len(numbers) < 4:
        return None
    left, top, right, bottom = map(float, numbers[:4])
    return left, top, right, bottom


def in_pixels(box: Box, width: float, height: float) -> Box | None:
    """Scale a box by the size of its numbers: up to 1.5 they are shares, up to 1,000 thousandths, else pixels."""
    if not (width > 0 and height > 0) or not all(math.isfinite(one) for one in box):
        return None
    largest = max(abs(one) for one in box)
    unit = 1.0 if largest <= 1.5 else 1000.0 if largest <= 1000 else 0.0
    sizes = (width, height, width, height)
    scaled = [one / unit * size if unit else one for one, size in zip(box, sizes, strict=True)]
    left, top, right, bottom = (min(max(one, 0.0), size) for one, size in zip(scaled, sizes, strict=True))
    return min(left, right), min(top, bottom), max(left, right), max(top, bottom)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)) - width * height
    return width * height / both if both > 0 else 0.0


def grounding(prediction: str, question: Question) -> Ruling:
    """Intersection over union of at least one half with the reference box: RefCOCO."""
    wanted = reference_box(question)
    said = box_of(prediction)
    if said is None or wanted is None:
        return Ruling(0.0, None)
    placed = in_pixels(said, *_size(question))
    share = overlap(placed, wanted) if placed else 0.0
    return Ruling(float(share >= _LEAST_OVERLAP), "{:g}, {:g}, {:g}, {:g}".format(*said))


def _size(question: Question) -> tuple[float, float]:
    """Width and height of the image; 1 where a cell is no number above 0, as for boxes in shares."""
    width, height = (_number(question.columns.get(name, "")) or 0.0 for name in ("width", "height"))
    return width if width > 0 else 1.0, height if height > 0 else 1.0


def reference_box(question: Question) -> Box | None:
    """Return the right box in pixels, None where the row has none."""
    columns = question.columns
    for names in (("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"), ("x1", "y1", "x2", "y2")):
        corners = [_number(columns.get(name, "")) for name in names]
        if all(corner is not None and not math.isnan(corner) for corner in corners):
            left, top, right, bottom = (corner or 0.0 for corner in corners)
            return left, top, right, bottom
    for text in (question.answer, columns.get("bbox", "")):
        if found := box_of(text):
            return in_pixels(found, *_size(question))
    return None


def references_of(answer: str) -> list[str]:
    """Return the references of a cell, which holds one text or a Python list."""
    found = as_list(answer) if answer.strip().startswith("[") else []
    return found or [answer]


def as_list(cell: str) -> list[str]:
    """Return the entries of a Python list as texts; an empty list for anything else."""
    try:
        found = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [str(one) for one in found] if isinstance(found, list) else []


_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)


def prediction_of(completion: str, drops_period: bool = False) -> str:
    """Return what a benchmark compares of a completion: the first box behind a closed think block, else the last box,
    else the whole text. This is the extraction of SAIL-VL2's authors in VLMEvalKit, for completions with and without
    thinking; they drop a period at the end for ChartQA and OCRVQA."""
    thought = _THOUGHT.search(completion)
    after = complete_boxes(completion[thought.end() :]) if thought else []
    boxes = after or complete_boxes(completion)[-1:]
    text = boxes[0][1] if boxes else completion
    return text[:-1] if drops_period and text.endswith(".") else text


RULES: dict[str, Rule] = {
    "choice": choice,
    "listed_choice": listed_choice,
    "mathvista": mathvista,
    "yes_no": yes_no,
    "yes_no_any_case": yes_no_any_case,
    "vqa_consensus": vqa_consensus,
    "vqa_equal": vqa_equal,
    "anls": anls,
    "relaxed": relaxed,
    "same_text": same_text,
    "ocrbench": ocrbench,
    "contains": contains,
    "crpe": crpe,
    "grounding": grounding,
}
"""The rules by name, as `benchmarks.yaml` names them."""


def names_of_options(columns: Mapping[str, str]) -> Sequence[str]:
    """Return the letters of the options that a row has."""
    return [letter for letter in string.ascii_uppercase if letter in columns]
