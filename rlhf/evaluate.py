"""Both modes of a checkpoint on held-out prompts: `python -m rlhf.evaluate checkpoint=DIR prompts=FILE`."""

import json
import sys
from pathlib import Path
from typing import Any

from conf.cli import launch
from rlhf.config import EvaluateConfig


def evaluate_folder(config: EvaluateConfig) -> dict[str, Any]:
    """Load `config.checkpoint`, evaluate it, and write `config.output` if given."""
    from contextlib import closing

    from model.checkpoint import load_model, load_processor
    from model.engine.config import ComputeDtype
    from model.engine.device import pick_device, pick_dtype, prepare_cpu
    from model.interface import Mode
    from model.run.durable import write_file
    from rewards.rubric import Rubric
    from rlhf.evaluation.evaluator import evaluate_modes
    from rlhf.prompts import PromptSet
    from rollouts.build import build_worker
    from rollouts.weights.sync import fill_worker

    if config.output and Path(config.output).is_dir():
        raise ValueError(f"output: expected a file name, found the folder {config.output}")
    prepare_cpu(config.num_threads)
    checkpoint = Path(config.checkpoint)
    processor = load_processor(checkpoint)
    config.rollouts.check_context(processor.config.language.max_position_embeddings)
    prompts = PromptSet(Path(config.prompts), processor, Mode.think, config.rollouts, config.data)
    model, _ = load_model(checkpoint)
    with Rubric(config.reward) as rubric:
        rubric.check_functions()
        device = pick_device(config.device)
        model = model.to(device, pick_dtype(ComputeDtype.auto, device))
        with closing(build_worker(model, processor, config.rollouts, config.seed)) as worker:
            fill_worker(worker, model)
            result = evaluate_modes(prompts, config.num_prompts, worker, rubric, processor, config.samples)
    if config.output:
        output = Path(config.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        write_file(output, json.dumps(result, indent=2).encode())
    return result


def run_evaluation(config: EvaluateConfig, resolved: str) -> None:
    """Print a summary; without `output`, also the whole result as one JSON object in the last line."""
    result = evaluate_folder(config)
    print(
        f"{config.checkpoint}: think {result['accuracy_think']:.1%} (T=1 {result['accuracy_think_sampled']:.1%}), "
        f"direct {result['accuracy_direct']:.1%}, mean length {result['mean_length']:.1f}, n {result['num_eval']}"
    )
    if not config.output:
        print(json.dumps(result))


def main() -> int:
    return launch("evaluate", EvaluateConfig, run_evaluation)


if __name__ == "__main__":
    sys.exit(main())
