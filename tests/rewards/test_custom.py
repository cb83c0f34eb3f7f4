"""Functions in every style, called as they are written, and malformed returns refused by name and index."""

import sys

import pytest

from rewards.custom import Malformed, Style, call_one, call_siblings, describe, load_function, style_of
from rewards.result import CallStyle

SOURCE = """
import asyncio

def one(completion, limit=10):
    return len(completion.completion) / limit

def siblings(batch):
    return [sum(c.answer == other.answer for other in batch) / len(batch) for c in batch]

def trl(prompts, completions, completion_ids, solution, trainer_state=None, log_metric=None, **columns):
    log_metric("seen", len(completions))
    assert prompts[0][-1]["role"] == "user" and completion_ids[0] == [1, 2, 3]
    assert trainer_state.global_step == 7
    said = [c[0]["content"] for c in completions]
    return [None if p == "skip" else float(s in text) for text, s, p in zip(said, solution, columns["kind"])]

def verl(data_source, solution_str, ground_truth, extra_info=None):
    good = ground_truth in solution_str and data_source == "gsm" and extra_info["kind"] == "x"
    return {"score": float(good), "acc": good}

async def slow(completion):
    await asyncio.sleep(0.2)
    if completion.completion == "bad":
        raise LookupError("not found")
    return 0.5

async def batch_async(batch):
    await asyncio.sleep(0)
    return [1.0] * len(batch)

def returns(batch):
    return RETURNS[batch[0].completion]

RETURNS = {
    "short": [1.0], "scalar": 1.0, "string": "11", "dict": {"a": 1.0, "b": 2.0}, "nan": [1.0, float("nan")],
    "none": [0.5, None], "text": [0.5, "1"], "set": {0.0, 1.0},
}

class Judge:
    async def __call__(self, completion):
        return 0.5

called = Judge()

def verl_bool(solution_str, ground_truth, strict=False):
    return solution_str == ground_truth

def verl_index(data_source, solution_str, ground_truth, extra_info):
    return extra_info["index"] + len(extra_info["images"])

def verl_no_score(data_source, solution_str, ground_truth, extra_info):
    return {"acc": 1.0}

def bools(batch):
    import numpy
    return [True, numpy.bool_(False)]

def equal(completion):
    return completion.answer == completion.reference

def trl_bools(completions, **columns):
    import numpy
    return [True, numpy.bool_(False)]

def verl_batch(data_sources, solution_strs, ground_truths, extra_infos, bonus=0.0):
    pairs = zip(data_sources, solution_strs, ground_truths, extra_infos)
    scores = [bonus + (truth in text) * (source == "gsm") * info["index"] for source, text, truth, info in pairs]
    return [scores[0], {"score": scores[1] > 0, "acc": 1.0}, *scores[2:]]

def verl_raw(solution_str, ground_truth, extra_info=None):
    return {"score": ground_truth["target"] in solution_str}

def trl_metrics(completions, log_metric, **columns):
    log_metric("empty", float("nan"))
    log_metric("full", 2)
    return [1.0] * len(completions)

def needs(completion, *, limit):
    return limit

def forever(completion):
    return 1.0

forever.timeout_seconds = float("inf")

def tensors(batch):
    import torch
    return torch.ones(len(batch)) if batch[0].completion == "tensor" else [torch.tensor(1.0) for _ in batch]

def too_many(completion, other):
    return 0.0

def nothing():
    return 0.0

class Client:
    loop = None

    async def ask(self):
        self.loop = self.loop or asyncio.get_running_loop()
        if self.loop.is_closed():
            raise RuntimeError("the client's loop is closed")
        await asyncio.sleep(0)
        return 0.5

CLIENT = Client()

async def asks(completion):
    return await CLIENT.ask()

async def asks_trl(completions, **columns):
    return await asyncio.gather(*[CLIENT.ask() for _ in completions])

def columns_of_trl(completions, **columns):
    return [0.5 if all(columns[name][i] for name in NEEDED) else 0.0 for i in range(len(completions))]

NEEDED = ("solution", "answer", "reference", "problem", "question", "id", "level")

def shows_columns(completions, log_metric, **columns):
    if columns["solution"] == [7, 8] and columns["question"] == ["1+1?", "1+1?"]:
        log_metric("own", 1.0)
    return [1.0] * len(completions)

def picky(completion, size=1):
    return 1.0

def check_size(options):
    if options.get("size", 1) > 3:
        raise ValueError("reward.options.picky.size: expected at most 3")

picky.check_options = check_size

one.timeout_seconds = 30
not_a_function = 3
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    path = tmp_path_factory.mktemp("custom") / "styles.py"
    path.write_text(SOURCE)
    return lambda name: f"{path}:{name}"


def values(found):
    return [(result.value, result.reason) for result in found.results]


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("one", Style.native),
        ("siblings", Style.native_batch),
        ("trl", Style.trl),
        ("verl", Style.verl),
        ("verl_batch", Style.verl_batch),
        ("slow", Style.native),
    ],
)
def test_style_is_told_by_the_parameters(spec, name, style):
    assert style_of(load_function(spec(name))) is style


def test_native_functions_take_options_and_siblings(spec, make_input):
    inputs = [make_input("\\boxed{1}"), make_input("\\boxed{2}"), make_input("\\boxed{1}")]
    assert call_one(spec("one"), inputs[0], {"limit": 5}) == len("\\boxed{1}") / 5
    assert [v for v, _ in values(call_siblings(spec("siblings"), inputs, {}))] == [2 / 3, 1 / 3, 2 / 3]


def test_trl_function_sees_columns_state_and_metrics_and_may_abstain(spec, make_input):
    inputs = [
        make_input("it is 7", meta={"kind": "a"}),
        make_input("it is 8", meta={"kind": "a"}),
        make_input("it is 7", meta={"kind": "skip"}),
    ]
    found = call_siblings(spec("trl"), inputs, {}, step=7)
    assert values(found) == [(1.0, ""), (0.0, ""), (None, "")]
    assert found.metrics == {"seen": [3.0]}


def test_trl_function_finds_every_column_of_the_row_among_any_keywords(spec, make_input):
    inputs = [make_input("a", meta={"level": "easy"}), make_input("b", meta={"level": "hard"})]
    assert values(call_siblings(spec("columns_of_trl"), inputs, {})) == [(0.5, "")] * 2


def test_a_column_of_the_rows_own_goes_before_what_stands_for_it(spec, make_input):
    question = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "1+1?"}]}]
    inputs = [make_input("a", meta={"solution": n}, messages=question) for n in (7, 8)]
    assert call_siblings(spec("shows_columns"), inputs, {}).metrics == {"own": [1.0]}


def test_a_client_that_is_kept_lives_in_one_event_loop(spec, make_input):
    inputs = [make_input("a"), make_input("b")]
    for name in ("asks", "asks_trl", "asks", "asks_trl"):
        assert values(call_siblings(spec(name), inputs, {})) == [(0.5, "")] * 2


def test_a_function_may_check_its_own_options(spec):
    assert describe(spec("picky"), {"size": 3}).one_by_one
    with pytest.raises(ValueError, match=r"picky\.size: expected at most 3"):
        describe(spec("picky"), {"size": 4})


def test_verl_function_gets_its_four_arguments(spec, make_input):
    meta = {"data_source": "gsm", "kind": "x"}
    assert [call_one(spec("verl"), make_input(text, meta=meta), {}) for text in ("so 7", "so 8")] == [1.0, 0.0]


def test_coroutines_run_together_and_one_failure_is_one_failure(spec, make_input):
    import time

    inputs = [make_input("good")] * 9 + [make_input("bad")]
    start = time.perf_counter()
    found = call_siblings(spec("slow"), inputs, {}).results
    assert time.perf_counter() - start < 1.5  # ten sleeps of 0.2 s one after the other take 2 s
    assert [result.value for result in found] == [0.5] * 9 + [None]
    assert found[9].reason == "LookupError('not found')" and "Traceback" in found[9].traceback
    assert values(call_siblings(spec("batch_async"), inputs[:2], {})) == [(1.0, "")] * 2


@pytest.mark.parametrize("case", ["short", "scalar", "string", "dict", "set"])
def test_wrong_shape_is_refused_by_name(spec, make_input, case):
    with pytest.raises(TypeError, match=r"styles\.py:returns: expected"):
        call_siblings(spec("returns"), [make_input(case), make_input("b")], {})


@pytest.mark.parametrize("case", ["nan", "none", "text"])
def test_wrong_value_is_refused_by_name_and_index(spec, make_input, case):
    found = call_siblings(spec("returns"), [make_input(case), make_input("b")], {}).results
    assert found[0].value in (0.5, 1.0) and found[0].reason == ""
    assert found[1].value is None
    assert "styles.py:returns: completion 1: expected a finite number" in found[1].reason


def test_a_value_of_one_completion_is_refused_by_name_and_index(spec, make_input):
    with pytest.raises(
        Malformed, match=r"styles\.py:verl_no_score: completion 3: expected a finite number, found {'acc"
    ):
        call_one(spec("verl_no_score"), make_input("7"), {}, index=3)


def test_true_and_false_are_numbers_in_every_style(spec, make_input):
    assert [call_one(spec("equal"), make_input(f"\\boxed{{{n}}}"), {}) for n in (7, 8)] == [1.0, 0.0]
    assert values(call_siblings(spec("bools"), [make_input("a"), make_input("b")], {})) == [(1.0, ""), (0.0, "")]
    assert [call_one(spec("verl_bool"), make_input(text), {"strict": True}) for text in ("7", "8")] == [1.0, 0.0]
    inputs = [make_input("a"), make_input("b")]
    assert values(call_siblings(spec("trl_bools"), inputs, {})) == [(1.0, ""), (0.0, "")]


def test_verl_function_for_a_batch_gets_lists(spec, make_input):
    meta = {"data_source": "gsm", "extra_info": {"index": 0.5}}
    inputs = [make_input(text, meta=meta) for text in ("so 7", "it is 7", "8")]
    assert not describe(spec("verl_batch"), {"bonus": 0.25}).one_by_one
    assert values(call_siblings(spec("verl_batch"), inputs, {"bonus": 0.25})) == [(0.75, ""), (1.0, ""), (0.25, "")]


def test_verl_function_gets_the_ground_truth_as_the_row_has_it(spec, make_input):
    item = make_input("so 24", meta={"reward_model": {"style": "rule", "ground_truth": {"target": "24"}}})
    assert call_one(spec("verl_raw"), item, {}) == 1.0


def test_verl_function_sees_the_column_extra_info_as_its_own(spec, make_input):
    item = make_input("7", images=["a.png"], meta={"extra_info": {"index": 5}})
    assert call_one(spec("verl_index"), item, {}) == 6.0


def test_an_object_with_an_async_call_is_a_coroutine_function(spec, make_input):
    assert describe(spec("called")) == CallStyle(one_by_one=False)
    assert values(call_siblings(spec("called"), [make_input("a")], {})) == [(0.5, "")]


def test_a_metric_of_nothing_costs_no_reward(spec, make_input):
    found = call_siblings(spec("trl_metrics"), [make_input("a")], {})
    assert (values(found), found.metrics) == ([(1.0, "")], {"full": [2.0]})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("one", {"limt": 3}, "unexpected keyword argument 'limt'; its parameters are .*'limit'"),
        ("needs", {}, "missing a required .*'limit'"),
        ("verl", {"strict": 1}, "unexpected keyword argument 'strict'"),
        ("one", {"secret_word": "x"}, r"cannot be called with \['secret_word'\]"),
        ("forever", {}, "attribute timeout_seconds: expected more than 0, found inf"),
    ],
)
def test_options_and_limits_without_sense_are_found_when_it_is_loaded(spec, name, options, said):
    with pytest.raises(ValueError, match=said):
        describe(spec(name), options)


def test_a_file_may_import_its_neighbour_and_a_module_may_lie_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "neighbour_of_mine.py").write_text("value = 0.5\n")
    (tmp_path / "own.py").write_text("import neighbour_of_mine as n\ndef f(completion):\n    return n.value\n")
    (tmp_path / "package_of_mine").mkdir()
    (tmp_path / "package_of_mine" / "inner.py").write_text("def g(completion):\n    return 0.25\n")
    assert load_function(f"{tmp_path / 'own.py'}:f")(None) == 0.5
    monkeypatch.setattr("sys.path", [path for path in sys.path if path not in ("", str(tmp_path))])
    monkeypatch.chdir(tmp_path)
    assert load_function("package_of_mine.inner:g")(None) == 0.25


def test_tensors_are_refused(spec, make_input):
    with pytest.raises(TypeError, match="found tensor"):
        call_siblings(spec("tensors"), [make_input("tensor"), make_input("b")], {})
    found = call_siblings(spec("tensors"), [make_input("a"), make_input("b")], {}).results
    assert all(result.value is None and "found tensor" in result.reason for result in found)


@pytest.mark.parametrize("name", ["too_many", "nothing"])
def test_parameters_that_fit_no_style_are_refused(spec, name):
    with pytest.raises(ValueError, match="expected the parameters"):
        load_function(spec(name))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("/nowhere/a.py:f", "expected a Python file"),
        ("no_such_package.module:f", "importing no_such_package.module failed"),
        ("math:nope", "expected a function 'nope'"),
        ("no_such_entry_point", "entry point"),
    ],
)
def test_what_cannot_be_found_is_said(text, said):
    with pytest.raises(ValueError, match=said):
        load_function(text)


def test_entry_points_are_found(monkeypatch):
    class Point:
        name = "mine"

        def load(self):
            return lambda completion: 1.0

    monkeypatch.setattr("rewards.custom.importlib.metadata.entry_points", lambda group: [Point()])
    load_function.cache_clear()
    assert load_function("mine")(None) == 1.0
    load_function.cache_clear()


def test_description_says_how_to_call_a_function(spec):
    assert describe(spec("one")) == CallStyle(one_by_one=True, timeout_seconds=30.0)
    assert describe(spec("siblings")) == describe(spec("slow")) == CallStyle(one_by_one=False)
    assert describe(spec("verl")) == CallStyle(one_by_one=True)
