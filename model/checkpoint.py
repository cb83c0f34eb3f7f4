"""Model folders in the released format: config.json, model.safetensors, tokenizer and preprocessor files."""

import json
import tempfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from model.config import FLAVOUR_FOLDER, Flavour, SailVL2Config, flavour_config
from model.engine.durable import write_folder
from model.processor import Processor
from model.sail_vl2 import SailVL2
from model.tokenizer import Tokenizer

WEIGHTS = "model.safetensors"
_HEAD, _EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


def build_flavour(flavour: Flavour, seed: int) -> tuple[SailVL2, Processor]:
    """A named flavour with fresh weights and the tokenizer shipped with it."""
    model = SailVL2(flavour_config(flavour))
    model.initialise(seed)
    return model, Processor(model.config, Tokenizer.from_folder(FLAVOUR_FOLDER / flavour.value))


def save_model(folder: Path, model: SailVL2, processor: Processor) -> None:
    """Write a checkpoint folder, whole or not at all. Both head and embedding are stored, tied or not."""
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    files = {
        "config.json": json.dumps(model.config.to_published(), indent=2).encode(),
        WEIGHTS: to_safetensors(tensors, metadata={"format": "pt"}),
    }
    with tempfile.TemporaryDirectory() as scratch:
        processor.save(Path(scratch))
        files |= {path.name: path.read_bytes() for path in Path(scratch).iterdir()}
    write_folder(folder, files)


def load_model(folder: Path) -> tuple[SailVL2, Processor]:
    """Read a checkpoint folder, fp32. `ValueError` names the file or every tensor that does not fit."""
    if not Path(folder).is_dir():
        raise ValueError(f"checkpoint: expected a folder at {folder}, found none; train one or correct the path")
    config = SailVL2Config.from_folder(folder)
    processor = Processor.from_folder(folder)
    model = SailVL2(config)
    shards = sorted(Path(folder).glob("*.safetensors"))
    if not shards:
        raise ValueError(f"{folder}: expected *.safetensors beside config.json, found none")
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        try:
            tensors |= load_file(shard)
        except SafetensorError as error:
            raise ValueError(f"{shard}: expected a whole safetensors file, found: {error}") from None
    load_tensors(model, tensors, str(folder))
    return model, processor


def load_tensors(model: SailVL2, tensors: dict[str, Tensor], where: str) -> None:
    """Copy `tensors` into `model`; one `ValueError` lists every missing, unexpected and mis-shaped name."""
    if model.config.language.tie_word_embeddings:
        head = tensors.setdefault(_HEAD, tensors.get(_EMBEDDING, torch.empty(0)))
        if _EMBEDDING in tensors and not torch.equal(head, tensors[_EMBEDDING]):
            raise ValueError(
                f"{where}: {_HEAD}: llm_config.tie_word_embeddings is true, but the stored head differs from the "
                "embedding; set it to false in config.json to keep both"
            )
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in sorted(wanted.keys() - tensors.keys())]
    problems += [f"unexpected {name}" for name in sorted(tensors.keys() - wanted.keys())]
    for name in sorted(wanted.keys() & tensors.keys()):
        if wanted[name].shape != tensors[name].shape:
            problems.append(f"{name}: expected {list(wanted[name].shape)}, found {list(tensors[name].shape)}")
        elif not torch.isfinite(tensors[name]).all():
            problems.append(f"{name}: expected finite numbers, found NaN or infinity")
    if problems:
        raise ValueError(f"{where}: tensors do not fit config.json:\n  " + "\n  ".join(problems))
    model.load_state_dict({name: tensor.to(torch.float32) for name, tensor in tensors.items()})
