"""The verifiers by name: options, references that cannot be judged, claims without an answer."""

import contextlib

import pytest

from rewards.result import Claim, Unscorable
from rewards.verifiers.registry import UNDECIDED, VERIFIERS, check_options, decide_quickly, verify

FORM_ONLY = {"format", "overlong", "repetition", "language"}
UNUSABLE = {
    "math": ["", " ", "\\frac{1}{", "???", None, [], {}],
    "numeric": ["", "seven", None, []],
    "choice": ["", "E", "nothing of these", None, []],
    "boolean": ["", "perhaps", None],
    "exact": ["", None, [], [""]],
    "anls": ["", None, [], ["a", ""]],
    "relaxed": ["", None, []],
    "count": ["", "3 or 4", "2.5", None],
    "box_iou": ["", [1, 2, 3], [5, 5, 1, 1], None, "nowhere", [1, 2, 3, 4, 5], [1, 2, float("nan"), 4]],
    "point_in_box": ["", [1, 2], [5, 5, 1, 1], None],
    "ordered_list": ["", [], " "],
    "json_fields": ["", "[1]", "{", {}, None, '{"a": NaN}'],
    "gsm8k": ["", None, []],
    "math_dapo": ["", None, []],
    "geo3k": ["", "???", None],
}


def claim(answer, reference, **columns):
    return Claim(answer or "", answer, reference, columns)


@pytest.mark.parametrize(("name", "reference"), [(name, bad) for name, many in UNUSABLE.items() for bad in many])
@pytest.mark.parametrize("answer", [None, "", "7", "yes"])
def test_an_unusable_reference_is_unscorable_whatever_the_answer(name, reference, answer):
    asked = claim(answer, reference, options=["a", "b", "c", "d"])
    with pytest.raises(Unscorable, match=r"\w"):
        verify(name, asked, {})
    with contextlib.suppress(Unscorable):
        assert decide_quickly(name, asked, {}) is UNDECIDED


GOOD = {
    "choice": "A", "boolean": "yes", "box_iou": [1, 2, 300, 400], "point_in_box": [1, 2, 300, 400],
    "ordered_list": ["a", "b"], "json_fields": {"a": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in VERIFIERS if name not in FORM_ONLY])
@pytest.mark.parametrize("answer", [None, "", " "])
def test_no_answer_earns_nothing(name, answer):
    value = verify(name, claim(answer, GOOD.get(name, "7"), options=["a", "b"]), {})
    assert value == (-1.0 if name == "math_dapo" else 0.0)


@pytest.mark.parametrize("name", VERIFIERS)
def test_every_verifier_says_its_rule_and_source(name):
    verifier = VERIFIERS[name]
    assert len(verifier.rule) > 20 and len(verifier.source) > 10
    assert check_options(name, {}) == {key: option.default for key, option in verifier.options.items()}
    assert all(option.doc for option in verifier.options.values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mth", {}, "unknown verifier 'mth'; did you mean 'math'?"),
        ("numeric", {"absolut": 1}, "unknown option 'absolut'; did you mean 'absolute'?; it takes absolute, relative"),
        ("math", {"strict": 1}, "it takes none"),
        ("numeric", {"absolute": -1}, "expected at least 0, found -1"),
        ("numeric", {"absolute": True}, "expected a finite number, found True"),
        ("numeric", {"absolute": float("nan")}, "expected a finite number, found nan"),
        ("repetition", {"ngram": 2.5}, "option 'ngram': expected a whole number, found 2.5"),
        ("overlong", {"max_tokens": 1.5, "cache_tokens": 1}, "option 'max_tokens': expected a whole number, found 1.5"),
        ("overlong", {"cache_tokens": 7.25}, "option 'cache_tokens': expected a whole number, found 7.25"),
        ("overlong", {"max_tokens": 10, "cache_tokens": 20}, "'cache_tokens': expected at most max_tokens (10), found"),
        ("language", {"min_letters": 1.5}, "option 'min_letters': expected a whole number"),
        ("language", {"threshold": 3}, "option 'threshold': expected at most 1, found 3"),
        ("box_iou", {"threshold": 2}, "option 'threshold': expected at most 1, found 2"),
        ("anls", {"threshold": 1.01}, "option 'threshold': expected at most 1, found 1.01"),
        ("gsm8k", {"format_score": 2}, "option 'format_score': expected at most 1, found 2"),
        ("gsm8k", {"format_score": -2}, "option 'format_score': expected at least -1, found -2"),
        ("geo3k", {"format_score": 1.5}, "option 'format_score': expected at most 1"),
        ("relaxed", {"tolerance": 2}, "option 'tolerance': expected at most 1, found 2"),
        ("numeric", {"relative": 5}, "option 'relative': expected at most 1, found 5"),
        ("numeric", {"absolute": 10**400}, "option 'absolute': expected a finite number, found a whole number"),
        ("overlong", {"max_tokens": -(10**5000)}, "option 'max_tokens': expected a finite number, found a whole"),
        ("exact", {"case": "lower"}, "expected one of ignore, keep, found 'lower'"),
        ("exact", {"case": ["ignore"]}, "expected one of ignore, keep"),
    ],
)
def test_bad_names_and_options_are_refused(name, options, message):
    for call in (verify, decide_quickly):
        with pytest.raises(ValueError) as error:
            call(name, claim("7", "7"), options)
        assert message in str(error.value) and not isinstance(error.value, Unscorable)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("repetition", {"ngram": 3.0}),
        ("overlong", {"max_tokens": 20, "cache_tokens": 20}),
        ("box_iou", {"threshold": 1}),
        ("relaxed", {"tolerance": 1}),
        ("gsm8k", {"format_score": -0.5}),
        ("numeric", {"absolute": 10**300}),
    ],
)
def test_options_at_their_bounds_are_taken(name, options):
    assert check_options(name, options).items() >= options.items()


@pytest.mark.parametrize("reference", [7, 7.0, "7"])
def test_numbers_are_references_too(reference):
    for name in ("math", "numeric", "count", "relaxed"):
        assert verify(name, claim("7", reference), {}) == 1.0


def test_gsm8k_reads_the_number_of_a_raw_solution_and_scores_none_without_a_number():
    for completion, value in (("so\n#### 1200", 1.0), ("so\n#### 12", 0.0)):
        raw = Claim(completion, None, "<<3*400=1200>> in all.\n#### 1,200")
        assert verify("gsm8k", raw, {}) == value
    with pytest.raises(Unscorable, match="expected a number behind ####"):
        verify("gsm8k", Claim("#### 2", None, "We add.\n#### two"), {})


@pytest.mark.parametrize("name", VERIFIERS)
def test_long_texts_go_to_a_worker(name):
    """`Unscorable` for the reference's sake may come first; a verdict may not."""
    asked = Claim("x" * 30_000, "x" * 30_000, GOOD.get(name, "7"), {"options": ["a", "b"]})
    assert decide_quickly(name, asked, {}) is UNDECIDED
