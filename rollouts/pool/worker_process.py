"""One sampler in a process of its own: `python -m rollouts.pool.worker_process SOCKET`, by `rollouts.pool.processes`.

It works when it is asked to, and ends when the other side is gone. A message is its length in 8 bytes and a pickle:
both ends are processes of one user on one host.
"""

import os
import pickle
import signal
import socket
import struct
import sys
import traceback
from typing import Any

from model.engine.device import prepare_cpu
from rollouts.pool.session import Session, StartMessage

HEADER = struct.Struct("!Q")


def framed(message: Any) -> bytes:
    payload = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(payload)) + payload


def _receive(channel: socket.socket) -> Any:
    (length,) = HEADER.unpack(_exactly(channel, HEADER.size))
    return pickle.loads(_exactly(channel, length))


def _exactly(channel: socket.socket, count: int) -> bytearray:
    found = bytearray(count)
    view, filled = memoryview(found), 0
    while filled < count:
        more = channel.recv_into(view[filled:])
        if not more:
            raise EOFError
        filled += more
    return found


class _CallerGone(Exception):
    """Nobody is at the other end any more."""


def _ask(channel: socket.socket, answer: Any = None) -> Any:
    """Send an answer, if there is one, and wait for what comes next."""
    try:
        if answer is not None:
            channel.sendall(framed(answer))
        return _receive(channel)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise _CallerGone from None


def serve(channel: socket.socket) -> None:
    """The first message is what to sample with, then each is a list for `Session.answer`."""
    start: StartMessage = _ask(channel)
    session = Session(start.build())
    try:
        answers: list[Any] = []
        while True:
            answers = session.answer(_ask(channel, answers))
    finally:
        session.close()


def main(arguments: list[str]) -> int:
    channel = socket.socket(fileno=int(arguments[0]))
    os.set_inheritable(channel.fileno(), False)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a job's launcher may send it to all: the caller ends this process
    prepare_cpu(num_threads=1)
    try:
        serve(channel)
    except _CallerGone:
        return 0
    except Exception:
        channel.sendall(framed(traceback.format_exc()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
