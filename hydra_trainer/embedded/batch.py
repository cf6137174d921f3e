"""Job of batch/v1: pods until so many have succeeded, indexed or not.

https://kubernetes.io/docs/concepts/workloads/controllers/job/
Counts pods as the real controller does: each carries a finalizer until it is in the job's status.
"""

import contextlib
import time
from collections.abc import Iterable
from typing import Any

from .control import (
    Family,
    Key,
    controller_of,
    find,
    holds,
    labels_of,
    phase_of,
    reference,
    seconds_since,
    settle,
    status_of,
    where,
    write_status,
)
from .events import Recorder
from .kubelet import LONGEST_BACK_OFF
from .metadata import copied, now
from .podstatus import OVER
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

TRACKED = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"
BACKOFF_LIMIT = 6

Failure = tuple[str, str]
"""Reason and message of the condition Failed."""


class Jobs:
    """The job controller.

    Args:
        back_off: seconds before a pod that failed is replaced the first time, twice as long each
            time after that. A real one waits 10 seconds.
    """

    resource = "jobs.batch"

    def __init__(self, store: Store, family: Family, back_off: float) -> None:
        self.store = store
        self.family = family
        self.events = Recorder(store, "job-controller")
        self._back_off = back_off
        self._pauses: dict[str, tuple[int, float]] = {}  # by uid: failures, until when

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        if kind == "DELETED":
            self._pauses.pop(obj["metadata"]["uid"], None)
        return ()

    def pause(self, uid: str, failed: int) -> float:
        """Return the seconds that are left before a job that had so many failures goes on."""
        before, until = self._pauses.get(uid, (0, 0.0))
        if failed > before:
            seconds = min(self._back_off * 2 ** (failed - 1), LONGEST_BACK_OFF)
            until = time.monotonic() + seconds
            self._pauses[uid] = (failed, until)
        return until - time.monotonic()

    def reconcile(self, job: Object) -> float | None:
        turn = _Turn(self, job)
        if not job["metadata"].get("deletionTimestamp"):
            turn.run()
        write_status(self.store, job, turn.status)
        turn.let_go()
        return turn.again_in


class Orphans:
    """Lets pods go whose job is no longer there to count them."""

    resource = "pods"

    def __init__(self, store: Store) -> None:
        self._store = store

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        return ()

    def reconcile(self, pod: Object) -> None:
        if TRACKED not in pod["metadata"].get("finalizers", ()):
            return
        owner = controller_of(pod) or {"name": "", "uid": ""}
        name = f"metadata.name={owner['name']}"
        jobs, _ = self._store.records("jobs.batch", where(pod)[0], fields=name)
        if owner["uid"] not in [job.uid for job in jobs]:
            release(self._store, pod)


def release(store: Store, pod: Object) -> None:
    """Take the finalizer of the job controller from a pod."""

    def write(found: Object) -> None:
        meta = found["metadata"]
        if TRACKED in meta.get("finalizers", ()):
            meta["finalizers"] = [one for one in meta["finalizers"] if one != TRACKED]

    with contextlib.suppress(ApiError):
        store.change("pods", *where(pod), write)


class _Turn:
    """One look at a job."""

    def __init__(self, jobs: Jobs, job: Object) -> None:
        self.jobs = jobs
        self.store = jobs.store
        self.job = job
        self.namespace, self.name = where(job)
        self.spec = job["spec"]
        self.status = status_of(job)
        self.pods = jobs.family.children(job, "pods")
        self.counted: list[Object] = []
        self.again_in: float | None = None
        self.count = int(self.spec.get("parallelism", 1))
        self.completions = self.spec.get("completions")
        self.is_indexed = self.spec.get("completionMode") == "Indexed"

    def run(self) -> None:
        if self._is_finished:
            self._expire()
            return
        failure = self._count()
        self._count_active()
        if target := find(self.status.get("conditions"), "FailureTarget"):
            self._fail((target["reason"], target["message"]))
            return
        if self._is_complete():
            self._complete()
            return
        failure = failure or self._exceeds()
        if self.spec.get("suspend"):
            self._suspend()
        elif failure:
            self._fail(failure)
        else:
            self._go_on()

    @property
    def _is_finished(self) -> bool:
        return holds(self.status, "Complete") or holds(self.status, "Failed")

    @property
    def active(self) -> list[Object]:
        return [pod for pod in self.pods if phase_of(pod) not in OVER]

    def let_go(self) -> None:
        """Take the finalizer from pods that are counted, or that nobody counts any more."""
        is_going = self.job["metadata"].get("deletionTimestamp") or self._is_finished
        for pod in self.pods if is_going else self.counted:
            release(self.store, pod)

    # ------------------------------------------------------------------------------------- counting

    def _count(self) -> Failure | None:
        """Count the pods that ended since the last time; return what the failure policy says."""
        found: Failure | None = None
        for pod in self.pods:
            is_lost = pod["metadata"].get("deletionTimestamp") and not pod["spec"].get("nodeName")
            if TRACKED not in pod["metadata"].get("finalizers", ()):
                continue
            if phase_of(pod) not in OVER and not is_lost:
                continue
            self.counted.append(pod)
            if phase_of(pod) == "Succeeded":
                self._count_success(pod)
                continue
            action, failure = self._rule(pod)
            found = found or failure
            if action != "Ignore":
                self.status["failed"] = self.status.get("failed", 0) + 1
        return found

    def _count_success(self, pod: Object) -> None:
        if self.is_indexed:
            done = _indexes(self.status.get("completedIndexes", ""))
            done.add(int(labels_of(pod)[INDEX]))
            self.status["completedIndexes"] = _intervals(done)
            self.status["succeeded"] = len(done)
        else:
            self.status["succeeded"] = self.status.get("succeeded", 0) + 1

    def _count_active(self) -> None:
        going = sum("deletionTimestamp" in pod["metadata"] for pod in self.active)
        ready = sum(holds(pod.get("status"), "Ready") for pod in self.active)
        self.status |= {"ready": ready, "terminating": going, "uncountedTerminatedPods": {}}
        self.status.pop("active", None)
        if len(self.active) > going:
            self.status["active"] = len(self.active) - going

    def _rule(self, pod: Object) -> tuple[str, Failure | None]:
        """Return what podFailurePolicy does about a pod that failed."""
        rules = (self.spec.get("podFailurePolicy") or {}).get("rules") or ()
        for number, rule in enumerate(rules):
            if words := _matches(rule, pod):
                if rule["action"] != "FailJob":
                    return rule["action"], None
                text = f"{words} matching FailJob rule at index {number}"
                return "FailJob", ("PodFailurePolicy", text)
        return "Count", None

    def _exceeds(self) -> Failure | None:
        limit = self.spec.get("backoffLimit", BACKOFF_LIMIT)
        in_place = sum(
            int(one["restartCount"])
            for pod in self.active
            for one in (pod.get("status") or {}).get("containerStatuses") or ()
        )
        if self.status.get("failed", 0) > limit or in_place >= max(limit, 1):
            return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
        seconds, started = self.spec.get("activeDeadlineSeconds"), self.status.get("startTime")
        if seconds is None or not started or self.spec.get("suspend"):
            return None
        self.again_in = seconds - seconds_since(started)
        if self.again_in > 0:
            return None
        self.again_in = None
        return "DeadlineExceeded", "Job was active longer than specified deadline"

    # --------------------------------------------------------------------------------------- going

    def _go_on(self) -> None:
        if holds(self.status, "Suspended"):
            self._settle("Suspended", "False", "JobResumed", "Job resumed")
            self.jobs.events.tell(self.job, "Resumed", "Job resumed")
            self.status.pop("startTime", None)
        self.status.setdefault("startTime", now())
        wanted = self._missing()
        uid, failed = self.job["metadata"]["uid"], self.status.get("failed", 0)
        if wanted and failed and (pause := self.jobs.pause(uid, failed)) > 0:
            self.again_in = min(pause, self.again_in or pause)
            return
        for index in wanted:
            self._make(index)

    def _missing(self) -> list[int | None]:
        """Return the indexes that need a pod; None for each pod of a job without."""
        # One that is still ending keeps its place: podReplacementPolicy Failed, which a
        # podFailurePolicy implies.
        policy = self.spec.get("podReplacementPolicy") or (
            "Failed" if "podFailurePolicy" in self.spec else "TerminatingOrFailed"
        )
        there = [
            pod
            for pod in self.active
            if policy == "Failed" or not pod["metadata"].get("deletionTimestamp")
        ]
        if not self.is_indexed:
            left = self.completions if self.completions is not None else self.count
            room = min(self.count, left - self.status.get("succeeded", 0)) - len(there)
            return [None] * max(0, room)
        taken = {int(labels_of(pod)[INDEX]) for pod in there}
        taken |= _indexes(self.status.get("completedIndexes", ""))
        free = [index for index in range(int(self.completions or self.count)) if index not in taken]
        return list(free[: max(0, self.count - len(there))])

    def _make(self, index: int | None) -> None:
        template: Object = copied(self.spec["template"])
        meta, spec = template.get("metadata") or {}, template["spec"]
        uid = self.job["metadata"]["uid"]
        labels = {"job-name": self.name, "controller-uid": uid}
        labels |= {f"batch.kubernetes.io/{key}": value for key, value in labels.items()}
        annotations = dict(meta.get("annotations") or {})
        front = self.name
        if index is not None:
            front = f"{self.name}-{index}"
            labels[INDEX] = annotations[INDEX] = str(index)
            spec.setdefault("hostname", front)
            source = {"fieldRef": {"fieldPath": f"metadata.labels['{INDEX}']"}}
            for container in (*(spec.get("initContainers") or ()), *spec["containers"]):
                own = {"name": "JOB_COMPLETION_INDEX", "valueFrom": source}
                container["env"] = [*(container.get("env") or ()), own]
        pod = {
            "metadata": {
                "generateName": f"{front}-",
                "labels": {**(meta.get("labels") or {}), **labels},
                "annotations": annotations,
                "finalizers": [TRACKED],
                "ownerReferences": [reference(self.job)],
            },
            "spec": spec,
        }
        made = self.store.create("pods", self.namespace, pod)
        text = f"Created pod: {made['metadata']['name']}"
        self.jobs.events.tell(self.job, "SuccessfulCreate", text)

    def _suspend(self) -> None:
        self._delete_active()
        if not holds(self.status, "Suspended"):
            self._settle("Suspended", "True", "JobSuspended", "Job suspended")
            self.jobs.events.tell(self.job, "Suspended", "Job suspended")

    # --------------------------------------------------------------------------------------- ending

    def _is_complete(self) -> bool:
        succeeded = self.status.get("succeeded", 0)
        if self.completions is None:
            return bool(succeeded) and not self.active
        return bool(succeeded >= int(self.completions))

    def _complete(self) -> None:
        text = "Reached expected number of succeeded pods"
        self._settle("SuccessCriteriaMet", "True", "CompletionsReached", text)
        self._delete_active()
        if not self.active:
            self.status["completionTime"] = now()
            self._settle("Complete", "True", "CompletionsReached", text)
            self.jobs.events.tell(self.job, "Completed", "Job completed")

    def _fail(self, failure: Failure) -> None:
        """End all pods; the job has failed when the last of them has."""
        self._settle("FailureTarget", "True", *failure)
        self._delete_active()
        if not self.active:
            self._settle("Failed", "True", *failure)
            self.jobs.events.tell(self.job, *failure, "Warning")

    def _expire(self) -> None:
        seconds = self.spec.get("ttlSecondsAfterFinished")
        end = find(self.status["conditions"], "Failed") or find(
            self.status["conditions"], "Complete"
        )
        if seconds is None or end is None:
            return
        self.again_in = max(0.0, seconds - seconds_since(end["lastTransitionTime"]))
        if not self.again_in:
            self.store.delete("jobs.batch", self.namespace, self.name)

    def _delete_active(self) -> None:
        for pod in self.active:
            if not pod["metadata"].get("deletionTimestamp"):
                with contextlib.suppress(ApiError):
                    self.store.delete("pods", *where(pod))
                    text = f"Deleted pod: {pod['metadata']['name']}"
                    self.jobs.events.tell(self.job, "SuccessfulDelete", text)

    def _settle(self, kind: str, value: str, reason: str, message: str) -> None:
        settle(self.status, kind, value, reason, message)


def _matches(rule: Object, pod: Object) -> str:
    """Return in which words a rule of a podFailurePolicy fits a pod; empty when it does not."""
    place = "/".join(where(pod))
    status = pod.get("status") or {}
    if codes := rule.get("onExitCodes"):
        for one in status.get("containerStatuses") or ():
            code = (one["state"].get("terminated") or {}).get("exitCode", 0)
            is_meant = codes.get("containerName") in (None, one["name"])
            if code and is_meant and (code in codes["values"]) is (codes["operator"] == "In"):
                return f"Container {one['name']} for pod {place} failed with exit code {code}"
    for pattern in rule.get("onPodConditions") or ():
        found = find(status.get("conditions"), pattern["type"])
        if found and found["status"] == pattern.get("status", "True"):
            return f"Pod {place} has condition {pattern['type']}"
    return ""


def _indexes(text: str) -> set[int]:
    """Parse 0,2-4."""
    found: set[int] = set()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found |= {*range(int(first), int(last or first) + 1)}
    return found


def _intervals(indexes: Iterable[int]) -> str:
    """Return 0,2-4 for 0, 2, 3, 4."""
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and parts[-1][-1] == index - 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    words = [f"{part[0]}-{part[-1]}" if len(part) > 2 else _joined(part) for part in parts]
    return ",".join(words)


def _joined(numbers: Iterable[int]) -> str:
    return ",".join(map(str, numbers))
