"""The objects below a prefix, and the requests that read and write them."""

import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from hydra_trainer.errors import Changed, ConfigError, Exists, Gone, StorageError
from hydra_trainer.retry import TOLD_FROM, Retry

from .client import Client, quiet
from .settings import Settings
from .troubles import Asked, Trouble, read, refusal, region_of

PART = 16 << 20
"""Bytes of one request for a part of a large object: a connection to S3 carries 50 to 100 MB/s."""

TOGETHER = 4
"""Requests for parts of one object at a time."""

GAP = 1 << 20
"""Bytes between two ranges that are read rather than asked around."""

SINGLE = 32 << 20
"""Bytes of the largest object that is written in one request, if there is no condition."""

LEAST_PART, MOST_PART = 5 << 20, 16 << 20
"""Bytes of a part that is written. S3 takes none smaller, but for the last one."""

PIECE = 1 << 20
"""Bytes that a writer copies at once."""

PARTS = 9_000
"""Of one object at most: S3 takes 10,000."""

NO_PARTS = frozenset({"", ".", ".."})
"""What may not stand between two / of a key."""

KEY_TRIES = 3
"""How often this machine is asked for the credentials of its role: most machines have none."""

OWN = "hydra-trainer-write"
"""The key of the metadata by which a write whose answer was lost knows its own object."""

DEFAULT = Settings()
PAUSES = Retry(longest=5.0)

Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What is known of an object: its key below the prefix, its size in bytes, and its ETag."""

    key: str
    size: int
    etag: str


class Short(Exception):
    """A body that is not as long as its head said."""


class Objects:
    """The objects below a prefix of a bucket.

    It can be pickled, and used in a process that was forked after its first request. Keys are
    relative to the prefix, with / between their parts.

    All methods raise StorageError (an OSError): Gone, Exists or Changed where they say so, and
    otherwise when S3 refuses, or does not answer within `settings.deadline_s` seconds. Each request
    is tried again until then: after 5xx and 429, connections that break, answers that stop or are
    cut off, and with new credentials when the ones it has have expired.

    Args:
        uri: s3://BUCKET or s3://BUCKET/PREFIX. Raises ConfigError for others.
        settings: how S3 is reached.
        retry: the pauses between tries; tests give it another clock. Its seconds and tries are not
            looked at.
    """

    def __init__(self, uri: str, settings: Settings = DEFAULT, *, retry: Retry = PAUSES) -> None:
        scheme, _, rest = uri.partition("://")
        bucket, _, prefix = rest.partition("/")
        if scheme != "s3" or not bucket:
            raise ConfigError(f"{uri!r} is no place in S3. Type s3://BUCKET/PREFIX.")
        self.bucket = bucket
        self.prefix = prefix.strip("/")
        if self.prefix and not NO_PARTS.isdisjoint(self.prefix.split("/")):
            raise ConfigError(f"{uri!r} has an empty part, or . or .., in its prefix.")
        self.uri = "/".join(filter(None, (f"s3://{bucket}", self.prefix)))
        self.settings = settings
        self._retry = retry
        self._client: Client | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_client": None, "_retry": PAUSES}

    def __repr__(self) -> str:
        return f"Objects({self.uri!r})"

    def below(self, key: str) -> "Objects":
        """Return those below a prefix in this one."""
        return Objects(f"{self.uri}/{key.strip('/')}", self.settings, retry=self._retry)

    # ------------------------------------------------------------------------------------ reading

    def head(self, key: str) -> Facts | None:
        """Return what is known of an object; None when there is none."""
        try:
            found = self._ask(
                "s3:GetObject", key, lambda one: one.library.head(one.once, self._path(key))
            )
        except Gone:
            return None
        return Facts(key, found["size"], found["e_tag"] or "")

    def get(
        self, key: str, start: int = 0, length: int | None = None, etag: str | None = None
    ) -> memoryview:
        """Return bytes of an object: exactly those that were asked for.

        A large object is read in parts, which are all of the same one.

        Args:
            start: the first byte.
            length: how many; None: to the end.
            etag: what the object's must be.

        Raises Gone, Changed.
        """
        if length == 0:
            return memoryview(b"")
        if length is not None and length > PART:
            whole = _array(length)
            self.get_into(key, whole, start, etag)
            return memoryview(whole.data)
        body, facts = self._range(key, start, length or PART, etag, is_open=length is None)
        size = facts.size - start if length is None else length
        if len(body) == size:
            return body
        whole = _array(size)
        whole[: len(body)] = body
        self._fill(key, whole, start, len(body), etag or facts.etag)
        return memoryview(whole.data)

    def get_into(self, key: str, target: Any, start: int = 0, etag: str | None = None) -> str:
        """Fill a writable buffer with the bytes of an object from `start`; return its ETag.

        Raises Gone, Changed.
        """
        import numpy as np

        if not memoryview(target).nbytes:
            return etag or ""
        whole = np.frombuffer(target, np.uint8)
        done = 0
        if etag is None:  # one answer before the others, which have to be of the same object
            done = min(len(whole), PART)
            body, facts = self._range(key, start, done, None)
            whole[:done] = body
            etag = facts.etag
        self._fill(key, whole, start, done, etag)
        return etag

    def get_ranges(
        self,
        key: str,
        starts: Sequence[int],
        lengths: Sequence[int],
        etag: str | None = None,
    ) -> list[memoryview]:
        """Return several pieces of one object, in the order asked for. Raises Gone, Changed.

        Pieces that lie near each other are one request, and are then parts of one buffer.
        """
        wanted = sorted(zip(starts, lengths, range(len(starts)), strict=True))
        spans: list[list[Any]] = []  # [start, end, pieces]
        for start, length, at in wanted:
            near = spans and start <= spans[-1][1] + GAP
            if near and max(start + length, spans[-1][1]) - spans[-1][0] <= PART:
                spans[-1][1] = max(spans[-1][1], start + length)
                spans[-1][2].append((start, length, at))
            else:
                spans.append([start, start + length, [(start, length, at)]])
        found: list[memoryview] = [memoryview(b"")] * len(wanted)
        if not spans:
            return found

        def take(span: list[Any], etag: str | None) -> str:
            begin, end, pieces = span
            tag = etag or ""
            view = memoryview(b"")
            if end - begin > PART:
                whole = _array(end - begin)
                tag = self.get_into(key, whole, begin, etag)
                view = memoryview(whole.data)
            elif end > begin:
                view, facts = self._range(key, begin, end - begin, etag)
                tag = facts.etag
            for start, length, at in pieces:
                found[at] = view[start - begin : start - begin + length]
            return tag

        etag = take(spans[0], etag) or None
        _together([partial(take, span, etag) for span in spans[1:]])
        return found

    def _fill(self, key: str, whole: Any, start: int, done: int, etag: str) -> None:
        """Read what follows the first bytes of an array, in parts."""

        def part(at: int) -> None:
            end = min(at + PART, len(whole))
            body, _ = self._range(key, start + at, end - at, etag)
            whole[at:end] = body

        _together([partial(part, at) for at in range(done, len(whole), PART)])

    def _range(
        self, key: str, start: int, length: int, etag: str | None, *, is_open: bool = False
    ) -> tuple[memoryview, Facts]:
        """Return bytes from one request; fewer, if it `is_open`, when the object ends before."""
        options: dict[str, Any] = {"range": (start, start + length)}
        if etag:
            options["if_match"] = etag

        def once(one: Client) -> tuple[memoryview, Facts]:
            result = one.library.get(one.once, self._path(key), options=options)
            begin, end = result.range
            facts = Facts(key, result.meta["size"], result.meta["e_tag"] or "")
            body = memoryview(result.bytes())
            if len(body) != end - begin:
                raise Short(f"{len(body)} bytes came, and {end - begin} were to.")
            return body, facts

        asked = Asked("s3:GetObject", self.bucket, self._path(key))
        try:
            body, facts = self._ask("s3:GetObject", key, once)
        except PastEnd:
            if not is_open or start:
                raise StorageError(
                    f"{asked}: it ends before byte {start}, from which {length} were asked for."
                ) from None
            options.pop("range")  # nothing is no range of an object of no bytes
            body, facts = self._ask("s3:GetObject", key, once)
        if etag and facts.etag and facts.etag != etag:
            raise self._changed(asked, etag)
        if len(body) != length and not (is_open and start + len(body) == facts.size):
            raise StorageError(
                f"{asked}: it has {facts.size} bytes, and {length} from {start} were asked for."
            )
        return body, facts

    # ------------------------------------------------------------------------------------ writing

    def put(
        self, key: str, data: Any, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        """Write an object in one step; return its ETag.

        Args:
            data: bytes, or anything with a buffer of them.
            if_absent: write only if there is no such object. Raises Exists.
            if_match: write only if the object's ETag is this one. Raises Changed, or Gone.

        With a condition it is one request, which has to get through within the deadline.

        A condition holds for what was there before the first try: an answer that gets lost makes no
        Exists of an object that this very call has written.
        """
        view = memoryview(data).cast("B")
        options: dict[str, Any] = {"use_multipart": False}
        if not (if_absent or if_match) and len(view) > SINGLE:
            with self.writer(key, size=len(view)) as writer:
                writer.write(view)
            return writer.etag
        mark = uuid.uuid4().hex
        if if_absent or if_match:
            options |= {"mode": {"e_tag": if_match} if if_match else "create"}
            options |= {"attributes": {OWN: mark}}
        path = self._path(key)

        def once(one: Client) -> Any:
            return one.library.put(one.once, path, view, **options)

        try:
            return str(self._ask("s3:PutObject", key, once)["e_tag"] or "")
        except (Exists, Changed):
            if etag := self._own(key, mark):
                return etag
            raise

    def writer(self, key: str, *, size: int | None = None) -> "Writer":
        """Return a context manager that writes an object in parts, while they are given to it.

        Nothing is there before the block ends well; whatever raises in it leaves nothing. Of a
        process that is killed, S3 keeps the parts, unseen, until a lifecycle rule of the bucket
        (AbortIncompleteMultipartUpload) takes them away.

        Args:
            size: bytes that are going to be written, about. It makes the parts larger for large
                objects: what is on its way at a time takes at most 4% of it, or 20 MiB. Without
                it, an object may have 75 GB.
        """
        return Writer(self, key, size)

    def delete(self, *keys: str) -> None:
        """Delete objects, those that there are."""
        if keys:
            paths = [self._path(key) for key in keys]
            self._ask("s3:DeleteObject", keys[0], lambda one: one.library.delete(one.once, paths))

    def _own(self, key: str, mark: str) -> str:
        """Return the ETag of an object if a write with this mark made it."""

        def once(one: Client) -> Any:
            return one.library.get(one.once, self._path(key))

        try:
            found = self._ask("s3:GetObject", key, once)
        except Gone:
            return ""
        return str(found.meta["e_tag"] or "") if found.attributes.get(OWN) == mark else ""

    # ------------------------------------------------------------------------------------- inside

    def _path(self, key: str) -> str:
        return "/".join(filter(None, (self.prefix, key.strip("/"))))

    def _key(self, path: str) -> str:
        return path[len(self.prefix) :].strip("/") if self.prefix else path.strip("/")

    def _changed(self, asked: Asked, etag: str | None) -> Changed:
        was = f" Its ETag was {etag}." if etag else ""
        return Changed(f"{asked}: the object is another one than before.{was}")

    def client(self) -> Client:
        """Return a client of this process."""
        if self._client is not None and self._client.process != os.getpid():
            self._client.leave()
            self._client = None
        if self._client is None:
            self._client = Client(self.bucket, self.settings)
        return self._client

    def renew(self) -> None:
        """Look for credentials anew at the next request."""
        self._client = None

    def _ask(
        self, action: str, key: str, once: Callable[[Client], Answer], *, is_path: bool = False
    ) -> Answer:
        """Return the answer to a request, which is tried until there is one, or time is up."""
        asked = Asked(action, self.bucket, key if is_path else self._path(key))
        began, tries = self._retry.clock(), 0
        renewed = False
        while True:
            client = self.client()
            try:
                return once(client)
            except StorageError:
                raise
            except Exception as error:
                trouble = self._judged(asked, client, error)
                if trouble.is_expired and not renewed:
                    renewed = True
                    self.renew()
                    continue
                tries += 1
                if not trouble.is_passing or (trouble.wants_keys and tries >= KEY_TRIES):
                    raise self._refusal(asked, client, trouble) from error
                self._pause(asked, trouble, began, tries)

    def _judged(self, asked: Asked, client: Client, error: Exception) -> Trouble:
        """Return what is wrong with a request. Raises what is no trouble with S3."""
        names = client.library.exceptions
        if isinstance(error, Short):
            return Trouble(0, "", "", "", str(error), "")
        if not isinstance(error, names.BaseError | OSError):
            raise error
        trouble = read(error)
        if isinstance(error, names.AlreadyExistsError) and not trouble.is_passing:
            raise Exists(
                f"{asked}: there is such an object already, and it was to be written only if there "
                "is none."
            ) from error
        # The library says the same when an ETag is asked for and there is nothing.
        if isinstance(error, names.PreconditionError) and trouble.status != 404:
            raise self._changed(asked, None) from error
        if trouble.status == 416:
            raise PastEnd from error
        if client.keys.trouble is not None:
            raise StorageError(
                f"{asked}: the AWS credentials ({client.keys.found}) cannot be renewed: "
                f"{client.keys.trouble}"
            ) from client.keys.trouble
        if trouble.status in (400, 403, 404) and not trouble.code:
            trouble = self._closer(asked, client, trouble)
        if trouble.status == 404 and trouble.code in ("NoSuchKey", ""):
            raise Gone(f"{asked}: there is no such object.") from error
        return trouble

    def _closer(self, asked: Asked, client: Client, trouble: Trouble) -> Trouble:
        """Ask anew after a HEAD, whose answers have no words."""
        try:
            client.library.get(client.once, asked.key, options={"range": (0, 1)})
        except Exception as error:
            found = read(error)
            return found if found.code else trouble
        return trouble

    def _refusal(self, asked: Asked, client: Client, trouble: Trouble) -> StorageError:
        if trouble.is_elsewhere and not trouble.region:
            place = region_of(
                self.bucket, self.settings.address, client.region, quiet(self.settings)
            )
            trouble = Trouble(**{**trouble.__dict__, "region": place})
        return refusal(asked, trouble, region=client.region, keys=client.keys.found)

    def _pause(self, asked: Asked, trouble: Trouble, began: float, tries: int) -> None:
        """Wait before the next try. Raises StorageError when there is no time for one."""
        retry, limit = self._retry, self.settings.deadline_s
        bound = min(retry.longest, retry.first * 2 ** (tries - 1))
        wait = retry.spread(0.0, bound)
        spent = retry.clock() - began
        if spent + wait + quiet(self.settings) > limit:
            times = "once" if tries == 1 else f"{tries} times"
            where = self.settings.address or "AWS"
            raise StorageError(
                f"{asked} was tried {times} in {spent:.0f} s and did not go through. The last "
                f"time: {trouble.words} Look at whether {where} can be reached from here, or give "
                f"it more time: storage.s3.deadline={2 * limit:g} (now {limit:g} s)."
            )
        if wait >= TOLD_FROM:
            log.warning("%s: %s Trying again in %.0f s.", asked, trouble.words, wait)
        retry.sleep(wait)

    # ------------------------------------------------------------------------------------ listing

    def folders(self, prefix: str = "") -> list[str]:
        """Return what is right below a prefix and has objects below it, by key, without a / behind.

        With `a/b/c` and `a/d`, that of "" is ["a"], and that of "a" is ["a/b"].
        """
        path = self._path(prefix) or None

        def once(one: Client) -> Any:
            return one.library.list_with_delimiter(one.once, path)["common_prefixes"]

        found = self._ask("s3:ListBucket", path or "", once, is_path=True)
        return sorted(self._key(one) for one in found)

    def _page(self, path: str | None, after: str | None) -> tuple[list[Facts], str | None]:
        """Return one page of a listing, and what the next one is after, if there may be one."""

        def once(one: Client) -> Any:
            listing = one.library.list(one.once, path, offset=after, chunk_size=1000)
            return next(iter(listing), [])

        rows = self._ask("s3:ListBucket", path or "", once, is_path=True)
        found = [Facts(self._key(row["path"]), row["size"], row["e_tag"] or "") for row in rows]
        return found, rows[-1]["path"] if len(rows) >= 1000 else None

    def list(self, prefix: str = "") -> Iterator[Facts]:
        """Yield the objects below a prefix, which ends at a /, in the order of their keys."""
        last: str | None = None
        path = self._path(prefix) or None
        while True:
            rows, last = self._page(path, last)
            yield from rows
            if last is None:
                return


class PastEnd(Exception):
    """A range that begins where the object has ended."""


class Writer:
    """Writes one object in parts. See Objects.writer.

    Attributes:
        etag: of the object, when the block has ended well.
        written: bytes so far.
    """

    def __init__(self, objects: Objects, key: str, size: int | None) -> None:
        self.etag = ""
        self.written = 0
        self._objects = objects
        self._key = key
        self._asked = Asked("s3:PutObject", objects.bucket, objects._path(key))
        self._mark = uuid.uuid4().hex
        self._part, self._together = _parts(size)

    def __enter__(self) -> "Writer":
        self._client = self._objects.client()
        self._file = self._client.library.open_writer(
            self._client.patient,
            self._asked.key,
            buffer_size=self._part,
            max_concurrency=self._together,
            attributes={OWN: self._mark},
        )
        return self

    def write(self, data: Any) -> int:
        """Take bytes, or anything with a buffer of them; wait while too many are on their way.

        They are copied: the library sends what it was given later, when the buffer may hold
        something else.
        """
        view = memoryview(data).cast("B")
        for at in range(0, len(view), PIECE):
            piece = bytes(view[at : at + PIECE])
            try:
                self._file.write(piece)
            except Exception as error:
                raise self._failed(error) from error
            self.written += len(piece)
        return len(view)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._abort()
            return
        try:
            self._file.close()
        except Exception as error:
            failed = self._failed(error)
            # The parts may be together, and the answer that said so lost.
            self.etag = self._objects._own(self._key, self._mark)
            if not self.etag:
                raise failed from error
            return
        found = self._objects.head(self._key)
        if found is None or found.size != self.written:
            there = "it is gone" if found is None else f"it has {found.size}"
            raise Changed(
                f"{self._asked}: {self.written} bytes were written, and then {there}. Somebody "
                "else writes or deletes the same object."
            )
        self.etag = found.etag

    def _abort(self) -> None:
        try:
            self._file.__exit__(RuntimeError, None, None)
        except Exception:
            return  # a lifecycle rule of the bucket takes what is left

    def _failed(self, error: Exception) -> StorageError:
        objects = self._objects
        try:
            trouble = objects._judged(self._asked, self._client, error)
        except StorageError as found:
            return found
        if trouble.is_expired:
            objects.renew()
        if trouble.is_passing:
            return StorageError(
                f"{self._asked} did not go through within {objects.settings.deadline_s:g} s for "
                f"one of its parts. The last time: {trouble.words}"
            )
        return objects._refusal(self._asked, self._client, trouble)


def _parts(size: int | None) -> tuple[int, int]:
    """Return the bytes of a part that is written, and how many are on their way at a time."""
    if size is None:
        return 8 << 20, TOGETHER
    part = max(LEAST_PART, min(MOST_PART, size // 100), -(-size // PARTS))
    return part, TOGETHER - 1


def _array(size: int) -> Any:
    """Return room for so many bytes, which costs nothing before they come."""
    import numpy as np

    return np.empty(size, np.uint8)


def _together(tasks: Sequence[Callable[[], Any]]) -> None:
    """Do things in a few threads. Raises what the first of them raises; others are not begun."""
    if len(tasks) < 2:
        for task in tasks:
            task()
        return
    with ThreadPoolExecutor(min(TOGETHER, len(tasks)), "objects") as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
