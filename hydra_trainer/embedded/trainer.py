"""TrainJob of trainer.kubeflow.org/v1alpha1, as Kubeflow Trainer 2.3 makes a JobSet of it.

Read in kubeflow/trainer v2.3.0: pkg/controller/trainjob_controller.go and the plugins torch and
jobset below pkg/runtime/framework. The fields of 2.0 and 2.1 for pods are known, too.
"""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from . import patches
from .control import (
    Family,
    Key,
    find,
    holds,
    labels_of,
    reference,
    seconds_since,
    settle,
    status_of,
    where,
    write_status,
)
from .events import Recorder
from .metadata import copied
from .quantities import amount
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

MANAGERS = (None, "trainer.kubeflow.org/trainjob-controller")
ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
INDEX_FIELD = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
PORT = 29500
NODE = "node"
INITIALIZER = "-initializer"
JOBSETS = "jobsets.jobset.x-k8s.io"
RUNTIMES = {
    "TrainingRuntime": "trainingruntimes.trainer.kubeflow.org",
    "ClusterTrainingRuntime": "clustertrainingruntimes.trainer.kubeflow.org",
}

TORCH_DISTRIBUTED = {
    "metadata": {
        "name": "torch-distributed",
        "labels": {"trainer.kubeflow.org/framework": "torch"},
    },
    "spec": {
        "mlPolicy": {"numNodes": 1, "torch": {}},
        "template": {
            "spec": {
                "replicatedJobs": [
                    {
                        "name": NODE,
                        "template": {
                            "metadata": {"labels": {ANCESTOR: "trainer"}},
                            "spec": {
                                "template": {
                                    "spec": {"containers": [{"name": NODE, "image": "pytorch"}]}
                                }
                            },
                        },
                    }
                ]
            }
        },
    },
}
"""The runtime that comes with Kubeflow Trainer."""


class TrainJobs:
    """The TrainJob controller."""

    resource = "trainjobs.trainer.kubeflow.org"

    def __init__(self, store: Store, family: Family) -> None:
        self._store = store
        self._family = family
        self._events = Recorder(store, "trainjob_controller")

    def seed(self) -> None:
        """Make the runtime that every cluster has, unless it is there."""
        with contextlib.suppress(ApiError):
            self._store.create(RUNTIMES["ClusterTrainingRuntime"], "", TORCH_DISTRIBUTED)

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        """A TrainJob whose runtime was missing goes on when that comes."""
        if kind == "ADDED" and resource in RUNTIMES.values():
            for record in self._store.records(self.resource, where(obj)[0] or None)[0]:
                yield record.key

    def reconcile(self, job: Object) -> float | None:
        if job["spec"].get("managedBy") not in MANAGERS or job["metadata"].get("deletionTimestamp"):
            return None
        status = status_of(job)
        failed = find(status.get("conditions"), "Failed")
        if failed and failed["reason"] != "DeadlineExceeded":
            # As it is: the JobSet says again that it failed. Once that is deleted, for its time to
            # live is over, the job begins anew.
            status["conditions"] = [c for c in status["conditions"] if c["type"] != "Failed"]
        if not _is_finished(status):
            self._make(job)
        _set_suspended(job, status)
        self._take_over(job, status)
        left = self._deadline(job, status)

        write_status(self._store, job, status)
        return left

    # ---------------------------------------------------------------------------------- the JobSet

    def _make(self, job: Object) -> None:
        """Create the JobSet; suspended, it is made anew, or let go on, in its place."""
        there = self._family.children(job, JOBSETS)
        suspend = bool(job["spec"].get("suspend"))
        if there and not suspend and not there[0]["spec"].get("suspend"):
            return
        try:
            made = jobset_of(job, self._runtime(job))
            if there:
                self._store.change(
                    JOBSETS, *where(there[0]), lambda found: found["spec"].update(made["spec"])
                )
            else:
                self._store.create(JOBSETS, where(job)[0], made)
        except ApiError as error:
            text = f"TrainJob resources reconciliation failed: {error.message}"
            self._events.tell(job, "TrainJobResourcesCreationFailed", text[:1000], "Warning")

    def _runtime(self, job: Object) -> Object:
        wanted = job["spec"]["runtimeRef"]
        kind = wanted.get("kind") or "ClusterTrainingRuntime"
        namespace = where(job)[0] if kind == "TrainingRuntime" else ""
        return self._store.get(RUNTIMES[kind], namespace, wanted["name"])

    def _take_over(self, job: Object, status: Object) -> None:
        """Say of the job what is to be said of its JobSet."""
        for jobset in self._family.children(job, JOBSETS):
            found = jobset.get("status") or {}
            for theirs, ours in (("Completed", "Complete"), ("Failed", "Failed")):
                if holds(found, theirs):
                    end = find(found["conditions"], theirs) or {}
                    others = [c for c in status.get("conditions") or () if c["type"] != ours]
                    status["conditions"] = [*others, {**end, "type": ours}]
            status["jobsStatus"] = found.get("replicatedJobsStatus") or []

    def _deadline(self, job: Object, status: Object) -> float | None:
        """Return the seconds that are left; without any, the job fails and its JobSet goes."""
        seconds = job["spec"].get("activeDeadlineSeconds")
        if not seconds or _is_finished(status) or job["spec"].get("suspend"):
            return None
        resumed = find(status.get("conditions"), "Suspended")
        begun = resumed["lastTransitionTime"] if resumed else job["metadata"]["creationTimestamp"]
        left = float(seconds) - seconds_since(begun)
        if left > 0:
            return left
        text = "TrainJob exceeded its active deadline"
        settle(status, "Failed", "True", "DeadlineExceeded", text)
        for jobset in self._family.children(job, JOBSETS):
            self._store.delete(JOBSETS, *where(jobset))
        return None


def _is_finished(status: Object) -> bool:
    return holds(status, "Complete") or holds(status, "Failed")


def _set_suspended(job: Object, status: Object) -> None:
    if job["spec"].get("suspend"):
        settle(status, "Suspended", "True", "Suspended", "TrainJob is suspended")
    elif holds(status, "Suspended"):
        settle(status, "Suspended", "False", "Resumed", "TrainJob is resumed")


# ------------------------------------------------------------------------- from runtime to JobSet


def jobset_of(job: Object, runtime: Object) -> Object:
    """Return the JobSet of a TrainJob, which the runtime is the template of."""
    template: Object = copied(runtime["spec"]["template"])
    spec, meta = template["spec"], template.get("metadata") or {}
    for replicated in spec["replicatedJobs"]:
        pod = replicated["template"]["spec"]["template"]
        for patch in _pod_patches(job, replicated["name"]):
            pod = patches.strategic(pod, patch)
        replicated["template"]["spec"]["template"] = pod
        step = labels_of(replicated["template"]).get(ANCESTOR, "")
        if step == "trainer":
            _train(job, runtime, replicated)
        elif step.endswith(INITIALIZER):
            _initialize(job, replicated, step)
    spec["suspend"] = bool(job["spec"].get("suspend"))
    labels = {**(meta.get("labels") or {}), **(job["spec"].get("labels") or {})}
    annotations = {**(meta.get("annotations") or {}), **(job["spec"].get("annotations") or {})}
    return {
        "metadata": {
            "name": job["metadata"]["name"],
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [reference(job)],
        },
        "spec": spec,
    }


def _pod_patches(job: Object, name: str) -> Iterator[Object]:
    """Yield what a TrainJob changes in the pod template of a replicated job.

    Each minor version of Kubeflow Trainer has another field for it: podSpecOverrides (2.0),
    podTemplateOverrides (2.1), runtimePatches (2.2 and later).
    """
    spec = job["spec"]
    for patch in spec.get("runtimePatches") or ():
        inner = (patch.get("trainingRuntimeSpec") or {}).get("template", {}).get("spec", {})
        for replicated in inner.get("replicatedJobs") or ():
            if replicated["name"] == name:
                yield replicated.get("template", {}).get("spec", {}).get("template", {})
    for override in spec.get("podTemplateOverrides") or ():
        if _is_meant(override, name):
            yield {key: override[key] for key in ("metadata", "spec") if key in override}
    for override in spec.get("podSpecOverrides") or ():
        if _is_meant(override, name):
            yield {"spec": {key: value for key, value in override.items() if key != "targetJobs"}}


def _is_meant(override: Object, name: str) -> bool:
    targets = override.get("targetJobs") or ()
    return not targets or any(one["name"] == name for one in targets)


def _initialize(job: Object, replicated: Object, step: str) -> None:
    """Put what a TrainJob says about its data or model into the replicated job that fetches it."""
    replicated["replicas"] = 1
    given = (job["spec"].get("initializer") or {}).get(step.removesuffix(INITIALIZER)) or {}
    for container in replicated["template"]["spec"]["template"]["spec"]["containers"]:
        if container["name"] != step:
            continue
        if "storageUri" in given:
            uri = {"name": "STORAGE_URI", "value": given["storageUri"]}
            container["env"] = _upserted(container.get("env"), [uri])
        if "env" in given:
            container["env"] = _upserted(container.get("env"), given["env"])
        if "secretRef" in given:
            container.setdefault("envFrom", []).append({"secretRef": given["secretRef"]})


def _train(job: Object, runtime: Object, replicated: Object) -> None:
    """Put what a TrainJob says about its trainer into the replicated job that trains."""
    trainer = job["spec"].get("trainer")
    policy = runtime["spec"].get("mlPolicy") or {}
    count = (trainer or {}).get("numNodes") or policy.get("numNodes") or 1
    replicated["replicas"] = 1
    spec = replicated["template"]["spec"]
    spec |= {"parallelism": count, "completions": count}
    for container in spec["template"]["spec"]["containers"]:
        if container["name"] == NODE and trainer is not None:
            _train_in(container, job["metadata"]["name"], trainer, policy, count)


def _train_in(container: Object, name: str, trainer: Object, policy: Object, count: int) -> None:
    container |= {key: trainer[key] for key in ("image", "command", "args") if key in trainer}
    if trainer.get("resourcesPerNode"):
        container["resources"] = trainer["resourcesPerNode"]
    container["env"] = _upserted(container.get("env"), trainer.get("env"))
    if "torch" not in policy:
        return
    wanted = trainer.get("numProcPerNode") or (policy["torch"] or {}).get("numProcPerNode")
    env: list[Object] = [
        {"name": "PET_NNODES", "value": str(count)},
        {"name": "PET_NPROC_PER_NODE", "value": str(_processes(wanted, trainer))},
        {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": INDEX_FIELD}}},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-{NODE}-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": str(PORT)},
    ]
    container["env"] = _upserted(container["env"], env)
    container.setdefault("ports", []).append({"containerPort": PORT, "protocol": "TCP"})


def _processes(wanted: Any, trainer: Object) -> Any:
    """Return how many processes a node has: without GPUs, "auto" is one for each CPU asked for."""
    wanted = wanted or "auto"
    resources = trainer.get("resourcesPerNode")
    if wanted != "auto" or not resources:
        return wanted
    for part in (resources.get("limits"), resources.get("requests")):
        if part and not any("gpu" in resource.lower() for resource in part):
            return max(1, int(amount(part.get("cpu", 1))))
    return "auto"


def _upserted(base: list[Object] | None, more: list[Object] | None) -> list[Object]:
    """Return two lists of variables as one: what both name is the later's, at its old place."""
    return list({one["name"]: one for one in (*(base or ()), *(more or ()))}.values())
