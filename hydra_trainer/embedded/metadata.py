"""What the server itself writes into an object's metadata, and who may change what."""

import json
import random
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from . import refusals
from .history import Record
from .kinds import BY_RESOURCE, Kind
from .selectors import fields_of

Object = dict[str, Any]

SYSTEM_FIELDS = (
    "name",
    "namespace",
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "resourceVersion",
)
WITH_GENERATION = frozenset(
    {"pods", "jobs.batch", "customresourcedefinitions.apiextensions.k8s.io"}
)
"""Of the built-in kinds; custom ones all have it."""

SUFFIX = "bcdfghjklmnpqrstvwxz2456789"
"""Of the five letters after a generateName: no vowels, nothing that looks like another."""

ENCODE = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode

DEFAULT_GRACE = 30
"""Seconds between SIGTERM and SIGKILL for a pod that does not say."""


def now(ahead: float = 0) -> str:
    """Return the time as the API writes it, so many seconds ahead."""
    moment = datetime.now(UTC) + timedelta(seconds=ahead)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def kind_of(resource: str) -> Kind:
    try:
        return BY_RESOURCE[resource]
    except KeyError:
        text = "the server could not find the requested resource"
        raise refusals.ApiError(404, "NotFound", text) from None


def copied(obj: Object) -> Object:
    return dict(json.loads(json.dumps(obj)))


def fresh(kind: Kind, namespace: str, obj: Object) -> Object:
    """Return the metadata of a new object."""
    given = obj.get("metadata") or {}
    meta = _own(given)
    name = given.get("name") or given.get("generateName", "") + "".join(random.choices(SUFFIX, k=5))
    system = {"name": name, "uid": str(uuid.uuid4()), "creationTimestamp": now()}
    if kind.namespaced:
        system["namespace"] = namespace
    if kind.custom or kind.resource in WITH_GENERATION:
        return {**system, "generation": 1, **meta}
    return {**system, **meta}


def kept(was: Object, given: Object) -> Object:
    """Return the metadata after a change: what only the server writes stays."""
    meta = _own(given)
    return {**{key: was[key] for key in SYSTEM_FIELDS if key in was}, **meta}


def _own(given: Object) -> Object:
    """Return what of the metadata is a client's: the server keeps no empty maps and lists."""
    return {key: value for key, value in given.items() if key not in SYSTEM_FIELDS and value}


def check_unchanged(resource: str, was: Object, given: Object) -> None:
    """Raise ApiError 409 when a client changes another version than the last one."""
    for key, text in (("resourceVersion", ""), ("uid", "Precondition failed: UID in precondition")):
        if given.get(key) and given[key] != was[key]:
            why = f"{text}: {given[key]}, UID in object meta: {was[key]}" if text else ""
            raise refusals.conflict(resource, was["name"], why)


def take_over(obj: Object, given: Object, *, status: bool, split: bool) -> None:
    """Change an object to what was given: its status only, or the rest of it.

    Args:
        split: whether the status is a subresource, which the rest leaves alone.
    """
    if status:
        obj["status"] = given.get("status") or {}
        return
    fixed = {key: obj[key] for key in ("apiVersion", "kind")}
    if split and "status" in obj:
        fixed["status"] = obj["status"]
    body = {key: value for key, value in given.items() if not (split and key == "status")}
    obj.clear()
    obj.update({**body, **fixed})


def is_same_body(one: Object, other: Object) -> bool:
    """Whether objects differ at most in metadata and status, which are no new generation."""
    ignored = ("metadata", "status")
    return {k: v for k, v in one.items() if k not in ignored} == {
        k: v for k, v in other.items() if k not in ignored
    }


def mark_deleted(meta: Object, seconds: float) -> None:
    """Write when an object is to go; a second delete can only bring that forward."""
    if seconds >= meta.get("deletionGracePeriodSeconds", seconds + 1):
        return
    meta["deletionTimestamp"] = now(seconds)
    meta["deletionGracePeriodSeconds"] = int(seconds)
    if "generation" in meta:
        meta["generation"] += 1


def grace_of(resource: str, obj: Object, wanted: float | None) -> float:
    """Return the seconds that an object stays after its delete: none but for a pod that runs."""
    spec, phase = obj.get("spec") or {}, (obj.get("status") or {}).get("phase")
    if resource != "pods" or not spec.get("nodeName") or phase in ("Succeeded", "Failed"):
        return 0
    if wanted is not None:
        return wanted
    return float(spec.get("terminationGracePeriodSeconds") or DEFAULT_GRACE)


def recorded(kind: Kind, obj: Object, version: int) -> Record:
    """Return what is kept of an object, which gets the version."""
    meta = obj["metadata"]
    if version:
        meta["resourceVersion"] = str(version)
    head = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta}
    text = ENCODE({**head, **obj}).encode()
    labels: Mapping[str, str] = meta.get("labels") or {}
    return Record(
        kind.resource,
        meta.get("namespace", ""),
        meta["name"],
        meta["uid"],
        version,
        labels,
        fields_of(kind.resource, obj),
        tuple(owner["uid"] for owner in meta.get("ownerReferences") or ()),
        text,
    )
