"""The lock of a run directory: two processes must not train in one.

The kernel lets go of it when the last process that has the file open ends, however it ends.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import TextIO

from hydra_trainer.errors import LaunchError
from hydra_trainer.job import JobHandle

from .directory import CONFIG, LOCK

PAUSES = (0.01, 0.05)
"""Seconds between two tries to take it: who only asks for its state holds it for a moment."""


class Held(LaunchError):
    """Another process trains in the run directory."""


class Lock:
    """Holds a run directory. `file` is what a process must keep open to hold it as well."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> "Lock":
        self._directory.mkdir(parents=True, exist_ok=True)
        self.file: TextIO = (self._directory / LOCK).open("a+")
        if not _taken(self.file):
            self.file.close()
            handle = JobHandle.local(self._directory)
            raise Held(
                f"Another process (pid {holder(self._directory)}) is training in "
                f"{self._directory}. Wait for it (hydra-trainer wait {handle}), or give this one "
                "another place: hydra.run.dir=..."
            )
        self.file.truncate(0)  # who held it before is gone
        return self

    def __exit__(self, *exc: object) -> None:
        if not (self._directory / CONFIG).exists():  # it was not, or is no longer, a run
            (self._directory / LOCK).unlink()
            with contextlib.suppress(OSError):
                self._directory.rmdir()
        self.file.close()


def sign(file: TextIO) -> None:
    """Write into a lock that this process holds it: for `cancel`, and for who cannot have it."""
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    keep_from_children(file)


def keep_from_children(file: TextIO) -> None:
    """Loader workers are forked and outlive a killed parent for seconds; they hold nothing."""
    os.register_at_fork(after_in_child=file.close)


def is_held(directory: Path) -> bool:
    """Tell whether a process trains in a directory."""
    with contextlib.suppress(FileNotFoundError), (directory / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def holder(directory: Path) -> int | None:
    """Return the process that holds a directory; None in the moment before it has signed."""
    return int((directory / LOCK).read_text().strip() or 0) or None


def wait(directory: Path) -> None:
    """Return when no process trains in a directory any more."""
    with contextlib.suppress(FileNotFoundError), (directory / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def _taken(file: TextIO) -> bool:
    for pause in (*PAUSES, None):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if pause is not None:
                time.sleep(pause)
        else:
            return True
    return False
