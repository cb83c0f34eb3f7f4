"""Benchmarks from VLMEvalKit's tables: asked, judged, kept, interrupted, and stored predictions."""

import base64
import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from conf.cli import load_config
from model.run.progress import StageProgress
from rlhf.config import EvaluationMode
from rlhf.evaluation import asking
from rlhf.evaluation.benchmarks import Judging, catalogue, with_forms
from rlhf.evaluation.judging import BenchmarkJudge
from rlhf.evaluation.lines import suite_lines
from rlhf.evaluation.questions import Asked, asked_rows, write_prompts
from rlhf.evaluation.stage import Keys, evaluate_folder, keys_of
from rlhf.evaluation.suite import OpenBenchmark, protocols_of, stored_predictions
from tests.conftest import require_extra
from tests.model.data.test_video import write_video
from tests.rollouts.pool.test_worker_pool import members


def picture(shade: int) -> str:
    content = io.BytesIO()
    Image.new("RGB", (24, 24), (shade, 90, 40)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def write_tsv(path: Path, rows: list[dict[str, object]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def tables(tmp_path) -> Path:
    folder = tmp_path / "tables"
    folder.mkdir()
    options = {"A": "cat", "B": "dog", "C": "None"}
    write_tsv(
        folder / "MMStar.tsv",
        [
            {
                "index": n,
                "image": picture(n),
                "question": f"Which {n}?",
                **options,
                "answer": "AB"[n % 2],
                "category": "c",
            }
            for n in range(4)
        ],
    )
    write_tsv(
        folder / "ChartQA_TEST.tsv",
        [{"index": n, "image": picture(9), "question": "How many?", "answer": str(10 * n)} for n in range(1, 4)],
    )
    write_tsv(
        folder / "MathVerse_MINI.tsv",
        [{"index": 5, "image": picture(9), "question": "How many?", "answer": "4"}],
    )
    return folder


@pytest.fixture
def command(tiny_folder, tables, tmp_path):
    def run(*overrides: str, output: str = "result.json") -> dict:
        fixed = [f"checkpoint={tiny_folder}", f"data={tables}", "num_threads=1", "rollouts.max_completion_tokens=5"]
        config, _ = load_config("evaluate", [*fixed, f"output={tmp_path / output}", *overrides])
        return evaluate_folder(config)

    return run


def test_a_checkpoint_is_measured_in_both_modes_and_every_figure_has_its_protocol(command, tmp_path, capsys):
    result = command("benchmarks=[mmstar,chartqa]", "modes=[think,direct]")
    assert result["benchmarks"].keys() == {"mmstar", "chartqa"} and result["num_eval"] == 7
    found = result["benchmarks"]["mmstar"]
    assert found["num_questions"] == 4 and found["num_unread"] == 0
    assert found["modes"]["think"]["figure"] == found["modes"]["think"]["accuracy"] * 100
    ids = {own["protocol"] for one in result["benchmarks"].values() for own in one["modes"].values()}
    assert len(ids) == 4 and all(len(one) == 12 for one in ids)
    assert sum(found["modes"]["direct"]["extraction"].values()) == 1
    assert result["averages"]["OpenCompass"]["missing"][0] == "mmbench_v11"
    lines = [json.loads(line) for line in (tmp_path / "result.answers.jsonl").read_text().splitlines()]
    assert len(lines) == 14 and {line["dataset"] for line in lines} == {"mmstar", "chartqa"}
    assert all((tmp_path / name).is_file() for line in lines for name in line["images"])
    assert "None" not in lines[0]["question"], "VLMEvalKit's reader takes such a cell for nothing"
    capsys.readouterr()
    assert command("benchmarks=[mmstar,chartqa]", "modes=[think,direct]") == result
    assert "is there already" in capsys.readouterr().out


def test_progress_says_how_long_it_will_take_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(StageProgress, "seconds_between_lines", -1.0)
    config = load_config("evaluate", ["checkpoint=x", "prompts=y"])[0]
    with asking._shown(config, 4, lambda lines: None) as show:
        show([{"mode": "think"}])
    assert "evaluate 1/4 completions; think, about 0:00:00 left" in capsys.readouterr().out


def test_a_second_call_asks_no_model_and_a_changed_table_does(command, tables, monkeypatch):
    first = command("benchmarks=[mmstar]", "modes=[direct]")
    with monkeypatch.context() as patch:
        patch.setattr(asking, "load_model", lambda *_: pytest.fail("the result is there"))
        assert command("benchmarks=[mmstar]", "modes=[direct]") == first
    text = (tables / "MMStar.tsv").read_text()
    (tables / "MMStar.tsv").write_text(text.replace("Which 0?", "Which one?"))
    changed = command("benchmarks=[mmstar]", "modes=[direct]")
    assert changed["key"] != first["key"]
    ids = [one["benchmarks"]["mmstar"]["modes"]["direct"]["protocol"] for one in (first, changed)]
    assert ids[0] != ids[1]


class Interrupted(Exception):
    pass


INSTANTS = [(name, count) for name in ("ask", "response", "score") for count in range(1, 8)]
"""21 instants: before completions are asked, before they are kept, before they are scored, of each portion."""


@pytest.mark.parametrize(
    "instants", [[("ask", 3), ("response", 2)], pytest.param(INSTANTS, marks=pytest.mark.nightly)], ids=["two", "all"]
)
def test_an_interrupted_evaluation_gives_the_same_result_and_asks_only_what_is_missing(
    command, tmp_path, monkeypatch, instants
):
    monkeypatch.setattr("rlhf.evaluation.evaluator.PORTION", 2)
    names = ("benchmarks=[mmstar,chartqa]", "modes=[think_sampled,direct]", "num_samples=2")
    whole = command(*names, output="whole.json")
    for number, (wanted, count) in enumerate(instants):
        reached: list[str] = []

        def reach(name: str, wanted=wanted, count=count, reached=reached) -> None:
            reached.append(name)
            if name == wanted and reached.count(name) == count:
                raise Interrupted

        with monkeypatch.context() as patch:
            for module in ("answers", "responses"):
                patch.setattr(f"rlhf.evaluation.{module}.reach", reach)
            with pytest.raises(Interrupted):
                command(*names, output=f"{number}.json")
        assert not (tmp_path / f"{number}.json").exists()
        kept = sum(len(path.read_text().splitlines()) - 1 for path in (tmp_path / f"{number}.responses").iterdir())
        assert kept == (count if wanted == "score" else count - 1), (wanted, count)
        again = command(*names, output=f"{number}.json")
        assert again == whole, (wanted, count)
        answers = [(tmp_path / f"{name}.answers.jsonl").read_text() for name in ("whole", number)]
        assert answers[1] == answers[0].replace("whole.benchmarks", f"{number}.benchmarks")


@pytest.mark.slow
def test_a_killed_process_loses_no_more_than_what_it_was_asking(command, tiny_folder, tables, tmp_path):
    names = ("benchmarks=[mmstar,chartqa]", "modes=[think_sampled,direct]", "num_samples=2")
    whole = command(*names, output="whole.json")
    fixed = (f"checkpoint={tiny_folder}", f"data={tables}", "num_threads=1", "rollouts.max_completion_tokens=5")
    for point, num_kept in (("response:3", 2), ("answers:1", 4)):
        killed = subprocess.run(
            [sys.executable, "-m", "rlhf.evaluate", *fixed, *names, f"output={tmp_path / 'killed.json'}"],
            env={**os.environ, "SAILVL2_FAILPOINT": point},
            capture_output=True,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        files = sorted((tmp_path / "killed.responses").iterdir())
        assert sum(len(path.read_text().splitlines()) - 1 for path in files) == num_kept
        assert not (tmp_path / "killed.json").exists()
        with files[0].open("ab") as file:
            file.write(b'{"portion": 0, "ids"')  # a line that the end of the process cut off
    assert command(*names, output="killed.json") == whole


def test_a_row_that_cannot_be_read_is_counted_and_named_and_never_wrong(command, tables, capsys):
    rows = [
        {"index": n, "image": image, "question": "How many?", "answer": answer}
        for n, (image, answer) in enumerate([(picture(1), "3"), ("A" * 400, "4"), (picture(3), ""), (picture(4), "5")])
    ]
    write_tsv(tables / "ChartQA_TEST.tsv", rows)
    result = command("benchmarks=[chartqa]", "modes=[direct]", "data.max_bad_rows=2")
    found = result["benchmarks"]["chartqa"]
    assert (found["num_questions"], found["num_unread"]) == (2, 2)
    assert found["modes"]["direct"]["num_prompts"] == 2
    said = capsys.readouterr().err
    assert "ChartQA_TEST.tsv:3: answer: expected a text, found nothing" in said and "2 of 4 rows cannot be used" in said
    with pytest.raises(ValueError, match=r"2 of 4 rows cannot be used, data\.max_bad_rows=0\.01 allows 0"):
        command("benchmarks=[chartqa]", "modes=[direct]", output="strict.json")


def test_a_benchmark_that_needs_a_judge_is_refused_by_name_without_one(command):
    with pytest.raises(ValueError, match="benchmarks: mathverse: expected a judge"):
        command("benchmarks=[chartqa,mathverse]")
    with pytest.raises(ValueError, match="mm_ifeval: not available: MM-IFEval checks written constraints"):
        command("benchmarks=[mm_ifeval]")
    with pytest.raises(ValueError, match="found 'mmsta'; did you mean 'mmstar'"):
        command("benchmarks=[mmsta]")
    with pytest.raises(ValueError, match=r"docvqa: expected VLMEvalKit's table .*DocVQA_VAL.tsv"):
        command("benchmarks=[docvqa]")


@pytest.fixture
def judge():
    """A judge whose `reply` is given to every request; it keeps what it was asked."""

    class Stub(BaseHTTPRequestHandler):
        reply = '{"right": true}'
        asked: list = []  # noqa: RUF012
        keys: tuple[str, ...] = ()

        def do_POST(self):
            Stub.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": Stub.reply}}]}).encode())

        def log_message(self, *_):
            pass

    Stub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Stub.keys = (
        f"judge.base_url=http://127.0.0.1:{server.server_port}/v1", "judge.model=m", "judge.retries=0",
        "judge.requests_per_minute=100000",
    )  # fmt: skip
    yield Stub
    server.shutdown()


def predictions(path: Path, *texts: str, first: int = 0) -> str:
    rows = [{"index": index, "prediction": text} for index, text in enumerate(texts, first)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.predictions={path}"


def test_stored_predictions_are_scored_without_a_checkpoint(command, tmp_path, judge):
    stored = predictions(tmp_path / "model_MMStar.jsonl", "A", "The answer is B", "dog", "I see nothing")
    common = ("checkpoint=''", "benchmarks=[mmstar]", "modes=[direct]", stored)
    found = command(*common)["benchmarks"]["mmstar"]["modes"]["direct"]
    assert found["figure"] == 50.0
    assert found["extraction"] == {"rule": 0.75, "judge": 0.0, "none": 0.25, "failed": 0.0}
    judge.reply = 'I think {"option": "B"}'
    judged = command(*common, *judge.keys)["benchmarks"]["mmstar"]["modes"]["direct"]
    assert judged["figure"] == 75.0 and judged["extraction"]["judge"] == 0.25
    assert judged["protocol"] != found["protocol"] and len(judge.asked) == 1
    sent = json.loads(judge.asked[0]["messages"][1]["content"])
    assert sent["answer"] == "I see nothing" and sent["options"] == {"A": "cat", "B": "dog"}
    with pytest.raises(ValueError, match=r"expected a prediction for each of 4 questions, found none for 3: 1, 2, 3"):
        command(*common[:3], predictions(tmp_path / "few.jsonl", "A"))


def test_a_judge_that_fails_makes_an_answer_neither_right_nor_wrong(command, tmp_path, judge):
    stored = predictions(tmp_path / "p.jsonl", "four", first=5)
    common = ("checkpoint=''", "benchmarks=[mathverse]", "modes=[think]", stored, *judge.keys)
    judge.reply = "no verdict"
    with_failure = command(*common)["benchmarks"]["mathverse"]["modes"]["think"]
    assert with_failure["figure"] is None and with_failure["accuracy"] is None
    assert with_failure["extraction"]["failed"] == 1.0 and with_failure["unscorable_share"] == 1.0
    judge.reply = '{"right": true}'
    assert command(*common, output="b.json")["benchmarks"]["mathverse"]["modes"]["think"]["figure"] == 100.0


def test_stored_predictions_have_a_column_and_say_nothing_of_tokens(command, tmp_path):
    common = ("checkpoint=''", "benchmarks=[mmstar]", "modes=[think]")
    (tmp_path / "p.tsv").write_text("index\tanswered\n0\tA\n")
    with pytest.raises(ValueError, match=r"p\.tsv: expected a column prediction, found index, answered"):
        command(*common, f"data.predictions={tmp_path / 'p.tsv'}")
    rows = [{"index": n, "prediction": None if n == 3 else "A"} for n in range(4)]
    (tmp_path / "null.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="expected a prediction for each of 4 questions, found none for 1: 3"):
        command(*common, f"data.predictions={tmp_path / 'null.jsonl'}")
    stored = predictions(tmp_path / "p.jsonl", "A", "A", "A", "Failed to obtain answer via API.")
    result = command(*common, stored)
    found = result["benchmarks"]["mmstar"]["modes"]["think"]
    assert {found[name] for name in ("mean_length", "cut_off_share", "mode_obedience", "empty_think_share")} == {None}
    assert found["figure"] == pytest.approx(200 / 3) and found["extraction"]["failed"] == 0.25
    low, high = found["figure_interval"]
    assert 0 <= low < found["figure"] < high <= 100
    assert "protocol" in "\n".join(suite_lines("x", result))


def test_a_folder_of_predictions_holds_one_file_for_each_benchmark(tmp_path):
    mme = catalogue().benchmarks["mme"]
    for name in ("model_MME.jsonl", "model_Video-MME.jsonl"):
        predictions(tmp_path / name, name)
    assert stored_predictions(tmp_path, mme, False) == {"0": "model_MME.jsonl"}
    predictions(tmp_path / "MME.jsonl", "another")
    with pytest.raises(ValueError, match=r"expected one file .*_MME.tsv, found MME.jsonl, model_MME.jsonl"):
        stored_predictions(tmp_path, mme, False)
    with pytest.raises(ValueError, match=r"num_prompts, num_samples: expected 0 and 1 with data\.predictions"):
        load_config("evaluate", ["benchmarks=[mme]", "data=y", f"data.predictions={tmp_path}", "num_prompts=3"])


def test_what_a_judge_failed_at_is_asked_again_by_the_same_command(command, tmp_path, judge, capsys):
    stored = predictions(tmp_path / "p.jsonl", "four", first=5)
    common = ("checkpoint=''", "benchmarks=[mathverse]", "modes=[think]", stored, *judge.keys, "judge.retries=1")
    judge.reply = "no verdict"
    assert command(*common)["benchmarks"]["mathverse"]["modes"]["think"]["figure"] is None
    said = capsys.readouterr()
    assert "no verdict from" in said.err and "no verdict from" not in said.out
    judge.reply = '{"right": true}'
    assert command(*common)["benchmarks"]["mathverse"]["modes"]["think"]["figure"] == 100.0
    (line,) = [json.loads(line) for line in (tmp_path / "result.answers.jsonl").read_text().splitlines()]
    assert line["answer"] == "four", "samples vote with what they answered"
    asked = len(judge.asked)
    command(*common)
    assert len(judge.asked) == asked, "the result is there"


def test_an_earlier_result_never_stands_beside_answers_of_a_later_evaluation(command, tmp_path, monkeypatch):
    names = ("checkpoint=''", "benchmarks=[mmstar]", "modes=[direct]")
    first = command(*names, predictions(tmp_path / "a.jsonl", *"ABAB"))

    def stop(name: str) -> None:
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(asking, "reach", stop)
        command(*names, predictions(tmp_path / "b.jsonl", *"AAAA"))
    assert not (tmp_path / "result.json").exists()
    assert command(*names, f"data.predictions={tmp_path / 'a.jsonl'}") == first


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("judge.base_url=localhost:8000", "judge.base_url: expected an address such as"),
        ("judge.retries=-1", "judge.retries: expected at least 0"),
        ("judge.requests_per_minute=0", "judge.requests_per_minute: expected a number above 0"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_before_anything_is(setting, message):
    with pytest.raises(ValueError, match=message):
        load_config("evaluate", ["checkpoint=x", "benchmarks=[mmstar]", "data=y", "judge.model=m",
                                 "judge.base_url=http://localhost/v1", setting])  # fmt: skip


def test_completions_are_kept_whatever_else_is_asked(tmp_path, tiny_folder, tables):
    def keys(*overrides: str, folder: Path = tables) -> Keys:
        fixed = [f"checkpoint={tiny_folder}", f"data={folder}", "benchmarks=[mmstar]", f"output={tmp_path / 'r.json'}"]
        return keys_of(load_config("evaluate", [*fixed, *overrides])[0])

    first = keys()
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tables.iterdir():
        (moved / file.name).write_bytes(file.read_bytes())
    for other in (keys("benchmarks=[mmstar,chartqa]"), keys("num_samples=3", "seed=4"), keys(folder=moved)):
        assert (other.completions, other.data["mmstar"]) == (first.completions, first.data["mmstar"])
    assert keys("num_samples=3").result != first.result and keys(folder=moved).result == first.result
    assert keys("rollouts.temperature=0.5").completions != first.completions
    text = (tables / "MMStar.tsv").read_text()
    (tables / "MMStar.tsv").write_text(text.replace("Which 2?", "Which 7?"))
    assert keys().data["mmstar"] != first.data["mmstar"]


def test_wordings_of_a_user_replace_ours_and_change_the_protocol(tables, tmp_path):
    mmstar = catalogue().benchmarks["mmstar"]
    own = tmp_path / "forms.yaml"
    own.write_text('choice: {text: "Q: {question}{options}\\nLetter:"}\n')
    (_, first), *_ = asked_rows(mmstar, with_forms(catalogue(), str(own)), tables)
    assert isinstance(first, Asked) and first.text == "Q: Which 0?\nA. cat\nB. dog\nLetter:"
    own.write_text("choice_free: {text: 'Q: {question}'}\n")
    opened = OpenBenchmark(mmstar, tables / "MMStar.tsv", {}, 0, BenchmarkJudge(mmstar, {}, None))
    fixed = ["checkpoint=x", "benchmarks=[mmstar]", f"data={tables}", "modes=[direct]"]
    ids = set()
    for overrides in ([], [f"data.forms={own}"]):
        config = load_config("evaluate", [*fixed, *overrides])[0]
        ids.add(protocols_of(opened, config, config.rollouts, None)[EvaluationMode.direct].id)
    assert len(ids) == 2, "the wording of questions without options is part of the protocol"
    own.write_text("choice: {text: 'Q: {question}'}\n")
    with pytest.raises(ValueError, match=r"choice: expected texts that hold \{options\}"):
        with_forms(catalogue(), str(own))
    own.write_text("chioce: {text: '{question}'}\n")
    with pytest.raises(ValueError, match=r"data\.forms: .*found 'chioce'"):
        with_forms(catalogue(), str(own))


def test_chinese_questions_several_images_and_open_questions_have_their_form(tmp_path):
    rows = [
        {
            "index": 1,
            "image": picture(1),
            "question": "哪个?",
            "A": "猫",
            "B": "狗",
            "answer": "B",
            "split": "validation",
        },
        {
            "index": 2,
            "image": f"['{picture(1)}', '{picture(2)}']",
            "question": "Which <image>?",
            "A": "x",
            "B": "y",
            "answer": "A",
            "split": "validation",
        },
        {"index": 3, "image": picture(3), "question": "How many?", "answer": "42", "split": "validation"},
    ]
    write_tsv(tmp_path / "MMMU_DEV_VAL.tsv", rows)
    mmmu = catalogue().benchmarks["mmmu"]
    asked, left_out = write_prompts(mmmu, catalogue(), tmp_path, tmp_path / "out" / "mmmu.jsonl", 0)
    assert left_out == 0 and "只回答正确选项的字母" in asked["1"].text
    assert asked["3"].question.options == {"A": "42", "B": "Other Answers"} and asked["3"].question.answer == "A"
    lines = [json.loads(line) for line in (tmp_path / "out" / "mmmu.jsonl").read_text().splitlines()]
    parts = lines[1]["messages"][0]["content"]
    assert [part["type"] for part in parts].count("image") == 2
    said = "".join(part.get("text", "*") for part in parts)
    assert said.startswith("Image-1: *\nImage-2: *\nWhich <Image-1>?\nA. x\nB. y")
    assert mmmu.tiles_of(1) == 12 and mmmu.tiles_of(20) == 3 and mmmu.tiles_of(100) == 1


def test_every_benchmark_of_the_catalogue_is_whole():
    known = catalogue()
    assert {"mmbench_v11", "mme", "hallusionbench", "refcoco", "mathvista", "video_mme"} <= known.benchmarks.keys()
    for one in known.benchmarks.values():
        assert one.proven in ("nothing", "rule", "rule and score")
        assert one.rule != "none" or one.judge is Judging.needed, "an answer has to be judged by something"
    members = {*known.benchmarks, *known.unsupported, *known.averages}
    assert all(name in members for names in known.averages.values() for name in names)


@pytest.mark.slow
def test_a_killed_sampler_of_a_pool_costs_nothing(command, monkeypatch, capsys):
    monkeypatch.setattr("rlhf.evaluation.evaluator.PORTION", 2)
    names = ("benchmarks=[mmstar,chartqa]", "modes=[think_sampled,direct]", "num_samples=2")
    pool = ("rollouts.pool.placement=process", "rollouts.pool.workers=2")
    whole = command(*names, output="whole.json")
    workers: list[Any] = []
    build = asking.build_worker
    monkeypatch.setattr(asking, "build_worker", lambda *given: workers.append(build(*given)) or workers[-1])
    reached: list[str] = []

    def reach(name: str) -> None:
        reached.append(name)
        if name == "ask" and reached.count("ask") in (2, 4):
            os.kill(members(workers[0])[0].process.pid, signal.SIGKILL)

    monkeypatch.setattr("rlhf.evaluation.answers.reach", reach)
    killed = command(*names, *pool)
    assert "killed by signal 9" in capsys.readouterr().err
    for name in whole["benchmarks"]:
        for mode, own in whole["benchmarks"][name]["modes"].items():
            assert killed["benchmarks"][name]["modes"][mode] == own


def test_a_video_benchmark_reads_sixteen_frames_of_one_tile(tmp_path, tiny_folder):
    require_extra("video", "av")
    (tmp_path / "Video-MME").mkdir()
    write_video(tmp_path / "Video-MME" / "x.mp4")
    candidates = "['A. a cat', 'B. a dog']"
    rows = [
        {"index": 1, "video": "x", "video_path": "x.mp4", "question": "What?", "candidates": candidates, "answer": "B"}
    ]
    write_tsv(tmp_path / "Video-MME.tsv", rows)
    limits = ["num_threads=1", "rollouts.max_completion_tokens=3", "modes=[direct]", "data.max_bad_rows=0"]
    fixed = [f"checkpoint={tiny_folder}", f"data={tmp_path}", f"output={tmp_path / 'r.json'}", *limits]
    result = evaluate_folder(load_config("evaluate", ["benchmarks=[video_mme]", *fixed])[0])
    assert result["benchmarks"]["video_mme"]["num_questions"] == 1
    (line,) = [json.loads(line) for line in (tmp_path / "r.answers.jsonl").read_text().splitlines()]
    assert "A. a cat\nB. a dog" in line["question"] and line["images"][0].endswith("x.mp4")
