"""A reference text that spells a missing value, or holds one, is unscorable: no answer is paid for saying it again."""

import pytest

from rewards.result import Claim, Unscorable
from rewards.verifiers.registry import decide_quickly, verify

SPELLED = ["nan", "NaN", "NAN", "-nan", "None", "null", "NULL", "NaT", "<NA>", "N/A", "n/a", "#N/A", " nan ", "None\n"]  # fmt: skip
HELD = ["[nan]", "[NaN, 0, 1, 1]", "[1, [NaN, 2]]", "(nan, 1)", "[None]", "[1, null]", "[ NaT ]", "['a', nan]"]
WITH_TEXT = ["math", "geo3k", "math_dapo", "gsm8k", "exact", "anls", "relaxed", "ordered_list", "numeric", "count", "boolean", "choice", "json_fields", "box_iou", "point_in_box"]  # fmt: skip


@pytest.mark.parametrize("name", WITH_TEXT)
@pytest.mark.parametrize("reference", [*SPELLED, *HELD, '{"a": NaN}', "{'a': nan, 'b': 1}", '{"a": [1, NaT]}'])
def test_a_text_that_spells_a_missing_value_is_unscorable(name, reference):
    for answer in (reference, "7", None):
        claim = Claim(f"Answer: {answer}", answer, reference)
        for call in (verify, decide_quickly):
            with pytest.raises(Unscorable):
                call(name, claim, {})


@pytest.mark.parametrize("name", ["exact", "anls", "relaxed", "ordered_list"])
@pytest.mark.parametrize("reference", [["nan", "Paris"], ["a", "<NA>"], "['Paris', 'None']", ["null"]])
def test_a_list_with_a_text_that_spells_a_missing_value_is_unscorable(name, reference):
    with pytest.raises(Unscorable):
        verify(name, Claim("Paris", "Paris", reference), {})


@pytest.mark.parametrize("reference", ["[NaN, 0, 0, 1, 1]", "[0, 0, 1, nan, 1]", "{'bbox': [0, 0, nan, 1, 1]}"])
def test_a_box_that_holds_nan_is_unscorable(reference):
    for name, answer in (("box_iou", "[0, 0, 1, 1]"), ("point_in_box", "[0.5, 0.5]")):
        with pytest.raises(Unscorable, match="missing"):
            verify(name, Claim(answer, answer, reference), {})


@pytest.mark.parametrize("value", ["nan", "NaN", "<NA>", ["NaT"]])
def test_an_object_whose_field_spells_nan_is_unscorable(value):
    with pytest.raises(Unscorable):
        verify("json_fields", Claim("", "{}", {"a": 1, "b": value}), {})


@pytest.mark.parametrize(
    ("name", "reference", "answer"),
    [
        ("exact", "none", "None"), ("exact", "None of them", "none of them"), ("anls", "Nan", "nan"), ("exact", "Nancy", "nancy"), ("exact", "NA", "na"),
        ("exact", "the null set", "the null set"), ("exact", '["a null", "b"]', "b"), ("exact", "(none)", "(none)"), ("exact", '{"a": null}', '{"a": null}'),
        ("math", "none", "none"), ("math", "(1, 2)", "(1,2)"), ("math", "[-\\infty, 1)", "[-\\infty,1)"), ("ordered_list", "none, a", "none, a"),
        ("json_fields", {"a": None}, '{"a": null}'), ("json_fields", {"a": "None"}, '{"a": "none"}'), ("json_fields", {"a": "N/A"}, '{"a": "N/A"}'),
    ],
)  # fmt: skip
def test_a_word_that_only_looks_like_one_is_a_reference(name, reference, answer):
    assert verify(name, Claim(answer, answer, reference), {}) == 1.0


@pytest.mark.parametrize(
    ("reference", "option"), [("None", "None"), ("none", "None"), ("N/A", "N/A"), ("null", "null")]
)
def test_a_reference_that_is_an_options_text_is_that_option(reference, option):
    for answer, right in (("B", 1.0), (option, 1.0), ("A", 0.0), ("cat", 0.0)):
        assert verify("choice", Claim(answer, answer, reference, {"options": ["cat", option]}), {}) == right
