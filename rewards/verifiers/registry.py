"""All verifiers by name: run one here, decide the cheap cases anywhere, check options before a run."""

import difflib
import sys
from collections.abc import Iterable, Mapping

from rewards.result import Claim
from rewards.verifiers.choices import CHOICE
from rewards.verifiers.compatibility import GEO3K, GSM8K, MATH_DAPO
from rewards.verifiers.form import FORMAT, LANGUAGE, OVERLONG, REPETITION
from rewards.verifiers.grounding import BOX_IOU, POINT_IN_BOX
from rewards.verifiers.numeric import COUNT, NUMERIC, RELAXED
from rewards.verifiers.symbolic import MATH
from rewards.verifiers.texts import ANLS, BOOLEAN, EXACT, JSON_FIELDS, ORDERED_LIST
from rewards.verifiers.verifier import QUICK_CHARACTERS, UNDECIDED, Option, Undecided, Verifier

__all__ = ["UNDECIDED", "VERIFIERS", "Undecided", "check_options", "decide_quickly", "verify"]

VERIFIERS: dict[str, Verifier] = {
    "math": MATH,
    "numeric": NUMERIC,
    "choice": CHOICE,
    "boolean": BOOLEAN,
    "exact": EXACT,
    "anls": ANLS,
    "relaxed": RELAXED,
    "count": COUNT,
    "box_iou": BOX_IOU,
    "point_in_box": POINT_IN_BOX,
    "ordered_list": ORDERED_LIST,
    "json_fields": JSON_FIELDS,
    "format": FORMAT,
    "overlong": OVERLONG,
    "repetition": REPETITION,
    "language": LANGUAGE,
    "gsm8k": GSM8K,
    "math_dapo": MATH_DAPO,
    "geo3k": GEO3K,
}


def verify(name: str, claim: Claim, options: Mapping[str, object]) -> float | None:
    """Return the verifier's value, here and now; None where it does not apply.

    Raises `Unscorable` where the claim cannot be judged, `ValueError` for an unknown name or option. `math`,
    `geo3k` and `choice` run sympy, which has no time limit of its own: call them in a scorer process.
    """
    settings = check_options(name, options)
    return VERIFIERS[name].judge(claim, settings)


def decide_quickly(name: str, claim: Claim, options: Mapping[str, object]) -> float | Undecided | None:
    """Return the result of `verify`, or `UNDECIDED` where that may take long. Takes linear time and no sympy.

    Raises like `verify`.
    """
    settings = check_options(name, options)
    verifier = VERIFIERS[name]
    if len(claim.completion) + len(claim.answer or "") > QUICK_CHARACTERS:
        return UNDECIDED
    return (verifier.quick or verifier.judge)(claim, settings)


def check_options(name: str, options: Mapping[str, object]) -> dict[str, float | str]:
    """Return all options of the verifier, defaults filled in. `ValueError` names verifier, option and remedy."""
    if name not in VERIFIERS:
        raise ValueError(f"unknown verifier {name!r}{_nearest(name, VERIFIERS)}; known: {', '.join(VERIFIERS)}")
    known = VERIFIERS[name].options
    for key in options:
        if key not in known:
            has = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(f"verifier {name!r}: unknown option {key!r}{_nearest(key, known)}; {has}")
    found = {key: _checked(name, key, option, options.get(key, option.default)) for key, option in known.items()}
    for key, option in known.items():
        value, most = found[key], option.at_most
        limit = found[most] if isinstance(most, str) else most
        if isinstance(value, (int, float)) and isinstance(limit, (int, float)) and value > limit:
            bound = f"{most} ({limit:g})" if isinstance(most, str) else f"{limit:g}"
            raise ValueError(f"verifier {name!r}: option {key!r}: expected at most {bound}, found {value!r}")
    return found


def _checked(name: str, key: str, option: Option, value: object) -> float | str:
    where = f"verifier {name!r}: option {key!r}"
    if option.choices:
        if not isinstance(value, str) or value not in option.choices:
            raise ValueError(f"{where}: expected one of {', '.join(option.choices)}, found {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{where}: expected a finite number, found {value!r}")
    if not abs(value) <= sys.float_info.max:
        found = "a whole number that is too large" if isinstance(value, int) else repr(value)
        raise ValueError(f"{where}: expected a finite number, found {found}")
    if option.whole and value != int(value):
        raise ValueError(f"{where}: expected a whole number, found {value!r}")
    if option.at_least is not None and value < option.at_least:
        raise ValueError(f"{where}: expected at least {option.at_least:g}, found {value!r}")
    return value


def _nearest(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
