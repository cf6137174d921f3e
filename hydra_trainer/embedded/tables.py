"""Tables for `kubectl get`: the server chooses the columns, since it knows the kinds.

https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables
"""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from .kinds import Kind

Object = dict[str, Any]
Cells = dict[str, Any]

WIDE = frozenset({"IP", "Node", "Containers", "Images", "VolumeMode", "Source", "Count"})
"""Columns that only `kubectl get -o wide` shows."""


def table(kind: Kind, items: list[Object], *, include: str) -> Object:
    """Return the table of objects of a kind.

    Args:
        include: what each row carries of its object: None, Metadata or Object.
    """
    cells = CELLS.get(kind.resource) or (lambda obj: _printed(kind, obj))
    rows = [cells(obj) for obj in items]
    example = rows[0] if rows else cells({"metadata": {"name": ""}})
    return {
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": _version(items)},
        "columnDefinitions": [_column(name, value) for name, value in example.items()],
        "rows": [
            {"cells": list(row.values()), **_object(obj, include)}
            for row, obj in zip(rows, items, strict=True)
        ],
    }


def metadata_of(obj: Object) -> Object:
    return {
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": obj["metadata"],
    }


def _version(items: list[Object]) -> str:
    return str(items[0]["metadata"].get("resourceVersion", "")) if len(items) == 1 else ""


def _column(name: str, value: Any) -> Object:
    return {
        "name": name,
        "type": "integer" if isinstance(value, int) else "string",
        "format": "name" if name == "Name" else "",
        "description": name,
        "priority": int(name in WIDE),
    }


def _object(obj: Object, include: str) -> Object:
    if include == "None":
        return {}
    return {"object": obj if include == "Object" else metadata_of(obj)}


# ------------------------------------------------------------------------------------- custom kinds


def _printed(kind: Kind, obj: Object) -> Cells:
    """The columns of a CustomResourceDefinition, as they are evaluated."""
    columns = kind.columns or (("Age", ".metadata.creationTimestamp"),)
    cells: Cells = {"Name": obj["metadata"]["name"]}
    for name, path in columns:
        value = _at(obj, path)
        if value is not None and not isinstance(value, str | int):
            value = json.dumps(value)
        cells[name] = age(value) if path.endswith("Timestamp") else value
    return cells


def _at(obj: Any, path: str) -> Any:
    """Return what `.status.conditions[-1:].type` or `[?(@.type=='Ready')]` finds, None for nothing.

    https://kubernetes.io/docs/reference/kubectl/jsonpath/
    """
    for step in re.findall(r"\.(\w+)|\[(-?\d+):?\]|\[\?\(@\.(\w+)=='(\w+)'\)\]", path):
        name, index, key, wanted = step
        if name:
            obj = obj.get(name) if isinstance(obj, dict) else None
        elif not isinstance(obj, list) or not obj:
            return None
        elif index:
            obj = obj[int(index)]
        else:
            obj = next((one for one in obj if one.get(key) == wanted), None)
    return obj


def age(stamp: Any) -> str:
    """Return how long ago a time was, as kubectl writes it: 5s, 3m20s, 4h10m, 2d3h, 40d."""
    if not isinstance(stamp, str):
        return "<unknown>"
    then = datetime.fromisoformat(re.sub(r"\.\d+|Z$", "", stamp)).replace(tzinfo=UTC)
    return duration(int((datetime.now(UTC) - then).total_seconds()))


def duration(seconds: int) -> str:
    """Two units at most, and one where the larger one says enough."""
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if seconds < 120:
        return f"{max(0, seconds)}s"
    if minutes < 10:
        return _two(minutes, "m", seconds % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return _two(hours, "h", minutes % 60, "m")
    if days < 2:
        return f"{hours}h"
    return _two(days, "d", hours % 24, "h") if days < 8 else f"{days}d"


def _two(count: int, unit: str, rest: int, smaller: str) -> str:
    return f"{count}{unit}{rest}{smaller}" if rest else f"{count}{unit}"


# ----------------------------------------------------------------------------------- built-in kinds


def _pod(pod: Object) -> Cells:
    status, spec = pod.get("status") or {}, pod.get("spec") or {}
    states = status.get("containerStatuses") or []
    ready = sum(bool(one.get("ready")) for one in states)
    return {
        "Name": pod["metadata"]["name"],
        "Ready": f"{ready}/{len(spec.get('containers') or ())}",
        "Status": _pod_state(pod),
        "Restarts": sum(one.get("restartCount", 0) for one in states),
        "Age": _age(pod),
        "IP": status.get("podIP") or "<none>",
        "Node": spec.get("nodeName") or "<none>",
    }


def _pod_state(pod: Object) -> str:
    """What `kubectl get pods` shows as the status: the reason that says most."""
    status = pod.get("status") or {}
    if "deletionTimestamp" in pod["metadata"]:
        return "Terminating"
    waiting = _initial_state(pod, status)
    if waiting:
        return waiting
    for one in status.get("containerStatuses") or ():
        if reason := _reason(one.get("state") or {}):
            return reason
    return str(status.get("reason") or status.get("phase") or "Unknown")


def _initial_state(pod: Object, status: Object) -> str:
    states = status.get("initContainerStatuses") or []
    total = len((pod.get("spec") or {}).get("initContainers") or ())
    for index, one in enumerate(states):
        state = one.get("state") or {}
        if state.get("terminated", {}).get("exitCode") == 0:
            continue
        if reason := _reason(state):
            return f"Init:{reason}" if reason != "PodInitializing" else f"Init:{index}/{total}"
        return f"Init:{index}/{total}"
    return ""


def _reason(state: Object) -> str:
    if waiting := state.get("waiting"):
        return str(waiting.get("reason") or "")
    if ended := state.get("terminated"):
        if ended.get("reason"):
            return str(ended["reason"])
        signal = ended.get("signal")
        return f"Signal:{signal}" if signal else f"ExitCode:{ended.get('exitCode')}"
    return ""


def _event(event: Object) -> Cells:
    about = event.get("involvedObject") or {}
    last = event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp")
    return {
        "Last Seen": age(last or event["metadata"].get("creationTimestamp")),
        "Type": event.get("type", ""),
        "Reason": event.get("reason", ""),
        "Object": f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}",
        "Source": (event.get("source") or {}).get("component", ""),
        "Message": str(event.get("message", "")).strip(),
        "Count": event.get("count") or 1,
    }


def _job(job: Object) -> Cells:
    status, spec = job.get("status") or {}, job.get("spec") or {}
    states = [one["type"] for one in status.get("conditions") or () if one["status"] == "True"]
    return {
        "Name": job["metadata"]["name"],
        "Status": next(
            (one for one in ("Complete", "Failed", "Suspended") if one in states), "Running"
        ),
        "Completions": f"{status.get('succeeded', 0)}/{spec.get('completions', 1)}",
        "Duration": age(status["startTime"]) if "startTime" in status else "",
        "Age": _age(job),
    }


def _service(service: Object) -> Cells:
    spec = service.get("spec") or {}
    ports = [f"{one.get('port')}/{one.get('protocol', 'TCP')}" for one in spec.get("ports") or ()]
    return {
        "Name": service["metadata"]["name"],
        "Type": spec.get("type", "ClusterIP"),
        "Cluster-IP": spec.get("clusterIP") or "<none>",
        "External-IP": "<none>",
        "Port(s)": ",".join(ports) or "<none>",
        "Age": _age(service),
    }


def _claim(claim: Object) -> Cells:
    status, spec = claim.get("status") or {}, claim.get("spec") or {}
    short = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX"}
    modes = [short.get(mode, mode) for mode in spec.get("accessModes") or ()]
    return {
        "Name": claim["metadata"]["name"],
        "Status": status.get("phase", ""),
        "Volume": spec.get("volumeName", ""),
        "Capacity": (status.get("capacity") or {}).get("storage", ""),
        "Access Modes": ",".join(modes),
        "StorageClass": spec.get("storageClassName", ""),
        "Age": _age(claim),
    }


def _config(config: Object) -> Cells:
    size = len(config.get("data") or ()) + len(config.get("binaryData") or ())
    return {"Name": config["metadata"]["name"], "Data": size, "Age": _age(config)}


def _secret(secret: Object) -> Cells:
    return {
        "Name": secret["metadata"]["name"],
        "Type": secret.get("type", ""),
        "Data": len(secret.get("data") or ()),
        "Age": _age(secret),
    }


def _namespace(namespace: Object) -> Cells:
    phase = (namespace.get("status") or {}).get("phase", "")
    return {"Name": namespace["metadata"]["name"], "Status": phase, "Age": _age(namespace)}


def _node(node: Object) -> Cells:
    status = node.get("status") or {}
    ready = [one for one in status.get("conditions") or () if one.get("type") == "Ready"]
    is_ready = bool(ready) and ready[0].get("status") == "True"
    state = "Ready" if is_ready else "NotReady"
    if (node.get("spec") or {}).get("unschedulable"):
        state += ",SchedulingDisabled"
    return {
        "Name": node["metadata"]["name"],
        "Status": state,
        "Roles": "<none>",
        "Age": _age(node),
        "Version": (status.get("nodeInfo") or {}).get("kubeletVersion", ""),
    }


def _created(obj: Object) -> Cells:
    meta = obj["metadata"]
    return {"Name": meta["name"], "Created At": meta.get("creationTimestamp")}


def _age(obj: Object) -> str:
    return age(obj["metadata"].get("creationTimestamp"))


CELLS: dict[str, Callable[[Object], Cells]] = {
    "pods": _pod,
    "events": _event,
    "jobs.batch": _job,
    "services": _service,
    "persistentvolumeclaims": _claim,
    "configmaps": _config,
    "secrets": _secret,
    "namespaces": _namespace,
    "nodes": _node,
    "roles.rbac.authorization.k8s.io": _created,
    "clusterroles.rbac.authorization.k8s.io": _created,
    "customresourcedefinitions.apiextensions.k8s.io": _created,
}
