"""From prompts to rewarded groups, refilling what the algorithm's filter drops, within a budget."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from model.processing.tokenizer import Tokenizer
from model.run.interrupt import CleanStop
from model.run.state import State, Stateful
from rewards.result import RewardResult
from rewards.rubric import Rubric
from rlhf.algorithms.algorithm import Algorithm
from rlhf.config import BudgetEnd, KeepSurplus, TrainerConfig, VarianceConfig
from rlhf.drawing.draws import DrawOrder
from rlhf.drawing.kept import restore_group, stored_group
from rlhf.drawing.ledger import Ledger
from rlhf.drawing.variance import distinct_share
from rlhf.prompts import PromptSet, Task
from rlhf.rewarding import name_failures, score_groups
from rlhf.trajectory import Group
from rollouts.rollout import MOMENT, Rollout, RolloutRequest, RolloutWorker, generate_in_pieces
from rollouts.weights.sync import sync_weights

SHOWN_WAIT = 5.0
"""Seconds of waiting for rewards from which on the wait is shown."""


class BudgetExhausted(CleanStop):
    """`trainer.max_draws` prompts gave too few useful groups, and `trainer.when_budget_ends` is stop."""

    exit_code = 7


@dataclass(frozen=True)
class Collected:
    """Groups of one step: `groups` to train, `dropped` ones with their reasons, and useful ones `kept` for later."""

    groups: list[Group]
    dropped: list[tuple[Group, str]]
    kept: list[Group]
    num_drawn: int  # in this step; groups kept by earlier ones not counted
    metrics: dict[str, float] = field(default_factory=dict)  # figures of the step from prompts, samplers and rewards

    @property
    def sampled(self) -> list[Group]:
        """Everything that is not waiting, by group index; groups that were kept earlier among them."""
        return sorted([*self.groups, *(group for group, _ in self.dropped)], key=lambda group: group.group_index)


class StepCollector(Stateful, Protocol):
    """Where the groups of a step come from. It owns the samplers; the loop asks it for everything that they do."""

    @property
    def ledger(self) -> Ledger:
        """The draws, as they stand after the step that was collected last."""
        ...

    def collect(self, step: int, check: Callable[[], None]) -> Collected:
        """The groups of a step. `check` is called while waiting; whatever it raises leaves the step undone."""
        ...

    def close(self, collected: Collected, untrained: set[int]) -> None:
        """Book the step's groups. Those in `untrained`, by index, had numbers that were not finite in every update."""
        ...

    def sync(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Bring the policy's weights to the samplers."""
        ...

    def probe(self, request: RolloutRequest) -> list[tuple[str, dict[str, Tensor]]]:
        """See `RolloutWorker.probe`."""
        ...


class Collector:
    """Draws prompts, has them sampled and scored, and sorts groups into trained, dropped and kept ones.

    Between steps its state is the ledger, the order of draws with its pass rates, the kept groups, and what the rubric
    watches.
    """

    def __init__(
        self,
        config: TrainerConfig,
        prompts: PromptSet,
        worker: RolloutWorker,
        rubric: Rubric,
        tokenizer: Tokenizer,
        algorithm: Algorithm,
        seed: int,
        variance: VarianceConfig | None = None,
    ) -> None:
        """`variance` is how `Curriculum.variance` scores prompts, where the config has that."""
        self.ledger = Ledger()
        self.kept: list[Group] = []
        self.order = DrawOrder(prompts.ids, prompts.weights, seed, config.curriculum, variance)
        self._config, self._prompts, self._worker, self._rubric = config, prompts, worker, rubric
        self._tokenizer, self._algorithm = tokenizer, algorithm
        self._num_failed = 0  # prompts in a row of which the sampler completed nothing
        self.show: Callable[[str], None] = lambda line: None  # is told how far the step is
        self._step = 0
        self._seconds = {
            "sampling": 0.0,
            "rewards_wait": 0.0,
        }  # in this step; the wait is for rewards when all is sampled
        rubric.max_steps = config.max_steps

    def collect(self, step: int, check: Callable[[], None] = lambda: None) -> Collected:
        """Draw until `groups_per_step` groups pass the filter or `max_draws` prompts were drawn.

        Groups kept by earlier steps come first. Each round draws what is still missing, divided by the share of draws
        that were useful in the last step: few large rounds sample faster than many small ones. `check` is called
        between rounds and while sampling; whatever it raises leaves this step undone.
        """
        config, ledger = self._config, self.ledger
        self._rubric.step = self._step = step
        self._seconds = {"sampling": 0.0, "rewards_wait": 0.0}
        wanted = config.groups_per_step
        useful, self.kept = self.kept[:wanted], self.kept[wanted:]
        dropped: list[tuple[Group, str]] = []
        num_drawn = num_useful = 0
        while len(useful) < wanted and num_drawn < config.max_draws:
            check()
            share = max(ledger.useful_share, wanted / config.max_draws)
            count = min(math.ceil((wanted - len(useful)) / share), config.max_draws - num_drawn)
            num_drawn += count
            for group in self._sample(count, check):
                reason = self._algorithm.drop_reason(group)
                num_useful += not reason
                if not reason and len(useful) < wanted:
                    useful.append(group)
                elif not reason and config.keep_surplus is KeepSurplus.always:
                    self.kept.append(group)
                else:
                    dropped.append((group, reason or "surplus"))
        if num_drawn:
            ledger.useful_share = num_useful / num_drawn
        if len(useful) < wanted:
            useful = self._end_of_budget(useful, dropped, num_drawn)
        seconds = {f"time/{name}": round(value, 4) for name, value in self._seconds.items()}
        metrics = {**self._coverage(), **self._worker.metrics(), **self._rubric.take_metrics(), **seconds}
        return Collected(useful, dropped, list(self.kept), num_drawn, metrics)

    def close(self, collected: Collected, untrained: set[int]) -> None:
        """Book the step's groups. Those in `untrained`, by index, had numbers that were not finite in every update."""
        book(self.ledger, collected, untrained)
        self.ledger.check({group.group_index for group in self.kept})

    def sync(self, version: int, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Bring the policy's weights to the samplers."""
        sync_weights(self._worker, version, tensors)

    def probe(self, request: RolloutRequest) -> list[tuple[str, dict[str, Tensor]]]:
        """See `RolloutWorker.probe`."""
        return self._worker.probe(request)

    def state(self) -> State:
        """Data that a checkpoint keeps, as JSON."""
        kept = [stored_group(group) for group in self.kept]
        order, bad_rows, rewards = self.order.state(), self._prompts.bad_rows.state(), self._rubric.state()
        return {"ledger": self.ledger.state(), "order": order, "kept": kept, "bad_rows": bad_rows, "rewards": rewards}

    def restore(self, state: State) -> None:
        self._rubric.restore(state["rewards"])
        self.ledger = Ledger.from_state(state["ledger"])
        self.order.restore(state["order"])
        self._prompts.bad_rows.restore(state["bad_rows"])
        self.kept = [restore_group(record, self._prompts.by_id(record["prompt_id"])) for record in state["kept"]]

    def _sample(self, count: int, check: Callable[[], None]) -> list[Group]:
        """Rewarded groups of the next `count` draws. Rows whose media cannot be read are replaced by other draws."""
        tasks = []
        for _ in range(count):
            check()
            tasks.append(self._next_task())
        indices = [self.ledger.draw(task.prompt.id) for task in tasks]
        size = self._algorithm.config.group_size
        replays = self._algorithm.config.correction.routing_replay
        requests = [
            task.request(index, size, returns_routes=replays) for task, index in zip(tasks, indices, strict=True)
        ]
        groups = self._score_while_sampling(tasks, requests, check)
        check()
        if replays:
            require_routes(groups)
        for group in groups:
            scored = group.scored
            num_right = sum(self._success(t.reward) for t in scored)
            diversity = None
            if self.order.wants_diversity:
                diversity = distinct_share(t.rollout.completion_ids for t in scored)
            self.order.record(group.prompt.id, num_right, len(scored), diversity)
        return groups

    def _success(self, result: RewardResult) -> float:
        """How well a completion did, from 0 to 1: by its answer, or by its reward where answers are not rewarded, or
        where nobody judged this one."""
        if self._rubric.config.pays_answers and result.is_judged:
            return float(result.correct)
        return min(1.0, max(0.0, result.value or 0.0))

    def _score_while_sampling(
        self, tasks: Sequence[Task], requests: Sequence[RolloutRequest], check: Callable[[], None]
    ) -> list[Group]:
        """Groups by group index. A second thread scores what is complete while the sampler goes on."""
        groups: list[Group] = []
        scored: list[Future[list[Group]]] = []
        sampled: list[list[Rollout]] = []
        total = sum(request.group_size for request in requests)
        scorer = ThreadPoolExecutor(1, "rewards")

        def show(num_sampled: int, wait: str = "") -> None:
            num_scored = sum(len(group.trajectories) for group in groups)
            self.show(f"step {self._step}: {num_sampled} of {total} completions sampled, {num_scored} scored{wait}")

        begin = time.monotonic()
        try:
            for piece in generate_in_pieces(self._worker, requests, check, show):
                own_tasks = tasks[len(sampled) : len(sampled) + len(piece)]
                sampled += piece
                scored.append(
                    scorer.submit(score_groups, own_tasks, piece, self._rubric, self._tokenizer, self._algorithm)
                )
                while scored and scored[0].done():  # an error of the rewards ends the sampling
                    groups += scored.pop(0).result()
            self._num_failed = name_failures(sampled, self._num_failed)
            sampled_at = time.monotonic()
            self._seconds["sampling"] += sampled_at - begin
            for future in scored:
                while not wait([future], MOMENT).done:
                    check()
                    if (waited := time.monotonic() - sampled_at) > SHOWN_WAIT:
                        show(total, f"; waiting for {self._rubric.awaited()} for {waited:.0f} s")
                groups += future.result()
            self._seconds["rewards_wait"] += time.monotonic() - sampled_at
            return groups
        finally:
            scorer.shutdown(wait=False, cancel_futures=True)  # all is done, or the run ends and with it its rubric

    def _next_task(self) -> Task:
        while True:
            task = self._prompts.task(self.order.next())
            if task is not None:
                return task

    def _coverage(self) -> dict[str, float]:
        rates, diversities = self.order.pass_rates.values(), self.order.diversities.values()
        return {
            **({"prompts/diversity": sum(diversities) / len(diversities)} if diversities else {}),
            "prompts/seen_share": len(rates) / self.order.num_prompts,
            "prompts/pass_rate": sum(rates) / len(rates) if rates else math.nan,
        }

    def _end_of_budget(self, useful: list[Group], dropped: list[tuple[Group, str]], num_drawn: int) -> list[Group]:
        """The groups that train although some are missing."""
        match self._config.when_budget_ends:
            case BudgetEnd.train_partial:
                return useful
            case BudgetEnd.skip_step:
                if self._config.keep_surplus is KeepSurplus.always:
                    self.kept = [*useful, *self.kept]
                else:
                    dropped += [(group, "skipped_step") for group in useful]
                return []
            case BudgetEnd.stop:
                reasons = dict(Counter(reason for _, reason in dropped))
                raise BudgetExhausted(
                    f"trainer.max_draws: {num_drawn} prompts were drawn and {len(useful)} of trainer.groups_per_step = "
                    f"{self._config.groups_per_step} groups are useful; the others: {reasons}. The state before this "
                    "step is saved; raise trainer.max_draws, give other prompts, or set trainer.when_budget_ends="
                    "train_partial in a new run"
                )


def require_routes(groups: Sequence[Group]) -> None:
    """`RuntimeError` unless every completion that may train says which experts its sampler took."""
    for group in groups:
        if lacking := [t.rollout.sample_index for t in group.scored if t.rollout.routes is None]:
            raise RuntimeError(
                f"prompt {group.prompt.id}: algorithm.correction.routing_replay: expected the experts of every token, "
                f"found none for samples {lacking}; use a sampler that returns them, or set "
                "algorithm.correction.routing_replay=false"
            )
        for trajectory in group.scored:
            rollout = trajectory.rollout
            assert rollout.routes is not None
            if problem := rollout.routes.problem(len(rollout.prompt_ids), len(rollout.completion_ids)):
                raise RuntimeError(f"prompt {group.prompt.id}, sample {rollout.sample_index}: {problem}")


def book(ledger: Ledger, collected: Collected, untrained: set[int]) -> list[tuple[int, str, str]]:
    """Close the groups of a step: trained, or dropped for a reason. Returns (group index, end, reason) of each."""
    ends = [(group.group_index, "dropped", reason) for group, reason in collected.dropped]
    for group in collected.groups:
        lost = group.group_index in untrained
        ends.append((group.group_index, "dropped", "not_finite") if lost else (group.group_index, "trained", ""))
    for index, end, reason in ends:
        ledger.end(index, end, reason)
    return ends
