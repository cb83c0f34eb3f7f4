"""Settings of a judge: each wrong one is refused by name, and none that may hold a secret is shown."""

import pytest

from rewards.custom import describe
from rewards.endpoint import Endpoint, read_endpoint

GOOD = {"base_url": "http://localhost:8000/v1", "model": "m"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base_url": ""}, "expected base_url to be an address such as .*, found none"),
        ({"base_url": "localhost:8000"}, "expected base_url .*found 'localhost:8000'"),
        ({"base_url": "http://"}, "expected base_url"),
        ({"base_url": "http://host:port/v1"}, "expected base_url"),
        ({"base_url": "http://a host/v1"}, "expected base_url"),
        ({"base_url": 7}, "expected base_url to be a text, found int"),
        ({"model": ""}, "expected model"),
        ({"base_uri": "x"}, "expected some of .*, found 'base_uri'; did you mean 'base_url'"),
        ({"modle": "x"}, "expected some of .*, found 'modle'; did you mean 'model'"),
        ({"zebra": "x"}, "expected some of base_url, model.*found 'zebra'"),
        ({"request_seconds": 0}, "expected request_seconds to be above 0, found 0"),
        ({"request_seconds": "60"}, "expected request_seconds .* found '60'"),
        ({"request_seconds": float("inf")}, "expected request_seconds"),
        ({"retries": -1}, "expected retries to be a whole number from 0, found -1"),
        ({"retries": 1.5}, "expected retries"),
        ({"retries": True}, "expected retries"),
        ({"requests_per_minute": 0}, "expected requests_per_minute"),
        ({"cache": 3}, "expected cache to be a text, found int"),
        ({"cache": __file__}, "expected cache to be a folder, found a file"),
    ],
)
def test_a_wrong_setting_is_named(changes, said):
    with pytest.raises(ValueError, match=rf"reward\.options\.reasoning: {said}"):
        read_endpoint({**GOOD, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"base_url": "http://user:CANARY@host/v1"},
        {"base_url": "http://CANARY@host/v1"},
        {"base_url": "https://user:CAN/CANARY@host/v1"},
        {"base_url": "http://host/v1?api-key=CANARY"},
        {"base_url": "http://host/v1#CANARY"},
        {"api_key_env": "sk-CANARY"},
        {"api_key": "CANARY"},
    ],
)
def test_a_secret_among_the_settings_is_refused_and_not_shown(changes):
    with pytest.raises(ValueError, match=r"reward\.options\.reasoning: expected") as error:
        read_endpoint({**GOOD, **changes})
    assert "CANARY" not in str(error.value)


def test_a_function_is_described_only_if_its_settings_are_right():
    assert describe("rewards.judge:reasoning", GOOD).timeout_seconds == 600
    with pytest.raises(ValueError, match="did you mean 'base_url'"):
        describe("rewards.judge:reasoning", {"base_uri": "http://h/v1", "model": "m"})


def test_a_folder_of_verdicts_may_be_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_endpoint({**GOOD, "cache": "~/verdicts"}).cache == str(tmp_path / "verdicts")
    for cache, found in (("~", tmp_path), ("~/a/b", tmp_path / "a/b"), ("/x/~", "/x/~"), ("", "")):
        assert Endpoint("http://localhost:1", "judge", cache=cache).cache == str(found)


def test_a_cache_below_the_home_of_nobody_is_refused():
    with pytest.raises(ValueError, match="expected cache below a home folder that exists"):
        read_endpoint({**GOOD, "cache": "~nobody_of_this_name/verdicts"})


@pytest.mark.parametrize("name", ["retries", "request_seconds"])
def test_a_whole_number_that_no_clock_can_hold_is_refused(name):
    with pytest.raises(ValueError, match=f"expected {name} to be"):
        read_endpoint({**GOOD, name: 10**400})
