"""The report as a file: what it reads of a folder, what it chooses, and that no text of a model becomes markup."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from rlhf.report import main
from rlhf.reporting.blocks import json_in_html
from rlhf.reporting.choice import LONGEST, Source, choose, record_of
from rlhf.reporting.config import ReportPageConfig
from rlhf.reporting.figures import curves, differences, funnel, largest_falls
from rlhf.reporting.page import write_report
from rlhf.reporting.run_data import read_folder
from rlhf.reporting.state import state_of
from tests.rlhf.reporting.folders import FALL, write_lines, write_pipeline, write_run

EVIL = (
    '</script><script>alert(1)</script><!-- <img src=x onerror="alert(2)"> {{ 7*7 }} ${7*7} \u2028 \ud800 \x00 "\'&amp;'
)


class Blocks(HTMLParser):
    """The JSON blocks of a page by their id, as a browser's parser finds them, and the elements around them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: dict[str, object] = {}
        self.scripts: list[str] = []
        self.texts: list[str] = []
        self.tags: set[str] = set()
        self._id: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "script":
            self._id = dict(attrs).get("id") or "code"

    def handle_data(self, data):
        if self._id == "code":
            self.scripts.append(data)
        elif self._id:
            self.found[self._id] = json.loads(data)
        else:
            self.texts.append(data)
        self._id = None


def page(folder, **settings):
    out, browser = write_report(ReportPageConfig(run=str(folder), **settings))
    html = out.read_text(encoding="utf-8")
    return html, Blocks(html), browser


def test_a_pipeline_shows_its_stages_figures_and_rollouts(tmp_path):
    html, blocks, browser = page(write_pipeline(tmp_path / "pipe"))
    assert (browser.num_shown, browser.num_found) == (129, 129)
    assert [stage["stage"] for stage in blocks.found["charts-data"]] == ["sft", "rl"]
    index = blocks.found["index"]
    assert index["stages"] == ["rl"] and index["drops"] == ["", "all_wrong"] and index["parts"] == ["answer", "format"]
    assert set(index["modes"]) == {"training", "direct"}
    assert len(blocks.found["rollouts-0"]) == 129 and len(blocks.found["prompts"]) == 33
    text = " ".join(" ".join(blocks.texts).split())
    assert f"step {FALL} accuracy" in text and "every completion of the group was wrong" in text
    assert "70.0 % 60.0 % to 80.0 %" in text  # the evaluation of rl; that of sft has no number
    assert "24 75.0 %" in text and "8 25.0 %" in text  # the funnel
    assert "http" not in re.sub(r"http://www\.w3\.org/2000/svg|http-equiv", "", html)  # nothing is loaded from anywhere


def test_the_images_are_in_the_page_once_each_and_small(tmp_path):
    write_run(tmp_path / "run", steps=2)
    Image.new("RGB", (900, 300)).save(tmp_path / "run/media/0.png")
    (tmp_path / "run/media/1.png").write_bytes((tmp_path / "run/media/2.png").read_bytes())
    (tmp_path / "run/media/3.png").unlink()
    (tmp_path / "run/media/4.png").write_bytes(b"no image")
    _, blocks, browser = page(tmp_path / "run", image_pixels=64)
    images = blocks.found["images-0"]
    kept = [one for one in images if "src" in one]
    assert (len(kept), browser.num_images, browser.num_images_unreadable) == (5, 5, 2)
    assert kept[0]["src"].startswith("data:image/png;base64,") and (kept[0]["w"], kept[0]["h"]) == (900, 300)
    gone = [one["why"] for one in images if "why" in one]
    assert "expected a file, found none" in gone[0] and "found other bytes" in gone[1]
    assert "2 images could not be read" in " ".join(blocks.texts)


def test_no_text_of_a_model_becomes_markup(tmp_path):
    folder = write_run(tmp_path / "run", steps=1)
    lines = [json.loads(line) for line in (folder / "rollouts/step_000001.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"text": EVIL, "thinking": "", "question": EVIL, "reference": EVIL, "prompt_id": EVIL, "dropped": EVIL}
        line |= {"answer": EVIL, "reason": EVIL, "parts": {EVIL: 1.0}, "images": [EVIL], "status": EVIL}
    write_lines(folder / "rollouts/step_000001.jsonl", lines)
    metrics = json.loads((folder / "metrics.jsonl").read_text())
    write_lines(folder / "metrics.jsonl", [{**metrics, EVIL: 1.0}, {**metrics, "step": 2, "accuracy": 0.0}])
    write_lines(folder / "ledger.jsonl", [{"step": 1, "draw": 0, "prompt_id": EVIL, "end": "dropped", "reason": EVIL}])
    (folder / "config.yaml").write_text(json.dumps({"prompts": EVIL, EVIL: EVIL}))
    write_lines(
        folder / "events.jsonl",
        [{"time": 1, "event": "started"}, {"time": 2, "event": "ended", "exit_code": 3, "error": EVIL}],
    )
    (folder / "evaluation.json").write_text(json.dumps({"modes": {EVIL: {"accuracy": 0.5}}}))
    html, blocks, _ = page(folder, also=str(folder))
    assert blocks.scripts and len(blocks.scripts) == 1  # the page's own
    assert html.count("<script>alert") == 0 and html.count("<img") == 0 and "<!-- <img" not in html
    assert blocks.found["rollouts-0"][0][0] == EVIL and blocks.found["prompts"][0][1] == EVIL
    assert {"img", "iframe", "object"}.isdisjoint(blocks.tags)
    assert "script-src 'sha256-" in html


def test_a_page_says_how_many_rollouts_and_images_it_leaves_out_and_keeps_each_step(tmp_path):
    folder = write_run(tmp_path / "run", steps=40, words=300)
    Image.effect_noise((256, 256), 90).convert("RGB").save(folder / "media/0.png")
    _, blocks, browser = page(folder, max_mib=1.0)
    assert (folder / "report.html").stat().st_size < 2**20
    assert 0 < browser.num_shown < browser.num_found == 640
    columns = blocks.found["index"]["columns"]
    assert set(columns["step"]) == set(range(1, 41)) and len(set(columns["drop"])) == 2
    groups = {group: columns["group"].count(group) for group in columns["group"]}
    assert set(groups.values()) == {4}  # groups are whole
    assert f"{browser.num_shown} of 640 completions are in this page" in " ".join(blocks.texts)


def test_the_steps_of_falls_come_first(tmp_path):
    folder = write_run(tmp_path / "run", steps=40, words=300, images=False)
    sources = [Source("run", file) for file in sorted((folder / "rollouts").glob("*"))]
    few = choose(sources, 30_000, {("run", FALL)})
    assert {entry.step for entry in few.entries()} >= {FALL} and 0 < len(few.places) < 40


def test_of_very_large_runs_files_in_equal_distances_are_read(tmp_path, monkeypatch):
    folder = write_run(tmp_path / "run", images=False)
    monkeypatch.setattr("rlhf.reporting.choice.MOST_READ", (folder / "rollouts/step_000001.jsonl").stat().st_size * 2)
    _, blocks, _ = page(folder)
    assert 8 in blocks.found["index"]["columns"]["step"]
    assert re.search(r"Only [12] of 8 files of completions were read", " ".join(blocks.texts))


def test_a_long_completion_keeps_its_head_its_tail_and_its_thought_folded(tmp_path):
    thought = "a" * 50_000
    line = {
        "step": 1,
        "draw": 0,
        "prompt_id": "p",
        "text": f"<think>{thought}</think>7",
        "thinking": thought,
        "parts": {},
    }
    write_lines(tmp_path / "step_000001.jsonl", [line])
    (entry,) = choose([Source("a", tmp_path / "step_000001.jsonl")], 10**6).entries()
    text, span, *_, left_out = record_of(entry, {})
    assert isinstance(text, str) and isinstance(span, list) and isinstance(left_out, int)
    assert len(text) < LONGEST + 100 and left_out > 30_000 and f"{left_out} characters are left out" in text
    assert text[: span[0]] == "<think>" and text[span[1] :] == "</think>7"


class TestFolders:
    def test_without_rollouts_and_evaluations(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run/run.json").write_text("{}")
        write_lines(tmp_path / "run/metrics.jsonl", [{"step": 1, "loss": 0.5}])
        _, blocks, browser = page(tmp_path / "run")
        assert browser.num_found == 0 and "holds no rollouts" in " ".join(blocks.texts)

    def test_that_have_not_begun(self, tmp_path):
        (tmp_path / "run.json").write_text("{}")
        (tmp_path / "config.yaml").write_text("stages:\n- name: rl\n")
        _, blocks, _ = page(tmp_path)
        assert "No stage has begun" in " ".join(blocks.texts)

    def test_with_torn_ends_and_damaged_files(self, tmp_path):
        folder = write_run(tmp_path / "run", steps=2)
        for name in ("metrics.jsonl", "ledger.jsonl", "rollouts/step_000001.jsonl", "events.jsonl"):
            with (folder / name).open("a") as file:
                file.write('{"step": 3, "to')
        with (folder / "rollouts/step_000002.jsonl").open("ab") as file:
            file.write(b"\xff\xfe\n")
        (folder / "config.yaml").write_text("a: [")
        (folder / "evaluation.json").write_text("{")
        _, blocks, browser = page(folder)
        text = " ".join(blocks.texts)
        assert browser.num_shown == 32
        assert (
            "line 17: expected a JSON object" in text
            and "expected settings as YAML" in text
            and "evaluation.json" in text
        )

    def test_numbers_that_are_no_numbers_are_gaps(self, tmp_path):
        folder = write_run(tmp_path / "run", steps=1)
        (folder / "metrics.jsonl").write_text('{"step": 1, "accuracy": NaN, "reward": Infinity, "b": "x", "loss": 1}\n')
        _, blocks, _ = page(folder)
        assert blocks.found["charts-data"][0]["values"] == {"loss": [1]}

    @pytest.mark.parametrize("kind", ["nothing", "a file", "another folder"])
    def test_that_are_no_runs_are_refused(self, tmp_path, kind, monkeypatch, capsys):
        path = tmp_path / "x"
        if kind == "a file":
            path.write_text("")
        elif kind == "another folder":
            path.mkdir()
        monkeypatch.setattr("sys.argv", ["rlhf.report", f"run={path}"])
        assert main() == 2
        assert f"expected the folder of a run or of a pipeline at {path}, found {kind}" in capsys.readouterr().err

    def test_the_place_of_the_page_is_checked(self, tmp_path, monkeypatch, capsys):
        write_run(tmp_path / "run", steps=1)
        monkeypatch.setattr("sys.argv", ["rlhf.report", f"run={tmp_path}/run", f"out={tmp_path}/no/where.html"])
        assert main() == 2 and "out: expected a file name in a folder that is there" in capsys.readouterr().err


def test_the_largest_falls_are_told_with_the_mean_before(tmp_path):
    rows = [{"step": n, "accuracy": value} for n, value in enumerate([0.5, 0.6, 0.7, 0.1, 0.1, 0.7, 0.6], 1)]
    falls = largest_falls(rows)
    assert [fall.step for fall in falls] == [4]  # step 5 belongs to the same fall, and step 7 stands above its mean
    assert falls[0].before == pytest.approx(0.6) and falls[0].size == pytest.approx(0.5)
    assert (
        largest_falls([{"step": 1, "accuracy": None}, {"step": 2, "reward": 0.5}, {"step": 3, "reward": 0.25}])[
            0
        ].metric
        == "reward"
    )
    assert largest_falls([{"step": 1, "loss": 1.0}]) == []


def test_a_long_curve_is_thinned_and_keeps_its_end():
    steps, values, every = curves([{"step": n, "loss": float(n)} for n in range(1, 2501)])
    assert every == 3 and len(steps) == len(values["loss"]) <= 1001 and (steps[0], steps[-1]) == (1, 2500)


def test_the_funnel_adds_up(tmp_path):
    run = read_folder(write_run(tmp_path / "run")).stages[0]
    lines = dict(funnel(run))
    assert lines["drawn"] == sum(lines.values()) - lines["drawn"] == 32


def test_differences_name_both_values_and_not_the_place_of_the_folder(tmp_path):
    found = differences({"a": 1, "b": 2, "run.dir": "x"}, {"a": 1, "b": 3, "c": None, "run.dir": "y"})
    assert [(one.key, one.here, one.there) for one in found] == [("b", "2", "3"), ("c", "(absent)", "None")]


def test_two_runs_are_compared_stage_by_stage(tmp_path):
    here, there = write_pipeline(tmp_path / "here"), write_pipeline(tmp_path / "there")
    (there / "rl/config.yaml").write_text("trainer:\n  max_steps: 9\nalgorithm:\n  name: gspo\n")
    _, blocks, _ = page(here, also=str(there))
    text = " ".join(" ".join(blocks.texts).split())
    assert "algorithm.name dapo gspo" in text and "trainer.max_steps 8 9" in text
    assert blocks.found["charts-data"][1]["other"]["label"] == "there"


def test_states_of_runs(tmp_path):
    started = {"time": 5.0, "event": "started", "host": "elsewhere", "pid": 1}

    def state(*events, done=False):
        write_lines(tmp_path / "events.jsonl", list(events))
        (tmp_path / "done.json").write_text("{}") if done else (tmp_path / "done.json").unlink(missing_ok=True)
        return state_of(tmp_path)

    assert (state().name, state(done=True).name) == ("unknown", "complete")
    assert state(started).name == "unknown"
    for code, name in ((0, "complete"), (5, "stopped"), (3, "failed"), (130, "stopped")):
        found = state(started, {"time": 8.0, "event": "ended", "exit_code": code})
        assert (found.name, found.exit_code, found.seconds) == (name, code, 3.0)


def test_json_in_a_page_has_no_markup_and_no_numbers_that_json_lacks():
    text = json_in_html({"a": [float("nan"), EVIL], EVIL: 1})
    assert "<" not in text and json.loads(text) == {"a": [None, EVIL], EVIL: 1}
    text.encode("utf-8")  # half of a surrogate pair could not be written
