"""CPU work in several Python threads of one CPU thread each, instead of several CPU threads inside every operation.

Operations that take some 10 microseconds lose more by waking a second thread than it does for them.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")


def each_on_one_thread(work: Callable[[Item], None], items: Sequence[Item]) -> None:
    """Call `work` on every item, without gradients. It must write where no other call reads or writes.

    As many items at a time as torch has threads; a single item gets them all.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or len(items) < 2:
        for item in items:
            work(item)
        return
    is_inference = torch.is_inference_mode_enabled()

    def work_on(part: Sequence[Item]) -> None:
        with torch.inference_mode(is_inference), torch.no_grad():  # both belong to a thread
            for item in part:
                work(item)

    first, *others = (items[start::num_threads] for start in range(min(num_threads, len(items))))
    helpers = _helpers(num_threads - 1)
    torch.set_num_threads(1)
    try:
        waiting = [helpers.submit(work_on, part) for part in others]
        work_on(first)
        for future in waiting:
            future.result()
    finally:
        torch.set_num_threads(num_threads)


@cache
def _helpers(count: int) -> ThreadPoolExecutor:
    """Threads whose operations use one CPU thread each, for ever."""
    return ThreadPoolExecutor(count, "attention", initializer=torch.set_num_threads, initargs=(1,))
