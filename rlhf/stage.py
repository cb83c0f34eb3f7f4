"""Reinforcement learning as a stage: what may be wrong is looked at first, then the parts are put together."""

from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from model.checkpoint import load_model, load_processor
from model.engine.local import LocalEngine
from model.lora.start import adapt
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
from rlhf.inputs import inputs_of, known_inputs
from rlhf.limits import checked, describe
from rlhf.mismatch import MismatchWatch
from rlhf.prompts import PromptSet, open_prompts
from rlhf.trainer import Parts, train
from rlhf.update import Policy
from rollouts.build import build_worker


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
    processor = load_processor(Path(config.checkpoint))
    config, algorithm = checked(config, processor)
    with rubric_class(config.reward) as rubric:
        rubric.check_functions()  # before the run's folder keeps the settings
        with RunFolder(config.run, resolved, outside_keys(config)) as run:
            if run.already_complete(lambda: known_inputs(config)):
                return after_training(run.folder, is_rl=True)
            prompts, held_out = open_prompts(config, processor, run.folder)
            run.declare({**inputs_of(config), **prompts.inputs, **(held_out.inputs if held_out else {})})
            rubric.check_datasets(row.prompt.meta for one in (prompts, held_out) if one for row in one.items)
            config = replace(config, trainer=config.trainer.complete(len(prompts)))
            print("\n".join([*prompts.described(), *(held_out.described() if held_out else [])]))
            print(describe(config, len(prompts)), flush=True)
            _train(config, algorithm, prompts, held_out, rubric, run)


def _train(
    config: RlConfig,
    algorithm: Algorithm,
    prompts: PromptSet,
    held_out: PromptSet | None,
    rubric: Rubric,
    run: RunFolder,
) -> None:
    """Load the model, put the parts together, run the loop, write the final model."""
    trainer_config, rollout_config, seed = config.trainer, config.rollouts, config.run.seed
    model, processor = load_model(Path(config.checkpoint))
    model = adapt(model, config.adapter, seed)
    last = trainer_config.max_steps
    total_updates = last * config.updates_per_step
    engine = LocalEngine(
        model,
        config.engine,
        config.optimizer.of(config.adapter),
        total_updates,
        rollout_config.temperature,
        processor.barred_ids,
    )
    print("\n".join(engine.described(config.checkpoint)), flush=True)
    reference = engine.frozen() if algorithm.needs_reference else None
    num_ahead = rollout_config.max_staleness // config.updates_per_step
    with (
        closing(build_worker(engine.shape, processor, rollout_config, seed)) as worker,
        StageProgress("rl", last) as progress,
        ExitStack() as ends,
    ):
        collector = Collector(trainer_config, prompts, worker, rubric, processor.tokenizer, algorithm, seed)
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
        policy = Policy(engine, reference, processor, config.engine.micro_batch_tokens)
        parts = Parts(
            policy=policy,
            collector=ahead or collector,
            algorithm=algorithm,
            evaluator=evaluator,
            watch=MismatchWatch(policy, trainer_config.max_sampler_gap),
            doctor=doctor,
            reporter=StepReporter(progress, processor.tokenizer, trainer_config.show_every),
        )
        train(trainer_config, parts, run)
        doctor.end()
    with run.space_for("final"):
        engine.export(run.final_folder, processor, config.dtype)
    run.finish({"updates": engine.step_count})
    after_training(run.folder, is_rl=True)
