"""Weights from the trainer to every process of every sampler by one broadcast: NCCL between GPUs, gloo between CPUs. A
group of processes lasts as long as the same samplers do; whoever comes later has the weights by other means.

NCCL is not verified: no GPU ran it yet."""

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor

from rollouts.weights.handles import TensorHandle, WeightsLost
from rollouts.weights.senders import WeightSender

dist: Any = torch.distributed
LOOPBACK = "127.0.0.1"
_GRACE = 1.0  # seconds for a broadcast that everybody has to end here too


@dataclass(frozen=True)
class Rendezvous:
    """Where the processes of a group find each other: whoever can read the file can join."""

    file: str
    address: str  # the trainer's, from which each process learns its own
    num_ranks: int
    seconds: float  # to wait for the others
    on_gpu: bool

    def join(self, rank: int) -> Any:
        """A group apart from torch's default one. With gloo all have joined when it returns, with NCCL when the first
        broadcast is done. `RuntimeError` if that does not come about."""
        if not Path(self.file).parent.is_dir():  # the store would try for five minutes, holding up every thread
            raise RuntimeError(f"{Path(self.file).parent} is not there on this host")
        store = dist.FileStore(self.file, self.num_ranks)
        store.set_timeout(timedelta(seconds=self.seconds))
        if self.on_gpu:
            with _without_watchdog():
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = timedelta(seconds=self.seconds)
                return dist.ProcessGroupNCCL(store, rank, self.num_ranks, options)
        options = dist.ProcessGroupGloo._Options()
        options._timeout = timedelta(seconds=self.seconds)
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=self._own_address())]
        return dist.ProcessGroupGloo(store, rank, self.num_ranks, options)

    def _own_address(self) -> str:
        family, kind, _, _, place = socket.getaddrinfo(self.address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)  # sends nothing
            return probe.getsockname()[0]


_joined: tuple[Rendezvous, Any] | None = None
"""The group in which this process last received."""


@dataclass(frozen=True)
class BroadcastHandle:
    """To be opened by all processes of all samplers at about the same time."""

    rendezvous: Rendezvous
    first_rank: int  # of the sampler's processes
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    seconds: float

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        device = torch.device("cuda", torch.cuda.current_device()) if self.rendezvous.on_gpu else torch.device("cpu")
        try:
            group = _group_of(self.rendezvous, self.first_rank + rank)
            for name, shape in self.shapes.items():
                tensor = torch.empty(shape, dtype=self.dtypes[name], device=device)
                _finish(_broadcast(group, tensor), Event(), self.seconds)
                yield name, tensor.cpu()  # a GPU has no room for all weights twice
        except (RuntimeError, OSError) as error:
            _leave()  # whoever waits for this process is told
            raise WeightsLost(f"weights: their broadcast broke off: {error}") from None


class BroadcastSender:
    """One broadcast to the samplers that run; `other` brings the weights to those that are started later, to those that
    a broadcast did not reach, and to all while an earlier one hangs."""

    def __init__(
        self, other: WeightSender, processes_each: int, seconds: float, on_gpu: bool, address: str, folder: str = ""
    ) -> None:
        """`processes_each`: those of one sampler. `seconds`: that they wait for each other. `address`: of this host, as
        the samplers' hosts reach it. They meet in a file of `folder`, which all see; without one they are on this host.
        """
        self._other, self._each, self._seconds, self._on_gpu = other, processes_each, seconds, on_gpu
        self._address = address
        try:
            if folder:
                Path(folder).mkdir(parents=True, exist_ok=True)
            self._folder = tempfile.mkdtemp(prefix="weights-", dir=folder or None)  # readable by this user alone
        except OSError as error:
            raise ValueError(
                f"rollouts.pool.transfer_folder: expected a folder that can be written, found {folder}: {error}"
            ) from None
        self._num_rendezvous = 0
        self._tensors: dict[str, Tensor] = {}
        self._members: list[Hashable] = []
        self._invited: dict[Hashable, BroadcastHandle] = {}
        self._rendezvous: Rendezvous | None = None
        self._group: Any = None  # of that rendezvous, once it has worked
        self._thread: Thread | None = None
        self._is_under_way = self._is_broken = False
        self._is_over = Event()

    def put(self, name: str, tensor: Tensor) -> None:
        self._other.put(name, tensor)
        self._tensors[name] = tensor.detach()

    def publish(self, samplers: Sequence[Hashable]) -> None:
        self._other.publish(samplers)
        tensors, self._tensors = self._tensors, {}
        self._invited = {}
        if not samplers:
            return
        if self._thread is not None and self._thread.is_alive():
            print("weights: an earlier broadcast still hangs; this update goes the other way", file=sys.stderr)
            return
        is_first = self._group is None or self._rendezvous is None or self._members != list(samplers)
        if is_first:
            self._leave()
            self._members, self._num_rendezvous = list(samplers), self._num_rendezvous + 1
            file = str(Path(self._folder) / str(self._num_rendezvous))
            num_ranks = 1 + self._each * len(samplers)
            self._rendezvous = Rendezvous(file, self._address, num_ranks, self._seconds, self._on_gpu)
            if self._on_gpu:
                self._group = self._rendezvous.join(0)
        assert self._rendezvous is not None
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        for number, sampler in enumerate(samplers):
            first = 1 + number * self._each
            self._invited[sampler] = BroadcastHandle(self._rendezvous, first, shapes, dtypes, self._seconds)
        self._is_under_way, self._is_broken, self._is_over = True, False, Event()
        stream = _side_stream(tensors) if self._on_gpu else None
        work = (self._rendezvous, list(tensors.values()), stream, self._is_over)
        self._thread = Thread(target=self._send, args=work, daemon=True, name="weight broadcast")
        self._thread.start()

    def tensor_handle(self, sampler: Hashable) -> TensorHandle:
        if sampler in self._invited:
            return self._invited.pop(sampler)
        self._is_broken = self._is_under_way  # someone who was to receive has to be helped
        return self._other.tensor_handle(sampler)

    def settle(self) -> None:
        """A broadcast that goes on longer than its update hangs; a group in which one failed is left."""
        if self._is_under_way and self._thread is not None:
            self._thread.join(_GRACE)
            self._is_over.set()
            self._thread.join(_GRACE)
            if self._is_broken and not self._thread.is_alive():
                self._leave()
        self._invited, self._is_under_way = {}, False
        self._other.settle()

    def close(self) -> None:
        self.settle()
        if self._thread is not None:
            self._thread.join(self._seconds + _GRACE)  # a thread of C++ must not outlive the interpreter
        self._leave()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._other.close()

    def _leave(self) -> None:
        if self._group is not None:
            self._group.abort()
        self._group = None

    def _send(self, rendezvous: Rendezvous, tensors: list[Tensor], stream: Any, is_over: Event) -> None:
        group = self._group
        try:
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                group = group or rendezvous.join(0)
                sent = [(tensor if rendezvous.on_gpu else tensor.cpu()).contiguous() for tensor in tensors]
                for work in [_broadcast(group, tensor) for tensor in sent]:
                    _finish(work, is_over, self._seconds)
            self._group = group
        except Exception as error:
            self._group = None
            if group is not None:
                group.abort()
            print(f"weights: a broadcast to {rendezvous.num_ranks - 1} processes broke off: {error}", file=sys.stderr)


def _group_of(rendezvous: Rendezvous, rank: int) -> Any:
    global _joined
    if _joined is None or _joined[0] != rendezvous:
        _leave()
        _joined = rendezvous, rendezvous.join(rank)
    return _joined[1]


def _leave() -> None:
    global _joined
    if _joined is not None:
        _joined[1].abort()
    _joined = None


def _broadcast(group: Any, tensor: Tensor) -> Any:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    return group.broadcast([tensor.view(-1).view(torch.uint8)], options)


def _finish(work: Any, is_over: Event, seconds: float) -> None:
    """Wait for one broadcast, in a way that can be given up: NCCL's own waits cannot."""
    end = time.monotonic() + seconds
    while not work.is_completed():
        if is_over.wait(0.0002) or time.monotonic() > end:
            raise RuntimeError("not all of them took it")
    work.wait()


def _side_stream(tensors: dict[str, Tensor]) -> Any:
    """A broadcast that hangs must not hold up what else the trainer's GPU does."""
    device = next(iter(tensors.values())).device
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))  # which wrote the weights
    return side


@contextmanager
def _without_watchdog() -> Iterator[None]:
    """NCCL's watchdog would end this process for another one that died; `_finish` gives up instead."""
    names = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "TORCH_NCCL_ENABLE_MONITORING")
    before = {name: os.environ.get(name) for name in names}
    os.environ |= dict.fromkeys(names, "0")
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
