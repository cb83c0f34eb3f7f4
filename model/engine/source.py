"""Where the first weights of an engine come from: a checkpoint folder, or a seed. Each process reads its own rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from model.checkpoint import StoredTensors, build_flavour, fitting_config, flavour_processor, load_model, load_processor
from model.config import Flavour, SailVL2Config, flavour_config
from model.lora.config import AdapterConfig
from model.lora.start import adapt
from model.processing.processor import Processor
from model.run.failpoints import reach
from model.run.tensor_files import all_finite
from model.sail_vl2 import SailVL2

Rows = Callable[[str, int, int], Tensor]
"""(name of a parameter of the model, first row, end) -> those rows of it."""


class ModelSource(Protocol):
    """Can be sent to another process, which opens it there."""

    def shapes(self) -> SailVL2Config:
        """The model's config, without its weights."""
        ...

    def model(self) -> tuple[SailVL2, Processor]:
        """The whole model in float32, and its processor."""
        ...

    def open(self) -> tuple[SailVL2Config, Rows]:
        """The model's config and its weights, of which only the rows that are asked for are read."""
        ...

    def prepare(self, model: SailVL2) -> None:
        """Give a model of the config, on the meta device, what it has beside the weights of the config."""
        ...


@dataclass(frozen=True)
class FolderSource:
    """A checkpoint folder."""

    folder: str

    def shapes(self) -> SailVL2Config:
        return SailVL2Config.from_folder(Path(self.folder))

    def model(self) -> tuple[SailVL2, Processor]:
        return load_model(Path(self.folder))

    def prepare(self, model: SailVL2) -> None:
        pass

    def open(self) -> tuple[SailVL2Config, Rows]:
        folder = Path(self.folder)
        load_processor(folder)  # says what is wrong with a folder
        stored = StoredTensors(folder)
        config = fitting_config(SailVL2Config.from_folder(folder), stored)
        reach("load")
        return config, lambda name, start, stop: _stored_rows(stored, name, start, stop)


@dataclass(frozen=True)
class FreshSource:
    """A flavour with weights from a seed."""

    flavour: Flavour
    seed: int
    dtype: torch.dtype = torch.float32

    def shapes(self) -> SailVL2Config:
        return flavour_config(self.flavour)

    def model(self) -> tuple[SailVL2, Processor]:
        model, processor = self._built
        return model.to(self.dtype), processor

    def processor(self) -> Processor:
        """That of the flavour, without a model."""
        return flavour_processor(self.flavour)

    def open(self) -> tuple[SailVL2Config, Rows]:
        parameters = dict(self.model()[0].named_parameters())
        return self._built[0].config, lambda name, start, stop: parameters[name].detach()[start:stop]

    def prepare(self, model: SailVL2) -> None:
        pass

    @cached_property
    def _built(self) -> tuple[SailVL2, Processor]:
        return build_flavour(self.flavour, self.seed)

    def __getstate__(self) -> dict[str, object]:
        return {"flavour": self.flavour, "seed": self.seed, "dtype": self.dtype}


@dataclass(frozen=True)
class AdaptedSource:
    """The model of another source with the adapters of a config, or without any."""

    source: ModelSource
    adapter: AdapterConfig
    seed: int  # fresh adapters start from it

    def shapes(self) -> SailVL2Config:
        return self.source.shapes()

    def model(self) -> tuple[SailVL2, Processor]:
        model, processor = self.source.model()
        return adapt(model, self.adapter, self.seed), processor

    def open(self) -> tuple[SailVL2Config, Rows]:
        config, rows = self.source.open()
        with torch.device("meta"):
            model = SailVL2(config)
        # The adapters alone have numbers; every process makes all of them, because they are small.
        adapt(model, self.adapter, self.seed, torch.device("cpu"))
        own = {name: parameter.detach() for name, parameter in model.named_parameters() if not parameter.is_meta}

        def with_adapters(name: str, start: int, stop: int) -> Tensor:
            return own[name][start:stop] if name in own else rows(name, start, stop)

        return config, with_adapters

    def prepare(self, model: SailVL2) -> None:
        adapt(model, self.adapter, self.seed)


def _stored_rows(stored: StoredTensors, name: str, start: int, stop: int) -> Tensor:
    """Rows of a parameter from the released tensors that it is made of. `ValueError` for NaN or infinity."""
    stem, _, leaf = name.rpartition(".")
    if not stem.endswith(".experts"):
        return _finite(stored.rows(name, start, stop), stored, name)
    kinds = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else (leaf,)
    experts = []
    for expert in range(start, stop):
        names = [f"{stem}.{expert}.{kind}.weight" for kind in kinds]
        experts.append(torch.cat([_finite(stored.get(one), stored, one) for one in names]))
    return torch.stack(experts)


def _finite(tensor: Tensor, stored: StoredTensors, name: str) -> Tensor:
    if not all_finite(tensor):
        raise ValueError(f"{stored.folder}: {name}: expected finite numbers, found NaN or infinity")
    return tensor
