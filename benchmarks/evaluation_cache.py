"""How much faster is an evaluation that was made before? `python -m benchmarks.evaluation_cache [QUESTIONS]`.

The command `rlhf.evaluate` as a user starts it, a process each time: at first, again with nothing changed, and again
with another weight of the format, for which the kept completions are judged anew. Both results of the first two calls
must be equal. A tiny model of random weights answers held-out digits in all three modes, four samples each; it never
ends its turn, so every completion has its full length.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from examples.digits.write import write
from model.checkpoint import build_flavour, save_model
from model.config import Flavour

_TOKENS = 48


def seconds(arguments: list[str]) -> float:
    """Wall-clock seconds of one command. `CalledProcessError` where it fails."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "rlhf.evaluate", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, "SAILVL2_REPORT": "0"})
    return time.perf_counter() - begin


def main() -> None:
    num_questions = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_model(folder / "model", *build_flavour(Flavour.tiny, 0))
        write(folder / "digits", seed=0, share=1.0)
        output = folder / "result.json"
        arguments = [
            f"checkpoint={folder / 'model'}",
            f"prompts={folder / 'digits' / 'test.jsonl'}",
            f"num_prompts={num_questions}",
            f"rollouts.max_completion_tokens={_TOKENS}",
            "num_samples=4",
            f"output={output}",
        ]
        first = seconds(arguments)
        result = json.loads(output.read_text())
        again = seconds(arguments)
        assert json.loads(output.read_text()) == result
        judged_anew = seconds([*arguments, "reward.format_weight=0.2", "reward.answer_weight=0.8"])
        assert json.loads(output.read_text())["accuracy_think"] == result["accuracy_think"]
    print(
        json.dumps(
            {
                "questions": num_questions,
                "first_seconds": round(first, 2),
                "again_seconds": round(again, 2),
                "judged_anew_seconds": round(judged_anew, 2),
                "speedup": round(first / again, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
