"""`python -m rlhf.estimate`: what it prints, that its advice fits, and that bad input is refused."""

import json
import sys
from dataclasses import replace

import pytest

from conf.cli import load_config
from model.config import Flavour, flavour_config
from rlhf import estimate
from rlhf.algorithms.registry import build_algorithm
from rlhf.planning.config import EstimateConfig
from rlhf.planning.step import changes
from rlhf.planning.step import estimate as estimate_step


def config_of(*overrides: str) -> EstimateConfig:
    return load_config("estimate", overrides)[0]


def facts_of(*overrides: str) -> dict:
    config = config_of(*overrides)
    return estimate.facts(config, estimate.shapes_of(config))


@pytest.mark.parametrize(
    "overrides",
    [
        ("recipe=verifiable_dapo", "model=sailvl2_8b"),
        ("recipe=verifiable_dapo", "model=sailvl2_8b", "gpu=a100_40", "engine=fsdp"),
        ("recipe=verifiable_gspo", "model=sailvl2_a3b", "gpu=h100_80", "engine=fsdp"),
        ("recipe=verifiable_dapo", "model=sailvl2_2b", "gpu=h100_80", "gpus=1"),
    ],
)
def test_what_it_advises_fits(overrides):
    found = facts_of(*overrides)
    assert not found["fits"] and found["needed_gib"] > found["memory_of_gpu_gib"] and found["change"]
    mended = facts_of(*overrides, *found["change"].split())
    assert mended["fits"] and mended["needed_gib"] == found["needed_after_change_gib"]


def test_every_change_that_is_tried_is_one_of_keys_that_can_be_set():
    overrides = ["recipe=verifiable_dapo", "engine=fsdp", "engine.gradient_checkpointing=false"]
    tried = list(changes(config_of(*overrides)))
    singles = [(keys, changed) for keys, changed in tried if " " not in keys]
    assert len(singles) == 7 and len(tried) == 2**7 - 1
    keys, changed = tried[-1]
    own = config_of(*overrides, *keys.split())
    assert (own.engine, own.nodes, own.adapter.name) == (changed.engine, changed.nodes, changed.adapter.name)
    assert own.rollouts == changed.rollouts


def test_where_nothing_helps_it_says_so():
    found = facts_of("recipe=verifiable_dapo", "model=sailvl2_a3b", "gpu=a100_40", "gpus=1")
    assert not found["fits"] and found["change"] == ""
    assert "none of the changes that were tried fits" in estimate.text(found)


def test_a_reference_takes_a_model_and_a_pass():
    plain = facts_of("recipe=verifiable_dapo", "engine=fsdp")
    held = facts_of("recipe=verifiable_dapo", "engine=fsdp", "algorithm.kl.coefficient=0.1", "algorithm.kl.place=loss")
    assert plain["memory_gib"]["reference"] == 0 < held["memory_gib"]["reference"]
    assert held["seconds"]["scores"] == pytest.approx(2 * plain["seconds"]["scores"], rel=1e-3)


def test_more_gpus_make_a_step_shorter():
    found = [facts_of("recipe=verifiable_dapo", "engine=fsdp", f"gpus={count}") for count in (2, 4, 8)]
    steps = [one["seconds_of_step"] for one in found]
    assert steps == sorted(steps, reverse=True) and len(set(steps)) == 3


def test_the_command_prints_a_table_and_json(monkeypatch, capsys):
    arguments = ["recipe=verifiable_dapo", "model=sailvl2_2b", "engine=fsdp"]
    monkeypatch.setattr(sys, "argv", ["estimate", *arguments])
    assert estimate.main() == 0
    said = capsys.readouterr().out
    for part in ("weights", "moments", "activations", "needed", "sampling", "scores", "update", "sync", "save"):
        assert f"\n  {part}" in said
    assert "never measured: recomputed layers on GPUs" in said and "checked: memory" in said
    monkeypatch.setattr(sys, "argv", ["estimate", *arguments, "output=-"])
    assert estimate.main() == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["fits"] is True and found["processes"] == 8


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("gpu=h100", "gpu: "),
        ("gpus=0", "gpus: expected at least 1, found 0"),
        ("visual_share=1.5", "visual_share: expected 0 to below 1"),
        ("output=out.json", "output: expected - for JSON"),
        ("recipe=quickstart_longcot", "recipe: no choice"),
    ],
)
def test_bad_input_is_refused(override, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["estimate", override])
    assert estimate.main() == 2
    assert message in capsys.readouterr().err


def test_replicas_that_do_not_divide_the_processes_are_refused():
    with pytest.raises(ValueError, match=r"engine\.replicas: expected a divisor of the 8 processes, found 3"):
        facts_of("engine=fsdp", "engine.replicas=3")


def test_the_table_has_a_line_for_each_model_way_and_number_of_gpus():
    lines = estimate.table(config_of("recipe=verifiable_dapo", "engine=fsdp")).splitlines()
    assert len(lines) == 2 + 3 * 2 * 3
    columns = {len(line.split("|")) for line in lines}
    assert columns == {10}


def test_a_cpu_is_this_machine():
    found = facts_of("recipe=quickstart", "model=tiny", "gpu=cpu")
    assert found["machine"] == "CPU" and found["processes"] == 1 and found["seconds"]["update"] > 0


def test_keys_and_values_grow_with_the_rows():
    config = config_of("recipe=verifiable_dapo", "engine=fsdp")
    shapes = flavour_config(Flavour.sailvl2_2b)
    algorithm = build_algorithm(config.algorithm, config.rollouts.max_completion_tokens)
    more = replace(config, rollouts=replace(config.rollouts, max_rows=2 * config.rollouts.max_rows))
    machine = estimate.machine_of(config)
    one, two = (estimate_step(each, shapes, algorithm, machine) for each in (config, more))
    assert two.keys == 2 * one.keys > 0
