"""The RL loop. It speaks the glossary and mentions no device, rank, sampler or formula."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.engine.base import TrainEngine
from model.engine.run import Run
from model.processor import Processor
from rewards.rubric import Rubric
from rlhf.algorithms import Algorithm
from rlhf.collect import collect
from rlhf.config import TrainerConfig
from rlhf.ledger import Ledger
from rlhf.metrics import LossTotals, step_metrics, stored_rollouts
from rlhf.prompts import PromptSet
from rlhf.report import StepReporter
from rlhf.trajectory import Group, PolicyBatch, pack
from rollouts.rollout import RolloutWorker
from rollouts.weight_sync import sync_weights


@dataclass(frozen=True)
class Policy:
    """The trained weights and, when the algorithm asks for KL, the frozen ones it started from."""

    engine: TrainEngine
    reference: TrainEngine | None
    processor: Processor
    micro_batch_tokens: int


def train(
    config: TrainerConfig,
    policy: Policy,
    worker: RolloutWorker,
    prompts: PromptSet,
    rubric: Rubric,
    algorithm: Algorithm,
    run: Run,
    reporter: StepReporter,
) -> None:
    """One synchronous policy-gradient run, from the newest checkpoint to `config.max_steps`."""
    engine, tokenizer = policy.engine, policy.processor.tokenizer
    state = run.restore(engine)
    step, ledger = state["step"], Ledger.from_state(state["ledger"]) if "ledger" in state else Ledger()
    while step < config.max_steps:
        step += 1
        rubric.step = step
        with run.timed("sync"):
            sync_weights(engine.publish_weights, worker)
        with run.timed("collect"):
            collected = collect(
                prompts, worker, rubric, tokenizer, algorithm, ledger, config.groups_per_step, config.max_draws
            )
            groups = [algorithm.assign_advantages(group) for group in collected.groups]
        with run.timed("update"):
            totals = LossTotals()
            for mini_batch, batches in prepare(groups, policy, algorithm, config):
                denominator = algorithm.denominator(mini_batch)
                for batch in batches:
                    totals.add(engine.forward_backward(batch, algorithm.loss, denominator))
                totals.add_update(engine.step())
        ledger.check()
        metrics = {**step_metrics(collected, totals, ledger), **rubric.take_metrics()}
        run.append("ledger.jsonl", step, ledger.take_closed())
        run.append(f"rollouts/step_{step:06d}.jsonl", step, stored_rollouts(collected, tokenizer))
        reporter.show(step, metrics, collected, run.seconds, prompts.root)
        run.log(step, metrics)
        if run.is_due(step, config.max_steps):
            run.save(engine, {"step": step, "ledger": ledger.state()})


def prepare(
    groups: Sequence[Group], policy: Policy, algorithm: Algorithm, config: TrainerConfig
) -> list[tuple[Sequence[Group], list[PolicyBatch]]]:
    """(groups, packed micro-batches) of every optimizer update of the step, all passes.

    With one update per step the old policy is the policy itself; otherwise its log-probs are computed here, once, on
    the same micro-batches, so that the first ratio is exactly 1.
    """
    per_update = max(1, config.mini_batch_size // algorithm.config.group_size)
    mini_batches = [groups[start : start + per_update] for start in range(0, len(groups), per_update)]
    pixels_per_token = policy.processor.config.pixels_per_token
    updates = [
        (
            mini_batch,
            pack(
                mini_batch,
                policy.micro_batch_tokens,
                policy.processor.placeholder_id,
                pixels_per_token,
                algorithm.mean_per_sequence,
            ),
        )
        for mini_batch in mini_batches
    ]
    if len(updates) * config.passes > 1:
        updates = [
            (groups, [replace(b, old_logprobs=policy.engine.logprobs(b.inputs).logprobs) for b in batches])
            for groups, batches in updates
        ]
    if policy.reference is not None:
        reference = policy.reference
        updates = [
            (groups, [replace(b, ref_logprobs=reference.logprobs(b.inputs).logprobs) for b in batches])
            for groups, batches in updates
        ]
    return updates * config.passes
