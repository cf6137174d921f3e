"""GET: one object, a list in pages, a watch; as JSON, as metadata only, or as a table.

https://kubernetes.io/docs/reference/using-api/api-concepts/
"""

import json
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

from . import tables
from .history import Event, Object, Record
from .kinds import Kind
from .refusals import ApiError, bad_request, expired
from .routes import Target
from .selectors import selector
from .store import BOOKMARK, Store
from .wire import Request, Response

LONGEST_WATCH = 3600.0
"""Seconds that a watch lasts whose client does not say."""

CONTINUE_FOR = 300.0
CONTINUE_KEPT = 64
"""Seconds that the rest of a list can be asked for, and the number of lists: as etcd, which
forgets what is older than five minutes."""


class Rest(NamedTuple):
    """What is left of a list that was asked for in pages."""

    records: list[Record]
    version: str
    until: float


class Reading:
    """Answers GET from a store.

    Args:
        ending: set when the server is about to stop, which ends all watches.
    """

    def __init__(self, store: Store, ending: threading.Event) -> None:
        self._store = store
        self._ending = ending
        self._rests: OrderedDict[str, Rest] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, target: Target, request: Request) -> Response:
        """Raises ApiError 404."""
        record = self._store.record(target.resource, target.namespace, target.name)
        return Response(as_accepted(target.kind, record.text, request))

    def list(self, target: Target, request: Request) -> Response:
        """Return a page, the whole list without `limit`. Raises ApiError 400 or 410."""
        token, limit = request.query.get("continue", ""), _number(request, "limit")
        rest = self._taken(token) if token else self._all(target, request)
        page = rest.records[:limit] if limit else rest.records
        meta: Object = {"resourceVersion": rest.version}
        if left := rest.records[len(page) :]:
            meta["continue"] = self._kept(rest._replace(records=left))
            if not _selectors(request):
                meta["remainingItemCount"] = len(left)
        return Response(_list_body(target.kind, page, meta, request))

    def watch(
        self, target: Target, request: Request, is_alive: Callable[[], bool]
    ) -> Iterator[bytes]:
        """Return a stream of events, one on each line.

        What is wrong from the start raises ApiError 400. History that is forgotten is told in the
        stream (ERROR, 410), as a real server does.

        Args:
            is_alive: whether the client is still there.
        """
        end = time.monotonic() + (_number(request, "timeoutSeconds") or LONGEST_WATCH)

        def wait() -> float | None:
            left = end - time.monotonic()
            if left <= 0 or self._ending.is_set() or not is_alive():
                return None
            return min(BOOKMARK, left)

        since = _since(request)
        labels, fields = _selectors(request) or ("", "")
        selector(target.resource, labels, fields)  # they are looked at when the stream begins
        events = self._store.watch(
            target.resource,
            target.namespace or None,
            since,
            labels=labels,
            fields=_fields(target, fields),
            wait=wait,
        )
        return self._lines(target.kind, request, events)

    def forget(self) -> None:
        """Forget the history: watches and pages that want to go on from it get 410."""
        self._store.compact()
        with self._lock:
            self._rests.clear()

    def _lines(self, kind: Kind, request: Request, events: Iterator[Event]) -> Iterator[bytes]:
        bookmarks = request.query.get("allowWatchBookmarks") in ("true", "1")
        initial = request.query.get("sendInitialEvents") in ("true", "1")
        is_first = True
        try:
            for type_, text, version in events:
                if type_ == "BOOKMARK":
                    if bookmarks and (initial or _since(request)):
                        yield _line(type_, _bookmark(kind, version, initial))
                        initial = False
                    continue
                yield _line(type_, as_accepted(kind, text, request, is_first=is_first))
                is_first = False
        except ApiError as error:
            yield error_line(error)

    def _all(self, target: Target, request: Request) -> Rest:
        labels, fields = _selectors(request) or ("", "")
        records, version = self._store.records(
            target.resource, target.namespace or None, labels, _fields(target, fields)
        )
        return Rest(records, version, time.monotonic() + CONTINUE_FOR)

    def _kept(self, rest: Rest) -> str:
        token = secrets.token_hex(16)
        with self._lock:
            self._rests[token] = rest
            if len(self._rests) > CONTINUE_KEPT:
                self._rests.popitem(last=False)
        return token

    def _taken(self, token: str) -> Rest:
        """Return what is left. It can be asked for again: the answer may have been lost."""
        rest = self._rests.get(token)
        if rest is None or rest.until < time.monotonic():
            raise expired(
                "The provided continue parameter is too old to display a consistent list result. "
                "You can start a new list without the continue parameter."
            )
        return rest


def as_accepted(kind: Kind, text: bytes, request: Request, *, is_first: bool = True) -> bytes:
    """Return an object in the form that a client asks for.

    Args:
        is_first: whether a table needs its head.
    """
    form = _form(request)
    if form == "Table":
        table = tables.table(kind, [json.loads(text)], include=_include(request))
        return json.dumps(table if is_first else {**table, "columnDefinitions": None}).encode()
    if form.startswith("PartialObjectMetadata"):
        return json.dumps(tables.metadata_of(json.loads(text))).encode()
    return text


def error_line(error: ApiError) -> bytes:
    """Return an error as an event of a watch."""
    return _line("ERROR", json.dumps(error.status()).encode())


def _line(type_: str, text: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (type_.encode(), text)


def _bookmark(kind: Kind, version: int, initial: bool) -> bytes:
    meta: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if initial:
        meta["annotations"] = {"k8s.io/initial-events-end": "true"}
    head = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta}
    return json.dumps(head).encode()


def _list_body(kind: Kind, records: list[Record], meta: Object, request: Request) -> bytes:
    form = _form(request)
    if form == "Table":
        items = [record.load() for record in records]
        table = tables.table(kind, items, include=_include(request))
        return json.dumps({**table, "metadata": meta}).encode()
    if form.startswith("PartialObjectMetadata"):
        items = [tables.metadata_of(record.load()) for record in records]
        head = {"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1"}
        return json.dumps({**head, "metadata": meta, "items": items}).encode()
    texts = [record.text for record in records]
    if not kind.custom:  # in lists of built-in kinds, only the list says what its items are
        prefix = f'{{"apiVersion":"{kind.api_version}","kind":"{kind.kind}",'.encode()
        texts = [b"{" + text.removeprefix(prefix) for text in texts]
    return (b'{"kind":"%sList","apiVersion":"%s","metadata":%s,"items":[%s]}') % (
        kind.kind.encode(),
        kind.api_version.encode(),
        json.dumps(meta).encode(),
        b",".join(texts),
    )


def _form(request: Request) -> str:
    """Return what the first acceptable media type asks an object to be made into, if anything.

    `application/json;as=Table;v=v1;g=meta.k8s.io,application/json` is a table.
    """
    first = request.headers.get("accept", "").partition(",")[0]
    return next((part[3:] for part in first.split(";") if part.startswith("as=")), "")


def _include(request: Request) -> str:
    return request.query.get("includeObject", "Metadata")


def _selectors(request: Request) -> tuple[str, str] | None:
    labels, fields = request.query.get("labelSelector", ""), request.query.get("fieldSelector", "")
    return (labels, fields) if labels or fields else None


def _fields(target: Target, fields: str) -> str:
    """A watch of one object by its name in the path is one with a selector."""
    return ",".join(filter(None, [fields, target.name and f"metadata.name={target.name}"]))


def _since(request: Request) -> str:
    since = request.query.get("resourceVersion", "")
    if request.query.get("sendInitialEvents") in ("true", "1"):
        return ""
    if since and not since.isdigit():
        raise bad_request(f'Invalid value: "{since}": invalid resource version')
    return "" if since == "0" else since


def _number(request: Request, key: str) -> int:
    value = request.query.get(key, "")
    if value and not value.isdigit():
        raise bad_request(f'strconv.ParseInt: parsing "{value}": invalid syntax')
    return int(value or 0)
