"""How fast is a folder, a mount or a bucket, seen from here: `hydra-trainer data bench URI`.

Run it in a job: what a laptop sees of a bucket, or a login node of a file system, is not what the
job gets. Everything is written below a folder of its own, which is deleted at the end.
"""

import contextlib
import os
import random
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hydra_trainer.errors import DataError

from .places import Bucket, Folder, Place
from .tools import in_bytes

if TYPE_CHECKING:
    from hydra_trainer.objects import Objects

BLOCK = 4 << 20  # bytes of a sequential read or write
RECORD = 4 << 10  # of a random read, and of a small file
OBJECT = 16 << 20  # of an object, at most
FILES = 256  # small files, at most


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    value: str
    means: str


class Clock:
    """How much of the time that is allowed is left."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def share(self, part: float) -> "Clock":
        """Return a clock with a part of the time of this one, but no more than is left."""
        return Clock(max(min(self.seconds * part, self.end - time.monotonic()), 0.0))

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end


def measure(place: Place, size: int, seconds: float) -> str:
    """Measure a place for about `seconds` with at most `size` bytes; return a table.

    Raises DataError when it cannot be written or read; StorageError where it is in S3.
    """
    clock = Clock(seconds)
    name = f".hydra-trainer-bench-{uuid.uuid4().hex[:12]}"
    if isinstance(place, Bucket):
        rows = _bucket(place.below(name), size, clock)
    else:
        assert isinstance(place, Folder)
        rows = _folder(place.path / name, size, clock)
    head = [Row("measured", "", "what it means"), *rows]
    widths = [max(len(row.what) for row in head), max(len(row.value) for row in head)]
    lines = [f"{r.what:<{widths[0]}}  {r.value:>{widths[1]}}  {r.means}".rstrip() for r in head]
    spent = clock.seconds - (clock.end - time.monotonic())
    return "\n".join([place.uri, *lines, f"{spent:.1f} s; what was written is deleted again."])


# ----------------------------------------------------------------------------------------- a folder


def _folder(folder: Path, size: int, clock: Clock) -> list[Row]:
    missing = not folder.parent.exists()
    try:
        folder.mkdir(parents=True)
        return list(_folder_rows(folder, size, clock))
    except OSError as error:
        raise DataError(
            f"{folder.parent} cannot be measured: {error.strerror or error}. Give a folder that "
            "can be written and has the space, or a smaller --size."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if missing:
            with contextlib.suppress(OSError):
                folder.parent.rmdir()


def _folder_rows(folder: Path, size: int, clock: Clock) -> Iterator[Row]:
    big = folder / "big"
    written, rate = _sequential_write(big, size, clock.share(0.25))
    yield Row(
        f"write {in_bytes(written)} and fsync",
        f"{in_bytes(rate)}/s",
        f"a checkpoint of 1 GiB takes {_seconds((1 << 30) / rate)}",
    )
    count, rate = _sequential_read(big, clock.share(0.2))
    yield Row(
        f"read {in_bytes(count)} from end to end",
        f"{in_bytes(rate)}/s",
        f"packed shards: 100 GiB of them in {_seconds((100 << 30) / rate)}, with one reader",
    )
    single = _random_reads(big, written, 1, clock.share(0.1))
    many = _random_reads(big, written, 8, clock.share(0.1))
    yield _per_second("random reads of 4 KiB, 1 at a time", single, "samples", "of a file mapped")
    yield _per_second("random reads of 4 KiB, 8 at a time", many, "samples", "with 8 workers")
    names, times = _create(folder, clock.share(0.15))
    yield Row(
        f"create, fsync and rename {len(names)} files of 4 KiB",
        _middle(times),
        f"the least that a checkpoint, a log or a csv costs; the slowest {_worst(times)}",
    )
    single = _small_reads(names, 1, clock.share(0.08))
    many = _small_reads(names, 8, clock.share(0.08))
    yield _per_second("open and read small files, 1 at a time", single, "files", "packed or not")
    yield _per_second("open and read small files, 8 at a time", many, "files", "with 8 workers")
    begin = time.perf_counter()
    listed = [entry.stat().st_size for entry in os.scandir(folder)]
    spent = time.perf_counter() - begin
    yield Row(
        "list and stat, each file",
        _seconds(spent / max(len(listed), 1)),
        f"to look through a folder of a million files takes {_seconds(spent / len(listed) * 1e6)}",
    )
    begin = time.perf_counter()
    for name in names:
        name.unlink()
    spent = (time.perf_counter() - begin) / max(len(names), 1)
    yield Row("delete, each file", _seconds(spent), "what a prune of old checkpoints waits for")


def _per_second(what: str, rate: float, of: str, note: str) -> Row:
    return Row(what, f"{rate:,.0f}/s", f"a million {of} in {_seconds(1e6 / rate)}, {note}")


def _sequential_write(path: Path, size: int, clock: Clock) -> tuple[int, float]:
    """Write random bytes, which no file system can make smaller; return their number and a rate."""
    block = random.Random(0).randbytes(BLOCK)
    written = 0
    begin = time.perf_counter()
    with path.open("xb", buffering=0) as file:
        while written < size and (not written or not clock.over):
            written += file.write(block[: size - written])
        os.fsync(file.fileno())
        spent = time.perf_counter() - begin
        _forget(file.fileno())
    return written, written / spent


def _forget(descriptor: int, start: int = 0, length: int = 0) -> None:
    """Ask the kernel to keep no copy of a file in memory, so that a read goes to the disk."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_DONTNEED)


def _sequential_read(path: Path, clock: Clock) -> tuple[int, float]:
    buffer = bytearray(BLOCK)
    count = 0
    begin = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(buffer):
            count += read
            if clock.over:
                break
        spent = time.perf_counter() - begin
        _forget(file.fileno())
    return count, count / spent


def _random_reads(path: Path, size: int, threads: int, clock: Clock) -> float:
    last = max(size - RECORD, 0) // RECORD
    descriptor = os.open(path, os.O_RDONLY)
    if hasattr(os, "posix_fadvise"):  # or the kernel reads ahead what nobody wants
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def read(rng: random.Random) -> None:
        start = rng.randint(0, last) * RECORD
        os.pread(descriptor, RECORD, start)
        _forget(descriptor, start, RECORD)

    try:
        return _rate(read, threads, clock)
    finally:
        os.close(descriptor)


def _rate(act: Callable[[random.Random], object], threads: int, clock: Clock) -> float:
    """Return how often a second `threads` threads can do something."""

    def work(number: int) -> int:
        rng, count = random.Random(number), 0
        while not count or not clock.over:
            act(rng)
            count += 1
        return count

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(pool.map(work, range(threads)))
    return done / (time.perf_counter() - begin)


def _create(folder: Path, clock: Clock) -> tuple[list[Path], list[float]]:
    content = random.Random(1).randbytes(RECORD)
    names: list[Path] = []
    times: list[float] = []
    while len(names) < FILES and (not names or not clock.over):
        name, temporary = folder / f"{len(names):04d}", folder / f".{len(names):04d}"
        begin = time.perf_counter()
        with temporary.open("xb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())
        temporary.rename(name)
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        times.append(time.perf_counter() - begin)
        names.append(name)
    return names, times


def _small_reads(names: list[Path], threads: int, clock: Clock) -> float:
    def read(rng: random.Random) -> None:
        with rng.choice(names).open("rb", buffering=0) as file:
            file.read()
            _forget(file.fileno())

    return _rate(read, threads, clock)


# ----------------------------------------------------------------------------------------- a bucket


def _bucket(place: Bucket, size: int, clock: Clock) -> list[Row]:
    objects = place.objects
    try:
        return list(_bucket_rows(objects, size, clock))
    finally:
        left = [facts.key for facts in objects.list()]
        if left:
            objects.delete(*left)


def _bucket_rows(objects: "Objects", size: int, clock: Clock) -> Iterator[Row]:
    length = max(min(OBJECT, size // 8), 1)
    content = random.Random(0).randbytes(length)
    part = clock.share(0.2)
    keys: list[str] = []
    begin = time.perf_counter()
    while len(keys) < 8 and (not keys or not part.over):
        with objects.writer(f"big-{len(keys)}") as file:
            file.write(content)
        keys.append(f"big-{len(keys)}")
    rate = len(keys) * length / (time.perf_counter() - begin)
    yield Row(
        f"put {len(keys)} objects of {in_bytes(length)}",
        f"{in_bytes(rate)}/s",
        f"a checkpoint of 1 GiB takes {_seconds((1 << 30) / rate)}, written behind training",
    )
    for threads in (1, 8):
        gets = _rate(lambda rng: objects.get(rng.choice(keys)), threads, clock.share(0.2))
        rate = gets * length
        yield Row(
            f"get objects of {in_bytes(length)}, {threads} in flight",
            f"{in_bytes(rate)}/s",
            f"packed shards: 100 GiB of them in {_seconds((100 << 30) / rate)}",
        )
    times = _timed(lambda: objects.get(keys[0], 0, 1), clock.share(0.1))
    yield Row(
        "get one byte: the first-byte latency",
        _middle(times),
        f"what a read of one sample by itself costs; the slowest {_worst(times)}",
    )
    many = _rate(lambda rng: _some(objects, rng, keys, length), 8, clock.share(0.1))
    yield _per_second("random reads of 4 KiB, 8 in flight", many, "samples", "hence packed shards")
    count = iter(range(FILES))
    small = content[:RECORD]
    times = _timed(lambda: objects.put(f"small-{next(count)}", small), clock.share(0.1), FILES)
    yield Row(
        "put 4 KiB",
        _middle(times),
        f"the least that a checkpoint, a log or a csv costs; the slowest {_worst(times)}",
    )
    times = _timed(lambda: objects.head(keys[0]), clock.share(0.05))
    yield Row("head", _middle(times), "asking whether something is there")
    times = _timed(lambda: list(objects.list()), clock.share(0.05))
    yield Row("list a small prefix", _middle(times), "looking for the newest checkpoint")


def _some(objects: "Objects", rng: random.Random, keys: list[str], length: int) -> object:
    start = rng.randint(0, max(length - RECORD, 0))
    return objects.get(rng.choice(keys), start, min(RECORD, length - start))


def _timed(act: Callable[[], object], clock: Clock, most: int = 1000) -> list[float]:
    times: list[float] = []
    while len(times) < most and (not times or not clock.over):
        begin = time.perf_counter()
        act()
        times.append(time.perf_counter() - begin)
    return times


# ------------------------------------------------------------------------------------------- words


def _middle(times: list[float]) -> str:
    return _seconds(sorted(times)[len(times) // 2])


def _worst(times: list[float]) -> str:
    return _seconds(max(times))


def _seconds(value: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if value >= 2 * size or (unit == "ms" and value >= size):
            return f"{value / size:,.1f} {unit}"
    return f"{value * 1e6:,.0f} us"
