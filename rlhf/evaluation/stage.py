"""The evaluation of one checkpoint: from its folder and a file of prompts to a result, and to a file of answers."""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from model.checkpoint import load_model, load_processor
from model.data.sources import DataFolders
from model.engine.config import ComputeDtype
from model.engine.device import pick_device, pick_dtype, prepare_cpu
from model.interface import Mode
from model.json_values import JsonObject, parse_json, read_json_object
from model.run.durable import OUT_OF_SPACE, STAGING_SUFFIX, write_file
from model.run.progress import StageProgress
from rewards.rubric import Rubric
from rlhf.config import EvaluateConfig
from rlhf.console import evaluation_lines
from rlhf.evaluation.evaluator import evaluate_modes
from rlhf.prompts import PromptSet
from rollouts.build import build_worker
from rollouts.records import name_within
from rollouts.weights.sync import fill_worker

TO_STDOUT = "-"
"""The value of `output` that prints the result as JSON."""


def evaluate_folder(config: EvaluateConfig) -> JsonObject:
    """Load `config.checkpoint`, evaluate it, and write the result and the answers where `config.output` says."""
    config.rollouts.require_packages()
    output = Path(config.output) if config.output not in ("", TO_STDOUT) else None
    if output:
        check_output(output)
    prepare_cpu(config.num_threads)
    checkpoint = Path(config.checkpoint)
    processor = load_processor(checkpoint)
    rollout_config = config.rollouts.within(processor.config.language.max_position_embeddings)
    needs_reference = config.reward.has_answers
    # A line of the answers names its images, and those that came as bytes have to be there afterwards.
    folders = DataFolders(media=output.with_name(f"{output.stem}.media") if output else None)
    table = Path(config.prompts)
    prompts = PromptSet(
        table, processor, Mode.think, rollout_config, config.data, folders, needs_reference=needs_reference
    )
    model, _ = load_model(checkpoint)
    count = min(config.num_prompts or len(prompts), len(prompts))
    total = sum(count * (config.num_samples if mode.is_sampled else 1) for mode in config.modes)
    with Rubric(config.reward) as rubric, _kept(output) as keep:
        rubric.check_datasets(row.prompt.meta for row in prompts.items)
        rubric.check_functions()
        device = pick_device(config.device)
        model = model.to(device, pick_dtype(ComputeDtype.auto, device))
        with (
            closing(build_worker(model, processor, rollout_config, config.seed)) as worker,
            StageProgress("evaluate", total, sys.stderr if config.output == TO_STDOUT else None) as progress,
        ):
            fill_worker(worker, model)
            done = 0

            def keep_and_show(lines: Sequence[JsonObject]) -> None:
                nonlocal done
                keep(lines)
                done += len(lines)
                progress.advance(done, f"completions; {lines[-1]['mode']}" if lines else "")

            samples, group_by, modes = config.num_samples, config.group_by, config.modes
            result = evaluate_modes(
                prompts, count, worker, rubric, processor, samples, 0, group_by, modes, keep_and_show
            )
    result["max_completion_tokens"] = rollout_config.max_completion_tokens
    if output:
        write_file(output, json.dumps(result, indent=2).encode())
    return result


def answers_file(output: Path) -> Path:
    """The file of answers beside a result."""
    return output.with_name(f"{output.stem}.answers.jsonl")


@contextmanager
def _kept(output: Path | None) -> Iterator[Callable[[Sequence[JsonObject]], None]]:
    """Write lines to the file of answers, which takes its name when all of them are there."""
    if output is None:
        yield lambda lines: None
        return
    path = answers_file(output)
    staging = path.with_name(path.name + STAGING_SUFFIX)
    try:
        with staging.open("w", encoding="utf-8") as file:
            yield lambda lines: file.writelines(json.dumps(_within(output.parent, line)) + "\n" for line in lines)
        os.replace(staging, path)
    except ValueError:  # no result can be made of the answers, which show why
        os.replace(staging, path)
        raise
    finally:
        staging.unlink(missing_ok=True)


def _within(folder: Path, line: JsonObject) -> JsonObject:
    return {**line, "images": [name_within(folder, image) for image in line["images"]]}


def check_output(output: Path) -> None:
    """Make the folder of the result. `ValueError` where no file can be written there."""
    if output.is_dir():
        raise ValueError(f"output: expected a file name, found the folder {output}")
    if output.exists() and not _is_result(output):
        raise ValueError(f"output: expected a new file, or an earlier result, found another file at {output}")
    answers = answers_file(output)
    if answers.exists() and not _is_answers(answers):
        raise ValueError(
            f"output: answers would be written to {answers}: expected no such file, or earlier answers, found another"
        )
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


def _is_answers(path: Path) -> bool:
    """Whether a file begins with an answer."""
    try:
        with path.open("rb") as file:
            line = parse_json(file.readline(1 << 24))
        return isinstance(line, dict) and {"mode", "verdict", "completion"} <= line.keys()
    except (OSError, ValueError):
        return False


def run_evaluation(config: EvaluateConfig, resolved: str) -> None:
    """Print a table for people, and where the result and the answers are; with output=- the result as JSON instead.

    Without `output`, and where stdout is no terminal, the result is the last line too.
    """
    result = evaluate_folder(config)
    out = sys.stderr if config.output == TO_STDOUT else sys.stdout
    print("\n".join(evaluation_lines(config.checkpoint, result)), file=out)
    if config.output == TO_STDOUT:
        print(json.dumps(result))
    elif config.output:
        answers = answers_file(Path(config.output))
        print(f"result: {config.output}\nanswers: {answers}\nread them: python -m rlhf.look {answers}")
    else:
        print("nothing is kept; output=FILE.json keeps the result and every answer, output=- prints the result as JSON")
        if not sys.stdout.isatty():  # a program reads it
            print(json.dumps(result))
