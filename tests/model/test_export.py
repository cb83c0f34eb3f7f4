"""`python -m model.export`, and the number type of every folder that a command writes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from conf.cli import load_config
from model.checkpoint import EMBEDDING, HEAD, StoredTensors, build_flavour, load_model, save_model
from model.config import ExportConfig, Flavour, StoredDtype
from model.engine.config import EngineConfig, OptimizerConfig
from model.engine.local import LocalEngine
from model.export import export


def stored_types(folder: Path) -> set[str]:
    """The number types of the tensors in a folder, and what its config.json says."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        found = {str(file.get_tensor(name).dtype).removeprefix("torch.") for name in file.keys()}  # noqa: SIM118
    return found | {json.loads((folder / "config.json").read_text())["dtype"]}


@pytest.fixture
def half(tiny, tmp_path) -> Path:
    """A folder as the released ones are: bfloat16, without a manifest."""
    save_model(tmp_path / "half", *tiny, dtype="bfloat16")
    (tmp_path / "half" / "manifest.json").unlink()
    return tmp_path / "half"


def run(checkpoint: Path, out: Path, dtype: StoredDtype = StoredDtype.keep) -> Path:
    export(ExportConfig(str(checkpoint), str(out), dtype))
    return out


def test_an_export_holds_the_same_numbers_in_the_type_that_is_asked_for(tiny_folder, tmp_path):
    out = run(tiny_folder, tmp_path / "out", StoredDtype.bfloat16)
    assert stored_types(out) == {"bfloat16"}
    before, after = StoredTensors(tiny_folder), StoredTensors(out)
    assert all(torch.equal(before.get(name).bfloat16(), after.get(name)) for name in before.shapes)
    assert {path.name for path in out.iterdir()} == {path.name for path in tiny_folder.iterdir()}


def test_the_generation_settings_leave_a_servers_defaults_alone(tiny_folder, tiny):
    """vLLM takes these from the file for requests that do not name them, and its limit for all requests."""
    settings = json.loads((tiny_folder / "generation_config.json").read_text())
    control = tiny[1].tokenizer.control
    assert settings["eos_token_id"] == [control["<|im_end|>"], control["<|endoftext|>"]]
    assert settings["suppress_tokens"] == tiny[1].barred_ids and settings["do_sample"] is False
    assert not {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens"} & settings.keys()


def test_keep_is_the_type_of_the_checkpoint(half, tmp_path):
    assert stored_types(run(half, tmp_path / "out")) == {"bfloat16"}


def test_a_tied_head_that_is_not_stored_is_written(half, tmp_path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(half / "model.safetensors")
    del tensors[HEAD]
    save_file(tensors, half / "model.safetensors", metadata={"format": "pt"})
    out = StoredTensors(run(half, tmp_path / "out"))
    assert torch.equal(out.get(HEAD), out.get(EMBEDDING))


def test_experts_are_exported_one_by_one(tmp_path):
    save_model(tmp_path / "moe", *build_flavour(Flavour.tiny_moe, 0))
    out = run(tmp_path / "moe", tmp_path / "out", StoredDtype.float16)
    assert stored_types(out) == {"float16"} and StoredTensors(out).shapes == StoredTensors(tmp_path / "moe").shapes


def test_training_keeps_the_type_of_the_start_and_trains_in_float32(half, tmp_path):
    model, processor = load_model(half)
    engine = LocalEngine(model, EngineConfig(num_threads=1), OptimizerConfig(learning_rate=1e-3), 1)
    (tmp_path / "state").mkdir()
    engine.save(tmp_path / "state")
    engine.export(tmp_path / "final", processor)
    engine.export(tmp_path / "asked", processor, StoredDtype.float32)
    assert stored_types(tmp_path / "final") == {"bfloat16"} and stored_types(tmp_path / "asked") == {"float32"}
    with safe_open(tmp_path / "state" / "weights.safetensors", "pt") as state:
        assert {state.get_tensor(name).dtype for name in state.keys()} == {torch.float32}  # noqa: SIM118


def test_stored_numbers_count_more_than_what_config_json_says(half, tmp_path):
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    assert stored_types(run(half, tmp_path / "out")) == {"bfloat16"}


WRITERS = {
    "pretrain": ["model=tiny", "data.path=d", "optimizer.learning_rate=1e-3"],
    "sft": ["checkpoint=c", "data.demonstrations=d"],
    "rlhf": ["checkpoint=c", "prompts=p"],
    "pipeline": ["recipe=quickstart"],
    "assemble": ["vision=v", "language=l", "out=o"],
    "export": ["checkpoint=c", "out=o"],
}


@pytest.mark.parametrize("entry", WRITERS)
def test_every_command_that_writes_a_model_has_the_key_dtype(entry):
    config, _ = load_config(entry, [*WRITERS[entry], "dtype=bfloat16"])
    assert config.dtype is StoredDtype.bfloat16


def test_a_pipeline_hands_dtype_to_its_stages():
    from rlhf.planning.stages import plan

    config, _ = load_config("pipeline", ["recipe=quickstart", "dtype=float16"])
    stages, evaluations = plan(config)
    assert all("dtype=float16" in stage.command for stage in stages)
    assert not [one for one in evaluations.values() if "dtype=float16" in one.command]


class TestRefusals:
    def test_the_folder_of_a_run_names_its_final_model(self, tiny_folder, tmp_path):
        shutil.copytree(tiny_folder, tmp_path / "run" / "final")
        checkpoint = tmp_path / "run" / "checkpoints" / "step_1"
        checkpoint.mkdir(parents=True)
        (checkpoint / "engine.json").write_text("{}")
        for folder in (tmp_path / "run", checkpoint):
            with pytest.raises(ValueError, match=r"belongs to a run, whose model is .*run/final"):
                run(folder, tmp_path / "out")

    def test_a_run_without_a_final_model_says_when_it_comes(self, tmp_path):
        (tmp_path / "run.json").write_text("{}")
        with pytest.raises(ValueError, match=r"writes its model to RUN/final when it ends"):
            run(tmp_path, tmp_path / "out")

    def test_a_folder_with_files_is_not_replaced(self, tiny_folder, half, tmp_path):
        for out in (half, tiny_folder):
            with pytest.raises(ValueError, match="out: expected a new folder"):
                run(tiny_folder, out)

    def test_an_unknown_type_is_refused_from_python(self, tiny, tmp_path):
        with pytest.raises(ValueError, match="dtype: expected keep or float32 or bfloat16 or float16, found 'int8'"):
            save_model(tmp_path / "out", *tiny, dtype="int8")
