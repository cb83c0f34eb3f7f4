"""The sampler: cached decoding equals the full forward; draws depend on their key alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.batch import Row, pack_rows
from model.checkpoint import fill, load_model
from model.interface import Mode
from model.sail_vl2 import SailVL2
from rlhf.prompts import PromptSet
from rollouts.config import RolloutConfig, VllmRolloutConfig
from rollouts.embedded import EmbeddedWorker
from rollouts.randomness import sample_seed, uniforms
from rollouts.rollout import FinishReason, generate
from rollouts.weights.handles import WeightsLost
from rollouts.weights.sync import fill_worker, sync_weights, tensor_checksum

CONFIG = RolloutConfig(max_prompt_tokens=96, max_completion_tokens=12)


@pytest.fixture(scope="module")
def tasks(tiny, digits_folder: Path):
    prompts = PromptSet(digits_folder / "train.jsonl", tiny[1], Mode.think, RolloutConfig())
    return [prompts.build(i) for i in range(10)]


def make_worker(tiny, seed: int = 7, **changes) -> EmbeddedWorker:
    return fill_worker(EmbeddedWorker(*tiny, dataclasses.replace(CONFIG, **changes), seed), tiny[0])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_logprobs_equal_the_trainers(tiny, tasks, temperature):
    """fp32: both run the same sums in another order; log-probs of size 6 differ by some 1e-6."""
    model, processor = tiny
    worker = make_worker(tiny, temperature=temperature)
    groups = generate(worker, [task.request(draw, 4) for draw, task in enumerate(tasks[:5])])
    rows = [
        Row(group[0].prompt_ids, [r.completion_ids for r in group], task.images)
        for task, group in zip(tasks[:5], groups, strict=True)
    ]
    with torch.no_grad():
        inputs = pack_rows(rows, processor.placeholder_id, 16)
        scores = model(inputs, temperature, torch.tensor(processor.barred_ids))
    sampled = torch.tensor([x for group in groups for r in group for x in r.rollout_logprobs])
    assert (scores.logprobs - sampled).abs().max() < 2e-5
    assert scores.logprobs.std() > 0.1  # the comparison is not between constants


def test_greedy_cached_decoding_equals_a_full_forward_per_token(tiny, tasks):
    model, processor = tiny
    rollouts = generate(make_worker(tiny), [task.request(0, 1, greedy=True) for task in tasks[:2]])
    for task, (rollout,) in zip(tasks[:2], rollouts, strict=True):
        ids: list[int] = []
        for token in rollout.completion_ids:
            row = Row([*rollout.prompt_ids, *ids], [[0]], task.images)
            inputs = pack_rows([row], processor.placeholder_id, 16)
            with torch.no_grad():
                logits = model.language_model.lm_head(model.hidden_states(inputs)[0][-2])
            logits[processor.barred_ids] = float("-inf")
            assert logits.argmax().item() == token
            ids.append(token)


def test_draws_do_not_depend_on_batch_composition_or_order(tiny, tasks):
    """One thread, at least 8 decode rows: bit-identical tokens and log-probs."""
    together = generate(make_worker(tiny), [task.request(draw, 8) for draw, task in enumerate(tasks)])
    alone = [generate(make_worker(tiny), [task.request(draw, 8)])[0] for draw, task in enumerate(tasks[:3])]
    backwards = generate(make_worker(tiny, max_rows=24), [t.request(d, 8) for d, t in reversed(list(enumerate(tasks)))])
    for draw in range(3):
        assert [r.completion_ids for r in together[draw]] == [r.completion_ids for r in alone[draw]]
        assert [r.rollout_logprobs for r in together[draw]] == [r.rollout_logprobs for r in alone[draw]]
    assert [r.completion_ids for g in together for r in g] == [r.completion_ids for g in backwards[::-1] for r in g]


def test_prompts_of_any_length_do_not_depend_on_company(tiny, tasks):
    """Alone, beside a prompt of the same length, and beside shorter and longer ones: bit-identical."""
    prompt = tasks[0].request(0, 8)

    def lengthened(draw: int, length: int):
        ids = [*prompt.prompt_ids, *[5 + i % 50 for i in range(length - len(prompt.prompt_ids))]]
        return dataclasses.replace(prompt, group_index=draw, prompt_ids=ids)

    for length in (75, 90, 110, 210, 350):
        one = lengthened(0, length)
        alone = generate(make_worker(tiny, max_prompt_tokens=400), [one])[0]
        for others in ([length], [length - 4, length + 6], [80, 96, 128, 200, 380]):
            company = [lengthened(1 + n, other) for n, other in enumerate(others)]
            assert generate(make_worker(tiny, max_prompt_tokens=400), [*company, one])[-1] == alone


def test_siblings_draws_and_run_seeds_differ(tiny, tasks):
    def texts(seed: int, draw: int) -> list[list[int]]:
        return [r.completion_ids for r in generate(make_worker(tiny, seed), [tasks[0].request(draw, 4)])[0]]

    first = texts(7, 0)
    assert len({tuple(ids) for ids in first}) == 4
    assert first == texts(7, 0)
    assert first != texts(7, 1)
    assert first != texts(8, 0)


def test_no_barred_token_is_ever_sampled(tiny, tasks):
    barred = set(tiny[1].barred_ids)
    groups = generate(make_worker(tiny, temperature=5.0), [task.request(d, 16) for d, task in enumerate(tasks)])
    sampled = {token for group in groups for r in group for token in r.completion_ids}
    assert len(sampled) > 200
    assert not sampled & barred


def test_completions_end_at_the_first_end_of_turn(tiny, tasks):
    """A model whose head loves the end of turn stops at different lengths, and finished rows do not disturb others."""
    model, processor = tiny
    eager = SailVL2(model.config)
    eager.load_state_dict(model.state_dict())
    with torch.no_grad():
        eager.language_model.model.embed_tokens.weight[processor.tokenizer.end_id] *= 3.0
    worker = fill_worker(EmbeddedWorker(eager, processor, CONFIG, 1), eager)
    groups = generate(worker, [task.request(d, 8) for d, task in enumerate(tasks)])
    rollouts = [r for group in groups for r in group]
    reasons = {r.finish_reason for r in rollouts}
    assert reasons == {FinishReason.stop, FinishReason.length}
    for r in rollouts:
        ended = r.completion_ids[-1] == processor.tokenizer.end_id
        assert ended == (r.finish_reason is FinishReason.stop)
        assert processor.tokenizer.end_id not in r.completion_ids[:-1]
        assert len(r.completion_ids) == 12 or ended


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["as on CPU", "as on a GPU"])
def test_places_of_finished_completions_are_taken_while_others_go_on(tiny, tasks, monkeypatch, runs_ahead):
    """Draws are those of a sampler with room for everybody, and no more rows are decoded than allowed.

    On a GPU the next token is worked on before it is known who has finished; never one beyond the limit.
    """
    model, processor = tiny
    eager = SailVL2(model.config)
    eager.load_state_dict(model.state_dict())
    with torch.no_grad():
        eager.language_model.model.embed_tokens.weight[processor.tokenizer.end_id] *= 5.0
    requests = [task.request(d, 8) for d, task in enumerate(tasks)]
    roomy = generate(fill_worker(EmbeddedWorker(eager, processor, CONFIG, 1), eager), requests)
    worker = fill_worker(EmbeddedWorker(eager, processor, dataclasses.replace(CONFIG, max_rows=32), 1), eager)
    worker._runs_ahead = runs_ahead
    decode, seen, logits = worker._decode, [], torch.empty(0)

    def watch(token_ids, caches):
        nonlocal logits
        logits.fill_(float("nan"))  # a recorded step overwrites what the one before returned
        assert max(cache.length for cache in caches) < CONFIG.max_completion_tokens - 1
        seen.append((sum(batch.num_live for batch in worker._batches), len(caches), token_ids.shape[0]))
        logits = decode(token_ids, caches)
        return logits

    monkeypatch.setattr(worker, "_decode", watch)
    assert generate(worker, requests) == roomy
    assert max(live for live, _, _ in seen) <= 32
    assert max(batches for _, batches, _ in seen) > 1  # some moved in while others went on
    share = sum(rows for _, _, rows in seen) / (12 * 8 * len(requests))
    assert share < (0.8 if runs_ahead else 0.7)  # finished rows are not decoded, or one step more


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["as on CPU", "as on a GPU"])
def test_weights_may_change_under_way_and_tokens_know_which_drew_them(tiny, tasks, runs_ahead):
    worker = make_worker(tiny)
    worker._runs_ahead = runs_ahead
    handle = worker.submit(tasks[0].request(0, 8))
    for _ in range(3):
        worker._admit()
        assert worker._step() == []
    other = SailVL2(tiny[0].config)
    other.initialise(9)
    sync_weights(worker, 4, other.state_dict().items())
    ((done, rollouts),) = worker.poll()
    assert done == handle
    undisturbed = generate(make_worker(tiny), [tasks[0].request(0, 8)])[0]
    longest = max(range(8), key=lambda i: min(len(r[i].completion_ids) for r in (rollouts, undisturbed)))
    found, expected = rollouts[longest], undisturbed[longest]
    assert found.policy_versions == ((0, 0), (4, 4))  # the fourth token's logits were there before the weights changed
    assert found.rollout_logprobs[:4] == expected.rollout_logprobs[:4]
    assert found.rollout_logprobs[4] != expected.rollout_logprobs[4]


def test_an_aborted_request_leaves_its_places(tiny, tasks):
    worker = make_worker(tiny)
    first, second = (worker.submit(tasks[d].request(d, 8)) for d in range(2))
    worker._admit()
    worker._step()
    worker.abort(first)
    assert [handle for handle, _ in worker.poll()] == [second]
    assert worker.poll() == []


def test_weight_sync_is_proven(tiny, tiny_folder):
    model, _ = load_model(tiny_folder)
    worker = make_worker(tiny)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    assert sync_weights(worker, 5, model.state_dict().items()) == 5
    assert worker.version == 5
    held = worker._decoder.model.state_dict()
    assert all(torch.equal(held[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(RuntimeError, match=r"version 6: tensors never arrived.*language_model.model.norm.weight"):
        worker.load_weights(6, [("mlp1.0.weight", model.state_dict()["mlp1.0.weight"])])


def test_nothing_is_sampled_without_weights_of_one_version(tiny, tasks):
    """Neither before the first weights, nor after an update that broke off half-way; the next whole one mends it."""
    worker = EmbeddedWorker(*tiny, CONFIG, 7)
    with pytest.raises(RuntimeError, match=r"sampling: expected weights of one policy version, found none"):
        worker.submit(tasks[0].request(0, 2))
    expected = generate(fill_worker(worker, tiny[0]), [tasks[0].request(0, 2)])
    worker.submit(tasks[0].request(0, 2))
    with pytest.raises(RuntimeError, match="tensors never arrived"):
        worker.load_weights(1, list(tiny[0].state_dict().items())[:3])
    with pytest.raises(RuntimeError, match="an unfinished update; call load_weights"):
        worker.poll()
    sync_weights(worker, 0, tiny[0].state_dict().items())
    assert worker.poll()[0][1] == expected[0]


def test_an_update_that_is_not_whole_or_not_proven_stops_sampling(tiny, tasks):
    class Handle:
        seconds = 0.0

        def __init__(self, tensors) -> None:
            self.tensors = tensors

        def open(self, rank=0):
            yield from self.tensors.items()

    tensors = tiny[0].state_dict()
    manifest = {name: tensor_checksum(tensor) for name, tensor in tensors.items()}
    worker = make_worker(tiny)
    few = dict(list(tensors.items())[:5])
    for given, message in (
        (few, r"version 1: tensors do not fit .*\n  missing "),
        ({**tensors, "x.y": tensors["mlp1.1.bias"]}, "unexpected x.y"),
        ({**tensors, "mlp1.1.bias": torch.zeros(1)}, r"mlp1\.1\.bias: expected"),
    ):
        with pytest.raises(ValueError, match=message):
            worker.receive(1, Handle(given), manifest)
        assert worker.version == 0  # nothing was copied yet
    for known in ({**manifest, "mlp1.1.bias": 1}, {}):
        assert "mlp1.1.bias" in worker.receive(1, Handle(tensors), known).wrong
        with pytest.raises(RuntimeError, match="expected weights of one policy version"):
            worker.submit(tasks[0].request(0, 2))
    assert worker.receive(1, Handle(tensors), manifest).wrong == [] and worker.version == 1


def test_tensors_may_change_as_soon_as_the_next_one_is_drawn(tiny, tasks):
    """An engine may gather every tensor into the same memory."""

    def gathered():
        for name, tensor in tiny[0].state_dict().items():
            lent = tensor.clone()
            yield name, lent
            lent.zero_()

    worker = EmbeddedWorker(*tiny, CONFIG, 7)
    sync_weights(worker, 0, gathered())
    requests = [tasks[0].request(0, 2)]
    assert generate(worker, requests) == generate(make_worker(tiny), requests)


def test_a_lost_handle_leaves_the_sampler_as_it_was(tiny, tasks):
    class Lost:
        seconds = 0.0

        def open(self, rank=0):
            yield "mlp1.1.bias", torch.zeros_like(tiny[0].state_dict()["mlp1.1.bias"])
            raise WeightsLost("weights: lost on the way")

    worker, requests = make_worker(tiny), [tasks[0].request(0, 2)]
    before = generate(worker, requests)
    with pytest.raises(WeightsLost):
        worker.receive(1, Lost(), {})
    assert worker.version == 0 and generate(worker, requests) == before


def test_a_corrupted_tensor_stops_the_sync_by_name(tiny, monkeypatch):
    worker = make_worker(tiny)

    def corrupt(model: SailVL2, tensors) -> None:
        fill(model, ((name, tensor + 1 if name == "mlp1.1.bias" else tensor) for name, tensor in tensors))

    monkeypatch.setattr("rollouts.embedded.fill", corrupt)
    with pytest.raises(RuntimeError, match=r"other bytes on the worker for \['mlp1.1.bias'\]"):
        sync_weights(worker, 1, tiny[0].state_dict().items())


def test_prompt_longer_than_the_cache_is_refused(tiny, tasks):
    with pytest.raises(ValueError, match=r"rollouts.max_prompt_tokens = 20 tokens, found 7\d"):
        make_worker(tiny, max_prompt_tokens=20).submit(tasks[0].request(0, 2))


def test_every_limit_of_a_request_is_checked(tiny, tasks):
    config = VllmRolloutConfig(max_images=1)
    one = tasks[0].request(0, 2)
    with pytest.raises(ValueError, match=r"at most rollouts.max_images = 1 images and frames, found 2"):
        EmbeddedWorker(*tiny, config, 7).submit(dataclasses.replace(one, images=list(one.images) * 2))


def test_abort_forgets_a_request(tiny, tasks):
    worker = make_worker(tiny)
    first, second = worker.submit(tasks[0].request(0, 8)), worker.submit(tasks[1].request(1, 8))
    worker.abort(first)
    assert [handle for handle, _ in worker.poll()] == [second]
    assert worker.poll() == []


def test_uniforms_are_uniform_and_keyed():
    """Kolmogorov distance of 20,000 draws: below 1.63 / sqrt(n) with probability 0.99; seeds are fixed here."""
    seeds = np.array([sample_seed(0, draw, i) for draw in range(500) for i in range(8)], dtype=np.uint64)
    values = np.concatenate([uniforms(seeds, position) for position in range(5)])
    assert values.min() >= 0.0 and values.max() < 1.0
    n = len(values)
    distance = np.abs(np.sort(values) - (np.arange(n) + 0.5) / n).max()
    assert distance < 1.63 / n**0.5
    assert len(np.unique(values)) == n
    assert abs(np.corrcoef(uniforms(seeds, 0), uniforms(seeds, 1))[0, 1]) < 0.05
    assert 0 <= int(seeds.max()) < 2**63
