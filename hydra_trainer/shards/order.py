"""The order of a packed data set: mixed within a bounded buffer, and equal wherever the data are.

An epoch's order is a permutation, a function of the key that (seed, epoch) give, the shards, and a
Layout. It does not depend on processes, workers, or whether the data lie on a disk or in S3. It is
computed where it is asked for and held nowhere: a set of 10^8 samples costs no more memory than
one of 10^3.

A set that fits the buffer is permuted as a whole. A larger one has the form

    shards, permuted:   | 7 | 2 | 9 | 0 | 5 | 3 | 8 | 1 | 6 | 4 |   their samples, one after another
    lanes:              |   lane 0    |   lane 1    |  lane 2 ...   equal shares of that sequence
    windows in a lane:  |       |     |     |       |               permuted, each by itself

and a batch takes some samples from each of several lanes. With C = rank_lanes and G = batch_lanes,
slot s of batch b of B samples belongs to lane (b mod G) * C + floor(s * C / B). So R processes read
lanes that no other reads when R divides C, and W loader workers of each when W divides G. With any
other R, W or B each sample still comes exactly once, but shards are read by more than one process.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

LARGEST_WINDOW = 2**31
"""Samples that are permuted together: Permutations counts with 32 bits."""

_ROUNDS = 6
_GOLDEN = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class Layout:
    """What an order is made for. A run that is resumed goes on with that of its beginning.

    `batch_size` is the samples of one step over all processes; `buffer` the bytes within which
    samples are mixed, over all processes together.
    """

    batch_size: int
    buffer: int
    rank_lanes: int = 8
    batch_lanes: int = 4


class Order:
    """The order of one epoch: `order(positions)` gives the samples at these positions, int64.

    Args:
        counts: the samples of each shard; sample n of the set is in shard
            np.searchsorted(np.cumsum(counts), n, side="right").
        sizes: the bytes that each shard takes in memory.
        layout: how it is divided.
        key: 64 bits that decide all that is random; None for no shuffling: shards and samples
            stay as they are, and only the lanes run side by side.
    """

    def __init__(
        self, counts: Sequence[int], sizes: Sequence[int], layout: Layout, key: int | None
    ) -> None:
        self.size = sum(counts)
        self.batch_size = layout.batch_size
        largest = max(sizes, default=1) or 1
        whole = sum(sizes) <= layout.buffer and self.size <= LARGEST_WINDOW
        self.rank_lanes, self.batch_lanes = (1, 1) if whole else _lanes(layout, largest)
        lanes = self.rank_lanes * self.batch_lanes
        self.shards_in_window = len(sizes) if whole else max(1, layout.buffer // lanes // largest)
        shards = np.arange(len(counts))
        if key is not None:
            shards = np.argsort(words(key, shards), kind="stable")
        each = np.asarray(counts, np.int64)
        self._order = shards
        # Place 0 to size - 1 in the sequence of all shards, one after another.
        self._ends = np.cumsum(each[shards])[:-1]
        self._shift = _starts(each)[shards] - _starts(each[shards])
        slots = -(-np.arange(self.rank_lanes + 1) * self.batch_size // self.rank_lanes)
        self._slot, self._slots = slots[:-1], np.diff(slots)
        self._lane = self._lane_starts()
        windows = self._window_starts()
        self._window = windows
        # For one batch at a time, Python's own numbers are quicker.
        self._window_list = [*windows.tolist(), self.size]
        self._slot_list, self._lane_list = slots.tolist(), self._lane.tolist()
        self._permuted: Permutations | None = None
        if key is not None:
            keys = words(key ^ _GOLDEN, np.arange(len(windows)))
            self._permuted = Permutations(np.diff(windows, append=self.size), keys)

    @property
    def lanes(self) -> int:
        return self.rank_lanes * self.batch_lanes

    def __call__(self, positions: npt.ArrayLike) -> Numbers:
        """Return the samples at these positions, each in [0, size): int64, of the same length."""
        batch, slot = np.divmod(np.asarray(positions, np.int64), self.batch_size)
        part = slot * self.rank_lanes // self.batch_size
        place = self._lane[batch % self.batch_lanes * self.rank_lanes + part]
        place += batch // self.batch_lanes * self._slots[part] + slot - self._slot[part]
        if self._permuted is not None:
            window = np.searchsorted(self._window, place, side="right") - 1
            first = self._window[window]
            place = first + self._permuted(window, place - first)
        return place + self._shift[np.searchsorted(self._ends, place, side="right")]

    def windows(self, first: int, last: int) -> list[int]:
        """Return the windows that the samples at positions from `first` to before `last` lie in."""
        found: set[int] = set()
        while first < last:
            batch, slot = divmod(first, self.batch_size)
            end = min(last, (batch + 1) * self.batch_size)
            turn, lanes = divmod(batch, self.batch_lanes)
            stop = slot + end - first
            for part in range(
                slot * self.rank_lanes // self.batch_size,
                (stop - 1) * self.rank_lanes // self.batch_size + 1,
            ):
                begin, behind = self._slot_list[part : part + 2]
                at = self._lane_list[lanes * self.rank_lanes + part]
                at += turn * (behind - begin) - begin
                low = bisect_right(self._window_list, at + max(slot, begin))
                high = bisect_right(self._window_list, at + min(stop, behind) - 1)
                found.update(range(low - 1, high))
            first = end
        return sorted(found)

    def lanes_of(self, first: int, last: int) -> set[int]:
        """Return the lanes that the positions from `first` to before `last` belong to."""
        batch, slot = np.divmod(np.arange(first, last), self.batch_size)
        part = slot * self.rank_lanes // self.batch_size
        return set((batch % self.batch_lanes * self.rank_lanes + part).tolist())

    def shards(self, window: int) -> list[int]:
        """Return the shards that the samples of a window lie in."""
        begin, end = self._window_list[window : window + 2]
        first, last = np.searchsorted(self._ends, [begin, end - 1], side="right")
        return self._order[first : last + 1].tolist()

    def _lane_starts(self) -> Numbers:
        """Return where each lane begins in the sequence: as many samples as it has positions."""
        batches, tail = divmod(self.size, self.batch_size)
        lengths = []
        for turn in range(self.batch_lanes):
            whole = (batches - turn + self.batch_lanes - 1) // self.batch_lanes
            rest = tail if batches % self.batch_lanes == turn else 0
            lengths.append(whole * self._slots + np.clip(rest - self._slot, 0, self._slots))
        return _starts(np.concatenate(lengths))

    def _window_starts(self) -> Numbers:
        """Return where windows begin: with each lane, and with each so many-th shard in it."""
        cuts = np.unique(np.concatenate([self._lane, self._ends, [0]]))
        cuts = cuts[cuts < self.size]
        lane = np.searchsorted(self._lane, cuts, side="right") - 1
        first = np.flatnonzero(np.diff(lane, prepend=-1))
        within = (
            np.arange(len(cuts)) - first[np.searchsorted(first, np.arange(len(cuts)), "right") - 1]
        )
        return np.asarray(cuts[within % self.shards_in_window == 0], np.int64)


def _lanes(layout: Layout, largest: int) -> tuple[int, int]:
    """Return (rank lanes, batch lanes): as asked for, halved until one shard of each fits.

    Rather more of ranks: a batch mixes samples of all those, and of one of the others.
    """
    ranks, batches = min(layout.rank_lanes, layout.batch_size), layout.batch_lanes
    while ranks * batches > 1 and ranks * batches * largest > layout.buffer:
        if ranks > 2 * batches or batches == 1:
            ranks = (ranks + 1) // 2
        else:
            batches = (batches + 1) // 2
    return ranks, batches


def _starts(lengths: npt.NDArray[Any]) -> Numbers:
    starts = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts


def words(key: int, numbers: npt.NDArray[Any]) -> Words:
    """Return a random 64-bit word for each number: of the splitmix64 stream beginning at `key`."""
    state: Words = np.asarray(numbers, np.uint64) * np.uint64(_GOLDEN) + np.uint64(key & 2**64 - 1)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class Permutations:
    """Random permutations of sizes[i] numbers each, chosen by keys[i], without tables of them.

    Number n of permutation i is multiplied, shifted and combined with itself, on as many bits as
    sizes[i] needs: each of these is a permutation of those bits. While the result is too large it
    goes through again (cycle walking; Black and Rogaway, CT-RSA 2002). Sizes are at most
    LARGEST_WINDOW.
    """

    def __init__(self, sizes: Numbers, keys: Words) -> None:
        self._sizes = sizes.astype(np.uint32)
        # The bits of size - 1, the largest number: exact, as a float of 64 bits holds it.
        bits = np.maximum(np.frexp(np.maximum(sizes, 1) - 1.0)[1], 1).astype(np.uint64)
        self._masks = ((np.uint64(1) << bits) - np.uint64(1)).astype(np.uint32)
        self._shifts = ((bits + np.uint64(1)) // np.uint64(2)).astype(np.uint32)
        drawn = [words(number, keys) for number in range(_ROUNDS)]
        self._factors = [word.astype(np.uint32) | np.uint32(1) for word in drawn]
        self._terms = [(word >> np.uint64(32)).astype(np.uint32) for word in drawn]

    def __call__(self, which: Numbers, numbers: Numbers) -> Numbers:
        """Return where permutation which[i] puts numbers[i]."""
        found = self._once(which, numbers.astype(np.uint32))
        left = np.flatnonzero(found >= self._sizes[which])
        while len(left):
            again = which[left]
            found[left] = moved = self._once(again, found[left])
            left = left[moved >= self._sizes[again]]
        return found.astype(np.int64)

    def _once(self, which: Numbers, numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
        masks, shifts = self._masks[which], self._shifts[which]
        for factors, terms in zip(self._factors, self._terms, strict=True):
            numbers *= factors[which]
            numbers += terms[which]
            numbers &= masks
            numbers ^= numbers >> shifts
        return numbers
