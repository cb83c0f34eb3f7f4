"""Which part of a completion counts as its answer."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards.answers import AnswerRule, complete_boxes, extract, parse_completion

PIECES = [
    "\\boxed",
    "\\boxed{",
    "{",
    "}",
    "\\{",
    "\\}",
    "\\",
    "<think>",
    "</think>",
    "<think",
    "7",
    " ",
    "\n",
    "$",
    "思",
]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("so \\boxed{7}", "7"),
        ("\\boxed{1} no, \\boxed{2}", "2"),
        ("\\boxed {7}", "7"),
        ("\\boxed{ 7 }", "7"),
        ("\\boxed{}", ""),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{a\\}b}", "a\\}b"),
        ("\\boxed{a\\\\}", "a\\\\"),
        ("\\boxed{x\\boxed{7}}", "x\\boxed{7}"),
        ("\\boxed{\\boxed{7}", "7"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("} \\boxed{7}", "7"),
        ("{ \\boxed{7}", "7"),
        ("\\fbox{7}", "7"),
        ("\\boxed 7$ cm", "7"),
        ("\\boxed -1,250.", "-1,250"),
        ("\\boxed B", "B"),
        ("\\boxed 1, then \\boxed{2}", "2"),
        ("\\boxed{2}, then \\boxed 1", "1"),
    ],
)
def test_box_of_a_text_without_think_tags(text, answer):
    assert parse_completion(text).answer == answer


@pytest.mark.parametrize(
    "text", ["7", "", "\\boxed", "\\boxed{7", "\\boxed{7\\}", "\\boxed x+1", "\\boxed[7]", "boxed{7}"]
)
def test_no_complete_box_is_no_answer(text):
    assert parse_completion(text).answer is None


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("<think>a</think>\\boxed{7}", "a", "7"),
        ("<think>\\boxed{1}</think>\\boxed{7}", "\\boxed{1}", "7"),
        ("<think>\\boxed{1}</think>7", "\\boxed{1}", None),
        ("<think>\\boxed{1}", "\\boxed{1}", None),
        ("\\boxed{1}<think>a", "a", None),
        ("<think>a</think>\\boxed{1}<think>b", "b", None),
        ("<think>a</think>\\boxed{1}<think>b</think>\\boxed{2}", "a</think>\\boxed{1}<think>b", "2"),
        ("a</think>\\boxed{7}", "a", "7"),
        ("\\boxed{<think>}</think>7}", "\\boxed{<think>}", None),
    ],
)
def test_only_what_follows_the_closed_think_block_counts(text, thinking, answer):
    parsed = parse_completion(text)
    assert (parsed.thinking, parsed.answer) == (thinking, answer)


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think>\\boxed{7}",
        " \n<think>a\nb</think>\n\\boxed{7}\n",
        "<think>a</think>\\boxed {\\frac{1}{2}}",
        "<think>\\boxed{1}</think>\\boxed{7}",
    ],
)
def test_well_formed(text):
    assert parse_completion(text).well_formed


@pytest.mark.parametrize(
    "text",
    [
        "\\boxed{7}",
        "<think>a</think>7",
        "<think></think>\\boxed{7}",
        "<think> \n</think>\\boxed{7}",
        "x<think>a</think>\\boxed{7}",
        "<think>a</think>so \\boxed{7}",
        "<think>a</think>\\boxed{7}.",
        "<think>a</think>\\boxed{7}\\boxed{7}",
        "<think>a</think>\\boxed{}",
        "<think>a</think>\\boxed{7",
        "<think>a</think>\\boxed{\\boxed{7}",
        "<think>a<think>b</think>\\boxed{7}",
        "<think>a</think></think>\\boxed{7}",
        "<think>a</think>\\boxed{<think>}",
        "<think>a\\boxed{7}",
        "a</think>\\boxed{7}",
    ],
)
def test_not_well_formed(text):
    assert not parse_completion(text).well_formed


@given(st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=20).map("".join)))
def test_any_text_parses_and_the_answer_stands_in_it(text):
    parsed = parse_completion(text)
    assert parsed.thinking in text
    if parsed.answer is not None:
        assert parsed.answer in text.rpartition("</think>")[2]
        assert parsed.answer == parsed.answer.strip()
    assert not parsed.well_formed or (parsed.answer and parsed.thinking.strip())


@given(st.lists(st.sampled_from(PIECES), max_size=20).map("".join))
def test_boxes_are_balanced_disjoint_and_in_order(text):
    end_of_last = 0
    for end, content in complete_boxes(text):
        box = text[end_of_last:end]
        assert content in box and (box.endswith("}") or re.fullmatch("[-+0-9.,A-Z]+", content))
        unescaped = content.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
        assert unescaped.count("{") == unescaped.count("}")
        end_of_last = end


def test_thousands_of_unclosed_boxes_cost_linear_time():
    """A quadratic scan of this text takes minutes; the linear one milliseconds."""
    begin = time.perf_counter()
    assert parse_completion("\\boxed{" * 50_000).answer is None
    assert time.perf_counter() - begin < 5


@pytest.mark.parametrize(
    ("rule", "text", "answer"),
    [
        ("vlmevalkit", "\\boxed{1} no, \\boxed{2}", "1"),
        ("answer_tag", "<answer> 5 cm </answer>", "5 cm"),
        ("answer_tag", "<answer>4</answer> no <answer>5</answer>", "5"),
        ("answer_tag", "<answer>\\boxed{5}</answer>", "5"),
        ("answer_tag", "<answer>5", None),
        ("answer_tag", "</answer>5<answer>", None),
        ("answer_line", "Answer: 5 cm", "5 cm"),
        ("answer_line", "**Answer:** 5 cm\nbye", "5 cm"),
        ("answer_line", "The answer is **12**.", "12"),
        ("answer_line", "Final Answer: The final answer is $5$. I hope it is correct.", "$5$"),
        ("answer_line", "Answer: 3\nAnswer: 4", "4"),
        ("answer_line", "Answer:\n\n\\boxed{3}", "3"),
        ("answer_line", "Final Answer: The perimeter of $PQR$ is 36.", "36"),
        ("answer_line", "Answer: So the ratio is $\\frac{2}{5}$.", "$\\frac{2}{5}$"),
        ("answer_line", "Answer: The length is not 36", "The length is not 36"),
        ("answer_line", "Answer: Yes, the length is 36", "Yes, the length is 36"),
        ("answer_line", "答案是12。", "12"),
        ("answer_line", "答案：B", "B"),
        ("answer_line", "It is 5.", None),
        ("answer_line", "Answer:", None),
        ("last_number", "from 1,234.5 to -7.", "-7"),
        ("last_number", "it is 3/4", "3/4"),
        ("last_number", "it is 50%", "50%"),
        ("last_number", "7-2", "7-2"),
        ("last_number", "none", None),
        ("bare", " 5 cm ", "5 cm"),
        ("bare", " ", None),
    ],
)
def test_opt_in_rules(rule, text, answer):
    assert extract(text, [AnswerRule(rule)]) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The probability is 2/3.", "2/3"), ("The probability is 12/35, so no.", "12/35"), ("so $\\frac{4}{3}$", "\\frac{4}{3}"), ("\\(x=\\frac{7}{3}\\).", "\\frac{7}{3}"),
        ("it is 10^3", "10^3"), ("gives 2\\sqrt{3}.", "2\\sqrt{3}"), ("it is 5 cm^2", "5"), ("it is 5 m2.", "5"), ("it is −5", "-5"), ("it is –7.5.", "-7.5"),
        ("She makes $18 every day.", "18"), ("from $18 to $20.", "20"), ("2+3=5", "5"), ("the point (3, 4)", "(3, 4)"), ("total (5)", "5"), ("it is 2 1/2 cups", "2 1/2"),
        ("about 3 million", "3 million"), ("5 hundredths", "5 hundredths"), ("答案是12。", "12"), ("共5个", "5"), ("约3万", "3万"), ("3 kg of H2O", "3"), ("x_1 and x_2", None),
        ("#### 5,000", "5,000"), ("**12**", "12"), ("3 (or 4)", "4"), ("it has 5 (see $x_3$)", "x_3"),
    ],
)  # fmt: skip
def test_the_last_number_is_never_cut_out_of_a_formula(text, answer):
    assert extract(text, [AnswerRule.last_number]) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer to the question is 5.", "5"), ("The answer to 2+3 is 5", "5"), ("The answer would be 12 cm", "12 cm"), ("The answer must be 7.", "7"),
        ("## Final Answer\n\n42", "42"), ("**Final Answer**\n$7$", "$7$"), ("Final answer\n\\boxed{3}", "3"), ("### Answer\nB", "B"), ("The answer is St. John.", "St. John"),
        ("Answer: Dr. Lee. He is tall", "Dr. Lee"), ("The answer is J. Smith.", "J. Smith"), ("The answer is the U.S. Open", "the U.S. Open"), ("Answer: 5. So we stop.", "5"),
    ],
)  # fmt: skip
def test_the_answer_line_is_found_and_not_cut(text, answer):
    assert extract(text, [AnswerRule.answer_line]) == answer


def test_rules_are_tried_in_order_and_only_behind_the_thinking():
    rules = [AnswerRule.boxed, AnswerRule.answer_tag, AnswerRule.bare]
    assert extract("<answer>5</answer> \\boxed{6}", rules) == "6"
    assert extract("<answer>5</answer> so", rules) == "5"
    assert extract("five", rules) == "five"
    assert extract("five") is None
    assert extract("<think>\\boxed{4}</think>five", rules) == "five"
    for rule in AnswerRule:
        assert extract("<think>\\boxed{4} <answer>4</answer> Answer: 4", [rule]) is None


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "answer ", "Answer:\n", "1,", "9", "<answer>", "1/", "\\boxed 1,", "答案 ", "*", " "]
)
def test_all_rules_take_linear_time(piece):
    begin = time.perf_counter()
    for rule in AnswerRule:
        extract(piece * (100_000 // len(piece)), [rule])
    assert time.perf_counter() - begin < 3
