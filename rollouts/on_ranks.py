"""A sampler on every process of a sharded engine: each samples its share of the prompts from a copy of the weights.

The copy is gathered tensor by tensor, and freed when the next update begins.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from model.engine.base import ModelShape
from model.engine.lead import Here, Lead, LeadEngine
from model.engine.parts import deal
from model.processing.processor import Processor
from rollouts.config import Placement, PoolConfig, RolloutConfig, VllmRolloutConfig
from rollouts.intake import Intake, require_weights
from rollouts.probe import Probe
from rollouts.rollout import NO_WEIGHTS, Proof, Rollout, RolloutRequest, generate
from rollouts.sampler import Sampler, build_sampler


class SamplingGivenUp(RuntimeError):
    """Rank 0 wants no more of the samples that are under way."""


@dataclass
class _OnRank:
    """The sampler of one rank. Ours is made when weights come, and gone when they are freed; vLLM's stays."""

    shape: ModelShape
    processor: Processor
    config: RolloutConfig
    run_seed: int
    returns_routes: bool  # whether requests may ask for the experts of every token
    sampler: Sampler | None = None

    def take(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> Proof:
        return self.built().load_weights(version, tensors)

    def built(self) -> Sampler:
        if self.sampler is None:
            settings = self.config, self.run_seed, self.returns_routes
            self.sampler = build_sampler(self.shape, self.processor, *settings)
        return self.sampler

    def free(self) -> None:
        if self.sampler is not None and self.sampler.release():
            self.sampler = None

    def ready(self) -> Sampler:
        if self.sampler is None:
            require_weights(NO_WEIGHTS)
        assert self.sampler is not None
        return self.sampler


class RanksWorker:
    """`RolloutWorker` over all ranks of an engine; rank 0 calls it.

    Requests that are queued at the first poll are dealt over the ranks. Completions do not depend on that.
    """

    def __init__(
        self,
        lead: Lead,
        engine: LeadEngine,
        processor: Processor,
        config: RolloutConfig,
        seed: int,
        returns_routes: bool = False,
    ) -> None:
        config = config.within(engine.shape.config.language.max_position_embeddings)
        self._lead, self._number, self._config = lead, lead.new_number(), config
        self._intake, self.version = Intake(config), NO_WEIGHTS
        self._queue: dict[int, RolloutRequest] = {}
        self._sampling: _Sampling | None = None
        rows = -(-config.max_rows // lead.ranks.num_ranks)
        share = replace(config.alone(), max_rows=rows, pool=PoolConfig(placement=Placement.ranks))
        lead.on_all_alike("samplers", _build, self._number, engine.shape, processor, share, seed, returns_routes)
        self._own: _OnRank = lead.here.held[self._number]
        engine.before_update.append(self._free)

    @property
    def is_idle(self) -> bool:
        return not self._queue and self._sampling is None

    def submit(self, request: RolloutRequest) -> int:
        handle = self._intake.accept(request, self.version)
        self._queue[handle] = request
        return handle

    def poll(self) -> list[tuple[int, list[Rollout]]]:
        if self.is_idle:
            return []
        require_weights(self.version)
        if self._sampling is None:
            waiting, self._queue = self._queue, {}
            self._sampling = _Sampling(self._lead, self._number, self._own.ready(), waiting, self._config)
        found, is_done = self._sampling.poll()
        if is_done:
            self._sampling = None
        return found

    def abort(self, handle: int) -> None:
        self._queue.pop(handle, None)
        if self._sampling is not None and self._sampling.abort(handle):
            self._sampling = None

    def load_weights(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> Proof:
        """Every rank takes the tensors as all ranks draw them. `tensors` are those of the engine over these ranks."""
        self.version = NO_WEIGHTS
        self._lead.on_all_alike("expect weights", _expect, self._number, version)
        own = self._own.take(version, tensors)
        proofs = self._lead.on_all_alike("prove weights", _proof, self._number)
        others = [proof for proof in proofs[1:] if proof is not None]
        if len(others) < len(proofs) - 1 or any(proof.version != version for proof in others):
            raise RuntimeError(f"weight sync to version {version}: not all ranks were sent the weights")
        whole = Proof.of_all(version, own.sent, [own.held, *(proof.held for proof in others)])
        if not whole.wrong:
            self.version = version
        return whole

    def probe(self, request: RolloutRequest) -> list[tuple[str, Probe]]:
        found = self._lead.on_all_alike("probe", _probe, self._number, request)
        return [(f"{name} of rank {rank}", probe) for rank, own in enumerate(found) for name, probe in own]

    def metrics(self) -> dict[str, float]:
        return {}

    def close(self) -> None:
        self._queue = {}
        if self._lead.is_broken:
            return
        if self._sampling is not None:
            self._sampling.give_up()
        if not self._lead.is_waited_for:  # a verb was broken off
            self._lead.on_all_alike("close samplers", _close, self._number)

    def _free(self) -> None:
        """Free the copies of the weights before an update."""
        if self.version != NO_WEIGHTS:
            self.version = NO_WEIGHTS
            self._lead.on_all_alike("free weights", _free, self._number)


class _Sampling:
    """One verb in which every rank samples its share."""

    def __init__(
        self, lead: Lead, number: int, own: Sampler, waiting: Mapping[int, RolloutRequest], config: RolloutConfig
    ) -> None:
        handles, requests = list(waiting), list(waiting.values())
        longest = config.max_completion_tokens
        costs = [len(one.prompt_ids) + one.group_size * longest for one in requests]
        shares = deal(costs, lead.ranks.num_ranks)
        dealt = [[handles[place] for place in share if place is not None] for share in shares]
        self._lead, self._own = lead, own
        self._open = set(handles)
        lead.begin("sample", _sample, [(number, [(one, waiting[one]) for one in share]) for share in dealt])
        self._handles = {own.submit(waiting[one]): one for one in dealt[0]}

    def poll(self) -> tuple[list[tuple[int, list[Rollout]]], bool]:
        """(completed requests, whether it was the last of them)."""
        if not self._own.is_idle:
            self._lead.ranks.watch.marks.one()
            return self._wanted((self._handles[own], rollouts) for own, rollouts in self._own.poll()), False
        others = [one for answer in self._lead.answers() for one in answer]
        return self._wanted(others), True

    def abort(self, handle: int) -> bool:
        """Forget a request; whether that was the last one, so that all ranks have ended."""
        self._open.discard(handle)
        if self._open:
            return False
        self.give_up()
        return True

    def give_up(self) -> None:
        self._open = set()
        for own in self._handles:
            self._own.abort(own)
        if self._lead.is_waited_for:
            self._lead.give_up()
            self._lead.answers()

    def _wanted(self, found: Iterable[tuple[int, list[Rollout]]]) -> list[tuple[int, list[Rollout]]]:
        wanted = [(handle, rollouts) for handle, rollouts in found if handle in self._open]
        self._open -= {handle for handle, _ in wanted}
        return wanted


def _build(
    here: Here,
    number: int,
    shape: ModelShape,
    processor: Processor,
    config: RolloutConfig,
    run_seed: int,
    returns_routes: bool,
) -> None:
    shape = replace(shape, device=here.ranks.device)
    held = here.held[number] = _OnRank(shape, processor, config, run_seed, returns_routes)
    if isinstance(config, VllmRolloutConfig):
        held.built()  # now: the engines of all ranks meet while they start


def _expect(here: Here, number: int, version: int) -> None:
    def take(tensors: Iterable[tuple[str, Tensor]]) -> None:
        here.held[number, "proof"] = here.held[number].take(version, tensors)

    here.held[number, "proof"] = None
    here.drawn = take if here.ranks.rank else None


def _proof(here: Here, number: int) -> Proof | None:
    here.drawn = None
    return here.held.pop((number, "proof"))


def _sample(here: Here, number: int, requests: Sequence[tuple[int, RolloutRequest]]) -> list[tuple[int, list[Rollout]]]:
    """Sample the share of a rank that follows; rank 0 samples its share by polls of its own."""
    sampler, watch = here.held[number].ready(), here.ranks.watch

    def check() -> None:
        watch.marks.one()
        if watch.is_given_up:
            raise SamplingGivenUp

    try:
        done = generate(sampler, [request for _, request in requests], check)
    except SamplingGivenUp:
        return []
    return [(handle, rollouts) for (handle, _), rollouts in zip(requests, done, strict=True)]


def _probe(here: Here, number: int, request: RolloutRequest) -> list[tuple[str, Probe]]:
    return here.held[number].ready().probe(request)


def _free(here: Here, number: int) -> None:
    here.held[number].free()


def _close(here: Here, number: int) -> None:
    held: _OnRank = here.held.pop(number)
    if held.sampler is not None:
        held.sampler.close()
