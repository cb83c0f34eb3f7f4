"""The picture of a search for the learning rate: loss and rate of every update, and how each trial ended."""

import io
from pathlib import Path

from model.run.durable import write_file
from model.run.logs import read_lines
from model.run.ownership import METRICS

COLOURS = {"kept": "tab:green", "undecided": "tab:gray", "rolled_back": "tab:red"}
"""How a trial ended -> its colour."""


def plot_rates(folder: Path) -> None:
    """Write adalrs.png into a run's folder, from metrics.jsonl and adalrs.jsonl."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    updates, trials = read_lines(folder / METRICS), read_lines(folder / "adalrs.jsonl")
    steps = [line["step"] for line in updates]
    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    FigureCanvasAgg(figure)
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    losses.plot(steps, [line["nll_per_token"] for line in updates], color="tab:blue", linewidth=1.0)
    losses.set_ylabel("loss, nats per token")
    rates.plot(steps, [line["learning_rate"] for line in updates], color="tab:blue", linewidth=1.0)
    rates.set_yscale("log")
    rates.set_ylabel("learning rate")
    rates.set_xlabel("updates")
    for trial in trials:
        first, last = trial["start"] + 1, trial["start"] + len(trial["losses"])
        colour = COLOURS[trial["verdict"]]
        for axes in (losses, rates):
            axes.axvspan(first - 0.5, last + 0.5, color=colour, alpha=0.2, linewidth=0)
        if trial["verdict"] == "rolled_back":
            tried = [(step, loss) for step, loss in enumerate(trial["losses"], first) if loss is not None]
            losses.plot([step for step, _ in tried], [loss for _, loss in tried], color=colour, linewidth=1.0)
    shown = [Patch(color=colour, alpha=0.4, label=name.replace("_", " ")) for name, colour in COLOURS.items()]
    losses.legend(handles=shown, title="trials")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    write_file(folder / "adalrs.png", picture.getvalue())
