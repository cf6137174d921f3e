"""The logs of containers: where the kubelet writes them, and how the API reads them.

The kubelet writes one file for each start of a container, a line at a time, as a real one does:
`2026-11-24T13:31:29.123456789Z stdout F text`, with P for F where the line goes on in the next one.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .history import Object
from .refusals import ApiError, bad_request
from .store import Store

LINE = re.compile(rb"(\S+) (?:stdout|stderr) ([FP]) (.*\n?)", re.DOTALL)
LOGS = "logs"
POLL = 0.05
"""Seconds between two looks at a file that is followed."""


def log_file(home: Path, pod: Object, container: str, restart: int) -> Path:
    """Return the file for one start of a container (`restart`: how many there were before it)."""
    meta = pod["metadata"]
    folder = f"{meta['namespace']}_{meta['name']}_{meta['uid']}"
    return home / LOGS / folder / container / f"{restart}.log"


@dataclass(frozen=True)
class Wanted:
    """The query of a request for a log."""

    container: str = ""
    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    tail: int | None = None
    since: float = 0.0  # seconds since 1970
    limit: int | None = None  # bytes

    @classmethod
    def of(cls, query: dict[str, str]) -> "Wanted":
        """Raises ApiError 400 or 422."""
        if "sinceSeconds" in query and "sinceTime" in query:
            text = "at most one of `sinceTime` or `sinceSeconds` may be specified"
            raise ApiError(422, "Invalid", f"PodLogOptions is invalid: {text}")
        since = 0.0
        if "sinceTime" in query:
            since = _seconds(query["sinceTime"])
        elif "sinceSeconds" in query:
            since = time.time() - _number(query, "sinceSeconds")
        return cls(
            query.get("container", ""),
            query.get("follow") in ("true", "1"),
            query.get("previous") in ("true", "1"),
            query.get("timestamps") in ("true", "1"),
            _number(query, "tailLines") if "tailLines" in query else None,
            since,
            _number(query, "limitBytes") if "limitBytes" in query else None,
        )


class PodLogs:
    """Reads the logs below a folder, of the pods in a store."""

    def __init__(self, store: Store, home: Path) -> None:
        self.store = store
        self.home = home

    def open(
        self, namespace: str, name: str, wanted: Wanted, is_alive: Callable[[], bool]
    ) -> Iterator[bytes]:
        """Return the lines of a log as they come; a client that follows it may go away.

        Raises ApiError, here and not later: 404 without the pod, 400 where the container is none
        of its, or has not started.
        """
        pod = self.store.get("pods", namespace, name)
        container = _chosen(pod, wanted.container)
        restart = _start(pod, container, wanted.previous)
        file = log_file(self.home, pod, container, restart)

        def is_over() -> bool:
            return not is_alive() or self._is_over(pod, container, restart)

        lines = _lines(file, is_over if wanted.follow else lambda: True)
        return _selected(lines, wanted, _tail(file, wanted))

    def _is_over(self, pod: Object, container: str, restart: int) -> bool:
        """Whether nothing will be written to a log any more."""
        meta = pod["metadata"]
        try:
            record = self.store.record("pods", meta["namespace"], meta["name"])
        except ApiError:
            return True
        if record.uid != meta["uid"] or record.fields["status.phase"] in ("Succeeded", "Failed"):
            return True
        status = _status(record.load(), container)
        return status.get("restartCount", 0) > restart or "terminated" in status.get("state", {})


def _chosen(pod: Object, container: str) -> str:
    """Return the container that is meant."""
    spec, name = pod["spec"], pod["metadata"]["name"]
    names = [one["name"] for one in spec["containers"]]
    initial = [one["name"] for one in spec.get("initContainers") or ()]
    if container in (*names, *initial):
        return container
    if container:
        raise bad_request(f"container {container} is not valid for pod {name}")
    if len(names) > 1:
        choice = f"choose one of: [{' '.join(names)}]"
        if initial:
            choice += f" or one of the init containers: [{' '.join(initial)}]"
        raise bad_request(f"a container name must be specified for pod {name}, {choice}")
    return str(names[0])


def _start(pod: Object, container: str, previous: bool) -> int:
    """Return which start of a container is meant."""
    name, status = pod["metadata"]["name"], _status(pod, container)
    count = int(status.get("restartCount", 0))
    state, last = status.get("state") or {}, status.get("lastState") or {}
    if previous:
        if "terminated" not in last or count < 1:
            text = f'previous terminated container "{container}" in pod "{name}" not found'
            raise bad_request(text)
        return count - 1
    if not pod["spec"].get("nodeName"):
        raise bad_request(f"pod {name} does not have a host assigned")
    if "running" in state or "terminated" in state:
        return count
    if "terminated" in last and count > 0:
        return count - 1
    reason = state.get("waiting", {}).get("reason") or "ContainerCreating"
    if reason in ("ErrImagePull", "ImagePullBackOff"):
        reason = "trying and failing to pull image"
        raise bad_request(f'container "{container}" in pod "{name}" is waiting to start: {reason}')
    raise bad_request(f'container "{container}" in pod "{name}" is waiting to start: {reason}')


def _status(pod: Object, container: str) -> dict[str, Any]:
    status = pod.get("status") or {}
    known = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    return next((dict(one) for one in known if one["name"] == container), {})


def _lines(file: Path, is_over: Callable[[], bool]) -> Iterator[bytes]:
    """Yield the whole lines of a file that grows, until it is over and read to its end."""
    rest = b""
    while not file.exists():
        if is_over():
            return
        time.sleep(POLL)
    with file.open("rb") as stream:
        while True:
            over = is_over()  # asked before reading: what was written until then is there
            while chunk := stream.read(1 << 16):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line + b"\n" for line in lines)
            if over:
                break
            time.sleep(POLL)


def _tail(file: Path, wanted: Wanted) -> int:
    """Return how many of the selected lines of a file to leave out."""
    if wanted.tail is None:
        return 0
    pieces = _selected(_lines(file, lambda: True), Wanted(since=wanted.since), 0)
    return max(0, sum(piece.endswith(b"\n") for piece in pieces) - wanted.tail)


def _selected(lines: Iterator[bytes], wanted: Wanted, skip: int) -> Iterator[bytes]:
    """Yield what is wanted of the lines of a file, as a client gets it."""
    left = wanted.limit
    is_new = True
    for raw in lines:
        match = LINE.fullmatch(raw)
        if not match:
            continue
        stamp, whole, text = match.groups()
        is_first, is_new = is_new, whole == b"F"
        if wanted.since and _seconds(stamp.decode()) < wanted.since:
            continue
        if skip > 0:
            skip -= is_new
            continue
        if wanted.timestamps and is_first:
            text = stamp + b" " + text
        if not is_new:
            text = text.removesuffix(b"\n")
        if left is not None:
            text, left = text[:left], left - len(text)
        yield text
        if left is not None and left <= 0:
            return


def _seconds(stamp: str) -> float:
    """Return the seconds since 1970 of a time such as 2026-11-24T13:31:29.123456789Z."""
    match = re.fullmatch(r"(.+?)(\.\d+)?(Z|[+-]\d\d:\d\d)", stamp)
    try:
        if match:
            return datetime.fromisoformat(match[1] + match[3]).timestamp() + float(match[2] or 0)
    except ValueError:
        pass
    raise bad_request(f'unable to parse "{stamp}" as a time')


def _number(query: dict[str, str], key: str) -> int:
    try:
        return int(query[key])
    except ValueError:
        text = f'strconv.ParseInt: parsing "{query[key]}": invalid syntax'
        raise bad_request(f"unable to decode parameter {key}: {text}") from None
