"""Packing of a mixed corpus: `python -m benchmarks.packing [SIZE] [ROUNDS]`.

The corpus is a third texts, images of 1 to 12 tiles, and some videos, at 8,192 tokens a micro-batch. `token_waste` is
the share of the tokens of all micro-batches that stays empty; `visual_token_spread` is the largest difference of the
visual tokens of eight processes in a step over their mean, when its 32 micro-batches are dealt out as an engine deals
them; both are means over 100 steps, from lengths alone. `speedup_over_padded` compares forward and backward passes
over the same rows of the model of SIZE (P unless given, whose tower and decoder share the time as those of SAIL-VL2's
flavours do): packed by the stream packer, against eight rows in a pass, which is TRL's default, in the order in which
they come, padded to the longest of them. `speedups` has other numbers of rows in a pass, and `tokens`: as many rows as
8,192 tokens hold when padded; `padding` is the share of padded tokens that are empty. Medians of ROUNDS rounds in
turns. `leak` is the largest difference of a log-probability between packed and alone, in float64. The last line is one
JSON object.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.parts.arguments import arguments

from benchmarks.parts.measure import environment, median_ratio, spread, take_turns  # isort: skip  (before torch)

import numpy as np
import torch

from benchmarks.parts.update_cases import SIZES, build_model, fast_kernels, placeholder_id
from model.batch import ModelInputs, Row, pack_rows
from model.config import Flavour, SailVL2Config, flavour_config
from model.data.packing import StreamPacker
from model.engine.parts import Costs, deal
from model.kernels.sdpa_attention import attend_padded
from model.logprobs import score_tokens
from model.sail_vl2 import SailVL2

CAPACITY, RANKS, BINS, STEPS, THREADS = 8192, 8, 32, 100, 2
TILE_TOKENS = 256
ROWS_PER_PASS = (2, 4, 8)


@dataclass(frozen=True)
class Lengths:
    """A row of the corpus."""

    tiles: int
    prefix: int  # tokens before the trained text, visual tokens not counted
    text: int  # trained tokens

    @property
    def visual(self) -> int:
        return self.tiles * TILE_TOKENS

    @property
    def tokens(self) -> int:
        return self.visual + self.prefix + self.text


def corpus(count: int, seed: int = 0) -> list[Lengths]:
    """35 % texts, 57 % images of 1 to 12 tiles with a thumbnail, 8 % videos of 8 or 16 frames."""
    rng = np.random.default_rng(seed)
    rows = []
    for kind in rng.choice(3, count, p=[0.35, 0.57, 0.08]):
        tiles = int(rng.integers(1, 13)) if kind == 1 else int(rng.choice([8, 16])) if kind == 2 else 0
        tiles += kind == 1 and tiles > 1
        prefix = int(rng.integers(8, 60)) + (6 * tiles if kind == 2 else 0)
        mean, width = (5.5, 1.0) if kind == 0 else (4.5, 0.8)
        text = int(np.clip(rng.lognormal(mean, width), 8, CAPACITY - prefix - tiles * TILE_TOKENS))
        rows.append(Lengths(tiles, prefix, text))
    return rows


def planned(rows: Sequence[Lengths], num_bins: int) -> StreamPacker:
    return StreamPacker(lambda n: (rows[n].tokens, rows[n].visual), num_bins, CAPACITY, 32 * num_bins, 64)


def planning() -> dict[str, float]:
    """Waste and spread over 100 steps."""
    rows = corpus(60_000)
    packer = planned(rows, BINS)
    costs = Costs.of(flavour_config(Flavour.sailvl2_2b))
    waste, spreads = [], []
    for _ in range(STEPS):
        step = packer.next()
        prices = [
            sum(costs.row(r.prefix + r.visual, [r.text], [(r.tiles, TILE_TOKENS)]) for r in (rows[n] for n in one))
            for one in step.bins
        ]
        visual = [
            sum(rows[row].visual for number in own if number is not None for row in step.bins[number])
            for own in deal(prices, RANKS)
        ]
        waste.append(step.metrics["pack/waste"])
        spreads.append((max(visual) - min(visual)) / np.mean(visual))
    return {"token_waste": float(np.mean(waste)), "visual_token_spread": float(np.mean(spreads))}


def build_row(lengths: Lengths, config: SailVL2Config, seed: int) -> Row:
    generator = torch.Generator().manual_seed(seed)
    side = config.vision.image_size
    images = [torch.randn(lengths.tiles, 3, side, side, generator=generator)] if lengths.tiles else []
    limit = placeholder_id(config)
    ids = torch.randint(0, limit, (lengths.prefix + lengths.text,), generator=generator).tolist()
    prefix = [limit] * (lengths.tiles * config.num_image_tokens) + ids[: lengths.prefix]
    return Row(prefix, [ids[lengths.prefix :]], images)


def opened(row: Row) -> list[torch.Tensor]:
    return [image for image in row.images if isinstance(image, torch.Tensor)]


@dataclass(frozen=True)
class Padded:
    """Rows of one pass, padded on the right to the longest."""

    inputs: ModelInputs

    @classmethod
    def of(cls, rows: Sequence[Row], config: SailVL2Config) -> "Padded":
        longest = max(row.num_tokens for row in rows)
        filled = [Row(r.prefix_ids, [[*r.completions[0], *[0] * (longest - r.num_tokens)]], r.images) for r in rows]
        packed = pack_rows(filled, placeholder_id(config), config.pixels_per_token)
        lengths = [(len(row.completions[0]), longest - len(row.prefix_ids)) for row in rows]
        real = torch.cat([torch.arange(whole) < own for own, whole in lengths])
        kept = {"source_index": packed.source_index[real], "target_ids": packed.target_ids[real]}
        return cls(ModelInputs(**{**packed.__dict__, **kept}))

    def backward(self, model: SailVL2) -> None:
        inputs, language = self.inputs, model.language_model
        embeddings = language.model.embed_tokens(inputs.token_ids)
        if inputs.num_tiles:
            visual = torch.cat([one.flatten(0, 1) for one in model.visual_tokens(inputs.tiles)])
            embeddings = embeddings.index_copy(0, inputs.visual_index, visual)
        hidden, _ = language.model(
            embeddings, inputs.positions, lambda layer, q, k, v: attend_padded(q, k, v, inputs.layout)
        )
        scores = score_tokens(hidden[inputs.source_index], language.lm_head.weight, inputs.target_ids)
        (-scores.logprobs.sum()).backward()


def speedup(size: str, rounds: int) -> dict[str, object]:
    """Seconds of the same rows padded over packed."""
    torch.set_num_threads(THREADS)
    config = SIZES[size]
    model = build_model(config)
    rows = corpus(60_000)
    step = planned(rows, 4).next()
    numbers = [list(one) for one in step.bins]
    built = {row: build_row(rows[row], config, row) for one in numbers for row in one}
    packed = [
        pack_rows([built[row] for row in one], placeholder_id(config), config.pixels_per_token) for one in numbers
    ]
    in_order = [built[number] for number in sorted(built)]  # as the corpus has them
    ways = {str(count): [in_order[i : i + count] for i in range(0, len(in_order), count)] for count in ROWS_PER_PASS}
    ways["tokens"] = by_tokens(in_order)
    padded = {name: [Padded.of(one, config) for one in batches] for name, batches in ways.items()}

    def run_packed() -> None:
        for inputs in packed:
            (-model(inputs).logprobs.sum()).backward()
        model.zero_grad()

    def run_padded(batches: Sequence[Padded]) -> None:
        with fast_kernels():
            for one in batches:
                one.backward(model)
        model.zero_grad()

    contenders = {name: partial(run_padded, batches) for name, batches in padded.items()}
    seconds = take_turns({"packed": run_packed, **contenders}, rounds)
    real = sum(row.num_tokens for row in in_order)
    return {
        "speedup_over_padded": round(median_ratio(seconds["8"], seconds["packed"]), 3),
        "speedups": {name: round(median_ratio(seconds[name], seconds["packed"]), 3) for name in ways},
        "padding": {name: round(1 - real / sum(p.inputs.num_tokens for p in one), 3) for name, one in padded.items()},
        "passes": {"packed": len(packed), **{name: len(one) for name, one in padded.items()}},
        "spread": {name: spread(values) for name, values in seconds.items()},
    }


def by_tokens(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs of rows that have at most 8,192 tokens together when they are padded to the longest of them."""
    batches: list[list[Row]] = [[]]
    for row in rows:
        longest = max(one.num_tokens for one in [*batches[-1], row])
        if batches[-1] and longest * (len(batches[-1]) + 1) > CAPACITY:
            batches.append([])
        batches[-1].append(row)
    return batches


@torch.no_grad()
def leak() -> float:
    """Largest difference of a log-probability, packed against alone, over two micro-batches in float64.

    Zero is not promised: products over many rows add up in another order than those over one.
    """
    config = SIZES["T"]
    model = build_model(config).double()
    rows = corpus(2000)
    worst = 0.0
    for one in planned(rows, 2).next().bins:
        built = [build_row(rows[row], config, row) for row in one]
        built = [Row(row.prefix_ids, row.completions, [one.double() for one in opened(row)]) for row in built]
        together = model(pack_rows(built, placeholder_id(config), config.pixels_per_token)).logprobs
        alone = [model(pack_rows([row], placeholder_id(config), config.pixels_per_token)).logprobs for row in built]
        worst = max(worst, float((together - torch.cat(alone)).abs().max()))
    return worst


def main() -> None:
    given = arguments(__doc__)
    size, rounds = (given + ["P", "5"][len(given) :])[:2]
    figures = {"size": size, **planning(), **speedup(size, int(rounds)), "leak": leak()}
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({**rounded, "environment": environment(THREADS)}))


if __name__ == "__main__":
    main()
