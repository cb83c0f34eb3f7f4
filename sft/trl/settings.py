"""Our settings of an SFT stage as TRL's `SFTTrainer` names them. What it lacks is refused; what is only switched off is
said. Free of TRL and of torch.

Written for TRL 1.16.
"""

from typing import Any

from model.config import AttentionKernel, MoeLanguageConfig, SailVL2Config
from model.engine.config import ComputeDtype, Device
from model.trl.limits import expect, refuse_adapters, require_trl
from sft.config import SftConfig


def check(config: SftConfig) -> None:
    """`ValueError` unless TRL is installed and its trainer can do what the config asks for."""
    require_trl()
    refuse_adapters(config.adapter)
    engine = config.engine
    expect("engine", engine.name, "local")
    expect("engine.device", engine.device, Device.auto, Device.cpu)
    expect("engine.compute_dtype", engine.compute_dtype, ComputeDtype.auto, ComputeDtype.float32)
    expect("engine.attention_kernel", engine.attention_kernel, AttentionKernel.auto)
    expect("adalrs.window", config.adalrs.window, 0)
    if config.evaluation.data:
        raise ValueError(
            "evaluation.data: trainer=trl does not evaluate while it trains, so it expects none, found "
            f"{config.evaluation.data!r:.200}; leave it empty and run python -m rlhf.evaluate on run.dir/final, or set "
            "trainer=sailvl2"
        )


def check_model(config: SftConfig, model: SailVL2Config) -> None:
    """`ValueError` for a model that TRL's trainer does not train as ours does."""
    if config.balance_coefficient and isinstance(model.language, MoeLanguageConfig):
        raise ValueError(
            f"balance_coefficient: trainer=trl has no load balancing here and expects 0 for {config.checkpoint}, whose "
            f"decoder has experts, found {config.balance_coefficient:g}; set balance_coefficient=0, or trainer=sailvl2"
        )


def switched_off(config: SftConfig) -> str:
    """One line for the person who reads the run: what differs from our own loop."""
    skipped = f"no skipped updates (engine.max_skipped_updates={config.engine.max_skipped_updates})"
    return (
        "trainer=trl: TRL's SFTTrainer on the CPU in float32; rows padded instead of packed, completions of one prompt "
        f"apart; {skipped}: the first loss that is not finite ends the run; docs/trl.md says what is not equal"
    )


def trl_arguments(config: SftConfig, num_updates: int) -> dict[str, Any]:
    """Keyword arguments of TRL's SFTConfig for the `num_updates` updates that are left."""
    return {
        "output_dir": config.run.dir,
        "seed": config.run.seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": config.engine.gradient_checkpointing,
        "max_steps": num_updates,
        "per_device_train_batch_size": 1,  # an item of the data set is an update, as our own loop cuts it
        "gradient_accumulation_steps": 1,
        "train_sampling_strategy": "sequential",
        "shuffle_dataset": False,
        "max_length": None,  # nothing is cut: a row that is too long was refused when it was read
        "packing": False,
        "dataset_kwargs": {"skip_prepare_dataset": True},
        "remove_unused_columns": False,
        "loss_type": "nll",
        "router_aux_loss_coef": 0.0,
        "max_grad_norm": config.optimizer.max_grad_norm,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",  # checkpoints are written by our own run folder
        "report_to": [],
        "disable_tqdm": True,
    }
