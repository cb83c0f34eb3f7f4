"""Gates: bounds on the figures of an evaluation after a stage, and what becomes of the pipeline where one is broken."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from model.json_values import JsonObject, member

_FIELDS = ("figure", "at_least", "at_most", "compared_with", "otherwise")
_ACCURACY = "accuracy"


class Otherwise(Enum):
    """The end of a broken gate: `stop` ends the pipeline, `warn` says so and goes on, `best` takes the model that was
    best during the stage in place of the last one, and stops where that breaks the gate too."""

    stop = "stop"
    warn = "warn"
    best = "best"


@dataclass(frozen=True)
class Gate:
    """A bound on one figure, such as `modes.think.accuracy`; with `compared_with`, on how much it rose since then."""

    figure: str
    at_least: float = -math.inf
    at_most: float = math.inf
    compared_with: str = ""  # an earlier stage that is evaluated too
    otherwise: Otherwise = Otherwise.stop


@dataclass(frozen=True)
class Verdict:
    """The answer of a gate to an evaluation."""

    figure: str
    is_passed: bool
    value: float | None
    interval: list[float] | None
    said: str

    def to_json(self) -> JsonObject:
        return asdict(self)


def read_gates(given: Sequence[object], where: str, evaluated: Sequence[str]) -> list[Gate]:
    """The gates of a stage's field `gates`. `evaluated`: earlier stages that are evaluated. `ValueError` by name."""
    return [_gate(one, f"{where}.gates[{number}]", evaluated) for number, one in enumerate(given)]


def _gate(given: object, where: str, evaluated: Sequence[str]) -> Gate:
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}: expected a mapping of {', '.join(_FIELDS)}, found {given!r:.80}")
    fields: dict[str, Any] = {str(key): value for key, value in given.items()}
    if unknown := [key for key in fields if key not in _FIELDS]:
        raise ValueError(f"{where}: expected the fields {', '.join(_FIELDS)}, found {unknown[0]!r}")
    figure = fields.get("figure")
    if not isinstance(figure, str) or not figure:
        raise ValueError(f"{where}.figure: expected a figure such as modes.think.accuracy, found {figure!r}")
    bounds: dict[str, float] = {}
    for key in ("at_least", "at_most"):
        if (value := fields.get(key)) is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{where}.{key}: expected a number, found {value!r}")
        bounds[key] = float(value)
    if not bounds:
        raise ValueError(f"{where}: expected at_least or at_most, found neither")
    other = str(fields.get("compared_with") or "")
    if other and other not in evaluated:
        known = ", ".join(evaluated) or "none"
        raise ValueError(
            f"{where}.compared_with: expected an earlier stage that is evaluated ({known}), found {other!r}"
        )
    otherwise = member(Otherwise, fields.get("otherwise", Otherwise.stop), f"{where}.otherwise")
    return Gate(figure, **bounds, compared_with=other, otherwise=otherwise)


def judge(gate: Gate, result: JsonObject, earlier: JsonObject | None) -> Verdict:
    """Tell whether a result passes. `earlier`: the result after `compared_with`.

    A bound is broken where the whole 95 % interval lies beyond it, or, for a figure without an interval, the value. A
    figure that is not there, or that is no number because nothing could be measured, breaks the gate.
    """
    value, interval = _figure(result, gate.figure)
    if gate.compared_with and value is not None:
        before, interval_before = _figure(earlier or {}, gate.figure)
        value, interval = _difference(value, interval, before, interval_before)
    low, high = (interval[0], interval[1]) if interval else (value, value)
    name = f"{gate.figure} less that of {gate.compared_with}" if gate.compared_with else gate.figure
    if value is None or low is None or high is None:
        return Verdict(gate.figure, False, None, None, f"{name} was not measured")
    if high < gate.at_least:
        said, passed = f"is below {gate.at_least:g}", False
    elif low > gate.at_most:
        said, passed = f"is above {gate.at_most:g}", False
    else:
        said, passed = "is within its bounds", True
    around = f" ({low:.4g} to {high:.4g})" if interval else ""
    return Verdict(gate.figure, passed, value, interval, f"{name} = {value:.4g}{around} {said}")


def _figure(result: JsonObject, key: str) -> tuple[float | None, list[float] | None]:
    """(a figure by its dotted key, its interval where the result has one)."""
    found: object = result
    above: object = None
    for part in key.split("."):
        above, found = found, found.get(part) if isinstance(found, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
        return None, None
    interval = above.get("interval") if isinstance(above, dict) and key.endswith(f".{_ACCURACY}") else None
    return float(found), interval if isinstance(interval, list) else None


def _difference(
    value: float, interval: list[float] | None, before: float | None, interval_before: list[float] | None
) -> tuple[float | None, list[float] | None]:
    """(how much a figure rose, the interval of that from the intervals of both).

    Newcombe 1998, method 10. It takes the two as independent: for the same questions it is wider than a paired one.
    """
    if before is None:
        return None, None
    rise = value - before
    if interval is None or interval_before is None:
        return rise, None
    down = math.hypot(value - interval[0], interval_before[1] - before)
    up = math.hypot(interval[1] - value, before - interval_before[0])
    return rise, [rise - down, rise + up]
