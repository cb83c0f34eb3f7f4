"""`trainer=trl`: whole runs on a tiny checkpoint, the mapping of settings, what is refused, rewards in both directions."""

import contextlib
import io
import json
import math
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from conf.cli import load_config
from model.checkpoint import build_flavour, load_model, save_model
from model.config import Flavour, Tower
from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.optimizer import AdamW
from model.engine.schedule import learning_rate_at
from model.interface import Mode
from model.processing.processor import Processor
from rewards.config import RewardConfig, WeightCheck
from rewards.result import RewardInput
from rewards.rubric import Rubric
from rlhf.algorithms.registry import build_algorithm
from rlhf.drawing.draws import DrawOrder
from rlhf.prompts import PromptSet
from rlhf.stage import run_stage
from rlhf.trl.reward import trl_reward
from rlhf.trl.settings import check, trl_arguments
from rollouts.config import RolloutConfig
from tests.conftest import require_extra

SIZES = [
    "trainer.max_steps=2",
    "trainer.groups_per_step=4",
    "trainer.mini_batch_size=6",
    "trainer.micro_batch_size=3",
    "trainer.passes=2",
    "algorithm.group_size=3",
    "algorithm.overlong.buffer=2",
    "rollouts.max_completion_tokens=6",
    "reward.num_workers=1",
    "engine.num_threads=1",
]
"""Two steps of twelve completions, each trained on in two mini-batches and two passes."""
UPDATES = 8


@pytest.fixture(scope="module")
def trl():
    """The module under test; importing TRL takes seconds."""
    require_extra("trl", "trl")
    import rlhf.trl.trl_trainer

    return rlhf.trl.trl_trainer


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Prompts with no image, one and two, with a system message and a conversation before the question."""
    folder = tmp_path_factory.mktemp("trl data")
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (32, 32, 4), np.uint8), "RGBA").save(folder / name)
    a, b = ({"type": "image", "image": name} for name in ("a.png", "b.png"))
    text = {"type": "text", "text": "How many?"}
    contents = [[a, text], "How many?", [text, b], [b, a]]
    rows = [
        {"id": f"p{index}", "messages": [{"role": "user", "content": content}], "reference": str(index), "kind": "easy"}
        for index, content in enumerate(contents)
    ]
    rows[0]["messages"].insert(0, {"role": "system", "content": "Short answers."})
    history = [{"role": "user", "content": [a, text]}, {"role": "assistant", "content": "Two."}]
    rows.append({**rows[1], "id": "p4", "messages": [*history, {"role": "user", "content": "And now?"}]})
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "odd.py").write_text(
        "def odd(completion):\n"
        "    if completion.token_ids[1] % 3 == 0:\n"
        "        raise LookupError('no verdict')\n"
        "    return float(completion.token_ids[0] % 2)\n"
    )
    return path


@pytest.fixture(scope="module")
def start(tiny_folder, data):
    """A config of the recipe through TRL, and its YAML."""

    def compose(folder: Path, *overrides: str):
        paths = [f"checkpoint='{tiny_folder}'", f"prompts='{data}'", f"run.dir='{folder}'"]
        reward = f"reward.functions=['{data.parent / 'odd.py'}:odd']"
        return load_config("rlhf", ["recipe=quickstart_smoke", "trainer=trl", *paths, reward, *SIZES, *overrides])

    return compose


@pytest.fixture(scope="module")
def finished(trl, start, tmp_path_factory):
    """(folder, what it printed) of a run of GRPO with a reference model."""
    folder, printed = tmp_path_factory.mktemp("trl") / "run", io.StringIO()
    with contextlib.redirect_stdout(printed):
        run_stage(*start(folder, "algorithm=grpo"))
    return folder, printed.getvalue()


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class TestRun:
    def test_every_tower_trains_and_our_own_loader_reads_the_result(self, finished, tiny):
        trained, processor = load_model(finished[0] / "final")
        before = dict(tiny[0].named_parameters())
        unchanged = [name for name, p in trained.named_parameters() if torch.equal(p, before[name])]
        assert not unchanged
        assert {name.partition(".")[0] for name in before} == {tower.value for tower in Tower}
        assert processor.barred_ids == tiny[1].barred_ids
        assert json.loads((finished[0] / "done.json").read_text()) == {"updates": UPDATES}

    def test_metrics_have_our_names(self, finished, start):
        metrics = lines(finished[0] / "metrics.jsonl")
        assert [m["step"] for m in metrics] == [1, 2]
        names = (
            "reward reward/odd accuracy length/mean overlong_share unscorable_share completion_tokens loss entropy "
            "clip/low_share kl/reference grad_norm learning_rate updates time/collect time/update groups/trained"
        )
        assert not set(names.split()) - metrics[0].keys()
        config, _ = start(Path("unused"))
        for number, m in enumerate(metrics, start=1):
            last = number * UPDATES // 2 - 1
            assert m["learning_rate"] == pytest.approx(learning_rate_at(last, UPDATES, config.optimizer), rel=1e-9)
            assert m["updates"] == UPDATES / 2 and m["grad_norm"] > 0
        assert any(m["unscorable_share"] > 0 for m in metrics)

    def test_prompts_are_those_that_our_trainer_draws(self, finished, data, tiny):
        prompts = PromptSet(data, tiny[1], Mode.think, RolloutConfig())
        order = DrawOrder(prompts.ids, prompts.weights, 0)
        rollouts = [r for step in (1, 2) for r in lines(finished[0] / f"rollouts/step_{step:06d}.jsonl")]
        drawn = [prompts.ids[order.next()] for _ in range(8)]
        assert [(r["prompt_id"], r["draw"]) for r in rollouts[::3]] == [(p, d) for d, p in enumerate(drawn)]
        assert len(rollouts) == 24

    def test_barred_tokens_are_never_sampled(self, finished, tiny):
        sampled = {i for path in (finished[0] / "rollouts").iterdir() for r in lines(path) for i in r["completion_ids"]}
        assert sampled and not sampled & set(tiny[1].barred_ids)

    def test_it_says_what_is_off(self, finished, start):
        assert "trainer=trl: every step draws 4 prompts" in finished[1]
        from rlhf.trl.settings import switched_off

        config, _ = start(Path("unused"), "algorithm=dapo", "algorithm.group_filter=correctness_spread")
        assert "no dynamic sampling (algorithm.group_filter=correctness_spread): every group trains" in switched_off(
            config
        )

    def test_a_finished_run_stays_and_an_unfinished_one_is_not_continued(self, finished, start, tmp_path, capsys):
        run_stage(*start(finished[0], "algorithm=grpo"))
        out = capsys.readouterr().out
        assert "already complete" in out and "next: python -m rlhf.evaluate checkpoint=" in out
        shutil.copy(finished[0] / "run.json", tmp_path)
        (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
        with pytest.raises(ValueError, match=r"a run of trainer=trl.*run\.start=fresh"):
            run_stage(*start(tmp_path, "algorithm=grpo"))

    def test_the_seed_decides(self, finished, start, tmp_path):
        run_stage(*start(tmp_path / "again", "algorithm=grpo"))
        name = "rollouts/step_000002.jsonl"
        assert (tmp_path / "again" / name).read_bytes() == (finished[0] / name).read_bytes()
        weights = "final/model.safetensors"
        assert (tmp_path / "again" / weights).read_bytes() == (finished[0] / weights).read_bytes()


@pytest.mark.parametrize("algorithm", ["dapo", "rloo"])
def test_unscorable_completions_are_no_part_of_their_group(trl, start, tmp_path, data, algorithm):
    """TRL's own advantages of the last step, by hand. Its deviation is the sample's, plus 1e-4: ours is the
    population's, plus 1e-6."""
    config, _ = start(
        tmp_path,
        f"algorithm={algorithm}",
        "trainer.max_steps=1",
        "algorithm.kl.coefficient=0",
        "algorithm.kl.place=loss",
    )
    processor = Processor.from_folder(Path(config.checkpoint))
    prompts = PromptSet(data, processor, Mode.think, RolloutConfig())
    policy = trl.load_policy(Path(config.checkpoint), processor, config.engine)
    with Rubric(config.reward) as rubric:
        rewards = trl.StepRewards(prompts, rubric, build_algorithm(config.algorithm, 6), processor.tokenizer, config)
        trainer = trl.build_trainer(config, policy, prompts, rewards, processor)
        trainer.train()
    given = np.array(trainer._logs["rewards"]["score_step"]).reshape(4, 3)
    found = np.array(trainer._logs["advantages"]).reshape(4, 3)
    assert np.isnan(given).any() and len(set(given[~np.isnan(given)])) > 1
    for reward, advantage in zip(given, found, strict=True):
        scored = ~np.isnan(reward)
        assert (advantage[~scored] == 0).all()
        if scored.sum() < 2:
            assert (advantage == 0).all()
            continue
        values = reward[scored]
        if algorithm == "rloo":
            expected = (values - values.mean()) * len(values) / (len(values) - 1)
        else:
            expected = (values - values.mean()) / (values.std(ddof=1) + 1e-4)
        assert advantage[scored] == pytest.approx(expected, abs=1e-5)
    shaped = [t.shaped_reward for group in rewards.groups for t in group.trajectories if t.is_scored]
    assert given[~np.isnan(given)] == pytest.approx(shaped, rel=1e-6)


def test_trl_sees_the_ids_and_pixels_of_our_own_prompts(trl, tiny, tiny_folder, data):
    prompts = PromptSet(data, tiny[1], Mode.think, RolloutConfig())
    processor = trl.AutoProcessor.from_pretrained(tiny_folder)
    for index in range(len(prompts)):
        task = prompts.build(index)
        messages, images = trl.as_trl_prompt(task)
        filled = trl_messages(messages, images)
        batch = processor.apply_chat_template([filled], tokenize=True, add_generation_prompt=True, thinking=True)
        assert batch["input_ids"][0] == task.tokens.ids
        assert len(images) == len(task.images)
        if images:
            assert torch.equal(batch["pixel_values"], torch.cat(list(task.images)))


def trl_messages(messages, images):
    from trl.data_utils import prepare_multimodal_messages

    return prepare_multimodal_messages(messages, images=images)


def test_a_policy_is_written_back_under_released_names(trl, tmp_path):
    """An MoE decoder, whose experts are stacked in memory and single on disk."""
    save_model(tmp_path / "moe", *build_flavour(Flavour.tiny_moe, seed=1))
    policy = trl.load_policy(tmp_path / "moe", Processor.from_folder(tmp_path / "moe"), EngineConfig())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(2.0)
    trl.save_policy(tmp_path / "out", policy, tmp_path / "moe")
    before, after = (dict(load_model(tmp_path / name)[0].named_parameters()) for name in ("moe", "out"))
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], 2.0 * parameter) for name, parameter in before.items())


def test_frozen_towers(trl, tiny, tiny_folder):
    engine = EngineConfig(freeze=[Tower.vision, Tower.language])
    policy = trl.load_policy(tiny_folder, tiny[1], engine)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in policy.named_parameters() if name.startswith("model.mlp1.")}
    optimizer, _ = trl.build_optimizer(policy, OptimizerConfig(learning_rate=1e-3), 1)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(trained)


def test_videos_are_refused(trl):
    visual = SimpleNamespace(media=SimpleNamespace(num_frames=4))
    task = SimpleNamespace(tokens=SimpleNamespace(images=[visual]), prompt=SimpleNamespace(id="film"))
    prompts = SimpleNamespace(ids=["film"], weights=[1.0], task=lambda index: task)
    with pytest.raises(ValueError, match="row film: trainer=trl takes images, found a video"):
        trl.drawn_prompts(prompts, 0, 1)


def test_the_optimizer_is_ours(trl):
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=2, weight_decay=0.3, beta2=0.9)
    ours, theirs = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    theirs.load_state_dict(ours.state_dict())
    own = AdamW(ours.named_parameters(), config)
    optimizer, schedule = trl.build_optimizer(theirs, config, 5)
    for step in range(5):
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.grad = torch.full_like(one, 0.1 * step - 0.15)
            other.grad = one.grad.clone()
        own.step(learning_rate_at(step, 5, config))
        optimizer.step()
        schedule.step()
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.allclose(one, other, rtol=1e-6, atol=0)


COMMON = {"num_generations": 3, "generation_batch_size": 12, "per_device_train_batch_size": 3, "num_iterations": 2}
MAPPED = {
    "grpo": {"loss_type": "grpo", "beta": 0.04, "epsilon": 0.2, "epsilon_high": 0.2, "use_bias_correction_kl": False},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none", "beta": 0.0},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "delta": None, "scale_rewards": "group"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
    "rloo": {"beta": 0.05, "epsilon": 0.2},
}


@pytest.mark.parametrize("name", MAPPED)
def test_settings(trl, start, tmp_path, name):
    config, _ = start(tmp_path, f"algorithm={name}", "run.seed=7", "rollouts.temperature=0.7")
    check(config)
    arguments = trl_arguments(config, [1, 2])
    expected = {
        **{"gradient_accumulation_steps": 2, "max_steps": UPDATES, "seed": 7, "temperature": 0.7},
        **{"max_completion_length": 6, "max_grad_norm": 1.0, "mask_truncated_completions": False},
        **{"generation_kwargs": {"suppress_tokens": [1, 2]}, "shuffle_dataset": False, **COMMON, **MAPPED[name]},
    }
    assert {key: arguments[key] for key in expected} == expected
    made = (trl.RLOOConfig if name == "rloo" else trl.GRPOConfig)(**arguments)
    assert made.steps_per_generation == 4


def test_further_settings(start, tmp_path):
    changes = ["algorithm.overlong.rule=mask_and_punish", "algorithm.dual_clip=3", "algorithm.entropy.coefficient=0.01"]
    config, _ = start(tmp_path, "algorithm=dapo", "trainer.mini_batch_size=96", "trainer.micro_batch_size=0", *changes)
    check(config)
    arguments = trl_arguments(config, [])
    assert arguments["mask_truncated_completions"] and arguments["delta"] == 3 and arguments["entropy_coef"] == 0.01
    assert arguments["per_device_train_batch_size"] == 12, "a mini-batch is at most the step"
    assert arguments["max_steps"] == 4


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (["algorithm=reinforce_pp"], r"algorithm\.baseline: trainer=trl has group_mean or leave_one_out"),
        (["algorithm.kl.coefficient=0.1", "algorithm.kl.estimator=k2"], r"algorithm\.kl\.estimator: .*k3.*found k2"),
        (["algorithm.kl.coefficient=0.1", "algorithm.kl.place=reward"], r"algorithm\.kl\.place: .*trainer=sailvl2"),
        (["algorithm.correction.rule=token_truncate"], r"algorithm\.correction\.rule"),
        (["algorithm.kl.coefficient=0.1", "algorithm.kl.refresh_every=2"], r"algorithm\.kl\.refresh_every"),
        (["algorithm.entropy.target=0.2"], r"algorithm\.entropy\.target"),
        (["algorithm.advantage_scale=batch_std"], r"algorithm\.advantage_scale"),
        (["algorithm=grpo", "algorithm.entropy.coefficient=0.1"], r"algorithm\.normalisation"),
        (["algorithm=cispo", "algorithm.clip_low=0.2"], r"algorithm\.clip_low"),
        (["algorithm=rloo", "algorithm.dual_clip=3"], r"algorithm\.dual_clip"),
        (["trainer.curriculum=pass_rate"], r"trainer\.curriculum"),
        (["trainer.balance_coefficient=0.1"], r"trainer\.balance_coefficient"),
        (["algorithm.correction.routing_replay=true"], r"algorithm\.correction\.routing_replay"),
        (["evaluation.prompts=x.jsonl"], r"evaluation\.prompts: .*rlhf\.evaluate"),
        (["trainer.mini_batch_size=9"], r"trainer\.mini_batch_size: .*divisor of .* = 12 completions, found 9"),
        (["trainer.micro_batch_size=4"], r"trainer\.micro_batch_size: .*divisor of the mini-batch's 6"),
        (["algorithm=custom", "algorithm.name=mine.py:Mine"], r"algorithm: trainer=trl knows TRL's own losses"),
    ],
)
def test_refused_before_anything_is_built(start, tmp_path, overrides, field):
    with pytest.raises(ValueError, match=field):
        run_stage(*start(tmp_path / "never", *overrides))
    assert not (tmp_path / "never").exists()


def test_without_trl(start, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    config, resolved = start(tmp_path)
    with pytest.raises(ValueError, match=r"pip install 'sailvl2-rl\[trl\]'"):
        run_stage(config, resolved)


class TestRewards:
    """One function, two callers."""

    TEXTS = ("<think>1+1=2</think>\\boxed{2}", "\\boxed{3}", "no idea")
    FUNCTION = (
        "def share(completions, reference, kind, trainer_state, completion_ids, log_metric, **columns):\n"
        "    log_metric('seen', len(completions))\n"
        "    done = trainer_state.global_step / trainer_state.max_steps\n"
        "    texts = [completion[0]['content'] for completion in completions]\n"
        "    hits = [done + len(ids) * (right in text) for text, right, ids in zip(texts, reference, completion_ids)]\n"
        "    return [None if k == 'skip' else hit for k, hit in zip(kind, hits)]\n"
    )

    @pytest.fixture
    def completions(self, tiny):
        return [tiny[1].completion(text) for text in self.TEXTS]

    @pytest.fixture
    def calculate(self, trl):
        """TRL's own reward step on a stand-in for its trainer: [completions, functions], NaN for None."""

        def run(function, completions, texts, columns):
            trainer = SimpleNamespace(
                accelerator=SimpleNamespace(device="cpu", is_main_process=False),
                args=SimpleNamespace(report_to=[]),
                state=SimpleNamespace(global_step=3, max_steps=12),
                reward_funcs=[function],
                reward_processing_classes=[None],
                reward_func_names=[function.__name__],
                environments=None,
                _metrics=defaultdict(list),
                _log_completion_extra=lambda column, values: None,
                _log_metric=lambda name, value: None,
            )
            prompt = [{"role": "user", "content": [{"type": "text", "text": "How many?"}]}]
            inputs = [{"prompt": prompt, **{k: v[i] for k, v in columns.items()}} for i in range(len(completions))]
            said = [[{"role": "assistant", "content": text}] for text in texts]
            found = trl.GRPOTrainer._calculate_rewards(trainer, inputs, [prompt] * len(said), said, completions)
            return found[:, 0].tolist()

        return run

    def inputs(self, completions, kinds):
        return [
            RewardInput(
                "p0", [{"role": "user", "content": "How many?"}], [], "2", text, "", None, ids, "stop", {"kind": k}
            )
            for text, ids, k in zip(self.TEXTS, completions, kinds, strict=True)
        ]

    @pytest.mark.parametrize("kinds", [("a", "b", "c"), ("a", "skip", "c"), ("skip", "skip", "skip")])
    def test_a_function_of_trl_gives_ours_the_same_numbers(self, calculate, completions, tmp_path, kinds):
        path = tmp_path / "share.py"
        path.write_text(self.FUNCTION)
        space: dict = {}
        exec(self.FUNCTION, space)
        columns = {"reference": ["2"] * 3, "kind": list(kinds)}
        theirs = calculate(space["share"], completions, self.TEXTS, columns)
        with Rubric(RewardConfig(functions=[f"{path}:share"], num_workers=1)) as rubric:
            rubric.step, rubric.max_steps = 3, 12
            ours = [result.parts["share"] for result in rubric.score(self.inputs(completions, kinds))]
        assert [math.nan if v is None else v for v in ours] == pytest.approx(theirs, rel=1e-6, nan_ok=True)
        assert [value is None for value in ours] == [kind == "skip" for kind in kinds]

    def test_a_function_finds_the_columns_of_trls_data_set(self, calculate, completions, trl, tiny_folder, tmp_path):
        (tmp_path / "own.py").write_text(
            "def own(completions, **kwargs):\n"
            "    rows = zip(kwargs['solution'], kwargs['id'], kwargs['kind'])\n"
            "    return [float(row == (2, 'a', 'x')) for row in rows]\n"
        )
        config = RewardConfig(
            functions=[f"{tmp_path / 'own.py'}:own"], function_weights=[1.0], weight_check=WeightCheck.free
        )
        reward = trl_reward(
            replace(config, answer_weight=0.0, format_weight=0.0), trl.AutoProcessor.from_pretrained(tiny_folder)
        )
        try:
            columns = {"solution": [2, 2, 2], "id": ["a", "a", "b"], "kind": ["x", "x", "x"]}
            assert calculate(reward, completions, self.TEXTS, columns) == pytest.approx([1.0, 1.0, 0.0])
        finally:
            reward.close()

    def test_our_rewards_in_trl(self, calculate, completions, trl, tiny_folder):
        """A reference that does not parse is unscorable: None, which TRL takes as no reward at all."""
        processor = trl.AutoProcessor.from_pretrained(tiny_folder)
        reward = trl_reward(RewardConfig(verifier="numeric", num_workers=1), processor)
        try:
            columns = {"solution": ["2", "2", "no number"], "images": [["a.png"], [], None], "kind": ["a", "b", "c"]}
            found = calculate(reward, completions, self.TEXTS, columns)
            assert found == pytest.approx([1.0, 0.0, math.nan], rel=1e-6, nan_ok=True)
            assert (reward.rubric.step, reward.rubric.max_steps) == (3, 12)
            with pytest.raises(ValueError, match="train_dataset: expected a column with right answers"):
                reward(prompts=["x"], completions=["y"], completion_ids=[[1]])
        finally:
            reward.close()
