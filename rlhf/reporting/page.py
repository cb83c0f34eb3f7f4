"""One HTML file out of a run's or a pipeline's folder. It needs no network and no other file."""

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2

from model.json_values import JsonObject
from rlhf.reporting.blocks import Browser, browser_of, json_in_html
from rlhf.reporting.choice import RULE, Choice, Source, choose
from rlhf.reporting.config import ReportPageConfig
from rlhf.reporting.figures import (
    FALL_WINDOW,
    Difference,
    Fall,
    charts_of,
    curves,
    differences,
    funnel,
    is_number,
    largest_falls,
    num_named_charts,
    phases,
)
from rlhf.reporting.run_data import FolderData, RunData, read_folder
from rlhf.reporting.state import Session

_EVALUATED = (
    *("accuracy", "interval", "reward", "format_rate", "mean_length", "cut_off_share", "unscorable_share"),
    "num_prompts",
)
"""Figures of an evaluation's mode that are shown. An older result may lack some."""
_MIB = 2**20
_TEXT_SHARE = 0.65
"""Share of the room for rollouts that their texts may take; images take the rest, and what texts leave."""
_SCRIPTS = ("start.js", "charts.js", "rollouts.js")

REASONS = {
    "drawn": "prompts that were drawn from the data",
    "trained": "groups that an update was made of",
    "all_right": "every completion of the group was right, so that none was better than another",
    "all_wrong": "every completion of the group was wrong, so that none was better than another",
    "equal_answers": "the answers of all completions of the group were worth the same",
    "equal_rewards": "all completions of the group had the same reward",
    "unscorable": "too few completions of the group could be scored",
    "overlong": "every completion of the group was cut off and masked",
    "surplus": "useful, but the step had as many groups as it needed",
    "skipped_step": "useful, but too few useful groups were found for the step",
    "not_finite": "loss or gradient was not finite in every update with the group",
    "in flight": "kept for a later step",
}
"""How a draw may end, in words."""


@dataclass(frozen=True)
class _Bar:
    """A stage on the timeline. Shares are those of the whole time, in percent."""

    left: float
    width: float


@dataclass(frozen=True)
class _Stage:
    """Everything that the page says of a stage, apart from curves and rollouts."""

    run: RunData
    seconds: float | None
    bars: list[_Bar]
    last: list[tuple[str, float]]
    falls: list[Fall]
    funnel: list[tuple[str, int]]
    phases: list[tuple[str, float]]
    differences: list[Difference]

    @property
    def num_steps(self) -> int:
        return int(self.run.metrics[-1]["step"]) if self.run.metrics else 0


def write_report(config: ReportPageConfig) -> tuple[Path, Browser]:
    """Write the page and return where it is. `ValueError` for a folder that holds no run, or a place that cannot be
    written."""
    from model.run.durable import write_file

    folder = read_folder(Path(config.run).expanduser())
    other = read_folder(Path(config.also).expanduser()) if config.also else None
    out = Path(config.out).expanduser() if config.out else folder.path / "report.html"
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"out: expected a file name in a folder that is there, found {out}")
    html, browser = page_of(folder, other, config)
    write_file(out, html.encode("utf-8", "replace"))
    return out, browser


def page_of(folder: FolderData, other: FolderData | None, config: ReportPageConfig) -> tuple[str, Browser]:
    """The page as text, and what it holds of the rollouts."""
    stages = [_stage(folder, run, _partner(run, folder, other)) for run in folder.stages]
    pairs = [(stage.run, _partner(stage.run, folder, other)) for stage in stages]
    charts = json_in_html([_figures(run, partner, other.name if other else "") for run, partner in pairs])
    room = int(config.max_mib * _MIB) - len(charts.encode()) - _size_of_assets() - 400 * _num_settings(stages)
    sources = sources_of(folder)
    falls = {(stage.run.name, fall.step) for stage in stages for fall in stage.falls}
    choice = choose(sources, int(max(room, 0) * _TEXT_SHARE), falls)
    browser = browser_of(choice, config.image_pixels, max(room, 0))
    script = "\n".join(_asset(name) for name in _SCRIPTS)
    html = _template().render(
        folder=folder,
        other=other,
        stages=stages,
        changed=differences(folder.settings, other.settings) if other and folder.is_pipeline else [],
        evaluations=_evaluation_rows(folder, other),
        rl=[stage for stage in stages if stage.funnel],
        falling=[stage for stage in stages if stage.falls],
        problems=[*folder.problems, *(other.problems if other else []), *choice.problems],
        notes=_notes(choice, browser),
        browser=browser,
        reasons=REASONS,
        window=FALL_WINDOW,
        made=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        charts=charts,
        style=_asset("page.css"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    return html, browser


def sources_of(folder: FolderData) -> list[Source]:
    """The files of rollouts and of answers, in the order of the stages."""
    found: list[Source] = []
    for run in folder.stages:
        found += [Source(run.name, file) for file in sorted((run.folder / "rollouts").glob("step_*.jsonl"))]
        found += [Source(run.name, file) for file in sorted(run.folder.glob("*.answers.jsonl"))]
    names = [run.name for run in folder.stages]
    for file in sorted((folder.path / "evaluations").glob("*.answers.jsonl")):
        name = file.name.removesuffix(".answers.jsonl")
        found.append(Source(name, file))
        names += [name] if name not in names else []
    return sorted(found, key=lambda source: names.index(source.stage))


def _partner(run: RunData, folder: FolderData, other: FolderData | None) -> RunData | None:
    """The run to compare with: the stage of the same name, or of two single runs the other one."""
    if other is None:
        return None
    if not folder.is_pipeline and not other.is_pipeline:
        return other.stages[0]
    return next((one for one in other.stages if one.name == run.name), None)


def _stage(folder: FolderData, run: RunData, partner: RunData | None) -> _Stage:
    seconds = folder.seconds.get(run.name, run.state.seconds)
    if seconds is None and run.metrics:
        seconds = sum(total for _, total in phases(run.metrics))
    names = ("accuracy", "reward", "length/mean", "groups/dead_share", "nll_per_token", "loss", "eval/best")
    last = [(name, row[name]) for name in names for row in run.metrics[-1:] if is_number(row.get(name))]
    return _Stage(
        run,
        seconds,
        _bars(folder, run, seconds),
        last[:5],
        largest_falls(run.metrics) if run.is_rl else [],
        funnel(run),
        phases(run.metrics),
        differences(run.settings, partner.settings) if partner else [],
    )


def _bars(folder: FolderData, run: RunData, seconds: float | None) -> list[_Bar]:
    """Where a stage stands on the timeline: by the clock where all stages tell it, else one behind the other."""
    runs = folder.stages
    if all(one.state.sessions for one in runs):
        ends = [end for one in runs for session in one.state.sessions for end in _ends(one, session)]
        first, last = min(ends), max(ends)
        width = max(last - first, 1e-9)
        bars = [(_ends(run, session)) for session in run.state.sessions]
        return [_Bar(100 * (begin - first) / width, 100 * max(end - begin, 0) / width) for begin, end in bars]
    lengths = [folder.seconds.get(one.name, one.state.seconds) or 0.0 for one in runs]
    total = sum(lengths)
    if not total or not seconds:
        return []
    before = sum(lengths[: runs.index(run)])
    return [_Bar(100 * before / total, 100 * seconds / total)]


def _ends(run: RunData, session: Session) -> tuple[float, float]:
    """When a session began and ended; one that did not say its end was last seen when it wrote its figures."""
    begin, end = session.begin, session.end
    if end is None:
        path = run.folder / "metrics.jsonl"
        end = path.stat().st_mtime if path.is_file() else begin
    return begin, max(begin, end)


def _figures(run: RunData, partner: RunData | None, label: str) -> JsonObject:
    """Curves of a stage, and those of the run that it is compared with."""
    steps, values, every = curves(run.metrics)
    names = list(values)
    found: JsonObject = {
        "stage": run.name,
        "steps": steps,
        "values": values,
        "charts": charts_of(names),
        "named": num_named_charts(names),
        "every": every,
        "falls": [fall.step for fall in (largest_falls(run.metrics) if run.is_rl else [])],
    }
    if partner is not None and partner.metrics:
        other_steps, other_values, _ = curves(partner.metrics)
        found["other"] = {"label": label, "steps": other_steps, "values": other_values}
    return found


def _evaluation_rows(folder: FolderData, other: FolderData | None) -> list[JsonObject]:
    """A line for each stage and mode of the evaluations, with the other folder's accuracy beside it."""
    rows: list[JsonObject] = []
    for stage, result in folder.results.items():
        modes = result.get("modes")
        theirs = other.results.get(stage, {}).get("modes") if other else None
        for mode, figures in modes.items() if isinstance(modes, dict) else ():
            if isinstance(figures, dict):
                there = theirs.get(mode) if isinstance(theirs, dict) else None
                row: JsonObject = {name: figures.get(name) for name in _EVALUATED}
                interval = row["interval"]
                row["interval"] = interval if isinstance(interval, list) and len(interval) == 2 else None
                row["other"] = there.get("accuracy") if isinstance(there, dict) else None
                rows.append({"stage": stage, "mode": mode, **row})
    return rows


def _notes(choice: Choice, browser: Browser) -> list[str]:
    """Say in numbers which rollouts and images are not in the page."""
    notes: list[str] = []
    if browser.num_shown < browser.num_found:
        notes.append(
            f"{browser.num_shown} of {browser.num_found} completions are in this page: {RULE}. A larger page holds "
            "more (max_mib=N), and python -m rlhf.look reads all of them."
        )
    if choice.num_files_unread:
        read = len(choice.sources)
        notes.append(
            f"Only {read} of {read + choice.num_files_unread} files of completions were read, in equal distances, "
            "because all of them have more than 2 GiB."
        )
    if browser.num_images_left_out:
        notes.append(f"{browser.num_images_left_out} images are left out, because the page would be too large.")
    if browser.num_images_unreadable:
        notes.append(f"{browser.num_images_unreadable} images could not be read; their place says why.")
    return notes


def _num_settings(stages: Sequence[_Stage]) -> int:
    """Lines of settings and differences, for an estimate of the page's size."""
    return sum(len(stage.run.settings) + len(stage.differences) + 40 for stage in stages)


@cache
def _asset(name: str) -> str:
    return files("rlhf.reporting").joinpath(name).read_text(encoding="utf-8")


def _size_of_assets() -> int:
    return sum(len(_asset(name)) for name in ("page.html", "page.css", *_SCRIPTS))


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": duration, "share": share, "number": number}
    return environment.from_string(_asset("page.html"))


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "unknown"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def share(value: object) -> str:
    return f"{100 * float(value):.1f} %" if is_number(value) else "-"  # pyright: ignore[reportArgumentType]


def number(value: object) -> str:
    return f"{float(value):.4g}" if is_number(value) else "-"  # pyright: ignore[reportArgumentType]
