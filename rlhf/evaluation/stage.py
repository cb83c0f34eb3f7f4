"""The evaluation of one checkpoint: from its folder and a file of prompts to a result."""

import json
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryFile

from model.checkpoint import load_model, load_processor
from model.engine.config import ComputeDtype
from model.engine.device import pick_device, pick_dtype, prepare_cpu
from model.interface import Mode
from model.json_values import JsonObject, read_json_object
from model.run.durable import OUT_OF_SPACE, write_file
from rewards.rubric import Rubric
from rlhf.config import EvaluateConfig
from rlhf.console import shown
from rlhf.evaluation.evaluator import evaluate_modes
from rlhf.prompts import PromptSet
from rollouts.build import build_worker
from rollouts.weights.sync import fill_worker


def evaluate_folder(config: EvaluateConfig) -> JsonObject:
    """Load `config.checkpoint`, evaluate it, and write `config.output` if given."""
    config.rollouts.require_packages()
    if config.output:
        check_output(Path(config.output))
    prepare_cpu(config.num_threads)
    checkpoint = Path(config.checkpoint)
    processor = load_processor(checkpoint)
    rollout_config = config.rollouts.within(processor.config.language.max_position_embeddings)
    prompts = PromptSet(Path(config.prompts), processor, Mode.think, rollout_config, config.data)
    model, _ = load_model(checkpoint)
    with Rubric(config.reward) as rubric:
        rubric.check_datasets(row.prompt.meta for row in prompts.items)
        rubric.check_functions()
        device = pick_device(config.device)
        model = model.to(device, pick_dtype(ComputeDtype.auto, device))
        with closing(build_worker(model, processor, rollout_config, config.seed)) as worker:
            fill_worker(worker, model)
            count, samples = config.num_prompts, config.num_samples
            result = evaluate_modes(prompts, count, worker, rubric, processor, samples, group_by=config.group_by)
    result["max_completion_tokens"] = rollout_config.max_completion_tokens
    if config.output:
        write_file(Path(config.output), json.dumps(result, indent=2).encode())
    return result


def check_output(output: Path) -> None:
    """Make the folder of the result. `ValueError` where no file can be written there."""
    if output.is_dir():
        raise ValueError(f"output: expected a file name, found the folder {output}")
    if output.exists() and not _is_result(output):
        raise ValueError(f"output: expected a new file, or an earlier result, found another file at {output}")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise
        raise ValueError(f"output: expected a file that can be written at {output}, found: {error}") from None


def _is_result(path: Path) -> bool:
    """Whether a file is a result of this command, which a new one may replace."""
    try:
        return "num_eval" in read_json_object(path)
    except (OSError, ValueError):
        return False


def run_evaluation(config: EvaluateConfig, resolved: str) -> None:
    """Print a summary; without `output`, also the whole result as one JSON object in the last line."""
    result = evaluate_folder(config)
    think, sampled, direct = (shown(result[f"accuracy_{mode}"], ".1%") for mode in ("think", "think_sampled", "direct"))
    print(
        f"{config.checkpoint}: think {think} (T=1 {sampled}), direct {direct}, "
        f"mean length {shown(result['mean_length'], '.1f')}, n {result['num_eval']}, "
        f"at most {result['max_completion_tokens']} tokens"
    )
    if not config.output:
        print(json.dumps(result))
