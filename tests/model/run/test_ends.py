"""How commands end whose disk is full or whose paths cannot be used."""

import errno
import os

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


def test_other_errors_are_the_commands_own():
    def command() -> int:
        raise OSError(errno.EIO, "broken disk")

    with pytest.raises(OSError, match="broken disk"):
        run_command(command)
