"""From settings to an engine, in one process or in several that torchrun started."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Protocol

from model.engine.base import TrainEngine
from model.engine.config import DeepspeedConfig, EngineConfig, OptimizerConfig, ShardedConfig
from model.engine.device import pick_device
from model.engine.local import LocalEngine
from model.engine.planning.fitting import estimated, processes_here, require_room
from model.engine.source import AdaptedSource, ModelSource
from model.lora.config import AdapterConfig
from model.run.failpoints import only_on_rank
from model.run.identity import Input, code_input

if TYPE_CHECKING:
    from model.engine.lead import Lead


class OpenedEngine(TrainEngine, Protocol):
    """An engine that says in a few lines what it trains."""

    def described(self, start: str) -> list[str]: ...


def run_on_ranks(
    config: EngineConfig,
    resolved: str,
    inputs: Callable[[], Mapping[str, Input]],
    run: Callable[["Lead | None"], None],
) -> None:
    """Call `run` where the loop belongs: here, or on rank 0 of several processes, which the others then follow.

    `resolved` is the whole config as text, `inputs` what the run reads; both are compared over the ranks, and so is
    the code. `ValueError` where they differ, and where several processes were started for an engine of one.
    """
    if not isinstance(config, ShardedConfig):
        from model.engine.ranks import refuse_several_processes

        refuse_several_processes(config)
        return run(None)
    if isinstance(config, DeepspeedConfig) and find_spec("deepspeed") is None:
        raise ModuleNotFoundError("No module named 'deepspeed'", name="deepspeed")  # before the processes meet
    from model.engine.lead import Lead, follow
    from model.engine.ranks import Ranks, ignore_signals

    ranks = Ranks(config)
    only_on_rank(ranks.rank)
    if ranks.rank:
        ignore_signals(ranks.watch)
    if ranks.num_ranks > 1:
        ranks.compare(lambda: {"config": resolved, "code": code_input().sha256, **_digests(inputs())})
    if ranks.rank:
        follow(ranks)
    lead = Lead(ranks)
    exit_code = 1
    try:
        run(lead)
        exit_code = 0
    except BaseException as error:
        exit_code = getattr(error, "exit_code", 2 if isinstance(error, ValueError) else 1)
        raise
    finally:
        lead.close(exit_code)


def _digests(inputs: Mapping[str, Input]) -> dict[str, str]:
    return {name: one.sha256 for name, one in inputs.items()}


def open_engine(
    lead: "Lead | None",
    source: ModelSource,
    config: EngineConfig,
    optimizer: OptimizerConfig,
    total_steps: int,
    temperature: float = 1.0,
    barred_ids: Sequence[int] | None = None,
) -> OpenedEngine:
    """The engine that `config` names, with the weights of `source`.

    `total_steps` optimizer updates shape the schedule; `temperature` and `barred_ids` are the sampler's. `ValueError`
    for an engine of several processes outside of `run_on_ranks`.
    """
    adapter = source.adapter if isinstance(source, AdaptedSource) else AdapterConfig()
    if lead is not None:
        from model.engine.lead import LeadEngine

        ranks = lead.ranks
        require_room(config, source.shapes(), adapter, ranks.device, ranks.num_ranks, processes_here(ranks.num_ranks))
        led = LeadEngine(lead, source, config, optimizer, total_steps, temperature, barred_ids)
        led.estimated = estimated(config, source.shapes(), adapter, ranks.device, ranks.num_ranks)
        return led
    if isinstance(config, ShardedConfig):
        raise ValueError(
            f"engine: expected local in a Python program of your own, found {config.name}; start it with torchrun and "
            "one of the commands, such as torchrun --nproc-per-node=2 -m rlhf.train"
        )
    require_room(config, source.shapes(), adapter, pick_device(config.device))
    model, _ = source.model()
    engine = LocalEngine(model, config, optimizer, total_steps, temperature, barred_ids)
    engine.estimated = estimated(config, source.shapes(), adapter, engine.shape.device)
    return engine
