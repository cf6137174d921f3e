"""Telling how many training jobs go: SageMaker tells nothing by itself, and a list of all is asked
for, one page a second.

Jobs stand in it in the order of their creation, the newest first, and after them all that the
account has ever run. So a look at them ends with the oldest job that is asked for.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterator
from datetime import datetime
from typing import Any

from hydra_trainer.errors import LaunchError
from hydra_trainer.job import JobState, JobStatus
from hydra_trainer.retry import Trouble

from . import state
from .account import Account
from .state import ENDED

Object = dict[str, Any]
News = dict[str, JobStatus]

EVERY = 1.0
"""Seconds between two pages of ListTrainingJobs, which allows two calls a second to an account."""

LAG = 10.0
"""Seconds for which a list may not know yet what CreateTrainingJob knows."""

FEW = 10
"""So many jobs that were never seen are asked for one by one, rather than looked for in a list
that goes back for years."""

PATIENCE = 900.0
"""Seconds that AWS may be away: a sweep of days outlives that."""

TICK = 2.0
"""Seconds after which something is told, if only that nothing happened."""

NEW = JobStatus(JobState.PENDING, reason="Starting")
NO_SUCH = JobStatus(
    JobState.UNKNOWN, reason="NotFound", message="There is no training job of that name."
)


class Teller:
    """Tells how those jobs go whose names it is given. Use `tell` once.

    Args:
        ended: returns the status of a job that has ended, with its result, by its name.
        lag: seconds for which a job that is not there is taken for one that is not listed yet.
        sleep: waits for so many seconds.
        clock: seconds that never run backwards.
    """

    def __init__(
        self,
        account: Account,
        ended: Callable[[str], JobStatus | None],
        *,
        lag: float = LAG,
        sleep: Callable[[float], object] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._account = account
        self._ended = ended
        self._lag = lag
        self._sleep = sleep or time.sleep
        self._clock = clock or time.monotonic
        self._due = self._heard = self._clock()
        self._asked: dict[str, float] = {}
        self._told: News = {}
        self._created: dict[str, datetime] = {}
        self._finished: dict[str, datetime | None] = {}
        """The jobs whose end was told, while they are still asked for: when they were created."""

    def tell(self, names: Callable[[], Collection[str]]) -> Iterator[News]:
        """Yield what has changed, for ever; {} where nothing has since the last page.

        Raises:
            LaunchError: AWS can no longer be asked.
        """
        while True:
            self._wait()
            yield {}
            self._ask(set(names()))
            if self._asked:
                yield from self._look_if_possible()

    def _look_if_possible(self) -> Iterator[News]:
        """Tell what has changed; nothing while AWS is away, which it may be for a while."""
        try:
            yield from self._look()
            self._heard = self._clock()
        except LaunchError as error:
            passes = isinstance(error.__cause__, Trouble)
            if not passes or self._clock() - self._heard > PATIENCE:
                raise

    def _ask(self, names: set[str]) -> None:
        """Say which jobs to tell about from now on."""
        now = self._clock()
        for name in self._asked.keys() - names:
            for book in (self._asked, self._told, self._created, self._finished):
                book.pop(name, None)
        for name in names - self._asked.keys():
            self._asked[name] = now

    def _wait(self) -> None:
        """Return when the next page may be asked for."""
        self._sleep(max(self._due - self._clock(), 0.0))
        self._due = self._clock() + EVERY

    def _look(self) -> Iterator[News]:
        """Tell of all jobs, as far as pages have to be turned to see them."""
        seen: set[str] = set()
        token: Object = {}
        while True:
            page = self._account.page(**token)
            for one in page["TrainingJobSummaries"]:
                name = str(one["TrainingJobName"])
                if name in self._asked:
                    seen.add(name)
                    yield from self._take(name, one)
            left = self._asked.keys() - self._finished.keys() - seen
            if not page.get("NextToken") or self._is_deep_enough(page, left):
                break
            token = {"NextToken": page["NextToken"]}
            self._wait()
            yield {}
        for name in left:
            yield from self._take_unlisted(name)

    def _is_deep_enough(self, page: Object, left: set[str]) -> bool:
        """Tell whether later pages hold none of the jobs that are left, or too few to turn them."""
        known = [self._created[name] for name in left if name in self._created]
        if len(left) - len(known) > FEW:
            return False
        oldest = min((one["CreationTime"] for one in page["TrainingJobSummaries"]), default=None)
        return not known or (oldest is not None and min(known) > oldest)

    def _take(self, name: str, found: Object) -> Iterator[News]:
        """Tell of a job by its summary, or by all that there is to know of it."""
        created = found["CreationTime"]
        if name in self._finished:
            if self._finished[name] == created:
                return
            del self._finished[name]  # another one, or one that was not there
        self._created[name] = created
        status: JobStatus | None = state.status(found)
        if found["TrainingJobStatus"] in ENDED:
            status = self._ended(name)
        if status is None or status.state.ended:
            yield self._finish(name, status)
        else:
            yield from self._change(name, status)

    def _take_unlisted(self, name: str) -> Iterator[News]:
        """Tell of a job that is on no page: it is new, very old, or not there."""
        if self._clock() - self._asked[name] < self._lag:
            if name not in self._created:
                yield from self._change(name, NEW)
        elif (found := self._account.describe(name)) is None:
            self._created.pop(name, None)
            yield self._finish(name, None)
        else:
            yield from self._take(name, found)

    def _change(self, name: str, status: JobStatus) -> Iterator[News]:
        if status != self._told.get(name):
            self._told[name] = status
            yield {name: status}

    def _finish(self, name: str, status: JobStatus | None) -> News:
        self._finished[name] = self._created.get(name)
        self._told.pop(name, None)
        return {name: status or NO_SUCH}


def apart(
    make: Callable[[Callable[[float], object]], Iterator[News]],
) -> Generator[News, None, None]:
    """Yield what a generator yields that waits, from a thread of its own; {} when nothing came.

    The generator is made with what it has to wait with; it ends with its first yield after the
    end of this one.
    """
    found: queue.SimpleQueue[News | Exception] = queue.SimpleQueue()
    closed = threading.Event()

    def work() -> None:
        try:
            for news in make(closed.wait):
                if closed.is_set():
                    return
                if news:
                    found.put(news)
        except Exception as error:  # raised where the queue is read
            found.put(error)

    threading.Thread(target=work, name="sagemaker-many", daemon=True).start()
    try:
        while True:
            try:
                one = found.get(timeout=TICK)
            except queue.Empty:
                one = {}
            if isinstance(one, Exception):
                raise one
            yield one
    finally:
        closed.set()
