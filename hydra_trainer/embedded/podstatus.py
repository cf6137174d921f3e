"""What the kubelet writes down about a pod: phases, conditions, states of containers.

https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .metadata import now
from .podlogs import LINE
from .process import Process

Object = dict[str, Any]

MESSAGE_LIMIT = 4096
"""Bytes of a termination message."""

FALLBACK_LINES, FALLBACK_BYTES = 80, 2048
"""What of the end of the log stands in for one that was not written."""

OVER = ("Succeeded", "Failed")

CREATING = {"waiting": {"reason": "ContainerCreating"}}
INITIALIZING = {"waiting": {"reason": "PodInitializing"}}


@dataclass
class Container:
    """A container of a pod, and how far it has come."""

    spec: Object
    initial: bool = False
    state: Object = field(default_factory=dict)
    last: Object = field(default_factory=dict)
    restarts: int = 0
    process: Process | None = None
    is_due: bool = True
    """Whether it is to be started as soon as that is possible."""
    killed_as: str = ""
    """Why it was killed, where that is no secret: OOMKilled."""

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def exit_code(self) -> int | None:
        """How it ended for good; None before that."""
        ended = self.state.get("terminated")
        return None if ended is None else int(ended["exitCode"])

    def wait(self, reason: str, message: str) -> None:
        self.state = {"waiting": {"reason": reason, "message": message}}

    def run(self, process: Process) -> None:
        self.process, self.is_due, self.killed_as = process, False, ""
        self.state = {"running": {"startedAt": now()}}

    def end(self, code: int, message: str, reason: str = "") -> None:
        """Write down how it ended: for good, unless it is to be started again."""
        reason = reason or self.killed_as or ("Error" if code else "Completed")
        started = (self.state.get("running") or {}).get("startedAt")
        ended: Object = {"exitCode": code, "reason": reason}
        ended |= {"message": message} if message else {}
        ended |= {"startedAt": started or now(), "finishedAt": now(), "containerID": self.identity}
        self.process, self.is_due = None, False
        self.state = {"terminated": ended}

    @property
    def identity(self) -> str:
        return f"process://{self.process.pid}" if self.process else ""

    def status(self) -> Object:
        """Return its ContainerStatus."""
        running = "running" in self.state
        return {
            "name": self.name,
            "state": self.state,
            "lastState": self.last,
            "ready": self.exit_code == 0 if self.initial else running,
            "restartCount": self.restarts,
            "image": self.spec["image"],
            "imageID": "",
            **({"containerID": self.identity} if self.process else {}),
            "started": running,
        }


def phase(policy: str, initial: Iterable[Container], main: Iterable[Container]) -> str:
    """Return the phase of a pod that nothing but its containers ends."""
    codes = [one.exit_code for one in main]
    if any(one.exit_code for one in initial):
        return "Failed" if policy == "Never" else "Pending"
    if any(one.exit_code is None for one in initial):
        return "Pending"
    if any(not one.last and "waiting" in one.state for one in main):
        return "Pending"
    if any(code is None for code in codes):
        return "Running"
    return "Failed" if any(codes) else "Succeeded"


def conditions(before: Iterable[Object], phase: str, status: Object) -> list[Object]:
    """Return the conditions that follow from a status; others' stay."""
    initial = status.get("initContainerStatuses") or []
    unready = [one["name"] for one in status["containerStatuses"] if not one["ready"]]
    is_initialized = all(one["ready"] for one in initial)
    reason, message = "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
    if phase in OVER:
        reason, message = ("PodCompleted" if phase == "Succeeded" else "PodFailed"), ""
    ready = (not unready and phase == "Running", reason, message)
    waits = [one["name"] for one in initial if not one["ready"]]
    incomplete = f"containers with incomplete status: [{' '.join(waits)}]"
    found = {
        "PodReadyToStartContainers": (phase not in OVER, "", ""),
        "Initialized": (is_initialized, "ContainersNotInitialized", incomplete),
        "Ready": ready,
        "ContainersReady": ready,
    }
    old = {one["type"]: one for one in before}
    ours = [condition(old.get(kind), kind, *value) for kind, value in found.items()]
    return [*ours, *(one for kind, one in old.items() if kind not in found)]


def condition(
    before: Object | None, kind: str, holds: bool, reason: str = "", message: str = ""
) -> Object:
    """Return a condition, whose time is that of its last change."""
    state = str(holds)
    same = before is not None and before["status"] == state
    time = before["lastTransitionTime"] if before is not None and same else now()
    found: Object = {"type": kind, "status": state, "lastTransitionTime": time}
    if not holds:
        found |= {key: text for key, text in (("reason", reason), ("message", message)) if text}
    return found


def message(container: Object, code: int, report: Path, log: Path) -> str:
    """Return the termination message of a container that has ended.

    https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
    """
    with contextlib.suppress(OSError), report.open("rb") as file:
        if text := file.read(MESSAGE_LIMIT):
            return text.decode(errors="replace")
    if code == 0 or container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
        return ""
    return _end_of(log)


def _end_of(log: Path) -> str:
    text = b""
    with contextlib.suppress(OSError), log.open("rb") as file:
        for line in file.readlines()[-FALLBACK_LINES:]:
            if match := LINE.fullmatch(line):
                text += match[3] if match[2] == b"F" else match[3].removesuffix(b"\n")
    return text[-FALLBACK_BYTES:].decode(errors="replace")
