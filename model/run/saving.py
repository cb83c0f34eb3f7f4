"""Checkpoints that are written while training goes on: copied at once, written by threads, published as a whole."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from model.run.durable import begin_folder, publish_folder
from model.run.manifest import Digests


class Writing(Protocol):
    """Files that are being written. The numbers in them are those of the moment when it began."""

    @property
    def is_ready(self) -> bool:
        """Whether `wait` returns at once."""
        ...

    def wait(self) -> Digests:
        """The digests of the files, once all are on the disk. Raises what went wrong."""
        ...


class ThreadWriting:
    """`Writing` by a thread of this process, which ends with the process."""

    def __init__(self, write: Callable[[], Digests]) -> None:
        self._write = write
        self._digests: Digests = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="saving", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> Digests:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._digests

    def _run(self) -> None:
        try:
            self._digests = self._write()
        except BaseException as error:  # raised where the digests are asked for
            self._error = error


class BackgroundFolder:
    """A folder that appears once all that is written for it is on the disk."""

    def __init__(self, folder: Path, begin: Callable[[Path], Writing]) -> None:
        """`begin` is given the place where files are written until then."""
        self._folder, self._staging = folder, begin_folder(folder)
        self._writing = begin(self._staging)

    @property
    def is_ready(self) -> bool:
        return self._writing.is_ready

    def publish(self, files: Callable[[Digests], Mapping[str, bytes]]) -> None:
        """Wait for what is being written, add `files(digests of it)`, and let the folder appear."""
        digests = self._writing.wait()
        publish_folder(self._staging, self._folder, digests, files(digests))
