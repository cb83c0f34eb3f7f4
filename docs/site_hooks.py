"""What mkdocs does before it builds the site: pages from the configuration, and pages that stand outside of docs/.

Documents of the repository link to files beside them, so that they can be read without the site. Here those links are
turned to pages of the site, or to copies of the files. The reference of the settings is made from the schemas.
"""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OUTSIDE = (
    *("README.md", "CONTRIBUTING.md", "DESIGN.md", "LICENSE"),
    *("benchmarks/README.md", "benchmarks/RESULTS.md", "examples/geo3k/README.md"),
)
"""Documents that are pages of the site, below `project/`."""
COPIES = "files"
"""The folder of the site that holds copies of the files that documents link to."""
COMMANDS = "reference/settings"
_LINK = re.compile(r"(\[(?:[^\]`]|`[^`]*`)+\]\()([^)\s]+)(\))")
_FENCE = re.compile(r"^( *)(```+|~~~+)")

_ALGORITHMS = ("algorithm", "advantages", "filters", "losses")
DOCSTRINGS = {
    "library": ("The library", ["sailvl2_rl.sampling", "sailvl2_rl.judging", "model.interface"]),
    "rewards": ("Rewards", ["rewards.result", "rewards.config", "rewards.rubric", "rewards.verifiers.verifier"]),
    "model": ("Model and data", ["model.checkpoint", "model.processing.processor", "model.batch", "model.data.tables"]),
    "engine": ("Engines", ["model.engine.base", "model.layout"]),
    "rollouts": ("Samplers", ["rollouts.rollout", "rollouts.records"]),
    "rlhf": ("The loop", ["rlhf.trajectory", "rlhf.trainer"]),
    "algorithms": ("Algorithms", [f"rlhf.algorithms.{name}" for name in _ALGORITHMS]),
}
"""Page of the reference -> its title and the modules whose docstrings it shows."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts of the navigation whose pages are made here."""
    from conf.schema import ENTRIES

    made = {
        "Settings by command": [f"{COMMANDS}/{entry}.md" for entry in ENTRIES],
        "Docstrings": [f"reference/{name}.md" for name in DOCSTRINGS],
    }
    for part in config.nav or []:
        for items in part.values():
            for item in items if isinstance(items, list) else []:
                if isinstance(item, dict):
                    item.update({title: pages for title, pages in made.items() if title in item})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and copies of the files that documents link to."""
    for name in OUTSIDE:
        text = (ROOT / name).read_text(encoding="utf-8")
        add(files, File.generated(config, page_of(name), content=text if name.endswith(".md") else verbatim(text)))
    for name, content in settings_pages().items():
        add(files, File.generated(config, name, content=content))
    for name, (title, modules) in DOCSTRINGS.items():
        body = "\n\n".join(f"::: {module}" for module in modules)
        add(files, File.generated(config, f"reference/{name}.md", content=f"# {title}\n\n{body}\n"))
    for path in sorted({target for document in repository_documents() for target in targets(document)}):
        add(files, File.generated(config, f"{COPIES}/{path}.txt", abs_src_path=str(ROOT / path)))
    return files


def verbatim(text: str) -> str:
    return f"# Licence\n\n```text\n{text}\n```\n"


def add(files: Files, file: File) -> None:
    if files.get_file_from_path(file.src_uri) is None:
        files.append(file)


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Turn links to files of the repository to their places in the site."""
    source = repository_path(page.file.src_uri)
    if source is None:
        return markdown

    def turned(match: re.Match[str]) -> str:
        name, mark, anchor = match[2].partition("#")
        if not name or "://" in match[2]:
            return match[0]
        path = relative_to_root(source, name)
        is_of_site = path.startswith("docs/") or path in OUTSIDE
        place = page_of(path) if is_of_site else f"{COPIES}/{path}.txt"
        way = os.path.relpath(place, Path(page.file.src_uri).parent)
        return f"{match[1]}{way}{mark}{anchor}{match[3]}"

    return "".join(_LINK.sub(turned, line) if is_prose else line for line, is_prose in lines_of(markdown))


def lines_of(markdown: str) -> Iterator[tuple[str, bool]]:
    """(line, whether it stands outside of code blocks)."""
    fence = ""
    for line in markdown.splitlines(keepends=True):
        found = _FENCE.match(line)
        if found and not fence:
            fence = found[2]
        elif found and found[2].startswith(fence) and not line.strip("`~ \n"):
            fence = ""
            yield line, False
            continue
        yield line, not fence


def page_of(path: str) -> str:
    """The place in the site of a document of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")  # pictures too
    name = path if path.endswith(".md") else f"{path}.md"
    return f"project/{name.replace('README.md', 'readme.md')}"


def repository_path(place: str) -> str | None:
    """The document of the repository that a page is; None for a page that is made here."""
    known = {page_of(name): name for name in OUTSIDE}
    if place in known:
        return known[place]
    return f"docs/{place}" if (ROOT / "docs" / place).is_file() else None


def repository_documents() -> list[Path]:
    named = (ROOT / name for name in OUTSIDE if name.endswith(".md"))
    return [*sorted((ROOT / "docs").rglob("*.md")), *named]


def relative_to_root(document: str, name: str) -> str:
    return Path(os.path.normpath(ROOT / Path(document).parent / name)).relative_to(ROOT).as_posix()


def targets(document: Path) -> set[str]:
    """The files of the repository that a document links to and that are no pages."""
    found = set()
    for line, is_prose in lines_of(document.read_text(encoding="utf-8")):
        for _, target, _ in _LINK.findall(line) if is_prose else []:
            name = target.partition("#")[0]
            if not name or "://" in target:
                continue
            path = relative_to_root(document.relative_to(ROOT).as_posix(), name)
            if not path.startswith("docs/") and path not in OUTSIDE and (ROOT / path).is_file():
                found.add(path)
    return found


def settings_pages() -> dict[str, str]:
    """A page for each command with every key, its type, default and meaning, and a list of the commands."""
    from conf.schema import ENTRIES, MODULES

    pages = {f"{COMMANDS}/{entry}.md": settings_page(entry) for entry in ENTRIES}
    rows = "".join(f"| [`python -m {MODULES[entry]}`]({entry}.md) | {about(entry)} |\n" for entry in ENTRIES)
    head = "# Settings of all commands\n\nMade from the schemas that check every command line.\n\n"
    pages[f"{COMMANDS}/index.md"] = f"{head}| command | what it does |\n|---|---|\n{rows}"
    return pages


def about(entry: str) -> str:
    """The first sentence of the command's module, or of its settings where several commands share a module."""
    import ast

    from conf.schema import ENTRIES, MODULES

    path = ROOT / MODULES[entry].replace(".", "/")
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    is_shared = " " in MODULES[entry]
    tree = None if is_shared else ast.parse(file.read_text(encoding="utf-8"))
    docstring = (ENTRIES[entry].__doc__ if tree is None else ast.get_docstring(tree)) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r": `python -m|(?<=\w)\.\s", paragraph)[0].rstrip(".")


def settings_page(entry: str) -> str:
    """Every key of a command as `conf.help` describes it."""
    from conf.help import EXAMPLES, describe
    from conf.schema import ENTRIES, GROUPS, MODULES

    parts = [f"# {MODULES[entry]}\n\n{about(entry)}.\n\n```text\npython -m {MODULES[entry]} {EXAMPLES[entry]}\n```\n"]
    groups = GROUPS.get(entry, {})
    parts += [f"- `{group}=` {', '.join(f'`{name}`' for name in choices)}\n" for group, choices in groups.items()]
    parts.append(f"\n{table(describe(ENTRIES[entry], ''))}")
    general = set(describe(ENTRIES[entry], ""))
    for group, choices in groups.items():
        for name, schema in choices.items():
            if rows := own_lines(list(describe(schema, f"{group}.")), general):
                parts.append(f"\n## Keys that {group}={name} adds or sets otherwise\n\n{table(iter(rows))}")
    return "\n".join(parts)


def own_lines(lines: list[str], general: set[str]) -> list[str]:
    """The keys, with their documentation, whose line is not among the general ones."""
    found: list[str] = []
    is_new = False
    for line in lines:
        if not line.startswith(" "):
            is_new = line not in general and ".name: " not in line
        if is_new:
            found.append(line)
    return found


def table(lines: Iterator[str]) -> str:
    """`key: type = value` lines, each with its documentation indented below, as a table."""
    rows: list[list[str]] = []
    for line in lines:
        if line.startswith(" "):
            rows[-1][3] += f" {line.strip()}"
        else:
            key, _, rest = line.partition(": ")
            kind, _, value = rest.partition(" = ")
            rows.append([key, kind, value, ""])
    body = "".join(f"| `{key}` | {code(kind)} | {code(value)} | {escaped(text)} |\n" for key, kind, value, text in rows)
    return f"| key | type | default | meaning |\n|---|---|---|---|\n{body}"


def code(text: str) -> str:
    """A type or value in a cell, which a bar would end."""
    return f"`{text.replace('|', ' / ').replace('  ', ' ')}`" if text else ""


def escaped(text: str) -> str:
    """Text of a docstring in a cell: a bar would end the cell, and angle brackets would be HTML."""
    return text.strip().replace("|", "\\|").replace("<", "&lt;").replace("[", "\\[")
