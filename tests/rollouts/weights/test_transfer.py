"""Weights on their way to samplers of a pool: files and broadcasts bring what shared memory brings, to those that run
and to those that come later, and a way that fails costs no completion."""

import dataclasses
import os
import signal
import time
from pathlib import Path
from threading import Thread

import pytest
import torch

from model.interface import Mode
from model.sail_vl2 import SailVL2
from rlhf.prompts import PromptSet
from rollouts.build import build_worker
from rollouts.config import Placement, PoolConfig, RolloutConfig, Transfer
from rollouts.embedded import EmbeddedWorker
from rollouts.pool.messages import Missed, Updated
from rollouts.pool.processes import ProcessMember
from rollouts.pool.worker_pool import WorkerPool
from rollouts.rollout import generate
from rollouts.weights.broadcast import BroadcastHandle, BroadcastSender, Rendezvous
from rollouts.weights.buffer import lay_out
from rollouts.weights.handles import IpcHandle, MappedHandle, TensorHandle, WeightsLost
from rollouts.weights.senders import DirectSender, FileSender, MemorySender
from rollouts.weights.sync import fill_worker, send, sync_weights, tensor_checksum
from tests.rollouts.listening import LOOPBACK, listened_on

ONE = RolloutConfig(max_prompt_tokens=96, max_completion_tokens=12, max_rows=64)
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(5, dtype=torch.int64), "c": torch.ones(3).bfloat16()}


@pytest.fixture(scope="module")
def tasks(tiny, digits_folder: Path):
    prompts = PromptSet(digits_folder / "train.jsonl", tiny[1], Mode.think, RolloutConfig())
    return [prompts.build(i) for i in range(4)]


@pytest.fixture(params=[Transfer.files, Transfer.broadcast], ids=lambda transfer: transfer.value)
def workers(request, tiny, tmp_path):
    folder = str(tmp_path / "weights") if request.param is Transfer.files else ""
    pool = PoolConfig(Placement.process, workers=2, transfer=request.param, transfer_folder=folder)
    workers = fill_worker(build_worker(*tiny, dataclasses.replace(ONE, pool=pool), 7), tiny[0])
    assert isinstance(workers, WorkerPool)
    yield workers
    workers.close()
    assert not list(tmp_path.glob("weights/*"))


def with_a_kill(model: SailVL2, pid: int):
    """The model's tensors; the process dies once the last was put."""
    yield from model.state_dict().items()
    os.kill(pid, signal.SIGKILL)


def completions_of(model: SailVL2, processor, version: int, requests):
    alone = fill_worker(EmbeddedWorker(model, processor, ONE, 7), model)
    alone.version = version
    return generate(alone, requests)


def test_every_update_arrives_before_and_after_a_sampler_is_lost(tiny, tasks, workers, capsys):
    """Killed at work, and killed when an update is on its way to it."""
    requests = [task.request(draw, 4) for draw, task in enumerate(tasks)]
    assert generate(workers, requests) == completions_of(*tiny, 0, requests)
    model = SailVL2(tiny[0].config)
    for version in range(1, 6):
        model.initialise(version)
        if version < 4:
            sync_weights(workers, version, model.state_dict().items())
        else:  # one is lost with the update
            workers.config.pool.patience_s = 2.0
            proof = workers.load_weights(version, with_a_kill(model, workers._slots[version % 2].member.process.pid))
            assert proof.version == version and proof.wrong == []
            assert proof.held == {name: tensor_checksum(t) for name, t in model.state_dict().items()}
        assert generate(workers, requests) == completions_of(model, tiny[1], version, requests)
        if version == 2:
            os.kill(workers._slots[0].member.process.pid, signal.SIGKILL)
            assert generate(workers, requests) == completions_of(model, tiny[1], version, requests)
    assert workers.num_replaced == 3 and capsys.readouterr().err.count("killed by signal 9") == 3


def test_a_tensor_with_other_bytes_stops_the_sync_by_name(tiny, workers, monkeypatch):
    put = workers._sender.put
    monkeypatch.setattr(workers._sender, "put", lambda name, t: put(name, t + 1 if name == "mlp1.1.bias" else t))
    with pytest.raises(RuntimeError, match=r"version 1: other bytes on the worker for \['mlp1.1.bias'\]"):
        sync_weights(workers, 1, tiny[0].state_dict().items())
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"weights: mlp1.1.bias: expected \[\d+\] torch.float32, found \[3\]"):
        workers.load_weights(2, [("mlp1.1.bias", torch.zeros(3))])


def test_files_are_there_once_and_say_when_they_are_not(tmp_path):
    folder = tmp_path / "new" / "folder"
    sender = FileSender(TENSORS, folder)
    send(sender, 0, TENSORS.items())
    sender.publish([])
    first = sender.tensor_handle(None)
    assert {name: tensor.tolist() for name, tensor in first.open()} == {n: t.tolist() for n, t in TENSORS.items()}
    assert len(list(folder.iterdir())) == 1
    for name, tensor in TENSORS.items():
        sender.put(name, tensor + 1)
    assert dict(first.open())["b"] == 5  # until the next is published
    sender.publish([])
    second = sender.tensor_handle(None)
    assert dict(second.open())["b"] == 6 and [str(file) for file in folder.iterdir()] == [second.path]
    with pytest.raises(RuntimeError, match=f"weights: {first.path} cannot be read in this process: .*No such file"):
        first.open()
    os.truncate(second.path, 8)
    with pytest.raises(RuntimeError, match=f"weights: {second.path} cannot be read in this process: mmap length"):
        second.open()
    sender.close()
    assert not list(folder.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_at_the_start(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ValueError, match=r"rollouts.pool.transfer_folder: expected a folder with room .* found /"):
        FileSender(TENSORS, file / "below")


def receive(tensor_handle: BroadcastHandle, found: dict) -> None:
    for name, tensor in tensor_handle.open():
        found[name] = tensor.clone()


def broadcasting(seconds: float) -> BroadcastSender:
    return BroadcastSender(MemorySender(TENSORS), 1, seconds, torch.device("cpu"), address="127.0.0.1")


def sent(sender: BroadcastSender, number: int) -> TensorHandle:
    """What one sampler is given of an update."""
    send(sender, number, ((name, tensor + number) for name, tensor in TENSORS.items()))
    sender.publish(["sampler"])
    return sender.tensor_handle("sampler")


def invitation(sender: BroadcastSender, number: int) -> BroadcastHandle:
    tensor_handle = sent(sender, number)
    assert isinstance(tensor_handle, BroadcastHandle)
    return tensor_handle


def test_a_broadcast_that_hangs_leaves_samplers_the_other_way(capsys):
    """The one that was invited never comes: who is told next gets shared memory, and later all meet again."""
    sender = broadcasting(seconds=3.0)
    assert isinstance(sender.tensor_handle("early"), MappedHandle)
    for number, kind in enumerate((BroadcastHandle, MappedHandle)):
        assert isinstance(sent(sender, number), kind)
        begin = time.monotonic()
        sender.settle()
        assert kind is BroadcastHandle or time.monotonic() - begin < 0.5
    assert dict(sender.tensor_handle("sampler").open())["b"] == 6
    assert "an earlier broadcast still hangs" in capsys.readouterr().err
    assert sender._thread is not None
    sender._thread.join(20)
    assert "a broadcast to 1 processes broke off" in capsys.readouterr().err
    rendezvous = set()
    for number in (2, 3, 4):
        tensor_handle = invitation(sender, number)
        found: dict[str, torch.Tensor] = {}
        thread = Thread(target=receive, args=(tensor_handle, found))
        thread.start()
        thread.join(20)
        if number == 3:  # it did not help: the next time they meet anew
            assert isinstance(sender.tensor_handle("sampler"), MappedHandle)
        sender.settle()
        rendezvous.add(tensor_handle.rendezvous.file)
        assert all(found[name].equal(tensor + number) for name, tensor in TENSORS.items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in TENSORS.items())
    assert len(rendezvous) == 2
    sender.close()


def test_a_sampler_whose_broadcast_breaks_off_says_so():
    """Nobody sends: it is as it was, and can be sent the weights another way."""
    sender = broadcasting(seconds=1.0)
    tensor_handle = invitation(sender, 0)
    alone = dataclasses.replace(
        tensor_handle,
        rendezvous=dataclasses.replace(tensor_handle.rendezvous, file=tensor_handle.rendezvous.file + ".other"),
    )
    with pytest.raises(WeightsLost, match="weights: their broadcast broke off"):
        list(alone.open())
    sender.close()


def test_only_this_user_on_this_host_can_join():
    sender = broadcasting(seconds=1.0)
    tensor_handle = invitation(sender, 0)
    folder = Path(tensor_handle.rendezvous.file).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    receive(tensor_handle, {})
    assert listened_on({os.getpid()}) and listened_on({os.getpid()}) <= LOOPBACK
    sender.settle()
    sender.close()
    assert not folder.exists()


def test_handles_open_the_same_memory_once():
    """What is CUDA's own is not run here; the memory is laid out and cut as on a GPU."""
    places, size = lay_out(TENSORS)
    memory, openings = torch.empty(size, dtype=torch.uint8), []

    def rebuild(number: int) -> torch.Tensor:
        openings.append(number)
        return memory

    for name, tensor in TENSORS.items():
        places[name].cut(memory).copy_(tensor)
    tensor_handle = IpcHandle(rebuild, (7,), places)
    for _ in range(2):
        assert {name: tensor.tolist() for name, tensor in tensor_handle.open()} == {
            n: t.tolist() for n, t in TENSORS.items()
        }
    assert openings == [7]


def test_tensors_that_are_handed_over_have_to_fit():
    sender = DirectSender(TENSORS)
    with pytest.raises(ValueError, match=r"weights: a: expected \[2, 3\] torch.float32, found \[2, 3\] torch.bfloat16"):
        send(sender, 1, [("a", TENSORS["a"].bfloat16())])
    with pytest.raises(ValueError, match="weights: z: expected no tensor of this name"):
        send(sender, 1, [("z", TENSORS["a"])])


@pytest.mark.slow
def test_one_that_died_while_it_was_idle_costs_the_others_nothing(tiny, tasks):
    """And one that hangs costs them the wait, not their lives."""
    pool = PoolConfig(Placement.process, workers=3, transfer=Transfer.broadcast, patience_s=2.0)
    workers = fill_worker(build_worker(*tiny, dataclasses.replace(ONE, pool=pool), 7), tiny[0])
    assert isinstance(workers, WorkerPool)
    requests = [task.request(draw, 2) for draw, task in enumerate(tasks)]
    try:
        expected = generate(workers, requests)
        pids = [slot.member.process.pid for slot in workers._slots]
        for version, (number, kind) in enumerate([(0, signal.SIGKILL), (1, signal.SIGSTOP)], 1):
            os.kill(pids[number], kind)
            if kind is signal.SIGKILL:
                os.waitid(os.P_PID, pids[number], os.WEXITED | os.WNOWAIT)
            sync_weights(workers, version, tiny[0].state_dict().items())
            assert workers.num_replaced == version
        assert [[r.completion_ids for r in group] for group in generate(workers, requests)] == [
            [r.completion_ids for r in group] for group in expected
        ]
        assert workers._slots[2].member.process.pid == pids[2]
    finally:
        workers.close()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transfer": Transfer.files}, "expected memory or ipc with rollouts.pool.placement=trainer, found files"),
        (
            {"placement": Placement.process, "transfer": Transfer.ipc},
            "expected memory or files or broadcast with rollouts.pool.placement=process, found ipc",
        ),
        ({"placement": Placement.ray, "transfer": Transfer.files}, "transfer_folder: expected a folder .* found ''"),
        (
            {"placement": Placement.ray, "transfer": Transfer.broadcast, "ray_address": "10.0.0.1:6379"},
            "transfer_folder: expected a folder that all hosts see .* found '' with transfer=broadcast",
        ),
        ({"transfer_folder": "/x"}, "transfer_folder: .* none otherwise, found '/x' with transfer=memory"),
    ],
)
def test_ways_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PoolConfig(**settings)


def test_a_sampler_that_says_it_missed_what_was_never_sent_is_replaced(tiny, tasks, capsys, monkeypatch):
    pool = PoolConfig(Placement.process, workers=1, transfer=Transfer.broadcast)
    workers = fill_worker(build_worker(*tiny, dataclasses.replace(ONE, pool=pool), 7), tiny[0])
    assert isinstance(workers, WorkerPool)
    request = tasks[0].request(0, 2)
    answers, lies = ProcessMember.answers, iter([Missed(99)])

    def lying(member):
        return [
            next(lies, answer) if isinstance(answer, Updated) and answer.version == 1 else answer
            for answer in answers(member)
        ]

    try:
        expected = generate(workers, [request])
        monkeypatch.setattr(ProcessMember, "answers", lying)
        sync_weights(workers, 1, tiny[0].state_dict().items())
        assert workers.num_replaced == 1 and "answered garbage: Missed(version=99)" in capsys.readouterr().err
        assert generate(workers, [request])[0][0].completion_ids == expected[0][0].completion_ids
    finally:
        workers.close()


def test_a_folder_that_is_not_there_loses_the_weights_at_once(tmp_path):
    rendezvous = Rendezvous(str(tmp_path / "gone" / "1"), "127.0.0.1", 2, 30.0, on_gpu=False)
    tensor_handle = BroadcastHandle(rendezvous, 1, {"a": (1,)}, {"a": torch.float32}, 30.0)
    begin = time.monotonic()
    with pytest.raises(WeightsLost, match=r"gone is not there on this host"):
        list(tensor_handle.open())
    assert time.monotonic() - begin < 5


def test_a_meeting_folder_that_cannot_be_made_is_refused_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ValueError, match=r"rollouts.pool.transfer_folder: expected a folder that can be written, found"
    ):
        BroadcastSender(
            MemorySender(TENSORS), 1, 1.0, torch.device("cpu"), "127.0.0.1", str(tmp_path / "file" / "below")
        )


def test_ipc_is_for_vllm():
    with pytest.raises(ValueError, match=r"rollouts.pool.transfer: expected memory with our own sampler, found ipc"):
        RolloutConfig(pool=PoolConfig(transfer=Transfer.ipc))
