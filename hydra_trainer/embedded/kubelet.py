"""The kubelet of all nodes: it runs pods as processes of this machine.

One thread does everything, and sleeps until the store, a process or a clock has something for it.
What it does for one pod is in podworker.py.
"""

import contextlib
import heapq
import os
import platform
import signal
import socket
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from queue import Empty
from typing import Any

from .discovery import VERSION
from .events import Recorder
from .history import Object
from .metadata import now
from .podstatus import OVER, condition
from .podworker import SHUTDOWN, PodWorker, clean, take_away
from .process import kill_marked
from .refusals import ApiError
from .store import Store

NODE = "this-machine"
"""The node that a cluster has from the start."""

PODS = 110
"""Pods that a node takes: the default of a real kubelet."""

BACK_OFF = 0.1
LONGEST_BACK_OFF = 5.0
"""Seconds before a container starts again, the second time; twice as long each time after that. The
first time it is at once. A real kubelet waits 10 seconds, and 300 at most."""

PORTS = range(20_000, 32_000)
"""For the pods of a job to meet at: below those that the kernel gives out (ip_local_port_range)."""

LOST = {"phase": "Failed", "reason": "NodeLost", "message": "The node's process has ended."}
UNKNOWN = {
    "exitCode": 137,
    "reason": "ContainerStatusUnknown",
    "message": "The container could not be located when the pod was terminated",
}

PATIENCE = 10.0
"""Seconds to wait at a stop for what should have ended: a process that waits for a disk may not."""

CALL = "CALL"
"""The type of what the kubelet's own threads put among the changes of the store."""


class Kubelet:
    """Runs the pods of a store that a scheduler has given a node.

    Args:
        store: where the pods are.
        home: the folder for their files, logs and volumes.
        capacity: extended resources of NODE, such as {"nvidia.com/gpu": 8}; without, it keeps those
            that the store has for it, at first none.
        claims: the PersistentVolumeClaims that exist besides those in the store; None: any.
        back_off: seconds; see BACK_OFF.
    """

    def __init__(
        self,
        store: Store,
        home: Path,
        capacity: Mapping[str, int] | None = None,
        claims: Collection[str] | None = None,
        *,
        back_off: float = BACK_OFF,
    ) -> None:
        self.store = store
        self.home = home.absolute()
        self.claims = claims
        self.back_off = back_off
        self.clock = time.monotonic
        self._capacity = capacity
        self._workers: dict[str, PodWorker] = {}  # by uid
        self._ports: dict[str, int] = {}  # by uid of a pod's owner
        self._ends: dict[tuple[str, str], tuple[float, int]] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timed = 0
        self._stopping = False
        self._changes = store.subscribe()
        self._thread = threading.Thread(target=self._run, name="embedded-kubelet", daemon=True)

    def start(self) -> None:
        """Begin; what an earlier process left is ended, and its pods are lost."""
        kill_marked(f"{self.home}|")
        self._register()
        for pod in self.store.list("pods")[0]:
            if pod["spec"].get("nodeName") and _phase(pod) not in OVER:
                self._inherit(pod)
        self._thread.start()

    def stop(self, grace: float | None = None) -> None:
        """End all pods as a machine that shuts down does: SIGTERM, the grace period, SIGKILL.

        Args:
            grace: seconds; None: those of the pods.
        """
        graces = [worker.grace for worker in [*self._workers.values()]]
        self.post(lambda: self._shut_down(grace))
        if self._thread.ident:
            self._thread.join((max(graces, default=0.0) if grace is None else grace) + PATIENCE)
        kill_marked(f"{self.home}|")
        self.store.unsubscribe(self._changes)

    # ------------------------------------------------------------------------- what users may ask
    # These return when it is done: when the signals are sent, not when the processes have ended.

    def kill(
        self, namespace: str, name: str, number: int = signal.SIGKILL, reason: str = ""
    ) -> None:
        """Send a signal to the containers of a pod, as a fault of the machine would.

        Args:
            reason: what the status is to say of a container that is killed: OOMKilled.
        """
        self._ask_worker(namespace, name, lambda worker: worker.signal(number, reason))

    def evict(
        self, namespace: str, name: str, message: str = "The node was low on resource: memory."
    ) -> None:
        """End a pod as a node does that is short of something: at once; it stays, as Failed."""
        self._ask_worker(namespace, name, lambda worker: worker.evict(message))

    def drain(self, node: str | None = None) -> None:
        """Delete the pods of a node, or of all, as `kubectl drain` does: they may save and go.

        Another node is thought to come in its place: pods that are made anew run.
        """
        for pod in self.store.list("pods")[0]:
            where = pod["spec"].get("nodeName")
            if where and (node is None or node == where) and _phase(pod) not in OVER:
                disrupt(self.store, pod)
        self._ask(lambda: None)

    def _ask_worker(self, namespace: str, name: str, function: Callable[[PodWorker], None]) -> None:
        """Do something for a pod. Raises ApiError 404 when there is none."""
        uid = self.store.record("pods", namespace, name).uid

        def ask() -> None:
            if uid in self._workers:
                function(self._workers[uid])

        self._ask(ask)

    def _ask(self, function: Callable[[], None]) -> None:
        """Let the thread call a function, after all that it has to do before; wait for it."""
        done = threading.Event()
        self.post(function)
        self.post(done.set)
        while self._thread.is_alive() and not done.wait(1.0):
            pass

    # ---------------------------------------------------------------------------------- the thread

    def post(self, function: Callable[[], None]) -> None:
        """Let the kubelet's thread call a function. May be called by any thread."""
        self._changes.put((CALL, "", {"function": function}))

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after some time. For the kubelet's thread only."""
        self._timed += 1
        heapq.heappush(self._timers, (self.clock() + seconds, self._timed, function))

    def _run(self) -> None:
        while not (self._stopping and not self._workers):
            with contextlib.suppress(Empty):
                self._guard(self._take, *self._changes.get(timeout=self._pause()))
            while self._timers and self._timers[0][0] <= self.clock():
                self._guard(heapq.heappop(self._timers)[2])

    def _pause(self) -> float | None:
        """Return the seconds until a clock rings, if one will."""
        return max(0.0, self._timers[0][0] - self.clock()) if self._timers else None

    def _guard(self, function: Callable[..., None], *arguments: Any) -> None:
        """Go on whatever happens: the log of the server says what did."""
        try:
            function(*arguments)
        except Exception:
            traceback.print_exc()

    def _take(self, kind: str, resource: str, obj: Object) -> None:
        if kind == CALL:
            obj["function"]()
        elif resource == "pods":
            self._take_pod(kind, obj)
        elif resource in ("configmaps", "secrets") and kind != "DELETED":
            for worker in [*self._workers.values()]:
                if worker.is_waiting and worker.where[0] == obj["metadata"]["namespace"]:
                    worker.advance()

    def _take_pod(self, kind: str, pod: Object) -> None:
        worker = self._workers.get(pod["metadata"]["uid"])
        if kind == "DELETED":
            if worker:
                worker.abandon()
            else:
                clean(self.home, pod)
        elif worker:
            worker.change(pod)
        elif pod["spec"].get("nodeName") and _phase(pod) not in OVER:
            self._accept(pod)
        elif pod["metadata"].get("deletionTimestamp"):
            take_away(self.store, pod)

    def _accept(self, pod: Object) -> None:
        """Take a pod, unless it has gone in the meantime."""
        meta = pod["metadata"]
        with contextlib.suppress(ApiError):
            pod = self.store.get("pods", meta["namespace"], meta["name"])
            if pod["metadata"]["uid"] != meta["uid"] or _phase(pod) in OVER:
                return
            if pod["metadata"].get("deletionTimestamp"):
                take_away(self.store, pod)
                return
            if self._stopping:
                return
            worker = self._workers[meta["uid"]] = PodWorker(self, pod)
            worker.take()
            self.later(self._patience(pod), worker.advance)

    def _patience(self, pod: Object) -> float:
        """Return the seconds to wait before a pod starts whose forerunners did not live long.

        Real pods take some time to start. Without it, one that fails at once and is made anew by
        its controller would keep this machine busy with nothing else.
        """
        ended, count = self._ends.get(_place(pod), (0.0, 0))
        return self.delay(count) if self.clock() - ended < 2 * LONGEST_BACK_OFF else 0.0

    def delay(self, restarts: int) -> float:
        """Return the seconds before a container starts again that was started so often before."""
        return min(self.back_off * 2 ** (restarts - 1), LONGEST_BACK_OFF) if restarts else 0.0

    def forget(self, worker: PodWorker) -> None:
        """Let go of a pod that is over, or gone."""
        if self._workers.pop(worker.uid, None) is None:
            return
        place = _place(worker.pod)
        before, count = self._ends.get(place, (0.0, 0))
        is_same = self.clock() - before < 2 * LONGEST_BACK_OFF
        self._ends[place] = (self.clock(), count + 1 if is_same else 1)

    def _shut_down(self, grace: float | None) -> None:
        self._stopping = True
        for worker in [*self._workers.values()]:
            worker.terminate(SHUTDOWN, grace)

    # ------------------------------------------------------------------------------------- nodes

    def _register(self) -> None:
        """Make the node that every cluster has, or give it what it is to have now."""
        node = _node(NODE, self._capacity or {})
        try:
            self.store.create("nodes", "", node)
        except ApiError:
            if self._capacity:
                node["metadata"] = self.store.get("nodes", "", NODE)["metadata"]
                self.store.replace("nodes", "", node, subresource="status")

    def _inherit(self, pod: Object) -> None:
        """Go on with a pod of an earlier process, or write that it is lost."""
        where = pod["metadata"]["namespace"], pod["metadata"]["name"]
        states = (pod.get("status") or {}).get("containerStatuses") or []
        if all("waiting" in one["state"] and not one["lastState"] for one in states):
            self.post(lambda: self._accept(pod))
            return

        def lose(found: Object) -> None:
            found["status"] |= LOST
            for one in found["status"]["containerStatuses"]:
                if "terminated" not in one["state"]:
                    one["state"] = {"terminated": {**UNKNOWN, "finishedAt": now()}}
                one |= {"ready": False, "started": False}

        self.store.change("pods", *where, lose)
        if pod["metadata"].get("deletionTimestamp"):
            take_away(self.store, pod)

    # -------------------------------------------------------------------------- what workers share

    def events(self, pod: Object) -> Recorder:
        return Recorder(self.store, "kubelet", str(pod["spec"].get("nodeName")))

    def mark(self, uid: str, container: str) -> str:
        return f"{self.home}|{uid}|{container}|"

    def port(self, pod: Object) -> int:
        """Return the port at which the pods of a job meet: all jobs share one network here."""
        owners = pod["metadata"].get("ownerReferences") or [pod["metadata"]]
        uid = owners[0]["uid"]
        if uid not in self._ports:
            self._ports[uid] = _free_port(zlib.crc32(uid.encode()), {*self._ports.values()})
        return self._ports[uid]


def disrupt(store: Store, pod: Object, grace: float | None = None) -> None:
    """Delete a pod as the eviction API does, and write down why."""
    where = pod["metadata"]["namespace"], pod["metadata"]["name"]

    def mark(found: Object) -> None:
        reason, message = "EvictionByEvictionAPI", "Eviction API: evicting"
        target = condition(None, "DisruptionTarget", True)
        others = (found["status"].get("conditions")) or []
        found["status"]["conditions"] = [*others, {**target, "reason": reason, "message": message}]

    with contextlib.suppress(ApiError):  # it has gone by itself
        store.change("pods", *where, mark, subresource="status")
        store.delete("pods", *where, grace=grace, uid=pod["metadata"]["uid"])


def _phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def _place(pod: Object) -> tuple[str, str]:
    """Return what a pod shares with the one that comes in its place."""
    name = pod["spec"].get("hostname") or pod["metadata"]["name"]
    return pod["metadata"]["namespace"], name


def _free_port(first: int, taken: set[int]) -> int:
    """Return a port of PORTS that nobody uses, the same for the same number if it is free."""
    for step in range(len(PORTS)):
        port = PORTS[(first + step) % len(PORTS)]
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in taken:
                return port
    raise OSError("no port is free")


def _node(name: str, extended: Mapping[str, int]) -> Object:
    """Return a node. What it does not list of CPU and memory is not counted: see scheduler.py."""
    has = {"pods": str(PODS), **{key: str(value) for key, value in extended.items()}}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {},
        "status": {
            "capacity": has,
            "allocatable": has,
            "conditions": [{**ready, "lastHeartbeatTime": now(), "lastTransitionTime": now()}],
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "nodeInfo": {
                "kubeletVersion": VERSION["gitVersion"],
                "operatingSystem": platform.system().lower(),
                "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(
                    platform.machine(), platform.machine()
                ),
                "kernelVersion": platform.release(),
                "osImage": f"{os.uname().sysname} {os.uname().release}",
                "containerRuntimeVersion": "process://1",
            },
        },
    }
