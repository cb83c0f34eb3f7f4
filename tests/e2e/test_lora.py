"""Every kind of training with `adapter=lora`: it trains, is killed, and goes on to the same bytes."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from model.checkpoint import StoredTensors
from tests.e2e.conftest import Runner
from tests.e2e.test_kill_resume import contents

KILLS = {
    "rl": ["update:2", "save.after_rename:1", "save.before_rename:3"],
    "sft": ["update:3", "save.after_rename:1"],
    "pretrain": ["update:3", "save.before_rename:1"],
}


@pytest.fixture(scope="module")
def commands(tiny_folder: Path, digits_folder: Path, tmp_path_factory) -> dict[str, tuple[str, list[str]]]:
    evenness = tmp_path_factory.mktemp("rewards") / "evenness.py"
    evenness.write_text("def even(item):\n    return sum(t % 2 == 0 for t in item.token_ids) / len(item.token_ids)\n")
    common = [f"checkpoint={tiny_folder}", "adapter=lora", "adapter.rank=4", "engine.num_threads=1", "run.save_every=2"]
    rl = [
        f"prompts={digits_folder / 'train.jsonl'}",
        "trainer.max_steps=3",
        "trainer.groups_per_step=2",
        "trainer.max_draws=4",
        "trainer.mini_batch_size=8",
        "trainer.passes=2",
        "algorithm=grpo",
        "algorithm.group_size=4",
        "algorithm.kl.coefficient=0.01",
        f"evaluation.prompts={digits_folder / 'validation.jsonl'}",
        "evaluation.every=2",
        "evaluation.num_prompts=4",
        f"reward.functions=[{evenness}:even]",
        "rollouts.max_completion_tokens=12",
    ]
    sft = [
        f"data.demonstrations={digits_folder / 'demonstrations.jsonl'}",
        "max_steps=4",
        "batch_size=4",
        "optimizer.learning_rate=1e-3",
        "adapter.targets=[language_model,mlp1,vision_model]",
    ]
    pretrain = [
        "recipe=quickstart",
        "model=null",
        f"data.path={digits_folder / 'pretrain.jsonl'}",
        "data.mixture={caption: 2, worked: 2, direct: 2}",
        "max_steps=4",
    ]
    return {
        "rl": ("rlhf.train", ["recipe=quickstart", *rl, *common]),
        "sft": ("sft.train", [*sft, *common]),
        "pretrain": ("model.pretrain.train", [*pretrain, *common]),
    }


@pytest.fixture(scope="module")
def straight_rl(runner: Runner, commands) -> tuple[Path, str]:
    """(the folder of an undisturbed run, what it said)."""
    module, arguments = commands["rl"]
    folder = runner.folder / "lora_rl_straight"
    assert runner.run(module, [*arguments, f"run.dir={folder}"]) == 0
    return folder, runner.log.read_text()


@pytest.mark.parametrize("stage", [pytest.param("rl", marks=pytest.mark.slow), "sft", "pretrain"])
def test_a_run_with_adapters_trains_and_survives_kills_to_the_bit(
    runner: Runner, commands, tiny_folder, stage, request
):
    module, arguments = commands[stage]
    straight, killed = (runner.folder / f"lora_{stage}_{name}" for name in ("straight", "killed"))
    if stage == "rl":
        _, said = request.getfixturevalue("straight_rl")
    else:
        assert runner.run(module, [*arguments, f"run.dir={straight}"]) == 0
        said = runner.log.read_text()
    assert (
        "trained adapters of rank 4; the others stay as they are" in said and "adapter.learning_rate_factor 10" in said
    )
    for failpoint in KILLS[stage]:
        assert runner.run(module, [*arguments, f"run.dir={killed}"], failpoint) != 0, failpoint
    assert runner.run(module, [*arguments, f"run.dir={killed}"]) == 0
    left, wanted = contents(killed), contents(straight)
    assert left.keys() == wanted.keys()
    assert [name for name in wanted if left[name] != wanted[name]] == []
    rows = wanted["metrics.jsonl"]
    assert isinstance(rows, list) and all(row["grad_norm"] > 0 for row in rows)
    check_folders(straight, tiny_folder)


def check_folders(run: Path, start: Path) -> None:
    """The checkpoint keeps adapters alone; the final model differs from the start where the adapters are."""
    checkpoint = max((run / "checkpoints").iterdir())
    with safe_open(checkpoint / "weights.safetensors", "pt") as file:
        assert all(name.endswith(("lora_a", "lora_b")) for name in file.keys())  # noqa: SIM118
    before, after = StoredTensors(start), StoredTensors(run / "final")
    changed = {name for name in before.shapes if not before.get(name).equal(after.get(name))}
    with safe_open(run / "final_adapter" / "adapter_model.safetensors", "pt") as file:
        names = {name for name in file.keys() if "lora_A" in name}  # noqa: SIM118
    layers = {name.removeprefix("base_model.model.").replace("lora_A.", "") for name in names}
    assert changed == layers and len(changed) >= 30
    assert json.loads((run / "final_adapter" / "adapter_config.json").read_text())["r"] == 4


def test_rl_with_adapters_goes_on_from_those_of_another_run(
    runner: Runner, commands, straight_rl, tiny_folder, tmp_path
):
    """The reference is what the second run starts from, so its divergence begins anew: with no adapters as the
    reference it would begin at least where the first run ended."""
    module, arguments = commands["rl"]
    first, said = straight_rl
    check_folders(first, tiny_folder)
    assert "adapters: rank 4, alpha 32, fresh, on language_model, mlp1" in said
    again = [*arguments, f"adapter.path={first / 'final_adapter'}", f"run.dir={tmp_path / 'second'}"]
    assert runner.run(module, again) == 0
    kls = []
    for run in (first, tmp_path / "second"):
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        kls.append([row["kl/reference"] for row in rows])
    assert kls[0][0] < kls[0][-1] and kls[1][0] < 0.5 * kls[0][-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adapter.targets=[lm_head]"], "adapter.targets: expected layers that are called, found lm_head"),
        (["adapter.targets=[q_prj]"], "adapter.targets: expected parts of the names of layers, such as"),
        (["engine.freeze=[adapter]"], "engine.freeze: adapter (mlp1) is to stay as it is"),
        (["trainer=trl"], "adapter: trainer=trl trains whole models here, found lora"),
        (["adapter.path=/nowhere"], "adapter.path: expected a folder of adapters, found none at /nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_with_one_message(runner: Runner, commands, tmp_path, arguments, message):
    module, given = commands["rl"]
    assert runner.run(module, [*given, *arguments, f"run.dir={tmp_path / 'run'}"], ends=(2,)) == 2
    assert message in runner.log.read_text()


def test_pretraining_from_nothing_takes_no_adapters(runner: Runner, digits_folder, tmp_path):
    arguments = [f"data.path={digits_folder / 'pretrain.jsonl'}", "model=tiny", "adapter=lora", f"run.dir={tmp_path}"]
    assert runner.run("model.pretrain.train", ["recipe=quickstart", *arguments], ends=(2,)) == 2
    assert (
        "adapter: lora leaves the model's weights as they are, which are random without a checkpoint"
        in runner.log.read_text()
    )


def test_a_folder_of_adapters_is_no_model_and_says_what_to_do(runner: Runner, commands, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    arguments = ["question=hello", f"checkpoint={tmp_path}"]
    assert runner.run("model.chat", arguments, ends=(2,)) == 2
    assert f"python -m model.export checkpoint=MODEL adapter={tmp_path} out=DIR" in runner.log.read_text()
