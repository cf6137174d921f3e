"""What a user is told about a job on a cluster, from objects as the real API returns them.

The messages of schedulers, kubelets, registries, Kueue and operators below are theirs, word for
word (training-operator 1.9, Trainer 2.3 with JobSet 0.12, Kubernetes 1.3x).
"""

import inspect
import json
import re
from dataclasses import fields
from typing import Any

import pytest

from hydra_trainer import config
from hydra_trainer.bootstrap import compact
from hydra_trainer.eks import preflight, state, troubles
from hydra_trainer.eks.options import Options
from hydra_trainer.eks.state import Seen, matters, status, why, worth_reading
from hydra_trainer.eks.troubles import TROUBLES, find
from hydra_trainer.job import JobState

Object = dict[str, Any]
NAME = "digits-3f2a1b9c"
IMAGE = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/train:1"
PENDING, RUNNING, SUCCEEDED = JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED
FAILED, CANCELLED, UNKNOWN = JobState.FAILED, JobState.CANCELLED, JobState.UNKNOWN

# ----------------------------------------------------------------------------- jobs as recorded


def clock(minute: float) -> str:
    return f"2026-11-24T10:{int(minute):02d}:{round(minute % 1 * 60):02d}Z"


def condition(kind: str, truth: bool = True, minute: float = 1, **more: str) -> Object:
    reason = more.get("reason", f"PyTorchJob{kind}")
    message = more.get("message", f"PyTorchJob {NAME} is {kind.lower()}.")
    time = {"lastTransitionTime": clock(minute), "lastUpdateTime": clock(minute)}
    return {"type": kind, "status": str(truth), "reason": reason, "message": message, **time}


CREATED, RUNS = condition("Created", minute=0), condition("Running")


def pytorchjob(*conditions: Object, workers: int = 1, elastic: int = 0, **spec: Any) -> Object:
    role = {"restartPolicy": "ExitCode", "template": {"spec": {"containers": []}}}
    roles = {"Master": {**role, "replicas": 1}, "Worker": {**role, "replicas": workers}}
    if elastic:
        del roles["Master"]
        spec["elasticPolicy"] = {"minReplicas": elastic, "maxReplicas": workers}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": NAME, "namespace": "team", "creationTimestamp": clock(0)},
        "spec": {"pytorchReplicaSpecs": roles, "nprocPerNode": "2", **spec},
        "status": {"conditions": list(conditions), "replicaStatuses": None} if conditions else {},
    }


def trainjob(*conditions: Object, nodes: int = 2, **more: Any) -> Object:
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": NAME, "namespace": "team", "creationTimestamp": clock(0)},
        "spec": {"runtimeRef": {"name": NAME}, "trainer": {"numNodes": nodes}, "suspend": False},
        "status": {"conditions": list(conditions), "jobsStatus": [{"name": "node", "active": 1}]},
        **more,
    }


def hyperpodjob(*conditions: Object, restarts: int = 0) -> Object:
    return {
        "apiVersion": "sagemaker.amazonaws.com/v1",
        "kind": "HyperPodPyTorchJob",
        "metadata": {"name": NAME, "namespace": "team", "creationTimestamp": clock(0)},
        "spec": {"replicaSpecs": [{"name": "pods", "replicas": 2}], "nprocPerNode": "2"},
        "status": {
            "conditions": list(conditions),
            "restartCount": restarts,
            "startTime": clock(0),
            "managerPods": {"name": f"{NAME}-manager"},
        },
    }


def pod(role: str = "master-0", phase: str = "Running", **more: Any) -> Object:
    """Make a pod whose training container is in the given state: running=, terminated=, ..."""
    labels = {"training.kubeflow.org/job-name": NAME, "hydra-trainer.dev/job": NAME}
    if role == "master-0":
        labels["training.kubeflow.org/job-role"] = "master"
    container = {
        "name": more.pop("container", "pytorch"),
        "image": IMAGE,
        "env": [{"name": "HYDRA_TRAINER_MOUNT_DATA", "value": "/mnt/data"}],
        "volumeMounts": [{"name": "data", "mountPath": "/mnt/data"}],
        "resources": {"limits": {"memory": "16Gi", "nvidia.com/gpu": "8"}},
    }
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "efs-claim"}}]
    found: Object = {"phase": phase, "conditions": more.pop("conditions", [])}
    found |= {key: more.pop(key) for key in ("reason", "message") if key in more}
    if "init" in more:
        found["initContainerStatuses"] = [{"name": "init-pytorch", "state": more.pop("init")}]
    states = {k: more.pop(k) for k in ("running", "terminated", "waiting") if k in more}
    last = {"terminated": more.pop("last")} if "last" in more else {}
    if states:
        found["containerStatuses"] = [
            {
                "name": container["name"],
                "state": states,
                "lastState": last,
                "restartCount": more.pop("restarts", 0),
                "ready": "running" in states,
            }
        ]
    return {
        "metadata": {
            "name": f"{NAME}-{role}",
            "namespace": "team",
            "labels": labels | more.pop("labels", {}),
            "creationTimestamp": clock(more.pop("created", 0)),
        },
        "spec": {"nodeName": "ip-10-0-1-7", "containers": [container], "volumes": volumes},
        "status": found,
    }


def ended(code: int, message: Object | str = "", minute: float = 5, **more: Any) -> Object:
    """Make the terminated state of a container; a dict becomes our termination message."""
    text = message if isinstance(message, str) else compact(message)
    times = {"startedAt": clock(1), "finishedAt": clock(minute)}
    return {"exitCode": code, "reason": "Error", "message": text, **times, **more}


def report(code: int, kind: str, message: str, rank: int = 0, **error: Any) -> Object:
    text = f'Traceback (most recent call last):\n  File "model.py", line 7\n{kind}: {message}\n'
    cause = {"type": kind, "message": message, "traceback": text, "lost_peer": False, **error}
    return {"status": "failed", "exit_code": code, "rank": rank, "error": cause}


def event(about: str, reason: str, message: str, minute: float = 2, **more: Any) -> Object:
    name = f"{NAME}-{about}" if about else NAME
    return {
        "metadata": {"name": f"{name}.17f", "namespace": "team", "creationTimestamp": clock(0)},
        "involvedObject": {"kind": "Pod" if about else "PyTorchJob", "name": name},
        "type": more.pop("type", "Warning"),
        "reason": reason,
        "message": message,
        "count": more.pop("count", 1),
        "firstTimestamp": clock(1),
        "lastTimestamp": clock(minute),
        "source": {"component": more.pop("source", "kubelet")},
        **more,
    }


GOOD = {
    "status": "completed",
    "exit_code": 0,
    "objective": {"metric": "val/loss", "mode": "min", "value": 0.25, "step": 90},
    "steps": 90,
}
RUN: Object = {"running": {"startedAt": clock(1)}}
CREATING: Object = {"phase": "Pending", "waiting": {"reason": "ContainerCreating"}}
BOTH = [pod(**RUN), pod("worker-0", **RUN)]


def unscheduled(message: str, role: str = "worker-0", **more: Any) -> Object:
    word = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    return pod(role, "Pending", conditions=[{**word, "message": message}], **more)


def waits(reason: str, message: str = "", role: str = "worker-0") -> Object:
    return pod(role, "Pending", waiting={"reason": reason, "message": message})


def workload(*conditions: Object) -> Object:
    return {
        "metadata": {"name": f"pytorchjob-{NAME}-1a2b3", "namespace": "team"},
        "spec": {"queueName": "gpu-queue"},
        "status": {"conditions": list(conditions)},
    }


def queued(kind: str, truth: bool, reason: str, message: str) -> Object:
    return condition(kind, truth, reason=reason, message=message)


def seen(*pods: Object, job: Object | None = None, events: Any = (), **more: Any) -> Seen:
    return Seen(job or pytorchjob(CREATED), list(pods), list(events), **more)


# ------------------------------------------------------------------------ what a job waits for

GPUS = (
    "0/8 nodes are available: 2 Insufficient nvidia.com/gpu, 6 node(s) had untolerated taint "
    "{dedicated: infra}. preemption: 0/8 nodes are available: 8 Preemption is not helpful."
)
NO_MEMORY = "0/2 nodes are available: 2 Insufficient memory. no new claims to deallocate, pre."
PULL = f'Failed to pull image "{IMAGE}": '
BACK_OFF = f'Back-off pulling image "{IMAGE}"'
MOUNT = 'MountVolume.SetUp failed for volume "code" : '
SUSPENDED = {"suspend": True}
SECURITY = (
    f'Error creating: pods "{NAME}-master-0" is forbidden: violates PodSecurity '
    '"restricted:latest": allowPrivilegeEscalation != false (container "init-pytorch" must set '
    "securityContext.allowPrivilegeEscalation=false)"
)
QUOTA = (
    f'Error creating: pods "{NAME}-worker-0" is forbidden: exceeded quota: gpus, requested: '
    "requests.nvidia.com/gpu=8, used: requests.nvidia.com/gpu=8, limited: "
    "requests.nvidia.com/gpu=8"
)


def not_made(message: str) -> Seen:
    """A job whose worker the API server refuses."""
    return seen(pod(**RUN), events=[event("", "FailedCreatePod", message, count=9)])


PENDING_CASES: dict[str, tuple[Seen, str, str, str]] = {
    # what is wrong: (what the cluster shows, reason, words of the message, words of the advice)
    "no GPU free": (
        seen(pod(**RUN), unscheduled(GPUS)),
        "Unschedulable",
        "1 of 2 pods: 0/8 nodes are available: 2 Insufficient nvidia.com/gpu, 6 node(s) had "
        "untolerated taint {dedicated: infra}.",
        "resources.gpus_per_node (now 8)",
    ),
    "no memory free": (
        seen(unscheduled(NO_MEMORY)),
        "Unschedulable",
        "2 Insufficient memory.",
        "resources.memory_per_node (now 16Gi)",
    ),
    "no EFA": (
        seen(unscheduled("0/1 nodes are available: 1 Insufficient vpc.amazonaws.com/efa.")),
        "Unschedulable",
        "vpc.amazonaws.com/efa",
        "launcher.efa=0",
    ),
    "tainted nodes": (
        seen(unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint(s) {spot: }.")),
        "Unschedulable",
        "taint",
        "the taint spot",
    ),
    "no node of that type": (
        seen(unscheduled("0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/"
                         "selector."),
             events=[event("worker-0", "FailedScheduling", "no instance type satisfied resources "
                           '{"cpu":"8"} and requirements karpenter.sh/capacity-type In [spot]',
                           source="karpenter")]),
        "Unschedulable",
        "Karpenter: no instance type satisfied",
        "resources.instance_type",
    ),
    "a node is on its way": (
        seen(unscheduled(GPUS),
             events=[event("worker-0", "Nominated", "Pod should schedule on: nodeclaim/gpu-ljvhl",
                           type="Normal", source="karpenter")]),
        "Unschedulable",
        "A node is on its way: Pod should schedule on: nodeclaim/gpu-ljvhl",
        "nvidia.com/gpu",
    ),
    "claim is not there": (
        seen(unscheduled('persistentvolumeclaim "efs-claim" not found')),
        "ClaimNotFound",
        'persistentvolumeclaim "efs-claim" not found',
        "storage.mounts.data.claim=",
    ),
    "claim is unbound": (
        seen(unscheduled("0/4 nodes are available: pod has unbound immediate "
                         "PersistentVolumeClaims. preemption: 0/4 nodes are available.")),
        "ClaimUnbound",
        "unbound immediate PersistentVolumeClaims.",
        "kubectl -n team describe pvc efs-claim",
    ),
    "image is not there": (
        seen(waits("ImagePullBackOff", BACK_OFF),
             events=[event("worker-0", "Failed", PULL + "rpc error: code = NotFound desc = failed "
                           "to resolve reference: not found", count=4)]),
        "ImageNotFound",
        "code = NotFound",
        f"launcher.image=ONE_THAT_EXISTS (now {IMAGE})",
    ),
    "registry refuses": (
        seen(waits("ErrImagePull", PULL + "failed to authorize: 403 Forbidden")),
        "ImagePullDenied",
        "403 Forbidden",
        "launcher.image_pull_secrets=[NAME]",
    ),
    "registry limits": (
        seen(waits("ErrImagePull", PULL + "429 Too Many Requests - toomanyrequests: You have "
                   "reached your pull rate limit.")),
        "ImagePullLimited",
        "toomanyrequests",
        "Copy the image to ECR",
    ),
    "registry is out of reach": (
        seen(waits("ErrImagePull", PULL + "dial tcp 3.5.1.2:443: i/o timeout")),
        "ImagePull",
        "i/o timeout",
        "VPC endpoint",
    ),
    "image name is none": (
        seen(waits("InvalidImageName", 'Failed to apply default image tag "A B": couldn\'t parse '
                   'image name "A B": invalid reference format')),
        "ImageNameInvalid",
        "InvalidImageName",
        "launcher.image=REGISTRY/",
    ),
    "the operator's own image": (
        seen(pod("worker-0", "Pending",
                 init={"waiting": {"reason": "ImagePullBackOff",
                                   "message": 'Back-off pulling image "alpine:3.10"'}})),
        "InitImagePull",
        "alpine:3.10",
        "--pytorch-init-container-image",
    ),
    "secret is not there": (
        seen(waits("CreateContainerConfigError", 'secret "wandb" not found')),
        "SecretNotFound",
        'secret "wandb" not found',
        "kubectl -n team create secret generic wandb",
    ),
    "secret has no such key": (
        seen(waits("CreateContainerConfigError", "couldn't find key API_KEY in Secret team/wandb")),
        "SecretKeyNotFound",
        "API_KEY",
        "launcher.secrets",
    ),
    "image runs as root": (
        seen(waits("CreateContainerConfigError", "container has runAsNonRoot and image will run as "
                   "root (pod: x, container: pytorch)")),
        "RunsAsRoot",
        "image will run as root",
        "launcher.run_as_user=1000",
    ),
    "our ConfigMap is gone": (
        seen(pod("worker-0", **CREATING),
             events=[event("worker-0", "Scheduled", "Successfully assigned", 1, type="Normal"),
                     event("worker-0", "FailedMount", MOUNT + 'configmap "code-1a2b" not found')]),
        "ConfigMapNotFound",
        'configmap "code-1a2b" not found',
        "run the same command again",
    ),
    "secret volume is gone": (
        seen(pod("worker-0", **CREATING),
             events=[event("worker-0", "FailedMount", MOUNT + 'secret "certs" not found')]),
        "SecretNotFound",
        'secret "certs"',
        "launcher.secrets",
    ),
    "EFS does not answer": (
        seen(pod("worker-0", **CREATING),
             events=[event("worker-0", "FailedMount", MOUNT + "rpc error: code = DeadlineExceeded "
                           "desc = context deadline exceeded", count=3)]),
        "MountFailed",
        "DeadlineExceeded",
        "storage.mounts.data.claim (now efs-claim)",
    ),
    "subnet is full": (
        seen(pod("worker-0", **CREATING),
             events=[event("worker-0", "FailedCreatePodSandBox", "Failed to create pod sandbox: "
                           "add cmd: failed to assign an IP address to container")]),
        "OutOfAddresses",
        "failed to assign an IP address",
        "prefix delegation",
    ),
    "quota is used up": (
        not_made(QUOTA),
        "QuotaExceeded",
        "exceeded quota: gpus, requested: requests.nvidia.com/gpu=8",
        "kubectl -n team describe quota gpus",
    ),
    "quota wants requests": (
        not_made('pods "x" is forbidden: failed quota: q: must specify limits.cpu for: pytorch'),
        "QuotaNeedsRequests",
        "must specify limits.cpu",
        "resources.cpus_per_node=N",
    ),
    "limit range": (
        not_made('pods "x" is forbidden: maximum memory usage per Container is 8Gi, but limit is '
                 "16Gi"),
        "LimitRange",
        "8Gi",
        "describe limits",
    ),
    "pod security": (
        not_made(SECURITY),
        "PodSecurity",
        "violates PodSecurity",
        "--pytorch-init-container-template-file",
    ),
    "service account is not there": (
        not_made('pods "x" is forbidden: error looking up service account team/trainer: '
                 'serviceaccount "trainer" not found'),
        "ServiceAccountNotFound",
        'serviceaccount "trainer" not found',
        "kubectl -n team create serviceaccount trainer",
    ),
    "priority class is not there": (
        not_made('pods "x" is forbidden: no PriorityClass with name high was found'),
        "PriorityClassNotFound",
        "no PriorityClass with name high",
        "launcher.priority_class",
    ),
    "a policy refuses": (
        not_made('Error creating: admission webhook "validate.kyverno.svc-fail" denied the '
                 "request: images must come from our registry"),
        "AdmissionRefused",
        "images must come from our registry",
        "launcher.pod_overrides",
    ),
    "Trainer cannot make its JobSet": (
        seen(job=trainjob(),
             events=[event("", "TrainJobResourcesCreationFailed", "TrainJob resources "
                           "reconciliation failed: jobsets is forbidden")]),
        "AdmissionRefused",
        "reconciliation failed",
        "",
    ),
    "queue is full": (
        seen(job=pytorchjob(CREATED, condition("Suspended"), runPolicy=SUSPENDED),
             workload=workload(queued("QuotaReserved", False, "Pending", "couldn't assign flavors "
                               "to pod set worker: insufficient unused quota for nvidia.com/gpu in "
                               "flavor h100, 8 more needed"))),
        "Queued",
        "Waiting in queue gpu-queue: couldn't assign flavors to pod set worker: insufficient",
        "launcher.queue=",
    ),
    "queue is not there": (
        seen(job=pytorchjob(CREATED, runPolicy=SUSPENDED),
             workload=workload(queued("QuotaReserved", False, "Inadmissible", "LocalQueue gpu-queue"
                                      " doesn't exist"))),
        "Inadmissible",
        "LocalQueue gpu-queue doesn't exist.",
        "launcher.queue=",
    ),
    "queue checks admission": (
        seen(job=pytorchjob(CREATED, runPolicy=SUSPENDED),
             workload=workload(queued("QuotaReserved", True, "QuotaReserved", "Quota reserved"),
                               queued("Admitted", False, "NoReservation", "Waiting for checks"))),
        "Queued",
        "Waiting in queue gpu-queue: Waiting for checks.",
        "",
    ),
    "preempted in its queue": (
        seen(job=pytorchjob(CREATED, condition("Suspended"), runPolicy=SUSPENDED),
             workload=workload(
                 queued("Evicted", True, "Preempted", "Preempted to accommodate a workload (UID: "
                        "d34468c2-1ce5-47cd-a61d-689be78b6121) due to prioritization"),
                 queued("QuotaReserved", False, "Pending", "couldn't assign flavors to pod set"))),
        "Preempted",
        "Preempted to accommodate a workload due to prioritization. couldn't assign flavors",
        "launcher.queue=",
    ),
    "suspended by hand": (
        seen(job=pytorchjob(CREATED, condition("Suspended"), runPolicy=SUSPENDED)),
        "Suspended",
        "suspended",
        """kubectl -n team patch pytorchjob digits-3f2a1b9c --type merge -p '{"spec": """,
    ),
    "pods are starting": (
        seen(pod(**RUN), pod("worker-0", **CREATING), job=pytorchjob(CREATED, RUNS)),
        "Starting",
        "1 of 2 pods have started.",
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PENDING_CASES.values(), ids=PENDING_CASES.keys())
def test_pending_says_why(case: tuple[Seen, str, str, str]) -> None:
    shown, reason, words, advice = case
    found = status(shown, age=600)
    assert (found.state, found.reason, found.exit_code) == (PENDING, reason, None)
    assert words in found.message
    assert advice in " ".join(why(shown, {}, age=600).split())


@pytest.mark.parametrize("job", [pytorchjob(), trainjob(status={})], ids=["PyTorchJob", "TrainJob"])
def test_operator_absent_after_a_minute(job: Object) -> None:
    """An operator leaves conditions, or a status, or pods, or events; Kueue's do not count."""
    alone = seen(
        job=job,
        events=[
            event("", "CreatedWorkload", "", source="kubeflow.org/pytorchjob-kueue-controller")
        ],
    )
    assert (status(alone, age=59).reason, status(alone).reason) == ("Submitted", "Submitted")
    found = status(alone, age=61)
    assert (found.state, found.reason) == (PENDING, "OperatorAbsent")
    assert "61 seconds" in found.message
    assert "launcher.check=true" in why(alone, {}, age=61)
    noticed = seen(job=job, events=[event("", "SuccessfulCreatePod", "", source="pytorchjob")])
    assert status(noticed, age=61).reason == "Starting"


def test_what_is_over_is_not_told() -> None:
    """A mount that worked at the second try; pods that the quota let in later."""
    late = event("worker-0", "FailedMount", MOUNT + "timed out", 2)
    pulling = event("worker-0", "Pulling", f"Pulling image {IMAGE}", 3, type="Normal")
    pods = [pod(**RUN), pod("worker-0", **CREATING)]
    assert status(seen(*pods, events=[late, pulling])).reason == "Starting"
    assert status(seen(*pods, events=[pulling | {"lastTimestamp": clock(1)}, late])).reason == (
        "MountFailed"
    )
    assert status(seen(*pods, events=[event("", "FailedCreatePod", QUOTA)])).reason == "Starting"


def test_admitted_by_kueue_is_not_queued() -> None:
    admitted = workload(
        queued("QuotaReserved", True, "QuotaReserved", ""), queued("Admitted", True, "Admitted", "")
    )
    assert status(seen(*BOTH, job=pytorchjob(RUNS), workload=admitted)).reason == "Running"


# ---------------------------------------------------------------------------------- it runs


def test_running_needs_every_pod() -> None:
    job = pytorchjob(CREATED, RUNS)
    found = status(seen(*BOTH, job=job))
    assert (found.state, found.reason, found.restarts) == (RUNNING, "Running", 0)
    assert (found.started, found.ended) == (clock(1), None)
    assert status(seen(BOTH[0], job=job)).state is PENDING


def test_elastic_runs_with_its_minimum() -> None:
    job = pytorchjob(CREATED, RUNS, workers=3, elastic=2)
    two = [pod("worker-0", **RUN), pod("worker-1", **RUN)]
    found = status(seen(*two, unscheduled(GPUS, "worker-2"), job=job))
    assert (found.state, found.reason) == (RUNNING, "Elastic")
    assert "2 of 3 pods have started. 1 of 3 pods: 0/8 nodes" in found.message
    one = seen(two[0], unscheduled(GPUS, "worker-1"), unscheduled(GPUS, "worker-2"), job=job)
    assert status(one).state is PENDING


LAST = ended(137, report(137, "RankEnded", "rank 1 was ended by SIGKILL", 1))
AGAIN = condition("Restarting", message=f"job {NAME} is restarting because Worker replica(s) fail.")
RESTARTED = event("", "PyTorchJobRestarting", AGAIN["message"], count=2)


@pytest.mark.parametrize(
    ("shown", "restarts", "words"),
    [
        (
            seen(pod(**RUN), pod("worker-0", waiting={"reason": "CrashLoopBackOff"}, last=LAST,
                                 restarts=3), job=pytorchjob(CREATED, RUNS)),
            3,
            "rank 1, pod worker-0: RankEnded: rank 1 was ended by SIGKILL (exit code 137)",
        ),
        (
            seen(pod(**RUN), job=pytorchjob(CREATED, AGAIN), events=[RESTARTED]),
            2,
            "1 of 2 pods have started.",
        ),
        (
            seen(pod(**RUN), unscheduled(GPUS), job=pytorchjob(CREATED, AGAIN), events=[RESTARTED]),
            2,
            "0/8 nodes are available",
        ),
        (
            seen(pod("node-0-0-aaaaa", "Failed", container="node", terminated=LAST,
                     labels={"batch.kubernetes.io/job-completion-index": "0"}),
                 pod("node-0-0-bbbbb", "Pending", container="node", created=3,
                     waiting={"reason": "ContainerCreating"},
                     labels={"batch.kubernetes.io/job-completion-index": "0"}),
                 job=trainjob(nodes=1)),
            1,
            "0 of 1 pods have started.",
        ),
    ],
    ids=["in place", "pod made anew", "no node for it", "batch Job"],
)  # fmt: skip
def test_restarting(shown: Seen, restarts: int, words: str) -> None:
    found = status(shown)
    assert (found.state, found.reason, found.restarts) == (RUNNING, "Restarting", restarts)
    assert words in found.message


def test_after_a_restart_it_runs_again() -> None:
    again = pod("worker-0", running={"startedAt": clock(6)}, last=LAST, restarts=1)
    found = status(seen(pod(**RUN), again, job=pytorchjob(CREATED, RUNS)))
    assert (found.state, found.reason, found.restarts) == (RUNNING, "Running", 1)
    index = {"batch.kubernetes.io/job-completion-index": "0"}
    old = pod("node-0-0-aaaaa", "Failed", container="node", terminated=LAST, labels=index)
    new = pod("node-0-0-bbbbb", container="node", created=3, labels=index, **RUN)
    found = status(seen(old, new, job=trainjob(nodes=1)))
    assert (found.state, found.reason, found.restarts) == (RUNNING, "Running", 1)
    assert status(seen(*BOTH, job=hyperpodjob(restarts=4))).restarts == 4


# ---------------------------------------------------------------------------------- how it ends


def test_only_a_true_condition_ends_a_job() -> None:
    """After a resume the last condition is Suspended=False; Failed=False says nothing either."""
    resumed = pytorchjob(CREATED, condition("Succeeded"), condition("Suspended", False))
    assert status(seen(*BOTH, job=resumed)).state is SUCCEEDED
    not_failed = pytorchjob(CREATED, RUNS, condition("Failed", False))
    assert status(seen(*BOTH, job=not_failed)).state is RUNNING
    done = pod(phase="Succeeded", terminated=ended(0, GOOD, reason="Completed"))
    found = status(seen(done, pod("worker-0", **RUN), job=pytorchjob(CREATED, RUNS)))
    assert (found.state, found.reason, found.exit_code) == (RUNNING, "Ending", None)


FIRST = {"batch.kubernetes.io/job-completion-index": "0"}
QUIET = ended(0, {"status": "completed", "exit_code": 0}, reason="Completed")
DONE = ended(0, GOOD, reason="Completed")


@pytest.mark.parametrize(
    "shown",
    [
        seen(pod("worker-0", **RUN), pod(phase="Succeeded", terminated=DONE),
             job=pytorchjob(condition("Running", False), condition("Succeeded", minute=9))),
        seen(pod("worker-0", "Succeeded", terminated=QUIET),
             pod("worker-1", "Succeeded", terminated=DONE),  # c10d gives rank 0 to any pod
             job=pytorchjob(CREATED, condition("Succeeded", minute=9), elastic=1)),
        seen(pod("node-0-0-x7k2p", "Succeeded", container="node", terminated=DONE, labels=FIRST),
             pod("node-0-1-q9wzt", "Succeeded", container="node", terminated=QUIET),
             job=trainjob(condition("Complete", reason="AllJobsCompleted", minute=9,
                                    message="jobset completed successfully"))),
        seen(pod("pods-0", "Succeeded", terminated=DONE),
             pod("pods-1", "Succeeded", terminated=QUIET),
             job=hyperpodjob(condition("Created"), condition("Completed", minute=9))),
    ],
    ids=["PyTorchJob", "elastic", "TrainJob", "HyperPod"],
)  # fmt: skip
def test_success_brings_the_result_of_rank_0(shown: Seen) -> None:
    found = status(shown)
    assert (found.state, found.exit_code, found.result) == (SUCCEEDED, 0, GOOD)
    assert (found.started, found.ended) == (clock(1), clock(9))
    assert "val/loss 0.25 after 90 steps" in why(shown, {})


def test_master_done_while_workers_run() -> None:
    shown = seen(
        pod(phase="Succeeded", terminated=DONE),
        pod("worker-0", **RUN),
        job=pytorchjob(CREATED, condition("Succeeded")),
    )
    found = status(shown)
    assert found.state is SUCCEEDED
    assert found.message == "1 pod of it still running, being ended."


def test_a_succeeded_job_whose_pods_are_gone() -> None:
    found = status(seen(job=pytorchjob(CREATED, condition("Succeeded"))))
    assert (found.state, found.exit_code, found.result) == (SUCCEEDED, 0, None)


FAILS = pytorchjob(CREATED, condition("Failed", message=f"PyTorchJob {NAME} is failing because 1"))
LOST = report(1, "RuntimeError", "Connection closed by peer [10.0.1.8]:41234", 0, lost_peer=True)
TAINT = [{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]
EVICTION = {**TAINT[0], "reason": "EvictionByEvictionAPI"}
NCCL = (
    "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=64214, OpType="
    "ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600081 milliseconds before "
    "timing out."
)
GLOO = "[../gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 5000ms for recv"

FAILED_CASES: dict[str, tuple[Object, str, int, str, str]] = {
    # what happened: (pod worker-0, reason, exit code, words of the message, words of the advice)
    "the user's code raised": (
        pod("worker-0", "Failed", terminated=ended(1, report(1, "ValueError", "shapes differ", 3))),
        "UserError",
        1,
        "rank 3, pod worker-0: ValueError: shapes differ (exit code 1)",
        "the traceback says where",
    ),
    "without a report": (
        pod("worker-0", "Failed", terminated=ended(1)),
        "UserError",
        1,
        "pod worker-0: ended (exit code 1)",
        "traceback",
    ),
    "the configuration is wrong": (
        pod("worker-0", "Failed", terminated=ended(2, report(2, "ConfigError", "optim.lr is -1"))),
        "ConfigError",
        2,
        "ConfigError: optim.lr is -1",
        "which key",
    ),
    "a package is missing": (
        pod("worker-0", "Failed",
            terminated=ended(1, report(1, "ModuleNotFoundError", "No module named 'timm'"))),
        "PackageNotFound",
        1,
        "No module named 'timm'",
        "code.pip=",
    ),
    "container out of memory": (
        pod("worker-0", "Failed", terminated=ended(137, reason="OOMKilled")),
        "OOMKilled",
        137,
        "pod worker-0: OOMKilled (exit code 137)",
        "resources.memory_per_node (now 16Gi)",
    ),
    "rank out of memory": (
        pod("worker-0", "Failed", terminated=LAST),
        "Killed",
        137,
        "rank 1 was ended by SIGKILL",
        "resources.memory_per_node (now 16Gi)",
    ),
    "GPU out of memory": (
        pod("worker-0", "Failed",
            terminated=ended(1, report(1, "OutOfMemoryError", "CUDA out of memory. Tried to"))),
        "CudaOutOfMemory",
        1,
        "CUDA out of memory",
        "data.batch_size",
    ),
    "shared memory full": (
        pod("worker-0", "Failed",
            terminated=ended(135, report(135, "RankEnded", "rank 0 was ended by SIGBUS"))),
        "SharedMemoryFull",
        135,
        "SIGBUS",
        "launcher.shm_size",
    ),
    "segmentation fault": (
        pod("worker-0", "Failed",
            terminated=ended(139, report(139, "RankEnded", "rank 0 was ended by SIGSEGV"))),
        "Signal",
        139,
        "SIGSEGV",
        "trainer.compile=false",
    ),
    "disk full": (
        pod("worker-0", "Failed",
            terminated=ended(1, report(1, "OSError", "[Errno 28] No space left on device"))),
        "NoSpace",
        1,
        "No space left on device",
        "storage.output",
    ),
    "NCCL time-out": (
        pod("worker-0", "Failed",
            terminated=ended(1, report(1, "DistBackendError", NCCL, 3, lost_peer=True))),
        "CollectiveTimeout",
        1,
        "rank 3, pod worker-0: DistBackendError: [Rank 3] Watchdog caught collective",
        "trainer.steady_timeout",
    ),
    "gloo time-out": (
        pod("worker-0", "Failed",
            terminated=ended(1, report(1, "RuntimeError", GLOO, 2, lost_peer=True))),
        "CollectiveTimeout",
        1,
        "Timed out waiting 5000ms",
        "trainer.steady_timeout",
    ),
    "pods did not meet": (
        pod("worker-0", "Failed",
            terminated=ended(1, report(1, "DistNetworkError", "The client socket has timed out "
                                       f"after 600000ms while trying to connect to ({NAME}"
                                       "-master-0, 23456).", lost_peer=True))),
        "RendezvousTimeout",
        1,
        "The client socket has timed out",
        "trainer.start_timeout",
    ),
    "only a lost peer": (
        pod("worker-0", "Failed", terminated=ended(1, LOST)),
        "PeerLost",
        1,
        "Connection closed by peer",
        "goes on from the last checkpoint",
    ),
    "evicted for memory": (
        pod("worker-0", "Failed", reason="Evicted",
            message="The node was low on resource: memory. Threshold quantity: 100Mi, available: "
                    "80Mi. Container pytorch was using 30Gi, request is 0"),
        "Evicted",
        137,
        "pod worker-0: Evicted: The node was low on resource: memory.",
        "resources.memory_per_node=NGi",
    ),
    "evicted for disk": (
        pod("worker-0", "Failed", reason="Evicted", terminated=ended(137),
            message='Usage of EmptyDir volume "work" exceeds the limit "10Gi". '),
        "Evicted",
        137,
        'Usage of EmptyDir volume "work"',
        "storage.output",
    ),
    "node lost": (
        pod("worker-0", "Failed", reason="NodeLost", message="Node which was running pod is "
            "unresponsive"),
        "NodeLost",
        137,
        "NodeLost: Node which was running",
        "launcher.spot=false",
    ),
    "node tainted": (
        pod("worker-0", "Failed", terminated=ended(143), conditions=TAINT),
        "NodeLost",
        143,
        "DeletionByTaintManager",
        "Run the same command",
    ),
    "node drained": (
        pod("worker-0", "Failed", terminated=ended(143), conditions=[EVICTION]),
        "NodeLost",
        143,
        "EvictionByEvictionAPI",
        "Run the same command",
    ),
    "preempted by the scheduler": (
        pod("worker-0", "Failed", terminated=ended(143),
            conditions=[{**TAINT[0], "reason": "PreemptionByScheduler"}]),
        "Preempted",
        143,
        "PreemptionByScheduler",
        "launcher.priority_class",
    ),
    "stopped by SIGTERM": (
        pod("worker-0", "Failed",
            terminated=ended(143, {"status": "stopped", "exit_code": 143, "rank": 0})),
        "Stopped",
        143,
        "exit code 143",
        "Run the same command",
    ),
    "python is not in the image": (
        pod("worker-0", "Failed",
            terminated=ended(128, 'failed to create containerd task: exec: "python": executable '
                             "file not found in $PATH: unknown", reason="StartError")),
        "ProgramNotFound",
        128,
        "StartError: failed to create containerd task",
        "The image has no python.",
    ),
    "pod's own deadline": (
        pod("worker-0", "Failed", reason="DeadlineExceeded", terminated=ended(143),
            message="Pod was active on the node longer than the specified deadline"),
        "DeadlineExceeded",
        143,
        "longer than the specified deadline",
        "launcher.active_deadline",
    ),
    "the end of the log instead of a report": (
        pod("worker-0", "Failed",
            terminated=ended(1, "step 3\nTraceback (most recent call last):\n  File x\n"
                             "ModuleNotFoundError: No module named 'torch'\n")),
        "PackageNotFound",
        1,
        "pod worker-0: ModuleNotFoundError: No module named 'torch' (exit code 1)",
        "code.pip=",
    ),
    "exit code of nobody": (
        pod("worker-0", "Failed", terminated=ended(77, "custom words")),
        "Failed",
        77,
        "custom words (exit code 77)",
        "hydra-trainer logs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILED_CASES.values(), ids=FAILED_CASES.keys())
def test_failure_says_what_happened(case: tuple[Object, str, int, str, str]) -> None:
    worker, reason, code, words, advice = case
    shown = seen(pod(**RUN), worker, job=FAILS)
    found = status(shown)
    assert (found.state, found.reason, found.exit_code) == (FAILED, reason, code)
    assert words in found.message
    text = " ".join(why(shown, {}).split())
    assert advice in text
    assert f"{NAME}: FAILED ({reason}), exit code {code}" in text
    assert "on node ip-10-0-1-7" in text


def test_every_class_of_trouble_has_its_test() -> None:
    told = {case[1] for case in (*PENDING_CASES.values(), *FAILED_CASES.values())}
    known = {row.reason for rows in TROUBLES.values() for row in rows}
    assert known - told == {"ContainerNotMade", "BackoffLimit"}  # below
    assert (
        find("container", "CreateContainerError: context deadline exceeded")[0]
        == (TROUBLES["container"][-1])
    )


def test_the_first_failure_is_the_cause() -> None:
    """Others lose their peer, or are stopped, because one failed; they may even report first."""
    cause = ended(1, report(1, "ValueError", "bad batch", 5), minute=5.5)
    shown = seen(
        pod(phase="Failed", terminated=ended(1, LOST, minute=5.2)),
        pod("worker-0", "Failed", terminated=ended(143, {"status": "stopped", "exit_code": 143})),
        pod("worker-1", "Failed", terminated=cause),
        pod("worker-2", "Failed", terminated=ended(1, report(1, "ValueError", "late"), minute=6)),
        job=pytorchjob(CREATED, condition("Failed"), workers=3),
    )
    found = status(shown)
    assert found.message == "rank 5, pod worker-1: ValueError: bad batch (exit code 1)"
    assert found.result is not None and found.result["rank"] == 5
    assert worth_reading(shown) == [(f"{NAME}-worker-1", False), (f"{NAME}-master-0", False)]


def test_a_lost_node_is_the_cause_of_what_its_peers_say() -> None:
    shown = seen(
        pod(phase="Failed", terminated=ended(1, LOST, minute=5)),
        pod("worker-0", "Failed", terminated=ended(143, minute=6), conditions=[EVICTION]),
        job=FAILS,
    )
    found = status(shown)
    assert (found.reason, found.exit_code) == ("NodeLost", 143)
    assert found.message == "pod worker-0: EvictionByEvictionAPI (exit code 143)"


def test_an_earlier_attempt_is_not_the_cause() -> None:
    last = ended(137, reason="OOMKilled", minute=2)
    shown = seen(
        pod(running={"startedAt": clock(3)}, last=last, restarts=1),
        pod("worker-0", "Failed", terminated=ended(1, report(1, "KeyError", "'x'"))),
        job=FAILS,
    )
    assert status(shown).reason == "UserError"


LATE = condition(
    "Failed",
    reason="PyTorchJobFailed",
    message=f"Job {NAME} has failed because it was active longer than specified deadline",
)
OFTEN = condition(
    "Failed", message=f"Job {NAME} has failed because it has reached the specified backoff limit"
)
EXITED = event("", "ExitedWithCode", f"Pod: team.{NAME}-worker-0 exited with code 137")


@pytest.mark.parametrize(
    ("shown", "reason", "code", "words"),
    [
        (seen(job=pytorchjob(CREATED, LATE)), "DeadlineExceeded", 143, "specified deadline"),
        (
            seen(pod(phase="Failed", terminated=ended(143)), job=pytorchjob(CREATED, LATE)),
            "DeadlineExceeded",
            143,
            "specified deadline pod master-0: SIGTERM (exit code 143)",
        ),
        (
            seen(job=trainjob(condition("Failed", reason="DeadlineExceeded", message="TrainJob"))),
            "DeadlineExceeded",
            143,
            "TrainJob",
        ),
        (seen(job=pytorchjob(OFTEN), events=[EXITED]), "BackoffLimit", 137, "backoff limit"),
        (seen(job=pytorchjob(OFTEN)), "BackoffLimit", 1, "backoff limit"),
        (
            seen(job=trainjob(condition("Failed", reason="FailedJobs", message="jobset failed due "
                                        "to one or more job failures"))),
            "Failed",
            1,
            "jobset failed due to one or more job failures",
        ),
    ],
    ids=["deadline", "deadline, pods left", "TrainJob", "backoff limit", "nothing left", "JobSet"],
)  # fmt: skip
def test_failed_and_the_pods_are_gone(shown: Seen, reason: str, code: int, words: str) -> None:
    found = status(shown)
    assert (found.state, found.reason, found.exit_code) == (FAILED, reason, code)
    assert words in found.message


def test_deleted() -> None:
    stopped = {"status": "stopped", "exit_code": 143, "objective": None}
    gone = Seen(None, [], [])
    assert (status(gone).state, status(gone).exit_code) == (UNKNOWN, None)
    saving = status(Seen(None, BOTH, []))
    assert (saving.state, saving.exit_code) == (CANCELLED, 143)
    assert saving.message == "The job was deleted; 2 of its pods are saving."
    saved = Seen(None, [pod(phase="Failed", terminated=ended(143, stopped))], [])
    assert status(saved).result == stopped
    leaving = pytorchjob(CREATED, RUNS)
    leaving["metadata"]["deletionTimestamp"] = clock(3)
    assert status(seen(job=leaving)).state is CANCELLED


# ------------------------------------------------------------------------------------ robustness


def test_fields_that_are_null_or_missing() -> None:
    bare = {"metadata": {"name": f"{NAME}-master-0"}, "status": {"containerStatuses": None}}
    jobs: list[Object] = [pytorchjob(CREATED), {"metadata": {"name": NAME}}, {"metadata": {}}]
    for job in jobs:
        shown = Seen(job, [bare, {"metadata": {"name": "x"}}], [{"metadata": {}}])
        assert status(shown).state is PENDING
        assert why(shown, {}).startswith(f"{shown.name}: PENDING")
    message = 'no JSON {"exit_code": '
    assert status(seen(pod(phase="Failed", terminated=ended(3, message)), job=FAILS)).result is None


def test_other_jobs_events_are_not_ours() -> None:
    other = event("", "FailedCreatePod", QUOTA)
    other["involvedObject"]["name"] = f"{NAME}-2"
    assert status(seen(pod(**RUN), events=[other])).reason == "Starting"
    other["involvedObject"]["name"] = f"{NAME}-2-worker-0"
    assert "exceeded quota" not in why(seen(pod(**RUN), events=[other]), {})


# --------------------------------------------------------------------------------------- why


def test_why_fits_a_screen_and_reads_well() -> None:
    deep = report(1, "ValueError", "shapes differ", 3)
    deep["error"]["traceback"] = "".join(f"  frame {n}\n" for n in range(50)) + "ValueError: shapes"
    events = [event("worker-0", f"Reason{n}", f"words {n}", n) for n in range(30)]
    shown = seen(
        pod(**RUN), pod("worker-0", "Failed", terminated=ended(1, deep)), job=FAILS, events=events
    )
    lines = why(shown, {f"{NAME}-worker-0": [f"line {n}" for n in range(200)]}).splitlines()
    assert len(lines) <= 45 and max(map(len, lines)) <= 140
    assert lines[0] == f"{NAME}: FAILED (UserError), exit code 1"
    assert lines[1] == (
        "rank 3, pod worker-0: ValueError: shapes differ (exit code 1) on node ip-10-0-1-7"
    )
    traceback, shown_events, log = (lines.index(f"{title}:") for title in (
        "Traceback", "Events", "Last lines of worker-0"
    ))  # fmt: skip
    assert lines[shown_events - 2] == "  ValueError: shapes"  # the end of it, not its beginning
    assert lines[log - 2] == "  10:29:00 Reason29 worker-0: words 29"  # the newest, last
    assert log - 1 - shown_events - 1 == 8
    assert lines[traceback + 1] == "    frame 39"
    assert "  line 199" in lines
    assert lines[-1].startswith("What to do: ")


def test_why_tells_the_same_thing_once() -> None:
    """Eight workers that wait for the same, and events that the kubelet counts."""
    events = [
        event(f"worker-{n}", "FailedScheduling", f"0/{8 + n} nodes are available.", n, count=5)
        for n in range(4)
    ]
    events += [event("worker-0", "Pulled", "Container image already present", 6, type="Normal")]
    new_style = event("worker-0", "Unhealthy", "", 0, type="Warning", eventTime=clock(7))
    new_style |= {"lastTimestamp": clock(0), "message": "Probe failed", "count": None}
    new_style["series"] = {"count": 7, "lastObservedTime": clock(8)}
    pods = [unscheduled(GPUS, f"worker-{n}") for n in range(4)]
    text = why(seen(*pods, job=pytorchjob(CREATED, workers=4), events=[new_style, *events]), {})
    assert (
        "  10:03:00 FailedScheduling worker-3 and 3 more: 0/11 nodes are available. (x20)" in text
    )
    assert "  10:08:00 Unhealthy worker-0: Probe failed (x7)" in text
    assert "Pulled" not in text
    assert [matters(item) for item in events] == [True] * 4 + [False]


def test_why_finds_in_the_log_what_a_killed_rank_could_not_report() -> None:
    aborted = ended(134, report(134, "RankEnded", "rank 3 was ended by SIGABRT", 3, traceback=""))
    shown = seen(pod(**RUN), pod("worker-0", "Failed", terminated=aborted), job=FAILS)
    log = ["\x1b[31mstep 3\x1b[0m", " 10%|#\r 20%|##\r", "", f"[rank3]:[E1124] {NCCL}"]
    text = why(shown, {f"{NAME}-worker-0": log})
    assert "trainer.steady_timeout" in text
    assert "\x1b" not in text and "\n  step 3\n" in text and "\n   20%|##\n" in text
    assert "trainer.steady_timeout" not in why(shown, {})


def test_why_reads_the_container_before_when_the_present_one_waits() -> None:
    loop = pod(waiting={"reason": "CrashLoopBackOff"}, last=LAST, restarts=3)
    shown = seen(loop, pod("worker-0", **RUN), job=pytorchjob(CREATED, RUNS))
    assert worth_reading(shown) == [(f"{NAME}-master-0", True)]
    assert worth_reading(seen(unscheduled(GPUS), job=FAILS)) == []


def test_advice_leaves_no_holes() -> None:
    for shown, *_ in PENDING_CASES.values():
        assert not re.search(r"\{\w+\}|\(now \)|None", why(shown, {}, age=600))
    bare = {"metadata": {"name": f"{NAME}-worker-0"}, "spec": {"containers": [{"name": "x"}]}}
    bare["status"] = json.loads(json.dumps(unscheduled(GPUS)["status"]))
    assert "Type a smaller resources.gpus_per_node or resources.nodes (now 2)," in (
        " ".join(why(seen(bare), {}).split())
    )


def test_every_key_that_is_named_exists() -> None:
    schemas: dict[str, type[Any]] = {
        "launcher": Options,
        "resources": config.ResourcesConf,
        "trainer": config.TrainerConf,
        "checkpoint": config.CheckpointConf,
        "code": config.CodeConf,
        "storage": config.StorageConf,
    }
    known = {f"{key}.{field.name}" for key, kind in schemas.items() for field in fields(kind)}
    text = "".join(map(inspect.getsource, (troubles, state, preflight)))
    named = set(re.findall(rf"\b(?:{'|'.join(schemas)})\.(?!kubeflow)[a-z]\w+", text))
    assert len(named) > 30
    assert named <= known
