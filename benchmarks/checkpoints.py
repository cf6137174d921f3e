"""How long a checkpoint of 240 MB holds training up: ours, and Lightning's own."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from hydra_trainer import training
from hydra_trainer.callbacks import Core

from . import jobs, stock
from .steps import _terminal
from .table import Row, compared

EVERY = 2  # steps between two saves


class Heavy(LightningModule):
    """`parameters` numbers of 4 bytes; AdamW's two moments make three times as much to save."""

    def __init__(self, parameters: int = 20_000_000) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(parameters // 1000, 1000))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        # What is still being written is not part of the next save: real ones are minutes apart.
        for core in (c for c in self.trainer.callbacks if isinstance(c, Core)):  # type: ignore[attr-defined]
            begun = time.perf_counter()
            core.writer.finish()
            Saves.written.append(time.perf_counter() - begun)
        return self.weight.sum() * batch[0].mean()


class Saves:
    """Seconds that `Trainer.save_checkpoint` took, and that what it left took to be durable."""

    blocked: list[float] = []  # noqa: RUF012
    written: list[float] = []  # noqa: RUF012


def rows(quick: bool) -> Iterator[Row]:
    """Yield the row: seconds that training is blocked, the first save left out on both sides."""
    size = 200_000 if quick else 20_000_000
    overrides = [
        "model=own",
        "model._target_=benchmarks.checkpoints.Heavy",
        f"+model.parameters={size}",
        "data=synthetic",
        "data.shape=[1,2,2]",
        "data.batch_size=1",
        f"data.size={EVERY * 6}",
        "trainer.max_epochs=1",
        "trainer.limit_val_batches=0",
        "trainer.limit_test_batches=0",
        f"checkpoint.every_n_steps={EVERY}",
        "objective.metric=train/loss",
        "logger=csv",
    ]
    stocks = _measured(overrides, ours=False)
    Saves.written.clear()
    ours = _measured(overrides, ours=True)
    count = min(len(ours), len(stocks))
    megabytes = size * 12 / 1e6
    name = f"checkpoint, {megabytes:.0f} MB: training blocked, ours / Lightning's"
    yield compared(name, ours[:count], stocks[:count], "s", 0.25)
    durable = median(sorted(Saves.written)[-count:])
    rate = f"{megabytes / durable:.0f} MB/s"
    yield Row("... until it is durable, in the background", rate, "", note="for context")


def _measured(overrides: list[str], ours: bool) -> list[float]:
    Saves.blocked.clear()
    original = Trainer.save_checkpoint

    def timed(self: Trainer, *args: Any, **kwargs: Any) -> None:
        begun = time.perf_counter()
        original(self, *args, **kwargs)
        Saves.blocked.append(time.perf_counter() - begun)

    Trainer.save_checkpoint = timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory(dir=".") as folder, _terminal():
            config = jobs.make(Path(folder, "run").resolve(), overrides)
            if ours:
                training.train(config)
            else:
                saving = ModelCheckpoint(every_n_train_steps=EVERY, save_top_k=-1)
                stock.run(config, callbacks=[saving])
    finally:
        Trainer.save_checkpoint = original  # type: ignore[method-assign]
    return list(Saves.blocked)[1:]
