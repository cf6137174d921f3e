"""The sampler's properties, the rebuilt loader, and what is said when loader workers die."""

import gc
import os
import pickle
import random
import resource
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from hydra_trainer.data import (
    BatchSampler,
    Indices,
    epoch_of,
    explain_loader_failure,
    mix,
    resumable,
)
from hydra_trainer.errors import ConfigError, DataError

WORLDS = [1, 2, 3, 4]
GLOBAL_BATCH = 12  # can be divided among any of WORLDS

quick = settings(deadline=None, max_examples=60)


def samplers(size: int, batch_size: int, world: int, **options: Any) -> list[BatchSampler]:
    return [BatchSampler(size, batch_size, 5, rank, world, **options) for rank in range(world)]


def joined(lists: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def global_batches(ranks: list[BatchSampler]) -> list[list[int]]:
    """One pass: each global batch, the ranks' shares put together; all have as many batches."""
    return [joined(shares) for shares in zip(*ranks, strict=True)]


# --- the order ---


def test_near_seeds_and_epochs_give_unrelated_words() -> None:
    words = [mix(seed, epoch) & 0xFFFFFFFF for seed in range(50) for epoch in range(50)]
    assert len(set(words)) == 2500
    assert mix(0, 1) != mix(1, 0)
    assert mix(-1) == mix(2**64 - 1)


@given(
    world=st.sampled_from(WORLDS),
    share=st.integers(1, 7),
    size=st.integers(1, 200),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
)
@quick
def test_an_epoch_has_each_sample_once(
    world: int, share: int, size: int, shuffle: bool, drop_last: bool
) -> None:
    batch_size = share * world
    if size < (batch_size if drop_last else world):
        return
    ranks = samplers(size, batch_size, world, shuffle=shuffle, drop_last=drop_last)
    batches = global_batches(ranks)
    seen = joined(batches)
    assert len(set(seen)) == len(seen)
    assert len(seen) == (size // batch_size * batch_size if drop_last else size)
    assert len(batches) == len(ranks[0])
    assert all(len(batch) == batch_size for batch in batches[:-1])
    if not shuffle:
        assert seen == list(range(len(seen)))


@given(world=st.sampled_from(WORLDS), batch_size=st.integers(1, 20), size=st.integers(4, 100))
@quick
def test_evaluation_gives_every_process_a_sample_in_each_batch(
    world: int, batch_size: int, size: int
) -> None:
    ranks = samplers(size, batch_size, world, shuffle=False, drop_last=False, train=False)
    shares = list(zip(*ranks, strict=True))
    assert all(share for batch in shares for share in batch)
    assert joined(global_batches(ranks)) == list(range(size))


def test_a_tail_smaller_than_the_processes_joins_the_batch_before() -> None:
    ranks = samplers(10, 4, 4, shuffle=False, drop_last=False, train=False)
    assert [len(batch) for batch in global_batches(ranks)] == [4, 6]


def test_the_order_differs_by_epoch_and_seed_and_not_by_process_count() -> None:
    sampler = BatchSampler(60, 12, 5)
    first, second = (joined(sampler) for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(60))
    assert first != second
    assert first != joined(BatchSampler(60, 12, 6))
    assert first == joined(global_batches(samplers(60, 12, 3)))
    expected = torch.randperm(60, generator=torch.Generator().manual_seed(mix(5, 0)))
    assert first == expected.tolist()


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    list(BatchSampler(60, 12, 5))
    assert torch.equal(torch.get_rng_state(), before)


# --- the position ---


@given(
    size=st.integers(GLOBAL_BATCH, 150),
    legs=st.lists(st.tuples(st.sampled_from(WORLDS), st.integers(0, 20)), min_size=1, max_size=5),
    drop_last=st.booleans(),
)
@quick
def test_resuming_on_other_numbers_of_processes_repeats_and_skips_nothing(
    size: int, legs: list[tuple[int, int]], drop_last: bool
) -> None:
    if size % GLOBAL_BATCH < 4 and not drop_last:
        return  # a tail that not all of WORLDS can share
    uninterrupted = BatchSampler(size, GLOBAL_BATCH, 5, drop_last=drop_last)
    expected = [batch for _ in range(110) for batch in uninterrupted]
    state = BatchSampler(size, GLOBAL_BATCH, 5, drop_last=drop_last).state_dict()
    seen: list[list[int]] = []
    for world, steps in legs:
        ranks = samplers(size, GLOBAL_BATCH, world, drop_last=drop_last)
        for rank in ranks:
            rank.load_state_dict(state)
        seen += run(ranks, steps)
        assert len({str(rank.state_dict()) for rank in ranks}) == 1
        state = ranks[0].state_dict()
    assert seen == expected[: len(seen)]
    assert len(seen) == sum(steps for _, steps in legs)


def run(ranks: list[BatchSampler], steps: int) -> list[list[int]]:
    """Consume `steps` global batches over epochs, telling the samplers what was processed."""
    seen: list[list[int]] = []
    while len(seen) < steps:
        consumed = ranks[0].consumed if ranks[0]._begun is None else 0
        for shares in zip(*ranks, strict=True):
            if len(seen) == steps:
                break
            seen.append(joined(shares))
            consumed += len(seen[-1])
            for rank in ranks:
                rank.set_position(shares[0].epoch, consumed)
    return seen


@given(
    size=st.integers(20, 150),
    before=st.integers(1, 20),
    after=st.integers(1, 20),
    steps=st.integers(0, 8),
)
@quick
def test_resuming_with_another_batch_size_goes_on_with_the_next_sample(
    size: int, before: int, after: int, steps: int
) -> None:
    first = BatchSampler(size, before, 5)
    consumed = min(steps, len(first)) * before
    order = joined(BatchSampler(size, 1, 5))
    resumed = BatchSampler(size, after, 5)
    resumed.load_state_dict({"seed": 5, "epoch": 0, "consumed": consumed, "size": size})
    done = resumed.batches_done
    rest = list(resumed)
    assert len(rest) == len(resumed) - done
    if size - consumed >= after:
        assert joined(rest) == order[consumed : consumed + len(rest) * after]
        assert size - consumed - len(rest) * after < after
    else:
        assert rest[0].epoch == 1


def test_with_the_same_batch_size_the_batches_done_are_those_consumed() -> None:
    sampler = BatchSampler(100, 12, 5)
    sampler.set_position(3, 60)
    assert sampler.batches_done == 5
    assert len(sampler) == 8


def test_each_pass_is_the_next_epoch() -> None:
    sampler = BatchSampler(24, 12, 5)
    assert [batch.epoch for _ in range(3) for batch in sampler] == [0, 0, 1, 1, 2, 2]


def test_fetching_ahead_does_not_move_the_position() -> None:
    sampler = BatchSampler(48, 12, 5)
    list(sampler)
    assert sampler.state_dict() == {"seed": 5, "epoch": 0, "consumed": 0, "size": 48}


def test_a_second_iterator_is_the_next_epoch_though_the_position_is_in_this_one() -> None:
    sampler = BatchSampler(48, 12, 5)
    iterator = iter(sampler)
    next(iterator)
    sampler.set_position(0, 12)
    assert [batch.epoch for batch in iterator] == [0, 0, 0]
    assert [batch.epoch for batch in sampler] == [1, 1, 1, 1]
    assert (sampler.epoch, sampler.consumed) == (1, 0)


def test_loading_a_state_goes_back() -> None:
    sampler = BatchSampler(48, 12, 5)
    batches = list(sampler)
    sampler.load_state_dict({"seed": 5, "epoch": 0, "consumed": 24, "size": 48})
    assert list(sampler) == batches[2:]
    assert next(iter(sampler)).epoch == 1


def test_an_iterator_that_is_never_used_begins_no_epoch() -> None:
    sampler = BatchSampler(48, 12, 5)
    iter(sampler)
    assert [batch.epoch for batch in sampler] == [0] * 4


def test_an_iterator_in_use_is_not_disturbed() -> None:
    sampler = BatchSampler(48, 12, 5)
    iterator = iter(sampler)
    next(iterator)
    sampler.set_position(4, 36)
    assert [batch.epoch for batch in iterator] == [0] * 3
    assert [batch.epoch for batch in sampler] == [4]


def test_an_epoch_that_is_used_up_is_the_start_of_the_next() -> None:
    sampler = BatchSampler(50, 12, 5)
    sampler.set_position(2, 48)
    assert (sampler.epoch, sampler.consumed) == (3, 0)
    assert sampler.batches_done == 0
    assert [batch.epoch for batch in sampler] == [3] * 4


def test_a_state_goes_on_with_the_seed_it_was_begun_with() -> None:
    begun, resumed = BatchSampler(48, 12, 5), BatchSampler(48, 12, 99)
    resumed.load_state_dict(begun.state_dict())
    assert list(resumed) == list(begun)


def test_a_state_of_other_data_is_refused() -> None:
    state = BatchSampler(48, 12, 5).state_dict()
    with pytest.raises(DataError, match="48 samples, this one has 50"):
        BatchSampler(50, 12, 5).load_state_dict(state)
    with pytest.raises(DataError, match="epoch 0, 60 samples"):
        BatchSampler(50, 12, 5).set_position(0, 60)


def test_evaluation_is_the_same_in_every_pass() -> None:
    sampler = BatchSampler(50, 12, 5, train=False)
    assert list(sampler) == list(sampler)
    assert {batch.epoch for batch in sampler} == {0}


def test_indices_keep_their_epoch_in_a_pickle() -> None:
    copy = pickle.loads(pickle.dumps(Indices([3, 1, 2], epoch=7)))
    assert copy == [3, 1, 2]
    assert isinstance(copy, Indices)
    assert epoch_of(copy) == 7
    assert epoch_of([1, 2]) == 0


# --- sizes that cannot work ---


@pytest.mark.parametrize(
    ("batch_size", "world", "near"),
    [(100, 8, ["=96", "=104"]), (3, 4, ["=4"])],
)
def test_a_batch_that_cannot_be_divided_names_the_nearest(
    batch_size: int, world: int, near: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        BatchSampler(1000, batch_size, 0, 0, world)
    message = str(caught.value)
    assert f"data.batch_size={batch_size}" in message
    assert str(world) in message
    assert [f"={word.rstrip('.')}" for word in message.split("data.batch_size=")[2:]] != []
    for value in near:
        assert f"data.batch_size{value}" in message
    assert "data.batch_size=0" not in message


def test_a_batch_larger_than_the_training_set_names_what_fits() -> None:
    with pytest.raises(ConfigError, match=r"training set of 101.*data\.batch_size=100 or less"):
        BatchSampler(101, 256, 0, 0, 4)
    assert len(BatchSampler(101, 256, 0, 0, 4, drop_last=False)) == 1


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(DataError, match="evaluation set has 3 samples, too few for 4"):
        BatchSampler(3, 4, 0, 0, 4, shuffle=False, drop_last=False, train=False)
    with pytest.raises(DataError, match="training set is empty"):
        BatchSampler(0, 4)


# --- the rebuilt loader ---


class Drawing(Dataset[Any]):
    """A user's augmentation: each item draws from all three global generators."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        drawn = [*torch.rand(3).tolist(), random.random(), np.random.rand(), np.random.randn()]
        return {"index": index, "drawn": torch.tensor(drawn, dtype=torch.float64)}


class DrawingTogether(Drawing):
    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        noise = np.random.rand(len(indices))
        return [{"index": i, "drawn": float(n)} for i, n in zip(indices, noise, strict=True)]


def collate_and_draw(samples: list[Any]) -> Any:
    return {**default_collate(samples), "mixed": torch.rand(1) + random.random()}


def rebuilt(loader: Any, *, rank: int = 0, world_size: int = 1, train: bool = True) -> Any:
    return resumable(loader, seed=3, rank=rank, world_size=world_size, train=train)


def flat(loader: Any) -> list[Any]:
    return [{k: v.tolist() for k, v in batch.items()} for batch in loader]


@pytest.fixture
def global_states() -> Iterator[Callable[[], list[Any]]]:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]

    yield states


@pytest.mark.parametrize("dataset", [Drawing(), DrawingTogether()])
def test_a_dataset_that_draws_is_the_same_with_any_workers(
    dataset: Dataset[Any], global_states: Callable[[], list[Any]]
) -> None:
    options: dict[str, Any] = {"batch_size": 8, "shuffle": True, "collate_fn": collate_and_draw}
    alone = rebuilt(DataLoader(dataset, **options))
    before = global_states()
    epochs = [flat(alone), flat(alone)]
    assert global_states() == before
    helped = rebuilt(DataLoader(dataset, num_workers=2, persistent_workers=True, **options))
    assert [flat(helped), flat(helped)] == epochs
    assert global_states() == before
    assert epochs[0] != epochs[1]


def test_a_dataset_that_draws_resumes_exactly() -> None:
    torch.manual_seed(1)
    loader = DataLoader(Drawing(), batch_size=8, shuffle=True)
    expected = flat(rebuilt(loader))
    torch.manual_seed(2)
    resumed = rebuilt(loader)
    resumed.batch_sampler.set_position(0, 16)
    assert flat(resumed) == expected[2:]


def test_an_item_is_the_same_on_any_process() -> None:
    loader = DataLoader(Drawing(), batch_size=8, shuffle=True)

    def items(world_size: int) -> dict[int, list[float]]:
        ranks = [rebuilt(loader, rank=r, world_size=world_size) for r in range(world_size)]
        batches = [batch for rank in ranks for batch in flat(rank)]
        pairs = [zip(b["index"], b["drawn"], strict=True) for b in batches]
        return {index: drawn for batch in pairs for index, drawn in batch}

    assert items(1) == items(2)
    drawn = [tuple(values) for values in items(1).values()]
    assert len(set(drawn)) == len(drawn)


def test_the_generators_come_back_when_the_dataset_raises(
    global_states: Callable[[], list[Any]],
) -> None:
    class Broken(Drawing):
        def __getitem__(self, index: int) -> dict[str, Any]:
            super().__getitem__(index)
            raise KeyError("no such label")

    before = global_states()
    with pytest.raises(KeyError, match="no such label"):
        next(iter(rebuilt(DataLoader(Broken(), batch_size=8))))
    assert global_states() == before


class Pure(Dataset[Any]):
    pure = True

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        return index


def test_a_pure_dataset_is_left_as_it_is() -> None:
    dataset = Pure()
    loader = rebuilt(DataLoader(dataset, batch_size=8))
    assert loader.dataset is dataset
    assert torch.cat(list(loader)).tolist() == list(range(40))
    tensors = TensorDataset(torch.arange(40))
    assert rebuilt(DataLoader(tensors, batch_size=8)).dataset is tensors
    mixing = DataLoader(tensors, batch_size=8, collate_fn=collate_and_draw)
    assert rebuilt(mixing).dataset.dataset is tensors


def test_making_an_iterator_draws_nothing(global_states: Callable[[], list[Any]]) -> None:
    loader = rebuilt(DataLoader(Pure(), batch_size=8, shuffle=True, num_workers=1))
    before = global_states()
    list(loader)
    assert global_states() == before


def no_init(worker: int) -> None:
    pass


def test_the_options_of_the_loader_stay() -> None:
    loader = rebuilt(
        DataLoader(
            Pure(),
            batch_size=8,
            num_workers=1,
            timeout=30,
            worker_init_fn=no_init,
            prefetch_factor=3,
            persistent_workers=True,
            multiprocessing_context="spawn",
        )
    )
    assert loader.num_workers == 1
    assert loader.timeout == 30
    assert loader.worker_init_fn is no_init
    assert loader.prefetch_factor == 3
    assert loader.persistent_workers
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    assert not loader.pin_memory


def test_the_order_is_read_off_the_sampler() -> None:
    in_order = rebuilt(DataLoader(Pure(), batch_size=8))
    assert torch.cat(list(in_order)).tolist() == list(range(40))
    shuffled = rebuilt(DataLoader(Pure(), batch_size=8, shuffle=True))
    order = torch.cat(list(shuffled)).tolist()
    assert order != list(range(40))
    assert sorted(order) == list(range(40))


def test_drop_last_counts_in_training_and_never_in_evaluation() -> None:
    loader = DataLoader(Pure(), batch_size=16, drop_last=True)
    assert len(rebuilt(loader)) == 2
    assert len(rebuilt(loader, train=False)) == 3
    assert len(rebuilt(DataLoader(Pure(), batch_size=16))) == 3


def test_a_subset_works() -> None:
    loader = rebuilt(DataLoader(Subset(Drawing(), range(10, 20)), batch_size=5))
    assert [batch["index"].tolist() for batch in loader] == [[*range(10, 15)], [*range(15, 20)]]


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


class OwnLoader(DataLoader[Any]):
    def __iter__(self) -> Any:
        return super().__iter__()


class Endless(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        return index


def torch_batches(dataset: Any) -> Any:
    return torch.utils.data.BatchSampler(RandomSampler(dataset), 8, drop_last=False)


def unresumable() -> list[tuple[Any, str]]:
    data = Pure()
    return [
        (DataLoader(Stream(), batch_size=2), "Stream is an IterableDataset"),
        (DataLoader(data, sampler=WeightedRandomSampler([1.0] * 40, 40)), "WeightedRandomSampler"),
        (DataLoader(data, sampler=RandomSampler(data, replacement=True)), "replacement"),
        (DataLoader(data, sampler=RandomSampler(data, num_samples=7)), "num_samples"),
        (DataLoader(data, batch_sampler=BatchSampler(40, 8)), "own batch_sampler"),
        (DataLoader(data, batch_sampler=torch_batches(data)), "own batch_sampler"),
        (DataLoader(data, batch_size=None), "batch_size=None"),
        (OwnLoader(data, batch_size=2), "OwnLoader iterates in its own way"),
        ([1, 2], "a list"),
    ]


@pytest.mark.parametrize(("loader", "why"), unresumable())
def test_what_cannot_be_resumed_is_refused(loader: Any, why: str) -> None:
    with pytest.raises(DataError, match=why) as caught:
        rebuilt(loader)
    assert "torch.utils.data.DataLoader" in str(caught.value) or "shuffle=" in str(caught.value)


def test_a_dataset_without_a_length_is_refused() -> None:
    loader = DataLoader(Pure(), batch_size=2)
    object.__setattr__(loader, "dataset", Endless())
    with pytest.raises(DataError, match="Endless has no length: add __len__"):
        rebuilt(loader)


# --- with Lightning's own counting ---


class Recorder(LightningModule):
    """Records the samples of each step, and sets Lightning's batch counter when it resumes."""

    def __init__(self, loader: Any, save: str | None = None) -> None:
        super().__init__()
        self.save = save
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.loader = loader
        self.seen: list[list[int]] = []

    def train_dataloader(self) -> Any:
        return self.loader

    def on_train_start(self) -> None:
        current: Any = self.trainer.fit_loop.epoch_loop.batch_progress.current
        moved = self.loader.batch_sampler.batches_done - current.processed
        for counter in ("ready", "started", "processed", "completed"):
            setattr(current, counter, getattr(current, counter) + moved)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch.tolist())
        return self.weight.sum()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.save and batch_idx == 1:
            self.trainer.save_checkpoint(self.save)
            self.trainer.should_stop = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(module: Recorder, ckpt: str | None = None) -> None:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, ckpt_path=ckpt)


@pytest.mark.parametrize("batch_size", [8, 4, 10])
@pytest.mark.filterwarnings("ignore")
def test_lightning_ends_the_epoch_where_the_samples_end(tmp_path: Any, batch_size: int) -> None:
    path = str(tmp_path / "mid-epoch.ckpt")
    first = Recorder(rebuilt(DataLoader(Pure(), batch_size=8, shuffle=True)), save=path)
    fit(first)
    second = Recorder(rebuilt(DataLoader(Pure(), batch_size=batch_size, shuffle=True)))
    second.loader.batch_sampler.set_position(0, 16)
    fit(second, path)
    seen = joined(first.seen[:2] + second.seen)
    order = BatchSampler(40, 8, seed=3)
    assert seen == joined(order) + joined(order)


# --- workers that die ---


class Deadly(Pure):
    """Ends the worker that loads it."""

    def __init__(self, death: Callable[[], None]) -> None:
        self.death = death

    def __getitem__(self, index: int) -> int:
        self.death()
        return index


def kill_self(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("death", "what", "advice"),
    [
        (kill_self(signal.SIGKILL), "SIGKILL", "resources.memory"),
        (kill_self(signal.SIGSEGV), "Segmentation fault", "compiled code"),
        (kill_self(signal.SIGBUS), "/dev/shm", "launcher.shm_size"),
        (lambda: os._exit(3), "ended without an error", "called exit"),
    ],
)
def test_a_dead_worker_is_explained(death: Callable[[], None], what: str, advice: str) -> None:
    loader = rebuilt(DataLoader(Deadly(death), batch_size=8, num_workers=1))
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    explained = explain_loader_failure(caught.value)
    assert explained is not None
    assert what in str(explained)
    assert advice in str(explained)
    assert "data.num_workers=0" in str(explained)


class Large(Pure):
    def __getitems__(self, indices: list[int]) -> Any:
        return Pair({"x": [torch.zeros(2**20, dtype=torch.uint8)]}, "name")


@dataclass
class Pair:
    first: dict[str, list[torch.Tensor]]
    second: str


def no_room_in_shared_memory(worker: int) -> None:
    # /dev/shm is a file system: a file's size can be limited without being root.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))


def test_a_full_dev_shm_raises_where_torch_would_wait_forever() -> None:
    loader = DataLoader(
        Large(),
        batch_size=8,
        num_workers=1,
        collate_fn=lambda batch: batch,
        worker_init_fn=no_room_in_shared_memory,
        timeout=20,
    )
    batches: Any = iter(rebuilt(loader))
    (worker,) = batches._workers
    try:
        with pytest.raises(RuntimeError, match="unable to resize file") as caught:
            list(batches)
    finally:
        batches._shutdown_workers()
        worker.join()  # it tries every batch that was asked for ahead
        for file in Path("/dev/shm").glob(f"torch_{worker.pid}_*"):
            file.unlink()  # torch leaves those that it could not enlarge
    assert "/dev/shm is full" in str(explain_loader_failure(caught.value))


def nested(cause: Exception) -> Exception:
    try:
        raise RuntimeError("something else") from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "called exit"),
        (
            nested(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")),
            "SIGKILL",
        ),
        (RuntimeError("unable to open shared memory object </torch_1> in rw mode"), "shm_size"),
        (OSError(28, "No space left on device", "/dev/shm/torch_1"), "shm_size"),
        (RuntimeError("DataLoader timed out after 30 seconds"), "for 30 seconds"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
    ],
)
def test_messages_are_recognised(error: BaseException, expected: str) -> None:
    explained = explain_loader_failure(error)
    assert explained is not None
    assert expected in str(explained)


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "/runs/last.ckpt"),
        OSError(24, "Too many open files", "/runs/log"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_none_of_its_business(error: BaseException) -> None:
    assert explain_loader_failure(error) is None


def test_no_room_for_a_queues_semaphore_is_a_full_dev_shm(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", no_room)
    # The half-made iterator lacks what its __del__ reads: torch would complain in whatever test
    # the garbage collector finds it.
    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_shutdown", True, raising=False)
    with pytest.raises(OSError, match="No space left") as caught:
        iter(rebuilt(DataLoader(Pure(), batch_size=8, num_workers=1)))
    assert "shm_size" in str(explain_loader_failure(caught.value))
    del caught
    gc.collect()
