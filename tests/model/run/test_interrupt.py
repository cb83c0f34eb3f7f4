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
