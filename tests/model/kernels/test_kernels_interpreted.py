"""Our kernels for GPUs, in Triton's interpreter: what they compute is tested where there is no GPU, too."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import require_extra

TESTS = [
    str(Path(__file__).parents[2] / "gpu" / f"test_{name}_kernels.py")
    for name in ("decode", "sampling", "layer", "score")
]


def test_kernels_without_a_gpu():
    require_extra("vllm", "triton")  # it comes along
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *TESTS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-4000:]
    assert " passed" in result.stdout and "skipped" not in result.stdout
