"""The objects on disk: one line for each change, written anew when most lines are of the past.

A line is `VERSION put RESOURCE {object}` or `VERSION del RESOURCE NAMESPACE/NAME`; the first one of
a file that was written anew is `VERSION at`. A change is one write() of one line, so that a process
that is killed leaves whole lines; what a machine that lost power left of the last one is cut off.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

COMPACT_FROM = 8 << 20
"""Bytes of a file that is never written anew for being too long."""

Key = tuple[str, str, str]
"""resource, namespace (empty for what has none), name."""


class Journal:
    """A file of one process: the server holds a lock on the folder it is in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.version = 0
        self.objects: dict[Key, dict[str, Any]] = {}
        """What was read; for the caller to take."""
        self._size = self._read()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.truncate(self._file, self._size)
        self._limit = max(COMPACT_FROM, 2 * self._size)

    def put(self, version: int, resource: str, text: bytes) -> None:
        self._write(b"%d put %s %s\n" % (version, resource.encode(), text))

    def drop(self, version: int, key: Key) -> None:
        resource, namespace, name = key
        self._write(f"{version} del {resource} {namespace}/{name}\n".encode())

    @property
    def is_long(self) -> bool:
        """Whether most of the file may be of the past."""
        return self._size > self._limit

    def rewrite(self, version: int, objects: Iterable[tuple[str, bytes]]) -> None:
        """Write the (resource, text) of all objects to a new file, and let it take the place."""
        new = self.path.with_suffix(".new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(b"%d at\n" % version)
            for resource, text in objects:
                file.write(b"%d put %s %s\n" % (version, resource.encode(), text))
            file.flush()
            os.fsync(file.fileno())
            self._size = file.tell()
        new.rename(self.path)
        os.close(self._file)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._limit = max(COMPACT_FROM, 4 * self._size)

    def close(self) -> None:
        os.close(self._file)
        self._file = -1  # so that no later write goes to a file that has got the number

    def _write(self, line: bytes) -> None:
        """Append a line, or nothing when there is no room. Raises OSError."""
        rest = line
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.truncate(self._file, self._size)
            raise
        self._size += len(line)

    def _read(self) -> int:
        """Read the file that is there. Return the size of its good part in bytes."""
        size = 0
        if not self.path.exists():
            return size
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n") or not self._apply(line):
                    break
                size += len(line)
        return size

    def _apply(self, line: bytes) -> bool:
        """Take a line in. False when it is damaged."""
        try:
            version, verb, *rest = line.rstrip(b"\n").split(b" ", 3)
            if verb == b"put":
                obj = json.loads(rest[1])
                self.objects[key_of(rest[0].decode(), obj)] = obj
            elif verb == b"del":
                namespace, _, name = rest[1].decode().partition("/")
                self.objects.pop((rest[0].decode(), namespace, name), None)
            elif verb != b"at":
                return False
            self.version = max(self.version, int(version))
        except (ValueError, KeyError, IndexError):
            return False
        return True


def key_of(resource: str, obj: dict[str, Any]) -> Key:
    meta = obj["metadata"]
    return resource, meta.get("namespace") or "", meta["name"]
