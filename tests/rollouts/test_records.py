"""The stored form of a rollout: the same after writing and reading, and what cannot be read is said with its place."""

import dataclasses
import json

import pytest

from rollouts.records import FORMAT, RolloutContext, StoredRollout, read_rollouts

ONE = StoredRollout(
    "p1",
    [5, 9],
    "stop",
    {"answer": 1.0, "format": None},
    group_index=7,
    sample_index=3,
    text="a\u2028b",
    reference="4",
    reward=1.0,
    dropped="all_right",
    policy_version=2,
    context=RolloutContext("1+3?", ["data/a.png"], "three and one", "4", 0.5),
)


def write(path, *records: dict):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_file_gives_back_what_was_written(tmp_path):
    path = write(tmp_path / "step_000001.jsonl", {"step": 1, **ONE.to_json()}, {"step": 1, **ONE.to_json()})
    with path.open("a") as file:
        file.write('{"step": 2, "prom')  # the writer was killed
    assert list(read_rollouts(path)) == [ONE, ONE]
    assert ONE.to_json()["draw"] == 7 and ONE.to_json()["format"] == FORMAT


def test_lines_of_older_runs_have_no_format_and_are_format_1(tmp_path):
    old = {key: value for key, value in ONE.to_json().items() if key != "format"}
    assert list(read_rollouts(write(tmp_path / "old.jsonl", old))) == [ONE]


def test_lines_of_older_runs_have_neither_question_nor_advantage(tmp_path):
    old = {key: value for key, value in ONE.to_json().items() if key not in vars(ONE.context)}
    (found,) = read_rollouts(write(tmp_path / "old.jsonl", old))
    assert found == dataclasses.replace(ONE, context=RolloutContext())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": FORMAT + 1}, rf"line 2: format: expected 1 to {FORMAT}, found {FORMAT + 1}; a newer version"),
        ({"format": "x"}, rf"line 2: format: expected 1 to {FORMAT}, found 'x'"),
        ({"completion_ids": "5 9"}, "line 2: completion_ids: expected list, found '5 9'"),
        ({"reward": "1"}, "line 2: reward: expected int or float or NoneType, found '1'"),
        ({"draw": None}, "line 2: draw: expected int, found None"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path, change, message):
    path = write(tmp_path / "step_000001.jsonl", ONE.to_json(), ONE.to_json() | change)
    with pytest.raises(ValueError, match=f"step_000001.jsonl: {message}"):
        list(read_rollouts(path))


def test_a_missing_key_and_a_broken_line_are_named(tmp_path):
    lacking = {key: value for key, value in ONE.to_json().items() if key != "prompt_id"}
    with pytest.raises(ValueError, match="line 1: prompt_id: expected str, found none"):
        list(read_rollouts(write(tmp_path / "a.jsonl", lacking)))
    (tmp_path / "b.jsonl").write_text("{]\n[1]\n")
    with pytest.raises(ValueError, match="line 1: expected a JSON object, found: Expecting"):
        list(read_rollouts(tmp_path / "b.jsonl"))
    with pytest.raises(ValueError, match=r"x: expected a JSON object, found \[1\]"):
        StoredRollout.from_json("[1]", "x")
