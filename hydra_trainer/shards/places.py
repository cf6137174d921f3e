"""Where a packed data set lies: a folder, or a prefix of S3, behind the few acts that it needs.

A place writes a file whole or not at all. On a mount that cannot rename, as Mountpoint for S3, a
folder cannot do that: write there through s3://.
"""

import contextlib
import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

import xxhash

from hydra_trainer.errors import DataError

from .format import INDEX

if TYPE_CHECKING:
    from hydra_trainer.objects import Objects, Settings

LOCK = ".packing"
CHUNK = 8 << 20  # bytes read at a time when a file is checked
PART = 64 << 20  # and of an object of S3: a request costs more than a read


class Occupied(DataError):
    """Another job packs, or has packed, to this place."""


class Place(Protocol):
    """A folder or a prefix that holds, or is to hold, one data set."""

    uri: str

    def below(self, name: str) -> "Place":
        """Return the place of that name in this one."""

    def read(self, name: str) -> bytes | None:
        """Return a small file; None where there is none."""

    def fetch(self, name: str) -> Any:
        """Return the bytes of a file as a buffer: a memory map, or read into memory."""

    def measure(self, name: str) -> tuple[int, str] | None:
        """Read a file, and return its size and xxh3_128; None where there is none."""

    def sizes(self) -> dict[str, int]:
        """Return the size of every file that lies here, by name; not of those in folders."""

    def write(self, name: str, content: Any) -> None:
        """Write a file that is there in full, and on the disk, or not at all."""

    def commit(self, content: bytes, before: bytes | None) -> None:
        """Write the index where it still is as it was `before`: bytes, or None for absent.

        Raises Occupied when it is not.
        """

    def remove(self, names: list[str]) -> None:
        """Delete files; those that are gone already do not matter."""

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """Keep other jobs from packing to this place and below it, as far as one can.

        Raises Occupied when one does now.
        """


def place(uri: str, settings: "Settings | None" = None) -> Place:
    """Return the place of a path or an s3:// URI. Raises DataError for another scheme."""
    if uri.startswith("s3://"):
        return Bucket(uri, settings)
    scheme, mark, rest = uri.partition("://")
    if mark and scheme != "file":
        raise DataError(f"{uri} is neither a folder nor s3://BUCKET/PREFIX.")
    return Folder(Path(os.path.expanduser(rest if mark else uri)))  # noqa: PTH111


# ----------------------------------------------------------------------------------------- a folder


class Folder:
    """A folder of a disk or of a mount."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = str(path)

    def below(self, name: str) -> "Folder":
        return Folder(self.path / name)

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(self.path / name, error) from error

    def fetch(self, name: str) -> Any:
        import numpy as np

        try:
            return np.memmap(self.path / name, np.uint8, "r")
        except (OSError, ValueError) as error:  # ValueError: it is empty
            raise _unreadable(self.path / name, error) from error

    def measure(self, name: str) -> tuple[int, str] | None:
        digest = xxhash.xxh3_128()
        size = 0
        try:
            # Read, not mapped: a disk that fails under a map kills the process.
            with (self.path / name).open("rb", buffering=0) as file:
                chunk = memoryview(bytearray(CHUNK))
                while count := file.readinto(chunk):
                    digest.update(chunk[:count])
                    size += count
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self.path / name, error) from error
        return size, digest.hexdigest()

    def sizes(self) -> dict[str, int]:
        try:
            with os.scandir(self.path) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def write(self, name: str, content: Any) -> None:
        with _saying(self.path / name):
            self.path.mkdir(parents=True, exist_ok=True)
            temporary = self._written(name, content)
            try:
                temporary.replace(self.path / name)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
            self._sync()

    def _written(self, name: str, content: Any) -> Path:
        temporary = self.path / f".{name}.{uuid.uuid4().hex}"
        try:
            with temporary.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def commit(self, content: bytes, before: bytes | None) -> None:
        if self.read(INDEX) != before:
            raise _taken(self.uri)
        if before is not None:
            self.write(INDEX, content)
            return
        with _saying(self.path / INDEX):
            temporary = self._written(INDEX, content)
            try:
                # A link, unlike a rename, is refused where there is one already: the lock does
                # nothing on a mount without locks.
                os.link(temporary, self.path / INDEX)
            except FileExistsError:
                raise _taken(self.uri) from None
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                    raise
                temporary.replace(self.path / INDEX)
            finally:
                temporary.unlink(missing_ok=True)
            self._sync()

    def remove(self, names: list[str]) -> None:
        for name in names:
            with _saying(self.path / name):
                (self.path / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        with _saying(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            lock = _locked(self.path / LOCK)
        if lock is None:
            raise Occupied(
                f"Another job is packing to {self.uri} (it holds {LOCK}). Wait for it, or give "
                "another place."
            )
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                (self.path / LOCK).unlink()
            lock.close()


def _locked(path: Path) -> BinaryIO | None:
    """Return the open file that holds the lock; None when somebody else does."""
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        except OSError:  # the mount has no locks: the index itself is the guard
            return file
        # Whoever held it before may have deleted it since it was opened here.
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()


@contextlib.contextmanager
def _saying(path: Path) -> Iterator[None]:
    """Turn what the system says about writing a file into what one can do about it."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "the disk is full. Free some space, or give another place; then type it again"
        elif error.errno in (errno.ENOSYS, errno.ENOTSUP, errno.EPERM):
            hint = (
                f"{error.strerror}. A mount of a bucket cannot rename: give s3://BUCKET/PREFIX "
                "itself"
            )
        else:
            hint = f"{error.strerror}. Make it writable, or give another place"
        raise DataError(f"{path} cannot be written: {hint}.") from error


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.")


def _taken(uri: str) -> Occupied:
    return Occupied(
        f"Another job has packed to {uri} meanwhile; its data set is left as it is. Give another "
        "place, or type --overwrite to replace it."
    )


# ----------------------------------------------------------------------------------------- a bucket


class Bucket:
    """A prefix of S3."""

    def __init__(self, uri: str, settings: "Settings | None" = None) -> None:
        self.uri = uri.rstrip("/")
        self.settings = settings
        self._objects: Objects | None = None

    @property
    def objects(self) -> "Objects":
        if self._objects is None:
            from hydra_trainer.objects import Objects, Settings  # obstore comes with an extra

            self._objects = Objects(self.uri, self.settings or Settings())
        return self._objects

    def below(self, name: str) -> "Bucket":
        return Bucket(f"{self.uri}/{name}", self.settings)

    def read(self, name: str) -> bytes | None:
        facts = self.objects.head(name)
        return None if facts is None else bytes(self.objects.get(name, etag=facts.etag))

    def fetch(self, name: str) -> Any:
        return self.objects.get(name)

    def measure(self, name: str) -> tuple[int, str] | None:
        facts = self.objects.head(name)
        if facts is None:
            return None
        digest = xxhash.xxh3_128()
        for start in range(0, facts.size, PART):
            length = min(PART, facts.size - start)
            digest.update(self.objects.get(name, start, length, etag=facts.etag))
        return facts.size, digest.hexdigest()

    def sizes(self) -> dict[str, int]:
        return {facts.key: facts.size for facts in self.objects.list() if "/" not in facts.key}

    def write(self, name: str, content: Any) -> None:
        self.objects.put(name, content)

    def commit(self, content: bytes, before: bytes | None) -> None:
        from hydra_trainer.errors import Changed, Exists

        try:
            if before is None:
                self.objects.put(INDEX, content, if_absent=True)
                return
            facts = self.objects.head(INDEX)
            if facts is None or self.read(INDEX) != before:
                raise _taken(self.uri)
            self.objects.put(INDEX, content, if_match=facts.etag)
        except (Exists, Changed):
            raise _taken(self.uri) from None

    def remove(self, names: list[str]) -> None:
        if names:
            self.objects.delete(*names)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        # S3 has no locks that a kill lets go of: the conditional put of the index is the guard.
        yield
