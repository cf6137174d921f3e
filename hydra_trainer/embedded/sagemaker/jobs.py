"""The training jobs, as they are described: kept in a file each, and told of when they change."""

import contextlib
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Object = dict[str, Any]

IN_PROGRESS, COMPLETED, FAILED = "InProgress", "Completed", "Failed"
STOPPING, STOPPED = "Stopping", "Stopped"
OVER = frozenset({COMPLETED, FAILED, STOPPED})

LOOK = 0.05
"""Seconds between two looks at what no change of a job tells of."""

Key = tuple[str, str]
"""Region and name."""

NOT_DESCRIBED = ("Tags",)
"""Of the request; a description has all else."""

DEFAULTS = {
    "EnableNetworkIsolation": False,
    "EnableInterContainerTrafficEncryption": False,
    "EnableManagedSpotTraining": False,
}
"""What a description has though nobody asked for it."""


class Job:
    """One training job: its request, and what a description adds to that.

    Its fields are changed through `Jobs.change` only.
    """

    def __init__(self, region: str, request: Object, state: Object) -> None:
        self.region = region
        self.request = request
        self.state = state

    @property
    def name(self) -> str:
        return str(self.request["TrainingJobName"])

    @property
    def key(self) -> Key:
        return self.region, self.name

    @property
    def status(self) -> str:
        return str(self.state["TrainingJobStatus"])

    @property
    def secondary(self) -> str:
        return str(self.state["SecondaryStatus"])

    @property
    def arn(self) -> str:
        return str(self.state["TrainingJobArn"])

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    def describe(self) -> Object:
        """Return what DescribeTrainingJob answers."""
        given = {key: value for key, value in self.request.items() if key not in NOT_DESCRIBED}
        return {
            **DEFAULTS,
            **given,
            **{key: value for key, value in self.state.items() if key[0].isupper()},
        }

    # The rest is for the one who changes a job.

    def enter(self, status: str, secondary: str, message: str) -> None:
        """Go to a state. The same one again is a message only."""
        now = time.time()
        passed = self.state["SecondaryStatusTransitions"]
        if passed and "EndTime" not in passed[-1]:
            if passed[-1]["Status"] == secondary:
                passed[-1]["StatusMessage"] = message
                self.state["LastModifiedTime"] = now
                return
            passed[-1]["EndTime"] = now
        passed.append({"Status": secondary, "StartTime": now, "StatusMessage": message})
        if status in OVER:
            passed[-1]["EndTime"] = now
            self.state["TrainingEndTime"] = now
        self.state |= {"TrainingJobStatus": status, "SecondaryStatus": secondary}
        self.state["LastModifiedTime"] = now


def new(region: str, request: Object, arn: str) -> Job:
    """Return a job that has just been accepted."""
    now = time.time()
    state: Object = {
        "TrainingJobArn": arn,
        "CreationTime": now,
        "LastModifiedTime": now,
        "SecondaryStatusTransitions": [],
        "attempts": 0,
    }
    job = Job(region, request, state)
    job.enter(IN_PROGRESS, "Starting", "Starting the training job")
    return job


class Jobs:
    """All jobs, in folders REGION/NAME. May be shared by threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._changed = threading.Condition(threading.RLock())
        self._changes = 0
        self._jobs: dict[Key, Job] = {}
        for file in sorted(folder.glob("*/*/job.json")):
            with contextlib.suppress(ValueError):
                known = json.loads(file.read_text())
                job = Job(known["region"], known["request"], known["state"])
                self._jobs[job.key] = job

    def place(self, key: Key) -> Path:
        """Return the folder of a job."""
        return self.folder.joinpath(*key)

    def add(self, job: Job) -> bool:
        """Keep a new job; False when its name is taken."""
        with self._changed:
            if job.key in self._jobs:
                return False
            self._jobs[job.key] = job
            self._save(job)
            return True

    def find(self, region: str, name: str) -> Job | None:
        return self._jobs.get((region, name))

    def all(self, region: str = "") -> list[Job]:
        with self._changed:
            return [one for one in self._jobs.values() if region in ("", one.region)]

    def remove(self, job: Job) -> None:
        with self._changed:
            del self._jobs[job.key]
            self._tell()
        shutil.rmtree(self.place(job.key), ignore_errors=True)

    @contextlib.contextmanager
    def change(self, job: Job) -> Iterator[None]:
        """Let the body change a job: others see all of it, or nothing."""
        with self._changed:
            yield
            if self._jobs.get(job.key) is job:
                self._save(job)
            self._tell()

    def description(self, job: Job) -> Object:
        """Return a copy that stays as it is."""
        with self._changed:
            return dict(json.loads(json.dumps(job.describe())))

    def wait(self, look: Callable[[], Any], seconds: float) -> Any:
        """Return what is seen as soon as there is something.

        Looks after each change of a job, and from time to time: what is seen may be in a log.
        Raises TimeoutError.
        """
        until = time.monotonic() + seconds
        while True:
            before = self._changes
            if found := look():  # without the lock: it may ask the service over HTTP
                return found
            if (left := until - time.monotonic()) <= 0:
                raise TimeoutError
            with self._changed:
                self._changed.wait_for(lambda: self._changes != before, min(left, LOOK))  # noqa: B023

    def _tell(self) -> None:
        self._changes += 1
        self._changed.notify_all()

    def _save(self, job: Job) -> None:
        file = self.place(job.key) / "job.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        known = {"region": job.region, "request": job.request, "state": job.state}
        new.write_text(json.dumps(known))
        new.rename(file)
