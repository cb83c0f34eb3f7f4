"""Benchmarks of one checkpoint: every benchmark in every mode, with figures as they are published and a protocol id."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from model.data.jsonl import json_rows
from model.data.raw_rows import RawRow
from model.data.tsv import header_of, tsv_rows
from model.json_values import JsonObject
from model.processing.processor import Processor
from model.run.identity import digest_of_files
from rewards.endpoint import Endpoint
from rlhf.config import EvaluationMode
from rlhf.evaluation.answers import Answer
from rlhf.evaluation.benchmarks import Benchmark, catalogue, with_forms
from rlhf.evaluation.config import EvaluateConfig
from rlhf.evaluation.estimates import bootstrap_interval, jackknife_interval
from rlhf.evaluation.figures import figures, result_of
from rlhf.evaluation.judging import BY_JUDGE, BY_NONE, BY_RULE, FAILED, BenchmarkJudge, judge_prompt
from rlhf.evaluation.overall import ALL_RIGHT, Judged, figure_of, means_of
from rlhf.evaluation.protocol import Protocol, code_version, sampling_of
from rlhf.evaluation.questions import Asked, media_digest, table_of, write_prompts
from rollouts.config import RolloutConfig

KeepLines = Callable[[Sequence[JsonObject]], None]


@dataclass(frozen=True)
class OpenBenchmark:
    """A benchmark that is ready to be asked."""

    benchmark: Benchmark
    table: Path
    asked: dict[str, Asked]
    num_unread: int  # rows of the table that no prompt could be made of
    judge: BenchmarkJudge

    @property
    def order(self) -> list[str]:
        """The ids of what can be asked, in the table's order."""
        return list(self.asked)


def open_benchmarks(config: EvaluateConfig, folder: Path, endpoint: Endpoint | None) -> list[OpenBenchmark]:
    """Read the tables of the benchmarks and write their prompts below `folder`.

    `ValueError`, before anything is asked, for an unknown benchmark, a table that is missing, and a judge that is.
    """
    known = with_forms(catalogue(), config.data.forms)
    chosen = known.chosen(config.benchmarks)
    tables = {one.name: table_of(one, Path(config.data.folder)) for one in chosen}
    for one in chosen:
        BenchmarkJudge(one, {}, endpoint)
    opened: list[OpenBenchmark] = []
    for one in chosen:
        out = folder / f"{one.name}.jsonl"
        asked, num_unread = write_prompts(one, known, Path(config.data.folder), out, config.data.max_bad_rows)
        judge = BenchmarkJudge(one, asked, endpoint, config.judge.concurrency, bool(config.data.predictions))
        opened.append(OpenBenchmark(one, tables[one.name], asked, num_unread, judge))
    return opened


def benchmark_result(
    one: OpenBenchmark,
    num_questions: int,
    answers: Mapping[EvaluationMode, Sequence[Answer]],
    protocols: Mapping[EvaluationMode, Protocol],
    config: EvaluateConfig,
) -> JsonObject:
    """The figures of one benchmark: its own in each mode, what both modes show together, and the protocols."""
    both = result_of([], answers, config.num_samples)
    modes: JsonObject = {}
    for mode, found in answers.items():
        unknown = dict.fromkeys(_OF_TOKENS if config.data.predictions else ())
        modes[mode.value] = {**_figure(one, found), **figures(found), **unknown, "protocol": protocols[mode].id}
    names = ("pass_at", "majority_at", "overthinking")
    return {
        "title": one.benchmark.title,
        "score_of": one.benchmark.score,
        "num_questions": num_questions,
        "num_unread": one.num_unread + (0 if config.num_prompts else len(one.asked) - num_questions),
        "modes": modes,
        **{name: value for name, value in both.items() if name.startswith(names)},
        "protocols": {mode.value: protocol.to_json() for mode, protocol in protocols.items()},
    }


def _figure(one: OpenBenchmark, answers: Sequence[Answer]) -> JsonObject:
    """The published figure over the judged rows, its parts, and how answers were found. With several samples of a
    question its score is their mean. A unit that counts as one is left out where one of its answers has no verdict."""
    by_id: dict[str, list[Answer]] = {}
    for answer in answers:
        if answer.score is not None:
            by_id.setdefault(answer.prompt_id, []).append(answer)
    benchmark = one.benchmark
    open_units = {one.asked[answer.prompt_id].unit for answer in answers if answer.prompt_id not in by_id} - {""}
    rows = [
        Judged(
            index,
            {**one.asked[index].question.columns, "answer": one.asked[index].question.answer},
            sum(answer.score or 0.0 for answer in by_id[index]) / len(by_id[index]),
            by_id[index][0].answer,
            one.asked[index].unit,
        )
        for index in one.order
        if index in by_id and not (benchmark.score in ALL_RIGHT and one.asked[index].unit in open_units)
    ]
    figure = figure_of(benchmark.score, rows)
    found = [answer.extraction for answer in answers]
    shares = {kind: found.count(kind) / len(found) for kind in (BY_RULE, BY_JUDGE, BY_NONE, FAILED)} if found else {}
    return {
        "figure": figure.score,
        "figure_interval": interval_of(benchmark.score, rows, figure.score),
        "parts": figure.parts,
        "extraction": shares,
    }


def interval_of(score: str, rows: Sequence[Judged], value: float | None) -> list[float] | None:
    """The 95 % interval of a figure, of 100: by resampling units where it is their mean, else by leaving out some of
    them in turn. None where there is no figure, or no spread to see."""
    if value is None:
        return None
    means = means_of(score, rows)
    if means is not None:
        return [100 * min(1.0, max(0.0, end)) for end in bootstrap_interval(*means)]

    def without(numbers: Collection[int]) -> float | None:
        return figure_of(score, [row for number, row in enumerate(rows) if number not in numbers]).score

    found = jackknife_interval(value, [row.unit or f"row {number}" for number, row in enumerate(rows)], without)
    return None if found is None else [min(100.0, max(0.0, end)) for end in found]


_OF_TOKENS = ("mean_length", "cut_off_share", "format_rate", "mode_obedience", "empty_think_share")
"""Figures of whole completions, of which stored predictions say nothing."""


def protocols_of(
    one: OpenBenchmark, config: EvaluateConfig, rollouts: RolloutConfig, processor: Processor | None
) -> dict[EvaluationMode, Protocol]:
    """The protocol of a benchmark in each mode. `processor`: the checkpoint's, None for stored predictions."""
    benchmark = one.benchmark
    forms = with_forms(catalogue(), config.data.forms).forms
    form = asdict(forms[benchmark.form])
    if benchmark.form == "choice":
        form["without options"] = asdict(forms["choice_free"])
    images: JsonObject = {"tiles": benchmark.tiles, "upscale": benchmark.upscale, "frames": benchmark.frames}
    if processor is not None:
        settings = replace(processor.settings, use_msac=not benchmark.frames, upscale=benchmark.upscale)
        images |= asdict(settings)
    extraction = {"rule": benchmark.rule, "score": benchmark.score, "split": benchmark.split}
    judge: JsonObject = {}
    if one.judge.is_asked:
        judge = {"model": config.judge.model, "prompt": judge_prompt(benchmark)}
    data = f"{digest_of_files([one.table])} {media_digest(benchmark, one.table.parent)}"
    found: dict[EvaluationMode, Protocol] = {}
    for mode in config.modes:
        wording = {**form, "instruction": mode.asked.instruction}
        sampling = sampling_of(mode, rollouts, config.num_samples, config.seed)
        if config.data.predictions:
            sampling = {"mode": mode.value, "predictions": "stored"}
        if config.num_prompts:
            sampling |= {"num_prompts": config.num_prompts}
        found[mode] = Protocol(data, wording, extraction, judge, sampling, images, code_version())
    return found


def averages_of(results: Mapping[str, JsonObject], modes: Sequence[EvaluationMode]) -> JsonObject:
    """The report's averages that are begun: mode -> figure where all members are there, else the members missing.

    A member is a benchmark, or an average that stands before it.
    """
    figures: dict[str, JsonObject] = {
        name: {mode.value: found["modes"][mode.value]["figure"] for mode in modes} for name, found in results.items()
    }
    found: JsonObject = {}
    for name, members in catalogue().averages.items():
        if not any(member in figures or member in found for member in members):
            continue
        if missing := [member for member in members if member not in figures]:
            found[name] = {"missing": missing}
            continue
        values = {mode.value: [figures[member][mode.value] for member in members] for mode in modes}
        figures[name] = {mode: None if None in own else sum(own) / len(own) for mode, own in values.items()}
        found[name] = figures[name]
    return found


def stored_predictions(path: Path, benchmark: Benchmark, only: bool) -> dict[str, str]:
    """index -> prediction, from a TSV or JSONL file, or from the one file of a folder whose name ends with the table's.

    `ValueError` for what is not there, an index twice, and for a spreadsheet, which cuts long cells.
    """
    file = path
    if path.is_dir():
        endings = tuple(f"_{benchmark.file}{suffix}" for suffix in (".tsv", ".jsonl"))
        there = sorted(one for one in path.iterdir() if f"_{one.name}".endswith(endings))
        if len(there) != 1:
            names = ", ".join(one.name for one in there) or "none"
            raise ValueError(
                f"data.predictions: {benchmark.name}: expected one file {path}/*{endings[0]}, found {names}"
            )
        file = there[0]
    elif not only:
        raise ValueError(f"data.predictions: expected a folder with a file for each benchmark, found the file {path}")
    if file.suffix == ".xlsx":
        raise ValueError(f"data.predictions: expected TSV or JSONL, found {file}; a spreadsheet cuts cells: store TSV")
    return _predictions(file)


def _predictions(file: Path) -> dict[str, str]:
    rows: Iterator[RawRow] = tsv_rows(file, as_chat=False) if file.suffix == ".tsv" else json_rows(file)
    if file.suffix == ".tsv" and "prediction" not in (header := header_of(file)):
        raise ValueError(f"data.predictions: {file}: expected a column prediction, found {', '.join(header)}")
    found: dict[str, str] = {}
    for raw in rows:
        if raw.problem:
            raise ValueError(f"data.predictions: {file}: row {raw.number}: {raw.problem}")
        if "index" not in raw.columns:
            raise ValueError(f"data.predictions: {file}: row {raw.number}: expected a column index, found none")
        if file.suffix != ".tsv" and raw.columns.get("prediction") is None:
            continue  # nothing was predicted, which is not a wrong prediction; an empty cell of a TSV is an empty one
        index = str(raw.columns["index"])
        if index in found:
            raise ValueError(f"data.predictions: {file}: row {raw.number}: index {index} is there twice")
        found[index] = str(raw.columns.get("prediction", ""))
    if not found:
        raise ValueError(f"data.predictions: {file}: expected predictions, found none")
    return found


def judged_predictions(
    one: OpenBenchmark, predictions: Mapping[str, str], mode: EvaluationMode
) -> tuple[list[Answer], list[JsonObject]]:
    """(the answers, their lines) of stored predictions. `ValueError` where questions have none."""
    missing = [index for index in one.order if index not in predictions]
    if missing:
        raise ValueError(
            f"data.predictions: {one.benchmark.name}: expected a prediction for each of {len(one.asked)} questions, "
            f"found none for {len(missing)}: {', '.join(missing[:5])}"
        )
    results = one.judge.results([(index, predictions[index]) for index in one.order])
    answers: list[Answer] = []
    lines: list[JsonObject] = []
    for index, result in zip(one.order, results, strict=True):
        answer = Answer(
            prompt_id=index,
            dataset=one.benchmark.name,
            mode=mode,
            right=result.correct if result.is_judged else None,
            score=result.answer_value if result.is_judged else None,
            reward=result.value,
            formatted=None,
            num_tokens=0,
            is_cut_off=False,
            answer=result.answer,
            extraction=getattr(result, "extraction", ""),
        )
        answers.append(answer)
        question = one.asked[index]
        lines.append(
            {
                "format": 1,
                "id": index,
                "dataset": one.benchmark.name,
                "mode": mode.value,
                "sample": 0,
                "question": question.text,
                "images": [],
                "completion": predictions[index],
                "answer": result.answer,
                "reference": question.question.answer,
                "verdict": answer.verdict,
                "reward": result.value,
                "score": answer.score,
                "reason": result.reason,
                "extraction": answer.extraction,
                "unit": question.unit,
            }
        )
    return answers, lines
