"""The RL loop. It speaks the glossary and mentions no device, rank, sampler or formula."""

from dataclasses import dataclass

from model.run.folder import RunFolder
from rewards.rubric import Rubric
from rlhf.ahead import AheadCollector, StepRubric
from rlhf.algorithms.algorithm import Algorithm
from rlhf.collect import Collector
from rlhf.config import TrainerConfig
from rlhf.console import StepReporter
from rlhf.evaluation.evaluator import Evaluator
from rlhf.metrics import LossTotals, step_metrics, stored_rollouts
from rlhf.mismatch import MismatchWatch
from rlhf.update import Policy, prepare, update, with_reference


@dataclass(frozen=True)
class Parts:
    """The parts that a run is made of."""

    policy: Policy
    collector: Collector | AheadCollector
    rubric: Rubric | StepRubric
    algorithm: Algorithm
    evaluator: Evaluator
    watch: MismatchWatch
    reporter: StepReporter


def train(config: TrainerConfig, parts: Parts, run: RunFolder) -> None:
    """One synchronous policy-gradient run, from the newest checkpoint to `config.max_steps` or an early stop.

    A step is whole or undone: SIGTERM or an exhausted budget while it samples leaves the state before it.
    """
    policy, collector, algorithm, evaluator = parts.policy, parts.collector, parts.algorithm, parts.evaluator
    engine, tokenizer, rubric = policy.engine, policy.processor.tokenizer, parts.rubric
    state = run.restore(engine)
    if state["step"]:
        collector.restore(state)
        evaluator.restore(state)
        rubric.restore(state)
    else:
        state = {"step": 0, **collector.state(), **evaluator.state(), **rubric.state()}
    rubric.max_steps = config.max_steps
    collector.sync(engine.step_count, engine.weights())
    with run.saved_on_stop(engine, lambda: state) as stop:
        evaluator.start(state["step"], run)
        while (step := state["step"] + 1) <= config.max_steps and not evaluator.stops:
            rubric.step = step
            with run.timed("collect"):
                collected = collector.collect(stop.check)
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
            metrics = {**step_metrics(collected, totals, collector), **agreement, **rubric.take_metrics()}
            with run.timed("evaluate"):
                metrics |= evaluator.evaluate_if_due(step, config.max_steps, run)
            run.append("ledger.jsonl", step, collector.ledger.take_closed())
            run.append(f"rollouts/step_{step:06d}.jsonl", step, stored_rollouts(collected, tokenizer))
            parts.reporter.show(step, metrics, collected, run.seconds)
            tokens = {"collect": metrics["completion_tokens"], "update": metrics.get("trained_tokens", 0.0)}
            run.log(step, {**metrics, **run.tokens_per_second(tokens)})
            state = {"step": step, **collector.state(), **evaluator.state(), **rubric.state()}
            if run.is_due(step, config.max_steps) or evaluator.stops:
                run.save(engine, state)
            stop.check()
