"""Files of rows: what fits together is read whole, and what does not is named."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch

from model.engine.shards import WEIGHTS, Shard, StoredShards, write_shards


def write(folder: Path, cuts: list[int], values: torch.Tensor, left_out: int = -1) -> None:
    """`values` in one file for each part between two cuts."""
    for part, (start, stop) in enumerate(pairwise(cuts)):
        if part != left_out:
            shards = {"w": Shard(values[start:stop], start, tuple(values.shape)), "n": Shard.whole(torch.tensor(7.0))}
            write_shards(folder, WEIGHTS, shards, part, len(cuts) - 1)


@pytest.mark.parametrize("cuts", [[0, 5], [0, 3, 5], [0, 1, 1, 5], [0, 2, 4, 5]])
@pytest.mark.parametrize("wanted", [(0, 5), (0, 0), (1, 4), (4, 5)])
def test_any_rows_are_read_from_any_files(tmp_path, cuts, wanted):
    values = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    write(tmp_path, cuts, values)
    start, stop = wanted
    targets = {"w": Shard(torch.zeros(stop - start, 3), start, (5, 3)), "n": Shard.whole(torch.zeros(()))}
    stored = StoredShards(tmp_path, WEIGHTS)
    stored.check(targets)
    stored.fill(targets)
    assert torch.equal(targets["w"].tensor, values[start:stop]) and targets["n"].tensor == 7


def test_a_missing_file_is_named_by_its_rows(tmp_path):
    write(tmp_path, [0, 2, 4, 5], torch.zeros(5, 3), left_out=1)
    with pytest.raises(ValueError, match="w: expected rows 0 to 5, each once, found 0 to 2, 4 to 5"):
        StoredShards(tmp_path, WEIGHTS)


def test_rows_that_two_files_hold_are_named(tmp_path):
    write(tmp_path, [0, 3, 5], torch.zeros(5, 3))
    write_shards(tmp_path, WEIGHTS, {"w": Shard(torch.zeros(4, 3), 1, (5, 3))}, 1, 2)
    with pytest.raises(ValueError, match="each once, found 0 to 3, 1 to 5"):
        StoredShards(tmp_path, WEIGHTS)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(5, 4), r"expected float32 \[5, 3\], found \[5, 4\]"),
        (torch.full((5, 3), float("nan")), "expected finite numbers, found NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(tmp_path, tensor, message):
    write(tmp_path, [0, 3, 5], tensor)
    target = torch.ones(2, 3)
    with pytest.raises(ValueError, match=message):
        StoredShards(tmp_path, WEIGHTS).check({"w": Shard(target, 0, (5, 3))})
    assert (target == 1).all()


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path, [0, 3, 5], torch.zeros(5, 3))
    file = tmp_path / f"{WEIGHTS}-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"00002-of-00002\.safetensors: expected a whole safetensors file"):
        StoredShards(tmp_path, WEIGHTS)
