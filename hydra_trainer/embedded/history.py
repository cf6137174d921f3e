"""The changes of the last minutes, and who wants to hear of the next ones."""

import json
from bisect import bisect_right
from collections.abc import Mapping
from queue import SimpleQueue
from typing import Any, NamedTuple

from . import refusals
from .selectors import Matches

KEPT = 32 << 20
"""Bytes of past changes that are kept for watches to go on from."""

Object = dict[str, Any]
Subscription = SimpleQueue[tuple[str, str, Object]]

Event = tuple[str, bytes, int]
"""ADDED, MODIFIED, DELETED or BOOKMARK; the JSON of the object (none for BOOKMARK); the version."""


class Record(NamedTuple):
    """One version of an object, as the JSON that clients get. Never changed."""

    resource: str
    namespace: str
    name: str
    uid: str
    version: int
    labels: Mapping[str, str]
    fields: Mapping[str, str]
    owners: tuple[str, ...]
    text: bytes

    @property
    def key(self) -> tuple[str, str, str]:
        return self.resource, self.namespace, self.name

    def load(self) -> Object:
        """Return the object, as a copy."""
        return dict(json.loads(self.text))


class Change(NamedTuple):
    """ADDED, MODIFIED or DELETED. A deleted object is as it was last, with a version of its own."""

    version: int
    type: str
    record: Record
    before: Record | None


class History:
    """Not locked: the store calls it while nothing changes."""

    def __init__(self, version: int) -> None:
        self.forgotten = version
        """Changes up to this one are no longer known."""
        self._changes: list[Change] = []
        self._size = 0
        self._watchers: list[tuple[str, SimpleQueue[Change | None]]] = []
        self._subscriptions: list[Subscription] = []

    def add(self, change: Change) -> None:
        self._changes.append(change)
        self._size += len(change.record.text)
        if self._size > KEPT:
            self.forget(self._changes[len(self._changes) // 2].version)
        for resource, queue in self._watchers:
            if resource == change.record.resource:
                queue.put(change)
        for subscription in self._subscriptions:
            subscription.put((change.type, change.record.resource, change.record.load()))

    def forget(self, version: int) -> None:
        """Let go of the changes up to a version."""
        kept = self._changes[bisect_right(self._changes, version, key=lambda one: one.version) :]
        self._changes, self.forgotten = kept, version
        self._size = sum(len(change.record.text) for change in kept)

    def since(self, resource: str, version: int) -> list[Change]:
        """Return the changes after a version. Raises ApiError 410 when some are forgotten."""
        if version < self.forgotten:
            raise refusals.too_old(version, self.forgotten)
        start = bisect_right(self._changes, version, key=lambda one: one.version)
        return [one for one in self._changes[start:] if one.record.resource == resource]

    def join(self, resource: str) -> "SimpleQueue[Change | None]":
        """Return a queue of the changes from now on; None in it is the end."""
        queue: SimpleQueue[Change | None] = SimpleQueue()
        self._watchers.append((resource, queue))
        return queue

    def leave(self, queue: "SimpleQueue[Change | None]") -> None:
        self._watchers = [watcher for watcher in self._watchers if watcher[1] is not queue]

    def subscribe(self) -> Subscription:
        subscription: Subscription = SimpleQueue()
        self._subscriptions.append(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions = [one for one in self._subscriptions if one is not subscription]

    def end(self) -> None:
        """Let all watches end."""
        for _, queue in self._watchers:
            queue.put(None)


def seen_by(change: Change, namespace: str | None, matches: Matches | None) -> list[Event]:
    """Return a change as a watch with a namespace and selectors sees it, if it does."""
    record, before, type_ = change.record, change.before, change.type
    if namespace and record.namespace != namespace:
        return []
    if matches:
        did = bool(before and matches(before.labels, before.fields))
        does = type_ != "DELETED" and matches(record.labels, record.fields)
        if not did and not does:
            return []
        type_ = "MODIFIED" if did and does else "ADDED" if does else "DELETED"
    return [(type_, record.text, record.version)]
