"""A scoring process: reads one JSON task per line on stdin, answers on stdout: `started`, then the outcome.

Started by `rewards.pool`, killed by it when a task passes its deadline. What user code prints goes to stderr.
"""

import json
import os
import sys
import traceback
from typing import Any

from rewards.custom import call_function, load_function, own_limits
from rewards.result import Claim, RewardInput


def prepare(task: dict[str, Any]) -> None:
    """Import what the task needs: that may take seconds in a new process and is not the task's time."""
    if task["kind"] == "verify":
        from rewards.math_answer import warm_up

        warm_up()
    else:
        load_function(task["function"])


def run_task(task: dict[str, Any]) -> Any:
    """Value of one task; raises what the verifier or the user's function raises."""
    if task["kind"] == "verify":
        from rewards.verifiers.registry import verify

        return verify(task["verifier"], Claim(**task["claim"]), task["options"])
    if task["kind"] == "load":
        return own_limits(task["function"])
    inputs = [RewardInput(**item) for item in task["inputs"]]
    return call_function(task["function"], inputs, task["options"], task["step"])


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
