"""Rules of the house for prose, as far as a program can see them, and that documents name only things that exist."""

import ast
import io
import re
import runpy
import shlex
import subprocess
import sys
import tokenize
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("model", "sft", "rewards", "rollouts", "rlhf", "curation", "sailvl2_rl", "conf", "examples", "benchmarks")
CODE = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts)
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "DESIGN.md")),
    ROOT / "examples" / "geo3k" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
LOGS = ("DESIGN.md",)
"""Entries of a log keep the names of their day, so names of files, modules and keys are not looked up there."""

LONGEST_LINE = 160
HEADLESS = re.compile(r"(of|what|whose|whoever|for others)\b", re.IGNORECASE)
"""A comment that begins so has no subject, or is the end of a sentence that stands elsewhere."""

SECTIONS = ("algorithm", "trainer", "rollouts", "reward", "data", "engine", "optimizer", "evaluation", "run", "report")
"""Sections of the configuration: a dotted name that begins with one of them is a key."""

RESERVED = ("model/engine/deepspeed.py",)
"""The architecture tables, which documents show, may name these files before they exist."""

SUFFIXES = ("py", "sh", "sbatch", "yaml", "md", "toml")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def comments(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every comment, and of every docstring of a module, class, function or field."""
    text = path.read_text(encoding="utf-8")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string.lstrip("#!").strip()
    for node in ast.walk(ast.parse(text)):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(docstring))):
                    yield statement.lineno, docstring.strip()


def prose_lines(document: Path) -> Iterator[tuple[int, str]]:
    """(number, line) outside code blocks."""
    in_code = False
    for number, line in enumerate(document.read_text(encoding="utf-8").split("\n"), 1):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        elif not in_code:
            yield number, line


def code_spans(document: Path) -> Iterator[tuple[int, str]]:
    for number, line in prose_lines(document):
        yield from ((number, span) for span in re.findall(r"`([^`]+)`", line))


def links(document: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, text, target) of every link that stays in the repository."""
    for number, line in prose_lines(document):
        for text, target in re.findall(r"\[([^\]]+)\]\(([^)\s]+)\)", line):
            if "://" not in target:
                yield number, text, target


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names that a module defines: at its top, and `Class.member`."""
    found: set[str] = set()

    def define(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                define(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found.update(prefix + target.id for target in targets if isinstance(target, ast.Name))

    define(ast.parse(path.read_text(encoding="utf-8")).body, "")
    return frozenset(found)


def module_exists(name: str) -> bool:
    """A package, a module, or something that a module defines."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:end])
        if path.is_dir() and end == len(parts):
            return True
        if path.with_suffix(".py").is_file():
            return end == len(parts) or ".".join(parts[end:]) in names_in(path.with_suffix(".py"))
    return False


@cache
def keys() -> frozenset[str]:
    """Every key and section of every entry point's configuration, by the names that overrides use."""
    from conf.help import help_text
    from conf.schema import ENTRIES

    text = "\n".join(help_text(entry, schema, {}) for entry, schema in ENTRIES.items())
    found = set(re.findall(r"^\s+([a-z_0-9]+(?:\.[a-z_0-9]+)*): ", text, re.MULTILINE))
    return frozenset(found | {key.rpartition(".")[0] for key in found})


def commands(document: Path) -> Iterator[str]:
    """Lines of code blocks, and code spans, that run Python modules; lines that end in a backslash are joined."""
    text = document.read_text(encoding="utf-8")
    for block in re.findall(r"```[a-z]*\n(.*?)```", text, re.DOTALL):
        yield from (line for line in block.replace("\\\n", " ").split("\n") if "python -m " in line)
    yield from (span for _, span in code_spans(document) if "python -m " in span)


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_comments_are_whole_sentences(path):
    assert not [f"line {line}: {text[:60]}" for line, text in comments(path) if HEADLESS.match(text)]


def test_the_reader_sees_comments_and_docstrings():
    """If this fails the test above proves nothing."""
    found = [text for _, text in comments(ROOT / "model" / "batch.py")]
    assert any(text.startswith("Packed token rows") for text in found)  # the module's
    assert any(text.startswith("One prefix and the completions") for text in found)  # a class's
    assert any(text.startswith("at least one, none empty") for text in found)  # a comment behind code
    found = [text for _, text in comments(ROOT / "model" / "engine" / "config.py")]
    assert any(text.startswith("AdamW beta 1") for text in found)  # a field's


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
class TestDocuments:
    def test_lines_can_be_read_in_a_diff(self, document):
        """Rows of tables cannot be broken; everything else can."""
        lines = [number for number, line in prose_lines(document) if len(line) > LONGEST_LINE and line[:1] != "|"]
        assert not lines, f"lines {lines} have more than {LONGEST_LINE} characters"

    def test_links_lead_somewhere(self, document):
        """A link to a Python file whose text is a name in backticks promises that the file defines this name."""
        broken = []
        for number, text, target in links(document):
            name, _, anchor = target.partition("#")
            path = (document.parent / name).resolve() if name else document
            if not path.exists():
                broken.append(f"line {number}: {target}")
            elif path.suffix == ".py" and (symbol := re.fullmatch(r"`([A-Za-z_][\w.]*)`", text)):
                if symbol[1] not in names_in(path):
                    broken.append(f"line {number}: {name} defines no {symbol[1]}")
            elif path.suffix == ".md" and anchor and anchor not in anchors(path):
                broken.append(f"line {number}: {target}: no such heading")
        assert not broken

    def test_files_and_modules_exist(self, document):
        if relative(document) in LOGS:
            return
        missing = []
        for number, span in code_spans(document):
            is_path = re.fullmatch(rf"[\w.-]+(/[\w.-]+)+\.({'|'.join(SUFFIXES)})", span)
            if f"{span.removesuffix('.py').replace('.', '/')}.py" in RESERVED:
                continue
            if is_path and not (ROOT / span).exists():
                missing.append(f"line {number}: {span}")
            name = span.partition("(")[0]
            is_module = re.fullmatch(r"[a-z_0-9]+(\.\w+)+", name) and name.partition(".")[0] in ROOMS
            is_module = is_module and name.rpartition(".")[2] not in (*SUFFIXES, "safetensors")
            if is_module and not is_path and not (module_exists(name) or name in keys()):
                missing.append(f"line {number}: {span}")
        drawn = re.findall(rf"(?<![\w/])((?:{'|'.join(ROOMS)})/[\w/]+\.py)\b", document.read_text(encoding="utf-8"))
        missing += [path for path in drawn if path not in RESERVED and not (ROOT / path).exists()]
        assert not missing

    def test_keys_exist(self, document):
        if relative(document) in LOGS:
            return
        unknown = []
        for number, span in code_spans(document):
            for word in span.split():
                key = word.partition("=")[0].rstrip(",").removesuffix(".*")
                is_key = re.fullmatch(r"[a-z_]+(\.[a-z_0-9]+)+", key) and key.partition(".")[0] in SECTIONS
                if is_key and not any(parent in keys() for parent in (key, key.rpartition(".")[0])):
                    unknown.append(f"line {number}: {key}")
        assert not [text for text in unknown if not names_a_file_of_a_run(text)]

    def test_commands_name_modules_that_exist(self, document):
        modules = {module for command in commands(document) for module in re.findall(r"-m ([\w.]+)", command)}
        assert not [name for name in modules if name.partition(".")[0] in ROOMS and not module_exists(name)]

    def test_commands_in_sentences_compose(self, document):
        """They are accepted, key by key, by the entry point that they call; `tests/docs` looks at code blocks."""
        from conf.cli import load_config
        from conf.schema import MODULES

        entries = {module: entry for entry, module in MODULES.items()}
        for command in (span for _, span in code_spans(document) if "python -m " in span):
            words = shlex.split(command.split("python -m ", 1)[1])
            overrides = [word for word in words[1:] if "=" in word and "[" not in word.partition("=")[0]]
            if words[0] in entries and overrides and not re.search(r"\bFILE\b|\.\.\.|recipe=my/|recipe=NAME", command):
                refused = refusal(lambda entry=entries[words[0]], given=overrides: load_config(entry, given))
                assert not refused, f"{command}: {refused}"


def refusal(load) -> str:
    """Why a command is refused, unless it is a fragment that leaves out a path."""
    try:
        load()
    except ValueError as error:
        return "" if "found nothing" in str(error) or "found none" in str(error) else str(error)
    return ""


def names_a_file_of_a_run(text: str) -> bool:
    return text.endswith((".jsonl", ".json", ".yaml", ".png"))


@cache
def anchors(document: Path) -> frozenset[str]:
    """The names by which headings are linked to."""
    titles = [line.lstrip("#").strip() for _, line in prose_lines(document) if line.startswith("#")]
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)


def tree() -> str:
    """The files of the product by folder, each with the first sentence of its docstring."""
    lines = []
    for folder in sorted({path.parent for path in CODE if path.relative_to(ROOT).parts[0] != "benchmarks"}):
        files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
        if files:
            lines.append(f"{relative(folder)}/")
        lines += [f"  {path.name:<22} {first_sentence(path)}" for path in files]
    return "\n".join(lines) + "\n"


def first_sentence(path: Path) -> str:
    """The docstring's, without the command that an entry point shows; one that is too long ends at a comma or colon."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    sentence = re.split(r"(?<=\w[.])\s|: `python -m", paragraph)[0].rstrip(".")
    if len(sentence) > 100:
        sentence = re.split(r"[:;,] [^:;,]*$", sentence[:100])[0]
    return sentence


def test_every_benchmark_is_in_the_list():
    listed = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    commands = [path for path in (ROOT / "benchmarks").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert commands
    assert not [path.stem for path in commands if f"`python -m benchmarks.{path.stem}" not in listed]


@cache
def rules() -> dict[str, Any]:
    """The tables of tests/test_architecture.py."""
    return runpy.run_path(str(ROOT / "tests" / "test_architecture.py"))


def table_of_rooms() -> str:
    extra = {"conf": {"each room's config"}}
    rows = rules()["MAY_IMPORT"].items()
    return "".join(f"| `{room}` | {listed(allowed | extra.get(room, set()))} |\n" for room, allowed in rows)


def table_of_sub_rooms() -> str:
    rows = rules()["SUB_ROOMS"].items()
    return "".join(f"| {name} | {listed(files.split())} | {listed(allowed)} |\n" for name, (files, allowed) in rows)


def table_of_libraries() -> str:
    return "".join(f"| `{library}` | {listed(files)} |\n" for library, files in sorted(rules()["OPTIONAL"].items()))


def table_of_benchmarks() -> str:
    from rlhf.evaluation.benchmarks import catalogue

    cells = [
        (one.name, f"{one.file}.tsv", one.rule, one.score, one.judge.value, str(one.tiles), one.proven)
        for one in catalogue().benchmarks.values()
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)


def listed(names: Iterable[str]) -> str:
    """Names of code in backticks, in the order of a list or sorted."""
    ordered = names if isinstance(names, list) else sorted(names)
    quoted = [f"`{name}`" if name in ROOMS or re.search(r"[./*]", name) else name for name in ordered]
    return ", ".join(quoted) or "nothing"


TABLE = r"(\| {} \|[^\n]*\n\|---[^\n]*\n)((?:\|[^\n]*\n)*)"
GENERATED: dict[str, tuple[str, str, Callable[[], str]]] = {
    "files": ("README.md", r"(## Find your way\n.*?```text\n)(.*?)(?=```)", tree),
    "rooms": ("docs/architecture.md", TABLE.format("room"), table_of_rooms),
    "sub-rooms": ("docs/architecture.md", TABLE.format("sub-room"), table_of_sub_rooms),
    "benchmarks": ("docs/benchmarks.md", TABLE.format("name"), table_of_benchmarks),
    "libraries": ("docs/architecture.md", TABLE.format("library"), table_of_libraries),
}
"""Parts of documents that a program writes: the document, a pattern whose second group is the part, its maker."""


@pytest.mark.parametrize("part", GENERATED)
def test_generated_parts_are_up_to_date(part):
    document, pattern, make = GENERATED[part]
    found = re.search(pattern, (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    assert found[2] == make(), "run `python tests/test_prose.py`, which writes this part anew"


def write_generated_parts() -> None:
    for document, pattern, make in GENERATED.values():
        path = ROOT / document
        found = re.search(pattern, text := path.read_text(encoding="utf-8"), re.DOTALL)
        assert found is not None
        path.write_text(text[: found.start(2)] + make() + text[found.end(2) :], encoding="utf-8")


def test_the_recipe_in_the_documents_is_planned(tmp_path):
    """docs/pipeline.md: every stage's and evaluation's command line composes."""
    from conf.cli import load_config
    from rlhf.planning.stages import plan

    text = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)[0])
    config, _ = load_config("pipeline", [f"recipe={tmp_path / 'mine.yaml'}"])
    stages, evaluations = plan(config)
    assert [stage.name for stage in stages] == ["longcot_sft", "rl", "think_fusion"]
    assert list(evaluations) == ["rl", "think_fusion"]


def test_the_worked_example_prints_what_it_shows(tmp_path):
    """docs/architecture.md: its script runs and prints its output, fractions to within the rounding of other CPUs."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    script = re.search(r"python - <<'EOF'\n(.*?)\nEOF\n", text, re.DOTALL)
    shown = re.search(r"It prints\n\n```text\n(.*?)```", text, re.DOTALL)
    assert script is not None and shown is not None
    done = subprocess.run([sys.executable, "-"], input=script[1], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    number = r"-?\d+(?:\.\d+)?"
    assert re.split(number, done.stdout.strip()) == re.split(number, shown[1].strip())
    for found, expected in zip(re.findall(number, done.stdout), re.findall(number, shown[1]), strict=True):
        # Printed with three decimals: half a unit of rounding on each side, and as much again for sums in float32.
        assert abs(float(found) - float(expected)) <= (0.002 if "." in expected else 0), (found, expected)


if __name__ == "__main__":
    write_generated_parts()
