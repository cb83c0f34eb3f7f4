"""Reading completions in the terminal: every file that we write, filters, printed pages, and the application."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.look.__main__ import main
from rlhf.look.entries import Filters, entries, files_of
from rollouts.records import RolloutContext, StoredRollout
from tests.conftest import require_extra


def rollout(step: int, group: int, sample: int, answer: float, dropped: str = "") -> dict:
    context = RolloutContext(f"Question {group}?", ["data/a.png"], "because", str(sample), 0.5 - sample)
    parts: dict[str, float | None] = {"answer": answer, "format": 1.0}
    stored = StoredRollout(
        f"p{group}", [1], "length" if sample else "stop", parts, group, sample, f"text {group}\x1b[2J", "0", answer,
        dropped=dropped, context=context,
    )  # fmt: skip
    return {"step": step, **stored.to_json()}


@pytest.fixture
def run_folder(tmp_path) -> Path:
    """Two steps of two groups of two completions, and the answers of an evaluation."""
    folder = tmp_path / "run"
    (folder / "rollouts").mkdir(parents=True)
    for step in (1, 2):
        lines = [
            rollout(step, 2 * step + group, n, float(n == 0), "surplus" * group) for group in (0, 1) for n in (0, 1)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"rollouts/step_{step:06d}.jsonl").write_text(text + '{"step": 2, "te')  # the writer was killed
    answer = {"id": "t1", "mode": "direct", "dataset": "charts", "completion": "\\boxed{7}", "answer": "7"}
    answer |= {"reference": 8, "verdict": "wrong", "question": "How many?"}
    (folder / "evaluations").mkdir()
    (folder / "evaluations/rl.answers.jsonl").write_text(json.dumps(answer) + "\n")
    return folder


def test_the_rollouts_and_answers_of_a_run_are_found(run_folder):
    names = [file.name for file in files_of(run_folder)]
    assert names == ["step_000001.jsonl", "step_000002.jsonl", "rl.answers.jsonl"]
    assert [file.name for file in files_of(run_folder.parent)] == names  # a pipeline's folder has runs below it
    found = list(entries(files_of(run_folder)))
    assert len(found) == 9 and {entry.verdict for entry in found} == {"right", "wrong"}
    assert (found[1].advantage, found[1].is_cut_off, found[-1].reference) == (-0.5, True, "8")


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (Filters(step="2"), 4),
        (Filters(group="3"), 2),
        (Filters(verdict="right"), 4),
        (Filters(dropped="surplus", verdict="wrong"), 2),
        (Filters(mode="direct"), 1),
        (Filters(mode="training"), 8),
        (Filters(dataset="charts"), 1),
        (Filters(text="QUESTION 4"), 2),
        (Filters(text="nowhere"), 0),
    ],
)
def test_filters_let_pass_what_they_name(run_folder, filters, count):
    assert len(list(entries(files_of(run_folder), filters))) == count


def test_pages_are_printed_without_control_characters(run_folder, capsys):
    assert main([str(run_folder), "--size", "2", "--page", "2", "--step", "1"]) == 0
    out = capsys.readouterr().out
    assert out.count("question:\n    Question 3?") == 2 and out.endswith("entries 3 to 4, the last ones\n")
    assert (
        "step 1  group 3  sample 1  training  p3  [wrong, cut off]  reward 0  advantage -0.5  dropped: surplus" in out
    )
    assert "completion:\n    text 3\\x1b[2J\nanswer:\n    1\nreference:\n    0" in out
    main([str(run_folder), "--size", "2"])
    assert capsys.readouterr().out.endswith("entries 1 to 2; more: --page 2\n")
    main([str(run_folder), "--text", "nowhere"])
    assert capsys.readouterr().out == "no entry, or none that the filters let pass\n"


def test_columns_of_a_row_are_no_verdict_and_those_of_the_scorer_are(tmp_path, capsys):
    """GSM8K has a column `answer`, which `rollouts.generate` keeps; the scorer then writes `scored_answer`."""
    row = {"id": "a", "question": "2+3?", "answer": "We add. #### 5", "value": 7, "completion": "\\boxed{6}"}
    scored = {**row, "scored_value": 0.0, "status": "ok", "scored_answer": "6", "reason": ""}
    path = tmp_path / "file.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(scored) + "\n")
    first, second = entries([path])
    assert (first.verdict, first.answer, first.reward) == ("unjudged", None, None)
    assert (second.verdict, second.answer, second.reward) == ("wrong", "6", 0.0)
    assert main([str(path)]) == 0 and capsys.readouterr().out.count("answer:") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "expected a run's folder or a file of completions at"),
        ("{}\n", "line 1: expected a completion, as runs"),
        ("[\n", "line 1: expected a JSON object, found"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path, capsys, content, said):
    path = tmp_path / "file.jsonl"
    if content:
        path.write_text(content)
    assert main([str(path)]) == 2 and said in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2 and "found neither" in capsys.readouterr().err


def test_the_result_of_an_evaluation_leads_to_its_answers(tmp_path):
    (tmp_path / "test.json").write_text("{}")
    (tmp_path / "test.answers.jsonl").write_text("")
    assert files_of(tmp_path / "test.json") == [tmp_path / "test.answers.jsonl"]


def test_a_reader_that_has_seen_enough_ends_it_as_it_ends_other_commands(run_folder):
    command = f"{sys.executable} -m rlhf.look {run_folder} --size 1000 | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("141\n", "")


def test_the_application_shows_pages_and_filters(run_folder):
    require_extra("look", "textual")
    from textual.widgets import DataTable, Input, Select, Static

    from rlhf.look.app import LookApp

    async def use() -> None:
        app = LookApp(files_of(run_folder), Filters(mode="training"))
        async with app.run_test(size=(140, 40)) as pilot:
            shown = app.query_one("#details", Static)
            assert app.query_one(DataTable).row_count == 8 and app.title == "8 completions"
            assert "Question 2?" in str(shown.content) and "\x1b" not in str(shown.content)
            await pilot.press("n", "n")
            assert "Question 3?" in str(shown.content)
            app.query_one("#verdict", Select).value = "right"
            await pilot.pause()
            assert app.query_one(DataTable).row_count == 4
            await pilot.press("slash", *"question 5", "enter")
            await pilot.pause()
            assert app.query_one(DataTable).row_count == 1 and app.entries[0].group == 5
            assert app.query_one("#text", Input).value == "question 5"
            await pilot.press("r")
            await pilot.pause()
            assert app.query_one(DataTable).row_count == 9
            await pilot.press("q")

    asyncio.run(use())


def test_the_application_takes_no_text_for_markup_and_names_a_line_that_is_none(tmp_path):
    require_extra("look", "textual")
    from textual.widgets import DataTable

    from rlhf.look.app import LookApp

    texts = {"id": "[/b]", "dataset": "[/x]", "answer": "\\left[a,b\\right]", "completion": "[bold]c"}
    lines = [json.dumps({**texts, "verdict": "right", "parts": {}}) + "\n", "[]\n"]

    async def use(content: str) -> LookApp:
        (tmp_path / "file.jsonl").write_text(content)
        app = LookApp([tmp_path / "file.jsonl"])
        async with app.run_test(size=(140, 40)) as pilot:
            await pilot.pause()
            if not app.return_code:
                row = [str(cell) for cell in app.query_one(DataTable).get_row_at(0)]
                assert (row[6], row[9]) == (texts["answer"], "[/b]")
        return app

    asyncio.run(use(lines[0]))
    assert asyncio.run(use("".join(lines))).return_value == 2
