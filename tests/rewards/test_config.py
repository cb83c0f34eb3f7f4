"""Settings of the reward that are refused before anything is built."""

import pytest

from rewards.config import RewardConfig


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
