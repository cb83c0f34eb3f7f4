"""Texts arrive as they were typed, `~` is the home folder, and names that choose nothing are refused."""

import pwd

import pytest

from conf.cli import assign, load_config

LOOKS = [
    "1_000",
    "1e3",
    "1.50",
    "007",
    "0x10",
    "true",
    "null",
    "None",
    "nan",
    "a,b",
    "lr=3",
    "a: b",
    "[x",
    "it's",
    "a\\b",
    " a ",
]


def rl(*overrides: str):
    return load_config("rlhf", ["checkpoint=c", "prompts=p", *overrides])


@pytest.mark.parametrize("text", LOOKS)
def test_a_text_is_what_was_typed(text):
    config, resolved = rl(f"run.dir={text}", f"data.id_column={text}")
    assert (config.run.dir, config.data.id_column) == (text, text)
    (again,) = (load_config("rlhf", ["checkpoint=c", "prompts=p", assign("run.dir", text)])[0],)
    assert again.run.dir == text and "checkpoint: c" in resolved


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("[1_0,2]", ["1_0", "2"]),
        ("[ 1e3 , true,null ]", ["1e3", "true", "null"]),
        ("['a,b', \"c d\", e f]", ["a,b", "c d", "e f"]),
        ("[a[0],b{1,2}]", ["a[0]", "b{1,2}"]),
        ("[]", []),
    ],
)
def test_so_is_each_text_of_a_list(typed, found):
    assert rl(f"data.also={typed}")[0].data.also == found


def test_a_mapping_and_a_section_keep_their_texts_too():
    config, _ = rl(
        "reward.datasets={1e3: exact, b: 'math'}", "data.weights={1_0: 2}", "evaluation={prompts: 1_0, every: 5}"
    )
    assert config.reward.datasets == {"1e3": "exact", "b": "math"} and config.data.weights == {"1_0": 2.0}
    assert (config.evaluation.prompts, config.evaluation.every) == ("1_0", 5)


def test_numbers_stay_numbers_and_open_settings_stay_open():
    config, _ = rl("trainer.max_steps=1_0", "reward.options={math: {a: 1e3, b: [1, x]}}", "run.dir='7'")
    assert (config.trainer.max_steps, config.run.dir) == (10, "7")
    assert config.reward.options == {"math": {"a": 1000.0, "b": [1, "x"]}}


def test_a_recipe_of_ones_own_keeps_its_texts(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("run:\n  dir: 1_000\n  seed: 1_0\ncheckpoint: true\nprompts: 007\ndata:\n  also: [1e3, b]\n")
    config, _ = load_config("rlhf", [f"recipe={path}"])
    assert (config.run.dir, config.run.seed, config.checkpoint, config.prompts) == ("1_000", 10, "true", "007")
    assert config.data.also == ["1e3", "b"]
    assert load_config("rlhf", [f"recipe={path}", "run.dir=2_0"])[0].run.dir == "2_0"


@pytest.mark.parametrize("value", ["a\\b", "a\\\\b", "a\\", "a\\'b", "it's", '"q"', " a ", "a,[b]"])
def test_an_assignment_that_the_pipeline_makes_survives_the_grammar(value):
    assert rl(assign("run.dir", value), assign("data.also", [value, "x"]))[0].data.also == [value, "x"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("entry", "arguments", "read"),
    [
        ("rlhf", ["checkpoint=~/x", "prompts=p"], lambda c: c.checkpoint),
        ("rlhf", ["checkpoint=c", "prompts='~/x'"], lambda c: c.prompts),
        ("rlhf", ["checkpoint=c", "prompts=p", "run.dir=~/x"], lambda c: c.run.dir),
        ("rlhf", ["checkpoint=c", "prompts=p", "data.also=[a,~/x]"], lambda c: c.data.also[1]),
        ("rlhf", ["checkpoint=c", "prompts=p", "evaluation={prompts: ~/x}"], lambda c: c.evaluation.prompts),
        ("rlhf", ["checkpoint=c", "prompts=p", "reward.options={f: {cache: '~/x'}}", "reward.functions=[a.py:f]"],
         lambda c: c.reward.options["f"]["cache"]),
        ("evaluate", ["checkpoint=c", "prompts=p", "output=~/x"], lambda c: c.output),
        ("generate", ["checkpoint=c", "prompts=p", "out=~/x"], lambda c: c.out),
        ("sft", ["checkpoint=c", "data.demonstrations=~/x"], lambda c: c.data.demonstrations),
        ("pretrain", ["recipe=quickstart", "data.path=~/x"], lambda c: c.data.path),
        ("pipeline", ["recipe=quickstart", "data=~/x"], lambda c: c.data),
        ("pipeline", ["recipe=quickstart", "evaluation.inputs={prompts: '~/x'}"], lambda c: c.evaluation.inputs["prompts"]),
        ("chat", ["checkpoint=c", "image=~/x"], lambda c: c.image[0]),
        ("assemble", ["vision=~/x", "language=l", "out=o"], lambda c: c.vision),
    ],
)  # fmt: skip
def test_a_tilde_at_the_start_of_a_path_is_the_home_folder(home, entry, arguments, read):
    config, resolved = load_config(entry, arguments)
    assert read(config) == f"{home}/x" and "~" not in resolved


def test_a_function_and_a_recipe_may_be_at_home(home, tmp_path):
    (tmp_path / "mine.yaml").write_text("reward:\n  functions: ['~/r.py:f']\ncheckpoint: ~/c\n")
    config, _ = load_config("rlhf", ["recipe=~/mine.yaml", "prompts=p"])
    assert config.reward.functions == [f"{home}/r.py:f"] and config.checkpoint == f"{home}/c"


def test_another_users_home_is_found_or_refused():
    root = pwd.getpwuid(0)
    assert rl(f"run.dir=~{root.pw_name}/x")[0].run.dir == f"{root.pw_dir}/x"
    with pytest.raises(ValueError, match=r"run\.dir: expected the home folder of a user, found '~nobody-here'"):
        rl("run.dir=~nobody-here/x")
    assert rl("run.dir=a~b", "data.also=[./~x]")[0].run.dir == "a~b"


def test_a_question_may_begin_with_a_tilde():
    assert load_config("chat", ["checkpoint=c", "question=~ 5?"])[0].question == "~ 5?"


@pytest.mark.parametrize(
    ("entry", "override", "said"),
    [
        ("rlhf", "rollouts.name=vllm", r"rollouts\.name: chooses nothing by itself; set rollouts=embedded\|vllm instead"),
        ("rlhf", "trainer.name=trl", r"trainer\.name: chooses nothing .* set trainer=sailvl2\|trl"),
        ("rlhf", "algorithm.name=cispo", r"algorithm\.name: .* set algorithm=grpo\|"),
        ("rlhf", "+algorithm.name=dapo", r"algorithm\.name: "),
        ("evaluate", "rollouts.name=vllm", r"rollouts\.name: "),
        ("generate", "rollouts.name=x", r"rollouts\.name: .*found 'x'"),
    ],
)  # fmt: skip
def test_a_name_that_chooses_nothing_is_refused(required, entry, override, said):
    with pytest.raises(ValueError, match=said):
        load_config(entry, [*required[entry], override])


def test_a_custom_algorithm_keeps_its_name():
    assert rl("algorithm=custom", "algorithm.name=mine.py:Own")[0].algorithm.name == "mine.py:Own"


def test_a_recipe_whose_name_is_not_the_groups_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rollouts:\n  name: vllm\n")
    with pytest.raises(ValueError, match=r"rollouts\.name: .*found 'vllm' with rollouts=embedded"):
        rl(f"recipe={path}")
    assert rl(f"recipe={path}", "rollouts=vllm")[0].rollouts.name == "vllm"
