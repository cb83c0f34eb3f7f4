"""RL with verifiable rewards: `python -m rlhf.train checkpoint=DIR prompts=FILE recipe=verifiable_dapo`."""

import sys

from conf.cli import launch
from rlhf.config import RlConfig, TrlTrainerConfig


def run(config: RlConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    if isinstance(config.trainer, TrlTrainerConfig):
        from rlhf.trl.settings import check  # free of torch and of TRL, so that a refusal is quick

        check(config)
    from rlhf.stage import run_stage

    run_stage(config, resolved)


def main() -> int:
    return launch("rlhf", RlConfig, run)


if __name__ == "__main__":
    sys.exit(main())
