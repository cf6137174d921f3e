"""What the operators' own webhooks deny, in words near theirs.

PyTorchJob: kubeflow/trainer v1.9.4, pkg/webhooks/pytorch/pytorchjob_webhook.go and
pkg/common/util/webhooks.go. TrainJob and runtimes: v2.3.0, pkg/webhooks and
pkg/runtime/framework/plugins/{torch,jobset}, with the rules of the CRD's own expressions. JobSet:
v0.12.0, pkg/webhooks/jobset_webhook.go. What HyperPod's webhook denies is not published.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from hydra_trainer.problems import Problem, shown
from hydra_trainer.trees import count, dig, objects

from . import experiments
from .templates import step

DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_LENGTH = 63
DNS_1035_WORDS = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an "
    "alphabetic character, end with an alphanumeric character, and be no more than 63 characters"
)

TORCHRUN = frozenset(
    {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}
)
"""The environment that Kubeflow Trainer sets for torchrun."""

STEPS = {
    "trainer": "node",
    "dataset-initializer": "dataset-initializer",
    "model-initializer": "model-initializer",
}
"""A step of a TrainJob -> the container that its part of the runtime must have."""

DOMAIN_PATH = re.compile(
    r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[\w.~!$&'()*+,;=:@%/-]+"
)


def webhook_problems(manifest: dict[str, Any]) -> list[Problem]:
    """Return what the operator's webhook would say about an object, with the paths it gives.

    Only what can be seen in the object itself: whether the runtime of a TrainJob exists, and
    whether what it patches is in that runtime, takes a cluster.
    """
    group = str(manifest.get("apiVersion")).partition("/")[0]
    check = WEBHOOKS.get((group, str(manifest.get("kind"))))
    return list(check(manifest, dig(manifest, "spec"))) if check else []


def is_label(name: str) -> bool:
    return len(name) <= LABEL_LENGTH and DNS_1035.fullmatch(name) is not None


def _name(manifest: dict[str, Any]) -> str | None:
    found = dig(manifest, "metadata").get("name")
    return found if isinstance(found, str) else None


# --------------------------------------------------------------------------------------- PyTorchJob

ROLES = ("Master", "Worker")
MANAGERS = ("kubeflow.org/training-operator", "kueue.x-k8s.io/multikueue")


def _pytorchjob(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    name = _name(manifest)
    if name is not None and not is_label(name):
        text = f"Invalid value: {shown(name)}: should match: {DNS_1035_WORDS}"
        yield Problem("metadata.name", text)
    manager = dig(spec, "runPolicy").get("managedBy")
    if manager is not None and manager not in MANAGERS:
        yield Problem("spec.runPolicy.managedBy", _unsupported(manager, MANAGERS))
    yield from _elastic(spec)
    yield from _replica_specs(spec)


def _unsupported(value: Any, supported: tuple[str, ...]) -> str:
    known = ", ".join(shown(word) for word in supported)
    return f"Unsupported value: {shown(value)}: supported values: {known}"


def _elastic(spec: dict[str, Any]) -> Iterator[Problem]:
    if not isinstance(spec.get("elasticPolicy"), dict):
        return
    if "Worker" not in dig(spec, "pytorchReplicaSpecs"):
        text = "Required value: must be configured if elastic policy is used"
        yield Problem("spec.pytorchReplicaSpecs[Worker]", text)
    both = (dig(spec, "elasticPolicy").get("nProcPerNode"), spec.get("nprocPerNode"))
    if None not in both:
        text = "Forbidden: must not be used with spec.nprocPerNode"
        yield Problem("spec.elasticPolicy.nProcPerNode", text)


def _replica_specs(spec: dict[str, Any]) -> Iterator[Problem]:
    path = "spec.pytorchReplicaSpecs"
    if spec.get("pytorchReplicaSpecs") is None:
        yield Problem(path, "Required value: must be required")
    for role in dig(spec, "pytorchReplicaSpecs"):
        replica = dig(spec, "pytorchReplicaSpecs", role)
        if role not in ROLES:
            yield Problem(f"{path}[{role}]", _unsupported(role, ROLES))
        yield from _containers(replica, f"{path}[{role}].template.spec.containers")
        yield from _replicas(role, replica.get("replicas"), f"{path}[{role}].replicas")


def _containers(replica: dict[str, Any], path: str) -> Iterator[Problem]:
    containers = objects(dig(replica, "template", "spec"), "containers")
    if not containers:
        yield Problem(path, "Required value: must be specified")
    for index, container in enumerate(containers):
        if not container.get("image"):
            yield Problem(f"{path}[{index}].image", "Required value: must be required")
    if not any(container.get("name") == "pytorch" for container in containers):
        yield Problem(path, "Required value: must have at least one container with name pytorch")


def _replicas(role: str, replicas: Any, path: str) -> Iterator[Problem]:
    if role == "Master":
        if replicas != 1:
            yield Problem(path, "Forbidden: must be 1")
    elif isinstance(replicas, int) and replicas < 1:
        yield Problem(path, "Forbidden: must be at least 1")


# ----------------------------------------------------------------------------------------- TrainJob

TRAIN_MANAGERS = ("trainer.kubeflow.org/trainjob-controller", "kueue.x-k8s.io/multikueue")
RUNTIMES = ("TrainingRuntime", "ClusterTrainingRuntime")


def _trainjob(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    name = _name(manifest)
    if name is not None and not DNS_1035.fullmatch(name):
        text = "metadata.name must match RFC 1035 DNS label format"
        yield Problem("metadata.name", f"Invalid value: {shown(name)}: {text}")
    if name is not None and len(name) > LABEL_LENGTH:
        text = "metadata.name must be no more than 63 characters"
        yield Problem("metadata.name", f"Invalid value: {shown(name)}: {text}")
    manager = spec.get("managedBy")
    if manager is not None and manager not in TRAIN_MANAGERS:
        words = f"ManagedBy must be {' or '.join(TRAIN_MANAGERS)} if set"
        yield Problem("spec.managedBy", f"Invalid value: {shown(manager)}: {words}")
    yield from _runtime_reference(dig(spec, "runtimeRef"))
    yield from _initializers(dig(spec, "initializer"))
    yield from _reserved(spec)
    yield from _patches(spec)


def _runtime_reference(reference: dict[str, Any]) -> Iterator[Problem]:
    kind = reference.get("kind", "ClusterTrainingRuntime")
    group = reference.get("apiGroup", "trainer.kubeflow.org")
    if kind not in RUNTIMES or group != "trainer.kubeflow.org":
        yield Problem("spec.runtimeRef", f"unsupported runtime: {kind}.{group}")


def _initializers(initializer: dict[str, Any]) -> Iterator[Problem]:
    for key in ("dataset", "model"):
        uri = dig(initializer, key).get("storageUri")
        if isinstance(uri, str) and uri and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*://.+", uri):
            text = "storageUri may be empty, or it must be a valid URI (scheme://...)"
            path = f"spec.initializer.{key}.storageUri"
            yield Problem(path, f"Invalid value: {shown(uri)}: {text}")


def _reserved(spec: dict[str, Any]) -> Iterator[Problem]:
    names = {str(env.get("name")) for env in objects(spec.get("trainer"), "env")}
    if found := sorted(names & TORCHRUN):
        text = f"must not have reserved envs, invalid envs configured: [{' '.join(found)}]"
        yield Problem("spec.trainer.env", f"Invalid value: {text}")


def _patches(spec: dict[str, Any]) -> Iterator[Problem]:
    for index, patch in enumerate(objects(spec, "runtimePatches")):
        manager = patch.get("manager")
        if isinstance(manager, str) and not DOMAIN_PATH.fullmatch(manager):
            text = 'must be a domain-prefixed path (such as "acme.io/foo")'
            path = f"spec.runtimePatches[{index}].manager"
            yield Problem(path, f"Invalid value: {shown(manager)}: {text}")
    if any(_has_own_env(container) for container in _patched_containers(spec)):
        names = ", ".join(("dataset-initializer", "model-initializer", "node"))
        key = "runtimePatches" if "runtimePatches" in spec else "podTemplateOverrides"
        text = f"Invalid value: must not have envs for the {names} containers"
        yield Problem(f"spec.{key}", text)


def _has_own_env(container: dict[str, Any]) -> bool:
    return bool(container.get("env")) and container.get("name") in STEPS.values()


def _patched_containers(spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for patch in objects(spec, "runtimePatches"):
        jobs = objects(dig(patch, "trainingRuntimeSpec", "template", "spec"), "replicatedJobs")
        for job in jobs:
            yield from objects(dig(job, "template", "spec", "template", "spec"), "containers")
    for override in objects(spec, "podTemplateOverrides"):
        yield from objects(override.get("spec"), "containers")


# ---------------------------------------------------------------------------------- TrainingRuntime


def _runtime(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    path = "spec.template.spec.replicatedJobs"
    for index, job in enumerate(objects(dig(spec, "template", "spec"), "replicatedJobs")):
        wanted = str(step(job))
        if wanted not in STEPS:
            continue
        if (replicas := count(job, "replicas", 1)) != 1:
            text = f"Invalid value: {replicas}: always must be 1"
            yield Problem(f"{path}[{index}].replicas", text)
        containers = objects(dig(job, "template", "spec", "template", "spec"), "containers")
        if not any(container.get("name") == STEPS[wanted] for container in containers):
            text = f"must contain the required container for the ancestor: {wanted}"
            where = f"{path}[{index}].template.spec.template.spec.containers"
            yield Problem(where, f"Invalid value: {text} ({STEPS[wanted]})")


# ------------------------------------------------------------------------------------------- JobSet


def _jobset(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    name = _name(manifest) or ""
    for index, job in enumerate(objects(spec, "replicatedJobs")):
        path = f"spec.replicatedJobs[{index}].name"
        own = f"{name}-{job.get('name')}-{count(job, 'replicas', 1) - 1}"
        if not is_label(own):
            yield Problem(path, f"Invalid value: {shown(own)}: {_too_long(own, 'job')}")
        if (pods := _completions(job)) is None:
            continue
        pod = f"{own}-{pods - 1}{POD_SUFFIX}"
        if not is_label(pod):
            yield Problem(path, f"Invalid value: {shown(own)}: {_too_long(pod, 'pod')}")


POD_SUFFIX = "-abcde"  # what the Job controller adds is as long


def _completions(job: dict[str, Any]) -> int | None:
    spec = dig(job, "template", "spec")
    indexed = spec.get("completionMode", "Indexed") == "Indexed"
    return count(spec, "completions", 1) if indexed and "completions" in spec else None


def _too_long(name: str, what: str) -> str:
    if len(name) <= LABEL_LENGTH:
        return DNS_1035_WORDS
    return (
        f"JobSet name is too long, {what} names generated for this JobSet will exceed 63 characters"
    )


WEBHOOKS: dict[tuple[str, str], Callable[[dict[str, Any], dict[str, Any]], Iterator[Problem]]] = {
    ("kubeflow.org", "PyTorchJob"): _pytorchjob,
    ("trainer.kubeflow.org", "TrainJob"): _trainjob,
    ("trainer.kubeflow.org", "TrainingRuntime"): _runtime,
    ("trainer.kubeflow.org", "ClusterTrainingRuntime"): _runtime,
    ("jobset.x-k8s.io", "JobSet"): _jobset,
    ("kubeflow.org", "Experiment"): experiments.denied,
}
