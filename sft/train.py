"""LongCoT SFT and think-fusion SFT: `python -m sft.train recipe=quickstart_longcot checkpoint=DIR`."""

import sys

from conf.cli import launch
from sft.config import SftConfig, TrlSftTrainerConfig


def run(config: SftConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    if isinstance(config.trainer, TrlSftTrainerConfig):
        from sft.trl.settings import check  # free of torch and of TRL, so that a refusal is quick

        check(config)
    from sft.stage import run_stage

    run_stage(config, resolved)


def main() -> int:
    return launch("sft", SftConfig, run)


if __name__ == "__main__":
    sys.exit(main())
