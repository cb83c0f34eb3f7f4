"""Samplers in processes of their own: the same completions, proven weights, and an end that is never silent."""

import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from model.interface import Mode
from model.sail_vl2 import SailVL2
from rlhf.prompts import PromptSet
from rollouts.build import build_worker
from rollouts.config import Placement, RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.processes import ProcessWorkers, SamplerDied
from rollouts.rollout import generate
from rollouts.weight_buffer import WeightBuffer
from rollouts.weight_sync import sync_weights

CONFIG = RolloutConfig(
    max_prompt_tokens=96, max_completion_tokens=12, max_rows=64, placement=Placement.process, workers=2
)
ONE = RolloutConfig(max_prompt_tokens=96, max_completion_tokens=12, max_rows=64)


@pytest.fixture(scope="module")
def tasks(tiny, digits_folder: Path):
    prompts = PromptSet(digits_folder / "train.jsonl", tiny[1], Mode.think, 96)
    return [prompts[i] for i in range(7)]


@pytest.fixture(scope="module")
def workers(tiny):
    """For tests that leave every process alive and idle, with the weights of `tiny`."""
    workers = build_worker(*tiny, CONFIG, 7)
    assert isinstance(workers, ProcessWorkers)
    yield workers
    workers.close()


@pytest.fixture
def own_workers(tiny):
    workers = ProcessWorkers(*tiny, CONFIG, 7)
    yield workers
    workers.close()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_completions_are_those_of_one_embedded_sampler(tiny, tasks, workers):
    requests = [task.request(draw, 4) for draw, task in enumerate(tasks)]
    requests += [task.request(draw, 1, greedy=True) for draw, task in enumerate(tasks)]
    alone = EmbeddedWorker(*tiny, ONE, 7)
    assert generate(workers, requests) == generate(alone, requests)


def test_weights_arrive_in_every_process_and_tokens_carry_their_version(tiny, tasks, workers):
    other = SailVL2(tiny[0].config)
    other.initialise(9)
    requests = [task.request(draw, 4) for draw, task in enumerate(tasks)]
    before = generate(workers, requests)
    assert sync_weights(lambda: (5, other.state_dict()), workers) == 5
    alone = EmbeddedWorker(other, tiny[1], ONE, 7)
    alone.version = 5
    after = generate(workers, requests)
    assert after == generate(alone, requests)
    assert after != before and {r.policy_versions for group in after for r in group} == {((0, 5),)}
    sync_weights(lambda: (0, tiny[0].state_dict()), workers)
    assert generate(workers, requests) == before


def test_a_tensor_that_differs_or_is_missing_stops_the_sync_by_name(tiny, workers, monkeypatch):
    put = workers._buffer.put
    monkeypatch.setattr(workers._buffer, "put", lambda name, t: put(name, t + 1 if name == "mlp1.1.bias" else t))
    with pytest.raises(RuntimeError, match=r"other bytes on the worker for \['mlp1.1.bias'\]"):
        sync_weights(lambda: (1, tiny[0].state_dict()), workers)
    monkeypatch.undo()
    workers.begin_update(2, {"language_model.model.norm.weight": 1})
    with pytest.raises(RuntimeError, match=r"never arrived.*language_model.model.norm.weight"):
        workers.finish_update(2)
    sync_weights(lambda: (0, tiny[0].state_dict()), workers)


def test_an_aborted_request_is_forgotten_wherever_it_is(tasks, workers):
    queued, given_out, other = (workers.submit(task.request(draw, 4)) for draw, task in enumerate(tasks[:3]))
    workers.abort(queued)
    workers._give_out()
    workers.abort(given_out)
    assert [handle for handle, _ in workers.poll()] == [other]
    assert workers.poll() == []
    assert [child.num_open for child in workers._children] == [0, 0]


def test_long_prompts_are_refused_before_any_process_sees_them(tasks, tiny):
    workers = ProcessWorkers(*tiny, dataclasses.replace(CONFIG, max_prompt_tokens=20), 7)
    with pytest.raises(ValueError, match=r"rollouts.max_prompt_tokens = 20 tokens, found 7\d"):
        workers.submit(tasks[0].request(0, 2))
    workers.close()


def test_a_killed_process_ends_the_wait_and_is_named(tasks, own_workers):
    for draw, task in enumerate(tasks):
        own_workers.submit(task.request(draw, 4))
    pids = [child._process.pid for child in own_workers._children]
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(SamplerDied, match=r"sampler process 1 of rollouts.workers ended \(killed by signal 9\)"):
        while True:
            own_workers.poll()
    own_workers.close()
    assert not any(is_running(pid) for pid in pids)


def test_a_signal_to_the_whole_job_does_not_end_the_samplers(tasks, own_workers):
    """A launcher that stops a job sends SIGTERM to every process of it; the trainer still finishes its step."""
    assert len(generate(own_workers, [tasks[0].request(0, 4)])) == 1  # they are up
    for child in own_workers._children:
        child._process.terminate()
    assert len(generate(own_workers, [task.request(draw, 4) for draw, task in enumerate(tasks)])) == len(tasks)


def test_a_model_that_was_untied_on_loading_is_untied_there_too(tiny, tasks):
    """Its processor still says what config.json says."""
    model, processor = tiny
    assert model.config.language.tie_word_embeddings
    config = dataclasses.replace(
        model.config, language=dataclasses.replace(model.config.language, tie_word_embeddings=False)
    )
    untied = SailVL2(config)
    untied.initialise(3)
    requests = [task.request(draw, 4) for draw, task in enumerate(tasks[:2])]
    workers = ProcessWorkers(untied, processor, CONFIG, 7)
    try:
        found = generate(workers, requests)
    finally:
        workers.close()
    assert found == generate(EmbeddedWorker(untied, processor, ONE, 7), requests)


def test_an_error_in_a_process_comes_with_its_traceback(tasks, own_workers):
    bad = dataclasses.replace(tasks[0].request(0, 2), images=[torch.zeros(1, 3, 5, 7)])
    own_workers.submit(bad)
    with pytest.raises(SamplerDied, match=r"sampler process 0 .*exit code 1(.|\n)*Traceback(.|\n)*embedded.py"):
        own_workers.poll()


def test_processes_end_when_their_caller_is_gone(own_workers):
    """Only the connection tells them: the caller may have been killed."""
    pids = [child._process.pid for child in own_workers._children]
    for child in own_workers._children:
        child.connection.close()
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_buffer_takes_only_what_it_was_made_for():
    buffer = WeightBuffer.create({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.float64)})
    other = WeightBuffer(buffer.descriptor, buffer.places, buffer.size)
    buffer.put("a", torch.full((2, 3), 7.0))
    assert other.get("a").tolist() == [[7.0] * 3] * 2 and other.get("b").tolist() == [1.0] * 5
    for name, tensor in {"a": torch.zeros(3, 2), "b": torch.zeros(5), "c": torch.zeros(1)}.items():
        with pytest.raises(ValueError, match=f"weights: {name}: expected .*, found"):
            buffer.put(name, tensor)
