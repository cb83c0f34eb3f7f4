"""Every code block of the documents is run by a test, or read by the program that it calls, or says what it needs.

Read means: the command line is accepted, key by key, without being run. Tests that run blocks are named in `RUN`.
"""

import ast
import importlib
import re
import shlex
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import pytest
import yaml

from conf.cli import load_config
from conf.help import help_text
from conf.schema import ENTRIES, MODULES
from tests.docs.blocks import DOCUMENTS, ROOT, Block, blocks

RUN = {
    "docs/your-own-task.md": "tests/e2e/users/test_your_own_task.py",
    "docs/tutorials/own-algorithm.md": "tests/docs/test_tutorials.py",
    "docs/tutorials/resume.md": "tests/docs/test_tutorials.py",
    "docs/tutorials/cluster.md": "tests/docs/test_tutorials.py",
    "docs/architecture.md": "tests/test_prose.py",
    "examples/geo3k/README.md": "tests/examples/test_geo3k.py",
}
"""Document -> the test that runs its blocks."""
OTHERS = {
    "tensorboard": "a program that comes with the core packages",
    "launch/ray_node.sh": "a script whose text tests/e2e/test_launch.py checks",
    "sbatch": "Slurm's, with the script launch/train.sbatch, whose text tests/e2e/test_launch.py checks",
}
"""Programs of others, which are not called here -> why."""
OTHER_YAML = ("benchmarks.md",)
"""Documents whose blocks of YAML are no settings of a command: a benchmark of one's own."""
ROOMS = ("model", "sft", "rewards", "rollouts", "rlhf")
PLACEHOLDERS = re.compile(r"\.\.\.")
ENTRY = {module: entry for entry, module in MODULES.items()}


def accept(words: Sequence[str], block: Block) -> None:
    """`ValueError` for a command that no test runs and no program of ours accepts."""
    program = words[0].rpartition(".venv/bin/")[2]
    if program == "make":
        accept_make(words[1:])
    elif program in ("python", "torchrun") and "-m" in words:
        at = words.index("-m")
        accept_module(words[at + 1], words[at + 2 :])
    elif program == "python" and block.document.relative_to(ROOT).as_posix() in RUN:
        pass  # a script of the page, which that test runs
    elif program not in OTHERS:
        raise ValueError(f"{shlex.join(words)}: no program that this test knows; say what it needs in front of it")


def accept_module(module: str, arguments: Sequence[str]) -> None:
    if arguments and f"{module} {arguments[0]}" in ENTRY:
        compose(ENTRY[f"{module} {arguments[0]}"], arguments[1:])
    elif module in ENTRY:
        compose(ENTRY[module], arguments)
    elif read := parser_of(module):
        try:
            read([PLACEHOLDERS.sub("x", word) for word in arguments])
        except SystemExit as end:
            raise ValueError(f"{module} {shlex.join(arguments)}: refused") from end
    elif module.partition(".")[0] in ("benchmarks", "examples"):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    elif module.partition(".")[0] not in ("vllm",):
        raise ValueError(f"{module}: no command of ours")


def parser_of(module: str) -> Callable[[list[str]], object] | None:
    """The function of a command of ours that reads its arguments by argparse; None for any other module."""
    if module.partition(".")[0] not in ROOMS:
        return None
    home = importlib.import_module(f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module)
    if hasattr(home, "parse"):
        return home.parse
    if hasattr(home, "_parser"):
        return home._parser().parse_args
    return partial(names_options, Path(str(home.__file__))) if hasattr(home, "main") else None


def names_options(file: Path, arguments: list[str]) -> None:
    """`ValueError` for an option that a command does not name, where its parser cannot be had without running it."""
    text = file.read_text(encoding="utf-8")
    for option in (word.partition("=")[0] for word in arguments if word.startswith("-")):
        if f'"{option}"' not in text:
            raise ValueError(f"{option}: no option of {file.name}")


def compose(entry: str, arguments: Sequence[str]) -> None:
    """Compose a command's settings. A path that is a placeholder is a path; a recipe of the reader's is left out."""
    given = [word for word in arguments if not re.match(r"recipe=(my/|NAME)", word)]
    if len(given) < len(arguments) and entry == "pipeline":
        given = ["recipe=quickstart", *given]
    if given and "=" not in given[0] and entry == "convert":
        given[0] = f"dataset={given[0]}"
    load_config(entry, [word for word in given if word != "..."])


def accept_make(words: Sequence[str]) -> None:
    targets = re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert words[0] in targets, f"make {words[0]}"
    for word in words[1:]:
        name, _, value = word.partition("=")
        if name == "ARGS" and words[0] == "quickstart":
            compose("pipeline", ["recipe=quickstart", *shlex.split(value)])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
class TestBlocks:
    def test_commands_are_accepted(self, document):
        refused = []
        for block in blocks(document):
            for words in block.commands() if block.is_shell else []:
                try:
                    accept(words, block)
                except (ValueError, AssertionError) as error:
                    refused.append(f"{block.where}: {error}")
        assert not refused, "\n".join(refused)

    def test_python_parses_and_imports_what_exists(self, document):
        for block in blocks(document):
            if block.language != "python":
                continue
            for node in ast.walk(ast.parse(block.text)):
                if isinstance(node, ast.ImportFrom) and (ROOT / str(node.module).partition(".")[0]).is_dir():
                    module = importlib.import_module(str(node.module))
                    assert all(hasattr(module, alias.name) for alias in node.names), block.where

    def test_yaml_sets_keys_that_exist(self, document):
        for block in blocks(document):
            if block.language == "yaml" and document.name not in OTHER_YAML:
                content = yaml.safe_load(block.text)
                assert isinstance(content, dict), block.where
                unknown = set(content) - {key.partition(".")[0] for key in keys()[0]} - {"options"}
                assert not unknown, f"{block.where}: {unknown}"

    def test_keys_in_backticks_exist(self, document):
        """A dotted name that begins with a section of the settings is a key, or a module that exists."""
        known, free = keys()
        sections = {key.partition(".")[0] for key in known if "." in key}
        missing = []
        for number, span in spans(document):
            for word in span.split():
                key = word.strip("'\"[](),;").partition("=")[0].removesuffix(".*")
                if not re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", key) or key.partition(".")[0] not in sections:
                    continue
                above = [".".join(key.split(".")[:end]) for end in range(1, key.count(".") + 1)]
                is_module = (ROOT / key.replace(".", "/")).exists() or (ROOT / f"{key.replace('.', '/')}.py").exists()
                is_file = re.search(r"\.(jsonl?|yaml|png|parquet|tsv|html)$", key)
                if not (key in known or free.intersection(above) or is_module or is_file):
                    missing.append(f"line {number}: {word}")
        assert not missing


@cache
def keys() -> tuple[frozenset[str], frozenset[str]]:
    """(all keys and sections of all commands, those whose own keys are free)."""
    text = "\n".join(help_text(entry, schema, {}) for entry, schema in ENTRIES.items())
    pairs = re.findall(r"^\s+([a-z_0-9]+(?:\.[a-z_0-9]+)*): (\S+)", text, re.MULTILINE)
    found = {key for key, _ in pairs}
    sections = {".".join(key.split(".")[:end]) for key in found for end in range(1, key.count(".") + 1)}
    return frozenset(found | sections), frozenset(key for key, kind in pairs if kind.startswith("dict"))


def spans(document: Path) -> list[tuple[int, str]]:
    """(line, text) in backticks outside of blocks."""
    text = re.sub(r"^```.*?^```", lambda b: "\n" * b[0].count("\n"), document.read_text("utf-8"), flags=re.M | re.S)
    return [(n, span) for n, line in enumerate(text.splitlines(), 1) for span in re.findall(r"`([^`]+)`", line)]


def test_a_test_that_runs_blocks_names_its_document():
    for document, test in RUN.items():
        name = document.rpartition("/")[2].removesuffix(".md")
        assert any(one in (ROOT / test).read_text(encoding="utf-8") for one in (document, name, document.split("/")[1]))


def test_marks_in_front_of_blocks_say_what_is_missing_here():
    needs = {block.needs for document in DOCUMENTS for block in blocks(document)} - {""}
    assert needs <= {"a GPU", "a cluster", "a model of yours"}


class TestTheReader:
    """If these fail the tests above prove nothing."""

    def block(self, text: str, language: str = "bash") -> Block:
        return Block(ROOT / "README.md", 1, language, text)

    @pytest.mark.parametrize(
        "command",
        [
            "python -m rlhf.train checkpoint=DIR prompts=FILE trainer.max_stps=1",
            "torchrun --nproc-per-node=2 -m sft.train checkpoint=c data.demonstrations=d engin=fsdp",
            "make nothing",
            'make quickstart ARGS="no.key=1"',
            "rm -rf /",
            "python -m rlhf.look runs/x --stepp 1",
            "python -m model.data.convert geometri3k source=a out=b",
            "python -m sft.prepare longcot rows=[a] out=b overlap=1",
            "python -m no.module x=1",
            "python -m rlhf.nothing x=1",
        ],
    )
    def test_wrong_commands_are_seen(self, command):
        [words] = self.block(command).commands()
        with pytest.raises((ValueError, AssertionError, ModuleNotFoundError)):
            accept(words, self.block(command))

    def test_lines_and_marks_are_read(self, tmp_path):
        path = tmp_path / "a.md"
        path.write_text("<!-- needs a GPU -->\n```bash\nA=1 x \\\n  y # z\npython - <<'EOF'\nno command\nEOF\n```\n")
        [block] = blocks(path)
        assert (block.needs, block.line) == ("a GPU", 2)
        assert list(block.commands()) == [["x", "y"], ["python", "-"]]
