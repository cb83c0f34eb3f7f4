"""Batch inference as a stage: from a checkpoint and prompts to a file of completions that a later run goes on with."""

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from model.checkpoint import load_model, load_processor
from model.data.bad_rows import BadRows
from model.data.chat_rows import ChatReader
from model.data.media_cells import media_parts
from model.data.media_store import MediaStore
from model.data.tables import Table
from model.engine.config import ComputeDtype
from model.engine.device import pick_device, pick_dtype, prepare_cpu
from model.interface import Mode
from model.json_values import JsonObject, parse_json, read_json_object
from model.processing.messages import texts_of
from model.processing.processor import Processor
from model.run.durable import OUT_OF_SPACE, write_file
from model.run.failpoints import reach
from model.run.identity import Identity, Input, code_input, input_of, listed, outside_keys, settings_of
from model.run.progress import StageProgress
from rollouts.build import build_worker
from rollouts.config import Decoding, GenerateConfig
from rollouts.rollout import Json, Rollout, RolloutRequest, RolloutWorker, generate_in_pieces, question_of
from rollouts.weights.sync import fill_worker

PORTION = 64
"""The pixels of this many prompts are held at once, or of twice as many as the sampler decodes side by side, if that is
more."""


_OWN_FIELDS = ("sample", "completion", "finish_reason", "logprob", "token_ids", "error")
"""Fields that this command writes; a column of such a name is left out."""


@dataclass(frozen=True)
class GenerateRow:
    """A line of the prompts file. Its number is the group index, so that an interrupted file goes on with the same
    completions."""

    number: int
    id: str
    messages: list[Json]
    root: Path  # folder that image names are relative to
    mode: Mode  # direct too where thinking is asked for in the prompt's own words
    reference: str | None = None  # None where the row has none
    columns: Json = field(default_factory=dict)  # the row's columns, those of its images apart
    images: Sequence[str] = ()  # paths of image files; none where images came as bytes
    problem: str = ""  # the reason why it cannot be asked

    def line(self, answer: Json) -> Json:
        """Return a line of the output: the row's columns, so that it can be scored, and what was answered."""
        known: Json = {"id": self.id, "question": question_of(self.messages), "images": self.images}
        if self.reference is not None:
            known["reference"] = self.reference
        columns = {name: value for name, value in self.columns.items() if name not in _OWN_FIELDS}
        known |= {"prompt_mode": self.mode.value} if self.mode is Mode.auto else {}  # tells scorers the form
        return {**columns, **known, **answer}


def generate_file(config: GenerateConfig, resolved: str) -> None:
    """Sample what `config.out` does not have yet. `ValueError` while another run does."""
    config.rollouts.require_packages()
    processor = load_processor(Path(config.checkpoint))
    config = replace(config, rollouts=config.rollouts.within(processor.config.language.max_position_embeddings))
    media = MediaStore()  # a temporary folder, for images that come as bytes
    rows, pictures = read_rows(config, media)
    prompts = replace(input_of(*Table(Path(config.prompts)).files), path=config.prompts)
    with _hold(Path(config.out)):
        settings = settings_of(resolved, outside_keys(config))
        checkpoint = input_of(Path(config.checkpoint))
        inputs = {"checkpoint": checkpoint, "prompts": prompts, "prompts.media": pictures, "code": code_input()}
        done = _continue(Path(config.out), config, Identity(settings, inputs))
        open_rows = [row for row in rows if row.id not in done]
        limits = f"at most {config.rollouts.max_prompt_tokens} + {config.rollouts.max_completion_tokens} tokens"
        print(f"{config.out}: {len(rows) - len(open_rows)} of {len(rows)} prompts are there already; {limits}")
        if open_rows:
            _sample(open_rows, config, processor, media)


def _sample(rows: Sequence[GenerateRow], config: GenerateConfig, processor: Processor, media: MediaStore) -> None:
    """Append the completions of each row to the file."""
    prepare_cpu(config.num_threads)
    model, _ = load_model(Path(config.checkpoint))
    device = pick_device(config.device)
    model = model.to(device, pick_dtype(ComputeDtype.auto, device))
    count = num_tokens = num_failed = 0
    with (
        closing(build_worker(model, processor, config.rollouts, config.seed)) as worker,
        StageProgress("generate", len(rows)) as progress,
        Path(config.out).open("a", encoding="utf-8") as out,
    ):
        fill_worker(worker, model)
        for row, lines in _answers(rows, config, processor, worker):
            reach("answer")
            written = "".join(json.dumps(row.line(line), ensure_ascii=False) + "\n" for line in lines)
            out.write(media.without_folder(written))
            out.flush()
            reach("answered")
            count += 1
            num_tokens += sum(len(line.get("token_ids", [])) for line in lines)
            num_failed += any("error" in line for line in lines)
            progress.advance(count, f"{num_tokens} tokens")
    print(f"{config.out}: {count} prompts, {num_tokens} tokens, {num_failed} with an error")
    print(f"score them: python -m rewards.score --verifier math --input {config.out} --output FILE.jsonl")


def read_rows(config: GenerateConfig, media: MediaStore) -> tuple[list[GenerateRow], Input]:
    """(the prompts, a checksum of the media files that they name). `ValueError` names an id that stands twice, and past
    `data.max_bad_rows` the rows that cannot be read.

    A row that cannot be asked and has an id is kept with the reason, and answered by it.
    """
    table, reader = Table(Path(config.prompts)), ChatReader(config.data, media)
    bad_rows = BadRows(config.data.max_bad_rows)
    rows: dict[str, GenerateRow] = {}
    total = 0
    for ordinal, raw in enumerate(table.rows(), 1):
        total += 1
        reach("read")
        try:
            row_id = reader.id_of(raw, table, ordinal)
        except ValueError as error:
            bad_rows.add(raw.file, raw.number, str(error))
            continue
        try:
            chat = reader.read(raw, table, ordinal)
            mode = chat.asked_in(config.mode)
            names = [part["image"] for part in media_parts(chat.messages) if part.get("type") == "image"]
            images = [str(chat.root / name) for name in names] if chat.root == table.root else []
            row = GenerateRow(ordinal - 1, row_id, chat.messages, chat.root, mode, chat.reference, chat.meta, images)
        except ValueError as error:
            row = GenerateRow(ordinal - 1, row_id, [], table.root, config.mode, problem=str(error))
        if row.id in rows:
            raise ValueError(f"{raw.file}: line {raw.number}: expected ids that differ, found {row.id!r:.80} twice")
        rows[row.id] = row
    bad_rows.opened(total)
    return list(rows.values()), Input(f"a picture or video of {config.prompts}", reader.digest.finish())


@contextmanager
def _hold(out: Path) -> Iterator[None]:
    """Let only this run write the file, because two would cut off each other's lines."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = out.with_name(f".{out.name}.lock").open("a", encoding="utf-8")
    except OSError as error:
        if error.errno in OUT_OF_SPACE:
            raise
        raise ValueError(f"out: expected a file that can be written at {out}, found: {error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out: {out} is being written by another run; wait for it, or name another file") from None
        yield


def _continue(out: Path, config: GenerateConfig, identity: Identity) -> set[str]:
    """Return the ids that are done.

    Cuts off an unfinished last line, and the completions of a prompt that lacks some or that the sampler failed at.
    `ValueError` for a file that another command, or this one with other settings or inputs, has written.
    """
    beside = out.with_name(f"{out.name}.run.json")
    mend = f"name another file, or remove {out} and {beside.name} to start anew"
    if not out.exists():
        write_file(beside, json.dumps(identity.to_json(), indent=1).encode())
        out.touch()
        return set()
    if not beside.is_file():
        raise ValueError(f"out: expected a new file, or one that this command wrote, found {out}; {mend}")
    try:
        before = Identity.from_json(read_json_object(beside))
    except ValueError as error:
        raise ValueError(f"out: {beside}: {error}; {mend}") from None
    if changed := [*identity.changed_settings(before).values(), *identity.changed_inputs(before).values()]:
        raise ValueError(f"out: {out} was written with other settings or inputs: {listed(changed)}; {mend}")
    *lines, rest = out.read_bytes().split(b"\n")
    records = [_record(line, f"{out}: line {number}") for number, line in enumerate(lines, 1)]
    counts: dict[str, int] = {}
    failed = {record["id"] for record in records if "error" in record and "sample" in record}  # asked again
    for record in records:
        counts[record["id"]] = counts.get(record["id"], 0) + (config.num_samples if "error" in record else 1)
    done = {name for name, count in counts.items() if count >= config.num_samples and name not in failed}
    kept = [line for line, record in zip(lines, records, strict=True) if record["id"] in done]
    if rest or len(kept) < len(lines):
        write_file(out, b"".join(line + b"\n" for line in kept))
    return done


def _record(line: bytes, where: str) -> JsonObject:
    """A line of the output. `ValueError` for one that this command did not write."""
    try:
        record = parse_json(line)
        if isinstance(record, dict) and isinstance(record.get("id"), str):
            return record
        found = f"{record!r:.80}"
    except ValueError as error:
        found = str(error)
    raise ValueError(f"out: {where}: expected an object with an id, as this command writes it, found: {found}")


def _answers(
    rows: Sequence[GenerateRow], config: GenerateConfig, processor: Processor, worker: RolloutWorker
) -> Iterator[tuple[GenerateRow, list[Json]]]:
    """Yield the lines of each row, as they come."""
    portion = max(PORTION, 2 * config.rollouts.max_rows // config.num_samples)
    for start in range(0, len(rows), portion):
        asked: list[tuple[GenerateRow, RolloutRequest]] = []
        for row in rows[start : start + portion]:
            try:
                if row.problem:
                    raise ValueError(row.problem)
                asked.append((row, _request(row, config, processor)))
            except ValueError as error:  # the messages and media are the user's
                yield row, [{"error": str(error)}]
        waiting = iter(asked)
        for piece in generate_in_pieces(worker, [request for _, request in asked]):
            for group in piece:
                yield next(waiting)[0], [_line(rollout, processor) for rollout in group]


def _request(row: GenerateRow, config: GenerateConfig, processor: Processor) -> RolloutRequest:
    processor.refuse_long(texts_of(row.messages), config.rollouts.max_prompt_tokens, "rollouts.max_prompt_tokens")
    tokens = processor.prompt(row.messages, row.mode, row.root)
    config.rollouts.check_length(row.id, len(tokens.ids))
    config.rollouts.check_images(row.id, tokens.placeholder_ids.count(processor.placeholder_id))
    images = processor.open_images(row.root, tokens.images)
    samples, greedy = config.num_samples, config.decoding is Decoding.greedy
    return RolloutRequest(row.number, row.id, tokens.ids, tokens.placeholder_ids, images, samples, greedy)


def _line(rollout: Rollout, processor: Processor) -> Json:
    if rollout.finish_reason.is_failure:
        return {"sample": rollout.sample_index, "error": f"the sampler failed: {rollout.finish_reason.value}"}
    return {
        "sample": rollout.sample_index,
        "completion": processor.tokenizer.decode(rollout.completion_ids),
        "finish_reason": rollout.finish_reason.value,
        "logprob": sum(rollout.rollout_logprobs),
        "token_ids": list(rollout.completion_ids),
    }
