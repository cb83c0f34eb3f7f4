"""RL with verifiable rewards: `python -m rlhf.train recipe=quickstart checkpoint=DIR algorithm=dapo`."""

import sys
from typing import TYPE_CHECKING

from conf.cli import launch
from rlhf.config import RlConfig, TrlTrainerConfig

if TYPE_CHECKING:
    from model.run.folder import RunFolder
    from rewards.rubric import Rubric
    from rlhf.algorithms.algorithm import Algorithm
    from rlhf.prompts import PromptSet


def run_stage(config: RlConfig, resolved: str, rubric_class: "type[Rubric] | None" = None) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped.

    `rubric_class` replaces the rubric, for control experiments.
    """
    if isinstance(config.trainer, TrlTrainerConfig):
        from rlhf.trl.settings import check

        check(config)
        from rlhf.trl.trl_trainer import run_with_trl

        return run_with_trl(config, resolved, rubric_class)
    from pathlib import Path

    from model.checkpoint import load_processor
    from model.config import MoeLanguageConfig
    from model.run.folder import RunFolder
    from rewards.rubric import Rubric
    from rlhf.algorithms.registry import build_algorithm
    from rlhf.prompts import open_prompts

    # Everything that may be wrong with the input is looked at before weights are read.
    sampler = config.rollouts
    algorithm = build_algorithm(config.algorithm, sampler.max_completion_tokens)
    processor = load_processor(Path(config.checkpoint))
    sampler.check_context(processor.config.language.max_position_embeddings)
    if config.trainer.balance_coefficient and not isinstance(processor.config.language, MoeLanguageConfig):
        raise ValueError(
            f"trainer.balance_coefficient: expected 0 for {config.checkpoint}, whose decoder has no routers, found "
            f"{config.trainer.balance_coefficient}"
        )
    with (rubric_class or Rubric)(config.reward) as rubric, RunFolder(config.run, resolved) as run:
        rubric.check_functions()
        if run.is_done:
            print(f"{run.folder}: already complete; run.start=fresh starts anew")
            return
        prompts, held_out = open_prompts(config, processor, run.folder)
        _train(config, algorithm, prompts, held_out, rubric, run)


def _train(
    config: RlConfig,
    algorithm: "Algorithm",
    prompts: "PromptSet",
    held_out: "PromptSet | None",
    rubric: "Rubric",
    run: "RunFolder",
) -> None:
    """Load the model, put the parts together, run the loop, write the final model."""
    from contextlib import ExitStack, closing
    from pathlib import Path

    from model.checkpoint import load_model
    from model.engine.local import LocalEngine
    from model.run.progress import StageProgress
    from rlhf.ahead import AheadCollector
    from rlhf.collect import Collector
    from rlhf.console import StepReporter
    from rlhf.evaluation.evaluator import Evaluator
    from rlhf.mismatch import MismatchWatch
    from rlhf.trainer import Parts, train
    from rlhf.update import Policy
    from rollouts.build import build_worker

    limits, sampler, seed = config.trainer, config.rollouts, config.run.seed
    model, processor = load_model(Path(config.checkpoint))
    total_updates = limits.max_steps * config.updates_per_step
    engine = LocalEngine(
        model, config.engine, config.optimizer, total_updates, sampler.temperature, processor.barred_ids
    )
    reference = engine.frozen() if algorithm.needs_reference else None
    num_ahead = sampler.max_staleness // config.updates_per_step
    with (
        closing(build_worker(engine.compute_model, processor, sampler, seed)) as worker,
        StageProgress("rl", limits.max_steps) as progress,
        ExitStack() as ends,
    ):
        collector = Collector(limits, prompts, worker, rubric, processor.tokenizer, algorithm, seed)
        evaluator = Evaluator(config.evaluation, engine, processor, worker, rubric, held_out)
        ahead = None
        if num_ahead:
            last = limits.max_steps
            ahead = AheadCollector(
                collector,
                worker,
                rubric,
                num_ahead,
                last,
                lambda step: run.is_due(step, last) or evaluator.is_due(step, last),
            )
            ends.callback(ahead.close_thread)
        policy = Policy(engine, reference, processor, config.engine.micro_batch_tokens)
        parts = Parts(
            policy=policy,
            collector=ahead or collector,
            rubric=ahead.rubric if ahead else rubric,
            algorithm=algorithm,
            evaluator=evaluator,
            watch=MismatchWatch(policy, limits.max_sampler_gap),
            reporter=StepReporter(progress, processor.tokenizer, limits.show_every),
        )
        train(limits, parts, run)
    with run.space_for("final"):
        engine.export(run.final_folder, processor)
    run.finish({"updates": engine.step_count})


def main() -> int:
    return launch("rlhf", RlConfig, run_stage)


if __name__ == "__main__":
    sys.exit(main())
