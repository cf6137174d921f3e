"""A checkpoint of 500 MB, here and in S3: how long it holds training up, ours and Lightning's own;
the memory that it takes; and how fast it is read again.

S3 is the embedded service, in a process of its own. Lightning reaches it through obstore's file
system of fsspec, which is faster than s3fs.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import fsspec
import obstore.fsspec
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from hydra_trainer import training
from hydra_trainer.callbacks import Core
from hydra_trainer.checkpoints import reading
from hydra_trainer.checkpoints.files import STATE
from hydra_trainer.checkpoints.store import Store, place
from hydra_trainer.checkpoints.writing import CommittedCheckpointIO, Writer

from . import jobs, stock
from .services import serving
from .steps import terminal
from .table import Row, compared, limited

SAVES = 4
"""Saves of a run. The first is left out on both sides: it allocates what the others use again."""


class Watch:
    """Seconds that each save of a run held training up, and that it took to be durable."""

    def __init__(self) -> None:
        self.blocked: list[float] = []
        self.durable: list[float] = []
        self._begun = 0.0

    def around(self, save: Callable[..., None]) -> Callable[..., None]:
        """Return `save` with a stopwatch."""

        def timed(*args: Any, **kwargs: Any) -> None:
            self._begun = time.perf_counter()
            save(*args, **kwargs)
            self.blocked.append(time.perf_counter() - self._begun)

        return timed

    def finish(self, core: Core) -> None:
        """Wait for the save before: real ones are minutes apart, and do not meet."""
        core.writer.finish()
        if len(self.durable) < len(self.blocked):
            self.durable.append(time.perf_counter() - self._begun)


watch = Watch()


class Heavy(LightningModule):
    """`parameters` numbers of 4 bytes; AdamW's two moments make three times as much to save."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(parameters // 1000, 1000))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        for core in callbacks:
            if isinstance(core, Core):
                watch.finish(core)
        return self.weight.sum() * batch[0].mean()


def rows(quick: bool) -> Iterator[Row]:
    """Yield the rows: seconds that training is blocked, bytes per second until durable, memory."""
    size, rounds = (200_000, 1) if quick else (41_700_000, 2)
    with serving() as service, mock.patch.dict(os.environ, service.env):
        obstore.fsspec.register("s3")
        fsspec.config.conf["s3"] = {
            "client_options": {"allow_http": True},
            "endpoint": service.endpoint,
        }
        for where, target in (("", 0.04), ("s3://bench/runs", 0.02)):
            yield from _saves(where, size, rounds, target)
            yield from _memory_and_reading(where, size)


def _saves(where: str, size: int, rounds: int, target: float) -> Iterator[Row]:
    lightnings, ours, foreground, durable = [], [], [], []
    output = [f"storage.output={where}"] if where else []
    for _ in range(rounds):
        lightnings += _run(size, _in_s3 if where else _lightning).blocked
        in_background = _run(size, training.train, *output)
        ours += in_background.blocked
        durable += in_background.durable
        now = "checkpoint.asynchronous=false"
        foreground += _run(size, training.train, now, *output).blocked
    megabytes = size * 12 / 1e6
    place = "S3" if where else "disk"
    name = f"checkpoint, {megabytes:.0f} MB, {place}, training blocked: ours / Lightning's"
    yield compared(name, ours, lightnings, "s", target)
    yield compared("... with checkpoint.asynchronous=false", foreground, lightnings, "s")
    rates = (f"{megabytes / median(times):.0f} MB/s" for times in (durable, foreground))
    background, direct = rates
    note = f"durable, in the background; {direct} in the foreground"
    yield Row("... bytes per second", background, "", note=note)


def _memory_and_reading(where: str, size: int) -> Iterator[Row]:
    """Save and read in this process, without training, and look at its memory all the time."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        store = Store(place(f"{where}/memory" if where else str(Path(folder, "checkpoints"))))
        writer = Writer()
        door = CommittedCheckpointIO(store, writer, lambda name: None)
        name = "S3" if where else "disk"

        def save(step: int, numbers: int) -> float:
            tensors = {str(n): torch.ones(numbers // 10) for n in range(10)}
            state = {"state_dict": tensors}
            taken = sum(tensor.nbytes for tensor in tensors.values())
            with _peak() as peak:
                path = f"{store.uri}/{store.name(step, 'mid')}/{STATE}"
                door.save_checkpoint(state, path, {"step": step, "metrics": {}})
                writer.finish()
                writer.check()
            return peak[0] / taken

        save(1, 10_000)  # the library's own memory is no part of a checkpoint
        writer._staging._buffers.clear()
        extra = save(2, size * 3)
        yield limited(f"... {name}, peak of extra memory / state", extra, "", 1.05)
        writer._staging._buffers.clear()
        ours, raw = [], []
        found = store.all()[-1]
        for _ in range(3):
            ours.append(_seconds(lambda: reading.load(found)))
            raw.append(_seconds(lambda: store.place.read(found.name, STATE)))
        yield compared(f"... {name}, read and checked / read", ours, raw, "s", 1 / 0.8)


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


@contextlib.contextmanager
def _peak() -> Iterator[list[float]]:
    """Give a list that holds, after the block, the most bytes that this process took in it."""
    found, over = [0.0], threading.Event()
    before = _resident()

    def look() -> None:
        while not over.wait(0.002):
            found[0] = max(found[0], _resident() - before)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * float(os.sysconf("SC_PAGE_SIZE"))


def _in_s3(config: dict[str, Any]) -> None:
    where = f"s3://bench/lightning/{os.getpid()}"
    saving = ModelCheckpoint(dirpath=where, every_n_train_steps=2, save_top_k=-1)
    stock.run(config, callbacks=[saving])


def _lightning(config: dict[str, Any]) -> None:
    stock.run(config, callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)])


def _run(parameters: int, side: Callable[[dict[str, Any]], Any], *more: str) -> Watch:
    global watch
    watch = Watch()
    # All that holds training up: with Lightning its own save; with ours the checks before it too.
    is_ours = side not in (_lightning, _in_s3)
    owner, name = (Core, "_save") if is_ours else (Trainer, "save_checkpoint")
    overrides = [
        "model=own",
        "model._target_=benchmarks.checkpoints.Heavy",
        f"+model.parameters={parameters}",
        "data=synthetic",
        "data.shape=[1,2,2]",
        "data.batch_size=1",
        f"data.size={2 * SAVES + 1}",
        "trainer.max_epochs=1",
        "trainer.limit_val_batches=0",
        "trainer.limit_test_batches=0",
        "checkpoint.every_n_steps=2",
        "objective.metric=train/loss",
        "logger=csv",
        *more,
    ]
    with (
        # In this folder, not in /tmp, which may be memory.
        tempfile.TemporaryDirectory(dir=".") as folder,
        terminal(),
        mock.patch.object(owner, name, watch.around(getattr(owner, name))),
    ):
        # In S3 a run has the name of its folder.
        side(jobs.make(Path(folder, Path(folder).name).resolve(), overrides))
    watch.blocked, watch.durable = watch.blocked[1:SAVES], watch.durable[1:SAVES]
    return watch
