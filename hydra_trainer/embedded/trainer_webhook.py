"""What Kubeflow Trainer's webhook denies of a TrainJob for what is around it in the cluster.

kubeflow/trainer v2.3.0: pkg/webhooks/trainjob_webhook.go and `Validate` in
pkg/runtime/framework/plugins/jobset/jobset.go. What can be seen in the job alone is in
eks/webhooks.py.
"""

from collections.abc import Iterator
from typing import Any

from hydra_trainer.trees import count, dig, objects

from . import refusals
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

INITIALIZERS = {"dataset": "dataset-initializer", "model": "model-initializer"}
"""What spec.initializer asks for -> the replicated job, and its container, that do it."""

OVERRIDES = {
    "runtimePatches": "RuntimePatches",
    "podTemplateOverrides": "PodTemplateOverrides",
    "podSpecOverrides": "PodSpecOverrides",
}
"""The field in which a TrainJob changes its pods, by minor version: 2.2 and later, 2.1, 2.0."""


def problems(store: Store, namespace: str, job: Object, before: Object | None) -> list[str]:
    """Return what the webhook says of a TrainJob, in its words.

    Args:
        before: what it is to be instead of; None for a new one.
    """
    reference = dig(job, "spec", "runtimeRef")
    kind = str(reference.get("kind", "ClusterTrainingRuntime"))
    place = namespace if kind == "TrainingRuntime" else ""
    resource, name = f"{kind.lower()}s.trainer.kubeflow.org", str(reference.get("name"))
    path = f"spec.runtimeRef: Invalid value: {refusals.quoted(reference)}: "
    try:
        runtime = store.get(resource, place, name)
    except ApiError:
        lower = kind[0].lower() + kind[1:]
        return [
            f'{path}{kind}.trainer.kubeflow.org "{name}" not found: specified {lower} must be '
            "created before the TrainJob is created"
        ]
    containers = {str(one.get("name")): _names(one) for one in _replicated(runtime["spec"])}
    return [
        *(path + words for words in _uninitialized(job, containers)),
        *(_changed(store, namespace, before, job) if before else ()),
        *_unmatched(job, containers),
    ]


def _replicated(spec: Object) -> list[Object]:
    return objects(dig(spec, "template", "spec"), "replicatedJobs")


def _pod(replicated: Object) -> Object:
    return dig(replicated, "template", "spec", "template", "spec")


def _names(replicated: Object) -> set[str]:
    found = _pod(replicated)
    every = (*objects(found, "initContainers"), *objects(found, "containers"))
    return {str(one.get("name")) for one in every}


def _uninitialized(job: Object, containers: dict[str, set[str]]) -> Iterator[str]:
    for key, name in INITIALIZERS.items():
        if dig(job, "spec", "initializer").get(key) is None:
            continue
        if name not in containers:
            yield f"must have {name} job when trainJob is configured with input {key}Config"
        elif name not in containers[name]:
            yield f"must have container with name - {name} in the {name} job"


def _changed(store: Store, namespace: str, before: Object, job: Object) -> Iterator[str]:
    """Tell that the pods of a job cannot be changed while there may be some."""
    for key, name in OVERRIDES.items():
        if dig(before, "spec").get(key) == dig(job, "spec").get(key):
            continue
        if not any(dig(one, "spec").get("suspend") for one in (before, job)):
            yield (
                f"spec.{key}: Forbidden: {name} can only be modified when the TrainJob is "
                "suspended before or after the update"
            )
            continue
        for one in _jobs(store, namespace, job["metadata"]["name"]):
            if count(one, "active", 0):
                yield (
                    f"spec.{key}: Forbidden: {name} cannot be modified when the JobSet's "
                    f"ReplicatedJob {one['name']} is still active"
                )


def _jobs(store: Store, namespace: str, name: str) -> list[Object]:
    try:
        jobset = store.get("jobsets.jobset.x-k8s.io", namespace, name)
    except ApiError:
        return []
    return objects(dig(jobset, "status"), "replicatedJobsStatus")


def _unmatched(job: Object, containers: dict[str, set[str]]) -> Iterator[str]:
    """Tell which parts of the runtime are to be patched that it does not have."""
    patches = objects(dig(job, "spec"), "runtimePatches")
    path = f"spec.runtimePatches: Invalid value: {refusals.quoted(patches)}: must not have "
    for patch in patches:
        for replicated in _replicated(dig(patch, "trainingRuntimeSpec")):
            name = str(replicated.get("name"))
            if name not in containers:
                yield f"{path}replicated job that doesn't exist in the runtime job template"
            for what in ("initContainer", "container"):
                for container in objects(_pod(replicated), f"{what}s"):
                    if container.get("name") not in containers.get(name, ()):
                        yield f"{path}{what} that doesn't exist in the runtime job {name}"
