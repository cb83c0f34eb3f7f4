"""The cost of a micro-batch, and how an update is dealt over processes that wait for each other in every layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

import torch

from model.batch import ModelInputs, Row, pack_rows
from model.config import AnyResVisionConfig, MoeLanguageConfig, SailVL2Config

TRAINED_PASSES = 3.0
"""A forward pass and a backward pass of twice its arithmetic."""


@dataclass(frozen=True)
class Costs:
    """Floating-point operations of one forward pass, by what causes them; products only."""

    token: float  # cost of a packed token in the decoder's matrices
    pair: float  # cost of a (query, key) pair in the decoder's attention
    target: float  # cost of a scored token in the head
    patch: float  # cost of a patch in the vision tower's matrices, and in the adapter
    patch_pair: float  # cost of a (query, key) pair in the tower's attention
    patches_per_token: int  # patches behind one visual token
    pixels_per_token: int  # side of the square of pixels behind one visual token

    @classmethod
    def of(cls, config: SailVL2Config) -> "Costs":
        language, vision = config.language, config.vision
        width, heads = language.hidden_size, language.num_attention_heads * language.head_dim
        attention = width * (2 * heads + 2 * language.num_key_value_heads * language.head_dim)
        if isinstance(language, MoeLanguageConfig):
            mlp = width * language.num_experts
            mlp += 3 * width * language.moe_intermediate_size * language.num_experts_per_tok
        else:
            mlp = 3 * width * language.intermediate_size
        block = 4 * vision.hidden_size**2 + 3 * vision.hidden_size * vision.intermediate_size
        squares = config.merge_side**2
        adapter = (vision.hidden_size * squares * width + width**2) / squares
        patchifier = vision.num_channels * vision.patch_size**2 * vision.hidden_size
        return cls(
            token=2.0 * language.num_hidden_layers * (attention + mlp),
            pair=4.0 * language.num_hidden_layers * heads,
            target=2.0 * width * language.vocab_size,
            patch=2.0 * (vision.num_hidden_layers * block + adapter + patchifier),
            patch_pair=4.0 * vision.num_hidden_layers * vision.hidden_size,
            patches_per_token=squares,
            pixels_per_token=config.pixels_per_token,
        )

    def row(self, prefix: int, completions: Sequence[int], tiles: Sequence[tuple[int, int]]) -> float:
        """Operations of a row: lengths of its prefix and its completions, (count, visual tokens of each) of its tiles.

        A token sees the tokens before it in its prefix and in its own completion.
        """
        pairs = prefix**2 / 2 + sum(length * (prefix + length / 2) for length in completions)
        found = self.token * (prefix + sum(completions)) + self.pair * pairs + self.target * sum(completions)
        for count, tokens in tiles:
            patches = tokens * self.patches_per_token
            found += count * (self.patch * patches + self.patch_pair * patches**2)
        return found

    def of_row(self, row: Row) -> float:
        """Operations of a row that is not packed yet."""
        sizes = [(image.shape[0], image.shape[2] * image.shape[3]) for image in row.images]
        tiles = [(count, pixels // self.pixels_per_token**2) for count, pixels in sizes]
        return self.row(len(row.prefix_ids), [len(completion) for completion in row.completions], tiles)

    def of_inputs(self, inputs: ModelInputs) -> float:
        """Operations of a micro-batch."""
        found = self.target * inputs.target_ids.shape[0]
        for span in inputs.layout.spans:
            prefix, branches = span.stop - span.start, [stop - start for start, stop in span.branches]
            found += self.row(prefix, branches, ()) - self.target * sum(branches)
        for tiles in inputs.pixels:
            tokens = tiles.shape[2] * tiles.shape[3] // self.pixels_per_token**2
            found += self.row(0, (), [(tiles.shape[0], tokens)])
        return found


def deal(costs: Sequence[float], num_ranks: int) -> list[list[int | None]]:
    """Give every rank as many micro-batches as every other: numbers of them, None where there is none left.

    The ranks work on their first one together, then on their second, and each time wait for the slowest. So those that
    cost alike are dealt side by side, the dearest first; among these the dearest goes to the rank that has least so
    far. One rank keeps the order.
    """
    if num_ranks == 1:
        return [list(range(len(costs)))]
    order = sorted(range(len(costs)), key=lambda number: -costs[number])
    dealt: list[list[int | None]] = [[] for _ in range(num_ranks)]
    totals = [0.0] * num_ranks
    for first in range(0, len(order), num_ranks):
        by_total = sorted(range(num_ranks), key=totals.__getitem__)
        together = order[first : first + num_ranks]
        for rank, number in zip_longest(by_total, together):
            dealt[rank].append(number)
            totals[rank] += 0.0 if number is None else costs[number]
    return dealt


def efficiency(costs: Sequence[float], num_ranks: int) -> float:
    """Share of the ranks' time in which they work, when micro-batches of these costs are dealt by `deal`."""
    dealt = [[0.0 if number is None else costs[number] for number in own] for own in deal(costs, num_ranks)]
    slowest = sum(map(max, zip(*dealt, strict=True)))
    return sum(costs) / (num_ranks * slowest) if slowest else 1.0


class Fillers:
    """Makes every process of an engine enter every layer as often as the others."""

    def __init__(self, config: SailVL2Config) -> None:
        vision = config.vision
        side = 2 * vision.patch_size if isinstance(vision, AnyResVisionConfig) else vision.image_size
        self._tile = torch.zeros(1, vision.num_channels, side, side)
        self._is_moe = isinstance(config.language, MoeLanguageConfig)
        # Two ordinary tokens; the ids mean nothing here, and no token of it is scored.
        row = pack_rows([Row([0, 0], [])], config.language.vocab_size, config.pixels_per_token)
        self._inputs = replace(row, routing_weights=torch.zeros(2))

    def with_tile(self, inputs: ModelInputs) -> ModelInputs:
        """The same inputs, with an image that the tower sees and no token shows, unless they have images."""
        return inputs if inputs.num_tiles else replace(inputs, pixels=(self._tile,), has_filler_tile=True)

    def inputs(self, with_tile: bool) -> ModelInputs:
        """Inputs of which no token is scored, and none counts in the routing."""
        return self.with_tile(self._inputs) if with_tile else self._inputs
