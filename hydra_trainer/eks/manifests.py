"""From a job to what is sent to the cluster. Pure: no network, clock, randomness, environment."""

import base64
import functools
import hashlib
import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra_trainer import launcher, storage
from hydra_trainer.errors import ConfigError, did_you_mean
from hydra_trainer.job import JobSpec
from hydra_trainer.plain import clean

from . import marks, pod
from .options import APIS, Options

LIMIT = 2**20
"""Bytes that a ConfigMap holds: of its values, before base64 (Kubernetes' MaxSecretSize)."""

RUNTIME_NAME = "node"  # what Kubeflow Trainer calls the part that trains, and its container

NAMED = re.compile(r"[^a-z0-9-]+")
SUFFIX = 8  # hex characters of the identity, at the end of a name


def job_name(job: JobSpec, options: Options) -> str:
    """Return the job's name on the cluster: a DNS-1035 label, short enough for its pods' names.

    The training operator gives each pod a Service of the pod's name (-worker-N), and that is a
    label of at most 63 characters as well. JobSet counts -node-0-N and the five letters that a Job
    adds. HyperPod's names are taken for those of a StatefulSet, which has room for 52.
    """
    last = len(str(max(job.resources.nodes - 1, 0)))
    tail = {"pytorchjob": 8 + last, "trainjob": 14 + last, "hyperpod": 15}[options.api]
    room = 63 - tail - SUFFIX - 1
    front = NAMED.sub("-", job.name[: -SUFFIX - 1].lower()).strip("-") or "job"
    front = front if front[0].isalpha() else f"job-{front}"
    return f"{front[:room].rstrip('-')}-{job.identity[:SUFFIX]}"


def manifests(job: JobSpec, options: Options) -> dict[str, Any]:
    """Return all objects of a job as one List, in the order in which they are created.

    Raises:
        ConfigError: with everything that this API, or a cluster at all, cannot do for the job.
    """
    problems = [*_option_problems(job, options), *_storage_problems(job, options)]
    if problems:
        raise ConfigError(problems)
    name = job_name(job, options)
    items = [_config_map(job, options, name), *_code_map(job)]
    make = {"pytorchjob": _pytorchjob, "trainjob": _trainjob, "hyperpod": _hyperpod}[options.api]
    items += make(job, options, name)
    for item in items:
        if options.namespace:
            item["metadata"]["namespace"] = options.namespace
    items[-1]["metadata"]["annotations"] = {
        marks.IDENTITY: job.identity,
        marks.DIGEST: _digest(items, job),
    }
    return {"apiVersion": "v1", "kind": "List", "items": items}


def forgets(job: JobSpec, options: Options) -> bool:
    """Tell whether the checkpoints of a job are lost with the pod that wrote them."""
    found = [mount for mount in pod.pod_mounts(job, options) if mount.kind == "pod"]
    return bool(found) and not options.embedded


def _digest(items: list[dict[str, Any]], job: JobSpec) -> str:
    # The code stands in it by the digest in its name: what else lies in the work tree, such as a
    # README, makes no other job.
    sent = [item["metadata"]["name"] if item.get("immutable") else item for item in items]
    text = json.dumps(sent, sort_keys=True, separators=(",", ":"))
    text = text.replace('"--again",', "")  # a second run of the same is the same job
    # Nor does the folder of this machine that an embedded cluster writes to: two sweeps may have
    # the same job. On a real one, run directories do not depend on the sweep.
    text = text.replace(json.dumps(pod.own_place(job)), '""')
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _metadata(name: str) -> dict[str, Any]:
    return {"name": name, "labels": pod.labels(name)}


# -------------------------------------------------------------------------------- what is refused


def _option_problems(job: JobSpec, options: Options) -> list[str]:
    problems = []
    if options.api not in APIS:
        hint = did_you_mean(options.api, APIS)
        return [f"launcher.api is {options.api!r}, but must be one of {', '.join(APIS)}.{hint}"]
    if options.image is None:
        problems.append(
            "launcher.image has no value. Type launcher.image=REGISTRY/NAME:TAG, an image with "
            "torch, lightning and hydra-core (docs/eks.md builds one)."
        )
    if job.resources.min_nodes is not None and options.api != "pytorchjob":
        problems.append(
            f"resources.min_nodes is {job.resources.min_nodes} with launcher.api={options.api}, "
            "but only a PyTorchJob can go on with fewer pods. Leave it out, or type "
            "launcher.api=pytorchjob."
        )
    problems += [
        f"launcher.{key} is set, but launcher.api={options.api} has no place for it. Leave it out"
        + (f", or type launcher.api={instead}." if instead else ".")
        for key, instead in _without_place(options)
        if getattr(options, key) != getattr(Options(), key)
    ]
    return [*problems, *_elastic_problems(job)]


def _without_place(options: Options) -> list[tuple[str, str]]:
    """Return the options that an API cannot express, with the API that can."""
    if options.api == "pytorchjob":
        return [("runtime", "trainjob")]
    found = [("scheduling_policy", "pytorchjob")]
    if options.api == "hyperpod":
        return [*found, ("runtime", "trainjob")]
    if options.runtime is not None:
        keys = ("priority_class", "pod_overrides", "active_deadline", "together")
        found += [(key, "") for key in keys[: 2 if _patches(options) else None]]
    return found


def _elastic_problems(job: JobSpec) -> list[str]:
    low = job.resources.min_nodes
    batch = job.config["data"].get("batch_size")
    if low is None or not isinstance(batch, int):
        return []
    each = job.resources.processes_per_node
    bad = [n for n in range(low, job.resources.nodes + 1) if batch % (n * each)]
    return [
        f"data.batch_size is {batch}, but must be divisible by the processes of {n} nodes "
        f"({n * each}) as well, since resources.min_nodes={low} allows them."
        for n in bad[:1]
    ]


def _storage_problems(job: JobSpec, options: Options) -> list[str]:
    if job.config["storage"]["s3"]["embedded"] and not options.embedded:
        return [storage.NOT_REACHED.format(what="pod of a cluster")]
    return []


# ------------------------------------------------------------------------------ config and code


def _config_map(job: JobSpec, options: Options, name: str) -> dict[str, Any]:
    config = storage.with_embedded_s3(job.config) if options.embedded else job.config
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(name),
        "data": {"config.yaml": launcher.config_text(config, pod.run_dir(job))},
    }


def _code_map(job: JobSpec) -> list[dict[str, Any]]:
    delivery = job.config["code"]["delivery"]
    if delivery == "image":
        return []
    found: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": pod.code_name(job),
            "labels": dict(marks.OURS),
        },
        "immutable": True,
        "data": {"bootstrap.py": _bootstrap()},
    }
    if delivery == "configmap":
        archive = job.code.archive()
        size = len(archive) + len(found["data"]["bootstrap.py"])
        if size > LIMIT:
            raise ConfigError(_too_large(job, size))
        found["binaryData"] = {"code.tar.gz": _encoded(archive)}
    return [found]


@functools.lru_cache(maxsize=2)  # the jobs of a sweep have the same code
def _encoded(archive: bytes) -> str:
    return base64.b64encode(archive).decode()


@functools.cache
def _bootstrap() -> str:
    spec = find_spec("hydra_trainer.bootstrap")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).read_text()


def _too_large(job: JobSpec, size: int) -> str:
    largest = ", ".join(f"{name} ({size / 1024:,.0f} KiB)" for size, name in job.code.sizes()[:5])
    return (
        f"The code is {size / 1024:,.0f} KiB when packed, but a ConfigMap holds {LIMIT // 1024:,} "
        f"KiB. Its largest files: {largest}. Keep them out of the work tree (.gitignore), or "
        "deliver the code another way: code.delivery=volume code.place='${mount:output}/code', "
        "code.delivery=s3 code.place=s3://BUCKET/code, or code.delivery=image."
    )


# ------------------------------------------------------------------------------------- the jobs


def _queue_labels(options: Options) -> dict[str, str]:
    found = {
        "kueue.x-k8s.io/queue-name": options.queue,
        "kueue.x-k8s.io/priority-class": options.queue_priority,
    }
    return {key: value for key, value in found.items() if value}


def _job(api: str, kind: str, name: str, options: Options, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = _metadata(name)
    metadata["labels"] |= _queue_labels(options)
    cleaned: dict[str, Any] = clean(
        {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}
    )
    return cleaned


def _pytorchjob(job: JobSpec, options: Options, name: str) -> list[dict[str, Any]]:
    template = pod.pod_template(job, options, name, "pytorch")
    nodes = job.resources.nodes
    elastic = job.resources.min_nodes is not None
    # ExitCode: 143 and other signals start the pod again, 1 and 2 end the job, which is what our
    # exit codes mean. OnFailure would start again what the user's code raised. backoffLimit stays
    # out: it counts restarts in place, which a pod that is made anew has none of; the bootstrap
    # counts instead (launcher.attempts).
    replica = {"restartPolicy": "ExitCode", "template": template}
    if elastic:
        replicas = {"Worker": {"replicas": nodes, **replica}}
    else:
        replicas = {"Master": {"replicas": 1, **replica}}
        if nodes > 1:
            replicas["Worker"] = {"replicas": nodes - 1, **replica}
    spec = {
        # Explicit: "auto" counts as one process in the operator's WORLD_SIZE.
        "nprocPerNode": str(job.resources.processes_per_node),
        "runPolicy": {
            # When the master is done, so is the job, and workers that hang still hold GPUs.
            "cleanPodPolicy": "Running",
            "ttlSecondsAfterFinished": options.ttl,
            "activeDeadlineSeconds": options.active_deadline,
            "schedulingPolicy": options.scheduling_policy,
        },
        "elasticPolicy": _elastic_policy(job, options) if elastic else None,
        "pytorchReplicaSpecs": replicas,
    }
    return [_job("kubeflow.org/v1", "PyTorchJob", name, options, spec)]


def _elastic_policy(job: JobSpec, options: Options) -> dict[str, Any]:
    return {
        "rdzvBackend": "c10d",
        "minReplicas": job.resources.min_nodes,
        "maxReplicas": job.resources.nodes,
        "maxRestarts": options.max_restarts,
    }


def _hyperpod(job: JobSpec, options: Options, name: str) -> list[dict[str, Any]]:
    spec = {
        "nprocPerNode": str(job.resources.processes_per_node),
        "runPolicy": {
            "cleanPodPolicy": "OnlyComplete",
            "jobMaxRetryCount": options.attempts,
            "ttlSecondsAfterFinished": options.ttl,
            "activeDeadlineSeconds": options.active_deadline,
        },
        "replicaSpecs": [
            {
                "name": "pod",
                "replicas": job.resources.nodes,
                "template": pod.pod_template(job, options, name, "pytorch"),
            }
        ],
    }
    return [_job("sagemaker.amazonaws.com/v1", "HyperPodPyTorchJob", name, options, spec)]


# ------------------------------------------------------------------------------ Kubeflow Trainer

TRAINER = "trainer.kubeflow.org/v1alpha1"


def _trainjob(job: JobSpec, options: Options, name: str) -> list[dict[str, Any]]:
    template = pod.pod_template(job, options, name, RUNTIME_NAME)
    spec: dict[str, Any] = {
        "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name},
        "trainer": {
            "numNodes": job.resources.nodes,
            # Explicit: without GPUs the trainer would start a process per CPU of the request.
            "numProcPerNode": job.resources.processes_per_node,
        },
    }
    if _patches(options):
        spec["activeDeadlineSeconds"] = options.active_deadline
    if options.runtime is None:
        found = _job(TRAINER, "TrainJob", name, options, spec)
        return [_training_runtime(job, options, name, template), found]
    spec["runtimeRef"] |= {"kind": "ClusterTrainingRuntime", "name": options.runtime}
    spec["trainer"] |= _trainer_of(template)
    spec |= _overrides(template, options)
    return [_job(TRAINER, "TrainJob", name, options, spec)]


def _patches(options: Options) -> bool:
    """Tell whether this version of Kubeflow Trainer has runtimePatches: 2.2 and later."""
    numbers = [int(part) for part in re.findall(r"\d+", str(options.trainer_version))[:2]]
    return tuple(numbers) >= (2, 2)


def _training_runtime(
    job: JobSpec, options: Options, name: str, template: dict[str, Any]
) -> dict[str, Any]:
    metadata = _metadata(name)
    metadata["labels"]["trainer.kubeflow.org/framework"] = "torch"
    # The same rule as a PyTorchJob's ExitCode: 1 and 2 end the job, all else starts the pod again.
    permanent = {"containerName": RUNTIME_NAME, "operator": "In", "values": [1, 2]}
    template["spec"]["restartPolicy"] = "Never"  # podFailurePolicy asks for it
    node = {
        "name": RUNTIME_NAME,
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "backoffLimit": options.attempts * job.resources.nodes,
                "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": permanent}]},
                "template": template,
            },
        },
    }
    return {
        "apiVersion": TRAINER,
        "kind": "TrainingRuntime",
        "metadata": metadata,
        "spec": {
            "mlPolicy": {"numNodes": job.resources.nodes, "torch": {}},
            "template": {
                "spec": {
                    "ttlSecondsAfterFinished": options.ttl,
                    "replicatedJobs": [node],
                }
            },
        },
    }


def _trainer_of(template: dict[str, Any]) -> dict[str, Any]:
    container = template["spec"]["containers"][0]
    found = {key: container[key] for key in ("image", "command", "env") if key in container}
    return {**found, "resourcesPerNode": container.get("resources")}


def _overrides(template: dict[str, Any], options: Options) -> dict[str, Any]:
    """Return what a runtime of the cluster needs to be told about our pods."""
    spec = template["spec"]
    container = {"name": RUNTIME_NAME, "volumeMounts": spec["containers"][0]["volumeMounts"]}
    keys: tuple[str, ...]
    keys = ("serviceAccountName", "imagePullSecrets", "nodeSelector", "tolerations", "volumes")
    if not _patches(options):
        found = {key: spec[key] for key in keys if key in spec} | {"containers": [container]}
        return {"podTemplateOverrides": [{"targetJobs": [{"name": RUNTIME_NAME}], "spec": found}]}
    keys = (*keys, "affinity", "securityContext", "terminationGracePeriodSeconds")
    security = spec["containers"][0].get("securityContext")
    found = {key: spec[key] for key in keys if key in spec}
    found["containers"] = [{**container, **({"securityContext": security} if security else {})}]
    pods = {"template": {"metadata": template["metadata"], "spec": found}}
    jobs = [{"name": RUNTIME_NAME, "template": {"spec": pods}}]
    patch = {"template": {"spec": {"replicatedJobs": jobs}}}
    manager = "hydra-trainer.dev/launcher"
    return {"runtimePatches": [{"manager": manager, "trainingRuntimeSpec": patch}]}
