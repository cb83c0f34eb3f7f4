"""One sampler in a process of its own. `rollouts.pool.processes` starts it.

`python -m rollouts.pool.worker_process SOCKET` works when it is asked to, and ends when the other side is gone. What
goes over the socket is a length in 8 bytes and a pickle, because both ends are processes of one user on one host.
"""

import os
import pickle
import signal
import socket
import struct
import sys
import traceback

from model.engine.device import prepare_cpu
from model.run.parent import wake_with_parent
from rollouts.pool.messages import Answer, Failed, Message, StartMessage
from rollouts.pool.session import Session

HEADER = struct.Struct("!Q")


def framed(content: StartMessage | list[Message] | list[Answer] | Failed) -> bytes:
    payload = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
    return HEADER.pack(len(payload)) + payload


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


def _receive(channel: socket.socket) -> bytearray:
    """Wait for the next pickle."""
    try:
        (length,) = HEADER.unpack(_exactly(channel, HEADER.size))
        return _exactly(channel, length)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise _CallerGone from None


def _send(channel: socket.socket, answers: list[Answer]) -> None:
    try:
        channel.sendall(framed(answers))
    except (BrokenPipeError, ConnectionResetError):
        raise _CallerGone from None


def serve(channel: socket.socket) -> None:
    """Sample as the first message says, and answer every list of messages after it."""
    start: StartMessage = pickle.loads(_receive(channel))
    session = Session.begin(start)
    try:
        _send(channel, [])  # tells that the sampler is up
        while True:
            _send(channel, session.answer(pickle.loads(_receive(channel))))
    finally:
        session.close()


def main(arguments: list[str]) -> int:
    channel = socket.socket(fileno=int(arguments[0]))
    os.set_inheritable(channel.fileno(), False)
    # A job's launcher may send it to all processes; the caller ends this one.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wake_with_parent()
    prepare_cpu(num_threads=1)
    try:
        serve(channel)
    except _CallerGone:
        os.killpg(0, signal.SIGCONT)  # wakes those of vLLM's processes that were stopped, so that they end too
        return 0
    except Exception:
        channel.sendall(framed(Failed(traceback.format_exc())))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
