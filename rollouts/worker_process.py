"""One sampler in a process of its own, started by `rollouts.processes`: `python -m rollouts.worker_process SOCKET`.

It works when it is asked to, and ends when the other side is gone.
"""

import os
import pickle
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from model.engine.local import use_deterministic_cpu
from rollouts.session import Session, Start
from rollouts.weight_buffer import Place, WeightBuffer


def send(connection: "Connection[Any, Any]", message: Any) -> None:
    """By plain pickle: the connection's own `send` would pass tensors by descriptors that only a parent can serve."""
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(connection: "Connection[Any, Any]") -> Any:
    return pickle.loads(connection.recv_bytes())


def serve(connection: "Connection[Any, Any]") -> None:
    """The first message is what to sample with, then each is a list for `Session.answer`."""
    start: Start
    places: dict[str, Place]
    start, places, size, descriptor = receive(connection)
    buffer = WeightBuffer(descriptor, places, size)
    session = Session(start.build(dict(buffer.items()), buffer))
    try:
        send(connection, [])
        while True:
            send(connection, session.answer(receive(connection), lambda: dict(buffer.items())))
    finally:
        session.close()


def main(arguments: list[str]) -> int:
    connection: Connection[Any, Any] = Connection(int(arguments[0]))
    os.set_inheritable(connection.fileno(), False)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a job's launcher may send it to all: the caller ends this process
    use_deterministic_cpu(num_threads=1)
    try:
        serve(connection)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the caller is gone
        return 0
    except Exception:
        send(connection, traceback.format_exc())
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
