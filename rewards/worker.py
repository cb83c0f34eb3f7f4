"""A scoring process: reads one JSON task per line on stdin, answers on stdout: `started`, then the outcome.

Started by `rewards.pool`, killed by it when a task passes its deadline. What user code prints goes to stderr.
"""

import importlib
import json
import math
import os
import sys
import traceback
from numbers import Real
from typing import Any

from rewards.custom import load_function
from rewards.math_answer import verify_symbolic
from rewards.rubric import RewardInput


def prepare(task: dict[str, Any]) -> None:
    """Import what the task needs: that may take seconds in a new process and is not the task's time."""
    if task["kind"] == "math":
        importlib.import_module("math_verify")
    else:
        load_function(task["function"])


def run_task(task: dict[str, Any]) -> float:
    """Value of one task; raises what the verifier or the user's function raises."""
    if task["kind"] == "math":
        return 1.0 if verify_symbolic(task["answer"], task["reference"]) else 0.0
    if task["kind"] == "load":
        return 0.0
    value = load_function(task["function"])(RewardInput(**task["input"]))
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise TypeError(f"{task['function']}: expected a finite number, found {value!r}")
    return float(value)


def main() -> None:
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            task = json.loads(line)
            prepare(task)
            replies.write('{"started": true}\n')
            replies.flush()
            outcome = {"value": run_task(task)}
        except ValueError as error:
            outcome = {"reason": str(error), "traceback": traceback.format_exc()}
        except BaseException as error:  # user code may raise anything, even SystemExit
            outcome = {"reason": repr(error), "traceback": traceback.format_exc()}
        replies.write(json.dumps(outcome) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
