"""Load of the experts of an MoE: `python -m model.pretrain.expert_load checkpoint=DIR text=FILE multimodal=FILE`.

It prints, for every layer, how evenly the routers use the experts on documents of text and on documents with images.
With `mixes={NAME: {FILE: share}}` it names the text mix whose mean activation entropy is highest, the calibration of
the SAIL-VL2 report, section 2.2. docs/probes.md explains the figures.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.cli import launch
from model.pretrain.probes.config import ExpertLoadConfig
from model.run.durable import write_file

if TYPE_CHECKING:
    from torch import Tensor

    from model.engine.local import LocalScorer
    from model.processing.processor import Processor


def expert_load(config: ExpertLoadConfig) -> dict[str, Any]:
    """Measure the sets and the mixes, print tables, and write `config.output`. `ValueError` for a model without experts
    and for rows that cannot be used."""
    from model.checkpoint import load_model
    from model.config import AttentionKernel, MoeLanguageConfig
    from model.engine.device import pick_device, prepare_cpu
    from model.engine.local import LocalScorer

    prepare_cpu(config.num_threads)
    model, processor = load_model(Path(config.checkpoint))
    language = model.config.language
    if not isinstance(language, MoeLanguageConfig):
        raise ValueError(f"checkpoint: expected a model with experts, found a dense one in {config.checkpoint}")
    model = model.to(pick_device(config.device)).requires_grad_(False)
    scorer = LocalScorer(model, 1.0, None, AttentionKernel.auto)
    sets = {name: path for name, path in (("text", config.text), ("multimodal", config.multimodal)) if path}
    loads = {name: _load(config, scorer, processor, path, name) for name, path in sets.items()}
    result: dict[str, Any] = {"num_experts": language.num_experts, "highest_entropy": math.log(language.num_experts)}
    result["sets"] = {name: _figures(load) for name, load in loads.items()}
    _print_layers(result)
    if config.mixes:
        files = sorted({file for shares in config.mixes.values() for file in shares})
        known = {file: _load(config, scorer, processor, file, "mixes") for file in files}
        result["mixes"] = {name: _figures(_mixed(shares, known)) for name, shares in config.mixes.items()}
        result["best_mix"] = max(result["mixes"], key=lambda name: result["mixes"][name]["mean_entropy"])
        for name, figures in result["mixes"].items():
            print(f"mix {name}: mean entropy {figures['mean_entropy']:.4f} nats")
        print(f"highest mean entropy: mix {result['best_mix']}")
    if config.output:
        output = Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_file(output, (json.dumps(result, indent=2) + "\n").encode())
        print(f"result: {output}")
    return result


def _load(config: ExpertLoadConfig, scorer: "LocalScorer", processor: "Processor", path: str, key: str) -> "Tensor":
    """Share of the routed (token, slot) pairs that each expert has [L, E], over rows of one file."""
    from model.batch import pack_rows, split_by_tokens
    from model.data.order import KeyedOrder
    from model.data.sources import DataFolders
    from model.engine.balance import routed_counts
    from model.pretrain.config import PretrainDataConfig
    from model.pretrain.documents import Documents

    documents = Documents(PretrainDataConfig(path=path), processor, DataFolders(), key=key)
    count = min(config.num_rows or len(documents), len(documents))
    chosen = KeyedOrder(len(documents), config.seed, "expert_load").rows(0, count)
    parts = split_by_tokens([documents.length(number) for number in chosen], config.micro_batch_tokens, 1)
    counts = None
    for part in parts:
        rows = [documents.build(chosen[number]) for number in part]
        inputs = pack_rows(rows, processor.placeholder_id, processor.config.pixels_per_token)
        own = routed_counts(scorer.logprobs([inputs])).double().cpu()
        counts = own if counts is None else counts + own
    assert counts is not None
    return counts / counts.sum(-1, keepdim=True)


def _mixed(shares: Mapping[str, float], loads: "Mapping[str, Tensor]") -> "Tensor":
    """The load of a mix: routing sees each token alone, so it is the mean of the files' loads by their shares of the
    tokens."""
    import torch

    total = sum(shares.values())
    return torch.stack([loads[file] * (share / total) for file, share in shares.items()]).sum(0)


def _figures(load: "Tensor") -> dict[str, Any]:
    from model.moe import activation_entropy

    entropy = activation_entropy(load)
    return {"mean_entropy": entropy.mean().item(), "entropy": entropy.tolist(), "load": load.tolist()}


def _print_layers(result: Mapping[str, Any]) -> None:
    sets = result["sets"]
    if not sets:
        return
    print(f"activation entropy in nats (highest {result['highest_entropy']:.4f}), and the share of the busiest expert")
    print("layer  " + "  ".join(f"{name:>20}" for name in sets))
    for layer in range(len(next(iter(sets.values()))["entropy"])):
        cells = [f"{one['entropy'][layer]:.4f}  {max(one['load'][layer]):7.2%}" for one in sets.values()]
        print(f"{layer:5}  " + "  ".join(f"{cell:>20}" for cell in cells))
    print(" mean  " + "  ".join(f"{one['mean_entropy']:>20.4f}" for one in sets.values()))


def run(config: ExpertLoadConfig, resolved: str) -> None:
    expert_load(config)


def main() -> int:
    return launch("expert_load", ExpertLoadConfig, run)


if __name__ == "__main__":
    sys.exit(main())
