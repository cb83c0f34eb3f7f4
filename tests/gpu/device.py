"""Where tests of kernels run: on a CUDA device, or in Triton's interpreter, as `tests/model/kernels/test_kernels_interpreted.py`
runs them."""

import os

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"  # the interpreter takes its time, and is NumPy, which has no bfloat16
MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1", reason="needs a CUDA device"),
]
