"""The evaluation of one checkpoint: from its folder and prompts to a result, and to a file of answers."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from model.checkpoint import load_model, load_processor
from model.data.config import InstructionRule, ReferenceForm
from model.data.sources import DataFolders
from model.engine.config import ComputeDtype
from model.engine.device import pick_device, pick_dtype, prepare_cpu
from model.json_values import JsonObject, parse_json
from model.processing.processor import Processor
from model.run.durable import STAGING_SUFFIX, write_file
from model.run.failpoints import reach
from model.run.progress import StageProgress
from rewards.rubric import Rubric
from rlhf.config import DataConfig, EvaluationMode
from rlhf.evaluation.config import EvaluateConfig
from rlhf.evaluation.evaluator import answers_of
from rlhf.evaluation.figures import result_of
from rlhf.evaluation.judging import endpoint_of
from rlhf.evaluation.protocol import Protocol, code_version, sampling_of
from rlhf.evaluation.responses import Responses
from rlhf.evaluation.stage import PROMPTS, TO_STDOUT, Keys, answers_file, benchmark_folder
from rlhf.evaluation.suite import (
    OpenBenchmark,
    averages_of,
    benchmark_result,
    judged_predictions,
    open_benchmarks,
    protocols_of,
    stored_predictions,
)
from rlhf.planning.inputs import digest_of_functions
from rlhf.prompts import PromptSet, longest_mode
from rlhf.rewarding import Scoring
from rollouts.build import build_worker
from rollouts.config import RolloutConfig
from rollouts.records import name_within
from rollouts.rollout import RolloutWorker
from rollouts.weights.sync import fill_worker

KeepLines = Callable[[Sequence[JsonObject]], None]


class Asking:
    """A checkpoint that answers prompts: its processor, its sampler, and what is kept while it answers."""

    def __init__(self, config: EvaluateConfig, output: Path | None, processor: Processor, keys: Keys) -> None:
        self.config, self.output, self.processor, self._keys = config, output, processor, keys
        self.rollouts: RolloutConfig = config.rollouts.within(processor.config.language.max_position_embeddings)

    @contextmanager
    def worker(self) -> Iterator[RolloutWorker]:
        """The sampler, with the checkpoint's weights."""
        device = pick_device(self.config.device)
        model, _ = load_model(Path(self.config.checkpoint))
        model = model.to(device, pick_dtype(ComputeDtype.auto, device))
        with closing(build_worker(model, self.processor, self.rollouts, self.config.seed)) as worker:
            fill_worker(worker, model)
            yield worker

    def responses(self, name: str) -> dict[EvaluationMode, Responses] | None:
        """The completions that are kept of a data set, by mode; None where no result is kept."""
        if self.output is None:
            return None
        folder = self.output.with_name(f"{self.output.stem}.responses")
        found = {}
        for mode in self.config.modes:
            sampling = sampling_of(mode, self.rollouts, self.config.num_samples, self.config.seed)
            parts = (self._keys.completions, name, self._keys.data.get(name, ""), json.dumps(sampling))
            key = hashlib.sha256(" ".join(parts).encode()).hexdigest()
            found[mode] = Responses(folder / f"{name}.{mode.value}.jsonl", key)
        if kept := sum(one.num_kept for one in found.values()):
            out = sys.stderr if self.config.output == TO_STDOUT else sys.stdout
            print(f"{name}: {kept} completions of an earlier evaluation are kept and not asked again", file=out)
        return found

    def num_completions(self, count: int) -> int:
        """How many completions `count` prompts get in all modes."""
        return sum(count * (self.config.num_samples if mode.is_sampled else 1) for mode in self.config.modes)


def evaluate(config: EvaluateConfig, output: Path | None, keys: Keys) -> JsonObject:
    """Make the result, and write it and the answers where `output` says. `keys` say what they depend on."""
    prepare_cpu(config.num_threads)
    with _kept(output) as keep:
        result = _suite(config, output, keys, keep) if config.benchmarks else _prompts(config, output, keys, keep)
    content = json.dumps({"key": keys.result, **result} if output else result, indent=2)
    if output:
        write_file(output, content.encode())
    return parse_json(content)  # the same whether it was made now or is read


def _prompts(config: EvaluateConfig, output: Path | None, keys: Keys, keep: KeepLines) -> JsonObject:
    """The result of a file of prompts."""
    asking = Asking(config, output, load_processor(Path(config.checkpoint)), keys)
    # A line of the answers names its images, and those that came as bytes have to be there afterwards.
    folders = DataFolders(media=output.with_name(f"{output.stem}.media") if output else None)
    needs_reference = config.reward.needs_reference
    prompts = PromptSet(
        Path(config.prompts),
        asking.processor,
        longest_mode(config.modes),
        asking.rollouts,
        config.data,
        folders,
        needs_reference=needs_reference,
    )
    count = min(config.num_prompts or len(prompts), len(prompts))
    with Rubric(config.reward) as rubric:
        rubric.check_datasets(row.prompt.meta for row in prompts.items)
        rubric.check_functions()
        with asking.worker() as worker, _shown(config, asking.num_completions(count), keep) as keep_and_show:
            asked, answers = answers_of(
                prompts,
                count,
                worker,
                rubric,
                asking.processor,
                config.num_samples,
                0,
                config.modes,
                keep_and_show,
                asking.responses(PROMPTS),
            )
    result = result_of(asked, answers, config.num_samples, config.group_by)
    result["max_completion_tokens"] = asking.rollouts.max_completion_tokens
    protocols = _protocols(config, asking, prompts)
    for mode, protocol in protocols.items():
        result["modes"][mode.value]["protocol"] = protocol.id
    result["protocols"] = {mode.value: protocol.to_json() for mode, protocol in protocols.items()}
    return result


def _protocols(config: EvaluateConfig, asking: Asking, prompts: PromptSet) -> dict[EvaluationMode, Protocol]:
    data = " ".join(one.sha256 for _, one in sorted(prompts.inputs.items()))
    columns = {name: str(value) for name, value in asdict(config.data).items() if name.endswith(("column", "form"))}
    wording = {**columns, "instruction_rule": config.data.instruction.value, "num_prompts": config.num_prompts}
    extraction = json.loads(json.dumps(asdict(config.reward), default=str))
    extraction["code of functions"] = digest_of_functions(config.reward)
    images = asdict(asking.processor.settings)
    return {
        mode: Protocol(
            data,
            {**wording, "instruction": mode.asked.instruction},
            extraction,
            {},
            sampling_of(mode, asking.rollouts, config.num_samples, config.seed),
            images,
            code_version(),
        )
        for mode in config.modes
    }


def _suite(config: EvaluateConfig, output: Path | None, keys: Keys, keep: KeepLines) -> JsonObject:
    """The result of benchmarks."""
    endpoint = endpoint_of(config.judge, output.with_name(f"{output.stem}.verdicts") if output else None)
    with TemporaryDirectory() as scratch:
        folder = benchmark_folder(output) if output else Path(scratch)
        opened = open_benchmarks(config, folder, endpoint)
        if config.data.predictions:
            results = _judged(config, opened, keep)
        else:
            results = _asked(config, opened, folder, Asking(config, output, _processor(config), keys), keep)
    num_eval = sum(found["num_questions"] for found in results.values())
    return {"num_eval": num_eval, "benchmarks": results, "averages": averages_of(results, config.modes)}


def _processor(config: EvaluateConfig) -> Processor:
    return load_processor(Path(config.checkpoint))


def _judged(config: EvaluateConfig, opened: Sequence[OpenBenchmark], keep: KeepLines) -> dict[str, JsonObject]:
    """The figures of stored predictions, which count as answers in the one mode that is asked for."""
    if len(config.modes) != 1:
        raise ValueError(
            "modes: expected one with data.predictions, such as modes=[direct]: the mode they were made in"
        )
    mode = config.modes[0]
    stored = {
        one.benchmark.name: stored_predictions(Path(config.data.predictions), one.benchmark, len(opened) == 1)
        for one in opened
    }
    results: dict[str, JsonObject] = {}
    for one in opened:
        answers, lines = judged_predictions(one, stored[one.benchmark.name], mode)
        keep(lines)
        protocols = protocols_of(one, config, config.rollouts, None)
        results[one.benchmark.name] = benchmark_result(one, len(answers), {mode: answers}, protocols, config)
    return results


def _asked(
    config: EvaluateConfig, opened: Sequence[OpenBenchmark], folder: Path, asking: Asking, keep: KeepLines
) -> dict[str, JsonObject]:
    sets = [_prompts_of(one, folder, asking, config.data) for one in opened]
    counts = [min(config.num_prompts or len(prompts), len(prompts)) for prompts in sets]
    results: dict[str, JsonObject] = {}
    total = asking.num_completions(sum(counts))
    with asking.worker() as worker, _shown(config, total, keep) as keep_and_show:
        for one, prompts, count in zip(opened, sets, counts, strict=True):
            scoring: Scoring = one.judge
            asked, answers = answers_of(
                prompts,
                count,
                worker,
                scoring,
                asking.processor,
                config.num_samples,
                0,
                config.modes,
                keep_and_show,
                asking.responses(one.benchmark.name),
            )
            protocols = protocols_of(one, config, asking.rollouts, asking.processor)
            results[one.benchmark.name] = benchmark_result(one, len(asked), answers, protocols, config)
    return results


def _prompts_of(one: OpenBenchmark, folder: Path, asking: Asking, data: DataConfig) -> PromptSet:
    """The prompts of a benchmark as ids and pixels. A row whose image cannot be read is counted and named."""
    benchmark = one.benchmark
    settings = asking.processor.with_settings(use_msac=not benchmark.frames, upscale=benchmark.upscale)
    plain = DataConfig(
        reference_form=ReferenceForm.plain,
        instruction=InstructionRule.always,
        max_bad_rows=data.max_bad_rows,
        max_image_bytes=data.max_image_bytes,
        cache_mib=data.cache_mib,
    )
    return PromptSet(
        folder / f"{benchmark.name}.jsonl",
        settings,
        longest_mode(asking.config.modes),
        asking.rollouts,
        plain,
        DataFolders(folder / "media", folder / f"{benchmark.name}.bad_rows.jsonl"),
        "data.folder",
        max_tiles=benchmark.tiles_of,
    )


@contextmanager
def _shown(config: EvaluateConfig, total: int, keep: KeepLines) -> Iterator[KeepLines]:
    """Keep lines, and show how far the evaluation is and when it will be done."""
    with StageProgress("evaluate", total, sys.stderr if config.output == TO_STDOUT else None) as progress:
        done, begin = 0, time.monotonic()

        def keep_and_show(lines: Sequence[JsonObject]) -> None:
            nonlocal done
            keep(lines)
            done += len(lines)
            left = (time.monotonic() - begin) / max(1, done) * (total - done)
            eta = "" if progress.console.is_terminal else f", about {timedelta(seconds=round(left))} left"
            progress.advance(done, f"completions; {lines[-1]['mode']}{eta}" if lines else "")

        yield keep_and_show


@contextmanager
def _kept(output: Path | None) -> Iterator[KeepLines]:
    """Write lines to the file of answers, which takes its name when all of them are there."""
    if output is None:
        yield lambda lines: None
        return
    path = answers_file(output)
    staging = path.with_name(path.name + STAGING_SUFFIX)
    try:
        with staging.open("w", encoding="utf-8") as file:
            yield lambda lines: file.writelines(json.dumps(_within(output.parent, line)) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        output.unlink(missing_ok=True)  # an earlier result must not stand beside answers that are not its own
        reach("answers")
        os.replace(staging, path)
    except ValueError:  # no result can be made of the answers, which show why if there are any
        if staging.stat().st_size:
            output.unlink(missing_ok=True)
            os.replace(staging, path)
        raise
    finally:
        staging.unlink(missing_ok=True)


def _within(folder: Path, line: Mapping[str, object]) -> JsonObject:
    images = line["images"]
    return {**line, "images": [name_within(folder, image) for image in (images if isinstance(images, list) else [])]}
