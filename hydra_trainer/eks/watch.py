"""Changes of the objects of one kind, each told once, through everything that ends a watch.

A watch goes on from the version it has come to, which bookmarks move forward. When the server has
forgotten that version, the objects are listed and the difference is told as if it had been seen:
https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes
"""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from hydra_trainer.retry import TRANSIENT, Trouble

from .channel import Broken, Silent
from .connection import Answer, Connection, Request, broken
from .refusals import ApiError, Expired, refusal

Object = dict[str, Any]
"""What the API gives and takes, as plain JSON."""

Event = tuple[str, Object]
"""ADDED, MODIFIED or DELETED, and the object."""

MARGIN = 15.0
"""Seconds that a server may be late in ending a watch before it is taken for dead."""

LASTED = 1.0
"""Seconds: a watch that ends sooner, and brought nothing, is not renewed without a pause."""


class Watch:
    """The state of one watch: how far it has come, and what it knows to exist.

    `request(since)` makes its request; `list_all()` lists the same objects; `known` are those that
    existed at `since`.
    """

    def __init__(
        self,
        connection: Connection,
        request: Callable[[str], Request],
        list_all: Callable[[], tuple[list[Object], str]],
        since: str,
        known: Iterable[Object],
    ) -> None:
        self.connection = connection
        self.request = request
        self.list_all = list_all
        self.since = since
        self._known = {obj["metadata"]["uid"]: _stub(obj) for obj in known}
        self._opened: float | None = None
        self._came = False

    def events(self) -> Iterator[Event]:
        """Yield every change from `since` on, for ever. Raises ApiError or LaunchError."""
        attempts = self.connection.attempts(self.request(self.since).call)
        while True:
            expired = False
            trouble = Trouble("the server ended it at once.")
            try:
                yield from self._stream()
            except Silent:
                trouble = Trouble("nothing came.")
            except Expired as error:
                expired, trouble = True, Trouble(str(error))
            except Trouble as error:
                trouble = error
            if expired:
                yield from self._difference()
            if self._worked():
                attempts.succeeded()
            else:
                self.connection.pause(attempts, trouble)

    def _worked(self) -> bool:
        if self._came or self._opened is None:
            return self._came
        return self.connection.retry.clock() - self._opened >= LASTED

    def _stream(self) -> Iterator[Event]:
        """Yield the changes that one connection brings, to its end."""
        self._opened, self._came = None, False
        response = self.connection.send(self.request(self.since))
        self._opened = self.connection.retry.clock()
        for line in lines_of(response, self.connection.context.address):
            change = _parsed(line)
            event = self._seen(change["type"], change["object"])
            self._came = True
            if event:
                yield event

    def _seen(self, kind: str, obj: Object) -> Event | None:
        """Take note of a change; return it when it is one for the caller."""
        if kind == "ERROR":
            raise self._failed(obj)
        meta = obj["metadata"]
        self.since = meta["resourceVersion"]
        if kind == "BOOKMARK":
            return None
        before = self._known.pop(meta["uid"], None)
        if kind != "DELETED":
            self._known[meta["uid"]] = _stub(obj)
            if before and before["metadata"]["resourceVersion"] == self.since:
                return None
        return kind, obj

    def _failed(self, status: Object) -> ApiError | Trouble:
        """Return what an ERROR in the stream means; 410 says that `since` is too old."""
        if status.get("code") in TRANSIENT:
            return Trouble(f"{status['code']} {status.get('message')}.")
        return refusal(self.request(self.since).call, self.connection.context, status)

    def _difference(self) -> Iterator[Event]:
        """List anew, and tell what has changed since the last change that was seen."""
        items, self.since = self.list_all()
        present = {obj["metadata"]["uid"]: obj for obj in items}
        known, self._known = self._known, {uid: _stub(obj) for uid, obj in present.items()}
        for uid in known.keys() - present.keys():
            yield "DELETED", known[uid]
        for uid, obj in present.items():
            if uid not in known:
                yield "ADDED", obj
            elif known[uid]["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
                yield "MODIFIED", obj


def lines_of(answer: Answer, address: str, *, unfinished: bool = False) -> Iterator[bytes]:
    """Yield the lines of a stream as they come, without their ends.

    A last line that has no end is cut off, and told only where it may be `unfinished`. Raises
    Silent when nothing comes for too long, Trouble when the connection breaks.
    """
    rest = b""
    with contextlib.closing(answer.reply.pieces()) as pieces:
        try:
            for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                yield from lines
        except Broken as error:
            raise broken(error, address) from error
    if rest and unfinished:
        yield rest


def _parsed(line: bytes) -> Object:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as error:
        raise Trouble(f"the server sent what is not JSON: {line[:80]!r}.") from error


def _stub(obj: Object) -> Object:
    """Return what stays of an object until it is deleted: a thousand jobs have to fit."""
    kept = ("name", "namespace", "uid", "resourceVersion", "labels")
    meta = {key: obj["metadata"][key] for key in kept if key in obj["metadata"]}
    return {"apiVersion": obj.get("apiVersion"), "kind": obj.get("kind"), "metadata": meta}
