"""A server in a process of its own: one for a folder, started when it is needed."""

import contextlib
import http.client
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from hydra_trainer.errors import LaunchError

from .home import LOCK, LOG, START_LOCK, hold
from .process import MARK

STARTS_WITHIN = 120.0
STOPS_WITHIN = 60.0
"""Seconds, on a machine with much to do."""


@dataclass(frozen=True)
class Background:
    """Starts and stops the process of a kind of server.

    Args:
        module: what `python -m` runs, with `--home` and `--ready`, a pipe to write to.
        what: how messages call it.
        url: returns where the server of a folder says that it is; None: none ever was.
        ready: a path that it answers.
    """

    module: str
    what: str
    url: Callable[[Path], str | None]
    ready: str

    def start(self, home: Path) -> None:
        """Start the process of a folder, if none runs. Raises LaunchError when it does not come up.

        Returns when it answers.
        """
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.closing(hold(home / START_LOCK, wait=True)):
            if not self._ask(home, "GET", self.ready):
                self._spawn(home)

    def stop(self, home: Path) -> None:
        """End the process of a folder, and what runs in it.

        Returns when it has ended; nothing happens when there is none. Raises LaunchError when it
        had to be killed.
        """
        try:
            hold(home / LOCK, wait=False).close()
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pid = int((home / LOCK).read_text())
        self._ask(home, "POST", "/embedded/stop")
        until = time.monotonic() + STOPS_WITHIN
        while time.monotonic() < until:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.02)
        os.kill(pid, signal.SIGKILL)
        raise LaunchError(
            f"The embedded {self.what} in {home} (process {pid}) did not end, and was killed."
        )

    def _ask(self, home: Path, method: str, path: str) -> bool:
        """Ask the server of a folder; return whether it is there and did it."""
        there = self.url(home)
        if there is None:
            return False
        url = urlsplit(there)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=60)
        try:
            connection.request(method, url.path + path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _spawn(self, home: Path) -> None:
        """Start the process and wait until it answers: it says so on a pipe."""
        receive, send = os.pipe()
        command = [sys.executable, "-m", self.module]
        command += ["--home", str(home.absolute()), "--ready", str(send)]
        with (home / LOG).open("ab") as log, contextlib.closing(os.fdopen(receive, "rb")) as pipe:
            try:
                subprocess.run(
                    command,
                    # A container may start it, and is not to take it along when it ends.
                    env={key: value for key, value in os.environ.items() if key != MARK},
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
                    f"The embedded {self.what} did not start; {home / LOG} ends with:\n"
                    + "\n".join(lines)
                )
