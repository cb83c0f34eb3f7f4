"""Estimate memory and time of a run: `python -m rlhf.estimate recipe=verifiable_dapo model=sailvl2_8b engine=fsdp`.

Nothing is trained and no weight is read. gpus=8 gpu=h100_80 names the machine; the other keys are those of rlhf.train.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

from conf.cli import launch
from model.config import Device, Flavour, SailVL2Config, flavour_config
from model.engine.config import EngineConfig
from model.engine.planning.machines import GIB, MACHINES, Gpu, Machine, cpu_machine
from model.json_values import JsonObject
from model.lora.config import AdapterConfig, LoraConfig
from model.run.failpoints import reach
from rlhf.planning.config import EstimateConfig


def run(config: EstimateConfig, resolved: str) -> None:
    """Print the estimate, or the table of docs/clusters.md."""
    if config.table:
        if config.output:
            raise ValueError(
                "output: the table is Markdown on stdout, so expected nothing here; set table=false for JSON"
            )
        print(table(config))
        return
    shapes = shapes_of(config)
    reach("count")
    found = facts(config, shapes)
    print(json.dumps(found) if config.output == "-" else text(found))


def shapes_of(config: EstimateConfig) -> SailVL2Config:
    folder = config.checkpoint
    return SailVL2Config.from_folder(Path(folder)) if folder else flavour_config(config.model)


def facts(config: EstimateConfig, shapes: SailVL2Config) -> JsonObject:
    """Everything that the command says, as plain values."""
    from rlhf.algorithms.registry import build_algorithm
    from rlhf.planning.step import advice, estimate, parameters_text, require_possible

    require_possible(config, shapes)
    config = replace(config, rollouts=config.rollouts.within(shapes.language.max_position_embeddings))
    algorithm = build_algorithm(config.algorithm, config.rollouts.max_completion_tokens)
    machine = machine_of(config)
    found = estimate(config, shapes, algorithm, machine)
    job, seconds, batch = found.job, found.seconds, found.job.batch
    parts = {**found.memory.parts, "sampler": found.sampler}
    mended = None if found.fits else advice(config, shapes, algorithm, machine)
    return {
        "model": config.checkpoint or config.model.value,
        "parameters": parameters_text(job.sizes),
        "machine": machine.name,
        "processes": found.processes,
        "micro_batch": f"{batch.num_rows} x ({batch.prefix} + {batch.num_completions} x {batch.completion}) tokens, "
        f"{batch.num_rows * batch.tiles} tiles; {job.num_batches} of them for each process in an update",
        "memory_gib": {name: round(value / GIB, 2) for name, value in parts.items()},
        "memory_of_gpu_gib": round(machine.memory / GIB, 1),
        "needed_gib": round(found.needed / GIB, 2),
        "keys_and_values_gib": round(found.keys / GIB, 2),
        "host_gib": round(found.memory.host / GIB, 2),
        "fits": found.fits,
        "seconds": {name: round(value, 3) for name, value in vars(seconds).items()},
        "seconds_of_step": round(seconds.total, 2),
        "tokens_per_second": round(found.tokens / seconds.total),
        "utilisation_of_update": round(found.utilisation, 3),
        "change": mended[0] if mended else "",
        "needed_after_change_gib": round(mended[1].needed / GIB, 2) if mended else None,
        "checked": CHECKED if machine.is_gpu else CHECKED_ON_CPU,
        "never_measured": never_measured(config, machine.is_gpu),
    }


CHECKED = (
    "checked: memory and seconds of updates of the 2B model by the engine of one process on an H200, and what its "
    "sampler decodes a second (python -m benchmarks.estimate_error)"
)
CHECKED_ON_CPU = (
    "checked: memory and seconds of updates of 1.5 to 91 million parameters in one process, without recomputed layers "
    "and adapters (python -m benchmarks.estimate_error)"
)


def never_measured(config: EstimateConfig, on_gpu: bool) -> list[str]:
    """Parts of this estimate that no measurement was held against."""
    found = ["scores, sync and save", "how many groups are sampled and dropped: a step samples as many as it trains"]
    found += updates_never_measured(config, config.engine, config.adapter, on_gpu)
    if config.rollouts.name == "vllm":
        found.append("seconds of vLLM, which is taken to decode as our own sampler")
    return found


def updates_never_measured(
    config: EstimateConfig, engine: EngineConfig, adapter: AdapterConfig, on_gpu: bool
) -> list[str]:
    """Parts of the estimate of an update that no measurement was held against; `config` names model and machine."""
    found: list[str] = []
    if engine.name != "local":
        found.append("seconds of an engine of several processes" + (", and its memory on GPUs" if on_gpu else ""))
    if engine.gradient_checkpointing and on_gpu:
        found.append("recomputed layers on GPUs")
    if isinstance(adapter, LoraConfig):
        found.append("adapters on GPUs" if on_gpu else "seconds with adapters")
    if config.checkpoint or config.model is not Flavour.sailvl2_2b:
        found.append("models other than the 2B" if on_gpu else "models above 91 million parameters")
    if on_gpu and config.gpu.value != "h200_141":
        found.append("any GPU but an H200")
    return found


def text(found: JsonObject) -> str:
    """The estimate as plain lines."""
    lines = [
        f"model: {found['model']}, {found['parameters']}",
        f"machine: {found['processes']} x {found['machine']}",
        f"largest micro-batch: {found['micro_batch']}",
        "",
        "GiB of a process at the peak of an update",
        *(f"  {name:14}{value:10.2f}" for name, value in found["memory_gib"].items()),
        f"  {'needed':14}{found['needed_gib']:10.2f}  of {found['memory_of_gpu_gib']}",
        f"keys and values of a sampler, which need room between updates: {found['keys_and_values_gib']:.2f} GiB; "
        f"moments on the host: {found['host_gib']:.2f} GiB a node",
        "",
        "seconds of a step, every completion at its limit",
        *(f"  {name:14}{value:10.2f}" for name, value in found["seconds"].items()),
        f"  {'step':14}{found['seconds_of_step']:10.2f}",
        f"{found['tokens_per_second']:,} tokens a second; the updates reach {found['utilisation_of_update']:.0%} of "
        "the FLOP/s of the data sheet",
        "",
        verdict(found),
        found["checked"],
        *(f"never measured: {one}" for one in found["never_measured"]),
    ]
    return "\n".join(lines)


def verdict(found: JsonObject) -> str:
    if found["fits"]:
        return "it fits"
    numbers = f"it does not fit: {found['needed_gib']} GiB are needed, {found['memory_of_gpu_gib']} are there"
    if not found["change"]:
        return f"{numbers}; none of the changes that were tried fits: use GPUs with more memory"
    return f"{numbers}; with {found['change']} it needs {found['needed_after_change_gib']} GiB and fits"


def machine_of(config: EstimateConfig) -> Machine:
    """The machine that the config names; a CPU is this one, whose rate of products is measured at once."""
    if config.gpu is not Gpu.cpu:
        return MACHINES[config.gpu]
    import torch

    from model.engine.device import free_memory, pick_device

    torch.set_num_threads(config.engine.num_threads)
    a = torch.randn(1024, 1024)
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        torch.mm(a, a)
        best = max(best, 2 * 1024**3 / (time.perf_counter() - begin))
    processes = config.gpus * config.nodes if config.engine.name != "local" else 1
    return cpu_machine(free_memory(pick_device(Device.cpu)) / processes, best)


def table(config: EstimateConfig) -> str:
    """Markdown: what the models need on 1, 8 and 16 GPUs, with all weights trained and with adapters."""
    lines = [
        "| model | trained | GPUs | needed, GiB | fits | step, s | tokens/s | what makes it fit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for flavour in (Flavour.sailvl2_2b, Flavour.sailvl2_8b, Flavour.sailvl2_a3b):
        for adapter in (AdapterConfig(), LoraConfig()):
            for gpus, nodes in ((1, 1), (8, 1), (8, 2)):
                own = replace(config, model=flavour, checkpoint="", adapter=adapter, gpus=gpus, nodes=nodes)
                found = facts(own, flavour_config(flavour))
                kind = "all weights" if adapter.name == "none" else f"adapters of rank {LoraConfig().rank}"
                change = "" if found["fits"] else found["change"] or "nothing that was tried"
                lines.append(
                    f"| {flavour.value} | {kind} | {gpus * nodes} | {found['needed_gib']:.0f} | "
                    f"{'yes' if found['fits'] else 'no'} | {found['seconds_of_step']:,.0f} | "
                    f"{found['tokens_per_second']:,} | {f'`{change}`' if '=' in change else change} |"
                )
    return "\n".join(lines)


def main() -> int:
    return launch("estimate", EstimateConfig, run)


if __name__ == "__main__":
    sys.exit(main())
