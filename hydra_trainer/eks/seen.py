"""What a cluster shows of one job, and how to read it. Pure: dicts as the API returns them."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from . import marks

Object = dict[str, Any]
"""One object of the Kubernetes API."""

CONTAINERS = ("pytorch", "node")
"""The training container of a PyTorchJob and of a TrainJob; elsewhere it is the first one."""

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"

QUIET = (
    *("Scheduled", "Pulling", "Pulled", "Created", "Started", "Killing", "SuccessfulCreate"),
    *("SuccessfulCreatePod", "SuccessfulCreateService", "SuccessfulDeletePod"),
    *("SuccessfulDeleteService", "SuccessfulDelete", "CreatedWorkload", "Admitted"),
    *("PyTorchJobCreated", "PyTorchJobRunning", "QuotaReserved", "TaintManagerEviction"),
)
"""Reasons of events that tell a user nothing new."""


class Seen(NamedTuple):
    """What a cluster shows of one job.

    `events` may be those of the whole namespace; `workload` is Kueue's, where there is one.
    """

    job: Object | None
    pods: list[Object]
    events: list[Object]
    workload: Object | None = None

    @property
    def name(self) -> str:
        labels = [label(pod, marks.JOB) for pod in self.pods]
        return at(self.job, "metadata", "name") or next((name for name in labels if name), "job")

    @property
    def namespace(self) -> str:
        first = self.job or next(iter(self.pods), None)
        return at(first, "metadata", "namespace") or "default"

    @property
    def kind(self) -> str:
        return at(self.job, "kind") or "job"

    @property
    def suspended(self) -> bool:
        spec = at(self.job, "spec") or {}
        return bool(spec.get("suspend") or at(spec, "runPolicy", "suspend"))

    @property
    def wanted(self) -> int:
        """How many pods the job's spec asks for; 1 when it does not say."""
        spec = at(self.job, "spec") or {}
        roles = [
            *(spec.get("pytorchReplicaSpecs") or {}).values(),
            *(spec.get("replicaSpecs") or []),
        ]
        if roles:
            return sum(int(role.get("replicas") or 1) for role in roles)
        return int(at(spec, "trainer", "numNodes") or 1)

    @property
    def live(self) -> list[Object]:
        """The pods of the present attempt: of a batch Job, which keeps old ones, the newest."""
        newest = {}
        for pod in sorted(
            self.pods, key=lambda pod: at(pod, "metadata", "creationTimestamp") or ""
        ):
            newest[label(pod, INDEX_LABEL) or pod["metadata"]["name"]] = pod
        return list(newest.values())

    def conditions(self, kind: str) -> list[Object]:
        """Return the job's conditions of a type: one or none."""
        conditions = at(self.job, "status", "conditions") or []
        return [item for item in conditions if item["type"] == kind]

    def short(self, name: str) -> str:
        """Return a pod's name without the job's, which the reader knows."""
        return name.removeprefix(f"{self.name}-") or name

    def events_of(self, about: str | None = None) -> list[Object]:
        """Return the events of the job and all that is its own, or of one object, oldest first."""
        known = {self.name, *(pod["metadata"]["name"] for pod in self.pods), *self._claims()}
        known.add(at(self.workload, "metadata", "name") or self.name)
        # Pods that have been replaced, and what stands between a job and its pods.
        family = re.compile(re.escape(self.name) + r"-(master|worker|node|pods?)-\d[a-z0-9-]*$")
        found = []
        for event in self.events:
            target = subject(event)
            if not event.get("reason"):
                continue
            if target == about if about else target in known or family.match(target):
                found.append(event)
        return sorted(found, key=when)

    def _claims(self) -> Iterator[str]:
        for pod in self.pods:
            for volume in at(pod, "spec", "volumes") or []:
                if claim := at(volume, "persistentVolumeClaim", "claimName"):
                    yield claim


# -------------------------------------------------------------------------------------- any object


def at(value: Any, *keys: str) -> Any:
    """Return a part of an object, or None where some part of the way is missing or null."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def is_true(condition: Object | None) -> bool:
    """Tell whether a condition is there and True: False and Unknown are kept in lists, too."""
    return condition is not None and condition.get("status") == "True"


def label(thing: Object, name: str) -> str | None:
    """Return a label, or an annotation where the label is missing."""
    found = [at(thing, "metadata", kind, name) for kind in ("labels", "annotations")]
    return next((str(value) for value in found if value is not None), None)


# -------------------------------------------------------------------------------------------- pods


def holds_rank_0(pod: Object) -> bool:
    """Tell whether this pod is the one that rank 0 is most likely on."""
    if label(pod, "training.kubeflow.org/job-role") == "master":
        return True
    index = label(pod, INDEX_LABEL) or label(pod, "apps.kubernetes.io/pod-index")
    return index == "0" or bool(re.search(r"-pods?-0$", pod["metadata"]["name"]))


def container(pod: Object) -> Object:
    """Return the status of the training container; empty while there is none."""
    statuses = at(pod, "status", "containerStatuses") or []
    named = [item for item in statuses if item["name"] in CONTAINERS]
    return dict(next(iter(named or statuses), {}))


def has_started(pod: Object) -> bool:
    """Tell whether the training container runs or has run."""
    found = container(pod)
    ran = [at(found, "state", "running"), at(found, "state", "terminated")]
    ran.append(at(found, "lastState", "terminated"))
    return at(pod, "status", "phase") in ("Succeeded", "Failed") or any(
        state is not None for state in ran
    )


def waits_of(pod: Object) -> Iterator[Object]:
    """Yield what the containers of a pod wait for, init containers first."""
    for kind in ("initContainerStatuses", "containerStatuses"):
        for item in at(pod, "status", kind) or []:
            if found := at(item, "state", "waiting"):
                yield found


# ------------------------------------------------------------------------------------------ events


def matters(event: Object) -> bool:
    """Tell whether an event says something that a user who waits for a job wants to hear."""
    return event.get("type") == "Warning" or event.get("reason") not in QUIET


def subject(event: Object) -> str:
    """Return the name of the object that an event is about."""
    return str(at(event, "involvedObject", "name") or "")


def source(event: Object) -> str:
    """Return who reported an event: an old-style source or a new-style controller."""
    return str(at(event, "source", "component") or event.get("reportingComponent") or "")


def when(event: Object) -> str:
    """Return when an event was last seen; new-style events have no lastTimestamp."""
    series = at(event, "series", "lastObservedTime")
    created = at(event, "metadata", "creationTimestamp")
    return str(series or event.get("lastTimestamp") or event.get("eventTime") or created or "")


def times(event: Object) -> int:
    """Return how often an event was seen."""
    return int(at(event, "series", "count") or event.get("count") or 1)


def said(event: Object) -> str:
    """Return the message of an event on one line."""
    return tidy(event.get("message") or "")


# -------------------------------------------------------------------------------------------- text


def tidy(words: str) -> str:
    """Return a message of the cluster on one line, without what never helps."""
    words = re.sub(r"(?s)[,.]? (preemption: |no new claims to deallocate).*", ".", words)
    words = re.sub(r"\(UID: [\w-]+\)\s*", "", words)
    return re.sub(r"\s+", " ", words).strip()


def first_line(text: Any) -> str:
    return str(text or "").strip().split("\n", 1)[0]


def count(things: list[Object] | int, noun: str) -> str:
    """Return '1 pod' or '2 pods'."""
    number = things if isinstance(things, int) else len(things)
    return f"{number} {noun}{'s' * (number != 1)}"
