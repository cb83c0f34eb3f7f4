"""LongCoT SFT and think-fusion SFT: `python -m sft.train recipe=quickstart_longcot checkpoint=DIR`."""

import sys

from conf.cli import launch
from sft.config import SftConfig


def run(config: SftConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    from sft.stage import run_stage

    run_stage(config, resolved)


def main() -> int:
    return launch("sft", SftConfig, run)


if __name__ == "__main__":
    sys.exit(main())
