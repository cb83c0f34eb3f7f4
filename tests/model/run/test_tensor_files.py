"""Files written tensor by tensor: the library's bytes, and the memory of one tensor."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from model.run.tensor_files import write_tensors

TENSORS = {
    "b.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "a": torch.tensor(0.5),
    "é": torch.empty(0, 4),
    "c": torch.randn(5, 7).t(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float16])
@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_bytes_are_those_of_the_library(tmp_path, dtype, metadata):
    shapes = {name: tensor.shape for name, tensor in TENSORS.items()}
    digest = write_tensors(tmp_path / "ours", shapes, dtype, sorted(TENSORS.items()), metadata)
    whole = {name: tensor.to(dtype).contiguous() for name, tensor in TENSORS.items()}
    save_file(whole, tmp_path / "theirs", metadata)
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert digest.num_bytes == (tmp_path / "ours").stat().st_size
    for name, tensor in load_file(tmp_path / "ours").items():
        assert torch.equal(tensor, whole[name])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"expected a \[2\] next, found '' \[0\]"),
        ([("b", torch.zeros(1)), ("a", torch.zeros(2))], r"expected a \[2\] next, found 'b' \[1\]"),
        ([("a", torch.zeros(3)), ("b", torch.zeros(1))], r"expected a \[2\] next, found 'a' \[3\]"),
        ([("a", torch.zeros(2)), ("b", torch.zeros(1)), ("c", torch.zeros(1))], "no more than 2, found c besides"),
    ],
)
def test_other_tensors_than_promised_are_refused_by_name(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        write_tensors(tmp_path / "x", {"a": [2], "b": [1]}, torch.float32, given)


MEASURE = """
import json, sys
from pathlib import Path
from benchmarks.parts.checkpoint_memory import measure
print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))
"""


@pytest.mark.parametrize("verb", ["save", "load", "export"])
def test_a_checkpoint_takes_the_memory_of_one_tensor(tmp_path, verb):
    """A model of 82 MiB whose largest tensor has 8, with moments three times that; export converts to bfloat16. Beside
    the largest tensor 4 MiB are the interpreter's and the file's."""
    run = subprocess.run([sys.executable, "-c", MEASURE, tmp_path, verb], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["model_mib"] > 80 and 7 < found["largest_tensor_mib"] < 9
    assert found["peak_mib"] <= found["largest_tensor_mib"] + 4, found
