"""Multimodal pre-training from nothing or from a checkpoint: `python -m model.pretrain.train recipe=quickstart`."""

import sys

from conf.cli import launch
from model.pretrain.config import PretrainConfig


def run(config: PretrainConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    from model.pretrain.stage import run_stage

    run_stage(config, resolved)


def main() -> int:
    return launch("pretrain", PretrainConfig, run)


if __name__ == "__main__":
    sys.exit(main())
