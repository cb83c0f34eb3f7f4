"""The limits of an RL run: fitted to the model, checked together, and shown in its first lines."""

from collections.abc import Mapping
from dataclasses import replace

from model.config import MoeLanguageConfig
from model.processing.processor import Processor
from rewards.config import Combine, RewardConfig
from rlhf.algorithms.algorithm import Algorithm
from rlhf.algorithms.config import GroupFilter
from rlhf.algorithms.registry import build_algorithm
from rlhf.config import RlConfig


def checked(config: RlConfig, processor: Processor) -> tuple[RlConfig, Algorithm]:
    """The config with limits that fit the model, and its algorithm. `ValueError` where they do not go together.

    A filter of groups by right and wrong answers becomes one by rewards where answers are not rewarded. Routing replay
    is switched off for a decoder without routers.
    """
    language = processor.config.language
    config = replace(config, rollouts=config.rollouts.within(language.max_position_embeddings))
    if config.algorithm.group_filter is GroupFilter.correctness_spread and not config.reward.pays_answers:
        config = replace(config, algorithm=replace(config.algorithm, group_filter=GroupFilter.reward_spread))
    correction = config.algorithm.correction
    if correction.routing_replay and not isinstance(language, MoeLanguageConfig):
        correction = replace(correction, routing_replay=False)
        config = replace(config, algorithm=replace(config.algorithm, correction=correction))
    algorithm = build_algorithm(config.algorithm, config.rollouts.max_completion_tokens)
    if config.trainer.balance_coefficient and not isinstance(language, MoeLanguageConfig):
        raise ValueError(
            f"trainer.balance_coefficient: expected 0 for {config.checkpoint}, whose decoder has no routers, found "
            f"{config.trainer.balance_coefficient}"
        )
    return config, algorithm


def describe_replay(asked: RlConfig, used: RlConfig) -> list[str]:
    """Say in one line whether routes are replayed, where that was `asked` for; `used` are the settings that fit."""
    if not asked.algorithm.correction.routing_replay:
        return []
    if not used.algorithm.correction.routing_replay:
        return [
            "routing replay: algorithm.correction.routing_replay has no effect, because this model's decoder has no "
            "routers"
        ]
    return [
        "routing replay: the trainer takes the experts that the samplers chose (algorithm.correction.routing_replay)"
    ]


def _composed(reward: RewardConfig, verifier: str, weights: Mapping[str, float]) -> str:
    """The reward as a formula: its product, where there is one, and what is added by its weight."""
    named = {name: f"{name} ({verifier})" if name == "answer" else name for name in weights}
    multiplied = reward.multiplied(weights)
    terms = [f"{named[name]} x {weight:g}" for name, weight in weights.items() if name not in multiplied]
    if multiplied:
        product = " x ".join(text for name, text in named.items() if name in multiplied)
        share = 1 - weights.get("format", 0.0) if reward.combine is Combine.product_plus_format else 1.0
        terms.insert(0, f"({product}) x {share:g}")
    return " + ".join(terms)


def _rewards(reward: RewardConfig) -> str:
    """The reward, and in a line each what it is for data sets that differ."""
    lines = [f"reward: {_composed(reward, reward.verifier, reward.weights)} ({reward.combine.value})"]
    for dataset in reward.datasets:
        composed = _composed(reward, reward.verifier_of(dataset), reward.weights_of(dataset))
        lines.append(f"reward of rows of {dataset}: {composed}")
    return "\n".join(lines)


def describe(config: RlConfig, num_prompts: int) -> str:
    """The limits, steps and rewards of a run in three lines; more where answers are not rewarded, and of adapters."""
    trainer, rollouts, reward = config.trainer, config.rollouts, config.reward
    unpaid = (
        "\nanswers are not rewarded: group filter, curriculum and best policy go by the reward "
        f"(algorithm.group_filter={config.algorithm.group_filter.value}, trainer.curriculum="
        f"{trainer.curriculum.value})"
    )
    return (
        f"limits: {rollouts.max_prompt_tokens} + {rollouts.max_completion_tokens} tokens "
        f"(rollouts.max_prompt_tokens + rollouts.max_completion_tokens), learning rate "
        f"{config.optimizer.of(config.adapter).learning_rate:g}, {config.algorithm.name}\n"
        f"steps: {trainer.max_steps} of {trainer.groups_per_step} groups of {config.algorithm.group_size} completions, "
        f"at most {trainer.max_draws} draws each, {config.updates_per_step} updates each; {num_prompts} prompts\n"
        f"{_rewards(reward)}"
        f"{'' if config.reward.pays_answers else unpaid}"
        + "".join(f"\n{line}" for line in config.adapter.described(config.optimizer.learning_rate))
    )
