"""Checkpoints in folders: of a local disk, of NFS, of Lustre.

Every file is written under another name in the same folder, fsynced, renamed, and the folder
fsynced, so that neither a kill nor a power cut leaves half a file under a final name.
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from hydra_trainer.errors import CheckpointError

from .files import (
    MANIFEST,
    SHARDS,
    Facts,
    Hashing,
    digest_fault,
    digest_of,
    digesting,
    reason,
    size_fault,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Folder:
    """A folder of a disk."""

    root: Path
    is_remote: ClassVar[bool] = False

    @property
    def uri(self) -> str:
        return str(self.root)

    def names(self) -> list[str]:
        try:
            return [path.name for path in self.root.iterdir()]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"The checkpoints in {self.root} cannot be listed: {reason(error)}. Make the "
                "folder readable, or type again=true to set the run aside and start anew."
            ) from error

    def files(self, name: str) -> dict[str, int]:
        folder = self.root / name
        there = (*folder.glob("*"), *folder.glob(f"{SHARDS}/*"))
        return {
            str(path.relative_to(folder)): path.stat().st_size for path in there if path.is_file()
        }

    def read(self, name: str, file: str, start: int = 0, length: int | None = None) -> bytes:
        with (self.root / name / file).open("rb") as opened:
            opened.seek(start)
            found = opened.read(length)
        if length not in (None, len(found)):
            raise OSError(errno.EIO, f"{file} ends before byte {start + (length or 0)}")
        return found

    def fault(self, name: str, file: str, facts: Facts, digest: bool) -> str | None:
        path = self.root / name / file
        try:
            if found := size_fault(file, path.stat().st_size, facts):
                return found
            if not digest:
                return None
            with path.open("rb", buffering=0) as opened:
                return digest_fault(file, digest_of(opened), facts)
        except FileNotFoundError:
            return f"{file} is missing"
        except OSError as error:
            return f"{file} cannot be read: {reason(error)}"

    @contextlib.contextmanager
    def reading(self, name: str, file: str, facts: Facts) -> Iterator["_Mapped"]:
        """Read it for its digest first, and then map it: what the map shows is in memory by then.

        A disk that fails while it is read raises; one that fails under a map kills the process.
        """
        yield _Mapped(self.root / name / file, self.fault(name, file, facts, bool(facts)))

    def clean(self, name: str) -> None:
        folder = self.root / name
        if folder.exists():
            self.remove(name)
        if not self.root.exists():
            self.root.mkdir(parents=True)
            for parent in self.root.parents:
                with contextlib.suppress(PermissionError):
                    sync_folder(parent)
        # On NFS a file that someone still reads leaves a .nfs file, and its folder, behind.
        folder.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def writing(self, name: str, file: str, size: int | None = None) -> Iterator[Hashing]:
        path = self.root / name / file
        path.parent.mkdir(exist_ok=True)
        with writing(path) as out:
            yield out

    def sync(self, name: str, folder: str) -> None:
        sync_folder(self.root / name / folder)

    def commit(self, name: str, manifest: bytes) -> None:
        # First the folder's own name is made durable, then what makes it a checkpoint.
        sync_folder(self.root)
        with writing(self.root / name / MANIFEST) as out:
            out.write(manifest)

    def remove(self, name: str) -> None:
        folder = self.root / name
        try:
            (folder / MANIFEST).unlink(missing_ok=True)
            sync_folder(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("The checkpoint %s cannot be deleted: %s", folder, reason(error))
            return
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class _Mapped:
    """A file whose digest was taken."""

    source: Path
    flaw: str | None
    is_mapped: bool = True

    def finish(self) -> str | None:
        return self.flaw


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where its file system can: FUSE and SMB may not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Hashing]:
    """Give a file to write to whose name never stands for half of it.

    The other name is in the same folder: $TMPDIR may be another filesystem, where a rename is a
    copy, and a copy can tear.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb", buffering=0) as raw, digesting(raw) as hashing:
            yield hashing
            os.fsync(raw.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
