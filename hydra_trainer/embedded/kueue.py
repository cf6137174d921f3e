"""Kueue in small: a job with a queue waits suspended until the queue takes it.

A LocalQueue that exists takes every job, whatever it asks for: quota is not counted. One that does
not, or with a stopPolicy, keeps jobs waiting, and the job's Workload says so in Kueue's words.
Words and names as in kubernetes-sigs/kueue: pkg/controller/core/workload_controller.go,
pkg/controller/jobframework.
"""

import contextlib
import hashlib
from collections.abc import Iterable
from typing import Any

from .control import Key, controller_of, holds, labels_of, reference, settle, where
from .events import Recorder
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

QUEUE = "kueue.x-k8s.io/queue-name"
PRIORITY = "kueue.x-k8s.io/priority-class"
JOB_UID = "kueue.x-k8s.io/job-uid"

QUEUES = "localqueues.kueue.x-k8s.io"
WORKLOADS = "workloads.kueue.x-k8s.io"

JOBS = {
    "pytorchjobs.kubeflow.org": ("runPolicy", "suspend"),
    "trainjobs.trainer.kubeflow.org": ("suspend",),
    "hyperpodpytorchjobs.sagemaker.amazonaws.com": ("runPolicy", "suspend"),
    "jobsets.jobset.x-k8s.io": ("suspend",),
    "jobs.batch": ("suspend",),
}
"""The jobs that Kueue looks after, and where in their spec they are suspended."""

ENDS = ("Succeeded", "Failed", "Complete", "Completed")
LONGEST_NAME = 63
"""Characters of a Workload's name."""


class Kueue:
    """Suspends and starts the jobs of one kind."""

    def __init__(self, store: Store, resource: str) -> None:
        self.resource = resource
        self._path = JOBS[resource]
        self._store = store
        self._events = Recorder(store, f"{resource.partition('s.')[0]}-kueue-controller")

    @classmethod
    def of_all_kinds(cls, store: Store) -> "list[Kueue]":
        return [cls(store, resource) for resource in JOBS]

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        if resource != QUEUES:
            return
        namespace, name = where(obj)
        for record in self._store.records(self.resource, namespace, f"{QUEUE}={name}")[0]:
            yield record.key

    def reconcile(self, job: Object) -> None:
        queue = labels_of(job).get(QUEUE)
        if not queue or controller_of(job) or job["metadata"].get("deletionTimestamp"):
            return
        workload = self._workload(job, queue)
        status = workload.get("status") or {}
        if end := next((kind for kind in ENDS if holds(job.get("status"), kind)), None):
            reason = "Failed" if end == "Failed" else "Succeeded"
            self._write(workload, [("Finished", "True", reason, f"Job finished: {end}")])
            return
        found = self._find_queue(job, queue)
        problem = _problem(found, queue, is_in=holds(status, "Admitted"))
        if problem:
            self._send_away(job, workload, queue, problem)
        elif not holds(status, "Admitted"):
            self._admit(job, workload, found or {})
        self._suspend(job, bool(problem))

    def _find_queue(self, job: Object, queue: str) -> Object | None:
        with contextlib.suppress(ApiError):
            return self._store.get(QUEUES, where(job)[0], queue)
        return None

    # ------------------------------------------------------------------------------------ workloads

    def _workload(self, job: Object, queue: str) -> Object:
        """Return the Workload of a job, which is made if it has none."""
        namespace, name = where(job)[0], _workload_name(job)
        with contextlib.suppress(ApiError):
            return self._store.get(WORKLOADS, namespace, name)
        priority = labels_of(job).get(PRIORITY)
        workload = {
            "metadata": {
                "name": name,
                "labels": {JOB_UID: job["metadata"]["uid"]},
                "ownerReferences": [reference(job)],
            },
            "spec": {
                "active": True,
                "queueName": queue,
                "podSets": _pod_sets(job),
                **({"priorityClassName": priority} if priority else {}),
            },
        }
        made = self._store.create(WORKLOADS, namespace, workload)
        self._events.tell(job, "CreatedWorkload", f"Created Workload: {namespace}/{name}")
        return made

    def _admit(self, job: Object, workload: Object, queue: Object) -> None:
        cluster = (queue.get("spec") or {}).get("clusterQueue") or "default"
        reserved = f"Quota reserved in ClusterQueue {cluster}"
        self._write(
            workload,
            [
                ("QuotaReserved", "True", "QuotaReserved", reserved),
                ("Admitted", "True", "Admitted", "The workload is admitted"),
            ],
            admission={"clusterQueue": cluster, "podSetAssignments": []},
        )
        self._events.tell(workload, "QuotaReserved", f"{reserved}, wait time since queued was 0s")
        self._events.tell(job, "Started", f"Admitted by clusterQueue {cluster}")

    def _send_away(
        self, job: Object, workload: Object, queue: str, problem: tuple[str, str]
    ) -> None:
        reason, message = problem
        conditions = [("QuotaReserved", "False", reason, message)]
        if holds(workload.get("status"), "Admitted"):
            text = f"The LocalQueue {queue} is stopped"
            conditions += [
                ("Admitted", "False", "NoReservation", "The workload has no reservation"),
                ("Evicted", "True", "LocalQueueStopped", text),
            ]
            self._events.tell(job, "Stopped", text)
        self._write(workload, conditions)

    def _write(
        self,
        workload: Object,
        conditions: Iterable[tuple[str, str, str, str]],
        admission: Object | None = None,
    ) -> None:
        def write(found: Object) -> None:
            status = found.setdefault("status", {})
            for one in conditions:
                settle(status, *one)
            if admission is not None:
                status["admission"] = admission

        self._store.change(WORKLOADS, *where(workload), write, subresource="status")

    def _suspend(self, job: Object, value: bool) -> None:
        """Set the job's `suspend`, which is Kueue's as long as the job has a queue."""

        def write(found: Object) -> None:
            spec = found["spec"]
            for key in self._path[:-1]:
                spec = spec.setdefault(key, {})
            if bool(spec.get(self._path[-1])) is not value:
                spec[self._path[-1]] = value

        self._store.change(self.resource, *where(job), write)


class Queues:
    """Writes down how the LocalQueues are."""

    resource = QUEUES

    def __init__(self, store: Store) -> None:
        self._store = store

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        if resource == WORKLOADS:
            yield QUEUES, where(obj)[0], obj["spec"]["queueName"]

    def reconcile(self, queue: Object) -> None:
        namespace, name = where(queue)
        workloads = [
            one
            for one in self._store.list(WORKLOADS, namespace)[0]
            if one["spec"]["queueName"] == name and not holds(one.get("status"), "Finished")
        ]
        admitted = sum(holds(one.get("status"), "Admitted") for one in workloads)
        is_stopped = _policy(queue) != "None"

        def write(found: Object) -> None:
            status = found.setdefault("status", {})
            status |= {"pendingWorkloads": len(workloads) - admitted}
            status |= {"reservingWorkloads": admitted, "admittedWorkloads": admitted}
            if is_stopped:
                settle(status, "Active", "False", "StoppedByLocalQueue", "LocalQueue is stopped")
            else:
                text = "Can submit new workloads to localQueue"
                settle(status, "Active", "True", "Ready", text)

        self._store.change(QUEUES, namespace, name, write, subresource="status")


def _policy(queue: Object) -> str:
    return str((queue.get("spec") or {}).get("stopPolicy") or "None")


def _problem(queue: Object | None, name: str, *, is_in: bool) -> tuple[str, str] | None:
    """Return why a queue does not take a job, or let it stay: reason and message."""
    if queue is None:
        return None if is_in else ("Inadmissible", f"LocalQueue {name} doesn't exist")
    if _policy(queue) == "HoldAndDrain" or (_policy(queue) == "Hold" and not is_in):
        return "Inadmissible", f"LocalQueue {name} is inactive"
    return None


def _workload_name(job: Object) -> str:
    """Return the name that Kueue gives: kind, job, and five letters of a hash."""
    kind, name, uid = job["kind"], job["metadata"]["name"], job["metadata"]["uid"]
    group = job["apiVersion"].rpartition("/")[0]
    text = "\n".join((kind, group, name, uid))
    front = f"{kind.lower()}-{name}"[: LONGEST_NAME - 6]
    return f"{front}-{hashlib.sha1(text.encode()).hexdigest()[:5]}"


def _pod_sets(job: Object) -> list[Object]:
    """Return how many pods of which kind a job asks for, as far as its own spec says it."""
    spec = job["spec"]
    roles = [*(spec.get("pytorchReplicaSpecs") or {}).items()]
    roles += [(one["name"], one) for one in spec.get("replicaSpecs") or ()]
    if not roles:
        count = (spec.get("trainer") or {}).get("numNodes") or spec.get("parallelism") or 1
        return [{"name": "node", "count": count}]
    return [
        {"name": name.lower(), "count": role.get("replicas") or 1, "template": role["template"]}
        for name, role in roles
    ]
