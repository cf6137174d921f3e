"""JobSet of jobset.x-k8s.io/v1alpha2: Jobs that succeed, fail and start again together.

As kubernetes-sigs/jobset 0.12 does it: pkg/controllers/{jobset_controller,failure_policy}.go,
pkg/webhooks (for the defaults). Startup order, coordinators and exclusive placement are left out.
"""

import contextlib
import hashlib
from collections.abc import Iterable
from typing import Any

from .control import (
    Family,
    Key,
    find,
    holds,
    labels_of,
    reference,
    seconds_since,
    settle,
    status_of,
    where,
    write_status,
)
from .events import Recorder
from .metadata import copied
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

GROUP = "jobset.sigs.k8s.io"
RESTARTS = f"{GROUP}/restart-attempt"
FIRST = "(first failed job: {})"

PLACEMENT = {
    "metadata": ("labels", "annotations"),
    "spec": ("nodeSelector", "tolerations", "schedulingGates"),
}
"""What of its pod template a Job that goes on takes from its JobSet again."""


class JobSets:
    """The JobSet controller."""

    resource = "jobsets.jobset.x-k8s.io"

    def __init__(self, store: Store, family: Family) -> None:
        self.store = store
        self.family = family
        self.events = Recorder(store, "jobset-controller")

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        return ()

    def reconcile(self, jobset: Object) -> float | None:
        if jobset["metadata"].get("deletionTimestamp"):
            return None
        turn = _Turn(self, jobset)
        turn.run()
        write_status(self.store, jobset, turn.status)
        return turn.expires_in


class _Turn:
    """One look at a JobSet."""

    def __init__(self, jobsets: JobSets, jobset: Object) -> None:
        self.jobsets = jobsets
        self.store = jobsets.store
        self.jobset = jobset
        self.namespace, self.name = where(jobset)
        self.spec = jobset["spec"]
        self.replicated: list[Object] = self.spec.get("replicatedJobs") or []
        self.status = status_of(jobset)
        self.expires_in: float | None = None
        jobs = jobsets.family.children(jobset, "jobs.batch")
        attempt = int(self.status.get("restarts", 0))
        self.previous = [job for job in jobs if int(labels_of(job)[RESTARTS]) < attempt]
        self.jobs = [job for job in jobs if job not in self.previous]
        self.failed = [job for job in self.jobs if holds(job.get("status"), "Failed")]
        self.succeeded = [job for job in self.jobs if holds(job.get("status"), "Complete")]
        ended = [*self.failed, *self.succeeded]
        self.active = [job for job in self.jobs if job not in ended]

    @property
    def is_suspended(self) -> bool:
        return bool(self.spec.get("suspend"))

    def run(self) -> None:
        self.status["replicatedJobsStatus"] = [self._state(one) for one in self.replicated]
        if holds(self.status, "Completed") or holds(self.status, "Failed"):
            self._delete(self.active)
            self._expire()
            return
        self._delete(self.previous)
        if self.failed:
            self._fail()
            return
        if self.succeeded and self._is_complete():
            self._end("Completed", "AllJobsCompleted", "jobset completed successfully")
            return
        self._make_service()
        for replicated in self.replicated:
            if self._may_start(replicated):
                self._make_jobs(replicated)
        self._suspend_or_resume()

    # --------------------------------------------------------------------------------------- states

    def _of(self, jobs: Iterable[Object], replicated: Object) -> list[Object]:
        label = f"{GROUP}/replicatedjob-name"
        return [job for job in jobs if labels_of(job).get(label) == replicated["name"]]

    def _state(self, replicated: Object) -> Object:
        active = self._of(self.active, replicated)
        return {
            "name": replicated["name"],
            "ready": sum(map(_is_ready, active)),
            "succeeded": len(self._of(self.succeeded, replicated)),
            "failed": len(self._of(self.failed, replicated)),
            "active": sum(bool((job.get("status") or {}).get("active")) for job in active),
            "suspended": sum(bool(job["spec"].get("suspend")) for job in active),
        }

    def _may_start(self, replicated: Object) -> bool:
        """Whether the jobs that this one depends on have come so far."""
        states = {one["name"]: one for one in self.status["replicatedJobsStatus"]}
        for need in replicated.get("dependsOn") or ():
            state = states.get(need["name"], {"ready": 0, "succeeded": 0})
            came = state["succeeded"] + (state["ready"] if need["status"] == "Ready" else 0)
            other = next(one for one in self.replicated if one["name"] == need["name"])
            if came < other.get("replicas", 1):
                return False
        return True

    def _is_complete(self) -> bool:
        policy = self.spec.get("successPolicy") or {}
        meant = [
            one
            for one in self.replicated
            if one["name"] in (policy.get("targetReplicatedJobs") or [one["name"]])
        ]
        done = sum(len(self._of(self.succeeded, one)) for one in meant)
        wanted = sum(one.get("replicas", 1) for one in meant)
        return done >= (1 if policy.get("operator") == "Any" else wanted)

    # --------------------------------------------------------------------------------------- ending

    def _fail(self) -> None:
        """Start all jobs again, as often as the failurePolicy allows."""
        policy = self.spec.get("failurePolicy")
        first = min(self.failed, key=_failed_at)
        told = FIRST.format(first["metadata"]["name"])
        if policy is None:
            text = "jobset failed due to one or more job failures"
            self._end("Failed", "FailedJobs", f"{text} {told}")
            return
        action, job = _action(policy, self.failed, first)
        told = FIRST.format(job["metadata"]["name"])
        if action == "FailJobSet":
            text = f"applying FailJobSet failure policy action {told}"
            self._end("Failed", "FailJobSetFailurePolicyAction", text)
            return
        counted = int(self.status.get("restartsCountTowardsMax", 0))
        if action == "RestartJobSet" and counted >= policy.get("maxRestarts", 0):
            text = f"jobset failed due to reaching max number of restarts {told}"
            self._end("Failed", "ReachedMaxRestarts", text)
            return
        self.status["restarts"] = int(self.status.get("restarts", 0)) + 1
        if action == "RestartJobSet":
            self.status["restartsCountTowardsMax"] = counted + 1
        text = f"applying {action} failure policy action {told}"
        self._tell(f"{action}FailurePolicyAction", text, "Warning")

    def _end(self, kind: str, reason: str, message: str) -> None:
        settle(self.status, kind, "True", reason, message)
        self.status["terminalState"] = kind
        self._tell(reason, message, "Warning" if kind == "Failed" else "Normal")

    def _expire(self) -> None:
        seconds = self.spec.get("ttlSecondsAfterFinished")
        conditions = self.status["conditions"]
        end = find(conditions, "Completed") or find(conditions, "Failed")
        if seconds is None or end is None:
            return
        self.expires_in = max(0.0, seconds - seconds_since(end["lastTransitionTime"]))
        if not self.expires_in:
            self.store.delete(self.jobsets.resource, self.namespace, self.name)

    def _suspend_or_resume(self) -> None:
        for job in self.active:
            if bool(job["spec"].get("suspend")) is not self.is_suspended:
                with contextlib.suppress(ApiError):
                    self.store.change("jobs.batch", *where(job), self._toggle)
        if self.is_suspended:
            self._settle("True", "SuspendedJobs", "jobset is suspended")
        elif holds(self.status, "Suspended"):
            self._settle("False", "ResumeJobs", "jobset is resumed")

    def _toggle(self, job: Object) -> None:
        """Let a job be suspended, or go on with what the JobSet says by now of where it is to run.

        Kueue writes that while a JobSet is suspended.
        """
        job["spec"]["suspend"] = self.is_suspended
        if self.is_suspended:
            return
        name = labels_of(job)[f"{GROUP}/replicatedjob-name"]
        replicated = next(one for one in self.replicated if one["name"] == name)
        theirs, own = replicated["template"]["spec"]["template"], job["spec"]["template"]
        for part, keys in PLACEMENT.items():
            for key in keys:
                old, new = (one.get(part, {}).get(key) for one in (own, theirs))
                if isinstance(new, dict):
                    own.setdefault(part, {})[key] = {**(old or {}), **new}
                elif new:
                    more = [one for one in new if one not in (old or ())]
                    own.setdefault(part, {})[key] = [*(old or ()), *more]

    def _settle(self, value: str, reason: str, message: str) -> None:
        if settle(self.status, "Suspended", value, reason, message):
            self._tell(reason, message)

    def _delete(self, jobs: Iterable[Object]) -> None:
        for job in jobs:
            if not job["metadata"].get("deletionTimestamp"):
                with contextlib.suppress(ApiError):
                    self.store.delete("jobs.batch", *where(job), propagation="Foreground")

    def _tell(self, reason: str, message: str, kind: str = "Normal") -> None:
        self.jobsets.events.tell(self.jobset, reason, message, kind)

    # --------------------------------------------------------------------------------------- making

    @property
    def _subdomain(self) -> str:
        return str((self.spec.get("network") or {}).get("subdomain") or self.name)

    @property
    def _has_names(self) -> bool:
        return bool((self.spec.get("network") or {}).get("enableDNSHostnames", True))

    def _make_service(self) -> None:
        if not self._has_names:
            return
        spec = {
            "clusterIP": "None",
            "selector": {f"{GROUP}/jobset-name": self.name},
            "publishNotReadyAddresses": True,
        }
        meta = {"name": self._subdomain, "ownerReferences": [reference(self.jobset)]}
        with contextlib.suppress(ApiError):  # it is there
            self.store.create("services", self.namespace, {"metadata": meta, "spec": spec})

    def _make_jobs(self, replicated: Object) -> None:
        there = {job["metadata"]["name"] for job in (*self.jobs, *self.previous)}
        for index in range(replicated.get("replicas", 1)):
            name = f"{self.name}-{replicated['name']}-{index}"
            if name not in there:
                self.store.create("jobs.batch", self.namespace, self._job(replicated, index, name))

    def _job(self, replicated: Object, index: int, name: str) -> Object:
        template: Object = copied(replicated["template"])
        spec = template["spec"]
        spec.setdefault("completionMode", "Indexed")
        spec.setdefault("parallelism", 1)
        spec.setdefault("backoffLimit", 6)
        if spec["completionMode"] == "Indexed":
            spec.setdefault("completions", spec["parallelism"])
        spec["suspend"] = self.is_suspended
        pod = spec["template"]
        pod["spec"].setdefault("restartPolicy", "OnFailure")
        if self._has_names:
            pod["spec"]["subdomain"] = self._subdomain
        labels = self._labels(replicated, index, name)
        for thing in (template, pod):
            meta = thing.setdefault("metadata", {})
            for key in ("labels", "annotations"):
                meta[key] = {**(meta.get(key) or {}), **labels}
        meta = {**template["metadata"], "name": name, "ownerReferences": [reference(self.jobset)]}
        return {"metadata": meta, "spec": spec}

    def _labels(self, replicated: Object, index: int, name: str) -> dict[str, str]:
        """Return the labels of a Job and its pods, which are their annotations too."""
        before = self.replicated[: self.replicated.index(replicated)]
        key = hashlib.sha1(f"{self.namespace}/{name}".encode()).hexdigest()
        values = {
            "jobset-name": self.name,
            "jobset-uid": self.jobset["metadata"]["uid"],
            "replicatedjob-name": replicated["name"],
            "replicatedjob-replicas": replicated.get("replicas", 1),
            "global-replicas": sum(one.get("replicas", 1) for one in self.replicated),
            "restart-attempt": self.status.get("restarts", 0),
            "job-index": index,
            "job-global-index": sum(one.get("replicas", 1) for one in before) + index,
            "job-key": key,
        }
        return {f"{GROUP}/{label}": str(value) for label, value in values.items()}


def _is_ready(job: Object) -> bool:
    status, spec = job.get("status") or {}, job["spec"]
    wanted = min(spec.get("parallelism", 1), spec.get("completions") or spec.get("parallelism", 1))
    return bool(status.get("ready", 0) + status.get("succeeded", 0) >= wanted)


def _failed_at(job: Object) -> str:
    found = find(job["status"]["conditions"], "Failed")
    return str(found["lastTransitionTime"]) if found else ""


def _action(policy: Object, failed: list[Object], first: Object) -> tuple[str, Object]:
    """Return what the first rule that fits wants, and the job that it fits."""
    for rule in policy.get("rules") or ():
        for job in sorted(failed, key=_failed_at):
            condition = find(job["status"]["conditions"], "Failed") or {}
            reasons = rule.get("onJobFailureReasons") or [condition.get("reason")]
            targets = rule.get("targetReplicatedJobs")
            parent = labels_of(job).get(f"{GROUP}/replicatedjob-name")
            if condition.get("reason") in reasons and parent in (targets or [parent]):
                return str(rule["action"]), job
    return "RestartJobSet", first
