"""A sampler that is driven by messages: what each message is answered with."""

import dataclasses
from pathlib import Path

import pytest
import torch

from model.interface import Mode
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.pool.messages import Abort, Done, Generate, Missed, Probed, ProbePrompt, StartMessage, Update, Updated
from rollouts.pool.session import Session
from rollouts.rollout import generate
from rollouts.weights.handles import DirectHandle
from rollouts.weights.sync import fill_worker, tensor_checksum
from tests.rollouts.lost_handle import HalfLost

CONFIG = RolloutConfig(max_prompt_tokens=96, max_completion_tokens=6, max_rows=64)


@pytest.fixture
def session(tiny):
    session = Session.begin(StartMessage(tiny[0].config, tiny[1], CONFIG, 7, tiny[0].dtype))
    yield session
    session.close()


@pytest.fixture
def update(tiny) -> Update:
    tensors = dict(tiny[0].state_dict())
    return Update(3, {name: tensor_checksum(tensor) for name, tensor in tensors.items()}, DirectHandle(tensors))


@pytest.fixture
def requests(tiny, digits_folder: Path):
    prompts = PromptSet(digits_folder / "train.jsonl", tiny[1], Mode.think, CONFIG)
    return [prompts.build(index).request(index, 2) for index in range(3)]


def test_it_takes_weights_and_gives_what_one_embedded_sampler_gives(session, tiny, update, requests):
    assert session.answer([update]) == [Updated(3, dict(update.manifest)), Done([], 0)]
    found, answers = (
        {},
        session.answer([Generate([(40 + n, request) for n, request in enumerate(requests)]), Abort(41)]),
    )
    while True:
        (done,) = answers
        found |= dict(done.groups)
        if not done.num_open:
            break
        answers = session.answer([])
    expected = generate(fill_worker(EmbeddedWorker(*tiny, CONFIG, 7), tiny[0], 3), requests)
    assert found == {40: expected[0], 42: expected[2]}


def test_lost_weights_are_an_answer_and_change_nothing(session, update, requests, capsys):
    lost = Update(4, update.manifest, HalfLost(update.tensor_handle, 0))
    assert session.answer([lost]) == [Missed(4), Done([], 0)]
    with pytest.raises(RuntimeError, match="sampling: expected weights"):
        session.answer([Generate([(1, requests[0])])])
    assert session.answer([update, lost])[:2] == [Updated(3, dict(update.manifest)), Missed(4)]
    assert capsys.readouterr().err.count("lost on the way") == 2


def test_other_bytes_are_seen_by_whoever_has_the_manifest(session, update):
    tensors = dict(update.tensor_handle.open())
    tensors["mlp1.1.bias"] = tensors["mlp1.1.bias"] + 1
    updated, _ = session.answer([Update(3, update.manifest, DirectHandle(tensors))])
    assert isinstance(updated, Updated)
    assert {name for name, value in updated.checksums.items() if value != update.manifest[name]} == {"mlp1.1.bias"}


def test_a_probe_that_fails_is_empty(session, update, requests):
    probed, done = session.answer([update, ProbePrompt(requests[0])])[1:]
    assert isinstance(probed, Probed) and "embeddings" in probed.probe and done == Done([], 0)
    bad = dataclasses.replace(requests[0], images=[torch.zeros(1, 3, 5, 7)])
    assert session.answer([ProbePrompt(bad)])[0] == Probed({})
