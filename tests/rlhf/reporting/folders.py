"""Run folders that tests of the report read: of the form that runs write, with figures that are made up."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from rollouts.records import RolloutContext, StoredRollout

FALL = 6
"""The step at which accuracy falls."""


def write_run(
    folder: Path, steps: int = 8, groups: int = 4, size: int = 4, images: bool = True, words: int = 8, shade: int = 40
) -> Path:
    """A run of RL: groups of `size` completions, one in four groups dropped, accuracy low at step `FALL`."""
    rng = random.Random(0)
    (folder / "rollouts").mkdir(parents=True)
    (folder / "media").mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "config.yaml").write_text("trainer:\n  max_steps: 8\nalgorithm:\n  name: dapo\nrun:\n  dir: here\n")
    metrics, ledger = [], []
    for step in range(1, steps + 1):
        lines = []
        for group in range(groups):
            draw, dropped = (step - 1) * groups + group, "all_wrong" if group == 3 else ""
            image = folder / "media" / f"{draw}.png"
            if images:
                Image.new("RGB", (32, 32), (draw * 7 % 256, shade, step * 20 % 256)).save(image)
            for sample in range(size):
                right = not dropped and rng.random() < (0.2 if step == FALL else 0.8)
                lines.append(rollout(draw, sample, right, dropped, f"media/{draw}.png", words))
            ledger.append(
                {
                    "step": step,
                    "draw": draw,
                    "prompt_id": f"p{draw}",
                    "end": "dropped" if dropped else "trained",
                    "reason": dropped,
                }
            )
        write_lines(folder / f"rollouts/step_{step:06d}.jsonl", [{"step": step, **line} for line in lines])
        right = sum(line["parts"]["answer"] for line in lines) / len(lines)
        metrics.append({
            "step": step, "reward": right * 0.9, "accuracy": right, "reward/answer": right, "reward/format": 1.0,
            "length/mean": 20.0 + step, "length/max": 40.0, "groups/dead_share": 0.25, "dead_share/all_wrong": 0.25,
            "sampler_gap/mean": 1e-6, "sampler_gap/max": 1e-4, "entropy": None, "ledger/draws": (step) * groups,
            "ledger/in_flight": 0, "time/collect": 2.0, "time/update": 1.0, "odd/metric": step,
        })  # fmt: skip
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "ledger.jsonl", ledger)
    return folder


def rollout(draw: int, sample: int, right: bool, dropped: str, image: str, words: int = 8) -> dict:
    thought = " ".join(f"word{draw * 31 % 97 + n}" for n in range(words))
    text = f"<think>{thought}</think>\\boxed{{{draw % 10 if right else 99}}}"
    context = RolloutContext(
        f"Question {draw}?", [image], thought, str(draw % 10 if right else 99), None if dropped else 0.5 - sample
    )
    parts: dict[str, float | None] = {"answer": float(right), "format": 1.0}
    return StoredRollout(
        f"p{draw}", [1, 2], "length" if sample == 3 else "stop", parts, draw, sample, text, str(draw % 10),
        0.9 * right + 0.1, dropped=dropped, context=context,
    ).to_json()  # fmt: skip


def write_lines(path: Path, lines: Sequence[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def evaluation(accuracy: float | None) -> dict:
    figures = {
        "accuracy": accuracy, "interval": None if accuracy is None else [accuracy - 0.1, accuracy + 0.1], "reward": 0.5,
        "format_rate": 1.0, "mean_length": 21.0, "cut_off_share": 0.0, "unscorable_share": 0.0, "num_prompts": 32,
    }  # fmt: skip
    return {"modes": {"think": figures, "direct": figures}, "num_eval": 32}


def write_pipeline(folder: Path) -> Path:
    """A pipeline of two stages, the second of them `write_run`'s, with an evaluation after it."""
    write_run(folder / "rl")
    stage = folder / "sft"
    stage.mkdir()
    (stage / "run.json").write_text("{}")
    write_lines(
        stage / "metrics.jsonl",
        [{"step": n, "loss": 1 / n, "nll_per_token": 1 / n, "time/update": 0.5} for n in range(1, 6)],
    )
    (folder / "config.yaml").write_text(
        "stages:\n- name: sft\n  command: sft.train\n- name: rl\n  command: rlhf.train\n"
    )
    (folder / "run.json").write_text("{}")
    (folder / "evaluations").mkdir()
    (folder / "graph").mkdir()
    for name, seconds, accuracy in (("sft", 10.0, None), ("rl", 30.0, 0.7)):
        (folder / f"evaluations/{name}.json").write_text(json.dumps(evaluation(accuracy)))
        (folder / f"graph/{name}.json").write_text(json.dumps({"seconds": seconds}))
    answer = {"id": "t1", "mode": "direct", "dataset": "charts", "completion": "\\boxed{7}", "answer": "7", "parts": {}}
    answer |= {"reference": "8", "verdict": "wrong", "question": "How many?", "images": [], "reward": 0.0}
    write_lines(folder / "evaluations/rl.answers.jsonl", [answer])
    return folder
