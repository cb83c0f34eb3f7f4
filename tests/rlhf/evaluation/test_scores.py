"""Evaluation tells how many answers are right and how good they are."""

from rlhf.evaluation.evaluator import Answers


def test_answers_of_a_verifier_that_grades_have_a_mean():
    """ANLS is such a mean; the share of answers that are right to the letter says another thing."""
    one = Answers([[True, False]], [[1.0, 0.6]], [1.0, 1.0], [3, 3])
    other = Answers([[False, None]], [[0.0, None]], [1.0], [3, 3])
    both = Answers.joined([one, other])
    assert both.accuracy == 1 / 3
    assert both.score == 1.6 / 3
    assert both.only([1]).score == 0.0 and both.only([0]).score == 0.8
