"""Batch inference: `python -m rollouts.generate checkpoint=DIR prompts=FILE out=FILE rollouts=embedded|vllm`.

Prompts are rows of any format that RL takes; no reference is needed. A line of `out` is one completion, or the error of
a prompt that cannot be used. The same command goes on where it was cut off.
"""

import sys

from conf.cli import launch
from rollouts.config import GenerateConfig


def run(config: GenerateConfig, resolved: str) -> None:
    """Sample what `config.out` does not have yet. `ValueError` while another run does."""
    from rollouts.batch_inference import generate_file

    generate_file(config, resolved)


def main() -> int:
    return launch("generate", GenerateConfig, run)


if __name__ == "__main__":
    sys.exit(main())
