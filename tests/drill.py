"""A model that is hit by something at a chosen moment: what the drills train.

`DRILL` holds `event:place:step:rank`, for example `SIGKILL:train:13:0`. It happens once: the file
that `DRILL_DONE` names remembers.
"""

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from hydra_trainer.models.mlp import MLP


class Drill(MLP):
    """An MLP with dropout that gets a signal, raises, or loses its mind at one step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self._hit("train"):
            loss = loss * float("nan")
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._hit("end")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._hit("val")
        super().validation_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self._hit("epoch")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._hit("test")
        super().test_step(batch, batch_idx)

    def _hit(self, place: str) -> bool:
        event, where, step, rank = os.environ.get("DRILL", ":::").split(":")
        if where != place or int(rank) != self.global_rank or int(step) != self.global_step:
            return False
        done = Path(os.environ["DRILL_DONE"])
        if done.exists():
            return False
        done.touch()
        if event == "raise":
            raise ZeroDivisionError("the drill divided by zero")
        if event == "nan":
            return True
        if event == "hang":
            time.sleep(3600)
        os.kill(os.getpid(), signal.Signals[event])
        return False


class Strange(MLP):
    """Keeps an object in its checkpoint that cannot be loaded safely."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["strange"] = Path("/tmp")


def same(a: Any, b: Any) -> bool:
    """Tell whether two checkpoints hold the same, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
