"""The command `python -m rlhf.evaluate`: a result that is already there is read, any other is made and kept.

This module loads no model, so that a second call with nothing changed is answered at once.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import yaml

from model.data.chat_rows import ChatReader
from model.data.media_store import MediaStore
from model.data.tables import Table
from model.json_values import JsonObject, parse_json, read_json_object
from model.run.durable import OUT_OF_SPACE
from model.run.identity import code_input, digest_of_ends, digest_of_files, outside_keys, settings_of
from rlhf.evaluation.config import EvaluateConfig
from rlhf.evaluation.lines import evaluation_lines, suite_lines
from rlhf.evaluation.protocol import code_version

TO_STDOUT = "-"
"""The value of `output` that prints the result as JSON."""


def output_of(config: EvaluateConfig) -> Path | None:
    """The file of the result, None where none is kept."""
    return Path(config.output) if config.output not in ("", TO_STDOUT) else None


def answers_file(output: Path) -> Path:
    """The file of answers beside a result."""
    return output.with_name(f"{output.stem}.answers.jsonl")


def benchmark_folder(output: Path) -> Path:
    """The folder beside a result that holds the prompts of benchmarks and their images."""
    return output.with_name(f"{output.stem}.benchmarks")


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


@dataclass(frozen=True)
class Keys:
    """Hashes of all that a result depends on, and of all that completions depend on whatever is made of them."""

    result: str = ""
    completions: str = ""
    """stands for the checkpoint, the code, and the settings that change what is sampled in any mode"""
    data: Mapping[str, str] = field(default_factory=dict)
    """stands for the rows of each benchmark, or of the file of prompts"""


PROMPTS = "prompts"
"""The name of the data of an evaluation that is given a file of prompts."""
_NOT_SAMPLED = (
    *("checkpoint", "prompts", "benchmarks", "output", "modes", "num_prompts", "num_samples", "group_by", "seed"),
    *("reward", "judge"),
)
"""Settings that completions do not depend on, or that are looked at beside their key."""


def keys_of(config: EvaluateConfig) -> Keys:
    """The keys of an evaluation: settings, checkpoint, data with its images, and the code.

    `ValueError` for inputs that cannot be read; what else is wrong with them is found when they are used.
    """
    settings = asdict(config)
    try:
        named = [text for text in (config.checkpoint, config.data.forms, config.data.predictions) if text]
        inputs = "".join(digest_of_files([Path(text)]) for text in named)
    except OSError as error:
        raise ValueError(f"checkpoint, data: expected files that can be read, found: {error}") from None
    inputs += code_version() + code_input().sha256
    data = _digests_of_data(config)
    kept = _without_places(config, {name: value for name, value in settings.items() if name not in _NOT_SAMPLED})
    from rlhf.planning.inputs import digest_of_functions

    elsewhere = ("output", "checkpoint", "prompts")  # their content is hashed, wherever it lies
    judged = _without_places(config, {name: value for name, value in settings.items() if name not in elsewhere})
    judged += digest_of_functions(config.reward)
    return Keys(_hash(judged + inputs + json.dumps(data)), _hash(kept + inputs), data)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _without_places(config: EvaluateConfig, settings: JsonObject) -> str:
    """Settings as a text, less where files lie and what changes no number."""
    text = yaml.safe_dump(json.loads(json.dumps(settings, default=str)))
    return json.dumps(settings_of(text, outside_keys(config)), sort_keys=True)


def _digests_of_data(config: EvaluateConfig) -> dict[str, str]:
    """Name -> a checksum over the tables and the images and videos that their rows name."""
    if config.benchmarks:
        from rlhf.evaluation.benchmarks import catalogue
        from rlhf.evaluation.questions import media_digest, table_of

        folder = Path(config.data.folder)
        return {
            one.name: f"{digest_of_files([table_of(one, folder)])} {media_digest(one, folder)}"
            for one in catalogue().chosen(config.benchmarks)
        }
    paths = [Path(config.prompts), *map(Path, config.data.also)]
    tables = [Table(path) for path in paths]
    found = digest_of_ends(file for table in tables for file in table.files)
    with TemporaryDirectory() as scratch:
        reader = ChatReader(config.data, MediaStore(Path(scratch)))
        for table in tables:
            for ordinal, raw in enumerate(table.rows(), 1):
                with suppress(ValueError):  # a row that cannot be used is counted and named when it is asked
                    reader.read(raw, table, ordinal)
    return {PROMPTS: found + reader.digest.finish()}


def kept_result(output: Path, key: str) -> JsonObject | None:
    """The result at `output` if it is of this key and its answers are there.

    A result of benchmarks with answers that a judge or a sampler failed at is made again, so that they are tried again.
    """
    try:
        result = read_json_object(output)
    except (OSError, ValueError):
        return None
    if result.get("key") != key or not answers_file(output).is_file():
        return None
    modes = [own for one in result.get("benchmarks", {}).values() for own in one["modes"].values()]
    return None if any(own["unscorable_share"] for own in modes) else result


def evaluate_folder(config: EvaluateConfig) -> JsonObject:
    """The result of an evaluation, read where it is kept and nothing changed, else made and kept; see `output`."""
    config.rollouts.require_packages()
    output = output_of(config)
    keys = Keys()
    if output:
        check_output(output)
        keys = keys_of(config)
        if (kept := kept_result(output, keys.result)) is not None:
            print(f"{output} is there already, of the same checkpoint, data, settings and code; it is read")
            return kept
    from rlhf.evaluation.asking import evaluate

    return evaluate(config, output, keys)


def run_evaluation(config: EvaluateConfig, resolved: str) -> None:
    """Print a table for people, and where the result and the answers are; with output=- the result as JSON instead.

    Without `output`, and where stdout is no terminal, the result is the last line too.
    """
    result = evaluate_folder(config)
    out = sys.stderr if config.output == TO_STDOUT else sys.stdout
    print("\n".join(_lines(config, result)), file=out)
    if config.output == TO_STDOUT:
        print(json.dumps(result))
    elif config.output:
        answers = answers_file(Path(config.output))
        print(f"result: {config.output}\nanswers: {answers}\nread them: python -m rlhf.look {answers}")
    else:
        print("nothing is kept; output=FILE.json keeps the result and every answer, output=- prints the result as JSON")
        if not sys.stdout.isatty():  # a program reads it
            print(json.dumps(result))


def _lines(config: EvaluateConfig, result: JsonObject) -> Sequence[str]:
    if config.benchmarks:
        return suite_lines(config.checkpoint or config.data.predictions, result)
    return evaluation_lines(config.checkpoint, result)
