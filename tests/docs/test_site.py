"""The site of the documents: it is built without a warning, asks no other host for anything, and has every key."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conf.help import describe
from conf.schema import ENTRIES
from tests.conftest import require_extra

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    require_extra("docs", "mkdocs")
    require_extra("docs", "mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_a_page_asks_no_other_host(site):
    """Links may lead elsewhere; scripts, styles, fonts and pictures come from the site."""
    asked = [
        f"{page.name}: {found}"
        for page in site.rglob("*.html")
        for found in re.findall(
            r'<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)="((?:https?:)?//[^"]*)"', page.read_text("utf-8")
        )
    ]
    assert not asked


def test_every_key_of_every_command_has_a_row(site):
    for entry, schema in ENTRIES.items():
        page = (site / "reference" / "settings" / f"{entry}.html").read_text(encoding="utf-8")
        keys = [line.partition(": ")[0] for line in describe(schema, "") if not line.startswith(" ")]
        assert keys and not [key for key in keys if f"<code>{key}</code>" not in page]


def test_docstrings_of_protocols_are_there(site):
    page = (site / "reference" / "engine.html").read_text(encoding="utf-8")
    assert 'id="model.engine.base.TrainEngine.accumulate"' in page


def test_links_to_files_of_the_repository_lead_to_copies(site):
    copy = site / "files" / "rlhf" / "trainer.py.txt"
    assert copy.read_bytes() == (ROOT / "rlhf" / "trainer.py").read_bytes()
    assert "files/rlhf/trainer.py.txt" in (site / "architecture.html").read_text(encoding="utf-8")
