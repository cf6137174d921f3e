"""Processes that are forked where they would be started: Python, torch and Lightning are there.

`python train.py`, and what that starts and what those start in turn, are processes of their own as
ever, with the environment, files, sessions and signals that they were given. Only the seconds of
CPU are gone that each of them takes to import what the test process has imported already.
"""

import contextlib
import gc
import logging
import os
import runpy
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROGRAM = "train.py"
MODULES = ("hydra_trainer.bootstrap", "hydra_trainer.elastic", "hydra_trainer.worker")
STDERR = 2
Started = subprocess.Popen


class Forked(Started):
    """A Popen that forks this process to run one of our programs, and starts all else."""

    def __init__(self, args: Sequence[str], **options: Any) -> None:
        first = next((n for n, word in enumerate(args) if word in (PROGRAM, *MODULES)), 0)
        if args[0] != sys.executable or not first:
            super().__init__(args, **options)
            return
        # A lock closes its file in children: they get one of their own of what they are to hold.
        files = {file: os.dup(file) for file in options.pop("pass_fds", ())}
        before = options.pop("preexec_fn", None)
        sys.stdout.flush()
        sys.stderr.flush()

        def run() -> None:
            _become(args[first:], options.get("env"), files, before)

        super().__init__(args, preexec_fn=run, **options)
        for copy in files.values():
            os.close(copy)


def _become(
    words: Sequence[str],
    env: dict[str, str] | None,
    files: dict[int, int],
    before: Callable[[], None] | None,
) -> NoReturn:
    """Turn a fork into `python WORDS`. It never comes back to be another program."""
    code = 99
    try:
        _keep_only(files)
        if before is not None:
            before()
        _forget()
        _fork_from_here()
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[:0] = [str(Path.cwd()), *filter(None, given)]
        sys.argv = list(words)
        if words[0] == PROGRAM:
            runpy.run_path(PROGRAM, run_name="__main__")
        else:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # as an interpreter does; the code is no one else's
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _fork_from_here() -> None:
    """Let what this process starts be forked as well: the bootstrap, torchrun, the ranks."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    subprocess.Popen = subprocess_handler.Popen = Forked  # type: ignore[misc, assignment]


def _keep_only(files: dict[int, int]) -> None:
    """Let go of what an exec would close: with it the pipe on which Popen waits for one.

    Objects of the process before may still close their files: those stay taken, by nothing.
    """
    for file, copy in files.items():
        os.dup2(copy, file)
    nothing = os.open(os.devnull, os.O_RDWR)
    for file in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if file > STDERR and file not in files:
            with contextlib.suppress(OSError):  # that of the list itself
                os.fstat(file)
                os.dup2(nothing, file, inheritable=False)


def _forget() -> None:
    """Drop what a new interpreter would not know of: handlers, streams, log files, garbage."""
    gc.freeze()
    warnings.simplefilter("ignore", ResourceWarning)  # pytest wants to see them
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    # torch sets its own handler of SIGCHLD once, with the first loader that has workers.
    from torch.utils.data._utils import signal_handling

    signal_handling._SIGCHLD_handler_set = False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Popen has undone what Python does at first
        signal.signal(number, signal.SIG_IGN)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    for name, log in logging.root.manager.loggerDict.items():
        if not isinstance(log, logging.Logger):
            continue
        if name.startswith("hydra"):
            log.handlers.clear()
            log.setLevel(logging.NOTSET)
        for handler in log.handlers:  # of torch, made when it was imported
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)
