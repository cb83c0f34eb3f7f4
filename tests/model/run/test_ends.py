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


def test_other_errors_are_the_commands_own():
    def command() -> int:
        raise OSError(errno.EIO, "broken disk")

    with pytest.raises(OSError, match="broken disk"):
        run_command(command)
