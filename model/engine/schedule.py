"""The learning rate of each update."""

import math

from model.engine.config import OptimizerConfig, Schedule


def learning_rate_at(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of update `step` (0-based): linear warm-up, then the schedule down to its final share."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps))
    match config.schedule:
        case Schedule.constant:
            share = 1.0
        case Schedule.linear:
            share = 1.0 - (1.0 - config.final_share) * progress
        case Schedule.cosine:
            share = config.final_share + (1.0 - config.final_share) * (1.0 + math.cos(math.pi * progress)) / 2.0
    return config.learning_rate * share
