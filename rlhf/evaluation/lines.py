"""The result of an evaluation as lines for a person."""

import math

from model.json_values import JsonObject
from model.run.printable import printable

_WIDTHS = (8, 15, 6, 6, 7, 10, 7)  # columns of an evaluation, together less than 80 characters


def evaluation_lines(name: str, result: JsonObject) -> list[str]:
    """The result of an evaluation for a person: a line for each data set and mode."""
    most = result["max_completion_tokens"]
    lines = [f"{name}: {result['num_eval']} prompts, at most {most} tokens a completion"]
    headings = ("mode", "accuracy", "95 % interval", "reward", "format", "cut off", "unscorable", "length")
    sets = result["by_dataset"] if len(result["by_dataset"]) > 1 else {}
    for title, modes in (*sets.items(), ("all" if sets else "", result["modes"])):
        if title:
            lines.append(printable(title, 80))
        lines.append("  ".join([f"  {headings[0]:13}", *map(str.rjust, headings[1:], _WIDTHS)]))
        for mode, found in modes.items():
            interval = "-" if found["interval"] is None else "{:.1%} - {:.1%}".format(*found["interval"])
            cells = (
                shown(found["accuracy"], ".1%"),
                interval,
                shown(found["reward"], ".3f"),
                shown(found["format_rate"], ".1%"),
                shown(found["cut_off_share"], ".1%"),
                shown(found["unscorable_share"], ".1%"),
                shown(found["mean_length"], ".1f"),
            )
            lines.append("  ".join([f"  {mode:13}", *map(str.rjust, cells, _WIDTHS)]))
    lines += _both_modes(result)
    if any((found["cut_off_share"] or 0) >= 0.5 for found in result["modes"].values()):
        lines.append(f"half of a mode and more is cut off at {most} tokens; raise rollouts.max_completion_tokens")
    return lines


def _both_modes(result: JsonObject) -> list[str]:
    """Lines below the table: pass@k, whether the mode is obeyed, overthinking, and the protocols."""
    lines = []
    if at_k := {name: value for name, value in result.items() if name.startswith(("pass_at_", "majority_at_"))}:
        lines.append("  ".join(f"{name.replace('_at_', '@')} {shown(value, '.1%')}" for name, value in at_k.items()))
    obeyed = {mode: found.get("mode_obedience") for mode, found in result["modes"].items()}
    if any(value is not None for value in obeyed.values()):
        shares = ", ".join(f"{mode} {shown(value, '.1%')}" for mode, value in obeyed.items())
        lines.append(f"does as the mode asks (thinks, or writes no think tag): {shares}")
    if result.get("thought_share") is not None:
        names = ("thought_share", "accuracy_with_thought", "accuracy_without_thought", "decision_accuracy")
        share, thinking, direct, decision = (shown(result.get(name), ".1%") for name in names)
        lines.append(
            f"auto: thinks in {share}; accuracy of those {thinking}, of the others {direct}; decides as the rows say: "
            f"{decision}"
        )
    if result.get("overthinking_share") is not None:
        lines.append(
            f"right directly, but more than {result['overthinking_factor']} times the tokens thinking: "
            f"{result['overthinking_share']:.1%}"
        )
    if ids := {mode: found["protocol"] for mode, found in result["modes"].items() if "protocol" in found}:
        lines.append("protocol: " + ", ".join(f"{mode} {one}" for mode, one in ids.items()))
    return lines


def shown(value: float | None, form: str) -> str:
    """The number in this format, or "-" where there was nothing to average."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def suite_lines(checkpoint: str, result: JsonObject) -> list[str]:
    """The figures of all benchmarks for a person."""
    lines = [f"{checkpoint}: {len(result['benchmarks'])} benchmarks"]
    heading = ("figure", "95 % interval", "found by rule", "unjudged", "cut off", "tokens", "protocol")
    widths = (7, 15, 13, 9, 8, 8, 12)
    lines.append("  ".join([f"  {'benchmark':24} {'mode':13}", *map(str.rjust, heading, widths)]))
    for name, found in result["benchmarks"].items():
        for mode, own in found["modes"].items():
            interval = own["figure_interval"]
            cells = (
                "-" if own["figure"] is None else f"{own['figure']:.2f}",
                "-" if interval is None else "{:.2f} - {:.2f}".format(*interval),
                f"{own['extraction'].get('rule', 0.0):.1%}",
                f"{own['extraction'].get('failed', 0.0):.1%}",
                "-" if own["cut_off_share"] is None else f"{own['cut_off_share']:.1%}",
                "-" if not own["mean_length"] else f"{own['mean_length']:.1f}",
                own["protocol"],
            )
            lines.append("  ".join([f"  {name:24} {mode:13}", *map(str.rjust, cells, widths)]))
        if found["num_unread"]:
            lines.append(f"  {name:24} {found['num_unread']} rows could not be read and are not in the figure")
    for name, found in result["averages"].items():
        if "missing" in found:
            lines.append(f"{name}: no average, without {', '.join(found['missing'])}")
        else:
            means = ", ".join(f"{mode} {'-' if value is None else f'{value:.2f}'}" for mode, value in found.items())
            lines.append(f"{name}: {means}")
    return lines
