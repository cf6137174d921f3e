"""The logs of a training job: CloudWatch's streams, one for each start of each instance."""

import heapq
import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .account import Account, Refused

POLL = 2.0  # seconds between two looks at streams that had nothing new


class Line(NamedTuple):
    """A line of a log, and when it was written (milliseconds since 1970)."""

    time: int
    stream: str
    text: str


class Logs:
    """Reads the streams of a job, each from where it was left: no gap, no repeat.

    Args:
        account: where they are.
        job: the name of the training job.
        host: algo-1, algo-2, ...; None: all.
    """

    def __init__(self, account: Account, job: str, host: str | None = "algo-1") -> None:
        self.account = account
        self.job = job
        self.host = host
        self._tokens: dict[str, str] = {}

    def read(self) -> Iterator[Line]:
        """Yield what has come since the last call, of all streams in the order of time."""
        streams = [stream for stream in self.account.streams(self.job) if self._is_wanted(stream)]
        yield from heapq.merge(*(self._new(stream) for stream in streams), key=_by_time)

    def _is_wanted(self, stream: str) -> bool:
        """Streams are named JOB/algo-1-1731283200."""
        host = stream.removeprefix(f"{self.job}/").rpartition("-")[0]
        return host == self.host or (
            self.host is None and re.fullmatch(r"algo-\d+", host) is not None
        )

    def _new(self, stream: str) -> Iterator[Line]:
        while True:
            before = self._tokens.get(stream)
            try:
                events, after = self.account.events(stream, before)
            except Refused as error:
                if error.code != "ResourceNotFoundException":
                    raise
                return  # it is listed, but not known everywhere yet
            self._tokens[stream] = after
            for event in events:
                yield Line(int(event["timestamp"]), stream, str(event["message"]))
            # An empty page is not the end, but the token that was given comes back there.
            if after == before:
                return

    def follow(self, ended: Callable[[], bool], pause: float = POLL) -> Iterator[Line]:
        """Yield lines until a job has ended and all of its log is read."""
        while True:
            is_last = ended()
            yield from self.read()
            if is_last:
                return
            time.sleep(pause)


def _by_time(line: Line) -> int:
    return line.time


def host_of(rank: int, processes: int) -> str:
    """Return the instance that a rank is on."""
    return f"algo-{rank // max(processes, 1) + 1}"
