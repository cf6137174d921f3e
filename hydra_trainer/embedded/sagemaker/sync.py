"""How checkpoints, and TensorBoard's files, get to S3 while a job runs."""

import contextlib
from pathlib import Path

from .objects import Objects, files, split

Mark = tuple[int, int, int]
"""What tells one content of a file from another: inode, time, size."""


class Mirror:
    """A folder of an instance, whose files go to S3 as they are.

    As with the real service, nobody asks whether a file is whole yet; a deleted one stays in S3.
    """

    def __init__(self, folder: Path, objects: Objects, uri: str) -> None:
        self._folder = folder
        self._objects = objects
        self._bucket, prefix = split(uri)
        self._prefix = prefix.rstrip("/")
        self._sent: dict[Path, Mark] = {}

    def restore(self) -> None:
        """Fetch what is there."""
        below = f"{self._prefix}/" if self._prefix else ""
        found = self._objects.list(self._bucket, below)
        self._objects.download(self._bucket, found, below, self._folder)
        self._sent = {file: _mark(file) for file in files(self._folder)}

    def send(self) -> None:
        """Write what is new, or not what it was, to S3."""
        for file in files(self._folder):
            with contextlib.suppress(FileNotFoundError):
                mark = _mark(file)
                if self._sent.get(file) != mark:
                    name = file.relative_to(self._folder).as_posix()
                    self._objects.put(self._bucket, f"{self._prefix}/{name}".lstrip("/"), file)
                    self._sent[file] = mark


def _mark(file: Path) -> Mark:
    stat = file.stat()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
