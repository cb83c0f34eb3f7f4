"""The RL loop. It speaks the glossary and mentions no device, rank, sampler or formula."""

import math
from dataclasses import dataclass

from model.run.folder import RunFolder
from model.run.state import Stateful, restore_sections, sections_of
from rlhf.algorithms.algorithm import Algorithm
from rlhf.collect import StepCollector
from rlhf.config import TrainerConfig
from rlhf.console import StepReporter
from rlhf.doctor import Doctor
from rlhf.evaluation.evaluator import Evaluator
from rlhf.metrics import LossTotals, step_metrics, stored_rollouts
from rlhf.mismatch import MismatchWatch
from rlhf.shown import samples_of
from rlhf.update import Policy, prepare, update, with_reference


@dataclass(frozen=True)
class Parts:
    """The parts that a run is made of."""

    policy: Policy
    collector: StepCollector
    algorithm: Algorithm
    evaluator: Evaluator
    watch: MismatchWatch
    doctor: Doctor
    reporter: StepReporter


def train(config: TrainerConfig, parts: Parts, run: RunFolder) -> None:
    """One synchronous policy-gradient run, from the newest checkpoint to `config.max_steps` or an early stop.

    A step is whole or undone: SIGTERM or an exhausted budget while it samples leaves the state before it. In an
    evaluation SIGTERM gives the step up.
    """
    policy, collector, algorithm, evaluator = parts.policy, parts.collector, parts.algorithm, parts.evaluator
    refresh_every = algorithm.config.kl.refresh_every
    engine, tokenizer = policy.engine, policy.processor.tokenizer
    sections: dict[str, Stateful] = {"collector": collector, "evaluator": evaluator, "doctor": parts.doctor}
    if algorithm.entropy.is_adaptive:
        sections["entropy"] = algorithm.entropy
    state = run.restore(policy.saves)
    if state["step"]:
        restore_sections(state, sections)
    else:
        state = sections_of(0, sections)
    collector.sync(engine.step_count, engine.weights())
    with run.saved_on_stop(policy.saves, lambda: state) as stop:
        with stop.at_once():
            evaluator.start(state["step"], run)
        while (step := state["step"] + 1) <= config.max_steps and not evaluator.stops:
            with run.timed("collect"):
                collected = collector.collect(step, stop.check)
            with run.timed("prepare"):
                agreement = parts.watch.look(step, collected.groups, collector)
                groups = algorithm.assign_advantages(with_reference(collected.groups, policy))
                updates = prepare(groups, policy, algorithm, config)
            with run.timed("update"):
                totals = LossTotals(policy_version=engine.step_count)
                for number, one in enumerate(updates):
                    totals.add_update(update(one, policy, algorithm, step, number, run))
            with run.timed("sync"):
                collector.sync(engine.step_count, engine.weights())
            collector.close(collected, totals.untrained)
            metrics = {**step_metrics(collected, totals, collector.ledger), **agreement}
            if policy.moving is not None:
                metrics["kl/reference_age"] = float((step - 1) % refresh_every)
            metrics |= algorithm.entropy.look(metrics.get("entropy", math.nan))
            metrics |= parts.doctor.look(step, metrics, collected)
            with run.timed("evaluate"), stop.at_once():
                metrics |= evaluator.evaluate_if_due(step, config.max_steps, run)
            run.append("ledger.jsonl", step, collector.ledger.take_closed())
            stored = stored_rollouts(collected, tokenizer, run.folder, groups)
            run.append(f"rollouts/step_{step:06d}.jsonl", step, stored)
            parts.reporter.show(step, metrics, collected, run.seconds)
            if parts.reporter.shows(step):
                run.show(step, lambda stored=stored: samples_of(stored, run.folder))
            tokens = {"collect": metrics["completion_tokens"], "update": metrics.get("trained_tokens", 0.0)}
            run.log(step, {**metrics, **run.tokens_per_second(tokens)})
            if policy.moving is not None and step % refresh_every == 0:
                policy.moving.refresh()
            state = sections_of(step, sections)
            if run.is_due(step, config.max_steps) or evaluator.stops:
                run.save(policy.saves, state)
            stop.check()
