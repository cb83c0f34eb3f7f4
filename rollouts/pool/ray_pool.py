"""Samplers as actors of a Ray cluster, on one host or many. Their weights come through its object store."""

import logging
import os
import warnings
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray
from ray._private import ray_constants
from ray.exceptions import RayError
from torch import Tensor

from rollouts.config import RolloutConfig, VllmRolloutConfig
from rollouts.pool.messages import Answer, Message, StartMessage, Update
from rollouts.pool.processes import worker_environment
from rollouts.pool.session import Session
from rollouts.pool.worker_pool import MemberFailed
from rollouts.sampler import VLLM_ENVIRONMENT
from rollouts.weights.buffer import Place, WeightBuffer, lay_out
from rollouts.weights.senders import MemorySender

_STORE_BYTES = 256 * 2**20
"""Bytes of a local object store beside those for the weights."""

_PASSED_ON = {"OMP_NUM_THREADS", "PYTHONPATH", "HF_HOME", *VLLM_ENVIRONMENT}
"""Environment variables of actors. Ray shows them to everybody who looks at the cluster, so none may be a secret."""


class RayLauncher:
    """Starts samplers as actors; a `WorkerLauncher`.

    It joins the Ray cluster at `rollouts.pool.ray_address`, or starts Ray on this host and stops it at the end.
    """

    def __init__(self, start: StartMessage, weight_bytes: int, num_gpus: int = 0) -> None:
        """Join Ray or start it. Samplers of vLLM get GPUs where the cluster has any.

        `ValueError` for a cluster that lacks what all workers need, and for this host alone if it has `num_gpus`,
        because Ray would hand out the trainer's GPU.
        """
        self._start, self._config = start, start.config
        if isinstance(self._config, VllmRolloutConfig) and num_gpus and not self._config.pool.ray_address:
            raise ValueError(
                "rollouts.pool.placement: expected process for vLLM on the GPUs of one host, found ray without "
                "rollouts.pool.ray_address"
            )
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _join(self._config, weight_bytes)
        has = ray.cluster_resources()
        devices = self._config.tensor_parallel if isinstance(self._config, VllmRolloutConfig) and has.get("GPU") else 0
        workers = self._config.pool.workers
        needs = {"CPU": workers, "GPU": devices * workers}
        if any(has.get(kind, 0) < count for kind, count in needs.items()):
            self.close()
            raise ValueError(
                f"rollouts.pool.workers: {workers} samplers need {needs} of the Ray cluster, found "
                f"{ {kind: int(has.get(kind, 0)) for kind in needs} }; start more nodes first, or ask for fewer"
            )
        self.on_gpu = bool(devices)
        variables = {name: value for name, value in worker_environment().items() if name in _PASSED_ON}
        self._actor = _Sampler.options(
            num_cpus=1,
            num_gpus=devices,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )

    @property
    def address(self) -> str:
        """The address of this host as the cluster's other hosts reach it."""
        own = ray.get_runtime_context().get_node_id()
        return next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == own)

    def start(self, number: int) -> "RayMember":
        actor = self._actor.remote()
        return RayMember(number, actor, actor.start.remote(self._start))

    def wait(self, members: Sequence["RayMember"], seconds: float) -> list["RayMember"]:
        by_reference = {member.reference: member for member in members}
        if not by_reference:
            return []
        ready, _ = ray.wait(list(by_reference), num_returns=1, timeout=seconds)
        others = [reference for reference in by_reference if reference not in ready]
        if ready and others:
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return [by_reference[reference] for reference in ready]

    def close(self) -> None:
        if self._owns_ray:
            ray.shutdown()


class RayMember:
    """The pool's side of one actor."""

    def __init__(self, number: int, actor: Any, reference: ray.ObjectRef) -> None:
        self.name = f"Ray worker {number}"
        self.actor, self.reference = actor, reference

    def call(self, messages: list[Message]) -> None:
        self.reference = self.actor.answer.remote(messages)

    def answers(self) -> list[Answer]:
        try:
            found = ray.get(self.reference)
        except RayError as error:
            raise MemberFailed(str(error).strip()) from None
        if not isinstance(found, list):
            raise MemberFailed(f"answered garbage: {found!r:.200}")
        return found

    def check(self) -> None:
        pass  # the next call tells

    def dismiss(self) -> None:
        pass

    def kill(self) -> None:
        ray.kill(self.actor, no_restart=True)


@ray.remote
class _Sampler:
    """Runs in an actor's process."""

    def start(self, start: StartMessage) -> list[Answer]:
        from model.engine.device import prepare_cpu

        prepare_cpu(num_threads=1)
        self._has_processes = isinstance(start.config, VllmRolloutConfig) and start.config.tensor_parallel > 1
        self._memory: MemorySender | None = None
        self._session = Session.begin(start)
        return []

    def answer(self, messages: list[Message]) -> list[Answer]:
        return self._session.answer([self._openable(message) for message in messages])

    def _openable(self, message: Message) -> Message:
        """Move an update's tensors to shared memory for the processes that a sampler started, which are not Ray's."""
        if not (self._has_processes and isinstance(message, Update)):
            return message
        if not isinstance(message.tensor_handle, ObjectHandle):
            return message
        tensors = dict(message.tensor_handle.open())
        if self._memory is None:
            self._memory = MemorySender(tensors)
        for name, tensor in tensors.items():
            self._memory.put(name, tensor)
        return replace(message, tensor_handle=self._memory.tensor_handle(self))


@dataclass(frozen=True)
class ObjectHandle:
    """Weights in Ray's object store, which brings them to each node once."""

    reference: ray.ObjectRef
    places: Mapping[str, Place]
    seconds: float = 0.0

    def open(self, rank: int = 0) -> Iterator[tuple[str, Tensor]]:
        memory = np.asarray(ray.get(self.reference))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # it is only read
            found = [(name, place.view(memory)) for name, place in self.places.items()]
        return iter(found)


class ObjectSender:
    """Brings weights through Ray's object store. They go there when the first sampler needs them."""

    def __init__(self, template: Mapping[str, Tensor]) -> None:
        self._buffer = WeightBuffer.create(*lay_out(template))
        self.places: Mapping[str, Place] = self._buffer.places
        self._reference: ray.ObjectRef | None = None

    def put(self, name: str, tensor: Tensor) -> None:
        self._reference = None
        self._buffer.put(name, tensor)

    def get(self, name: str) -> Tensor:
        """Return a view of what was put last under this name."""
        return self._buffer.get(name)

    def publish(self, samplers: Sequence[Hashable]) -> None:
        pass

    def tensor_handle(self, sampler: Hashable) -> ObjectHandle:
        self._reference = self._reference or ray.put(self._buffer.copy_bytes())
        return ObjectHandle(self._reference, self._buffer.places)

    def settle(self) -> None:
        pass

    def close(self) -> None:
        self._reference = None
        self._buffer.close()


def _join(config: RolloutConfig, weight_bytes: int) -> None:
    if config.pool.ray_address:
        host = config.pool.ray_address.rpartition(":")[0]
        if host not in ("127.0.0.1", "localhost") and os.environ.get("RAY_AUTH_MODE") != "token":
            raise ValueError(
                f"rollouts.pool.ray_address: {config.pool.ray_address} may be on other hosts, where whoever reaches a "
                "port of the cluster runs code on it: expected RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE in the "
                "environment, as launch/ray_node.sh sets them"
            )
        ray.init(address=config.pool.ray_address, log_to_driver=True, logging_level=logging.ERROR)
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray replaces 127.0.0.1 by the host's own address and then accepts connections from everywhere, unless it believes
    # that this system has no clusters, as Windows has none.
    has_clusters, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        ray.init(
            address="local",
            num_cpus=max(config.pool.workers, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=_STORE_BYTES + 3 * weight_bytes,
            logging_level=logging.ERROR,
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = has_clusters
