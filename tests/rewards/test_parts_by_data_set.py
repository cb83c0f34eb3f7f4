"""Rows of one data set rewarded in another way than those of another: verifiers, weights, judged answers."""

import asyncio
import json

import pytest

from rewards.config import RewardConfig
from rewards.judged_answer import agreement
from rewards.result import Status, Unscorable
from rewards.rubric import Rubric
from tests.rewards.test_judge import JudgeError, reply_with, stub  # noqa: F401  (a fixture)

RIGHT = "<think>3 and 4 make 7</think>\\boxed{7}"
GENERAL, STEM = {"dataset": "general"}, {"dataset": "stem"}


@pytest.fixture
def shown(tmp_path):
    """A reward function that gives 0.5, and keeps what it was asked about."""
    (tmp_path / "seen.py").write_text(
        f"def thought(completion):\n    open({str(tmp_path / 'log')!r}, 'a').write(completion.prompt_id + '\\n')\n"
        "    return 0.5\n"
    )
    return tmp_path / "seen.py"


def scored(inputs, **settings):
    with Rubric(RewardConfig(**settings)) as rubric:
        return rubric.score(inputs), rubric.take_metrics()


def test_weights_of_a_data_set_by_hand_and_a_part_of_weight_0_is_not_asked(make_input, shown):
    inputs = [
        make_input(RIGHT, meta=STEM, prompt_id="stem"),
        make_input(RIGHT, meta=GENERAL, prompt_id="general", reference="a free text"),
        make_input(RIGHT, meta={"dataset": "easy"}, prompt_id="easy"),
    ]
    results, _ = scored(
        inputs,
        answer_weight=0.5,
        format_weight=0.1,
        functions=[f"{shown}:thought"],
        function_weights=[0.4],
        datasets={
            "general": {"weights": {"answer": 0, "thought": 0.9}},
            "easy": {"verifier": "exact", "weights": {"thought": 0, "answer": 0.9}},
        },
    )
    assert [result.value for result in results] == pytest.approx([0.5 + 0.1 + 0.2, 0.1 + 0.45, 0.9 + 0.1])
    assert results[1].parts == {"format": 1.0, "thought": 0.5} and not results[1].is_judged
    assert results[2].parts == {"answer": 1.0, "format": 1.0}
    assert (shown.parent / "log").read_text().split() == ["stem", "general"]


def test_a_product_leaves_out_what_a_data_set_leaves_out(make_input, shown):
    inputs = [make_input(RIGHT, meta=meta) for meta in (STEM, GENERAL)]
    results, _ = scored(
        inputs,
        functions=[f"{shown}:thought"],
        function_weights=[0.4],
        answer_weight=0.5,
        combine="product",
        datasets={"general": {"weights": {"thought": 0}}},
    )
    assert [result.value for result in results] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"a": {"weights": {"answer": 0.5}}},
            r"reward\.datasets\.a\.weights: expected weights that sum to 1.*found 0\.6",
        ),
        ({"a": {"weights": {"thougt": 0.5}}}, r"reward\.datasets\.a\.weights: expected some of .*found 'thougt'"),
        (
            {"a": {"weights": {"answer": 0, "format": 0}}},
            r"reward\.datasets\.a\.weights: expected a part with a positive",
        ),
        ({"a": {"weights": {"answer": "0.5"}}}, r"reward\.datasets\.a\.weights\.answer: expected a finite number"),
        ({"a": {"weights": {"answer": True}}}, r"reward\.datasets\.a\.weights\.answer: expected a finite number"),
        ({"a": {"weights": 0.5}}, r"reward\.datasets\.a\.weights: expected \{PART: WEIGHT\}"),
        ({"a": {"verifier": "none"}}, r"weights=\{answer: 0\} leaves its answers out"),
        ({"a": {"verifer": "exact"}}, r"reward\.datasets\.a: expected a verifier's name or"),
        ({"a": {}}, r"reward\.datasets\.a: expected a verifier's name or"),
        ({"a": 3}, r"reward\.datasets\.a: expected a verifier's name or"),
    ],
)
def test_what_cannot_be_meant_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(datasets=given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"verifier": "no.py:"}, r"^reward\.verifier: expected FILE\.py:NAME.*found 'no\.py:'"),
        ({"datasets": {"a": "no.py:b c"}}, r"^reward\.datasets\.a: expected FILE\.py:NAME"),
        ({"verifier": "a.py:format"}, r"^reward\.verifier: the name 'format' of 'a\.py:format' is taken"),
        ({"datasets": {"a": "a.py:math"}}, r"^reward\.datasets\.a: the name 'math' of 'a\.py:math' is taken"),
        (
            {"verifier": "a.py:f", "datasets": {"a": "b.py:f"}},
            r"the name 'f' of 'a\.py:f' is taken, so that reward\.opt",
        ),
        ({"verifier": "a.py:f", "functions": ["b.py:f"]}, r"^reward\.verifier: the name 'f' of 'a\.py:f' is taken"),
    ],
)
def test_functions_that_judge_answers_have_names_of_their_own(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**settings)


def test_a_function_may_judge_answers_and_be_a_part(make_input, shown):
    (result,), _ = scored([make_input(RIGHT)], verifier=f"{shown}:thought", functions=[f"{shown}:thought"])
    assert result.parts["answer"] == result.parts["thought"] == 0.5


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"verifier": "none_such.py:f"}, r"reward\.verifier"),
        ({"datasets": {"a": {"verifier": "none_such.py:f"}}}, r"reward\.datasets\.a"),
        ({"functions": ["none_such.py:f"]}, r"reward\.functions"),
    ],
)
def test_a_function_that_is_not_there_is_named_with_its_setting(settings, key):
    with (
        Rubric(RewardConfig(**settings)) as rubric,
        pytest.raises(ValueError, match=f"^{key}: .*expected a Python file"),
    ):
        rubric.check_functions()


@pytest.mark.parametrize("weights", [{"format": 1.5}, {"format": -0.5}, {"answer": 0}])
def test_a_product_and_format_that_a_data_set_makes_impossible_is_refused(weights):
    with pytest.raises(
        ValueError, match=r"reward\.datasets\.a\.weights: combine=product_plus_format expects .* 0 to 1"
    ):
        RewardConfig(combine="product_plus_format", datasets={"a": {"weights": weights}})


def test_a_part_that_only_a_data_set_pays_is_paid():
    config = RewardConfig(answer_weight=0.0, format_weight=1.0, datasets={"a": {"weights": {"answer": 1, "format": 0}}})
    assert config.pays_answers and config.paid_parts == {"answer", "format"}


class TestJudgedAnswers:
    @staticmethod
    def right(value):
        def reply(body):
            marker = body["messages"][0]["content"].split('"marker": "')[1].split('"')[0]
            return reply_with(json.dumps({"marker": marker, "right": value}))

        return reply

    def test_the_rule_goes_first_and_the_judge_decides_the_rest(self, stub, make_input):  # noqa: F811
        stub.replies[:] = [self.right(True), self.right(False)]
        options = {"base_url": stub.url, "model": "m", "requests_per_minute": 60_000}

        def judged(answer, **more):
            return asyncio.run(agreement(make_input(f"\\boxed{{{answer}}}", reference="a cat"), **options, **more))

        assert judged("A cat") == 1.0 and stub.asked == []
        assert judged("one small cat") == 1.0 and judged("a dog") == 0.0 and len(stub.asked) == 2
        sent = stub.asked[0]["body"]["messages"][1]["content"][0]["text"]
        assert "a cat" in sent and "one small cat" in sent
        assert judged("") == 0.0 and len(stub.asked) == 2
        stub.replies[:] = [self.right(True)]
        assert judged("A cat", rule="none") == 1.0 and len(stub.asked) == 3

    def test_a_row_without_a_reference_and_a_judge_that_fails_are_no_verdicts(self, stub, make_input):  # noqa: F811
        stub.replies[:] = [(500, "")]
        options = {"base_url": stub.url, "model": "m", "retries": 0}
        with pytest.raises(Unscorable, match="expected a reference"):
            asyncio.run(agreement(make_input("\\boxed{7}", reference=" "), **options))
        with pytest.raises(JudgeError, match="no verdict after 1 requests: HTTP status 500"):
            asyncio.run(agreement(make_input("\\boxed{x}", reference="y"), **options))

    def test_it_judges_answers_of_one_data_set_and_says_what_it_took(self, stub, make_input, tmp_path):  # noqa: F811
        stub.replies[:] = [self.right(True)]
        options = {"base_url": stub.url, "model": "m", "requests_per_minute": 60_000, "cache": str(tmp_path / "kept")}
        inputs = [
            make_input("<think>t</think>\\boxed{a little cat}", reference="a cat", meta=GENERAL),
            make_input("<think>t</think>\\boxed{8}", meta=STEM),
        ]
        settings = {
            "datasets": {"general": "rewards.judged_answer:agreement"},
            "options": {"agreement": options},
        }
        results, metrics = scored(inputs, **settings)
        assert [result.parts["answer"] for result in results] == [1.0, 0.0] and results[0].correct
        assert metrics["judge/agreement/cached"] == metrics["judge/agreement/failed"] == 0.0
        assert metrics["judge/agreement/seconds"] > 0
        results, metrics = scored(inputs, **settings)
        assert results[0].correct and len(stub.asked) == 1 and metrics["judge/agreement/cached"] == 1.0

    def test_a_spent_budget_is_no_verdict(self, stub, make_input):  # noqa: F811
        stub.replies[:] = [self.right(True)]
        options = {"base_url": stub.url, "model": "m", "requests_per_minute": 60_000, "max_requests": 1}
        inputs = [make_input(f"\\boxed{{cat {n}}}", reference="a cat", prompt_id=str(n)) for n in range(3)]
        settings = {"verifier": "rewards.judged_answer:agreement", "options": {"agreement": options}}
        results, metrics = scored(inputs, **settings)
        assert [result.status for result in results].count(Status.unscorable) == 2 and len(stub.asked) == 1
        assert any("the budget of 1 requests of this scorer process is spent" in result.reason for result in results)
        assert metrics["judge/agreement/failed"] == pytest.approx(2 / 3)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rule": "exat"}, "expected rule to be none or one of"),
            ({"base_url": "http://localhost:1", "model": "m", "max_requests": -1}, "max_requests"),
            ({}, "base_url"),
        ],
    )
    def test_options_without_sense_are_refused_before_a_run(self, options, message):
        config = RewardConfig(datasets={"a": "rewards.judged_answer:agreement"}, options={"agreement": options})
        with Rubric(config) as rubric, pytest.raises(ValueError, match=message):
            rubric.check_functions()
