"""CloudWatch Logs: the streams of /aws/sagemaker/TrainingJobs, read from the logs of the processes.

A stream is `JOB/algo-N-SECONDS`, with the time at which the container started. It is there from its
first event on, and has an event `delays.logs` seconds after that was printed.
"""

import base64
import binascii
import json
import shlex
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from .protocols import Call, Operations
from .refusals import AwsError
from .settings import Settings

Object = dict[str, Any]

GROUP = "/aws/sagemaker/TrainingJobs"

LOGS = "logs"
"""The folder in the home, with REGION/JOB/algo-N-SECONDS.log; a job that is deleted leaves them."""

LAST = 64 << 10
"""Bytes at the end of a file in which its last event is looked for."""

MOST_EVENTS = 10_000
MOST_BYTES = 1 << 20
"""Of one answer."""

EVENT_LIMIT = 256 << 10
"""Bytes of one event: a line that is longer goes on in the next one."""

MOST_STREAMS = 50

DIGITS = 56
"""Of the number in a token."""


class Event(NamedTuple):
    """A line of a log: `start` and `end` are places in its file, `timestamp` is in ms."""

    timestamp: int
    message: str
    start: int
    end: int


class Stream(NamedTuple):
    """A stream: `name` is the whole one."""

    name: str
    file: Path

    @property
    def started(self) -> int:
        """In ms, as the name has it."""
        return int(self.name.rpartition("-")[2]) * 1000


def streams(home: Path, region: str, job: str) -> list[Stream]:
    """Return the streams of a job, the oldest first."""
    found = (home / LOGS / region / job).glob("*.log")
    unordered = [Stream(f"{job}/{file.stem}", file) for file in found]
    return sorted(unordered, key=lambda one: (one.started, one.name))


def new_file(home: Path, region: str, job: str, host: str) -> Path:
    """Return the file for a new start of a host's container: no other one has its name."""
    folder = home / LOGS / region / job
    seconds = int(time.time())
    while (file := folder / f"{host}-{seconds}.log").exists():
        seconds += 1
    return file


def read(file: Path, start: int = 0, until: float = float("inf")) -> Iterator[Event]:
    """Yield the events of a file from a place on.

    Args:
        until: the time of the last one, in seconds.
    """
    with file.open("rb") as lines:
        lines.seek(start)
        end, stamp, text = start, b"", b""
        for line in lines:
            if not line.endswith(b"\n"):
                return  # it is just being written
            end += len(line)
            when, _, kind, part = line[:-1].split(b" ", 3)
            stamp, text = stamp or when, text + part
            if kind == b"P" and len(text) < EVENT_LIMIT:
                continue
            timestamp = _milliseconds(stamp.decode())
            if timestamp > until * 1000:
                return
            yield Event(timestamp, text.decode(errors="replace"), start, end)
            start, stamp, text = end, b"", b""


def _milliseconds(stamp: str) -> int:
    """Return a time that a container runtime wrote, which has nanoseconds."""
    return int(datetime.fromisoformat(f"{stamp[:26]}+00:00").timestamp() * 1000)


class Logs:
    """Answers what is asked of CloudWatch Logs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.operations: Operations = {
            "DescribeLogGroups": self._groups,
            "DescribeLogStreams": self._describe,
            "GetLogEvents": self._get,
            "FilterLogEvents": self._filter,
        }

    # ------------------------------------------------------------------------------------- streams

    def _groups(self, call: Call) -> Object:
        prefix = call.parameters.get("logGroupNamePrefix", "")
        is_there = GROUP.startswith(prefix) and self._is_there(call.region)
        return {"logGroups": [{"logGroupName": GROUP, "arn": self._arn(call)}] if is_there else []}

    def _describe(self, call: Call) -> Object:
        asked = call.parameters
        prefix, order = asked.get("logStreamNamePrefix", ""), asked.get("orderBy", "LogStreamName")
        if prefix and order == "LastEventTime":
            raise _invalid("Cannot order by LastEventTime with a logStreamNamePrefix.")
        rows = [self._described(call, one) for one in self._group(call, prefix)]
        key = "logStreamName" if order == "LogStreamName" else "lastEventTimestamp"
        rows.sort(
            key=lambda row: (row.get(key, 0), row["logStreamName"]),
            reverse=bool(asked.get("descending")),
        )
        start = _offset(asked)
        limit = _limit(asked, MOST_STREAMS)
        answer: Object = {"logStreams": rows[start : start + limit]}
        if len(rows) > start + limit:
            answer["nextToken"] = _token(start + limit)
        return answer

    def _described(self, call: Call, stream: Stream) -> Object:
        first, last = next(self._events(stream)).timestamp, self._last(stream).timestamp
        return {
            "logStreamName": stream.name,
            "creationTime": stream.started,
            "firstEventTimestamp": first,
            "lastEventTimestamp": last,
            "lastIngestionTime": last,
            "arn": f"{self._arn(call)[:-2]}:log-stream:{stream.name}",
            "storedBytes": 0,  # as the service says since 2019
        }

    def _last(self, stream: Stream) -> Event:
        """Return the last event of a stream that has one."""
        start = max(0, stream.file.stat().st_size - LAST)
        with stream.file.open("rb") as lines:
            lines.seek(start)
            if start:
                start += len(lines.readline())
        found = list(self._events(stream, start)) or list(self._events(stream))
        return found[-1]

    def _arn(self, call: Call) -> str:
        return f"arn:aws:logs:{call.region}:{self._settings.account}:log-group:{GROUP}:*"

    def _group(self, call: Call, prefix: str = "") -> list[Stream]:
        """Return the streams of the group that is asked for, by their prefix. Raises AwsError."""
        asked = call.parameters
        name = asked.get("logGroupName") or asked.get("logGroupIdentifier", "")
        if name.removesuffix(":*").rpartition(":")[2] != GROUP or not self._is_there(call.region):
            raise _absent("group")
        job, is_whole, _ = prefix.partition("/")
        among = [job] if is_whole else self._jobs(call.region)
        found = [stream for one in among for stream in self._visible(call.region, one)]
        return [one for one in found if one.name.startswith(prefix)]

    def _is_there(self, region: str) -> bool:
        """Whether there is the group: the first event makes it."""
        return any(next(self._visible(region, job), None) for job in self._jobs(region))

    def _jobs(self, region: str) -> list[str]:
        return [folder.name for folder in (self._settings.home / LOGS / region).glob("*")]

    def _visible(self, region: str, job: str) -> Iterator[Stream]:
        found = streams(self._settings.home, region, job)
        return (one for one in found if next(self._events(one), None))

    def _events(self, stream: Stream, start: int = 0) -> Iterator[Event]:
        return read(stream.file, start, time.time() - self._settings.delays.logs)

    # -------------------------------------------------------------------------------------- events

    def _get(self, call: Call) -> Object:
        asked = call.parameters
        stream = self._stream(call)
        limit = _limit(asked, MOST_EVENTS)
        way, place = _place(asked)
        if place < 0:
            place = max((event.end for event in self._events(stream)), default=0)
        if way == "f":
            events = self._after(stream, place, asked, limit)
        else:
            events = self._before(stream, place, asked, limit)
        # Past the end, and before the beginning, the token stays what it is.
        first, last = (events[0].start, events[-1].end) if events else (place, place)
        return {
            "events": [_shown(event) for event in events],
            "nextForwardToken": f"f/{last:0{DIGITS}}",
            "nextBackwardToken": f"b/{first:0{DIGITS}}",
        }

    def _stream(self, call: Call) -> Stream:
        name = call.parameters.get("logStreamName", "")
        for one in self._group(call, name if "/" in name else f"{name}/"):
            if one.name == name:
                return one
        raise _absent("stream")

    def _after(self, stream: Stream, place: int, asked: Object, limit: int) -> list[Event]:
        found: list[Event] = []
        size = 0
        for event in self._events(stream, place):
            if _is_in_time(event, asked):
                size += len(event.message.encode()) + 26  # of an event, beside its text
                if len(found) == limit or size > MOST_BYTES:
                    break
                found.append(event)
        return found

    def _before(self, stream: Stream, place: int, asked: Object, limit: int) -> list[Event]:
        found: list[Event] = []
        size = 0
        for event in reversed([one for one in self._events(stream) if one.end <= place]):
            if _is_in_time(event, asked):
                size += len(event.message.encode()) + 26
                if len(found) == limit or size > MOST_BYTES:
                    break
                found.append(event)
        return found[::-1]

    def _filter(self, call: Call) -> Object:
        asked = call.parameters
        prefix, names = asked.get("logStreamNamePrefix", ""), asked.get("logStreamNames")
        if prefix and names:
            raise _invalid("logStreamNamePrefix and logStreamNames are mutually exclusive.")
        wanted = [one for one in self._group(call, prefix) if names is None or one.name in names]
        if names and len(wanted) < len(set(names)):
            raise _absent("stream")
        terms = shlex.split(asked.get("filterPattern") or "")
        after = _read_token(asked["nextToken"]) if asked.get("nextToken") else None
        rows = sorted(
            (event.timestamp, stream.name, event.start, event)
            for stream in wanted
            for event in self._events(stream)
            if _is_in_time(event, asked) and all(term in event.message for term in terms)
        )
        rows = [row for row in rows if after is None or [*row[:3]] > after]
        limit = _limit(asked, MOST_EVENTS)
        page = rows[:limit]
        answer: Object = {"events": [_found(*row[1:]) for row in page], "searchedLogStreams": []}
        if len(rows) > limit:
            answer["nextToken"] = _token([*page[-1][:3]])
        return answer


def _is_in_time(event: Event, asked: Object) -> bool:
    """The end is not part of it: https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference"""
    return bool(asked.get("startTime", 0) <= event.timestamp < asked.get("endTime", 2**63))


def _shown(event: Event) -> Object:
    return {
        "timestamp": event.timestamp,
        "message": event.message,
        "ingestionTime": event.timestamp,
    }


def _found(stream: str, start: int, event: Event) -> Object:
    number = f"{event.timestamp:020}{start:036}"
    return {"logStreamName": stream, **_shown(event), "eventId": number}


def _place(asked: Object) -> tuple[str, int]:
    """Return which way to go (f, b), and from which place; -1 is the end."""
    token = asked.get("nextToken")
    if token is None:
        return ("f", 0) if asked.get("startFromHead") else ("b", -1)
    way, _, number = str(token).partition("/")
    if way not in ("f", "b") or len(number) != DIGITS or not number.isdecimal():
        raise _invalid("The specified nextToken is invalid.")
    return way, int(number)


def _limit(asked: Object, most: int) -> int:
    limit = asked.get("limit", most)
    if not 1 <= limit <= most:
        raise _invalid(
            f"1 validation error detected: Value '{limit}' at 'limit' failed to satisfy "
            f"constraint: Member must have value between 1 and {most}"
        )
    return int(limit)


def _token(place: Any) -> str:
    return base64.b64encode(json.dumps(place).encode()).decode()


def _read_token(token: str) -> Any:
    try:
        return json.loads(base64.b64decode(token))
    except (binascii.Error, ValueError):
        raise _invalid("The specified nextToken is invalid.") from None


def _offset(asked: Object) -> int:
    return int(_read_token(asked["nextToken"])) if asked.get("nextToken") else 0


def _invalid(message: str) -> AwsError:
    return AwsError("InvalidParameterException", message)


def _absent(what: str) -> AwsError:
    return AwsError("ResourceNotFoundException", f"The specified log {what} does not exist.")
