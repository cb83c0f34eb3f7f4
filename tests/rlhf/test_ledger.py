"""Every draw is given out once and ends once."""

import json

import pytest

from rlhf.drawing.ledger import Ledger


def test_draws_are_counted_from_zero_and_end_in_draw_order():
    ledger = Ledger()
    first, second, third = (ledger.draw(name) for name in "aab")
    assert (first, second, third) == (0, 1, 2)
    ledger.drop(third, "all_wrong")
    ledger.train(first)
    assert ledger.take_closed() == [
        {"draw": 0, "prompt_id": "a", "end": "trained", "reason": ""},
        {"draw": 2, "prompt_id": "b", "end": "dropped", "reason": "all_wrong"},
    ]
    assert ledger.take_closed() == [] and ledger.in_flight == {1: "a"}
    ledger.check({1})


def test_a_draw_ends_once():
    ledger = Ledger()
    ledger.train(ledger.draw("a"))
    with pytest.raises(KeyError):
        ledger.drop(0, "late")


def test_state_goes_through_json():
    ledger = Ledger()
    ledger.train(ledger.draw("a"))
    ledger.drop(ledger.draw("b"), "all_wrong")
    ledger.draw("c")
    again = Ledger.from_state(json.loads(json.dumps(ledger.state())))
    assert again.state() == ledger.state() and again.in_flight == {2: "c"}
    again.train(2)
    again.check(set())


@pytest.mark.parametrize(
    "spoil", [lambda one: one.in_flight.clear(), lambda one: setattr(one, "trained", 5), lambda one: one.draw("d")]
)
def test_an_imbalance_is_an_error_that_shows_the_sums(spoil):
    ledger = Ledger()
    ledger.draw("a")
    spoil(ledger)
    with pytest.raises(RuntimeError, match=r"ledger: \d draws, but \d trained \+ .* dropped \+ \d in flight"):
        ledger.check({0})


def test_lines_of_the_file_are_booked_again():
    ledger = Ledger()
    for name in "ab":
        ledger.draw(name)
    ledger.end(0, "trained", "")
    ledger.end(1, "dropped", "unscorable")
    assert (ledger.trained, ledger.dropped, ledger.in_flight) == (1, {"unscorable": 1}, {})
