"""The one node of the embedded cluster: its scheduler, and its kubelet."""

import base64
import contextlib
import heapq
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty
from typing import Any

from . import events
from .podlogs import log_file
from .process import Paths, Process, expand
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

NODE = "this-machine"
MESSAGE_LIMIT = 4096  # bytes of a termination message
FALLBACK_LIMIT = 2048  # bytes of the log that stand in for one
RESTART_DELAYS = (0.1, 0.5, 2.0, 5.0)
"""Seconds before a container is started again in place. A real kubelet begins with 10."""
PORTS = ("MASTER_PORT", "PET_MASTER_PORT")
HOSTS = ("MASTER_ADDR", "PET_MASTER_ADDR")
ENDPOINT = "PET_RDZV_ENDPOINT"
UNKNOWN_IMAGE = "no-such-image"
"""In the name of an image: rehearse one that cannot be pulled."""


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Kubelet:
    """Runs the pods of a store.

    Args:
        store: where the pods are.
        home: for the pods' files.
        capacity: extended resources of the node, such as {"nvidia.com/gpu": 8}. CPU and memory are
            not counted: the machine is what it is.
        claims: the PersistentVolumeClaims that exist; None: any, made on use.
    """

    def __init__(
        self,
        store: Store,
        home: Path,
        capacity: dict[str, int] | None = None,
        claims: list[str] | None = None,
    ) -> None:
        self.store = store
        self.home = home
        self.capacity = capacity or {}
        self.claims = claims
        self._pods: dict[str, _Pod] = {}  # by uid
        self._ports: dict[str, int] = {}  # by uid of the owner
        self._waiting: set[tuple[str, str]] = set()  # pods that something is missing for
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._lock = threading.RLock()
        self._stopped = threading.Event()
        self._changes = store.subscribe()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        for pod in self.store.list("pods")[0]:
            if pod["spec"].get("nodeName") and not _over(pod):
                self._lost(pod)
            else:
                self._look(pod)
        self._thread.start()

    def stop(self) -> None:
        """End all pods' processes, now."""
        self._stopped.set()
        with self._lock:
            for running in list(self._pods.values()):
                running.kill()

    @property
    def busy(self) -> bool:
        """Whether a pod runs."""
        return bool(self._pods)

    # ------------------------------------------------------------------------- what users may ask

    def kill(self, namespace: str, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to the containers of a pod, as a fault of the machine would."""
        self._pods[self.store.get("pods", namespace, name)["metadata"]["uid"]].signal(number)

    def drain(self) -> None:
        """Evict all pods: SIGTERM, the grace period, SIGKILL. They end as Failed: Evicted."""
        with self._lock:
            for running in list(self._pods.values()):
                running.evict()

    # ---------------------------------------------------------------------------------- the loop

    def _run(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(Empty):
                kind, resource, obj = self._changes.get(timeout=self._pause())
                self._take(kind, resource, obj)
            self._fire()

    def _take(self, kind: str, resource: str, obj: Object) -> None:
        if resource in ("configmaps", "secrets", "persistentvolumeclaims") and kind == "ADDED":
            for namespace, name in list(self._waiting):
                with contextlib.suppress(ApiError):
                    self._look(self.store.get("pods", namespace, name))
        if resource != "pods":
            return
        uid = obj["metadata"]["uid"]
        if kind == "DELETED":
            self._waiting.discard(_where(obj))
            if uid in self._pods:
                self._pods[uid].kill()
        elif obj["metadata"].get("deletionTimestamp"):
            if uid in self._pods:
                self._pods[uid].terminate()
            else:
                self.store.remove("pods", *_where(obj))
        else:
            self._look(obj)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function of this thread's after some time."""
        with self._lock:
            self._count += 1
            heapq.heappush(self._timers, (time.monotonic() + seconds, self._count, function))

    def _pause(self) -> float:
        with self._lock:
            first = self._timers[0][0] - time.monotonic() if self._timers else 1.0
        return min(max(first, 0.001), 0.5)

    def _fire(self) -> None:
        while True:
            with self._lock:
                if not self._timers or self._timers[0][0] > time.monotonic():
                    return
                function = heapq.heappop(self._timers)[2]
            function()

    # ------------------------------------------------------------------------------------ starting

    def _look(self, pod: Object) -> None:
        """Place a pod, or start it, as far as that is possible now."""
        if _over(pod) or pod["metadata"]["uid"] in self._pods:
            return
        if not pod["spec"].get("nodeName"):
            if (reason := self._unschedulable(pod)) is not None:
                self._pending(pod, reason)
                return
            pod = self._place(pod)
        if (problem := self._missing(pod)) is not None:
            self._wait_for(pod, *problem)
            return
        self._waiting.discard(_where(pod))
        with self._lock:
            self._pods[pod["metadata"]["uid"]] = running = _Pod(self, pod)
        running.start()

    def _unschedulable(self, pod: Object) -> str | None:
        for name, wanted in _extended(pod).items():
            used = sum(_extended(other.pod).get(name, 0) for other in self._pods.values())
            if used + wanted > self.capacity.get(name, 0):
                return (
                    f"0/1 nodes are available: 1 Insufficient {name}. preemption: 0/1 nodes are "
                    "available: 1 No preemption victims found for incoming pod."
                )
        for claim in _claims(pod):
            if self.claims is not None and claim not in self.claims:
                return f'persistentvolumeclaim "{claim}" not found'
        return None

    def _pending(self, pod: Object, message: str) -> None:
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": now(),
        }
        before = (pod.get("status") or {}).get("conditions") or []
        if not any(found.get("message") == message for found in before):
            self._set(pod, lambda found: found["status"].update(conditions=[condition]))
            events.record(self.store, pod, "FailedScheduling", message, "Warning")

    def _place(self, pod: Object) -> Object:
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}

        def place(found: Object) -> None:
            found["spec"]["nodeName"] = NODE
            found["status"] |= {"conditions": [scheduled], "startTime": now()}
            found["status"] |= {"hostIP": "127.0.0.1", "podIP": "127.0.0.1"}

        placed = self._set(pod, place) or pod
        name = f"{placed['metadata']['namespace']}/{placed['metadata']['name']}"
        message = f"Successfully assigned {name} to {NODE}"
        events.record(self.store, pod, "Scheduled", message)
        return placed

    def _missing(self, pod: Object) -> tuple[str, str, str] | None:
        """Return (reason, message, event) of what keeps the containers from starting."""
        for container in pod["spec"]["containers"]:
            if UNKNOWN_IMAGE in container["image"]:
                image = container["image"]
                return "ImagePullBackOff", f'Back-off pulling image "{image}"', "Failed"
        namespace = pod["metadata"]["namespace"]
        for resource, name in _sources(pod):
            if self.find(resource, namespace, name) is None:
                message = f'{resource[:-1]} "{name}" not found'
                return "ContainerCreating", message, "FailedMount"
        return None

    def _wait_for(self, pod: Object, reason: str, message: str, event: str) -> None:
        self._waiting.add(_where(pod))
        waiting = {"reason": reason, "message": message}
        statuses = [
            _container_status(container, {"waiting": waiting}, {}, 0)
            for container in pod["spec"]["containers"]
        ]
        self._set(pod, lambda found: found["status"].update(containerStatuses=statuses))
        events.record(self.store, pod, event, message, "Warning")

    # ------------------------------------------------------------------------------------- shared

    def find(self, resource: str, namespace: str, name: str) -> Object | None:
        with contextlib.suppress(ApiError):
            return self.store.get(resource, namespace, name)
        return None

    def _set(self, pod: Object, function: Callable[[Object], None]) -> Object | None:
        with contextlib.suppress(ApiError):
            return self.store.change("pods", *_where(pod), function)
        return None

    def _lost(self, pod: Object) -> None:
        """A pod that ran when the process before this one ended."""
        status = {"phase": "Failed", "reason": "NodeLost", "message": "the node went away"}
        self._set(pod, lambda found: found["status"].update(status))
        if pod["metadata"].get("deletionTimestamp"):
            self.store.remove("pods", *_where(pod))

    def forget(self, uid: str) -> None:
        with self._lock:
            self._pods.pop(uid, None)

    def port(self, pod: Object) -> int:
        """Return the port on which the pods of a job meet: all jobs share one network here."""
        owners = pod["metadata"].get("ownerReferences") or [{"uid": pod["metadata"]["uid"]}]
        with self._lock:
            if owners[0]["uid"] not in self._ports:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", 0))
                    self._ports[owners[0]["uid"]] = probe.getsockname()[1]
            return self._ports[owners[0]["uid"]]


class _Pod:
    """One pod that was started."""

    def __init__(self, kubelet: Kubelet, pod: Object) -> None:
        self.kubelet = kubelet
        self.pod = pod
        self.folder = kubelet.home / "pods" / pod["metadata"]["uid"]
        self._processes: dict[str, Process] = {}
        self._states: dict[str, Object] = {}
        self._before: dict[str, Object] = {}
        self._restarts: dict[str, int] = {}
        self._stopping = False
        self._evicted = False
        self._lock = threading.RLock()

    # ------------------------------------------------------------------------------------ its life

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for container in self.pod["spec"]["containers"]:
            self._start(container)

    def _start(self, container: Object) -> None:
        name = container["name"]
        with self._lock:
            if self._stopping:
                return
            self._states[name] = {"running": {"startedAt": now()}}
            restart = self._restarts.setdefault(name, 0)
            try:
                self._processes[name] = self._process(container, restart)
            except (OSError, ValueError) as error:
                self._log(container, str(error), restart)
                self._ended(container, 127)
                return
        self._tell()
        self._event("Started", f"Started container {name}")

    def _process(self, container: Object, restart: int) -> Process:
        paths = self._paths(container)
        env: dict[str, str] = {}
        for key, value in self._env(container):
            env[key] = expand(value, env)
        env = {key: paths.here(value) for key, value in env.items()}
        words = [*(container.get("command") or []), *(container.get("args") or [])]
        if not words:
            raise ValueError("the embedded cluster has no images: the container needs a command")
        command = [paths.here(expand(word, env)) for word in words]
        self._message_file(container).write_text("")
        folder = Path(paths.here(container.get("workingDir") or str(self.folder)))
        log = log_file(self.kubelet.home, self.pod, container["name"], restart)
        return Process(command, env, folder, log, lambda code: self._ended(container, code))

    def _log(self, container: Object, text: str, restart: int) -> None:
        path = log_file(self.kubelet.home, self.pod, container["name"], restart)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{now()} stderr F {text}\n")

    def _ended(self, container: Object, code: int) -> None:
        name = container["name"]
        with self._lock:
            started = self._states[name].get("running", {}).get("startedAt") or now()
            terminated = {
                "exitCode": code,
                "reason": "Completed" if code == 0 else "Error",
                "startedAt": started,
                "finishedAt": now(),
                "message": self._message(container, code),
            }
            if not terminated["message"]:
                del terminated["message"]
            self._states[name] = {"terminated": terminated}
            policy = self.pod["spec"].get("restartPolicy", "Always")
            again = policy == "Always" or (policy == "OnFailure" and code != 0)
            if again and not self._stopping:
                self._again(container, terminated)
                return
            over = all("terminated" in state for state in self._states.values())
        self._tell()
        if over:
            self._finish()

    def _again(self, container: Object, terminated: Object) -> None:
        name = container["name"]
        self._restarts[name] += 1
        self._before[name] = {"terminated": terminated}
        message = f"back-off restarting failed container={name}"
        self._states[name] = {"waiting": {"reason": "CrashLoopBackOff", "message": message}}
        self._tell()
        delay = RESTART_DELAYS[min(self._restarts[name], len(RESTART_DELAYS)) - 1]
        self._event("BackOff", f"Back-off restarting failed container {name}", "Warning")
        self.kubelet.later(delay, lambda: self._start(container))

    def _finish(self) -> None:
        self.kubelet.forget(self.pod["metadata"]["uid"])
        with contextlib.suppress(ApiError):
            found = self.kubelet.store.get("pods", *_where(self.pod))
            same = found["metadata"]["uid"] == self.pod["metadata"]["uid"]
            if same and found["metadata"].get("deletionTimestamp"):
                self.kubelet.store.remove("pods", *_where(self.pod))

    def signal(self, number: int) -> None:
        for process in list(self._processes.values()):
            process.signal(number)

    def kill(self) -> None:
        self._stopping = True
        self.signal(signal.SIGKILL)

    def terminate(self) -> None:
        """SIGTERM, the grace period, SIGKILL."""
        with self._lock:
            if self._stopping:
                return
            self._stopping = True
        self._event("Killing", f"Stopping container {self.pod['spec']['containers'][0]['name']}")
        if all("running" not in state for state in self._states.values()):
            self._finish()
            return
        self.signal(signal.SIGTERM)
        grace = self.pod["spec"].get("terminationGracePeriodSeconds", 30)
        self.kubelet.later(grace, lambda: self.signal(signal.SIGKILL))

    def evict(self) -> None:
        self._evicted = True
        self._event("Evicted", "The node is being drained", "Warning")
        self.terminate()

    # --------------------------------------------------------------------------------- what it sees

    def _env(self, container: Object) -> Iterator[tuple[str, str]]:
        yield "HOSTNAME", self.pod["metadata"]["name"]
        yield "XDG_CACHE_HOME", str(Path("~/.cache").expanduser())
        port = str(self.kubelet.port(self.pod))
        for item in container.get("env") or []:
            name = item["name"]
            value = str(item.get("value") or "")
            if "valueFrom" in item:
                found = self._value_from(item["valueFrom"])
                if found is None:
                    continue
                value = found
            if name in PORTS:
                value = port
            elif name in HOSTS:
                value = "127.0.0.1"
            elif name == ENDPOINT:
                value = f"127.0.0.1:{port}"
            yield name, value

    def _value_from(self, source: Object) -> str | None:
        if "fieldRef" in source:
            node: Any = self.pod
            for key in source["fieldRef"]["fieldPath"].split("."):
                node = node.get(key) if isinstance(node, dict) else None
            return str(node or "")
        for kind, resource in (("secretKeyRef", "secrets"), ("configMapKeyRef", "configmaps")):
            if kind in source:
                reference = source[kind]
                namespace = self.pod["metadata"]["namespace"]
                obj = self.kubelet.find(resource, namespace, reference["name"]) or {}
                content = _files(obj).get(reference["key"])
                return None if content is None else content.decode()
        return None

    def _paths(self, container: Object) -> Paths:
        volumes = {volume["name"]: volume for volume in self.pod["spec"].get("volumes") or []}
        places = {}
        for mount in container.get("volumeMounts") or []:
            if mount["mountPath"] == "/dev/shm":
                continue  # this machine has its own
            place = self._volume(volumes[mount["name"]])
            if mount.get("subPath"):
                place = place / mount["subPath"]
                place.mkdir(parents=True, exist_ok=True)
            places[mount["mountPath"].rstrip("/")] = place
        places[container["terminationMessagePath"]] = self._message_file(container)
        return Paths(places)

    def _message_file(self, container: Object) -> Path:
        return self.folder / f"{container['name']}.termination-message"

    def _volume(self, volume: Object) -> Path:
        """Return the folder of this machine that is a volume."""
        if "hostPath" in volume:
            place = Path(volume["hostPath"]["path"])
        elif "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            place = self.kubelet.home / "volumes" / self.pod["metadata"]["namespace"] / claim
        else:
            place = self.folder / "volumes" / volume["name"]
        place.mkdir(parents=True, exist_ok=True)
        for resource, name in _sources_of(volume):
            namespace = self.pod["metadata"]["namespace"]
            for key, content in _files(self.kubelet.find(resource, namespace, name) or {}).items():
                (place / key).write_bytes(content)
        return place

    # ------------------------------------------------------------------------------- what it tells

    def _message(self, container: Object, code: int) -> str:
        with contextlib.suppress(OSError):
            if text := self._message_file(container).read_bytes()[:MESSAGE_LIMIT]:
                return text.decode(errors="replace")
        if code == 0 or container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            return ""
        restart = self._restarts[container["name"]]
        with contextlib.suppress(OSError):
            lines = log_file(self.kubelet.home, self.pod, container["name"], restart).read_bytes()
            text = b"\n".join(line.split(b" ", 3)[-1] for line in lines.splitlines()[-80:])
            return text[-FALLBACK_LIMIT:].decode(errors="replace")
        return ""

    def _tell(self) -> None:
        """Write the pod's status."""
        statuses = [
            _container_status(
                container,
                self._states.get(container["name"], {}),
                self._before.get(container["name"], {}),
                self._restarts.get(container["name"], 0),
            )
            for container in self.pod["spec"]["containers"]
        ]
        ready = all("running" in status["state"] for status in statuses)
        conditions = [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()},
            {"type": "Ready", "status": str(ready), "lastTransitionTime": now()},
        ]

        def write(found: Object) -> None:
            found["status"] |= {"phase": self._phase(), "containerStatuses": statuses}
            found["status"]["conditions"] = conditions
            if self._evicted:
                found["status"] |= {"reason": "Evicted", "message": "The node is being drained"}

        with contextlib.suppress(ApiError):
            found = self.kubelet.store.get("pods", *_where(self.pod))
            if found["metadata"]["uid"] == self.pod["metadata"]["uid"]:
                self.kubelet.store.change("pods", *_where(self.pod), write)

    def _phase(self) -> str:
        ends = [state.get("terminated") for state in self._states.values()]
        if not all(ends):
            return "Running"
        failed = self._evicted or any(end["exitCode"] for end in ends if end)
        return "Failed" if failed else "Succeeded"

    def _event(self, reason: str, message: str, kind: str = "Normal") -> None:
        events.record(self.kubelet.store, self.pod, reason, message, kind)


# ------------------------------------------------------------------------------------ reading a pod


def _container_status(container: Object, state: Object, before: Object, restarts: int) -> Object:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "state": state,
        "lastState": before,
        "ready": "running" in state,
        "started": "running" in state,
        "restartCount": restarts,
    }


def _where(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def _over(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def _extended(pod: Object) -> dict[str, int]:
    """Return the extended resources that a pod asks for, such as GPUs."""
    found: dict[str, int] = {}
    for container in pod["spec"]["containers"]:
        limits = (container.get("resources") or {}).get("limits") or {}
        for name, amount in limits.items():
            if "/" in name:
                found[name] = found.get(name, 0) + int(amount)
    return found


def _claims(pod: Object) -> list[str]:
    volumes = pod["spec"].get("volumes") or []
    key = "persistentVolumeClaim"
    return [volume[key]["claimName"] for volume in volumes if key in volume]


def _sources(pod: Object) -> list[tuple[str, str]]:
    """Return the ConfigMaps and Secrets that the pod's volumes need."""
    volumes = pod["spec"].get("volumes") or []
    return [source for volume in volumes for source in _sources_of(volume)]


def _sources_of(volume: Object) -> list[tuple[str, str]]:
    if "configMap" in volume:
        return [("configmaps", volume["configMap"]["name"])]
    if "secret" in volume:
        return [("secrets", volume["secret"]["secretName"])]
    return []


def _files(obj: Object) -> dict[str, bytes]:
    """Return the files of a ConfigMap or a Secret."""
    if obj.get("kind") == "Secret":
        return {key: base64.b64decode(text) for key, text in (obj.get("data") or {}).items()}
    found = {key: text.encode() for key, text in (obj.get("data") or {}).items()}
    binary = (obj.get("binaryData") or {}).items()
    return found | {key: base64.b64decode(text) for key, text in binary}
