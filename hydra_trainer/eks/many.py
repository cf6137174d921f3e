"""Telling how many jobs of a namespace go: one watch of their kind, and one of the pods of all.

A thread for each stream of the API; they only put what came into a queue, and one place reads it.
"""

import contextlib
import queue
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Collection, Generator, Iterator
from functools import partial
from typing import Any, NoReturn

from hydra_trainer.errors import LaunchError
from hydra_trainer.job import JobStatus, Report
from hydra_trainer.launcher import say

from . import marks, slim
from .cluster import Cluster
from .known import Book, Object, Readable
from .refusals import ApiError
from .watch import Event

TICK = 2.0
"""Seconds after which something is told, if only that nothing happened."""

GATHER = 0.05
"""Seconds in which changes are gathered: a job's end is one of the job, and one of its pod."""

BETWEEN = 10.0
"""Seconds between two looks at what the watches have not brought, at least."""

READ_EVERY = 1.0
"""Seconds between two requests for a log, of whichever job."""

LAST_LINES = 20

PATIENCE = 900.0
TRIES = 1000
"""Seconds that a cluster may be away: a sweep of days outlives the upgrade of its API server. How
often it is asked meanwhile is bounded by the pauses alone."""

OfAllKinds = Callable[[Callable[[str], Any]], Iterator[tuple[str, Any]]]
"""Asks for one kind of job after the other; yields those that are there, with the answers."""


class Teller:
    """Tells how those jobs go whose names it is given. Use `tell` once.

    Args:
        cluster: of its own: it is closed in the end.
        of_all_kinds: is iterated over until all jobs are found.
        progress: whether to read the logs of jobs that run.
    """

    def __init__(self, cluster: Cluster, of_all_kinds: OfAllKinds, *, progress: bool) -> None:
        self.book = Book()
        self._cluster = cluster
        self._of_all_kinds = of_all_kinds
        self._progress = progress
        self._changes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._watched: set[str] = set()
        self._looking = False
        self._due: float | None = None  # for a look
        self._closed = threading.Event()

    def tell(
        self, names: Callable[[], Collection[str]]
    ) -> Generator[dict[str, JobStatus], None, None]:
        """Yield what has changed, and {} when nothing has for a while. Ends when it is closed.

        Raises:
            LaunchError: the cluster can no longer be asked.
        """
        if self._progress:
            self._start("logs", lambda: self.read_logs(self._closed.wait))
        changes: list[Callable[[], None]] = []
        try:
            while True:
                now = time.monotonic()
                self.book.ask(names(), now)
                for change in changes:
                    change()
                self._look_if_need_be(now)
                yield self.book.news(now)
                changes = self._hear()
        finally:
            self._closed.set()
            self._cluster.close()

    def _hear(self) -> list[Callable[[], None]]:
        """Return the changes that came; wait for one, but not for long."""
        heard: list[Callable[[], None]] = []
        with contextlib.suppress(queue.Empty):
            heard.append(self._changes.get(timeout=TICK))
            self._closed.wait(GATHER)
            while True:
                heard.append(self._changes.get_nowait())
        return heard

    def _start(self, name: str, work: Callable[[], None]) -> None:
        def working() -> None:
            try:
                work()
            except Exception as error:  # told where the queue is read
                self._changes.put(partial(_raise, error))

        threading.Thread(target=working, name=f"eks-{name}", daemon=True).start()

    # --------------------------------------------------------------------------------------- lists

    def _look_if_need_be(self, now: float) -> None:
        """List what should be known and is not. At first that is everything."""
        if self._looking or (self._due is not None and now < self._due):
            return
        if self._due is None:
            unseen, unclear = self.book.asked, set[str]()
        else:
            unseen, unclear = self.book.unseen(now), self.book.unclear(now)
        self._looking = bool(unseen or unclear)
        if self._looking:
            self._due = now + BETWEEN
            self._start("look", lambda: self._look(unseen, unclear))

    def _look(self, unseen: set[str], unclear: set[str]) -> None:
        """List jobs and pods, and watch from there on what is not watched yet."""
        is_first = not self._watched
        new: dict[str, Iterator[Event]] = {}
        jobs = self._jobs(unseen, new) if unseen else []
        found, version = self._cluster.list("pods", labels=marks.ALL)
        if is_first:
            new["pods"] = self._changes_of("pods", found, version)
        pods = [slim.pod(pod) for pod in found]
        self._changes.put(partial(self._found, jobs, pods, unseen | unclear, is_first))
        for resource, changes in new.items():  # which are newer: they have to come after it
            self._watched.add(resource)
            self._start(resource, partial(self._pass_on, resource, changes))

    def _jobs(self, names: set[str], new: dict[str, Iterator[Event]]) -> list[Object]:
        """Return jobs of the kinds that the names are of; add to `new` how kinds go on."""
        jobs: list[Object] = []
        left = set(names)
        lists = self._of_all_kinds(lambda kind: self._cluster.list(kind, labels=marks.ALL))
        for resource, (found, version) in lists:
            there = left & {job["metadata"]["name"] for job in found}
            if there and resource not in self._watched:
                new[resource] = self._changes_of(resource, found, version)
            jobs += map(slim.job, found)
            left -= there
            if not left:
                break
        return jobs

    def _found(
        self, jobs: list[Object], pods: list[Object], names: set[str], is_first: bool
    ) -> None:
        self._looking = False
        self.book.take_lists(jobs, pods, None if is_first else names)
        self.book.settle(names)

    # ------------------------------------------------------------------------------------- watches

    def _changes_of(self, resource: str, known: list[Object], version: str) -> Iterator[Event]:
        return self._cluster.watch(resource, labels=marks.ALL, since=version, known=known)

    def _pass_on(self, resource: str, changes: Iterator[Event]) -> None:
        is_pod = resource == "pods"
        shape, take = (slim.pod, self.book.take_pod) if is_pod else (slim.job, self.book.take_job)
        for kind, item in changes:
            self._changes.put(partial(take, kind, shape(item)))

    # ---------------------------------------------------------------------------------------- logs

    def read_logs(self, wait: Callable[[float], Any]) -> None:
        """Read the ends of the logs of the jobs that run, in turn, until `wait` returns True."""
        last = ""
        while not wait(READ_EVERY):
            names = sorted([*self.book.readable])
            if not names:
                continue
            last = names[bisect_right(names, last) % len(names)]
            try:
                report = self._report(self.book.readable.get(last))
            except ApiError as error:
                if error.code == 403:
                    say(f"It cannot be told how far jobs have come: {error}")
                    return
            except LaunchError:
                pass  # its watch tells when the cluster is away for long
            else:
                if report is not None:
                    self._changes.put(partial(self.book.take_progress, last, report))

    def _report(self, log: Readable | None) -> Report | None:
        """Return the newest word of a log on how far its job has come."""
        from hydra_trainer.progress import parse

        if log is None:
            return None
        lines = [*self._cluster.logs(log.pod, container=log.container, tail=LAST_LINES)]
        found = (parse(line) for line in reversed(lines))
        return next((report for report in found if report is not None), None)


def _raise(error: Exception) -> NoReturn:
    raise error
