"""The command line: refusals name the field, what was expected and what was found; nothing runs then."""

import pytest

from conf.cli import load_config
from rlhf.pipeline import run_pipeline

SPREAD = ["algorithm=grpo", "algorithm.group_size=1"]


@pytest.mark.parametrize(
    ("entry", "arguments", "parts"),
    [
        ("rlhf", ["trainer.max_stepz=3"], ["trainer.max_stepz", "no such key", "'trainer.max_steps'"]),
        ("rlhf", ["+trainer.max_stepz=3"], ["trainer.max_stepz", "no such key", "'trainer.max_steps'"]),
        ("rlhf", ["++trainer.max_stepz=3"], ["trainer.max_stepz", "no such key", "'trainer.max_steps'"]),
        ("rlhf", ["max_steps=3"], ["max_steps", "no such key", "'trainer.max_steps'"]),
        ("sft", ["adapter.rank=8"], ["adapter.rank: no such key with the present choice; it is one of adapter=lora"]),
        ("rlhf", ["+zebra=1"], ["zebra", "no such key", "expected one of adapter, algorithm", "trainer"]),
        ("rlhf", ["evaluation={patienze: 3}"], ["evaluation.patienze", "no such key", "'evaluation.patience'"]),
        ("rlhf", ["trainer.max_steps.x=3"], ["trainer.max_steps.x", "no such key"]),
        ("rlhf", ["optimizer.lr=1"], ["optimizer.lr", "did you mean 'optimizer.learning_rate'?"]),
        ("rlhf", ["run.wandb=x"], ["run.wandb", "no such key; run has accept_changes, dir, ", "seed"]),
        ("rlhf", ["trainer.n_gpus_per_node=8"], ["trainer.n_gpus_per_node", "trainer has balance_coefficient, "]),
        ("rlhf", ["num_generations=8"], ["num_generations", "'algorithm.group_size'"]),
        ("rlhf", ["algorithm=grpo,dapo"], ["algorithm=grpo,dapo: sweeps are not supported", "for seed in"]),
        ("rlhf", ["run.seed=1,2"], ["run.seed=1,2: a list is written run.seed=[1,2]; sweeps are not supported"]),
        ("rlhf", ["hydra.run.dir=x"], ["hydra.run.dir", "no such key"]),
        ("rlhf", ["~trainer=x"], ["~trainer", "deleting keys is not supported"]),
        ("rlhf", ["algorithm=grpo", "algorithm.settings={a: 4}"], ["algorithm.settings", "no such key"]),
        ("rlhf", ["algorithm=dappo"], ["algorithm", "no choice 'dappo'", "'dapo'"]),
        ("rlhf", ["+algorithm=dappo"], ["algorithm", "no choice 'dappo'", "'dapo'"]),
        (
            "rlhf",
            ["algorithm=zebra"],
            ["algorithm", "no choice 'zebra'", "expected one of cispo, clip_cov, custom, dapo, dr_grpo"],
        ),
        ("rlhf", ["recipe=quickstrat"], ["recipe", "no choice 'quickstrat'", "'quickstart'"]),
        ("evaluate", ["recipe=quickstart"], ["recipe", "no such key"]),
        ("rlhf", ["trainer.max_steps=many"], ["trainer.max_steps", "'many'", "Integer"]),
        ("rlhf", ["trainer.max_steps=1.5"], ["trainer.max_steps", "1.5", "Integer"]),
        ("rlhf", ["trainer.max_steps=null"], ["trainer.max_steps", "not Optional"]),
        ("rlhf", ["trainer=null"], ["trainer", "no choice 'null'"]),
        ("rlhf", ["evaluation=null"], ["evaluation", "not Optional"]),
        ("rlhf", ["run.start=again"], ["run.start", "'again'", "resume, fresh"]),
        ("rlhf", ["algorithm.clip_low=true"], ["algorithm.clip_low", "True", "Float"]),
        (
            "rlhf",
            ["engine.freeze=vision"],
            ["engine.freeze", "expected a list, found a text; write engine.freeze=[ITEM,ITEM]"],
        ),
        ("rlhf", ["run.dir=${nowhere}"], ["run.dir", "'nowhere' not found"]),
        ("rlhf", ["trainer.max_steps=lr=3"], ["trainer.max_steps=lr=3", "quote a value with special characters"]),
        ("rlhf", ["run.dir='open"], ["run.dir='open", "quote a value with special characters"]),
        ("pretrain", ["model=tinny"], ["model", "'tinny'", "tiny"]),
        ("pretrain", ["data.mixture.caption=x"], ["data.mixture.caption", "'x'", "Integer"]),
        ("sft", ["batch_size=x"], ["batch_size", "'x'", "Integer"]),
        ("pipeline", ["stages.rll.trainer.max_steps=3"], ["stages.rll", "no stage 'rll'", "'rl'"]),
        ("pipeline", ["+stages.rll.trainer.max_steps=3"], ["stages.rll.trainer.max_steps", "no such key"]),
        ("pipeline", ["stage.rl.trainer.max_steps=3"], ["stage.rl.trainer.max_steps", "no such key"]),
    ],
)
def test_what_the_schema_does_not_have_is_refused(run, required, entry, arguments, parts):
    outcome = run(entry, *required[entry], *arguments)
    assert (outcome.code, outcome.config, outcome.out) == (2, None, "")
    assert outcome.err.startswith("error: ") and "Traceback" not in outcome.err
    assert not [part for part in parts if part not in outcome.err], outcome.err


@pytest.mark.parametrize(
    ("entry", "arguments", "parts"),
    [
        (
            "rlhf",
            ["trainer.mini_batch_size=100", "algorithm.group_size=8"],
            ["trainer.mini_batch_size", "group_size = 8", "found 100"],
        ),
        ("rlhf", SPREAD, ["algorithm.group_size", "at least 2", "advantage_scale=group_std", "found 1"]),
        (
            "rlhf",
            ["algorithm=reinforce_pp", "algorithm.group_size=1", "algorithm.group_filter=reward_spread"],
            ["algorithm.group_size", "at least 2", "algorithm.group_filter=reward_spread", "found 1"],
        ),
        (
            "rlhf",
            ["algorithm=dapo", "algorithm.overlong.buffer=41", "rollouts.max_completion_tokens=40"],
            ["algorithm.overlong.buffer", "at most rollouts.max_completion_tokens = 40", "found 41"],
        ),
        (
            "rlhf",
            ["trainer.max_draws=7", "trainer.groups_per_step=8"],
            ["trainer.max_draws", "at least trainer.groups_per_step = 8", "found 7"],
        ),
        ("rlhf", ["algorithm.clip_low=1.5"], ["algorithm.clip_low", "expected 0 < clip_low <= 1", "found 1.5"]),
        ("rlhf", ["algorithm.kl.coefficient=-1"], ["algorithm.kl.coefficient", "0 or more", "found -1.0"]),
        ("rlhf", ["trainer.passes=0"], ["trainer.passes", "at least 1", "found 0"]),
        ("rlhf", ["rollouts.temperature=0"], ["rollouts.temperature", "positive", "found 0.0"]),
        ("rlhf", ["optimizer.learning_rate=nan"], ["optimizer.learning_rate", "positive", "found nan"]),
        ("rlhf", ["run.dir="], ["run.dir", "expected a folder", "found nothing"]),
        ("rlhf", ["optimizer.learning_rate=0"], ["optimizer.learning_rate", "positive", "found 0"]),
        ("rlhf", ["checkpoint="], ["checkpoint", "expected a path", "found nothing"]),
        ("rlhf", ["reward.functions=[a.py]"], ["reward.functions", "FILE.py:NAME", "'a.py'"]),
        ("evaluate", ["num_prompts=-1"], ["num_prompts", "at least 0", "found -1"]),
        ("pretrain", ["data.mixture.caption=-1"], ["data.mixture", "0 or more", "-1"]),
        ("pretrain", ["model=null"], ["model", "one of tiny, tiny_moe", "found none"]),
        ("pretrain", ["data.path="], ["data.path", "expected a file", "found nothing"]),
        ("pretrain", ["optimizer.learning_rate=0"], ["optimizer.learning_rate", "there is no default"]),
        ("sft", ["data.rollouts=r"], ["data.demonstrations", "data.rollouts", "found both"]),
        ("sft", ["data.direct_share=2"], ["data.direct_share", "between 0 and 1", "found 2.0"]),
    ],
)
def test_values_that_contradict_are_refused(run, required, entry, arguments, parts):
    outcome = run(entry, *required[entry], *arguments)
    assert (outcome.code, outcome.config, outcome.out) == (2, None, "")
    assert not [part for part in ["error: ", *parts] if part not in outcome.err], outcome.err


@pytest.mark.parametrize("argument", ["max_steps", "--max_steps=3", "-x"])
def test_what_is_not_an_override_is_refused(run, argument):
    outcome = run("rlhf", argument)
    assert outcome.code == 2 and f"{argument!r}: expected KEY=VALUE" in outcome.err


def test_sweeps_are_refused_with_what_to_do_instead(run):
    for flag in ("-m", "--multirun"):
        outcome = run("rlhf", flag, "algorithm=grpo,dapo")
        assert outcome.code == 2 and "sweeps are not supported" in outcome.err and "for seed in" in outcome.err


def test_cfg_needs_job(run):
    assert "--cfg: expected 'job'" in run("rlhf", "--cfg").err
    assert "--cfg: expected 'job'" in run("rlhf", "--cfg", "hydra").err


class TestTypoInYaml:
    def test_nested_key_of_a_recipe(self, run, own_conf, required):
        recipe = own_conf / "rlhf" / "recipe" / "quickstart.yaml"
        recipe.write_text(recipe.read_text().replace("groups_per_step", "group_per_step"))
        outcome = run("rlhf", *required["rlhf"], "recipe=quickstart")
        assert outcome.code == 2
        assert "conf/rlhf/recipe/quickstart.yaml: trainer.group_per_step: no such key" in outcome.err
        assert "did you mean 'trainer.groups_per_step'?" in outcome.err

    def test_section_of_a_recipe(self, run, own_conf):
        recipe = own_conf / "pretrain" / "recipe" / "quickstart.yaml"
        recipe.write_text(recipe.read_text().replace("optimizer:", "optimiser:"))
        outcome = run("pretrain", "recipe=quickstart", "data.path=d")
        assert outcome.code == 2
        assert "recipe/quickstart.yaml: optimiser: no such key" in outcome.err and "'optimizer" in outcome.err

    def test_value_of_a_recipe(self, run, own_conf):
        (own_conf / "sft" / "recipe" / "mine.yaml").write_text("# @package _global_\nmax_steps: several\n")
        outcome = run("sft", "recipe=mine")
        assert outcome.code == 2 and "conf/sft/recipe/mine.yaml: max_steps: Value 'several'" in outcome.err

    def test_yaml_that_does_not_parse(self, run, own_conf):
        (own_conf / "sft" / "recipe" / "mine.yaml").write_text("# @package _global_\ndata:\n\t- [\n")
        outcome = run("sft", "recipe=mine")
        assert outcome.code == 2 and "recipe/mine.yaml" in outcome.err and "line 3" in outcome.err

    def test_recipe_that_sets_one_algorithms_own_field(self, run, own_conf, required):
        """Such a recipe would compose with one algorithm only; it is refused with the others, by name."""
        text = "# @package _global_\nalgorithm:\n  settings: {a: 4}\n"
        (own_conf / "rlhf" / "recipe" / "mine.yaml").write_text(text)
        outcome = run("rlhf", *required["rlhf"], "recipe=mine", "algorithm=grpo")
        assert outcome.code == 2 and "algorithm.settings: no such key" in outcome.err


class TestOverrides:
    def test_reach_the_function_typed(self, run, required):
        outcome = run("rlhf", *required["rlhf"], "trainer.max_steps=7", "+algorithm.clip_high=0.5", "run.dir=a b")
        assert (outcome.code, outcome.err) == (0, "")
        assert (outcome.config.trainer.max_steps, outcome.config.algorithm.clip_high) == (7, 0.5)
        assert outcome.config.run.dir == "a b"

    def test_do_not_depend_on_their_order(self, required):
        overrides = [*required["rlhf"], "algorithm.group_size=4", "algorithm=grpo", "recipe=quickstart"]
        assert load_config("rlhf", overrides) == load_config("rlhf", overrides[::-1])

    def test_a_mapping_takes_new_keys(self):
        config, _ = load_config("pretrain", ["recipe=quickstart", "data.path=d", "data.mixture.web=5"])
        assert config.data.mixture["web"] == 5 and len(config.data.mixture) > 1

    def test_of_a_stage_come_after_the_recipes(self, run):
        overrides = ["stages.rl.trainer.max_steps=7", "stages.rl.algorithm=grpo", "stages.pretrain.max_steps=5"]
        stages = {
            stage["name"]: stage for stage in run("pipeline", "recipe=quickstart_smoke", *overrides).config.stages
        }
        assert stages["rl"]["overrides"] == ["trainer.max_steps=7", "algorithm=grpo"]
        assert stages["pretrain"]["overrides"] == ["max_steps=2", "max_steps=5"]

    @pytest.mark.parametrize(
        ("override", "parts"),
        [
            ("stages.rl.algorithm.group_sise=4", ["algorithm.group_sise", "'algorithm.group_size'"]),
            ("stages.longcot_sft.batch_sise=4", ["batch_sise", "'batch_size'"]),
            ("stages.pretrain.recipe=quick", ["recipe", "no choice 'quick'"]),
            ("stages.rl.trainer.mini_batch_size=1", ["trainer.mini_batch_size", "algorithm.group_size"]),
        ],
    )
    def test_of_a_stage_are_checked_before_any_stage_runs(self, run, tmp_path, override, parts):
        folder, data = tmp_path / "run", tmp_path / "data"
        outcome = run(
            "pipeline", "recipe=quickstart", f"run.dir={folder}", f"data={data}", override, function=run_pipeline
        )
        assert outcome.code == 2 and not [part for part in parts if part not in outcome.err], outcome.err
        assert not folder.exists() and not data.exists()


class TestExitCodes:
    def test_refusal_by_the_function(self, run, required):
        def refuse(config, resolved):
            raise ValueError("data: expected more")

        outcome = run("pretrain", *required["pretrain"], function=refuse)
        assert (outcome.code, outcome.err) == (2, "error: data: expected more\n")

    def test_interruption(self, run, required):
        def interrupt(config, resolved):
            raise KeyboardInterrupt

        outcome = run("pretrain", *required["pretrain"], function=interrupt)
        assert outcome.code == 130 and "goes on from the newest checkpoint" in outcome.err

    def test_failure_of_a_stage_keeps_its_code(self, run, required):
        def fail(config, resolved):
            error = RuntimeError("stage rl ended")
            error.exit_code = 9
            raise error

        assert run("pretrain", *required["pretrain"], function=fail).code == 9

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (ModuleNotFoundError("No module named 'av'", name="av"), "module 'av', found none; pip install 'sailvl2-rl[video]'"),
            (ModuleNotFoundError("No module named 'trl.x'", name="trl.x"), "'trl.x', found none; pip install 'sailvl2-rl[trl]'"),
            (ModuleNotFoundError("No module named 'zebra'", name="zebra"), "module 'zebra', found none; install"),
            (ModuleNotFoundError("rollouts=vllm: expected vLLM, found none", name="vllm"), "rollouts=vllm: expected vLLM"),
        ],
    )  # fmt: skip
    def test_a_package_that_is_not_there_is_one_line(self, run, required, error, said):
        def fail(config, resolved):
            raise error

        outcome = run("pretrain", *required["pretrain"], function=fail)
        assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1

    def test_a_module_of_ours_that_is_not_there_is_a_bug(self, run, required):
        def fail(config, resolved):
            raise ModuleNotFoundError("No module named 'rlhf.zebra'", name="rlhf.zebra")

        with pytest.raises(ModuleNotFoundError):
            run("pretrain", *required["pretrain"], function=fail)

    def test_a_password_in_an_address_is_never_shown(self, run, required):
        def refuse(config, resolved):
            raise ValueError("could not reach http://user:CANARY@host/v1")

        assert "CANARY" not in run("pretrain", *required["pretrain"], function=refuse).err
        for option, code in (
            ("reward.options={reasoning: {base_url: http://user:CANARY@host}}", 0),
            ("reward.options={a: http://u:CANARY@h]}", 2),
        ):
            outcome = run("rlhf", *required["rlhf"], option, "--cfg", "job")
            assert outcome.code == code and "CANARY" not in outcome.out + outcome.err
            assert "CANARY" not in run("rlhf", *required["rlhf"], option, "--help").out

    def test_a_bug_of_ours_is_not_the_users_error(self, run, required):
        def crash(config, resolved):
            raise RuntimeError("bug")

        with pytest.raises(RuntimeError, match="bug"):
            run("pretrain", *required["pretrain"], function=crash)


class TestRecipes:
    def test_what_runs_without_one_is_said_in_the_first_line(self, run, required):
        for entry in ("rlhf", "pretrain"):
            outcome = run(entry, *required[entry])
            assert outcome.out.splitlines()[0].startswith("recipe: none; keys that are not given have the report's")
        assert run("rlhf", *required["rlhf"], "recipe=quickstart").out.splitlines()[0] == "recipe: quickstart"
        assert "recipe" not in run("evaluate", *required["evaluate"]).out

    def test_without_one_the_reports_values_hold(self, required):
        """Section 4.2 and table 4 of the report; what it does not state is neutral: constant rate, no warm-up."""
        rl, _ = load_config("rlhf", required["rlhf"])
        assert rl.trainer.groups_per_step * rl.algorithm.group_size == 2048
        assert (rl.trainer.mini_batch_size, rl.updates_per_step) == (512, 8)
        assert (rl.optimizer.learning_rate, rl.optimizer.schedule.value, rl.optimizer.warmup_steps) == (
            1e-6,
            "constant",
            0,
        )
        sft, _ = load_config("sft", ["checkpoint=c", "data.demonstrations=d"])
        assert (sft.batch_size, sft.optimizer.learning_rate, sft.optimizer.schedule.value) == (1024, 1e-6, "cosine")
        for context, limits in ((40960, (16384, 4096)), (512, (410, 102))):
            found = rl.rollouts.within(context)
            assert (found.max_prompt_tokens, found.max_completion_tokens) == limits

    def test_may_be_a_file_of_ones_own(self, tmp_path, required):
        path = tmp_path / "my recipe.yaml"
        path.write_text("defaults:\n  - override /algorithm: grpo\ntrainer:\n  max_steps: 7\n")
        config, _ = load_config("rlhf", [*required["rlhf"], f"recipe={path}", "trainer.passes=3"])
        assert (config.algorithm.name, config.trainer.max_steps, config.trainer.passes) == ("grpo", 7, 3)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (None, r"recipe: expected a readable YAML file at .*mine\.yaml, found"),
            ("trainer: [\n", r"recipe: expected a readable YAML file at .*mine\.yaml, found: while parsing"),
            ("- 7\n", r"recipe: expected .*mine\.yaml, found: a list instead of keys with values"),
            (
                "trainer:\n  max_stepz: 7\n",
                "^recipe mine: trainer.max_stepz: no such key; did you mean 'trainer.max_steps'",
            ),
        ],
    )
    def test_a_bad_file_is_named(self, tmp_path, required, text, message):
        path = tmp_path / "mine.yaml"
        if text is not None:
            path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_config("rlhf", [*required["rlhf"], f"recipe={path}"])

    def test_an_earlier_runs_config_gives_the_same_run_again(self, tmp_path, required):
        for choice in ("algorithm=gspo", "rollouts=vllm", "trainer=trl"):
            config, resolved = load_config("rlhf", [*required["rlhf"], choice, "run.seed=4", "trainer.max_steps=7"])
            (tmp_path / "config.yaml").write_text(resolved)
            again = load_config("rlhf", [f"recipe={tmp_path}/config.yaml"])
            assert again == (config, resolved)
        changed, _ = load_config("rlhf", [f"recipe={tmp_path}/config.yaml", "trainer.max_steps=9", "run.seed=5"])
        assert (changed.trainer.name, changed.trainer.max_steps, changed.run.seed) == ("trl", 9, 5)

    def test_a_group_that_is_chosen_anew_replaces_that_of_an_earlier_run(self, tmp_path, required):
        _, resolved = load_config("rlhf", [*required["rlhf"], "algorithm=gspo", "run.seed=4"])
        (tmp_path / "config.yaml").write_text(resolved)
        changed, _ = load_config("rlhf", [f"recipe={tmp_path}/config.yaml", "algorithm=grpo"])
        plain, _ = load_config("rlhf", [*required["rlhf"], "algorithm=grpo", "run.seed=4"])
        assert changed == plain

    def test_a_folder_of_recipes_may_be_named(self, run, tmp_path, required):
        (tmp_path / "mine.yaml").write_text("trainer:\n  max_steps: 11\n")
        for flags in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"]):
            outcome = run("rlhf", *required["rlhf"], "recipe=mine", *flags)
            assert (outcome.code, outcome.config.trainer.max_steps) == (0, 11)
        outcome = run("rlhf", "--config-dir", str(tmp_path / "no"), "recipe=mine")
        assert outcome.code == 2 and "--config-dir: expected a folder with recipes" in outcome.err

    def test_a_file_named_like_a_shipped_recipe_is_the_file(self, tmp_path):
        path = tmp_path / "quickstart_longcot.yaml"
        path.write_text("max_steps: 7\n")
        given = ["checkpoint=c", "data.demonstrations=d"]
        assert load_config("sft", [*given, f"recipe={path}"])[0].max_steps == 7
        assert load_config("sft", [*given, "recipe=quickstart_longcot", f"recipe={path}"])[0].max_steps == 7
        assert load_config("sft", [*given, f"recipe={path}", "recipe=quickstart_longcot"])[0].max_steps == 100


def test_entry_points_with_groups_of_one_name_keep_to_their_own_choices(required):
    """Hydra has one store for all; a pipeline composes the stages of several entry points in turn."""
    given = {"rlhf": required["rlhf"], "sft": ["checkpoint=c", "data.demonstrations=d"]}
    for entry, choice in (("rlhf", "trl"), ("sft", "trl"), ("rlhf", "sailvl2"), ("sft", "sailvl2")):
        config, resolved = load_config(entry, [*given[entry], f"trainer={choice}"])
        assert config.trainer.name == choice
        assert hasattr(config.trainer, "passes") == (entry == "rlhf")
        assert f"trainer:\n  name: {choice}\n" in resolved
    with pytest.raises(ValueError, match=r"trainer: no choice 'trrl'.*'trl'"):
        load_config("sft", [*given["sft"], "trainer=trrl"])
