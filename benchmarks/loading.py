"""How fast packed data are read, from the disk and from S3, and how long a training step waits.

S3 is the embedded service, in a process of its own: on a machine with few cores it takes its share
of them on both sides of a comparison.
"""

import contextlib
import itertools
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from hydra_trainer.data import BatchSampler, resumable
from hydra_trainer.objects import Settings
from hydra_trainer.shards.format import Column
from hydra_trainer.shards.order import Layout
from hydra_trainer.shards.places import Bucket, Folder, Place
from hydra_trainer.shards.reading import FETCHES, Reader, read_index
from hydra_trainer.shards.writing import Writer

from .services import serving
from .table import Row, compared, limited

SHAPE = (3, 32, 32)
ROW = 3072
BATCH = 256
STEP = 0.02  # seconds of a training step
SEGMENT = 16  # batches of a turn


class Raw(Dataset[Any]):
    """The samples as they are: what is measured is the reading."""

    pure = ahead = True

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.epoch_order = reader.order

    def __len__(self) -> int:
        return len(self.reader)

    def __getitems__(self, indices: Any) -> Any:
        return {
            name: values
            for name, values in self.reader.take(indices, indices.place).items()
            if isinstance(values, np.ndarray)
        }


def local(quick: bool) -> Iterator[Row]:
    """Yield the rows of a disk: whole batches of random samples, of ours and of a memory map."""
    count, turns = (8_192, 2) if quick else (65_536, 12)
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        place = _packed(Folder(folder / "packed"), count)
        _plain(folder / "plain.bin", count)
        mapped = np.memmap(folder / "plain.bin", np.uint8, "r", shape=(count, ROW + 1))
        for batch, buffer, what in [
            (BATCH, 2 << 30, f"batches of {BATCH}"),
            (4 * BATCH, 2 << 30, f"batches of {4 * BATCH}"),
            (BATCH, 64 << 20, f"batches of {BATCH}, buffer a third of the data"),
        ]:
            ours, baseline = _turns(_reader(place, Layout(batch, buffer)), mapped, turns)
            yield compared(f"local shards / memory map, {what}", ours, baseline, "s", 1 / 0.8)


def _turns(reader: Reader, mapped: Any, turns: int) -> tuple[list[float], list[float]]:
    """Read some batches, and the same rows of a memory map, again and again; return the seconds."""
    sampler = BatchSampler(len(reader), reader.layout.batch_size, order=reader.order)
    for indices in sampler:  # all is in memory, as far as it fits, and all pages are mapped
        reader.take(indices, indices.place)
        mapped[np.asarray(indices)]
    batches = itertools.chain.from_iterable(itertools.repeat(sampler))
    ours, baseline = [], []
    for _ in range(turns):
        part = list(itertools.islice(batches, SEGMENT))
        rows = [np.asarray(indices) for indices in part]
        begun = time.perf_counter()
        for indices in part:
            reader.take(indices, indices.place)
        between = time.perf_counter()
        for numbers in rows:
            mapped[numbers]
        baseline.append(time.perf_counter() - between)
        ours.append(between - begun)
    return ours, baseline


def streamed(quick: bool) -> Iterator[Row]:
    """Yield the rows of S3: an epoch from nothing, and obstore getting the same objects."""
    count, rounds = (8_192, 1) if quick else (65_536, 4)
    with _bucket() as place:
        _packed(place, count)
        ours, baseline = [], []
        for _ in range(rounds):
            baseline.append(_bare(place))
            reader = _reader(place, Layout(BATCH, 2 << 30))
            ours.append(_epoch(reader))
        yield compared("shards of S3 / obstore bare, seconds", ours, baseline, "s", 1 / 0.9)
        ours = [_epoch(_reader(place, Layout(BATCH, 64 << 20))) for _ in range(rounds)]
        name = "... with a buffer of a third of the data"
        yield compared(name, ours, baseline, "s")


def waiting(quick: bool) -> Iterator[Row]:
    """Yield how long a step of 20 ms, busy on a core, waits for its batch: a share of the step."""
    count, steps = (8_192, 20) if quick else (65_536, 200)
    with tempfile.TemporaryDirectory(dir=".") as name, _bucket() as remote:
        places: list[tuple[Place, str]] = [(Folder(Path(name)), "a disk"), (remote, "S3")]
        for place, what in places:
            _packed(place, count)
            for workers in (1, 0):
                share = _waits(_reader(place, Layout(BATCH, 64 << 20)), workers, steps)
                text = f"share of a step waited, shards of {what}, {workers} workers"
                yield (
                    limited(text, 100 * share, "%", 2)
                    if workers
                    else Row(text, f"{100 * share:.3g} %", "")
                )


def _waits(reader: Reader, workers: int, steps: int) -> float:
    plain: DataLoader[Any] = DataLoader(
        Raw(reader),
        BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=_tensors,
        drop_last=True,
    )
    loader = resumable(plain, seed=0, rank=0, world_size=1, train=True)
    waited = []
    busy = torch.ones(256, 256)
    batches = iter(loader)
    for _ in range(steps):
        begun = time.perf_counter()
        next(batches)
        waited.append(time.perf_counter() - begun)
        end = time.perf_counter() + STEP
        while time.perf_counter() < end:
            torch.mm(busy, busy)  # without the GIL, as a step is; the loader's threads need it
    # The first ones wait for the loader to start: an epoch has one such start, however long it is.
    return sum(waited[5:]) / (len(waited[5:]) * STEP)


def _tensors(batch: Any) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in batch.items()}


def _epoch(reader: Reader) -> float:
    """Read all samples once; return the seconds."""
    begun = time.perf_counter()
    for indices in BatchSampler(len(reader), BATCH, train=False, order=reader.order):
        reader.take(indices, indices.place)
    return time.perf_counter() - begun


def _bare(place: Bucket) -> float:
    """Get the objects with obstore, as many at a time as a reader does; return the seconds."""
    import obstore
    from obstore.store import S3Store

    index = read_index(place)
    assert index is not None
    options: Any = {"allow_http": True}
    store = S3Store(
        "bench", client_options=options, aws_endpoint_url=place.objects.settings.address
    )
    paths = [f"data/{shard.file}" for shard in index.shards]
    begun = time.perf_counter()
    with ThreadPoolExecutor(FETCHES) as threads:
        sizes = list(threads.map(lambda path: len(obstore.get(store, path).bytes()), paths))
    assert sum(sizes) == index.size
    return time.perf_counter() - begun


def _reader(place: Place, layout: Layout) -> Reader:
    index = read_index(place)
    assert index is not None
    return Reader(place, index, layout)


def _packed(place: Any, count: int) -> Any:
    """Pack random images, 16 shards of them."""
    columns = (Column("image", "uint8", SHAPE), Column("label", "uint8", ()))
    with Writer(place, columns, shard_size=count // 16 * (ROW + 1) + 4096) as writer:
        for images, labels in _made(count):
            writer.add({"image": images, "label": labels})
        writer.finish({})
        writer.commit()
    return place


def _plain(path: Path, count: int) -> None:
    with path.open("wb") as file:
        for images, labels in _made(count):
            records = np.concatenate([labels[:, None], images.reshape(-1, ROW)], axis=1)
            file.write(records.tobytes())


def _made(count: int) -> Iterator[tuple[Any, Any]]:
    draw = np.random.default_rng(0)
    for _ in range(16):
        images = draw.integers(0, 256, (count // 16, *SHAPE), dtype=np.uint8)
        yield images, draw.integers(0, 10, count // 16, dtype=np.uint8)


@contextlib.contextmanager
def _bucket() -> Iterator[Bucket]:
    with serving() as service, mock.patch.dict(os.environ, service.env):
        yield Bucket("s3://bench/data", Settings(service.endpoint))
