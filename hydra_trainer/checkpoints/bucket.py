"""Checkpoints as objects of S3: a state in parts, then a manifest that no other job has written.

S3 shows an object when its last part was acknowledged, or never. Parts of a save that was killed
are shown to nobody, and paid for until a lifecycle rule of the bucket takes them.
"""

import io
import logging
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar

import xxhash

from hydra_trainer.errors import CheckpointError, Exists, Gone
from hydra_trainer.objects import Facts as Found
from hydra_trainer.objects import Objects

from .files import MANIFEST, Facts, Hashing, digest_fault, digesting, size_fault

log = logging.getLogger(__name__)

CHUNK = 8 << 20
"""Bytes of one request of a state that is read from its beginning to its end."""

AHEAD = 4
"""Such requests at a time."""


TAIL = 256 << 10
"""Bytes at the end that are read first: a zip file has its index there."""


class Bucket:
    """A prefix of S3."""

    is_remote: ClassVar[bool] = True

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self._known: dict[str, str] = {}
        """The ETags of the objects that this process wrote, or read with the right digest: while
        they have them, they are whole, and need not be read."""

    @property
    def uri(self) -> str:
        return self.objects.uri

    def names(self) -> list[str]:
        return self.objects.folders()

    def files(self, name: str) -> dict[str, int]:
        return {one.key[len(name) + 1 :]: one.size for one in self.objects.list(name)}

    def read(self, name: str, file: str, start: int = 0, length: int | None = None) -> Any:
        return self.objects.get(f"{name}/{file}", start, length)

    def fault(self, name: str, file: str, facts: Facts, digest: bool) -> str | None:
        key = f"{name}/{file}"
        found = self.objects.head(key)
        if found is None:
            return f"{file} is missing"
        if wrong := size_fault(file, found.size, facts):
            return wrong
        if not digest or self._known.get(key) == found.etag:
            return None
        with self.reading(name, file, facts) as reading:
            return reading.finish()

    @contextmanager
    def reading(self, name: str, file: str, facts: Facts) -> Iterator["_Stream"]:
        key = f"{name}/{file}"
        found = self.objects.head(key)
        if found is None:
            raise Gone(f"There is no object {self.uri}/{key}.")
        stream = _Stream(self.objects, found, file, facts)
        try:
            yield stream
        finally:
            stream.close()
        if stream.is_whole:
            self._known[key] = found.etag

    def clean(self, name: str) -> None:
        if self.files(name):
            self._delete(name)

    @contextmanager
    def writing(self, name: str, file: str, size: int | None = None) -> Iterator[Hashing]:
        key = f"{name}/{file}"
        with self.objects.writer(key, size=size) as raw, digesting(raw) as hashing:
            yield hashing
        self._known[key] = raw.etag

    def sync(self, name: str, folder: str) -> None:
        """What S3 has acknowledged is durable."""

    def commit(self, name: str, manifest: bytes) -> None:
        try:
            self.objects.put(f"{name}/{MANIFEST}", manifest, if_absent=True)
        except Exists:
            raise CheckpointError(
                f"{self.uri}/{name} was committed by somebody else meanwhile: two jobs seem to "
                "train the same run. Stop one of them; it is the other's checkpoint that is there."
            ) from None

    def remove(self, name: str) -> None:
        try:
            self._delete(name)
        except OSError as error:
            log.warning("The checkpoint %s/%s cannot be deleted: %s", self.uri, name, error)

    def _delete(self, name: str) -> None:
        self.objects.delete(f"{name}/{MANIFEST}")
        self.objects.delete(*(f"{name}/{file}" for file in self.files(name)))
        for key in [key for key in self._known if key.startswith(f"{name}/")]:
            del self._known[key]


class _Stream(io.RawIOBase):
    """An object as a file that is read from its beginning to its end, and digested on the way.

    torch.load begins with the index at the end, and then takes one tensor after the other as they
    lie: what lies ahead is on its way by then, and each byte goes into its tensor from where it
    arrived.
    """

    is_mapped = False

    def __init__(self, objects: Objects, found: Found, file: str, facts: Facts) -> None:
        super().__init__()
        self.source = self
        self.flaw = size_fault(file, found.size, facts)
        self.is_whole = False
        self._objects, self._file, self._facts = objects, file, facts
        self._key, self._size, self._etag = found.key, found.size, found.etag
        self._at = 0
        self._digest = xxhash.xxh3_128()
        self._chunk = memoryview(b"")
        self._starts = 0  # the first byte of the chunk
        self._asked = 0  # the first byte that nobody was asked for
        self._coming: deque[Future[memoryview]] = deque()
        self._pool: ThreadPoolExecutor | None = None
        self._tail: memoryview | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer).cast("B")
        if len(target) and self._at >= self._size:
            # torch asks again and again when it is told that there is no more.
            raise EOFError(f"there is nothing at byte {self._at} of {self._size}")
        target = target[: max(0, self._size - self._at)]
        done = 0
        while done < len(target):
            part = self._bytes(self._at, len(target) - done)
            target[done : done + len(part)] = part
            done += len(part)
            self._at += len(part)
        return done

    def read(self, size: int = -1) -> bytes:
        found = bytearray(max(0, self._size - self._at) if size is None or size < 0 else size)
        return bytes(memoryview(found)[: self.readinto(found)])

    def _bytes(self, at: int, length: int) -> memoryview:
        """Return bytes from `at`: `length` of them, or fewer."""
        end = self._starts + len(self._chunk)
        if self._starts <= at < end:
            return self._chunk[at - self._starts : at - self._starts + length]
        if end <= at < end + 2 * CHUNK:
            self._advance()
            return self._bytes(at, length)
        if at >= self._size - TAIL:
            if self._tail is None:
                start = max(0, self._size - TAIL)
                self._tail = self._get(start, self._size - start)
            start = self._size - len(self._tail)
            return self._tail[at - start : at - start + length]
        return self._get(at, min(length, CHUNK))

    def _advance(self) -> None:
        """Digest the next chunk and keep it instead of this one."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(AHEAD, "restore")
        while len(self._coming) < AHEAD and self._asked < self._size:
            length = min(CHUNK, self._size - self._asked)
            self._coming.append(self._pool.submit(self._get, self._asked, length))
            self._asked += length
        self._starts += len(self._chunk)
        self._chunk = memoryview(b"")
        self._chunk = self._coming.popleft().result()
        self._digest.update(self._chunk)

    def _get(self, start: int, length: int) -> memoryview:
        return self._objects.get(self._key, start, length, self._etag)

    def finish(self) -> str | None:
        """Read on to the end, and return what is wrong with the whole of it."""
        if self.flaw is None:
            while self._starts + len(self._chunk) < self._size:
                self._advance()
            self.flaw = digest_fault(self._file, self._digest.hexdigest(), self._facts)
        self.is_whole = self.flaw is None
        return self.flaw

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._chunk, self._tail = memoryview(b""), None
        super().close()
