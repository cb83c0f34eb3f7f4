"""Parameter counts, exactly: as published (technical report, table 1, and the released 2B folder)."""

import json
from dataclasses import replace

import pytest
import torch

from model.checkpoint import released_tensors
from model.config import DescribeConfig, Flavour, flavour_config
from model.describe import describe, run_describe
from model.sail_vl2 import SailVL2

HUGE = 682_031_616
EMBEDDING_2B = 151_936 * 2048


def facts(flavour: Flavour) -> dict:
    return describe(flavour_config(flavour))


def test_2b():
    found = facts(Flavour.sailvl2_2b)
    assert found["towers"]["vision"]["total"] == HUGE
    assert found["towers"]["adapter"]["total"] == 16_793_600
    assert found["total_parameters"] == 2_730_565_120
    assert found["total_bytes_bf16"] == 5_461_130_240
    assert found["visual_tokens_per_tile"] == 256
    # The head is the embedding: stored twice, trained once.
    assert found["trainable_parameters"] == 2_730_565_120 - EMBEDDING_2B
    assert found["active_parameters"] == found["total_parameters"]


def test_anyres_2b_has_the_same_parameters():
    assert facts(Flavour.sailvl2_anyres_2b)["towers"] == facts(Flavour.sailvl2_2b)["towers"]


def test_8b():
    found = facts(Flavour.sailvl2_8b)
    assert found["towers"]["vision"]["total"] == HUGE
    assert found["towers"]["adapter"]["total"] == 41_963_520
    assert found["total_parameters"] == found["trainable_parameters"] == 8_914_730_496


def test_a3b():
    found = facts(Flavour.sailvl2_a3b)
    assert found["towers"]["adapter"]["total"] == 16_793_600
    assert found["total_parameters"] == 31_230_947_840
    # 120 of 128 experts idle in each of 48 layers, three matrices of 768 x 2048 each.
    assert found["active_parameters"] == 31_230_947_840 - 48 * 120 * 3 * 768 * 2048


def test_vision_large():
    config = flavour_config(Flavour.sailvl2_2b)
    large = replace(config.vision, hidden_size=1024, intermediate_size=2816, num_attention_heads=8)
    assert describe(replace(config, vision=large))["towers"]["vision"]["total"] == 309_984_256


@pytest.mark.parametrize("flavour", [Flavour.tiny, Flavour.tiny_moe, Flavour.tiny_anyres])
def test_counts_are_those_of_a_built_model(flavour):
    model = SailVL2(flavour_config(flavour))
    found = facts(flavour)
    assert found["total_parameters"] == sum(t.numel() for t in released_tensors(model).values())
    assert found["trainable_parameters"] == sum(p.numel() for p in model.parameters())


def test_a_pipe_gets_json_and_a_terminal_a_table(capsys, monkeypatch, tiny_folder):
    run_describe(DescribeConfig(model=Flavour.sailvl2_8b), "")
    assert json.loads(capsys.readouterr().out) == facts(Flavour.sailvl2_8b)
    run_describe(DescribeConfig(checkpoint=str(tiny_folder)), "")
    assert json.loads(capsys.readouterr().out) == facts(Flavour.tiny)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    run_describe(DescribeConfig(model=Flavour.sailvl2_8b), "")
    shown = capsys.readouterr().out
    assert "sailvl2_8b: parameters" in shown and f"{facts(Flavour.sailvl2_8b)['total_parameters']:,}" in shown
    assert "{" not in shown


def test_nothing_large_is_allocated():
    """On the meta device: 30B parameters would be 125 GB."""
    with torch.device("meta"):
        model = SailVL2(flavour_config(Flavour.sailvl2_a3b))
    assert all(p.is_meta for p in model.parameters())
