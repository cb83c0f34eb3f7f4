"""Comparisons of two evaluations: estimates by hand and by simulation, and the command."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlhf.compare import main
from rlhf.evaluation.comparison import Row, as_text
from rlhf.evaluation.estimates import Difference, bootstrap_interval, majority_at_k, paired_difference, pass_at_k
from rlhf.evaluation.protocol import Protocol


def test_pass_at_k_is_the_unbiased_estimate():
    assert pass_at_k(4, 1, 2) == 0.5  # 3 of the 6 pairs hold the right one
    assert pass_at_k(5, 0, 3) == 0 and pass_at_k(5, 5, 1) == 1
    for right in range(5):
        assert pass_at_k(4, right, 1) == pytest.approx(right / 4)
    with pytest.raises(ValueError, match="1 <= k <= 4"):
        pass_at_k(4, 1, 5)


def test_a_majority_is_right_if_its_answer_is_and_ties_share():
    assert majority_at_k([("7", True), ("7", True), ("8", False)]) == 1
    assert majority_at_k([("8", False), ("8", False), ("7", True)]) == 0
    assert majority_at_k([("8", False), ("7", True), (None, False)]) == 0.5
    assert majority_at_k([(None, False), (None, False)]) == 0


def test_differences_are_paired_and_their_test_fits_the_scores():
    first, second = [1.0] * 10 + [0.0] * 10, [1.0] * 9 + [0.0] + [1.0] * 6 + [0.0] * 4
    found = paired_difference(first, second)
    assert (found.num_better, found.num_worse, found.difference) == (6, 1, 0.25)
    assert found.test.startswith("McNemar") and found.p_value == pytest.approx(2 * (1 + 7) / 2**7)
    assert found.interval[0] < 0.25 < found.interval[1]
    graded = paired_difference([0.5] * 12, [0.7] * 12)
    assert graded.test.endswith("sign flips") and graded.p_value < 0.01
    with pytest.raises(ValueError, match="found 1 and 2"):
        paired_difference([1.0], [1.0, 0.0])


def test_an_interval_without_spread_still_admits_what_was_not_seen():
    low, high = bootstrap_interval([0.0] * 100)
    assert low == -high and high == pytest.approx(1 - 0.025**0.01)


def test_questions_of_one_image_are_resampled_together():
    rng = np.random.default_rng(0)
    by_image = rng.choice([-1.0, 1.0], 40).repeat(10)
    alone = paired_difference([0.0] * 400, list(by_image))
    together = paired_difference([0.0] * 400, list(by_image), [n // 10 for n in range(400)])
    widths = [one.interval[1] - one.interval[0] for one in (alone, together)]
    assert 2.5 < widths[1] / widths[0] < 4  # the square root of 10


def test_the_interval_covers_the_true_difference_of_a_simulated_pair():
    """Both answer 150 questions of differing hardness, the second a little better; 200 draws."""
    rng = np.random.default_rng(1)
    chances = rng.uniform(0.1, 0.9, 20_000)
    better = np.clip(chances + 0.06, 0, 1)
    truth, covered, draws = float((better - chances).mean()), 0, 200
    for draw in range(draws):
        rows = rng.integers(0, len(chances), 150)
        first = (rng.random(150) < chances[rows]).astype(float)
        second = (rng.random(150) < better[rows]).astype(float)
        low, high = bootstrap_interval(second - first, seed=draw)
        covered += low <= truth <= high
    assert covered / draws >= 0.93


def write(path: Path, scores: dict[str, bool], tokens: int = 10, data: str = "d") -> Path:
    protocol = Protocol(data, {}, {}, {}, {"mode": "think"}, {}, "1")
    path.write_text(json.dumps({"num_eval": len(scores), "protocols": {"think": protocol.to_json()}}))
    lines = [
        {"id": name, "dataset": "x", "mode": "think", "verdict": "right" if right else "wrong", "num_tokens": tokens,
         "completion": ""}
        for name, right in scores.items()
    ]  # fmt: skip
    lines.append({**lines[0], "id": "lost", "verdict": "unscorable"})
    path.with_name(f"{path.stem}.answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_the_command_compares_and_keeps_table_and_plot(tmp_path, capsys):
    first = write(tmp_path / "a.json", {str(n): n < 10 for n in range(40)})
    second = write(tmp_path / "b.json", {str(n): n < 30 for n in range(38)}, tokens=30)
    assert main([str(first), str(second), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "a 26.3 -> b 78.9, +52.6 points" in said and "the interval excludes 0" in said
    assert "2 questions have a judged answer in one of both only" in said and "could not be judged" in said
    table = (tmp_path / "out" / "comparison.csv").read_text().splitlines()
    assert table[0].startswith("first,second,data set") and table[1].startswith(
        "a,b,prompts,think,38,26.32,78.95,+52.63"
    )
    assert (tmp_path / "out" / "comparison.md").read_text().count("\n|") == 3
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("low", "excludes"), [(0.0, False), (0.0002, True), (-0.0002, False)])
def test_an_interval_that_ends_at_0_does_not_exclude_it(low, excludes):
    found = Difference(9, 0.5, 0.6, 0.1, (low, 0.2), 0.05, "sign flips", 2, 1)
    assert ("excludes 0" in as_text([Row("a", "b", "x", "think", "p", 0, found)])[0]) is excludes


def test_other_protocols_are_refused_unless_they_are_asked_for(tmp_path, capsys):
    first = write(tmp_path / "a.json", {"1": True, "2": False})
    second = write(tmp_path / "b.json", {"1": True, "2": True}, data="other")
    assert main([str(first), str(second)]) == 2
    assert "expected one protocol, found" in (said := capsys.readouterr().err) and 'data: "d" and "other"' in said
    assert main([str(first), str(second), "--other-protocols"]) == 0


def test_what_cannot_be_compared_is_named(tmp_path, capsys):
    first = write(tmp_path / "a.json", {"1": True})
    for other, message in [
        (tmp_path, "found a folder"),
        (tmp_path / "none.json", "expected a result of rlhf.evaluate"),
        (write(tmp_path / "c.json", {"9": True}), "expected judged answers to the same questions, found none"),
    ]:
        assert main([str(first), str(other)]) == 2
        assert message in capsys.readouterr().err
    assert main([str(first)]) == 2 and main([str(first), str(first)]) == 2
