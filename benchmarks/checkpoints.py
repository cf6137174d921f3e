"""How long a checkpoint of 240 MB holds training up: ours, and Lightning's own."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from hydra_trainer import training
from hydra_trainer.callbacks import Core

from . import jobs, stock
from .steps import terminal
from .table import Row, compared

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
    """Yield the rows: seconds that training is blocked, and bytes per second until durable."""
    size, rounds = (200_000, 1) if quick else (20_000_000, 2)
    megabytes = size * 12 / 1e6
    lightnings, ours, foreground, durable = [], [], [], []
    for _ in range(rounds):
        lightnings += _run(size, _lightning).blocked
        in_background = _run(size, training.train)
        ours += in_background.blocked
        durable += in_background.durable
        foreground += _run(size, training.train, "checkpoint.asynchronous=false").blocked
    name = f"checkpoint, {megabytes:.0f} MB, training blocked: ours / Lightning's"
    yield compared(name, ours, lightnings, "s", 0.25)
    yield compared("... with checkpoint.asynchronous=false", foreground, lightnings, "s")
    rates = (f"{megabytes / median(times):.0f} MB/s" for times in (durable, foreground))
    background, direct = rates
    note = f"durable, in the background; {direct} in the foreground"
    yield Row("... bytes per second", background, "", note=note)


def _lightning(config: dict[str, Any]) -> None:
    stock.run(config, callbacks=[ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)])


def _run(parameters: int, side: Callable[[dict[str, Any]], Any], *more: str) -> Watch:
    global watch
    watch = Watch()
    # All that holds training up: with Lightning its own save; with ours the checks before it too.
    owner, name = (Trainer, "save_checkpoint") if side is _lightning else (Core, "_save")
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
        side(jobs.make(Path(folder, "run").resolve(), overrides))
    watch.blocked, watch.durable = watch.blocked[1:SAVES], watch.durable[1:SAVES]
    return watch
