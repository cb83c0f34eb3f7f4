"""What a person sees of a run, a pipeline and its curves."""

import json

import pytest
from rich.console import Console

from model.run.printable import printable
from model.run.progress import StageProgress
from rlhf.collect import Collected
from rlhf.console import StepReporter, plot_curves, stage_table
from rlhf.drawing.ledger import Ledger
from rlhf.metrics import LossTotals, step_metrics
from tests.rlhf.groups import group


def test_printable_keeps_one_short_line_without_control_characters():
    assert printable("a\x1b[2J\nb\u202e") == "a\\x1b[2J\\x0ab\\x202e"
    long = printable("x" * 1000, 10)
    assert long == "xxxxxxxxxx... (1000 characters)"


@pytest.fixture
def show(tiny, capsys):
    def run(step: int, every: int, *rewards: float | None) -> str:
        one = Collected([group(0, *(rewards or (1.0, 0.0)))], [], [], 1)
        metrics = step_metrics(one, LossTotals(), Ledger())
        with StageProgress("rl", 8) as progress:
            StepReporter(progress, tiny[1].tokenizer, every).show(step, metrics, one, 2.0)
        found = capsys.readouterr()
        return found.out + found.err

    return run


def test_a_step_is_one_line(show):
    said = show(3, 10)
    assert "step    3" in said and "reward 0.500" in said and "2 tokens/s" in said and "rollout of" not in said


def test_where_nothing_was_scored_there_is_no_number(show):
    said = show(10, 10, None, None)
    assert "reward -  accuracy -  length 2.0" in said and "unscorable 100%" in said and "reward -" in said
    assert "nan" not in said


def test_now_and_then_a_rollout_is_shown(show):
    said = show(10, 10)
    assert "rollout of p0: 1+1?" in said and "extracted answer none found  reference 2  reward 1.0" in said


def test_the_stage_table_has_a_row_a_stage():
    columns = ("accuracy_think", "accuracy_think_sampled", "accuracy_direct", "format_rate")
    stages = [{"name": n, "seconds": 3.2, **dict.fromkeys(columns, 0.25), "mean_length": 7.5} for n in ("sft", "rl")]
    console = Console(width=200, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(stage_table(stages, 0.125))
    said = captured.get()
    stages[1] |= {"accuracy_direct": None, "format_rate": None}
    with console.capture() as captured:
        console.print(stage_table(stages, 0.125))
    assert captured.get().count("25.0%") == 6 and "nan" not in captured.get()
    assert "12.5%" in said and said.count("25.0%") == 8 and "sft" in said and "7.5" in said


def test_curves_are_drawn_of_supervised_stages_and_of_rl(tmp_path):
    rows = {
        "sft": [{"step": n, "nll_per_token": 3.0 / n} for n in (1, 2)],
        "rl": [
            {"step": n, "reward": 0.5, "accuracy": 0.5, "groups/dead_share": 0.1, "length/mean": 9.0} for n in (1, 2)
        ],
    }
    for name, lines in rows.items():
        (tmp_path / name).mkdir()
        lines.append({key: None if key != "step" else 3 for key in lines[0]})  # a step with nothing to average
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = plot_curves(tmp_path, list(rows))
    assert path == tmp_path / "curves.png" and path.read_bytes().startswith(b"\x89PNG")
