"""Samplers as Ray actors: the same completions, proven weights, and a killed actor that costs nothing."""

import dataclasses
import os
import signal

import pytest

from model.interface import Mode
from model.sail_vl2 import SailVL2
from rlhf.prompts import PromptSet
from rollouts.build import build_worker
from rollouts.config import Placement, PoolConfig, RolloutConfig, Transfer
from rollouts.embedded import EmbeddedWorker
from rollouts.rollout import generate
from rollouts.weights.sync import fill_worker, sync_weights
from tests.conftest import require_extra
from tests.rollouts.listening import LOOPBACK, descendants, listened_on

ONE = RolloutConfig(max_prompt_tokens=96, max_completion_tokens=12, max_rows=64)
CONFIG = dataclasses.replace(ONE, pool=PoolConfig(Placement.ray, workers=2))


@pytest.fixture(scope="module")
def tasks(tiny, digits_folder):
    prompts = PromptSet(digits_folder / "train.jsonl", tiny[1], Mode.think, RolloutConfig())
    return [prompts.build(i) for i in range(7)]


@pytest.fixture(
    scope="module",
    params=[Transfer.memory, Transfer.broadcast, Transfer.files],
    ids=lambda transfer: transfer.value,
)
def workers(request, tiny, tmp_path_factory):
    require_extra("ray", "ray")
    folder = str(tmp_path_factory.mktemp("weights")) if request.param is Transfer.files else ""
    pool = dataclasses.replace(CONFIG.pool, transfer=request.param, transfer_folder=folder)
    workers = fill_worker(build_worker(*tiny, dataclasses.replace(CONFIG, pool=pool), 7), tiny[0])
    yield workers
    workers.close()


def pid_of(workers, number: int) -> int:
    import ray

    actor = workers._slots[number].member.actor
    return ray.get(actor.__ray_call__.remote(lambda self: os.getpid()), timeout=60)


def test_actors_give_the_completions_of_one_embedded_sampler_through_updates_and_a_kill(tiny, tasks, workers, capsys):
    requests = [task.request(draw, 4) for draw, task in enumerate(tasks)]
    assert generate(workers, requests) == generate(fill_worker(EmbeddedWorker(*tiny, ONE, 7), tiny[0]), requests)
    other = SailVL2(tiny[0].config)
    other.initialise(9)
    assert sync_weights(workers, 5, other.state_dict().items()) == 5
    alone = fill_worker(EmbeddedWorker(other, tiny[1], ONE, 7), other)
    alone.version = 5
    expected = generate(alone, requests)
    assert generate(workers, requests) == expected
    os.kill(pid_of(workers, 1), signal.SIGKILL)
    assert generate(workers, requests) == expected
    assert workers.num_replaced == 1 and "Ray worker 1 is replaced" in capsys.readouterr().err


def test_nothing_is_to_be_reached_from_other_hosts(workers):
    addresses = listened_on(descendants(os.getpid()))
    assert addresses and addresses <= LOOPBACK


def test_a_corrupt_tensor_stops_the_sync_by_name(tiny, workers, monkeypatch):
    put = workers._sender.put
    monkeypatch.setattr(workers._sender, "put", lambda name, t: put(name, t + 1 if name == "mlp1.1.bias" else t))
    with pytest.raises(RuntimeError, match=r"other bytes on the worker for \['mlp1.1.bias'\]"):
        sync_weights(workers, 6, tiny[0].state_dict().items())


def test_a_cluster_that_is_too_small_is_refused_at_once(tiny, workers):
    many = dataclasses.replace(ONE, pool=PoolConfig(Placement.ray, workers=500))
    with pytest.raises(
        ValueError, match=r"500 samplers need {'CPU': 500, 'GPU': 0} of the Ray cluster, found {'CPU': "
    ):
        build_worker(*tiny, many, 7)


def test_a_cluster_on_other_hosts_needs_a_token(tiny, monkeypatch):
    require_extra("ray", "ray")
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    far = dataclasses.replace(ONE, pool=PoolConfig(Placement.ray, workers=2, ray_address="192.0.2.9:6379"))
    with pytest.raises(ValueError, match=r"rollouts.pool.ray_address: 192.0.2.9:6379 may be on other hosts"):
        build_worker(*tiny, far, 7)
