"""The objects of S3, as files below a folder: BUCKET/KEY where that can be a path.

What is known of an object is a line in BUCKET.jsonl: the last one of a key counts. An object whose
key cannot be a path here (`a` beside `a/b`, `a//b`, a long name) is a file in BUCKET/.other.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import BinaryIO

from .refusals import AwsError

BUCKET = re.compile(r"(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
NAME_LIMIT = 255  # bytes of a name in a folder
OTHER = ".other"


@dataclass
class Stored:
    """An object: `path` is that of its file in the bucket's folder."""

    key: str
    path: str
    size: int
    etag: str
    modified: float
    type: str = "binary/octet-stream"
    headers: dict[str, str] = field(default_factory=dict)
    """What a client gave to be given back: its own metadata, checksums, Cache-Control."""


class Objects:
    """All buckets. May be shared by threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._new = folder / ".new"
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir(parents=True)
        self._lock = threading.RLock()
        self._buckets: dict[str, dict[str, Stored]] = {}
        for file in folder.glob("*.jsonl"):
            self._buckets[file.stem] = _load(file)
        self._regions = {file.stem: file.read_text() for file in folder.glob("*.region")}

    # ------------------------------------------------------------------------------------ buckets

    def make(self, bucket: str, region: str = "") -> bool:
        """Make a bucket; tell whether there was none.

        Args:
            region: the only one that requests for it may be sent to; empty for any.
        """
        if not BUCKET.fullmatch(bucket):
            raise AwsError("InvalidBucketName", "The specified bucket is not valid.")
        with self._lock:
            if bucket in self._buckets:
                return False
            (self.folder / bucket).mkdir(exist_ok=True)
            self._index(bucket).touch()
            if region:
                self._place_of(bucket).write_text(region)
                self._regions[bucket] = region
            self._buckets[bucket] = {}
            return True

    def region(self, bucket: str) -> str:
        """Return the only region of a bucket; empty for any. Raises AwsError when there is none."""
        self._of(bucket)
        return self._regions.get(bucket, "")

    def remove(self, bucket: str) -> None:
        with self._lock:
            if self._of(bucket):
                raise AwsError("BucketNotEmpty", "The bucket you tried to delete is not empty", 409)
            del self._buckets[bucket]
            self._index(bucket).unlink()
            self._place_of(bucket).unlink(missing_ok=True)
            self._regions.pop(bucket, None)
            shutil.rmtree(self.folder / bucket)

    def buckets(self) -> list[tuple[str, float]]:
        """Return their names, and the times of their folders."""
        with self._lock:
            return [(name, (self.folder / name).stat().st_mtime) for name in sorted(self._buckets)]

    def exists(self, bucket: str) -> bool:
        return bucket in self._buckets

    # ------------------------------------------------------------------------------------ objects

    def put(
        self,
        bucket: str,
        key: str,
        content: bytes | Path,
        *,
        etag: str = "",
        type: str = "",
        headers: dict[str, str] | None = None,
        check: Callable[[Stored | None], None] = lambda found: None,
    ) -> Stored:
        """Write an object, in one step: who reads it sees the one before, or this one.

        Args:
            content: its bytes, or a file that may change meanwhile, and stays.
            check: is given the object before, and may raise; nothing is written then.
        """
        self._of(bucket)
        if len(key.encode()) > 1024:
            raise AwsError("KeyTooLongError", "Your key is too long")
        new = self._new / uuid.uuid4().hex
        try:
            if isinstance(content, Path):
                shutil.copyfile(content, new)
            else:
                new.write_bytes(content)
            etag = etag or _md5(new)
            with self._lock:
                objects = self._of(bucket)
                before = objects.get(key)
                check(before)
                place = Path(before.path) if before else self._place(bucket, key)
                file = self.folder / bucket / place
                file.parent.mkdir(parents=True, exist_ok=True)
                size = new.stat().st_size
                new.rename(file)
                stored = Stored(key, str(place), size, etag, time.time(), headers=headers or {})
                stored.type = type or stored.type
                objects[key] = stored
                self._note(bucket, asdict(stored))
                return stored
        finally:
            new.unlink(missing_ok=True)

    def find(self, bucket: str, key: str) -> Stored | None:
        """Raises AwsError when there is no such bucket."""
        return self._of(bucket).get(key)

    def get(self, bucket: str, key: str) -> Stored:
        """Raises AwsError when there is no such object."""
        if (found := self.find(bucket, key)) is None:
            raise AwsError("NoSuchKey", "The specified key does not exist.", 404)
        return found

    def open(self, bucket: str, key: str) -> tuple[Stored, BinaryIO]:
        """Return an object and its bytes, which stay those of this object."""
        with self._lock:
            stored = self.get(bucket, key)
            return stored, (self.folder / bucket / stored.path).open("rb")

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object, if there is one."""
        with self._lock:
            if stored := self._of(bucket).pop(key, None):
                self._note(bucket, {"key": key})
                file = self.folder / bucket / stored.path
                file.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # not empty
                    for folder in file.relative_to(self.folder / bucket).parents[:-1]:
                        (self.folder / bucket / folder).rmdir()

    def list(self, bucket: str, prefix: str = "") -> list[Stored]:
        """Return the objects whose keys begin with a prefix, in S3's order."""
        with self._lock:
            found = [one for key, one in self._of(bucket).items() if key.startswith(prefix)]
        return sorted(found, key=lambda one: one.key.encode())

    # ------------------------------------------------------------------------------ below a prefix

    def download(self, bucket: str, stored: Iterable[Stored], prefix: str, folder: Path) -> None:
        """Write objects to files in a folder, by what follows the prefix in their keys."""
        for one in stored:
            name = one.key[len(prefix) :].lstrip("/") or one.key.rpartition("/")[2]
            if ".." in name.split("/"):
                raise AwsError("InvalidURI", f"{one.key} leads out of the folder it is to be in")
            if one.key.endswith("/"):
                (folder / name).mkdir(parents=True, exist_ok=True)
                continue
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            found, source = self.open(bucket, one.key)
            with source, file.open("wb") as target:
                shutil.copyfileobj(source, target)
            os.utime(file, (found.modified, found.modified))

    # ------------------------------------------------------------------------------------- inside

    def _of(self, bucket: str) -> dict[str, Stored]:
        if (found := self._buckets.get(bucket)) is None:
            raise AwsError("NoSuchBucket", "The specified bucket does not exist", 404)
        return found

    def _index(self, bucket: str) -> Path:
        return self.folder / f"{bucket}.jsonl"

    def _place_of(self, bucket: str) -> Path:
        return self.folder / f"{bucket}.region"

    def _note(self, bucket: str, line: dict[str, object]) -> None:
        with self._index(bucket).open("a") as index:
            index.write(json.dumps(line) + "\n")

    def _place(self, bucket: str, key: str) -> Path:
        """Return a path for a new object: its key, if that is possible."""
        parts = key.split("/")
        possible = parts[0] != OTHER and all(
            part not in ("", ".", "..") and "\0" not in part and len(part.encode()) <= NAME_LIMIT
            for part in parts
        )
        if possible:
            folder = self.folder / bucket
            above = [folder.joinpath(*parts[:count]) for count in range(1, len(parts))]
            if not any(one.is_file() for one in above) and not folder.joinpath(*parts).is_dir():
                return Path(*parts)
        return Path(OTHER, hashlib.sha256(key.encode()).hexdigest())


def files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, links to files among them."""
    for where, _, names in os.walk(folder):
        yield from (Path(where, name) for name in sorted(names))


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key of an s3:// URI."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def _load(index: Path) -> dict[str, Stored]:
    """Read an index, and write it anew without its past."""
    found: dict[str, Stored] = {}
    for line in index.read_text().splitlines():
        with contextlib.suppress(ValueError):  # of a process that was killed
            one = json.loads(line)
            if "path" in one:
                found[one["key"]] = Stored(**one)
            else:
                found.pop(one["key"], None)
    new = index.with_suffix(".new")
    new.write_text("".join(json.dumps(asdict(one)) + "\n" for one in found.values()))
    new.rename(index)
    return found
