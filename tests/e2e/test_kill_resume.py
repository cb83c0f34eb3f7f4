"""kill -9 at seeded instants, same command again: every file of the run is bit-identical to an undisturbed run.

Bit-identical: metrics outside time/, weights, optimizer state, ledger, stored rollouts, the exported model.
"""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Runner

RL_PHASES = [
    *("sync", "collect", "prepare", "update", "evaluate", "append.ledger", "append.evaluations", "log"),
    *("append.step_000002", "append.step_000005"),
]
SUPERVISED_PHASES = ["data", "update", "log"]
SAVES = ["save.begin", "save.file", "save.before_rename", "save.after_rename", "save.prune"]


@pytest.fixture(scope="module")
def commands(tiny_folder: Path, digits_folder: Path, tmp_path_factory) -> dict[str, tuple[str, list[str]]]:
    evenness = tmp_path_factory.mktemp("rewards") / "evenness.py"
    evenness.write_text("def even(item):\n    return sum(t % 2 == 0 for t in item.token_ids) / len(item.token_ids)\n")
    prompts = as_parquet(digits_folder, tmp_path_factory.mktemp("prompts") / "train.parquet")
    common = ["engine.num_threads=1", "run.save_every=2"]
    rl = [
        f"checkpoint={tiny_folder}",
        f"prompts={prompts}",
        "data.max_bad_rows=0.5",
        "trainer.max_steps=6",
        "trainer.groups_per_step=3",
        "trainer.max_draws=6",
        "trainer.mini_batch_size=8",
        "trainer.passes=2",
        "trainer.keep_surplus=always",
        "trainer.curriculum=variance",
        "algorithm=dapo",
        "algorithm.group_size=4",
        "algorithm.group_filter=reward_spread",
        "algorithm.correction.rule=token_truncate",
        "algorithm.kl.coefficient=0.1",
        "algorithm.kl.refresh_every=3",
        "algorithm.entropy.target=9",
        "algorithm.entropy.step=0.001",
        f"evaluation.prompts={digits_folder / 'validation.jsonl'}",
        "evaluation.every=3",
        "evaluation.num_prompts=4",
        "evaluation.num_samples=2",
        f"reward.functions=[{evenness}:even]",
        "rollouts.max_completion_tokens=16",
    ]
    sft = [
        f"checkpoint={tiny_folder}",
        f"data.demonstrations={digits_folder / 'demonstrations.jsonl'}",
        f"data.prompts={digits_folder / 'train.jsonl'}",
        "data.direct_share=0.5",
        "max_steps=6",
        "batch_size=4",
    ]
    pretrain = [
        f"data.path={digits_folder / 'pretrain.jsonl'}",
        "data.mixture={caption: 2, worked: 2, direct: 2}",
        "max_steps=6",
    ]
    search = ["max_steps=30", "adalrs.window=3", "adalrs.begin=0.1", "adalrs.end=0.9", "run.save_every=7"]
    search += ["optimizer.learning_rate=1e-4", "adalrs.up=30", "run.keep_checkpoints=1"]
    sources = "{a: {paths: [pretrain.jsonl], weight: 3}, b: {paths: [demonstrations.jsonl]}}"
    stream = ["model=tiny", f"data.folder={digits_folder}", f"data.sources={sources}", "data.micro_batches_per_step=2"]
    stream += ["engine.micro_batch_tokens=256", "data.loader.index=${run.dir}_index", "data.loader.workers=1"]
    stream += ["optimizer.schedule=cosine", "optimizer.warmup_steps=2", "engine.num_threads=1"]
    return {
        "stream": ("model.pretrain.train", [*stream, *search]),
        "rl": ("rlhf.train", ["recipe=quickstart", *rl, *common]),
        "sft": ("sft.train", ["recipe=quickstart_longcot", *sft, *common]),
        "pretrain": ("model.pretrain.train", ["recipe=quickstart", *pretrain, *common]),
        "search": ("model.pretrain.train", ["recipe=quickstart", *pretrain[:-1], "engine.num_threads=1", *search]),
    }


def as_parquet(digits: Path, path: Path) -> Path:
    """The training prompts with images as bytes; every fifth ends early, so that it fails when it is drawn, and one
    has no answer.
    """
    rows = [json.loads(line) for line in (digits / "train.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        image, text = row.pop("messages")[0]["content"]
        content = (digits / image["image"]).read_bytes()
        row |= {"question": text["text"], "image": content[: len(content) // 2] if number % 5 == 0 else content}
    rows[1]["reference"] = ""
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def straight(runner: Runner, commands) -> dict[str, dict[str, object]]:
    """What undisturbed runs leave."""
    left = {}
    for name, (module, arguments) in commands.items():
        folder = runner.folder / f"straight_{name}"
        assert runner.run(module, [*arguments, f"run.dir={folder}"]) == 0
        left[name] = contents(folder)
    return left


def contents(folder: Path) -> dict[str, object]:
    """Everything of a run that must be repeatable."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or name.startswith("events") or name in ("config.yaml", ".lock"):
            continue
        if name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [{k: v for k, v in row.items() if not is_time(k)} for row in rows]
        else:
            found[name] = path.read_bytes()
    return found


def is_time(name: str) -> bool:
    """Tell whether a figure of the metrics depends on the clock."""
    return name.startswith("time/") or name == "data/wait_share"


def without_older_checkpoints(found: dict[str, object]) -> dict[str, object]:
    newest = max(name for name in found if name.startswith("checkpoints/")).rpartition("/")[0]
    return {name: one for name, one in found.items() if not name.startswith("checkpoints/") or newest in name}


def check(runner: Runner, commands, straight, stage: str, failpoints: list[str], label: str) -> int:
    """End the run once per failpoint, then finish it; returns how many ends really happened."""
    module, arguments = commands[stage]
    folder = runner.folder / f"{stage}_{label}"
    kills = 0
    for failpoint in failpoints:
        kills += runner.run(module, [*arguments, f"run.dir={folder}"], failpoint) != 0
    assert runner.run(module, [*arguments, f"run.dir={folder}"]) == 0
    left, wanted = contents(folder), straight[stage]
    if any(point.endswith(":term") for point in failpoints):  # it saves between two saves, so others are pruned
        left, wanted = without_older_checkpoints(left), without_older_checkpoints(wanted)
    assert left.keys() == wanted.keys()
    assert [name for name in wanted if left[name] != wanted[name]] == []
    assert not list(folder.rglob("*partial"))
    return kills


def seeded_failpoint(seed: int) -> str:
    """Instants 0..2 of every ten lie in saves at a named step, 3 at a byte; the others in named phases."""
    rng = random.Random(seed)
    match seed % 10:
        case 0 | 1 | 2:
            name = rng.choice(SAVES)
            return f"{name}:{rng.randint(1, 8 if name == 'save.file' else 1 if name == 'save.prune' else 3)}"
        case 3:
            return f"bytes:{rng.randint(1, 50_000_000)}"
        case _:
            name = rng.choice(RL_PHASES)
            times = 1 if name.startswith("append.step") else 2 if name == "append.evaluations" else 6
            return f"{name}:{rng.randint(1, times)}"


def test_two_undisturbed_runs_are_equal_and_do_something(runner, commands, straight):
    assert check(runner, commands, straight, "rl", [], "again") == 0
    rows = straight["rl"]["metrics.jsonl"]
    assert isinstance(rows, list) and len(rows) == 6
    assert all(row["grad_norm"] > 0 for row in rows)
    assert all(row["reward/even"] > 0 for row in rows)
    assert [row["kl/reference_age"] for row in rows] == [0, 1, 2, 0, 1, 2]
    assert "checkpoints/step_00000006/reference.safetensors" in straight["rl"]
    coefficients = [row["entropy_coefficient"] for row in rows]
    assert coefficients == sorted(set(coefficients)), "no entropy is above the target, so the coefficient only grows"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(2, 12))])
def test_rl_survives_a_kill(runner, commands, straight, seed):
    failpoint = seeded_failpoint(seed)
    assert check(runner, commands, straight, "rl", [failpoint], f"kill{seed}") == 1, failpoint


WRITES = [*SAVES, "append.ledger", "append.evaluations", "append.step_000002", "log"]


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 9), marks=pytest.mark.nightly)], ids=str)
@pytest.mark.parametrize(("act", "phases"), [("term", [*RL_PHASES, *SAVES]), ("full", WRITES)])
def test_rl_survives_sigterm_and_a_full_disk(runner, commands, straight, act, phases, seeds):
    """One code each, in whatever phase it comes; the same command then leaves what an undisturbed run leaves."""
    for seed in seeds:
        rng = random.Random(1000 + seed)
        name = phases[seed % len(phases)]
        once = name.startswith("append.step") or name in ("save.prune", "append.evaluations")
        failpoint = f"{name}:{1 if once else rng.randint(1, 3)}:{act}"
        assert check(runner, commands, straight, "rl", [failpoint], f"{act}{seed}") == 1, failpoint


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "pretrain"])
def test_supervised_stages_survive_sigterm_and_full_disks(runner, commands, straight, stage):
    points = ["save.begin:1:term", "log:1:full", "data:2:term", "save.file:3:full", "bytes:9000000:full"]
    assert check(runner, commands, straight, stage, points, "ends") == len(points)


def test_three_kills_in_one_run(runner, commands, straight):
    points = ["save.after_rename:1", "collect:2", "save.file:2"]
    assert check(runner, commands, straight, "rl", points, "thrice") == 3


@pytest.mark.parametrize("stage", [pytest.param("sft", marks=pytest.mark.slow), "pretrain"])
def test_supervised_stages_survive_kills(runner, commands, straight, stage):
    points = ["update:4", "save.before_rename:1", "log:1", "bytes:9000000"]
    assert check(runner, commands, straight, stage, points, "kills") == 4


def test_a_search_for_the_rate_has_trials_of_both_ends(straight):
    trials = [json.loads(line) for line in straight["search"]["adalrs.jsonl"].decode().splitlines()]
    assert {"kept", "rolled_back"} <= {trial["verdict"] for trial in trials}


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in range(1, 8))])
def test_a_search_for_the_rate_survives_kills(runner, commands, straight, seed):
    """In trials, in the saves at their start, after their verdict, and SIGTERM in between; picture and log included."""
    rng = random.Random(2000 + seed)
    phases = {"update": 30, "log": 30, "append.adalrs": 4, "save.file": 12, "save.before_rename": 4, "save.prune": 3}
    points = [f"{name}:{rng.randint(1, phases[name])}" for name in rng.sample([*phases], 2)]
    points.append(f"{rng.choice(['update', 'data', 'log'])}:{rng.randint(1, 12)}:term")
    check(runner, commands, straight, "search", points, f"kills{seed}")


@pytest.mark.parametrize("seeds", [range(1), pytest.param(range(1, 7), marks=pytest.mark.nightly)])
def test_a_stream_survives_kills(runner, commands, straight, seeds):
    """While the index is made, in workers that read ahead, in trials of the rate, in saves, at SIGTERM."""
    for seed in seeds:
        rng = random.Random(3000 + seed)
        phases = {"data": 30, "update": 30, "log": 30, "save.file": 12, "save.before_rename": 4}
        points = [f"index:{rng.randint(1, 4)}"]
        points += [f"{name}:{rng.randint(1, phases[name])}" for name in rng.sample([*phases], 2)]
        points.append(f"{rng.choice(['update', 'data', 'log'])}:{rng.randint(1, 12)}:term")
        points.append(f"decode:{rng.randint(150, 400)}")  # ends a worker now and then, not the run
        assert check(runner, commands, straight, "stream", points, f"kills{seed}") >= 2


def test_a_complete_run_returns_at_once(runner, commands, straight):
    module, arguments = commands["rl"]
    folder = runner.folder / "straight_rl"
    before = contents(folder)
    assert runner.run(module, [*arguments, f"run.dir={folder}"], "collect:1") == 0
    assert contents(folder) == before
