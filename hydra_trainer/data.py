"""Which samples a step sees, on any number of processes, before and after any interruption.

A data module's plain DataLoaders pass through `resumable`, which gives them a `BatchSampler`.
The order of an epoch is a function of (seed, epoch) alone and the position in it is one number,
the samples that all processes together have consumed. So a run that was stopped goes on with the
very next sample, on more or fewer processes and with more or fewer loader workers.
"""

import queue
import random
import re
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from hydra_trainer.errors import ConfigError, DataError

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of splitmix64

BATCHES_AHEAD = 2
"""Batches that are ready before a step asks for them, beside those of the workers."""


def mix(*words: int) -> int:
    """Hash integers to 64 well-mixed bits, so that near seeds or epochs give unrelated streams.

    The finalizer of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), once for each word. All 32
    low bits are good, which matters because torch's CPU generator uses no others of its seed.
    """
    state = 0
    for word in words:
        state = (state ^ (word & MASK)) + GOLDEN & MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


class Place(NamedTuple):
    """Where one process's share of a batch stands in its pass: enough to tell which come next."""

    seed: int
    epoch: int
    shuffle: bool
    low: int
    """The position of the whole batch's first sample."""
    batch_size: int
    size: int
    """Samples of a whole pass."""
    rank: int
    world_size: int
    train: bool
    """Whether the pass after this one is the next epoch; else it is the same again."""

    def share(self) -> tuple[int, int]:
        """Return the first position of this process's share, and the one after its last."""
        return _share(self.low, min(self.low + self.batch_size, self.size), *self[6:8])

    def after(self, batches: int) -> "Place | None":
        """Return the place so many batches later; None when this pass ends before."""
        later = self._replace(low=self.low + batches * self.batch_size)
        first, last = later.share()
        return later if first < last else None

    def next_pass(self) -> "Place":
        """Return where the pass after this one begins."""
        return self._replace(epoch=self.epoch + self.train, low=0)


class Indices(list[int]):
    """The sample indices of one process's share of a batch, and the epoch that they are drawn in.

    A dataset whose augmentation is a function of (seed, epoch, index) reads `epoch` here; it
    travels with the indices to loader workers, which know of no epoch otherwise. `place` is there
    for a dataset that has an order of its own.
    """

    def __init__(
        self, values: Iterable[int] = (), epoch: int = 0, place: Place | None = None
    ) -> None:
        super().__init__(values)
        self.epoch = epoch
        self.place = place


def epoch_of(indices: list[int]) -> int:
    """Return the epoch that `indices` carry; 0 for a plain list (a loader used by itself)."""
    return getattr(indices, "epoch", 0)


Order = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.int64]]
"""Gives the samples at these positions of an epoch; over all positions, each sample once."""

MakeOrder = Callable[[int, int, bool], Order]
"""A dataset's `epoch_order(seed, epoch, shuffle)`: equal on all processes, however many."""

AT_ONCE = 4096  # positions that an Order is asked for together


class BatchSampler(Sampler[Indices]):
    """Batches of one process, from a position that any number of processes can take up again.

    `batch_size` counts the samples of one step over all `world_size` processes. An epoch's order
    is torch.randperm from (seed, epoch), or what `order` makes of them, cut into global batches;
    process `rank` takes its contiguous share of each, so all processes have the same number of
    batches.

    With `drop_last` the samples after the last whole batch are left out. Without, they form a last
    batch of their own, or join the one before when they are fewer than the processes: every
    process has at least one sample in each batch, and each sample is seen exactly once.

    With `train` the passes are successive epochs. Without, each pass is the same (epoch 0, from
    the first sample), has no position, and `batch_size` is raised to one sample per process.

    Raises ConfigError when a training batch cannot be divided among the processes or is larger
    than the training set, DataError when there are fewer samples than processes.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        train: bool = True,
        order: MakeOrder | None = None,
    ) -> None:
        assert 0 <= rank < world_size, f"rank {rank} of {world_size}"
        _check_size(size, world_size, train)
        if train:
            _check_batch_size(size, batch_size, world_size, drop_last)
        self.size = size
        self.batch_size = batch_size if train else max(batch_size, world_size)
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.train = train
        self.order = order
        self.epoch = 0
        self.consumed = 0
        self._begun: int | None = None  # the epoch of the last iterator that was used

    def set_position(self, epoch: int, consumed: int) -> None:
        """Record that `consumed` samples of `epoch`, over all processes, have been processed.

        Only the consumer knows this: workers fetch ahead. It does not disturb an iterator in use,
        and the next pass after an epoch already begun starts the epoch after; `load_state_dict`
        is the way to go back. When no batch is left in `epoch`, the position is the next one's
        first sample: resumed as (epoch, all consumed), Lightning's loop would end at once.

        Raises DataError for a position outside the training set.
        """
        if epoch < 0 or not 0 <= consumed <= self.size:
            raise DataError(
                f"Position (epoch {epoch}, {consumed} samples) is not in a training set of "
                f"{self.size} samples: resume with the data that the run began with, "
                "or start a new run."
            )
        at_end = self._batches_in(self.size - consumed) == 0
        self.epoch, self.consumed = (epoch + 1, 0) if at_end else (epoch, consumed)

    def state_dict(self) -> dict[str, int]:
        """Return the consumer's position; the same on every process."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "consumed": self.consumed,
            "size": self.size,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position: the next `iter` starts there.

        The order goes on with the seed that it was begun with. The batch size and the number of
        processes may have changed: the rest of the epoch is then cut anew from `consumed` on, and
        `batches_done` says where Lightning's batch counter has to stand.

        Raises DataError when the training set has another size than the saved one.
        """
        saved = state.get("size", self.size)
        if saved != self.size:
            raise DataError(
                f"The checkpoint stands in a training set of {saved} samples, this one has "
                f"{self.size}: the order of the epoch cannot go on. Give the same data, "
                "or start a new run."
            )
        self.seed = state["seed"]
        self.set_position(state["epoch"], state["consumed"])
        self._begun = None

    @property
    def batches_done(self) -> int:
        """Batches of the whole epoch that lie before the position.

        `consumed / batch_size` while the batch size stays the same; after a change, the number
        from which as many batches as remain lead to `len`.
        """
        return len(self) - self._batches_in(self.size - self.consumed)

    def __len__(self) -> int:
        """Batches of a whole epoch, whatever the position: Lightning resumes its own counter."""
        return self._batches_in(self.size)

    def __iter__(self) -> Iterator[Indices]:
        """Yield the batches from the position on; of the next epoch when that one was begun before.

        An epoch is begun when its first batch is asked for: a DataLoader with workers makes two
        iterators for its first pass and uses one.
        """
        epoch, begin = self._begin() if self.train else (0, 0)
        count = self._batches_in(self.size - begin)
        if self.order is not None:
            yield from self._ordered(
                self.order(self.seed, epoch, self.shuffle), epoch, begin, count
            )
            return
        drawn = self._order(epoch)
        for number in range(count):
            low, high = self._batch(begin, number, count)
            yield Indices(drawn(*_share(low, high, self.rank, self.world_size)), epoch)

    def _ordered(self, order: Order, epoch: int, begin: int, count: int) -> Iterator[Indices]:
        facts = (self.batch_size, self.size, self.rank, self.world_size, self.train)
        block = max(1, AT_ONCE * self.world_size // self.batch_size)
        for first in range(0, count, block):
            batches = [
                self._batch(begin, n, count) for n in range(first, min(first + block, count))
            ]
            shares = [_share(*batch, self.rank, self.world_size) for batch in batches]
            samples = order(np.concatenate([np.arange(*share) for share in shares]))
            ends = np.cumsum([last - first for first, last in shares])
            for (low, _), values in zip(batches, np.split(samples, ends[:-1]), strict=True):
                place = Place(self.seed, epoch, self.shuffle, low, *facts)
                yield Indices(values.tolist(), epoch, place)

    def _begin(self) -> tuple[int, int]:
        if self._begun == self.epoch:
            self.epoch, self.consumed = self.epoch + 1, 0
        self._begun = self.epoch
        return self.epoch, self.consumed

    def _batch(self, begin: int, number: int, count: int) -> tuple[int, int]:
        low = begin + number * self.batch_size
        whole = number < count - 1 or self.drop_last
        return low, low + self.batch_size if whole else self.size

    def _order(self, epoch: int) -> Callable[[int, int], Iterable[int]]:
        if not self.shuffle:
            return range
        generator = torch.Generator().manual_seed(mix(self.seed, epoch))
        order = torch.randperm(self.size, generator=generator)
        return lambda first, last: order[first:last].tolist()

    def _batches_in(self, samples: int) -> int:
        whole, tail = divmod(samples, self.batch_size)
        return whole if self.drop_last or tail < self.world_size else whole + 1


def _share(low: int, high: int, rank: int, world_size: int) -> tuple[int, int]:
    samples = high - low
    return low + samples * rank // world_size, low + samples * (rank + 1) // world_size


def _check_size(size: int, world_size: int, train: bool) -> None:
    name = "training" if train else "evaluation"
    if size == 0:
        raise DataError(f"The {name} set is empty: give data with at least {world_size} samples.")
    if size < world_size:
        raise DataError(
            f"The {name} set has {size} samples, too few for {world_size} processes: "
            f"give at least {world_size} samples, or type "
            f"resources.nodes=1 resources.processes_per_node={size} or less."
        )


def _check_batch_size(size: int, batch_size: int, world_size: int, drop_last: bool) -> None:
    given = f"data.batch_size={batch_size}"
    below = batch_size // world_size * world_size
    if below != batch_size:
        near = [n for n in (below, below + world_size) if n]
        raise ConfigError(
            f"{given} is the samples of one step over all processes and must be divisible by "
            f"their number, {world_size}: type "
            + " or ".join(f"data.batch_size={n}" for n in near)
            + "."
        )
    if drop_last and batch_size > size:
        most = size // world_size * world_size
        raise ConfigError(
            f"{given} is larger than the training set of {size} samples, so an epoch would have "
            f"no batch: type data.batch_size={most} or less."
        )


def resumable(
    loader: Any, *, seed: int, rank: int, world_size: int, train: bool
) -> DataLoader[Any]:
    """Rebuild a plain DataLoader over a map-style dataset so that it can be resumed exactly.

    The dataset, collate_fn, workers and drop_last stay; batch_size is read as the samples of one
    step over all processes; whether to shuffle is read off the sampler. Evaluation (`train`
    False) leaves no sample out and has the same order in every pass. `loader.batch_sampler` is a
    `BatchSampler`.

    A dataset may draw from the global generators of torch (CPU), numpy and random: it is then
    reseeded from (seed, epoch, index) and becomes `loader.dataset.dataset`. One that does not,
    or gets its randomness from `indices.epoch`, says so with a class attribute `pure = True`
    and is left as it is. With `ahead = True` as well, its batches are made in a thread beside the
    step. Generator objects of its own are out of reach and break exactness.

    A dataset whose samples are not all as quick to reach as any other may have an order of its
    own: a method `epoch_order(seed, epoch, shuffle)`, see MakeOrder. The indices that it gets
    then say in `indices.place` what comes next.

    Raises DataError for what cannot be resumed exactly: an IterableDataset, a sampler or batch
    sampler other than torch's own random or sequential one.
    """
    _refuse_unresumable(loader)
    sampler = BatchSampler(
        _length(loader.dataset),
        loader.batch_size,
        seed,
        rank,
        world_size,
        shuffle=isinstance(loader.sampler, RandomSampler),
        drop_last=train and loader.drop_last,
        train=train,
        order=getattr(loader.dataset, "epoch_order", None),
    )
    dataset, collate_fn = loader.dataset, loader.collate_fn
    if not _is_pure(dataset, collate_fn):
        dataset, collate_fn = _Reseeded(dataset, collate_fn, seed), _as_is
    made = _Ahead if getattr(loader.dataset, "ahead", False) else DataLoader
    return made(
        dataset,
        batch_sampler=sampler,
        collate_fn=_InSharedMemory(collate_fn),
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        # Without one of its own, each iterator draws from the global generator, and a run resumed
        # between two epochs is one draw behind.
        generator=torch.Generator().manual_seed(mix(seed, rank)),
        **_worker_options(loader),
    )


class _Ahead(DataLoader[Any]):
    """A DataLoader whose batches are made, or taken from its workers, while a step runs.

    Unpickling a batch of a worker and mapping its memory takes milliseconds, which a step would
    wait for. Datasets ask for it (`ahead`): for the smallest batches a thread costs more than it
    saves, and what draws from the global generators must not do so beside a step.
    """

    def __iter__(self) -> Any:
        return _ahead(super().__iter__())


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield what an iterator yields, which a thread asks for BATCHES_AHEAD of them at a time."""
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    room, closed = threading.Semaphore(BATCHES_AHEAD), threading.Event()
    end = object()

    def work() -> None:
        try:
            batch = None
            while batch is not end and room.acquire() and not closed.is_set():
                batch = next(batches, end)
                found.put((batch, None))
        except BaseException as error:  # raised where the batch is asked for
            found.put((end, error))

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            batch, error = found.get()
            if error is not None:
                raise error
            if batch is end:
                return
            room.release()
            yield batch
    finally:
        closed.set()
        room.release()
        thread.join()


def _worker_options(loader: DataLoader[Any]) -> dict[str, Any]:
    if loader.num_workers == 0:
        return {"num_workers": 0}
    return {
        "num_workers": loader.num_workers,
        "worker_init_fn": loader.worker_init_fn,
        "prefetch_factor": loader.prefetch_factor,
        "persistent_workers": loader.persistent_workers,
        "multiprocessing_context": loader.multiprocessing_context,
    }


def _refuse_unresumable(loader: Any) -> None:
    if not isinstance(loader, DataLoader):
        raise DataError(
            f"A dataloader is a {type(loader).__name__}; return one torch.utils.data.DataLoader "
            "from each of train_dataloader, val_dataloader and test_dataloader."
        )
    reason = _why_unresumable(loader)
    if reason:
        raise DataError(
            f"{reason}, so the run could not be resumed at the exact sample. Return "
            "DataLoader(dataset, batch_size=..., shuffle=...) over a dataset with __len__ and "
            "__getitem__; order and sharding over processes are then done here."
        )


def _why_unresumable(loader: DataLoader[Any]) -> str:
    sampler = loader.sampler
    if isinstance(loader.dataset, IterableDataset):
        return f"{type(loader.dataset).__name__} is an IterableDataset, which has no positions"
    if type(loader).__iter__ is not DataLoader.__iter__:
        return f"{type(loader).__name__} iterates in its own way"
    if loader.batch_size is None:
        return "The DataLoader has its own batch_sampler, or batch_size=None"
    if type(sampler) not in (RandomSampler, SequentialSampler):
        return f"The DataLoader has its own sampler ({type(sampler).__name__})"
    if isinstance(sampler, RandomSampler) and not _is_permutation(sampler):
        return "The RandomSampler has replacement or num_samples set"
    return ""


def _is_permutation(sampler: RandomSampler) -> bool:
    return not sampler.replacement and sampler.num_samples == len(sampler.data_source)


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        raise DataError(
            f"{type(dataset).__name__} has no length: add __len__, the number of samples."
        ) from None


def _is_pure(dataset: Any, collate_fn: Any) -> bool:
    if type(dataset) is TensorDataset:
        return collate_fn is default_collate
    return bool(getattr(dataset, "pure", False))


def _as_is(batch: Any) -> Any:
    return batch


class _InSharedMemory:
    """A collate_fn that, in a loader worker, moves the batch to shared memory before it returns.

    Left to the queue's feeder thread, as torch does, the move fails without a word when /dev/shm
    is full, and training waits forever for the batch. Here it raises.
    """

    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, samples: Any) -> Any:
        batch = self.collate_fn(samples)
        if get_worker_info() is not None:
            for tensor in _tensors(batch):
                tensor.share_memory_()
        return batch


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        if batch.layout == torch.strided:  # sparse ones have no storage of their own to share
            yield batch
    elif isinstance(batch, Mapping):
        yield from _tensors(list(batch.values()))
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from _tensors(part)
    elif is_dataclass(batch):
        yield from _tensors([getattr(batch, field.name) for field in fields(batch)])


class _Reseeded(Dataset[Any]):
    """A dataset whose use of the global generators depends on (seed, epoch, index) alone.

    Each item is made with generators seeded for it, so it is the same in any worker, process or
    batch. A dataset with __getitems__ makes its items together: those are seeded for the batch,
    as is collate_fn, by the first index.
    """

    def __init__(self, dataset: Dataset[Any], collate_fn: Callable[[Any], Any], seed: int) -> None:
        self.dataset = dataset
        self.collate_fn = collate_fn
        self.seed = seed

    def __len__(self) -> int:
        return _length(self.dataset)

    def __getitems__(self, indices: list[int]) -> Any:
        """Return the collated batch."""
        epoch = epoch_of(indices)
        with _global_generators_kept():
            samples = self._samples(indices, epoch)
            _seed_global_generators(mix(self.seed, epoch, indices[0], 1))
            return self.collate_fn(samples)

    def _samples(self, indices: list[int], epoch: int) -> Any:
        batched = getattr(self.dataset, "__getitems__", None)
        if batched:
            _seed_global_generators(mix(self.seed, epoch, indices[0]))
            return batched(indices)
        return [self._sample(index, epoch) for index in indices]

    def _sample(self, index: int, epoch: int) -> Any:
        _seed_global_generators(mix(self.seed, epoch, index))
        return self.dataset[index]


def _seed_global_generators(seed: int) -> None:
    # torch.manual_seed would also reseed the GPU's generator, which belongs to the model.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def _global_generators_kept() -> Iterator[None]:
    """Give the main process its generators back; a loader worker has no other use for its own."""
    if get_worker_info() is not None:
        yield
        return
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


class _Failure(NamedTuple):
    pattern: str
    """Found anywhere in the error's chain of messages."""
    explanation: str


_SEE_THE_ERROR = "Type data.num_workers=0 to load in the main process and see the error itself."
_SHARED_MEMORY = (
    "Loader workers pass batches through shared memory, and /dev/shm is full. Give it more room "
    "(launcher.shm_size=8Gi; docker run --shm-size=8g), lower data.batch_size or "
    "data.num_workers, or type data.num_workers=0 to do without."
)
# Most telling first: one death shows as several messages in a chain.
_FAILURES = [
    _Failure(r"killed by signal: Bus error", _SHARED_MEMORY),
    _Failure(r"unable to \w+ (shared memory|file </torch_)", _SHARED_MEMORY),
    _Failure(r"shm.*(No space left on device|Cannot allocate memory)", _SHARED_MEMORY),
    _Failure(r"(No space left on device|Cannot allocate memory).*shm", _SHARED_MEMORY),
    _Failure(
        r"DataLoader worker .*killed by signal: (Killed|Unknown signal: 9)",
        "A loader worker was killed (SIGKILL), most often because memory ran out: by the kernel, "
        "or at the container's limit. Lower data.num_workers or data.batch_size, or give more "
        f"memory (resources.memory). {_SEE_THE_ERROR}",
    ),
    _Failure(
        r"DataLoader worker .*killed by signal: (?P<signal>[^.\n]+)",
        "A loader worker was ended by a signal ({signal}), most often a crash in compiled code "
        f"that the dataset calls, or a kill from outside. {_SEE_THE_ERROR}",
    ),
    _Failure(
        r"DataLoader worker .*exited unexpectedly",
        "A loader worker ended without an error that could be passed on: it ran out of memory, "
        f"was killed, or the dataset called exit. {_SEE_THE_ERROR}",
    ),
    _Failure(
        r"DataLoader timed out after (?P<seconds>[\d.]+) seconds",
        "No batch came from the loader workers for {seconds} seconds: they hang, or the storage "
        f"is slow. {_SEE_THE_ERROR}",
    ),
    _Failure(
        r"Too many open files\. Communication with the workers|received 0 items of ancdata",
        "Loader workers pass each tensor as an open file, and the limit of open files is reached. "
        "Raise it (ulimit -n 65536), or lower data.num_workers.",
    ),
]


def explain_loader_failure(error: BaseException) -> DataError | None:
    """Say in plain words why loader workers died, or return None when `error` is another thing.

    What happened, the probable reason, what to type; raise it `from error`. Read off the messages
    of torch 2.11 to 2.13 (torch/utils/data/dataloader.py and the DataLoader.cpp, MapAllocator.cpp
    of its C++ part), anywhere in the chain of causes.
    """
    chain = list(_chain(error))
    text = "\n".join(str(link) for link in chain)
    if any(map(_semaphores_do_not_fit, chain)):
        return DataError(_SHARED_MEMORY)
    if any(map(_worker_hung_up, chain)):
        text += "\nDataLoader worker exited unexpectedly"
    for failure in _FAILURES:
        found = re.search(failure.pattern, text)
        if found:
            return DataError(failure.explanation.format(**found.groupdict()))
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _worker_hung_up(error: BaseException) -> bool:
    """Tell whether a worker ended after it had made a batch and before its tensors were fetched."""
    frames = traceback.extract_tb(error.__traceback__)
    return isinstance(error, OSError | EOFError) and any(
        frame.filename.endswith("multiprocessing/resource_sharer.py") for frame in frames
    )


def _semaphores_do_not_fit(error: BaseException) -> bool:
    """Tell a full /dev/shm from a full disk: the queues' semaphores live in the former."""
    frames = traceback.extract_tb(error.__traceback__)
    return (
        isinstance(error, OSError)
        and "No space left on device" in str(error)
        and any(frame.filename.endswith("multiprocessing/synchronize.py") for frame in frames)
    )
