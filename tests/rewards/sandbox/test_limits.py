"""The limits that a scorer process puts on itself."""

import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_the_memory_probe_reports_every_way_to_fail_and_then_is_silent():
    """In a process of its own: the limits stay."""
    source = """
        from rewards.sandbox.limits import Limits
        limits = Limits(64 << 20)
        def swallow(action):
            with limits.memory():
                try:
                    action()
                except Exception:
                    pass
            return limits.ran_out_of_memory()
        def explicit():
            raise MemoryError
        def nested():
            try:
                bytearray(1 << 30)
            except Exception:
                raise ValueError("another")
        bombs = [lambda: bytearray(1 << 30), lambda: 1 << (1 << 40), lambda: [0] * (1 << 40), explicit, nested]
        for bomb in bombs * 3:
            assert swallow(bomb)
            assert not swallow(lambda: bytearray(1 << 20))
            assert not swallow(lambda: 1 / 0)
        print("all")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (done.stdout, done.returncode) == ("all\n", 0), done.stderr
