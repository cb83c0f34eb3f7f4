"""The output for a person of RL and of the pipeline: lines, rollouts, the stage table, the curves."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table

from model.json_values import JsonObject
from model.processing.tokenizer import Tokenizer
from model.run.durable import write_file
from model.run.printable import printable
from model.run.progress import StageProgress
from rlhf.collect import Collected
from rlhf.evaluation.lines import shown
from rollouts.rollout import question_of


class StepReporter:
    """One compact line per step, and now and then a rollout with its question."""

    def __init__(self, progress: StageProgress, tokenizer: Tokenizer, show_every: int) -> None:
        self._progress, self._tokenizer, self._show_every = progress, tokenizer, show_every

    def shows(self, step: int) -> bool:
        """Whether rollouts of a step are shown: a line here, and some in the trackers."""
        return step % self._show_every == 0

    def show(self, step: int, metrics: dict[str, float], collected: Collected, seconds: float) -> None:
        line = (
            f"reward {shown(metrics['reward'], '.3f')}  accuracy {shown(metrics['accuracy'], '.3f')}  "
            f"length {shown(metrics['length/mean'], '.1f')}  dead {shown(metrics['groups/dead_share'], '.0%')}  "
            f"unscorable {shown(metrics['unscorable_share'], '.0%')}  "
            f"{metrics['completion_tokens'] / max(seconds, 1e-9):.0f} tokens/s"
        )
        self._progress.say(f"step {step:4d}  {line}")
        self._progress.advance(step, "")
        if self.shows(step) and collected.sampled:
            group = collected.sampled[step % len(collected.sampled)]
            trajectory = group.trajectories[0]
            text = self._tokenizer.decode(trajectory.rollout.completion_ids)
            answer = "none found" if trajectory.reward.answer is None else printable(trajectory.reward.answer, 80)
            self._progress.say(
                f"  rollout of {printable(group.prompt.id, 80)}: {printable(question_of(group.prompt.messages), 200)}\n"
                f"    {printable(text)}\n"
                f"    extracted answer {answer}  reference {printable(group.prompt.reference, 200)}  "
                f"reward {shown(trajectory.reward.value, '')}"
            )


def stage_table(stages: Sequence[JsonObject], majority: float) -> Table:
    """The table that says what each stage gave."""
    table = Table(title=f"What each stage gave (always the most common answer: {majority:.1%})")
    columns = ("accuracy_think", "accuracy_think_sampled", "accuracy_direct", "format_rate")
    for heading in ("stage", "seconds", "think", "think, T=1", "direct", "format", "mean length"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in stages:
        rates = [shown(stage.get(column), ".1%") for column in columns]
        table.add_row(stage["name"], f"{stage['seconds']:.0f}", *rates, shown(stage.get("mean_length"), ".1f"))
    return table


def direct_accuracies(result: JsonObject) -> dict[str, float | None]:
    """Group -> accuracy of direct answers, where only those were evaluated and groups told apart; else empty."""
    if set(result.get("modes", {})) != {"direct"}:
        return {}
    return {group: found["accuracy_direct"] for group, found in result.get("by_group", {}).items()}


def group_table(stages: Sequence[JsonObject]) -> Table:
    """The table that says what each stage gave in direct mode, by group."""
    groups = list(direct_accuracies(stages[-1]))
    table = Table(title="What each stage gave: accuracy of direct answers")
    for heading in ("stage", "seconds", *groups):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for stage in stages:
        found = direct_accuracies(stage)
        table.add_row(stage["name"], f"{stage['seconds']:.0f}", *(shown(found.get(group), ".1%") for group in groups))
    return table


def probe_table(probed: Mapping[str, Mapping[str, float]]) -> Table:
    """The table of the probes of the vision tower: checkpoint -> figure -> number."""
    table = Table(title="What the probes measured (a lower distance is nearer)")
    figures = list(dict.fromkeys(name for found in probed.values() for name in found))
    for heading in ("stage", *figures):
        table.add_column(heading.replace("_", " "), justify="left" if heading == "stage" else "right")
    for stage, found in probed.items():
        table.add_row(stage, *(shown(found.get(name), ".1%" if name == "top1" else ".4f") for name in figures))
    return table


def plot_curves(folder: Path, stages: Sequence[str]) -> Path:
    """Write FOLDER/curves.png: loss of the supervised stages; reward, accuracy and length of RL."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (4 * len(stages), 3.2)
    figure, axes = pyplot.subplots(1, len(stages), figsize=size, layout="constrained", squeeze=False)
    for axis, stage in zip(axes[0], stages, strict=True):
        rows = [json.loads(line) for line in (folder / stage / "metrics.jsonl").read_text().split("\n")[:-1]]
        steps = [row["step"] for row in rows]
        axis.set_title(stage)
        axis.set_xlabel("step")
        if "reward" in rows[0]:
            for name in ("reward", "accuracy", "groups/dead_share"):
                axis.plot(steps, _curve(rows, name), label=name)
            axis.set_ylim(0, 1)
            lengths = axis.twinx()
            lengths.plot(steps, _curve(rows, "length/mean"), color="grey", linestyle=":")
            lengths.set_ylabel("mean length (dotted)")
            axis.legend(loc="lower right", fontsize=7)
        else:
            axis.plot(steps, _curve(rows, "nll_per_token"))
            axis.set_ylabel("loss, nats per token")
            axis.set_yscale("log")
    path, image = folder / "curves.png", io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    pyplot.close(figure)
    write_file(path, image.getvalue())
    return path


def _curve(rows: Sequence[JsonObject], name: str) -> list[float]:
    """The values of a metric; a curve has a gap where there is no number."""
    return [math.nan if row[name] is None else row[name] for row in rows]
