"""The process of an embedded service: python -m hydra_trainer.embedded.sagemaker --home FOLDER

Stays in the foreground, unless somebody waits for it to be ready (--ready), and ends on SIGTERM,
on Ctrl-C, or when there is nothing to do.
"""

import argparse
import contextlib
import os
import signal
import threading
from pathlib import Path

from hydra_trainer.embedded.home import START_LOCK, hold

from .service import Service

IDLE = 300.0
"""Seconds without a request and without a running job after which the process ends."""


def main() -> None:
    arguments = _arguments()
    if arguments.ready is not None and os.fork():
        os._exit(0)  # the caller waits for this one only: the other one belongs to nobody
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ending.set())
    folders = dict(arguments.file_system)
    with Service(
        arguments.home, file_systems=folders, limits=arguments.limits, wait=True
    ) as service:
        service.on_stop = ending.set
        if arguments.ready is None:
            print(f"export AWS_ENDPOINT_URL={service.endpoint}", flush=True)
        else:
            os.write(arguments.ready, b"1")
            os.close(arguments.ready)
        while not ending.wait(min(15.0, arguments.idle / 4)):
            if _is_idle(service, arguments.idle) and _leave(service, arguments.idle):
                break


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m hydra_trainer.embedded.sagemaker")
    parser.add_argument("--home", type=Path, required=True, help="the folder of the service")
    parser.add_argument(
        "--idle", type=float, default=IDLE, help="seconds without work before it ends"
    )
    parser.add_argument(
        "--file-system",
        type=_mapping,
        action="append",
        default=[],
        metavar="ID=FOLDER",
        help="the folder that stands for a file system: fs-0123456789abcdef0=/data",
    )
    parser.add_argument(
        "--no-limits", dest="limits", action="store_false", help="never throttle a client"
    )
    parser.add_argument("--ready", type=int, help=argparse.SUPPRESS)  # a pipe to write to
    arguments = parser.parse_args()
    arguments.home = arguments.home.absolute()
    return arguments


def _mapping(text: str) -> tuple[str, Path]:
    name, _, folder = text.partition("=")
    return name, Path(folder).absolute()


def _is_idle(service: Service, seconds: float) -> bool:
    working = service.runs.is_working or service.tuning.is_working
    return service.server.idle() > seconds and not working


def _leave(service: Service, seconds: float) -> bool:
    """Stop listening if there is still nothing to do: who is about to start one asks first."""
    with contextlib.suppress(BlockingIOError), hold(service.home / START_LOCK, wait=False):
        if _is_idle(service, seconds):
            service.server.stop()
            return True
    return False


if __name__ == "__main__":
    main()
