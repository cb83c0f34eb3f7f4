"""One sampler in a process of its own, started by `rollouts.processes`: `python -m rollouts.worker_process SOCKET`.

It works while its connection stands, and ends when the other side is gone.
"""

import contextlib
import os
import pickle
import signal
import sys
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch

from model.checkpoint import empty_model, fill
from model.config import SailVL2Config
from model.engine.local import use_deterministic_cpu
from model.processor import Processor
from rollouts.config import RolloutConfig
from rollouts.rollout import RolloutWorker
from rollouts.sampler import build_sampler
from rollouts.weight_buffer import Place, WeightBuffer


@dataclass(frozen=True)
class Start:
    """The first message to a process: what it samples with. Weights come by shared memory."""

    model_config: SailVL2Config
    processor: Processor
    config: RolloutConfig
    run_seed: int
    dtype: torch.dtype
    places: dict[str, Place]
    buffer_size: int
    buffer_descriptor: int


def send(connection: "Connection[Any, Any]", message: Any) -> None:
    """By plain pickle: the connection's own `send` would pass tensors by descriptors that only a parent can serve."""
    connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))


def receive(connection: "Connection[Any, Any]") -> Any:
    return pickle.loads(connection.recv_bytes())


def serve(connection: "Connection[Any, Any]") -> None:
    """Messages are (verb, arguments...). Answers: ("done", groups) as they come, ("updated", checksums) in turn."""
    start: Start = receive(connection)
    buffer = WeightBuffer(start.buffer_descriptor, start.places, start.buffer_size)
    model = empty_model(start.model_config, start.dtype)
    fill(model, buffer.items())
    worker = build_sampler(model, start.processor, start.config, start.run_seed, buffer)
    del model
    messages: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
    # Read at once: a caller that waits to be read, while this process waits for it to read, would wait for ever.
    Thread(target=_read, args=(connection, messages), daemon=True).start()
    handles: dict[int, int] = {}  # ours -> the caller's
    while True:
        while worker.is_idle or not messages.empty():
            match messages.get():
                case ("submit", requests):
                    handles |= {worker.submit(request): handle for handle, request in requests}
                case ("abort", handle):
                    for own in [own for own, theirs in handles.items() if theirs == handle]:
                        worker.abort(own)
                        del handles[own]
                case ("update", version, manifest):
                    send(connection, ("updated", _update(worker, buffer, version, manifest)))
                case ("end",):
                    return
        done = [(handles.pop(own), rollouts) for own, rollouts in worker.poll()]
        if done:
            send(connection, ("done", done))


def _read(connection: "Connection[Any, Any]", messages: "SimpleQueue[tuple[Any, ...]]") -> None:
    with contextlib.suppress(EOFError, OSError):  # the caller is gone, or has closed
        while True:
            messages.put(receive(connection))
    messages.put(("end",))


def _update(worker: RolloutWorker, buffer: WeightBuffer, version: int, manifest: dict[str, int]) -> dict[str, int]:
    worker.begin_update(version, manifest)
    for name in manifest:
        worker.load(name, buffer.get(name))
    return worker.finish_update(version)


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
        send(connection, ("failed", traceback.format_exc()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
