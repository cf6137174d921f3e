"""The operators and the kubelet of the embedded cluster: jobs of a line of shell each."""

import base64
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hydra_trainer.embedded import Embedded
from hydra_trainer.embedded.operators import condition
from hydra_trainer.embedded.process import Paths, expand

Object = dict[str, Any]
JOBS = "pytorchjobs.kubeflow.org"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Embedded]:
    with Embedded(tmp_path / "home") as found:
        yield found


def template(script: str, name: str = "pytorch", **spec: Any) -> Object:
    command = {"name": name, "image": "image:1", "command": ["sh", "-c", script]}
    more = spec.pop("container", {})
    return {"spec": {"containers": [{**command, **more}], **spec}}


def job(script: str, *, workers: int = 0, policy: str = "ExitCode", **run: Any) -> Object:
    pod = template(script, **run.pop("pod", {}))
    replica = {"restartPolicy": policy, "template": pod}
    replicas = {"Master": {"replicas": 1, **replica}}
    if workers:
        replicas["Worker"] = {"replicas": workers, **replica}
    labels = run.pop("labels", {})
    spec = {"nprocPerNode": "2", "runPolicy": run, "pytorchReplicaSpecs": replicas}
    return {"metadata": {"name": "job", "labels": labels}, "spec": spec}


def until(cluster: Embedded, resource: str, name: str, ready: Callable[[Object], Any]) -> Object:
    """Return an object once it is as wanted."""
    changes = cluster.store.subscribe()
    for found in cluster.store.list(resource, "default")[0]:
        if found["metadata"]["name"] == name and ready(found):
            return found
    while True:
        _, kind, found = changes.get(timeout=60)
        if kind == resource and found["metadata"]["name"] == name and ready(found):
            return found


def run(cluster: Embedded, made: Object, end: str = "Succeeded", resource: str = JOBS) -> Object:
    cluster.store.create(resource, "default", made)
    return until(cluster, resource, "job", lambda found: condition(found, end))


def ended(pod: Object) -> Object:
    found: Object = pod["status"]["containerStatuses"][0]["state"].get("terminated", {})
    return found


def pod_of(cluster: Embedded, name: str) -> Object:
    return cluster.store.get("pods", "default", name)


# ------------------------------------------------------------------------------------ PyTorchJob


def test_a_pod_gets_what_the_operator_injects_after_the_users_own(cluster: Embedded) -> None:
    own = {"container": {"env": [{"name": "RANK", "value": "7"}, {"name": "OWN", "value": "1"}]}}
    run(cluster, job("true", workers=1, pod=own))
    env = pod_of(cluster, "job-worker-0")["spec"]["containers"][0]["env"]
    assert [(item["name"], item["value"]) for item in env] == [
        ("RANK", "7"),
        ("OWN", "1"),
        ("PYTHONUNBUFFERED", "1"),
        ("MASTER_PORT", "23456"),
        ("PET_MASTER_PORT", "23456"),
        ("MASTER_ADDR", "job-master-0"),
        ("PET_MASTER_ADDR", "job-master-0"),
        ("WORLD_SIZE", "4"),
        ("RANK", "1"),
        ("PET_NODE_RANK", "1"),
        ("PET_NPROC_PER_NODE", "2"),
        ("PET_NNODES", "2"),
    ]


def test_workers_alone_meet_by_the_elastic_policy(cluster: Embedded) -> None:
    made = job("true", workers=2)
    del made["spec"]["pytorchReplicaSpecs"]["Master"]
    made["spec"]["elasticPolicy"] = {"minReplicas": 1, "maxReplicas": 2, "maxRestarts": 3}
    run(cluster, made)
    env = {
        i["name"]: i["value"]
        for i in pod_of(cluster, "job-worker-1")["spec"]["containers"][0]["env"]
    }
    assert env["PET_RDZV_ENDPOINT"] == "job-worker-0:23456" and env["PET_NNODES"] == "1:2"
    assert env["PET_MAX_RESTARTS"] == "3" and "MASTER_ADDR" not in env


def test_a_job_runs_to_its_end_and_says_so(cluster: Embedded) -> None:
    done = run(cluster, job("echo hello; printf '{}' > /dev/termination-log"))
    types = [(c["type"], c["status"]) for c in done["status"]["conditions"]]
    assert (types[0], types[-1]) == (("Created", "True"), ("Succeeded", "True"))
    assert ("Running", "True") not in types
    finished = until(cluster, JOBS, "job", lambda found: found["status"].get("completionTime"))
    assert finished["status"]["startTime"]
    assert ended(pod_of(cluster, "job-master-0"))["message"] == "{}"
    reasons = {event["reason"] for event in cluster.store.list("events", "default")[0]}
    assert {"PyTorchJobSucceeded", "SuccessfulCreatePod", "Scheduled", "Started"} <= reasons


def test_exit_codes_from_128_on_start_a_pod_anew(cluster: Embedded, tmp_path: Path) -> None:
    script = f"test -e {tmp_path}/once && exit 0; touch {tmp_path}/once; kill -9 $$"
    cluster.store.create(JOBS, "default", job(script))
    until(cluster, JOBS, "job", lambda found: condition(found, "Restarting"))
    until(cluster, JOBS, "job", lambda found: condition(found, "Succeeded"))


@pytest.mark.parametrize("policy", ["ExitCode", "Never"])
def test_an_error_of_the_user_ends_the_job(cluster: Embedded, policy: str) -> None:
    failed = run(cluster, job("exit 3", policy=policy), "Failed")
    # As the operator does it, where the policy is ExitCode: no time to live can start.
    assert ("completionTime" in failed["status"]) is False or policy == "Never"
    assert ended(pod_of(cluster, "job-master-0"))["exitCode"] == 3


def test_on_failure_a_container_starts_again_in_its_pod(cluster: Embedded, tmp_path: Path) -> None:
    script = f"test -e {tmp_path}/once && exit 0; touch {tmp_path}/once; exit 1"
    run(cluster, job(script, policy="OnFailure"))
    status = pod_of(cluster, "job-master-0")["status"]["containerStatuses"][0]
    assert status["restartCount"] == 1
    assert status["lastState"]["terminated"]["exitCode"] == 1


def test_when_the_master_is_done_running_workers_are_ended(cluster: Embedded) -> None:
    script = "test $PET_NODE_RANK = 0 || exec sleep 3600"
    run(cluster, job(script, workers=1, cleanPodPolicy="Running"))
    until(cluster, "pods", "job-worker-0", lambda pod: pod["metadata"].get("deletionTimestamp"))
    assert pod_of(cluster, "job-master-0")["status"]["phase"] == "Succeeded"


def test_a_suspended_job_has_no_pods_until_it_is_resumed(cluster: Embedded) -> None:
    cluster.store.create(JOBS, "default", job("true", suspend=True))
    until(cluster, JOBS, "job", lambda found: condition(found, "Suspended"))
    assert cluster.store.list("pods", "default")[0] == []
    resume = {"suspend": False}
    cluster.store.change(JOBS, "default", "job", lambda j: j["spec"].update(runPolicy=resume))
    until(cluster, JOBS, "job", lambda found: condition(found, "Succeeded"))


def test_a_finished_job_goes_when_its_time_is_over_and_takes_all_with_it(
    cluster: Embedded,
) -> None:
    changes = cluster.store.subscribe()
    run(cluster, job("true", ttlSecondsAfterFinished=0))
    gone = set()
    while ("pods", "job-master-0") not in gone or (JOBS, "job") not in gone:
        kind, resource, obj = changes.get(timeout=60)
        if kind == "DELETED":
            gone.add((resource, obj["metadata"]["name"]))


def test_a_job_waits_for_its_queue(cluster: Embedded) -> None:
    queued = job("true", labels={"kueue.x-k8s.io/queue-name": "team"})
    cluster.store.create(JOBS, "default", queued)
    until(cluster, JOBS, "job", lambda found: condition(found, "Suspended"))
    (workload,) = cluster.store.list("workloads.kueue.x-k8s.io", "default")[0]
    assert workload["status"]["conditions"][0]["message"] == "LocalQueue team doesn't exist"
    queue = {"metadata": {"name": "team"}, "spec": {"clusterQueue": "all"}}
    cluster.store.create("localqueues.kueue.x-k8s.io", "default", queue)
    until(cluster, JOBS, "job", lambda found: condition(found, "Succeeded"))


# ----------------------------------------------------------------------------------- the kubelet


def test_a_volume_that_is_not_there_yet_is_waited_for(cluster: Embedded) -> None:
    volume = {"name": "c", "configMap": {"name": "later"}}
    mount = {"volumeMounts": [{"name": "c", "mountPath": "/etc/c"}]}
    made = job(
        "test $(cat /etc/c/a.txt) = text && test -s /etc/c/b.bin",
        pod={"volumes": [volume], "container": mount},
    )
    cluster.store.create(JOBS, "default", made)
    waiting = until(
        cluster, "pods", "job-master-0", lambda pod: pod["status"].get("containerStatuses")
    )
    reason = waiting["status"]["containerStatuses"][0]["state"]["waiting"]
    assert reason == {"reason": "ContainerCreating", "message": 'configmap "later" not found'}
    files = {"data": {"a.txt": "text"}, "binaryData": {"b.bin": base64.b64encode(b"\0").decode()}}
    cluster.store.create("configmaps", "default", {"metadata": {"name": "later"}, **files})
    until(cluster, JOBS, "job", lambda found: condition(found, "Succeeded"))


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        ({"resources": {"limits": {"nvidia.com/gpu": "8"}}}, "Insufficient nvidia.com/gpu"),
        ({"image": "no-such-image:1"}, "ImagePullBackOff"),
    ],
)
def test_a_pod_that_cannot_start_says_why(
    cluster: Embedded, container: Object, reason: str
) -> None:
    cluster.store.create(JOBS, "default", job("true", pod={"container": container}))
    pod = until(cluster, "pods", "job-master-0", lambda pod: reason in str(pod["status"]))
    assert pod["status"]["phase"] == "Pending"


def test_a_deleted_pod_gets_time_to_save(cluster: Embedded, tmp_path: Path) -> None:
    script = f"trap 'echo saved > {tmp_path}/saved; exit 143' TERM; touch {tmp_path}/up; " + (
        "while true; do sleep 0.05; done"
    )
    cluster.store.create(JOBS, "default", job(script))
    until(cluster, "pods", "job-master-0", lambda pod: pod["status"]["phase"] == "Running")
    while not (tmp_path / "up").exists():
        pass
    changes = cluster.store.subscribe()
    cluster.store.delete(JOBS, "default", "job")
    while changes.get(timeout=60)[:2] != ("DELETED", "pods"):
        pass
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_one_that_does_not_listen_is_killed(cluster: Embedded) -> None:
    made = job(
        "trap '' TERM; while true; do sleep 0.05; done", pod={"terminationGracePeriodSeconds": 1}
    )
    cluster.store.create(JOBS, "default", made)
    until(cluster, "pods", "job-master-0", lambda pod: pod["status"]["phase"] == "Running")
    changes = cluster.store.subscribe()
    cluster.store.delete(JOBS, "default", "job")
    while changes.get(timeout=60)[:2] != ("DELETED", "pods"):
        pass


def test_a_killed_container_is_told_by_its_signal(cluster: Embedded) -> None:
    made = job("exec sleep 3600", policy="Never")
    cluster.store.create(JOBS, "default", made)
    until(cluster, "pods", "job-master-0", lambda pod: pod["status"]["phase"] == "Running")
    cluster.controllers.kubelet.kill("default", "job-master-0", signal.SIGKILL)
    until(cluster, JOBS, "job", lambda found: condition(found, "Failed"))
    assert ended(pod_of(cluster, "job-master-0"))["exitCode"] == 137


def test_variables_come_from_secrets_and_fields(cluster: Embedded) -> None:
    secret = {"metadata": {"name": "s"}, "data": {"key": base64.b64encode(b"hush").decode()}}
    cluster.store.create("secrets", "default", secret)
    env = [
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "key"}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "BOTH", "value": "$(SECRET)-$(POD)-$$(X)"},
    ]
    script = 'test "$BOTH" = "hush-job-master-0-\\$(X)"'
    run(cluster, job(script, pod={"container": {"env": env}}))


def test_paths_are_rewritten_whole(tmp_path: Path) -> None:
    paths = Paths({"/mnt/a": tmp_path / "x", "/mnt/a/b": tmp_path / "y"})
    assert paths.here("--dir=/mnt/a/c:/mnt/a/b") == f"--dir={tmp_path}/x/c:{tmp_path}/y"
    assert paths.here("/mnt/ab /opt/mnt/a") == "/mnt/ab /opt/mnt/a"
    assert expand("$(A) $$(A) $(B)", {"A": "1"}) == "1 $(A) $(B)"


# ------------------------------------------------------------------------------------- TrainJob


def runtime(script: str, **job_spec: Any) -> Object:
    node = {
        "name": "node",
        "template": {
            "spec": {**job_spec, "template": template(script, "node", restartPolicy="Never")}
        },
    }
    return {"metadata": {"name": "job"}, "spec": {"template": {"spec": {"replicatedJobs": [node]}}}}


TRAINJOBS = "trainjobs.trainer.kubeflow.org"
TRAINJOB: Object = {
    "metadata": {"name": "job"},
    "spec": {
        "runtimeRef": {"kind": "TrainingRuntime", "name": "job"},
        "trainer": {"numNodes": 2, "numProcPerNode": 1, "env": [{"name": "X", "value": "1"}]},
    },
}


def test_a_train_job_runs_its_runtime_with_what_it_says(cluster: Embedded) -> None:
    script = "test $X = 1 && test $PET_NNODES = 2 && test $PET_NODE_RANK -lt 2"
    cluster.store.create("trainingruntimes.trainer.kubeflow.org", "default", runtime(script))
    run(cluster, TRAINJOB, "Complete", TRAINJOBS)
    pod = pod_of(cluster, "job-node-0-1")
    env = {item["name"]: item["value"] for item in pod["spec"]["containers"][0]["env"]}
    assert env["PET_MASTER_ADDR"] == "job-node-0-0.job" and env["PET_MASTER_PORT"] == "29500"
    assert pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == "1"


def test_a_train_job_fails_by_its_rules_and_not_before(cluster: Embedded, tmp_path: Path) -> None:
    rule = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [1]}}
    script = f"test -e {tmp_path}/once && exit 1; touch {tmp_path}/once; exit 137"
    made = runtime(script, podFailurePolicy={"rules": [rule]}, backoffLimit=4)
    cluster.store.create("trainingruntimes.trainer.kubeflow.org", "default", made)
    one = {**TRAINJOB, "spec": {**TRAINJOB["spec"], "trainer": {"numNodes": 1}}}
    failed = run(cluster, one, "Failed", TRAINJOBS)
    assert failed["status"]["failures"] == 1  # 137 was tried again
