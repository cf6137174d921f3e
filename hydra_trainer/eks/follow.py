"""Staying with jobs: what changes is told as it happens, and nothing is asked twice.

One thread for each stream of the API (the job, its pods, events, a log); they only put what they
got into a queue, and one place reads it.
"""

import contextlib
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from hydra_trainer.errors import LaunchError
from hydra_trainer.job import JobStatus
from hydra_trainer.launcher import say

from . import marks, state
from .cluster import Cluster
from .known import deleted
from .refusals import ApiError
from .seen import Seen, has_started, holds_rank_0, matters, said, subject

Object = dict[str, Any]
Change = tuple[str, str, Object]
"""(stream, ADDED | MODIFIED | DELETED, object); or (stream, "FAILED", {"error": ...})."""


class Follower:
    """Follows one job to its end."""

    def __init__(self, cluster: Cluster, resource: str, name: str) -> None:
        self.cluster = cluster
        self.resource = resource
        self.name = name
        self._changes: queue.Queue[Change] = queue.Queue()
        self._job: Object | None = None
        self._pods: dict[str, Object] = {}
        self._events: dict[str, Object] = {}
        self._told: set[str] = set()
        self._line = ""
        self._log: threading.Thread | None = None

    def run(self) -> JobStatus:
        """Print what happens until the job has ended; return how.

        Raises:
            LaunchError: the cluster can no longer be asked. The job goes on.
        """
        self._watch("job", self.resource, fields=f"metadata.name={self.name}")
        self._watch("pods", "pods", labels=marks.of_job(self.name))
        self._watch("events", "events")
        while True:
            status = self._look()
            if status.state.ended:
                if self._log is not None:
                    self._log.join(timeout=30)  # its last lines come before the end is told
                return status
            self._wait()

    def _watch(self, stream: str, resource: str, *, labels: str = "", fields: str = "") -> None:
        found, version = self.cluster.list(resource, labels=labels, fields=fields)
        for item in found:
            self._take((stream, "ADDED", item))
        changes = self.cluster.watch(
            resource, labels=labels, fields=fields, since=version, known=found
        )
        _start(lambda: _feed(self._changes, stream, changes))

    def _wait(self) -> None:
        """Take in what came, or wait for it; not longer than a missing operator deserves."""
        with contextlib.suppress(queue.Empty):
            self._take(self._changes.get(timeout=state.OPERATOR_PATIENCE / 2))
            while True:
                self._take(self._changes.get_nowait())

    def _take(self, change: Change) -> None:
        stream, kind, item = change
        if kind == "FAILED":
            raise item["error"]
        if stream == "job":
            self._job = None if kind == "DELETED" else item
        elif stream == "pods":
            self._pods[item["metadata"]["name"]] = item
            if kind == "DELETED":
                self._pods.pop(item["metadata"]["name"])
        else:
            self._events[item["metadata"]["name"]] = item

    def _look(self) -> JobStatus:
        seen = Seen(self._job, [*self._pods.values()], [*self._events.values()], self._workload())
        status = state.status(seen, age=age(self.cluster, self._job))
        line = "  ".join(p for p in (status.state, status.reason, status.message) if p)
        if line != self._line:
            self._line = line
            say(line)
        self._tell_events()
        self._follow_log(seen)
        return status

    def _workload(self) -> Object | None:
        return None if self._job is None else workload(self.cluster, self._job)

    def _tell_events(self) -> None:
        for name, event in self._events.items():
            if name not in self._told and matters(event) and _is_about(event, self.name):
                self._told.add(name)
                say(f"  {subject(event)}: {said(event)}")

    def _follow_log(self, seen: Seen) -> None:
        """Start to print rank 0's log once its pod runs; anew for the pod that replaces it."""
        if self._log is not None and self._log.is_alive():
            return
        first = [pod for pod in seen.pods if holds_rank_0(pod) and has_started(pod)]
        fresh = [pod for pod in first if pod["metadata"]["uid"] not in self._told]
        if not fresh:
            return
        self._told.add(fresh[0]["metadata"]["uid"])
        name, container = fresh[0]["metadata"]["name"], fresh[0]["spec"]["containers"][0]["name"]

        def print_log() -> None:
            with contextlib.suppress(LaunchError):
                for line in self.cluster.logs(name, container=container, follow=True):
                    sys.stdout.write(line + "\n")
                    sys.stdout.flush()

        self._log = _start(print_log)


def _start(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _feed(into: "queue.Queue[Change]", stream: str, changes: Iterable[tuple[str, Object]]) -> None:
    try:
        for kind, item in changes:
            into.put((stream, kind, item))
    except Exception as error:  # told where the queue is read
        into.put((stream, "FAILED", {"error": error}))


# -------------------------------------------------------------------------------- many jobs at once


def wait_all(cluster: Cluster, resource: str, names: set[str]) -> dict[str, JobStatus]:
    """Return how jobs of one kind ended, once all have.

    However many they are: one list and one watch of the jobs, and one list of their pods at the
    end, which hold the results.
    """
    labels = marks.ALL if len(names) > 1 else marks.of_job(next(iter(names)))
    found, version = cluster.list(resource, labels=labels)
    jobs = {item["metadata"]["name"]: item for item in found if item["metadata"]["name"] in names}
    waiting = {name for name in names if name in jobs and not _ended(jobs[name])}
    if waiting:
        for kind, item in cluster.watch(resource, labels=labels, since=version, known=found):
            name = item["metadata"]["name"]
            if name not in waiting:
                continue
            jobs[name] = deleted(jobs[name]) if kind == "DELETED" else item
            if kind == "DELETED" or _ended(item):
                waiting.discard(name)
            if not waiting:
                break
    pods = by_job(cluster.list("pods", labels=labels)[0])
    return {name: status_of(jobs.get(name), pods.get(name, [])) for name in sorted(names)}


def wait_gone(cluster: Cluster, name: str) -> JobStatus:
    """Return how a job ended that was deleted, once its last pod has saved and gone."""
    labels = marks.of_job(name)
    found, version = cluster.list("pods", labels=labels)
    pods = {pod["metadata"]["name"]: pod for pod in found}
    left = set(pods)
    if left:
        for kind, pod in cluster.watch("pods", labels=labels, since=version, known=found):
            if kind == "DELETED":
                left.discard(pod["metadata"]["name"])
            else:
                pods[pod["metadata"]["name"]] = pod
            if not left:
                break
    return status_of(None, [*pods.values()])


def _ended(job: Object) -> bool:
    return status_of(job, []).state.ended


def status_of(job: Object | None, pods: list[Object]) -> JobStatus:
    """Return how a job goes, as far as it and its pods tell."""
    return state.status(Seen(job, pods, []))


def by_job(pods: list[Object]) -> dict[str, list[Object]]:
    """Return pods by the job that they belong to."""
    found: dict[str, list[Object]] = {}
    for pod in pods:
        found.setdefault(pod["metadata"]["labels"][marks.JOB], []).append(pod)
    return found


# ------------------------------------------------------------------------------------- one snapshot


def _is_about(event: Object, name: str) -> bool:
    about = str((event.get("involvedObject") or event.get("regarding") or {}).get("name", ""))
    return about == name or about.startswith((f"{name}-", f"pytorchjob-{name}-"))


def workload(cluster: Cluster, job: Object) -> Object | None:
    """Return Kueue's Workload of a job that waits in a queue."""
    labels = job["metadata"].get("labels") or {}
    if "kueue.x-k8s.io/queue-name" not in labels or not Seen(job, [], []).suspended:
        return None
    with contextlib.suppress(ApiError):
        wanted = f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"
        found, _ = cluster.list("workloads.kueue.x-k8s.io/v1beta1", labels=wanted)
        return next(iter(found), None)
    return None


def age(cluster: Cluster, job: Object | None) -> float | None:
    """Return how long ago a job was created, in seconds by the server's clock."""
    now = cluster.server_time()
    if now is None or job is None:
        return None
    return now - datetime.fromisoformat(job["metadata"]["creationTimestamp"]).timestamp()


def together(cluster: Cluster, pods: list[tuple[str, str]], *, follow: bool) -> Iterator[str]:
    """Yield the lines of several pods' logs as they come, each with the pod's name in front.

    Args:
        pods: names of pods, each with the name of a container.
    """
    if not follow:
        for name, container in pods:
            yield from (f"[{name}] {line}" for line in cluster.logs(name, container=container))
        return
    lines: queue.Queue[str | None] = queue.Queue()

    def read(name: str, container: str) -> None:
        try:
            for line in cluster.logs(name, container=container, follow=True):
                lines.put(f"[{name}] {line}")
        finally:
            lines.put(None)

    for name, container in pods:
        _start(lambda n=name, c=container: read(n, c))  # type: ignore[misc]
    left = len(pods)
    while left:
        line = lines.get()
        if line is None:
            left -= 1
        else:
            yield line
