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
        "recipe=quickstart",
        "algorithm=cispo|custom|dapo|dr_grpo|grpo|gspo|reinforce_pp|rloo",
    ):
        assert line in shown
    assert "run.dir: str = 'runs/sft'" in run("sft", "-h").out
    assert "stages.NAME.KEY=VALUE" in run("pipeline", "--help").out


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
