"""The library's front door: one package, names that are looked up when they are used, verdicts and samples in one call."""

import base64
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sailvl2_rl
from model.interface import THINKING_INSTRUCTION
from sailvl2_rl import Mode, RewardConfig, Rubric, Unscorable, load, reward_input, sample, sample_batch, score, verify

QUESTION = "What is the sum?"
RIGHT = "<think>2 + 2</think>\\boxed{4}"


@pytest.fixture(scope="module")
def loaded(tiny_folder):
    return load(tiny_folder, device="cpu")


@pytest.fixture
def picture(tmp_path) -> Path:
    Image.effect_noise((32, 32), 60).convert("RGB").save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_importing_the_package_imports_nothing_heavy():
    script = (
        "import sys, sailvl2_rl; sailvl2_rl.__version__; dir(sailvl2_rl)\n"
        "print([name for name in ('torch', 'numpy', 'transformers', 'model', 'rewards') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_every_name_is_there_and_a_wrong_one_is_refused():
    assert all(getattr(sailvl2_rl, name) is not None for name in sailvl2_rl.__all__)
    assert sailvl2_rl.__version__ == importlib.metadata.version("sailvl2-rl")
    assert set(sailvl2_rl.__all__) == set(dir(sailvl2_rl)) and sailvl2_rl.load is load
    with pytest.raises(AttributeError, match="no attribute 'laod'; it has Completion"):
        sailvl2_rl.laod  # noqa: B018


class TestSampling:
    def test_a_question_is_sampled_in_both_modes(self, loaded):
        one, two = sample(*loaded, QUESTION, "direct", num_samples=2, max_completion_tokens=5)
        assert one.token_ids != two.token_ids and len(one.logprobs) == len(one.token_ids) <= 5
        assert one.finish_reason in ("stop", "length") and str(one) == one.text
        (thought,) = sample(*loaded, QUESTION, Mode.think, temperature=0, max_completion_tokens=5)
        assert (
            thought == sample(*loaded, QUESTION, temperature=0, max_completion_tokens=5)[0]
        )  # thinking is the default

    def test_mode_auto_is_sampled_and_its_decision_is_read(self, loaded, monkeypatch):
        said = '<judge>{"requires_reasoning": false}</judge>\\boxed{4}'
        (free,) = sample(*loaded, QUESTION, "auto", max_completion_tokens=2)
        assert free.requires_reasoning is None
        monkeypatch.setattr(type(loaded[1].tokenizer), "decode", lambda *_: said)
        (found,) = sample(*loaded, QUESTION, "auto", max_completion_tokens=2)
        assert (found.requires_reasoning, found.thinking, found.answer) == (False, "", "4")

    def test_a_seed_gives_the_same_completions_alone_and_among_others(self, loaded):
        options = {"seed": 3, "max_completion_tokens": 8}
        alone = sample(*loaded, QUESTION, **options)
        assert sample_batch(*loaded, [QUESTION, "Why?"], **options)[0] == alone
        assert sample(*loaded, QUESTION, seed=4, max_completion_tokens=8) != alone

    def test_the_model_itself_is_used_and_left_as_it_is(self, loaded):
        before = {name: tensor.clone() for name, tensor in loaded[0].state_dict().items()}
        sample(*loaded, QUESTION, max_completion_tokens=2)
        assert all(torch.equal(before[name], tensor) for name, tensor in loaded[0].state_dict().items())
        assert torch.is_inference_mode_enabled() is False

    def test_images_come_in_every_form_and_say_the_same(self, loaded, picture, monkeypatch):
        monkeypatch.chdir(picture.parent)
        pixels = np.asarray(Image.open(picture))
        encoded = "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
        parts = [
            {"type": "image", "image": "picture.png"},
            {"type": "image", "image": str(picture)},
            {"type": "image", "image": Image.open(picture)},
            {"type": "image", "image": pixels},
            {"type": "image_url", "image_url": {"url": encoded}},
            {"type": "image_url", "image_url": {"url": picture.as_uri()}},
            {"type": "image_url", "image_url": "picture.png"},
        ]
        asked = [[{"role": "user", "content": [part, {"type": "text", "text": QUESTION}]}] for part in parts]
        first, *others = sample_batch(*loaded, asked, temperature=0, max_completion_tokens=4)
        assert all(one[0].logprobs == first[0].logprobs for one in others)

    @pytest.mark.parametrize(
        ("messages", "options", "said"),
        [
            (QUESTION, {"mode": "thinking"}, "mode: expected think or direct or auto, found 'thinking'"),
            (QUESTION, {"mode": None}, "mode: expected think or direct or auto, found None"),
            (QUESTION, {"temperature": -1}, "expected at least 1, a number from 0 on"),
            (QUESTION, {"max_completion_tokens": 10_000}, "max_completion_tokens: expected 0 to 4"),
            ({"role": "user", "content": QUESTION}, {}, "found a single message; put it in a list"),
            (
                [{"role": "user", "content": [{"type": "image", "image": "gone.png"}]}],
                {},
                "expected a file, found none",
            ),
        ],
    )
    def test_what_does_not_fit_is_refused(self, loaded, messages, options, said):
        with pytest.raises(ValueError, match=said):
            sample(*loaded, messages, **options)

    def test_a_device_and_a_dtype_are_refused_by_name(self, tiny_folder):
        with pytest.raises(ValueError, match="device: expected auto, cpu, cuda or a device of torch, found 'gpu'"):
            load(tiny_folder, device="gpu")
        with pytest.raises(ValueError, match="dtype: expected auto, float32, bfloat16, float16 or a dtype of torch"):
            load(tiny_folder, dtype="half")
        assert load(tiny_folder, device="cpu", dtype="bfloat16")[0].dtype is torch.bfloat16

    def test_weights_that_are_not_finite_are_no_completion(self, tiny_folder):
        model, processor = load(tiny_folder, device="cpu")
        with torch.no_grad():
            model.language_model.lm_head.weight.fill_(float("nan"))
        with pytest.raises(RuntimeError, match="the sampler failed"):
            sample(model, processor, QUESTION, max_completion_tokens=2)


class TestModes:
    def test_a_mode_by_name_is_the_mode(self, tiny):
        """It was taken for the direct mode, because it was compared by identity."""
        messages = [{"role": "user", "content": QUESTION}]
        processor = tiny[1]
        for mode in Mode:
            assert processor.prompt(messages, mode.value).ids == processor.prompt(messages, mode).ids
        text = processor.tokenizer.decode(processor.prompt(messages, "think").ids)
        assert THINKING_INSTRUCTION in text
        answered = [*messages, {"role": "assistant", "content": "4"}]
        assert processor.conversation(answered, "think").ids == processor.conversation(answered, Mode.think).ids
        assert torch.equal(
            processor.batch([messages], "think").token_ids, processor.batch([messages], Mode.think).token_ids
        )

    @pytest.mark.parametrize("call", ["prompt", "conversation", "batch"])
    def test_another_name_is_refused(self, tiny, call):
        messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "4"}]
        given = {"prompt": messages[:1], "conversation": messages, "batch": [messages]}[call]
        with pytest.raises(ValueError, match="mode: expected think or direct or auto, found 'Think'"):
            getattr(tiny[1], call)(given, "Think")


class TestScoring:
    def test_completions_and_answers_are_judged_in_one_call(self):
        assert score("math", RIGHT, "4.0") == 1.0 and score("math", "<think>no</think>\\boxed{5}", "4") == 0.0
        assert score("math", "<think>4</think> I do not know", "4") == 0.0
        assert verify("math", "\\frac{1}{2}", "0.5") == 1.0 and verify("exact", "cat", "dog") == 0.0
        assert verify("numeric", "3.01", "3", options={"absolute": 0.1}) == 1.0
        assert score("choice", "\\boxed{B}", "B", columns={"options": ["cat", "dog"]}) == 1.0
        assert score("format", RIGHT, "") == 1.0

    def test_what_sample_returns_can_be_scored(self, loaded):
        (completion,) = sample(*loaded, QUESTION, temperature=0, max_completion_tokens=4)
        assert score("math", completion, "4") == 0.0

    def test_another_place_of_the_answer_is_chosen_by_name(self):
        assert score("math", "The answer: 4", "4", answer_rules=["boxed", "answer_line"]) == 1.0
        with pytest.raises(ValueError, match=r"answer_rules: expected some of boxed, .* found 'box'"):
            score("math", RIGHT, "4", answer_rules=["box"])

    def test_what_cannot_be_judged_is_no_zero(self):
        with pytest.raises(Unscorable, match="math: refused: the reference is empty"):
            score("math", RIGHT, "")
        for wrong, said in (
            ((len, "2", "2"), "verifier: expected a name"),
            (("math", None, "2"), "completion: expected"),
        ):
            with pytest.raises(ValueError, match=said):
                score(*wrong)
        with pytest.raises(ValueError, match="unknown verifier 'maths'; did you mean 'math'"):
            score("maths", RIGHT, "4")


class TestFunctions:
    @pytest.fixture
    def module(self, tmp_path, monkeypatch):
        (tmp_path / "my_own_rewards.py").write_text(
            "def brevity(completion, limit=40):\n    return max(0.0, 1.0 - len(completion.completion) / limit)\n"
        )
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module("my_own_rewards")

    def test_a_function_of_a_module_is_a_reward(self, module):
        config = RewardConfig(functions=[module.brevity], function_weights=[1.0], answer_weight=0, format_weight=0)
        assert config.functions == [f"{module.__file__}:brevity"] and config.function_names == ["brevity"]
        with Rubric(config) as rubric:
            (result,) = rubric.score([reward_input("a" * 30, "4")])
        assert result.value == pytest.approx(0.25)

    def test_a_function_of_a_package_is_named_by_its_module(self):
        from examples.brevity_reward import brevity

        assert RewardConfig(functions=[brevity]).functions == ["examples.brevity_reward:brevity"]

    def test_what_no_other_process_can_load_is_refused_with_the_way_out(self, module):
        def local(completion):
            return 1.0

        def cell(completion):
            return 1.0

        cell.__module__, cell.__qualname__ = "__main__", "cell"  # as in a notebook
        for function in (local, cell, lambda completion: 1.0, module.brevity.__call__, Rubric.score):
            with pytest.raises(ValueError, match=r"scorer processes cannot load it. Write it to a file"):
                RewardConfig(functions=[function])
        module.renamed, module.brevity.__qualname__ = module.brevity, "other"
        with pytest.raises(ValueError, match="found other of my_own_rewards"):
            RewardConfig(functions=[module.renamed])


def test_typed_packages_say_so():
    root = Path(sailvl2_rl.__file__).parents[1]
    for room in ("model", "sft", "rewards", "rollouts", "rlhf", "sailvl2_rl", "conf"):
        assert (root / room / "py.typed").is_file(), room


def test_registering_makes_transformers_pipelines_take_a_folder(tiny_folder, picture):
    from transformers import pipeline

    sailvl2_rl.register()
    pipe = pipeline("image-text-to-text", model=str(tiny_folder))
    content = [{"type": "image", "url": str(picture)}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    (answer,) = pipe(text=messages, max_new_tokens=6, thinking=True, return_full_text=False)
    (ours,) = sample(*load(tiny_folder, device="cpu"), messages, "think", temperature=0, max_completion_tokens=6)
    assert answer["generated_text"] == ours.text
