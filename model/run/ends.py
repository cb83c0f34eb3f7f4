"""How every command ends: SIGTERM, Ctrl-C, a full disk and a closed pipe have one exit code each."""

import errno
import os
import select
import sys
from collections.abc import Callable
from typing import TextIO

from model.run.durable import OUT_OF_SPACE, OutOfSpace
from model.run.interrupt import CONTINUES, Terminated, answer_sigterm
from model.run.printable import printable
from model.run.world import World

_USER_ERROR = 2
_INTERRUPTED, _PIPE_CLOSED = 130, 141  # as shells say of programs that SIGINT and SIGPIPE end
_OF_A_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM)


def run_command(command: Callable[[], int]) -> int:
    """The exit code of `command()`; 2 for a path that cannot be used, 5 after SIGTERM, 6 where a disk is full, 130 for
    Ctrl-C that it does not answer itself, 141 where nobody reads stdout any more, as behind `| head`. Other errors are
    the command's own."""
    try:
        with answer_sigterm():
            code = command()
            sys.stdout.flush()  # the interpreter would do so too late for an exit code of ours
            return code
    except Terminated as stop:
        if not World.of_environment().follows:  # torchrun ends the others when one has ended
            print(f"error: {stop}", file=sys.stderr)
        return stop.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        if not _has_lost_its_reader(sys.stdout):
            raise
        _flush_or_drop()
        return _PIPE_CLOSED
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


def exit_code_of(error: object) -> int:
    """The exit code with which a command ends that this error ends; 0 for None."""
    if error is None:
        return 0
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED
    if isinstance(error, BrokenPipeError):
        return _PIPE_CLOSED
    if isinstance(error, OSError) and error.errno in OUT_OF_SPACE:
        return OutOfSpace.exit_code
    own = getattr(error, "exit_code", getattr(error, "code", None))
    if isinstance(own, int):
        return own
    return _USER_ERROR if isinstance(error, ValueError | ModuleNotFoundError) else 1


def _has_lost_its_reader(stream: TextIO) -> bool:
    """Tell whether a stream is a pipe whose other end is closed."""
    poll = select.poll()
    try:
        poll.register(stream, 0)
    except (OSError, ValueError):  # a stream without a file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _flush_or_drop() -> None:
    """Print what waits for it. What the disk does not take is dropped, or the interpreter would fail at it again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
