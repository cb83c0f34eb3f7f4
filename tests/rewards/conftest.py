"""Completions to score, and a file of reward functions that behave and misbehave."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rewards.answers import parse_completion
from rewards.result import RewardInput

FUNCTIONS = """
import fractions, os, subprocess, sys, time

import numpy

def constant(completion):
    return 0.25

def length(completion):
    return len(completion.completion)

def parse(completion):
    return float(completion.completion)

def process_id(completion):
    return os.getpid()

def from_meta(completion):
    return completion.meta["points"] + len(completion.images)

def hang(completion):
    while True:
        time.sleep(60)

def hang_when_told(completion):
    return hang(completion) if completion.completion == "hang" else float(completion.completion)

def leave(completion):
    os._exit(3)

def quit(completion):
    sys.exit("bye")

def interrupt(completion):
    raise KeyboardInterrupt

def fail(completion):
    raise LookupError("no such thing")

def fail_on_seven(completion):
    if completion.answer == "7":
        raise ValueError("seven is not for me")
    return 1.0

def chatter(completion):
    print('{"value": 99.0}')
    sys.stdout.write("no newline")
    sys.__stdout__.write("more\\n")
    os.write(1, b'{"value": 98.0}\\n')
    subprocess.run(["echo", '{"value": 97.0}'])
    print("x" * 100_000)
    return 0.5

class Tensor:
    def __float__(self):
        return 1.0

BAD = {
    "nan": float("nan"), "inf": float("inf"), "str": "1.0", "none": None, "bool": True, "numpy_bool": numpy.bool_(True),
    "list": [1.0], "complex": 1 + 0j, "tensor": Tensor(), "array": numpy.ones(1), "huge": 10**400,
}
GOOD = {
    "int": 2, "float": 0.5, "fraction": fractions.Fraction(1, 4), "float32": numpy.float32(0.5), "int64": numpy.int64(-3),
}

def bad(completion):
    return BAD[completion.completion]

def good(completion):
    return GOOD[completion.completion]
"""


@pytest.fixture(scope="session")
def functions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture(scope="session")
def make_input() -> Callable[..., RewardInput]:
    def make(completion: str, reference: str = "7", **changes) -> RewardInput:
        parsed = parse_completion(completion)
        values = {
            "prompt_id": "p",
            "messages": [{"role": "user", "content": "?"}],
            "images": [],
            "reference": reference,
            "completion": completion,
            "thinking": parsed.thinking,
            "answer": parsed.answer,
            "token_ids": [1, 2, 3],
            "finish_reason": "stop",
            "meta": {},
        }
        return RewardInput(**{**values, **changes})

    return make
