"""A small Kubernetes cluster on this machine, on which pods are local processes.

    from hydra_trainer import embedded
    kubeconfig = embedded.start(Path("~/.cache/hydra-trainer/embedded").expanduser())

It needs nothing but Python. `kubectl` and the official client work against it, jobs of the Kubeflow
operators run in it, and it is what the tests of launcher=eks run against. Its process ends by
itself when no pod runs and nobody has asked for anything for five minutes; the objects stay.
"""

import contextlib
import http.client
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from hydra_trainer.errors import LaunchError

from . import kubeconfig
from .home import KUBECONFIG, LOCK, LOG, START_LOCK, hold

if TYPE_CHECKING:
    from .cluster import Embedded

__all__ = ["Embedded", "start", "stop"]

STARTS_WITHIN = 120.0
STOPS_WITHIN = 60.0
"""Seconds, on a machine with much to do."""


def __getattr__(name: str) -> Any:
    """Import the cluster when somebody has it in his own process: a start does not need it."""
    if name != "Embedded":
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from .cluster import Embedded

    return Embedded


def start(home: Path) -> Path:
    """Return the kubeconfig of the cluster in a folder, whose process is started if none runs.

    Its context is named `embedded`, with the namespace `default`. Raises LaunchError when the
    process does not come up.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(hold(home / START_LOCK, wait=True)):
        if not _ask(home, "GET", "/readyz"):
            _spawn(home)
    return home / KUBECONFIG


def stop(home: Path) -> None:
    """End the process of the cluster in a folder, and its pods.

    Returns when it has ended; nothing happens when there is none. Raises LaunchError when it had to
    be killed.
    """
    try:
        hold(home / LOCK, wait=False).close()
        return
    except FileNotFoundError:
        return
    except BlockingIOError:
        pid = int((home / LOCK).read_text())
    _ask(home, "POST", "/embedded/stop")
    until = time.monotonic() + STOPS_WITHIN
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    raise LaunchError(
        f"The embedded cluster in {home} (process {pid}) did not end, and was killed."
    )


def _ask(home: Path, method: str, path: str) -> bool:
    """Ask the server that wrote the kubeconfig; return whether it is there and did it."""
    entry = kubeconfig.read(home / KUBECONFIG)
    if entry is None:
        return False
    url = urlsplit(entry.server)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
    try:
        connection.request(method, url.path + path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _spawn(home: Path) -> None:
    """Start the process and wait until it answers: it says so on a pipe."""
    receive, send = os.pipe()
    command = [sys.executable, "-m", __name__, "--home", str(home.absolute()), "--ready", str(send)]
    with (home / LOG).open("ab") as log, contextlib.closing(os.fdopen(receive, "rb")) as pipe:
        try:
            subprocess.run(
                command,
                cwd=home,  # the user's folder may go, and its modules are none of ours
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(send,),
                start_new_session=True,
                check=False,
            )
        finally:
            os.close(send)
        readable, _, _ = select.select([pipe], [], [], STARTS_WITHIN)
        if not readable or not pipe.read(1):
            lines = (home / LOG).read_text(errors="replace").splitlines()[-5:]
            raise LaunchError(
                f"The embedded cluster did not start; {home / LOG} ends with:\n" + "\n".join(lines)
            )
