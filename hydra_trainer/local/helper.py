"""Forks jobs for nursery.py, which starts it: `python -m hydra_trainer.local.helper`.

It has imported torch, trains nothing itself, and starts no threads: they would be missing in a
fork. A job has a session of its own and is nobody's child, so neither a Ctrl-C nor the death of
who sent it reaches it. One of several ranks becomes its bootstrap.
"""

import contextlib
import gc
import io
import json
import os
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from hydra_trainer import worker
from hydra_trainer.bootstrap import write_json
from hydra_trainer.preemption import Stopped

from .directory import CONFIG, RESULT, printed
from .lock import keep_from_children, sign
from .nursery import PIECE, Birth, line

MOST_FILES = 64  # that come with a message: a lock, and one for each GPU

LIVES = "lives"
"""What a job says when it begins."""


def main() -> None:
    """Start jobs until nobody is there to ask for them."""
    asked = socket.socket(fileno=os.dup(0))
    _point(os.devnull, os.O_RDONLY, 0)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see app.py
    while found := _received(asked):
        birth, files = found
        if not birth.command:
            _import_torch()
        answer = {"error": _bear(birth, files, asked)}
        asked.sendall(json.dumps(answer).encode() + b"\n")
    os._exit(0)  # at once: there is nothing to clean up


def _received(asked: socket.socket) -> tuple[Birth, list[int]] | None:
    message, files, _, _ = socket.recv_fds(asked, PIECE, MOST_FILES)
    if message and not message.endswith(b"\n"):
        message += line(asked)
    return (Birth(**json.loads(message)), files) if message.endswith(b"\n") else None


def _import_torch() -> None:
    """Import what training needs; after the first time, this does nothing."""
    if "hydra_trainer.training" in sys.modules:
        return
    gc.disable()
    import torch.utils.tensorboard  # noqa: F401
    import torchmetrics  # noqa: F401

    from hydra_trainer import metrics, training  # noqa: F401

    gc.freeze()  # so that its memory stays shared: no job looks through it for garbage
    gc.enable()


def _bear(birth: Birth, files: list[int], asked: socket.socket) -> str | None:
    """Fork a job; return why it did not come to life, None: it did.

    It is forked twice: its parent is gone before it begins, so nobody's death is told to it, and
    nobody needs to wait for its own.
    """
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        parent = os.getpid()
        if os.fork():
            os._exit(0)
        asked.close()
        os.close(reading)
        _live(birth, files, writing, parent)
    for descriptor in (writing, *files):
        os.close(descriptor)
    os.waitpid(between, 0)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    return None if said == LIVES else said or "it was killed before it began"


# ------------------------------------------------------------------------------------- the job


def _live(birth: Birth, files: list[int], writing: int, parent: int) -> NoReturn:
    """Be a job, from a fork to its end."""
    said = LIVES
    try:
        _begin(birth, files, parent)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    with os.fdopen(writing, "w") as pipe:
        pipe.write(said)
    code = 1
    try:
        if said == LIVES:
            code = _run(birth)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _begin(birth: Birth, files: list[int], parent: int) -> None:
    os.setsid()
    directory = Path(birth.directory)
    _heed_a_stop(directory)
    out = printed(directory)
    out.parent.mkdir(exist_ok=True)
    _point(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1, 2)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True)
    os.chdir(birth.folder)
    sys.path[:] = birth.search
    sys.argv = ["hydra_trainer.worker", str(directory / CONFIG)]
    os.environ.clear()
    os.environ.update(birth.env)
    (directory / RESULT).unlink(missing_ok=True)  # of the sitting before
    while os.getppid() == parent:
        time.sleep(0.001)
    _hold(files, beyond_exec=bool(birth.command))


def _heed_a_stop(directory: Path) -> None:
    """Write the result of a job that is stopped before training has handlers of its own."""

    def stop(signum: int, frame: FrameType | None) -> None:
        if not (directory / RESULT).exists():
            write_json(directory / RESULT, worker.failure({}, Stopped(signum)))
            os._exit(128 + signum)

    signal.signal(signal.SIGTERM, stop)


_held: list[TextIO] = []
"""What this process keeps open as long as it lives."""


def _hold(files: list[int], beyond_exec: bool) -> None:
    _held.extend(os.fdopen(file, "a+") for file in files)
    for file in _held:
        os.set_inheritable(file.fileno(), beyond_exec)
    sign(_held[0])
    for file in _held[1:]:
        keep_from_children(file)


def _run(birth: Birth) -> int:
    """Train as the first and only rank, or become the process that starts them all."""
    if birth.command:
        os.execve(birth.command[0], birth.command, dict(os.environ))
    return worker.main(sys.argv[1:])


def _point(path: str | Path, flags: int, *descriptors: int) -> None:
    """Let descriptors lead to a file."""
    file = os.open(path, flags, 0o644)
    for descriptor in descriptors:
        os.dup2(file, descriptor)
    os.close(file)


if __name__ == "__main__":
    main()
