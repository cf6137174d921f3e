"""What is wrong with a manifest although its fields are right.

`webhook_problems`: what the operators' webhooks deny, so that a submit would fail. `rule_problems`:
what nobody denies, but does not run. `restricted_problems`: what a strict namespace refuses.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from hydra_trainer.credentials import credential
from hydra_trainer.problems import Problem, entry, shown, under
from hydra_trainer.trees import count, dig, objects

from .pod_rules import (
    GPUS,
    SUBDOMAIN,
    amount,
    duplicates,
    label_problems,
    template_problems,
    variable_problems,
)
from .security import restricted_problems
from .shapes import one_of
from .sweep import once
from .templates import ANCESTOR, Template, step, templates
from .webhooks import LABEL_LENGTH, POD_SUFFIX, webhook_problems

__all__ = ["Problem", "restricted_problems", "rule_problems", "webhook_problems"]

CONFIG_LIMIT = 2**20
ANNOTATIONS_LIMIT = 256 * 2**10
"""Bytes of a ConfigMap's values, and of the annotations of any object."""

DATA_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")


def rule_problems(manifest: dict[str, Any]) -> list[Problem]:
    """Return what no webhook checks, but fails later, and (severity "warning") what may.

    Nothing is raised for fields of wrong types: they are the schema's to report.
    """
    found = label_problems(dig(manifest, "metadata"))
    return [*found, *_annotations(manifest), *_rest(manifest)]


@once
def _rest(manifest: dict[str, Any]) -> list[Problem]:
    """Return what is wrong besides the labels and annotations."""
    kind = str(manifest.get("kind"))
    rules = RULES.get(kind)
    found = rules(manifest, dig(manifest, "spec")) if rules else ()
    return [*found, *_template_problems(manifest, kind)]


def _template_problems(manifest: dict[str, Any], kind: str) -> Iterator[Problem]:
    """Check each template once: those of master and workers are mostly the same."""
    seen: list[dict[str, Any]] = []
    for template in templates(manifest):
        if template.body not in seen:
            seen.append(template.body)
            yield from template_problems(template, kind)


def _annotations(manifest: dict[str, Any]) -> Iterator[Problem]:
    annotations = dig(manifest, "metadata", "annotations")
    size = sum(len(str(key)) + len(str(value).encode()) for key, value in annotations.items())
    if size > ANNOTATIONS_LIMIT:
        text = f"Too long: {size} bytes, but may not be more than {ANNOTATIONS_LIMIT} bytes"
        yield Problem("metadata.annotations", text)


def _name_length(manifest: dict[str, Any], longest: str, what: str) -> Iterator[Problem]:
    name = dig(manifest, "metadata").get("name")
    room = LABEL_LENGTH - len(longest)
    if isinstance(name, str) and len(name) > room:
        text = (
            f"Too long: {shown(name)}: {what} would be {name}{longest}, {len(name + longest)} "
            f"characters, but may have {LABEL_LENGTH}. Type a name of at most {room}."
        )
        yield Problem("metadata.name", text)


def _supported(value: Any, words: tuple[str, ...], path: str) -> list[Problem]:
    return [] if value is None else under(path, one_of(*words)(value))


def _at_least(node: dict[str, Any], key: str, low: int, path: str) -> Iterator[Problem]:
    if (value := count(node, key, low)) < low:
        yield Problem(f"{path}.{key}", f"Invalid value: {value}: must be at least {low}")


# --------------------------------------------------------------------------------------- PyTorchJob

RESTART_POLICIES = ("Always", "OnFailure", "Never", "ExitCode")
PROCESSES = ("auto", "cpu", "gpu")


def _pytorchjob(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    roles = {role: dig(spec, "pytorchReplicaSpecs", role) for role in spec_roles(spec)}
    yield from _pytorch_names(manifest, spec, roles)
    policy = dig(spec, "runPolicy")
    known = ("Running", "All", "None")
    yield from _supported(policy.get("cleanPodPolicy"), known, "spec.runPolicy.cleanPodPolicy")
    yield from _run_policy(policy)
    for role, replica in roles.items():
        path = f"spec.pytorchReplicaSpecs.{role}"
        yield from _supported(
            replica.get("restartPolicy"), RESTART_POLICIES, f"{path}.restartPolicy"
        )
        if dig(replica, "template", "spec").get("restartPolicy"):
            text = f"Forbidden: the operator puts the {path}.restartPolicy in its place"
            yield Problem(f"{path}.template.spec.restartPolicy", text, "warning")
    yield from _restarts(policy, roles)
    yield from _deadlines(policy, manifest)
    yield from _rendezvous(spec, roles)
    yield from _processes(spec.get("nprocPerNode"), "spec.nprocPerNode", templates(manifest))


def spec_roles(spec: dict[str, Any]) -> list[str]:
    return [str(role) for role in dig(spec, "pytorchReplicaSpecs")]


def _pytorch_names(
    manifest: dict[str, Any], spec: dict[str, Any], roles: dict[str, dict[str, Any]]
) -> Iterator[Problem]:
    most = count(dig(spec, "elasticPolicy"), "maxReplicas", 0)
    longest = ""
    for role, replica in roles.items():
        last = max(count(replica, "replicas", 1), most if role == "Worker" else 0) - 1
        longest = max(longest, f"-{role.lower()}-{max(last, 0)}", key=len)
    yield from _name_length(manifest, longest, "a pod and its Service")


def _run_policy(policy: dict[str, Any]) -> Iterator[Problem]:
    path = "spec.runPolicy"
    yield from _at_least(policy, "activeDeadlineSeconds", 1, path)
    for key in ("ttlSecondsAfterFinished", "backoffLimit"):
        yield from _at_least(policy, key, 0, path)


def _restarts(policy: dict[str, Any], roles: dict[str, dict[str, Any]]) -> Iterator[Problem]:
    if "backoffLimit" in policy and any(
        replica.get("restartPolicy") == "ExitCode" for replica in roles.values()
    ):
        text = (
            "Invalid value: has no effect with restartPolicy ExitCode: it counts restarts in "
            "place, and pods are made anew. The bootstrap counts instead (launcher.attempts)."
        )
        yield Problem("spec.runPolicy.backoffLimit", text, "warning")


def _deadlines(policy: dict[str, Any], manifest: dict[str, Any]) -> Iterator[Problem]:
    if policy.get("activeDeadlineSeconds") is None:
        return
    for template in templates(manifest):
        if dig(template.body, "spec").get("activeDeadlineSeconds") is None:
            text = (
                "Required value: the operator sees the job's own activeDeadlineSeconds only at its "
                "next event; the pods need one too."
            )
            yield Problem(f"{template.path}.spec.activeDeadlineSeconds", text, "warning")


def _rendezvous(spec: dict[str, Any], roles: dict[str, dict[str, Any]]) -> Iterator[Problem]:
    workers = count(roles.get("Worker", {}), "replicas", 1)
    elastic = spec.get("elasticPolicy")
    if isinstance(elastic, dict):
        yield from _elastic(elastic, workers, "Master" in roles)
    elif roles and "Master" not in roles and workers > 1:
        text = (
            f"Required value: {workers} workers without a master do not find each other. Add a "
            "Master, or an elasticPolicy."
        )
        yield Problem("spec.pytorchReplicaSpecs.Master", text)
    pods = workers * ("Worker" in roles) + ("Master" in roles)
    least = count(dig(spec, "runPolicy", "schedulingPolicy"), "minAvailable", 0)
    if least > pods:
        text = f"Invalid value: {least}: the job has {pods} pods, so it would wait for ever"
        yield Problem("spec.runPolicy.schedulingPolicy.minAvailable", text)


def _elastic(elastic: dict[str, Any], workers: int, has_master: bool) -> Iterator[Problem]:
    path = "spec.elasticPolicy"
    low, high = count(elastic, "minReplicas", workers), count(elastic, "maxReplicas", workers)
    yield from _at_least(elastic, "minReplicas", 1, path)
    yield from _at_least(elastic, "maxRestarts", 0, path)
    if low > high:
        text = f"Invalid value: {low}: must be at most maxReplicas, which is {high}"
        yield Problem(f"{path}.minReplicas", text)
    elif not low <= workers <= high:
        text = f"Invalid value: {workers}: must be between minReplicas {low} and maxReplicas {high}"
        yield Problem("spec.pytorchReplicaSpecs.Worker.replicas", text)
    backends = ("c10d", "etcd", "etcd-v2")
    yield from _supported(elastic.get("rdzvBackend"), backends, f"{path}.rdzvBackend")
    if elastic.get("rdzvConf") == []:
        text = "Invalid value: []: the operator crashes at an empty list. Leave it out."
        yield Problem(f"{path}.rdzvConf", text)
    if elastic.get("metrics"):
        text = (
            "Forbidden: the operator makes a HorizontalPodAutoscaler of these, which changes the "
            "number of workers in the middle of the training"
        )
        yield Problem(f"{path}.metrics", text, "warning")
    if has_master:
        text = (
            "Invalid value: with a Master, minReplicas and maxReplicas become --nnodes as they "
            "are, without the master's pod. Leave the Master out."
        )
        yield Problem(path, text, "warning")


# --------------------------------------------------------------------------- processes against GPUs


def _processes(given: Any, path: str, found: list[Template]) -> Iterator[Problem]:
    """Check nprocPerNode, a number or one of torchrun's words, against the GPUs of the pods."""
    if given is None:
        return
    number = _integer(given)
    if number is None:
        yield from _words_for_processes(given, path)
    elif number < 1:
        yield Problem(path, f"Invalid value: {shown(given)}: must be at least 1")
    for template in found:
        for container in objects(dig(template.body, "spec"), "containers"):
            if template.trains in (None, container.get("name")):
                yield from _against_gpus(given, number, gpus_of(container), path)


def _integer(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    digits = isinstance(value, str) and value.removeprefix("-").isdecimal()
    return int(value) if digits else None


def _words_for_processes(given: Any, path: str) -> Iterator[Problem]:
    if given not in PROCESSES:
        text = f"Invalid value: {shown(given)}: must be a number, or one of {', '.join(PROCESSES)}"
        yield Problem(path, text)
    else:
        text = (
            f"Invalid value: {shown(given)}: counts as 1 in the WORLD_SIZE that the operator sets, "
            "and as the number of CPUs where there are no GPUs. Type a number."
        )
        yield Problem(path, text, "warning")


def gpus_of(container: dict[str, Any]) -> int:
    """Return how many whole GPUs a container has."""
    limits = dig(container, "resources", "limits")
    return int(sum(amount(limits.get(key)) or 0 for key in GPUS))


def _against_gpus(given: Any, number: int | None, gpus: int, path: str) -> Iterator[Problem]:
    if given == "gpu" and not gpus:
        text = 'Invalid value: "gpu": the container has no GPUs. Type a number.'
        yield Problem(path, text)
    if number is None or not gpus or number == gpus:
        return
    if number > gpus:
        text = f"Invalid value: {shown(given)}: must be at most the {gpus} GPUs of the container"
        yield Problem(path, text)
    else:
        text = f"Invalid value: {shown(given)}: leaves {gpus - number} of {gpus} GPUs idle"
        yield Problem(path, text, "warning")


# ------------------------------------------------------------------------------- HyperPodPyTorchJob

STATEFUL_LENGTH = 52
"""Characters of a StatefulSet's name: its pods get it in a label, with a hash of 11 behind it.
https://github.com/kubernetes/kubernetes/issues/64023"""


def _hyperpod(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    policy = dig(spec, "runPolicy")
    known = ("All", "None", "OnlyComplete")
    yield from _supported(policy.get("cleanPodPolicy"), known, "spec.runPolicy.cleanPodPolicy")
    yield from _at_least(policy, "activeDeadlineSeconds", 1, "spec.runPolicy")
    yield from _at_least(policy, "jobMaxRetryCount", 0, "spec.runPolicy")
    replicas = objects(spec, "replicaSpecs")
    if not replicas:
        yield Problem("spec.replicaSpecs", "Required value: the job has no pods")
    for index, replica in enumerate(replicas):
        yield from _at_least(replica, "replicas", 1, f"spec.replicaSpecs[{index}]")
        yield from _stateful_name(manifest, str(replica.get("name")))
    yield from _processes(spec.get("nprocPerNode"), "spec.nprocPerNode", templates(manifest))


def _stateful_name(manifest: dict[str, Any], replica: str) -> Iterator[Problem]:
    name = dig(manifest, "metadata").get("name")
    room = STATEFUL_LENGTH - len(f"-{replica}")
    if isinstance(name, str) and len(name) > room:
        text = (
            f"Too long: {shown(name)}: the StatefulSet {name}-{replica} of the pods may have at "
            f"most {STATEFUL_LENGTH} characters. Type a name of at most {room}."
        )
        yield Problem("metadata.name", text, "warning")


# ----------------------------------------------------------------------------------------- TrainJob


def _trainjob(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    trainer = dig(spec, "trainer")
    last = max(count(trainer, "numNodes", 1) - 1, 0)
    yield from _name_length(manifest, f"-node-0-{last}{POD_SUFFIX}", "a pod")
    if spec.get("trainer") is None:
        text = "Required value: without it, no pod is told of the others (PET_NNODES and the like)"
        yield Problem("spec.trainer", text)
    yield from _at_least(trainer, "numNodes", 1, "spec.trainer")
    container = {"resources": trainer.get("resourcesPerNode")}
    pods = Template("", {"spec": {"containers": [container]}}, None)
    yield from _processes(trainer.get("numProcPerNode"), "spec.trainer.numProcPerNode", [pods])
    yield from _trainer_container(trainer)
    yield from _patched_volumes(spec)


def _trainer_container(trainer: dict[str, Any]) -> Iterator[Problem]:
    """Check the trainer as what it becomes: a container."""
    variables = objects(trainer, "env")
    for index, name in duplicates(variable.get("name") for variable in variables):
        text = f"Duplicate value: {shown(name)}: only the last one would count"
        yield Problem(f"spec.trainer.env[{index}].name", text)
    for index, variable in enumerate(variables):
        yield from under(f"spec.trainer.env[{index}]", variable_problems(variable))
    body = {
        key: trainer[key] for key in ("image", "command", "args") if trainer.get(key) is not None
    }
    body["resources"] = trainer.get("resourcesPerNode")
    found = template_problems(Template("", {"spec": {"containers": [body]}}, None), "TrainJob")
    for problem in found:
        path = problem.path.removeprefix("spec.containers[0].")
        path = path.replace("resources", "resourcesPerNode", 1)
        yield problem._replace(path=f"spec.trainer.{path}")


def _patched_volumes(spec: dict[str, Any]) -> Iterator[Problem]:
    """Check the volumes that a patch adds; its mounts may be of volumes of the runtime."""
    for patch in objects(spec, "runtimePatches"):
        jobs = objects(dig(patch, "trainingRuntimeSpec", "template", "spec"), "replicatedJobs")
        for job in jobs:
            pod = dig(job, "template", "spec", "template", "spec")
            yield from _unmounted(pod, "spec.runtimePatches")
    for override in objects(spec, "podTemplateOverrides"):
        yield from _unmounted(dig(override, "spec"), "spec.podTemplateOverrides")


def _unmounted(pod: dict[str, Any], path: str) -> Iterator[Problem]:
    mounted = {
        str(mount.get("name"))
        for container in objects(pod, "containers")
        for mount in objects(container, "volumeMounts")
    }
    for volume in objects(pod, "volumes"):
        if isinstance(name := volume.get("name"), str) and name not in mounted:
            text = f"Invalid value: {shown(name)}: no container mounts this volume"
            yield Problem(path, text, "warning")


# ---------------------------------------------------------------------------------- TrainingRuntime


def _runtime(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    yield from _at_least(dig(spec, "mlPolicy"), "numNodes", 1, "spec.mlPolicy")
    path = "spec.template.spec.replicatedJobs"
    jobs = objects(dig(spec, "template", "spec"), "replicatedJobs")
    if not any(step(job) == "trainer" for job in jobs):
        text = f"Required value: no job has the label {ANCESTOR}: trainer, so nothing would train"
        yield Problem(path, text)
    for index, job in enumerate(jobs):
        where = f"{path}[{index}].template.spec"
        yield from under(where, _batch_job(dig(job, "template", "spec")))


ACTIONS = ("FailJob", "FailIndex", "Ignore", "Count")


def _batch_job(job: dict[str, Any]) -> Iterator[Problem]:
    """https://kubernetes.io/docs/concepts/workloads/controllers/job/#pod-failure-policy"""
    pod = dig(job, "template", "spec")
    policy = pod.get("restartPolicy")
    yield from _supported(policy, ("Never", "OnFailure"), "template.spec.restartPolicy")
    if count(job, "backoffLimit", 0) < 0:
        yield Problem("backoffLimit", "Invalid value: must be at least 0")
    rules = objects(job.get("podFailurePolicy"), "rules")
    if rules and policy != "Never":
        text = f"Invalid value: {shown(policy)}: must be Never with a podFailurePolicy"
        yield Problem("template.spec.restartPolicy", text)
    names = {str(container.get("name")) for container in objects(pod, "containers")}
    for index, rule in enumerate(rules):
        yield from under(f"podFailurePolicy.rules[{index}]", _failure_rule(rule, names))


def _failure_rule(rule: dict[str, Any], names: set[str]) -> Iterator[Problem]:
    yield from _supported(rule.get("action"), ACTIONS, "action")
    codes = dig(rule, "onExitCodes")
    yield from _supported(codes.get("operator"), ("In", "NotIn"), "onExitCodes.operator")
    if (name := codes.get("containerName")) is not None and str(name) not in names:
        yield Problem("onExitCodes.containerName", f"Not found: {shown(name)}: no such container")
    values = codes.get("values")
    if isinstance(values, list) and not _is_ordered(values):
        text = f"Invalid value: {values}: must be 1 to 255 numbers, each once and in their order"
        yield Problem("onExitCodes.values", text)
    elif isinstance(values, list) and codes.get("operator") == "In" and 0 in values:
        yield Problem("onExitCodes.values", "Invalid value: 0 is no failure")


def _is_ordered(values: list[Any]) -> bool:
    if not all(isinstance(value, int) for value in values):
        return True  # which is another problem
    return 1 <= len(values) <= 255 and values == sorted(set(values))


# ---------------------------------------------------------------------------------------- ConfigMap


def _config_map(manifest: dict[str, Any], spec: dict[str, Any]) -> Iterator[Problem]:
    name = dig(manifest, "metadata").get("name")
    if isinstance(name, str) and not SUBDOMAIN.fullmatch(name):
        text = f"Invalid value: {shown(name)}: must be lower case letters, digits, '-' and '.'"
        yield Problem("metadata.name", text)
    data, binary = dig(manifest, "data"), dig(manifest, "binaryData")
    for field, values in (("data", data), ("binaryData", binary)):
        for key in values:
            if not DATA_KEY.fullmatch(str(key)) or key in (".", ".."):
                text = f"Invalid value: {shown(key)}: must be letters, digits, '-', '_' and '.'"
                yield Problem(entry(field, str(key)), text)
    for key in data.keys() & binary.keys():
        yield Problem(
            entry("binaryData", str(key)), f"Invalid value: {shown(key)}: is in data as well"
        )
    yield from _config_size(data, binary)
    for key, value in data.items():
        if not str(key).endswith(".py") and isinstance(value, str) and credential(value):
            text = (
                "Forbidden: there is something in it that looks like a password or a token, which "
                "anyone who may see the ConfigMap can read. Put it into a Secret, and the Secret "
                "into launcher.secrets."
            )
            yield Problem(entry("data", str(key)), text)


def _config_size(data: dict[str, Any], binary: dict[str, Any]) -> Iterator[Problem]:
    size = sum(len(value.encode()) for value in data.values() if isinstance(value, str))
    size += sum(len(value) * 3 // 4 for value in binary.values() if isinstance(value, str))
    if size > CONFIG_LIMIT:
        text = (
            f"Too long: {size} bytes, but a ConfigMap holds {CONFIG_LIMIT}. Type "
            "code.delivery=volume, code.delivery=s3 or code.delivery=image, or keep large files "
            "out of the work tree."
        )
        yield Problem("data", text)


RULES: dict[str, Callable[[dict[str, Any], dict[str, Any]], Iterator[Problem]]] = {
    "ConfigMap": _config_map,
    "PyTorchJob": _pytorchjob,
    "HyperPodPyTorchJob": _hyperpod,
    "TrainJob": _trainjob,
    "TrainingRuntime": _runtime,
    "ClusterTrainingRuntime": _runtime,
}
