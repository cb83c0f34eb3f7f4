"""Completions to score, and a file of reward functions that behave and misbehave."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rewards.answers import parse_completion
from rewards.result import Claim, RewardInput
from rewards.sandbox.tasks import CallOne, Verify

FUNCTIONS = """
import ctypes, fractions, json, os, signal, socket, subprocess, sys, time

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

def burn(completion):
    while True:
        pass

def hold_the_interpreter(completion):
    return 0.0 * len(str(7 ** 7 ** 9))

def ignore_signals(completion):
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    hang(completion)

def hang_when_told(completion):
    return hang(completion) if completion.completion == "hang" else float(completion.completion)

def leave(completion):
    os._exit(3)

def quit(completion):
    sys.exit("bye")

def interrupt(completion):
    raise KeyboardInterrupt

def crash(completion):
    ctypes.string_at(0)

def abort(completion):
    os.kill(os.getpid(), signal.SIGABRT)

def fail(completion):
    raise LookupError("no such thing")

def fail_on_seven(completion):
    if completion.answer == "7":
        raise ValueError("seven is not for me")
    return 1.0

def bad_on_seven(completion):
    return None if completion.answer == "7" else 1.0

class Unspeakable(Exception):
    def __repr__(self):
        raise RuntimeError("not me")

def unspeakable(completion):
    raise Unspeakable

def connection():
    for name in os.listdir("/proc/self/fd"):
        try:
            one = socket.socket(fileno=os.dup(int(name)))
            if one.family == socket.AF_UNIX:
                return one
        except OSError:
            pass

def request_id():
    frame = sys._getframe()
    while frame is not None:
        if "request" in frame.f_locals:
            return frame.f_locals["request"].id
        frame = frame.f_back

def say_garbage(completion):
    connection().sendall(b"}{" + completion.completion.encode() + bytes([255, 10]))
    return 1.0

def answer_twice(completion):
    connection().sendall((json.dumps({"id": request_id(), "value": 9.0}) + "\\n").encode() * 2)
    return 1.0

def answer_early(completion):
    connection().sendall((json.dumps({"id": request_id(), "value": 9.0}) + "\\n").encode())
    time.sleep(0.1)
    return 1.0

def flood(completion):
    end = connection()
    while True:
        end.sendall(b"x" * 65536)

def hang_up(completion):
    os.closerange(3, 256)
    hang(completion)

def fork_and_return(completion):
    os.fork()
    return float(completion.completion)

def fork_and_leave(completion):
    if os.fork():
        os._exit(0)
    hang(completion)

def leave_children(completion):
    inner = "import os, time; os.setsid(); time.sleep(600)"
    own = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    strange = subprocess.Popen([sys.executable, "-c", inner])
    with open(completion.completion, "w") as file:
        file.write(f"{own.pid} {strange.pid}")
    time.sleep(0.3)
    hang(completion)

def use_memory(completion):
    return float(len(bytearray(int(completion.completion) << 20)) >> 20)

def swallow_memory_errors(completion):
    try:
        return use_memory(completion)
    except Exception:
        return 0.0

def many_small_objects(completion):
    kept = []
    try:
        while True:
            kept.append(str(len(kept)) * 20)
    except Exception:
        pass
    return 0.0

def patch_verifiers(completion):
    import rewards.mathematics.answer, rewards.verifiers.registry, rewards.sandbox.worker
    rewards.verifiers.registry.verify = rewards.mathematics.answer.verify_symbolic = lambda *_: 1.0
    rewards.sandbox.worker._verify = lambda _: 1.0
    return 1.0

def kill_parent(completion):
    os.kill(os.getppid(), signal.SIGKILL)
    hang(completion)

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


@pytest.fixture(scope="session")
def call(functions, make_input):
    """A task that calls one of the functions on a completion."""

    def make(name: str, completion: str = "x", **changes) -> CallOne:
        return CallOne(f"{functions}:{name}", make_input(completion, **changes))

    return make


@pytest.fixture(scope="session")
def verify():
    """A task that runs a verifier."""

    def make(answer: str | None, reference: str = "3", verifier: str = "math", **options) -> Verify:
        return Verify(verifier, Claim(f"\\boxed{{{answer}}}", answer, reference), options)

    return make
