"""A model that is hit by something at a chosen moment: what the drills train.

`DRILL` holds `event:place:step:who`, for example `SIGKILL:train:13:0`. `who` is a rank, `all`, or
`launcher`, the process that the user started. It happens once: files named after `DRILL_DONE`
remember. The events that are no signal: `raise`, `nan`, `hang`, `breakpoint`, `wait` (for a file),
`until` (a SIGTERM came). `DRILL_SEEN` names a folder where each rank notes which samples it
trained on.
"""

import hashlib
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
        self._note_samples(batch[0])
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
        event, where, step, who = os.environ.get("DRILL", ":::").split(":")
        mine = who in ("all", str(self.global_rank)) or (who == "launcher" and not self.global_rank)
        if where != place or not mine or int(step) != self.global_step:
            return False
        done = Path(f"{os.environ['DRILL_DONE']}-{self.global_rank}")
        if done.exists():
            return False
        done.touch()
        if event == "raise":
            raise ZeroDivisionError("the drill divided by zero")
        if event == "nan":
            return True
        if event == "hang":
            print("hanging", flush=True)
            time.sleep(3600)
        if event == "wait":
            print("waiting", flush=True)
            while not Path(f"{os.environ['DRILL_DONE']}-go").exists():
                time.sleep(0.02)
            return False
        if event == "until":
            print("waiting", flush=True)
            while not signal.getsignal(signal.SIGTERM).__self__.signum:  # type: ignore[union-attr]
                time.sleep(0.02)
            return False
        if event == "breakpoint":
            breakpoint()
            return False
        pid = os.getpid()
        if who == "launcher":
            pid = int(Path(self.trainer.default_root_dir, ".lock").read_text())
        os.kill(pid, signal.Signals[event])
        return False

    def _note_samples(self, images: torch.Tensor) -> None:
        if "DRILL_SEEN" in os.environ:
            names = [hashlib.sha1(image.numpy().tobytes()).hexdigest()[:12] for image in images]
            note = Path(os.environ["DRILL_SEEN"], f"{self.global_step:03}-{self.global_rank}")
            note.write_text("\n".join(names))


class Broken(MLP):
    """Its gradient is not a number."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        return loss + (loss.detach() - loss).sqrt()


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
