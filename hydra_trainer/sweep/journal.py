"""The journal of a sweep: one JSON object a line, appended and fsynced, never rewritten.

A line counts once its end is there: what a killed process left unfinished is cut off by the next
one that writes. Whoever writes holds the lock of the directory, so two submitters cannot.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from hydra_trainer.errors import LaunchError

from .rows import Event, Sweep, apply, rebuild

FILE = "journal.jsonl"
LOCK = "journal.lock"

KINDS = ("sweep", "plan", "job", "sent", "running", "progress", "ended", "retry")


class Journal:
    """A sweep's journal, open for writing. Use it as a context.

    Raises:
        LaunchError: another process writes it, or a line in the middle is not one of ours.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sweep = Sweep()

    def __enter__(self) -> "Journal":
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.directory)
        path = self.directory / FILE
        try:
            events, length = _parsed(path)
            self.sweep = rebuild(events)
            new = not path.exists()
            self._file: IO[bytes] = path.open("ab")
            self._file.truncate(length)
        except BaseException:
            self._lock.close()
            raise
        if new:
            _sync_folder(self.directory)
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._lock.close()

    def write(self, *events: Event) -> None:
        """Append events, and return when they are on the disk. `at` is added to each."""
        now = round(time.time(), 3)
        lines = []
        for event in events:
            assert event["event"] in KINDS, event
            full = {"at": now, **event}
            lines.append(json.dumps(full, ensure_ascii=False, separators=(",", ":")))
            apply(self.sweep, full)
        self._file.write("".join(f"{line}\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def read(directory: Path) -> Sweep:
    """Return the sweep in a directory, while somebody else may be writing it.

    Raises:
        LaunchError: there is none, or a line of its journal is not one of ours.
    """
    path = directory / FILE
    if not path.is_file():
        raise LaunchError(
            f"There is no sweep in {directory}: it holds no {FILE}. Sweeps lie in runs/sweeps, or "
            "where hydra.sweep.dir says."
        )
    return rebuild(_parsed(path)[0])


def writer(directory: Path) -> str | None:
    """Return who writes the journal of a directory now; None: nobody."""
    with contextlib.suppress(FileNotFoundError), (directory / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return file.read().strip() or "another process"
    return None


def wait(directory: Path) -> None:
    """Return when nobody writes the journal of a directory any more."""
    with contextlib.suppress(FileNotFoundError), (directory / LOCK).open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)


def _locked(directory: Path) -> IO[str]:
    """Take the lock: the kernel gives it back when this process ends, however it ends."""
    file = (directory / LOCK).open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        who = file.read().strip() or "another process"
        file.close()
        raise LaunchError(
            f"{who} is running the sweep in {directory}. To look at it: hydra-trainer sweep "
            f"status {directory}. To run another one, give it a directory: hydra.sweep.dir=..."
        ) from None
    # Children that outlive this process hold nothing.
    os.register_at_fork(after_in_child=file.close)
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def _parsed(path: Path) -> tuple[list[Event], int]:
    """Return the events of a journal, and how many of its bytes they take."""
    if not path.exists():
        return [], 0
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    return list(_events(path, whole.splitlines())), len(whole)


def _events(path: Path, lines: Iterable[bytes]) -> Iterable[Event]:
    for number, line in enumerate(lines, 1):
        event: Any = None
        with contextlib.suppress(ValueError):
            event = json.loads(line)
        if not isinstance(event, dict) or not isinstance(event.get("event"), str):
            raise LaunchError(
                f"Line {number} of {path} is not one of ours: {line[:60]!r}. A journal is only "
                "ever appended to; put the file back as it was, or remove that line."
            )
        yield event


def _sync_folder(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
