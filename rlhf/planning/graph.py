"""The graph of a pipeline: which stages are done as they would be now, and which have to run again, and why.

A stage is known by its command line, the content of the files that it reads from outside, and the content of what
earlier stages wrote for it. A stage that runs again and writes what it wrote before makes no later stage run again.
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from model.json_values import JsonObject, read_json_object
from model.run.identity import outside_keys
from model.run.printable import override
from rlhf.config import PipelineAction, PipelineConfig
from rlhf.planning.stages import RECIPE, StagePlan, digests_of, launcher_of

RECORDS, SUPERSEDED = "graph", "superseded"
"""Folders of a pipeline: what each stage was made from, and what stages wrote that have run again since."""

_GROWS = ("max_steps", "trainer.max_steps", "epochs", "run.extend")
"""Keys that may grow in a run's folder; the stage itself says whether it goes on with them."""


class State(Enum):
    """How far a stage, or an evaluation, has come."""

    done = "done"
    to_do = "to do"
    interrupted = "begun, and not at its end"
    changed = "runs again"
    follows = "runs again if that changes what it reads"


@dataclass(frozen=True)
class Node:
    """One process of the graph: a stage, or the evaluation after it."""

    plan: StagePlan
    title: str
    record: Path
    product: Path  # there once the process is done
    is_evaluation: bool = False


@dataclass(frozen=True)
class MadeFrom:
    """The things that a process is known by."""

    command: list[str]  # arguments without the places of folders
    inputs: dict[str, str]  # key -> checksum of a file or folder that no stage writes
    reads: dict[str, str]  # path below run.dir -> checksum of what an earlier stage wrote there; empty: not there


@dataclass(frozen=True)
class Outlook:
    """The state of a process, and why it would run."""

    node: Node
    state: State
    reasons: list[str]


class Graph:
    """The processes of a pipeline in their order, with the records that are kept in `run.dir/graph`."""

    def __init__(
        self, config: PipelineConfig, stages: Sequence[StagePlan], evaluations: Mapping[str, StagePlan]
    ) -> None:
        self._config = config
        self._folder = Path(config.run.dir)
        self._names = [stage.name for stage in stages]
        self.nodes = [node for stage in stages for node in self._nodes_of(stage, evaluations.get(stage.name))]

    def _nodes_of(self, stage: StagePlan, evaluation: StagePlan | None) -> Iterator[Node]:
        records, results = self._folder / RECORDS, self._folder / "evaluations"
        yield Node(stage, f"stage {stage.name}", records / f"{stage.name}.json", stage.product(self._folder))
        if evaluation:
            result = results / f"{stage.name}.json"
            record = records / f"{stage.name}.evaluation.json"
            yield Node(evaluation, f"evaluation of stage {stage.name}", record, result, is_evaluation=True)

    def by_stage(self) -> list[list[Node]]:
        """Each stage with the evaluation after it, where it has one."""
        return [[node for node in self.nodes if node.plan.name == name] for name in self._names]

    def launcher(self, node: Node) -> list[str]:
        """The command in front of a process that trains on several devices; empty: it is one process."""
        return launcher_of(self._config, node.plan)

    def outlooks(self) -> list[Outlook]:
        """Tell for each process how far it is, and why it would run. Nothing is written."""
        found: list[Outlook] = []
        moving: set[str] = set()  # stages that will run
        for node in self.nodes:
            one = self._outlook(node, moving)
            if one.state is not State.done and not node.is_evaluation:
                moving.add(node.plan.name)
            found.append(one)
        return found

    def _outlook(self, node: Node, moving: Collection[str]) -> Outlook:
        before = self.record(node)
        if not before:
            return Outlook(node, State.to_do, [])
        reasons = self.changes(node)
        waits = sorted({path.partition("/")[0] for path in node.plan.reads} & set(moving))
        if before.get("state") != "finished":
            return Outlook(node, State.interrupted, reasons)
        if reasons:
            return Outlook(node, State.changed, reasons)
        if not node.product.exists():
            return Outlook(node, State.to_do, [f"{node.product} is gone"])
        return Outlook(node, State.follows, waits) if waits else Outlook(node, State.done, [])

    def record(self, node: Node) -> JsonObject:
        """The kept record of a process; empty before it was started. `ValueError` for a file that cannot be read."""
        try:
            return read_json_object(node.record)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{node.record}: expected the record of {node.title}, found: {error}; delete the file to run it again"
            ) from None

    def made_from(self, node: Node) -> MadeFrom:
        reads = {path: _digest(self._folder / path) for path in sorted(node.plan.reads)}
        return MadeFrom(without_places(self._config, node.plan.command), digests_of(node.plan), reads)

    def changes(self, node: Node) -> list[str]:
        """Why a process that was started before would now be another one; empty where it would be the same."""
        before, now = self.record(node), self.made_from(node)
        inputs = [key for key, digest in _all(before, "inputs") if now.inputs.get(key, digest) != digest]
        reads = [path for path, digest in _all(before, "reads") if now.reads.get(path) != digest]
        found = [f"{name} has other content" for name in (*inputs, *reads)]
        if differing := _differing(node, before, now):
            found.append(f"other settings: {', '.join(differing)}")
        return found

    def check_changes(self) -> None:
        """`ValueError` for a finished process that would be another one now, where the config asks to refuse that."""
        if self._config.action is not PipelineAction.resume:
            return
        for one in self.outlooks():
            if one.state is State.changed:
                raise ValueError(
                    f"{one.node.title}: {self._folder} holds its result, and it would now be another one: "
                    f"{'; '.join(one.reasons)}. Use what it was made from, choose another run.dir, or let it and what "
                    "depends on it run again with action=run"
                )

    def begin(self, node: Node) -> bool:
        """Whether a process has to run now; a record of what it is made from is written before.

        What it wrote when it was another one moves to `run.dir/superseded`; a run that may grow goes on instead.
        """
        before = self.record(node)
        changes = self.changes(node) if before else []
        is_finished = before.get("state") == "finished" and node.product.exists()
        if is_finished and not changes:
            return False
        now = self.made_from(node)
        is_unknown = not before and node.plan.is_merge and node.product.exists()  # nothing says of which
        if is_unknown or (changes and not self._goes_on(node, before, now)):
            changes = changes or ["no record says what it was made from"]
            moved = self._supersede(node)
            print(
                f"== {node.title} runs again: {'; '.join(changes)}{f'; earlier: {moved}' if moved else ''}", flush=True
            )
        _write(node.record, {"state": "started", **asdict(now)})
        return True

    def finish(self, node: Node, **noted: object) -> None:
        """Note that a process is done, and what else is known about it, such as its seconds."""
        _write(node.record, {**self.record(node), "state": "finished", **noted})

    def note(self, node: Node, **noted: object) -> None:
        """Add to the record of a process."""
        _write(node.record, {**self.record(node), **noted})

    def _goes_on(self, node: Node, before: JsonObject, now: MadeFrom) -> bool:
        """Whether the stage itself decides what becomes of other settings: they are all that changed, and the run is
        not finished, or only gets more steps."""
        given = {key: digest for key, digest in _all(before, "inputs") if key != RECIPE}  # a recipe holds settings
        others = {key: digest for key, digest in now.inputs.items() if key != RECIPE}
        same_files = given == others and before.get("reads") == now.reads
        if same_files and node.plan.entry == "pass_at_k":  # it keeps the samples that stay what they are
            return True
        if not same_files or not node.plan.has_run or node.is_evaluation:
            return False
        keys = {argument.partition("=")[0] for argument in _differing(node, before, now)}
        is_recipe_same = now.inputs.get(RECIPE) == before.get("inputs", {}).get(RECIPE, now.inputs.get(RECIPE))
        return before.get("state") != "finished" or (is_recipe_same and keys <= set(_GROWS))

    def _supersede(self, node: Node) -> str:
        """Move what a process wrote out of the way. Returns where it is now, empty where there was nothing."""
        name = node.plan.name
        endings = (".json", ".answers.jsonl", ".media", ".responses")
        found = [self._folder / "evaluations" / f"{name}{ending}" for ending in endings]
        if node.plan.writes_folder and not node.is_evaluation:
            found = [self._folder / name]
        found = [path for path in found if path.exists()]
        if not found:
            return ""
        for path in node.plan.files.values():
            if any(path.resolve().is_relative_to(one.resolve()) for one in found):
                raise ValueError(
                    f"{node.title}: it has to run again, but {path}, which it reads, lies in what it wrote; put the "
                    "input elsewhere, or choose another run.dir"
                )
        places = (self._folder / SUPERSEDED / f"{node.record.stem}-{number}" for number in range(1, 1 << 20))
        place = next(path for path in places if not path.exists())
        place.mkdir(parents=True)
        for path in found:
            os.replace(path, place / path.name)
        return str(place)


def without_places(config: PipelineConfig, command: Sequence[str]) -> list[str]:
    """A command line as it is wherever the pipeline's folders lie."""
    places = {config.run.dir: "{run.dir}", config.data: "{data}", config.base: "{base}"}
    found = list(command)
    for place in sorted(filter(None, places), key=len, reverse=True):
        # It has to be a value, as it is or within quotation marks, and not part of a word.
        plain, quoted = str(Path(place)), override("", Path(place))[2:-1]
        path = re.compile(rf"(?<=['\"=\[,])(?:{re.escape(quoted)}|{re.escape(plain)})(?=['\"/\],]|$)")
        found = [path.sub(lambda _, name=places[place]: name, argument) for argument in found]
    return found


def outlook_lines(graph: Graph) -> list[str]:
    """The lines for a person of `action=status`: each process, how far it is, its seconds and what its gates said."""
    outlooks = graph.outlooks()
    width = max(len(one.node.title) for one in outlooks)
    lines: list[str] = []
    for one in outlooks:
        record = graph.record(one.node)
        seconds = record.get("seconds")
        took = f" in {seconds:.0f} s" if one.state is State.done and isinstance(seconds, int | float) else ""
        why = f" ({'; '.join(one.reasons)})" if one.reasons else ""
        lines.append(f"{one.node.title:{width}}  {one.state.value}{took}{why}")
        lines += [f"{'':{width}}  gate: {said}" for said in record.get("gates", [])]
    return lines


def said_first(outlooks: Sequence[Outlook], folder: Path) -> list[str]:
    """The lines that tell, before anything starts, what of an earlier call will run again; none where nothing will."""
    again = [one for one in outlooks if one.state is State.changed]
    if not again:
        return []
    lines = [f"== {one.node.title} will run again: {'; '.join(one.reasons)}" for one in again]
    follow = [one.node.title for one in outlooks if one.state is State.follows]
    if follow:
        lines.append(f"== these follow where what they read changes: {', '.join(follow)}")
    return [*lines, f"== what they wrote before moves to {folder / SUPERSEDED}; nothing else runs again"]


def _all(record: JsonObject, key: str) -> list[tuple[str, str]]:
    found = record.get(key)
    return list(found.items()) if isinstance(found, dict) else []


def _differing(node: Node, before: JsonObject, now: MadeFrom) -> list[str]:
    """Arguments that hold in one of two command lines: the last one of each key, less those that change no number."""
    ignored = _without_effect(node.plan)

    def holding(command: Sequence[str]) -> set[str]:
        last = {argument.partition("=")[0].lstrip("+"): argument for argument in command}
        return {argument for key, argument in last.items() if not any(f"{key}.".startswith(one) for one in ignored)}

    earlier, present = holding(before.get("command", [])), holding(now.command)
    return sorted({one for one in earlier - present if not one.startswith("run.start=")} | (present - earlier))


def _without_effect(plan: StagePlan) -> tuple[str, ...]:
    """The heads of the keys of a stage that are no part of what its run is, and name nothing that it reads."""
    if not plan.has_run:
        return ()
    keys = {key for key in outside_keys(plan.config) if not isinstance(_value(plan.config, key), str | list)}
    return tuple(f"{key}." for key in (keys | {"run.accept_changes", "run.trackers"}) - {"run.start"})


def _value(config: object, key: str) -> object:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
    return config


def _digest(path: Path) -> str:
    """A checksum of what an earlier stage wrote; empty where it is not there (yet)."""
    from model.run.identity import digest_of_files

    return digest_of_files([path]) if path.exists() else ""


def _write(path: Path, record: Mapping[str, object]) -> None:
    from model.run.durable import write_file

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(record, indent=2).encode())
