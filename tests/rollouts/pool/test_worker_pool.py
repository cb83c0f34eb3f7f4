"""A pool of processes: the same completions, proven weights, and nothing lost when a process dies, hangs or lies."""

import copy
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
from rollouts.config import Placement, PoolConfig, RolloutConfig, VllmRolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.pool.messages import Done, StartMessage, Updated
from rollouts.pool.processes import ProcessLauncher, ProcessMember
from rollouts.pool.worker_pool import MemberFailed, PoolFailed, WorkerPool
from rollouts.probe import first_difference
from rollouts.rollout import FinishReason, generate
from rollouts.weights.buffer import WeightBuffer, lay_out
from rollouts.weights.sync import fill_worker, sync_weights, tensor_checksum

ONE = RolloutConfig(max_prompt_tokens=96, max_completion_tokens=12, max_rows=64)
CONFIG = dataclasses.replace(ONE, pool=PoolConfig(Placement.process, workers=2))
IMPATIENT = dataclasses.replace(ONE, pool=PoolConfig(Placement.process, workers=2, patience_s=2.0))


@pytest.fixture(scope="module")
def tasks(tiny, digits_folder: Path):
    prompts = PromptSet(digits_folder / "train.jsonl", tiny[1], Mode.think, RolloutConfig())
    return [prompts.build(i) for i in range(7)]


@pytest.fixture(scope="module")
def workers(tiny):
    """For tests that leave every process alive and idle, with the weights of `tiny`."""
    workers = fill_worker(build_worker(*tiny, CONFIG, 7), tiny[0])
    assert isinstance(workers, WorkerPool)
    yield workers
    workers.close()


@pytest.fixture
def own_workers(tiny):
    workers = fill_worker(build_worker(*tiny, copy.deepcopy(IMPATIENT), 7), tiny[0])
    yield workers
    workers.close()


@pytest.fixture
def starting_workers(tiny):
    """Processes that are still loading their libraries."""
    workers = build_worker(*tiny, copy.deepcopy(IMPATIENT), 7)
    yield workers
    workers.close()


def members(workers) -> list[ProcessMember]:
    return [slot.member for slot in workers._slots]


def expected(tiny, requests):
    return generate(fill_worker(EmbeddedWorker(*tiny, ONE, 7), tiny[0]), requests)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_completions_are_those_of_one_embedded_sampler(tiny, tasks, workers):
    requests = [task.request(draw, 4) for draw, task in enumerate(tasks)]
    requests += [task.request(draw, 1, greedy=True) for draw, task in enumerate(tasks)]
    assert generate(workers, requests) == expected(tiny, requests)


def test_weights_arrive_in_every_process_and_tokens_carry_their_version(tiny, tasks, workers):
    other = SailVL2(tiny[0].config)
    other.initialise(9)
    requests = [task.request(draw, 4) for draw, task in enumerate(tasks)]
    before = generate(workers, requests)
    assert sync_weights(workers, 5, other.state_dict().items()) == 5
    alone = fill_worker(EmbeddedWorker(other, tiny[1], ONE, 7), other)
    alone.version = 5
    after = generate(workers, requests)
    assert after == generate(alone, requests)
    assert after != before and {r.policy_versions for group in after for r in group} == {((0, 5),)}
    sync_weights(workers, 0, tiny[0].state_dict().items())
    assert generate(workers, requests) == before


def test_a_tensor_that_differs_or_is_missing_stops_the_sync_by_name(tiny, workers, monkeypatch):
    sender = workers._sender
    put = sender.put
    monkeypatch.setattr(sender, "put", lambda name, t: put(name, t + 1 if name == "mlp1.1.bias" else t))
    with pytest.raises(RuntimeError, match=r"other bytes on the worker for \['mlp1.1.bias'\]"):
        sync_weights(workers, 1, tiny[0].state_dict().items())
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match=r"version 2: tensors never arrived.*language_model.model.norm.weight"):
        workers.load_weights(2, [])
    sync_weights(workers, 0, tiny[0].state_dict().items())


def test_an_aborted_request_is_forgotten_wherever_it_is(tasks, workers):
    queued, given_out, other = (workers.submit(task.request(draw, 4)) for draw, task in enumerate(tasks[:3]))
    workers.abort(queued)
    workers._deal()
    workers.abort(given_out)
    assert [handle for handle, _ in polled(workers)] == [other]
    assert workers.is_idle and workers.poll() == []


def polled(workers) -> list:
    found = []
    while not workers.is_idle:
        found += workers.poll()
    return found


def test_long_prompts_are_refused_before_any_process_sees_them(tasks, tiny):
    workers = build_worker(*tiny, dataclasses.replace(CONFIG, max_prompt_tokens=20), 7)
    with pytest.raises(ValueError, match=r"rollouts.max_prompt_tokens = 20 tokens, found 7\d"):
        workers.submit(tasks[0].request(0, 2))
    workers.close()


def test_killed_hung_and_lying_processes_are_replaced_and_nothing_is_lost_or_doubled(
    tasks, tiny, own_workers, monkeypatch, capsys
):
    """One event of each kind while groups are open, and weights of a later version that the newcomers must get."""
    other = SailVL2(tiny[0].config)
    other.initialise(9)
    sync_weights(own_workers, 3, other.state_dict().items())
    alone = fill_worker(EmbeddedWorker(other, tiny[1], ONE, 7), other)
    alone.version = 3
    requests = [task.request(draw, 4) for draw, task in enumerate(tasks * 3)]
    wanted = generate(alone, requests)

    os.kill(members(own_workers)[1].process.pid, signal.SIGKILL)
    assert generate(own_workers, requests) == wanted
    assert own_workers.num_replaced == 1 and "sampler process 1 is replaced" in capsys.readouterr().err

    os.kill(members(own_workers)[0].process.pid, signal.SIGSTOP)
    assert generate(own_workers, requests) == wanted
    assert own_workers.num_replaced == 2
    assert "no answer within rollouts.pool.patience_s" in capsys.readouterr().err

    answers, lies = ProcessMember.answers, iter([True])

    def lying(member):
        found = answers(member)
        for answer in found:
            if isinstance(answer, Done) and answer.groups and next(lies, False):
                rollout = answer.groups[0][1][0]
                rollout.completion_ids[0] = tiny[1].placeholder_id
        return found

    monkeypatch.setattr(ProcessMember, "answers", lying)
    assert generate(own_workers, requests) == wanted
    error = capsys.readouterr().err
    assert own_workers.num_replaced == 3 and "answered garbage for prompt" in error and "no policy samples" in error
    assert own_workers.num_repeated >= 3


def test_a_process_that_dies_while_it_starts_or_takes_weights_is_replaced(tiny, tasks, starting_workers, capsys):
    """Every newcomer proves the weights of the update in which its forerunner died."""
    requests = [task.request(draw, 2) for draw, task in enumerate(tasks)]
    own_workers = starting_workers
    with pytest.raises(RuntimeError, match="sampling: expected weights"):
        own_workers.submit(requests[0])
    os.kill(members(own_workers)[0].process.pid, signal.SIGKILL)
    fill_worker(own_workers, tiny[0])
    assert generate(own_workers, requests) == expected(tiny, requests)
    other = SailVL2(tiny[0].config)
    other.initialise(9)

    def with_a_kill():
        yield from other.state_dict().items()
        os.kill(members(own_workers)[1].process.pid, signal.SIGKILL)

    proof = own_workers.load_weights(4, with_a_kill())
    assert proof.version == 4 and proof.wrong == []
    assert proof.held == {name: tensor_checksum(tensor) for name, tensor in other.state_dict().items()}
    alone = fill_worker(EmbeddedWorker(other, tiny[1], ONE, 7), other)
    alone.version = 4
    assert generate(own_workers, requests) == generate(alone, requests)
    assert own_workers.num_replaced == 2 and capsys.readouterr().err.count("killed by signal 9") == 2


def test_a_probe_survives_a_process_that_dies_under_it(tasks, own_workers):
    request = tasks[0].request(0, 1)
    generate(own_workers, [task.request(draw, 1) for draw, task in enumerate(tasks)])
    whole = own_workers.probe(request)
    assert [name for name, _ in whole] == ["sampler process 0", "sampler process 1"]
    assert first_difference(whole[0][1], whole[1][1]) == ""
    os.kill(members(own_workers)[1].process.pid, signal.SIGKILL)
    assert [name for name, _ in own_workers.probe(request)] == ["sampler process 0"]
    bad = dataclasses.replace(request, images=[torch.zeros(1, 3, 5, 7)])
    assert own_workers.probe(bad)[0] == ("sampler process 0", {})  # and nobody dies of it
    assert own_workers.num_replaced == 1


@pytest.mark.slow
def test_a_stopped_process_does_not_stop_who_sends_it_much(tasks, own_workers, capsys):
    """Megabytes do not fit into the buffers of a socket: a sender that waits would wait for ever."""
    generate(own_workers, [task.request(draw, 1) for draw, task in enumerate(tasks)])
    stopped = members(own_workers)[0].process.pid
    os.kill(stopped, signal.SIGSTOP)
    large = [dataclasses.replace(tasks[0].request(n, 1), images=[torch.zeros(200, 3, 32, 32)]) for n in range(2)]
    begin = time.monotonic()
    for request in large:
        own_workers.submit(request)
    with pytest.raises(PoolFailed):  # no model takes such images; what matters is that they are looked at
        polled(own_workers)
    assert time.monotonic() - begin < 60 and "no answer within" in capsys.readouterr().err


def test_answers_that_are_no_messages_cost_only_their_process(tasks, tiny, own_workers, monkeypatch, capsys):
    own_workers.config.pool.max_failures = 9  # all five fall into one batch
    requests = [task.request(draw, 4) for draw, task in enumerate(tasks * 20)]
    answers = ProcessMember.answers
    lies = iter([[Done([(0,)], 0)], [Updated("1", {})], [Done(7, 0)], [7], [Done([], 0)]])  # pyright: ignore

    busy = 0

    def lying(member):
        nonlocal busy
        found = answers(member)
        has_groups = any(isinstance(answer, Done) and answer.groups for answer in found)
        busy += has_groups
        is_lie = busy % 2 == 0 and has_groups
        return next(lies, found) if is_lie else found

    monkeypatch.setattr(ProcessMember, "answers", lying)
    assert generate(own_workers, requests) == expected(tiny, requests)
    error = capsys.readouterr().err
    assert error.count("answered garbage") == 4 and error.count(": lost ") == 1
    assert own_workers.num_replaced == 5


def test_a_signal_to_the_whole_job_does_not_end_the_samplers(tasks, own_workers):
    """A launcher that stops a job sends SIGTERM to every process of it; the trainer still finishes its step."""
    assert len(generate(own_workers, [tasks[0].request(0, 4)])) == 1  # they are up
    for member in members(own_workers):
        member.process.terminate()
    assert len(generate(own_workers, [task.request(draw, 4) for draw, task in enumerate(tasks)])) == len(tasks)
    assert own_workers.num_replaced == 0


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
    workers = fill_worker(build_worker(untied, processor, CONFIG, 7), untied)
    try:
        found = generate(workers, requests)
    finally:
        workers.close()
    assert found == generate(fill_worker(EmbeddedWorker(untied, processor, ONE, 7), untied), requests)


def test_what_always_fails_ends_the_run_with_its_traceback(tasks, own_workers):
    """No process can sample this: it is handed to one after the other until one has failed too often."""
    begin = time.monotonic()
    own_workers.submit(dataclasses.replace(tasks[0].request(0, 2), images=[torch.zeros(1, 3, 5, 7)]))
    with pytest.raises(
        PoolFailed,
        match=r"sampler process [01] failed 3 times without completing a group(.|\n)*(ended with exit code 1|closed its connection)(.|\n)*Traceback(.|\n)*embedded.py",
    ):
        polled(own_workers)
    assert time.monotonic() - begin < 60
    pids = [member.process.pid for member in members(own_workers)]
    own_workers.close()
    assert not any(is_running(pid) for pid in pids)


def test_a_process_that_cannot_start_ends_the_run(tiny, tasks, monkeypatch):
    monkeypatch.setattr(ProcessLauncher, "start", lambda self, number: ProcessMember(number, ""))
    impatient = PoolConfig(Placement.process, workers=1, start_s=0.5, max_failures=1)
    workers = build_worker(*tiny, dataclasses.replace(ONE, pool=impatient), 7)
    with pytest.raises(PoolFailed, match=r"process 0 failed 2 times(.|\n)*no answer within rollouts.pool.start_s"):
        fill_worker(workers, tiny[0])
        workers.submit(tasks[0].request(0, 2))
        polled(workers)
    workers.close()


def test_processes_end_when_their_caller_is_gone(own_workers):
    """Only the connection tells them: the caller may have been killed."""
    pids = [member.process.pid for member in members(own_workers)]
    for member in members(own_workers):
        member.channel.close()
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def spoil(rollout, **changes):
    return dataclasses.replace(rollout, **changes)


LIES = {
    "another sample": (lambda r: spoil(r, sample_index=3), "expected samples 0 to 1"),
    "another draw": (lambda r: spoil(r, group_index=99), "it belongs to prompt"),
    "another prompt": (lambda r: spoil(r, prompt_ids=[1, 2]), "its prompt has other ids"),
    "missing log-probs": (lambda r: spoil(r, rollout_logprobs=[]), "as many log-probabilities"),
    "a barred id": (lambda r: spoil(r, completion_ids=[519] * len(r.completion_ids)), "no policy samples"),
    "NaN": (lambda r: spoil(r, rollout_logprobs=[float("nan")] * len(r.completion_ids)), "finite log-prob"),
    "a probability above 1": (lambda r: spoil(r, rollout_logprobs=[0.5] * len(r.completion_ids)), "finite log-prob"),
    "a future version": (lambda r: spoil(r, policy_versions=((0, 7),)), "policy versions up to 0"),
    "no version": (lambda r: spoil(r, policy_versions=()), "runs of policy versions from token 0 on"),
    "versions out of order": (lambda r: spoil(r, policy_versions=((0, 0), (5, 0), (3, 0))), "from token 0 on"),
    "too short": (
        lambda r: spoil(
            r,
            completion_ids=r.completion_ids[:1],
            rollout_logprobs=r.rollout_logprobs[:1],
            completion_mask=[1],
            finish_reason=FinishReason.length,
        ),
        "that reached the limit, found 1",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_every_lie_is_noticed(lie, tiny, tasks, workers):
    request = tasks[0].request(0, 2)
    (honest,) = expected(tiny, [request])
    workers._check(request, honest)
    change, problem = LIES[lie]
    with pytest.raises(MemberFailed, match=problem):
        workers._check(request, [honest[0], change(honest[1])])


def test_samplers_on_gpus_need_one_each_beside_the_trainers(tiny):
    config = VllmRolloutConfig(tensor_parallel=2, pool=PoolConfig(Placement.process, workers=2))
    start = StartMessage(tiny[0].config, tiny[1], config, 0, torch.float32)
    with pytest.raises(ValueError, match=r"rollouts.pool.workers: expected 5 GPUs, 1 for the trainer .* found 4"):
        ProcessLauncher(start, num_gpus=4, is_first_taken=True)
    with pytest.raises(ValueError, match=r"rollouts.pool.workers: expected 4 GPUs, 0 for the trainer .* found 3"):
        ProcessLauncher(start, num_gpus=3)


def test_a_buffer_takes_only_what_it_was_made_for():
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.float64)}
    buffer = WeightBuffer.create(*lay_out(tensors))
    for name, tensor in tensors.items():
        buffer.put(name, tensor)
    other = WeightBuffer(buffer.descriptor, buffer.places, buffer.size)
    buffer.put("a", torch.full((2, 3), 7.0))
    assert other.get("a").tolist() == [[7.0] * 3] * 2 and other.get("b").tolist() == [1.0] * 5
    for name, tensor in {"a": torch.zeros(3, 2), "b": torch.zeros(5), "c": torch.zeros(1)}.items():
        with pytest.raises(ValueError, match=f"weights: {name}: expected .*, found"):
            buffer.put(name, tensor)
