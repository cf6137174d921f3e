"""What controllers write down about objects: the API's events."""

import contextlib
import uuid
from dataclasses import dataclass
from typing import Any

from .metadata import now
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

LONGEST = 1024
"""Characters of a message: the API takes no more."""


@dataclass(frozen=True)
class Recorder:
    """Writes the events of one component, which may be a part of a node (`host`)."""

    store: Store
    component: str
    host: str = ""

    def tell(
        self, about: Object, reason: str, message: str, kind: str = "Normal", part: str = ""
    ) -> None:
        """Write an event about an object, or count it once more.

        Args:
            kind: Normal or Warning.
            part: the fieldPath of what it is about, such as `spec.containers{pytorch}`.
        """
        meta, message = about["metadata"], message[:LONGEST]
        namespace = meta.get("namespace") or "default"
        same = "\0".join((meta["uid"], self.component, kind, reason, message, part))
        name = f"{meta['name']}.{uuid.uuid5(uuid.NAMESPACE_OID, same).hex[:16]}"
        time = now()

        def again(event: Object) -> None:
            event |= {"count": event["count"] + 1, "lastTimestamp": time}

        with contextlib.suppress(ApiError):
            self.store.change("events", namespace, name, again)
            return
        target = {"kind": about["kind"], "apiVersion": about["apiVersion"], "uid": meta["uid"]}
        event = {
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": {
                **target,
                "namespace": namespace,
                "name": meta["name"],
                **({"fieldPath": part} if part else {}),
            },
            "reason": reason,
            "message": message,
            "type": kind,
            "count": 1,
            "firstTimestamp": time,
            "lastTimestamp": time,
            "source": {"component": self.component, **({"host": self.host} if self.host else {})},
            "reportingComponent": self.component,
            "reportingInstance": self.host,
        }
        with contextlib.suppress(ApiError):  # the namespace has gone
            self.store.create("events", namespace, event)
