"""Weights from the trainer to every process of every sampler by one broadcast: NCCL between GPUs, gloo between CPUs.

The processes of a group stay together as long as the same samplers do. A sampler that is started later has the weights
by other means. NCCL is not verified: it has not run on a GPU yet.
"""

import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread
from typing import Any, Protocol

import torch
from torch import Tensor

from rollouts.weights.buffer import Place
from rollouts.weights.handles import TensorHandle, WeightsLost
from rollouts.weights.senders import HostSender

dist: Any = torch.distributed  # which classes it has depends on how torch was built
LOOPBACK = "127.0.0.1"
_GRACE = 1.0  # seconds that a broadcast which every receiver has finished may still take to end in the trainer
_PORTION_BYTES = 2**30  # bytes of tensors that are broadcast side by side, and of their copies in a GPU


class Work(Protocol):
    """A broadcast under way."""

    def is_completed(self) -> bool: ...

    def wait(self) -> object: ...


class Group(Protocol):
    """A process group of torch, apart from its default one."""

    def broadcast(self, tensors: list[Tensor], options: object) -> Work: ...

    def abort(self) -> None: ...


@dataclass(frozen=True)
class Rendezvous:
    """Says where the processes of a group find each other. Every process that can read the file can join."""

    file: str
    address: str  # the trainer's address, from which each process learns its own
    num_ranks: int
    seconds: float  # how long a process waits for the others
    on_gpu: bool

    def join(self, rank: int) -> Group:
        """Join the group. With gloo all have joined when it returns, with NCCL when the first broadcast is done.

        `RuntimeError` if the others do not come.
        """
        if not Path(self.file).parent.is_dir():  # the store would try for five minutes and hold up every thread
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


_joined: tuple[Rendezvous, Group] | None = None
"""The group in which this process received last."""


@dataclass(frozen=True)
class BroadcastHandle:
    """A share in a broadcast. All processes of all samplers open theirs at about the same time."""

    rendezvous: Rendezvous
    first_rank: int  # the lowest rank among the sampler's processes
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
            _leave()  # so that processes that wait for this one are told
            raise WeightsLost(f"weights: their broadcast broke off: {error}") from None


class BroadcastSender:
    """Sends one broadcast to the samplers that run.

    `other` holds the weights. It brings them to samplers that are started later, to those that a broadcast did not
    reach, and to all samplers while an earlier broadcast hangs.
    """

    def __init__(
        self,
        other: HostSender,
        processes_each: int,
        seconds: float,
        device: torch.device,
        address: str,
        folder: str = "",
    ) -> None:
        """Choose a place to meet: a file of `folder`, which all processes see. Without it they are all on this host.

        `processes_each` is the number of processes of one sampler, `seconds` how long they wait for each other,
        `device` the device that sends, and `address` this host's address as the samplers' hosts reach it.
        """
        self._other, self._each, self._seconds, self._device = other, processes_each, seconds, device
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
        self._members: list[Hashable] = []
        self._invited: dict[Hashable, BroadcastHandle] = {}
        self._rendezvous: Rendezvous | None = None
        self._group: Group | None = None  # the group of that rendezvous, once a broadcast has worked
        self._thread: Thread | None = None
        self._is_under_way = self._is_broken = False
        self._is_over = Event()

    @property
    def places(self) -> Mapping[str, Place]:
        return self._other.places

    def put(self, name: str, tensor: Tensor) -> None:
        self._other.put(name, tensor)

    def publish(self, samplers: Sequence[Hashable]) -> None:
        self._other.publish(samplers)
        self._invited = {}
        if not samplers:
            return
        if self._thread is not None and self._thread.is_alive():
            print("weights: an earlier broadcast still hangs; this update goes the other way", file=sys.stderr)
            return
        on_gpu = self._device.type == "cuda"
        is_first = self._group is None or self._rendezvous is None or self._members != list(samplers)
        if is_first:
            self._leave()
            self._members, self._num_rendezvous = list(samplers), self._num_rendezvous + 1
            file = str(Path(self._folder) / str(self._num_rendezvous))
            num_ranks = 1 + self._each * len(samplers)
            self._rendezvous = Rendezvous(file, self._address, num_ranks, self._seconds, on_gpu)
            if on_gpu:
                self._group = self._rendezvous.join(0)
        assert self._rendezvous is not None
        shapes = {name: place.shape for name, place in self.places.items()}
        dtypes = {name: place.dtype for name, place in self.places.items()}
        for number, sampler in enumerate(samplers):
            first = 1 + number * self._each
            self._invited[sampler] = BroadcastHandle(self._rendezvous, first, shapes, dtypes, self._seconds)
        self._is_under_way, self._is_broken, self._is_over = True, False, Event()
        # On a stream of its own, so that a broadcast that hangs does not hold up the trainer's other work.
        stream = torch.cuda.Stream(self._device) if on_gpu else None
        work = (self._rendezvous, [self._other.get(name) for name in self.places], stream, self._is_over)
        self._thread = Thread(target=self._send, args=work, daemon=True, name="weight broadcast")
        self._thread.start()

    def tensor_handle(self, sampler: Hashable) -> TensorHandle:
        if sampler in self._invited:
            return self._invited.pop(sampler)
        self._is_broken = self._is_under_way  # a sampler that was to receive the broadcast needs another way
        return self._other.tensor_handle(sampler)

    def settle(self) -> None:
        """End the update. A broadcast that outlasts its update hangs, and a group in which one failed is left."""
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

    def _send(
        self, rendezvous: Rendezvous, tensors: list[Tensor], stream: torch.cuda.Stream | None, is_over: Event
    ) -> None:
        """Broadcast tensors in host memory; on a GPU, through copies of one portion at a time."""
        group = self._group
        try:
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                group = group or rendezvous.join(0)
                for portion in _portions(tensors):
                    sent = [tensor.to(self._device) for tensor in portion]  # makes no copy where the sender is on CPU
                    for work in [_broadcast(group, tensor) for tensor in sent]:
                        _finish(work, is_over, self._seconds)
            self._group = group
        except Exception as error:
            self._group = None
            if group is not None:
                group.abort()
            print(f"weights: a broadcast to {rendezvous.num_ranks - 1} processes broke off: {error}", file=sys.stderr)


def _portions(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Cut a list into pieces of at most `_PORTION_BYTES`, or of one larger tensor."""
    portion: list[Tensor] = []
    num_bytes = 0
    for tensor in tensors:
        if portion and num_bytes + tensor.nbytes > _PORTION_BYTES:
            yield portion
            portion, num_bytes = [], 0
        portion.append(tensor)
        num_bytes += tensor.nbytes
    yield portion


def _group_of(rendezvous: Rendezvous, rank: int) -> Group:
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


def _broadcast(group: Group, tensor: Tensor) -> Work:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    return group.broadcast([tensor.view(-1).view(torch.uint8)], options)


def _finish(work: Work, is_over: Event, seconds: float) -> None:
    """Wait for one broadcast in a way that can be given up. NCCL's own waits cannot."""
    end = time.monotonic() + seconds
    while not work.is_completed():
        if is_over.wait(0.0002) or time.monotonic() > end:
            raise RuntimeError("not all of them took it")
    work.wait()


@contextmanager
def _without_watchdog() -> Iterator[None]:
    """Switch NCCL's watchdog off. It would end this process because another one died; `_finish` gives up instead."""
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
