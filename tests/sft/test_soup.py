"""`python -m sft.soup`: means of checkpoints, tensor by tensor, and what it refuses."""

import json
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoint import StoredTensors, build_flavour, load_model, save_model
from model.config import Flavour
from model.run.manifest import Manifest
from sft.config import SoupConfig, SoupMethod
from sft.soup import Parents, soup


@pytest.fixture(scope="module")
def parents(tmp_path_factory) -> list[str]:
    """Three models of other seeds, in bfloat16."""
    folder = tmp_path_factory.mktemp("parents")
    for seed in range(3):
        save_model(folder / f"m{seed}", *build_flavour(Flavour.tiny, seed), dtype="bfloat16")
    return [str(folder / f"m{seed}") for seed in range(3)]


def evaluation(table: dict[str, float], tmp_path: Path, form: str = "number") -> str:
    """A command that scores a folder by the mean of its final norm and embedding against the parents', by a table."""
    program = tmp_path / "score.py"
    program.write_text(
        "import json, sys\n"
        f"table = {table!r}\n"
        "name = sys.argv[1].rstrip('/').rpartition('/')[2]\n"
        "score = next((v for k, v in table.items() if name.startswith(k)), None)\n"
        "print('some talk')\n"
        f"print(json.dumps({{'all': {{'accuracy': score}}}}) if {form!r} == 'json' else score)\n"
    )
    return f"{sys.executable} {program} {{checkpoint}}"


def mean_of(folders: list[str], shares: list[float]) -> dict[str, torch.Tensor]:
    stored = [StoredTensors(Path(folder)) for folder in folders]
    return {
        name: sum(share * one.get(name).double() for share, one in zip(shares, stored, strict=True)).bfloat16()
        for name in stored[0].shapes
    }


@pytest.mark.parametrize("weights", [[], [3.0, 1.0, 0.0]], ids=["uniform", "weighted"])
def test_a_soup_is_the_mean_of_every_tensor_rounded_once(parents, tmp_path, weights, capsys):
    method = SoupMethod.weighted if weights else SoupMethod.uniform
    soup(SoupConfig(parents, str(tmp_path / "out"), method, weights))
    shares = [weight / 4 for weight in weights] or [1 / 3] * 3
    found = StoredTensors(tmp_path / "out")
    wanted = mean_of(parents, shares)
    assert found.shapes.keys() == wanted.keys() and {*found.dtypes.values()} == {"bfloat16"}
    # bfloat16 from float64 or through float32: one unit in the last place of a number that lies between two.
    assert all(
        torch.allclose(found.get(name).float(), one.float(), rtol=2**-7, atol=1e-15) for name, one in wanted.items()
    )
    same = sum(int((found.get(name) == one).sum()) for name, one in wanted.items())
    assert same >= 0.999 * sum(one.numel() for one in wanted.values())
    Manifest.read(tmp_path / "out").verify()
    load_model(tmp_path / "out")
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [*said["shares"].values()] == pytest.approx(shares)


def test_a_tensor_is_summed_in_blocks_of_bounded_size(parents, monkeypatch):
    """The largest piece that is read at once; the result does not depend on it."""
    whole = Parents([Path(one) for one in parents])
    name = "language_model.model.embed_tokens.weight"
    wanted = whole._mean(name, [1 / 3] * 3)
    read = []
    rows = StoredTensors.rows

    def counted(self: StoredTensors, name: str, start: int, stop: int) -> torch.Tensor:
        found = rows(self, name, start, stop)
        read.append(found.numel())
        return found

    monkeypatch.setattr(StoredTensors, "rows", counted)
    monkeypatch.setattr("sft.soup._BLOCK_NUMBERS", 1000)
    assert torch.equal(whole._mean(name, [1 / 3] * 3), wanted)
    assert max(read) <= 1000 and sum(read) == 3 * wanted.numel()


def test_a_greedy_soup_takes_what_improves_it(parents, tmp_path, capsys):
    """m1 is best, m0 next: the mean of both scores more, and the one of all three less."""
    scores = iter([0.5, 0.6, 0.4, 0.7, 0.65])
    count = tmp_path / "count.txt"
    program = tmp_path / "count.py"
    program.write_text(
        f"import pathlib\nfile = pathlib.Path({str(count)!r})\n"
        "n = int(file.read_text()) if file.exists() else 0\nfile.write_text(str(n + 1))\n"
        f"print({list(scores)!r}[n])\n"
    )
    command = f"{sys.executable} {program} {{checkpoint}}"
    soup(SoupConfig(parents, str(tmp_path / "out"), SoupMethod.greedy, evaluate=command))
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [*said["shares"].values()] == [0.5, 0.5, 0.0] and said["score"] == 0.7
    assert [*said["scores"].values()] == [0.5, 0.6, 0.4]
    wanted = mean_of(parents, [0.5, 0.5, 0.0])
    found = StoredTensors(tmp_path / "out")
    assert all(torch.equal(found.get(name), one) for name, one in wanted.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["count.py", "count.txt", "out"]


def test_a_merge_that_scores_worse_than_its_best_parent_is_refused_with_all_scores(parents, tmp_path, capsys):
    command = evaluation({"m0": 0.5, "m1": 0.8, "m2": 0.6, "out": 0.7}, tmp_path, "json")
    given = {"evaluate": command, "score": "all.accuracy"}
    with pytest.raises(ValueError, match=r"scores 0.7, worse than its best parent's 0.8 \(scores: 0.5 of .*m0, 0.8 of"):
        soup(SoupConfig(parents, str(tmp_path / "out"), **given))
    assert [path.name for path in tmp_path.iterdir()] == ["score.py"]
    soup(SoupConfig(parents, str(tmp_path / "out"), **given, keep_worse=True))
    assert "kept by keep_worse" in capsys.readouterr().err and (tmp_path / "out" / "model.safetensors").exists()
    soup(SoupConfig(parents, str(tmp_path / "out_low"), **given, lower_is_better=True, keep_worse=True))


def test_python_in_the_command_is_the_one_that_merges(parents, tmp_path, capsys, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\necho 7\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    command = "python -c 'import sys; print(int(sys.executable == sys.argv[1]))' " + f"{sys.executable} {{checkpoint}}"
    soup(SoupConfig(parents, str(tmp_path / "out"), evaluate=command))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["score"] == 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("false {checkpoint}", "evaluate: expected exit code 0 for .*m0, found 1"),
        ("echo {checkpoint}", "evaluate: expected a number as the last line .* found '.*m0'; set score=KEY"),
        ("echo NaN {checkpoint}", "evaluate: expected a number as the last line"),
        ("no-such-program {checkpoint}", "evaluate: expected a command that starts"),
    ],
)
def test_an_evaluation_without_a_score_is_refused(parents, tmp_path, command, message):
    with pytest.raises(ValueError, match=message):
        soup(SoupConfig(parents, str(tmp_path / "out"), evaluate=command))
    assert not list(tmp_path.iterdir())


def test_models_that_are_not_alike_are_refused_by_tensor_and_folder(parents, tmp_path):
    save_model(tmp_path / "wide", *build_flavour(Flavour.tiny_moe, 0), dtype="bfloat16")
    save_model(tmp_path / "long", *build_flavour(Flavour.tiny, 0), dtype="float32")
    for other, message in (
        (
            "wide",
            r"gate.*: expected every tensor in all folders, found it in .*wide and not in .*m0|found it in .*m0 and",
        ),
        ("long", "expected one number type in all folders, found bfloat16 in .*m0 and float32 in .*long"),
    ):
        with pytest.raises(ValueError, match=message):
            soup(SoupConfig([parents[0], str(tmp_path / other)], str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checkpoints": ["a"]}, "checkpoints: expected at least 2 folders"),
        ({"out": ""}, "out: expected a folder to write"),
        ({"method": "weighted"}, "weights: expected one for each checkpoint with method=weighted"),
        ({"weights": [1.0, 2.0]}, "weights: expected none with method=uniform"),
        ({"method": "weighted", "weights": [1.0]}, "weights: expected one for each of the 2 checkpoints, found 1"),
        ({"method": "weighted", "weights": [0.0, 0.0]}, "weights: expected numbers of 0 or more that are not all 0"),
        ({"method": "greedy"}, "evaluate: expected a command for method=greedy"),
        ({"evaluate": "score it"}, r"evaluate: expected \{checkpoint\} where"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SoupConfig(**{"checkpoints": ["a", "b"], "out": "o", **settings})
