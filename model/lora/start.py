"""The adapters that a run's settings ask for."""

from collections.abc import Mapping
from pathlib import Path

import torch

from model.lora.adapters import adapters_of, add_adapters, targeted_layers
from model.lora.config import AdapterConfig, LoraConfig
from model.lora.peft_files import fill_adapters, read_adapters
from model.run.identity import Input, input_of
from model.sail_vl2 import SailVL2


def adapt(model: SailVL2, config: AdapterConfig, seed: int, device: torch.device | None = None) -> SailVL2:
    """The model with the adapters of the config; without any as it is. `ValueError` where they do not fit it.

    The adapters lie on `device`, or where their weights are; on the meta device they have no numbers.
    """
    if not isinstance(config, LoraConfig):
        return model
    layers = targeted_layers(model, config.targets)
    add_adapters(model, layers, config.rank, config.alpha, seed, device)
    if config.path and not next(iter(adapters_of(model))).a.is_meta:
        folder = Path(config.path)
        stored = read_adapters(folder)
        for name, wanted, found in (
            ("rank", config.rank, stored.rank),
            ("alpha", config.alpha, stored.scale * stored.rank),
        ):
            if wanted != found:
                raise ValueError(
                    f"adapter.{name}: {wanted} does not fit {folder}, which has {found:g}; set adapter.{name}={found:g}"
                )
        fill_adapters(model, stored, folder)
    return model


def inputs_of(config: AdapterConfig) -> Mapping[str, Input]:
    """The folder of adapters that a run starts from, where there is one."""
    return {"adapter.path": input_of(Path(config.path))} if isinstance(config, LoraConfig) and config.path else {}
