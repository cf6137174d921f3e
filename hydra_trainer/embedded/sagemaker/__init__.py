"""A small SageMaker on this machine, on which the instances of training jobs are local processes.

    from hydra_trainer.embedded import sagemaker
    endpoint = sagemaker.start(Path("~/.cache/hydra-trainer/sagemaker").expanduser())

It needs nothing but Python. boto3, the AWS CLI and the sagemaker SDK work against it, with
`endpoint_url` or AWS_ENDPOINT_URL, and any credentials: training jobs, their logs in CloudWatch,
S3, and what of STS, IAM, ECR, EC2 and Service Quotas is asked before a job is sent. It is what the
tests of launcher=sagemaker run against. Its process ends by itself when no job runs and nobody has
asked for anything for five minutes; jobs and objects stay.
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

from hydra_trainer.embedded.home import LOCK, LOG, START_LOCK, hold
from hydra_trainer.errors import LaunchError

if TYPE_CHECKING:
    from .faults import Fault
    from .limits import Limit
    from .service import Service
    from .settings import Delays

__all__ = ["Delays", "Fault", "Limit", "Service", "start", "stop"]

STARTS_WITHIN = 120.0
STOPS_WITHIN = 60.0
"""Seconds, on a machine with much to do."""

HERE = {"Service": "service", "Fault": "faults", "Limit": "limits", "Delays": "settings"}


def __getattr__(name: str) -> Any:
    """Import what somebody wants who has the service in his own process: a start does not."""
    if name not in HERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from importlib import import_module

    return getattr(import_module(f".{HERE[name]}", __name__), name)


def start(home: Path) -> str:
    """Return the URL of the service in a folder, whose process is started if none runs.

    Raises LaunchError when the process does not come up.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(hold(home / START_LOCK, wait=True)):
        if not _ask(home, "GET", "/embedded/calls"):
            _spawn(home)
    return (home / "endpoint").read_text()


def stop(home: Path) -> None:
    """End the process of the service in a folder, and the instances of its jobs.

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
        f"The embedded service in {home} (process {pid}) did not end, and was killed."
    )


def _ask(home: Path, method: str, path: str) -> bool:
    """Ask the server that wrote its URL; return whether it is there and did it."""
    try:
        url = urlsplit((home / "endpoint").read_text())
    except FileNotFoundError:
        return False
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
    try:
        connection.request(method, path)
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
                f"The embedded service did not start; {home / LOG} ends with:\n" + "\n".join(lines)
            )
