"""A cluster whose jobs nobody runs: a thread ends each of them, with the result that a test says.

What is real: the client, the server, the submitter. What is not: operator, kubelet, training.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import yaml

from hydra_trainer.embedded import Embedded

Object = dict[str, Any]
JOBS = "pytorchjobs.kubeflow.org"


class Player:
    """Use it as a context. `asked` counts the requests of the package's client by verb and kind;
    `ran` how often each job was run.

    Args:
        value: the objective of a job, from its configuration.
        hold: a job for which it is true runs until `go` is called.
        request: called with the number of each request, before it is answered.
    """

    def __init__(
        self,
        home: Path,
        value: Callable[[Object], float],
        hold: Callable[[Object], bool] = lambda config: False,
        request: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.cluster = Embedded(home, controllers=False)
        self.value, self.hold, self.request = value, hold, request
        self.asked: Counter[str] = Counter()
        self.ran: Counter[str] = Counter()
        self._orders: SimpleQueue[str | None] = SimpleQueue()
        self._held: list[Object] = []

    def __enter__(self) -> "Player":
        self.cluster.__enter__()
        api = self.cluster.server._api
        do = api._do

        def counted(wanted: Any, request: Any, *others: Any) -> Any:
            self.asked[f"{request.method} {wanted.resource}"] += 1
            self.request(self.asked.total())
            return do(wanted, request, *others)

        api._do = counted  # type: ignore[method-assign, assignment]
        self.changes = self.cluster.store.subscribe()
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._orders.put(None)
        self._thread.join()
        self.cluster.__exit__(*exc)

    def go(self) -> None:
        """Let the jobs that are held end."""
        self._orders.put("go")

    @property
    def env(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.cluster.kubeconfig)}

    def created(self) -> list[str]:
        return [job["metadata"]["name"] for job in self.cluster.store.list(JOBS)[0]]

    def _play(self) -> None:
        seen: set[str] = set()
        while True:
            try:
                if self._orders.get_nowait() is None:
                    return
                for job in self._held:
                    self._end(job)
                self._held.clear()
            except Empty:
                pass
            for record in self.cluster.store.records(JOBS)[0]:
                if record.uid not in seen:
                    seen.add(record.uid)
                    self._run(record.load())
            try:
                self.changes.get(timeout=0.02)
            except Empty:
                continue

    def _run(self, job: Object) -> None:
        self.ran[job["metadata"]["name"]] += 1
        running = {"type": "Running", "status": "True", "reason": "PyTorchJobRunning"}
        self._status(JOBS, job["metadata"]["name"], {"conditions": [running]})
        (self._held.append if self.hold(self.config(job)) else self._end)(job)

    def _end(self, job: Object) -> None:
        name = job["metadata"]["name"]
        template = job["spec"]["pytorchReplicaSpecs"]["Master"]["template"]
        meta = {**template["metadata"], "name": f"{name}-master-0"}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"]}
        self.cluster.store.create("pods", "default", pod)
        objective = {"metric": "val/loss", "mode": "min", "value": self.value(self.config(job))}
        result = {"status": "completed", "exit_code": 0, "seconds": 1.5, "objective": objective}
        ended = {"exitCode": 0, "reason": "Completed", "message": json.dumps(result)}
        state = {"name": "pytorch", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        status = {"containerStatuses": [{**state, "state": {"terminated": ended}}]}
        self._status("pods", meta["name"], {"phase": "Succeeded", **status})
        self._status(JOBS, name, {"conditions": [{"type": "Succeeded", "status": "True"}]})

    def _status(self, resource: str, name: str, status: Object) -> None:
        def write(found: Object) -> None:
            found["status"] = {**(found.get("status") or {}), **status}

        self.cluster.store.change(resource, "default", name, write)

    def config(self, job: Object) -> Object:
        """Return the configuration that a job brings along."""
        found = self.cluster.store.get("configmaps", "default", job["metadata"]["name"])
        return dict(yaml.safe_load(found["data"]["config.yaml"]))
