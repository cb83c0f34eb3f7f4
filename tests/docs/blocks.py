"""The code blocks of the documents, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/geo3k/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
_BLOCK = re.compile(r"(<!-- needs ([^>]+) -->\n)?^( *)```([a-z]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and what a mark in front says that it needs."""

    document: Path
    line: int
    language: str
    text: str
    needs: str = ""

    @property
    def where(self) -> str:
        return f"{self.document.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in ("bash", "")

    def commands(self) -> Iterator[list[str]]:
        """The words of each command; a text behind `<<'EOF'` belongs to its command and is left out."""
        end = ""
        for line in self.text.replace("\\\n", " ").splitlines():
            if end:
                end = "" if line.strip() == end else end
                continue
            if found := re.search(r"<<'?(\w+)'?", line):
                end = found[1]
                line = line[: found.start()]
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"[A-Z_0-9]+=\S*", words[0]):
                words.pop(0)
            if words:
                yield words


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(document, text.count("\n", 0, found.start(3)) + 1, found[4], found[5], found[2] or "")
        for found in _BLOCK.finditer(text)
    ]
