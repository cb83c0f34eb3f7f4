"""Events of a run, and its report as a process of its own that fails alone."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest

from model.run.config import ReportConfig, RunConfig
from model.run.durable import OutOfSpace
from model.run.ends import exit_code_of
from model.run.folder import RunFolder
from model.run.guidance import IN_PIPELINE
from model.run.interrupt import Interrupted, Terminated
from model.run.shown import presentation
from model.run.shown.history import is_alive, read_history
from tests.model.run.counter import Counter, make_run


@pytest.fixture(autouse=True)
def reports(monkeypatch):
    """Reports are on, as for users, and outside of a pipeline."""
    monkeypatch.delenv(presentation.NO_REPORT, raising=False)
    monkeypatch.delenv(IN_PIPELINE, raising=False)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The reports that are asked for: each is a line of a file, written by a module that stands for rlhf.report."""
    (tmp_path / "stand_in.py").write_text(
        "import os, sys, time\nopen(os.environ['ASKED'], 'a').write(sys.argv[1] + '\\n')\n"
        "time.sleep(float(os.environ.get('TAKES', '0')))\nsys.exit(os.environ.get('FAILS') or 0)\n"
    )
    monkeypatch.setattr(presentation, "_MODULE", "stand_in")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    monkeypatch.delenv("FAILS", raising=False)
    return lambda: (tmp_path / "asked").read_text().splitlines() if (tmp_path / "asked").exists() else []


def run_in(folder, report: ReportConfig | None = None) -> RunFolder:
    return RunFolder(RunConfig(dir=str(folder), trackers=[]), "a: 1\n", report=report or ReportConfig())


def test_a_run_writes_its_report_when_it_is_done(tmp_path, asked):
    with run_in(tmp_path / "it's 1, [2]") as run:
        run.restore(Counter())
        run.log(1, {"loss": 1.0})
        assert not asked()
        run.finish({})
    assert asked() == [rf"run='{tmp_path}/it\'s 1, [2]'"]
    assert [event["event"] for event in read_history(run.folder)] == ["started", "ended"]


def test_reports_during_a_run_come_every_so_many_steps_and_one_at_a_time(tmp_path, asked, monkeypatch):
    monkeypatch.setenv("TAKES", "0.2")
    with run_in(tmp_path / "run", ReportConfig(every=2)) as run:
        run.restore(Counter())
        for step in range(1, 6):
            run.log(step, {"loss": 1.0})
        assert len(asked()) <= 1  # step 2 began it, and step 4 found it unfinished
        run.finish({})
    assert len(asked()) == 2


@pytest.mark.parametrize("why", ["exit code", "nothing that can be started"])
def test_a_report_that_fails_is_said_once_and_the_run_keeps_its_end(tmp_path, asked, monkeypatch, capfd, why):
    if why == "exit code":
        monkeypatch.setenv("FAILS", "no page today")
    else:
        monkeypatch.setattr(sys, "executable", "/no/python")
    with run_in(tmp_path / "run", ReportConfig(every=1)) as run:
        run.restore(Counter())
        run.log(1, {"loss": 1.0})
        run.finish({})
    said = capfd.readouterr().err
    assert said.count("could not be written") == 1 and ("no page today" in said or "/no/python" in said)
    assert (run.folder / "done.json").exists()
    failed = [event for event in read_history(run.folder) if event["event"] == "report_failed"]
    assert len(failed) == 2
    assert [event["exit_code"] for event in read_history(run.folder) if event["event"] == "ended"] == [0]


def test_a_report_that_takes_too_long_is_given_up(tmp_path, asked, monkeypatch, capfd):
    monkeypatch.setenv("TAKES", "60")
    monkeypatch.setattr(presentation, "_PATIENCE_SECONDS", 0.5)
    begin = time.monotonic()
    with run_in(tmp_path / "run") as run:
        run.restore(Counter())
        run.finish({})
    assert time.monotonic() - begin < 20 and "could not be written" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "num_reports"),
    [
        (ArithmeticError("not finite"), 1, 1),
        (Interrupted("SIGTERM came"), 5, 0),
        (Terminated(), 5, 0),
        (OutOfSpace("full"), 6, 0),
        (KeyboardInterrupt(), 130, 0),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_fails_has_a_report_unless_it_must_end_soon(tmp_path, asked, error, code, num_reports):
    with pytest.raises(type(error)), run_in(tmp_path / "run") as run:
        run.restore(Counter())
        run.log(1, {"loss": 1.0})
        raise error
    last = read_history(tmp_path / "run")[-1]
    assert (last["event"], last["exit_code"], len(asked())) == ("ended", code, num_reports)


@pytest.mark.parametrize("kind", ["off", "a stage", "an environment variable", "no config"])
def test_no_report_where_none_is_wanted(tmp_path, asked, monkeypatch, kind):
    if kind == "a stage":
        monkeypatch.setenv(IN_PIPELINE, "1")
    if kind == "an environment variable":
        monkeypatch.setenv(presentation.NO_REPORT, "0")
    run = make_run(tmp_path / "run") if kind == "no config" else run_in(tmp_path / "run", ReportConfig(kind != "off"))
    with run:
        run.restore(Counter())
        run.finish({})
    assert not asked()


def test_a_refused_run_leaves_no_events(tmp_path, asked):
    with pytest.raises(ValueError), run_in(tmp_path / "run") as run:
        run.restore(Counter())
        raise ValueError("bad data")
    assert not (tmp_path / "run").exists() and not asked()


def test_a_restart_adds_to_the_events_and_a_fresh_start_begins_them_anew(tmp_path):
    for _ in range(2):
        with make_run(tmp_path) as run:
            run.restore(Counter())
            run.log(1, {"loss": 1.0})
            run.roll_back(Counter())
    assert [event["event"] for event in read_history(tmp_path)] == ["started", "went_back", "ended"] * 2
    from model.run.config import StartMode

    with make_run(tmp_path, StartMode.fresh) as run:
        run.restore(Counter())
    assert [event["event"] for event in read_history(tmp_path)] == ["started", "ended"]


def test_torn_lines_of_events_are_passed_over(tmp_path):
    good = json.dumps({"time": 1.0, "event": "started"})
    (tmp_path / "events.jsonl").write_text(f'[]\n{{"event": 1, "time": 2}}\n{good}\nnot json\n{{"event": "ended", "ti')
    assert [event["event"] for event in read_history(tmp_path)] == ["started"]
    assert read_history(tmp_path / "nowhere") == []


def test_a_process_is_known_by_its_number_and_its_start():
    me = {"time": time.time(), "event": "started", "host": socket.gethostname(), "pid": os.getpid()}
    assert is_alive(me) is True
    assert is_alive({**me, "time": 1e9}) is False  # the process of that number began later than the line says
    assert is_alive({**me, "host": "elsewhere"}) is None
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert is_alive({**me, "pid": ended.pid}) is False


def test_exit_codes_are_those_that_commands_end_with():
    assert [exit_code_of(error) for error in (None, ValueError(), KeyError(), BrokenPipeError(), OSError(28, ""))] == [
        0,
        2,
        1,
        141,
        6,
    ]
