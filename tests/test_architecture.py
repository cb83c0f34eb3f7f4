"""The rules of the house, read off the syntax trees: who imports whom, what is imported where, how large things are."""

import ast
import fnmatch
import graphlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("model", "sft", "rewards", "rollouts", "rlhf", "curation", "sailvl2_rl", "conf", "examples", "benchmarks")
MAX_FILE, MAX_FUNCTION, MAX_FIELDS, MAX_FOLDER = 500, 100, 15, 24

MAY_IMPORT = {
    "rewards": set(),
    "model": set(),
    "rollouts": {"model"},
    "sft": {"model", "rollouts", "rewards"},
    "rlhf": {"model", "rollouts", "rewards"},
    "curation": {"model", "rollouts", "rewards"},
    "sailvl2_rl": {"model", "sft", "rewards", "rollouts", "rlhf", "curation"},
    "examples": {"model", "rewards"},
    "conf": set(),  # and each package's config.py
}
"""Beside itself. Benchmarks may import anything; nothing imports a benchmark or an example."""

EXCEPTIONS = {
    "rewards.data_rows": {
        "model.data.tables",
        "model.data.jsonl",
        "model.data.raw_rows",
        "model.data.chat_rows",
        "model.data.config",
        "model.data.media_cells",
        "model.data.media_store",
    },
    "rewards.score": {"model.run.durable", "model.run.ends", "model.run.failpoints", "model.run.printable"},
    "rewards.check": {"model.run.durable", "model.run.ends", "model.run.failpoints", "model.run.printable"},
    "rewards.rubric": {"model.run.printable"},
    "conf.cli": {"model.run.ends", "model.run.printable", "model.run.world"},
}
"""One reader of rows serves the commands that score and check, too; it is free of torch. Every command answers SIGTERM
and a full disk alike."""

ENTRY_POINTS = {
    "model.assemble",
    "model.chat.__main__",
    "model.data.convert.__main__",
    "model.describe",
    "model.export",
    "model.pretrain.expert_load",
    "model.pretrain.probe",
    "model.pretrain.train",
    "sft.prepare.__main__",
    "sft.soup",
    "sft.train",
    "rlhf.train",
    "rlhf.evaluate",
    "rlhf.estimate",
    "rlhf.export.__main__",
    "rlhf.pass_at_k",
    "rollouts.generate",
    "rlhf.pipeline",
    "rlhf.report",
    "rlhf.serve.__main__",
    "rlhf.planning.stages",  # the pipeline's: it composes the configs of the stages
    "rlhf.planning.stages_shown",  # the pipeline's: it composes the config of an estimate
}
"""These, and no others, import conf: its cli module."""

FACADES = ("sailvl2_rl",)
"""Packages whose __init__.py gives names out. No other room imports them."""

OPTIONAL = {
    "vllm": ["rollouts/vllm_*.py", "benchmarks/*"],
    "ray": ["rollouts/pool/ray_pool.py", "benchmarks/*"],
    "deepspeed": ["model/engine/deepspeed.py", "benchmarks/*"],
    "trl": ["*/trl_trainer.py", "benchmarks/*"],
    "flash_attn": ["benchmarks/*"],
    "textual": ["rlhf/look/app.py"],
    "wandb": ["model/run/shown/hosted_tracker.py"],
    "trackio": ["model/run/shown/hosted_tracker.py"],
    "jinja2": ["rlhf/reporting/page.py"],
    "playwright": ["benchmarks/report_pictures.py"],
    "pyarrow": ["model/data/columnar.py", "examples/base/corpora.py", "benchmarks/*"],
    "av": ["model/data/video.py", "benchmarks/*"],
    "hydra": ["conf/*"],
    "omegaconf": ["conf/*"],
}
"""Which files may import a library that is optional or kept in one place."""

SUB_ROOMS: dict[str, tuple[str, set[str]]] = {
    # name: (its modules, the sub-rooms that they may import beside their own)
    "model json": ("model.json_values", set()),
    "model types": ("model.interface model.config model.layout", {"model json"}),
    "model batch": ("model.batch model.padded", {"model types"}),
    "model run": ("model.run.*", {"model json"}),
    "model look": (
        "model.data.look",
        {"model json", "model types", "model batch", "model run", "model data", "model processing", "model corpus"}
        | {"model checkpoint"},
    ),
    "model convert": (
        "model.data.convert.*",
        {"model json", "model types", "model batch", "model run", "model data", "model corpus"},
    ),
    "model data": ("model.data.*", {"model json", "model types", "model batch", "model run"}),
    "model processing": (
        "model.processing.*",
        {"model json", "model types", "model batch", "model run", "model data"},
    ),
    "model corpus": (
        "model.corpus.*",
        {"model json", "model types", "model batch", "model run", "model data", "model processing"},
    ),
    "model kernels": ("model.kernels.*", {"model types"}),
    "model network": (
        "model.sail_vl2 model.language model.vision model.projector model.moe model.layers model.logprobs "
        "model.lora.linear model.lora.experts",
        {"model types", "model batch", "model kernels"},
    ),
    "model decoding": ("model.decoding.*", {"model types", "model batch", "model kernels", "model network"}),
    "model checkpoint": (
        "model.checkpoint",
        {"model json", "model types", "model batch", "model run", "model processing", "model network"},
    ),
    "model lora": (
        "model.lora.*",
        {"model json", "model types", "model batch", "model run", "model network"},
    ),
    "model engine": (
        "model.engine.*",
        {
            "model lora",
            "model json",
            "model types",
            "model batch",
            "model run",
            "model processing",
            "model network",
            "model checkpoint",
        },
    ),
    "model supervised": (
        "model.supervised model.held_out",
        {
            "model types",
            "model batch",
            "model run",
            "model network",
            "model lora",
            "model data",
            "model processing",
            "model engine",
        },
    ),
    "rewards base": ("rewards.result rewards.answers rewards.config", set()),
    "rewards mathematics": ("rewards.mathematics.*", {"rewards base"}),
    "rewards verifiers": ("rewards.verifiers.* rewards.sections", {"rewards base", "rewards mathematics"}),
    "rewards functions": (
        "rewards.custom rewards.judge rewards.chat_endpoint rewards.endpoint rewards.http_post rewards.reward_model "
        "rewards.when_to_think rewards.verdicts rewards.judged_answer rewards.measured",
        {"rewards base", "rewards verifiers"},
    ),
    "rewards sandbox": (
        "rewards.sandbox.*",
        {"rewards base", "rewards mathematics", "rewards verifiers", "rewards functions"},
    ),
    "rewards scoring": ("rewards.scoring", {"rewards base", "rewards verifiers", "rewards sandbox"}),
    "rewards rubric": ("rewards.rubric", {"rewards base", "rewards verifiers", "rewards sandbox", "rewards scoring"}),
    "rollouts base": (
        "rollouts.rollout rollouts.routes rollouts.config rollouts.randomness rollouts.records rollouts.intake",
        set(),
    ),
    "rollouts weights": ("rollouts.weights.*", {"rollouts base"}),
    "rollouts samplers": (
        "rollouts.sampler rollouts.sampling rollouts.sampling_kernels rollouts.transit rollouts.decode_batch "
        "rollouts.embedded rollouts.probe rollouts.vllm_*",
        {"rollouts base", "rollouts weights"},
    ),
    "rollouts pool": ("rollouts.pool.*", {"rollouts base", "rollouts weights", "rollouts samplers"}),
    "rlhf reading": ("rlhf.look.entries", set()),
    "rlhf reporting": ("rlhf.reporting.*", {"rlhf reading"}),
    "rlhf algorithms": ("rlhf.algorithms.*", {"rlhf trajectory"}),
    "rlhf trajectory": ("rlhf.trajectory", set()),
}
"""The sub-rooms and the arrows between them. Modules of a room that stand in no sub-room put the others together and
may import them all; no sub-room imports them."""

FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imported_names(node: ast.AST) -> Iterator[str]:
    """Modules that one import statement names; `from a import b` is a.b where that is a module of ours."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        for alias in node.names:
            inner = f"{node.module}.{alias.name}"
            yield inner if inner in MODULES else str(node.module)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def outside_functions(node: ast.AST, with_types: bool) -> Iterator[ast.AST]:
    """Nodes outside function bodies; `with_types` adds what is for the type checker alone and never executed."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if is_type_checking(child) and not with_types:
            continue
        yield child
        yield from outside_functions(child, with_types)


@cache
def all_imports(name: str) -> frozenset[str]:
    return frozenset(target for node in ast.walk(tree(MODULES[name])) for target in imported_names(node))


@cache
def module_level_imports(name: str, with_types: bool = False) -> frozenset[str]:
    nodes = outside_functions(tree(MODULES[name]), with_types)
    return frozenset(target for node in nodes for target in imported_names(node))


def is_package(name: str) -> bool:
    return MODULES[name].name == "__init__.py"


def room(name: str) -> str:
    return name.partition(".")[0]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_reader_sees_every_kind_of_import():
    """If this fails the tests below prove nothing."""
    assert {"rlhf.config", "conf.cli", "sys"} <= module_level_imports("rlhf.train")
    assert "rlhf.stage" in all_imports("rlhf.train") - module_level_imports("rlhf.train")
    assert "rlhf.evaluation.stage" in all_imports("rlhf.evaluate") - module_level_imports("rlhf.evaluate")
    assert "examples.digits.task" in all_imports("examples.digits.write")
    assert len(MODULES) > 50


@pytest.mark.parametrize("name", MODULES)
def test_imports_keep_to_the_table(name):
    if room(name) == "benchmarks":
        return
    wrong = set()
    for target in all_imports(name):
        here, there = room(name), room(target)
        if there not in {*ROOMS, "tests"} or there == here:
            continue
        allowed = there in MAY_IMPORT[here]
        allowed |= here == "conf" and target.endswith(".config")
        allowed |= name in ENTRY_POINTS and target == "conf.cli"
        allowed |= target in EXCEPTIONS.get(name, ())
        if not allowed:
            wrong.add(target)
    assert not wrong, f"{name} must not import {sorted(wrong)}"


def sub_room(name: str) -> str | None:
    for sub, (modules, _) in SUB_ROOMS.items():
        if any(fnmatch.fnmatch(name, pattern) for pattern in modules.split()):
            return sub
    return None


@pytest.mark.parametrize("name", [name for name in MODULES if sub_room(name)])
def test_sub_rooms_keep_to_their_table(name):
    here, wrong = sub_room(name), set()
    assert here is not None
    allowed = {here, *SUB_ROOMS[here][1]}
    for target in all_imports(name):
        is_ours = target in MODULES and room(target) == room(name) and not is_package(target)
        if is_ours and sub_room(target) not in allowed:
            wrong.add(f"{target} ({sub_room(target)})")
    assert not wrong, f"{name} ({here}) must not import {sorted(wrong)}"


def test_every_sub_room_has_modules():
    assert set(SUB_ROOMS) == {sub_room(name) for name in MODULES} - {None}


def test_entry_points_exist():
    assert {name for name in MODULES if "conf.cli" in all_imports(name) and room(name) != "benchmarks"} == ENTRY_POINTS


def test_rewards_know_no_torch():
    users = [name for name in MODULES if room(name) == "rewards" and "torch" in {room(t) for t in all_imports(name)}]
    assert set(users) <= {"rewards.reward_model"}


def test_no_import_cycles_between_modules():
    """Imports for the type checker alone count: two files that need each other's types are one subject."""
    graph = {
        name: {target for target in module_level_imports(name, with_types=True) if target in MODULES}
        for name in MODULES
    }
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("name", [name for name in MODULES if name.endswith("config") or name.startswith("conf.")])
def test_configuration_is_torch_free_transitively(name):
    """So that a bad command line is refused before the heavy imports; packages on the way count as well."""
    reached, waiting = set(), [name]
    while waiting:
        current = waiting.pop()
        reached.add(current)
        if current in MODULES:
            parents = [current.rpartition(".")[0]] if "." in current else []
            waiting += [target for target in {*module_level_imports(current), *parents} if target not in reached]
    heavy = {"torch", "numpy", "transformers", "PIL", "sklearn", "safetensors", "tokenizers", "matplotlib"}
    assert not heavy & {room(target) for target in reached}


@pytest.mark.parametrize("library", OPTIONAL)
def test_library_is_imported_in_its_own_files_only(library):
    users = [relative(MODULES[name]) for name in MODULES if library in {room(target) for target in all_imports(name)}]
    allowed = OPTIONAL[library]
    assert not [path for path in users if not any(fnmatch.fnmatch(path, pattern) for pattern in allowed)]
    assert users or library not in ("hydra", "omegaconf")


@pytest.mark.parametrize("name", MODULES)
def test_no_bare_import_of_a_package(name):
    """`import model` binds a name that every other `model` variable hides."""
    for node in ast.walk(tree(MODULES[name])):
        if isinstance(node, ast.Import):
            assert not [alias.name for alias in node.names if alias.name in ROOMS], f"line {node.lineno}"


class TestSizes:
    @pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=relative)
    def test_file(self, path):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE

    @pytest.mark.parametrize("name", MODULES)
    def test_functions(self, name):
        for node in ast.walk(tree(MODULES[name])):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION, node.name

    @pytest.mark.parametrize("name", MODULES)
    def test_dataclasses(self, name):
        """Fields of base classes in the same module count."""
        classes = {node.name: node for node in ast.walk(tree(MODULES[name])) if isinstance(node, ast.ClassDef)}

        def fields(node: ast.ClassDef) -> set[str]:
            own = {f.target.id for f in node.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)}
            bases = [classes[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in classes]
            return own.union(*map(fields, bases))

        for node in classes.values():
            if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                assert len(fields(node)) <= MAX_FIELDS, node.name


def test_no_folder_is_crowded():
    folders = {path.parent for path in FILES}
    counts = {relative(folder): len([p for p in FILES if p.parent == folder]) for folder in folders}
    assert not {name: count for name, count in counts.items() if count > MAX_FOLDER}


class TestNames:
    def test_every_package_has_an_empty_init(self):
        folders = {parent for path in FILES for parent in path.parents if ROOT in parent.parents}
        assert folders
        for folder in folders:
            init = folder / "__init__.py"
            assert init.exists() and (init.read_bytes() == b"" or folder.name in FACADES), relative(folder)

    def test_tests_are_no_packages(self):
        assert not list((ROOT / "tests").rglob("__init__.py"))

    def test_no_drawers_for_odds_and_ends(self):
        names = {part for name in MODULES for part in name.split(".")}
        assert not names & {"utils", "util", "common", "helpers", "misc"}

    def test_no_module_is_named_like_one_of_the_standard_library(self):
        names = {part for name in MODULES for part in name.split(".")}
        assert not names & (sys.stdlib_module_names - {"__main__"})
