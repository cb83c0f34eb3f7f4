"""Samplers as actors of a Ray cluster, on this host or many. Weights go through its object store, once to each node."""

import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError
from torch import Tensor

from rollouts.config import RolloutConfig, VllmRolloutConfig
from rollouts.pool import MemberFailed
from rollouts.processes import worker_environment
from rollouts.sampler import VLLM_ENVIRONMENT
from rollouts.session import Message, Session, Start
from rollouts.weight_buffer import Place, WeightBuffer

_STORE_BYTES = 256 * 2**20  # of a local object store beside the weights
_PASSED_ON = {"OMP_NUM_THREADS", "PYTHONPATH", "HF_HOME", *VLLM_ENVIRONMENT}
"""Environment of actors. Ray shows it to whoever looks at the cluster, so no secret may be in it."""


class RayFleet:
    """`Fleet` of actors. Ray is joined at `rollouts.pool.ray_address`, or started on this host and stopped again."""

    def __init__(self, start: Start, weights: dict[str, Tensor], num_gpus: int = 0) -> None:
        """Samplers of vLLM get GPUs where the cluster has any. `ValueError` for a cluster that has not what all workers
        need, and for this host alone with `num_gpus`: Ray would hand out the trainer's."""
        self._start, self._config = start, start.config
        self._buffer = WeightBuffer.create(weights)
        if isinstance(self._config, VllmRolloutConfig) and num_gpus and not self._config.pool.ray_address:
            raise ValueError(
                "rollouts.pool.placement: expected process for vLLM on the GPUs of one host, found ray without "
                "rollouts.pool.ray_address"
            )
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            _join(self._config, self._buffer.size)
        self._weights: Any = None
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
        variables = {name: value for name, value in worker_environment().items() if name in _PASSED_ON}
        self._actor = _Sampler.options(
            num_cpus=1,
            num_gpus=devices,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": variables},
        )
        self.publish()

    def start(self, number: int) -> "RayMember":
        actor = self._actor.remote()
        return RayMember(number, actor, actor.start.remote(self._start, self._buffer.places, self._weights), self)

    def wait(self, members: Sequence["RayMember"], seconds: float) -> list["RayMember"]:
        by_reference = {member.reference: member for member in members}
        if not by_reference:
            return []
        ready, _ = ray.wait(list(by_reference), num_returns=1, timeout=seconds)
        others = [reference for reference in by_reference if reference not in ready]
        if ready and others:
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return [by_reference[reference] for reference in ready]

    def put(self, name: str, tensor: Tensor) -> None:
        self._buffer.put(name, tensor)

    def publish(self) -> None:
        self._weights = ray.put(self._buffer.copy_bytes())

    @property
    def weights(self) -> Any:
        return self._weights

    def close(self) -> None:
        self._weights = None
        self._buffer.close()
        if self._owns_ray:
            ray.shutdown()


class RayMember:
    """The pool's side of one actor."""

    def __init__(self, number: int, actor: Any, reference: Any, fleet: RayFleet) -> None:
        self.name = f"Ray worker {number}"
        self.actor, self.reference, self._fleet = actor, reference, fleet

    def call(self, messages: list[Message]) -> None:
        needs_weights = any(message[0] == "update" for message in messages)
        self.reference = self.actor.answer.remote(messages, self._fleet.weights if needs_weights else None)

    def answers(self) -> list[Message]:
        try:
            found = ray.get(self.reference)
        except RayError as error:
            raise MemberFailed(str(error).strip()) from None
        if not isinstance(found, list):
            raise MemberFailed(f"answered garbage: {found!r:.200}")
        return found

    def dismiss(self) -> None:
        pass

    def kill(self) -> None:
        ray.kill(self.actor, no_restart=True)


@ray.remote
class _Sampler:
    """What runs in an actor's process."""

    def start(self, start: Start, places: dict[str, Place], memory: np.ndarray) -> list[Message]:
        from model.engine.local import use_deterministic_cpu

        use_deterministic_cpu(num_threads=1)
        self._places = places
        self._session = Session(start.build(_views(memory, places)))
        return []

    def answer(self, messages: list[Message], memory: np.ndarray | None) -> list[Message]:
        return self._session.answer(messages, lambda: _views(memory, self._places))


def _views(memory: np.ndarray | None, places: Mapping[str, Place]) -> dict[str, Tensor]:
    assert memory is not None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # and is only read
        return {
            name: torch.frombuffer(
                memory, dtype=place.dtype, count=torch.Size(place.shape).numel(), offset=place.offset
            ).view(place.shape)
            for name, place in places.items()
        }


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
    ray.init(
        address="local",
        num_cpus=max(config.pool.workers, os.cpu_count() or 1),
        include_dashboard=False,
        object_store_memory=_STORE_BYTES + 3 * weight_bytes,
        _node_ip_address="127.0.0.1",
        logging_level=logging.ERROR,
    )
