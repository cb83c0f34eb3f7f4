"""RL with verifiable rewards: `python -m rlhf.train recipe=quickstart checkpoint=DIR algorithm=dapo`."""

import math
import sys
from typing import TYPE_CHECKING

from conf.cli import launch
from rlhf.config import RlConfig

if TYPE_CHECKING:
    from rewards.rubric import Rubric


def run_stage(config: RlConfig, resolved: str, rubric_class: "type[Rubric] | None" = None) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped.

    `rubric_class` replaces the rubric, for control experiments.
    """
    if config.trainer.name == "trl":
        raise ValueError("trainer=trl is not built yet")
    from pathlib import Path

    from model.checkpoint import StoredTensors, load_weights, save_model
    from model.engine.local import LocalEngine
    from model.engine.progress import StageProgress
    from model.engine.run import Run
    from model.processor import Processor
    from rewards.rubric import Rubric
    from rlhf.algorithms.registry import build_algorithm
    from rlhf.collect import Collector
    from rlhf.evaluation import Evaluator
    from rlhf.prompts import check_context, open_prompts
    from rlhf.report import StepReporter
    from rlhf.trainer import Parts, train
    from rlhf.update import Policy
    from rollouts.embedded import EmbeddedWorker

    sampler, limits = config.rollouts, config.trainer
    algorithm = build_algorithm(config.algorithm, sampler.max_completion_tokens)
    checkpoint = Path(config.checkpoint)
    processor = Processor.from_folder(checkpoint)
    check_context(sampler, processor.config.language.max_position_embeddings)
    with (rubric_class or Rubric)(config.reward) as rubric:
        rubric.check_functions()
        run = Run(config.run, resolved)
        if run.is_done:
            print(f"{run.folder}: already complete; run.start=fresh starts anew")
            return
        prompts, held_out = open_prompts(config, processor, run.folder)
        model = load_weights(processor.config, StoredTensors(checkpoint))
        rollouts_per_step = limits.groups_per_step * config.algorithm.group_size
        updates_per_step = limits.passes * math.ceil(rollouts_per_step / limits.mini_batch_size)
        engine = LocalEngine(
            model,
            config.engine,
            config.optimizer,
            limits.max_steps * updates_per_step,
            sampler.temperature,
            processor.barred_ids,
        )
        reference = engine.frozen_copy() if algorithm.needs_reference else None
        worker = EmbeddedWorker(model, processor, sampler, config.run.seed)
        with StageProgress("rl", limits.max_steps) as progress:
            parts = Parts(
                policy=Policy(engine, reference, processor, config.engine.micro_batch_tokens),
                worker=worker,
                collector=Collector(limits, prompts, worker, rubric, processor.tokenizer, algorithm, config.run.seed),
                rubric=rubric,
                algorithm=algorithm,
                evaluator=Evaluator(config.evaluation, model, processor, worker, rubric, held_out),
                reporter=StepReporter(progress, processor.tokenizer, limits.show_every),
            )
            train(limits, parts, run)
        save_model(run.final_folder, model, processor)
        run.finish({"updates": engine.step_count})


def main() -> int:
    return launch("rlhf", RlConfig, run_stage)


if __name__ == "__main__":
    sys.exit(main())
