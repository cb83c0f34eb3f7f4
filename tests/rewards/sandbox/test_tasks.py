"""The messages between a pool and its scorer processes: what is sent arrives, and user code cannot forge a reply."""

import json
from dataclasses import replace

import pytest

from rewards.result import CallResult, CallStyle, Claim, SiblingResults
from rewards.sandbox.pool import ScoringPool
from rewards.sandbox.tasks import (
    MAX_REPLY_BYTES,
    CallOne,
    CallSiblings,
    Failed,
    Load,
    Ready,
    Scored,
    Started,
    Unknown,
    Verify,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)


def tasks(make_input):
    item = make_input("\ud800 \n \u2028 思考", meta={"b": [1, None], "a": {"deep": True}})
    return [
        Verify("math", Claim("text", None, ["1", 2.5], {"z": 1, "a": [1]}, 7, "length"), {"format_score": 0.5}),
        Load("file.py:f", {"limit": 3}),
        CallOne("file.py:f", item, {"limit": 3}, index=5, memory_mb=64),
        CallSiblings("file.py:f", [item, item], {}, step=3, max_steps=9, memory_mb=0),
    ]


def test_a_request_arrives_as_it_was_sent(make_input):
    for task in tasks(make_input):
        line = encode_request(4, 2.5, task)
        assert line.count(b"\n") == 1 and line.endswith(b"\n")
        request = decode_request(line)
        assert (request.id, request.seconds, request.task) == (4, 2.5, task)


def test_the_bytes_of_a_task_are_made_once_and_name_no_limit(make_input):
    for task in tasks(make_input):
        assert task.encoded is task.encoded and task.encoded in encode_request(1, 1.0, task)
        assert replace(task, timeout_seconds=9.0, memory_mb=9.0).encoded == task.encoded


@pytest.mark.parametrize(
    "reply",
    [
        Ready(),
        Started(3),
        Scored(3, 0.5),
        Scored(3, None, retire=True),
        Failed(3, "memory", "ran into the limit", "Traceback", retire=True),
    ],
)
def test_a_reply_arrives_as_it_was_sent(reply):
    assert decode_reply(encode_reply(reply).rstrip(b"\n")) == reply


def test_values_arrive_as_their_types(make_input):
    verify, load, one, siblings = tasks(make_input)
    values = [
        (verify, 1.0),
        (verify, None),
        (load, CallStyle(True, 30.0, None)),
        (one, -2.5),
        (siblings, SiblingResults([CallResult(1.0), CallResult(None, "reason", "trace")], {"seen": [1.0, 2.0]})),
    ]
    for task, value in values:
        reply = decode_reply(encode_reply(Scored(1, value)))
        assert isinstance(reply, Scored) and task.read_value(reply.value) == value


def test_a_value_that_cannot_be_sent_is_a_failure_that_says_so():
    odd, long = (decode_reply(encode_reply(Scored(3, value))) for value in (object(), "x" * MAX_REPLY_BYTES))
    assert odd == Failed(3, "error", "the value is not plain JSON data: Object of type object is not JSON serializable")
    assert isinstance(long, Failed) and long.reason.startswith(f"a reply has at most {MAX_REPLY_BYTES} bytes, found ")


@pytest.mark.parametrize("line", ["", "}{", "[1]", "9.0", '"text"', "null", '{"id": 3, "value": NaN}', "[" * 100_000])
def test_what_is_no_json_object_is_no_reply(line):
    with pytest.raises(ValueError, match="sent what is no reply"):
        decode_reply(line.encode())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"value": 1.0},
        {"id": "3", "value": 1.0},
        {"id": 3},
        {"id": 3, "kind": "timeout", "reason": "not its to say"},
        {"id": 3, "kind": ["error"], "reason": "odd"},
        {"id": 3, "kind": "error", "reason": 5},
        {"id": 3, "kind": "error", "reason": "both", "value": 1.0},
    ],
)
def test_an_object_that_is_no_reply_is_told_apart(fields):
    assert decode_reply(json.dumps(fields).encode()) == Unknown()


@pytest.mark.parametrize(
    ("position", "value"),
    [
        *((0, value) for value in ("1.0", True, [1.0], {"value": 1.0}, float("inf"))),
        *((1, value) for value in (1.0, {}, {"one_by_one": 1, "timeout_seconds": None, "memory_mb": None})),
        *((2, value) for value in ("1.0", [1.0], False)),
        *((3, value) for value in (1.0, {"results": [], "metrics": {}}, {"results": [1.0, 1.0], "metrics": {}})),
    ],
)
def test_a_value_that_a_task_cannot_have_is_refused(make_input, position, value):
    with pytest.raises(ValueError, match="expected"):
        tasks(make_input)[position].read_value(value)


def test_a_forged_value_costs_the_process_and_no_other_task(call, tmp_path, functions):
    path = tmp_path / "forger.py"
    forged = 'connection().sendall(json.dumps({"id": request_id(), "value": "much"}).encode() + b"\\n")'
    path.write_text(f"{functions.read_text()}\ndef forge(completion):\n    {forged}\n    hang(completion)\n")
    with ScoringPool(1, 5.0) as pool:
        outcomes = pool.run([replace(call("constant"), function=f"{path}:forge"), call("parse", "2")])
    assert outcomes[0].value is None and outcomes[0].reason == "died: expected a number as value, found 'much'"
    assert outcomes[1].value == 2.0
