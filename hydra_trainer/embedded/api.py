"""From a request to its answer: who asks, what for, may they, and what comes of it."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .access import Access, User
from .discovery import Discovery
from .faults import Fault, Faults
from .kinds import BY_RESOURCE
from .podlogs import PodLogs, Wanted
from .reading import Reading, error_line
from .refusals import ApiError, bad_request, too_old
from .routes import Target, is_watch, target, verb
from .store import Store
from .wire import Broken, Request, Response
from .writing import Writing, no_part

TOKEN_PREFIX = "/as/"
"""A token can also be the first part of a URL: kubectl sends none in a header without TLS."""


LOOK = 0.1
"""Seconds between two looks whether a client that is told nothing has gone."""


class Api:
    """The API of a cluster.

    Args:
        home: the folder with the logs.
        absent: groups that the cluster is to be without, as if nobody had installed them.
        ending: set when the server is about to stop.
    """

    def __init__(
        self,
        store: Store,
        access: Access,
        faults: Faults,
        home: Path,
        absent: frozenset[str],
        ending: threading.Event,
    ) -> None:
        self.access = access
        self.faults = faults
        self._absent = absent
        self._ending = ending
        self._discovery = Discovery(absent)
        self._logs = PodLogs(store, home)
        self._reading = Reading(store, ending)
        self._writing = Writing(store, access)

    def answer(self, request: Request, is_alive: Callable[[], bool]) -> Response:
        """Return the answer, with or without trouble.

        Args:
            is_alive: whether the client is still there.

        Raises Broken where a fault is that there is none.
        """
        token, request = _token(request)
        try:
            return self._answer(request, token, is_alive)
        except ApiError as error:
            headers = {}
            if error.code == 429 or "retryAfterSeconds" in (error.details or {}):
                headers["Retry-After"] = str((error.details or {}).get("retryAfterSeconds", 1))
            return Response(json.dumps(error.status()).encode(), error.code, headers=headers)

    def _answer(
        self, request: Request, token: str | None, is_alive: Callable[[], bool]
    ) -> Response:
        wanted = target(request.path, self._absent)
        is_log = bool(wanted and wanted.subresource == "log")
        fault = None
        if not request.path.startswith("/embedded/"):
            fault = self.faults.strike(request, is_watch=is_watch(request), is_log=is_log)
        if fault and fault.kind == "status":
            raise fault.refusal(request)
        if fault and fault.kind == "reset":
            raise Broken
        user = self.access.user(token)
        response = (
            self._do(wanted, request, user, is_alive) if wanted else self._other(request, user)
        )
        if fault and fault.kind == "late":
            raise fault.refusal(request)
        if fault and fault.kind == "lost":
            raise Broken
        if fault and response.stream:
            stream = self._disturbed(fault, response.stream, is_alive)
            return Response(type=response.type, stream=stream)
        return response

    def _other(self, request: Request, user: User) -> Response:
        """Answer for what is none of a resource: discovery, health, this server's own paths."""
        self.access.check_path(user, request.method, request.path)
        if request.path == "/embedded/faults":
            return _json(self.faults.answer(request))
        if request.path == "/embedded/tokens" and request.method == "POST":
            return _json({"token": self.access.token(_user(request))})
        if request.path == "/embedded/stop" and request.method == "POST":
            return _json({})  # the server sees to it
        found = self._discovery.answer(request) if request.method == "GET" else None
        return found or Response(b"404 page not found\n", 404, "text/plain; charset=utf-8")

    def _do(
        self, wanted: Target, request: Request, user: User, is_alive: Callable[[], bool]
    ) -> Response:
        what = verb(request, wanted)
        self.access.check(user, wanted.asked(what))
        self._check_possible(wanted, what)
        if what == "get" and wanted.subresource == "log":
            lines = self._logs.open(
                wanted.namespace,
                wanted.name,
                Wanted.of(request.query),
                lambda: is_alive() and not self._ending.is_set(),
            )
            return Response(type="text/plain", stream=lines)
        if what == "watch" or (what == "get" and is_watch(request)):
            return Response(stream=self._reading.watch(wanted, request, is_alive))
        if what == "create":
            if wanted.subresource:
                return self._writing.create_part(wanted, request)
            return self._writing.create(wanted, request, user)
        verbs: dict[str, Callable[[Target, Request], Response]] = {
            "get": self._reading.get,
            "list": self._reading.list,
            "update": self._writing.replace,
            "patch": self._writing.patch,
            "delete": self._writing.delete,
            "deletecollection": self._writing.delete_all,
        }
        return verbs[what](wanted, request)

    def _check_possible(self, wanted: Target, what: str) -> None:
        kind = BY_RESOURCE[wanted.resource]
        if not wanted.subresource:
            if what not in kind.verbs:
                text = "the server does not allow this method on the requested resource"
                raise ApiError(405, "MethodNotAllowed", text)
            if kind.namespaced and not wanted.namespace and what not in ("list", "watch"):
                raise bad_request("an empty namespace may not be set during creation")
        elif (
            what == "get"
            and wanted.subresource != "log"
            and (wanted.subresource != "status" or not kind.status)
        ):
            raise no_part(wanted)

    def _disturbed(
        self, fault: Fault, stream: Iterator[bytes], is_alive: Callable[[], bool]
    ) -> Iterator[bytes]:
        """Yield what comes of a stream before and with a fault."""
        if fault.kind == "cut":
            yield from _cut(stream, fault.after)
            raise Broken
        for _ in range(fault.after):
            if (event := next(stream, None)) is None:
                return
            yield event
        if fault.kind == "compact":
            self._reading.forget()
            yield error_line(too_old(1, 2))
        elif fault.kind == "silent":
            while is_alive() and not self._ending.wait(LOOK):
                pass
        stream.close()  # type: ignore[attr-defined]


def _cut(stream: Iterator[bytes], size: int) -> Iterator[bytes]:
    for piece in stream:
        yield piece[:size]
        size -= len(piece)
        if size <= 0:
            return


def _token(request: Request) -> tuple[str | None, Request]:
    """Return the token of a request, and the request without it in its path."""
    token = None
    if request.path.startswith(TOKEN_PREFIX):
        token, _, path = request.path.removeprefix(TOKEN_PREFIX).partition("/")
        request = Request(request.method, f"/{path}", request.query, request.headers, request.body)
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        token = given.strip()
    return token, request


def _user(request: Request) -> User:
    try:
        given = dict(request.json())
        groups = (*map(str, given.get("groups") or ()), "system:authenticated")
        return User(str(given["name"]), groups)
    except (TypeError, ValueError, KeyError):
        raise bad_request('give {"name": ..., "groups": [...]}') from None


def _json(body: Any) -> Response:
    return Response(json.dumps(body).encode())
