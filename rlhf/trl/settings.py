"""Our settings as TRL's trainers name them. What they lack is refused; what is only switched off is said. Free of TRL.

Of TRL 1.16: `GRPOTrainer` for algorithms that compare with the group's mean, `RLOOTrainer` for leave-one-out.
"""

from collections.abc import Sequence
from typing import Any

from model.engine.config import ComputeDtype, Device
from model.trl.limits import expect, refuse_adapters, require_trl
from rlhf.algorithms.config import (
    AdvantageScale,
    AlgorithmConfig,
    Baseline,
    Correction,
    CustomConfig,
    GroupFilter,
    KlEstimator,
    KlPlace,
    LossNormalisation,
    RatioLevel,
)
from rlhf.algorithms.registry import CLASSES
from rlhf.config import Curriculum, RlConfig, TrlTrainerConfig

_LOSS_TYPES = {
    LossNormalisation.tokens: "dapo",
    LossNormalisation.sequences: "grpo",
    LossNormalisation.constant: "dr_grpo",
}
_SCALES = {AdvantageScale.group_std: "group", AdvantageScale.none: "none"}


def check(config: RlConfig) -> None:
    """`ValueError` unless TRL is installed and its trainers can do what the config asks for."""
    require_trl()
    refuse_adapters(config.adapter)
    algorithm = config.algorithm
    if isinstance(algorithm, CustomConfig):
        raise ValueError(f"algorithm: trainer=trl knows TRL's own losses, not {algorithm.name}; use trainer=sailvl2")
    expect("algorithm.baseline", algorithm.baseline, Baseline.group_mean, Baseline.leave_one_out)
    (_check_rloo if uses_rloo(config) else _check_grpo)(algorithm)
    if algorithm.group_size < 2:
        raise ValueError(f"algorithm.group_size: trainer=trl expects at least 2, found {algorithm.group_size}")
    expect("algorithm.correction.rule", algorithm.correction.rule, Correction.none)
    expect("algorithm.entropy.target", algorithm.entropy.target, 0.0)
    expect("algorithm.kl.refresh_every", algorithm.kl.refresh_every, 0)
    expect("trainer.curriculum", config.trainer.curriculum, Curriculum.none)
    expect("trainer.balance_coefficient", config.trainer.balance_coefficient, 0.0)
    expect("algorithm.correction.routing_replay", algorithm.correction.routing_replay, False)
    if config.evaluation.prompts:
        raise ValueError(
            "evaluation.prompts: trainer=trl does not evaluate while it trains; leave it empty and run "
            "python -m rlhf.evaluate on run.dir/final"
        )
    if config.engine.name != "local":
        raise ValueError(f"engine: trainer=trl expects local, found {config.engine.name}; use trainer=sailvl2 for it")
    _check_batches(config)
    expect("engine.device", config.engine.device, Device.auto, Device.cpu)
    expect("engine.compute_dtype", config.engine.compute_dtype, ComputeDtype.auto, ComputeDtype.float32)


def uses_rloo(config: RlConfig) -> bool:
    return config.algorithm.baseline is Baseline.leave_one_out


def batches(config: RlConfig) -> tuple[int, int, int]:
    """Completions of a step, of an optimizer update, and of one forward and backward pass."""
    trainer = config.trainer
    assert isinstance(trainer, TrlTrainerConfig)
    step = trainer.groups_per_step * config.algorithm.group_size
    mini = min(step, trainer.mini_batch_size)
    return step, mini, trainer.micro_batch_size or mini


def updates_per_step(config: RlConfig) -> int:
    step, mini, _ = batches(config)
    return config.trainer.passes * step // mini


def switched_off(config: RlConfig) -> str:
    """One line for the person who reads the run: what the recipe asks for and this comparison leaves out."""
    trainer, off = config.trainer, []
    if config.algorithm.group_filter is not GroupFilter.none:
        off.append(
            f"no dynamic sampling (algorithm.group_filter={config.algorithm.group_filter.value}): every group trains"
        )
    off.append(
        f"every step draws {trainer.groups_per_step} prompts (no trainer.max_draws, when_budget_ends, keep_surplus)"
    )
    if config.rollouts.name != "embedded":
        off.append(f"transformers' generation (not rollouts={config.rollouts.name})")
    if config.rollouts.max_staleness:
        off.append(f"sampling and training in turn (not rollouts.max_staleness={config.rollouts.max_staleness})")
    if config.rollouts.pool.workers > 1:
        off.append(f"one sampler (not rollouts.pool.workers={config.rollouts.pool.workers}), without rollouts.max_rows")
    off.append("no ledger, no checkpoints, no guard against numbers that are not finite")
    return f"trainer=trl: {'; '.join(off)}; docs/trl.md says what is not equal"


def trl_arguments(config: RlConfig, barred_ids: Sequence[int]) -> dict[str, Any]:
    """Keyword arguments of TRL's GRPOConfig, or of its RLOOConfig where `uses_rloo`."""
    algorithm, optimizer = config.algorithm, config.optimizer
    step, mini, micro = batches(config)
    return {
        "output_dir": config.run.dir,
        "seed": config.run.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": config.engine.gradient_checkpointing,
        "max_steps": config.trainer.max_steps * updates_per_step(config),
        "num_generations": algorithm.group_size,
        "generation_batch_size": step,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": mini // micro,
        "num_iterations": config.trainer.passes,
        "max_completion_length": config.rollouts.max_completion_tokens,
        "temperature": config.rollouts.temperature,
        "generation_kwargs": {"suppress_tokens": list(barred_ids)},
        "chat_template_kwargs": {"thinking": config.mode.template_value},
        "shuffle_dataset": False,  # the rows come in the order in which our own trainer draws them
        "max_grad_norm": optimizer.max_grad_norm,
        "epsilon": algorithm.clip_low,
        "epsilon_high": algorithm.clip_high,
        "beta": algorithm.kl.coefficient,
        "mask_truncated_completions": algorithm.overlong.masks,
        "router_aux_loss_coef": 0.0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        **({} if uses_rloo(config) else _grpo_arguments(algorithm)),
    }


def _grpo_arguments(algorithm: AlgorithmConfig) -> dict[str, Any]:
    cispo = algorithm.name == "cispo"
    return {
        "loss_type": "cispo" if cispo else _LOSS_TYPES[algorithm.normalisation],
        "epsilon_high": 1.0 + algorithm.clip_high if cispo else algorithm.clip_high,  # TRL's is the weight's upper end
        "importance_sampling_level": algorithm.ratio_level.value,
        "delta": algorithm.dual_clip or None,
        "scale_rewards": _SCALES[algorithm.advantage_scale],
        "entropy_coef": algorithm.entropy.coefficient,
        "use_bias_correction_kl": False,  # its default multiplies the KL by the ratio; ours does not
    }


def _check_grpo(algorithm: AlgorithmConfig) -> None:
    if algorithm.name in CLASSES and algorithm.name != "cispo":
        raise ValueError(
            f"algorithm: trainer=trl runs grpo, dr_grpo, dapo, gspo, cispo and rloo, found {algorithm.name}; set "
            "trainer=sailvl2"
        )
    expect("algorithm.advantage_scale", algorithm.advantage_scale, *_SCALES)
    expect("algorithm.ratio_level", algorithm.ratio_level, RatioLevel.token, RatioLevel.sequence)
    if algorithm.kl.coefficient:
        expect("algorithm.kl.place", algorithm.kl.place, KlPlace.loss)
        expect("algorithm.kl.estimator", algorithm.kl.estimator, KlEstimator.k3)
    if algorithm.entropy.coefficient:  # theirs is a mean per token, whatever the loss is
        expect("algorithm.normalisation", algorithm.normalisation, LossNormalisation.tokens)
    if algorithm.name == "cispo":
        expect("algorithm.normalisation", algorithm.normalisation, LossNormalisation.tokens)
        expect("algorithm.ratio_level", algorithm.ratio_level, RatioLevel.token)
        expect("algorithm.clip_low", algorithm.clip_low, 1.0)
        expect("algorithm.dual_clip", algorithm.dual_clip, 0.0)


def _check_rloo(algorithm: AlgorithmConfig) -> None:
    expect("algorithm.advantage_scale", algorithm.advantage_scale, AdvantageScale.none)
    expect("algorithm.ratio_level", algorithm.ratio_level, RatioLevel.whole_sequence)
    expect("algorithm.normalisation", algorithm.normalisation, LossNormalisation.sequences)
    expect("algorithm.dual_clip", algorithm.dual_clip, 0.0)
    expect("algorithm.entropy.coefficient", algorithm.entropy.coefficient, 0.0)
    if algorithm.kl.coefficient:
        expect("algorithm.kl.place", algorithm.kl.place, KlPlace.reward)
        expect("algorithm.kl.estimator", algorithm.kl.estimator, KlEstimator.k1)


def _check_batches(config: RlConfig) -> None:
    step, mini, micro = batches(config)
    if step % mini:
        raise ValueError(
            f"trainer.mini_batch_size: trainer=trl expects a divisor of the step's trainer.groups_per_step x "
            f"algorithm.group_size = {step} completions, found {mini}"
        )
    if mini % micro:
        raise ValueError(
            f"trainer.micro_batch_size: expected a divisor of the mini-batch's {mini} completions, found {micro}"
        )
