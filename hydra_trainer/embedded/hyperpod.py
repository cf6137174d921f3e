"""HyperPodPyTorchJob of sagemaker.amazonaws.com/v1, as far as it is public.

The operator is closed. Public are the fields of the object and of its status, with a sentence each
(github.com/aws/sagemaker-hyperpod-cli: hyperpod_pytorch_job_config.py, ..._status.py), and AWS's
guide. Assumed, as the simplest that fits them:
- pods are named JOB-REPLICASPEC-INDEX (the CLI looks for JOB-pod...) and do not restart in place;
- PET_* as Kubeflow Trainer sets them; master_addr and master_port are those of the status;
- a pod that failed is made anew, whatever its exit code, up to jobMaxRetryCount times in all;
- conditions Created, Running, Restarting, Suspended, Completed, Failed;
- cleanPodPolicy OnlyComplete: pods that are done stay, others go, as Kubeflow's Running.
"""

import contextlib
from collections.abc import Iterable
from typing import Any

from .control import (
    Family,
    Key,
    find,
    holds,
    phase_of,
    reference,
    seconds_since,
    settle,
    status_of,
    where,
    write_status,
)
from .events import Recorder
from .metadata import copied, now
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

NAME_LABEL = "HyperPodPyTorchJob"
INDEX_LABEL = "apps.kubernetes.io/pod-index"
PORT = 23456
FOREVER = -1  # ttlSecondsAfterFinished


class HyperPodJobs:
    """The HyperPod training operator."""

    resource = "hyperpodpytorchjobs.sagemaker.amazonaws.com"

    def __init__(self, store: Store, family: Family) -> None:
        self.store = store
        self.family = family
        self.events = Recorder(store, "hyperpodpytorchjob-controller")

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        return ()

    def reconcile(self, job: Object) -> float | None:
        if job["metadata"].get("deletionTimestamp"):
            return None
        turn = _Turn(self, job)
        turn.run()
        write_status(self.store, job, turn.status)
        return turn.again_in


class _Turn:
    """One look at a job."""

    def __init__(self, operator: HyperPodJobs, job: Object) -> None:
        self.operator = operator
        self.store = operator.store
        self.job = job
        self.namespace, self.name = where(job)
        self.policy = job["spec"].get("runPolicy") or {}
        self.roles: list[Object] = job["spec"].get("replicaSpecs") or []
        self.status = status_of(job)
        self.pods = {pod["metadata"]["name"]: pod for pod in operator.family.children(job, "pods")}
        self.again_in: float | None = None

    def run(self) -> None:
        self._set("Created", "JobCreated", f"HyperPodPyTorchJob {self.name} is created.")
        if holds(self.status, "Completed") or holds(self.status, "Failed"):
            self._after()
            return
        if self.policy.get("suspend"):
            self._suspend()
            return
        if holds(self.status, "Suspended"):
            self._set("Suspended", "JobResumed", "The job is resumed.", "False")
        self.status.setdefault("startTime", now())
        self.status |= {"masterAddr": self._first, "masterPort": str(PORT)}
        if self._is_late():
            text = "The job was active longer than its activeDeadlineSeconds."
            self._end("Failed", "DeadlineExceeded", text)
            return
        if text := self._replace():
            self._end("Failed", "MaxRetryCountExceeded", text)
            return
        self._make()
        phases = [phase_of(pod) for pod in self.pods.values()]
        if phases and all(phase == "Succeeded" for phase in phases):
            self._end("Completed", "JobCompleted", "All pods of the job have completed.")
        elif "Running" in phases:
            self._set("Running", "JobRunning", f"HyperPodPyTorchJob {self.name} is running.")

    @property
    def _first(self) -> str:
        return f"{self.name}-{self.roles[0]['name']}-0" if self.roles else self.name

    def _replace(self) -> str:
        """Take failed pods away to be made anew; return why the job fails, if it does."""
        for name, pod in [*self.pods.items()]:
            if phase_of(pod) != "Failed" or pod["metadata"].get("deletionTimestamp"):
                continue
            count = int(self.status.get("restartCount", 0))
            if count >= int(self.policy.get("jobMaxRetryCount") or 0):
                return f"Pod {name} has failed, and the job was retried {count} times."
            self.status["restartCount"] = count + 1
            text = f"Pod {name} has failed and is made anew."
            self._set("Restarting", "JobRestarting", text)
            self.operator.events.tell(self.job, "JobRestarting", text, "Warning")
            self._delete(pod)
            del self.pods[name]
        return ""

    def _make(self) -> None:
        total = sum(int(role.get("replicas") or 1) for role in self.roles)
        rank = 0
        for role in self.roles:
            for index in range(int(role.get("replicas") or 1)):
                name = f"{self.name}-{role['name']}-{index}"
                if name not in self.pods:
                    self._make_pod(role, name, index, rank, total)
                rank += 1

    def _make_pod(self, role: Object, name: str, index: int, rank: int, total: int) -> None:
        template: Object = copied(role.get("template") or {})
        meta, spec = template.get("metadata") or {}, template["spec"]
        spec["restartPolicy"] = "Never"
        values = {
            "PET_NNODES": total,
            "PET_NPROC_PER_NODE": self.job["spec"].get("nprocPerNode") or "auto",
            "PET_NODE_RANK": rank,
            "PET_MASTER_ADDR": self._first,
            "PET_MASTER_PORT": PORT,
        }
        env = [{"name": key, "value": str(value)} for key, value in values.items()]
        for container in spec["containers"]:
            container["env"] = [*(container.get("env") or ()), *env]
        labels = {NAME_LABEL: self.name, INDEX_LABEL: str(index)}
        owner = [reference(self.job)]
        pod = {
            "metadata": {
                "name": name,
                "labels": {**(meta.get("labels") or {}), **labels},
                "annotations": meta.get("annotations") or {},
                "ownerReferences": owner,
            },
            "spec": spec,
        }
        with contextlib.suppress(ApiError):  # the one before it is still ending
            self.store.create("pods", self.namespace, pod)
            self.operator.events.tell(self.job, "SuccessfulCreatePod", f"Created pod: {name}")

    def _suspend(self) -> None:
        for pod in self.pods.values():
            self._delete(pod)
        self._set("Suspended", "JobSuspended", f"HyperPodPyTorchJob {self.name} is suspended.")
        self.status.pop("startTime", None)

    def _is_late(self) -> bool:
        seconds = self.policy.get("activeDeadlineSeconds")
        if seconds is None:
            return False
        left = float(seconds) - seconds_since(self.status["startTime"])
        self.again_in = left if left > 0 else None
        return left <= 0

    def _after(self) -> None:
        policy = self.policy.get("cleanPodPolicy") or "All"
        for pod in self.pods.values():
            is_active = phase_of(pod) in ("Pending", "Running")
            if policy == "All" or (policy != "None" and is_active):
                self._delete(pod)
        seconds = self.policy.get("ttlSecondsAfterFinished")
        if seconds is None or seconds == FOREVER:
            return
        self.again_in = max(0.0, seconds - seconds_since(self.status["completionTime"]))
        if not self.again_in:
            self.store.delete(self.operator.resource, self.namespace, self.name)

    def _end(self, kind: str, reason: str, message: str) -> None:
        self.status["completionTime"] = now()
        self._set(kind, reason, message)
        self.operator.events.tell(
            self.job, reason, message, "Warning" if kind == "Failed" else "Normal"
        )

    def _delete(self, pod: Object) -> None:
        if not pod["metadata"].get("deletionTimestamp"):
            with contextlib.suppress(ApiError):
                self.store.delete("pods", *where(pod))

    def _set(self, kind: str, reason: str, message: str, value: str = "True") -> None:
        """Set a condition; of those that say what goes on now, only one is True."""
        settle(self.status, kind, value, reason, message)
        now_going = ("Running", "Restarting", "Suspended", "Completed", "Failed")
        for other in now_going:
            old = find(self.status["conditions"], other)
            if other != kind and kind in now_going and value == "True" and old:
                settle(self.status, other, "False", old["reason"], old["message"])
