"""How commands end whose disk is full or whose paths cannot be used."""

import errno
import os
import subprocess
import sys

import pytest

from model.run.ends import run_command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.json"), 6, "no space to write x.json"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), 6, "no space"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), 6, "no space"),
        (
            OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "a" * 300),
            2,
            "File name too long; correct the path",
        ),
        (IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), "ledger.jsonl"), 2, "ledger.jsonl: Is a directory"),
    ],
)
def test_an_error_of_the_disk_or_of_a_path_is_one_line(capsys, error, code, said):
    def command() -> int:
        raise error

    assert run_command(command) == code
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1


def test_a_full_disk_that_does_not_take_what_is_printed_is_one_line():
    script = "import sys; from model.run.ends import run_command; sys.exit(run_command(lambda: print('x') or 0))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", script], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 6 and "no space" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("size", [1, 100_000], ids=["kept until the end", "written at once"])
def test_a_reader_that_has_seen_enough_is_no_error(size):
    script = (
        f"import sys; from model.run.ends import run_command; sys.exit(run_command(lambda: print('x' * {size}) or 0))"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_ctrl_c_that_a_command_does_not_answer_is_one_line(capsys):
    def command() -> int:
        raise KeyboardInterrupt

    assert run_command(command) == 130 and capsys.readouterr().err == "interrupted\n"


def test_a_connection_that_breaks_is_the_commands_own_error():
    def command() -> int:
        raise BrokenPipeError(errno.EPIPE, "a worker is gone")

    with pytest.raises(BrokenPipeError, match="a worker is gone"):
        run_command(command)


def test_other_errors_are_the_commands_own():
    def command() -> int:
        raise OSError(errno.EIO, "broken disk")

    with pytest.raises(OSError, match="broken disk"):
        run_command(command)
