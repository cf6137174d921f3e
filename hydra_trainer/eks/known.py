"""What is known of the jobs of a namespace. Asks nobody: changes go in, and statuses come out.

A thousand jobs have to fit, so that of each object only that is kept which `state.status` reads,
and nothing of jobs whose end was told, or that have ended and nobody asks for.
"""

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from hydra_trainer.job import JobState, JobStatus, Report

from . import marks, state
from .seen import Seen, at, has_started, holds_rank_0, label

Object = dict[str, Any]

LAG = 5.0
"""Seconds that a watch may be behind. What should be there by then is looked for."""

KEPT = 30.0
"""Seconds for which that is kept which nobody asks for, and that has ended: somebody may yet."""

GRACE = 30.0
"""Seconds between SIGTERM and SIGKILL of a pod that does not say, as in every cluster."""

OVER = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.UNKNOWN)


@dataclass
class Known:
    """One job: the object and its pods, as far as they were seen.

    `absent`: a list did not have it. `over` is when it was first seen to have ended; `looked`: its
    pods were listed after that. `gone` are the names of those pods that were deleted, which a job
    that is over still learns its result from.
    """

    job: Object | None = None
    pods: dict[str, Object] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    absent: bool = False
    over: float | None = None
    looked: bool = False
    progress: Report | None = None

    @property
    def uid(self) -> str | None:
        return None if self.job is None else str(self.job["metadata"]["uid"])

    @property
    def deleted(self) -> bool:
        return self.job is None or at(self.job, "metadata", "deletionTimestamp") is not None

    def status(self) -> JobStatus:
        found = state.status(Seen(self.job, [*self.pods.values()], []))
        return replace(found, progress=self.progress) if found.state is JobState.RUNNING else found

    def lacks(self, pod: Object) -> bool:
        """Tell whether a pod is not known, or not known to have ended."""
        own = pod["metadata"]["name"]
        return own not in self.gone and not _has_ended(self.pods.get(own))

    def alive(self) -> list[Object]:
        """Return the pods that have not ended."""
        known = self.pods.items()
        return [pod for name, pod in known if name not in self.gone and not _has_ended(pod)]

    def is_complete(self, status: JobStatus, now: float) -> bool:
        """Tell whether the end of a job that is over can be told: the result is there."""
        assert self.over is not None
        if self.deleted:  # its pods save
            times = [at(pod, "spec", "terminationGracePeriodSeconds") for pod in self.alive()]
            longest = max((GRACE if time is None else time for time in times), default=None)
            return longest is None or now - self.over > longest + LAG
        if self.looked:
            return True
        if status.state is JobState.SUCCEEDED and (status.result or {}).keys() & _OF_RANK_0:
            return True
        return bool(self.pods) and not self.alive()


_OF_RANK_0 = {"objective", "metrics"}
"""Of a result: only rank 0 knows them, and other pods may end before its pod."""


class Readable(NamedTuple):
    """The log of a running job's rank 0."""

    pod: str
    container: str


class Book:
    """All that is known. Names are those of jobs; `now` is in seconds that never run backwards."""

    def __init__(self) -> None:
        self.readable: dict[str, Readable] = {}
        """The logs that tell how far the jobs have come that were asked for and run."""
        self._asked: dict[str, float] = {}
        self._known: dict[str, Known] = {}
        self._told: dict[str, JobStatus] = {}
        self._finished: dict[str, float] = {}  # when the end was told of those still asked for
        self._uids: dict[str, str] = {}  # of the jobs whose end was told: names come again
        self._touched: set[str] = set()
        self._waiting: set[str] = set()  # over, and not complete
        self._spare: dict[str, float | None] = {}  # since when, of what nobody asks for

    def __len__(self) -> int:
        return len(self._known)

    @property
    def asked(self) -> set[str]:
        return set(self._asked)

    # -------------------------------------------------------------------------------- what goes in

    def ask(self, names: Collection[str], now: float) -> None:
        """Say which jobs to tell about from now on."""
        for name in self._asked.keys() - set(names):
            self._forget(name)
        for name in names:
            if name not in self._asked:
                self._asked[name] = now
                self._spare.pop(name, None)
                self._touched.add(name)

    def take_job(self, kind: str, job: Object) -> None:
        """Take in a change that a watch tells of: ADDED, MODIFIED or DELETED."""
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        known = self._known.get(name)
        if self._uids.get(name) == uid:
            return
        if kind == "DELETED":
            if known is None or known.job is None or known.uid != uid:
                return
            if name not in self._asked:
                del self._known[name]
                return
            if _is_over(known):  # and how it ended is known
                self.settle({name})
                return
            job = deleted(known.job)
        elif (known is None or known.job is None) and at(job, "metadata", "deletionTimestamp"):
            return  # the one before the one that was asked for
        self._set(name, job)

    def take_pod(self, kind: str, pod: Object) -> None:
        name, own = _job_of(pod), pod["metadata"]["name"]
        known = self._known.get(name)
        if kind == "DELETED":
            uid = at(known.pods.get(own), "metadata", "uid") if known else None
            if known is not None and uid == pod["metadata"]["uid"]:
                self._lose(name, known, own)
            return
        if known is None:
            if name in self._finished or (_has_ended(pod) and name not in self._asked):
                return
            known = self._known[name] = Known()
        known.pods[own] = pod
        known.gone.discard(own)
        self._spare_if_over(name, known)
        self._touched.add(name)

    def take_progress(self, name: str, report: Report) -> None:
        if (known := self._known.get(name)) is not None:
            known.progress = report
            self._touched.add(name)

    def take_lists(
        self, jobs: Iterable[Object], pods: Iterable[Object], names: set[str] | None
    ) -> None:
        """Take in what lists have: before the watches all of it, later of some names only.

        Then the watches may have told of something newer, which is left as it is. The pods were
        listed after the jobs.
        """
        for job in jobs:
            name, uid = job["metadata"]["name"], job["metadata"]["uid"]
            is_new = not self._has_job(name) and self._uids.get(name) != uid
            if names is None or (name in names and is_new):
                self._set(name, job)
                if name in self._asked:
                    self._known[name].looked = _is_over(self._known[name])
        for pod in pods:
            known = self._known.get(_job_of(pod))
            if names is None or (_job_of(pod) in names and (known is None or known.lacks(pod))):
                self.take_pod("MODIFIED", pod)

    def settle(self, names: set[str]) -> None:
        """Take what is known of jobs for all that there is: lists had no more."""
        for name in names & self._asked.keys():
            if name in self._finished:
                self._finished[name] = math.inf
                continue
            known = self._known.setdefault(name, Known())
            known.absent = known.job is None
            known.looked = known.looked or known.over is not None
            self._touched.add(name)

    # ------------------------------------------------------------------------------ what comes out

    def news(self, now: float) -> dict[str, JobStatus]:
        """Return how those jobs go that were asked for, if it is not what was returned before."""
        self._drop_spare(now)
        names, self._touched = self._touched | self._waiting, set()
        found = {}
        for name in (names & self._asked.keys()) - self._finished.keys():
            if self._is_unseen(name):
                continue
            known = self._known[name]
            status = known.status()
            self._note_log(name, known, status)
            if status.state not in OVER:
                self._waiting.discard(name)
                if status != self._told.get(name):
                    self._told[name] = found[name] = status
            elif self._is_told(name, known, status, now):
                found[name] = status
        return found

    def _is_told(self, name: str, known: Known, status: JobStatus, now: float) -> bool:
        """Tell whether the end of a job is told now: all of it is known, or long awaited."""
        known.over = now if known.over is None else known.over
        if known.is_complete(status, now):
            self._finish(name, known, now)
            return True
        self._waiting.add(name)
        return False

    def unseen(self, now: float) -> set[str]:
        """Return the jobs that should have been seen by now, and are to be looked for.

        Among them, once, those that are asked for after their end was told: they may have been
        sent again, under the same name.
        """
        times = self._asked | self._finished
        return {
            name for name, since in times.items() if now - since >= LAG and self._is_unseen(name)
        }

    def unclear(self, now: float) -> set[str]:
        """Return the jobs whose pods are to be looked for: their end should have been seen."""
        found = set()
        for name in self._waiting:
            known = self._known[name]
            waits = known.over is not None and not known.deleted and not known.looked
            if waits and now - (known.over or 0.0) >= LAG:
                found.add(name)
        return found

    # --------------------------------------------------------------------------------- bookkeeping

    def _has_job(self, name: str) -> bool:
        return name in self._known and self._known[name].job is not None

    def _is_unseen(self, name: str) -> bool:
        return not self._has_job(name) and not (name in self._known and self._known[name].absent)

    def _set(self, name: str, job: Object) -> None:
        known = self._known.get(name)
        is_new = known is None or known.job is None
        if known is None or known.uid not in (None, job["metadata"]["uid"]):
            pods = {pod["metadata"]["name"]: pod for pod in known.alive()} if known else {}
            known = self._known[name] = Known(pods=pods)
        known.job, known.absent = job, False
        self._finished.pop(name, None)
        self._spare.pop(name, None)
        self._spare_if_over(name, known, at_once=is_new)
        self._touched.add(name)

    def _lose(self, name: str, known: Known, pod: str) -> None:
        if known.job is None or _is_over(known):
            known.gone.add(pod)
        else:
            del known.pods[pod]
        self._spare_if_over(name, known, at_once=known.job is None)
        self._touched.add(name)

    def _spare_if_over(self, name: str, known: Known, *, at_once: bool = False) -> None:
        """Let go of what nobody asks for and that is over, now or soon.

        A job that was seen to go on may be one that ended before it was asked for. One that was
        over when it was seen first is of an earlier time, and may just be sent again.
        """
        if name in self._asked:
            return
        is_over = _is_over(known) if known.job else not known.alive()
        if is_over and at_once:
            del self._known[name]
        elif is_over:
            self._spare.setdefault(name, None)

    def _drop_spare(self, now: float) -> None:
        for name, since in [*self._spare.items()]:
            if since is None:
                self._spare[name] = now
            elif now - since >= KEPT:
                del self._spare[name]
                self._known.pop(name, None)

    def _finish(self, name: str, known: Known, now: float) -> None:
        if known.uid is not None:
            self._uids[name] = known.uid
        self._finished[name] = now
        self._known.pop(name)
        self._told.pop(name, None)
        self._waiting.discard(name)

    def _forget(self, name: str) -> None:
        self._asked.pop(name)
        self._told.pop(name, None)
        self.readable.pop(name, None)
        self._finished.pop(name, None)
        self._waiting.discard(name)
        if (known := self._known.get(name)) is not None:
            self._spare_if_over(name, known, at_once=True)

    def _note_log(self, name: str, known: Known, status: JobStatus) -> None:
        first = [pod for pod in known.pods.values() if holds_rank_0(pod) and has_started(pod)]
        if status.state is JobState.RUNNING and first:
            container = first[0]["spec"]["containers"][0]["name"]
            self.readable[name] = Readable(first[0]["metadata"]["name"], container)
        else:
            self.readable.pop(name, None)


def deleted(job: Object) -> Object:
    """Return a job that is gone as one that is being deleted: it was there."""
    return {**job, "metadata": {**job["metadata"], "deletionTimestamp": "now"}}


def _job_of(pod: Object) -> str:
    return label(pod, marks.JOB) or ""


def _has_ended(pod: Object | None) -> bool:
    return at(pod, "status", "phase") in ("Succeeded", "Failed")


def _is_over(known: Known) -> bool:
    return known.job is not None and known.status().state in OVER
