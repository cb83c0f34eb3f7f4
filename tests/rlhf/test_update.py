"""From groups to optimizer updates: mini-batches, old log-probabilities, references, and updates that are skipped."""

import json
from dataclasses import dataclass, field, replace

import pytest
import torch

from model.engine.base import LossSums, NonFiniteError, StepResult
from model.logprobs import TokenScores
from model.run.config import RunConfig
from model.run.folder import RunFolder
from rlhf.algorithms.config import DapoConfig, GrpoConfig
from rlhf.algorithms.registry import build_algorithm
from rlhf.config import TrainerConfig
from rlhf.update import Policy, Update, prepare, update, with_reference
from tests.rlhf.groups import group


@dataclass
class FakeEngine:
    """Scores every token by `logprob`; steps end as `results` say."""

    logprob: float = -0.5
    results: list[StepResult] = field(default_factory=list)
    not_finite: tuple[int, ...] = ()
    num_parts: int = 1
    scored: int = 0

    def logprobs(self, batches):
        self.scored += len(batches)
        return [
            TokenScores(torch.full([len(b.target_ids)], self.logprob), torch.zeros(len(b.target_ids)), None)
            for b in batches
        ]

    def accumulate(self, batches, loss, denominator):
        self.denominator = denominator
        return LossSums(tuple({"loss": float("nan") if n in self.not_finite else 1.0} for n in range(len(batches))))

    def step(self):
        if not self.results:
            raise NonFiniteError("3 updates in a row were skipped")
        return self.results.pop(0)


@pytest.fixture
def policy(tiny):
    def make(engine=None, reference=None, tokens=4096) -> Policy:
        return Policy(engine or FakeEngine(), reference, tiny[1], tokens)

    return make


def with_advantages(index: int, *advantages: float):
    one = group(index, *[1.0] * len(advantages))
    return one.with_trajectories(
        [replace(t, advantage=value) for t, value in zip(one.trajectories, advantages, strict=True)]
    )


GROUPS = [with_advantages(n, 1.0, -1.0) for n in range(4)]
DAPO = build_algorithm(DapoConfig(group_size=2), 8)


def test_one_update_a_step_needs_no_old_log_probabilities(policy):
    engine = FakeEngine()
    (one,) = prepare(GROUPS, policy(engine), DAPO, TrainerConfig(passes=1, mini_batch_size=8))
    assert engine.scored == 0 and all(batch.old_logprobs is None for batch in one.batches)
    assert list(one.groups) == GROUPS


@pytest.mark.parametrize("passes", [1, 3])
def test_mini_batches_keep_groups_whole_and_carry_the_old_policy(policy, passes):
    updates = prepare(GROUPS, policy(), DAPO, TrainerConfig(mini_batch_size=5, passes=passes))
    assert [[g.group_index for g in one.groups] for one in updates] == [[0, 1], [2, 3]] * passes
    for batch in (batch for one in updates for batch in one.batches):
        assert batch.old_logprobs is not None and (batch.old_logprobs == -0.5).all()


def test_what_has_no_advantage_is_packed_only_where_it_is_asked_for(policy):
    groups = [with_advantages(0, 1.0, 0.0, -1.0), with_advantages(1, 0.0, 0.0)]
    sizes = {}
    for skip in (True, False):
        (one,) = prepare(groups, policy(), DAPO, TrainerConfig(passes=1, mini_batch_size=8, skip_zero_advantage=skip))
        sizes[skip] = sum(int(batch.sequence.max()) + 1 for batch in one.batches)
    assert sizes == {True: 2, False: 5}


def test_references_reach_scored_trajectories_alone(policy):
    groups = [group(0, 1.0, None, 0.0)]
    assert with_reference(groups, policy()) == groups  # no reference is asked for
    (found,) = with_reference(groups, policy(reference=FakeEngine(logprob=-2.0)))
    columns = [t.ref_logprobs for t in found.trajectories]
    assert columns[1] is None
    assert [column.tolist() for column in (columns[0], columns[2]) if column is not None] == [[-2.0, -2.0]] * 2


class TestUpdate:
    @pytest.fixture
    def one(self, policy):
        """Two micro-batches."""
        (made,) = prepare(GROUPS, policy(tokens=16), DAPO, TrainerConfig(passes=1, mini_batch_size=8))
        assert len(made.batches) >= 2
        return made

    def run(self, one: Update, policy: Policy, folder: RunFolder):
        return update(one, policy, DAPO, 3, 1, folder)

    @pytest.fixture
    def folder(self, tmp_path):
        return RunFolder(RunConfig(dir=str(tmp_path / "run")), "x: 1\n")

    def test_the_denominator_is_that_of_all_groups(self, one, policy, folder):
        engine = FakeEngine(results=[StepResult(0.1, 1.0, True)])
        found = self.run(one, policy(engine), folder)
        assert engine.denominator == DAPO.denominator(one.groups) == 16  # DAPO: trained tokens
        assert found.result.applied and len(found.sums.parts) == len(one.batches)

    def test_a_skipped_update_names_the_prompts_of_the_bad_micro_batch(self, one, policy, folder, capsys):
        engine = FakeEngine(results=[StepResult(0.1, float("nan"), False)], not_finite=(1,))
        self.run(one, policy(engine), folder)
        suspects = sorted(set(one.batches[1].prompt_ids))
        assert f"step 3: update 1 skipped, loss not finite; prompts: {', '.join(suspects)}" in capsys.readouterr().err
        (line,) = (folder.folder / "skipped.jsonl").read_text().splitlines()
        assert json.loads(line) == {"step": 3, "update": 1, "what": "loss", "prompts": suspects}

    def test_a_gradient_that_is_not_finite_names_all(self, one, policy, folder, capsys):
        self.run(one, policy(FakeEngine(results=[StepResult(0.1, float("inf"), False)])), folder)
        assert "gradient not finite; prompts: p0, p1, p2, p3" in capsys.readouterr().err

    def test_too_many_in_a_row_end_the_run_by_name(self, one, policy, folder):
        with pytest.raises(NonFiniteError, match=r"step 3: 3 updates in a row were skipped; prompts of the last one"):
            self.run(one, policy(FakeEngine()), folder)
        assert (folder.folder / "skipped.jsonl").exists()


def test_grpo_has_one_denominator_a_sequence(policy):
    grpo = build_algorithm(GrpoConfig(group_size=2), 8)
    (one,) = prepare(GROUPS, policy(), grpo, TrainerConfig(passes=1, mini_batch_size=8))
    assert grpo.denominator(one.groups) == 8  # sequences, whose tokens weigh one together
    assert float(one.batches[0].token_weights.sum()) == pytest.approx(8.0)
