"""What engine=deepspeed refuses, by name and with the reason; nothing of DeepSpeed is needed for that."""

import pytest
import torch

from model.config import Flavour
from model.engine.config import DeepspeedConfig
from model.engine.deepspeed import whole_model
from model.engine.source import AdaptedSource, FreshSource
from model.lora.config import LoraConfig

TINY = FreshSource(Flavour.tiny, 0)


@pytest.mark.parametrize(
    ("source", "stage", "dtype", "words"),
    [
        (FreshSource(Flavour.tiny, 0, torch.float64), 2, torch.float32, ("found float64", "engine=fsdp")),
        (FreshSource(Flavour.tiny_moe, 0), 3, torch.float32, ("expected 1 or 2", "experts", "routing", "engine=fsdp")),
        (TINY, 1, torch.bfloat16, ("expected 2 or 3 with bfloat16, found 1", "float32")),
        (AdaptedSource(TINY, LoraConfig(), 0), 2, torch.float32, ("adapters", "expected fsdp or local")),
    ],
    ids=["float64", "experts", "bfloat16", "adapters"],
)
def test_is_refused(source, stage, dtype, words):
    with pytest.raises(ValueError, match=r"^engine") as caught:
        whole_model(source, DeepspeedConfig(stage=stage), dtype)
    assert all(word in str(caught.value) for word in words), caught.value


def test_other_models_are_whole_and_float32():
    model, _ = whole_model(TINY, DeepspeedConfig(stage=3), torch.bfloat16)
    ours, theirs = model.state_dict(), TINY.model()[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("stage", [0, 4])
def test_stages_are_1_to_3(stage):
    with pytest.raises(ValueError, match=r"engine.stage: expected 1, 2 or 3"):
        DeepspeedConfig(stage=stage)


def test_there_are_no_replicas():
    with pytest.raises(ValueError, match=r"engine.replicas: expected 1 with engine=deepspeed, found 2"):
        DeepspeedConfig(replicas=2)
