"""What controllers have in common: keys, owners, conditions.

A controller looks at one object at a time and brings it one step on. It is called again whenever
the object, something that the object controls, or something else that it named has changed.
"""

import contextlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Protocol

from .kinds import KINDS
from .metadata import copied, now
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

Key = tuple[str, str, str]
"""resource, namespace, name"""

RESOURCES = {(kind.api_version, kind.kind): kind.resource for kind in KINDS}


class Controller(Protocol):
    """Brings the objects of one resource on."""

    @property
    def resource(self) -> str: ...

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        """Take in a change (ADDED, MODIFIED, DELETED) of any object.

        Returns the objects to look at because of it, beside the object itself and its owner.
        """
        ...

    def reconcile(self, obj: Object) -> float | None:
        """Bring an object one step on. Returns the seconds to look again after, if need be."""
        ...


class Family:
    """Which objects an object controls: kept from the changes, not looked for in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._children: dict[str, dict[Key, None]] = {}  # by uid of the owner

    def note(self, kind: str, resource: str, obj: Object) -> Key | None:
        """Take in a change of an object; return the key of its owner, if one controls it."""
        owner = controller_of(obj)
        if owner is None:
            return None
        key = key_of(resource, obj)
        children = self._children.setdefault(owner["uid"], {})
        if kind == "DELETED":
            children.pop(key, None)
        else:
            children[key] = None
        if not children:
            del self._children[owner["uid"]]
        kin = RESOURCES.get((owner["apiVersion"], owner["kind"]))
        return None if kin is None else (kin, key[1], owner["name"])

    def children(self, owner: Object, resource: str) -> list[Object]:
        """Return the objects of a resource that an object controls, as they are now."""
        found = []
        for key in [*self._children.get(owner["metadata"]["uid"], ())]:
            if key[0] == resource:
                with contextlib.suppress(ApiError):
                    found.append(self._store.get(*key))
        return found


def key_of(resource: str, obj: Object) -> Key:
    return resource, obj["metadata"].get("namespace") or "", obj["metadata"]["name"]


def where(obj: Object) -> tuple[str, str]:
    """Return namespace and name."""
    return obj["metadata"].get("namespace") or "", obj["metadata"]["name"]


def controller_of(obj: Object) -> Object | None:
    """Return the reference to the owner that controls an object."""
    owners = obj["metadata"].get("ownerReferences") or ()
    return next((one for one in owners if one.get("controller")), None)


def reference(owner: Object) -> Object:
    """Return the reference that makes an object the controller of another one."""
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def labels_of(obj: Object) -> dict[str, str]:
    return (obj.get("metadata") or {}).get("labels") or {}


def phase_of(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def find(conditions: Iterable[Object] | None, kind: str) -> Object | None:
    """Return the condition of a type."""
    return next((one for one in conditions or () if one["type"] == kind), None)


def holds(status: Object | None, kind: str) -> bool:
    """Whether the condition of a type is True."""
    found = find((status or {}).get("conditions"), kind)
    return found is not None and found["status"] == "True"


def settle(status: Object, kind: str, value: str, reason: str, message: str) -> bool:
    """Set a condition as metav1 does: its time is that of its last change. Tell if it changed."""
    before = find(status.get("conditions"), kind)
    found = {"type": kind, "status": value, "reason": reason, "message": message}
    if before is not None and {**before, **found} == before:
        return False
    time = now() if before is None or before["status"] != value else before["lastTransitionTime"]
    others = [one for one in status.get("conditions") or () if one["type"] != kind]
    status["conditions"] = [*others, {**found, "lastTransitionTime": time}]
    return True


def status_of(obj: Object) -> Object:
    """Return a copy of an object's status, to work on."""
    return copied(obj.get("status") or {})


def write_status(store: Store, obj: Object, status: Object) -> None:
    """Write the status of an object, unless another one has its name by now."""

    def write(found: Object) -> None:
        if found["metadata"]["uid"] == obj["metadata"]["uid"]:
            found["status"] = status

    resource = RESOURCES[obj["apiVersion"], obj["kind"]]
    store.change(resource, *where(obj), write, subresource="status")


def seconds_since(time: str) -> float:
    """Return the seconds since a time as the API writes it."""
    return (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
