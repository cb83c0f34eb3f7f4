"""Weights straight from the trainer to every process of every sampler, by one broadcast: NCCL between GPUs, gloo
between CPUs. A group of processes lasts as long as the same samplers do; whoever comes later has the weights by other
means.

NCCL is not verified: no GPU ran it yet."""

import os
import secrets
import socket
import sys
import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor

from rollouts.parcels import Parcel, Shapes
from rollouts.shippers import Shipper

dist: Any = torch.distributed
_LOOPBACK = "127.0.0.1"
_GRACE = 1.0  # seconds for a broadcast that everybody has to end here too


@dataclass(frozen=True)
class Meeting:
    """Where the processes of a group find each other."""

    address: str
    port: int
    secret: str  # names the group: nobody joins who does not know it
    num_ranks: int
    seconds: float  # to wait for the others, at each step
    on_gpu: bool

    def join(self, rank: int, store: Any = None) -> Any:
        """A group of its own, apart from the default one; returns when all have joined."""
        wait = timedelta(seconds=self.seconds)
        store = store or dist.TCPStore(self.address, self.port, is_master=False, timeout=wait)
        store = dist.PrefixStore(self.secret, store)
        if self.on_gpu:
            with _without_watchdog():
                options = dist.ProcessGroupNCCL.Options()
                options._timeout = wait
                return dist.ProcessGroupNCCL(store, rank, self.num_ranks, options)
        options = dist.ProcessGroupGloo._Options()
        options._timeout = wait
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=self._own_address())]
        return dist.ProcessGroupGloo(store, rank, self.num_ranks, options)

    def _own_address(self) -> str:
        """Of this host, as the one that is met knows it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((self.address, self.port))  # sends nothing
            return probe.getsockname()[0]


_groups: dict[Meeting, Any] = {}
"""The group that this process last joined to receive."""


@dataclass(frozen=True)
class BroadcastParcel:
    """To be opened by all processes of all samplers at about the same time."""

    meeting: Meeting
    first_rank: int  # of the sampler's processes
    shapes: Shapes
    dtypes: dict[str, torch.dtype]

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        if self.meeting not in _groups:
            for group in _groups.values():
                group.abort()
            _groups.clear()
            _groups[self.meeting] = self.meeting.join(self.first_rank + rank)
        group = _groups[self.meeting]
        device = torch.device("cuda" if self.meeting.on_gpu else "cpu")
        for name, shape in self.shapes.items():
            tensor = torch.empty(shape, dtype=self.dtypes[name], device=device)
            _broadcast(group, tensor).wait()
            yield name, tensor


class BroadcastShipper:
    """One broadcast to the samplers that run; `other` brings the weights to those that are started later, and to all
    while an earlier broadcast hangs."""

    def __init__(self, other: Shipper, processes_each: int, seconds: float, address: str = _LOOPBACK) -> None:
        """`address` is this host's, as the samplers' hosts reach it; `processes_each` those of one sampler."""
        self._other, self._each, self._seconds, self._address = other, processes_each, seconds, address
        listener = socket.create_server((address, 0))
        self._port = listener.getsockname()[1]
        self._store = dist.TCPStore(
            address, self._port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self._tensors: dict[str, Tensor] = {}
        self._members: list[Hashable] = []
        self._invited: dict[Hashable, BroadcastParcel] = {}
        self._meeting: Meeting | None = None
        self._group: Any = None  # of that meeting
        self._thread: Thread | None = None
        self._is_over = Event()

    def put(self, name: str, tensor: Tensor) -> None:
        self._other.put(name, tensor)
        self._tensors[name] = tensor.detach()

    def publish(self, samplers: Sequence[Hashable]) -> None:
        self._other.publish(samplers)
        tensors, self._tensors = self._tensors, {}
        self._invited = {}
        if not samplers or (self._thread is not None and self._thread.is_alive()):
            return
        on_gpu = all(tensor.is_cuda for tensor in tensors.values())
        if self._group is None or self._members != list(samplers):
            num_ranks = 1 + self._each * len(samplers)
            secret = secrets.token_hex(16)
            self._meeting = Meeting(self._address, self._port, secret, num_ranks, self._seconds, on_gpu)
            self._members = list(samplers)
            self._leave()
        assert self._meeting is not None
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
        for number, sampler in enumerate(samplers):
            self._invited[sampler] = BroadcastParcel(self._meeting, 1 + number * self._each, shapes, dtypes)
        self._is_over = Event()
        self._thread = Thread(target=self._send, args=(self._meeting, tensors, self._is_over), daemon=True)
        self._thread.start()

    def parcel(self, sampler: Hashable) -> Parcel:
        return self._invited.pop(sampler, None) or self._other.parcel(sampler)

    def settle(self) -> None:
        """A broadcast that goes on longer than its update hangs."""
        self._invited = {}
        if self._thread is not None:
            self._thread.join(_GRACE)
            self._is_over.set()
            self._thread.join(_GRACE)
        self._other.settle()

    def close(self) -> None:
        self.settle()
        self._leave()
        self._other.close()

    def _leave(self) -> None:
        if self._group is not None:
            self._group.abort()
        self._group = None

    def _send(self, meeting: Meeting, tensors: dict[str, Tensor], is_over: Event) -> None:
        group = self._group
        try:
            with _side_stream(meeting.on_gpu, tensors):
                if group is None:
                    group = meeting.join(0, self._store)
                sent = [tensor.contiguous() for tensor in tensors.values()]
                for work in [_broadcast(group, tensor) for tensor in sent]:
                    _finish(work, is_over, self._seconds)
            self._group = group
        except Exception as error:
            self._group = None
            if group is not None:
                group.abort()
            print(f"weights: a broadcast to {meeting.num_ranks - 1} processes broke off: {error}", file=sys.stderr)


def _broadcast(group: Any, tensor: Tensor) -> Any:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    return group.broadcast([tensor.view(-1).view(torch.uint8)], options)


def _finish(work: Any, is_over: Event, seconds: float) -> None:
    """Wait for one broadcast, in a way that can be given up: NCCL's own waits cannot."""
    end = time.monotonic() + seconds
    while not work.is_completed():
        if is_over.wait(0.001) or time.monotonic() > end:
            raise RuntimeError("not all of them took it")
    work.wait()


@contextmanager
def _side_stream(on_gpu: bool, tensors: dict[str, Tensor]) -> Iterator[None]:
    """A broadcast that hangs must not hold up what else the trainer's GPU does."""
    if not on_gpu:
        yield
        return
    device = next(iter(tensors.values())).device
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.default_stream(device))  # which wrote the weights
    with torch.cuda.stream(side):
        yield


@contextmanager
def _without_watchdog() -> Iterator[None]:
    """NCCL's watchdog would end the whole process for a peer that died; the pool replaces that peer instead."""
    name = "TORCH_NCCL_ASYNC_ERROR_HANDLING"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
