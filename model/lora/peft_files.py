"""Adapters as PEFT stores them: `adapter_config.json`, and `adapter_model.safetensors` under PEFT's names.

A layer's adapter is `base_model.model.LAYER.lora_A.weight` [rank, in] and `lora_B.weight` [out, rank]. The two stacks
of an MoE layer are `target_parameters` to PEFT, which lays all experts into one matrix and names the first stack
`base_layer` of the second.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from model.json_values import JsonObject, read_json_object
from model.lora.adapters import Adapter, adapters_of, add_adapters
from model.lora.experts import STACKS
from model.lora.merge import Gather, whole
from model.run.durable import write_folder
from model.run.tensor_files import all_finite, write_tensors
from model.sail_vl2 import SailVL2

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_OURS = {
    "model.language_model.": "language_model.model.",
    "model.vision_model.": "vision_model.",
    "model.mlp1.": "mlp1.",
}
"""Names of transformers' class of this model -> the released names, which are ours."""
_NOTHING_ELSE: JsonObject = {
    "use_dora": False,
    "lora_bias": False,
    "bias": "none",
    "modules_to_save": None,
    "trainable_token_indices": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "fan_in_fan_out": False,
    "layer_replication": None,
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "velora_config": None,
    "kasa_config": None,
    "monteclora_config": None,
}
"""Settings of PEFT that make an adapter more than scale * B @ A -> the value with which it is no more."""
_FRESH = (True, False, "gaussian")
"""Values of PEFT's init_lora_weights that leave the weights below the adapter as they are."""


@dataclass(frozen=True)
class StoredAdapters:
    """A folder of adapters, read."""

    rank: int
    scale: float
    tensors: dict[
        str, tuple[Tensor, Tensor]
    ]  # as `Adapter` names and shapes them: (a, b); of a stack as PEFT lays them

    @property
    def layers(self) -> list[str]:
        """Names of the adapted layers. Both stacks of experts belong to one."""
        return list(dict.fromkeys(_layer_of(name) for name in self.tensors))


def write_adapters(folder: Path, model: nn.Module, rank: int, alpha: float, gather: Gather = whole) -> None:
    """Write the model's adapters in float32, whole or not at all."""
    adapters = adapters_of(model)
    shapes: dict[str, torch.Size] = {}
    places: dict[str, tuple[Adapter, str]] = {}
    for adapter in adapters:
        for letter in "ab":
            name = f"{_PREFIX}{_peft_name(adapter.name)}.lora_{letter.upper()}.weight"
            places[name] = adapter, letter
            shapes[name] = _laid_out(getattr(adapter, letter), letter).shape

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, (adapter, letter) in sorted(places.items()):
            yield name, _laid_out(gather(getattr(adapter, letter)), letter)

    stacks = [adapter.name for adapter in adapters if adapter.weight.dim() == 3]
    layers = [adapter.name for adapter in adapters if adapter.weight.dim() == 2]
    settings = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "init_lora_weights": True,
        "target_modules": _short_names(model, layers),
        "target_parameters": _short_names(model, stacks) or None,
        **_NOTHING_ELSE,
    }
    content = json.dumps(settings, indent=2).encode()
    write_folder(
        folder,
        {CONFIG: content},
        lambda staging: {WEIGHTS: write_tensors(staging / WEIGHTS, shapes, torch.float32, tensors(), {"format": "pt"})},
    )


def read_adapters(folder: Path) -> StoredAdapters:
    """Read a folder that PEFT or `write_adapters` wrote. `ValueError` for adapters that are more than scale * B @ A."""
    try:
        settings = read_json_object(folder / CONFIG)
    except OSError as error:
        raise ValueError(f"{folder}: expected a folder of adapters with {CONFIG}, found: {error}") from None
    rank, scale = _rank_and_scale(settings, folder / CONFIG)
    path = folder / WEIGHTS
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict)
                name, letter = _our_name(key, path)
                tensor = file.get_tensor(key).float()
                if not all_finite(tensor):
                    raise ValueError(f"{path}: {key}: expected finite numbers, found NaN or infinity")
                found.setdefault(name, {})[letter] = tensor
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: expected a whole safetensors file, found: {error}") from None
    if not found or (halves := [name for name, pair in found.items() if len(pair) != 2]):
        raise ValueError(f"{path}: expected lora_A and lora_B of each layer, found {halves[0] if found else 'none'}")
    return StoredAdapters(rank, scale, {name: (pair["A"], pair["B"]) for name, pair in found.items()})


@torch.no_grad()
def fill_adapters(model: SailVL2, stored: StoredAdapters, where: Path) -> None:
    """Copy stored adapters into those of the model. `ValueError` unless they are of the same layers and shapes."""
    wanted = {adapter.name: adapter for adapter in adapters_of(model)}
    if differing := sorted(wanted.keys() ^ stored.tensors.keys()):
        name = differing[0]
        raise ValueError(
            f"{where}: expected adapters of the layers that adapter.targets names, found "
            f"{'none of' if name in wanted else 'one more, of'} {name} ({len(differing)} such differences)"
        )
    for name, pair in stored.tensors.items():
        adapter = wanted[name]
        for letter, own, tensor in zip("ab", (adapter.a, adapter.b), pair, strict=True):
            shape = _laid_out(own, letter).shape
            if tensor.shape != shape:
                raise ValueError(
                    f"{where}: {name}.lora_{letter.upper()}: expected {list(shape)}, found {list(tensor.shape)}"
                )
            own.copy_(_stacked(tensor, letter, own.shape))


def add_stored_adapters(model: SailVL2, folder: Path) -> StoredAdapters:
    """Give the model the adapters of a folder, on the layers that the folder names. They lie in main memory, wherever
    the weights are. `ValueError` where they do not fit."""
    stored = read_adapters(folder)
    for name in stored.layers:
        try:
            layer = model.get_submodule(name)
        except AttributeError:
            layer = None
        if not isinstance(layer, nn.Linear) and not hasattr(layer, STACKS[0]):
            raise ValueError(f"{folder}: expected adapters of linear layers of this model, found one of {name}")
    add_adapters(model, stored.layers, stored.rank, stored.scale * stored.rank, 0, torch.device("cpu"))
    fill_adapters(model, stored, folder)
    return stored


def _rank_and_scale(settings: JsonObject, where: Path) -> tuple[int, float]:
    if settings.get("peft_type") != "LORA":
        raise ValueError(f"{where}: peft_type: expected LORA, found {settings.get('peft_type')!r:.80}")
    for key, plain in _NOTHING_ELSE.items():
        if (found := settings.get(key, plain)) != plain and found:
            raise ValueError(
                f"{where}: {key}: expected {plain!r}, found {found!r:.80}; adapters here have no such part"
            )
    if settings.get("init_lora_weights", True) not in _FRESH:
        raise ValueError(
            f"{where}: init_lora_weights: expected one of {_FRESH}, found {settings['init_lora_weights']!r:.80}, which "
            "changes the weights below the adapters; convert the adapters with PEFT first"
        )
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not (rank > 0 and 0 < alpha < math.inf):
        raise ValueError(f"{where}: r, lora_alpha: expected positive numbers, found {rank!r:.40} and {alpha!r:.40}")
    return rank, alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _layer_of(name: str) -> str:
    stem, _, leaf = name.rpartition(".")
    return stem if leaf in STACKS and stem.endswith(".experts") else name


def _peft_name(name: str) -> str:
    """The name of an adapter in PEFT's files."""
    layer = _layer_of(name)
    return layer if layer == name or name.endswith(STACKS[1]) else f"{layer}.base_layer"


def _our_name(key: str, path: Path) -> tuple[str, str]:
    """(our name of the adapter, A or B)."""
    match = re.fullmatch(rf"(?:{re.escape(_PREFIX)})?(.+)\.lora_([AB])\.weight", key)
    if match is None:
        raise ValueError(f"{path}: expected tensors called LAYER.lora_A.weight or LAYER.lora_B.weight, found {key}")
    name, letter = match[1], match[2]
    for theirs, ours in _OURS.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    if name.endswith(".experts.base_layer"):
        name = f"{name.removesuffix('base_layer')}{STACKS[0]}"
    elif name.endswith(".experts"):
        name = f"{name}.{STACKS[1]}"
    return name, letter


def _laid_out(tensor: Tensor, letter: str) -> Tensor:
    """A matrix as it is; the stack of all experts as PEFT's one matrix: a [E * rank, in], b [out, rank * E]."""
    if tensor.dim() == 2:
        return tensor
    return tensor.flatten(0, 1) if letter == "a" else tensor.permute(1, 2, 0).flatten(1)


def _stacked(tensor: Tensor, letter: str, shape: torch.Size) -> Tensor:
    """Undo `_laid_out`."""
    if len(shape) == 2:
        return tensor
    if letter == "a":
        return tensor.unflatten(0, shape[:2])
    return tensor.unflatten(1, (shape[2], shape[0])).permute(2, 0, 1)


def _short_names(model: nn.Module, names: list[str]) -> list[str]:
    """The shortest ends of the names that PEFT, which goes by ends, finds these and nothing else with."""
    others = {name for name, _ in model.named_modules()} | {name for name, _ in model.named_parameters()}
    others -= set(names)
    short: set[str] = set()
    for name in names:
        parts = name.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        short.add(next(end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)))
    return sorted(short)
