"""Verifiers of places in an image: `box_iou`, `point_in_box`."""

import re
from collections.abc import Mapping

from rewards.result import Claim, Unscorable
from rewards.verifiers.verifier import Option, Options, Verifier, parse_json, refuse_missing

_MAX_CHARACTERS = 2_000
_LARGEST = 1e9  # coordinates above it, and NaN, are none
_NUMBER = re.compile(r"(?<![\w.])[+-]?(?:[0-9]{1,9}(?:\.[0-9]{1,30})?|\.[0-9]{1,30})(?![\w.]*[0-9])", re.ASCII)
_TAGGED = re.compile(r"<\|?(box|point|bbox)(?:_start)?\|?>(.*?)<(?:/|\|)(?:\1)(?:_end\|)?>", re.DOTALL)
_PLAIN = re.compile(r"[\s\[\](){}<>,;|0-9.+\-]*(?:[\s\[\](){}<>,;|]*)")
_KEYS = ("bbox_2d", "bbox", "box", "box_2d", "point_2d", "point", "coordinates")
_SCALE_DOC = "auto: 0-1 when no coordinate is above 1, else 0-1000; unit: 0-1; thousand: 0-1000"
_SCALES = ("auto", "unit", "thousand")


def judge_box_iou(claim: Claim, options: Options) -> float:
    """Give the overlap of two boxes by their union, or 1 or 0 by a threshold. Several boxes, or none, give 0."""
    reference = _reference_box(claim, options)
    numbers = _scaled(_numbers(claim.answer, 4), options["answer_scale"])
    if numbers is None or not _is_box(numbers):
        return 0.0
    value = _iou(numbers, reference)
    return float(value >= options["threshold"]) if options["threshold"] > 0 else value


def judge_point_in_box(claim: Claim, options: Options) -> float:
    """Give 1 when the answer is one point and lies in the reference box, its border included."""
    left, top, right, bottom = _reference_box(claim, options)
    point = _scaled(_numbers(claim.answer, 2), options["answer_scale"])
    return float(point is not None and left <= point[0] <= right and top <= point[1] <= bottom)


def _reference_box(claim: Claim, options: Options) -> list[float]:
    reference = claim.reference
    if isinstance(reference, str):
        refuse_missing(reference)
    box = _scaled(_numbers(reference, 4), options["reference_scale"])
    if box is None or not _is_box(box):
        raise Unscorable(
            f"expected a box x1, y1, x2, y2 with x1 < x2 and y1 < y2 as reference, found {str(reference)[:80]!r}"
        )
    return box


def _numbers(value: object, count: int) -> list[float] | None:
    """Read exactly `count` numbers: a (nested) list, JSON, an object with a known key, `<box>` tags, bare numbers."""
    if isinstance(value, str):
        if len(value) > _MAX_CHARACTERS:
            return None
        value = _from_text(value)
    if isinstance(value, Mapping):
        known = [key for key in _KEYS if key in value]
        value = value[known[0]] if len(known) == 1 else None
    flat: list[float] = []
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, (list, tuple)):
            waiting.extend(reversed(one))
        elif isinstance(one, Mapping):
            known = [key for key in _KEYS if key in one]
            if len(known) != 1:
                return None
            waiting.append(one[known[0]])
        elif isinstance(one, bool) or not isinstance(one, (int, float)) or not abs(one) <= _LARGEST:
            return None
        else:
            flat.append(float(one))
        if len(flat) > count or len(waiting) > 100:
            return None
    return flat if len(flat) == count else None


def _from_text(text: str) -> object:
    text = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    tagged = _TAGGED.findall(text)
    if tagged:
        return [float(number) for _, inside in tagged for number in _NUMBER.findall(inside)]
    try:
        return parse_json(text)
    except ValueError:
        pass
    bare = text.strip().strip("$.").replace("\\left", "").replace("\\right", "")
    if _PLAIN.fullmatch(bare):
        return [float(number) for number in _NUMBER.findall(bare)]
    brackets = re.findall(r"[\[(][^\[\]()]*[\])]", bare)
    inside = [[float(number) for number in _NUMBER.findall(bracket)] for bracket in brackets]
    return [numbers for numbers in inside if numbers] or None


def _scaled(numbers: list[float] | None, scale: str) -> list[float] | None:
    """Turn coordinates into shares of the image's width and height; None when one lies outside the image."""
    if numbers is None or min(numbers) < 0:
        return None
    if scale == "thousand" or (scale == "auto" and max(numbers) > 1):
        numbers = [number / 1000 for number in numbers]
    return numbers if max(numbers) <= 1 else None


def _is_box(box: list[float]) -> bool:
    return box[0] < box[2] and box[1] < box[3]


def _iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    overlap = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return min(1.0, overlap / (areas[0] + areas[1] - overlap))


_COORDINATES = {
    "answer_scale": Option("auto", _SCALE_DOC, _SCALES),
    "reference_scale": Option("auto", _SCALE_DOC, _SCALES),
}
BOX_IOU = Verifier(
    judge_box_iou,
    "intersection over union of the answer's box and the reference's, or 1 and 0 by a threshold",
    "IoU of PASCAL VOC; threshold 0.5 gives the accuracy of RefCOCO; 0-1000 coordinates as Qwen-VL writes them",
    {
        **_COORDINATES,
        "threshold": Option(0.0, "0: the IoU itself; above: 1 from this IoU on, else 0", at_least=0.0, at_most=1.0),
    },
)
POINT_IN_BOX = Verifier(
    judge_point_in_box,
    "1 when the answer's point lies in the reference box, else 0",
    "click accuracy of ScreenSpot (Cheng et al. 2024)",
    _COORDINATES,
)
