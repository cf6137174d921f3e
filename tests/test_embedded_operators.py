"""What becomes of jobs in the embedded cluster: PyTorchJob, TrainJob, HyperPodPyTorchJob, Kueue.

Their pods are lines of shell. The words are those of the operators.
"""

from pathlib import Path
from typing import Any

import pytest

from hydra_trainer.embedded.control import Family, find, holds
from hydra_trainer.embedded.kubelet import NODE
from hydra_trainer.embedded.pytorch_env import defaulted, variables
from hydra_trainer.embedded.store import Store
from hydra_trainer.embedded.trainer import jobset_of
from hydra_trainer.embedded.training_operator import PyTorchJobs

from .world import (
    FOREVER,
    HYPERPOD,
    JOBS,
    TRAINJOBS,
    Object,
    World,
    conditions,
    once,
    pod,
    pytorchjob,
    restarts,
    runtime,
    shell,
    state,
    template,
    trainjob,
)

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
    service = world.until("services", "job-master-0", bool)
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["ports"][0]["port"] == 23456
    # The Service of a pod has and looks for less than the pod has: no role in the job.
    chosen = {**common, front + "replica-type": "master", front + "replica-index": "0"}
    assert service["metadata"]["labels"] == service["spec"]["selector"] == chosen


def test_a_service_has_all_ports_of_the_training_container(world: World) -> None:
    job = pytorchjob("job", FOREVER)
    container = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    container["ports"] = [{"name": "debug", "containerPort": 5678}]
    world.create(job)
    ports = world.until("services", "job-master-0", bool)["spec"]["ports"]
    named = {port["name"]: port["port"] for port in ports}
    assert named == {"debug": 5678, "pytorchjob-port": 23456}


def test_fewer_workers_leave_fewer_pods_and_services(world: World) -> None:
    world.create(pytorchjob("job", None, FOREVER, workers=2, elasticPolicy=ELASTIC))
    world.running("job-worker-1")

    def shrink(job: Object) -> None:
        job["spec"]["pytorchReplicaSpecs"]["Worker"]["replicas"] = 1

    world.store.change(JOBS, "default", "job", shrink)
    world.gone("pods", "job-worker-1")
    world.gone("services", "job-worker-1")
    assert world.running("job-worker-0")


def test_a_name_that_is_too_long_for_a_service(world: World) -> None:
    """No webhook says so, and the job never gets a status."""
    name = "a" * 55
    world.create(pytorchjob(name, FOREVER))
    told = world.told(name, "FailedCreateService")
    assert told.startswith(f'Error creating: Service "{name}-master-0" is invalid: metadata.name: ')
    assert told.endswith("must be no more than 63 characters")
    assert world.running(f"{name}-master-0")
    assert "status" not in (world.get(JOBS, name) or {})


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ({"nProcPerNode": 4, "rdzvConf": [{"key": "a", "value": "b"}]}, "a=b"),
        ({"rdzvConf": []}, None),
    ],
)
def test_odd_elastic_policies(more: Object, wanted: str | None) -> None:
    """nProcPerNode does not count in WORLD_SIZE; the operator panics at an empty rdzvConf."""
    job = pytorchjob("job", "", "", workers=2, elasticPolicy={**ELASTIC, **more})
    del job["spec"]["nprocPerNode"]
    if wanted is None:
        with pytest.raises(ValueError, match="rdzvConf is empty"):
            variables("job", defaulted(job), "Master", 0)
        return
    env = {one["name"]: one["value"] for one in variables("job", defaulted(job), "Master", 0)}
    assert (env["WORLD_SIZE"], env["PET_NPROC_PER_NODE"]) == ("3", "4")
    assert (env["PET_RDZV_CONF"], env["PET_NNODES"]) == (wanted, "1:3")


def test_a_job_that_succeeds(world: World, tmp_path: Path) -> None:
    world.create(pytorchjob("job", f"until test -e {tmp_path}/go; do sleep 0.01; done", "true"))
    world.until(JOBS, "job", lambda job: holds(job.get("status"), "Running"))
    (tmp_path / "go").touch()
    job = world.ended(JOBS, "job", "Succeeded")
    assert conditions(job) == {"Created": "True", "Running": "False", "Succeeded": "True"}
    assert [one["reason"] for one in job["status"]["conditions"]] == [
        "PyTorchJobCreated",
        "PyTorchJobRunning",
        "PyTorchJobSucceeded",
    ]
    assert job["status"]["replicaStatuses"]["Master"]["succeeded"] == 1
    assert job["status"]["startTime"] <= job["status"]["completionTime"]
    world.told("job", "ExitedWithCode", "Pod: default.job-master-0 exited with code 0")
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


def test_the_backoff_limit_counts_restarts_in_place(world: World) -> None:
    world.create(pytorchjob("job", "exit 1", policy="OnFailure", run={"backoffLimit": 2}))
    job = world.ended(JOBS, "job", "Failed")
    assert find(job["status"]["conditions"], "Failed") == {
        **(find(job["status"]["conditions"], "Failed") or {}),
        "reason": "PyTorchJobFailed",
        "message": "Job job has failed because it has reached the specified backoff limit",
    }
    world.gone("pods", "job-master-0")


@pytest.mark.parametrize(("phase", "fails"), [("Running", True), ("Succeeded", False)])
def test_it_counts_them_in_pods_that_run(phase: str, fails: bool) -> None:
    store = Store()
    family = Family(store)
    job = pytorchjob("job", "", policy="OnFailure", run={"backoffLimit": 3})
    store.create(JOBS, "default", job)
    operator = PyTorchJobs(store, family)
    operator.reconcile(store.get(JOBS, "default", "job"))
    status = {"name": "pytorch", "restartCount": 3, "state": {}, "lastState": {}}
    store.change(
        "pods",
        "default",
        "job-master-0",
        lambda pod: pod["status"].update(phase=phase, containerStatuses=[status]),
    )
    for resource in ("pods", "services"):
        family.note("ADDED", resource, store.get(resource, "default", "job-master-0"))
    operator.reconcile(store.get(JOBS, "default", "job"))
    assert holds(store.get(JOBS, "default", "job")["status"], "Failed") is fails


def test_a_backoff_limit_of_zero_ends_the_job_with_its_first_pod(world: World) -> None:
    world.create(pytorchjob("job", "exit 137", run={"backoffLimit": 0}))
    job = world.ended(JOBS, "job", "Failed")
    failed = find(job["status"]["conditions"], "Failed") or {}
    assert failed["message"].endswith("it has reached the specified backoff limit")
    assert job["status"]["completionTime"]
    assert world.pod("job-master-0", "Failed")


def test_a_retryable_exit_code_makes_the_pod_anew_without_end(world: World, tmp_path: Path) -> None:
    """backoffLimit does not count pods that are made anew."""
    world.create(pytorchjob("job", once(tmp_path, 137), run={"backoffLimit": 1}))
    world.ended(JOBS, "job", "Succeeded")
    text = world.told("job", "PyTorchJobRestarting", "job job is")
    assert text == "job job is restarting because Master replica(s) failed."
    # The operator says it twice, once for the pod and once for the job.
    text = world.told("job", "PyTorchJobRestarting", "PyTorchJob job is")
    assert text == "PyTorchJob job is restarting because 1 Master replica(s) failed."
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
    # Where nobody else makes its pods.
    store = Store()
    later = pytorchjob("later", FOREVER, run={"activeDeadlineSeconds": 600})
    later = store.create(JOBS, "default", later)
    assert PyTorchJobs(store, Family(store)).reconcile(later) is None


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


def test_what_pods_wait_for_is_repeated_at_the_job(world: World) -> None:
    job = pytorchjob("job", "true")
    container = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]["containers"][0]
    container["image"] = "no-such-image"
    world.create(job)
    assert world.told("job", "ImagePullBackOff") == (
        "Error pod job-master-0 container pytorch waiting message: "
        'Back-off pulling image "no-such-image"'
    )


def test_what_the_containers_before_wait_for_is_not_repeated(world: World) -> None:
    """For there are statuses of the others by then. It stands at the pod."""
    job = pytorchjob("job", "true")
    pod_spec = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    pod_spec["initContainers"] = [shell("true", "before", image="no-such-image")]
    world.create(job)
    world.told("job-master-0", "Failed", "no-such-image")
    world.until("pods", "job-master-0", lambda pod: "initContainerStatuses" in pod["status"])
    assert not [text for _, text in world.events("job") if "no-such-image" in text]


def test_a_container_beside_that_failed_is_told_at_the_job(world: World) -> None:
    job = pytorchjob("job", FOREVER)
    pod_spec = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]["spec"]
    pod_spec["containers"].append(shell("echo why >$TERMINATION; exit 3", "beside"))
    world.create(job)
    text = world.told("job", "Error")
    assert text.startswith(
        "Error pod job-master-0 container beside exitCode: 3 terminated message:"
    )


def test_a_job_that_nobody_can_read_does_not_stop_the_others(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.create({**pytorchjob("broken"), "spec": {"pytorchReplicaSpecs": {"Master": {}}}})
    world.create(pod("odd", shell("true", resources={"limits": {"cpu": "four"}})))
    world.create(pytorchjob("job", "true"))
    world.ended(JOBS, "job", "Succeeded")
    assert "'four' is no quantity" in capfd.readouterr().err


# --------------------------------------------------------------------------------- Kubeflow Trainer


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
    world.create(runtime(FOREVER))
    world.create(trainjob(suspend=True))
    world.ended(TRAINJOBS, "job", "Suspended")
    world.until("jobs.batch", "job-node-0", lambda job: holds(job.get("status"), "Suspended"))
    assert not world.pods()
    suspend(world, False, TRAINJOBS)
    world.wait(lambda: any("running" in state(pod) for pod in batch_pods(world)))
    assert conditions(world.until(TRAINJOBS, "job", bool)) == {"Suspended": "False"}
    suspend(world, True, TRAINJOBS)
    world.wait(lambda: not world.pods())
    world.ended(TRAINJOBS, "job", "Suspended")


def test_a_suspended_trainjob_may_be_moved(world: World) -> None:
    """As Kueue does it: it writes where the pods are to run, and lets the job go on."""
    world.create(runtime(FOREVER))
    world.create(trainjob(suspend=True))
    world.until("jobs.batch", "job-node-0", lambda job: holds(job.get("status"), "Suspended"))
    place = {"nodeSelector": {"zone": "a"}, "tolerations": [{"operator": "Exists"}]}
    pod_patch = {"metadata": {"labels": {"by": "kueue"}}, "spec": place}

    def move(job: Object) -> None:
        inner = {"name": "node", "template": {"spec": {"template": pod_patch}}}
        patch = {"template": {"spec": {"replicatedJobs": [inner]}}}
        job["spec"]["runtimePatches"] = [{"manager": "k/m", "trainingRuntimeSpec": patch}]

    world.store.change(TRAINJOBS, "default", "job", move)
    suspend(world, False, TRAINJOBS)
    (pod,) = world.wait(lambda: batch_pods(world))
    assert pod["spec"]["nodeSelector"] == {"zone": "a"}
    assert {"operator": "Exists"} in pod["spec"]["tolerations"]
    assert pod["metadata"]["labels"]["by"] == "kueue"


def test_initializers_come_before_the_trainer(world: World) -> None:
    made = runtime("true")
    fetch = {
        "name": "dataset-initializer",
        "template": {
            "metadata": {"labels": {"trainer.kubeflow.org/trainjob-ancestor-step": DATA}},
            "spec": {"template": template("env", DATA, restartPolicy="Never")},
        },
    }
    jobs = made["spec"]["template"]["spec"]["replicatedJobs"]
    jobs[0]["dependsOn"] = [{"name": DATA, "status": "Complete"}]
    jobs.insert(0, fetch)
    world.create(made)
    env = [{"name": "OWN", "value": "1"}]
    given = {"storageUri": "hf://a/b", "env": env, "secretRef": {"name": "key"}}
    secret = {"metadata": {"name": "key"}, "data": {"TOKEN": "eA=="}}
    world.store.create("secrets", "default", secret)
    world.create(trainjob(initializer={"dataset": given}))
    world.ended(TRAINJOBS, "job", "Complete")
    labels = f"batch.kubernetes.io/job-name=job-{DATA}-0"
    (pod,) = world.store.list("pods", labels=labels)[0]
    said = world.log(pod, container=DATA).splitlines()
    assert {"STORAGE_URI=hf://a/b", "OWN=1", "TOKEN=x"} <= {*said}


DATA = "dataset-initializer"


def test_the_deadline_of_a_trainjob(world: World) -> None:
    world.create(runtime(FOREVER))
    world.create(trainjob(activeDeadlineSeconds=1))
    job = world.ended(TRAINJOBS, "job", "Failed")
    assert (find(job["status"]["conditions"], "Failed") or {})["reason"] == "DeadlineExceeded"
    world.gone("jobsets.jobset.x-k8s.io", "job")
    world.wait(lambda: not world.pods())


def test_a_trainjob_that_failed_begins_anew_when_its_jobset_goes(world: World) -> None:
    """As it will when the JobSet's ttlSecondsAfterFinished is over: one that succeeded does not."""
    jobsets = "jobsets.jobset.x-k8s.io"
    world.create(runtime("exit 1", backoffLimit=0))
    world.create(trainjob())
    world.ended(TRAINJOBS, "job", "Failed")
    first = world.until(jobsets, "job", bool)["metadata"]["uid"]
    world.store.delete(jobsets, "default", "job")
    world.until(jobsets, "job", lambda found: found["metadata"]["uid"] != first)


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
    assert conditions(job)["Running"] == "False"
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
