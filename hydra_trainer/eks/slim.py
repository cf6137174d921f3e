"""Objects of a cluster less what `state.status` does not read: a fifth of a job, half of a pod."""

from typing import Any

from . import marks
from .seen import INDEX_LABEL, Object, at
from .state import QUEUE_LABEL

META = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp")

LABELS = (
    *(marks.JOB, QUEUE_LABEL, INDEX_LABEL, "apps.kubernetes.io/pod-index"),
    *("training.kubeflow.org/job-role", "jobset.sigs.k8s.io/restart-attempt"),
)
"""Those that are read; Kubernetes and JobSet write some of them as annotations."""

SPEC = ("suspend", "elasticPolicy")


def job(full: Object) -> Object:
    """Return what is read of a job of any kind."""
    spec = full.get("spec") or {}
    found = _some(spec, *SPEC)
    found["runPolicy"] = _some(spec.get("runPolicy") or {}, "suspend")
    found["trainer"] = _some(spec.get("trainer") or {}, "numNodes")
    roles = spec.get("pytorchReplicaSpecs") or {}
    found["pytorchReplicaSpecs"] = {name: _some(role, "replicas") for name, role in roles.items()}
    found["replicaSpecs"] = [_some(role, "replicas") for role in spec.get("replicaSpecs") or []]
    return {
        **_some(full, "apiVersion", "kind", "status"),
        "metadata": _meta(full),
        "spec": found,
    }


def pod(full: Object) -> Object:
    spec, status = full.get("spec") or {}, full.get("status") or {}
    found = _some(status, "phase", "reason", "message", "conditions")
    for kind in ("initContainerStatuses", "containerStatuses"):
        parts = ("name", "state", "lastState", "restartCount")
        found[kind] = [_some(one, *parts) for one in status.get(kind) or []]
    return {
        "metadata": _meta(full),
        "spec": {
            **_some(spec, "nodeName", "terminationGracePeriodSeconds"),
            "containers": [_some(one, "name") for one in spec.get("containers") or []],
        },
        "status": found,
    }


def _meta(full: Object) -> Object:
    found = _some(full["metadata"], *META)
    for kind in ("labels", "annotations"):
        found[kind] = _some(at(full, "metadata", kind) or {}, *LABELS)
    return found


def _some(full: dict[str, Any], *keys: str) -> Object:
    return {key: full[key] for key in keys if key in full}
