"""What the command line shows: the documentation of every key, and the configuration it would run."""

import dataclasses

import pytest
from omegaconf import OmegaConf

from conf.cli import load_config
from conf.schema import ENTRIES
from rlhf.algorithms.config import ALGORITHM_CONFIGS


def leaves(section, prefix=""):
    """Every key of a configuration that holds a value."""
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_explains_every_key(run, required, entry):
    outcome = run(entry, "--help")
    assert (outcome.code, outcome.config) == (0, None)
    lines = outcome.out.splitlines()
    algorithms = [f"algorithm={name}" for name in ALGORITHM_CONFIGS] if entry == "rlhf" else [""]
    for algorithm in algorithms:
        config, _ = load_config(entry, [*required[entry], *filter(None, [algorithm])])
        for key in leaves(config):
            position = next((n for n, line in enumerate(lines) if line.startswith(f"  {key}: ")), None)
            assert position is not None, f"--help lacks {key}"
            assert lines[position + 1].startswith("        "), f"--help does not explain {key}"


def test_help_shows_the_entry_points_own_defaults(run):
    """Not those of the section's class, which other entry points share."""
    shown = run("rlhf", "--help").out
    for line in (
        "optimizer.schedule: constant|linear|cosine = 'constant'",
        "run.dir: str = 'runs/rl'",
        "algorithm.kl.coefficient: float = 0.04",
        "algorithm.clip_high: float = 0.28",
        "algorithm.overlong.buffer: int | null = null",
        "run.extend: bool = false",
        "recipe=mixed_rewards|mixed_rewards_gspo|quickstart|",
        "algorithm=cispo|clip_cov|custom|dapo|dr_grpo|gmpo|grpo|gspo|kl_cov|reinforce_pp|rloo|sapo",
    ):
        assert line in shown
    assert "run.dir: str = 'runs/sft'" in run("sft", "-h").out
    assert "stages.NAME.KEY=VALUE" in run("pipeline", "--help").out


def test_help_shows_what_this_command_line_would_run(run):
    shown = run("rlhf", "recipe=quickstart", "algorithm=gspo", "trainer.max_steps=7", "--help").out
    assert "trainer.max_steps: int = 7 (default 0)" in shown
    assert "trainer.groups_per_step: int = 16 (default 256)" in shown
    assert "algorithm.clip_high: float = 0.0004" in shown and "keys that algorithm=" not in shown
    assert "reward.verifier: str = 'math'\n" in shown, "what is not changed has no default beside it"


def test_the_short_help_has_the_most_used_keys(run):
    short, full = (run("rlhf", flag).out for flag in ("-h", "--help"))
    assert "  prompts: " in short and "trainer.keep_surplus" not in short
    assert len(short.splitlines()) < 80 < len(full.splitlines()) and "--help lists all" in short


def test_help_has_no_python_in_its_values(run):
    for entry in ENTRIES:
        text = run(entry, "--help").out
        assert "<" not in text.replace("<-", "") and "model.config." not in text
        assert not [line for line in text.splitlines() if "  " in line.strip()]


def test_version_names_what_a_report_of_a_bug_needs(run):
    outcome = run("rlhf", "--version")
    assert outcome.code == 0 and outcome.out.startswith("sailvl2-rl ") and "torch 2" in outcome.out


def test_cfg_job_needs_no_paths(run):
    outcome = run("rlhf", "recipe=verifiable_dapo", "--cfg", "job")
    assert outcome.code == 0 and "  groups_per_step: 256" in outcome.out
    assert outcome.err == "note: a run would be refused: checkpoint: expected a path, found nothing\n"


def test_help_wins_over_a_broken_rest(run):
    assert run("rlhf", "trainer.max_stepz=3", "--help").code == 0


@pytest.mark.parametrize(
    ("entry", "overrides"),
    [
        ("pretrain", ["data.mixture.web=5", "normalisation=samples"]),
        ("sft", ["recipe=quickstart_fusion", "max_steps=3"]),
        ("rlhf", ["algorithm=grpo", "algorithm.advantage_scale=none", "reward.functions=[a.py:f]"]),
        ("rlhf", ["algorithm=dapo", "algorithm.overlong.buffer=3", "run.dir='a: b #c'"]),
        ("evaluate", ["seed=4", "output=null.json"]),
        ("pipeline", ["stages.rl.trainer.max_steps=3", "run.start=fresh"]),
    ],
)
def test_cfg_job_prints_yaml_that_gives_the_same_configuration_again(run, own_conf, required, entry, overrides):
    outcome = run(entry, *required[entry], *overrides, "--cfg", "job")
    assert (outcome.code, outcome.config, outcome.err) == (0, None, "")
    config, resolved = load_config(entry, [*required[entry], *overrides])
    assert outcome.out == resolved
    assert OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), OmegaConf.create(outcome.out))) == config
    if entry != "evaluate":  # the others have recipes: what was printed can be saved as one
        algorithm = [o for o in overrides if o.startswith("algorithm=")]
        (own_conf / entry / "recipe" / "printed.yaml").write_text(f"# @package _global_\n{outcome.out}")
        assert load_config(entry, ["recipe=printed", *algorithm]) == (config, resolved)


def test_cfg_job_refuses_what_a_run_would_refuse(run, required):
    outcome = run("rlhf", *required["rlhf"], "trainer.max_stepz=3", "-c", "job")
    assert (outcome.code, outcome.out) == (2, "") and "trainer.max_stepz" in outcome.err
