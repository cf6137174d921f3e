"""What becomes of jobs in the embedded cluster: operators, scheduler, kubelet, processes.

The pods are small commands of the shell. Nothing is waited for by the clock: a test reads the
changes of the store until what it expects is there.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

import pytest

from hydra_trainer.embedded.control import RESOURCES, Family, find, holds
from hydra_trainer.embedded.kubelet import NODE, Kubelet
from hydra_trainer.embedded.operators import Controllers
from hydra_trainer.embedded.podlogs import log_file
from hydra_trainer.embedded.process import MARK
from hydra_trainer.embedded.quantities import amount
from hydra_trainer.embedded.refusals import ApiError
from hydra_trainer.embedded.rewriting import Paths, expand
from hydra_trainer.embedded.store import Store
from hydra_trainer.embedded.trainer import jobset_of
from hydra_trainer.embedded.training_operator import PyTorchJobs

from .conftest import REPOSITORY

Object = dict[str, Any]

PATIENCE = 30.0
"""Seconds until a test that waits for something has failed."""

FOREVER = "sleep 600"


class World:
    """A cluster without a server: a store, and all controllers."""

    def __init__(self, home: Path, **kubelet: Any) -> None:
        self.home = home
        self.store = Store(home)
        for name in ("default", "team"):
            if not self.store.records("namespaces", fields=f"metadata.name={name}")[0]:
                self.store.create("namespaces", "", {"metadata": {"name": name}})
        self.kubelet = Kubelet(self.store, home, back_off=0.01, **kubelet)
        self.controllers = Controllers(self.store, home, self.kubelet)
        self.controllers.start()

    def create(self, obj: Object) -> Object:
        resource = RESOURCES[obj["apiVersion"], obj["kind"]]
        return self.store.create(resource, obj["metadata"].get("namespace", "default"), obj)

    def get(self, resource: str, name: str) -> Object | None:
        try:
            return self.store.get(resource, "default", name)
        except ApiError:
            return None

    def until(self, resource: str, name: str, is_so: Callable[[Object], Any]) -> Object:
        """Return an object as soon as something is true of it."""
        return self.wait(lambda: (found := self.get(resource, name)) and is_so(found) and found)

    def wait(self, look: Callable[[], Any]) -> Any:
        """Return what is seen as soon as there is something; look after each change."""
        changes = self.store.subscribe()
        until = time.monotonic() + PATIENCE
        try:
            while not (found := look()):
                changes.get(timeout=max(0.0, until - time.monotonic()))
            return found
        except Empty:
            raise AssertionError(self.dump()) from None
        finally:
            self.store.unsubscribe(changes)

    def gone(self, resource: str, name: str) -> None:
        self.wait(lambda: self.get(resource, name) is None)

    def pod(self, name: str, phase: str) -> Object:
        return self.until("pods", name, lambda pod: pod["status"]["phase"] == phase)

    def running(self, name: str) -> Object:
        return self.until("pods", name, lambda pod: "running" in state(pod))

    def waiting(self, name: str, reason: str) -> Object:
        return self.until(
            "pods", name, lambda pod: state(pod).get("waiting", {}).get("reason") == reason
        )

    def ended(self, resource: str, name: str, kind: str) -> Object:
        return self.until(resource, name, lambda job: holds(job.get("status"), kind))

    def pods(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.store.list("pods")[0]]

    def log(self, pod: Object, restart: int = 0, container: str = "pytorch") -> str:
        """Return what a container said, without times."""
        lines = log_file(self.home, pod, container, restart).read_text().splitlines()
        return "\n".join(line.split(" ", 3)[3] for line in lines)

    def events(self, name: str) -> list[tuple[str, str]]:
        found, _ = self.store.list("events", fields=f"involvedObject.name={name}")
        return [(event["reason"], event["message"]) for event in found]

    def told(self, name: str, reason: str, words: str = "") -> str:
        """Wait for an event; return its message."""

        def look() -> str | None:
            said = [text for found, text in self.events(name) if found == reason and words in text]
            return said[0] if said else None

        return str(self.wait(look))

    def dump(self) -> str:
        kinds = ("pytorchjobs.kubeflow.org", "jobs.batch", "pods", "events")
        found = {kind: self.store.list(kind)[0] for kind in kinds}
        return json.dumps(found, indent=1)[-6000:]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "home")
    yield world
    world.controllers.stop(grace=0)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., World]]:
    """Make worlds with a kubelet as the test wants it; those of one test share a home."""
    made: list[World] = []

    def make(**kubelet: Any) -> World:
        made.append(World(tmp_path / "home", **kubelet))
        return made[-1]

    yield make
    for world in made:
        world.controllers.stop(grace=0)


def state(pod: Object, index: int = 0) -> Object:
    """Return the state of a pod's container; empty before the kubelet has seen it."""
    statuses = pod["status"].get("containerStatuses") or [{}, {}]
    return dict(statuses[index].get("state") or {})


def conditions(job: Object) -> dict[str, str]:
    return {one["type"]: one["status"] for one in job["status"].get("conditions") or ()}


def shell(script: str, name: str = "pytorch", **more: Any) -> Object:
    return {"name": name, "image": "image:1", "command": ["sh", "-c", script], **more}


def pod(name: str, *containers: Object, **spec: Any) -> Object:
    policy = {"restartPolicy": "Never", "containers": [*containers]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {**policy, **spec},
    }


def template(script: str, name: str = "pytorch", **spec: Any) -> Object:
    return {
        "metadata": {"labels": {"team": "a"}},
        "spec": {"containers": [shell(script, name)], **spec},
    }


def pytorchjob(
    name: str,
    master: str | None = None,
    worker: str | None = None,
    *,
    workers: int = 1,
    policy: str = "ExitCode",
    run: Object | None = None,
    labels: Object | None = None,
    **spec: Any,
) -> Object:
    roles = {}
    if master is not None:
        roles["Master"] = {"replicas": 1, "restartPolicy": policy, "template": template(master)}
    if worker is not None:
        roles["Worker"] = {"replicas": workers, "restartPolicy": policy}
        roles["Worker"]["template"] = template(worker)
    run = {"cleanPodPolicy": "Running", **(run or {})}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"nprocPerNode": "2", "runPolicy": run, "pytorchReplicaSpecs": roles, **spec},
    }


JOBS = "pytorchjobs.kubeflow.org"
TRAINJOBS = "trainjobs.trainer.kubeflow.org"
HYPERPOD = "hyperpodpytorchjobs.sagemaker.amazonaws.com"


def once(tmp_path: Path, code: int) -> str:
    """Return a script that ends with a code the first time, and well after that."""
    mark = tmp_path / "mark"
    return f"test -e {mark} || {{ touch {mark}; exit {code}; }}"


# ------------------------------------------------------------------------------------- PyTorchJob

MASTER = [
    ("PYTHONUNBUFFERED", "1"),
    ("MASTER_PORT", "23456"),
    ("PET_MASTER_PORT", "23456"),
    ("MASTER_ADDR", "job-master-0"),
    ("PET_MASTER_ADDR", "job-master-0"),
]
NNODES = ("PET_NNODES", "3")
ELASTIC = {"minReplicas": 1, "maxReplicas": 3, "maxRestarts": 5, "rdzvId": "x"}


def rank(number: str) -> list[tuple[str, str]]:
    return [("RANK", number), ("PET_NODE_RANK", number)]


@pytest.mark.parametrize(
    ("job", "name", "wanted"),
    [
        (
            pytorchjob("job", "", "", workers=2),
            "job-master-0",
            [*MASTER, ("WORLD_SIZE", "6"), *rank("0"), ("PET_NPROC_PER_NODE", "2"), NNODES],
        ),
        (
            pytorchjob("job", "", "", workers=2),
            "job-worker-1",
            [*MASTER, ("WORLD_SIZE", "6"), *rank("2"), ("PET_NPROC_PER_NODE", "2"), NNODES],
        ),
        (
            pytorchjob("job", "", "", workers=2, nprocPerNode="auto"),
            "job-worker-0",
            [*MASTER, ("WORLD_SIZE", "3"), *rank("1"), ("PET_NPROC_PER_NODE", "auto"), NNODES],
        ),
        (
            pytorchjob("job", None, "", workers=2, elasticPolicy=ELASTIC),
            "job-worker-1",
            [
                ("PYTHONUNBUFFERED", "1"),
                ("PET_NPROC_PER_NODE", "2"),
                ("PET_RDZV_ENDPOINT", "job-worker-0:23456"),
                ("PET_RDZV_BACKEND", "c10d"),
                ("PET_NNODES", "1:3"),
                ("PET_MAX_RESTARTS", "5"),
                ("PET_RDZV_ID", "x"),
            ],
        ),
        (
            pytorchjob("job", None, "", workers=2),
            "job-worker-1",
            [("PYTHONUNBUFFERED", "1"), ("PET_NPROC_PER_NODE", "2"), ("PET_NNODES", "2")],
        ),
    ],
    ids=["master", "worker", "auto", "elastic", "workers only"],
)
def test_the_operators_variables_come_after_the_users(
    world: World, job: Object, name: str, wanted: list[tuple[str, str]]
) -> None:
    own = {"name": "OWN", "value": "1"}
    for role in job["spec"]["pytorchReplicaSpecs"].values():
        role["template"]["spec"]["containers"][0]["env"] = [own]
    world.create(job)
    env = world.until("pods", name, bool)["spec"]["containers"][0]["env"]
    assert env[0] == own
    assert [(one["name"], one["value"]) for one in env[1:]] == wanted


def test_each_pod_has_the_operators_labels_and_a_service(world: World) -> None:
    world.create(pytorchjob("job", FOREVER, FOREVER))
    master, worker = world.running("job-master-0"), world.running("job-worker-0")
    front = "training.kubeflow.org/"
    common = {front + "job-name": "job", front + "operator-name": "pytorchjob-controller"}
    assert master["metadata"]["labels"] == {
        **common,
        front + "replica-type": "master",
        front + "replica-index": "0",
        front + "job-role": "master",
        "team": "a",
    }
    assert front + "job-role" not in worker["metadata"]["labels"]
    assert "initContainers" not in master["spec"]
    assert [one["name"] for one in worker["spec"]["initContainers"]] == ["init-pytorch"]
    assert (master["spec"]["restartPolicy"], master["spec"]["nodeName"]) == ("Never", NODE)
    service = world.until("services", "job-worker-0", bool)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["ports"][0]["port"] == 23456


def test_a_job_that_succeeds(world: World) -> None:
    world.create(pytorchjob("job", "true", "true"))
    job = world.ended(JOBS, "job", "Succeeded")
    assert next(iter(conditions(job).items())) == ("Created", "True")
    assert conditions(job).get("Running", "False") == "False"  # a pod may end before it is seen
    assert job["status"]["conditions"][-1]["reason"] == "PyTorchJobSucceeded"
    assert job["status"]["replicaStatuses"]["Master"]["succeeded"] == 1
    assert job["status"]["startTime"] <= job["status"]["completionTime"]
    # Of either pod: they end in any order.
    assert world.told("job", "ExitedWithCode").endswith("-0 exited with code 0")
    assert world.told("job", "PyTorchJobSucceeded") == "PyTorchJob job is successfully completed."


@pytest.mark.parametrize(
    ("clean", "left"),
    [("None", ["job-master-0", "job-worker-0"]), ("Running", ["job-master-0"]), ("All", [])],
)
def test_the_masters_success_is_the_jobs(world: World, clean: str, left: list[str]) -> None:
    world.create(pytorchjob("job", "true", FOREVER, run={"cleanPodPolicy": clean}))
    world.ended(JOBS, "job", "Succeeded")
    world.wait(lambda: world.pods() == left)
    if clean == "None":
        assert "running" in state(world.running("job-worker-0"))


def test_one_worker_is_enough_for_an_elastic_job_alone(world: World) -> None:
    script = f'test "$HOSTNAME" = {{}}-worker-0 || {FOREVER}'
    world.create(pytorchjob("e", None, script.format("e"), workers=2, elasticPolicy={}))
    world.create(pytorchjob("f", None, script.format("f"), workers=2))
    world.ended(JOBS, "e", "Succeeded")
    world.pod("f-worker-0", "Succeeded")
    job = world.until(
        JOBS, "f", lambda job: job["status"]["replicaStatuses"]["Worker"].get("succeeded")
    )
    assert conditions(job) == {"Created": "True", "Running": "True"}


@pytest.mark.parametrize("policy", ["OnFailure", "Always"])
def test_in_place_restarts_keep_the_pod(world: World, tmp_path: Path, policy: str) -> None:
    script = f"{once(tmp_path, 3)}; {FOREVER}"
    world.create(pytorchjob("job", script, policy=policy, run={"backoffLimit": 2}))
    pod = world.until("pods", "job-master-0", lambda pod: "running" in state(pod) and restarts(pod))
    status = pod["status"]["containerStatuses"][0]
    assert (status["restartCount"], status["lastState"]["terminated"]["exitCode"]) == (1, 3)
    assert not holds((world.get(JOBS, "job") or {})["status"], "Failed")


def restarts(pod: Object) -> int:
    return int((pod["status"].get("containerStatuses") or [{"restartCount": 0}])[0]["restartCount"])


def test_the_backoff_limit_counts_restarts_in_place(world: World) -> None:
    world.create(pytorchjob("job", "exit 1", policy="OnFailure", run={"backoffLimit": 2}))
    job = world.ended(JOBS, "job", "Failed")
    assert find(job["status"]["conditions"], "Failed") == {
        **(find(job["status"]["conditions"], "Failed") or {}),
        "reason": "PyTorchJobFailed",
        "message": "Job job has failed because it has reached the specified backoff limit",
    }
    world.gone("pods", "job-master-0")


def test_a_retryable_exit_code_makes_the_pod_anew_without_end(world: World, tmp_path: Path) -> None:
    """backoffLimit does not count pods that are made anew."""
    world.create(pytorchjob("job", once(tmp_path, 137), run={"backoffLimit": 1}))
    world.ended(JOBS, "job", "Succeeded")
    text = world.told("job", "PyTorchJobRestarting", "job job is")
    assert text == "job job is restarting because Master replica(s) failed."
    world.told("job", "SuccessfulDeletePod", "job-master-0")
    pods = [text for reason, text in world.events("job") if reason == "ExitedWithCode"]
    assert sorted(pods) == [
        "Pod: default.job-master-0 exited with code 0",
        "Pod: default.job-master-0 exited with code 137",
    ]


def test_a_permanent_exit_code_ends_the_job_and_leaves_no_completion_time(world: World) -> None:
    world.create(pytorchjob("job", FOREVER, "exit 2", run={"ttlSecondsAfterFinished": 0}))
    job = world.ended(JOBS, "job", "Failed")
    failed = find(job["status"]["conditions"], "Failed") or {}
    assert failed["message"] == 'job "job" is failing because "Worker" replica(s) failed.'
    world.gone("pods", "job-master-0")  # it ran: cleanPodPolicy Running
    assert world.pod("job-worker-0", "Failed")
    assert "completionTime" not in (world.get(JOBS, "job") or {})["status"]


def test_never_fails_with_the_first_pod(world: World) -> None:
    world.create(pytorchjob("job", "exit 137", policy="Never"))
    job = world.ended(JOBS, "job", "Failed")
    failed = find(job["status"]["conditions"], "Failed") or {}
    assert failed["message"] == "PyTorchJob job is failed because 1 Master replica(s) failed."
    assert job["status"]["completionTime"]


def test_a_jobs_time_to_live(world: World) -> None:
    world.create(pytorchjob("job", "true", run={"ttlSecondsAfterFinished": 0}))
    world.told("job", "PyTorchJobSucceeded")
    world.gone(JOBS, "job")
    world.gone("pods", "job-master-0")
    world.gone("services", "job-master-0")


def test_the_deadline_is_seen_at_the_next_event(world: World) -> None:
    """Here that is the start of the pod. No clock of the operator's own would ring."""
    world.create(pytorchjob("job", FOREVER, run={"activeDeadlineSeconds": 0}))
    job = world.ended(JOBS, "job", "Failed")
    failed = find(job["status"]["conditions"], "Failed") or {}
    assert failed["message"].endswith("it was active longer than specified deadline")
    later = world.create(pytorchjob("later", FOREVER, run={"activeDeadlineSeconds": 600}))
    assert PyTorchJobs(world.store, Family(world.store)).reconcile(later) is None


def test_suspending_takes_the_pods_away_and_resuming_makes_them_anew(world: World) -> None:
    world.create(pytorchjob("job", FOREVER, FOREVER, run={"cleanPodPolicy": "None"}))
    world.until(JOBS, "job", lambda job: holds(job.get("status"), "Running"))
    suspend(world, True)
    job = world.ended(JOBS, "job", "Suspended")
    assert conditions(job) == {"Created": "True", "Running": "False", "Suspended": "True"}
    world.wait(lambda: not world.pods() and not world.store.list("services")[0])
    suspend(world, False)
    job = world.until(JOBS, "job", lambda job: holds(job["status"], "Running"))
    assert conditions(job)["Suspended"] == "False"
    assert world.told("job", "PyTorchJobResumed") == "PyTorchJob job is resumed."


def suspend(world: World, value: bool, resource: str = JOBS, name: str = "job") -> None:
    def write(job: Object) -> None:
        spec = job["spec"] if resource == TRAINJOBS else job["spec"]["runPolicy"]
        spec["suspend"] = value

    world.store.change(resource, "default", name, write)


def test_a_deleted_job_takes_all_with_it(world: World) -> None:
    world.create(pytorchjob("job", FOREVER, FOREVER))
    world.running("job-worker-0")
    world.store.delete(JOBS, "default", "job")
    world.wait(lambda: not world.pods() and not world.store.list("services")[0])


def test_a_job_of_another_manager_is_left_alone(world: World) -> None:
    world.create(pytorchjob("other", "true", run={"managedBy": "kueue.x-k8s.io/multikueue"}))
    world.create(pytorchjob("job", "true"))
    world.ended(JOBS, "job", "Succeeded")
    assert "status" not in (world.get(JOBS, "other") or {})


# --------------------------------------------------------------------------------- Kubeflow Trainer


def runtime(script: str, **job: Any) -> Object:
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    spec = {**job, "template": template(script, "node", restartPolicy="Never")}
    replicated = {"name": "node", "template": {"metadata": {"labels": step}, "spec": spec}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": "job"},
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {}},
            "template": {"spec": {"replicatedJobs": [replicated]}},
        },
    }


def trainjob(nodes: int = 1, **spec: Any) -> Object:
    trainer = {"numNodes": nodes, "numProcPerNode": 2, "env": [{"name": "OWN", "value": "1"}]}
    reference = {"kind": "TrainingRuntime", "name": "job"}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "job", "uid": "u"},
        "spec": {"runtimeRef": reference, "trainer": trainer, **spec},
    }


def batch_pods(world: World) -> list[Object]:
    found, _ = world.store.list("pods", labels="batch.kubernetes.io/job-name=job-node-0")
    return sorted(found, key=lambda pod: pod["spec"]["hostname"])


def test_a_trainjob_becomes_a_jobset_a_job_and_pods(world: World) -> None:
    world.create(runtime("env; test $PET_NODE_RANK = $JOB_COMPLETION_INDEX"))
    world.create(trainjob(2))
    job = world.ended(TRAINJOBS, "job", "Complete")
    complete = find(job["status"]["conditions"], "Complete") or {}
    assert (complete["reason"], complete["message"]) == (
        "AllJobsCompleted",
        "jobset completed successfully",
    )
    counts = {"ready": 0, "succeeded": 1, "failed": 0, "active": 0, "suspended": 0}
    world.until(
        TRAINJOBS, "job", lambda job: job["status"]["jobsStatus"] == [{"name": "node", **counts}]
    )
    first, second = batch_pods(world)
    assert first["metadata"]["name"].startswith("job-node-0-0-")
    assert (second["spec"]["hostname"], second["spec"]["subdomain"]) == ("job-node-0-1", "job")
    labels = second["metadata"]["labels"]
    assert labels["jobset.sigs.k8s.io/jobset-name"] == "job"
    assert labels["jobset.sigs.k8s.io/replicatedjob-name"] == "node"
    assert labels["batch.kubernetes.io/job-completion-index"] == "1"
    assert labels["team"] == "a"
    env = [(one["name"], one.get("value")) for one in second["spec"]["containers"][0]["env"]]
    assert env == [
        ("OWN", "1"),
        ("PET_NNODES", "2"),
        ("PET_NPROC_PER_NODE", "2"),
        ("PET_NODE_RANK", None),
        ("PET_MASTER_ADDR", "job-node-0-0.job"),
        ("PET_MASTER_PORT", "29500"),
        ("JOB_COMPLETION_INDEX", None),
    ]
    assert "PET_NODE_RANK=1" in world.log(second, container="node").splitlines()
    batch = world.get("jobs.batch", "job-node-0") or {}
    assert (batch["status"]["succeeded"], batch["status"]["completedIndexes"]) == (2, "0,1")
    assert world.get("services", "job")


PERMANENT = {"containerName": "node", "operator": "In", "values": [1, 2]}
RULES = {"rules": [{"action": "FailJob", "onExitCodes": PERMANENT}]}


def test_a_pod_failure_policy_tells_permanent_exit_codes(world: World) -> None:
    world.create(runtime("exit 2", podFailurePolicy=RULES))
    world.create(trainjob())
    job = world.ended(TRAINJOBS, "job", "Failed")
    failed = find(job["status"]["conditions"], "Failed") or {}
    assert (failed["reason"], failed["message"]) == (
        "FailedJobs",
        "jobset failed due to one or more job failures (first failed job: job-node-0)",
    )
    batch = world.get("jobs.batch", "job-node-0") or {}
    (pod,) = batch_pods(world)
    why = find(batch["status"]["conditions"], "Failed") or {}
    assert (why["reason"], why["message"]) == (
        "PodFailurePolicy",
        f"Container node for pod default/{pod['metadata']['name']} failed with exit code 2 "
        "matching FailJob rule at index 0",
    )


def test_other_pods_are_replaced_up_to_the_backoff_limit(world: World) -> None:
    world.create(runtime("exit 137", podFailurePolicy=RULES, backoffLimit=2))
    world.create(trainjob())
    world.ended(TRAINJOBS, "job", "Failed")
    batch = world.get("jobs.batch", "job-node-0") or {}
    assert batch["status"]["failed"] == len(batch_pods(world)) == 3
    assert (find(batch["status"]["conditions"], "Failed") or {})["reason"] == "BackoffLimitExceeded"


def test_a_failure_policy_starts_all_jobs_again(world: World, tmp_path: Path) -> None:
    made = runtime(once(tmp_path, 5), backoffLimit=0)
    made["spec"]["template"]["spec"]["failurePolicy"] = {"maxRestarts": 1}
    world.create(made)
    world.create(trainjob())
    world.ended(TRAINJOBS, "job", "Complete")
    jobset = world.get("jobsets.jobset.x-k8s.io", "job") or {}
    assert (jobset["status"]["restarts"], jobset["status"]["terminalState"]) == (1, "Completed")
    (pod,) = batch_pods(world)
    assert pod["metadata"]["labels"]["jobset.sigs.k8s.io/restart-attempt"] == "1"


def test_a_trainjob_is_suspended_and_goes_on(world: World) -> None:
    world.create(runtime("true"))
    world.create(trainjob(suspend=True))
    job = world.ended(TRAINJOBS, "job", "Suspended")
    world.until("jobs.batch", "job-node-0", lambda job: holds(job.get("status"), "Suspended"))
    assert not world.pods()
    suspend(world, False, TRAINJOBS)
    job = world.ended(TRAINJOBS, "job", "Complete")
    assert conditions(job) == {"Suspended": "False", "Complete": "True"}


def test_the_deadline_of_a_trainjob(world: World) -> None:
    world.create(runtime(FOREVER))
    world.create(trainjob(activeDeadlineSeconds=1))
    job = world.ended(TRAINJOBS, "job", "Failed")
    assert (find(job["status"]["conditions"], "Failed") or {})["reason"] == "DeadlineExceeded"
    world.gone("jobsets.jobset.x-k8s.io", "job")
    world.wait(lambda: not world.pods())


def test_a_trainjob_waits_for_its_runtime(world: World) -> None:
    world.create(trainjob())
    world.told("job", "TrainJobResourcesCreationFailed", "not found")
    world.create(runtime("true"))
    world.ended(TRAINJOBS, "job", "Complete")


def test_pods_of_a_job_that_is_deleted_go(world: World) -> None:
    world.create(runtime(FOREVER))
    world.create(trainjob())
    world.wait(lambda: any("running" in state(pod) for pod in batch_pods(world)))
    world.store.delete(TRAINJOBS, "default", "job")
    world.wait(lambda: not world.pods() and not world.store.list("jobs.batch")[0])


POD_CHANGES = {
    "volumes": [{"name": "data", "emptyDir": {}}],
    "nodeSelector": {"zone": "a"},
    "containers": [{"name": "node", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
}
PATCH = {
    "replicatedJobs": [{"name": "node", "template": {"spec": {"template": {"spec": POD_CHANGES}}}}]
}


@pytest.mark.parametrize(
    "override",
    [
        {"runtimePatches": [{"trainingRuntimeSpec": {"template": {"spec": PATCH}}}]},
        {"podTemplateOverrides": [{"targetJobs": [{"name": "node"}], "spec": POD_CHANGES}]},
        {"podSpecOverrides": [{"targetJobs": [{"name": "node"}], **POD_CHANGES}]},
    ],
    ids=["2.2", "2.1", "2.0"],
)
def test_each_version_of_the_trainer_has_its_field_for_pods(override: Object) -> None:
    made = jobset_of(trainjob(**override), runtime("true"))
    spec = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"zone": "a"}
    assert spec["volumes"] == POD_CHANGES["volumes"]
    (container,) = spec["containers"]
    assert container["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert container["command"] == ["sh", "-c", "true"]


@pytest.mark.parametrize(
    ("resources", "processes"),
    [
        (None, "auto"),
        ({"limits": {"nvidia.com/gpu": "8", "cpu": "4"}}, "auto"),
        ({"limits": {"memory": "1Gi"}, "requests": {"cpu": "4"}}, "1"),
        ({"requests": {"cpu": "4"}}, "4"),
    ],
)
def test_processes_that_nobody_set(resources: Object | None, processes: str) -> None:
    """Without GPUs a node has as many processes as CPUs were asked for."""
    job = trainjob()
    job["spec"]["trainer"] = {"numNodes": 1}
    if resources:
        job["spec"]["trainer"]["resourcesPerNode"] = resources
    spec = jobset_of(job, runtime("true"))["spec"]["replicatedJobs"][0]["template"]["spec"]
    env = {
        one["name"]: one.get("value") for one in spec["template"]["spec"]["containers"][0]["env"]
    }
    assert env["PET_NPROC_PER_NODE"] == processes


def test_a_runtime_comes_with_the_trainer(world: World) -> None:
    found = world.store.get("clustertrainingruntimes.trainer.kubeflow.org", "", "torch-distributed")
    assert found["metadata"]["labels"] == {"trainer.kubeflow.org/framework": "torch"}


# ----------------------------------------------------------------------------------------- HyperPod


def hyperpod(script: str, **run: Any) -> Object:
    return {
        "apiVersion": "sagemaker.amazonaws.com/v1",
        "kind": "HyperPodPyTorchJob",
        "metadata": {"name": "job"},
        "spec": {
            "nprocPerNode": "2",
            "runPolicy": {"cleanPodPolicy": "OnlyComplete", **run},
            "replicaSpecs": [{"name": "pod", "replicas": 2, "template": template(script)}],
        },
    }


def test_a_hyperpod_job(world: World, tmp_path: Path) -> None:
    script = f'test "$PET_NODE_RANK" = 1 || {{ {once(tmp_path, 1)}; }}; env'
    world.create(hyperpod(script, jobMaxRetryCount=1))
    job = world.ended(HYPERPOD, "job", "Completed")
    assert job["status"]["restartCount"] == 1
    assert conditions(job).get("Running", "False") == "False"  # a pod may end before it is seen
    pod = world.pod("job-pod-1", "Succeeded")
    said = world.log(pod).splitlines()
    for line in ("PET_NNODES=2", "PET_NODE_RANK=1", "PET_NPROC_PER_NODE=2"):
        assert line in said


def test_a_hyperpod_job_is_retried_so_often(world: World) -> None:
    world.create(hyperpod("exit 1", jobMaxRetryCount=2))
    job = world.ended(HYPERPOD, "job", "Failed")
    assert job["status"]["restartCount"] == 2
    assert "was retried 2 times" in (find(job["status"]["conditions"], "Failed") or {})["message"]


# -------------------------------------------------------------------------------------------- Kueue

QUEUES = "localqueues.kueue.x-k8s.io"
QUEUED = {"kueue.x-k8s.io/queue-name": "team-queue"}


def queue(policy: str = "None") -> Object:
    return {
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "LocalQueue",
        "metadata": {"name": "team-queue"},
        "spec": {"clusterQueue": "all", "stopPolicy": policy},
    }


def test_a_job_waits_for_its_queue(world: World) -> None:
    job = world.create(pytorchjob("job", "true", labels=QUEUED))
    world.ended(JOBS, "job", "Suspended")
    label = f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"
    (workload,) = world.store.list("workloads.kueue.x-k8s.io", labels=label)[0]
    reserved = find(workload["status"]["conditions"], "QuotaReserved") or {}
    assert (reserved["status"], reserved["reason"], reserved["message"]) == (
        "False",
        "Inadmissible",
        "LocalQueue team-queue doesn't exist",
    )
    assert not world.pods()
    world.create(queue())
    world.ended(JOBS, "job", "Succeeded")
    name = workload["metadata"]["name"]
    workload = world.ended("workloads.kueue.x-k8s.io", name, "Finished")
    assert conditions(workload)["Admitted"] == "True"
    assert world.told("job", "Started") == "Admitted by clusterQueue all"


def test_a_queue_on_hold_takes_no_job_and_lets_none_go(world: World) -> None:
    world.create(queue())
    world.create(pytorchjob("job", FOREVER, labels=QUEUED))
    world.running("job-master-0")
    stop(world, "Hold")
    world.create(pytorchjob("late", FOREVER, labels=QUEUED))
    world.ended(JOBS, "late", "Suspended")
    told = world.until(QUEUES, "team-queue", lambda q: q["status"]["pendingWorkloads"])
    assert told["status"]["admittedWorkloads"] == 1
    assert "running" in state(world.running("job-master-0"))
    stop(world, "HoldAndDrain")
    world.ended(JOBS, "job", "Suspended")
    world.gone("pods", "job-master-0")
    stop(world, "None")
    world.running("job-master-0")
    world.running("late-master-0")


def stop(world: World, policy: str) -> None:
    def write(found: Object) -> None:
        found["spec"]["stopPolicy"] = policy

    world.store.change(QUEUES, "default", "team-queue", write)


@pytest.mark.parametrize(
    ("resource", "job"), [(TRAINJOBS, trainjob()), (HYPERPOD, hyperpod("true"))]
)
def test_kueue_knows_the_other_jobs(world: World, resource: str, job: Object) -> None:
    world.create(runtime("true"))
    world.create({**job, "metadata": {"name": "job", "labels": QUEUED}})
    world.ended(resource, "job", "Suspended")
    assert not world.pods()
    world.create(queue())
    world.ended(resource, "job", "Complete" if resource == TRAINJOBS else "Completed")


# ---------------------------------------------------------------------------------------- scheduler


def asking(name: str, **limits: str) -> Object:
    wanted = {key.replace("_", "/"): value for key, value in limits.items()}
    return pod(name, shell(FOREVER, resources={"limits": wanted}))


AFTER = (
    " no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not "
    "helpful for scheduling."
)


def test_a_pod_waits_for_gpus(make: Callable[..., World]) -> None:
    world = make(capacity={"nvidia.com/gpu": 8})
    world.create(asking("one", **{"nvidia.com_gpu": "6"}))
    world.running("one")
    world.create(asking("two", **{"nvidia.com_gpu": "4"}))
    text = world.told("two", "FailedScheduling")
    assert text == f"0/1 nodes are available: 1 Insufficient nvidia.com/gpu.{AFTER}"
    two = world.get("pods", "two") or {}
    scheduled = find(two["status"]["conditions"], "PodScheduled") or {}
    assert (scheduled["reason"], scheduled["message"]) == ("Unschedulable", text)
    assert (two["status"]["phase"], "nodeName" in two["spec"]) == ("Pending", False)
    world.store.delete("pods", "default", "one")
    world.running("two")


def test_a_machine_has_no_gpus_unless_told(world: World) -> None:
    world.create(pytorchjob("job", FOREVER))
    world.running("job-master-0")  # CPU and memory are not counted
    world.create(asking("large", cpu="500", memory="4Ti"))
    world.running("large")
    world.create(asking("gpu", **{"nvidia.com_gpu": "1"}))
    assert "1 Insufficient nvidia.com/gpu" in world.told("gpu", "FailedScheduling")


@pytest.mark.parametrize(
    ("node", "spec", "words"),
    [
        ({"spec": {"unschedulable": True}}, {}, "1 node(s) were unschedulable"),
        (
            {"spec": {"taints": [{"key": "spot", "value": "yes", "effect": "NoSchedule"}]}},
            {"tolerations": [{"key": "spot", "operator": "Equal", "value": "no"}]},
            "1 node(s) had untolerated taint {spot: yes}",
        ),
        (
            {"metadata": {"labels": {"kind": "a"}}},
            {"nodeSelector": {"kind": "b", "zone": "any"}},
            "1 node(s) didn't match Pod's node affinity/selector",
        ),
        ({"status": {"allocatable": {"cpu": "1"}}}, {"cpu": "1500m"}, "1 Insufficient cpu"),
        ({"status": {"allocatable": {"pods": "0"}}}, {}, "1 Too many pods"),
    ],
    ids=["cordon", "taint", "selector", "cpu", "pods"],
)
def test_the_schedulers_words(world: World, node: Object, spec: Object, words: str) -> None:
    def change(found: Object) -> None:
        for part, values in node.items():
            found.setdefault(part, {}).update(values)

    before = world.store.get("nodes", "", NODE)
    world.store.change("nodes", "", NODE, change)
    spec = dict(spec)
    resources = {"requests": {"cpu": spec.pop("cpu")}} if "cpu" in spec else {}
    world.create(pod("p", shell(FOREVER, resources=resources), **spec))
    assert world.told("p", "FailedScheduling") == f"0/1 nodes are available: {words}.{AFTER}"
    world.store.change("nodes", "", NODE, lambda found: found.update(**without(before)))
    world.running("p")


def without(node: Object) -> Object:
    return {key: value for key, value in node.items() if key != "metadata"} | {
        "metadata": {**node["metadata"], "labels": {}}
    }


def claiming(name: str) -> Object:
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]
    mounts = [{"name": "data", "mountPath": "/data"}]
    return pod("p", shell("echo 1 > /data/file", volumeMounts=mounts), volumes=volumes)


def test_a_claim_that_is_not_there(make: Callable[..., World]) -> None:
    world = make(claims=["other"])
    world.create(claiming("data"))
    text = world.told("p", "FailedScheduling")
    assert text == f'0/1 nodes are available: persistentvolumeclaim "data" not found.{AFTER}'
    claim = {"metadata": {"name": "data"}, "spec": {}, "status": {"phase": "Pending"}}
    world.store.create("persistentvolumeclaims", "default", claim)
    world.told("p", "FailedScheduling", "pod has unbound immediate PersistentVolumeClaims")
    world.store.change(
        "persistentvolumeclaims",
        "default",
        "data",
        lambda found: found["status"].update(phase="Bound"),
    )
    world.pod("p", "Succeeded")


def test_any_claim_is_a_folder(world: World) -> None:
    world.create(claiming("data"))
    world.pod("p", "Succeeded")
    assert (world.home / "volumes" / "data" / "file").read_text() == "1\n"


# ------------------------------------------------------------------------------ what a pod is given


def test_a_config_map_that_comes_later(world: World) -> None:
    volumes = [
        {"name": "code", "configMap": {"name": "code"}},
        {"name": "key", "secret": {"secretName": "key", "items": [{"key": "a", "path": "b/c"}]}},
    ]
    mounts = [
        {"name": "code", "mountPath": "/code/", "readOnly": True},
        {"name": "key", "mountPath": "/key"},
    ]
    script = "cat /code/main.sh /code/data.bin /key/b/c"
    world.create(pod("p", shell(script, volumeMounts=mounts), volumes=volumes))
    text = world.told("p", "FailedMount")
    assert text == 'MountVolume.SetUp failed for volume "code" : configmap "code" not found'
    waiting = world.until("pods", "p", state)
    assert state(waiting) == {"waiting": {"reason": "ContainerCreating"}}
    config = {"metadata": {"name": "code"}, "data": {"main.sh": "one\n"}}
    config["binaryData"] = {"data.bin": "dHdvCg=="}
    world.store.create("configmaps", "default", config)
    world.told("p", "FailedMount", 'secret "key" not found')
    world.store.create(
        "secrets", "default", {"metadata": {"name": "key"}, "data": {"a": "dGhyZWU="}}
    )
    assert world.log(world.pod("p", "Succeeded")) == "one\ntwo\nthree"


def test_the_environment_of_a_container(world: World) -> None:
    world.store.create("secrets", "default", {"metadata": {"name": "s"}, "data": {"k": "djE="}})
    config = {"metadata": {"name": "c"}, "data": {"k": "v2"}}
    world.store.create("configmaps", "default", config)

    def taken(key: str, **source: Any) -> Object:
        return {"name": key, "valueFrom": source}

    env = [
        {"name": "A", "value": "a b"},
        {"name": "B", "value": "$(A) $$(A) $(NO)"},
        taken("SECRET", secretKeyRef={"name": "s", "key": "k"}),
        taken("CONFIG", configMapKeyRef={"name": "c", "key": "k"}),
        taken("ABSENT", secretKeyRef={"name": "none", "key": "k", "optional": True}),
        taken("POD", fieldRef={"fieldPath": "metadata.name"}),
        taken("LABEL", fieldRef={"fieldPath": "metadata.labels['a.b/c']"}),
        taken("CPU", resourceFieldRef={"resource": "limits.cpu"}),
        {"name": "PET_MASTER_ADDR", "value": "elsewhere"},
        {"name": "A", "value": "again"},
    ]
    more: Object = {"env": env, "envFrom": [{"prefix": "P_", "configMapRef": {"name": "c"}}]}
    made = pod("p", shell("env | sort; echo $(A)", resources={"limits": {"cpu": "1500m"}}, **more))
    made["metadata"]["labels"] = {"a.b/c": "label"}
    world.create(made)
    found = world.pod("p", "Succeeded")
    *lines, last = world.log(found).splitlines()
    said = dict(line.split("=", 1) for line in lines)
    wanted = {
        "A": "again",
        "B": "a b $(A) $(NO)",
        "SECRET": "v1",
        "CONFIG": "v2",
        "P_k": "v2",
        "POD": "p",
        "HOSTNAME": "p",
        "LABEL": "label",
        "CPU": "2",
        "PET_MASTER_ADDR": "127.0.0.1",
    }
    assert {key: said.get(key) for key in wanted} == wanted
    assert last == "again" and "ABSENT" not in said
    assert not {"HOME", "USER", "VIRTUAL_ENV", "PYTEST_CURRENT_TEST"} & said.keys()


def test_a_secret_that_is_not_there_keeps_the_container_from_starting(world: World) -> None:
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    world.create(pod("p", shell("true", env=[{"name": "S", "valueFrom": source}])))
    assert world.told("p", "Failed") == 'Error: secret "s" not found'
    world.waiting("p", "CreateContainerConfigError")
    world.store.create("secrets", "default", {"metadata": {"name": "s"}, "data": {}})
    world.told("p", "Failed", "couldn't find key k in Secret default/s")
    world.store.change("secrets", "default", "s", lambda found: found.update(data={"k": "dg=="}))
    world.pod("p", "Succeeded")


def test_paths_are_those_of_this_machine(world: World, tmp_path: Path) -> None:
    volumes = [
        {"name": "here", "hostPath": {"path": str(tmp_path / "new"), "type": "DirectoryOrCreate"}},
        {"name": "work", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
    ]
    mounts = [
        {"name": "here", "mountPath": "/mnt/data", "subPath": "inner"},
        {"name": "work", "mountPath": "/mnt"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    script = (
        "echo /mnt/data /mnt/database /x/mnt/data /dev/shm; pwd; echo $OUT; "
        "echo 1 > $OUT/file; echo 2 > /mnt/file"
    )
    env = [{"name": "OUT", "value": "/mnt/data"}]
    container = shell(script, env=env, volumeMounts=mounts, workingDir="/mnt")
    found = world.create(pod("p", container, volumes=volumes))
    inner, work = tmp_path / "new" / "inner", world.home / "pods" / found["metadata"]["uid"]
    mnt = work / "volumes" / "work"
    lines = world.log(world.pod("p", "Succeeded")).splitlines()
    assert lines == [f"{inner} {mnt}/database /x/mnt/data /dev/shm", str(mnt), str(inner)]
    assert (inner / "file").read_text() == "1\n" and (mnt / "file").read_text() == "2\n"
    world.store.delete("pods", "default", "p")
    world.create(pod("q", shell("true")))
    world.pod("q", "Succeeded")
    assert not work.exists()  # an emptyDir goes with its pod


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("$(A)", "1"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$(B) $A ${A} $(", "$(B) $A ${A} $("),
        ("$(A)$(A)", "11"),
    ],
)
def test_references_are_filled_in_as_kubernetes_does(text: str, wanted: str) -> None:
    assert expand(text, {"A": "1"}) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/a", "X"),
        ("--out=/a/b:/a/c/d", "--out=Y:X/c/d"),
        ("/ab /a.b s3://a/a /c/a", "/ab /a.b s3://a/a /c/a"),
        ("'/a' \"/a/b\"", "'X' \"Y\""),
    ],
)
def test_only_whole_paths_are_rewritten(text: str, wanted: str) -> None:
    assert Paths({"/a/": Path("X"), "/a/b": Path("Y")}).here(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"), [("2", 2), ("500m", 0.5), ("1Ki", 1024), ("1.5M", 1.5e6), ("1e3", 1000)]
)
def test_quantities(text: str, wanted: float) -> None:
    assert float(amount(text)) == wanted
    with pytest.raises(ValueError, match="no quantity"):
        amount("much")


# ------------------------------------------------------------------------------- how containers end


def terminated(found: Object, index: int = 0) -> Object:
    return dict(state(found, index)["terminated"])


def test_exit_codes_and_reasons(world: World) -> None:
    world.create(pod("p", shell("true", "a"), shell("exit 3", "b"), shell("kill -9 $$$$", "c")))
    found = world.pod("p", "Failed")
    ends = [terminated(found, index) for index in range(3)]
    assert [(end["exitCode"], end["reason"]) for end in ends] == [
        (0, "Completed"),
        (3, "Error"),
        (137, "Error"),
    ]
    ready = find(found["status"]["conditions"], "Ready") or {}
    assert (ready["status"], ready["reason"]) == ("False", "PodFailed")


def test_a_kill_from_outside(world: World) -> None:
    world.create(pod("p", shell(FOREVER)))
    world.running("p")
    world.kubelet.kill("default", "p", reason="OOMKilled")
    end = terminated(world.pod("p", "Failed"))
    assert (end["exitCode"], end["reason"]) == (137, "OOMKilled")
    with pytest.raises(ApiError):
        world.kubelet.kill("default", "none")


@pytest.mark.parametrize(
    ("script", "policy", "wanted"),
    [
        ("echo told > /dev/termination-log; echo log; exit 1", "FallbackToLogsOnError", "told\n"),
        ("echo one; echo two; exit 1", "FallbackToLogsOnError", "one\ntwo\n"),
        ("echo log; exit 1", "File", ""),
        ("echo log", "FallbackToLogsOnError", ""),
        ("printf %05000d 0 > /dev/termination-log", "File", "0" * 4096),
        ("seq 100; exit 1", "FallbackToLogsOnError", "".join(f"{n}\n" for n in range(21, 101))),
        ("printf %09000d 0; exit 1", "FallbackToLogsOnError", "0" * 2047 + "\n"),
    ],
    ids=["file", "fallback", "no fallback", "success", "4096 bytes", "80 lines", "2048 bytes"],
)
def test_the_termination_message(world: World, script: str, policy: str, wanted: str) -> None:
    world.create(pod("p", shell(script, terminationMessagePolicy=policy)))
    found = world.until("pods", "p", lambda found: "terminated" in state(found))
    assert terminated(found).get("message", "") == wanted


def test_a_command_that_does_not_exist(world: World) -> None:
    command = {"name": "pytorch", "image": "image:1", "command": ["no-such-program"]}
    world.create(pod("p", command))
    end = terminated(world.pod("p", "Failed"))
    assert (end["exitCode"], end["reason"]) == (128, "StartError")
    assert 'exec: "no-such-program": executable file not found in $PATH' in end["message"]


def test_a_container_without_a_command_says_why_it_waits(world: World) -> None:
    world.create(pod("p", {"name": "pytorch", "image": "image:1"}))
    found = world.waiting("p", "CreateContainerConfigError")
    assert "the container needs a command" in state(found)["waiting"]["message"]


def test_an_image_that_is_not_there(world: World) -> None:
    world.create(pod("p", shell("true") | {"image": "no-such-image:1"}, shell(FOREVER, "b")))
    found = world.waiting("p", "ImagePullBackOff")
    assert state(found)["waiting"]["message"] == 'Back-off pulling image "no-such-image:1"'
    text = world.told("p", "Failed", "Failed to pull")
    assert text.startswith('Failed to pull image "no-such-image:1": ')
    assert "running" in state(world.until("pods", "p", lambda p: "running" in state(p, 1)), 1)
    world.store.delete("pods", "default", "p")
    world.gone("pods", "p")


def test_a_container_that_fails_again_and_again_is_held_back(world: World) -> None:
    world.create(pod("p", shell("exit 1"), restartPolicy="Always"))
    looping = world.waiting("p", "CrashLoopBackOff")
    assert looping["status"]["phase"] == "Running"
    assert looping["status"]["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 1
    world.told("p", "BackOff", "Back-off restarting failed container pytorch in pod p_default(")
    assert world.until("pods", "p", lambda p: restarts(p) > 3)


def test_init_containers_come_first(world: World, tmp_path: Path) -> None:
    mark = f"{tmp_path}/order"
    first = shell(f"echo first >> {mark}", "first")
    again = shell(f"{once(tmp_path, 1)}; echo second >> {mark}", "second")
    waits = shell("exit 1", "init-pytorch")
    world.create(
        pod(
            "p",
            shell(f"cat {mark}"),
            initContainers=[first, again, waits],
            restartPolicy="OnFailure",
        )
    )
    found = world.pod("p", "Succeeded")
    assert world.log(found) == "first\nsecond"
    assert [one["restartCount"] for one in found["status"]["initContainerStatuses"]] == [0, 1, 0]
    world.create(pod("q", shell("true"), initContainers=[shell("exit 4", "first")]))
    failed = world.pod("q", "Failed")
    assert state(failed) == {"waiting": {"reason": "PodInitializing"}}


def test_the_log_is_what_the_runtime_writes(world: World) -> None:
    world.create(pod("p", shell("echo one; echo two >&2; printf three")))
    found = world.pod("p", "Succeeded")
    assert world.log(found) == "one\ntwo\nthree"
    lines = log_file(world.home, found, "pytorch", 0).read_text().splitlines()
    stamps = [line.split(" ")[0] for line in lines]
    assert stamps == sorted(stamps)
    assert all(len(one) == 30 and one.endswith("Z") for one in stamps)
    world.create(pod("q", shell("printf %020000d 0; echo")))
    parts = log_file(world.home, world.pod("q", "Succeeded"), "pytorch", 0).read_text()
    assert [line.split(" ")[2] for line in parts.splitlines()] == ["P", "F"]


# ------------------------------------------------------------------------------------ how pods end

STUBBORN = "trap 'echo asked' TERM; echo ready; while true; do sleep 0.01; done"
POLITE = "trap 'echo saved; exit 143' TERM; echo ready; while true; do sleep 0.01; done"


def ready(world: World, name: str) -> Object:
    """Wait until a pod has said that it is ready."""
    found = world.running(name)
    follow = log_file(world.home, found, "pytorch", 0)
    until = time.monotonic() + PATIENCE
    while "ready" not in (follow.read_text() if follow.exists() else ""):
        assert time.monotonic() < until, world.dump()
        select.select([], [], [], 0.005)
    return found


def test_a_deleted_pod_may_save(world: World) -> None:
    world.create(pod("p", shell(POLITE)))
    ready(world, "p")
    seen = world.store.subscribe()
    world.store.delete("pods", "default", "p")
    world.gone("pods", "p")
    last = [obj for kind, what, obj in drained(seen) if what == "pods" and kind == "MODIFIED"][-1]
    assert terminated(last)["exitCode"] == 143
    assert last["status"]["phase"] == "Failed"
    assert ("Killing", "Stopping container pytorch") in world.events("p")


def drained(changes: Any) -> Iterator[tuple[str, str, Object]]:
    while True:
        try:
            yield changes.get_nowait()
        except Empty:
            return


def test_the_grace_period_ends_in_sigkill(world: World) -> None:
    world.create(pod("p", shell(STUBBORN), terminationGracePeriodSeconds=1))
    found = ready(world, "p")
    seen = world.store.subscribe()
    world.store.delete("pods", "default", "p")
    world.gone("pods", "p")
    last = [obj for kind, what, obj in drained(seen) if what == "pods" and kind == "MODIFIED"][-1]
    assert terminated(last)["exitCode"] == 137
    assert not (world.home / "pods" / found["metadata"]["uid"]).exists()


def test_a_second_delete_shortens_the_grace_period(world: World) -> None:
    world.create(pod("p", shell(STUBBORN), terminationGracePeriodSeconds=600))
    ready(world, "p")
    world.store.delete("pods", "default", "p")
    world.told("p", "Killing")
    world.store.delete("pods", "default", "p", grace=0)
    world.gone("pods", "p")


def test_all_processes_end_with_the_first(world: World, tmp_path: Path) -> None:
    """As in a container, even those with a session of their own, as torchrun's ranks are."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = f"setsid sh -c 'trap \"\" TERM; echo up > {pipe}; exec 9> {pipe}; sleep 600' & wait"
    world.create(pod("p", shell(script)))
    with pipe.open("rb") as held:
        assert held.readline() == b"up\n"
        world.kubelet.kill("default", "p", signal.SIGTERM)
        world.pod("p", "Failed")
        assert is_closed(held)


def is_closed(stream: Any) -> bool:
    """Wait until nobody holds the other end of a pipe."""
    readable, _, _ = select.select([stream], [], [], PATIENCE)
    return bool(readable) and stream.read(1) == b""


def test_a_drained_node_lets_its_pods_save_and_the_operator_makes_them_anew(world: World) -> None:
    world.create(pytorchjob("job", POLITE))
    first = ready(world, "job-master-0")
    seen = world.store.subscribe()
    world.kubelet.drain()
    second = world.until(
        "pods", "job-master-0", lambda p: p["metadata"]["uid"] != first["metadata"]["uid"]
    )
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    old = [
        obj
        for kind, what, obj in drained(seen)
        if kind == "MODIFIED" and obj["metadata"].get("uid") == first["metadata"]["uid"]
    ]
    target = find(old[-1]["status"]["conditions"], "DisruptionTarget") or {}
    assert target["reason"] == "EvictionByEvictionAPI"
    assert terminated(old[-1])["exitCode"] == 143
    assert not holds((world.get(JOBS, "job") or {})["status"], "Failed")


def test_only_the_pods_of_a_node_are_drained(world: World) -> None:
    world.store.create("nodes", "", {"metadata": {"name": "other"}, "status": {}})
    for name in ("a", "b"):
        world.create(pod(name, shell(FOREVER)))
    nodes = {name: world.running(name)["spec"]["nodeName"] for name in ("a", "b")}
    assert {*nodes.values()} == {NODE, "other"}
    gone, stays = sorted(nodes, key=lambda name: nodes[name] != "other")
    world.kubelet.drain("other")
    world.gone("pods", gone)
    assert "running" in state(world.running(stays))


def test_a_pod_that_is_evicted_stays_as_failed_and_is_replaced(world: World) -> None:
    world.create(pod("p", shell(FOREVER)))
    world.running("p")
    world.kubelet.evict("default", "p", "The node was low on resource: memory.")
    status = world.pod("p", "Failed")["status"]
    assert (status["reason"], status["message"]) == (
        "Evicted",
        "The node was low on resource: memory.",
    )
    world.create(pytorchjob("job", FOREVER, policy="OnFailure"))
    first = world.running("job-master-0")
    world.kubelet.evict("default", "job-master-0")
    world.until("pods", "job-master-0", lambda p: p["metadata"]["uid"] != first["metadata"]["uid"])


def test_the_deadline_of_a_pod(world: World) -> None:
    world.create(pod("p", shell(FOREVER), activeDeadlineSeconds=1))
    status = world.pod("p", "Failed")["status"]
    assert status["reason"] == "DeadlineExceeded"
    world.create(pod("q", shell("true"), activeDeadlineSeconds=1))
    world.pod("q", "Succeeded")


# --------------------------------------------------------------------------- when the process ends


def test_a_stop_lets_pods_save_and_the_next_start_goes_on(make: Callable[..., World]) -> None:
    before = make()
    before.create(pytorchjob("job", POLITE))
    first = ready(before, "job-master-0")
    before.controllers.stop()
    pod = before.pod("job-master-0", "Failed")
    assert (pod["status"]["reason"], terminated(pod)["exitCode"]) == ("Terminated", 143)
    before.store.close()
    after = make()
    second = ready(after, "job-master-0")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]


def test_pods_that_ran_when_the_process_died_are_lost(make: Callable[..., World]) -> None:
    before = make()
    before.create(pod("p", shell(FOREVER)))
    found = before.running("p")
    before.controllers.stop(grace=0)
    as_it_ran = {"status": found["status"]}  # nobody wrote down how it ended
    before.store.change("pods", "default", "p", lambda found: found.update(as_it_ran))
    before.store.close()
    lost = make().pod("p", "Failed")
    assert lost["status"]["reason"] == "NodeLost"
    assert terminated(lost)["reason"] == "ContainerStatusUnknown"


SERVER = """
import sys, threading
from pathlib import Path
from hydra_trainer.embedded.operators import Controllers
from hydra_trainer.embedded.store import Store
store = Store()
store.create("namespaces", "", {"metadata": {"name": "default"}})
container = {"name": "pytorch", "image": "image:1", "command": ["sh", "-c", sys.argv[2]]}
store.create("pods", "default", {"metadata": {"name": "p"}, "spec": {"containers": [container]}})
Controllers(store, Path(sys.argv[1])).start()
threading.Event().wait()
"""


def test_the_processes_of_pods_die_with_the_servers(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = f"exec 9> {pipe}; echo up >&9; exec sleep 600"
    words = [sys.executable, "-c", SERVER, str(tmp_path / "home"), script]
    with subprocess.Popen(words, cwd=REPOSITORY) as server, pipe.open("rb") as held:
        assert held.readline() == b"up\n"
        server.kill()
        assert is_closed(held)


def test_a_start_ends_what_an_earlier_process_left(
    make: Callable[..., World], tmp_path: Path
) -> None:
    mark = {MARK: f"{tmp_path / 'home'}|uid|pytorch|"}
    other = {MARK: f"{tmp_path / 'home'}-other|uid|pytorch|"}
    with (
        subprocess.Popen(["sleep", "600"], env=mark) as left,
        subprocess.Popen(["sleep", "600"], env=other) as others,
    ):
        make()
        assert left.wait(PATIENCE) == -signal.SIGKILL
        assert others.poll() is None
        others.kill()


# ------------------------------------------------------------------------------------ real torchrun

ALL_REDUCE = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank() + 1.0])
dist.all_reduce(total)
print(f"rank {dist.get_rank()} of {dist.get_world_size()}: {total.item():g}", flush=True)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.xdist_group("ranks")
def test_torchrun_meets_through_the_operators_variables(world: World, tmp_path: Path) -> None:
    (tmp_path / "reduce.py").write_text(ALL_REDUCE)
    volumes = [{"name": "code", "hostPath": {"path": str(tmp_path)}}]
    mounts = [{"name": "code", "mountPath": "/code"}]
    env = [{"name": "OMP_NUM_THREADS", "value": "1"}]
    job = pytorchjob("job", "", "", nprocPerNode="1", run={"cleanPodPolicy": "None"})
    for role in job["spec"]["pytorchReplicaSpecs"].values():
        container = shell("", env=env, volumeMounts=mounts)
        container["command"] = ["torchrun", "/code/reduce.py"]
        role["template"]["spec"] = {"containers": [container], "volumes": volumes}
    world.create(job)
    world.ended(JOBS, "job", "Succeeded")
    master, worker = world.pod("job-master-0", "Succeeded"), world.pod("job-worker-0", "Succeeded")
    assert "rank 0 of 2: 3" in world.log(master)
    assert "rank 1 of 2: 3" in world.log(worker)
