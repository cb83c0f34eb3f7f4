"""Sampling with a cache equals running the whole sequence again for every token, in float64.

The two sides add in another order: some hundreds of roundings of 1e-16 relative. 1e-10 of the logit scale is the bar.
"""

import pytest
import torch
from torch import Tensor

from model.batch import Row, pack_rows
from model.config import AnyResVisionConfig, Flavour, flavour_config
from model.decoding.decoder import PromptDecoder
from model.sail_vl2 import SailVL2

PLACEHOLDER, PIXELS_PER_TOKEN = 519, 16
GROUP, ROOM = 3, 64
STEPS = 36  # more than the first room of a completion
BAR = 1e-10


@pytest.fixture(scope="module", params=[Flavour.tiny, Flavour.tiny_moe, Flavour.tiny_anyres], ids=lambda f: f.value)
def model(request) -> SailVL2:
    model = SailVL2(flavour_config(request.param)).double()
    model.initialise(4)
    return model


@pytest.fixture
def prompts(model) -> list[Row]:
    """Four prompts of other lengths: with one image, without, with two, with one; sizes are mixed for AnyRes."""
    generator = torch.Generator().manual_seed(0)
    anyres = isinstance(model.config.vision, AnyResVisionConfig)
    rows = []
    for sizes in ([(16, 48)], [], [(32, 32), (16, 48)], [(64, 32)]):
        sizes = sizes if anyres else [(32, 32)] * len(sizes)
        prefix = torch.randint(0, 500, (3 + 2 * len(rows),), generator=generator).tolist()
        for height, width in sizes:
            prefix += [PLACEHOLDER] * (height * width // PIXELS_PER_TOKEN**2) + [7]
        images = [torch.randn(1, 3, *size, generator=generator, dtype=torch.float64) for size in sizes]
        rows.append(Row(prefix, [], images))
    return rows


def generate(model: SailVL2, prompts: list[Row]) -> tuple[Tensor, Tensor]:
    """(ids [N, G, STEPS], logits [N, G, STEPS, V]): sibling g takes the g-th best token at every step."""
    inputs = pack_rows(prompts, PLACEHOLDER, PIXELS_PER_TOKEN)
    decoder = PromptDecoder(model)
    logits, cache = decoder.prefill(inputs, GROUP, ROOM)
    ids, seen = [], []
    for step in range(STEPS):
        seen.append(logits.unflatten(0, (len(prompts), GROUP)))
        ranked = seen[-1].topk(GROUP, dim=-1).indices
        ids.append(ranked.diagonal(dim1=1, dim2=2))
        if step + 1 < STEPS:
            logits = decoder.decode(ids[-1].flatten(), [cache])
    return torch.stack(ids, -1), torch.stack(seen, 2)


@torch.no_grad()
def uncached(model: SailVL2, prompt: Row, completion: list[int]) -> Tensor:
    """Logits [STEPS, V] after the prompt and after each token of the completion but the last."""
    rows = [Row([*prompt.prefix_ids, *completion[:step]], [], prompt.images) for step in range(len(completion))]
    last = [model.hidden_states(pack_rows([row], PLACEHOLDER, PIXELS_PER_TOKEN))[0][-1] for row in rows]
    return model.language_model.lm_head(torch.stack(last))


def test_cached_generation_equals_uncached(model, prompts):
    ids, logits = generate(model, prompts)
    assert len({tuple(row) for row in ids.flatten(0, 1).tolist()}) == len(prompts) * GROUP
    for n, prompt in enumerate(prompts):
        for g in range(GROUP):
            expected = uncached(model, prompt, ids[n, g].tolist())
            assert (logits[n, g] - expected).abs().max() <= BAR * expected.abs().max()


def test_a_prompt_generates_the_same_alone_and_in_company(model, prompts):
    ids, logits = generate(model, prompts)
    for n, prompt in enumerate(prompts):
        alone_ids, alone = generate(model, [prompt])
        assert torch.equal(alone_ids[0], ids[n])
        assert (alone[0] - logits[n]).abs().max() <= BAR * logits.abs().max()


def test_images_matter(model, prompts):
    """Otherwise the tests above would pass without them."""
    _, logits = generate(model, prompts)
    other = [Row(p.prefix_ids, [], [image + 1.0 for image in p.images]) for p in prompts]
    _, changed = generate(model, other)
    moved = (changed - logits).abs().amax((1, 2, 3)) > 1e-3 * logits.abs().max()
    assert moved.tolist() == [True, False, True, True]
