"""The embedded cluster without its server, and the small jobs and pods that the tests run in it.

Nothing is waited for by the clock: a test reads the changes of the store until what it expects is
there, or hears of it through a pipe.
"""

import json
import os
import select
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Any

from hydra_trainer.embedded.control import RESOURCES, holds
from hydra_trainer.embedded.kubelet import Kubelet
from hydra_trainer.embedded.operators import Controllers
from hydra_trainer.embedded.podlogs import log_file
from hydra_trainer.embedded.refusals import ApiError
from hydra_trainer.embedded.store import Store

Object = dict[str, Any]

JOBS = "pytorchjobs.kubeflow.org"
TRAINJOBS = "trainjobs.trainer.kubeflow.org"
HYPERPOD = "hyperpodpytorchjobs.sagemaker.amazonaws.com"

PATIENCE = 30.0
"""Seconds until a test that waits for something has failed."""

FOREVER = "sleep 600"


class World:
    """A cluster without a server: a store, and all controllers."""

    def __init__(self, home: Path, **kubelet: Any) -> None:
        self.home = home
        self.store = Store(home)
        for name in ("default", "team"):
            if not self.store.records("namespaces", fields=f"metadata.name={name}")[0]:
                self.store.create("namespaces", "", {"metadata": {"name": name}})
        self.kubelet = Kubelet(self.store, home, back_off=0.01, **kubelet)
        self.controllers = Controllers(self.store, home, self.kubelet)
        self.controllers.start()

    def __enter__(self) -> "World":
        return self

    def __exit__(self, *_: object) -> None:
        self.controllers.stop(grace=0)

    def create(self, obj: Object) -> Object:
        resource = RESOURCES[obj["apiVersion"], obj["kind"]]
        return self.store.create(resource, obj["metadata"].get("namespace", "default"), obj)

    def get(self, resource: str, name: str) -> Object | None:
        try:
            return self.store.get(resource, "default", name)
        except ApiError:
            return None

    def until(self, resource: str, name: str, is_so: Callable[[Object], Any]) -> Object:
        """Return an object as soon as something is true of it."""
        return self.wait(lambda: (found := self.get(resource, name)) and is_so(found) and found)

    def wait(self, look: Callable[[], Any]) -> Any:
        """Return what is seen as soon as there is something; look after each change."""
        changes = self.store.subscribe()
        until = time.monotonic() + PATIENCE
        try:
            while not (found := look()):
                changes.get(timeout=max(0.0, until - time.monotonic()))
            return found
        except Empty:
            raise AssertionError(self.dump()) from None
        finally:
            self.store.unsubscribe(changes)

    def gone(self, resource: str, name: str) -> None:
        self.wait(lambda: self.get(resource, name) is None)

    def pod(self, name: str, phase: str) -> Object:
        return self.until("pods", name, lambda pod: pod["status"]["phase"] == phase)

    def running(self, name: str) -> Object:
        return self.until("pods", name, lambda pod: "running" in state(pod))

    def waiting(self, name: str, reason: str) -> Object:
        return self.until(
            "pods", name, lambda pod: state(pod).get("waiting", {}).get("reason") == reason
        )

    def ended(self, resource: str, name: str, kind: str) -> Object:
        return self.until(resource, name, lambda job: holds(job.get("status"), kind))

    def pods(self) -> list[str]:
        return [pod["metadata"]["name"] for pod in self.store.list("pods")[0]]

    def log(self, pod: Object, restart: int = 0, container: str = "pytorch") -> str:
        """Return what a container said, without times."""
        lines = log_file(self.home, pod, container, restart).read_text().splitlines()
        return "\n".join(line.split(" ", 3)[3] for line in lines)

    def events(self, name: str) -> list[tuple[str, str]]:
        found, _ = self.store.list("events", fields=f"involvedObject.name={name}")
        return [(event["reason"], event["message"]) for event in found]

    def told(self, name: str, reason: str, words: str = "") -> str:
        """Wait for an event; return its message."""

        def look() -> str | None:
            said = [text for found, text in self.events(name) if found == reason and words in text]
            return said[0] if said else None

        return str(self.wait(look))

    def dump(self) -> str:
        kinds = ("pytorchjobs.kubeflow.org", "jobs.batch", "pods", "events")
        found = {kind: self.store.list(kind)[0] for kind in kinds}
        return json.dumps(found, indent=1)[-6000:]


# ------------------------------------------------------------------------------------------ reading


def state(pod: Object, index: int = 0) -> Object:
    """Return the state of a pod's container; empty before the kubelet has seen it."""
    statuses = pod["status"].get("containerStatuses") or [{}, {}]
    return dict(statuses[index].get("state") or {})


def conditions(job: Object) -> dict[str, str]:
    return {one["type"]: one["status"] for one in job["status"].get("conditions") or ()}


def terminated(found: Object, index: int = 0) -> Object:
    return dict(state(found, index)["terminated"])


def restarts(pod: Object) -> int:
    return int((pod["status"].get("containerStatuses") or [{"restartCount": 0}])[0]["restartCount"])


def drained(changes: Any) -> Iterator[tuple[str, str, Object]]:
    while True:
        try:
            yield changes.get_nowait()
        except Empty:
            return


# ------------------------------------------------------------------------------------------ hearing


class Pipe:
    """How the process of a pod tells a test something."""

    def __init__(self, path: Path) -> None:
        self.path = path
        os.mkfifo(path)
        self._file = os.open(path, os.O_RDWR)

    def hear(self) -> str:
        """Return what was said, once something is."""
        readable, _, _ = select.select([self._file], [], [], PATIENCE)
        assert readable, "nobody said anything"
        return os.read(self._file, 4096).decode()

    def is_held(self) -> bool:
        """Wait until nobody else has the pipe open; tell whether that took too long."""
        end = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        os.close(self._file)
        readable, _, _ = select.select([end], [], [], PATIENCE)
        return not readable or os.read(end, 1) != b""


# ------------------------------------------------------------------------------------------- making


def shell(script: str, name: str = "pytorch", **more: Any) -> Object:
    return {"name": name, "image": "image:1", "command": ["sh", "-c", script], **more}


def pod(name: str, *containers: Object, **spec: Any) -> Object:
    policy = {"restartPolicy": "Never", "containers": [*containers]}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {**policy, **spec},
    }


def template(script: str, name: str = "pytorch", **spec: Any) -> Object:
    return {
        "metadata": {"labels": {"team": "a"}},
        "spec": {"containers": [shell(script, name)], **spec},
    }


def pytorchjob(
    name: str,
    master: str | None = None,
    worker: str | None = None,
    *,
    workers: int = 1,
    policy: str = "ExitCode",
    run: Object | None = None,
    labels: Object | None = None,
    **spec: Any,
) -> Object:
    roles = {}
    if master is not None:
        roles["Master"] = {"replicas": 1, "restartPolicy": policy, "template": template(master)}
    if worker is not None:
        roles["Worker"] = {"replicas": workers, "restartPolicy": policy}
        roles["Worker"]["template"] = template(worker)
    run = {"cleanPodPolicy": "Running", **(run or {})}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"nprocPerNode": "2", "runPolicy": run, "pytorchReplicaSpecs": roles, **spec},
    }


def once(tmp_path: Path, code: int) -> str:
    """Return a script that ends with a code the first time, and well after that."""
    mark = tmp_path / "mark"
    return f"test -e {mark} || {{ touch {mark}; exit {code}; }}"


def polite(pipe: Pipe) -> str:
    """Return a script that says when it is ready, and saves when it is asked to end."""
    save = "sleep 0.05; echo saved; exit 143"
    return f"trap '{save}' TERM; echo ready > {pipe.path}; sleep 600 & wait"


def stubborn(pipe: Pipe) -> str:
    """Return one that only a SIGKILL ends."""
    return f"trap '' TERM; echo ready > {pipe.path}; sleep 600"


def runtime(script: str, **job: Any) -> Object:
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    spec = {**job, "template": template(script, "node", restartPolicy="Never")}
    replicated = {"name": "node", "template": {"metadata": {"labels": step}, "spec": spec}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": "job"},
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {}},
            "template": {"spec": {"replicatedJobs": [replicated]}},
        },
    }


def trainjob(nodes: int = 1, **spec: Any) -> Object:
    trainer = {"numNodes": nodes, "numProcPerNode": 2, "env": [{"name": "OWN", "value": "1"}]}
    reference = {"kind": "TrainingRuntime", "name": "job"}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "job", "uid": "u"},
        "spec": {"runtimeRef": reference, "trainer": trainer, **spec},
    }
