"""Both sides of the sampling benchmark draw from one law, and completions are counted alike."""

import pytest
import torch

from tests.conftest import require_extra

require_extra("hf", "transformers")

from benchmarks.parts.sampling_models import SIZES, make_requests, planted_model, twin_of  # noqa: E402
from benchmarks.parts.sampling_rivals import Rivals  # noqa: E402
from benchmarks.sampling import GROUP, check_same, ours  # noqa: E402
from rollouts.config import RolloutConfig  # noqa: E402
from rollouts.embedded import EmbeddedWorker  # noqa: E402
from rollouts.rollout import generate  # noqa: E402
from rollouts.weights.sync import fill_worker  # noqa: E402

LIMIT = 32


@pytest.fixture(scope="module")
def planted():
    model, processor = planted_model(SIZES["T"], 4, chance_of_end=0.1)
    requests = make_requests(processor, [12, 20, 28, 36, 44, 52], GROUP)
    return model, processor, requests


def test_turns_end_by_the_planted_chance_and_barred_ids_never_come(planted):
    """48 geometric lengths of mean 10 cut at 32, so about 9.7 with a standard error of 1.3."""
    model, processor, requests = planted
    worker = fill_worker(
        EmbeddedWorker(model, processor, RolloutConfig(max_prompt_tokens=96, max_completion_tokens=LIMIT), run_seed=0),
        model,
    )
    drawn = [rollout.completion_ids for group in generate(worker, requests) for rollout in group]
    assert 6 < sum(map(len, drawn)) / len(drawn) < 14
    assert not {token for ids in drawn for token in ids} & set(processor.barred_ids)
    assert ours(model, processor, requests, LIMIT, 64, processes=1)(0) == sum(map(len, drawn))


def test_log_probabilities_agree_and_the_recipes_draw_the_same(planted):
    """A repeated cache changes nothing: transformers draws the same tokens from the same seed, padded prompts too."""
    model, processor, requests = planted
    twin, prompts = twin_of(model, processor.placeholder_id, requests)
    rivals = Rivals(twin, prompts, GROUP, LIMIT, processor.tokenizer.end_id)
    assert check_same(model, processor, requests, rivals)["draws_logprob_gap"] < 1e-4
    first, second = rivals.generate(4, "dynamic"), rivals.generate_after_shared_prefill(4)
    assert first(3) == second(3) != first(4)


def test_tokens_are_counted_up_to_the_first_end():
    rivals = Rivals(None, [], GROUP, LIMIT, end_id=9)
    assert rivals._count(torch.tensor([[1, 2, 9, 0, 9], [9, 1, 1, 1, 1], [1, 2, 3, 4, 5]])) == 3 + 1 + 5
