"""SIGTERM ends a process within seconds, whatever it is doing."""

import signal
import subprocess
import sys
import time

import pytest

from model.run.interrupt import Terminated
from tests.model.run.counter import Counter, make_run


class TestSigterm:
    def test_outside_of_a_loop_it_ends_at_once_with_its_own_code(self):
        before = signal.getsignal(signal.SIGTERM)
        script = (
            "import os, signal, time\n"
            "from model.run.interrupt import answer_sigterm\n"
            "with answer_sigterm():\n"
            "    try:\n"
            "        os.kill(os.getpid(), signal.SIGTERM)\n"
            "        time.sleep(60)\n"
            "    except Exception:\n"
            "        pass\n"
        )
        done = subprocess.run([sys.executable, "-c", script], timeout=30)
        assert done.returncode == 5 and signal.getsignal(signal.SIGTERM) is before

    @pytest.mark.parametrize(
        "stuck", ["time.sleep(60)", "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM]) or time.sleep(60)"]
    )
    def test_a_loop_that_does_not_answer_is_given_up(self, stuck):
        script = (
            "import os, signal, time\n"
            "from model.run.interrupt import StopSignal\n"
            "with StopSignal(0.5):\n"
            "    os.kill(os.getpid(), signal.SIGTERM)\n"
            f"    {stuck}\n"
        )
        begin = time.monotonic()
        done = subprocess.run([sys.executable, "-c", script], timeout=30)
        assert done.returncode == 5 and time.monotonic() - begin < 10

    def test_what_is_given_up_saves_nothing(self, tmp_path):
        run, engine = make_run(tmp_path), Counter()
        run.restore(engine)
        with pytest.raises(Terminated), run.saved_on_stop(engine, lambda: {"step": 5}):
            raise Terminated
        assert not (tmp_path / "checkpoints").exists()


class TestCtrlC:
    """The first saves and ends, as SIGTERM does; the second ends at once."""

    @staticmethod
    def run(tmp_path, body: str) -> tuple[int, str]:
        script = (
            "import os, signal, sys, time\n"
            "from pathlib import Path\n"
            "from model.run.ends import run_command\n"
            "from tests.model.run.counter import Counter, make_run\n"
            "def interrupt(): os.kill(os.getpid(), signal.SIGINT)\n"
            "def command():\n"
            f"    run, engine = make_run(Path({str(tmp_path)!r})), Counter()\n"
            "    run.restore(engine)\n"
            "    try:\n"
            "        with run.saved_on_stop(engine, lambda: {'step': 1}) as stop:\n"
            + "".join(f"            {line}\n" for line in body.splitlines())
            + "    except KeyboardInterrupt:\n"
            "        return 130\n"
            "    except RuntimeError as error:\n"
            "        print(error)\n"
            "        return error.exit_code\n"
            "    return 0\n"
            "sys.exit(run_command(command))\n"
        )
        done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def test_the_first_saves_when_the_loop_asks(self, tmp_path):
        code, output = self.run(tmp_path, "interrupt()\nprint('the step ends')\nstop.check()")
        assert code == 5 and "the step ends" in output and "Ctrl-C came; the state is saved" in output
        assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]

    def test_the_first_waits_for_what_cannot_be_saved(self, tmp_path):
        code, output = self.run(tmp_path, "with stop.at_once():\n    interrupt()\n    print('whole')\nstop.check()")
        assert code == 5 and "whole" in output and (tmp_path / "checkpoints").exists()

    def test_the_second_ends_at_once_and_saves_nothing(self, tmp_path):
        code, output = self.run(tmp_path, "interrupt()\ninterrupt()\nprint('too late')")
        assert code == 130 and "too late" not in output and not (tmp_path / "checkpoints").exists()

    def test_sigterm_after_it_still_has_its_limit_of_time(self, tmp_path):
        code, output = self.run(
            tmp_path, "stop._seconds = 0.2\ninterrupt()\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(60)"
        )
        assert code == 5 and "SIGTERM came; what was under way is given up" in output

    def test_a_process_that_ignores_it_goes_on(self, tmp_path):
        body = "interrupt()\nstop.check()"
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            assert self.run(tmp_path, body)[0] == 0
        finally:
            signal.signal(signal.SIGINT, before)
