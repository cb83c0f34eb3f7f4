"""Commands that are no run, ended in every phase: kill -9, SIGTERM (exit code 5), full disk (6).

The same command then leaves what an undisturbed one leaves, to the bit. Nothing outlives a command, and only a killed
one leaves temporary files (`tests/e2e/conftest.py` looks). The points of a list strike one after the other, each the
continuation of what the one before has left.
"""

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from model.run.durable import STAGING_SUFFIX
from tests.e2e.conftest import Runner
from tests.model.data import published

TIMES = re.compile(rb'"(?:time/\w+|(?:total_)?seconds)": [\d.e+-]+|[\d.]+ ms\b')
PHASES = {
    "generate": {"read": 5, "media": 3, "file.before_rename": 1, "file.after_rename": 1, "load": 1, "answer": 2}
    | {"answered": 2},
    "evaluate": {"read": 5, "media": 3, "load": 1, "ask": 3, "score": 3, "file.before_rename": 1}
    | {"file.after_rename": 1},
    "score": {"file.before_rename": 1, "file.after_rename": 1, "judge": 1, "line": 200, "judged": 1},
    "check": {"read": 1, "contract": 1, "probes": 1},
    "prepare": {"image": 80, "line": 80, "publish": 1, "published": 1},
    "assemble": {"read": 1, "filled": 1, "save.begin": 1, "bytes": 1_000_000, "save.file": 5, "save.before_rename": 1},
    "chat": {"load": 1, "token": 5},
    "describe": {"count": 1},
    "convert": {"read": 6, "media": 5, "bytes": 500, "save.file": 2, "save.before_rename": 1},
}
"""Command -> its failpoints, in the order in which it reaches them, and how often it surely does."""
FAST = {
    "generate": ["media:2:term", "answer:3"],
    "evaluate": ["score:2:term", "file.before_rename:1:full"],
    "score": ["judged:1"],
    "check": ["probes:1:term"],
    "prepare": ["line:50:full", "image:60"],
    "assemble": ["save.file:2:term", "save.before_rename:1"],
    "chat": ["token:2:term"],
    "describe": ["count:1:term"],
    "convert": ["media:2:full", "save.before_rename:1"],
}
PIPELINE_POINTS = [
    *("file.before_rename:1:full", "pipeline.wait:2", "pipeline.wait:3:term", "update:1:term", "save.begin:1:full"),
    *("pipeline.stage:1", "ask:2:term", "pipeline.finish:1:full", "pipeline.finish:1:term", "save.file:3"),
]

Arguments = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Command:
    """A command line whose outputs lie in one folder."""

    module: str
    arguments: Arguments
    prints: bool = False  # its result is what it prints


@pytest.fixture(scope="module")
def prompts(digits_folder: Path, tmp_path_factory) -> Path:
    """Images as bytes, which lie in a temporary folder; one is torn."""
    rows = [json.loads(line) for line in (digits_folder / "validation.jsonl").read_text().splitlines()[:5]]
    for number, row in enumerate(rows):
        image, text = row.pop("messages")[0]["content"]
        content = (digits_folder / image["image"]).read_bytes()
        row |= {"question": text["text"], "image": content[: len(content) // 2] if number == 3 else content}
    path = tmp_path_factory.mktemp("prompts") / "prompts.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def commands(tiny_folder: Path, digits_folder: Path, prompts: Path, tmp_path_factory) -> dict[str, Command]:
    folder = tmp_path_factory.mktemp("inputs")
    completions, recipe = folder / "completions.jsonl", folder / "recipe.yaml"
    rows = [{"completion": f"\\boxed{{\\sqrt{{{n * n}}}}}", "reference": str(n % 7), "n": n} for n in range(300)]
    completions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe.write_text(json.dumps(pipeline_recipe(digits_folder)))
    model = [f"checkpoint={tiny_folder}", f"prompts={prompts}", "num_threads=1", "data.max_bad_rows=0.5"]
    model.append("rollouts.max_completion_tokens=6")
    chat = [f"checkpoint={tiny_folder}", "question=What is it?", "max_completion_tokens=6"]
    score = ["--verifier", "math", "--input", str(completions), "--workers", "1", "--output"]
    check = ["numeric", "--data", str(completions), "--rows", "40", "--probe-rows", "2"]
    published.geometry3k(folder / "geometry3k", repeats=3)
    convert = ["geometry3k", f"source={folder / 'geometry3k'}"]
    towers = [f"vision={tiny_folder}", f"language={tiny_folder}"]
    return {
        "generate": Command("rollouts.generate", lambda out: [*model, "num_samples=2", f"out={out / 'out.jsonl'}"]),
        "evaluate": Command("rlhf.evaluate", lambda out: [*model, f"output={out / 'result.json'}"]),
        "score": Command("rewards.score", lambda out: [*score, str(out / "verdicts.jsonl")]),
        "check": Command("rewards.check", lambda out: check, prints=True),
        "prepare": Command("examples.digits.write", lambda out: [f"out={out / 'digits'}", "share=0.01"]),
        "assemble": Command("model.assemble", lambda out: [*towers, f"out={out / 'model'}"]),
        "chat": Command("model.chat", lambda out: chat, prints=True),
        "describe": Command("model.describe", lambda out: ["model=tiny"], prints=True),
        "convert": Command("model.data.convert", lambda out: [*convert, f"out={out / 'prompts'}"]),
        "pipeline": Command("rlhf.pipeline", lambda out: [f"recipe={recipe}", f"run.dir={out / 'run'}"]),
    }


def pipeline_recipe(digits: Path) -> Mapping[str, object]:
    """One stage of two steps, and its evaluation. SIGTERM saves a checkpoint more, which the last one replaces."""
    stage: dict[str, object] = {"name": "first", "command": "model.pretrain.train", "recipe": "quickstart"}
    stage["overrides"] = ["max_steps=2", "run.keep_checkpoints=1"]
    return {
        "data": str(digits),
        "num_eval": 4,
        "num_threads": 1,
        "stages": [{**stage, "inputs": {"data.path": "pretrain.jsonl"}}],
        "evaluation": {"inputs": {"prompts": "test.jsonl"}, "overrides": ["rollouts.max_completion_tokens=6"]},
    }


@pytest.fixture(scope="module")
def undisturbed(runner: Runner, commands: Mapping[str, Command]) -> Callable[[str], dict[str, bytes]]:
    """What a command leaves that nobody ends; it runs once."""
    known: dict[str, dict[str, bytes]] = {}

    def left_by(name: str) -> dict[str, bytes]:
        if name not in known:
            known[name] = finish(runner, commands[name], runner.folder / f"{name}_undisturbed")
        return known[name]

    return left_by


def finish(runner: Runner, command: Command, folder: Path) -> dict[str, bytes]:
    """Run a command to its end; its files, or what it prints, without folder and time."""
    folder.mkdir(exist_ok=True)
    assert runner.run(command.module, command.arguments(folder)) == 0
    printed = " ".join(runner.log.read_text().split()).encode()
    found = {"printed": printed} if command.prints else files(folder)
    assert found and not unfinished(folder)
    return {name: TIMES.sub(b"", content.replace(bytes(folder), b"")) for name, content in found.items()}


def files(folder: Path) -> dict[str, bytes]:
    """The event files of TensorBoard say nothing that other files do not, and events.jsonl tells of the interruptions
    themselves."""
    shows = {"events", "events.jsonl"}
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and shows.isdisjoint(path.parts)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def unfinished(folder: Path) -> list[Path]:
    return list(folder.rglob(f"*{STAGING_SUFFIX}*"))


def check(runner: Runner, command: Command, wanted: Mapping[str, bytes], label: str, points: Sequence[str]) -> None:
    """End a command at one point after the other, then let it finish."""
    folder = runner.folder / f"{command.module}_{label}"
    folder.mkdir()
    for point in points:
        assert (status := runner.run(command.module, command.arguments(folder), point)) != 0, point
        assert status < 0 or not unfinished(folder), point
    left = finish(runner, command, folder)
    assert left.keys() == wanted.keys()
    assert [name for name in wanted if left[name] != wanted[name]] == []


def seeded(name: str, act: str, seed: int) -> list[str]:
    """Every phase of a command, in order, each at a seeded visit."""
    rng = random.Random(seed)
    return [f"{phase}:{rng.randint(1, visits)}{act}" for phase, visits in PHASES[name].items()]


@pytest.mark.parametrize(("name", "points"), FAST.items(), ids=FAST)
def test_an_ended_command_goes_on(runner, commands, undisturbed, name, points):
    check(runner, commands[name], undisturbed(name), "fast", points)


@pytest.mark.slow
@pytest.mark.parametrize("name", PHASES)
@pytest.mark.parametrize("act", ["", *(pytest.param(act, marks=pytest.mark.nightly) for act in (":term", ":full"))])
def test_a_command_may_be_ended_in_every_phase(runner, commands, undisturbed, name, act):
    check(runner, commands[name], undisturbed(name), f"every{act}", seeded(name, act, 7))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["generate", "evaluate", "score", "prepare", "assemble"])
def test_a_disk_that_fills_up_within_a_file(runner, commands, undisturbed, name):
    """The files are torn where the disk ends, not where a failpoint is."""
    largest = max(map(len, undisturbed(name).values()))
    points = [f"disk:{random.Random(seed).randint(largest // 2, largest - 1)}" for seed in range(3)]
    check(runner, commands[name], undisturbed(name), "disk", points)


@pytest.mark.slow
def test_an_ended_pipeline_goes_on(runner, commands, undisturbed):
    """It is ended, or a process that it started is: each of them has the failpoints."""
    check(runner, commands["pipeline"], undisturbed("pipeline"), "ends", PIPELINE_POINTS)


def test_a_finished_model_is_whole_and_not_replaced(runner, commands, undisturbed):
    """Killed behind the rename: the folder is all there, and the same command says so instead of writing again."""
    folder, command = runner.folder / "assembled", commands["assemble"]
    folder.mkdir()
    runner.run(command.module, command.arguments(folder), "save.after_rename:1")
    assert runner.run(command.module, command.arguments(folder), ends=(2,)) == 2
    assert files(folder) == undisturbed("assemble")
