"""Evaluation tells how many answers are right and how good they are."""

import pytest

from rlhf.evaluation.evaluator import Answers
from rlhf.evaluation.stage import check_output


def test_answers_of_a_verifier_that_grades_have_a_mean():
    """ANLS is such a mean; the share of answers that are right to the letter says another thing."""
    one = Answers([[True, False]], [[1.0, 0.6]], [1.0, 1.0], [3, 3])
    other = Answers([[False, None]], [[0.0, None]], [1.0], [3, 3])
    both = Answers.joined([one, other])
    assert both.accuracy == 1 / 3
    assert both.score == 1.6 / 3
    assert both.only([1]).score == 0.0 and both.only([0]).score == 0.8


@pytest.mark.parametrize("content", ["mine", "{}", "[1]", '{"num_eval"'])
def test_a_file_that_is_no_result_is_not_replaced(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="output: expected a new file, or an earlier result, found another file"):
        check_output(path)
    assert path.read_text() == content
    path.write_text('{"num_eval": 3}')
    check_output(path)
    check_output(tmp_path / "deep" / "new.json")
