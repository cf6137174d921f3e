"""What the kubelet does for one pod: mount, start, restart, end.

A real kubelet has such a worker for each pod, too. All methods are called by the kubelet's thread;
the threads that wait for processes only tell it what to call.
"""

import contextlib
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .control import seconds_since
from .metadata import DEFAULT_GRACE, now
from .mounts import NotMounted, Volumes
from .podenv import ConfigError, environment
from .podlogs import log_file
from .podstatus import (
    CREATING,
    INITIALIZING,
    OVER,
    Container,
    conditions,
    message,
    phase,
)
from .process import Process
from .refusals import ApiError
from .rewriting import expand
from .store import Store

if TYPE_CHECKING:
    from .kubelet import Kubelet

Object = dict[str, Any]

UNKNOWN_IMAGE = "no-such-image"
"""In the name of an image: rehearse one that cannot be pulled."""

SIMULATED = ("init-pytorch",)
"""Init containers that need not run: all that the operator's does is to wait for a name in DNS."""

START_ERROR = 128
"""Exit code of a container whose command does not exist."""


class Ending(NamedTuple):
    """Why a pod has to end, whatever its containers do: the reason and message of its status."""

    reason: str = ""
    message: str = ""


DELETED = Ending()
SHUTDOWN = Ending("Terminated", "Pod was terminated in response to imminent node shutdown.")
LATE = Ending("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")


class PodWorker:
    """A pod that a node has taken.

    Args:
        kubelet: what it belongs to.
        pod: the pod as it was then.
    """

    def __init__(self, kubelet: "Kubelet", pod: Object) -> None:
        self.kubelet = kubelet
        self.pod = pod
        self.uid = str(pod["metadata"]["uid"])
        self.where = (str(pod["metadata"]["namespace"]), str(pod["metadata"]["name"]))
        self.folder = kubelet.home / "pods" / self.uid
        spec = pod["spec"]
        self.initial = [Container(one, initial=True) for one in spec.get("initContainers") or ()]
        self.main = [Container(one) for one in spec["containers"]]
        for container in (*self.initial, *self.main):
            container.state = INITIALIZING if self.initial else CREATING
        self._volumes = Volumes(pod, kubelet.home, self.folder, self._find)
        self._policy = str(spec.get("restartPolicy") or "Always")
        self._ending: Ending | None = None
        self._is_gone = False
        self._is_over = False
        self._kill_at: float | None = None
        self._told: Object = {}

    # ------------------------------------------------------------------------------------ starting

    def take(self) -> None:
        """Accept the pod: its deadline runs from here."""
        self.folder.mkdir(parents=True, exist_ok=True)
        started = (self.pod.get("status") or {}).get("startTime")
        if (seconds := self.pod["spec"].get("activeDeadlineSeconds")) is not None:
            past = seconds_since(started) if started else 0.0
            self.kubelet.later(float(seconds) - past, lambda: self._expire(LATE))
        self._told["startTime"] = started or now()
        self._tell()

    def advance(self) -> None:
        """Start what can be started now."""
        if self._is_ending:
            return
        try:
            self._volumes.mount()
        except NotMounted as error:
            self._event("FailedMount", str(error), warning=True)
            self._tell()
            return
        waiting = [one for one in self.initial if one.exit_code != 0]
        for container in waiting[:1] or self.main:
            if container.is_due:
                self._start(container)
        self._settle()

    @property
    def _is_ending(self) -> bool:
        """Whether nothing is to be started any more."""
        return bool(self._ending) or self._is_gone or self._is_over

    @property
    def is_waiting(self) -> bool:
        """Whether a container is still to be started: a ConfigMap or a Secret may be missing."""
        return any(one.is_due for one in (*self.initial, *self.main))

    def _start(self, container: Container) -> None:
        if container.name in SIMULATED and container.initial:
            container.end(0, "")
            self.kubelet.post(self.advance)
            return
        if UNKNOWN_IMAGE in container.spec["image"]:
            self._fail_to_pull(container)
            return
        try:
            process = self._process(container)
        except ConfigError as error:
            self._refuse(container, "CreateContainerConfigError", str(error))
        except OSError as error:
            self._fail_to_start(container, error)
        else:
            container.run(process)
            there = f'Container image "{container.spec["image"]}" already present on machine'
            self._event("Pulled", there, container)
            self._event("Created", "Container created", container)
            self._event("Started", "Container started", container)

    def _process(self, container: Container) -> Process:
        """Start a container's process. Raises ConfigError, OSError."""
        spec = container.spec
        if not spec.get("command"):
            raise ConfigError("the embedded cluster has no images: the container needs a command")
        report = self._report(container)
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_bytes(b"")
        paths = self._volumes.paths(spec, report)
        env = environment(spec, self.pod, self.kubelet.port(self.pod), self._find)
        words = [*spec["command"], *(spec.get("args") or ())]
        folder = Path(paths.here(spec["workingDir"])) if spec.get("workingDir") else report.parent

        def ended(code: int) -> None:
            self.kubelet.post(lambda: self._end(container, code))

        return Process(
            [paths.here(expand(word, env)) for word in words],
            {key: paths.here(value) for key, value in env.items()},
            folder,
            self._log(container),
            self.kubelet.mark(self.uid, container.name),
            ended,
        )

    # ----------------------------------------------------------------------------- what goes wrong

    def _fail_to_pull(self, container: Container) -> None:
        image = container.spec["image"]
        why = f'failed to resolve reference "{image}": {image}: not found'
        text = f'Failed to pull image "{image}": rpc error: code = NotFound desc = {why}'
        self._event("Pulling", f'Pulling image "{image}"', container)
        self._event("Failed", text, container, warning=True)
        self._event("Failed", "Error: ErrImagePull", container, warning=True)
        container.is_due = False
        container.wait("ErrImagePull", text.partition(": ")[2])
        self.kubelet.later(self.kubelet.back_off, lambda: self._back_off_pulling(container))

    def _back_off_pulling(self, container: Container) -> None:
        if self._is_ending:
            return
        text = f'Back-off pulling image "{container.spec["image"]}"'
        self._event("BackOff", text, container)
        self._event("Failed", "Error: ImagePullBackOff", container, warning=True)
        container.wait("ImagePullBackOff", text)
        self._tell()

    def _refuse(self, container: Container, reason: str, text: str) -> None:
        """A container that cannot be made yet stays due: what it needs may come."""
        container.wait(reason, text)
        self._event("Failed", f"Error: {text}", container, warning=True)

    def _fail_to_start(self, container: Container, error: OSError) -> None:
        """https://github.com/opencontainers/runc: the command, or its folder, does not exist."""
        program = (container.spec.get("command") or [""])[0]
        why = f'exec: "{program}": executable file not found in $PATH'
        if not isinstance(error, FileNotFoundError) or error.filename != program:
            strerror = str(error.strerror or error).lower()
            why = f'exec: "{program}": stat {error.filename or program}: {strerror}'
        text = (
            "failed to create containerd task: failed to create shim task: OCI runtime create "
            "failed: runc create failed: unable to start container process: error during "
            f"container init: {why}: unknown"
        )
        self._event("Failed", f"Error: {text}", container, warning=True)
        container.end(START_ERROR, text, "StartError")
        self.kubelet.post(lambda: self._after(container))

    # -------------------------------------------------------------------------------------- ending

    def _end(self, container: Container, code: int) -> None:
        text = message(container.spec, code, self._report(container), self._log(container))
        container.end(code, text)
        self._after(container)

    def _after(self, container: Container) -> None:
        """Start a container again that has ended, if it is to be."""
        code = container.exit_code
        again = self._policy == "Always" and not container.initial
        if self._is_ending or not (again or (code and self._policy != "Never")):
            self._settle()
            if container.initial and code == 0:
                self.advance()
            return
        delay = self.kubelet.delay(container.restarts)
        container.last = container.state
        container.restarts += 1
        if delay:
            name, namespace = self.where[1], self.where[0]
            text = f"restarting failed container={container.name} pod={name}_{namespace}"
            container.wait("CrashLoopBackOff", f"back-off {delay:g}s {text}({self.uid})")
            text = f"Back-off restarting failed container {container.name} in pod"
            self._event("BackOff", f"{text} {name}_{namespace}({self.uid})", container, True)
        else:
            container.state = CREATING
        self._settle()
        self.kubelet.later(delay, lambda: self._restart(container))

    def _restart(self, container: Container) -> None:
        container.is_due = True
        self.advance()

    def _settle(self) -> None:
        """Write the status; let go of the pod if it is over."""
        running = any(one.process for one in (*self.initial, *self.main))
        found = "" if self._is_gone else self._tell()
        if running or not (self._is_gone or self._ending or found in OVER):
            return
        self._is_over = True
        self.kubelet.forget(self)
        if self._is_gone or self.pod["metadata"].get("deletionTimestamp"):
            clean(self.kubelet.home, self.pod)
            take_away(self.kubelet.store, self.pod)

    def _expire(self, ending: Ending) -> None:
        if not self._is_ending:
            self._event(ending.reason, ending.message, warning=True)
            self.terminate(ending)

    def change(self, pod: Object) -> None:
        """Look at a new version of the pod: somebody may have deleted it."""
        self.pod = pod
        grace = pod["metadata"].get("deletionGracePeriodSeconds")
        if pod["metadata"].get("deletionTimestamp"):
            self.terminate(DELETED, DEFAULT_GRACE if grace is None else float(grace))

    def terminate(self, ending: Ending, grace: float | None = None) -> None:
        """SIGTERM, the grace period in seconds, SIGKILL. A later call can only shorten it."""
        grace = self.grace if grace is None else grace
        if self._is_over:
            return
        if self._ending is None:
            self._ending = ending
            for container in (*self.initial, *self.main):
                if container.process:
                    text = f"Stopping container {container.name}"
                    self._event("Killing", text, container)
                    container.process.signal(signal.SIGTERM)
            self._settle()
        kill_at = self.kubelet.clock() + grace
        if self._kill_at is None or kill_at < self._kill_at:
            self._kill_at = kill_at
            self.kubelet.later(grace, self.kill)

    @property
    def grace(self) -> float:
        """Seconds between SIGTERM and SIGKILL, as the pod wants it."""
        seconds = self.pod["spec"].get("terminationGracePeriodSeconds")
        return float(DEFAULT_GRACE if seconds is None else seconds)

    def abandon(self) -> None:
        """End a pod that is no longer there: nobody waits for what it does."""
        self._is_gone = True
        self.kill()
        self._settle()

    def kill(self) -> None:
        for container in (*self.initial, *self.main):
            if container.process:
                container.process.kill()

    def signal(self, number: int, reason: str = "") -> None:
        """Send a signal to the containers: SIGKILL to all of their processes."""
        for container in (*self.initial, *self.main):
            if container.process:
                container.killed_as = reason
                if number == signal.SIGKILL:
                    container.process.kill()
                else:
                    container.process.signal(number)

    def evict(self, text: str) -> None:
        """End the pod at once, as a node does that is short of something."""
        self._event("Evicted", text, warning=True)
        self.terminate(Ending("Evicted", text), 0)

    # ------------------------------------------------------------------------------------- telling

    def _tell(self) -> str:
        """Write the pod's status, and return its phase."""
        found = phase(self._policy, self.initial, self.main)
        if self._ending and not any(one.process for one in (*self.initial, *self.main)):
            found = "Succeeded" if found == "Succeeded" and not self._ending.reason else "Failed"
        status = {
            **self._told,
            "phase": found,
            **({"initContainerStatuses": _statuses(self.initial)} if self.initial else {}),
            "containerStatuses": _statuses(self.main),
        }
        if self._ending and self._ending.reason and found in OVER:
            status |= {"reason": self._ending.reason, "message": self._ending.message}
        self._write(lambda before: _new_status(before, found, status))
        return found

    def _write(self, function: Callable[[Object], Object]) -> None:
        """Change the pod's status, if it is still there."""

        def write(found: Object) -> None:
            if found["metadata"]["uid"] == self.uid:
                found["status"] = function(found.get("status") or {})

        with contextlib.suppress(ApiError):
            self.kubelet.store.change("pods", *self.where, write, subresource="status")

    def _event(
        self, reason: str, text: str, container: Container | None = None, warning: bool = False
    ) -> None:
        part = ""
        if container:
            part = f"spec.{'initContainers' if container.initial else 'containers'}"
            part += f"{{{container.name}}}"
        kind = "Warning" if warning else "Normal"
        self.kubelet.events(self.pod).tell(self.pod, reason, text, kind, part)

    # ------------------------------------------------------------------------------------- finding

    def _find(self, resource: str, name: str) -> Object | None:
        with contextlib.suppress(ApiError):
            return self.kubelet.store.get(resource, self.where[0], name)
        return None

    def _report(self, container: Container) -> Path:
        return self.folder / "containers" / container.name / "termination-log"

    def _log(self, container: Container) -> Path:
        return log_file(self.kubelet.home, self.pod, container.name, container.restarts)


def take_away(store: Store, pod: Object) -> None:
    """Remove a pod that was deleted and has ended; not another one that has its name by now."""
    where = pod["metadata"]["namespace"], pod["metadata"]["name"]
    with contextlib.suppress(ApiError):
        if store.record("pods", *where).uid == pod["metadata"]["uid"]:
            store.remove("pods", *where)


def clean(home: Path, pod: Object) -> None:
    """Take away what a pod left here: what it mounted of its own, and its logs."""
    shutil.rmtree(home / "pods" / pod["metadata"]["uid"], ignore_errors=True)
    shutil.rmtree(log_file(home, pod, "", 0).parent, ignore_errors=True)


def _statuses(containers: list[Container]) -> list[Object]:
    return [one.status() for one in containers]


def _new_status(before: Object, phase: str, status: Object) -> Object:
    found = conditions(before.get("conditions") or (), phase, status)
    return {**before, **status, "conditions": found}
