"""Shards kept on a disk of this machine: fetched once for all its processes, within a size."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .format import Shard

log = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]


class Cache:
    """A folder of shards, named by their checksums, so that runs and data sets can share it.

    What is in it is checked when it is used, and fetched again when it is damaged. A
    folder that is full or cannot be written is said once, and then done without. It may be deleted
    while it is used.

    Args:
        folder: where; it is made when it is needed.
        size: bytes of all shards in it; those not used for longest go first.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        self.size = size
        self._said = False

    def load(self, shard: Shard, target: Bytes, fetch: Callable[[], None]) -> None:
        """Fill `target` with the bytes of a shard, from here; or have `fetch` do it, and keep them.

        `fetch` checks what it gets. Raises what it raises.
        """
        path = self.folder / f"{shard.xxh3}.bin"
        if self._read(path, shard, target):
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / f".lock-{shard.xxh3[:2]}").open("ab")
        except OSError as error:
            self._say(error)
            fetch()
            return
        with lock:
            with contextlib.suppress(OSError):  # a mount without locks: fetched twice at worst
                fcntl.flock(lock, fcntl.LOCK_EX)
            if self._read(path, shard, target):  # by another process, while this one waited
                return
            fetch()
            kept = self._keep(path, target)
        if kept:
            self._shrink(path)

    def _read(self, path: Path, shard: Shard, target: Bytes) -> bool:
        """Tell whether the file is here and right, and was read into `target`."""
        try:
            size = read_file(path, target)
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("data.cache: %s cannot be read (%s)", path, error.strerror)
            return False
        if size != shard.size or (fault := shard.fault(target)):
            found = f"it has {size} bytes" if size != shard.size else fault
            log.warning("data.cache: %s is damaged (%s): it is fetched again", path, found)
            return False
        with contextlib.suppress(OSError):
            os.utime(path)  # what was not used for longest goes first
        return True

    def _keep(self, path: Path, content: Bytes) -> bool:
        part = path.with_name(f".{path.stem}.part")
        try:
            with part.open("wb") as file:
                file.write(content.data)
            part.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            self._say(error)
            return False
        return True

    def _shrink(self, new: Path) -> None:
        """Delete the shards that were not used for longest, and what killed processes left."""
        for part in self.folder.glob(".*.part"):
            with self._if_free(self.folder / f".lock-{part.name[1:3]}") as is_free:
                if is_free:
                    part.unlink(missing_ok=True)
        with self._if_free(self.folder / ".lock") as is_free:
            if not is_free:
                return  # another process is at it
            kept = sorted(_facts(self.folder), key=lambda one: one[1])
            over = sum(size for size, _, _ in kept) - self.size
            for size, _, path in kept:
                if over <= 0:
                    break
                if path != new:
                    path.unlink(missing_ok=True)
                    over -= size

    @contextlib.contextmanager
    def _if_free(self, path: Path) -> Iterator[bool]:
        """Yield whether nobody else held this lock, which this process then holds."""
        with contextlib.ExitStack() as held:
            try:
                fcntl.flock(held.enter_context(path.open("ab")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                yield False
                return
            try:
                yield True
            except OSError as error:
                self._say(error)

    def _say(self, error: OSError) -> None:
        if self._said:
            return
        self._said = True
        why = "is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "cannot be written"
        log.warning(
            "data.cache=%s %s (%s): shards that are not in it are fetched again each time. "
            "Make room, lower data.cache_size, or type data.cache=null.",
            self.folder,
            why,
            error.strerror or error,
        )


def _facts(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yield bytes, time of last use, and path of each shard."""
    for path in folder.glob("*.bin"):
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            yield facts.st_size, facts.st_mtime_ns, path


def read_file(path: Path, target: Bytes) -> int:
    """Fill `target` from a file, and return the file's size, which may be another. Raises OSError.

    Read, not mapped: a disk that fails under a map kills the process.
    """
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        rest = target.data
        while rest and (count := file.readinto(rest)):
            rest = rest[count:]
    return size if not rest else min(size, len(target) - len(rest))
