"""What the operators make of a job: Kubeflow's training operator 1.9, its Trainer 2, HyperPod.

One thread looks at a job whenever it or one of its pods changed, as the real controllers do, and
writes down conditions, pods and events in their words. Facts: the operators' sources at v1.9.4 and
v2.3.0. HyperPod's operator is closed: what is public of its behaviour is the fields of its object.
"""

import contextlib
import heapq
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty
from typing import Any

from . import events
from .kubelet import Kubelet, now
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

PORT = 23456
TRAINER_PORT = 29500
KUEUE = "kueue.x-k8s.io/queue-name"


class Controllers:
    """Runs the operators and the kubelet on a store."""

    def __init__(self, store: Store, home: Path, kubelet: Kubelet | None = None) -> None:
        self.store = store
        self.kubelet = kubelet or Kubelet(store, home)
        self._operators: dict[str, _Operator] = {
            "pytorchjobs.kubeflow.org": PyTorchJobs(self),
            "trainjobs.trainer.kubeflow.org": TrainJobs(self),
            "hyperpodpytorchjobs.sagemaker.amazonaws.com": HyperPodJobs(self),
        }
        self._changes = store.subscribe()
        self._timers: list[tuple[float, str, str, str]] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the threads, and go on with the jobs that are there."""
        self.kubelet.start()
        for resource in self._operators:
            for job in self.store.list(resource)[0]:
                self.look(resource, job["metadata"]["namespace"], job["metadata"]["name"])
        self._thread.start()

    def stop(self) -> None:
        """End the threads, and all pods' processes."""
        self._stopped.set()
        self.kubelet.stop()

    @property
    def busy(self) -> bool:
        return self.kubelet.busy

    def later(self, seconds: float, resource: str, namespace: str, name: str) -> None:
        """Look at a job again after some time."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, resource, namespace, name))

    def _run(self) -> None:
        while not self._stopped.is_set():
            pause = self._timers[0][0] - time.monotonic() if self._timers else 0.5
            with contextlib.suppress(Empty):
                _, resource, obj = self._changes.get(timeout=min(max(pause, 0.001), 0.5))
                self._take(resource, obj)
            while self._timers and self._timers[0][0] <= time.monotonic():
                self.look(*heapq.heappop(self._timers)[1:])

    def _take(self, resource: str, obj: Object) -> None:
        namespace = obj["metadata"].get("namespace") or ""
        if resource in self._operators:
            self.look(resource, namespace, obj["metadata"]["name"])
        elif resource == "localqueues.kueue.x-k8s.io":
            for kind in self._operators:
                for job in self.store.list(kind, namespace)[0]:
                    self.look(kind, namespace, job["metadata"]["name"])
        for owner in obj["metadata"].get("ownerReferences") or []:
            for kind, operator in self._operators.items():
                if resource == "pods" and owner["kind"] == operator.kind:
                    self.look(kind, namespace, owner["name"])

    def look(self, resource: str, namespace: str, name: str) -> None:
        """Bring a job one step on."""
        with contextlib.suppress(ApiError):
            job = self.store.get(resource, namespace, name)
            if not job["metadata"].get("deletionTimestamp"):
                self._operators[resource].reconcile(job)


class _Operator:
    """What the three have in common: conditions, pods by index, endings."""

    resource = ""
    kind = ""
    container = "pytorch"

    def __init__(self, controllers: Controllers) -> None:
        self.controllers = controllers
        self.store = controllers.store

    def reconcile(self, job: Object) -> None:
        raise NotImplementedError

    # -------------------------------------------------------------------------------------- writing

    def write(self, job: Object, function: Callable[[Object], None]) -> None:
        with contextlib.suppress(ApiError):
            where = job["metadata"]["namespace"], job["metadata"]["name"]
            self.store.change(self.resource, *where, function, subresource="status")

    def event(self, job: Object, reason: str, message: str, kind: str = "Normal") -> None:
        events.record(self.store, job, reason, message, kind)

    # ----------------------------------------------------------------------------------------- pods

    def pods(self, job: Object) -> dict[str, Object]:
        """Return the job's pods by name."""
        found, _ = self.store.list("pods", job["metadata"]["namespace"])
        uid = job["metadata"]["uid"]
        return {
            pod["metadata"]["name"]: pod
            for pod in found
            if any(o["uid"] == uid for o in pod["metadata"].get("ownerReferences") or [])
        }

    def make_pod(
        self, job: Object, name: str, template: Object, labels: dict[str, str], env: list[Object]
    ) -> None:
        """Create a pod from a template: the operator's variables come after the user's, and win."""
        metadata = dict(template.get("metadata") or {})
        spec = dict(template["spec"])
        spec["containers"] = [
            {**container, "env": [*(container.get("env") or []), *env]}
            if self.injects(container)
            else container
            for container in spec["containers"]
        ]
        pod = {
            "metadata": {
                "name": name,
                "labels": {**(metadata.get("labels") or {}), **labels},
                "annotations": metadata.get("annotations") or {},
                "ownerReferences": [self.reference(job)],
            },
            "spec": spec,
        }
        with contextlib.suppress(ApiError):
            self.store.create("pods", job["metadata"]["namespace"], pod)
            self.event(job, "SuccessfulCreatePod", f"Created pod: {name}")

    def injects(self, container: Object) -> bool:
        return True

    def reference(self, job: Object) -> Object:
        return {
            "apiVersion": job["apiVersion"],
            "kind": job["kind"],
            "name": job["metadata"]["name"],
            "uid": job["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def service(self, job: Object, name: str, port: int) -> None:
        service = {
            "metadata": {"name": name, "ownerReferences": [self.reference(job)]},
            "spec": {"clusterIP": "None", "ports": [{"name": "pytorchjob-port", "port": port}]},
        }
        with contextlib.suppress(ApiError):
            self.store.create("services", job["metadata"]["namespace"], service)

    def delete_pods(self, job: Object, pods: dict[str, Object], *, running_only: bool) -> None:
        for name, pod in pods.items():
            if not running_only or phase(pod) in ("Pending", "Running"):
                with contextlib.suppress(ApiError):
                    self.store.delete("pods", job["metadata"]["namespace"], name)
                    self.event(job, "SuccessfulDeletePod", f"Deleted pod: {name}")

    # ---------------------------------------------------------------------------------------- queue

    def admitted(self, job: Object) -> bool:
        """Tell whether Kueue lets a job start: it has a queue, that is there and not on hold."""
        queue = (job["metadata"].get("labels") or {}).get(KUEUE)
        if queue is None:
            return True
        namespace = job["metadata"]["namespace"]
        message = self._queue_problem(namespace, queue)
        self._workload(job, queue, message)
        return message is None

    def _queue_problem(self, namespace: str, queue: str) -> str | None:
        try:
            found = self.store.get("localqueues.kueue.x-k8s.io", namespace, queue)
        except ApiError:
            return f"LocalQueue {queue} doesn't exist"
        if (found.get("spec") or {}).get("stopPolicy") in ("Hold", "HoldAndDrain"):
            return f"LocalQueue {queue} is inactive"
        return None

    def _workload(self, job: Object, queue: str, message: str | None) -> None:
        namespace, name = job["metadata"]["namespace"], job["metadata"]["name"]
        condition = {
            "type": "QuotaReserved",
            "status": str(message is None),
            "reason": "QuotaReserved" if message is None else "Inadmissible",
            "message": message or "Quota reserved",
            "lastTransitionTime": now(),
        }
        workload: Object = {
            "metadata": {
                "name": f"{self.kind.lower()}-{name}-{job['metadata']['uid'][:5]}",
                "labels": {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]},
                "ownerReferences": [self.reference(job)],
            },
            "spec": {"queueName": queue},
            "status": {"conditions": [condition]},
        }
        resource = "workloads.kueue.x-k8s.io"
        try:
            self.store.create(resource, namespace, workload)
        except ApiError:
            before = self.store.get(resource, namespace, str(workload["metadata"]["name"]))
            if before["status"]["conditions"][0]["message"] != condition["message"]:
                self.store.change(
                    resource,
                    namespace,
                    before["metadata"]["name"],
                    lambda found: found.update(status=workload["status"]),
                )

    def expire(self, job: Object, seconds: int | None, ended: str | None) -> None:
        """Delete a finished job once its time to live is over."""
        if seconds is None or ended is None:
            return
        where = job["metadata"]["namespace"], job["metadata"]["name"]
        left = seconds - _age(ended)
        if left > 0:
            self.controllers.later(left, self.resource, *where)
            return
        with contextlib.suppress(ApiError):
            self.store.delete(self.resource, *where)


# ----------------------------------------------------------------------------------- conditions


def condition(job: Object, kind: str) -> Object | None:
    """Return a condition of a job where it is true."""
    found = (job.get("status") or {}).get("conditions") or []
    return next((c for c in found if c["type"] == kind and c["status"] == "True"), None)


def set_condition(
    status: Object, kind: str, reason: str, message: str, value: str = "True"
) -> None:
    """Set a condition; nothing changes where it is so already."""
    conditions = status.setdefault("conditions", [])
    new = {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message,
        "lastUpdateTime": now(),
        "lastTransitionTime": now(),
    }
    for number, old in enumerate(conditions):
        if old["type"] == kind:
            if (old["status"], old["reason"]) != (value, reason):
                conditions.pop(number)
                conditions.append(new)
            return
    conditions.append(new)


def unset(status: Object, kind: str) -> None:
    for found in status.get("conditions") or []:
        if found["type"] == kind and found["status"] == "True":
            found |= {"status": "False", "lastTransitionTime": now(), "lastUpdateTime": now()}


def phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def exit_code(pod: Object) -> int | None:
    """Return how a pod's first container ended; None while it runs, or when the pod never did."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or [{}]
    code = ((statuses[0].get("state") or {}).get("terminated") or {}).get("exitCode")
    return None if code is None else int(code)


def _age(time_text: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(time_text)).total_seconds()


# --------------------------------------------------------------------------------- PyTorchJob


class PyTorchJobs(_Operator):
    """kubeflow.org/v1, as the training operator 1.9.4 does it."""

    resource = "pytorchjobs.kubeflow.org"
    kind = "PyTorchJob"

    def reconcile(self, job: Object) -> None:
        pods = self.pods(job)
        policy = job["spec"].get("runPolicy") or {}
        for end in ("Succeeded", "Failed"):
            if condition(job, end):
                self._after(job, pods, policy)
                return
        name = job["metadata"]["name"]
        self._set(job, "Created", f"PyTorchJob {name} is created.")
        if policy.get("suspend") or not self.admitted(job):
            self._suspend(job, pods)
            return
        if _age((job.get("status") or {}).get("startTime") or now()) > policy.get(
            "activeDeadlineSeconds", float("inf")
        ):
            message = f"PyTorchJob {name} has failed because it was active longer than specified"
            self._end(job, "Failed", message)
            return
        failure = self._replicas(job, pods)
        if failure is not None:
            self._end(job, "Failed", failure)
        elif (success := self._succeeded(job, pods)) is not None:
            self._end(job, "Succeeded", success)

    def _set(self, job: Object, kind: str, message: str) -> None:
        reason = f"PyTorchJob{kind}"
        fresh = condition(job, kind) is None

        def write(found: Object) -> None:
            status = found.setdefault("status", {})
            set_condition(status, kind, reason, message)
            for other in {"Running": ("Restarting",), "Restarting": ("Running",)}.get(kind, ()):
                unset(status, other)
            if kind in ("Succeeded", "Failed"):
                unset(status, "Running")
            if kind != "Suspended":
                status.setdefault("startTime", now())

        self.write(job, write)
        if fresh:
            self.event(job, reason, message, "Warning" if kind == "Failed" else "Normal")

    def _suspend(self, job: Object, pods: dict[str, Object]) -> None:
        self.delete_pods(job, pods, running_only=False)
        self._set(job, "Suspended", f"PyTorchJob {job['metadata']['name']} is suspended.")

    def _end(self, job: Object, kind: str, message: str) -> None:
        self._set(job, kind, message)
        self.write(job, lambda found: found["status"].setdefault("completionTime", now()))

    def _after(self, job: Object, pods: dict[str, Object], policy: Object) -> None:
        """What follows the end: pods by cleanPodPolicy, and the time to live."""
        clean = policy.get("cleanPodPolicy") or "None"
        if clean != "None":
            self.delete_pods(job, pods, running_only=clean == "Running")
        self._counts(job, self.pods(job))
        ended = job["status"].get("completionTime")
        self.expire(job, policy.get("ttlSecondsAfterFinished"), ended)

    def _replicas(self, job: Object, pods: dict[str, Object]) -> str | None:
        """Make what is missing, and make anew what may be; return why the job has failed."""
        specs = job["spec"]["pytorchReplicaSpecs"]
        running = False
        for role in ("Master", "Worker"):
            if role not in specs:
                continue
            for index in range(specs[role].get("replicas", 1)):
                name = f"{job['metadata']['name']}-{role.lower()}-{index}"
                pod = pods.get(name)
                if pod is None:
                    self._make(job, role, index, name)
                    continue
                if phase(pod) == "Failed" and (why := self._failed(job, specs[role], role, pod)):
                    return why
                running = running or phase(pod) == "Running"
        self._counts(job, pods)
        if running:
            self._set(job, "Running", f"PyTorchJob {job['metadata']['name']} is running.")
        return None

    def _failed(self, job: Object, spec: Object, role: str, pod: Object) -> str | None:
        """Restart a pod where its policy says so; return why the job fails where it does not."""
        name, namespace = pod["metadata"]["name"], job["metadata"]["namespace"]
        front = f"PyTorchJob {job['metadata']['name']}"
        policy = spec.get("restartPolicy") or "OnFailure"
        code = exit_code(pod)
        if policy == "ExitCode" and code is not None and code < 128:
            # The operator leaves completionTime out here, and so its time to live has no start.
            self._set(job, "Failed", f"{front} is failed because 1 {role} replica(s) failed.")
            return None
        if policy == "Never":
            return f"{front} is failed because 1 {role} replica(s) failed."
        if code is not None:
            message = f"Pod: {namespace}.{name} exited with code {code}"
            self.event(job, "ExitedWithCode", message)
        with contextlib.suppress(ApiError):
            self.store.delete("pods", namespace, name)
        message = f"{front} is restarting because 1 {role} replica(s) failed."
        self._set(job, "Restarting", message)
        return None

    def _counts(self, job: Object, pods: dict[str, Object]) -> None:
        found: dict[str, dict[str, int]] = {role: {} for role in job["spec"]["pytorchReplicaSpecs"]}
        names = {"Running": "active", "Succeeded": "succeeded", "Failed": "failed"}
        for pod in pods.values():
            labels = pod["metadata"].get("labels") or {}
            role = str(labels.get("training.kubeflow.org/replica-type", "")).capitalize()
            if role in found and phase(pod) in names:
                key = names[phase(pod)]
                found[role][key] = found[role].get(key, 0) + 1
        self.write(job, lambda obj: obj.setdefault("status", {}).update(replicaStatuses=found))

    def _succeeded(self, job: Object, pods: dict[str, Object]) -> str | None:
        specs = job["spec"]["pytorchReplicaSpecs"]
        role = "Master" if "Master" in specs else "Worker"
        name = job["metadata"]["name"]
        of_role = [
            pods.get(f"{name}-{role.lower()}-{i}") for i in range(specs[role].get("replicas", 1))
        ]
        done = [pod is not None and phase(pod) == "Succeeded" for pod in of_role]
        enough = any(done) if role == "Worker" and job["spec"].get("elasticPolicy") else all(done)
        return f"PyTorchJob {name} is successfully completed." if enough else None

    # ---------------------------------------------------------------------------------- one pod

    def _make(self, job: Object, role: str, index: int, name: str) -> None:
        specs = job["spec"]["pytorchReplicaSpecs"]
        template = dict(specs[role]["template"])
        policy = specs[role].get("restartPolicy") or "OnFailure"
        in_pod = "Never" if policy == "ExitCode" else policy
        template["spec"] = {**template["spec"], "restartPolicy": in_pod}
        labels = {
            "training.kubeflow.org/operator-name": "pytorchjob-controller",
            "training.kubeflow.org/job-name": job["metadata"]["name"],
            "training.kubeflow.org/replica-type": role.lower(),
            "training.kubeflow.org/replica-index": str(index),
        }
        if role == "Master" or ("Master" not in specs and index == 0):
            labels["training.kubeflow.org/job-role"] = "master"
        self.service(job, name, PORT)
        self.make_pod(job, name, template, labels, list(self._env(job, role, index)))

    def _env(self, job: Object, role: str, index: int) -> Iterator[Object]:
        """Yield the variables in the order in which the operator appends them."""
        specs, name = job["spec"]["pytorchReplicaSpecs"], job["metadata"]["name"]
        total = sum(spec.get("replicas", 1) for spec in specs.values())
        each = str(job["spec"].get("nprocPerNode") or "auto")
        elastic = job["spec"].get("elasticPolicy")
        values: list[tuple[str, Any]] = [("PYTHONUNBUFFERED", 1)]
        if "Master" in specs:
            rank = index if role == "Master" else index + 1
            world = total * (int(each) if each.isdigit() else 1)
            first = f"{name}-master-0"
            values += [("MASTER_PORT", PORT), ("PET_MASTER_PORT", PORT)]
            values += [("MASTER_ADDR", first), ("PET_MASTER_ADDR", first)]
            values += [("WORLD_SIZE", world), ("RANK", rank), ("PET_NODE_RANK", rank)]
        values.append(("PET_NPROC_PER_NODE", each))
        if elastic:
            workers = specs["Worker"].get("replicas", 1)
            low = elastic.get("minReplicas") or workers
            high = elastic.get("maxReplicas") or workers
            values.append(("PET_RDZV_ENDPOINT", f"{name}-worker-0:{PORT}"))
            values.append(("PET_RDZV_BACKEND", elastic.get("rdzvBackend") or "c10d"))
            values.append(("PET_NNODES", f"{low}:{high}"))
            if "maxRestarts" in elastic:
                values.append(("PET_MAX_RESTARTS", elastic["maxRestarts"]))
        else:
            values.append(("PET_NNODES", total))
        for key, value in values:
            yield {"name": key, "value": str(value)}


# ------------------------------------------------------------------------------ Kubeflow Trainer


class TrainJobs(_Operator):
    """trainer.kubeflow.org/v1alpha1, with JobSet and the indexed Job behind it in one.

    The JobSet and the Job between a TrainJob and its pods are not objects of their own here.
    """

    resource = "trainjobs.trainer.kubeflow.org"
    kind = "TrainJob"
    container = "node"

    def injects(self, container: Object) -> bool:
        return bool(container["name"] == self.container)

    def reconcile(self, job: Object) -> None:
        if condition(job, "Complete") or condition(job, "Failed"):
            self._after(job)
            return
        runtime = self._runtime(job)
        if runtime is None:
            return
        if job["spec"].get("suspend") or not self.admitted(job):
            self.delete_pods(job, self.pods(job), running_only=False)
            self._set(job, "Suspended", "Suspended", "TrainJob is suspended")
            return
        if condition(job, "Suspended"):
            self._set(job, "Suspended", "Resumed", "TrainJob is resumed", "False")
        node = _node_of(runtime)
        patch_runtime(node, job)
        self._nodes(job, node)

    def _runtime(self, job: Object) -> Object | None:
        reference = job["spec"]["runtimeRef"]
        namespace = job["metadata"]["namespace"]
        try:
            if reference.get("kind", "ClusterTrainingRuntime") == "TrainingRuntime":
                return self.store.get(
                    "trainingruntimes.trainer.kubeflow.org", namespace, reference["name"]
                )
            return self.store.get(
                "clustertrainingruntimes.trainer.kubeflow.org", "", reference["name"]
            )
        except ApiError:
            return None

    def _nodes(self, job: Object, node: Object) -> None:
        pods, name = self.pods(job), job["metadata"]["name"]
        spec = node["template"]["spec"]
        trainer = job["spec"].get("trainer") or {}
        count = int(trainer.get("numNodes") or 1)
        done = 0
        for index in range(count):
            pod = pods.get(f"{name}-node-0-{index}")
            if pod is None:
                self._make(job, spec["template"], index, count)
            elif phase(pod) == "Failed" and self._failed(job, spec, pod):
                return
            done += bool(pod and phase(pod) == "Succeeded")
        self._progress(job, pods, done)
        if done == count:
            self._set(job, "Complete", "AllJobsCompleted", "jobset completed successfully")

    def _failed(self, job: Object, spec: Object, pod: Object) -> bool:
        """Take a failed pod away to be made anew, or fail the job; return whether it did."""
        code = exit_code(pod)
        for rule in (spec.get("podFailurePolicy") or {}).get("rules") or []:
            values = (rule.get("onExitCodes") or {}).get("values") or []
            if rule["action"] == "FailJob" and code in values:
                message = (
                    f"Container node for pod {pod['metadata']['name']} failed with exit code {code}"
                )
                self._set(job, "Failed", "FailedJobs", message)
                return True
        before = int((job["metadata"].get("annotations") or {}).get("restarts", 0))
        failures = int((job.get("status") or {}).get("failures", before)) + 1
        if failures > int(spec.get("backoffLimit", 6)):
            message = "Job has reached the specified backoff limit"
            self._set(job, "Failed", "FailedJobs", message)
            return True
        self.write(job, lambda found: found.setdefault("status", {}).update(failures=failures))
        with contextlib.suppress(ApiError):
            where = job["metadata"]["namespace"], pod["metadata"]["name"]
            self.store.delete("pods", *where)
        return False

    def _progress(self, job: Object, pods: dict[str, Object], done: int) -> None:
        phases = [phase(pod) for pod in pods.values()]
        found = {
            "name": "node",
            "active": phases.count("Running"),
            "ready": phases.count("Running"),
            "succeeded": int(done == len(pods) > 0),
            "failed": 0,
            "suspended": 0,
        }
        self.write(job, lambda obj: obj.setdefault("status", {}).update(jobsStatus=[found]))

    def _set(self, job: Object, kind: str, reason: str, message: str, value: str = "True") -> None:
        self.write(
            job,
            lambda found: set_condition(
                found.setdefault("status", {}), kind, reason, message, value
            ),
        )
        self.event(job, reason, message, "Warning" if kind == "Failed" else "Normal")

    def _after(self, job: Object) -> None:
        runtime = self._runtime(job)
        self.delete_pods(job, self.pods(job), running_only=True)
        if runtime is None:
            return
        seconds = runtime["spec"]["template"]["spec"].get("ttlSecondsAfterFinished")
        end = condition(job, "Complete") or condition(job, "Failed") or {}
        self.expire(job, seconds, end.get("lastTransitionTime"))

    def _make(self, job: Object, template: Object, index: int, count: int) -> None:
        name = job["metadata"]["name"]
        trainer = job["spec"].get("trainer") or {}
        labels = {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-completion-index": str(index),
            "batch.kubernetes.io/job-name": f"{name}-node-0",
        }
        values = {
            "PET_NNODES": count,
            "PET_NPROC_PER_NODE": trainer.get("numProcPerNode", 1),
            "PET_NODE_RANK": index,
            "PET_MASTER_ADDR": f"{name}-node-0-0.{name}",
            "PET_MASTER_PORT": TRAINER_PORT,
        }
        env = [{"name": key, "value": str(value)} for key, value in values.items()]
        self.make_pod(job, f"{name}-node-0-{index}", template, labels, env)


def _node_of(runtime: Object) -> Object:
    """Return the replicated job that trains."""
    jobs = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    return dict(next(job for job in jobs if job["name"] == "node"))


def patch_runtime(node: Object, job: Object) -> None:
    """Put what a TrainJob says about its nodes into the pod template of its runtime."""
    template = node["template"]["spec"]["template"]
    spec = template["spec"]
    container = next(c for c in spec["containers"] if c["name"] == "node")
    trainer = job["spec"].get("trainer") or {}
    for key in ("image", "command", "args"):
        if key in trainer:
            container[key] = trainer[key]
    container["env"] = _by_name(container.get("env"), trainer.get("env"))
    if "resourcesPerNode" in trainer:
        container["resources"] = trainer["resourcesPerNode"]
    for patch in _patches(job):
        template["metadata"] = _merged(template.get("metadata") or {}, patch.get("metadata") or {})
        for key, value in (patch.get("spec") or {}).items():
            if key == "containers":
                _patch_containers(spec["containers"], value)
            elif isinstance(value, list):
                spec[key] = _by_name(spec.get(key), value)
            elif isinstance(value, dict):
                spec[key] = _merged(spec.get(key) or {}, value)
            else:
                spec[key] = value


def _patches(job: Object) -> Iterator[Object]:
    """Yield {metadata, spec} of pods, whichever field this version of the API has for them."""
    for override in job["spec"].get("podTemplateOverrides") or []:
        if any(target["name"] == "node" for target in override.get("targetJobs") or []):
            yield override
    for patch in job["spec"].get("runtimePatches") or []:
        inner = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
        for found in inner:
            if found["name"] == "node":
                yield found["template"]["spec"]["template"]


def _patch_containers(containers: list[Object], patches: list[Object]) -> None:
    for patch in patches:
        for container in containers:
            if container["name"] == patch["name"]:
                for key in ("env", "volumeMounts"):
                    container[key] = _by_name(container.get(key), patch.get(key))
                if "securityContext" in patch:
                    container["securityContext"] = patch["securityContext"]


def _by_name(base: list[Object] | None, more: list[Object] | None) -> list[Object]:
    """Return two lists as one; what is named twice is the later. Mounts go by their path."""

    def key(item: Object) -> str:
        return str(item.get("mountPath") or item.get("name") or item.get("key"))

    return list({key(item): item for item in [*(base or []), *(more or [])]}.values())


def _merged(base: Object, more: Object) -> Object:
    both = {**base}
    for key, value in more.items():
        old = base.get(key)
        nested = isinstance(value, dict) and isinstance(old, dict)
        both[key] = {**old, **value} if nested and old else value
    return both


# --------------------------------------------------------------------------------------- HyperPod


class HyperPodJobs(_Operator):
    """sagemaker.amazonaws.com/v1: pods of one kind, made anew up to jobMaxRetryCount times."""

    resource = "hyperpodpytorchjobs.sagemaker.amazonaws.com"
    kind = "HyperPodPyTorchJob"

    def reconcile(self, job: Object) -> None:
        policy = job["spec"].get("runPolicy") or {}
        for end in ("Completed", "Failed"):
            if (found := condition(job, end)) is not None:
                self.delete_pods(job, self.pods(job), running_only=True)
                self.expire(job, policy.get("ttlSecondsAfterFinished"), found["lastTransitionTime"])
                return
        self._set(job, "Created", "JobCreated", "job created")
        if policy.get("suspend") or not self.admitted(job):
            self._set(job, "Suspended", "JobSuspended", "job is suspended")
            return
        self._replicas(job, policy)

    def _replicas(self, job: Object, policy: Object) -> None:
        pods, name = self.pods(job), job["metadata"]["name"]
        total = sum(spec.get("replicas", 1) for spec in job["spec"]["replicaSpecs"])
        rank, done = 0, 0
        for spec in job["spec"]["replicaSpecs"]:
            for index in range(spec.get("replicas", 1)):
                pod = pods.get(f"{name}-{spec['name']}-{index}")
                if pod is None:
                    self._make(job, spec, index, rank, total)
                elif phase(pod) == "Failed" and self._failed(job, policy, pod):
                    return
                done += bool(pod and phase(pod) == "Succeeded")
                rank += 1
        if any(phase(pod) == "Running" for pod in pods.values()):
            self._set(job, "Running", "JobRunning", "job is running")
        if done == total:
            self._set(job, "Completed", "JobCompleted", "job completed successfully")

    def _failed(self, job: Object, policy: Object, pod: Object) -> bool:
        code = exit_code(pod)
        retries = int((job.get("status") or {}).get("retries", 0)) + 1
        permanent = code is not None and code < 128
        if permanent or retries > int(policy.get("jobMaxRetryCount", 0)):
            message = f"pod {pod['metadata']['name']} failed with exit code {code}"
            self._set(job, "Failed", "JobFailed", message)
            return True
        self.write(job, lambda found: found.setdefault("status", {}).update(retries=retries))
        with contextlib.suppress(ApiError):
            self.store.delete("pods", job["metadata"]["namespace"], pod["metadata"]["name"])
        return False

    def _set(self, job: Object, kind: str, reason: str, message: str) -> None:
        if condition(job, kind) is None:
            self.write(
                job,
                lambda found: set_condition(found.setdefault("status", {}), kind, reason, message),
            )
            self.event(job, reason, message, "Warning" if kind == "Failed" else "Normal")

    def _make(self, job: Object, spec: Object, index: int, rank: int, total: int) -> None:
        name = job["metadata"]["name"]
        template = {**spec["template"], "spec": {**spec["template"]["spec"]}}
        template["spec"].setdefault("restartPolicy", "Never")
        first = f"{name}-{job['spec']['replicaSpecs'][0]['name']}-0"
        values = {
            "PET_NNODES": total,
            "PET_NPROC_PER_NODE": job["spec"].get("nprocPerNode", "auto"),
            "PET_NODE_RANK": rank,
            "PET_MASTER_ADDR": first,
            "PET_MASTER_PORT": PORT,
        }
        env = [{"name": key, "value": str(value)} for key, value in values.items()]
        pod_name = f"{name}-{spec['name']}-{index}"
        self.service(job, pod_name, PORT)
        self.make_pod(job, pod_name, template, {"HyperPodPyTorchJob": name}, env)
