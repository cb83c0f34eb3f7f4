"""Where a model comes from, as its folders say it."""

import json
import shutil
from dataclasses import replace

import pytest

from model.checkpoint import build_flavour, save_model
from model.config import Flavour
from model.run.identity import digest_of_files
from rlhf.export.card import Folder, card
from rlhf.export.lineage import find_model, lineage_of
from tests.rlhf.export.folders import write_pipeline, write_result, write_run


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Three model folders with different weights."""
    folder = tmp_path_factory.mktemp("models")
    for seed in range(3):
        save_model(folder / str(seed), *build_flavour(Flavour.tiny, seed))
    return [folder / str(seed) for seed in range(3)]


def lineage(folder, evaluations=()):
    return lineage_of(find_model(folder), "float32", evaluations)


def text_of(found, name="my model", dtype="float32") -> str:
    facts = {"total_parameters": 1234567}
    folder = Folder(name, facts, "vision sailvit, decoder qwen3", 512, dtype, {"do_sample": False}, 512, ["as ours"])
    return card(folder, found)


class TestPipelines:
    def test_every_stage_is_told_with_data_recipe_steps_time_and_figures(self, models, tmp_path):
        pipeline = write_pipeline(tmp_path / "pipe", {"sft": models[0], "rl": models[1], "fusion": models[2]})
        found = lineage(pipeline)
        assert [stage.name for stage in found.stages] == ["sft", "rl", "fusion"]
        last = found.stages[-1]
        assert (last.command, last.recipe, last.overrides) == ("sft.train", "fusion_recipe", ["max_steps=7"])
        assert (last.steps, last.seconds, last.seed) == (7, 12.4, 3)
        assert last.start is not None and last.start.sha256 == digest_of_files([pipeline / "rl" / "final"])
        assert last.inputs["prompts"].name == "data/train.jsonl" and last.inputs["prompts"].sha256 == "ab" * 32
        assert [(one.mode, one.value, one.protocol) for one in last.figures] == [
            ("think", 50.0, "0123456789ab"),
            ("direct", 50.0, "0123456789ab"),
        ]
        assert found.stages[0].is_from_nothing and found.sha256 == digest_of_files([pipeline / "export"])

    def test_an_earlier_stage_has_the_stages_before_it(self, models, tmp_path):
        pipeline = write_pipeline(tmp_path / "pipe", {"sft": models[0], "rl": models[1], "fusion": models[2]})
        for folder in (pipeline / "rl", pipeline / "rl" / "final"):
            assert [stage.name for stage in lineage(folder).stages] == ["sft", "rl"]

    def test_a_stage_whose_best_model_took_the_place_of_its_last_has_no_known_steps(self, models, tmp_path):
        pipeline = write_pipeline(tmp_path / "pipe", {"sft": models[0], "rl": models[1]})
        (pipeline / "graph" / "rl.json").write_text('{"seconds": 12.4, "went_back": true}')
        assert [stage.steps for stage in lineage(pipeline).stages] == [7, None]

    def test_stages_that_merge_have_no_run_and_say_what_the_recipe_says(self, models, tmp_path):
        pipeline = write_pipeline(tmp_path / "pipe", {"sft": models[0], "soup": models[1]})
        for name in ("run.json", "done.json"):
            (pipeline / "soup" / name).unlink()
        last = lineage(pipeline).stages[-1]
        assert (last.name, last.recipe, last.steps, last.start) == ("soup", "soup_recipe", None, None)
        assert not last.is_from_nothing

    def test_an_export_with_other_weights_has_no_stages(self, models, tmp_path):
        pipeline = write_pipeline(tmp_path / "pipe", {"sft": models[0]})
        shutil.rmtree(pipeline / "export")
        shutil.copytree(models[1], pipeline / "export")
        found = lineage(pipeline)
        assert not found.stages and "none of the pipeline's stages holds these weights" in text_of(found)

    def test_one_that_has_not_finished_is_refused(self, models, tmp_path):
        pipeline = write_pipeline(tmp_path / "pipe", {"sft": models[0]})
        shutil.rmtree(pipeline / "export")
        with pytest.raises(ValueError, match=r"expected a finished pipeline, whose model is export/, found none"):
            find_model(pipeline)


class TestRuns:
    def test_a_run_knows_the_runs_before_it_by_the_content_of_their_models(self, models, tmp_path):
        first = write_run(tmp_path / "first", models[0])
        second = write_run(tmp_path / "elsewhere" / "second", models[1], first / "final")
        write_result(second / "evaluation.json", 0.25)
        found = lineage(second)
        assert [stage.name for stage in found.stages] == ["first", "second"]
        assert [one.value for one in found.stages[1].figures] == [25.0, 25.0]

    def test_the_best_model_of_a_run_has_no_figures_of_its_end(self, models, tmp_path):
        pipeline = write_pipeline(tmp_path / "pipe", {"sft": models[0], "rl": models[1]})
        shutil.copytree(models[2], pipeline / "rl" / "best")
        found = lineage(pipeline / "rl" / "best")
        assert [stage.name for stage in found.stages] == ["sft", "rl"] and found.stages[0].figures
        assert found.stages[1].steps is None and not found.stages[1].figures
        assert "the weights are best of the last stage, not its end" in text_of(found)
        shutil.rmtree(pipeline / "rl" / "best")
        shutil.copytree(models[1], pipeline / "rl" / "best")  # the last step was the best one
        assert lineage(pipeline / "rl" / "best").stages[1].figures

    def test_a_model_that_has_changed_since_is_not_taken_for_the_one_it_began_with(self, models, tmp_path):
        first = write_run(tmp_path / "first", models[0])
        second = write_run(tmp_path / "second", models[1], first / "final")
        shutil.rmtree(first / "final")
        shutil.copytree(models[2], first / "final")
        found = lineage(second)
        assert [stage.name for stage in found.stages] == ["second"]
        assert found.stages[0].start is not None and found.stages[0].start.name == "first/final"

    def test_the_command_and_recipe_of_a_run_alone_are_not_known(self, models, tmp_path):
        text = text_of(lineage(write_run(tmp_path / "alone", models[0])))
        assert "| alone | not known | not known | random weights | 7 |" in text
        assert "no result of `rlhf.evaluate` was found" in text

    def test_runs_that_began_with_each_other_end(self, models, tmp_path):
        one = write_run(tmp_path / "one", models[0])
        two = write_run(tmp_path / "two", models[1], one / "final")
        write_run(one, models[0], two / "final")
        assert [stage.name for stage in lineage(two).stages] == ["one", "two"]

    def test_one_that_has_not_finished_is_refused(self, models, tmp_path):
        write_run(tmp_path / "run", models[0])
        shutil.rmtree(tmp_path / "run" / "final")
        with pytest.raises(ValueError, match=r"expected a finished run, whose model is final/, found none"):
            find_model(tmp_path / "run")


def test_a_model_folder_alone_says_that_nothing_is_known(models):
    found = lineage(models[0])
    assert not found.stages and not found.figures
    text = text_of(found)
    assert "How it was made is not known" in text and "Nothing is known" in text and "licence" in text


@pytest.mark.parametrize("kind", ["nothing", "empty", "file"])
def test_a_folder_without_a_model_is_refused(tmp_path, kind):
    if kind == "empty":
        (tmp_path / "x").mkdir()
    elif kind == "file":
        (tmp_path / "x").write_text("")
    with pytest.raises(ValueError, match=r"expected (a checkpoint folder|the folder of a pipeline)"):
        find_model(tmp_path / "x")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"num": 1}', '{"modes": {"think": 3}}', '{"modes": {"think": {"accuracy": "x"}}}']
)
def test_a_damaged_result_is_named_and_never_left_out(models, tmp_path, content):
    file = tmp_path / "result.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"result\.json"):
        lineage(models[0], [file])


class TestCards:
    def test_a_figure_that_was_not_measured_is_not_known(self, models, tmp_path):
        file = write_result(tmp_path / "r.json", accuracy=0.5, accuracy_of_direct=None, interval=None, protocol=None)
        text = text_of(lineage(models[0], [file]))
        assert "| think | 50.0 | 40.0 - 60.0 | 64 | 100.0% | not known | 20.5 | `0123456789ab` |" in text
        assert "| direct | 50.0 | not known | 64 |" in text
        assert "the files do not say of which weights they are" in text

    def test_figures_of_other_numbers_than_the_folders_are_said_to_be(self, models, tmp_path):
        found = lineage(models[0], [write_result(tmp_path / "r.json")])
        assert "measured with weights in float32; those of this folder are in bfloat16" in text_of(
            found, dtype="bfloat16"
        )
        assert "measured with weights in" not in text_of(found)

    def test_benchmarks_have_their_published_titles(self, models, tmp_path):
        mode = {"figure": 61.5, "figure_interval": [60.0, 63.0], "protocol": "abc", "num_prompts": 10}
        result = {"num_eval": 10, "benchmarks": {"mmstar": {"title": "MMStar", "modes": {"think": mode}}}}
        (tmp_path / "b.json").write_text(json.dumps(result))
        assert "| MMStar | think | 61.5 | 60.0 - 63.0 | 10 |" in text_of(lineage(models[0], [tmp_path / "b.json"]))

    def test_names_are_text_and_nothing_else(self, models, tmp_path):
        """A folder, a file or a protocol may be called anything."""
        run = write_run(tmp_path / "a|b<script>`x`", models[0])
        found = lineage(run)
        evil = "<img src=x onerror=alert(1)>|[a](http://b)\n# head `code`"
        stage = replace(found.stages[0], recipe=evil, command=evil, overrides=[evil])
        found = replace(found, stages=[stage], model=evil, note=evil)
        text = text_of(found, name=evil)
        outside = "".join(part for number, part in enumerate(text.replace("\\`", "").split("`")) if number % 2 == 0)
        assert "<img" not in outside and "<script" not in outside and "\n# head" not in text
        assert "](http" not in outside.replace("\\](", "")
        rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("| a")]
        assert [row.count("|") for row in rows] == [9, 5, 5]  # stages have eight columns, inputs four
