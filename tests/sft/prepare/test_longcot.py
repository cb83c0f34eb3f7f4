"""`sft.prepare longcot`: every shape in one form, every row kept or dropped for a counted reason, read again by SFT."""

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from model.data.sources import DataFolders
from model.interface import Mode
from model.run import failpoints
from sft.config import SftDataConfig
from sft.data import Demonstrations
from sft.prepare.config import DemonstrationTableConfig, LongCotConfig
from sft.prepare.longcot import bucket_cap, make
from tests.rlhf.prompt_data import png, write_jsonl
from tests.sft.test_shapes import SHAPES, THOUGHT

GOOD = {"question": "1+1?", "completion": "<think>I add one and one.</think>The answer is 2.", "level": 3}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def clean(tmp_path):
    """Cleans rows; gives the folder that is written."""

    def run(rows: list[dict] | Path, *overrides: str, out: str = "out") -> Path:
        path = rows if isinstance(rows, Path) else write_jsonl(tmp_path / "rows.jsonl", rows)
        fixed = [f"rows=[{path}]", f"out={tmp_path / out}", "data.max_bad_rows=0.9"]
        values = OmegaConf.to_container(OmegaConf.from_dotlist([*fixed, *overrides]))
        assert isinstance(values, dict)
        make(LongCotConfig(**{**values, "data": DemonstrationTableConfig(**values["data"])}))
        return tmp_path / out

    return run


def counted(out: Path) -> dict:
    summary = json.loads((out / "summary.json").read_text())
    dropped = lines(out / "dropped.jsonl")
    assert summary["num_rows"] == summary["kept"] + len(dropped) == summary["kept"] + sum(summary["dropped"].values())
    assert Counter(row["reason"] for row in dropped) == summary["dropped"]
    return summary


@pytest.mark.parametrize(
    ("shape", "parquet"), [*((shape, False) for shape in SHAPES), ("ours", True), ("OpenAI bytes", True)]
)
def test_every_shape_becomes_a_row_that_sft_reads_as_a_thinking_sample(clean, tmp_path, tiny, shape, parquet):
    (tmp_path / "a.png").write_bytes(png(0))
    rows: list[dict] | Path = [SHAPES[shape]]
    if parquet:
        rows = tmp_path / "rows.parquet"
        pq.write_table(pa.Table.from_pylist([SHAPES[shape]]), rows)
    out = clean(rows)
    found = Demonstrations(str(out / "demonstrations.jsonl"), SftDataConfig(), tiny[1], DataFolders())
    [sample] = found.items
    assert (sample.mode, sample.completions) == (Mode.think, [THOUGHT])
    messages = [
        {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "1+1?"}]},
    ]
    row = found.build(0)
    assert row.prefix_ids == tiny[1].prompt(messages, Mode.think, tmp_path).ids, "and the instruction stands there once"
    assert [image.shape for image in row.images] == [(1, 3, 32, 32)]
    assert [path.parent.name for path in out.rglob("*.png")] == ["media"] and counted(out)["kept"] == 1


def test_other_columns_and_the_place_of_a_row_survive(clean):
    system = {"system": "Be brief.", "conversations": [{"from": "human", "value": "2+0? Answer directly."}]}
    system["conversations"].append({"from": "gpt", "value": "<think>I add one and one.</think>2"})
    out = clean([GOOD, {**system, "answer": "2", "tags": ["a", None], "dataset": "sums"}])
    first, second = lines(out / "demonstrations.jsonl")
    assert first == {
        "level": 3,
        "dataset": "rows",
        "id": "rows-1",
        "mode": "think",
        "messages": [{"role": "user", "content": "1+1?"}],
        "made_from": {"file": "rows.jsonl", "row": 1},
        "completions": ["<think>I add one and one.</think>\\boxed{2}"],
    }
    assert (second["answer"], second["tags"], second["dataset"]) == ("2", ["a", None], "sums")
    assert second["messages"] == [{"role": "user", "content": "2+0?"}] and "system" not in second
    beside = {"problem": "5+0?", "thinking": "I add none to it.", "answer": 5}
    [third] = lines(clean([beside], out="beside") / "demonstrations.jsonl")
    assert third["answer"] == 5 and not {"problem", "thinking"} & third.keys()
    [fourth] = lines(clean([{"problem": "5+0?", "solution": THOUGHT}], out="alone") / "demonstrations.jsonl")
    assert "solution" not in fourth
    summary = counted(out)
    assert (summary["system_prompts_cut"], summary["hints_cut"], summary["dropped"]) == (1, 1, {})


def test_every_dropped_row_has_its_reason(clean, tmp_path):
    for name, seed in (("a.png", 0), ("same.png", 0), ("b.png", 1)):
        (tmp_path / name).write_bytes(png(seed))
    (tmp_path / "broken.png").write_text("no image")
    verbose = "so the sum of one and one is two"
    reasons = {
        "": GOOD,
        "duplicate": {**GOOD, "question": " 1+1?  "},
        "no_thought": {**GOOD, "question": "a", "completion": "2"},
        "malformed": {**GOOD, "question": "b", "completion": "<think>I"},
        "no_answer": {**GOOD, "question": "c", "completion": "<think>I</think>"},
        "redundant_thought": {**GOOD, "question": "d", "completion": f"<think>{verbose}</think>{verbose}."},
        "thought_short": {**GOOD, "question": "e", "completion": "<think>2.</think>2"},
        "thought_long": {**GOOD, "question": "f", "completion": f"<think>{'a b ' * 30}</think>2"},
        "no_question": {**GOOD, "question": "Let's think step by step."},
        "unreadable": {**GOOD, "question": "g", "image": "broken.png"},
        "several_turns": {"messages": [{"role": r, "content": THOUGHT} for r in ("user", "assistant") * 2]},
    }
    images = [{**GOOD, "image": "a.png"}, {**GOOD, "image": "same.png"}, {**GOOD, "image": "b.png"}]
    out = clean([*reasons.values(), *images], "min_thought_tokens=3", "max_thought_tokens=40")
    expected = {int(row["made_from"]["row"]) for row in lines(out / "demonstrations.jsonl")}
    assert expected == {1, 12, 14}, "the same question with other media is another one, whatever the file is called"
    found = {row["row"]: row["reason"] for row in lines(out / "dropped.jsonl")}
    assert [found.get(number, "") for number in range(1, 12)] == list(reasons)
    assert found[13] == "duplicate" and counted(out)["dropped"]["duplicate"] == 2
    assert "broken.png" in next(row["detail"] for row in lines(out / "dropped.jsonl") if row["row"] == 10)
    assert len(list((out / "media").iterdir())) == 2, "media of dropped rows are not carried"


def test_completions_of_a_row_are_cleaned_one_by_one(clean):
    several = [THOUGHT, "no thought", "<think>Two.</think>2"]
    out = clean([{"question": "1+1?", "completions": several}])
    [row] = lines(out / "demonstrations.jsonl")
    assert row["completions"] == [THOUGHT, "<think>Two.</think>\\boxed{2}"]
    assert counted(out)["completions_dropped"] == {"no_thought": 1}


def test_answers_are_judged_by_their_references_where_there_are_any(clean):
    rows = [
        {**GOOD, "reference": "2"},
        {**GOOD, "question": "a", "reference": "3"},
        {**GOOD, "question": "b"},
        {**GOOD, "question": "c", "reference": "\\frac{"},
        {**GOOD, "question": "d", "reward_model": {"ground_truth": "So.\n#### 2", "style": "rule"}},
    ]
    out = clean(rows, "verifier=math")
    summary = counted(out)
    assert summary["dropped"] == {"unscorable": 1, "wrong_answer": 1} and summary["without_reference"] == 1
    assert [row["made_from"]["row"] for row in lines(out / "demonstrations.jsonl")] == [1, 3, 5]
    with pytest.raises(ValueError, match=r"verifier: expected one of .*math"):
        clean(rows, "verifier=maths")


@pytest.mark.parametrize(
    ("counts", "share", "cap"),
    [
        ([90, 10], 1.0, 90),
        ([90, 10], 0.5, 10),
        ([90, 10, 0], 0.4, 10),  # two buckets cannot do it: even ones
        ([90, 20, 10], 0.5, 30),  # 30 of 30 + 20 + 10
        ([100, 60, 40], 0.4, 66),  # 66 of 66 + 60 + 40 is just below two fifths
        ([7], 0.5, 7),
        ([0, 0], 0.5, 0),
    ],
)
def test_no_bucket_of_lengths_holds_more_than_its_share(counts, share, cap):
    assert bucket_cap(counts, share) == cap


def test_lengths_are_balanced_by_the_seed_alone(clean):
    short, long = "a " * 3, "b " * 30
    rows = [{"question": f"{n}?", "completion": f"<think>{short if n % 10 else long}{n}</think>1"} for n in range(40)]
    settings = ["bucket_edges=[10]", "bucket_share=0.6"]
    out = clean(rows, *settings)
    summary = counted(out)
    assert summary["thought_tokens"] == {"0-9": {"before": 36, "after": 6}, "10-": {"before": 4, "after": 4}}
    assert summary["dropped"] == {"length_balance": 30}
    first = {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()}
    again = clean(rows, *settings, out="again")
    assert {path.name: path.read_bytes() for path in again.iterdir() if path.is_file()} == first
    other = clean(rows, *settings, "seed=1", out="other")
    assert (other / "demonstrations.jsonl").read_bytes() != first["demonstrations.jsonl"]


class TestLongAnswers:
    LONG = "Since one and one make two, and nothing else is added to them, the value that is asked for is 2 apples"

    @pytest.fixture
    def judge(self):
        """An endpoint that answers each question as `replies` says; an exception of it is a status of 500."""
        replies: dict[str, str] = {}
        asked: list[str] = []

        class Stub(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][1]["content"].split("\n")[1]
                asked.append(question)
                marker = body["messages"][0]["content"].split('"marker": "')[1].split('"')[0]
                content = json.dumps({"marker": marker, "answer": replies.get(question, "")})
                self.send_response(200 if question in replies else 403)
                self.end_headers()
                self.wfile.write(json.dumps({"choices": [{"message": {"content": content}}]}).encode())

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/v1"
        yield replies, asked, f"judge={{base_url: '{url}', model: m, requests_per_minute: 60000}}"
        server.shutdown()

    def rows(self) -> list[dict]:
        return [{"question": name, "completion": f"<think>I think of it</think>{self.LONG}"} for name in "abcde"]

    def test_a_judge_shortens_and_invents_nothing(self, clean, judge):
        replies, asked, endpoint = judge
        replies |= {"a": "2 apples", "b": "3 apples", "c": "", "d": "is 2 } apples"}  # "e" fails
        out = clean(self.rows(), endpoint, "long_answer_tokens=5")
        answers = [row["completions"][0].partition("</think>")[2] for row in lines(out / "demonstrations.jsonl")]
        assert answers == ["\\boxed{2 apples}", *[f"\\boxed{{{self.LONG}}}"] * 4]
        summary = counted(out)
        assert (summary["long_answers"], summary["shortened"], summary["not_shortened"]) == (5, 1, 4)
        asked.clear()
        clean(self.rows(), endpoint, "long_answer_tokens=5")
        assert asked == ["e"], "replies are kept; what failed is asked again"
        out = clean(self.rows(), endpoint, "long_answer_tokens=5", "drop_long_answers=true")
        assert counted(out)["dropped"] == {"long_answer": 4}
        details = [row["detail"] for row in lines(out / "dropped.jsonl")]
        assert "words that the long one has not: 3" in details[0] and "found no final answer" in details[1]
        assert "fit into a box" in details[2] or "has not: }" in details[2]
        assert "HTTP status 403" in details[3]

    def test_without_a_judge_long_answers_are_counted(self, clean):
        summary = counted(clean(self.rows(), "long_answer_tokens=5"))
        assert (summary["kept"], summary["long_answers"], summary["not_shortened"]) == (5, 5, 5)

    def test_a_wrong_endpoint_is_refused_by_its_key(self, clean):
        with pytest.raises(ValueError, match=r"^judge: expected model, the name of the judge"):
            clean(self.rows(), "judge={base_url: 'http://localhost:1/v1'}")


class TestRefusals:
    def test_nothing_left_is_an_error_after_the_counts_are_written(self, clean, tmp_path):
        clean([GOOD])
        with pytest.raises(ValueError, match=r"expected some rows to be left, found none; .*summary\.json counts"):
            clean([{**GOOD, "completion": "2"}])
        assert counted(tmp_path / "out")["dropped"] == {"no_thought": 1}
        assert not (tmp_path / "out" / "demonstrations.jsonl").exists(), "rows of an earlier call do not stay"

    def test_too_many_rows_that_cannot_be_read_are_refused_after_they_are_named(self, clean, tmp_path):
        with pytest.raises(ValueError, match=r"2 of 3 rows cannot be used, data\.max_bad_rows=0\.01 allows 0"):
            clean([GOOD, {"x": 1}, {"y": 1}], "data.max_bad_rows=0.01")
        assert counted(tmp_path / "out")["dropped"] == {"unreadable": 2}

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("rows=[]", "rows: expected files, found nothing"),
            ("out=''", "out: expected a path"),
            ("max_overlap=0", "max_overlap: expected above 0 and at most 1"),
            ("bucket_edges=[5,3]", r"bucket_edges: expected rising numbers from 1, found \[5, 3\]"),
            ("hints=['(']", r"hints: expected regular expressions, found '\('"),
            ("rows=[nowhere.jsonl]", r"rows: expected a .*nowhere\.jsonl"),
            ("data.id_column=name", r"data\.id_column: rows: expected a column of the rows \(.*'name'"),
        ],
    )
    def test_bad_settings_are_refused_by_name(self, clean, override, message):
        with pytest.raises(ValueError, match=message):
            clean([GOOD], override)

    def test_what_others_wrote_is_never_written_over(self, clean, tmp_path):
        folder = tmp_path / "out"
        folder.mkdir()
        mine = write_jsonl(folder / "demonstrations.jsonl", [GOOD])
        for rows in ([GOOD], mine):
            with pytest.raises(
                ValueError, match=r"out: expected (a new folder|another folder than that of what is read)"
            ):
                clean(rows)
        assert lines(mine) == [GOOD]

    def test_a_file_in_the_place_of_the_folder_is_refused(self, clean, tmp_path):
        (tmp_path / "out").touch()
        with pytest.raises(ValueError, match="out: expected a folder, found the file"):
            clean([GOOD])


def test_a_killed_call_leaves_no_rows_and_the_next_one_gives_the_same(clean, tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([{**GOOD, "question": str(n), "image": png(n)} for n in range(4)]), path)
    first = clean(path)
    expected = (first / "demonstrations.jsonl").read_bytes()
    assert not list(first.glob("*partial"))

    class Killed(BaseException):
        pass

    for name in ("read", "media", "file.before_rename", "file.after_rename"):

        def reach(point: str, amount: int = 1, name: str = name) -> None:
            if point == name:
                raise Killed

        out = f"killed_{name}"
        for module in ("sft.prepare.rows", "model.data.media_store", "model.run.durable"):
            monkeypatch.setattr(f"{module}.reach", reach)
        with pytest.raises(Killed):
            clean(path, out=out)
        monkeypatch.undo()
        assert not (tmp_path / out / "demonstrations.jsonl").exists()
        again = clean(path, out=out)
        assert (again / "demonstrations.jsonl").read_bytes() == expected and not list(again.glob("*partial"))
    assert failpoints.reach is not reach
