"""A scorer process, forked by `rewards.sandbox.zygote`: it reads requests and writes replies, one per line.

Verifiers and user code never share a process, so that user code which patches a verifier changes no verdict.
The parent keeps the time and kills; the process limits its own memory and, should the parent stall, its CPU time.
"""

import contextlib
import importlib
import os
import socket
import sys
import traceback
from contextlib import nullcontext
from dataclasses import replace

from rewards.custom import Malformed, call_one, call_siblings, describe, load_function
from rewards.result import Unscorable
from rewards.sandbox.limits import Limits
from rewards.sandbox.prints import named_prints
from rewards.sandbox.tasks import (
    MAX_REASON,
    VERIFIERS,
    CallOne,
    CallSiblings,
    Failed,
    Load,
    Ready,
    Request,
    Scored,
    Started,
    Task,
    Verify,
    decode_request,
    encode_reply,
)
from rewards.sandbox.warm_up import touch_verifiers

LOAD_SECONDS = 60.0
"""Limit for importing a user's file, apart from the time of the task."""

_MAX_TRACEBACK = 20_000  # characters
_MAX_TASKS = 10_000  # then a fresh process, so that caches of sympy and allocations of `Limits` do not grow for ever


def run_task(task: Task[object]) -> object:
    """Return the value of one task; raises what the verifier or the user's function raises."""
    match task:
        case Verify():
            return _verify(task)
        case Load():
            return describe(task.function, task.options)
        case CallOne():
            return call_one(task.function, task.input, task.options, task.index)
        case CallSiblings():
            return call_siblings(task.function, task.inputs, task.options, task.step, task.max_steps)
    raise TypeError(f"expected one of the tasks above, found {type(task).__name__}")


def _verify(task: Verify) -> float | None:
    registry = importlib.import_module("rewards.verifiers.registry")
    if "sympy" in sys.modules:  # simplify tries random numbers: a verdict must not depend on the tasks before
        sys.modules["sympy.core.random"].rng.seed(0)
    return registry.verify(task.verifier, task.claim, task.options)


def serve(connection: socket.socket, lane: str, memory_bytes: int) -> None:
    """Answer tasks until the connection ends or this process should be replaced."""
    if lane == VERIFIERS:
        touch_verifiers()
    limits = Limits(memory_bytes)
    own_pid = os.getpid()
    with connection.makefile("rb") as requests:
        connection.sendall(encode_reply(Ready()))
        for count, line in enumerate(requests, start=1):
            reply = _answer(decode_request(line), connection, limits)
            if os.getpid() != own_pid:  # a copy that user code forked must not speak for this process
                return
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            if count >= _MAX_TASKS or limits.swollen():
                reply = replace(reply, retire=True)
            connection.sendall(encode_reply(reply))
            if reply.retire:
                return


def _answer(request: Request, connection: socket.socket, limits: Limits) -> Scored | Failed:
    task, phase = request.task, "error"
    try:
        threads = 1
        if isinstance(task, Load | CallOne | CallSiblings):
            phase, threads = "load", os.cpu_count() or 1
            limits.allow_seconds(LOAD_SECONDS * threads)
            with named_prints(task.function):
                load_function(task.function)
            connection.sendall(encode_reply(Started(request.id)))
            phase = "error"
        limits.allow_seconds(request.seconds * threads)
        prints = named_prints(task.function) if isinstance(task, CallOne | CallSiblings) else nullcontext()
        with limits.memory(task.memory_mb), prints:
            value = run_task(task)
        reply = Scored(request.id, value)
    except MemoryError:
        return _out_of_memory(request, limits)
    except Unscorable as error:
        reply = _failure(request, "refused", error)
    except Exception as error:
        reply = _failure(request, phase, error)
    except BaseException as error:  # SystemExit, KeyboardInterrupt: user code wants this process to end
        reply = replace(_failure(request, phase, error), retire=True)
    if limits.ran_out_of_memory():  # and somebody swallowed the exception: the value means nothing
        return _out_of_memory(request, limits)
    return reply


def _out_of_memory(request: Request, limits: Limits) -> Failed:
    return Failed(request.id, "memory", limits.memory_reason(), retire=True)


def _failure(request: Request, kind: str, error: BaseException) -> Failed:
    try:
        reason = str(error) if isinstance(error, ValueError | Malformed) else repr(error)
        trace = "" if kind == "refused" else traceback.format_exc()
    except Exception as another:  # an exception whose text cannot be had
        reason, trace = f"{type(error).__name__}, whose text raises {type(another).__name__}", ""
    return Failed(request.id, kind, reason[:MAX_REASON], trace[-_MAX_TRACEBACK:])
