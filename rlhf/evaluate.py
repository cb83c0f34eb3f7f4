"""Both modes of a checkpoint on held-out prompts: `python -m rlhf.evaluate checkpoint=DIR prompts=FILE`."""

import sys

from conf.cli import launch
from rlhf.evaluation.config import EvaluateConfig


def run(config: EvaluateConfig, resolved: str) -> None:
    """Print a table for people; `output` says where the result and the answers go."""
    from rlhf.evaluation.stage import run_evaluation

    run_evaluation(config, resolved)


def main() -> int:
    return launch("evaluate", EvaluateConfig, run)


if __name__ == "__main__":
    sys.exit(main())
