"""Both modes of a checkpoint on held-out prompts: `python -m rlhf.evaluate checkpoint=DIR prompts=FILE.jsonl`."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.cli import launch
from rlhf.config import EvaluateConfig

if TYPE_CHECKING:
    from model.interface import Mode
    from model.processor import Processor
    from model.sail_vl2 import SailVL2
    from rewards.rubric import Rubric


def evaluate(config: EvaluateConfig, model: "SailVL2", processor: "Processor", rubric: "Rubric") -> dict[str, Any]:
    """Accuracy thinking (greedy and sampled) and direct (greedy), format rate and mean length of greedy thinking.

    Accuracies are shares of scorable completions; `num_unscorable` counts the others. `majority_answer_rate` is the
    accuracy of always giving the most common reference.
    """
    from model.interface import Mode

    thinking = _ask(config, model, processor, rubric, Mode.think, greedy=True)
    sampled = _ask(config, model, processor, rubric, Mode.think, greedy=False)
    direct = _ask(config, model, processor, rubric, Mode.direct, greedy=True)
    references = thinking["references"]
    by_family: dict[str, Counter[str]] = {}
    for family, reference in zip(thinking["families"], references, strict=True):
        by_family.setdefault(family, Counter())[reference] += 1
    return {
        "accuracy_think": thinking["accuracy"],
        "accuracy_think_sampled": sampled["accuracy"],
        "accuracy_direct": direct["accuracy"],
        "format_rate": thinking["format_rate"],
        "mean_length": thinking["mean_length"],
        "mean_length_sampled": sampled["mean_length"],
        "mean_length_direct": direct["mean_length"],
        "num_eval": len(references),
        "num_unscorable": thinking["num_unscorable"] + sampled["num_unscorable"] + direct["num_unscorable"],
        "majority_answer_rate": Counter(references).most_common(1)[0][1] / len(references),
        "majority_answer_rate_per_family": sum(c.most_common(1)[0][1] for c in by_family.values()) / len(references),
    }


def _ask(
    config: EvaluateConfig, model: "SailVL2", processor: "Processor", rubric: "Rubric", mode: "Mode", greedy: bool
) -> dict[str, Any]:
    """Put every prompt once, in one mode."""
    from rewards.result import Status
    from rlhf.collect import reward_input
    from rlhf.prompts import PromptSet
    from rollouts.embedded import EmbeddedWorker
    from rollouts.rollout import generate

    prompts = PromptSet(Path(config.prompts), processor, mode, config.rollouts.max_prompt_tokens)
    worker = EmbeddedWorker(model, processor, config.rollouts, config.seed)
    count = min(config.num_prompts or len(prompts), len(prompts))
    tasks = [prompts[index] for index in range(count)]
    rollouts = generate(worker, [task.request(draw, 1, greedy) for draw, task in enumerate(tasks)])
    inputs = [
        reward_input(task, group[0], processor.tokenizer, prompts.root)
        for task, group in zip(tasks, rollouts, strict=True)
    ]
    results = rubric.score(inputs)
    scored = [result for result in results if result.status is Status.ok]
    if not scored:
        raise ValueError(f"{config.prompts}: no completion could be scored; the first reason: {results[0].reason}")
    return {
        "accuracy": _mean([float(result.correct) for result in scored]),
        "format_rate": _mean([result.parts["format"] or 0.0 for result in scored]),
        "mean_length": _mean([len(group[0].completion_ids) for group in rollouts]),
        "num_unscorable": len(results) - len(scored),
        "references": [task.prompt.reference for task in tasks],
        "families": [str(task.prompt.meta.get("family", "")) for task in tasks],
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def evaluate_folder(config: EvaluateConfig) -> dict[str, Any]:
    """Load `config.checkpoint`, evaluate it, and write `config.output` if given."""
    from model.checkpoint import load_model
    from model.engine.durable import write_file
    from model.engine.local import use_deterministic_cpu
    from rewards.rubric import Rubric
    from rlhf.prompts import check_context

    if config.output and Path(config.output).is_dir():
        raise ValueError(f"output: expected a file name, found the folder {config.output}")
    use_deterministic_cpu(config.num_threads)
    model, processor = load_model(Path(config.checkpoint))
    check_context(config.rollouts, model.config.language.max_position_embeddings)
    with Rubric(config.reward) as rubric:
        rubric.check_functions()
        result = evaluate(config, model, processor, rubric)
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
