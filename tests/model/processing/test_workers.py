"""Processes that build rows: same rows as without them, and what happens when one ends, stops or cannot."""

import os
import resource
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from model.batch import Row
from model.data.media_error import MediaError
from model.processing.processor import BytePicture
from model.processing.settings import ProcessorSettings
from model.processing.workers import Workers

SETTINGS = ProcessorSettings(max_tiles=1)


class Builder:
    """Rows of the task's number; some tasks are peculiar."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, task) -> Row:
        number, what = task
        if what == "bad":
            raise MediaError(f"row {number} cannot be read")
        if what == "broken":
            raise ZeroDivisionError("a fault of the program")
        if what == "exit":
            os._exit(7)
        if what == "exit once" and not (self.folder / str(number)).exists():
            (self.folder / str(number)).write_text("")
            os._exit(7)
        if what == "hang" and not (self.folder / str(number)).exists():
            (self.folder / str(number)).write_text("")
            os.kill(os.getpid(), signal.SIGSTOP)
        if what == "slow":
            time.sleep(0.05)
        tiles = [
            np.full((1 + number % 3, 3, 128, 128), number, np.uint8),
            np.full((1, 3, 64, 256), 255 - number, np.uint8),
        ]
        images = [BytePicture(one, SETTINGS) for one in tiles[: number % 3]]
        return Row([1, number], [[2, os.getpid()]], images, scored=[np.array([True, False])])


@pytest.fixture
def workers(tmp_path):
    made = Workers(Builder(tmp_path), 2, patience_s=1.0)
    yield made
    made.close()


def take(workers: Workers, tasks: dict) -> list[Row]:
    for key, task in tasks.items():
        workers.submit(key, task)
    return [workers.result(key) for key in tasks]


def tiles_of(row: Row) -> list[np.ndarray]:
    images = [image for image in row.images if isinstance(image, BytePicture)]
    assert len(images) == len(row.images)
    return [image.tiles for image in images]


def check(rows: list[Row]) -> None:
    for number, row in enumerate(rows):
        assert row.prefix_ids == [1, number] and row.scored is not None and list(row.scored[0]) == [True, False]
        wanted = tiles_of(Builder(Path())((number, "")))
        assert all(np.array_equal(one, other) for one, other in zip(tiles_of(row), wanted, strict=True))


def test_rows_come_by_their_keys_with_their_pixels(workers):
    check(take(workers, {("step", number): (number, "slow" if number % 5 == 0 else "") for number in range(40)}))


def test_a_worker_that_ends_or_stops_is_named_and_replaced(workers, capsys):
    tasks = {number: (number, {3: "exit once", 11: "hang"}.get(number, "")) for number in range(20)}
    check(take(workers, tasks))
    said = capsys.readouterr().err
    assert "it ended with code 7" in said and "no answer within data.loader.patience_s=1" in said
    assert said.count(" is replaced, ") == 2


def test_killed_workers_lose_no_row(workers, capsys):
    for number in range(60):
        workers.submit(number, (number, "slow"))
    rows = []
    for number in range(60):
        rows.append(workers.result(number))
        if number in (5, 20, 21, 40):
            os.kill(workers.process_ids[number % 2], signal.SIGKILL)
    check(rows)
    assert "killed by signal 9" in capsys.readouterr().err


def test_a_row_that_ends_its_worker_each_time_is_a_bad_row(workers):
    workers.submit("a", (1, "exit"))
    workers.submit("b", (2, ""))
    with pytest.raises(MediaError, match="the process that built it ended 3 times: it ended with code 7"):
        workers.result("a")
    assert workers.result("b").prefix_ids == [1, 2]


def test_errors_of_a_row_and_of_the_program_are_told_apart(workers):
    workers.submit("a", (1, "bad"))
    workers.submit("b", (1, "broken"))
    with pytest.raises(MediaError, match="row 1 cannot be read"):
        workers.result("a")
    with pytest.raises(RuntimeError, match="ZeroDivisionError: a fault of the program"):
        workers.result("b")


def test_tasks_that_are_near_each_other_go_to_one_worker_and_no_worker_idles(workers):
    def builders(numbers: range, *nears: int) -> list[Counter]:
        """How many rows each process built of those that share a `near`."""
        for number in numbers:
            workers.submit(number, (number, "slow"), near=nears[number % len(nears)])
        by_near = [Counter() for _ in nears]
        for number in numbers:
            by_near[number % len(nears)][workers.result(number).completions[0][1]] += 1
        return by_near

    while len(builders(range(8), 0)[0]) < 2:  # until both processes are there
        pass
    first, second = builders(range(80), 0, 1)
    assert first.most_common(1)[0][1] >= 30 and second.most_common(1)[0][1] >= 30
    assert first.most_common(1)[0][0] != second.most_common(1)[0][0]
    (counts,) = builders(range(40), 0)
    assert min(counts.values()) >= 10 and len(counts) == 2


def test_what_is_forgotten_does_not_come_back(workers):
    for number in range(10):
        workers.submit(number, (number, "slow"))
    workers.forget()
    workers.submit(3, (4, ""))
    assert workers.result(3).prefix_ids == [1, 4]


def test_pixels_outlive_their_worker(tmp_path):
    workers = Workers(Builder(tmp_path), 1, patience_s=5.0)
    workers.submit(0, (2, ""))
    row = workers.result(0)
    workers.close()
    first, second = tiles_of(row)
    assert (first.shape, second.shape) == ((3, 3, 128, 128), (1, 3, 64, 256))
    assert (first == 2).all() and (second == 253).all()


def lowest_free_descriptor() -> int:
    number = os.dup(0)
    os.close(number)
    return number


@contextmanager
def descriptors_below(limit: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def num_mapped() -> int:
    return Path("/proc/self/maps").read_text().count("sailvl2-row")


def test_rows_hold_no_descriptors_and_their_memory_goes_with_them(workers):
    take(workers, {-1: (1, "")})
    before = num_mapped()
    with descriptors_below(lowest_free_descriptor() + 20):
        rows = take(workers, {number: (number, "") for number in range(200)})
    check(rows)
    assert num_mapped() == before + sum(bool(row.images) for row in rows) > 100
    del rows
    assert num_mapped() == before


def test_too_few_descriptors_are_named(workers):
    take(workers, {0: (1, "")})
    with descriptors_below(lowest_free_descriptor() + 1):
        workers.submit(1, (1, ""))
        with pytest.raises(RuntimeError, match=r"Too many open files; .*ulimit -n"):
            workers.result(1)
    workers.submit(2, (1, ""))  # the thread has ended
    with pytest.raises(RuntimeError, match=r"ulimit -n"):
        workers.result(2)
