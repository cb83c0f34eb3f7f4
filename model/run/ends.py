"""How every command ends: SIGTERM and a full disk have one exit code and one message each."""

import sys
from collections.abc import Callable

from model.run.durable import OUT_OF_SPACE, OutOfSpace
from model.run.interrupt import CONTINUES, Terminated, answer_sigterm


def run_command(command: Callable[[], int]) -> int:
    """The exit code of `command()`; 5 after SIGTERM, 6 where a disk is full. Other errors are the command's own."""
    try:
        with answer_sigterm():
            return command()
    except Terminated as stop:
        print(f"error: {stop}", file=sys.stderr)
        return stop.code
    except OSError as error:
        if error.errno not in OUT_OF_SPACE:
            raise
        where = f" to write {error.filename}" if error.filename else ""
        print(f"error: no space{where} ({error.strerror}); free space, and {CONTINUES}", file=sys.stderr)
        return OutOfSpace.exit_code
