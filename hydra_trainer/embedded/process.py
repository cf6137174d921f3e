"""One container of a pod, as a process of this machine.

What a container sees under a mountPath is a folder here, so these paths are rewritten wherever the
pod's spec says them: in command, args, workingDir and the values of the environment.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Object = dict[str, Any]

INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "TZ", "SSL_CERT_FILE")
"""What a process needs of this machine; all else comes from the pod."""


class Paths:
    """Rewrites the paths of a container to those of this machine."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = dict(places)
        longest_first = sorted(map(re.escape, places), key=len, reverse=True)
        pattern = rf"(?<![\w./-])({'|'.join(longest_first)})(?=/|$|[^\w.-])"
        self._pattern = re.compile(pattern) if places else None

    def here(self, text: str) -> str:
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: str(self._places[match[1]]), text)


def expand(text: str, env: Mapping[str, str]) -> str:
    """Fill in $(NAME) as Kubernetes does: $$( is a literal $(, an unknown name stays."""

    def value(match: re.Match[str]) -> str:
        if match[0].startswith("$$"):
            return match[0][1:]
        return env.get(match[1], match[0])

    return re.sub(r"\$?\$\(([\w.-]+)\)|\$\$\(", value, text)


def stamp() -> str:
    """Return the time as a container runtime writes it into logs."""
    now = datetime.now(UTC)
    return now.strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


def _die_with_parent() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


class Process:
    """A running container. `ended` is called with the exit code, from a thread of its own."""

    def __init__(
        self,
        command: list[str],
        env: dict[str, str],
        folder: Path,
        log: Path,
        ended: Callable[[int], None],
    ) -> None:
        self._ended = ended
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        if command[0] in ("python", "python3"):
            command = [sys.executable, *command[1:]]
        inherited = {key: os.environ[key] for key in INHERITED if key in os.environ}
        self._popen = subprocess.Popen(
            command,
            env=inherited | env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        assert self._popen.stdout is not None
        with self._log.open("ab", buffering=0) as log:
            for line in self._popen.stdout:
                text = line if line.endswith(b"\n") else line + b"\n"
                log.write(f"{stamp()} stdout F ".encode() + text)
        code = self._popen.wait()
        self.signal(signal.SIGKILL)  # what it left behind
        self._ended(128 - code if code < 0 else code)

    def signal(self, number: int) -> None:
        """Send a signal: SIGKILL to all of the container's processes, others to the first one."""
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._popen.pid, number)
            elif self._popen.poll() is None:
                os.kill(self._popen.pid, number)
