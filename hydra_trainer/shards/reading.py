"""Samples out of a packed data set, on a disk or in S3, with what comes next fetched ahead.

A Reader gives the samples that it is asked for. Where they lie is decided by the index, and what
will be asked for next by the order (order.py) and the place in it, so that threads fetch whole
shards before they are needed, into bounded memory, and check them. A shard that cannot be had is
an error of the batch that needs it: no sample is ever left out or made up.
"""

import contextlib
import math
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided
from torch.utils.data import get_worker_info

from hydra_trainer.data import MakeOrder, Place, mix
from hydra_trainer.errors import Changed, DataError, Gone, StorageError

from . import places
from .cache import Cache, read_file
from .format import DAMAGED, INDEX, OFFSET, Block, Column, Index, Shard, Taken, Values, aligned
from .order import Layout, Numbers, Order, Permutations, words

Bytes = npt.NDArray[np.uint8]

FETCHES = 4
"""Shards that one process fetches at a time."""

AHEAD = 256
"""Batches that are looked ahead, at most."""

SPLIT_KEY = 1
"""Splits do not follow the seed: runs with other seeds are compared on the same samples."""


def read_index(place: places.Place) -> Index | None:
    """Return the index of the data set at `place`; None where there is none.

    Raises DataError for one that is damaged, StorageError.
    """
    content = place.read(INDEX)
    return None if content is None else Index.parse(content, f"{place.uri}/{INDEX}")


class Selection:
    """Some of the samples of a data set, from each shard in proportion; sample 0 is its first.

    Args:
        index: of the data set.
        low, high: the shares between which its samples lie, in an order within each shard that is
            always the same: (0, 0.1) and (0.1, 1) have no sample in common, and together all.
    """

    def __init__(self, index: Index, low: float = 0.0, high: float = 1.0) -> None:
        # Of the samples before each shard, those below a share: their differences add up exactly.
        below, above = (
            np.diff(np.floor(index.starts * share)).astype(np.int64) for share in (low, high)
        )
        self.counts = above - below
        self.starts: Numbers = np.cumsum([0, *self.counts], dtype=np.int64)
        self._first = below
        self._mixed: Permutations | None = None
        if (low, high) != (0.0, 1.0):
            sizes = np.diff(index.starts)
            self._mixed = Permutations(sizes, words(SPLIT_KEY, np.arange(len(sizes))))

    def __len__(self) -> int:
        return int(self.starts[-1])

    def shards(self, samples: Numbers) -> Numbers:
        """Return the shard of each sample."""
        return np.searchsorted(self.starts, samples, side="right") - 1

    def rows(self, shards: Numbers, samples: Numbers) -> Numbers:
        """Return which row of its shard each sample is."""
        rows: Numbers = samples - self.starts[shards]
        return rows if self._mixed is None else self._mixed(shards, rows + self._first[shards])


class Reader:
    """Reads samples of a data set. It can be pickled, and used in a process that was forked.

    Args:
        place: where the data set is.
        index: its index.
        layout: what its order is made for.
        selection: which of its samples; None for all.
        names: the columns that are wanted; None for all.
        cache: where shards are kept; None to keep them in memory only.

    A process holds at most twice its part of `layout.buffer` in memory: one part that it reads
    from, and one that it fetches ahead.
    """

    def __init__(
        self,
        place: places.Place,
        index: Index,
        layout: Layout,
        selection: Selection | None = None,
        names: Sequence[str] | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.index = index
        self.layout = layout
        self.selection = selection or Selection(index)
        columns = [index.column(name) for name in names] if names is not None else index.columns
        self.columns = {column.name: column for column in columns}
        self.uri = place.uri
        self.opener = _Opener(index, _source(place), cache)
        shards = index.shards
        self._sizes = [shard.size for shard in shards]
        self._counts: Numbers = np.array([shard.samples for shard in shards], np.int64)
        self._regions: dict[str, Numbers] = {
            name: np.array([shard.columns[name][0] for shard in shards], np.int64)
            for name in self.columns
        }
        self._here: _Here | None = None

    def __len__(self) -> int:
        return len(self.selection)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_here": None}

    def order(self, seed: int, epoch: int, shuffle: bool) -> Order:
        """Return the order of an epoch: equal for equal data, wherever they are."""
        counts = self.selection.counts.tolist()
        return _order(counts, self._sizes, self.layout, seed, epoch, shuffle)

    def take(self, samples: npt.ArrayLike, place: Place | None = None) -> Taken:
        """Return these samples: an array [B, *shape] of each column, or a list where they differ.

        Args:
            samples: their numbers, int64 [B].
            place: where they stand in an order, when they do: what comes next is then fetched.

        Raises DataError or StorageError that names the shard, IndexError.
        """
        numbers = np.asarray(samples, np.int64)
        shards = self.selection.shards(numbers)
        here = self._of_this_process()
        here.prepare(self, shards, place)
        rows = self.selection.rows(shards, numbers)
        taken: Taken = {}
        for name, column in self.columns.items():
            regions = here.regions(column, self._regions[name])[shards]
            if column.shape is None:
                taken[name] = _ragged(here.memory, regions, rows, self._counts[shards], column)
            else:
                every = here.every(column)
                regions += rows * every.shape[1]
                taken[name] = every[regions].reshape(-1, *column.shape)
        return taken

    def _of_this_process(self) -> "_Here":
        if self._here is None or self._here.process != os.getpid():
            self._here = _Here(self.opener)
        return self._here

    # ---------------------------------------------------------------------------- what comes next

    def coming(self, place: Place) -> "Iterator[_Batch]":
        """Return this batch and those after it in this process."""
        # Without this reader in it: its memory and threads are to end with it, and not later.
        counts, sizes, layout = self.selection.counts.tolist(), self._sizes, self.layout
        return _coming(partial(_order, counts, sizes, layout), place)

    def room(self, place: Place) -> int:
        """Return how many shards this process may hold: see the class."""
        info = get_worker_info()
        order = self.order(place.seed, place.epoch, place.shuffle)
        batches = islice(_batches(place, info.num_workers if info else 1), 2 * order.batch_lanes)
        lanes = {lane for at in batches for lane in order.lanes_of(*at.share())}
        return min(len(self.index.shards), 2 * len(lanes) * order.shards_in_window)


def _order(
    counts: list[int], sizes: list[int], layout: Layout, seed: int, epoch: int, shuffle: bool
) -> Order:
    return Order(counts, sizes, layout, mix(seed, epoch) if shuffle else None)


def _coming(make: MakeOrder, place: Place) -> "Iterator[_Batch]":
    info = get_worker_info()
    worker, workers = (info.id, info.num_workers) if info else (0, 1)
    while True:
        order: Any = make(place.seed, place.epoch, place.shuffle)
        known: dict[int, _Window] = {}
        for at in _batches(place, workers):
            numbers = order.windows(*at.share())
            known = {n: known.get(n) or _Window(order.shards(n)) for n in numbers}
            yield _Batch(at, list(known.values()))
        following = place.next_pass().after(worker) if place.train else None
        if following is None:
            return
        place = following


def _batches(place: Place | None, step: int) -> Iterator[Place]:
    while place is not None:
        yield place
        place = place.after(step)


class _Window:
    """Shards that are used together, and by how many of the batches that are planned."""

    def __init__(self, shards: list[int]) -> None:
        self.shards = shards
        self.uses = 0


class _Batch(NamedTuple):
    """A batch of this process, and the windows that its samples lie in."""

    place: Place | None
    windows: list[_Window]


def _every(memory: Bytes, column: Column) -> Values:
    """Return `memory` as rows of a column, of which one begins at every value.

    They overlap: it is there to be indexed with the values that true rows begin at.
    """
    assert column.shape is not None
    values = memory.view(column.values)
    size = math.prod(column.shape)
    return as_strided(values, (max(len(values) - size + 1, 0), size), values.strides * 2)


def _ragged(
    memory: Bytes, regions: Numbers, rows: Numbers, counts: Numbers, column: Column
) -> list[Values]:
    """Copy samples of many lengths, out of regions that each begin with counts + 1 offsets."""
    offsets = memory.view(OFFSET)
    regions = regions * column.values.itemsize
    at = regions // OFFSET.itemsize + rows
    first = regions + (counts + 1) * OFFSET.itemsize
    begins, ends = (
        first + offsets[at + i].astype(np.int64) * column.values.itemsize for i in (0, 1)
    )
    spans = zip(begins.tolist(), ends.tolist(), strict=True)
    return [memory[begin:end].copy().view(column.values) for begin, end in spans]


class _Opener:
    """How a shard gets into memory."""

    def __init__(self, index: Index, source: "_Files | _Objects", cache: Cache | None) -> None:
        self.index = index
        self.source = source
        self.cache = cache
        self.largest = aligned(max(shard.size for shard in index.shards))

    def open(self, number: int, memory: Bytes) -> None:
        """Read a shard into the beginning of `memory`, and check it.

        Raises DataError that names it, StorageError.
        """
        shard = self.index.shards[number]
        target = memory[: shard.size]
        if self.cache is None:
            self._read(shard, target)
        else:
            self.cache.load(shard, target, lambda: self._read(shard, target))
        Block(self.index.columns, shard, target)  # looks at the offsets

    def _read(self, shard: Shard, target: Bytes) -> None:
        self.source.read(shard, target)
        if not shard.fault(target):
            return
        self.source.read(shard, target)  # memory and networks flip bits, too
        if fault := shard.fault(target):
            where = self.source.where(shard)
            raise DataError(f"{where} is damaged or was changed: {fault}. {DAMAGED}")


class _Here:
    """What one process holds of a reader's data set, and what it will need.

    `_plan` are the batches from the one in use on, as far as there is room for the shards of all
    their windows; `_uses` counts those windows of each shard. Other shards are kept as long as
    their room is not needed, in `_idle`, the longest unused first.

    Attributes:
        where: where in `memory` each shard begins; negative for one that is not there. One more
            at the end, for numbers that no shard has.
    """

    def __init__(self, opener: _Opener) -> None:
        self.process = os.getpid()
        opener.source.begin()
        self.where: Numbers = np.full(len(opener.index.shards) + 1, -1, np.int64)
        self._opener = opener
        self._shelf = _Shelf(opener, 0)
        self._every: dict[str, Values] = {}
        self._regions: dict[str, Numbers] = {}
        self._plan: deque[_Batch] = deque()
        self._coming: Iterator[_Batch] = iter(())
        self._next: _Batch | None = None
        self._uses: dict[int, int] = {}
        self._idle: dict[int, None] = {}

    @property
    def memory(self) -> Bytes:
        return self._shelf.memory

    def every(self, column: Column) -> Values:
        """Return what _every makes of `memory`: once, not for each batch."""
        if column.name not in self._every:
            self._every[column.name] = _every(self.memory, column)
        return self._every[column.name]

    def regions(self, column: Column, offsets: Numbers) -> Numbers:
        """Return the number of the value in `memory` at which each shard's region of a column
        begins; of shards that are not there, any. `offsets` are the regions' bytes in the shards.
        """
        if column.name not in self._regions:
            # Regions begin at multiples of 64 bytes.
            self._regions[column.name] = (self.where[:-1] + offsets) // column.values.itemsize
        return self._regions[column.name]

    def prepare(self, reader: Reader, shards: Numbers, place: Place | None) -> None:
        """Have these shards in memory, and those of batches to come on their way.

        Raises IndexError for shards that are none, and what fetching them raised.
        """
        if not self._has_all():
            self._follow(reader, shards, place)
        if (self.where[shards] >= 0).all():
            return
        self._regions.clear()
        for number in self._numbers(reader, shards):
            self.where[number] = self._shelf.get(number)

    def _numbers(self, reader: Reader, shards: Numbers) -> list[int]:
        needed: list[int] = np.unique(shards).tolist()
        if needed and (needed[0] < 0 or needed[-1] >= len(self.where) - 1):
            raise IndexError(f"{reader.uri} has {len(reader)} samples, others were asked for.")
        return needed

    def _has_all(self) -> bool:
        """Tell whether all shards are here or on their way, where they will stay."""
        return len(self._uses) + len(self._idle) == len(self.where) - 1

    def _follow(self, reader: Reader, shards: Numbers, place: Place | None) -> None:
        """Go on with the plan, when this is the batch that it has next; else make a new one."""
        if self._plan:
            self._release(self._plan.popleft())
        if place is None or not self._plan or self._plan[0].place != place:
            self._restart(reader, shards, place)
        while len(self._plan) < AHEAD and not self._has_all():
            batch = self._next or next(self._coming, None)
            self._next = batch
            if batch is None or not self._fits(batch):
                return
            self._use(batch)
            self._next = None

    def _restart(self, reader: Reader, shards: Numbers, place: Place | None) -> None:
        while self._plan:
            self._release(self._plan.popleft())
        self._next = None
        if place is None:
            batch = _Batch(None, [_Window(self._numbers(reader, shards))])
            self._coming, room = iter(()), 0
        else:
            self._coming, room = reader.coming(place), reader.room(place)
            batch = next(self._coming)
        room = max(room, len({number for window in batch.windows for number in window.shards}))
        if self._shelf.room < room:
            self._idle.clear()
            self._every.clear()
            self._regions.clear()
            self.where[:] = -1
            self._shelf = _Shelf(self._opener, room)
        self._fits(batch)
        self._use(batch)

    def _fits(self, batch: "_Batch") -> bool:
        """Tell whether there is room for the shards of a batch, besides those in use; make it."""
        fresh = {n for w in batch.windows if not w.uses for n in w.shards if n not in self._uses}
        new = sum(number not in self._idle for number in fresh)
        held = len(self._uses) + len(self._idle)
        if held + new > self._shelf.room:
            for number in [number for number in self._idle if number not in fresh]:
                del self._idle[number]
                self.where[number] = -1
                self._shelf.drop(number)
                held -= 1
                if held + new <= self._shelf.room:
                    break
        return held + new <= self._shelf.room

    def _use(self, batch: "_Batch") -> None:
        self._plan.append(batch)
        for window in batch.windows:
            window.uses += 1
            for number in window.shards if window.uses == 1 else ():
                if number in self._idle:
                    del self._idle[number]
                elif number not in self._uses:
                    self._shelf.ask(number)
                self._uses[number] = self._uses.get(number, 0) + 1

    def _release(self, batch: "_Batch") -> None:
        for window in batch.windows:
            window.uses -= 1
            for number in () if window.uses else window.shards:
                self._uses[number] -= 1
                if not self._uses[number]:
                    del self._uses[number]
                    self._idle[number] = None


class _Shelf:
    """Shards in one piece of memory, with room for so many; threads bring them in as asked for."""

    def __init__(self, opener: _Opener, room: int) -> None:
        self.room = room
        # Not zeros: the system gives a page when it is first written.
        self.memory: Bytes = np.empty(room * opener.largest, np.uint8)
        self._opener = opener
        self._slots: dict[int, int] = {}
        self._free = list(range(room))
        self._waiting: dict[int, Future[None]] = {}
        self._leaving: dict[Future[None], int] = {}
        self._failed: set[int] = set()
        self._tasks: Tasks = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        weakref.finalize(self, _stop, self._tasks, self._threads, os.getpid())

    def ask(self, number: int) -> None:
        """Have a shard fetched."""
        if not self._free:
            self._free.append(self._left())
        self._slots[number] = slot = self._free.pop()
        self._ask(number, slot)

    def _ask(self, number: int, slot: int) -> None:
        start = slot * self._opener.largest
        self._waiting[number] = waiting = Future[None]()
        memory = self.memory[start : start + self._opener.largest]
        self._tasks.put((number, memory, waiting))
        if len(self._threads) < FETCHES:
            # Daemons: a thread that waits for a silent server keeps no process from ending.
            arguments = (self._tasks, self._opener)
            thread = threading.Thread(target=_serve, args=arguments, daemon=True)
            self._threads.append(thread)
            thread.start()

    def get(self, number: int) -> int:
        """Wait for a shard, and return where in memory it begins.

        Raises what fetching it raised; asked again, it is fetched anew.
        """
        if number in self._failed:
            self._failed.remove(number)
            self._ask(number, self._slots[number])
        waiting = self._waiting.get(number)
        if waiting is not None:
            try:
                waiting.result()
            except Exception:
                # Threads that write there have ended, or the error would not be here.
                self._failed.add(number)
                raise
            del self._waiting[number]
        return self._slots[number] * self._opener.largest

    def drop(self, number: int) -> None:
        """Forget a shard. One that waits to be fetched never is; its room is free at once."""
        slot = self._slots.pop(number)
        self._failed.discard(number)
        waiting = self._waiting.pop(number, None)
        if waiting is None or waiting.cancel() or waiting.done():
            self._free.append(slot)
        else:
            self._leaving[waiting] = slot

    def _left(self) -> int:
        """Wait until a fetch that nobody wants any more has ended, and return its slot."""
        ended = next(iter(wait(self._leaving, return_when=FIRST_COMPLETED).done))
        return self._leaving.pop(ended)


Tasks = queue.SimpleQueue["tuple[int, Bytes, Future[None]] | None"]


def _serve(tasks: Tasks, opener: _Opener) -> None:
    while (task := tasks.get()) is not None:
        number, memory, waiting = task
        if waiting.set_running_or_notify_cancel():
            try:
                opener.open(number, memory)
            except BaseException as error:
                waiting.set_exception(error)
            else:
                waiting.set_result(None)
        del task, memory, waiting  # they would keep the memory while there is nothing to do


def _stop(tasks: Tasks, threads: list[threading.Thread], process: int) -> None:
    """End the threads, at the latest before the interpreter goes: compiled code runs in them."""
    if process != os.getpid():
        return
    with contextlib.suppress(queue.Empty):
        while True:
            if (task := tasks.get_nowait()) is not None:
                task[2].cancel()
    for _ in threads:
        tasks.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join(timeout=5)


# -------------------------------------------------------------------------------- where shards lie


class _Files:
    """Shards in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self) -> None:
        """Do what is needed once in a process."""

    def where(self, shard: Shard) -> str:
        return str(self.folder / shard.file)

    def read(self, shard: Shard, target: Bytes) -> None:
        """Fill `target` with a shard. Raises DataError when there is not as much of it."""
        path = self.folder / shard.file
        try:
            size = read_file(path, target)
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing, a shard of the data set. {DAMAGED}") from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}.") from error
        if size != shard.size:
            raise DataError(
                f"{path} is cut short or was changed: it has {size} bytes, the index says "
                f"{shard.size}. {DAMAGED}"
            )


class _Objects:
    """Shards below a prefix of S3."""

    def __init__(self, bucket: places.Bucket) -> None:
        self.bucket = bucket

    def begin(self) -> None:
        """Make the client of this process, before several threads do at once."""
        self.bucket.objects.client()

    def where(self, shard: Shard) -> str:
        return f"{self.bucket.uri}/{shard.file}"

    def read(self, shard: Shard, target: Bytes) -> None:
        """Fill `target` with a shard. Raises DataError when it is gone or has another size."""
        objects = self.bucket.objects
        try:
            objects.get_into(shard.file, target)
        except Gone as error:
            raise DataError(
                f"{self.where(shard)} is missing, a shard of the data set. {DAMAGED}"
            ) from error
        except StorageError as error:
            facts = None if isinstance(error, Changed) else objects.head(shard.file)
            if facts is None or facts.size == shard.size:
                raise
            raise DataError(
                f"{self.where(shard)} is cut short or was changed: it has {facts.size} bytes, the "
                f"index says {shard.size}. {DAMAGED}"
            ) from error


def _source(place: places.Place) -> _Files | _Objects:
    return _Files(place.path) if isinstance(place, places.Folder) else _Objects(place)  # type: ignore[arg-type]
