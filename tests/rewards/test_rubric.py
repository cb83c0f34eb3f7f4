"""Rewards as weighted parts, and failures that are never a zero."""

import json
import threading
from pathlib import Path

import pytest

from rewards.config import Combine, RewardConfig, WeightCheck
from rewards.result import Status
from rewards.rubric import Rubric, TooManyUnscorable

RIGHT, SHOWN, WRONG = "<think>a</think>\\boxed{7}", "it is \\boxed{7}", "<think>a</think>\\boxed{8}"
FREE = WeightCheck.free
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def rubric():
    with Rubric(RewardConfig()) as rubric:
        yield rubric


@pytest.fixture
def rubric_with(functions):
    """A rubric with functions of functions.py, by name; `weights` as in the config."""
    opened = []

    def make(*names: str, weights: tuple[float, ...] = (), **settings) -> Rubric:
        specs = [f"{functions}:{name}" for name in names]
        opened.append(Rubric(RewardConfig(functions=specs, function_weights=list(weights), **settings)))
        return opened[-1]

    yield make
    for rubric in opened:
        rubric.close()


@pytest.mark.parametrize(
    ("completion", "answer", "form", "value"),
    [
        (RIGHT, 1.0, 1.0, 1.0),
        (SHOWN, 1.0, 0.0, 0.9),
        (WRONG, 0.0, 1.0, 0.1),
        ("<think>\\boxed{7}", 0.0, 0.0, 0.0),
        ("", 0.0, 0.0, 0.0),
        ("<think>a</think>\\boxed{\\frac{14}{2}}", 1.0, 1.0, 1.0),
    ],
)
def test_default_parts_and_value(rubric, make_input, completion, answer, form, value):
    (result,) = rubric.score([make_input(completion)])
    assert (result.status, result.parts) == (Status.ok, {"answer": answer, "format": form})
    assert result.value == pytest.approx(value, abs=1e-12)
    assert result.correct is (answer == 1.0)


def test_results_come_in_the_order_of_the_inputs(rubric, make_input):
    """Plain and symbolic answers take different ways and must meet again."""
    completions = [
        SHOWN,
        "\\boxed{\\frac{7}{1}}",
        "\\boxed{8}",
        "\\boxed{\\sqrt{49}}",
        "\\boxed{\\sqrt{50}}",
        "none",
    ] * 2
    results = rubric.score([make_input(completion) for completion in completions])
    assert [result.correct for result in results] == [True, True, False, True, False, False] * 2


def test_weights_come_from_the_config(make_input, rubric_with):
    rubric = rubric_with(
        "constant", "length", weights=(2.0, -0.5), answer_weight=3.0, format_weight=0.5, weight_check=FREE
    )
    right, empty = rubric.score([make_input(RIGHT), make_input("")])
    assert right.parts == {"answer": 1.0, "format": 1.0, "constant": 0.25, "length": float(len(RIGHT))}
    assert right.value == pytest.approx(3.0 + 0.5 + 2.0 * 0.25 - 0.5 * len(RIGHT))
    assert empty.value == pytest.approx(2.0 * 0.25)


def test_shipped_example_function_changes_the_value(make_input):
    config = RewardConfig(functions=[f"{EXAMPLES / 'brevity_reward.py'}:brevity"])
    with Rubric(config) as rubric:
        rubric.check_functions()
        short, long = rubric.score([make_input(RIGHT, token_ids=[1] * 10), make_input(RIGHT, token_ids=[1] * 50)])
    assert (short.parts["brevity"], long.parts["brevity"]) == (0.75, 0.0)
    assert short.value == pytest.approx(0.9 + 0.1 * 0.75) and long.value == pytest.approx(0.9)


def test_failing_function_is_unscorable_and_never_zero(make_input, rubric_with, capfd):
    results = rubric_with("constant", "fail_on_seven").score([make_input(text) for text in (SHOWN, WRONG, RIGHT)])
    assert [result.status for result in results] == [Status.unscorable, Status.ok, Status.unscorable]
    for failed in (results[0], results[2]):
        assert (failed.value, failed.parts, failed.correct) == (None, {}, False)
        assert failed.reason == "fail_on_seven: error: seven is not for me"
    assert results[1].value == pytest.approx(0.8 * 0.1 + 0.1 * 0.25 + 0.1 * 1.0)
    printed = capfd.readouterr().err
    assert printed.count("reward part 'fail_on_seven' is unscorable") == 1
    assert printed.count("Traceback") == 1 and 'raise ValueError("seven is not for me")' in printed


def test_value_that_is_none_is_refused_by_name_and_index(make_input, rubric_with):
    results = rubric_with("bad_on_seven").score([make_input(SHOWN), make_input(WRONG), make_input(RIGHT)])
    assert [result.status is Status.ok for result in results] == [False, True, False]
    assert "functions.py:bad_on_seven: completion 2: expected a finite number, found None" in results[2].reason


def test_values_far_beyond_1_count_and_are_remarked_on_once(make_input, tmp_path, capsys):
    (tmp_path / "large.py").write_text("def large(completion):\n    return 100 * (completion.answer == '7')\n")
    with Rubric(RewardConfig(functions=[f"{tmp_path}/large.py:large"])) as rubric:
        values = [rubric.score([make_input(text)])[0].value for text in ("\\boxed{8}", "\\boxed{7}", "\\boxed{7}")]
    assert values[1] == values[2] > 10
    shown = capsys.readouterr().err
    assert shown.count("reward part 'large' gave 100, far beyond 1") == 1 and "adds 10 to a reward" in shown


def test_reference_that_is_not_mathematics_is_unscorable(rubric, make_input):
    (result,) = rubric.score([make_input(RIGHT, reference="\\frac{1}{")])
    assert (result.value, result.status) == (None, Status.unscorable)
    assert result.reason.startswith("answer: refused: reference '\\\\frac{1}{' does not parse")


def test_scores_outside_the_main_thread(rubric, make_input):
    results = []
    inputs = [make_input("\\boxed{\\sqrt{16}}", reference="4")]
    thread = threading.Thread(target=lambda: results.extend(rubric.score(inputs)))
    thread.start()
    thread.join()
    assert [result.correct for result in results] == [True]


class TestRateOfFailures:
    """`rubric` judges 200 and more of the last 1,000 completions; at most 2 % may be unscorable."""

    @pytest.fixture
    def scored(self, make_input):
        """Score so many (unscorable, fine) completions at once."""
        with Rubric(RewardConfig()) as rubric:
            bad, fine = make_input(RIGHT, reference="???"), make_input(RIGHT)
            yield lambda num_bad, num_fine: rubric.score([bad] * num_bad + [fine] * num_fine)

    def test_stops_above_the_rate_and_says_why(self, scored):
        scored(4, 196)
        with pytest.raises(TooManyUnscorable) as error:
            scored(1, 0)
        for part in ("reward.max_unscorable_share", "at most 2.0%", "201 completions", "found 2.5%", "does not parse"):
            assert part in str(error.value)

    def test_judges_nothing_before_200(self, scored):
        assert len(scored(100, 99)) == 199
        with pytest.raises(TooManyUnscorable):
            scored(0, 1)

    def test_does_not_depend_on_how_many_are_scored_at_a_time(self, make_input):
        bad, fine = make_input(RIGHT, reference="???"), make_input(RIGHT)
        inputs = [*[fine] * 150, *[bad] * 5, *[fine] * 300]
        for size in (1, 7, 455):
            with Rubric(RewardConfig()) as rubric, pytest.raises(TooManyUnscorable, match="last 200 completions"):
                for start in range(0, len(inputs), size):
                    rubric.score(inputs[start : start + size])

    def test_forgets_what_is_older_than_the_window(self, scored):
        scored(0, 980)
        scored(20, 0)
        scored(0, 1000)
        scored(20, 0)
        with pytest.raises(TooManyUnscorable, match=r"last 1000 completions unscorable, found 2\.1%"):
            scored(1, 0)

    def test_a_restart_goes_on_watching(self, make_input):
        with Rubric(RewardConfig()) as first, Rubric(RewardConfig()) as second:
            first.score([make_input(RIGHT, reference="???")] * 4 + [make_input(RIGHT)] * 196)
            second.restore(json.loads(json.dumps(first.state())))
            with pytest.raises(TooManyUnscorable, match="201 completions"):
                second.score([make_input(RIGHT, reference="???")])


class TestCheckFunctions:
    def refusal(self, spec: str) -> str:
        with Rubric(RewardConfig(functions=[spec])) as rubric, pytest.raises(ValueError) as error:
            rubric.check_functions()
        return str(error.value)

    def test_good_functions_pass(self, rubric_with):
        rubric_with("constant", "length").check_functions()

    def test_missing_file(self, tmp_path):
        message = self.refusal(f"{tmp_path / 'nowhere.py'}:reward")
        assert "expected a Python file at" in message and str(tmp_path / "nowhere.py") in message

    def test_missing_name_lists_what_the_file_defines(self, tmp_path):
        path = tmp_path / "own.py"
        path.write_text(
            "value = 3\ndef _hidden(c):\n    return 1\ndef alpha(c):\n    return 1\nclass Beta:\n    pass\n"
        )
        message = self.refusal(f"{path}:gamma")
        assert f"{path}:gamma" in message and "expected a function 'gamma'" in message
        assert "found ['Beta', 'alpha']" in message
        assert "expected a function 'value'" in self.refusal(f"{path}:value")

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("import not_installed_anywhere", "No module named 'not_installed_anywhere'"),
            ("def reward(c:\n", "SyntaxError"),
            ("import os\nos._exit(5)", "the process died with exit code 5"),
            ("raise SystemExit('no')", "SystemExit('no')"),
        ],
    )
    def test_file_that_cannot_be_imported_is_named(self, tmp_path, source, reason):
        path = tmp_path / "broken.py"
        path.write_text(source)
        message = self.refusal(f"{path}:reward")
        assert str(path) in message and reason in message

    def test_option_that_the_function_does_not_take(self, tmp_path):
        (tmp_path / "own.py").write_text("def own(completion, limit=40):\n    return 1.0\n")
        config = RewardConfig(functions=[f"{tmp_path}/own.py:own"], options={"own": {"limt": 60}})
        with Rubric(config) as rubric, pytest.raises(ValueError, match=r"'limt'; its parameters are .*'limit'"):
            rubric.check_functions()

    def test_own_rewards_file_in_the_working_directory(self, tmp_path, monkeypatch, make_input):
        (tmp_path / "rewards.py").write_text("def mine(completion):\n    return len(completion.token_ids)\n")
        monkeypatch.chdir(tmp_path)
        with Rubric(RewardConfig(functions=["rewards.py:mine"])) as rubric:
            rubric.check_functions()
            (result,) = rubric.score([make_input(RIGHT)])
        assert result.parts["mine"] == 3.0


@pytest.mark.parametrize("names", [["answer"], ["format"], ["constant", "constant"]])
def test_part_names_are_unique(names, functions):
    with pytest.raises(ValueError, match=rf"part name '{names[-1]}' is taken"):
        Rubric(RewardConfig(functions=[f"{functions}:{name}" for name in names]))


@pytest.mark.parametrize("spec", ["a.py", "a.py:", ":f", "a.py:f g", "a.py:1f"])
def test_malformed_specs_are_refused_by_the_config(spec):
    with pytest.raises(ValueError, match=r"reward.functions: expected FILE.py:NAME, "):
        RewardConfig(functions=[spec])


def test_number_of_weights_must_fit():
    with pytest.raises(ValueError, match=r"expected 1 weights .* found 2"):
        RewardConfig(functions=["a.py:f"], function_weights=[1.0, 2.0])


class TestComposition:
    def score(self, make_input, inputs, **settings):
        with Rubric(RewardConfig(**settings)) as rubric:
            results = rubric.score([make_input(*item) if isinstance(item, tuple) else item for item in inputs])
            return results, rubric.take_metrics()

    def test_product_multiplies_parts_and_ignores_those_of_weight_0(self, make_input):
        results, _ = self.score(make_input, [(RIGHT,), (SHOWN,), (WRONG,)], combine=Combine.product)
        assert [result.value for result in results] == [1.0, 0.0, 0.0]
        settings = {"combine": Combine.product, "format_weight": 0.0}
        results, _ = self.score(make_input, [(RIGHT,), (SHOWN,), (WRONG,)], **settings)
        assert [result.value for result in results] == [1.0, 1.0, 0.0]

    def test_penalties_are_added_to_a_product(self, make_input):
        """Their best value is 0, which would make every product 0."""
        loop = "<think>" + "again and again " * 50 + "</think>\\boxed{7}"
        settings = {"combine": Combine.product, "parts": {"repetition": 0.5}, "options": {"repetition": {"ngram": 3}}}
        results, _ = self.score(make_input, [(RIGHT,), (loop,), (WRONG,)], **settings)
        penalty = results[1].parts["repetition"]
        assert penalty < -0.9 and [r.value for r in results] == pytest.approx([1.0, 1.0 + 0.5 * penalty, 0.0])

    def test_a_part_without_weight_is_logged_and_cannot_fail_a_completion(self, make_input, functions, capfd):
        settings = {"functions": [f"{functions}:constant"], "function_weights": [1.0], "format_weight": 0.0}
        inputs = [make_input(RIGHT, reference="\\frac{1}{"), make_input(RIGHT)]
        results, metrics = self.score(make_input, inputs, **settings, answer_weight=0.0)
        assert [(r.value, r.parts["answer"]) for r in results] == [(0.25, None), (0.25, 1.0)]
        assert metrics == {"not_applicable/answer": 0.5}
        assert "reward part 'answer' is unscorable" in capfd.readouterr().err
        (gated, _), _ = self.score(make_input, inputs, **settings, answer_weight=0.0, gates=["answer"])
        assert gated.status is Status.unscorable

    def test_without_a_verifier_only_the_own_reward_counts(self, make_input, functions, capfd):
        """References are neither read nor complained of, and no answer is right or wrong."""
        inputs = [make_input(RIGHT, reference="\\frac{1}{"), make_input(WRONG, reference="")]
        results, metrics = self.score(make_input, inputs, verifier="none", functions=[f"{functions}:constant"])
        assert [(r.value, r.parts, r.is_judged, r.answer) for r in results] == [
            (0.25, {"constant": 0.25}, False, "7"),
            (0.25, {"constant": 0.25}, False, "8"),
        ]
        assert metrics == {} and capfd.readouterr().err == ""

    def test_failures_of_a_part_are_printed_a_few_times_and_then_counted(self, make_input, capfd):
        inputs = [make_input(RIGHT, reference=f"\\frac{{{number}}}{{") for number in range(20)]
        self.score(make_input, inputs)
        printed = capfd.readouterr().err
        assert printed.count("reward part 'answer' is unscorable") == Rubric.most_shown
        assert printed.count("further failures are counted, not shown") == 1

    def test_gate_must_be_passed(self, make_input):
        results, _ = self.score(make_input, [(RIGHT,), (SHOWN,), (WRONG,)], gates=["format"])
        assert [result.value for result in results] == pytest.approx([1.0, 0.0, 0.1])
        assert results[1].parts == {"answer": 1.0, "format": 0.0} and results[1].correct

    def test_data_set_decides_the_verifier(self, make_input):
        inputs = [
            make_input("\\boxed{Paris}", reference="paris", meta={"dataset": "docs"}),
            make_input("\\boxed{104}", reference="100", meta={"data_source": "charts"}),
            make_input("\\boxed{104}", reference="100", meta={"dataset": "other"}),
        ]
        results, _ = self.score(make_input, inputs, datasets={"docs": "anls", "charts": "relaxed"})
        assert [result.parts["answer"] for result in results] == [1.0, 1.0, 0.0]

    def test_part_that_does_not_apply_gives_its_weight_away_and_is_counted(self, make_input, tmp_path):
        (tmp_path / "maybe.py").write_text(
            "def maybe(completions, **columns):\n"
            "    return [None if '7' in c[0]['content'] else 0.5 for c in completions]\n"
        )
        settings = {"functions": [f"{tmp_path}/maybe.py:maybe"], "function_weights": [0.5], "answer_weight": 0.4}
        results, metrics = self.score(make_input, [(RIGHT,), (WRONG,)], **settings)
        assert results[0].parts == {"answer": 1.0, "format": 1.0, "maybe": None}
        assert [result.value for result in results] == pytest.approx([1.0, 0.1 + 0.5 * 0.5])
        assert metrics == {"not_applicable/maybe": 0.5}

    def test_nothing_that_applies_is_unscorable(self, make_input, tmp_path):
        (tmp_path / "never.py").write_text("def never(completions, **columns):\n    return [None] * len(completions)\n")
        settings = {"functions": [f"{tmp_path}/never.py:never"], "function_weights": [1.0]}
        (result,), _ = self.score(make_input, [(RIGHT,)], **settings, answer_weight=0.0, format_weight=0.0)
        assert (result.value, result.status) == (None, Status.unscorable)
        assert "no part that earns applies" in result.reason

    def test_verifiers_are_parts_too_and_penalties_stay_out_of_the_sum(self, make_input):
        loop = "<think>" + "again and again " * 50 + "</think>\\boxed{7}"
        results, _ = self.score(
            make_input, [(RIGHT,), (loop,)], parts={"repetition": 0.5}, options={"repetition": {"ngram": 3}}
        )
        assert results[0].value == pytest.approx(1.0)
        assert results[1].parts["repetition"] < -0.9
        assert results[1].value == pytest.approx(1.0 + 0.5 * results[1].parts["repetition"])

    def test_functions_take_options_and_see_siblings(self, make_input, tmp_path):
        (tmp_path / "own.py").write_text("def own(batch, scale=1.0):\n    return [scale * len(batch) for _ in batch]\n")
        inputs = [
            make_input(RIGHT, prompt_id=name, draw=draw) for name, draw in (("a", 0), ("a", 0), ("a", 1), ("b", 2))
        ]
        settings = {"functions": [f"{tmp_path}/own.py:own"], "options": {"own": {"scale": 0.25}}}
        results, _ = self.score(make_input, inputs, **settings)
        assert [result.parts["own"] for result in results] == [0.5, 0.5, 0.25, 0.25]  # another draw is another group

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"answer_weight": 0.9, "format_weight": 0.3}, "penalties apart, found 1.2"),
            ({"functions": ["a.py:f"], "function_weights": [0.5]}, "penalties apart, found 1.5"),
            ({"parts": {"language": 0.3}}, "sum to 1"),
            ({"gates": ["fromat"]}, "expected some of .*'fromat'"),
            ({"parts": {"answer": 0.0}}, "'answer' is taken"),
            ({"answer_weight": float("nan")}, "finite"),
            ({"answer_weight": 0.0, "format_weight": 0.0, "weight_check": FREE}, "a part with a positive weight"),
        ],
    )
    def test_wrong_settings_are_refused(self, settings, said):
        with pytest.raises(ValueError, match=said):
            RewardConfig(**settings)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"verifier": "maths"}, "math"),
            ({"datasets": {"a": "anlss"}}, "anls"),
            ({"options": {"nummeric": {}}}, "reward.options"),
            ({"options": {"math": {"no_such": 1}}}, "no_such"),
        ],
    )
    def test_unknown_verifiers_and_options_are_refused(self, settings, said):
        with pytest.raises(ValueError, match=said):
            Rubric(RewardConfig(**settings))


def test_names_of_data_sets_that_no_row_has_are_refused():
    rows = [{"dataset": "a"}, {"data_source": "b"}]
    with Rubric(RewardConfig(datasets={"a": "exact", "b": "numeric"})) as rubric:
        rubric.check_datasets(rows)
        with pytest.raises(ValueError, match=r"reward\.datasets: expected names of data sets among a, found 'b'"):
            rubric.check_datasets(rows[:1])
    with Rubric(RewardConfig()) as rubric:
        rubric.check_datasets([])


@pytest.mark.parametrize(
    ("spec", "options", "said"),
    [
        ("rewards.judge:reasoning", {"base_uri": "http://h/v1", "model": "m"}, "did you mean 'base_url'"),
        ("rewards.judge:reasoning", {}, "expected base_url"),
        ("rewards.reward_model:preference", {"model": "/nowhere"}, "preference.model: expected a model folder"),
    ],
)
def test_options_of_a_judge_are_checked_before_a_run(spec, options, said):
    config = RewardConfig(functions=[spec], options={spec.rpartition(":")[2]: options})
    with Rubric(config) as rubric, pytest.raises(ValueError, match=said):
        rubric.check_functions()
