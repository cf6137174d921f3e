"""Which GPUs of this machine a job in the background gets: its own, by a lock file for each.

The kernel gives a GPU back when the last process that holds its file ends. On a machine with one
GPU, jobs that run at once share it: whoever starts several there means that.
"""

import contextlib
import fcntl
import functools
import itertools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from hydra_trainer.errors import Full

VISIBLE = "CUDA_VISIBLE_DEVICES"
TIMEOUT = 60  # seconds: without a daemon that keeps the driver loaded, it takes some


def visible() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES would name them.

    Torch is not asked: to import it takes seconds, and CUDA must not start before a fork.
    """
    given = os.environ.get(VISIBLE)
    if given is None:
        return [str(number) for number in range(_count(shutil.which("nvidia-smi")))]
    names = (name.strip() for name in given.split(","))
    return list(itertools.takewhile(_is_name, names))  # CUDA, too, stops at the first that is none


def _is_name(name: str) -> bool:
    return name.isdigit() or name.startswith(("GPU-", "MIG-"))


@functools.cache
def _count(program: str | None) -> int:
    if program is None:
        return 0
    try:
        found = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in found.stdout.splitlines())


@contextlib.contextmanager
def reserved(wanted: int) -> Iterator[dict[str, TextIO]]:
    """Hold GPUs that nobody else holds: their names, and what to keep open to go on holding them.

    Holds nothing where there is nothing to share out: no GPU, one, or fewer than wanted.

    Raises:
        Full: fewer are free.
    """
    there = visible()
    with contextlib.ExitStack() as stack:
        if not 0 < wanted <= len(there) or len(there) == 1:
            yield {}
            return
        folder = _folder()
        with (folder / "choosing").open("a") as turn:  # two that choose at once could both fail
            fcntl.flock(turn, fcntl.LOCK_EX)
            free: dict[str, TextIO] = {}
            for name in there:
                file = stack.enter_context((folder / f"gpu-{name}").open("a"))
                if _is_free(file):
                    free[name] = file
        if len(free) < wanted:
            raise Full(
                f"The job wants {wanted} GPUs, but of the {len(there)} of this machine, jobs in "
                f"the background hold {len(there) - len(free)}. Wait until one of them has ended; "
                "hydra-trainer list shows those in ./runs."
            )
        for name in list(free)[wanted:]:
            free.pop(name).close()
        yield free


def _is_free(file: TextIO) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _folder() -> Path:
    """Return where the lock files are: of this machine, which a home directory may not be."""
    folder = Path(tempfile.gettempdir()) / f"hydra-trainer-{os.getuid()}" / "gpus"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
