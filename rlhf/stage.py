"""Reinforcement learning as a stage: what may be wrong is looked at first, then the parts are put together."""

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from model.checkpoint import load_processor
from model.engine.build import open_engine, run_on_ranks
from model.engine.local import LocalEngine
from model.engine.source import AdaptedSource, FolderSource
from model.processing.processor import Processor
from model.run.folder import RunFolder
from model.run.guidance import after_training
from model.run.identity import outside_keys
from model.run.progress import StageProgress
from rewards.rubric import Rubric
from rlhf.ahead import AheadCollector
from rlhf.algorithms.algorithm import Algorithm
from rlhf.collect import Collector
from rlhf.config import RlConfig, TrlTrainerConfig
from rlhf.console import StepReporter
from rlhf.doctor import Doctor
from rlhf.evaluation.evaluator import Evaluator
from rlhf.mismatch import MismatchWatch
from rlhf.planning.inputs import inputs_of, known_inputs
from rlhf.planning.limits import checked, describe, describe_replay
from rlhf.prompts import PromptSet, open_prompts
from rlhf.trainer import Parts, train
from rlhf.update import Policy
from rollouts.build import build_worker_of

if TYPE_CHECKING:
    from model.engine.lead import Lead


def run_stage(config: RlConfig, resolved: str, rubric_class: type[Rubric] = Rubric) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped.

    `rubric_class` replaces the rubric, for control experiments.
    """
    if isinstance(config.trainer, TrlTrainerConfig):
        from rlhf.trl.settings import check
        from rlhf.trl.trl_trainer import run_with_trl

        check(config)
        return run_with_trl(config, resolved, rubric_class)
    config.rollouts.require_packages()
    run_on_ranks(
        config.engine, resolved, lambda: known_inputs(config), lambda lead: _run(config, resolved, rubric_class, lead)
    )


def _run(config: RlConfig, resolved: str, rubric_class: type[Rubric], lead: "Lead | None") -> None:
    processor = load_processor(Path(config.checkpoint))
    asked = config
    if lead is not None and lead.ranks.num_ranks > 1:
        processor = processor.storing_pictures()
    config, algorithm = checked(config, processor)
    with rubric_class(config.reward) as rubric:
        rubric.check_functions()  # before the run's folder keeps the settings
        with RunFolder(config.run, resolved, outside_keys(config), config.report) as run:
            if run.already_complete(lambda: known_inputs(config)):
                return after_training(run.folder, is_rl=True)
            prompts, held_out = open_prompts(config, processor, run.folder)
            run.declare({**inputs_of(config), **prompts.inputs, **(held_out.inputs if held_out else {})})
            rubric.check_datasets(row.prompt.meta for one in (prompts, held_out) if one for row in one.items)
            config = replace(config, trainer=config.trainer.complete(len(prompts)))
            print("\n".join([*prompts.described(), *(held_out.described() if held_out else [])]))
            print("\n".join([describe(config, len(prompts)), *describe_replay(asked, config)]), flush=True)
            _train(config, algorithm, processor, prompts, held_out, rubric, run, lead)


def _train(
    config: RlConfig,
    algorithm: Algorithm,
    processor: Processor,
    prompts: PromptSet,
    held_out: PromptSet | None,
    rubric: Rubric,
    run: RunFolder,
    lead: "Lead | None",
) -> None:
    """Load the model, put the parts together, run the loop, write the final model."""
    trainer_config, rollout_config, seed = config.trainer, config.rollouts, config.run.seed
    last = trainer_config.max_steps
    total_updates = last * config.updates_per_step
    temperature, barred_ids = rollout_config.temperature, processor.barred_ids
    source = AdaptedSource(FolderSource(config.checkpoint), config.adapter, seed)
    optimizer = config.optimizer.of(config.adapter)
    engine = open_engine(lead, source, config.engine, optimizer, total_updates, temperature, barred_ids)
    print("\n".join(engine.described(config.checkpoint)), flush=True)
    moving = None
    if algorithm.config.kl.refresh_every:
        assert isinstance(engine, LocalEngine)  # the config refuses others
        reference = moving = engine.moving_reference()
    else:
        reference = engine.frozen() if algorithm.needs_reference else None
    num_ahead = rollout_config.max_staleness // config.updates_per_step
    replays = algorithm.config.correction.routing_replay
    with (
        closing(build_worker_of(engine, lead, processor, rollout_config, seed, replays)) as worker,
        StageProgress("rl", last) as progress,
        ExitStack() as ends,
    ):
        collector = Collector(
            trainer_config, prompts, worker, rubric, processor.tokenizer, algorithm, seed, config.data.variance
        )
        collector.show = progress.status
        needs_advantage = algorithm.learns_from_advantages and not trainer_config.balance_coefficient
        paid = config.reward.paid_parts
        doctor = Doctor(trainer_config.warn_after, needs_advantage, processor.tokenizer, progress.say, paid)
        evaluator = Evaluator(
            config.evaluation, engine, processor, worker, rubric, held_out, config.dtype, progress.say
        )
        ahead = None
        if num_ahead:
            ahead = AheadCollector(
                collector,
                worker,
                num_ahead,
                last,
                lambda step: run.is_due(step, last) or evaluator.is_due(step, last),
            )
            ends.callback(ahead.close_thread)
        policy = Policy(engine, reference, processor, config.engine.micro_batch_tokens, moving)
        parts = Parts(
            policy=policy,
            collector=ahead or collector,
            algorithm=algorithm,
            evaluator=evaluator,
            watch=MismatchWatch(policy, trainer_config.max_sampler_gap),
            doctor=doctor,
            reporter=StepReporter(progress, processor.tokenizer, trainer_config.show_every),
        )
        run.exporter = lambda folder: engine.export(folder, processor, config.dtype)
        train(trainer_config, parts, run)
        doctor.end()
    with run.space_for("final"):
        engine.export(run.final_folder, processor, config.dtype)
    run.finish({"updates": engine.step_count})
    after_training(run.folder, is_rl=True)
