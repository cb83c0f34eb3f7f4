"""From a base model, or from nothing, to a Thinking checkpoint: `python -m rlhf.pipeline recipe=quickstart`.

A recipe lists the stages; each is a process of its own, and so is each evaluation. All are checked before the first
one starts. The same command after an interruption continues where it stopped.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conf.cli import launch
from model.json_values import JsonObject
from model.run.config import StartMode
from model.run.failpoints import reach
from model.run.guidance import IN_PIPELINE, REPORT, say_result
from model.run.interrupt import STOP_SECONDS, Terminated
from model.run.parent import die_with_parent
from rlhf.config import EvaluationMode, PipelineAction, PipelineConfig
from rlhf.planning.gates import Gate, Otherwise, Verdict, judge
from rlhf.planning.graph import RECORDS, Graph, Node, outlook_lines, said_first
from rlhf.planning.stages import StagePlan, check_inputs, check_starts, plan

if TYPE_CHECKING:
    from model.run.folder import RunFolder
    from model.run.shown.presentation import Presentation

_LOOK_SECONDS = 5.0
"""Seconds between two looks how far a stage is, for the report while it runs."""

_PATIENCE_SECONDS = STOP_SECONDS + 2.5
"""Seconds after SIGTERM until a stage that did not end by itself is killed."""


def run_pipeline(config: PipelineConfig, resolved: str) -> None:
    """Run every stage that is not complete, evaluate, and write summary.json, curves.png and export/."""
    from model.run.folder import RunFolder
    from model.run.identity import outside_keys

    begin = process_start()
    stages, evaluations = plan(config)
    graph = Graph(config, stages, evaluations)
    if config.action is PipelineAction.plan:
        from rlhf.planning.stages_shown import plan_lines

        print("\n".join(plan_lines(config, stages, evaluations)))
        return
    if config.action is PipelineAction.status:
        print("\n".join(outlook_lines(graph)))
        return
    check_starts(config, stages)
    if not config.prepare:
        check_inputs([*stages, *evaluations.values()])
    if config.run.start is not StartMode.fresh:
        graph.check_changes()
    with RunFolder(config.run, resolved, outside_keys(config), config.report) as run:
        folder = run.folder
        run.presentation.start(0)
        if config.run.start is StartMode.fresh:
            _clear(folder, stages, [config.base, config.data])
        earlier = _read(folder / "elapsed.json").get("seconds", 0.0)
        if config.prepare:
            module, *arguments = config.prepare_command
            _run("data preparation", ["-m", module, f"out={config.data}", *arguments])
            graph.check_changes()  # again, of the data that are there now
        check_inputs([*stages, *evaluations.values()])
        for line in said_first(graph.outlooks(), folder):
            print(line, flush=True)
        results: list[JsonObject] = []
        for nodes in graph.by_stage():
            stage = nodes[0].plan
            look = _looker(folder / stage.name, stage.name, run.presentation)
            results.append({"name": stage.name, **_run_and_evaluate(graph, nodes, results, look)})
            _write(folder / "elapsed.json", {"seconds": earlier + time.time() - begin})
        _finish(config, run, stages, results, earlier, begin)


def _looker(stage: Path, name: str, presentation: "Presentation") -> Callable[[], None]:
    """Tells the pipeline's report, a few times a minute at most, how far a stage has come."""
    from model.run.logs import last_line

    seen: list[float] = [time.monotonic()]

    def look() -> None:
        if time.monotonic() > seen[0] + _LOOK_SECONDS:
            seen[0] = time.monotonic()
            line = last_line(stage / "metrics.jsonl")
            presentation.look(line["step"] if line else 0, name)

    return look


def _run_and_evaluate(
    graph: Graph, nodes: Sequence[Node], earlier: Sequence[JsonObject], look: Callable[[], None]
) -> JsonObject:
    """Run what is not done yet; the stage's seconds, the evaluation's result and what the gates said.

    `look` is called meanwhile. `GateFailed` where a gate stops the pipeline.
    """
    stage = nodes[0].plan
    for node in nodes:
        _run_node(graph, node, look)
    result = {} if nodes[-1].plan.writes_folder and not nodes[-1].is_evaluation else _read(nodes[-1].product)
    broken = _broken(stage, result, earlier)
    if any(gate.otherwise is Otherwise.best for gate, _ in broken) and not _went_back(graph, nodes[0]):
        for _, verdict in broken:
            print(f"== gate of {stage.name}: {verdict.said}; its best model takes the place of the last", flush=True)
        _go_back(graph, nodes[0])
        _run_node(graph, nodes[-1], look)
        result = _read(nodes[-1].product)
        broken = _broken(stage, result, earlier)
    gates = [verdict.to_json() for _, verdict in _verdicts(stage, result, earlier)]
    if gates:
        graph.note(nodes[-1], gates=[one["said"] for one in gates])
    for gate, verdict in broken:
        print(f"== gate of {stage.name}: {verdict.said}", flush=True)
        if gate.otherwise is not Otherwise.warn:
            raise GateFailed(stage.name, verdict.said)
    noted: JsonObject = {}
    if stage.is_maker:
        noted["data"] = _read(nodes[0].product.with_name("summary.json"))
    noted |= {"gates": gates} if gates else {}
    noted |= {"went_back": True} if _went_back(graph, nodes[0]) else {}  # its model is the best one, not the last
    return {"seconds": graph.record(nodes[0])["seconds"], **result, **noted}


def _run_node(graph: Graph, node: Node, look: Callable[[], None]) -> None:
    """Run a stage, or its evaluation, unless it is done as it would be now."""
    if not graph.begin(node):
        return
    if not node.is_evaluation:
        start = " ".join(graph.launcher(node)) or "python"
        print(f"== {node.plan.name}: {start} {' '.join(node.plan.command)}", flush=True)
    begin = time.time()
    if not (node.plan.is_merge and node.product.exists()):  # a restart finds the merged model, which is whole
        launcher = graph.launcher(node)
        _run(node.title, node.plan.command, look if not node.is_evaluation else lambda: None, launcher)
    if not node.is_evaluation:
        reach("pipeline.stage")
    graph.finish(node, seconds=time.time() - begin)


def _verdicts(stage: StagePlan, result: JsonObject, earlier: Sequence[JsonObject]) -> list[tuple[Gate, Verdict]]:
    before = {str(one["name"]): one for one in earlier}
    return [(gate, judge(gate, result, before.get(gate.compared_with))) for gate in stage.gates]


def _broken(stage: StagePlan, result: JsonObject, earlier: Sequence[JsonObject]) -> list[tuple[Gate, Verdict]]:
    return [(gate, verdict) for gate, verdict in _verdicts(stage, result, earlier) if not verdict.is_passed]


def _went_back(graph: Graph, node: Node) -> bool:
    return bool(graph.record(node).get("went_back"))


def _go_back(graph: Graph, node: Node) -> None:
    """Put the best model of a stage in the place of its last one, which is kept in `last/`."""
    from model.run.durable import copy_folder
    from model.run.identity import digest_of_files

    folder = node.product.parent
    if not (folder / "best").is_dir():
        raise GateFailed(node.plan.name, f"{folder / 'best'} is not there, so there is no model to go back to")
    if digest_of_files([folder / "final"]) != digest_of_files([folder / "best"]):  # else a call that was killed did it
        copy_folder(folder / "final", folder / "last")  # in the place of one from before the run got more steps
        reach("pipeline.back")
        copy_folder(folder / "best", folder / "final")
    graph.note(node, went_back=True)


def _clear(folder: Path, stages: Sequence[StagePlan], kept: Sequence[str]) -> None:
    """Delete what an earlier pipeline left in the folder, and nothing else. `ValueError`, before anything is deleted,
    where `kept` folders, or files that no stage wrote, are in the way."""
    from model.run.durable import delete_if_empty, refuse_foreign_files
    from model.run.folder import MARK
    from model.run.ownership import MODELS, clear_data, clear_media, clear_run, delete_written

    for stage in stages:
        own = (folder / stage.name).resolve()
        inputs = [*kept, *stage.files.values()]
        if any(path and Path(path).resolve().is_relative_to(own) for path in inputs):
            raise ValueError(f"run.start=fresh would delete {own}, which holds inputs; rename stages.{stage.name}")
        if stage.has_run and own.is_dir() and any(own.iterdir()) and not (own / MARK).exists():
            raise ValueError(f"run.start=fresh would delete {own}, which no stage wrote; rename stages.{stage.name}")
        for name in MODELS:
            refuse_foreign_files(own / name)
    refuse_foreign_files(folder / "export")
    for stage in stages:  # the records of all go first: none may call a stage finished that is half deleted
        for ending in ("json", "evaluation.json"):
            (folder / RECORDS / f"{stage.name}.{ending}").unlink(missing_ok=True)
    for stage in stages:
        reach("pipeline.clear")
        if stage.has_run:
            clear_run(folder / stage.name)
        elif stage.is_maker:
            clear_data(folder / stage.name)
        elif (merged := folder / stage.name / "final").is_dir():
            delete_written(merged)
        for ending in ("json", "answers.jsonl"):
            (folder / "evaluations" / f"{stage.name}.{ending}").unlink(missing_ok=True)
        clear_media(folder / "evaluations" / f"{stage.name}.media")
        for mode in EvaluationMode:
            (folder / "evaluations" / f"{stage.name}.responses" / f"prompts.{mode.value}.jsonl").unlink(missing_ok=True)
        delete_if_empty(folder / "evaluations" / f"{stage.name}.responses")
    if (folder / "export").is_dir():
        delete_written(folder / "export")
    for name in ("summary.json", "curves.png", "elapsed.json"):
        (folder / name).unlink(missing_ok=True)


def _finish(
    config: PipelineConfig,
    run: "RunFolder",
    stages: Sequence[StagePlan],
    results: Sequence[JsonObject],
    earlier: float,
    begin: float,
) -> None:
    """Write the summary, the curves, the export and the report, and print where they are."""
    from rich.console import Console

    from model.run.durable import copy_folder
    from rlhf.console import direct_accuracies, group_table, plot_curves, probe_table, stage_table

    reach("pipeline.finish")
    folder = run.folder
    models = [stage.name for stage in stages if stage.writes_model]
    products = {"summary": folder / "summary.json"}
    if models:
        copy_folder(folder / models[-1] / "final", folder / "export")
    if runs := [stage.name for stage in stages if stage.has_run]:
        products |= {"curves": plot_curves(folder, runs)}
    evaluated = [result for result in results if "majority_answer_rate" in result]
    total = earlier + time.time() - begin
    summary: JsonObject = {"stages": list(results), "total_seconds": total, "seed": config.run.seed}
    by_group = direct_accuracies(evaluated[-1]) if evaluated else {}
    if evaluated:
        summary["majority_answer_rate"] = evaluated[-1]["majority_answer_rate"]
    if by_group:
        summary["accuracy"] = by_group
    if probed := _probed(results):
        summary["probes"] = probed
    _write(folder / "summary.json", summary)
    run.presentation.end()
    if (report := folder / REPORT).is_file():
        products |= {"report": report}
    console = Console()
    if evaluated:
        majority = summary["majority_answer_rate"]
        console.print(group_table(evaluated) if by_group else stage_table(evaluated, majority))
    if probed:
        console.print(probe_table(probed))
    listed = "".join(f"{name}: {path}\n" for name, path in products.items())
    listed += f"{config.note}\n" if config.note else ""
    console.print(f"{listed}total: {total:.0f} s", highlight=False, soft_wrap=True)
    if models:
        look = [f"python -m rlhf.look {folder / name}" for name in models if (folder / name / "rollouts").is_dir()]
        say_result(
            folder / "export",
            "model",
            f"python -m model.chat checkpoint={folder}/export image=FILE question=TEXT",
            *look[-1:],
            f"tensorboard --logdir {folder}",
        )


def _probed(results: Sequence[JsonObject]) -> JsonObject:
    """Stage, or folder of another model -> the figures of the probes of the vision tower."""
    found = [(Path(name), figures) for result in results for name, figures in result.get("checkpoints", {}).items()]
    short = Counter(path.parent.name for path, _ in found if path.name == "final")
    return {
        path.parent.name if path.name == "final" and short[path.parent.name] == 1 else str(path): figures
        for path, figures in found
    }


def _run(
    title: str, arguments: Sequence[str], look: Callable[[], None] = lambda: None, launcher: Sequence[str] = ()
) -> None:
    """A Python process with these arguments, or the processes of a launcher. `StageFailed` if it ends with an error.
    `look` is called while it runs.

    SIGTERM is passed on: a stage saves its state and ends. One that does not is killed. Ctrl-C is passed on as SIGTERM,
    and the second one kills the stage. `Terminated` afterwards, whatever the process made of it.
    """
    asked: list[int] = []
    environment = {**os.environ, IN_PIPELINE: "1"}
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in previous:
        signal.signal(number, lambda number, _: asked.append(number))
    try:
        with subprocess.Popen(
            [*(launcher or [sys.executable]), *arguments], env=environment, preexec_fn=_begin_stage
        ) as stage:
            told = 0.0
            while (code := _wait(stage)) is None:
                look()
                if asked and not told:
                    stage.terminate()
                    told = time.monotonic()
                if signal.SIGINT in asked[1:] or (told and time.monotonic() > told + _PATIENCE_SECONDS):
                    stage.kill()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    if asked:
        raise Terminated("Ctrl-C" if asked[0] == signal.SIGINT else "SIGTERM")
    if code:
        raise StageFailed(title, code)


def _begin_stage() -> None:
    """Run in the new process: it ends with the pipeline, and Ctrl-C at the terminal is for the pipeline alone."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _wait(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code, None after a fifth of a second without one."""
    reach("pipeline.wait")
    try:
        return process.wait(0.2)
    except subprocess.TimeoutExpired:
        return None


class StageFailed(RuntimeError):
    """A stage ended with an error, which it has printed itself."""

    def __init__(self, stage: str, exit_code: int) -> None:
        super().__init__(f"{stage} ended with exit code {exit_code}; mend what it says, then run the same command")
        self.exit_code = exit_code if exit_code > 0 else 128 - exit_code


class GateFailed(RuntimeError):
    """A gate stopped the pipeline after a stage."""

    exit_code = 11

    def __init__(self, stage: str, said: str) -> None:
        super().__init__(
            f"stages.{stage}.gates: {said}; later stages did not start. Change the stage, or the gate (otherwise: warn "
            "goes on), then run the same command"
        )


def process_start() -> float:
    """Unix time at which this process started, from the kernel's books where they are to be had."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()


def _read(path: Path) -> JsonObject:
    """The file's content, nothing where it is not there. `ValueError` for a damaged file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(f"{path}: expected a JSON object, found: {error}; delete the file and start again") from None


def _write(path: Path, content: JsonObject) -> None:
    from model.run.durable import write_file

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(content, indent=2).encode())


def main() -> int:
    return launch("pipeline", PipelineConfig, run_pipeline)


if __name__ == "__main__":
    sys.exit(main())
