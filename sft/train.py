"""LongCoT SFT and think-fusion SFT: `python -m sft.train recipe=quickstart_longcot checkpoint=DIR`."""

import sys

from conf.cli import launch
from sft.config import SftConfig


def run_stage(config: SftConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    from pathlib import Path

    from model.checkpoint import load_model, save_model
    from model.engine.local import LocalEngine
    from model.run.folder import RunFolder
    from model.run.progress import StageProgress
    from model.supervised import train_supervised
    from sft.data import build_samples

    model, processor = load_model(Path(config.checkpoint))
    samples = build_samples(config, processor)
    run = RunFolder(config.run, resolved)
    if run.is_done:
        print(f"{run.folder}: already complete; run.start=fresh starts anew")
        return
    engine = LocalEngine(model, config.engine, config.optimizer, config.max_steps)
    with StageProgress("sft", config.max_steps) as progress:
        train_supervised(
            engine,
            samples,
            processor,
            run,
            config.max_steps,
            config.engine.micro_batch_tokens,
            config.normalise,
            config.balance_coefficient,
            progress,
        )
    with run.space_for("final"):
        save_model(run.final_folder, model, processor)
    run.finish({"steps": engine.step_count})


def main() -> int:
    return launch("sft", SftConfig, run_stage)


if __name__ == "__main__":
    sys.exit(main())
