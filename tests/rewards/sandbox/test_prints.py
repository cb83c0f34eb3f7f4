"""Prints of reward functions: named, and few."""

import io
import sys

from rewards.sandbox.prints import MOST_CHARACTERS, MOST_LINES, NamedLines, named_prints


def test_each_line_has_the_name_in_front_and_control_characters_are_shown():
    out = io.StringIO()
    lines = NamedLines("fn", out)
    print("a\x1b[2J\nb", end="", file=lines)
    assert out.getvalue() == "[fn] a\\x1b[2J\n"
    lines.end_line()
    assert out.getvalue().endswith("[fn] b\n")


def test_long_lines_are_cut_and_many_lines_end():
    out = io.StringIO()
    lines = NamedLines("fn", out)
    for _ in range(1000):
        print("x" * 10_000, file=lines)
    found = out.getvalue().splitlines()
    assert len(found) == MOST_LINES + 1
    assert found[0] == f"[fn] {'x' * MOST_CHARACTERS}..."
    assert found[-1] == f"[fn] prints more than {MOST_LINES} lines; this process shows no more of them"


def test_libraries_find_a_file_and_its_encoding(tmp_path):
    with (tmp_path / "out").open("w", encoding="utf-8") as out:
        lines = NamedLines("fn", out)  # pyright: ignore[reportArgumentType]
        assert (lines.fileno(), lines.encoding) == (out.fileno(), "utf-8")
    assert NamedLines("fn", io.StringIO()).encoding == "utf-8"


def test_both_streams_are_named_in_the_block_alone(capsys):
    with named_prints("my_rewards.py:test_name_of_its_own"):
        print("out")
        print("err", file=sys.stderr)
    print("after", file=sys.stderr)
    found = capsys.readouterr()
    assert found.out == "" and found.err == "[test_name_of_its_own] out\n[test_name_of_its_own] err\nafter\n"
