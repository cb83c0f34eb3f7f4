"""Entries as text: one of them in full, and pages of them."""

from collections.abc import Iterable, Sequence
from itertools import islice

from model.run.printable import printable, printable_text
from rlhf.look.entries import Entry


def heading(entry: Entry) -> str:
    """Where an entry comes from and how it was judged, in a line."""
    places = (("step", entry.step), ("group", entry.group), ("sample", entry.sample))
    said = [f"{name} {value}" for name, value in places if value is not None]
    said += [printable(one, 80) for one in (entry.dataset, entry.mode, entry.id) if one]
    verdict = entry.verdict + (", cut off" if entry.is_cut_off else "")
    reward = "" if entry.reward is None else f"  reward {entry.reward:.3g}"
    advantage = "" if entry.advantage is None else f"  advantage {entry.advantage:+.3g}"
    dropped = f"  dropped: {printable(entry.dropped, 40)}" if entry.dropped else ""
    return f"{'  '.join(said)}  [{verdict}]{reward}{advantage}{dropped}"


def details(entry: Entry) -> str:
    """All of an entry, as lines without control characters."""
    parts = ", ".join(f"{name} {'-' if value is None else format(value, '.3g')}" for name, value in entry.parts.items())
    lines = [
        ("question", entry.question),
        ("images", "\n".join(entry.images)),
        ("completion", entry.completion or "(empty)"),
        ("answer", entry.answer if entry.answer is not None else "(none found)" if entry.is_judged else ""),
        ("reference", entry.reference),
        ("parts", parts),
        ("reason", entry.reason),
    ]
    shown = [f"{name}:\n{_indented(printable_text(value))}" for name, value in lines if value]
    return "\n".join([heading(entry), *shown])


def page(found: Iterable[Entry], number: int, size: int) -> tuple[list[Entry], bool]:
    """(the entries of a page, from 1; whether others follow)."""
    entries = list(islice(found, (number - 1) * size, number * size + 1))
    return entries[:size], len(entries) > size


def as_text(entries: Sequence[Entry], number: int, size: int, more: bool) -> str:
    """A page for a terminal, or for a file."""
    if not entries:
        return "no entry, or none that the filters let pass" if number == 1 else f"page {number} is empty"
    first = (number - 1) * size + 1
    end = (
        f"entries {first} to {first + len(entries) - 1}{f'; more: --page {number + 1}' if more else ', the last ones'}"
    )
    return "\n\n".join([*map(details, entries), end])


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.split("\n"))
