"""Who uses the S3 of a service without being one of its jobs: whoever holds a lock in its home."""

import fcntl
from pathlib import Path
from typing import IO

USERS = "users.lock"


def use(home: Path) -> IO[str]:
    """Keep the service of a folder up, as long as the file that is returned is open.

    The end of the process closes it, whatever ended it; a child that was forked holds it, too.
    """
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    stream = (home / USERS).open("a")
    fcntl.flock(stream, fcntl.LOCK_SH)
    return stream


def is_used(home: Path) -> bool:
    """Tell whether somebody uses the service of a folder."""
    with (home / USERS).open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
