"""Entry points as processes: what they import before the configuration is valid, and files that hide our packages."""

import os
import resource
import subprocess
import sys

import pytest

from conf.cli import ROOT

REFUSED_BY_ALL = """
import sys
from model.pretrain.train import main as pretrain
from rlhf.evaluate import main as evaluate
from rlhf.pipeline import main as pipeline
from rlhf.train import main as rlhf
from sft.train import main as sft

sys.argv = ["program", "no.such.key=1"]
print([main() for main in (pretrain, sft, rlhf, evaluate, pipeline)])
print([name for name in ("torch", "transformers", "sklearn", "math_verify", "matplotlib") if name in sys.modules])
"""


def start(arguments, cwd, **environment):
    """A Python process that finds our packages behind its working directory."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=variables, capture_output=True, text=True)


def test_a_refused_command_line_imports_no_torch(tmp_path):
    """The bound is on processor time: importing torch alone costs more than the difference."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = start(["-c", REFUSED_BY_ALL], tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.stdout.splitlines() == ["[2, 2, 2, 2, 2]", "[]"], process.stderr
    assert process.stderr.count("error: no.such.key: no such key") == 5
    assert after.ru_utime - before.ru_utime < 4


@pytest.mark.parametrize("package", ["rewards", "model", "rollouts", "sft"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_file_that_hides_a_package_is_named(tmp_path, package, kind):
    hiding = tmp_path / f"{package}.py" if kind == "file" else tmp_path / package / "__init__.py"
    hiding.parent.mkdir(exist_ok=True)
    hiding.write_text("")
    process = start(["-m", "rlhf.train", "checkpoint=c", "prompts=p", "--cfg", "job"], tmp_path)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith(f"error: package '{package}': expected {ROOT / package}, found {hiding}")
    assert process.stderr.count("\n") == 1


def test_folders_that_merely_bear_our_names_do_not_hide_us(tmp_path):
    """A run folder beside `model/` and `data/` is common; without __init__.py they are no packages."""
    for name in ("model", "rewards", "conf", "data"):
        (tmp_path / name).mkdir()
    given = ["model=tiny", "data.path=d", "optimizer.learning_rate=1e-3"]
    process = start(["-m", "model.pretrain.train", *given, "--cfg", "job"], tmp_path)
    assert process.returncode == 0 and "max_steps" in process.stdout, process.stderr
