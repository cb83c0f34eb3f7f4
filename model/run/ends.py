"""How every command ends: SIGTERM and a full disk have one exit code and one message each."""

import errno
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from model.run.durable import OUT_OF_SPACE, OutOfSpace
from model.run.interrupt import CONTINUES, Terminated, answer_sigterm
from model.run.printable import printable

_USER_ERROR = 2
_OF_A_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM)


def run_command(command: Callable[[], int]) -> int:
    """The exit code of `command()`; 2 for a path that cannot be used, 5 after SIGTERM, 6 where a disk is full. Other
    errors are the command's own."""
    try:
        with answer_sigterm():
            code = command()
            with suppress(BrokenPipeError):
                sys.stdout.flush()  # the interpreter would do so too late for an exit code of ours
            return code
    except Terminated as stop:
        print(f"error: {stop}", file=sys.stderr)
        return stop.code
    except OSError as error:
        no_scratch = "No usable temporary directory" in str(error)  # how tempfile says that all disks are full
        if error.errno in _OF_A_PATH and not no_scratch:
            print(f"error: {printable(str(error.filename))}: {error.strerror}; correct the path", file=sys.stderr)
            return _USER_ERROR
        if error.errno not in OUT_OF_SPACE and not no_scratch:
            raise
        _flush_or_drop()
        where = f" to write {error.filename}" if error.filename else ""
        print(f"error: no space{where} ({error.strerror}); free space, and {CONTINUES}", file=sys.stderr)
        return OutOfSpace.exit_code


def _flush_or_drop() -> None:
    """Print what waits for it. What the disk does not take is dropped, or the interpreter would fail at it again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
