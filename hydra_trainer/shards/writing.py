"""Packing: batches of samples become shards, and at the end an index.

One pass, in memory that a few shards fit into. The same samples give the same bytes, whatever
batches they come in. Shards are named after their content and the index comes last, so that a
reader sees the data set that was there before, or the new one, and a pack that was killed and is
begun again finds the shards that it had written.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from hydra_trainer.errors import DataError

from .format import ALIGN, INDEX, OFFSET, Column, Index, Shard, aligned, checksum
from .places import Occupied, Place

SHARD_SIZE = 64 << 20
"""Bytes of a shard: large enough that a request to S3 costs little beside it."""

OURS = re.compile(
    r"\d{5,}-[0-9a-f]{16}\.bin|\.(\d{5,}-[0-9a-f]{16}\.bin|index\.json)\.[0-9a-f]{32}"
)
"""What files of a pack are called, and those it was killed while writing."""

Values = npt.NDArray[Any]
Ragged = tuple[Values, Values]
Batch = Mapping[str, Values | Ragged]
"""Some samples: of a column with a shape an array [n, *shape], else (offsets int64 [n + 1], values)
as in the format, except that offsets may begin anywhere."""


class Writer:
    """Writes one data set. Give it samples with `add`, then `finish` and `commit`.

    Args:
        place: where to.
        columns: what each sample has.
        shard_size: bytes of a shard, at most; a sample larger than that has one for itself.
        moments: an image column, uint8 [C, H, W], whose mean and deviation become facts.
        overwrite: replace the data set that is there. It stays as it is until the new one is whole.

    `wrote` is called after each shard with its bytes, from another thread.

    Raises Occupied when there is a data set already, DataError when what is there cannot be read,
    or the place cannot be written.
    """

    def __init__(
        self,
        place: Place,
        columns: Sequence[Column],
        *,
        shard_size: int = SHARD_SIZE,
        moments: str | None = None,
        overwrite: bool = False,
    ) -> None:
        self.place = place
        self.columns = tuple(columns)
        # What lies between regions, and the offset at the end of each: not of any sample.
        self._room = shard_size - sum(ALIGN + OFFSET.itemsize for _ in self.columns)
        self.shards: list[Shard] = []
        self.wrote: Callable[[int], None] = lambda size: None
        self._before = existing(place, overwrite)
        self._there = place.sizes()
        self._new: list[str] = []
        self._moments = None if moments is None else Moments(moments)
        self._pieces: list[Batch] = []
        self._samples = self._size = 0
        # Another thread joins, hashes and writes a shard while the next one is read.
        self._thread = ThreadPoolExecutor(1, "shards")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exc: object) -> None:
        self._thread.shutdown()

    def add(self, batch: Batch) -> None:
        """Take some samples. Raises DataError when a shard cannot be written."""
        sizes = self._sizes(batch)
        begin, ends = 0, np.cumsum(sizes)
        while begin < len(sizes):
            used = int(ends[begin - 1]) if begin else 0
            fit = int(np.searchsorted(ends, self._room - self._size + used, side="right"))
            if fit <= begin and self._samples:
                self._flush()
                continue
            end = max(fit, begin + 1)
            self._pieces.append(
                {column.name: _cut(column, batch, begin, end) for column in self.columns}
            )
            self._samples += end - begin
            self._size += int(ends[end - 1]) - used
            begin = end

    def _sizes(self, batch: Batch) -> npt.NDArray[np.int64]:
        """Return the bytes of each sample; what lies between two regions is not counted."""
        total: Any = 0
        for column in self.columns:
            part = batch[column.name]
            if column.width is not None:
                count = len(part)
                total = total + np.full(count, column.width)
            else:
                total = total + np.diff(part[0]) * column.values.itemsize + OFFSET.itemsize
        return np.asarray(total, np.int64)

    def _flush(self) -> None:
        self._wait()
        pieces, samples = self._pieces, self._samples
        self._pieces, self._samples, self._size = [], 0, 0
        self._pending = self._thread.submit(self._write, pieces, samples)

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def _write(self, pieces: list[Batch], samples: int) -> None:
        content, regions = joined(self.columns, pieces, samples)
        if self._moments is not None:
            start, length = regions[self._moments.name]
            shape = next(c.shape for c in self.columns if c.name == self._moments.name)
            region = np.frombuffer(content, np.uint8, length, start)
            self._moments.add(region.reshape(samples, *(shape or ())))
        digest = checksum(content)
        file = f"{len(self.shards):05d}-{digest[:16]}.bin"
        size = len(content)
        if self._there.get(file) != size or self.place.measure(file) != (size, digest):
            self.place.write(file, content)
            self._new.append(file)
        self.shards.append(Shard(file, samples, size, digest, regions))
        self.wrote(size)

    def finish(self, facts: Mapping[str, Any]) -> Index:
        """Write what is left, and return the index, which is not written yet.

        Raises DataError: there were no samples, or the place cannot be written.
        """
        if self._samples:
            self._flush()
        self._wait()
        if not self.shards:
            raise DataError(f"There is nothing to pack into {self.place.uri}: the source is empty.")
        measured = {} if self._moments is None else self._moments.facts()
        self.index = Index(self.columns, tuple(self.shards), {**facts, **measured})
        return self.index

    def commit(self) -> None:
        """Write the index, then delete what a killed pack or an old set has left.

        Raises:
            Occupied: another job was faster, or deletes what this one writes.
            DataError: the place cannot be written.
        """
        named = {shard.file: shard.size for shard in self.shards}
        # Listed before the commit: what comes after it is of a job that replaces this set.
        there = self.place.sizes()
        missing = [file for file, size in named.items() if there.get(file) != size]
        try:
            if missing and self.place.read(INDEX) == self._before:
                raise Occupied(
                    f"{self.place.uri}: {missing[0]} was deleted while this job packed; another "
                    "one does too. Type it again when that one has ended."
                )
            self.place.commit(self.index.dump(), self._before)
        except Occupied:
            self._leave(self._new)
            raise
        self.place.remove(litter(there, self.index))

    def _leave(self, names: list[str]) -> None:
        """Delete shards of this job that the data set of the other one does not name."""
        content = self.place.read(INDEX)
        theirs = set()
        if content is not None:
            theirs = {shard.file for shard in Index.parse(content, self.place.uri).shards}
        self.place.remove([name for name in names if name not in theirs])


def litter(names: Iterable[str], index: Index) -> list[str]:
    """Return which files killed packs, or a data set that was replaced, have left."""
    named = {shard.file for shard in index.shards}
    return [name for name in names if OURS.fullmatch(name) and name not in named]


def existing(place: Place, overwrite: bool) -> bytes | None:
    """Return the content of the index at a place, which may be there only to be overwritten."""
    before = place.read(INDEX)
    if before is None:
        return None
    where = f"{place.uri}/{INDEX}"
    if not overwrite:
        raise Occupied(
            f"{where} is there already. Give another place, or type --overwrite to replace that "
            "data set."
        )
    try:
        Index.parse(before, where)
    except DataError as error:
        raise DataError(
            f"{error} --overwrite replaces only a data set whose index can be read: delete "
            f"{place.uri} yourself, if that is what you want."
        ) from None
    return before


def _cut(column: Column, batch: Batch, begin: int, end: int) -> Values | Ragged:
    part = batch[column.name]
    if isinstance(part, tuple):
        offsets, values = part
        return offsets[begin : end + 1], values
    return part[begin:end]


def joined(
    columns: Sequence[Column], pieces: Iterable[Batch], samples: int
) -> tuple[bytearray, dict[str, tuple[int, int]]]:
    """Return the content of a shard and the region of each column, (offset, bytes)."""
    pieces = list(pieces)
    lengths = [_length(column, pieces, samples) for column in columns]
    starts, end = [], 0
    for length in lengths:
        starts.append(aligned(end))
        end = starts[-1] + length
    content = bytearray(end)
    for column, start, length in zip(columns, starts, lengths, strict=True):
        region = np.frombuffer(content, np.uint8, length, start)
        if column.shape is not None:
            fixed = region.view(column.values).reshape(samples, *column.shape)
            np.concatenate([piece[column.name] for piece in pieces], out=fixed, casting="equiv")
        else:
            _fill(column, pieces, samples, region)
    regions = {c.name: (s, n) for c, s, n in zip(columns, starts, lengths, strict=True)}
    return content, regions


def _length(column: Column, pieces: Sequence[Batch], samples: int) -> int:
    if column.width is not None:
        return samples * column.width
    counts = (int(offsets[-1] - offsets[0]) for offsets, _ in (p[column.name] for p in pieces))
    return OFFSET.itemsize * (samples + 1) + column.values.itemsize * sum(counts)


def _fill(column: Column, pieces: Sequence[Batch], samples: int, region: Values) -> None:
    head = OFFSET.itemsize * (samples + 1)
    offsets, values = region[:head].view(OFFSET), region[head:].view(column.values)
    row = used = 0
    for begins, source in (piece[column.name] for piece in pieces):
        count = int(begins[-1] - begins[0])
        offsets[row + 1 : row + len(begins)] = begins[1:] - begins[0] + used
        values[used : used + count] = source[begins[0] : begins[-1]]
        row += len(begins) - 1
        used += count


class Moments:
    """The mean and deviation of each channel of an image column, of pixel / 255.

    Counted, not summed up: the same for any order of the images.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._counts: Values | None = None

    def add(self, images: npt.NDArray[np.uint8]) -> None:
        """Count images uint8 [N, C, H, W]."""
        if self._counts is None:
            self._counts = np.zeros((images.shape[1], 256), np.int64)
        # A few at a time: to count them, numpy makes each byte a number of eight.
        step = max(1, 2**21 // images[0].size)
        for begin in range(0, len(images), step):
            for channel, counts in enumerate(self._counts):
                pixels = images[begin : begin + step, channel].ravel()
                counts += np.bincount(pixels, minlength=256)

    def facts(self) -> dict[str, list[float]]:
        """Return {"mean": one of each channel, "std": one of each channel}, to 6 digits."""
        if self._counts is None:
            return {}
        values = np.arange(256) / 255
        shares = self._counts / self._counts.sum(axis=1, keepdims=True)
        mean = shares @ values
        spread = np.sqrt(np.maximum(shares @ values**2 - mean**2, 0))
        return {
            name: [round(float(x), 6) for x in a] for name, a in [("mean", mean), ("std", spread)]
        }
