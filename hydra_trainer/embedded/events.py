"""What controllers write down about objects: the API's events."""

import contextlib
import uuid
from datetime import UTC, datetime
from typing import Any

from .refusals import ApiError
from .store import Store

Object = dict[str, Any]


def record(store: Store, about: Object, reason: str, message: str, kind: str = "Normal") -> None:
    """Write an event about an object, or count it once more."""
    metadata = about["metadata"]
    namespace = metadata.get("namespace") or "default"
    name = f"{metadata['name']}.{uuid.uuid5(uuid.NAMESPACE_OID, reason + message).hex[:16]}"
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    def again(event: Object) -> None:
        event["count"] += 1
        event["lastTimestamp"] = time

    with contextlib.suppress(ApiError):
        store.change("events", namespace, name, again)
        return
    event = {
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {
            "kind": about["kind"],
            "apiVersion": about["apiVersion"],
            "name": metadata["name"],
            "namespace": namespace,
            "uid": metadata.get("uid"),
        },
        "reason": reason,
        "message": message,
        "type": kind,
        "count": 1,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "source": {"component": "hydra-trainer"},
    }
    with contextlib.suppress(ApiError):  # the namespace has gone
        store.create("events", namespace, event)
