"""Files of rows that are read in any order: what an index needs to find a row again, and the row itself."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from model.data.raw_rows import RawRow

Place = tuple[int, int]
"""Where a row lies in its file, in numbers that mean something to its kind of file alone."""


@dataclass(frozen=True)
class Unit:
    """A part of a file that is indexed on its own, in any process; what is indexed stays where the work is stopped."""

    start: int
    stop: int


BLANK = "a blank line, which is no row"
"""The problem of a `RawRow` that only counts."""


class Withheld:
    """Stands for an image that was not read: the row is wanted for its text alone."""


class Shard(ABC):
    """One file of rows. Opening it reads little; each process opens its own."""

    reads_groups = False
    """whether rows with the same first number of their places are read together"""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def units(self) -> list[Unit]:
        """The parts of the file, in order. `ValueError` for a file that is not what its name says."""

    @abstractmethod
    def rows(self, unit: Unit) -> Iterator[tuple[Place, RawRow]]:
        """The rows of a part in order, with their places. Numbers of rows count from 1 within the part.

        `ValueError` for a file that cannot be read on.
        """

    @abstractmethod
    def read(self, place: Place, num_pictures: int | None = None) -> RawRow:
        """The row at a place; its number is 0.

        With `num_pictures` its images are wanted no more: where they take reading they are `Withheld`. `ValueError`
        where the file cannot be read.
        """
