"""The evaluation of one checkpoint: from its folder and a file of prompts to a result."""

import json
from contextlib import closing
from pathlib import Path

from model.checkpoint import load_model, load_processor
from model.engine.config import ComputeDtype
from model.engine.device import pick_device, pick_dtype, prepare_cpu
from model.interface import Mode
from model.json_values import JsonObject
from model.run.durable import write_file
from rewards.rubric import Rubric
from rlhf.config import EvaluateConfig
from rlhf.evaluation.evaluator import evaluate_modes
from rlhf.prompts import PromptSet
from rollouts.build import build_worker
from rollouts.weights.sync import fill_worker


def evaluate_folder(config: EvaluateConfig) -> JsonObject:
    """Load `config.checkpoint`, evaluate it, and write `config.output` if given."""
    if config.output and Path(config.output).is_dir():
        raise ValueError(f"output: expected a file name, found the folder {config.output}")
    prepare_cpu(config.num_threads)
    checkpoint = Path(config.checkpoint)
    processor = load_processor(checkpoint)
    limits = config.rollouts.within(processor.config.language.max_position_embeddings)
    prompts = PromptSet(Path(config.prompts), processor, Mode.think, limits, config.data)
    model, _ = load_model(checkpoint)
    with Rubric(config.reward) as rubric:
        rubric.check_functions()
        device = pick_device(config.device)
        model = model.to(device, pick_dtype(ComputeDtype.auto, device))
        with closing(build_worker(model, processor, limits, config.seed)) as worker:
            fill_worker(worker, model)
            count, samples = config.num_prompts, config.num_samples
            result = evaluate_modes(prompts, count, worker, rubric, processor, samples, group_by=config.group_by)
    result["max_completion_tokens"] = limits.max_completion_tokens
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
        f"direct {result['accuracy_direct']:.1%}, mean length {result['mean_length']:.1f}, n {result['num_eval']}, "
        f"at most {result['max_completion_tokens']} tokens"
    )
    if not config.output:
        print(json.dumps(result))
