"""How many instances may run at a time; jobs that are one too many wait in their order."""

import threading
from collections.abc import Callable
from typing import NamedTuple


class Waiting(NamedTuple):
    """A job that waits, and what tells it that it need not any more."""

    job: object
    size: int
    ready: Callable[[], None]


class Capacity:
    """Instances for jobs. May be shared by threads.

    Args:
        size: how many there are; None: any number. A job that wants more than that gets them when
            no other one runs.
    """

    def __init__(self, size: int | None = None) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._held: dict[object, int] = {}
        self._queue: list[Waiting] = []

    def take(self, job: object, size: int, ready: Callable[[], None]) -> None:
        """Ask for the instances of a job: `ready` is called when it has them, once."""
        with self._lock:
            self._queue.append(Waiting(job, size, ready))
        self._serve()

    def release(self, job: object) -> None:
        """Give back what a job has, or do not wait for it any more."""
        with self._lock:
            self._held.pop(job, None)
            self._queue = [one for one in self._queue if one.job is not job]
        self._serve()

    def _serve(self) -> None:
        with self._lock:
            while self._queue and self._fits(self._queue[0].size):
                first = self._queue.pop(0)
                self._held[first.job] = first.size
                first.ready()

    def _fits(self, size: int) -> bool:
        used = sum(self._held.values())
        return self._size is None or not used or used + size <= self._size
