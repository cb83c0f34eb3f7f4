"""A reference that becomes the policy from time to time, and comes back from a checkpoint to the bit."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.batch import ModelInputs
from model.engine.config import ComputeDtype, EngineConfig, FsdpConfig, OptimizerConfig
from model.engine.local import REFERENCE, LocalEngine, MovingReference
from model.lora.config import LoraConfig
from model.run.saving import Writing
from model.sail_vl2 import SailVL2
from model.supervised import cross_entropy
from rlhf.algorithms.config import AlgorithmConfig, KlConfig
from rlhf.config import RlConfig
from rlhf.update import Policy
from tests.model.engine.test_local import make_batch

FILE = f"{REFERENCE}.safetensors"


def start(tiny, dtype: ComputeDtype = ComputeDtype.float32) -> tuple[LocalEngine, MovingReference]:
    """An engine as a run begins with it, and its reference."""
    model = SailVL2(tiny[0].config)
    model.load_state_dict(tiny[0].state_dict())
    settings = EngineConfig(num_threads=1, compute_dtype=dtype)
    engine = LocalEngine(model, settings, OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 10)
    return engine, engine.moving_reference()


def train(engine: LocalEngine) -> None:
    engine.accumulate([make_batch(6)], cross_entropy, 12.0)
    assert engine.step().applied


def scores(scorer: LocalEngine | MovingReference) -> Tensor:
    inputs: ModelInputs = make_batch(6).inputs
    return scorer.logprobs([inputs])[0].logprobs


@pytest.mark.parametrize("dtype", [ComputeDtype.float32, ComputeDtype.bfloat16])
def test_it_stays_behind_until_it_is_refreshed(tiny, dtype):
    engine, reference = start(tiny, dtype)
    before = scores(engine)
    train(engine)
    assert torch.equal(scores(reference), before)
    reference.refresh()
    now = scores(engine)
    assert torch.equal(scores(reference), now) and not torch.equal(now, before)
    train(engine)
    assert torch.equal(scores(reference), now) and not torch.equal(scores(engine), now)


@pytest.mark.parametrize("dtype", [ComputeDtype.float32, ComputeDtype.bfloat16])
@pytest.mark.parametrize("in_background", [False, True])
def test_it_survives_a_checkpoint_to_the_bit(tiny, tmp_path, dtype, in_background):
    engine, reference = start(tiny, dtype)
    train(engine)
    reference.refresh()
    train(engine)
    policy, past = scores(engine), scores(reference)
    if in_background:
        writing: Writing = reference.save_in_background(tmp_path)
        reference.refresh()  # the copy that is being written stays as it was
        digests = writing.wait()
    else:
        digests = reference.save(tmp_path)
    assert set(digests) == {path.name for path in tmp_path.iterdir()} and FILE in digests
    other, again = start(tiny, dtype)
    again.load(tmp_path)
    assert torch.equal(scores(other), policy) and torch.equal(scores(again), past)
    assert not torch.equal(policy, past)
    later = tmp_path / "later"
    later.mkdir()
    assert FILE in again.save(later), "the next checkpoint holds it too"


def test_before_the_first_refresh_a_checkpoint_holds_the_engine_alone(tiny, tmp_path):
    engine, reference = start(tiny)
    first = scores(engine)
    train(engine)
    assert set(reference.save(tmp_path)) == set(engine.save(tmp_path)) and not (tmp_path / FILE).exists()
    other, again = start(tiny)
    again.load(tmp_path)
    assert torch.equal(scores(again), first) and torch.equal(scores(other), scores(engine))


def test_a_damaged_reference_changes_nothing(tiny, tmp_path):
    engine, reference = start(tiny)
    train(engine)
    reference.refresh()
    reference.save(tmp_path)
    Path(tmp_path / FILE).write_bytes(b"x")
    other, again = start(tiny)
    first = scores(other)
    with pytest.raises(ValueError, match=FILE):
        again.load(tmp_path)
    assert torch.equal(scores(other), first) and torch.equal(scores(again), first)


def test_the_policy_saves_by_its_reference_only_where_that_moves(tiny):
    engine, reference = start(tiny)
    assert Policy(engine, reference, tiny[1], 100, reference).saves is reference
    assert Policy(engine, None, tiny[1], 100).saves is engine


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"refresh_every": -1, "coefficient": 0.1},
            r"algorithm\.kl\.refresh_every: expected 0 or more steps, found -1",
        ),
        ({"refresh_every": 5}, r"algorithm\.kl\.refresh_every: 5 renews a reference, but algorithm\.kl\.coefficient=0"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        KlConfig(**settings)


def test_engines_that_cannot_save_it_are_refused():
    algorithm = AlgorithmConfig(kl=KlConfig(0.1, refresh_every=5))
    RlConfig("c", "p", algorithm=algorithm)
    with pytest.raises(ValueError, match=r"algorithm\.kl\.refresh_every: 5 expects engine=local, .* found fsdp"):
        RlConfig("c", "p", algorithm=algorithm, engine=FsdpConfig())
    with pytest.raises(ValueError, match=r"algorithm\.kl\.refresh_every: 5 expects adapter=none, .* found lora"):
        RlConfig("c", "p", algorithm=algorithm, adapter=LoraConfig())
