"""Faults on request: what an API server, a network or a load balancer does on a bad day.

    cluster.faults.add(Fault("status", code=429, retry_after=1, method="POST", times=3))
    cluster.faults.add(Fault("lost", path="/pytorchjobs$", share=0.1, times=None, seed=7))

The same is a POST of `{"kind": "status", "code": 429, ...}` to /embedded/faults, a DELETE of which
ends all of them; a GET lists them, and how often each came.
"""

import random
import re
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from .refusals import ApiError, bad_request
from .wire import Request

KINDS = {
    "status": "answer with `code`, and do not do what was asked",
    "reset": "break the connection off, and do not do what was asked",
    "late": "do what was asked, and answer with `code` all the same",
    "lost": "do what was asked, and break the connection off instead of answering",
    "silent": "let a watch say nothing more after `after` events, and not end either",
    "compact": "forget the history after `after` events of a watch, which ends with 410",
    "cut": "break the stream of a log off after `after` bytes",
}

REFUSALS = {
    401: ("Unauthorized", "Unauthorized"),
    403: ("Forbidden", 'forbidden: User "embedded" cannot {verb} path "{path}"'),
    429: ("TooManyRequests", "Too many requests, please try again later."),
    500: ("InternalError", "Internal error occurred: etcdserver: request timed out"),
    502: ("BadGateway", "Bad Gateway"),
    503: ("ServiceUnavailable", "the server is currently unable to handle the request"),
    504: ("Timeout", "Timeout: request did not complete within the allotted timeout"),
}


@dataclass
class Fault:
    """One kind of trouble, for the requests that it is for.

    Args:
        kind: one of KINDS.
        code: of a "status" or "late".
        method: GET, POST, ...; empty for all.
        path: a regular expression that is looked for in the path (without the query).
        times: how often; None for ever.
        share: of the requests that it is for, by chance (0 to 1).
        seed: makes the chance the same in each run.
        skip: so many requests are spared first.
        after: events, or bytes, that come before it.
        retry_after: seconds, in the header that goes with the code; none without.
        message: what the Status says, in place of the words of a real server.
    """

    kinds: ClassVar[Mapping[str, str]] = KINDS

    kind: str
    code: int = 500
    method: str = ""
    path: str = ""
    times: int | None = 1
    share: float = 1.0
    seed: int = 0
    skip: int = 0
    after: int = 0
    retry_after: int | None = None
    message: str = ""
    came: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.kind not in self.kinds:
            raise ValueError(f"no fault {self.kind!r}: choose from {', '.join(self.kinds)}")
        self._pattern = re.compile(self.path)
        self._random = random.Random(self.seed)

    def strikes(self, request: Request, is_watch: bool, is_log: bool) -> bool:
        """Whether it comes over this request; counts."""
        if self.times is not None and self.came >= self.times:
            return False
        if self.kind in ("silent", "compact") and not is_watch:
            return False
        if self.kind == "cut" and not is_log:
            return False
        if self.method not in ("", request.method) or not self._pattern.search(request.path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self._random.random() >= self.share:
            return False
        self.came += 1
        return True

    def refusal(self, request: Request) -> ApiError:
        """Return what goes with the code."""
        reason, text = REFUSALS.get(self.code, ("", f"HTTP {self.code}"))
        text = self.message or text.format(verb=request.method.lower(), path=request.path)
        details = None if self.retry_after is None else {"retryAfterSeconds": self.retry_after}
        return ApiError(self.code, reason, text, details)


class Faults:
    """The faults of a server. May be shared by threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        """Return the fault, whose `came` counts."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def list(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fault) for fault in self._faults]

    def strike(self, request: Request, *, is_watch: bool, is_log: bool) -> Fault | None:
        """Return the first fault that comes over a request, if one does."""
        if not self._faults:
            return None
        with self._lock:
            return next((f for f in self._faults if f.strikes(request, is_watch, is_log)), None)

    def answer(self, request: Request) -> Any:
        """Do what was asked of /embedded/faults, and return what to answer."""
        if request.method == "DELETE":
            self.clear()
        elif request.method == "POST":
            self.add(_parsed(request))
        return {"faults": self.list()}


def _parsed(request: Request) -> Fault:
    known = [one.name for one in fields(Fault) if one.init]
    try:
        given = dict(request.json())
        if unknown := given.keys() - set(known):
            raise ValueError(f"no such key: {', '.join(unknown)}; there are {', '.join(known)}")
        return Fault(**given)
    except (TypeError, ValueError, re.error) as error:
        raise bad_request(f"no fault: {error}") from None
