"""The objects of the embedded cluster: what an API server keeps in etcd, in memory and in a file.

Every change has a number, the resourceVersion, that only grows: also over the restarts of the
process. An object is kept as the JSON that clients get; dicts are copies, which callers may change.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from queue import Empty, SimpleQueue

from . import defaults, metadata, refusals
from .history import Change, Event, History, Object, Record, Subscription, seen_by
from .journal import Journal
from .kinds import BY_RESOURCE
from .metadata import kind_of, now
from .refusals import ApiError
from .selectors import selector

__all__ = ["ApiError", "Record", "Store", "now"]

BOOKMARK = 15.0
"""Seconds without a change after which a watch tells how far it has come: a real API server, 60."""

FOREGROUND = "foregroundDeletion"

Objects = list[Object]
Records = list[Record]
Uids = set[str]


class Store:
    """All objects of a cluster. May be shared by threads.

    A resource is named `pods` or `pytorchjobs.kubeflow.org`; the namespace of what has none is "".
    Every method raises ApiError, with the code, reason and words of a real API server: 404 for what
    is not there, 409 for a name that is taken or an object that has changed since it was read.

    Args:
        home: the folder to keep the objects in, for a later Store; None to keep them in memory.
    """

    def __init__(self, home: Path | None = None) -> None:
        self._lock = threading.RLock()
        self._records: dict[str, dict[tuple[str, str], Record]] = defaultdict(dict)
        self._keys: dict[str, tuple[str, str, str]] = {}  # by uid
        self._dependents: dict[str, set[str]] = defaultdict(set)  # uids by uid of the owner
        self._version = 1
        self._journal: Journal | None = None
        if home:
            home.mkdir(parents=True, exist_ok=True)
            self._take_in(Journal(home / "objects.journal"))
        self._history = History(self._version)

    def close(self) -> None:
        """Let all watches end, and the file go."""
        with self._lock:
            self._history.end()
            if self._journal:
                self._journal.close()

    # ------------------------------------------------------------------------------------- reading

    @property
    def version(self) -> str:
        """The resourceVersion of the last change."""
        return str(self._version)

    def get(self, resource: str, namespace: str, name: str) -> Object:
        """Return an object."""
        return self.record(resource, namespace, name).load()

    def list(
        self, resource: str, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> tuple[Objects, str]:
        """Return the objects that the selectors match, by name, and the version they are of."""
        records, version = self.records(resource, namespace, labels, fields)
        return [record.load() for record in records], version

    def record(self, resource: str, namespace: str, name: str) -> Record:
        """Return the last version of an object as it is kept."""
        kind_of(resource)
        try:
            return self._records[resource][namespace, name]
        except KeyError:
            raise refusals.not_found(resource, name) from None

    def records(
        self, resource: str, namespace: str | None = None, labels: str = "", fields: str = ""
    ) -> tuple[Records, str]:
        """Like `list`, without parsing them."""
        matches = selector(kind_of(resource).resource, labels, fields)
        with self._lock:
            found, version = [*self._records[resource].values()], self.version
        if namespace:
            found = [record for record in found if record.namespace == namespace]
        if matches:
            found = [record for record in found if matches(record.labels, record.fields)]
        return sorted(found, key=lambda record: record.key), version

    # ------------------------------------------------------------------------------------- writing

    def create(
        self, resource: str, namespace: str, obj: Object, *, dry_run: bool = False
    ) -> Object:
        """Add an object and return it with uid, creationTimestamp, resourceVersion and defaults."""
        return self.insert(resource, namespace, metadata.copied(obj), dry_run=dry_run).load()

    def insert(
        self, resource: str, namespace: str, obj: Object, *, dry_run: bool = False
    ) -> Record:
        """Like `create`, for an object that the caller lets go of."""
        kind = kind_of(resource)
        obj["metadata"] = metadata.fresh(kind, namespace, obj)
        defaults.apply(kind, obj)
        name = obj["metadata"]["name"]
        with self._lock:
            if (obj["metadata"].get("namespace", ""), name) in self._records[resource]:
                raise refusals.already_exists(resource, name)
            if dry_run:
                return metadata.recorded(kind, obj, 0)
            record = metadata.recorded(kind, obj, self._version + 1)
            self._commit("ADDED", record, None)
            self._collect(record)
            return record

    def replace(
        self, resource: str, namespace: str, obj: Object, *, subresource: str = ""
    ) -> Object:
        """Write an object, or only its status, as a client does: the other part stays.

        409 when the object has a resourceVersion that is not the last one.
        """
        given, kind = metadata.copied(obj), kind_of(resource)

        def write(found: Object) -> None:
            metadata.check_unchanged(resource, found["metadata"], given["metadata"])
            metadata.take_over(found, given, status=bool(subresource), split=kind.status)

        return self.update(resource, namespace, given["metadata"]["name"], write).load()

    def change(
        self,
        resource: str,
        namespace: str,
        name: str,
        function: Callable[[Object], None],
        *,
        subresource: str = "",
    ) -> Object:
        """Let a function change an object in place, in one step; nothing happens when it does not.

        With `subresource="status"` only that part is written; without, all that it changed: status
        too, since controllers own both. Not for long functions: everybody waits for them.
        """

        def write(found: Object) -> None:
            changed = metadata.copied(found)
            function(changed)
            metadata.take_over(found, changed, status=bool(subresource), split=False)

        return self.update(resource, namespace, name, write).load()

    def update(
        self,
        resource: str,
        namespace: str,
        name: str,
        function: Callable[[Object], None],
        *,
        dry_run: bool = False,
    ) -> Record:
        """Like `change`, of the whole object, and may be tried only."""
        with self._lock:
            before = self.record(resource, namespace, name)
            was, obj = before.load(), before.load()
            function(obj)
            obj["metadata"] = metadata.kept(was["metadata"], obj["metadata"])
            if obj == was:
                return before
            if "generation" in was["metadata"] and not metadata.is_same_body(obj, was):
                obj["metadata"]["generation"] += 1
            if dry_run:
                return metadata.recorded(kind_of(resource), obj, before.version)
            record = self._rewrite(before, obj)
            if obj["metadata"].get("deletionTimestamp"):
                self._finish(record)
            elif record.owners != before.owners:
                self._collect(record)
            return record

    # ------------------------------------------------------------------------------------ deleting

    def delete(
        self,
        resource: str,
        namespace: str,
        name: str,
        *,
        grace: float | None = None,
        propagation: str = "Background",
        uid: str | None = None,
    ) -> Object:
        """Delete an object and what only it owns; return it as it is then, or was last.

        A pod that a node has taken (spec.nodeName) and that has not ended only gets a
        deletionTimestamp, `grace` seconds ahead, and stays until the kubelet calls `remove`; with a
        grace of 0 it is gone at once, and the kubelet learns from DELETED that it has to end it.
        What has finalizers stays until they are gone.

        Args:
            propagation: Background, Foreground (first what it owns) or Orphan (without that).
            uid: 409 when the object is another one.
        """
        with self._lock:
            record = self.record(resource, namespace, name)
            if uid and uid != record.uid:
                why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: "
                raise refusals.conflict(resource, name, why + record.uid)
            if propagation == "Orphan":
                self._disown(record)
            foreground = propagation == "Foreground" and bool(self._dependents.get(record.uid))
            record = self._mark(record, grace, foreground)
            if foreground:
                self._delete_all(self._dependents[record.uid], propagation)
            if resource == "namespaces":
                self._delete_all(self._inside(name), "Background")
            self._finish(record)
            return self._records[resource].get((namespace, name), record).load()

    def remove(self, resource: str, namespace: str, name: str) -> None:
        """Take an object away at once; nothing happens when it is not there.

        What it owned goes too, once it has no other owner. An object with finalizers waits for
        those who set them.
        """
        with self._lock:
            record = self._records[resource].get((namespace, name))
            if record is None:
                return
            obj = record.load()
            if not obj["metadata"].get("finalizers"):
                self._drop(record)
                return
            metadata.mark_deleted(obj["metadata"], 0)
            self._rewrite(record, obj)

    def _mark(self, record: Record, grace: float | None, foreground: bool) -> Record:
        """Write into an object that it is to go, and what has to happen before."""
        obj = record.load()
        meta = obj["metadata"]
        if foreground and FOREGROUND not in meta.get("finalizers", ()):
            meta["finalizers"] = [*meta.get("finalizers", ()), FOREGROUND]
        if record.resource == "namespaces":
            obj["status"] = {"phase": "Terminating"}
        seconds = metadata.grace_of(record.resource, obj, grace)
        metadata.mark_deleted(meta, seconds)
        if seconds or meta.get("finalizers") or record.resource == "namespaces":
            return self._rewrite(record, obj)
        self._drop(record)  # nobody would see the mark
        return record

    def _finish(self, record: Record) -> None:
        """Take away what was deleted and waits for nothing any more."""
        key = (record.namespace, record.name)
        if self._records[record.resource].get(key) is not record:
            return
        obj = record.load()
        meta = obj["metadata"]
        finalizers = meta.get("finalizers") or []
        if FOREGROUND in finalizers and not self._dependents.get(record.uid):
            finalizers = [item for item in finalizers if item != FOREGROUND]
            meta["finalizers"] = finalizers
            record = self._rewrite(record, obj)
        is_full = record.resource == "namespaces" and self._inside(record.name)
        if not finalizers and not is_full and not meta.get("deletionGracePeriodSeconds"):
            self._drop(record)

    def _drop(self, record: Record) -> None:
        obj = record.load()
        last = metadata.recorded(kind_of(record.resource), obj, self._version + 1)
        self._commit("DELETED", last, record)
        for uid in [*self._dependents.pop(record.uid, ())]:
            if uid in self._keys:
                self._collect(self.record(*self._keys[uid]))
        around = self._records["namespaces"].get(("", record.namespace))
        owners = [self.record(*self._keys[uid]) for uid in record.owners if uid in self._keys]
        for other in (*owners, *([around] if around else [])):
            if b'"deletionGracePeriodSeconds":0' in other.text:
                self._finish(other)

    def _collect(self, record: Record) -> None:
        """Delete an object whose owners are all gone; take those that are gone from its list."""
        alive = [uid for uid in record.owners if uid in self._keys]
        if len(alive) == len(record.owners):
            return
        if alive:
            self._keep_owners(record, alive)
        else:
            self.delete(*record.key)

    def _disown(self, owner: Record) -> None:
        for uid in [*self._dependents.get(owner.uid, ())]:
            record = self.record(*self._keys[uid])
            self._keep_owners(record, {*record.owners} - {owner.uid})

    def _keep_owners(self, record: Record, uids: Iterable[str]) -> None:
        obj = record.load()
        owners = obj["metadata"]["ownerReferences"]
        obj["metadata"]["ownerReferences"] = [one for one in owners if one["uid"] in uids]
        self._rewrite(record, obj)

    def _inside(self, namespace: str) -> Uids:
        """Return the uids of what is in a namespace."""
        return {
            record.uid
            for records in self._records.values()
            for record in records.values()
            if record.namespace == namespace
        }

    def _delete_all(self, uids: Uids, propagation: str) -> None:
        for uid in [*uids]:
            if uid in self._keys:  # it may have gone with another one
                self.delete(*self._keys[uid], propagation=propagation)

    # ------------------------------------------------------------------------------------ watching

    def subscribe(self) -> Subscription:
        """Return a queue of (ADDED | MODIFIED | DELETED, resource, object) for every change from
        now on, in their order. Each subscriber gets copies of its own."""
        with self._lock:
            return self._history.subscribe()

    def unsubscribe(self, subscription: Subscription) -> None:
        with self._lock:
            self._history.unsubscribe(subscription)

    def watch(
        self,
        resource: str,
        namespace: str | None,
        since: str,
        *,
        labels: str = "",
        fields: str = "",
        wait: Callable[[], float | None] = lambda: BOOKMARK,
    ) -> Iterator[Event]:
        """Yield every change of the objects of a kind from a version on.

        Without `since` (or "0"), what there is comes first, as ADDED, then a BOOKMARK. A BOOKMARK
        tells how far the watch has come. An object that comes to match the selectors is ADDED, one
        that no longer does DELETED. Raises ApiError 410 when the changes are no longer known.

        Args:
            wait: returns the seconds to wait for a change before a BOOKMARK, None to end the watch.
        """
        matches = selector(kind_of(resource).resource, labels, fields)
        anew = since in ("", "0")
        with self._lock:
            records = self.records(resource, namespace, labels, fields)[0] if anew else []
            past = [] if anew else self._history.since(resource, int(since))
            version = self._version
            queue = self._history.join(resource)
        try:
            yield from (("ADDED", record.text, record.version) for record in records)
            if anew:
                yield "BOOKMARK", b"", version
            for change in past:
                yield from seen_by(change, namespace, matches)
            while (seconds := wait()) is not None:
                try:
                    following = queue.get(timeout=seconds)
                except Empty:
                    yield from self._bookmark(queue)
                    continue
                if following is None:
                    return
                yield from seen_by(following, namespace, matches)
        finally:
            with self._lock:
                self._history.leave(queue)

    def compact(self) -> None:
        """Forget all past changes: a watch that wants to go on from one gets 410."""
        with self._lock:
            self._history.forget(self._version)

    def _bookmark(self, queue: "SimpleQueue[Change | None]") -> Iterator[Event]:
        with self._lock:
            version = self._version if queue.empty() else 0
        if version:
            yield "BOOKMARK", b"", version

    # -------------------------------------------------------------------------------------- within

    def _rewrite(self, before: Record, obj: Object) -> Record:
        record = metadata.recorded(kind_of(before.resource), obj, self._version + 1)
        if obj == before.load():
            return before
        self._commit("MODIFIED", record, before)
        return record

    def _commit(self, type_: str, record: Record, before: Record | None) -> None:
        """Let a change happen: in the file first, so that nobody saw what is lost."""
        if self._journal:
            if type_ == "DELETED":
                self._journal.drop(record.version, record.key)
            else:
                self._journal.put(record.version, record.resource, record.text)
        if before:
            self._unindex(before)
        if type_ != "DELETED":
            self._index(record)
        self._version = record.version
        self._history.add(Change(record.version, type_, record, before))
        if self._journal and self._journal.is_long:
            everything = (one for records in self._records.values() for one in records.values())
            self._journal.rewrite(
                self._version, ((record.resource, record.text) for record in everything)
            )

    def _index(self, record: Record) -> None:
        self._records[record.resource][record.namespace, record.name] = record
        self._keys[record.uid] = record.key
        for owner in record.owners:
            self._dependents[owner].add(record.uid)

    def _unindex(self, record: Record) -> None:
        del self._records[record.resource][record.namespace, record.name]
        del self._keys[record.uid]
        for owner in record.owners:
            if owner in self._dependents:
                self._dependents[owner].discard(record.uid)

    def _take_in(self, journal: Journal) -> None:
        """Go on with the objects of an earlier process."""
        self._journal = journal
        for (resource, _, _), obj in journal.objects.items():
            if kind := BY_RESOURCE.get(resource):
                version = int(obj["metadata"]["resourceVersion"])
                self._index(metadata.recorded(kind, obj, version))
        journal.objects.clear()
        self._version = max(1, journal.version)
