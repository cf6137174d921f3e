"""The log of one container, to its end, without a gap and without a repeat.

The API can only be asked for what was written since a certain second. So the lines of the last
seconds are remembered, and what comes again after a connection was lost is dropped.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from hydra_trainer.retry import Trouble

from .channel import Silent
from .connection import Connection, Request
from .refusals import ApiError
from .watch import Object, lines_of

STAMP = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(Z|[+-]\d\d:\d\d) ?")
NOT_YET = re.compile(
    r"waiting to start|not have a host|previous terminated container|ContainerCreating|"
    r"PodInitializing|failing to pull"
)
"""What a 400 says of a container that has no log (yet), rather than of a wrong request."""

OVERLAP = 1
"""Seconds: two streams of one container may be written a moment out of order."""

QUIET = 60.0
"""Seconds without a line after which the connection is renewed: it may be dead."""


@dataclass(frozen=True)
class Wanted:
    """Which log, and which part of it. `since` is a time such as 2026-11-24T12:00:00Z."""

    pod: str
    container: str
    follow: bool = False
    since: str | None = None
    previous: bool = False
    tail: int | None = None


class Told:
    """The lines that were told of late, to know them again."""

    def __init__(self) -> None:
        self._second: int | None = None
        self._lines: dict[int, Counter[str]] = {}

    def add(self, line: str, second: int) -> None:
        """Note a line; forget those that a resumed log cannot bring again."""
        if self._second is None or second > self._second:
            self._second = second
            self._lines = {s: lines for s, lines in self._lines.items() if s >= second - OVERLAP}
        self._lines.setdefault(second, Counter())[line] += 1

    @property
    def since(self) -> str | None:
        """The time from which a resumed log has to be asked for."""
        if self._second is None:
            return None
        return datetime.fromtimestamp(self._second - OVERLAP, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def again(self) -> Counter[str]:
        """Return the lines that a resumed log will bring once more."""
        return sum(self._lines.values(), Counter())


class Log:
    """Reads the log of one pod: not of another that takes its name.

    `request(wanted)` makes a request; `get(resource, name)` returns an object or None;
    `await_pod(name, is_ready, may_come)` returns a pod once it satisfies the function, or None when
    it is deleted before, or is not there and may not come.
    """

    def __init__(
        self,
        connection: Connection,
        wanted: Wanted,
        request: Callable[[Wanted], Request],
        get: Callable[[str, str], Object | None],
        await_pod: Callable[[str, Callable[[Object], bool], bool], Object | None],
    ) -> None:
        self.connection = connection
        self.wanted = wanted
        self.request = request
        self.get = get
        self.await_pod = await_pod
        self._told = Told()
        self._uid: str | None = None
        self._came = False

    def lines(self) -> Iterator[str]:
        """Yield the lines; when following, until the pod has ended or is gone."""
        if self.wanted.follow and not self._wait(_has_started):
            return
        attempts = self.connection.attempts(self.request(self.wanted).call)
        while True:
            trouble: Trouble | None = None
            try:
                yield from self._stream()
            except Trouble as error:
                trouble = error
            if self.wanted.follow:
                if not self._goes_on():
                    return
            elif trouble is None:
                return
            if self._came:
                attempts.succeeded()
            elif self.wanted.follow or trouble:
                self.connection.pause(attempts, trouble or Trouble("it ended too early."))

    def _stream(self) -> Iterator[str]:
        """Yield what one connection brings and was not told before. Raises Trouble."""
        self._came = False
        again = self._told.again()
        try:
            response = self.connection.send(self.request(self._rest()))
            address, is_all = self.connection.context.address, not self.wanted.follow
            for raw in lines_of(response, address, unfinished=is_all):
                line = raw.decode("utf-8", "replace")
                if again[line] > 0:
                    again[line] -= 1
                    continue
                stamp = STAMP.match(line)
                if stamp:
                    self._told.add(line, _second(stamp))
                self._came = True
                yield line[stamp.end() :] if stamp else line
        except ApiError as error:
            if not self._is_missing(error):
                raise
        except Silent as error:
            self._came = self.wanted.follow  # it lasted: a quiet container is none to wait for
            if not self.wanted.follow:
                raise Trouble("it fell silent.") from error

    def _rest(self) -> Wanted:
        """Return what is still wanted: all of it, or what was written since the last line told."""
        if since := self._told.since:
            return replace(self.wanted, since=since, tail=None)
        return self.wanted

    def _is_missing(self, error: ApiError) -> bool:
        """Whether there is no log yet, or none any more, which is no fault of the request."""
        if error.code == 404:
            return self._uid is not None
        return error.code == 400 and bool(NOT_YET.search(error.message))

    def _goes_on(self) -> bool:
        """Whether there may be more lines; waits while the container is between two starts.

        A pod that has ended is read once more to the end: the stream may have been cut before it.
        """
        pod = self.get("pods", self.wanted.pod)
        if pod is None or pod["metadata"]["uid"] != self._uid:
            return False
        if _has_ended(pod):
            self.wanted = replace(self.wanted, follow=False)
            return True
        return _is_running(pod, self.wanted.container) or self._wait(_is_running)

    def _wait(self, is_ready: Callable[[Object, str], bool]) -> bool:
        """Wait until the pod is ready. False when it is gone, or another one has its name."""

        def is_enough(pod: Object) -> bool:
            is_other = self._uid not in (None, pod["metadata"]["uid"])
            return is_other or is_ready(pod, self.wanted.container)

        pod = self.await_pod(self.wanted.pod, is_enough, self._uid is None)
        if pod is None or self._uid not in (None, pod["metadata"]["uid"]):
            return False
        self._uid = pod["metadata"]["uid"]
        return True


def _second(stamp: re.Match[str]) -> int:
    return int(datetime.fromisoformat(stamp[1] + stamp[2]).timestamp())


def _has_ended(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _is_running(pod: Object, container: str) -> bool:
    return _has_ended(pod) or "running" in (_container(pod, container).get("state") or {})


def _has_started(pod: Object, container: str) -> bool:
    """Whether the container has a log: it runs, or has run."""
    status = _container(pod, container)
    ran = (status.get("state") or {}).keys() | (status.get("lastState") or {}).keys()
    return _has_ended(pod) or bool(ran & {"running", "terminated"})


def _container(pod: Object, name: str) -> Object:
    """Return what the kubelet says of a container; nothing before it has seen the pod."""
    status = pod.get("status") or {}
    known = [*(status.get("containerStatuses") or []), *(status.get("initContainerStatuses") or [])]
    return next((dict(entry) for entry in known if entry.get("name") == name), {})
