"""The life of a server's own process: from its command line to nothing being left to do.

It stays in the foreground, unless somebody waits for it to be ready (--ready), and ends on SIGTERM,
on Ctrl-C, or when there is nothing to do. background.py starts and stops one.
"""

import argparse
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol, TypeVar

from .home import START_LOCK, hold
from .listening import Listening

IDLE = 300.0
"""Seconds without a request and without work after which the process ends."""


class Served(Protocol):
    """What the process is there for: a cluster, or a service."""

    @property
    def home(self) -> Path: ...

    @property
    def server(self) -> Listening: ...

    @property
    def is_working(self) -> bool: ...


S = TypeVar("S", bound=Served)


def parser(module: str, what: str) -> argparse.ArgumentParser:
    """Return a parser with what all servers are told: the folder, and when to end."""
    made = argparse.ArgumentParser(prog=f"python -m {module}")
    made.add_argument("--home", type=_folder, required=True, help=f"the folder of the {what}")
    made.add_argument(
        "--idle", type=float, default=IDLE, help="seconds without work before it ends"
    )
    made.add_argument("--ready", type=int, help=argparse.SUPPRESS)  # a pipe to write to
    return made


def serve(
    arguments: argparse.Namespace,
    make: Callable[[], AbstractContextManager[S]],
    hint: Callable[[S], str],
    tidy: Callable[[S], None] = lambda served: None,
) -> None:
    """Make what is served, and stay until its end.

    Args:
        hint: returns what to type to reach it.
        tidy: is called every now and then.
    """
    if arguments.ready is not None and os.fork():
        os._exit(0)  # the caller waits for this one only: the other one belongs to nobody
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with make() as served:
        served.server.on_stop = ending.set
        if arguments.ready is None:
            print(hint(served), flush=True)
        else:
            os.write(arguments.ready, b"1")
            os.close(arguments.ready)
        while not ending.wait(min(15.0, arguments.idle / 4)):
            tidy(served)
            if _is_idle(served, arguments.idle) and leave(served, arguments.idle):
                break


def _folder(text: str) -> Path:
    return Path(text).absolute()


def _is_idle(served: Served, seconds: float) -> bool:
    return served.server.idle() > seconds and not served.is_working


def leave(served: Served, seconds: float) -> bool:
    """Stop listening if there is still nothing to do: who is about to start one asks first."""
    with contextlib.suppress(BlockingIOError), hold(served.home / START_LOCK, wait=False):
        if _is_idle(served, seconds):
            served.server.stop()
            return True
    return False
