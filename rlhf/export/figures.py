"""The figures of a result of `rlhf.evaluate`, as a card shows them."""

from dataclasses import dataclass
from pathlib import Path

from model.json_values import JsonObject, read_json_object


@dataclass(frozen=True)
class Figure:
    """A measured figure of one mode. A number that the result does not have is None."""

    file: str  # name of the result's file
    measure: str  # "accuracy", or the title of a benchmark
    mode: str
    value: float | None  # from 0 to 100
    low: float | None  # ends of the 95 % interval, from 0 to 100
    high: float | None
    num_prompts: int | None
    format_rate: float | None  # from 0 to 1, as the share below
    mode_obedience: float | None
    mean_length: float | None  # tokens
    protocol: str | None


def figures_of(path: Path) -> list[Figure]:
    """The figures of a result, mode by mode. `ValueError` for a file that is none."""
    try:
        result = read_json_object(path)
    except OSError as error:
        raise ValueError(f"evaluations: expected a result of rlhf.evaluate, found: {error}") from None
    found: list[Figure] = []
    try:
        for mode, own in result.get("modes", {}).items():
            found.append(_figure(path, "accuracy", mode, own, own.get("accuracy"), own.get("interval"), 100.0))
        for name, one in result.get("benchmarks", {}).items():
            for mode, own in one["modes"].items():
                title = str(one.get("title") or name)
                found.append(_figure(path, title, mode, own, own.get("figure"), own.get("figure_interval"), 1.0))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a result of rlhf.evaluate, found: {error!r}") from None
    if not found and "num_eval" not in result:  # a vision tower's probes have figures of another kind
        raise ValueError(f"{path}: expected a result of rlhf.evaluate with `modes` or `benchmarks`, found neither")
    return found


def _figure(
    path: Path, measure: str, mode: str, own: JsonObject, value: object, interval: object, scale: float
) -> Figure:
    low, high = interval if isinstance(interval, list) else (None, None)
    prompts, protocol = own.get("num_prompts"), own.get("protocol")
    return Figure(
        path.name,
        measure,
        str(mode),
        _number(value, scale),
        _number(low, scale),
        _number(high, scale),
        prompts if isinstance(prompts, int) else None,
        _number(own.get("format_rate")),
        _number(own.get("mode_obedience")),
        _number(own.get("mean_length")),
        str(protocol) if protocol is not None else None,
    )


def _number(value: object, scale: float = 1.0) -> float | None:
    """The number, scaled; None where there is none."""
    return None if value is None else scale * float(value)  # pyright: ignore
