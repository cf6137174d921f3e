"""The fields that the API server itself fills in, which controllers and `kubectl get -o yaml` see.

Those of the job kinds' own pod templates are filled in by their operators, in memory.
https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/
"""

from collections.abc import Callable
from typing import Any

from hydra_trainer.eks.templates import templates
from hydra_trainer.trees import dig, objects

from .kinds import Kind

Object = dict[str, Any]

NODE_TOLERATIONS = [
    {
        "effect": "NoExecute",
        "key": f"node.kubernetes.io/{problem}",
        "operator": "Exists",
        "tolerationSeconds": 300,
    }
    for problem in ("not-ready", "unreachable")
]


def apply(kind: Kind, obj: Object) -> None:
    """Fill in what a new object lacks, in place."""
    if fill := FILL.get(kind.resource):
        fill(obj)


def _pod(pod: Object) -> None:
    spec = pod.setdefault("spec", {})
    pod_spec(spec)
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    spec.setdefault("priority", 0)
    spec["tolerations"] = [*(spec.get("tolerations") or []), *NODE_TOLERATIONS]
    status = pod.setdefault("status", {})
    status.setdefault("phase", "Pending")
    status.setdefault("qosClass", _quality(spec))


def pod_spec(spec: Object) -> None:
    """Fill in the spec of a pod or of a pod template."""
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    for container in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())):
        _container(container)


def _container(container: Object) -> None:
    image = str(container.get("image", ""))
    tag = image.rpartition("/")[2].partition("@")[0].partition(":")[2]
    is_fixed = "@" in image or tag not in ("", "latest")
    container.setdefault("imagePullPolicy", "IfNotPresent" if is_fixed else "Always")
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    resources = container.setdefault("resources", {})
    if isinstance(resources, dict) and (limits := resources.get("limits")):
        resources["requests"] = {**limits, **(resources.get("requests") or {})}


def _quality(spec: Object) -> str:
    """https://kubernetes.io/docs/concepts/workloads/pods/pod-qos/"""
    resources = [one.get("resources") or {} for one in spec.get("containers") or ()]
    if not any(one.get(kind) for one in resources for kind in ("limits", "requests")):
        return "BestEffort"
    fixed = all(
        {"cpu", "memory"} <= (one.get("limits") or {}).keys()
        and all(one["requests"].get(key) == one["limits"][key] for key in ("cpu", "memory"))
        for one in resources
    )
    return "Guaranteed" if fixed else "Burstable"


def _namespace(namespace: Object) -> None:
    meta = namespace["metadata"]
    meta["labels"] = {**(meta.get("labels") or {}), "kubernetes.io/metadata.name": meta["name"]}
    namespace.setdefault("spec", {"finalizers": ["kubernetes"]})
    namespace["status"] = {"phase": "Active"}


def _service(service: Object) -> None:
    spec = service.setdefault("spec", {})
    for key, value in (("type", "ClusterIP"), ("sessionAffinity", "None")):
        spec.setdefault(key, value)
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        port.setdefault("targetPort", port.get("port"))
    service.setdefault("status", {"loadBalancer": {}})


def _claim(claim: Object) -> None:
    """A claim is bound at once: its volume is a folder, which can always be made."""
    spec = claim.setdefault("spec", {})
    spec.setdefault("volumeMode", "Filesystem")
    spec.setdefault("volumeName", f"pvc-{claim['metadata']['uid']}")
    wanted = (spec.get("resources") or {}).get("requests") or {}
    modes = spec.get("accessModes") or []
    claim.setdefault("status", {"phase": "Bound", "accessModes": modes, "capacity": wanted})


def _secret(secret: Object) -> None:
    secret.setdefault("type", "Opaque")


def _trainjob(job: Object) -> None:
    """The defaults in the CustomResourceDefinition of Kubeflow Trainer."""
    spec = job.setdefault("spec", {})
    spec.setdefault("suspend", False)
    spec.setdefault("managedBy", "trainer.kubeflow.org/trainjob-controller")
    if isinstance(spec.get("runtimeRef"), dict):
        spec["runtimeRef"].setdefault("apiGroup", "trainer.kubeflow.org")
        spec["runtimeRef"].setdefault("kind", "ClusterTrainingRuntime")


def _pytorchjob(job: Object) -> None:
    policy = (job.get("spec") or {}).get("runPolicy")
    if isinstance(policy, dict):
        policy.setdefault("suspend", False)
    for template in templates(job):
        for key in ("containers", "initContainers"):
            for container in objects(dig(template.body, "spec"), key):
                for port in objects(container, "ports"):
                    port.setdefault("protocol", "TCP")


FILL: dict[str, Callable[[Object], None]] = {
    "pods": _pod,
    "namespaces": _namespace,
    "services": _service,
    "persistentvolumeclaims": _claim,
    "secrets": _secret,
    "trainjobs.trainer.kubeflow.org": _trainjob,
    "pytorchjobs.kubeflow.org": _pytorchjob,
}
