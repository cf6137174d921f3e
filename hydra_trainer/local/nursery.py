"""Starts jobs in the background, each a fork of one process that has imported torch for all.

Importing torch and lightning takes seconds of CPU, so the first job starts a helper (helper.py)
that does it once, and forks each job from then on. It hangs on a socket: when the process that
submits is done or dies, it ends. Its jobs go on.
"""

import atexit
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import IO

from .directory import NotStarted

PIECE = 65536  # bytes that are read at once


@dataclass(frozen=True)
class Birth:
    """What a job is born with. `command` is empty where it trains in its own process.

    Environment, folder and search path are those of the process that submits, in that moment.
    """

    directory: str
    command: list[str]
    env: dict[str, str]
    folder: str = field(default_factory=os.getcwd)
    search: list[str] = field(default_factory=lambda: list(sys.path))


def start(birth: Birth, files: Sequence[int]) -> None:
    """Start a job in the background, which from now on holds what `files` are open for.

    Args:
        birth: what it is.
        files: descriptors; the first is that of the lock on its run directory.

    Raises:
        NotStarted: it could not be started, or died at once.
    """
    global _nursery
    with _one_at_a_time:
        if _nursery is None or not _nursery.is_alive():
            _nursery = Nursery()
            atexit.register(_nursery.close)
        try:
            _nursery.start(birth, files)
        except NotStarted:
            raise
        except BaseException:  # interrupted: its answer must not be taken for that to the next job
            _nursery.close()
            raise


class Nursery:
    """The helper, as the process that submits sees it."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._socket, its = socket.socketpair()
        with its:
            self._process = self._spawn(its.fileno(), self._printed.fileno())
        # A fork of this process must not keep the helper waiting.
        os.register_at_fork(after_in_child=self._socket.close)

    def _spawn(self, stdin: int, stdout: int) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-m", f"{__package__}.helper"]
        # In a session of its own: no Ctrl-C reaches it.
        return subprocess.Popen(
            words, stdin=stdin, stdout=stdout, stderr=stdout, start_new_session=True
        )

    def start(self, birth: Birth, files: Sequence[int]) -> None:
        """Start a job that holds some open files. Raises NotStarted with the reason."""
        message = json.dumps(asdict(birth)).encode() + b"\n"
        answer = b""
        with contextlib.suppress(ConnectionError):
            sent = socket.send_fds(self._socket, [message], files)
            self._socket.sendall(message[sent:])
            answer = line(self._socket)
        if not answer:
            raise NotStarted(f"The process that starts jobs has ended: {self._last_words()}")
        if error := json.loads(answer)["error"]:
            raise NotStarted(f"The job could not be started: {error}")

    def is_alive(self) -> bool:
        return self.pid == os.getpid() and self._process.poll() is None

    def close(self) -> None:
        """End the helper, even in the middle of its imports. Jobs that it started go on."""
        self._socket.close()
        if self.pid == os.getpid():
            self._process.kill()
            self._process.wait()

    def _last_words(self) -> str:
        code = self._process.wait()
        self.close()
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().split("\n")
        return lines[-1] or f"exit code {code}"


_nursery: Nursery | None = None
_one_at_a_time = threading.Lock()


def line(connection: socket.socket) -> bytes:
    """Return what comes until the end of a line; nothing where the other side has gone."""
    found = b""
    while not found.endswith(b"\n") and (piece := connection.recv(PIECE)):
        found += piece
    return found if found.endswith(b"\n") else b""
