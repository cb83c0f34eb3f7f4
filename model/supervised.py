"""The supervised stage that pre-training and SFT share: next rows, weighted cross-entropy, one update per step."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.batch import Row, TrainBatch, pack_rows, split_by_tokens
from model.config import MoeLanguageConfig, SailVL2Config, Tower
from model.data.config import HELD_OUT
from model.data.sources import DataFolders, RowSource, StepContent, StepSource, input_of_tables
from model.engine.adalrs import RateSearch
from model.engine.balance import BalancedLoss
from model.engine.base import LossFn, TrainEngine
from model.engine.build import open_engine
from model.engine.config import Normalisation, SupervisedConfig
from model.engine.parts import Costs
from model.engine.planning.machines import peak_of_device
from model.engine.source import AdaptedSource, ModelSource
from model.held_out import HeldOut
from model.logprobs import TokenScores
from model.lora.start import inputs_of
from model.processing.opener import OpenAhead
from model.processing.processor import Processor
from model.run.folder import RunFolder
from model.run.guidance import after_training
from model.run.identity import Input, outside_keys
from model.run.progress import StageProgress
from model.run.rate_plot import plot_rates

if TYPE_CHECKING:
    from model.engine.lead import Lead


def run_supervised(
    config: SupervisedConfig,
    resolved: str,
    title: str,
    lead: "Lead | None",
    source: ModelSource,
    processor: Processor,
    open_rows: Callable[[DataFolders, Processor], StepSource],
    open_held_out: Callable[[DataFolders, Processor], RowSource[Row]],
    tables: Mapping[str, str],
    inputs: Mapping[str, Input] | None = None,
) -> None:
    """Train the model of `source` on the rows that `open_rows` opens, and write `run.dir/final`.

    It continues where an earlier call stopped. `lead`: see `run_on_ranks`. `open_held_out` opens
    `config.evaluation.data`, where that is given. `tables`: key of the config -> the table that it names. `inputs`:
    what the run reads beside its rows.
    """
    if lead is not None and lead.ranks.num_ranks > 1:
        processor = processor.storing_pictures()
    tables = {**tables, "evaluation.data": config.evaluation.data}
    inputs = {**(inputs or {}), **inputs_of(config.adapter)}
    with RunFolder(config.run, resolved, outside_keys(config), config.report) as run:
        if run.already_complete(lambda: {**input_of_tables(tables), **inputs}):
            return after_training(run.folder)
        folders = DataFolders(run.folder / "media", run.folder / "bad_rows.jsonl")
        rows_of_step = open_rows(folders, processor)
        held_out_rows = open_held_out(folders.named(HELD_OUT), processor) if config.evaluation.data else None
        run.declare({**rows_of_step.inputs, **(held_out_rows.inputs if held_out_rows else {}), **inputs})
        one_pass = rows_of_step.steps_per_pass
        config = replace(config, max_steps=config.steps_for(one_pass), epochs=0.0)
        config.adalrs.steps(config.max_steps)  # refuses a run that is too short for a search
        described = [*rows_of_step.described(), *(held_out_rows.described() if held_out_rows else [])]
        passes = f"{config.max_steps / one_pass:.3g} passes over the rows of {one_pass} steps"
        described += config.adapter.described(config.optimizer.learning_rate)
        optimizer = config.optimizer.of(config.adapter)
        steps = f"steps: {config.max_steps} ({passes}), learning rate {optimizer.learning_rate:g}"
        print("\n".join([*described, steps]), flush=True)
        adapted = AdaptedSource(source, config.adapter, config.run.seed)
        engine = open_engine(lead, adapted, config.engine, optimizer, config.max_steps)
        start = inputs["checkpoint"].path if "checkpoint" in inputs else "built from nothing"
        print("\n".join(engine.described(start)), flush=True)
        held_out = HeldOut(config, engine, processor, held_out_rows)
        run.exporter = lambda folder: engine.export(folder, processor, config.dtype)
        with StageProgress(title, config.max_steps) as progress, closing(rows_of_step):
            train_supervised(config, engine, processor, rows_of_step, held_out, run, progress)
        if config.adalrs.window:
            with run.space_for("adalrs.png"):
                plot_rates(run.folder)
        with run.space_for("final"):
            engine.export(run.final_folder, processor, config.dtype)
        run.finish({"steps": engine.step_count, **held_out.summary})
        after_training(run.folder)


def train_supervised(
    config: SupervisedConfig,
    engine: TrainEngine,
    processor: Processor,
    rows_of_step: StepSource,
    held_out: HeldOut,
    run: RunFolder,
    progress: StageProgress,
) -> None:
    """Train to `config.max_steps`, resuming from the run's newest checkpoint. Every completion token has weight 1."""
    has_routers = isinstance(processor.config.language, MoeLanguageConfig)
    balance_coefficient = config.balance_coefficient if has_routers else 0.0
    sections = {"rows": rows_of_step, "held_out": held_out}
    ahead = _ImagesAhead(engine, rows_of_step, lambda one: _batches_of(one, config, processor, engine.num_parts))
    speed = Speed(processor.config, config.engine.freeze, engine)
    search = RateSearch(config.adalrs, config.max_steps, run, engine, sections, progress.say)
    search.restore(run.restore(engine))
    with run.saved_on_stop(engine, lambda: search.state(engine.step_count)) as stop:
        with stop.at_once():
            held_out.start(engine.step_count, run)
        while engine.step_count < config.max_steps:
            stop.check()
            begin = time.monotonic()
            with run.timed("data"):
                content = rows_of_step.content(engine.step_count)
                rows = content.rows
                num_samples = sum(len(row.completions) for row in rows)
                num_tokens = sum(row.num_scored for row in rows)
                denominator = num_tokens if config.normalisation is Normalisation.tokens else num_samples
            with run.timed("update"):
                loss: LossFn[TrainBatch] = SourceLosses(sorted(set(content.sources)))
                batches = ahead.batches(content)
                if engine.step_count + 1 < config.max_steps:
                    ahead.look()
                if balance_coefficient:
                    inputs = [batch.inputs for batch in batches]
                    loss = BalancedLoss.over(loss, engine, inputs, balance_coefficient, denominator)
                totals = engine.accumulate(batches, loss, denominator).total()
                result = engine.step(search.scale)
            step, settled = engine.step_count, search.settled_step
            seconds = time.monotonic() - begin  # an evaluation is not part of how fast a run trains
            if search.observe(step, totals["nll"] / num_tokens if result.applied else None):
                continue
            evaluated = {}
            if not search.is_trying:
                with run.timed("evaluate"), stop.at_once():
                    evaluated = held_out.evaluate_if_due(step, config.max_steps, run, settled)
            if evaluated:
                progress.say(f"step {step}{held_out.shown}")
            run.log(
                step,
                {
                    "loss": totals["loss"],
                    "nll_per_token": totals["nll"] / num_tokens,
                    "tokens_above_half": totals["sure"] / num_tokens,
                    "tokens": float(sum(row.num_tokens for row in rows)),
                    **speed.of(rows, seconds, config.max_steps - step),
                    **content.metrics,
                    **losses_by_source(totals),
                    **({"time/opening_s": totals["opening_s"] / engine.num_parts} if "opening_s" in totals else {}),
                    "learning_rate": result.learning_rate,
                    "grad_norm": result.grad_norm,
                    "skipped": float(not result.applied),
                    **{name: totals[name] for name in ("balance", "expert_entropy") if name in totals},
                    **search.metrics,
                    **evaluated,
                },
            )
            progress.advance(step, f"loss {totals['nll'] / num_tokens:.3f}{held_out.shown}")
            search.save_if(run.is_due(step, config.max_steps), step)


class _ImagesAhead:
    """Has the processes of an engine open the images of the next step while they train the present one."""

    def __init__(self, engine: TrainEngine, rows: StepSource, make: Callable[[StepContent], list[TrainBatch]]) -> None:
        loader = rows.loader
        self._engine, self._rows, self._make = engine, rows, make
        self._how = OpenAhead(loader.workers, loader.patience_s, loader.ahead_mib * 2**20) if loader else None
        self._next: tuple[list[Row], list[TrainBatch]] | None = None

    def batches(self, content: StepContent) -> list[TrainBatch]:
        """The micro-batches of a step. Their images are begun now, if they were not before."""
        if self._next is not None and self._next[0] is content.rows:
            return self._next[1]
        batches = self._make(content)
        self._begin(batches)
        return batches

    def look(self) -> None:
        """Begin the images of the next step, if its rows are ready."""
        content = self._rows.following() if self._begins else None
        self._next = None
        if content is not None and content.rows:
            self._next = content.rows, self._make(content)
            self._begin(self._next[1])

    @property
    def _begins(self) -> bool:
        return self._how is not None and self._how.workers > 0 and self._engine.num_parts > 1

    def _begin(self, batches: list[TrainBatch]) -> None:
        if self._begins and self._how is not None and any(batch.inputs.num_tiles for batch in batches):
            self._engine.expect(batches, self._how)


def split_rows(
    content: StepContent, config: SupervisedConfig, processor: Processor, num_parts: int = 1
) -> list[list[int]]:
    """Numbers of the rows of each micro-batch of a step: as its rows are packed, or split by their tokens."""
    if content.bins is not None:
        return content.bins
    costs = [Costs.of(processor.config).of_row(row) for row in content.rows] if num_parts > 1 else None
    lengths = [row.num_tokens for row in content.rows]
    return split_by_tokens(lengths, config.engine.micro_batch_tokens, num_parts, costs)


def _batches_of(
    content: StepContent, config: SupervisedConfig, processor: Processor, num_parts: int
) -> list[TrainBatch]:
    """The micro-batches of a step."""
    rows = content.rows
    parts = split_rows(content, config, processor, num_parts)
    batches = [make_train_batch([rows[number] for number in part], processor) for part in parts]
    if not content.sources:
        return batches
    known = {name: number for number, name in enumerate(sorted(set(content.sources)))}
    return [
        replace(
            batch,
            sources=torch.repeat_interleave(
                torch.tensor([known[content.sources[number]] for number in part]),
                torch.tensor([rows[number].num_scored for number in part]),
            ),
        )
        for batch, part in zip(batches, parts, strict=True)
    ]


def make_train_batch(rows: Sequence[Row], processor: Processor) -> TrainBatch:
    """Pack rows; all scored tokens train."""
    inputs = pack_rows(rows, processor.placeholder_id, processor.config.pixels_per_token)
    return TrainBatch(inputs, torch.ones(inputs.target_ids.shape[0]))


class Speed:
    """How fast a run trains, step by step."""

    def __init__(self, config: SailVL2Config, freeze: Sequence[Tower], engine: TrainEngine) -> None:
        """Gradients pass through a frozen decoder to what is trained before it, and not through a frozen tower."""
        self._costs = Costs.of(config)
        self._language = 2.0 if Tower.language in freeze else 3.0  # passes of the arithmetic of a forward pass
        self._vision = 1.0 if Tower.vision in freeze else 3.0
        self._squares = config.pixels_per_token**2
        device = engine.shape.device
        peak = peak_of_device(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        self._peak = None if peak is None else peak * engine.num_parts
        self._seconds: deque[float] = deque(maxlen=20)

    def of(self, rows: Sequence[Row], seconds: float, steps_left: int) -> dict[str, float]:
        """Tokens, visual tokens and 10^12 operations a second of a step that took so long, and what is left.

        `seconds` are those of a step's rows and its update. `time/mfu` is the share of the peak of the GPUs in
        bfloat16, where that is known. `time/left_s` covers the steps that are left, at the mean of the last 20;
        evaluations, checkpoints and the export come on top.
        """
        self._seconds.append(seconds)
        tiles = [(image.shape[0], image.shape[2] * image.shape[3] // self._squares) for r in rows for image in r.images]
        visual = sum(count * tokens for count, tokens in tiles)
        tokens = sum(row.num_tokens for row in rows)
        language = sum(self._costs.row(len(r.prefix_ids), [len(c) for c in r.completions], ()) for r in rows)
        operations = self._language * language + self._vision * self._costs.row(0, (), tiles)
        return {
            "time/tokens_per_s": tokens / seconds,
            "time/visual_tokens_per_s": visual / seconds,
            "time/tflops_per_s": operations / seconds / 1e12,
            **({} if self._peak is None else {"time/mfu": operations / seconds / self._peak}),
            "time/left_s": steps_left * sum(self._seconds) / len(self._seconds),
        }


@dataclass(frozen=True)
class SourceLosses:
    """`cross_entropy`, with the sums of each source beside those of all."""

    names: Sequence[str]  # by the numbers in `TrainBatch.sources`; empty: there is one source

    def __call__(self, scores: TokenScores, batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
        loss_sum, figures = cross_entropy(scores, batch)
        if batch.sources is not None:
            losses = -scores.logprobs.detach()
            for number, name in enumerate(self.names):
                mine = batch.sources == number
                figures[f"nll/{name}"] = losses[mine].sum().item()
                figures[f"num/{name}"] = float(mine.sum())
        return loss_sum, figures


def losses_by_source(totals: Mapping[str, float]) -> dict[str, float]:
    """Mean negative log-likelihood of a token of each source that the step has tokens of."""
    names = [name.removeprefix("nll/") for name in totals if name.startswith("nll/")]
    return {f"loss/{name}": totals[f"nll/{name}"] / totals[f"num/{name}"] for name in names if totals[f"num/{name}"]}


def cross_entropy(scores: TokenScores, batch: TrainBatch) -> tuple[Tensor, dict[str, float]]:
    """Sum of weighted negative log-likelihoods in nats; also how many tokens had probability above one half."""
    loss_sum = -(scores.logprobs * batch.loss_weights).sum()
    sure = (scores.logprobs.detach() > -0.6931471805599453).sum()
    return loss_sum, {"nll": loss_sum.item(), "sure": float(sure)}
