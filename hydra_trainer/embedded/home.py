"""The folder of a cluster: what its files are called, and whose it is."""

import fcntl
import os
from pathlib import Path
from typing import IO

KUBECONFIG = "kubeconfig"
LOG = "server.log"

LOCK = "lock"
"""Held by the process that has the cluster."""

START_LOCK = "start.lock"
"""Held while one starts, and by one that is about to end because nobody needs it."""


def hold(file: Path, *, wait: bool) -> IO[str]:
    """Lock a file and return it; closing it, or the end of the process, lets it go.

    It holds the number of the process. Raises BlockingIOError when another one has it.
    """
    stream = file.open("a+")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        stream.close()
        raise
    stream.truncate(0)
    stream.write(f"{os.getpid()}\n")
    stream.flush()
    return stream
