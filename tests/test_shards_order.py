"""The order of packed data: a permutation, the same everywhere, and how well it mixes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydra_trainer.shards.order import Layout, Order, Permutations, words

quick = settings(deadline=None, max_examples=80)


def all_of(order: Order) -> np.ndarray:
    return order(np.arange(order.size))


# --- permutations without tables ---


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@quick
def test_each_number_goes_to_one_place(size: int, key: int) -> None:
    permutation = Permutations(np.array([size]), np.array([key], np.uint64))
    moved = permutation(np.zeros(size, np.int64), np.arange(size))
    assert np.array_equal(np.sort(moved), np.arange(size))


def test_many_permutations_at_once_are_those_one_by_one() -> None:
    sizes, keys = np.array([1, 2, 7, 64, 65, 1000]), words(3, np.arange(6))
    which = np.repeat(np.arange(6), sizes)
    numbers = np.concatenate([np.arange(size) for size in sizes])
    moved = Permutations(sizes, keys)(which, numbers)
    for i in range(6):
        alone = Permutations(sizes[i : i + 1], keys[i : i + 1])
        assert np.array_equal(
            moved[which == i], alone(np.zeros(sizes[i], int), np.arange(sizes[i]))
        )


@pytest.mark.parametrize("size", [24, 100, 513])
def test_every_number_goes_to_every_place_as_often(size: int) -> None:
    times = 4000
    which, numbers = np.repeat(np.arange(times), size), np.tile(np.arange(size), times)
    moved = Permutations(np.full(times, size), words(5, np.arange(times)))(which, numbers)
    counts = np.bincount(numbers * size + moved, minlength=size * size)
    expected, freedom = times / size, (size - 1) ** 2
    excess = ((counts - expected) ** 2 / expected).sum() - freedom
    # Chance alone exceeds 4 standard deviations once in 30,000 tries.
    assert abs(excess) < 4 * np.sqrt(2 * freedom)
    # Neighbours do not stay neighbours: all distances between them are as frequent.
    rows = moved.reshape(times, size)
    gaps = np.bincount(((rows[:, 1:] - rows[:, :-1]) % size).ravel(), minlength=size)[1:]
    expected = gaps.sum() / (size - 1)
    assert ((gaps - expected) ** 2 / expected).sum() < size - 2 + 5 * np.sqrt(2 * (size - 2))


def test_the_largest_window_is_within_reach() -> None:
    permutation = Permutations(np.array([2**31]), np.array([9], np.uint64))
    numbers = np.array([0, 1, 2**31 - 1])
    moved = permutation(np.zeros(3, np.int64), numbers)
    assert len(set(moved.tolist())) == 3
    assert 0 <= moved.min() <= moved.max() < 2**31


# --- the order ---


@given(
    counts=st.lists(st.integers(0, 60), min_size=1, max_size=30).filter(lambda c: sum(c) > 0),
    batch_size=st.integers(1, 40),
    buffer=st.integers(1, 2000),
    lanes=st.tuples(st.integers(1, 5), st.integers(1, 4)),
    key=st.one_of(st.none(), st.integers(0, 2**64 - 1)),
)
@quick
def test_an_order_has_each_sample_once(
    counts: list[int], batch_size: int, buffer: int, lanes: tuple[int, int], key: int | None
) -> None:
    order = Order(counts, counts, Layout(batch_size, buffer, *lanes), key)
    assert np.array_equal(np.sort(all_of(order)), np.arange(sum(counts)))


@given(
    counts=st.lists(st.integers(1, 60), min_size=2, max_size=30),
    batch_size=st.integers(1, 40),
    buffer=st.integers(1, 600),
    data=st.data(),
)
@quick
def test_the_windows_of_positions_have_the_shards_of_their_samples(
    counts: list[int], batch_size: int, buffer: int, data: st.DataObject
) -> None:
    order = Order(counts, counts, Layout(batch_size, buffer, 3, 2), 4)
    first = data.draw(st.integers(0, sum(counts) - 1))
    last = data.draw(st.integers(first + 1, sum(counts)))
    samples = order(np.arange(first, last))
    shards = set((np.searchsorted(np.cumsum(counts), samples, side="right")).tolist())
    assert shards <= {n for window in order.windows(first, last) for n in order.shards(window)}


def test_it_is_a_function_of_its_key_alone_at_any_place() -> None:
    counts, layout = [40] * 20, Layout(16, 200, 2, 2)
    whole = all_of(Order(counts, counts, layout, 7))
    assert np.array_equal(whole, all_of(Order(counts, counts, layout, 7)))
    some = np.array([799, 3, 500, 0])
    assert np.array_equal(Order(counts, counts, layout, 7)(some), whole[some])
    assert np.mean(whole == all_of(Order(counts, counts, layout, 8))) < 0.02


def test_it_stays_what_it_was() -> None:
    """A run that goes on after an update of this package goes on in the same order."""
    order = Order([30, 20, 50, 40], [30, 20, 50, 40], Layout(8, 100, 2, 1), 12345)
    assert order.lanes == 2
    assert all_of(order)[:16].tolist() == STAYS


STAYS = [111, 109, 138, 130, 70, 89, 67, 79, 101, 106, 124, 119, 64, 68, 98, 88]


def test_what_fits_the_buffer_is_one_permutation() -> None:
    counts = [100] * 10
    order = Order(counts, counts, Layout(10, 1000), 3)
    assert order.lanes == 1
    assert order.windows(0, 10) == [0]
    assert sorted(order.shards(0)) == list(range(10))


@pytest.mark.parametrize(
    ("buffer", "lanes"),
    [(999, (8, 4)), (320, (8, 4)), (160, (8, 2)), (80, (4, 2)), (40, (4, 1)), (9, (1, 1))],
)
def test_lanes_are_halved_until_a_shard_of_each_fits(buffer: int, lanes: tuple[int, int]) -> None:
    counts = [10] * 100
    order = Order(counts, counts, Layout(64, buffer), 3)
    assert (order.rank_lanes, order.batch_lanes) == lanes


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_ranks_and_workers_read_shards_of_their_own(ranks: int, workers: int) -> None:
    counts = [50] * 64
    order = Order(counts, counts, Layout(16, 800, 4, 4), 3)
    shards = np.repeat(np.arange(64), 50)
    readers: list[set[int]] = []
    for rank in range(ranks):
        for worker in range(workers):
            positions = [
                np.arange(16 * rank // ranks, 16 * (rank + 1) // ranks) + 16 * batch
                for batch in range(worker, 200, workers)
            ]
            readers.append(set(shards[order(np.concatenate(positions))].tolist()))
    # No more than a shard on each border of lanes is read twice.
    assert sum(map(len, readers)) <= 64 + 15
    assert set.union(*readers) == set(range(64))


def test_it_costs_no_more_for_a_hundred_million_samples() -> None:
    counts = [50_000] * 2_000
    order = Order(counts, counts, Layout(256, 10**7), 3)
    samples = order(np.arange(10**8 - 512, 10**8))
    assert len(set(samples.tolist())) == 512
    assert 0 <= samples.min() <= samples.max() < 10**8
    held = [v for v in vars(order).values() if isinstance(v, np.ndarray | list)]
    assert max(map(len, held)) < 3_000


@pytest.mark.parametrize(
    ("buffer", "is_sorted", "least"), [(160, True, 0.5), (160, False, 0.98), (1600, True, 0.98)]
)
def test_how_well_it_mixes(buffer: int, is_sorted: bool, least: float) -> None:
    """Classes in a batch, as a share of those with a permutation of everything.

    With a tenth of the data as buffer, and the data packed class by class or at random (as
    hydra-trainer data pack does).
    """
    counts, classes, batch = [10] * 160, 16, 64
    order = Order(counts, counts, Layout(batch, buffer), 11)
    samples = all_of(order)
    moved = np.abs(samples - np.arange(order.size)).mean() / (order.size / 3)
    assert 0.9 < moved < 1.15
    draw = np.random.default_rng(0)
    labels = np.arange(order.size) * classes // order.size
    if not is_sorted:
        draw.shuffle(labels)

    def mixed(samples: np.ndarray) -> float:
        return float(
            np.mean([len(set(row)) for row in labels[samples].reshape(-1, batch).tolist()])
        )

    assert mixed(samples) / mixed(draw.permutation(order.size)) > least
