"""The recipes of the Thinking pipeline: what a plan says for each model, and the launcher of stages that train."""

import re
import sys

import pytest

import rlhf.pipeline
from conf.cli import load_config
from rlhf.planning.graph import Graph
from rlhf.planning.stages import check_starts, plan
from rlhf.planning.stages_shown import plan_lines


def planned(*overrides: str):
    config, _ = load_config("pipeline", list(overrides))
    return config, *plan(config)


@pytest.mark.parametrize(
    ("model", "verifiable", "mixed"),
    [
        ("sailvl2_2b", "verifiable_dapo", "mixed_rewards"),
        ("sailvl2_a3b", "verifiable_gspo", "mixed_rewards_gspo"),
    ],
)
def test_a_plan_takes_the_recipes_of_the_models_kind_and_says_what_they_cost(model, verifiable, mixed):
    config, stages, evaluations = planned("recipe=thinking", f"model={model}", "gpus=8", "nodes=2", "action=plan")
    named = {stage.name: stage for stage in stages}
    assert (
        f"recipe={verifiable}" in named["rl_verifiable"].overrides and f"recipe={mixed}" in named["rl_mixed"].overrides
    )
    assert list(evaluations) == ["longcot_sft", "rl_verifiable", "think_fusion", "rl_mixed"]
    assert (
        named["longcot_sft"].config.optimizer.learning_rate == 1e-6 and named["longcot_sft"].config.batch_size == 1024
    )
    reward = named["rl_mixed"].config.reward
    assert sum(reward.weights.values()) == pytest.approx(1) and reward.weights["reasoning"] > 0
    text = "\n".join(plan_lines(config, stages, evaluations))
    hours = re.findall(r"\d+ steps: ([\d,]+) GPU hours", text)
    assert len(hours) == 2 and all(int(number.replace(",", "")) > 0 for number in hours)
    assert f"rl_verifiable: torchrun --nproc-per-node=8 -m rlhf.train recipe={verifiable}" in text
    assert "rl_prompts: python -m rlhf.pass_at_k" in text
    assert text.count("never measured: any GPU but an H200") == 2 and "costs     16 x H100" in text
    with pytest.raises(ValueError, match=r"@base: expected the folder of a model.*model=FLAVOUR is for plans"):
        check_starts(config, stages)


def test_a_plan_without_a_kind_of_gpu_estimates_nothing():
    config, stages, evaluations = planned("recipe=thinking", "model=sailvl2_2b", "gpu=null")
    assert "costs" not in "\n".join(plan_lines(config, stages, evaluations))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages=[{name: a, command: rlhf.train, recipe: {dense: x}}]",
            r"stages\.a\.recipe: expected a recipe, or one",
        ),
        ("gpus=0", r"machine\.gpus: expected at least 1, found 0"),
        ("gpu=h1000", r"machine\.gpu: Invalid value .h1000., expected one of .h100_80"),
        ('machine.launcher="torchrun \'x"', r"machine\.launcher: expected a command line"),
        ('prepare="module \'x"', r"prepare: expected a command line"),
    ],
)
def test_what_means_nothing_is_refused_by_name(override, message):
    with pytest.raises(ValueError, match=message):
        planned("recipe=thinking", "model=sailvl2_2b", override)


def test_the_launcher_stands_before_stages_that_train_and_before_no_other(tmp_path):
    config, stages, evaluations = planned("recipe=thinking", "model=sailvl2_2b", "gpus=4")
    graph = Graph(config, stages, evaluations)
    launched = {node.title: graph.launcher(node) for node in graph.nodes}
    assert launched["stage rl_mixed"] == ["torchrun", "--nproc-per-node=4"]
    assert not launched["stage longcot_data"] and not launched["evaluation of stage rl_mixed"]
    said = tmp_path / "said"
    rlhf.pipeline._run("stage", [str(said)], launcher=[sys.executable, "-c", "import sys; open(sys.argv[1], 'w')"])
    assert said.exists()


@pytest.mark.parametrize("recipe", ["thinking_tiny", "thinking_smoke"])
def test_the_miniatures_have_all_four_stages(recipe):
    _, stages, _ = planned(f"recipe={recipe}")
    names = [stage.name for stage in stages]
    assert [name for name in names if name in ("longcot_sft", "rl_verifiable", "think_fusion", "rl_mixed")] == [
        *("longcot_sft", "rl_verifiable", "think_fusion", "rl_mixed"),
    ]


def test_a_plan_needs_no_package_that_a_run_needs(monkeypatch):
    def missing(self) -> None:
        raise ValueError("rollouts=vllm: expected vllm to be installed")

    monkeypatch.setattr("rollouts.config.VllmRolloutConfig.require_packages", missing)
    assert planned("recipe=thinking", "model=sailvl2_2b", "action=plan")
    with pytest.raises(ValueError, match=r"expected vllm to be installed"):
        planned("recipe=thinking", "model=sailvl2_2b")
