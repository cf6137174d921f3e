"""What both kinds of places share: names, what is asked of a place, and digests on the way."""

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO, ClassVar, Protocol

import xxhash

STATE = "state.pt"
SHARDS = "shards"
MANIFEST = "manifest.json"

Facts = dict[str, Any]
"""What a manifest says of a file: its `size` in bytes and its digest `xxh3`. Of a file that no
manifest describes, nothing."""

BLOCK = 4 << 20  # bytes read at a time when a file is checked


class Hashing(io.RawIOBase):
    """A file that digests what passes through it, so that a save reads nothing twice."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = xxhash.xxh3_128()
        self.size = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write all of it: Linux takes at most 2 GiB at a time, less when the disk fills up."""
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size += len(view)
        try:
            rest = view
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return len(view)

    def flush(self) -> None:
        """Nothing is held back here."""

    def tell(self) -> int:
        return self.size

    def fileno(self) -> int:
        number: int = self._file.fileno()
        return number

    def facts(self) -> Facts:
        """Return what a manifest says of the file."""
        return {"size": self.size, "xxh3": self.digest.hexdigest()}


@contextlib.contextmanager
def digesting(file: Any) -> Iterator[Hashing]:
    """Digest what is written to a file, and raise the error that there really was.

    torch's writer runs on after a write that failed, and raises what that led to.
    """
    hashing = Hashing(file)
    try:
        yield hashing
    except Exception:
        if hashing.error is not None:
            raise hashing.error from None
        raise


class Place(Protocol):
    """A folder or a prefix of S3 that has a folder for each checkpoint.

    `name` is that of a checkpoint, `file` that of a file in it, with / between its parts. A file
    that is not there raises FileNotFoundError or errors.Gone (`MISSING`); other OSErrors are what
    they say.
    """

    is_remote: ClassVar[bool]
    """Whether every machine of a job reaches it by its name."""

    @property
    def uri(self) -> str:
        """A folder's path, or an s3:// URI."""

    def names(self) -> list[str]:
        """Return the names of the folders here, in no order; CheckpointError where it cannot."""

    def files(self, name: str) -> dict[str, int]:
        """Return the size in bytes of each file of a checkpoint, those of its shards too."""

    def read(self, name: str, file: str, start: int = 0, length: int | None = None) -> Any:
        """Return bytes of a file as a buffer: exactly those asked for."""

    def fault(self, name: str, file: str, facts: Facts, digest: bool) -> str | None:
        """Return what is wrong with a file, or None; without `digest`, look at its size only."""

    def reading(self, name: str, file: str, facts: Facts) -> contextlib.AbstractContextManager[Any]:
        """Give a `Reading` of a file."""

    def clean(self, name: str) -> None:
        """Make room for a checkpoint, empty of what a killed save left there."""

    def writing(
        self, name: str, file: str, size: int | None = None
    ) -> contextlib.AbstractContextManager[Hashing]:
        """Give a file to write to, which is there in full when the block has ended well, or not.

        `size` is how many bytes there will be, about.
        """

    def sync(self, name: str, folder: str) -> None:
        """Make the names in a folder of a checkpoint durable."""

    def commit(self, name: str, manifest: bytes) -> None:
        """Write the manifest: from here on there is a checkpoint."""

    def remove(self, name: str) -> None:
        """Delete a checkpoint; first of all it stops being one. What resists is left for later."""


class Reading(Protocol):
    """A state that is being read for torch.load, which may be told to map a file into memory."""

    source: Any
    """What torch.load takes: a path or a file object."""
    is_mapped: bool
    """Whether its tensors are to be maps of the file."""

    flaw: str | None
    """What is known to be wrong with it."""

    def finish(self) -> str | None:
        """Read what nobody has asked for, and return what is wrong with the file, or None."""


def reason(error: OSError) -> str:
    """Return what an OSError says, without number and path."""
    return error.strerror or str(error)


def size_fault(file: str, size: int, facts: Facts) -> str | None:
    wanted = facts.get("size", size)
    return None if size == wanted else f"{file} has {size} bytes instead of {wanted}"


def digest_fault(file: str, digest: str, facts: Facts) -> str | None:
    if digest == facts.get("xxh3", digest):
        return None
    return f"{file} has another checksum than when it was saved"


def digest_of(file: BinaryIO) -> str:
    """Return the xxh3_128 digest of an open file, 16 bytes as 32 hex characters."""
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(BLOCK))
    while count := file.readinto(block):  # type: ignore[attr-defined]
        digest.update(block[:count])
    return digest.hexdigest()
