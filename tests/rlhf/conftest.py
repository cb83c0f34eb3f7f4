"""Opening prompt sets with the tiny model."""

from pathlib import Path

import pytest

from model.data.sources import DataFolders
from model.interface import Mode
from rlhf.config import DataConfig
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig


@pytest.fixture
def opened(tiny):
    """Opens a prompt set of the tiny model."""

    def make(path: Path, tokens: int = 96, mode: Mode = Mode.think, media=None, report=None, **data) -> PromptSet:
        limits = RolloutConfig(max_prompt_tokens=tokens)
        return PromptSet(path, tiny[1], mode, limits, DataConfig(**data), DataFolders(media, report))

    return make
