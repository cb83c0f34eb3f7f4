"""Every shipped recipe, with everything that it may be combined with."""

import dataclasses
from functools import cache
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import conf.cli
from conf.cli import load_config
from conf.schema import ENTRIES, GROUPS
from rlhf.algorithms.config import ALGORITHM_CONFIGS, AlgorithmConfig
from rlhf.planning.stages import plan

CONF = conf.cli.ROOT / "conf"
RECIPES = [(path.parts[-3], path.stem) for path in sorted(CONF.glob("*/recipe/*.yaml"))]


@cache
def combination(recipe: str, algorithm: str, *required: str):
    """Composed once for all tests: half a second each."""
    return load_config("rlhf", [*required, f"recipe={recipe}", f"algorithm={algorithm}"])


def test_every_choice_is_registered():
    assert set(GROUPS["rlhf"]["algorithm"]) == {*ALGORITHM_CONFIGS, "custom"}
    assert {entry for entry, _ in RECIPES} <= set(ENTRIES)


@pytest.mark.parametrize(("entry", "recipe"), RECIPES)
def test_recipe_composes_and_holds_what_its_file_says(required, entry, recipe):
    written = OmegaConf.load(CONF / entry / "recipe" / f"{recipe}.yaml")
    needed = [override for override in required[entry] if not override.startswith(("optimizer.", "recipe="))]
    if "micro_batches_per_step" in written.get("data", {}):  # a recipe of a stage that reads several sources
        needed = [one for one in needed if not one.startswith("data.")]
        needed.append("data.sources={a: {paths: [a.jsonl]}}")
    config, _ = load_config(entry, [*needed, f"recipe={recipe}"])
    assert type(config) is ENTRIES[entry]
    composed = OmegaConf.structured(config)
    written.pop("defaults", None)  # which algorithm, unless the command line names one
    assert len(written) > 0 and OmegaConf.merge(composed, written) == composed


@pytest.mark.parametrize("algorithm", ALGORITHM_CONFIGS)
@pytest.mark.parametrize("recipe", [recipe for entry, recipe in RECIPES if entry == "rlhf"])
def test_recipe_keeps_the_algorithms_own_class_and_fields(required, recipe, algorithm):
    """With `_self_` last in a defaults list the base class would come back, without the subclass's fields."""
    config, resolved = combination(recipe, algorithm, *required["rlhf"])
    schema = ALGORITHM_CONFIGS[algorithm]
    assert type(config.algorithm) is schema and issubclass(schema, AlgorithmConfig)
    assert config.algorithm.name == algorithm
    shared = {field.name for field in dataclasses.fields(AlgorithmConfig)}
    for field in dataclasses.fields(schema):
        if field.name not in shared:  # a recipe may set shared ones only
            assert getattr(config.algorithm, field.name) == getattr(schema(), field.name)
            assert f"\n  {field.name}:" in resolved


@pytest.mark.parametrize("recipe", [recipe for entry, recipe in RECIPES if entry == "rlhf"])
def test_recipes_own_values_hold_whatever_the_algorithm(required, recipe):
    configs = [combination(recipe, algorithm, *required["rlhf"])[0] for algorithm in ALGORITHM_CONFIGS]
    for other in configs[1:]:
        assert dataclasses.replace(other, algorithm=configs[0].algorithm) == configs[0]
        assert other.algorithm.group_size == configs[0].algorithm.group_size


def test_an_algorithm_named_by_a_recipes_override_beats_the_default(required):
    default, _ = load_config("rlhf", required["rlhf"])
    grpo, _ = load_config("rlhf", [*required["rlhf"], "algorithm=grpo"])
    assert (type(default.algorithm), type(grpo.algorithm)) == (ALGORITHM_CONFIGS["dapo"], ALGORITHM_CONFIGS["grpo"])
    assert grpo.algorithm.kl.coefficient == 0.04 and default.algorithm.kl.coefficient == 0.0


def test_the_reports_recipes_hold_its_values(required):
    """Section 4.2.3 and table 4: 2,048 rollouts, mini-batches of 512, eight updates, 1e-6, 16,384 + 4,096 tokens."""
    for algorithm in ("dapo", "gspo"):
        config, _ = load_config("rlhf", [*required["rlhf"], f"recipe=verifiable_{algorithm}"])
        assert config.algorithm.name == algorithm
        rollouts = config.trainer.groups_per_step * config.algorithm.group_size
        updates = config.trainer.passes * rollouts // config.trainer.mini_batch_size
        assert (rollouts, config.trainer.mini_batch_size, updates) == (2048, 512, 8)
        assert config.optimizer.learning_rate == 1e-6
        assert (config.rollouts.max_prompt_tokens, config.rollouts.max_completion_tokens) == (16384, 4096)
        other, _ = load_config("rlhf", [*required["rlhf"], f"recipe=verifiable_{algorithm}", "algorithm=grpo"])
        assert other.algorithm.name == "grpo" and other.trainer == config.trainer


@pytest.mark.parametrize("recipe", [recipe for entry, recipe in RECIPES if entry == "pipeline"])
def test_pipeline_recipe_plans_stages_that_compose(recipe):
    start = ["base=DIR"] if recipe in ("base_model", "quickstart_from_base", "thinking") else []
    config, _ = load_config("pipeline", [f"recipe={recipe}", "run.seed=5", "num_threads=3", *start])
    stages, evaluations = plan(config)
    assert [stage.name for stage in stages] == [stage["name"] for stage in config.stages]
    written: list[Path] = []
    evaluated = (
        (config.evaluation.after or [stage.name for stage in stages if stage.writes_model])
        if config.evaluation.inputs
        else []
    )
    for stage in stages:
        planned, _ = load_config(stage.entry, stage.overrides)
        final = Path(config.run.dir) / stage.name / "final"
        if stage.entry == "probe":
            assert {Path(one) for one in planned.checkpoints} <= {*written} and planned.seed == 5
            continue
        if stage.is_maker:
            assert Path(planned.out) == Path(config.run.dir) / stage.name
            continue
        if stage.entry == "soup":
            assert [Path(one) for one in planned.checkpoints] == written[-2:] and Path(planned.out) == final
        elif stage.entry == "assemble":
            assert Path(planned.vision) in written and Path(planned.out) == final and planned.seed == 5
        else:
            assert (
                planned.run.seed == (1051 if stage.name == "sft_phase4_again" else 5)
                and planned.engine.num_threads == 3
            )
            assert Path(planned.run.dir) / "final" == final
            assert not written or Path(planned.checkpoint) in written
        written.append(final)
        if stage.name in evaluated:
            evaluation, _ = load_config("evaluate", evaluations[stage.name].overrides)
            assert Path(evaluation.checkpoint) == final and evaluation.seed == 5
    assert set(evaluations) == set(evaluated)
