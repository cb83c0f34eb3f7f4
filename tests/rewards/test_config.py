"""Settings of the reward that are refused before anything is built."""

import pytest

from rewards.config import RewardConfig
from rewards.rubric import Rubric


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"reasoning": {"base_url": "http://user:CANARY@host/v1"}}, "reasoning.base_url"),
        ({"mine": {"urls": ["https://CANARY@host"]}}, "mine.urls"),
        ({"mine": {"api_key": "CANARY"}}, "mine.api_key"),
        ({"mine": {"JUDGE_API_KEY": "CANARY"}}, "mine.JUDGE_API_KEY"),
        ({"mine": {"login": {"password": "CANARY"}}}, "mine.login.password"),
        ({"mine": {"headers": {"Authorization": "Bearer CANARY"}}}, "mine.headers.Authorization"),
    ],
)
def test_a_secret_among_the_options_is_refused_and_not_shown(options, where):
    with pytest.raises(ValueError, match=rf"reward\.options\.{where}: expected .*environment variable") as error:
        RewardConfig(options=options)
    assert "CANARY" not in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"reasoning": {"base_url": "http://host/v1", "api_key_env": "JUDGE_KEY"}},
        {"mine": {"token": "<think>", "max_tokens": 3, "page": "https://host/@someone"}},
        {"mine": {"api_key": ""}},
    ],
)
def test_other_options_are_kept(options):
    assert RewardConfig(options=options).options == options


def test_only_my_reward_is_one_override():
    mine = {"verifier": "none", "functions": ["my.py:fn", "my.py:other"]}
    assert RewardConfig(**mine).weights == {"fn": 0.5, "other": 0.5}
    assert RewardConfig(**mine, parts={"language": 0.2}).weights == {"language": 0.2, "fn": 0.4, "other": 0.4}
    assert RewardConfig(**mine, function_weights=[0.3, 0.7]).weights == {"fn": 0.3, "other": 0.7}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "so expected reward.functions or reward.parts, found none"),
        ({"functions": ["my.py:fn"], "gates": ["format"]}, r"reward.gates: expected some of \['fn'\], found 'format'"),
        ({"functions": ["my.py:fn"], "datasets": {"docvqa": "anls"}}, "reward.datasets: expected none with"),
    ],
)
def test_what_a_reward_without_a_verifier_cannot_have_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        RewardConfig(verifier="none", **settings)


def test_whether_answers_are_paid_follows_from_weights_and_gates():
    def pays(**settings) -> bool:
        return RewardConfig(functions=["my.py:fn"], **settings).pays_answers

    unpaid = {"answer_weight": 0.0, "format_weight": 0.0, "function_weights": [1.0]}
    assert pays() and not pays(**unpaid) and pays(**unpaid, gates=["answer"]) and not pays(verifier="none")


def test_who_is_waited_for_is_named_with_the_limit_of_a_judge():
    options = {"reasoning": {"base_url": "http://localhost:1/v1", "model": "judge", "requests_per_minute": 30}}
    with Rubric(RewardConfig(functions=["rewards.judge:reasoning"], options=options, num_workers=2)) as rubric:
        assert rubric.awaited() == (
            "the judge endpoint of reasoning (reward.options.reasoning.requests_per_minute = 30 for each of "
            "reward.num_workers = 2 scorer processes)"
        )
    with Rubric(RewardConfig()) as rubric:
        assert rubric.awaited() == "the rewards"
