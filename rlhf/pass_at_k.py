"""Choose prompts for RL by pass@k of a model: `python -m rlhf.pass_at_k checkpoint=DIR prompts=FILE out=FOLDER`.

Prompts that the model always answers right teach nothing, and for reasoning neither do those that it never does. Every
prompt is kept or dropped for a counted reason; as many of all prompts, drawn at random, are written as a control.
"""

import sys

from conf.cli import launch
from rlhf.selection.config import PassAtKConfig


def run(config: PassAtKConfig, resolved: str) -> None:
    """Sample what is not there yet, and write what was chosen to `config.out`."""
    from rlhf.selection.pass_at_k import select

    select(config)


def main() -> int:
    return launch("pass_at_k", PassAtKConfig, run)


if __name__ == "__main__":
    sys.exit(main())
