"""The graph of a pipeline: what runs again when something changes, gates, and interruptions at every instant."""

import json
import random
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest

import rlhf.console
import rlhf.pipeline
import rlhf.planning.graph
import rlhf.planning.stages
from conf.cli import assign, load_config
from model.run.config import RunConfig
from model.run.durable import write_folder
from rlhf.config import PipelineConfig
from rlhf.planning.gates import Gate, judge, read_gates
from rlhf.planning.graph import Graph, outlook_lines, without_places
from rlhf.planning.stages import digests_of, plan

STAGES = """
  - {name: a, command: model.pretrain.train, recipe: quickstart, inputs: {data.path: p.jsonl}}
  - {name: b, command: sft.train, from: a, inputs: {data.demonstrations: d.jsonl}, overrides: [max_steps=3]}
  - {name: c, command: rlhf.train, from: b, recipe: quickstart, inputs: {prompts: t.jsonl, evaluation.prompts: t.jsonl}}
  - {name: d, command: sft.train, from: b, inputs: {data.rollouts: "@c/rollouts", data.prompts: t.jsonl}}
"""


class Interrupted(BaseException):
    """Stands for the death of the process."""


class Pipeline:
    """A pipeline whose processes are replaced by one that writes what it read and its settings, as a checksum."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder, self.run_dir, self.data = folder, folder / "run", folder / "data"
        self.data.mkdir()
        for name in ("p", "d", "t", "x"):
            (self.data / f"{name}.jsonl").write_text(f"{name}\n")
        self.recipe = folder / "mine.yaml"
        self.write("evaluation: {after: [b, c, d], inputs: {prompts: x.jsonl}}")
        self.titles: list[str] = []
        self.accuracy = {"final": 0.5, "best": 0.7}
        self.chance: random.Random | None = None
        monkeypatch.setattr(rlhf.pipeline, "_run", self.process)
        monkeypatch.setattr(rlhf.console, "plot_curves", lambda folder, runs: folder / "curves.png")
        monkeypatch.setenv("SAILVL2_REPORT", "0")
        monkeypatch.setattr(rlhf.planning.stages, "load_config", composed)
        written = rlhf.planning.graph._write
        monkeypatch.setattr(
            rlhf.planning.graph, "_write", lambda *given: (self.instant(), written(*given), self.instant())
        )

    def write(self, rest: str, stages: str = STAGES) -> None:
        self.recipe.write_text(f"run: {{dir: {self.run_dir}}}\ndata: {self.data}\n{rest}\nstages:{stages}")

    def instant(self) -> None:
        """An instant at which the pipeline may die."""
        if self.chance is not None and self.chance.random() < 0.08:
            raise Interrupted

    def process(self, title: str, arguments: list[str], look=None, launcher=()) -> None:
        self.instant()
        self.titles.append(title)
        values = dict(argument.replace("'", "").split("=", 1) for argument in arguments[2:])
        given = [text for key, text in values.items() if key not in ("run.dir", "output")]
        read = [Path(text) for text in given if text.startswith(str(self.folder))]
        text = f"{arguments[1]} {values.get('max_steps')}" + "".join(map(content, sorted(read)))
        digest = sha256(text.encode()).hexdigest().encode()
        if title.startswith("evaluation"):
            which = "best" if content(Path(values["checkpoint"])).startswith("best") else "final"
            modes = {"think": {"accuracy": self.accuracy[which], "interval": [0.4, 0.6], "format_rate": 1.0}}
            result = {"modes": modes, "majority_answer_rate": 0.1, "of": digest.decode()}
            Path(values["output"]).parent.mkdir(exist_ok=True)
            Path(values["output"]).write_text(json.dumps(result))
            self.instant()
            return
        folder = Path(values["run.dir"])
        write_folder(folder / "final", {"model": digest})
        write_folder(folder / "best", {"model": b"best" + digest})
        (folder / "rollouts").mkdir(exist_ok=True)
        (folder / "rollouts" / "step_000001.jsonl").write_bytes(digest)
        (folder / "run.json").touch()
        (folder / "metrics.jsonl").write_text('{"step": 1, "nll_per_token": 2.0}\n')
        self.instant()

    def run(self, *overrides: str) -> list[str]:
        """The titles of the processes that ran."""
        self.titles.clear()
        config, resolved = load_config("pipeline", [f"recipe={self.recipe}", *overrides])
        rlhf.pipeline.run_pipeline(config, resolved)
        return list(self.titles)

    def outcome(self) -> dict[str, str]:
        finals = {name: content(self.run_dir / name / "final") for name in "abcd"}
        return finals | {file.name: file.read_text() for file in (self.run_dir / "evaluations").glob("*.json")}

    def superseded(self) -> list[str]:
        return sorted(path.name for path in (self.run_dir / "superseded").glob("*"))


def content(path: Path) -> str:
    """The text of a file, or of the files of a folder less their manifests."""
    if path.is_file():
        return path.read_text()
    return "".join(
        file.read_text() for file in sorted(path.glob("*")) if file.is_file() and file.name != "manifest.json"
    )


@pytest.fixture
def pipeline(tmp_path, monkeypatch) -> Pipeline:
    return Pipeline(tmp_path, monkeypatch)


@cache
def _composed(entry: str, overrides: tuple[str, ...]):
    return load_config(entry, overrides)


def composed(entry: str, overrides: list[str]):
    """The settings of a command line, which take long to compose, once for each; nothing changes them."""
    return _composed(entry, tuple(overrides))


EVERYTHING = [
    *("stage a", "stage b", "evaluation of stage b", "stage c", "evaluation of stage c", "stage d"),
    "evaluation of stage d",
]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("p.jsonl", EVERYTHING),
        ("d.jsonl", EVERYTHING[1:]),
        ("t.jsonl", EVERYTHING[3:]),
        ("x.jsonl", [title for title in EVERYTHING if title.startswith("evaluation")]),
    ],
)
def test_a_changed_input_runs_again_what_depends_on_it_and_nothing_else(pipeline, changed, expected, capsys):
    assert pipeline.run() == EVERYTHING and pipeline.run() == []
    before = pipeline.outcome()
    (pipeline.data / changed).write_text("changed\n")
    capsys.readouterr()
    assert pipeline.run() == expected
    said = capsys.readouterr().out
    assert said.index(f"{expected[0]} will run again") < said.index(f"{expected[0]} runs again")
    assert "nothing else runs again" in said and pipeline.run() == []
    after = pipeline.outcome()
    assert {key for key in after if after[key] != before[key]} == {
        title.split()[-1] + (".json" if title.startswith("evaluation") else "") for title in expected
    }
    assert len(pipeline.superseded()) == len(expected)  # nothing is lost


def test_a_stage_that_writes_the_same_again_makes_nothing_else_run(pipeline):
    pipeline.run()
    (pipeline.run_dir / "graph" / "b.json").unlink()
    assert pipeline.run() == ["stage b"]


def test_other_settings_run_a_stage_and_what_depends_on_it_again(pipeline):
    pipeline.run()
    first = pipeline.outcome()
    assert pipeline.run("stages.b.optimizer.weight_decay=0.5", "stages.b.batch_size=2") == ["stage b"]
    assert pipeline.outcome() == first  # this stand-in for a stage does not look at either
    assert pipeline.superseded() == ["b-1"] and (pipeline.run_dir / "superseded" / "b-1" / "b" / "final").is_dir()


def test_an_edited_reward_function_runs_its_stage_again(pipeline):
    file = pipeline.folder / "mine.py"
    file.write_text("def paid(completion):\n    return 1.0\n")
    own = f"stages.c.reward.functions=['{file}:paid']"
    pipeline.run(own)
    assert pipeline.run(own) == []
    file.write_text("def paid(completion):\n    return 0.5\n")
    assert pipeline.run(own)[0] == "stage c"


def test_more_steps_are_the_stages_own_affair_and_its_folder_stays(pipeline):
    pipeline.run()
    marked = pipeline.run_dir / "b" / "mine.txt"
    marked.touch()
    assert pipeline.run("stages.b.max_steps=5") == EVERYTHING[1:] and marked.exists()
    assert not [name for name in pipeline.superseded() if name.startswith("b-")]


def test_settings_that_change_no_number_run_no_finished_stage_again(pipeline):
    settings = ("run.accept_changes=[code]", "run.keep_checkpoints=3", "report.every=5", "trainer.show_every=7")
    pipeline.run(*(f"stages.c.{setting}" for setting in settings[:2]))
    assert pipeline.run(*(f"stages.c.{setting}" for setting in settings[2:])) == []


def test_of_a_setting_that_is_given_twice_the_last_one_counts(pipeline):
    def stages(steps: int) -> str:
        return STAGES.replace("max_steps=3", f"max_steps=3, batch_size={steps}")

    pipeline.write("", stages(4))
    pipeline.run("stages.b.batch_size=2")
    pipeline.write("", stages(2))
    assert pipeline.run() == []
    assert pipeline.run("stages.b.batch_size=4") == ["stage b"]


def test_an_edited_recipe_of_a_stage_runs_it_again(pipeline):
    own = pipeline.folder / "own.yaml"
    own.write_text("batch_size: 4\n")
    pipeline.write("", STAGES.replace("sft.train, from: a,", f"sft.train, from: a, recipe: {own},"))
    pipeline.run()
    assert pipeline.run() == []
    own.write_text("batch_size: 2\n")
    assert pipeline.run()[0] == "stage b" and "b-1" in pipeline.superseded()


@pytest.mark.parametrize("name", ["a b", "it's", 'say "x"', "größe", "a,b [c]", "{x}"])
def test_a_command_line_is_the_same_wherever_its_folders_lie_and_whatever_they_are_called(tmp_path, name):
    def known(folder: Path) -> list[str]:
        config = PipelineConfig(run=RunConfig(dir=str(folder / "run")), data=str(folder / "data"))
        paths = [folder / "data" / "p.jsonl", folder / "run" / "a" / "final"]
        return without_places(config, [assign("rows", paths), assign("out", folder / "run" / "b")])

    assert known(tmp_path / name) == known(tmp_path / "other") and "{run.dir}/b" in known(tmp_path / name)[1]


def test_corpora_within_the_pipelines_own_folder_are_looked_at(tmp_path):
    recipe, data = tmp_path / "mine.yaml", tmp_path / "run" / "data"
    data.mkdir(parents=True)
    (data / "x.jsonl").write_text('{"texts": ["a"]}\n')
    stage = (
        "{name: a, command: model.pretrain.train, from: base, recipe: base_tiny, inputs: {data.folder: .}, "
        'overrides: ["data.sources={x: {paths: [x.jsonl]}}"]}'
    )
    recipe.write_text(f"run: {{dir: {tmp_path / 'run'}}}\nmodel: tiny_base\ndata: {data}\nstages: [{stage}]")
    config, _ = load_config("pipeline", [f"recipe={recipe}"])
    ((planned,), _) = plan(config)
    before = digests_of(planned)
    (data / "x.jsonl").write_text('{"texts": ["b"]}\n')
    assert before and digests_of(planned) != before


def test_resume_refuses_to_run_a_finished_stage_again(pipeline):
    pipeline.run()
    (pipeline.data / "d.jsonl").write_text("changed\n")
    with pytest.raises(ValueError, match=r"stage b: .*inputs\.data\.demonstrations has other content.*action=run"):
        pipeline.run("action=resume")
    assert pipeline.titles == [] and pipeline.superseded() == []
    (pipeline.data / "d.jsonl").write_text("d\n")
    assert pipeline.run("action=resume") == []


def test_an_interrupted_stage_with_a_changed_input_begins_anew(pipeline):
    pipeline.run()
    record = pipeline.run_dir / "graph" / "b.json"
    record.write_text(record.read_text().replace('"finished"', '"started"'))
    (pipeline.data / "d.jsonl").write_text("changed\n")
    assert pipeline.run()[0] == "stage b" and "b-1" in pipeline.superseded()


def test_an_input_inside_of_what_would_move_is_refused(pipeline):
    pipeline.run()
    inner = pipeline.run_dir / "b" / "d.jsonl"
    inner.write_text("d\n")
    pipeline.write("", STAGES.replace("d.jsonl", str(inner)))
    with pytest.raises(ValueError, match=r"lies in what it wrote; put the input elsewhere"):
        pipeline.run()
    assert inner.exists()


def test_status_says_how_far_each_process_is_and_starts_nothing(pipeline, capsys):
    assert pipeline.run("action=status") == [] and not pipeline.run_dir.exists()
    assert capsys.readouterr().out.count("to do") == 7
    pipeline.run()
    (pipeline.data / "d.jsonl").write_text("changed\n")
    capsys.readouterr()
    pipeline.run("action=status")
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "done in 0 s" in lines["stage a"]
    assert "runs again (inputs.data.demonstrations has other content)" in lines["stage b"]
    assert "runs again if that changes what it reads (b)" in lines["stage c"]


def test_a_damaged_record_is_named(pipeline):
    pipeline.run()
    (pipeline.run_dir / "graph" / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json: expected the record of stage b, found"):
        pipeline.run()


def test_20_interruptions_leave_the_same_result_and_repeat_nothing_finished(pipeline, tmp_path, monkeypatch):
    pipeline.run()
    expected, num_deaths, total = pipeline.outcome(), 0, 0
    for seed in range(100):
        if num_deaths >= 20:
            break
        config, _ = load_config("pipeline", [f"recipe={pipeline.recipe}"])
        pipeline.chance = None
        rlhf.pipeline._clear(pipeline.run_dir, plan(config)[0], [])
        pipeline.chance = random.Random(seed)
        finished: list[str] = []
        for _ in range(100):
            graph = Graph(config, *plan(config))
            done = {node.title for node in graph.nodes if graph.record(node).get("state") == "finished"}
            try:
                finished = pipeline.run()
                break
            except Interrupted:
                num_deaths += 1
                finished = list(pipeline.titles)
            finally:
                total += 1
                assert not done & set(finished)
        pipeline.chance = None
        assert pipeline.outcome() == expected and pipeline.run() == []
    assert num_deaths >= 20 and total > num_deaths


def test_an_interrupted_fresh_start_leaves_no_record_of_what_is_half_deleted(pipeline, monkeypatch):
    pipeline.run()
    (pipeline.data / "p.jsonl").write_text("changed\n")

    def reach(name: str) -> None:
        if name == "pipeline.clear":
            raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(rlhf.pipeline, "reach", reach)
        pipeline.run("run.start=fresh")
    assert not list((pipeline.run_dir / "graph").glob("*.json")) and pipeline.run() == EVERYTHING


class TestGates:
    def test_bounds_are_broken_by_the_whole_interval(self):
        result = {"modes": {"think": {"accuracy": 0.5, "interval": [0.4, 0.6], "format_rate": 0.97, "length": None}}}

        def passes(figure: str, **bounds) -> bool:
            return judge(Gate(f"modes.think.{figure}", **bounds), result, None).is_passed

        assert passes("accuracy", at_least=0.6) and not passes("accuracy", at_least=0.61)
        assert passes("accuracy", at_most=0.4) and not passes("accuracy", at_most=0.39)
        assert passes("format_rate", at_least=0.97) and not passes("format_rate", at_least=0.99)
        assert not passes("length", at_most=10) and not passes("nothing", at_most=10)

    def test_a_comparison_takes_the_interval_of_the_difference(self):
        def result(share: float, low: float, high: float):
            return {"accuracy_of": {"accuracy": share, "interval": [low, high]}}

        gate = Gate("accuracy_of.accuracy", at_least=-0.02, compared_with="base")
        # Newcombe (1998), table II, row (a): 56 of 70 and 48 of 80 give 0.2000, 0.0524 to 0.3339.
        verdict = judge(gate, result(0.8, 0.6918, 0.8769), result(0.6, 0.4904, 0.7004))
        assert verdict.is_passed and verdict.value == pytest.approx(0.2)
        assert verdict.interval == pytest.approx([0.0524, 0.3339], abs=2e-4)
        assert not judge(gate, result(0.4, 0.3, 0.5), result(0.8, 0.75, 0.85)).is_passed
        assert "was not measured" in judge(gate, result(0.4, 0.3, 0.5), None).said

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ("x", r"gates\[0\]: expected a mapping"),
            ({"figure": "x", "at_leest": 1}, "found 'at_leest'"),
            ({"at_least": 1}, r"gates\[0\]\.figure: expected a figure"),
            ({"figure": "x"}, "expected at_least or at_most, found neither"),
            ({"figure": "x", "at_least": "much"}, r"at_least: expected a number, found 'much'"),
            ({"figure": "x", "at_least": 1, "compared_with": "z"}, r"compared_with: expected an earlier stage .*\(b\)"),
            ({"figure": "x", "at_least": 1, "otherwise": "panic"}, r"otherwise: expected .*stop"),
        ],
    )
    def test_a_gate_that_means_nothing_is_refused_by_name(self, given, message):
        with pytest.raises(ValueError, match=message):
            read_gates([given], "stages.c", ["b"])

    def gated(self, pipeline, gate: str) -> None:
        stages = STAGES.replace(
            "recipe: quickstart, inputs: {prompts", f"recipe: quickstart, gates: [{gate}], inputs: {{prompts"
        )
        pipeline.write("evaluation: {after: [b, c, d], inputs: {prompts: x.jsonl}}", stages)

    def test_a_broken_gate_stops_and_a_changed_one_goes_on_without_running_again(self, pipeline):
        self.gated(pipeline, "{figure: modes.think.accuracy, at_least: 0.9}")
        with pytest.raises(rlhf.pipeline.GateFailed, match=r"stages\.c\.gates: .* is below 0\.9; later stages did not"):
            pipeline.run()
        assert pipeline.titles == EVERYTHING[:5]
        self.gated(pipeline, "{figure: modes.think.accuracy, at_least: 0.9, otherwise: warn}")
        assert pipeline.run() == EVERYTHING[5:]
        summary = json.loads((pipeline.run_dir / "summary.json").read_text())
        (verdict,) = summary["stages"][2]["gates"]
        assert not verdict["is_passed"] and verdict["value"] == 0.5

    def test_a_broken_gate_may_go_back_to_the_best_model(self, pipeline, capsys):
        self.gated(pipeline, "{figure: modes.think.accuracy, at_least: 0.61, otherwise: best}")
        pipeline.accuracy = {"final": 0.5, "best": 0.7}
        judged = rlhf.pipeline.judge
        rlhf.pipeline.judge = lambda gate, result, earlier: judged(
            gate, {"modes": {"think": {"accuracy": result["modes"]["think"]["accuracy"]}}}, earlier
        )
        try:
            ran = pipeline.run()
        finally:
            rlhf.pipeline.judge = judged
        assert ran == [*EVERYTHING[:5], EVERYTHING[4], *EVERYTHING[5:]]
        assert content(pipeline.run_dir / "c" / "final").startswith("best")
        assert not content(pipeline.run_dir / "c" / "last").startswith("best")
        assert "its best model takes the place of the last" in capsys.readouterr().out
        assert json.loads((pipeline.run_dir / "summary.json").read_text())["stages"][2]["went_back"]

    def test_going_back_keeps_the_end_of_a_run_that_got_more_steps_and_not_an_earlier_one(self, pipeline):
        config, _ = load_config("pipeline", [f"recipe={pipeline.recipe}"])
        graph = Graph(config, *plan(config))
        node = next(node for node in graph.nodes if node.title == "stage c")
        for name, text in (("final", b"longer"), ("best", b"best"), ("last", b"shorter")):
            write_folder(node.product.with_name(name), {"model": text})
        for _ in range(2):  # the second time after a call that was killed
            rlhf.pipeline._go_back(graph, node)
            assert [content(node.product.with_name(name)) for name in ("final", "last")] == ["best", "longer"]

    def test_gates_that_nothing_can_answer_are_refused_before_anything_starts(self, pipeline):
        self.gated(pipeline, "{figure: x, at_least: 1}")
        pipeline.recipe.write_text(pipeline.recipe.read_text().replace("after: [b, c, d]", "after: [d]"))
        with pytest.raises(ValueError, match=r"stages\.c\.gates: expected an evaluation after the stage, found none"):
            pipeline.run()
        pipeline.write(
            "evaluation: {after: [b], inputs: {prompts: x.jsonl}}",
            STAGES.replace("overrides: [max_steps=3]", "gates: [{figure: x, at_least: 1, otherwise: best}]"),
        )
        with pytest.raises(ValueError, match=r"stages\.b\.gates: otherwise=best: expected a stage of rlhf\.train"):
            pipeline.run()
        assert not pipeline.run_dir.exists()


def test_lines_of_the_status_name_gates(pipeline):
    TestGates().gated(pipeline, "{figure: modes.think.accuracy, at_least: 0.1}")
    pipeline.run()
    config, _ = load_config("pipeline", [f"recipe={pipeline.recipe}"])
    assert any("gate: modes.think.accuracy = 0.5" in line for line in outlook_lines(Graph(config, *plan(config))))
