"""Multimodal pre-training of a flavour from nothing: `python -m model.pretrain.train recipe=quickstart`."""

import sys
from pathlib import Path

from conf.cli import launch
from model.pretrain.config import PretrainConfig


def run_stage(config: PretrainConfig, resolved: str) -> None:
    """Train and write `run.dir/final`; continues where an earlier call stopped."""
    from model.checkpoint import build_flavour, save_model
    from model.engine.local import LocalEngine
    from model.pretrain.documents import DocumentMixture
    from model.run.folder import RunFolder
    from model.run.progress import StageProgress
    from model.supervised import train_supervised

    model, processor = build_flavour(config.model, config.run.seed)
    documents = DocumentMixture(Path(config.data.path), config.data.mixture, processor, config.run.seed)
    run = RunFolder(config.run, resolved)
    if run.is_done:
        print(f"{run.folder}: already complete; run.start=fresh starts anew")
        return
    engine = LocalEngine(model, config.engine, config.optimizer, config.max_steps)
    with StageProgress("pretrain", config.max_steps) as progress:
        train_supervised(
            engine,
            documents,
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
    return launch("pretrain", PretrainConfig, run_stage)


if __name__ == "__main__":
    sys.exit(main())
