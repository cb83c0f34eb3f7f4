"""Worker processes: order, deadlines, deaths, and a protocol that user code cannot break."""

import contextlib
import os
import threading
import time
from dataclasses import asdict

import pytest

from rewards.pool import ScoringPool

DEADLINE = 1.0
# A killed task may take its deadline and the replacement's start; a missed deadline would take the start limit of 60 s.
SOON = 15.0


@pytest.fixture(scope="module")
def pool():
    with contextlib.closing(ScoringPool(1, DEADLINE)) as pool:
        yield pool


@pytest.fixture
def call(functions, make_input):
    """A task that calls one of the functions on a completion."""

    def make(name: str, completion: str = "x", **changes) -> dict:
        item = make_input(completion, **changes)
        return {"kind": "call", "function": f"{functions}:{name}", "input": asdict(item)}

    return make


def is_running(pid: float) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


def test_functions_see_the_input_as_plain_data(pool, call):
    (outcome,) = pool.run([call("from_meta", meta={"points": 4}, images=["a.png", "b.png"])])
    assert outcome.value == 6.0


def test_two_workers_keep_the_order_and_share_the_work(call):
    with contextlib.closing(ScoringPool(2, DEADLINE)) as pool:
        outcomes = pool.run([call("hang_when_told", text) for text in ("hang", "1", "2", "3", "4")])
        assert [outcome.value for outcome in outcomes] == [None, 1.0, 2.0, 3.0, 4.0]
        running = {outcome.value for outcome in pool.run([call("process_id")] * 40)}
        assert len(running) == 2
    assert not any(is_running(pid) for pid in running)


def test_hanging_call_is_killed_at_its_deadline_even_as_the_first_of_a_process(call):
    begin = time.monotonic()
    with contextlib.closing(ScoringPool(1, DEADLINE)) as pool:
        outcomes = pool.run([call("hang"), call("hang"), call("parse", "5")])
    assert [outcome.value for outcome in outcomes] == [None, None, 5.0]
    assert outcomes[0].reason == outcomes[1].reason == "timeout after 1 s"
    assert 2 * DEADLINE <= time.monotonic() - begin < SOON


def test_killed_process_is_gone_and_replaced(pool, call):
    before, hung, after = pool.run([call("process_id"), call("hang"), call("process_id")])
    assert hung.value is None
    assert not is_running(before.value) and is_running(after.value)


def test_imports_of_a_users_file_are_not_the_calls_time(tmp_path, call):
    path = tmp_path / "slow.py"
    path.write_text("import time\ntime.sleep(0.6)\ndef one(completion):\n    return 1.0\n")
    with contextlib.closing(ScoringPool(1, timeout_seconds=0.3)) as pool:
        outcomes = pool.run([{**call("constant"), "function": f"{path}:one"}] * 2)
    assert [outcome.value for outcome in outcomes] == [1.0, 1.0]


def test_death_of_a_process_is_an_outcome(pool, call):
    outcomes = pool.run([call("parse", "1"), call("leave"), call("leave"), call("parse", "2")])
    assert [outcome.value for outcome in outcomes] == [1.0, None, None, 2.0]
    assert outcomes[1].reason == "scoring process died with exit code 3"


def test_exceptions_are_outcomes_with_a_traceback_and_cost_no_process(pool, call):
    tasks = [call(name) for name in ("process_id", "fail", "quit", "interrupt", "process_id")]
    before, failed, left, interrupted, after = pool.run(tasks)
    assert failed.value is left.value is interrupted.value is None
    assert failed.reason == "LookupError('no such thing')"
    assert 'raise LookupError("no such thing")' in failed.traceback and "functions.py" in failed.traceback
    assert left.reason == "SystemExit('bye')" and interrupted.reason == "KeyboardInterrupt()"
    assert before.value == after.value


@pytest.mark.parametrize(
    "name", ["nan", "inf", "str", "none", "bool", "numpy_bool", "list", "complex", "tensor", "array", "huge"]
)
def test_what_is_not_a_finite_number_is_refused(pool, call, name):
    (outcome,) = pool.run([call("bad", name)])
    assert outcome.value is None
    assert "OverflowError" in outcome.reason if name == "huge" else "expected a finite number" in outcome.reason
    assert name == "huge" or "functions.py:bad" in outcome.reason


def test_every_kind_of_real_number_is_taken(pool, call):
    outcomes = pool.run([call("good", name) for name in ("int", "float", "fraction", "float32", "int64")])
    assert [outcome.value for outcome in outcomes] == [2.0, 0.5, 0.25, 0.5, -3.0]


def test_printing_user_code_does_not_corrupt_the_protocol(pool, call, capfd):
    outcomes = pool.run([call("chatter"), call("parse", "1"), call("chatter")])
    assert [outcome.value for outcome in outcomes] == [0.5, 1.0, 0.5]
    printed = capfd.readouterr()
    assert printed.out == ""


@pytest.mark.parametrize(
    "text",
    ["a\nb\r\n\0", "\u2028\u0085", "思考", "\ud800", "x" * 1_000_000],
    ids=["controls", "separators", "wide", "surrogate", "long"],
)
def test_any_text_travels(pool, call, text):
    (outcome,) = pool.run([call("length", text)])
    assert outcome.value == len(text)


def test_works_outside_the_main_thread(pool, call):
    """A deadline by signal would not: Python delivers those to the main thread only."""
    outcomes = []
    tasks = [{"kind": "math", "answer": "\\sqrt{8}", "reference": "2\\sqrt{2}"}, call("hang"), call("parse", "3")]
    thread = threading.Thread(target=lambda: outcomes.extend(pool.run(tasks)))
    thread.start()
    thread.join()
    assert [outcome.value for outcome in outcomes] == [1.0, None, 3.0]


def test_hostile_mathematics_is_killed_and_a_bad_reference_named(pool):
    tower, bad, fine = pool.run(
        [
            {"kind": "math", "answer": "9^{9^{9^9}}", "reference": "3"},
            {"kind": "math", "answer": "3", "reference": "\\frac{1}{"},
            {"kind": "math", "answer": "\\frac{6}{2}", "reference": "3"},
        ]
    )
    assert tower.value is None and tower.reason.startswith("timeout")
    assert bad.value is None and "does not parse as mathematics" in bad.reason
    assert fine.value == 1.0


def test_own_module_in_the_working_directory_does_not_shadow_ours(tmp_path, monkeypatch, make_input):
    (tmp_path / "rewards.py").write_text("def mine(completion):\n    return 0.75\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('shadowed')\n")
    monkeypatch.chdir(tmp_path)
    task = {"kind": "call", "function": "rewards.py:mine", "input": asdict(make_input("x"))}
    with contextlib.closing(ScoringPool(1, DEADLINE)) as pool:
        (outcome,) = pool.run([task])
    assert outcome.value == 0.75
