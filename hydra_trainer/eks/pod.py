"""The pod of a training job: one template, whichever API the job goes through."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra_trainer import storage
from hydra_trainer.errors import ConfigError
from hydra_trainer.instances import instance
from hydra_trainer.job import JobSpec, Mount
from hydra_trainer.plain import clean, merge
from hydra_trainer.storage import OPEN, variable

from . import marks
from .options import Options

CODE = "/hydra-trainer/code"  # the bootstrap, and the archive of the code
JOB = "/hydra-trainer/job"  # config.yaml
WORK = "/hydra-trainer/work"  # the unpacked code, and HOME
REPORT = "/dev/termination-log"
OUTPUT = "output"  # the mount that holds the run directories

MARGIN = 10
"""Seconds of the grace period that the bootstrap keeps for its report."""

TOGETHER = {
    "zone": "topology.kubernetes.io/zone",
    "rack": "topology.k8s.aws/network-node-layer-3",  # the network node next to the instance
}

OWN_ENV = {"HOME": WORK, "PYTHONUNBUFFERED": "1"}

CLAIMED = ("efs", "fsx", "pvc")


def pod_template(job: JobSpec, options: Options, name: str, container: str) -> dict[str, Any]:
    """Return the pod template of a job, with `pod_overrides` merged in.

    Args:
        job: what to run.
        options: how the pods should look.
        name: the job's name on the cluster.
        container: the name that the API wants for the container that trains.
    """
    inject = "true" if options.istio else "false"
    template = {
        "metadata": {
            # The label is what newer Istio releases look at, the annotation what older ones do.
            "labels": {**labels(name), "sidecar.istio.io/inject": inject, **options.labels},
            "annotations": {"sidecar.istio.io/inject": inject, **options.annotations},
        },
        "spec": _spec(job, options, name, container),
    }
    merged: dict[str, Any] = merge(clean(template), options.pod_overrides)
    return merged


def labels(name: str) -> dict[str, str]:
    """Return the labels of everything that belongs to a job."""
    return {**marks.OURS, marks.JOB: name}


def _spec(job: JobSpec, options: Options, name: str, container: str) -> dict[str, Any]:
    mounts = pod_mounts(job, options)
    return {
        "serviceAccountName": options.service_account,
        # Training talks to no Kubernetes API; a role for AWS comes by another token.
        "automountServiceAccountToken": False,
        "imagePullSecrets": [{"name": secret} for secret in options.image_pull_secrets],
        "terminationGracePeriodSeconds": options.grace,
        # The operator sees a job's own deadline only at its next event; the kubelet sees this one.
        "activeDeadlineSeconds": options.active_deadline,
        "priorityClassName": options.priority_class,
        "nodeSelector": _node_selector(job, options),
        "tolerations": _tolerations(job, options),
        "affinity": _affinity(options, name),
        "securityContext": _pod_security(options),
        "containers": [_container(job, options, container, mounts)],
        "volumes": _volumes(job, options, name, mounts),
    }


def _container(job: JobSpec, options: Options, name: str, mounts: list[Mount]) -> dict[str, Any]:
    return {
        "name": name,
        "image": options.image,
        "imagePullPolicy": options.image_pull_policy,
        "command": command(job, options, mounts),
        "env": _env(job, options, mounts),
        "resources": resources(job, options),
        "securityContext": _container_security(options),
        "terminationMessagePath": REPORT,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _volume_mounts(job, options, mounts),
    }


def command(job: JobSpec, options: Options, mounts: list[Mount]) -> list[str]:
    """Return what a pod runs: the bootstrap, in exec form, so that SIGTERM reaches it."""
    code = job.config["code"]
    delivery = code["delivery"]
    bundled = {"configmap": f"{CODE}/code.tar.gz", "image": None}.get(delivery, code["place"])
    if delivery in ("s3", "volume"):
        bundled = f"{_path(str(bundled), mounts)}/{job.code.digest}.tar.gz"
    start = ["-m", "hydra_trainer.bootstrap"] if delivery == "image" else [f"{CODE}/bootstrap.py"]
    return [
        "python",
        *start,
        f"--nproc-per-node={job.resources.processes_per_node}",
        f"--max-restarts={options.max_restarts}",
        f"--attempts={options.attempts}",
        f"--grace={max(options.grace - MARGIN, 1)}",
        f"--report={REPORT}",
        f"--run-dir={_path(run_dir(job), mounts)}",
        *(["--again"] if options.again or job.again else []),
        *([f"--code={bundled}", f"--work={WORK}/code"] if bundled else []),
        *(f"--pip={requirement}" for requirement in code["pip"]),
        f"{JOB}/config.yaml",
    ]


def run_dir(job: JobSpec) -> str:
    """Return the run directory as the configuration of the worker names it.

    A relative `storage.output` means a folder of the machine that submits, which no pod has: the
    run directory is then below the mount `output`, or in the pod. Of a run that is kept in S3, it
    is in the pod, too: all that must outlive it goes there.
    """
    if storage.remote_output(job.config) is not None:
        return f"${{mount:{storage.SCRATCH}}}/{job.name}"
    output = str(job.config["storage"]["output"])
    if not OPEN.search(output) and not output.startswith("/"):
        output = f"${{mount:{OUTPUT}}}"
    return f"{output.rstrip('/')}/{job.name}"


def _path(text: str, mounts: list[Mount]) -> str:
    """Return a path of the configuration as the pod sees it."""
    found = {mount.name: mount for mount in mounts}
    return OPEN.sub(lambda match: found[match[1]].path, text)


# ------------------------------------------------------------------------------------- mounts


def pod_mounts(job: JobSpec, options: Options) -> list[Mount]:
    """Return the mounts that the pods get: those with a claim, in S3, and those that are used.

    The path of one that is streamed is its place in S3.

    Raises:
        ConfigError: a used mount has no place on a cluster.
    """
    used = set(OPEN.findall(str(without_storage(job))))
    used |= set(OPEN.findall(str(job.config["storage"]["output"]) + run_dir(job)))
    found, problems = [], []
    for name, mount in {**_own_output(job), **job.mounts}.items():
        if mount.streams:
            found.append(replace(mount, path=mount.place))
        elif _is_claimed(mount) and mount.claim:
            found.append(mount)
        elif name in used:
            found.append(mount)
            problems += _host_problems(mount, options, job)
    if problems:
        raise ConfigError(problems)
    if storage.remote_output(job.config) is not None:
        found.append(Mount(storage.SCRATCH, kind="work", path=f"{WORK}/runs"))
    return found


def without_storage(job: JobSpec) -> dict[str, Any]:
    return {key: value for key, value in job.config.items() if key not in ("storage", "launcher")}


def _own_output(job: JobSpec) -> dict[str, Mount]:
    """Return a mount for run directories that are not in one of the configuration's."""
    if OUTPUT in job.mounts or storage.remote_output(job.config) is not None:
        return {}
    here = own_place(job)
    return {OUTPUT: Mount(OUTPUT, kind="pod", local=here, path="/hydra-trainer/output")}


def own_place(job: JobSpec) -> str:
    """Return the folder of this machine that stands for it on an embedded cluster."""
    return str(Path(job.output).absolute().parent)


def _is_claimed(mount: Mount) -> bool:
    """Tell whether a mount comes through a PersistentVolumeClaim."""
    return mount.kind in CLAIMED or (mount.kind == "s3" and mount.access == "csi")


def _host_problems(mount: Mount, options: Options, job: JobSpec) -> list[str]:
    key = f"storage.mounts.{mount.name}"
    if _is_claimed(mount):
        or_stream = f", or {key}.access=stream" if mount.uri else ""
        return [
            f"{key}.claim has no value, but launcher=eks mounts {mount.kind} through a "
            f"PersistentVolumeClaim. Type {key}.claim=NAME{or_stream}."
        ]
    if mount.kind == "s3":
        return [
            f"{key}.access is {mount.access!r}, an input mode of SageMaker. Type {key}.access="
            f"stream, or {key}.access=csi with {key}.claim=NAME."
        ]
    if mount.kind in ("pod", "cache") or options.embedded:
        return []
    declared = isinstance(job.config["storage"]["mounts"].get(mount.name), dict)
    if declared and mount.local.startswith("/"):
        return []
    return [
        f"{key} is {mount.local or 'nowhere'}, a folder of this machine, which no pod of a cluster "
        f"has. Type storage=efs, storage=fsx, storage=s3, or '{key}={{kind: pvc, claim: NAME}}'."
    ]


def _volumes(
    job: JobSpec, options: Options, name: str, mounts: list[Mount]
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "job", "configMap": {"name": name}}]
    if job.config["code"]["delivery"] != "image":
        found.append({"name": "code", "configMap": {"name": code_name(job)}})
    found.append({"name": "work", "emptyDir": {}})
    if options.shm_size:
        shm = {"medium": "Memory", "sizeLimit": options.shm_size}
        found.append({"name": "shm", "emptyDir": shm})
    if _efa(job, options):
        found.append({"name": "hugepages", "emptyDir": {"medium": "HugePages-2Mi"}})
    seen: dict[str, dict[str, Any]] = {}
    for mount in _mounted(mounts):
        seen.setdefault(_volume_name(mount), _source(mount, options))
    return [*found, *({"name": key, **source} for key, source in seen.items())]


def _mounted(mounts: list[Mount]) -> list[Mount]:
    """Return the mounts that have a volume of their own."""
    return [mount for mount in mounts if not mount.streams and mount.kind != "work"]


def _volume_name(mount: Mount) -> str:
    """Return the volume of a mount; mounts of one claim share it."""
    text = f"claim-{mount.claim}" if mount.claim else f"mount-{mount.name}"
    return re.sub(r"[^a-z0-9-]", "-", text.lower())[:63].strip("-")


def _source(mount: Mount, options: Options) -> dict[str, Any]:
    if _is_claimed(mount):
        return {"persistentVolumeClaim": {"claimName": mount.claim}}
    if mount.kind == "cache" or (mount.kind == "pod" and not options.embedded):
        return {"emptyDir": {}}
    path = str(Path(mount.local).expanduser().absolute())
    return {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}


def _volume_mounts(job: JobSpec, options: Options, mounts: list[Mount]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "job", "mountPath": JOB, "readOnly": True}]
    if job.config["code"]["delivery"] != "image":
        found.append({"name": "code", "mountPath": CODE, "readOnly": True})
    found.append({"name": "work", "mountPath": WORK})
    if options.shm_size:
        found.append({"name": "shm", "mountPath": "/dev/shm"})
    if _efa(job, options):
        found.append({"name": "hugepages", "mountPath": "/hugepages"})
    for mount in _mounted(mounts):
        entry: dict[str, Any] = {"name": _volume_name(mount), "mountPath": mount.path}
        if mount.sub_path:
            entry["subPath"] = mount.sub_path
        if mount.read_only:
            entry["readOnly"] = True
        found.append(entry)
    return found


def code_name(job: JobSpec) -> str:
    """Return the name of the ConfigMap with the code, which the jobs of a sweep share."""
    return f"hydra-trainer-code-{job.code.digest}"


# ------------------------------------------------------------------------- environment, resources


def _env(job: JobSpec, options: Options, mounts: list[Mount]) -> list[dict[str, Any]]:
    places = {variable(mount.name): mount.path for mount in mounts}
    places |= storage.environment(job.config)
    if options.embedded and storage.with_embedded_s3(job.config)["storage"]["s3"]["embedded"]:
        places[storage.EMBEDDED] = str(storage.embedded_home())
    plain = {**OWN_ENV, **places, **environment(job, options)}
    found: list[dict[str, Any]] = [{"name": k, "value": _literal(v)} for k, v in plain.items()]
    return found + [_secret(key, place) for key, place in options.secrets.items()]


def environment(job: JobSpec, options: Options) -> dict[str, str]:
    """Return the variables of the pods, but for where mounts are and for secrets."""
    plain = dict(OWN_ENV)
    if job.resources.gpus_per_node and job.resources.nodes > 1:
        # What AWS recommends for EFA is to set nothing else; loopback and docker's bridge lead
        # nowhere.
        plain |= {"NCCL_DEBUG": "WARN", "NCCL_SOCKET_IFNAME": "^lo,docker0"}
    return {**plain, **job.env, **options.env}


def _literal(value: Any) -> str:
    """Escape what Kubernetes would fill in: $(NAME) in a value means another variable."""
    return str(value).replace("$(", "$$(")


def _secret(key: str, place: str) -> dict[str, Any]:
    name, slash, entry = str(place).partition("/")
    if not (name and slash and entry):
        raise ConfigError(
            f"launcher.secrets.{key} must name a secret and a key in it, not hold the value. Type "
            f"launcher.secrets.{key}=SECRET/KEY, after kubectl create secret generic SECRET "
            "--from-literal=KEY=..."
        )
    return {"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": entry}}}


def resources(job: JobSpec, options: Options) -> dict[str, Any]:
    """Return requests and limits: extended resources need both to be the same."""
    needed = job.resources
    devices = {}
    if needed.gpus_per_node:
        devices[options.gpu_resource] = str(needed.gpus_per_node)
    if efa := _efa(job, options):
        devices |= {"vpc.amazonaws.com/efa": str(efa), "hugepages-2Mi": options.hugepages}
    cpus = None if needed.cpus_per_node is None else f"{needed.cpus_per_node:g}"
    requests = {"cpu": cpus, "memory": needed.memory_per_node, **devices}
    return {"requests": requests, "limits": {"memory": needed.memory_per_node, **devices}}


def _efa(job: JobSpec, options: Options) -> int:
    if options.efa is not None:
        return options.efa
    known = instance(job.resources.instance_type or "")
    if known is None or job.resources.nodes == 1 or not job.resources.gpus_per_node:
        return 0
    return known.efa if job.resources.gpus_per_node == known.gpus else 0


# ------------------------------------------------------------------------------------ placement


def _node_selector(job: JobSpec, options: Options) -> dict[str, str]:
    found = {}
    if kind := job.resources.instance_type:
        front = "ml." if options.api == "hyperpod" else ""
        found["node.kubernetes.io/instance-type"] = front + kind
    if options.spot:
        found["karpenter.sh/capacity-type"] = "spot"
    return {**found, **options.node_selector}


def _tolerations(job: JobSpec, options: Options) -> list[dict[str, Any]]:
    own = {"key": options.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}
    return [*([own] if job.resources.gpus_per_node else []), *options.tolerations]


def _affinity(options: Options, name: str) -> dict[str, Any] | None:
    if options.together is None:
        return None
    if options.together not in TOGETHER:
        raise ConfigError(
            f"launcher.together is {options.together!r}, but must be one of "
            f"{', '.join(TOGETHER)}, or null."
        )
    term = {
        "topologyKey": TOGETHER[options.together],
        "labelSelector": {"matchLabels": {marks.JOB: name}},
    }
    return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _pod_security(options: Options) -> dict[str, Any]:
    found: dict[str, Any] = {"runAsUser": options.run_as_user, "fsGroup": options.fs_group}
    if options.fs_group is not None:
        # Else the kubelet goes through all files of a volume whenever a pod starts.
        found["fsGroupChangePolicy"] = "OnRootMismatch"
    if options.restricted:
        found |= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    return found


def _container_security(options: Options) -> dict[str, Any]:
    capabilities: dict[str, Any] = {"drop": ["ALL"] if options.restricted else []}
    capabilities["add"] = ["IPC_LOCK"] if options.ipc_lock else []
    escalation = False if options.restricted else None
    return {"allowPrivilegeEscalation": escalation, "capabilities": capabilities}
