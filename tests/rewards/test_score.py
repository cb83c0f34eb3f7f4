"""The command that scores a file: order, bad lines, resuming, refusals."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from rewards.score import ADDED, main
from tests.conftest import require_extra

GOOD = {"completion": "<think>a</think>\\boxed{\\frac{14}{2}}", "reference": "7", "id": "g"}
WRONG = {"completion": "\\boxed{\\sqrt{50}}", "reference": "7", "id": "w"}


@pytest.fixture
def files(tmp_path):
    """Writes the input, runs the command, returns (exit status, output lines)."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"

    def run(lines, *arguments, verifier="math"):
        raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        source.write_bytes(b"\n".join(raw) + b"\n")
        status = main(
            ["--verifier", verifier, "--input", str(source), "--output", str(output), "--workers", "1", *arguments]
        )
        return status, [json.loads(line) for line in output.read_bytes().splitlines()] if output.exists() else []

    run.source, run.output = source, output
    return run


def test_lines_keep_their_order_and_fields(files):
    rows = [{**row, "n": i} for i, row in enumerate([GOOD, WRONG, {**GOOD, "completion": "7"}] * 5)]
    status, lines = files(rows)
    assert status == 0
    assert [{key: line[key] for key in row} for row, line in zip(rows, lines, strict=True)] == rows
    assert [line["value"] for line in lines] == [1.0, 0.0, 0.0] * 5
    assert [line["answer"] for line in lines[:3]] == ["\\frac{14}{2}", "\\sqrt{50}", None]
    assert all(set(ADDED) <= set(line) and line["status"] == "ok" and line["seconds"] >= 0 for line in lines)


def test_bad_lines_are_named_and_never_dropped(files):
    deep = b"[" * 100_000
    bad = [
        b"{",
        b"",
        b"\xff\xfe",
        b"[1]",
        deep,
        {"reference": "7"},
        {**GOOD, "completion": 7},
        {"completion": "\\boxed{7}"},
    ]
    status, lines = files([*bad, GOOD, {**GOOD, "reference": "???"}])
    assert status == 0 and len(lines) == len(bad) + 2
    for number, line in enumerate(lines[: len(bad)], 1):
        assert line["status"] == "unscorable" and line["value"] is None
        assert f"line {number}:" in line["reason"]
    assert lines[-2]["value"] == 1.0
    assert lines[-1]["status"] == "unscorable" and "does not parse as mathematics" in lines[-1]["reason"]


def test_the_rollouts_that_a_run_stored_are_judged(files):
    stored = {"format": 1, "draw": 3, "prompt_id": "p", "text": GOOD["completion"], "reference": "7", "reason": ""}
    status, (line,) = files([stored])
    assert status == 0 and line["value"] == 1.0 and line["scored_reason"] == "" and line["draw"] == 3


def test_where_nothing_could_be_scored_the_command_says_why_and_fails(files, capsys):
    status, lines = files([{"text": "no completion"}, {"text": "none either"}])
    assert status == 3 and {line["status"] for line in lines} == {"unscorable"}
    said = capsys.readouterr().err
    assert "unscorable most often (2 of 2): expected the text field 'completion', found NoneType" in said
    assert "no line could be scored" in said


def test_extraction_rules_and_columns(files):
    rows = [
        {"completion": "The answer is (B) 12 cm", "reference": "B", "options": ["10 cm", "12 cm"]},
        {"completion": "(A) or (B)", "reference": "B", "options": ["10 cm", "12 cm"]},
        {"completion": "\\boxed{12 cm}", "reference": "B", "options": ["10 cm", "12 cm"]},
    ]
    status, lines = files(rows, "--extract", "boxed,bare", verifier="choice")
    assert status == 0 and [line["value"] for line in lines] == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("own", [["answer"], ["value", "status"], ["answer", "scored_answer"]])
def test_a_column_of_the_input_is_kept_and_ours_named_otherwise(files, capsys, own):
    rows = [{**GOOD, **dict.fromkeys(own, "mine")}, WRONG]
    status, lines = files(rows)
    assert status == 0 and [{key: line[key] for key in row} for row, line in zip(rows, lines, strict=True)] == rows
    names = {name: f"scored_{name}" if name in own else name for name in ADDED}
    names["answer"] = "scored_scored_answer" if "scored_answer" in own else names["answer"]
    assert [line[names["answer"]] for line in lines] == ["\\frac{14}{2}", "\\sqrt{50}"]
    assert [line[names["value"]] for line in lines] == [1.0, 0.0]
    said = capsys.readouterr().err
    assert f"the input's own {own[0]!r} is kept; ours is {names[own[0]]!r}" in said
    before = files.output.read_bytes()
    assert files(rows)[0] == 0 and files.output.read_bytes() == before  # the same command has nothing left to do


def test_options_reach_the_verifier(files):
    rows = [{"completion": "\\boxed{105}", "reference": 100}]
    assert files(rows, "--options", "relative=0.1", verifier="numeric")[1][0]["value"] == 1.0


def test_what_is_done_is_not_done_again_and_a_torn_line_is(files):
    rows = [{**GOOD, "n": i} for i in range(6)]
    _, complete = files(rows)
    kept = files.output.read_bytes().splitlines(keepends=True)
    marked = json.loads(kept[0]) | {"seconds": 123.0}
    files.output.write_bytes(json.dumps(marked).encode() + b"\n" + kept[1] + kept[2][:20])
    status, lines = files(rows)
    assert status == 0 and lines[0]["seconds"] == 123.0
    assert [{**line, "seconds": 0} for line in lines] == [{**line, "seconds": 0} for line in complete]


def test_an_output_of_another_input_or_settings_is_refused(files, capsys):
    files([GOOD, WRONG])
    before = files.output.read_bytes()
    assert files([WRONG, GOOD])[0] == 2
    assert "line 1 of" in capsys.readouterr().err
    assert files([GOOD, WRONG], "--extract", "bare")[0] == 2
    assert "other settings (extract)" in capsys.readouterr().err
    assert files([GOOD])[0] == 2
    assert files.output.read_bytes() == before
    files.output.with_name("out.jsonl.settings.json").unlink()
    assert files([GOOD, WRONG])[0] == 2
    assert "was not written by this command" in capsys.readouterr().err


@pytest.mark.parametrize("foreign", [b"[1]", b"garbage", b"null", b'{"value": 1.0}'])
def test_an_output_that_is_no_output_is_refused(files, capsys, foreign):
    files([GOOD, WRONG])
    files.output.write_bytes(foreign + b"\n")
    assert main(["--verifier", "math", "--input", str(files.source), "--output", str(files.output)]) == 2
    assert "line 1 of" in capsys.readouterr().err
    files.output.with_name("out.jsonl.settings.json").write_bytes(foreign)
    assert main(["--verifier", "math", "--input", str(files.source), "--output", str(files.output)]) == 2
    assert files.output.read_bytes() == foreign + b"\n"


def test_empty_input_and_empty_lines(files):
    files.source.write_bytes(b"")
    arguments = ["--verifier", "math", "--input", str(files.source), "--output", str(files.output)]
    assert main(arguments) == 0 and files.output.read_bytes() == b""
    _, lines = files([GOOD, b"", b"  ", WRONG])
    assert [line["reason"] for line in lines] == [
        "",
        "line 2: expected a JSON object, found an empty line",
        "line 3: expected a JSON object, found an empty line",
        "",
    ]
    assert files([GOOD, b"", b"  ", WRONG])[1] == lines


@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
def test_half_surrogates_and_line_ends_survive_a_second_run(files, line_end):
    rows = [{**GOOD, "completion": "\ud800 \u2028 \\boxed{7}"}, GOOD]
    files.source.write_bytes(line_end.join(json.dumps(row).encode() for row in rows))
    arguments = ["--verifier", "math", "--input", str(files.source), "--output", str(files.output)]
    assert main(arguments) == 0
    first = files.output.read_bytes()
    assert [json.loads(line)["value"] for line in first.splitlines()] == [1.0, 1.0]
    assert main(arguments) == 0 and files.output.read_bytes() == first


def test_a_full_disk_is_said_and_the_run_goes_on_later(files, capsys):
    """The limit on file sizes stands for the disk."""
    rows = [{**GOOD, "n": n, "pad": "x" * 100} for n in range(300)]
    files.source.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    arguments = ["--verifier", "math", "--input", str(files.source), "--output", str(files.output)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        assert main(arguments) == 6
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "File too large; the same command goes on" in capsys.readouterr().err
    assert files.output.stat().st_size == 10_000
    assert main(arguments) == 0
    assert [json.loads(line)["n"] for line in files.output.read_bytes().splitlines()] == list(range(300))


@pytest.mark.parametrize(
    ("arguments", "verifier", "message"),
    [
        (["--extract", "box"], "math", "--extract: expected names among boxed"),
        (["--options", "relative"], "numeric", "expected KEY=VALUE"),
        (["--options", "absolute=1", "absolute=2"], "numeric", "expected each key once, found 'absolute' twice"),
        (["--options", "score=share", "extra=wrong", "score=share"], "json_fields", "found 'score' twice"),
        (["--options", "relativ=1"], "numeric", "did you mean 'relative'?"),
        (["--options", "relative=x"], "numeric", "expected a finite number"),
        ([], "maths", "did you mean 'math'?"),
        (["--timeout", "0"], "math", "positive number of seconds"),
        (["--timeout", "inf"], "math", "positive number of seconds"),
        (["--workers", "0"], "math", "at least one worker"),
    ],
)
def test_bad_arguments_exit_with_2_and_say_why(files, capsys, arguments, verifier, message):
    assert files([GOOD], *arguments, verifier=verifier)[0] == 2
    assert message in capsys.readouterr().err
    assert not files.output.exists()


def test_missing_input_exits_with_2(tmp_path, capsys):
    out = str(tmp_path / "o.jsonl")
    assert main(["--verifier", "math", "--input", str(tmp_path / "none"), "--output", out]) == 2
    assert "--input: expected a file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_goes_on_where_its_output_ends(tmp_path):
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    rows = [{"completion": f"\\boxed{{\\sqrt{{{n * n}}}}}", "reference": str(n), "n": n} for n in range(1, 1500)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        sys.executable,
        "-m",
        "rewards.score",
        "--verifier",
        "math",
        "--input",
        str(source),
        "--output",
        str(output),
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (output.exists() and output.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = len(output.read_bytes().splitlines())
    assert 0 < half < len(rows)
    assert subprocess.run(command, stderr=subprocess.DEVNULL, timeout=300).returncode == 0
    lines = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert [line["n"] for line in lines] == [row["n"] for row in rows]
    assert all(line["value"] == 1.0 for line in lines)


def test_a_table_is_judged_as_the_same_lines(files, tmp_path):
    """Parquet with bytes in a column; a run that is continued finds its rows again."""
    require_extra("data", "pyarrow")
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{**GOOD, "n": 1}, {**WRONG, "n": 2}, {"reference": "7", "id": "x"}, {**GOOD, "completion": "7"}]
    _, lines = files(rows)
    pq.write_table(pa.Table.from_pylist([{**row, "image": b"\x00\x01"} for row in rows]), tmp_path / "in.parquet")
    arguments = ["--verifier", "math", "--input", str(tmp_path / "in.parquet"), "--workers", "1"]
    output = tmp_path / "of_table.jsonl"
    assert main([*arguments, "--output", str(output)]) == 0
    found = [json.loads(line) for line in output.read_text().splitlines()]
    names = ("id", "value", "status", "answer", "reason")
    assert [[row.get(name) for name in names] for row in found] == [[row.get(name) for name in names] for row in lines]
    assert {row["image"] for row in found} == {"2 bytes"}
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:2]))
    assert main([*arguments, "--output", str(output)]) == 0
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["value"] for row in again] == [row["value"] for row in found]


def test_a_table_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "in.parquet").write_bytes(b"no table")
    arguments = ["--verifier", "math", "--input", str(tmp_path / "in.parquet"), "--output", str(tmp_path / "out.jsonl")]
    assert main(arguments) == 2
    assert "expected a whole Parquet file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        (lambda *_: os.kill(os.getpid(), signal.SIGTERM), 5, "SIGTERM came"),
        (
            lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
            6,
            "No space left on device; the same command goes on",
        ),
    ],
)
def test_sigterm_and_a_full_disk_have_one_code_each(tmp_path, monkeypatch, capsys, act, code, said):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"completion": "\\boxed{1}", "reference": "1"}) + "\n")
    monkeypatch.setattr("rewards.score._run", act)
    arguments = ["--input", str(rows), "--output", str(tmp_path / "out.jsonl"), "--verifier", "math"]
    assert main(arguments) == code and said in capsys.readouterr().err
