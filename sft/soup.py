"""Model soup: `python -m sft.soup checkpoints=[A,B,C] out=DIR` writes one model whose weights are means of others'.

Tensors are read and written one by one, so models of any size are merged within the memory of their largest tensor.
The last line is one JSON object with the share of each checkpoint and, with `evaluate`, all scores.
"""

import json
import math
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from conf.cli import launch
from model.run.durable import STAGING_SUFFIX, require_new_folder
from sft.config import SoupConfig, SoupMethod

if TYPE_CHECKING:
    from torch import Tensor

    from model.checkpoint import StoredTensors
    from model.processing.processor import Processor

_BLOCK_NUMBERS = 1 << 22
"""Numbers of a tensor that are summed in float64 at a time."""
_SHOWN_CHARACTERS = 1000


class Parents:
    """The models that are merged: alike in everything but the values of their weights."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """`ValueError` names the tensor and both folders where names, shapes or number types differ."""
        from model.checkpoint import StoredTensors, fitting_config, load_processor
        from model.config import SailVL2Config

        self.folders = list(folders)
        self.stored: list[StoredTensors] = [StoredTensors(folder) for folder in folders]
        configs = [SailVL2Config.from_folder(folder) for folder in folders]
        first, *others = zip(self.folders, self.stored, configs, strict=True)
        for folder, stored, config in others:
            _require_alike(first[0], first[1], folder, stored)
            if config != first[2]:
                raise ValueError(
                    f"checkpoints: expected the same config.json in {first[0]} and {folder}, found models that differ "
                    "in it; merge checkpoints of one model"
                )
        self.config: SailVL2Config = fitting_config(configs[0], self.stored[0])
        self.processor: Processor = load_processor(self.folders[0])

    def write(self, folder: Path, shares: Sequence[float]) -> None:
        """Write the mean with these shares, which sum to 1, as a checkpoint folder, whole or not at all."""
        from model.checkpoint import write_checkpoint

        write_checkpoint(folder, self.config, self.processor, self._merged(shares), dtype=self.stored[0].dtype)

    def _merged(self, shares: Sequence[float]) -> "Iterator[tuple[str, Tensor]]":
        """Yield (released name, mean), sorted by name. A tied head that is not stored is the embedding."""
        from model.checkpoint import EMBEDDING, HEAD, released_shapes

        known = self.stored[0].shapes
        for name in released_shapes(self.config):
            yield name, self._mean(EMBEDDING if name == HEAD and HEAD not in known else name, shares)

    def _mean(self, name: str, shares: Sequence[float]) -> "Tensor":
        """The mean of one tensor: block by block in float64, rounded once to the type that is stored."""
        import torch

        shape = self.stored[0].shapes[name]
        mean = torch.empty(shape, dtype=getattr(torch, self.stored[0].dtypes[name]))
        used = [(stored, share) for stored, share in zip(self.stored, shares, strict=True) if share]
        rows = shape[0] if shape else 0
        if not rows:
            return mean.copy_(torch.stack([stored.get(name).double() * share for stored, share in used]).sum(0))
        step = max(1, _BLOCK_NUMBERS // max(1, shape[1:].numel()))
        for start in range(0, rows, step):
            stop = min(rows, start + step)
            total = torch.zeros((stop - start, *shape[1:]), dtype=torch.float64)
            for stored, share in used:
                total.add_(stored.rows(name, start, stop).double(), alpha=share)
            mean[start:stop] = total
        return mean


def _require_alike(folder: Path, stored: "StoredTensors", other: Path, theirs: "StoredTensors") -> None:
    if only := sorted(stored.shapes.keys() ^ theirs.shapes.keys()):
        has, lacks = (folder, other) if only[0] in stored.shapes else (other, folder)
        raise ValueError(
            f"checkpoints: {only[0]}: expected every tensor in all folders, found it in {has} and not in {lacks}; "
            "merge checkpoints of one model"
        )
    for what, ours, others in (
        ("shape", {name: list(shape) for name, shape in stored.shapes.items()}, theirs.shapes),
        ("number type", stored.dtypes, theirs.dtypes),
    ):
        for name, one in ours.items():
            two = list(others[name]) if what == "shape" else others[name]
            if one != two:
                raise ValueError(
                    f"checkpoints: {name}: expected one {what} in all folders, found {one} in {folder} and {two} in "
                    f"{other}; merge checkpoints of one model" + ("" if what == "shape" else ", exported in one dtype")
                )


class Scores:
    """Scores of folders by the user's command; higher is better, whatever the command counts."""

    def __init__(self, config: SoupConfig) -> None:
        self._config = config

    def of(self, folder: Path, name: str) -> float:
        """Run the command and print the score. `ValueError` where it fails, or prints no score in its last line."""
        command = [part.replace("{checkpoint}", str(folder)) for part in shlex.split(self._config.evaluate)]
        if command[0] == "python":  # the one that runs this, whichever comes first in PATH
            command[0] = sys.executable
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise ValueError(f"evaluate: expected a command that starts, found: {error}") from None
        if done.returncode:
            raise ValueError(
                f"evaluate: expected exit code 0 for {folder}, found {done.returncode}: "
                f"{done.stderr.strip()[-_SHOWN_CHARACTERS:]}"
            )
        score = self._read(done.stdout, folder)
        print(f"{name}: score {score:g}", flush=True)
        return score

    def is_worse(self, score: float, than: float) -> bool:
        return score > than if self._config.lower_is_better else score < than

    def _read(self, printed: str, folder: Path) -> float:
        lines = [line for line in printed.splitlines() if line.strip()]
        last, key = (lines[-1] if lines else ""), self._config.score
        wanted = f"a JSON object with the number {key}" if key else "a number"
        try:
            found = json.loads(last)
            for part in key.split(".") if key else []:
                found = found[part]
            if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
                raise ValueError("no finite number")
        except (ValueError, KeyError, TypeError, IndexError):
            raise ValueError(
                f"evaluate: expected {wanted} as the last line of the command's output for {folder}, found "
                f"{last!r:.300}; set score=KEY for a key of a JSON object"
            ) from None
        return float(found)


def soup(config: SoupConfig) -> None:
    """Write `config.out`. `ValueError` for checkpoints that do not fit, and for a merge that scores worse than its best
    parent, with all scores."""
    out = Path(config.out)
    require_new_folder(out, "out")
    parents = Parents([Path(folder) for folder in config.checkpoints])
    count = len(parents.folders)
    total = sum(config.weights) or count
    shares = [weight / total for weight in config.weights or [1.0] * count]
    record: dict[str, object] = {"out": str(out), "method": config.method.value}
    candidate = out.with_name(f"{out.name}.candidate{STAGING_SUFFIX}")
    try:
        if not config.evaluate:
            parents.write(out, shares)
        else:
            scores = Scores(config)
            own = [scores.of(folder, str(folder)) for folder in parents.folders]
            if config.method is SoupMethod.greedy:
                shares, merged = _greedy(parents, scores, own, candidate)
            else:
                merged = _scored(parents, scores, shares, candidate)
            _refuse_worse(config, scores, own, merged)
            record |= {"scores": dict(zip(config.checkpoints, own, strict=True)), "score": merged}
            parents.write(out, shares)
    finally:
        shutil.rmtree(candidate, ignore_errors=True)
    print(json.dumps({**record, "shares": dict(zip(config.checkpoints, shares, strict=True))}))


def _scored(parents: Parents, scores: Scores, shares: Sequence[float], candidate: Path) -> float:
    """The score of a merge, which is written to `candidate`."""
    shutil.rmtree(candidate, ignore_errors=True)
    parents.write(candidate, shares)
    named = " + ".join(f"{share:.3g} {folder}" for share, folder in zip(shares, parents.folders, strict=True) if share)
    return scores.of(candidate, named)


def _greedy(parents: Parents, scores: Scores, own: Sequence[float], candidate: Path) -> tuple[list[float], float]:
    """(shares, score): the best checkpoint, and each further one, best first, with which the mean scores no worse."""
    order = sorted(range(len(own)), key=lambda n: own[n], reverse=not scores.is_worse(1.0, 0.0))
    chosen, best = [order[0]], own[order[0]]
    for number in order[1:]:
        more = [*chosen, number]
        found = _scored(parents, scores, _even(more, len(own)), candidate)
        if not scores.is_worse(found, best):
            chosen, best = more, found
    return _even(chosen, len(own)), best


def _even(chosen: Sequence[int], count: int) -> list[float]:
    return [1.0 / len(chosen) if number in chosen else 0.0 for number in range(count)]


def _refuse_worse(config: SoupConfig, scores: Scores, own: Sequence[float], merged: float) -> None:
    best = min(own) if config.lower_is_better else max(own)
    if not scores.is_worse(merged, best):
        return
    parents = ", ".join(f"{score:g} of {folder}" for folder, score in zip(config.checkpoints, own, strict=True))
    said = f"the merge scores {merged:g}, worse than its best parent's {best:g} (scores: {parents})"
    if not config.keep_worse:
        raise ValueError(
            f"checkpoints: {said}; nothing is written: leave checkpoints out, try method=greedy, or set "
            "keep_worse=true to write it anyway"
        )
    print(f"kept by keep_worse: {said}", file=sys.stderr)


def main() -> int:
    return launch("soup", SoupConfig, lambda config, resolved: soup(config))


if __name__ == "__main__":
    sys.exit(main())
