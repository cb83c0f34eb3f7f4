"""The place of this process among those that torchrun started, as it says in environment variables."""

import os
import signal
import sys
import time
from dataclasses import dataclass

_WAIT_S = 3.0
"""Seconds in which rank 0 may say the same thing first."""


@dataclass(frozen=True)
class World:
    rank: int
    num_ranks: int
    local_rank: int
    address: str  # host of rank 0

    @classmethod
    def of_environment(cls) -> "World":
        """One process where torchrun did not start this one. `ValueError` for variables that are no numbers."""
        values = os.environ
        try:
            rank, num_ranks = int(values.get("RANK", "0")), int(values.get("WORLD_SIZE", "1"))
            local_rank = int(values.get("LOCAL_RANK", "0"))
        except ValueError as error:
            raise ValueError(f"RANK, WORLD_SIZE, LOCAL_RANK: expected numbers, found: {error}") from None
        if not 0 <= rank < num_ranks:
            raise ValueError(f"RANK: expected 0 to WORLD_SIZE - 1 = {num_ranks - 1}, found {rank}")
        if num_ranks == 1:
            return cls(0, 1, local_rank, "127.0.0.1")
        return cls(rank, num_ranks, local_rank, values.get("MASTER_ADDR", "127.0.0.1"))

    @property
    def follows(self) -> bool:
        """Whether another process leads this one."""
        return self.rank > 0


def report_error(text: str) -> None:
    """Print an error to stderr. On ranks that follow it is printed only where rank 0 has not failed as well."""
    world = World.of_environment()
    if world.follows:
        # torchrun ends this process as soon as rank 0 has failed.
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(2))
        time.sleep(_WAIT_S)
        text = f"rank {world.rank}: {text}"
    print(text, file=sys.stderr, flush=True)
