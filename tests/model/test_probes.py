"""The probes of pre-training: accuracy and affinity of a vision tower, load and entropy of experts."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.checkpoint import build_flavour, save_model
from model.config import Flavour
from model.pretrain.expert_load import expert_load
from model.pretrain.probe import probe
from model.pretrain.probes.affinity import affinity
from model.pretrain.probes.config import ExpertLoadConfig, ProbeConfig
from model.pretrain.probes.labelled import LabelledImages
from model.pretrain.probes.tower_head import top1


@pytest.fixture(scope="module")
def squares(tmp_path_factory) -> Path:
    """120 images of noise with a bright half, left or right, which is their class."""
    folder = tmp_path_factory.mktemp("squares")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(120):
        pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
        side = number % 2
        pixels[:, 8 * side : 8 * side + 8] += 120
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": ["left", "right"][side]})
    (folder / "squares.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "squares.jsonl"


@pytest.fixture(scope="module")
def moe_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("moe") / "tiny_moe"
    save_model(folder, *build_flavour(Flavour.tiny_moe, 0))
    return folder


def documents(path: Path, texts: list[str], image: Path | None = None) -> str:
    shown = {} if image is None else {"images": [image.name]}
    rows = [{"kind": "text", "prefix": "", "texts": [text], **shown} for text in texts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_head_learns_what_the_features_tell(squares, tiny_folder, tmp_path, capsys):
    """The tower's mean tokens tell bright from dark sides; with labels that the image does not show it guesses."""
    other = tmp_path / "other"
    save_model(other, *build_flavour(Flavour.tiny, 5))
    config = ProbeConfig(
        checkpoints=[str(tiny_folder), str(other)],
        data=str(squares),
        epochs=30,
        batch_size=16,
        num_threads=1,
        output=str(tmp_path / "probe.json"),
    )
    found = probe(config)
    said = capsys.readouterr().out
    assert found["train_images"] == 96 and found["test_images"] == 24 and found["classes"] == 2
    assert [*found["checkpoints"]] == [str(tiny_folder), str(other)]
    for figures in found["checkpoints"].values():
        assert figures["top1"] >= 0.9
        assert all(figures[name] > 0 for name in ("nearest_neighbour", "wasserstein", "mean_distance"))
    assert json.loads((tmp_path / "probe.json").read_text()) == found == probe(config)
    assert said.count(str(tiny_folder)) == 1 and "top1" in said


def test_a_head_on_noise_guesses():
    """300 test images of 2 classes: a guess is right in 150 +- 26 of them (three deviations)."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(900, 8, generator=generator)
    labels = torch.randint(0, 2, (900,), generator=generator).tolist()
    config = ProbeConfig(checkpoints=["a"], data="d")
    assert abs(top1((features[:600], labels[:600]), (features[600:], labels[600:]), 2, config) - 0.5) <= 26 / 300


def test_affinity_of_points_whose_distances_are_known():
    """Both sets lie in a plane: a line of points, and the same line moved by 3, or by nothing, across it."""
    line = torch.zeros(64, 6, dtype=torch.float64)
    line[:, 0] = torch.linspace(0, 64, 64)
    moved = line.clone()
    moved[:, 1] = 3.0
    same, apart = affinity(line, line.clone(), 0), affinity(line, moved, 0)
    assert same["nearest_neighbour"] == pytest.approx(0, abs=1e-9) and same["wasserstein"] == pytest.approx(0, abs=1e-9)
    assert apart["nearest_neighbour"] == pytest.approx(3, rel=1e-6)
    assert apart["wasserstein"] == pytest.approx(3, rel=1e-6)
    assert apart["mean_distance"] > same["mean_distance"] > 0


def test_expert_load_of_text_and_images_and_the_mix_with_the_highest_entropy(moe_folder, squares, tmp_path, capsys):
    """The entropy of a mix is that of the rows together, because routing sees each token alone."""
    one = documents(tmp_path / "one.jsonl", ["9 + 5 = 14", "14 + 6 = 20"] * 4)
    two = documents(tmp_path / "two.jsonl", ["What is the sum of the four digits?"] * 8)
    shown = documents(squares.parent / "shown.jsonl", ["four digits"] * 3, squares.parent / "0.png")
    config = ExpertLoadConfig(
        checkpoint=str(moe_folder),
        text=one,
        multimodal=shown,
        mixes={"first": {one: 1.0}, "second": {two: 2.0}, "both": {one: 1.0, two: 1.0}},
        num_threads=1,
        output=str(tmp_path / "load.json"),
    )
    found = expert_load(config)
    assert json.loads((tmp_path / "load.json").read_text()) == found
    for figures in (*found["sets"].values(), *found["mixes"].values()):
        load = torch.tensor(figures["load"], dtype=torch.float64)
        assert torch.allclose(load.sum(-1), torch.ones(len(load), dtype=torch.float64))
        assert figures["entropy"] == pytest.approx((-(load * load.clamp(min=1e-300).log()).sum(-1)).tolist())
        assert figures["mean_entropy"] <= found["highest_entropy"] + 1e-9 == pytest.approx(math.log(8))
    assert found["sets"]["text"] == found["mixes"]["first"] != found["sets"]["multimodal"]
    both = [found["mixes"][name]["load"] for name in ("first", "second")]
    assert np.allclose(found["mixes"]["both"]["load"], np.mean(both, axis=0), atol=1e-12)
    best = max(found["mixes"], key=lambda name: found["mixes"][name]["mean_entropy"])
    assert found["best_mix"] == best and f"highest mean entropy: mix {best}" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(8))
def test_every_class_has_a_row_that_trains_and_large_ones_a_row_that_tests(squares, seed):
    rows = [json.loads(line) for line in squares.read_text().splitlines()]
    labels = ["rare"] * 1 + ["few"] * 3 + ["many"] * 16 + ["most"] * 20
    path = squares.parent / f"split_{seed}.jsonl"
    path.write_text("".join(json.dumps({**row, "label": x}) + "\n" for row, x in zip(rows, labels, strict=False)))
    found = LabelledImages(ProbeConfig(checkpoints=["m"], data=str(path), seed=seed))
    assert (len(found.train), len(found.test)) == (32, 8)
    assert found.classes == ["few", "many", "most", "rare"]
    tested = Counter(row.label for row in found.test)
    assert abs(tested["many"] - 3) <= 1 and abs(tested["most"] - 4) <= 1 and tested["rare"] == 0
    assert not {row.image for row in found.train} & {row.image for row in found.test}


def test_what_cannot_be_probed_is_refused(squares, tiny_folder, moe_folder, tmp_path):
    one_class = squares.parent / "one.jsonl"
    one_class.write_text(json.dumps({"image": "0.png", "label": 1}) + "\n")
    given = {"checkpoints": [str(tiny_folder)], "num_threads": 1}
    with pytest.raises(ValueError, match="data: expected at least 2 classes to train on"):
        probe(ProbeConfig(**given, data=str(one_class), test=str(one_class)))
    lonely = squares.parent / "lonely.jsonl"
    lonely.write_text("".join(json.dumps({"image": "0.png", "label": n}) + "\n" for n in range(3)))
    with pytest.raises(ValueError, match=r"data: .* 0 rows to test \(test_share=0\.2\); more rows of each class"):
        probe(ProbeConfig(**given, data=str(lonely)))
    with pytest.raises(ValueError, match="test: expected classes of the training rows, found '1' besides"):
        probe(ProbeConfig(**given, data=str(squares), test=str(one_class)))
    with pytest.raises(ValueError, match=r"kind: expected a text or an integer, found None"):
        probe(ProbeConfig(**given, data=str(squares), label_column="kind"))
    with pytest.raises(ValueError, match="checkpoint: expected a model with experts, found a dense one"):
        expert_load(ExpertLoadConfig(checkpoint=str(tiny_folder), text=str(squares)))
    with pytest.raises(ValueError, match=r"mixes\.a: expected files with shares"):
        ExpertLoadConfig(checkpoint="c", mixes={"a": {}})
