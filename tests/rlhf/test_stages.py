"""Stages of a pipeline from a recipe of one's own: any number, any order, all checked before the first starts."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest

import rlhf.pipeline
from conf.cli import load_config
from model.config import Flavour
from model.run.durable import write_folder
from model.run.interrupt import Terminated
from rlhf.planning.stages import check_inputs, check_starts, plan
from rlhf.planning.stages_shown import plan_lines

PRETRAIN = "{name: a, command: model.pretrain.train, recipe: quickstart, inputs: {data.path: p.jsonl}}"
SFT = "{name: b, command: sft.train, from: a, inputs: {data.demonstrations: d.parquet}}"
RL = "{name: c, command: rlhf.train, from: b, recipe: quickstart, inputs: {prompts: t.jsonl}, overrides: [trainer.max_steps=3]}"
AGAIN = "{name: d, command: rlhf.train, from: c, inputs: {prompts: '@c/rollouts'}}"
LOOK = "{name: e, command: rlhf.evaluate, from: c, inputs: {prompts: t.jsonl}}"


def planned(tmp_path: Path, stages: list[str], rest: str = "", *overrides: str):
    path = tmp_path / "mine.yaml"
    listed = "".join(f"  - {stage}\n" for stage in stages)
    path.write_text(f"run: {{dir: {tmp_path / 'run'}}}\ndata: {tmp_path / 'data'}\n{rest}\nstages:\n{listed}")
    config, _ = load_config("pipeline", [f"recipe={path}", *overrides])
    return plan(config)


def test_five_stages_in_the_users_order(tmp_path):
    stages, evaluations = planned(
        tmp_path, [PRETRAIN, SFT, RL, AGAIN, LOOK], "evaluation: {after: [b, d], inputs: {prompts: x.tsv}}"
    )
    assert [(stage.name, stage.module) for stage in stages] == [
        ("a", "model.pretrain.train"),
        ("b", "sft.train"),
        ("c", "rlhf.train"),
        ("d", "rlhf.train"),
        ("e", "rlhf.evaluate"),
    ]
    configs = [load_config(stage.entry, stage.overrides)[0] for stage in stages]
    run, data = tmp_path / "run", tmp_path / "data"
    assert configs[1].checkpoint == str(run / "a" / "final") and configs[4].checkpoint == str(run / "c" / "final")
    assert configs[1].data.demonstrations == str(data / "d.parquet")
    assert configs[3].prompts == str(run / "c" / "rollouts")
    assert (configs[2].trainer.max_steps, configs[3].trainer.groups_per_step) == (3, 256)  # its recipe; the defaults
    assert configs[4].output == str(run / "evaluations" / "e.json")
    assert list(evaluations) == ["b", "d"] and not stages[4].writes_model


def test_a_stage_may_start_from_a_folder_or_the_base(tmp_path):
    base = SFT.replace("from: a", "from: base")
    stages, _ = planned(tmp_path, [base, RL.replace("from: b", "from: models/other")], "base: models/qwen")
    configs = [load_config(stage.entry, stage.overrides)[0] for stage in stages]
    assert [config.checkpoint for config in configs] == ["models/qwen", "models/other"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "d.parquet").touch()
    with pytest.raises(ValueError, match=r"stages\.b\.from: expected a file or folder at models/qwen, found none"):
        check_inputs(stages)


@pytest.mark.parametrize(
    ("stages", "rest", "message"),
    [
        (
            [PRETRAIN.replace("model.pretrain.train", "rollouts.generate")],
            "",
            r"a\.command: expected one of .*rollouts",
        ),
        ([PRETRAIN.replace("{data.path: p.jsonl}", "[a]")], "", r"stages\.a\.inputs: expected a mapping"),
        (
            [PRETRAIN.replace("inputs", "overrides: x=1, inputs")],
            "",
            r"stages\.a\.overrides: expected a list, found 'x=1'",
        ),
        (
            [PRETRAIN.replace("inputs", "overrides: [run.dir=x], inputs")],
            "",
            r"stages\.a: run\.dir: the pipeline sets it",
        ),
        ([PRETRAIN.replace("name: a, ", "")], "", "stages: stage 0: name: expected letters"),
        ([PRETRAIN, PRETRAIN], "", "stages: expected names of their own, found 'a', which is taken"),
        ([PRETRAIN.replace("name: a", "name: evaluations")], "", "found 'evaluations', which is taken"),
        (
            [PRETRAIN.replace("pretrain.train", "pretrian.train")],
            "",
            r"stages\.a\.command: expected one of .* did you mean",
        ),
        ([PRETRAIN.replace("command", "comand")], "", r"stages\.a: expected the fields name, command.* found 'comand'"),
        ([SFT], "", r"stages\.b\.from: expected base, a folder, or an earlier stage \(none\), found 'a'"),
        (
            [PRETRAIN, SFT.replace("from: a", "from: base")],
            "",
            r"stages\.b\.from: base: expected the folder of a model",
        ),
        ([PRETRAIN, SFT.replace("d.parquet", "'@z/d.parquet'")], "", r"inputs\.data\.demonstrations: .* found 'z'"),
        ([PRETRAIN, SFT.replace("data.demon", "data.daemon")], "", r"stages\.b: data\.daemonstrations: no such key"),
        ([PRETRAIN.replace("quickstart", "quick")], "", r"stages\.a: recipe: no choice 'quick'"),
        ([PRETRAIN, SFT, RL.replace("max_steps=3", "max_steps=many")], "", r"stages\.c: .*trainer\.max_steps.*'many'"),
        ([PRETRAIN], "evaluation: {after: [z], inputs: {prompts: x}}", r"evaluation\.after: .*\(a\), found 'z'"),
        ([PRETRAIN], "evaluation: {inputs: {promts: x}}", r"evaluation: promts: no such key"),
        ([PRETRAIN], "prepare: nosuchmodule", "prepare: expected a module that can be imported"),
        (
            [PRETRAIN],
            "prepare: nosuch.module",
            "prepare: expected a module that can be imported, found 'nosuch.module'",
        ),
        ([PRETRAIN], "prepare: json.nosuch", "prepare: expected a module that can be imported"),
        ([PRETRAIN], "prepare: .relative", "prepare: expected a module that can be imported"),
        (
            [PRETRAIN, SFT, RL.replace("trainer.max_steps=3", "'reward.options={math: {depth: 3}}'")],
            "",
            "verifier 'math': unknown option 'depth'",
        ),
    ],
)
def test_what_cannot_run_is_refused_by_name_before_anything_starts(tmp_path, stages, rest, message):
    with pytest.raises(ValueError, match=message):
        planned(tmp_path, stages, rest)
    assert not (tmp_path / "run").exists()


def test_a_module_that_is_not_there_is_said_before_stages_that_are_not(tmp_path):
    config, _ = load_config("pipeline", ["prepare=nosuch.module", f"data={tmp_path}", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match=r"prepare: expected a module that can be imported, found 'nosuch\.module'"):
        plan(config)


@pytest.mark.parametrize("module", ["json", "examples", "examples.digits"])
def test_a_package_that_does_not_run_prepares_nothing(tmp_path, module):
    config, _ = load_config("pipeline", [f"prepare={module}", f"data={tmp_path}", f"run.dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match=r"prepare: expected a module"):
        plan(config)


def test_inputs_that_are_not_there_are_named(tmp_path):
    stages, _ = planned(tmp_path, [PRETRAIN, SFT])
    with pytest.raises(
        ValueError, match=r"stages\.a\.inputs\.data\.path: expected a file or folder at .*p\.jsonl, found none"
    ):
        check_inputs(stages)
    (tmp_path / "data").mkdir()
    for name in ("p.jsonl", "d.parquet"):
        (tmp_path / "data" / name).touch()
    check_inputs(stages)


def test_overrides_of_the_command_line_come_last(tmp_path):
    stages, _ = planned(tmp_path, [PRETRAIN, SFT, RL], "", "stages.c.trainer.max_steps=9", "stages.a.max_steps=2")
    assert load_config("rlhf", stages[2].overrides)[0].trainer.max_steps == 9
    with pytest.raises(ValueError, match=r"stages\.z\.max_steps=1: no stage 'z'"):
        planned(tmp_path, [PRETRAIN], "", "stages.z.max_steps=1")


class TestStart:
    """What `from: base` means."""

    FRESH = PRETRAIN.replace("name: a,", "name: a, from: base,").replace(
        "recipe: quickstart", "overrides: ['data.mixture={caption: 1}', optimizer.learning_rate=1e-3]"
    )

    def test_base_is_a_folder_or_a_flavour_from_random_weights(self, tmp_path):
        ((fresh,), _) = planned(tmp_path, [self.FRESH], "model: tiny_base")
        assert (fresh.config.model, fresh.config.checkpoint) == (Flavour.tiny_base, "")
        ((trained,), _) = planned(tmp_path, [self.FRESH], "base: models/mine")
        assert (trained.config.model, trained.config.checkpoint) == (None, "models/mine")
        assert trained.files["from"] == Path("models/mine") and "from" not in fresh.files

    @pytest.mark.parametrize(
        ("stages", "rest", "message"),
        [
            (
                [FRESH],
                "{base: models/mine, model: tiny}",
                "base, model: expected one of both, found models/mine and tiny",
            ),
            ([FRESH], "", r"stages\.a\.from: base: .*`base`, or a flavour in its `model`, found nothing"),
            ([FRESH], "model: small", "model: .*'small', expected one of"),
            ([FRESH.replace("['data", "[model=tiny_moe, 'data")], "model: tiny", "model: the pipeline sets it"),
        ],
    )
    def test_a_start_that_is_none_is_refused_by_name(self, tmp_path, stages, rest, message):
        with pytest.raises(ValueError, match=message):
            planned(tmp_path, stages, rest.strip("{}").replace(", ", "\n"))

    def test_a_flavour_is_enough_for_a_plan_of_fine_tuning_and_not_for_a_run(self, tmp_path):
        stages, _ = planned(tmp_path, [SFT.replace("from: a", "from: base")], "model: tiny")
        config, _ = load_config("pipeline", [f"recipe={tmp_path / 'mine.yaml'}"])
        with pytest.raises(ValueError, match=r"stages\.b\.from: @base: .*`base`, found nothing; model=FLAVOUR is for"):
            check_starts(config, stages)

    def test_random_weights_are_refused_where_a_stage_would_keep_them_or_nothing_can_build_them(self, tmp_path):
        frozen = self.FRESH.replace("overrides: [", "overrides: ['engine.freeze=[vision]', ")
        for stage, model, message in (
            (
                frozen,
                "tiny_base",
                r"stages\.a: engine\.freeze: .* found \[vision\]; start from trained towers: base=DIR",
            ),
            (self.FRESH, "sailvl2_2b", r"model: expected a flavour whose tokenizer .* found sailvl2_2b"),
        ):
            config, stages = self.of(tmp_path, stage, f"model: {model}")
            with pytest.raises(ValueError, match=message):
                check_starts(config, stages)
        check_starts(*self.of(tmp_path, self.FRESH, "model: tiny_base"))
        check_starts(*self.of(tmp_path, frozen, "base: models/mine"))

    def test_the_base_may_be_an_input_of_a_later_stage(self, tmp_path):
        join = "{name: j, command: model.assemble, inputs: {vision: '@a/final', language: '@base'}}"
        config, stages = self.of(tmp_path, f"{self.FRESH}\n  - {join}", "base: models/mine\nrun: {seed: 3}")
        joined = stages[1].config
        assert (joined.vision, joined.language) == (str(tmp_path / "run/a/final"), "models/mine")
        assert (joined.out, joined.seed) == (str(tmp_path / "run/j/final"), 3)
        assert stages[1].is_merge and stages[1].files == {"inputs.language": Path("models/mine")}
        config, stages = self.of(tmp_path, f"{self.FRESH}\n  - {join}", "model: tiny_base")
        with pytest.raises(ValueError, match=r"stages\.j\.inputs\.language: @base: .*`base`, found nothing"):
            check_starts(config, stages)

    @staticmethod
    def of(tmp_path, stages: str, rest: str):
        path = tmp_path / "mine.yaml"
        path.write_text(f"data: {tmp_path / 'data'}\n{rest}\nstages:\n  - {stages}\n")
        config, _ = load_config("pipeline", [f"recipe={path}", f"run.dir={tmp_path / 'run'}"])
        return config, plan(config)[0]


class TestInputsAndSources:
    def test_an_input_may_be_a_list_of_earlier_stages_and_files(self, tmp_path):
        listed = (
            "{name: d, command: rlhf.train, from: b, inputs: {prompts: t.jsonl, data.also: ['@a/x.jsonl', y.jsonl]}}"
        )
        stages, _ = planned(tmp_path, [PRETRAIN, SFT, listed])
        assert stages[2].config.data.also == [str(tmp_path / "run/a/x.jsonl"), str(tmp_path / "data/y.jsonl")]
        assert stages[2].files["inputs.data.also[1]"] == tmp_path / "data/y.jsonl"
        assert "inputs.data.also[0]" not in stages[2].files
        with pytest.raises(ValueError, match=r"stages\.d\.inputs\.data\.also: expected @base, or @ and an .*'z'"):
            planned(tmp_path, [PRETRAIN, SFT, listed.replace("@a/", "@z/")])

    def test_corpora_that_are_not_there_are_named_before_the_first_stage(self, tmp_path):
        overrides = (
            "model=tiny, optimizer.learning_rate=1e-3, data.micro_batches_per_step=1, "
            "'data.sources={web: {paths: [web/*.tar, more.jsonl]}}'"
        )
        stage = f"{{name: a, command: model.pretrain.train, inputs: {{data.folder: .}}, overrides: [{overrides}]}}"
        stages, _ = planned(tmp_path, [stage])
        (tmp_path / "data").mkdir()
        with pytest.raises(ValueError, match=r"stages\.a\.data\.sources\.web\.paths\[0\]: .*data/web, found none"):
            check_inputs(stages)
        (tmp_path / "data" / "web").mkdir()
        with pytest.raises(ValueError, match=r"web\.paths\[1\]: .*data/more\.jsonl, found none"):
            check_inputs(stages)
        (tmp_path / "data" / "more.jsonl").touch()
        check_inputs(stages)

    @pytest.mark.parametrize(
        ("override", "key"),
        [
            ("'data.sources={web: {paths: [w.jsonl], media: absent}}'", r"data\.sources\.web\.media"),
            ("'data.sources={web: {paths: [w.jsonl], row_weights: absent}}'", r"data\.sources\.web\.row_weights"),
            ("data.source_weights=absent", r"data\.source_weights"),
            ("evaluation.data=absent/*.jsonl", r"evaluation\.data"),
        ],
    )
    def test_files_beside_the_corpora_are_looked_for_too(self, tmp_path, override, key):
        overrides = "model=tiny, optimizer.learning_rate=1e-3, data.micro_batches_per_step=1"
        stage = (
            f"{{name: a, command: model.pretrain.train, inputs: {{data.folder: .}}, overrides: [{overrides}, "
            f"'data.sources={{web: {{paths: [w.jsonl]}}}}', {override}]}}"
        )
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "w.jsonl").touch()
        stages, _ = planned(tmp_path, [stage])
        with pytest.raises(ValueError, match=rf"stages\.a\.{key}: .*absent, found none"):
            check_inputs(stages)

    def test_overrides_of_the_pipeline_are_those_of_every_supervised_stage(self, tmp_path):
        stages, _ = planned(tmp_path, [PRETRAIN, SFT, RL], "overrides: [max_steps=7]", "stages.a.max_steps=2")
        assert [stage.config.max_steps for stage in stages[:2]] == [7, 7]
        assert stages[2].config.trainer.max_steps == 3


class TestPlan:
    def test_a_plan_says_what_each_stage_does_and_starts_nothing(self, tmp_path, capsys):
        stage = PRETRAIN.replace("}}", "}, from: base, report: 8M samples}").replace(
            "recipe: quickstart",
            "overrides: ['data.mixture={a: 1}', optimizer.learning_rate=2e-4, 'engine.freeze=[vision,language]']",
        )
        path = tmp_path / "mine.yaml"
        path.write_text(
            f"run: {{dir: {tmp_path / 'run'}}}\ndata: {tmp_path / 'data'}\nmodel: tiny_base\naction: plan\n"
            f"stages:\n  - {stage}\n  - {SFT}\nevaluation: {{after: [b], inputs: {{prompts: x.tsv}}}}\n"
        )
        config, resolved = load_config("pipeline", [f"recipe={path}"])
        rlhf.pipeline.run_pipeline(config, resolved)
        said = capsys.readouterr().out
        assert said.startswith(
            "model: shapes of tiny_base, 1,621,760 parameters; action=run refuses to start from it: "
        )
        assert "1. a: python -m model.pretrain.train" in said and "2. b: python -m sft.train" in said
        assert "adapter alone: 83,200 parameters" in said and "all towers: 1,621,760 parameters" in said
        assert "rate      0.0002, constant" in said and "report    8M samples" in said
        assert f"reads     {tmp_path / 'data' / 'p.jsonl'}: missing (inputs.data.path)" in said
        assert "then      python -m rlhf.evaluate" in said
        assert said.endswith("3 are missing; action=run refuses to start without them\n")
        assert not (tmp_path / "run").exists()

    def test_the_reports_path_is_planned_with_its_values(self):
        config, _ = load_config("pipeline", ["recipe=base_model", "model=sailvl2_2b", "action=plan"])
        stages, evaluations = plan(config)
        said = "\n".join(plan_lines(config, stages, evaluations))
        names = ["vit_warmup", "vit_alignment", "vit_knowledge", "basic", "multitask"]
        join = stages.pop(3)
        assert join.name == "fresh_adapter" and join.config.vision == "runs/base_model/vit_knowledge/final"
        assert stages[3].config.checkpoint == join.config.out == "runs/base_model/fresh_adapter/final"
        assert [stage.name for stage in stages][:9] == names + [f"sft_phase{number}" for number in (1, 2, 3, 4)]
        rates = [stage.config.optimizer.learning_rate for stage in stages[:4]]
        assert rates == [2e-4, 2e-5, 1e-5, 2e-4]
        frozen = [[tower.name for tower in stage.config.engine.freeze] for stage in stages[:5]]
        assert frozen == [["vision", "language"], ["language"], [], ["vision", "language"], []]
        lengths = [stage.config.engine.micro_batch_tokens for stage in stages[:9]]
        assert lengths == [8192] * 8 + [16384]
        for stage, batch in zip(stages[:4], (1920, 512, 512, 2048), strict=True):
            tokens = stage.config.data.micro_batches_per_step * 8192
            assert tokens == pytest.approx(2000 * batch, rel=0.002)
        assert stages[3].config.adalrs.window and not stages[4].config.adalrs.window
        understanding = [stages[4].config.data.sources[name].weight for name in ("captions", "ocr")]
        instruction = [stages[4].config.data.sources[name].weight for name in ("questions", "caption2qa", "text")]
        assert sum(understanding) == pytest.approx(sum(instruction))
        assert "adapter alone: 16,793,600 parameters" in said
        assert stages[-1].module == "sft.soup" and not stages[-1].has_run and stages[-1].writes_model
        merged = [f"runs/base_model/sft_phase4{again}/final" for again in ("", "_again")]
        assert (stages[-1].config.checkpoints, stages[-1].config.out) == (merged, "runs/base_model/soup/final")
        for stage in stages[:5]:
            images = {"captions", "ocr", "documents", "videos"} & {*stage.config.data.sources}
            assert {"captions", "ocr"} <= images
            assert all(stage.config.data.sources[name].template for name in images)
        assert "model: shapes of sailvl2_2b, 2,419,400,192 parameters; action=run refuses to start from it" in said
        with pytest.raises(ValueError, match=r"stages\.vit_warmup\.inputs\.data\.folder: expected .* found none"):
            check_inputs(stages)

    @pytest.mark.parametrize("seed", [0, 1001, 1010011])
    @pytest.mark.parametrize("recipe", ["base_model", "base_tiny"])
    def test_the_models_of_a_soup_have_seeds_of_their_own(self, recipe, seed):
        config, _ = load_config("pipeline", [f"recipe={recipe}", f"run.seed={seed}", "model=tiny_base"])
        seeds = {stage.name: stage.config.run.seed for stage in plan(config)[0] if stage.has_run}
        assert seeds["sft_phase4"] == seed != seeds["sft_phase4_again"]


class TestRun:
    """A pipeline of one stage whose process is replaced by one that writes what a stage leaves."""

    @pytest.fixture
    def run(self, tmp_path, monkeypatch):
        started: list[str] = []

        def process(title: str, arguments: list[str], look=None, launcher=()) -> None:
            started.append(title)
            folder = tmp_path / "run" / "a"
            write_folder(folder / "final", {"model": b"1"})
            (folder / "run.json").touch()
            (folder / "metrics.jsonl").write_text('{"step": 1, "nll_per_token": 2.0}\n')

        monkeypatch.setattr(rlhf.pipeline, "_run", process)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "p.jsonl").touch()
        path = tmp_path / "mine.yaml"
        path.write_text(f"run: {{dir: {tmp_path / 'run'}}}\ndata: {tmp_path / 'data'}\nstages:\n  - {PRETRAIN}\n")

        def run(*overrides: str) -> list[str]:
            started.clear()
            config, resolved = load_config("pipeline", [f"recipe={path}", *overrides])
            rlhf.pipeline.run_pipeline(config, resolved)
            return started

        return run

    def test_one_stage_is_enough_and_runs_once(self, run, tmp_path):
        assert run() == ["stage a"] and run() == []
        assert (tmp_path / "run" / "curves.png").exists() and (tmp_path / "run" / "export" / "model").exists()
        shutil.rmtree(tmp_path / "run" / "a" / "final")
        assert run() == ["stage a"]

    def test_a_finished_stage_knows_its_corpora_and_no_file_that_it_does_not_read(self, run, tmp_path):
        stage = (
            "{name: a, command: model.pretrain.train, inputs: {data.folder: .}, overrides: [model=tiny, "
            "optimizer.learning_rate=1e-3, data.micro_batches_per_step=1, "
            "'data.sources={web: {paths: [web]}, top: {paths: [p.jsonl]}}']}"
        )
        path = tmp_path / "mine.yaml"
        path.write_text(path.read_text().replace(PRETRAIN, stage))
        shard = tmp_path / "data" / "web" / "0.jsonl"
        shard.parent.mkdir()
        shard.write_text("{}\n")
        assert run() == ["stage a"]
        (tmp_path / "data" / "other.jsonl").write_text("{}\n")
        assert run() == []
        shard.write_text("{ }\n")
        with pytest.raises(ValueError, match=r"stage a: .*data\.sources\.web\.paths has other content"):
            run("action=resume")
        assert run() == ["stage a"]

    def test_the_figures_of_a_probe_are_in_the_summary_and_on_the_terminal(self, run, tmp_path, capsys, monkeypatch):
        probe = (
            "{name: look, command: model.pretrain.probe, inputs: {checkpoints: ['@a/final', '@base'], data: p.jsonl}}"
        )
        path = tmp_path / "mine.yaml"
        path.write_text(f"base: models/mine\n{path.read_text()}  - {probe}\n")
        (tmp_path / "models").mkdir()
        own, foreign = str(tmp_path / "run" / "a" / "final"), str(tmp_path / "models")
        figures = {"top1": 0.5, "nearest_neighbour": 1.25}
        stage = rlhf.pipeline._run

        def process(title: str, arguments: list[str], look=None, launcher=()) -> None:
            stage(title, arguments)
            if title == "stage look":
                found = {"checkpoints": {own: figures, foreign: {**figures, "top1": 0.25}}}
                (tmp_path / "run" / "evaluations").mkdir(exist_ok=True)
                (tmp_path / "run" / "evaluations" / "look.json").write_text(json.dumps(found))

        monkeypatch.setattr(rlhf.pipeline, "_run", process)
        assert run(f"base={foreign}") == ["stage a", "stage look"]
        said = " ".join(capsys.readouterr().out.split())
        assert "What the probes measured" in said and "50.0%" in said and "1.2500" in said
        probes = json.loads((tmp_path / "run" / "summary.json").read_text())["probes"]
        assert probes == {"a": figures, foreign: {**figures, "top1": 0.25}}

    def test_a_pipeline_that_was_moved_goes_on(self, run, tmp_path):
        run()
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "data").rename(tmp_path / "other")
        assert run(f"run.dir={tmp_path / 'moved'}", f"data={tmp_path / 'other'}") == []

    def test_a_fresh_start_keeps_what_no_stage_wrote(self, run, tmp_path):
        run()
        (tmp_path / "run" / "evaluations").mkdir(exist_ok=True)
        (tmp_path / "run" / "evaluations" / "notes.txt").write_text("mine")
        media = tmp_path / "run" / "evaluations" / "a.media"
        media.mkdir()
        (media / f"{'0' * 64}.png").touch()
        (tmp_path / "run" / "a" / "notes.txt").write_text("mine")
        assert run("run.start=fresh") == ["stage a"] and run("run.start=fresh") == ["stage a"]
        assert (tmp_path / "run" / "evaluations" / "notes.txt").exists() and (
            tmp_path / "run" / "a" / "notes.txt"
        ).exists()
        assert not media.exists()
        (tmp_path / "run" / "export" / "README.md").write_text("mine")
        with pytest.raises(ValueError, match=r"an earlier run wrote, found README\.md"):
            run("run.start=fresh")
        assert (tmp_path / "run" / "a" / "final").exists()

    def test_a_fresh_start_deletes_no_inputs_and_nothing_before_they_are_there(self, run, tmp_path):
        run()
        with pytest.raises(ValueError, match=r"stages\.a\.inputs\.data\.path: expected a file"):
            run("run.start=fresh", f"data={tmp_path / 'elsewhere'}")
        assert (tmp_path / "run" / "a" / "final").exists()
        inner = tmp_path / "run" / "a" / "data"
        shutil.copytree(tmp_path / "data", inner)
        with pytest.raises(ValueError, match="holds inputs; rename"):
            run("run.start=fresh", f"data={inner}")
        (tmp_path / "run" / "a" / "run.json").unlink()
        with pytest.raises(ValueError, match="which no stage wrote; rename"):
            run("run.start=fresh")
        assert inner.exists()


class TestSigterm:
    """A real process in place of a stage."""

    @pytest.mark.parametrize(
        "stage",
        [
            "import time; time.sleep(60)",
            "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(0)); time.sleep(60)",
            "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)",
        ],
        ids=["dies", "ends well", "ignores"],
    )
    def test_the_pipeline_ends_whatever_the_stage_makes_of_it(self, stage, monkeypatch):
        monkeypatch.setattr(rlhf.pipeline, "_PATIENCE_SECONDS", 2.0)
        timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        begin = time.monotonic()
        with pytest.raises(Terminated):
            rlhf.pipeline._run("stage", ["-c", stage])
        assert time.monotonic() - begin < 10
