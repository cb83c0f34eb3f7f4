"""A scoring process, forked by `rewards.sandbox.zygote`: it reads one JSON task per line, and writes `started` and one
JSON reply per line.

Verifiers and user code never share a process, so that user code which patches a verifier changes no verdict.
The parent keeps the time and kills; the worker limits its own memory and, should the parent stall, its CPU time.
"""

import contextlib
import importlib
import json
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from rewards.custom import Malformed, call_one, call_siblings, describe, load_function
from rewards.result import Claim, RewardInput, Unscorable
from rewards.sandbox.limits import Limits
from rewards.sandbox.warm_up import touch_verifiers

VERIFIERS, FUNCTIONS = "verifiers", "functions"
"""Lanes: which processes a task may run in."""

LOAD_SECONDS = 60.0
"""Limit for importing a user's file, apart from the time of the task."""

MAX_REPLY_BYTES = 4 << 20
_MAX_REASON, _MAX_TRACEBACK = 2_000, 20_000
_MAX_TASKS = 10_000  # then a fresh process: caches of sympy and allocations of `Limits` do not grow for ever


def lane_of(task: Mapping[str, Any]) -> str:
    return FUNCTIONS if task.get("kind") in ("load", "call") else VERIFIERS


def run_task(task: Mapping[str, Any]) -> Any:
    """Value of one task; raises what the verifier or the user's function raises."""
    match task.get("kind"):
        case "verify":
            return _verify(task)
        case "load":
            return describe(task["function"], task.get("options"))
        case "call":
            return _call(task)
    raise ValueError(f"task: expected kind verify, load or call, found {task.get('kind')!r}")


def _verify(task: Mapping[str, Any]) -> float | None:
    registry = importlib.import_module("rewards.verifiers.registry")
    if "sympy" in sys.modules:  # simplify tries random numbers: a verdict must not depend on the tasks before
        sys.modules["sympy.core.random"].rng.seed(0)
    return registry.verify(task["verifier"], Claim(**task["claim"]), task.get("options") or {})


def _call(task: Mapping[str, Any]) -> Any:
    options = task.get("options") or {}
    if "input" in task:
        return call_one(task["function"], RewardInput(**task["input"]), options, task.get("index", 0))
    inputs = [RewardInput(**item) for item in task["inputs"]]
    return call_siblings(task["function"], inputs, options, task.get("step", 0), task.get("max_steps", 0))


def serve(connection: socket.socket, lane: str, memory_bytes: int) -> None:
    """Answer tasks until the connection ends or this process should be replaced."""
    if lane == VERIFIERS:
        touch_verifiers()
    limits = Limits(memory_bytes)
    own_pid = os.getpid()
    with connection.makefile("rb") as requests:
        connection.sendall(b'{"ready": true}\n')
        for count, line in enumerate(requests, start=1):
            reply = _answer(json.loads(line), connection, limits)
            if os.getpid() != own_pid:  # a copy that user code forked must not speak for this process
                return
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            if count >= _MAX_TASKS or limits.swollen():
                reply["retire"] = True
            connection.sendall(_encode(reply))
            if reply.get("retire"):
                return


def _answer(request: dict[str, Any], connection: socket.socket, limits: Limits) -> dict[str, Any]:
    task, phase = request["task"], "error"
    reply: dict[str, Any] = {"id": request["id"]}
    try:
        threads = 1
        if lane_of(task) == FUNCTIONS:
            phase, threads = "load", os.cpu_count() or 1
            limits.allow_seconds(LOAD_SECONDS * threads)
            load_function(task["function"])
            connection.sendall(_encode({"id": request["id"], "started": True}))
            phase = "error"
        limits.allow_seconds(request["seconds"] * threads)
        with limits.memory(task.get("memory_mb")):
            reply["value"] = run_task(task)
    except MemoryError:
        return reply | limits.memory_failure()
    except Unscorable as error:
        reply |= _failure("refused", error)
    except Exception as error:
        reply |= _failure(phase, error)
    except BaseException as error:  # SystemExit, KeyboardInterrupt: user code wants this process to end
        reply |= {**_failure(phase, error), "retire": True}
    if limits.ran_out_of_memory():  # and somebody swallowed it: the value means nothing
        reply.pop("value", None)
        reply |= limits.memory_failure()
    return reply


def _failure(kind: str, error: BaseException) -> dict[str, Any]:
    try:
        reason = str(error) if isinstance(error, ValueError | Malformed) else repr(error)
        trace = "" if kind == "refused" else traceback.format_exc()
    except Exception as another:  # an exception whose text cannot be had
        reason, trace = f"{type(error).__name__}, whose text raises {type(another).__name__}", ""
    return {"kind": kind, "reason": reason[:_MAX_REASON], "traceback": trace[-_MAX_TRACEBACK:]}


def _encode(reply: dict[str, Any]) -> bytes:
    try:
        line = json.dumps(reply, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        failure = {"kind": "error", "reason": f"the value is not plain JSON data: {error}"[:_MAX_REASON]}
        return _encode({"id": reply["id"], **failure})
    if len(line) > MAX_REPLY_BYTES:
        failure = {"kind": "error", "reason": f"a reply has at most {MAX_REPLY_BYTES} bytes, found {len(line)}"}
        return _encode({"id": reply["id"], **failure})
    return line
