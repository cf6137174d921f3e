"""The process of an embedded cluster: python -m hydra_trainer.embedded --home FOLDER

Stays in the foreground, unless somebody waits for it to be ready (--ready), and ends on SIGTERM,
on Ctrl-C, or when there is nothing to do.
"""

import argparse
import contextlib
import os
import signal
import threading
from pathlib import Path

from .cluster import Embedded
from .home import START_LOCK, hold

IDLE = 300.0
"""Seconds without a request and without a running pod after which the process ends."""


def main() -> None:
    arguments = _arguments()
    if arguments.ready is not None and os.fork():
        os._exit(0)  # the caller waits for this one only: the other one belongs to nobody
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    with Embedded(arguments.home, capacity=dict(arguments.capacity), wait=True) as cluster:
        cluster.server.on_stop = ending.set
        if arguments.ready is None:
            print(f"export KUBECONFIG={cluster.kubeconfig}", flush=True)
        else:
            os.write(arguments.ready, b"1")
            os.close(arguments.ready)
        while not ending.wait(min(15.0, arguments.idle / 4)):
            cluster.tidy()
            if _is_idle(cluster, arguments.idle) and _leave(cluster, arguments.idle):
                break


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hydra_trainer.embedded", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="the folder of the cluster")
    parser.add_argument(
        "--idle", type=float, default=IDLE, help="seconds without work before it ends"
    )
    parser.add_argument(
        "--capacity",
        type=_amount,
        action="append",
        default=[],
        metavar="RESOURCE=NUMBER",
        help="what pods may ask for beside CPU and memory: nvidia.com/gpu=8",
    )
    parser.add_argument("--ready", type=int, help=argparse.SUPPRESS)  # a pipe to write to
    arguments = parser.parse_args()
    arguments.home = arguments.home.absolute()
    return arguments


def _amount(text: str) -> tuple[str, int]:
    resource, _, number = text.partition("=")
    return resource, int(number)


def _is_idle(cluster: Embedded, seconds: float) -> bool:
    return cluster.server.idle() > seconds and not cluster.is_working


def _leave(cluster: Embedded, seconds: float) -> bool:
    """Stop listening if there is still nothing to do: who is about to start one asks first."""
    with contextlib.suppress(BlockingIOError), hold(cluster.home / START_LOCK, wait=False):
        if _is_idle(cluster, seconds):
            cluster.server.stop()
            return True
    return False


if __name__ == "__main__":
    main()
