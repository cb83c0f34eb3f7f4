"""`boolean`, `count`, `exact`, `numeric` and others: denials, missing references, lists in cells, code fences."""

import time

import pytest

from rewards.result import Claim, Unscorable
from rewards.verifiers.registry import decide_quickly, verify


def value(name, answer, reference, **options):
    return verify(name, Claim(answer, answer, reference), options)


@pytest.mark.parametrize(
    "answer",
    [
        "yes, incorrect", "right is wrong", "Yes, it is not", "Yes, that is wrong.", "Right side", "right hand", "true north", "correct answer", "yes and no", "Yes/No",
        "Yes or no", "yes-man", "Yes? No.", "是一只猫", "perhaps", "not true", "isn't right", "对面", "真的吗", "no", "No, it is not.", "没有", "不", "不是", "不正确", "nope",
    ],
)  # fmt: skip
def test_an_answer_that_is_no_clear_yes(answer):
    assert value("boolean", answer, "yes") == 0.0


@pytest.mark.parametrize(
    "answer",
    [
        "no idea", "No information is given", "no solution", "There is no answer in the image.", "No one", "no more", "No, it is.", "No, that is correct", "wrong side", "false teeth",
        "不知道", "不一定", "没有答案", "错过", "yes", "Yes, it is.", "是的", "对", "没错",
    ],
)  # fmt: skip
def test_an_answer_that_is_no_clear_no(answer):
    assert value("boolean", answer, "no") == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("Yes.", "yes"), ("yes, the man is on the right", "yes"), ("Yes, it is.", "yes"), ("The answer is Yes", "yes"), ("\\text{Yes}", "yes"), ("**Yes**", "yes"), ("Correct.", "yes"),
        ("是的，图中是一只猫", "yes"), ("没错", "yes"), ("对。", "yes"), ("Yes because it rains", "yes"), ("True", True), ("正确", "yes"),
        ("No, it is not.", "no"), ("No, it is a dog.", "no"), ("No - it is red", "no"), ("no, the clock is on the right side", "no"), ("没有", "no"), ("不。", "no"), ("不是，图中是一只狗", "no"),
        ("不对", "no"), ("False", False), ("Incorrect", "no"), ("No\n\nThe man sits.", "no"),
    ],
)  # fmt: skip
def test_a_clear_yes_or_no(answer, reference):
    assert value("boolean", answer, reference) == 1.0


@pytest.mark.parametrize(
    "answer",
    [
        "not 3", "It is not 3.", "There aren't 3", "never three", "more than 3", "less than 3", "at least 3", "at most three", "up to 3", "3 or more", "minus 3", "negative three", "about 3",
        "nearly three", "3²", "3³", "3½", "3₂", "√3", "3 lakh", "3 crore", "3 tenths", "three quarters", "three and a half", "3 dozen", "3%", "3 hundred", "±3", "≥3", "3.5", "3 is wrong", "3 is not right",
        "3 ❌", "33", "twenty-three", "thirty three", "3 or 4", "3 to 5", "三四个", "十三个", "三十只", "第三个", "至少三个", "三个半", "不是3", "anything but 3", "3k", "3!", "3^2", "3_2",
    ],
)  # fmt: skip
def test_what_is_no_count_of_three(answer):
    assert value("count", answer, 3) == 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [
        ("three", 3), ("There are 3 dogs.", 3), ("3 (three) birds", 3), ("3 dogs that are not brown", 3), ("图中有三只猫", 3), ("三", 3), ("十二个", 12), ("两个", 2), ("二十三只", 23), ("一百零五人", 105),
        ("twenty-three", 23), ("forty dogs", 40), ("1,234 people", 1234), ("12.0", 12), ("There are twelve apples in the basket", 12), ("zero", 0),
    ],
)  # fmt: skip
def test_a_count_in_digits_and_words(answer, reference):
    assert value("count", answer, reference) == 1.0


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("5²", "52", 0), ("x²", "x2", 0), ("10⁻³", "10-3", 0), ("H₂O", "H2O", 0), ("½", "1/2", 0), ("1½", "11⁄2", 0), ("５２", "52", 1), ("x²", "X²", 1), ("ﬁre", "fire", 1), ("Paris.", "paris", 1),
        ("not Paris", "Paris", 0), ("Paris?", "Paris", 0),
    ],
)  # fmt: skip
def test_exact_keeps_superscripts_and_fractions(answer, reference, right):
    assert value("exact", answer, reference) == right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("3 tenths", "3", 0), ("3 wrong", "3", 0), ("3 lakh", "3", 0), ("3 below zero", "3", 0), ("3 at least", "3", 0), ("not 3", "3", 0), ("\\not=3", "3", 0), ("3'", "3", 0), ("3_8", "3", 0),
        ("3 MHz", "3 kHz", 0), ("3 °C", "3 °F", 0), ("\\$3", "€3", 0), ("3%", "3 cm", 0), ("2-3", "3", 0), ("2021-05-03", "2013", 0), ("3 x", "3", 0), ("33", "3", 0), ("10²", "102", 0),
        ("10²³", "1e23", 1), ("10⁻³", "0.001", 1), ("3 cm", "3", 1), ("30 mm", "3 cm", 1), ("1,234.5", "1234.5", 1), ("12,34,567", "1234567", 1), ("3 tenths", "0.3", 1), ("3 million", "3000000", 1),
        ("\\$3.50", "3.5", 1), ("3.0e2", "300", 1), ("3/4", "0.75", 1), ("75%", "0.75", 1), ("3 dollars", "\\$3", 1), ("−3", "-3", 1), ("25°C", "25", 1),
    ],
)  # fmt: skip
def test_numbers_with_what_stands_behind_them(answer, reference, right):
    assert value("numeric", answer, reference) == right


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("$5", "€5", 0),
        ("£5", "$5", 0),
        ("¥5", "$5", 0),
        ("$5.1", "$5", 1),
        ("5", "€5", 1),
        ("€5", "5", 1),
        ("5 wrong", "5", 0),
        ("not 5", "5", 0),
    ],
)
def test_relaxed_tells_currencies_apart(answer, reference, right):
    assert value("relaxed", answer, reference) == right


NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        *((name, NAN) for name in ("exact", "anls", "relaxed", "ordered_list", "numeric", "count", "boolean", "choice", "math", "gsm8k", "math_dapo", "geo3k", "box_iou")),
        *((name, float("inf")) for name in ("exact", "anls", "relaxed", "ordered_list")),
        *((name, ["Paris", NAN]) for name in ("exact", "anls", "relaxed", "ordered_list")),
        ("ordered_list", None), ("ordered_list", ["a", None]), ("ordered_list", [["a", NAN]]), ("ordered_list", "[null]"), ("json_fields", {"a": NAN}), ("json_fields", {"a": [1, {"b": NAN}]}),
    ],
)  # fmt: skip
def test_a_missing_reference_is_unscorable_and_never_paid(name, reference):
    for answer in ("nan", "NaN", "None", "inf", None, "[null]", '{"a": NaN}'):
        with pytest.raises(Unscorable):
            value(name, answer, reference)


@pytest.mark.parametrize(
    "cell",
    ["['ITC Limited', 'itc ltd']", '["ITC Limited", "itc ltd"]', "[\"ITC Limited\", 'the ITC']", " ['ITC Limited'] "],
)
@pytest.mark.parametrize("name", ["exact", "anls", "relaxed"])
def test_several_answers_listed_in_a_cell_count_each(name, cell):
    assert value(name, "ITC Limited", cell) == 1.0
    assert value(name, "another company", cell) == 0.0


@pytest.mark.parametrize(
    "cell", ["['open", "[1, 2]", "['a', b]", "['a'] or ['b']", "['a' + 'b']", "[" * 500 + "]" * 500, "['" * 300 + "']"]
)
def test_a_cell_that_only_looks_like_a_list_is_a_text(cell):
    assert value("exact", cell, cell) == 1.0
    assert value("exact", "a", cell) == 0.0


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"a": 1}\n```',
        '```\n{"a": 1}```',
        ' ```json {"a": 1} ``` ',
        '{"a": 1}',
        '```json\n\n\n{"a": 1}\n\n\n```\n',
    ],
)
def test_a_fenced_object_is_read(text):
    assert value("json_fields", text, {"a": 1}) == 1.0


@pytest.mark.parametrize(
    "text", ["```json" + "\n" * 4_000 + "x", "```" * 3_000, "```json" + " ```" * 2_000, "`" * 9_000]
)
def test_fences_cost_no_more_than_other_characters(text):
    begin = time.thread_time()
    assert decide_quickly("json_fields", Claim("", text, {"a": 1}), {}) == 0.0
    assert time.thread_time() - begin < 0.05


@pytest.mark.parametrize(
    ("answer", "right"),
    [("1. 5 cm\n2. b", 1), ("5 m, b", 0), ("50 mm, b", 1), ("5, b", 1), ("5 wrong, b", 0), ("b, 5 cm", 0)],
)
def test_items_of_a_list_keep_their_units(answer, right):
    assert value("ordered_list", answer, ["5 cm", "b"]) == right


@pytest.mark.parametrize(
    ("completion", "method", "right"),
    [
        ("Answer: 7", "answer", 1), ("so \\boxed{7}", "answer", 1), ("\\boxed{7} Answer: 8", "answer", -1), ("\\boxed{8} and \\boxed{7}", "answer", 1), ("\\boxed{7", "answer", -1),
        ("so \\boxed{7}", "answer_only", -1), ("Answer: 7", "answer_only", 1), ("Answer: 8, \\boxed{7}", "strict_box", 1), ("\\boxed{7}" + "x" * 100, "strict_box", -1), ("Answer: 7", "strict_box", -1),
        ("\\boxed{7}" + "x" * 300, "answer", -1), ("\\boxed{x=7}", "answer", 1), ("\\boxed{x=7}", "strict_box", -1),
    ],
)  # fmt: skip
def test_math_dapo_follows_the_rule_that_its_method_names(completion, method, right):
    assert verify("math_dapo", Claim(completion, None, "7"), {"method": method}) == right
