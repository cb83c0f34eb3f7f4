"""Batch inference: every prompt once, whatever happens in between."""

import fcntl
import json
import shutil

import pytest

from conf.cli import load_config
from model.interface import Mode
from model.processing.tokenizer import Tokenizer
from rewards.score import main as score
from rollouts.batch_inference import generate_file
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import RolloutRequest, generate
from rollouts.weights.sync import fill_worker


@pytest.fixture
def command(tiny_folder, easy_prompts, tmp_path):
    """Runs the command on the easy prompts; returns the lines of its file."""

    def run(*overrides: str, prompts=easy_prompts) -> list[dict]:
        limits = ["rollouts.max_completion_tokens=6", "num_threads=1", "num_samples=2"]
        required = [f"checkpoint={tiny_folder}", f"prompts={prompts}", f"out={tmp_path}/out/o.jsonl"]
        generate_file(*load_config("generate", [*required, *limits, *overrides]))
        return [json.loads(line) for line in (tmp_path / "out" / "o.jsonl").read_text().split("\n")[:-1]]

    return run


def test_lines_are_the_samplers_completions_in_order(command, tiny, easy_prompts):
    lines = command()
    rows = [json.loads(line) for line in easy_prompts.read_text().splitlines()]
    assert [(line["id"], line["sample"]) for line in lines] == [(row["id"], s) for row in rows for s in (0, 1)]
    model, processor = tiny
    tokens = processor.prompt(rows[3]["messages"], Mode.think, easy_prompts.parent)
    images = processor.open_images(easy_prompts.parent, tokens.images)
    worker = fill_worker(EmbeddedWorker(model, processor, RolloutConfig(max_completion_tokens=6), 0), model)
    (group,) = generate(worker, [RolloutRequest(3, "p3", tokens.ids, tokens.placeholder_ids, images, 2)])
    for line, rollout in zip(lines[6:8], group, strict=True):
        assert line["token_ids"] == rollout.completion_ids
        assert line["completion"] == processor.tokenizer.decode(rollout.completion_ids)
        assert line["logprob"] == sum(rollout.rollout_logprobs)


def test_lines_keep_what_a_reward_needs(command, easy_prompts, tmp_path):
    """Question, reference, images and the row's columns; a verifier and an own reward can judge them."""
    line = command()[7]
    assert (line["question"], line["reference"], line["family"]) == ("Question 3?", "3", "easy")
    assert line["images"] == [str(easy_prompts.parent / "3.png")]
    out = tmp_path / "out" / "o.jsonl"
    scored = tmp_path / "scored.jsonl"
    assert score(["--verifier", "math", "--input", str(out), "--output", str(scored), "--workers", "1"]) == 0
    assert {json.loads(line)["status"] for line in scored.read_text().splitlines()} == {"ok"}


def test_it_goes_on_where_it_was_cut_off(command, tmp_path, capsys):
    whole = command()
    out = tmp_path / "out" / "o.jsonl"
    text = out.read_text()
    lines = text.splitlines(keepends=True)
    out.write_text("".join(lines[:5]) + lines[5][:20])  # two prompts, half of a third, half a line
    assert sorted(command(), key=lambda line: (line["id"], line["sample"])) == sorted(
        whole, key=lambda line: (line["id"], line["sample"])
    )
    assert "2 of 12 prompts are there already" in capsys.readouterr().out
    before = out.read_text()
    command()
    assert out.read_text() == before


def test_other_settings_do_not_mix_into_a_file(command):
    command()
    with pytest.raises(ValueError, match=r"out: .*o.jsonl was written with other settings"):
        command("seed=1")


def test_other_prompts_or_another_model_do_not_mix_into_a_file(command, easy_prompts, tmp_path):
    command()
    prompts = tmp_path / "other.jsonl"
    prompts.write_text(easy_prompts.read_text().replace("reference", "answer"))
    with pytest.raises(ValueError, match=r"o.jsonl was written with other settings or inputs: prompts: .*other.jsonl"):
        command(prompts=prompts)


def test_the_same_prompts_under_another_name_go_on(command, easy_prompts, tmp_path):
    lines = command()
    copy = shutil.copytree(easy_prompts.parent, tmp_path / "copy") / easy_prompts.name
    assert command(prompts=copy) == lines


@pytest.mark.parametrize("text", ["mine\n", '{"id": 3}\n', "[1]\n", "[" * 100_000 + "\n"])
def test_lines_of_somebody_else_are_named_and_left_alone(command, tmp_path, text):
    command()
    out = tmp_path / "out" / "o.jsonl"
    out.write_text(text)
    with pytest.raises(ValueError, match=r"out: .*o.jsonl: line 1: expected an object with an id"):
        command()
    assert out.read_text() == text


def test_a_file_that_was_there_before_is_refused(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "o.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="expected a new file, or one that this command wrote"):
        command()
    assert (tmp_path / "out" / "o.jsonl").read_text() == "mine"


@pytest.mark.parametrize("cut", [1, 2, 3, 30])
def test_a_line_that_was_torn_inside_a_character_is_written_again(command, easy_prompts, tmp_path, cut):
    rows = [{**json.loads(line), "id": f"é𝄞{n}"} for n, line in enumerate(easy_prompts.read_text().splitlines()[:2])]
    prompts = easy_prompts.with_name("accents.jsonl")
    prompts.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    lines = command(prompts=prompts)
    out = tmp_path / "out" / "o.jsonl"
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.rindex("𝄞".encode()) + cut])
    assert command(prompts=prompts) == lines and out.read_bytes() == whole


def test_two_runs_do_not_write_one_file(command, tmp_path):
    lines = command()
    with (tmp_path / "out" / ".o.jsonl.lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match=r"out: .*o.jsonl is being written by another run"):
            command()
    assert command() == lines


def test_greedy_direct_answers_are_the_samplers(command, tiny, easy_prompts):
    lines = command("decoding=greedy", "mode=direct")
    assert all(one["token_ids"] == other["token_ids"] for one, other in zip(lines[::2], lines[1::2], strict=True))
    model, processor = tiny
    tokens = processor.prompt(json.loads(easy_prompts.read_text().splitlines()[0])["messages"], Mode.direct)
    images = processor.open_images(easy_prompts.parent, tokens.images)
    worker = fill_worker(EmbeddedWorker(model, processor, RolloutConfig(max_completion_tokens=6), 0), model)
    asked = RolloutRequest(0, "p0", tokens.ids, tokens.placeholder_ids, images, 1, greedy=True)
    assert lines[0]["token_ids"] == generate(worker, [asked])[0][0].completion_ids


def test_a_completion_may_hold_any_character(command, tmp_path, monkeypatch):
    """Some are ends of lines to Python, but not in JSONL."""
    decode = Tokenizer.decode
    monkeypatch.setattr(Tokenizer, "decode", lambda self, ids: decode(self, ids) + "\u2028\u2029\x85")
    lines = command()
    assert len(lines) == 24 and all("\u2028" in line["completion"] for line in lines)
    out = tmp_path / "out" / "o.jsonl"
    before = out.read_bytes()
    assert command() == lines and out.read_bytes() == before
    out.write_bytes(before[:-10])
    assert sorted(map(str, command())) == sorted(map(str, lines))


def test_a_prompt_that_cannot_be_asked_is_an_error_and_not_lost(command, easy_prompts, tmp_path):
    rows = easy_prompts.read_text().splitlines()
    bad = json.loads(rows[1])
    bad["messages"][0]["content"][0]["image"] = "nowhere.png"
    prompts = easy_prompts.with_name("some.jsonl")
    prompts.write_text("\n".join([rows[0], json.dumps(bad), rows[2]]) + "\n")
    lines = command(prompts=prompts)
    errors = [line for line in lines if "error" in line]
    assert [line["id"] for line in errors] == ["p1"] and "nowhere.png" in errors[0]["error"]
    assert {line["id"] for line in lines} == {"p0", "p1", "p2"}
    assert command(prompts=prompts) == lines


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"bad.jsonl:1: expected a JSON object, .* 1 of 1 rows cannot be used"),
        ('{"id": 1, "messages": []}\n{"id": 1, "messages": []}', "line 2: expected ids that differ, found '1' twice"),
        ('{"id": [1], "messages": []}', r"bad.jsonl:1: id: expected str or int"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_line(command, tmp_path, text, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        command(prompts=path)


def test_a_bad_row_costs_one_row(command, easy_prompts, capsys):
    """One that has an id is answered by the reason, another one is counted and named."""
    rows = easy_prompts.read_text().splitlines()[:2]
    prompts = easy_prompts.with_name("some.jsonl")
    prompts.write_bytes(
        b"\n".join([rows[0].encode(), b"\xff", b'{"id": "x", "question": 3}', rows[1].encode()]) + b"\n"
    )
    lines = command("data.max_bad_rows=1", prompts=prompts)
    assert {line["id"] for line in lines if "error" not in line} == {"p0", "p1"}
    assert [line["id"] for line in lines if "error" in line] == ["x"]
    assert "some.jsonl:2: expected UTF-8" in capsys.readouterr().err


def test_a_table_with_images_as_bytes_gives_the_same_completions(command, easy_prompts, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = command()
    rows = [json.loads(line) for line in easy_prompts.read_text().splitlines()]
    for row in rows:
        image, text = row.pop("messages")[0]["content"]
        row |= {"question": text["text"], "image": (easy_prompts.parent / image["image"]).read_bytes()}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "prompts.parquet")
    (tmp_path / "out" / "o.jsonl").unlink()
    (tmp_path / "out" / "o.jsonl.run.json").unlink()
    same = ("id", "question", "reference", "family", "sample", "completion", "token_ids", "logprob")
    found = command(prompts=tmp_path / "prompts.parquet")
    assert [[line[name] for name in same] for line in found] == [[line[name] for name in same] for line in lines]
    assert found[0]["images"] == []  # their files are gone with the command
