"""One start of a container: a process of this machine, and all that it starts."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

INHERITED = ("LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH", "SSL_CERT_FILE")
"""What a process needs to know of this machine; all else comes from the pod."""

MARK = "HYDRA_TRAINER_CONTAINER"
"""The variable that tells a container's processes from others. A session or a process group would
not: torchrun's agent and its ranks each have one of their own."""

LONGEST = 16 << 10
"""Bytes of a line of a log, before it goes on in the next one (containerd's limit)."""

DRAINS_WITHIN = 5.0
"""Seconds for the rest of the output after the end: a process in the kernel may hold the pipe."""

PR_SET_PDEATHSIG = 1

# Looked up here: after a fork, the child of a process with threads must not load anything.
_prctl = getattr(ctypes.CDLL(None), "prctl", None)


class Process:
    """A container that runs. Its output goes to a log as the kubelet of a real node writes it.

    When its first process ends, so do the others, as in a container: they are killed. When this
    process ends, so does the first one. Raises OSError when the command cannot be started.

    Args:
        command: what to run; `python` and `python3` are this Python.
        env: all of its environment, but for what it needs to know of this machine.
        folder: the working directory.
        log: the file for the output.
        mark: a text that no other container has.
        ended: is called with the exit code, from a thread of its own, after the log is complete.
    """

    def __init__(
        self,
        command: list[str],
        env: Mapping[str, str],
        folder: Path,
        log: Path,
        mark: str,
        ended: Callable[[int], None],
    ) -> None:
        self._mark = mark
        self._ended = ended
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("ab", buffering=0)
        with contextlib.ExitStack() as undo:
            undo.callback(self._log.close)
            self._popen = subprocess.Popen(
                [_program(command[0]), *command[1:]],
                env={**_inherited(), **env, MARK: mark},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,  # one pipe keeps the order of the lines
                start_new_session=True,
                preexec_fn=_die_with_thread if _prctl else None,
            )
            undo.pop_all()
        assert self._popen.stdout is not None
        self._reader = _thread(_copy, self._popen.stdout, self._log)
        _thread(self._wait)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def signal(self, number: int) -> None:
        """Send a signal to the first process, as a container runtime does."""
        self._popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL for all processes of the container."""
        self._popen.kill()
        kill_marked(self._mark)

    def _wait(self) -> None:
        code = self._popen.wait()
        until = time.monotonic() + DRAINS_WITHIN
        kill_marked(self._mark)
        while self._reader.is_alive() and time.monotonic() < until:
            self._reader.join(0.05)
            # Again: the environment of a process that is just in exec cannot be read.
            kill_marked(self._mark)
        self._log.close()
        self._ended(128 - code if code < 0 else code)


def kill_marked(mark: str) -> None:
    """SIGKILL for all processes whose mark begins with a text, until none is left.

    Gives up after a second: a process that waits for a disk cannot be killed.
    """
    wanted = b"\0" + f"{MARK}={mark}".encode()
    until = time.monotonic() + 1.0
    while (found := [pid for pid in _processes() if wanted in _environment(pid)]) and (
        time.monotonic() < until
    ):
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)  # the dead take a moment, and may have started others


def stamp() -> str:
    """Return the time as a container runtime writes it: RFC 3339 with nanoseconds."""
    seconds, rest = divmod(time.time_ns(), 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09}Z"


def _die_with_thread() -> None:
    """Ask for a SIGKILL when the thread ends that started us: the kubelet's, with its process."""
    assert _prctl is not None
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _program(name: str) -> str:
    return sys.executable if name in ("python", "python3") else name


def _inherited() -> dict[str, str]:
    """Return what a process gets from this one: the programs beside this Python come first."""
    found = {key: os.environ[key] for key in INHERITED if key in os.environ}
    path = os.environ.get("PATH", os.defpath)
    return {**found, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{path}"}


def _copy(output: IO[bytes], log: IO[bytes]) -> None:
    """Write what comes to a log, line by line: F for a whole line, P for one that goes on."""
    with output:
        while line := output.readline(LONGEST):
            goes_on = len(line) == LONGEST and not line.endswith(b"\n")
            head = f"{stamp()} stdout {'P' if goes_on else 'F'} ".encode()
            with contextlib.suppress(OSError, ValueError):  # a full disk must not block the job
                log.write(head + line + (b"" if line.endswith(b"\n") else b"\n"))


def _thread(function: Callable[..., None], *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def _processes() -> list[int]:
    """Return the processes that run; none where there is no /proc."""
    with contextlib.suppress(OSError):
        return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]
    return []


def _environment(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return b"\0" + Path(f"/proc/{pid}/environ").read_bytes()
    return b""
