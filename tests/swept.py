"""Sweeps as a journal would tell them, for what shows them: no jobs, no clock."""

import math
import random
import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from hydra_trainer.sweep.rows import Event, Sweep, apply

BEGAN = 1_800_000_000.0
"""When they begin, in seconds since 1970: in January 2027."""

LOSS = {"metric": "val/loss", "mode": "min"}
ACCURACY = {"metric": "val/acc", "mode": "max"}
SIZE = {"metric": "size", "mode": "min"}
SLOTS = 8  # jobs at the same time


class Told:
    """A sweep that is told event by event; `at` is the time of the next one."""

    def __init__(self, objectives: Sequence[dict[str, str]] = (LOSS,), words: str = "") -> None:
        self.sweep, self.at = Sweep(), BEGAN
        self._tell(
            "sweep",
            words=shlex.split(words or "-m launcher=eks launcher.detach=true optim.lr=1e-4,1e-3"),
            cwd="/home/ada/digits",
            program="python train.py",
            identity="0123",
            sweeper="basic",
            objectives=list(objectives),
        )

    def _tell(self, event: str, **more: Any) -> None:
        apply(self.sweep, Event(event=event, at=self.at, **more))

    def job(self, number: int, launcher: str = "eks", **params: Any) -> int:
        """Plan a job; `optim__lr=1` is the parameter optim.lr."""
        named = {key.replace("__", "."): value for key, value in params.items()}
        words = ["launcher.detach=true", *(f"{key}={value}" for key, value in named.items())]
        self._tell(
            "job",
            number=number,
            name=f"mlp-digits-{number:04x}",
            launcher=launcher,
            overrides=[f"launcher={launcher}", *words],
            params=named,
            output=f"runs/mlp-digits-{number:04x}",
        )
        return number

    def sent(self, number: int) -> None:
        handle = f"eks://prod/team/mlp-digits-{number:04x}"
        self._tell("sent", number=number, handle=handle)

    def running(self, number: int) -> None:
        self.sent(number)
        self._tell("running", number=number)

    def progress(self, number: int, epoch: int, epochs: int, value: float) -> None:
        told = {"epoch": epoch, "epochs": epochs, "step": epoch * 11}
        values = {self.sweep.objectives[0].metric: value}
        self._tell("progress", number=number, **told, values=values, value=value)

    def ended(self, number: int, state: str, *values: float, **more: Any) -> None:
        metrics = {"val/loss": values[0], "test/acc": 1 - values[0] / 4} if values else {}
        told = {"metrics": metrics, "seconds": 20.0 + number, **more}
        self._tell("ended", number=number, state=state, values=list(values), **told)

    def succeeded(self, number: int, *values: float) -> None:
        self.ended(number, "SUCCEEDED", *values)

    def failed(self, number: int, reason: str = "OutOfMemoryError", message: str = "") -> None:
        self.ended(number, "FAILED", reason=reason, message=message, exit_code=1)

    def retried(self, number: int) -> None:
        self._tell("retry", number=number)


def loss(lr: float, model: str, batch: int, noise: float) -> float:
    """Return what a job comes to: best near lr=1e-2, with a convnet."""
    off = (math.log10(lr) + 2) ** 2 * 0.12 + (0.15 if model == "mlp" else 0.0)
    return 0.15 + off + 0.02 * math.log2(batch / 16) + 0.03 * noise


FAULTS = (
    ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has 79 GiB."),
    ("NaNLossError", "train/loss is nan at step 44: optim.lr is 0.03"),
    ("Evicted", "node ip-10-0-3-17 was taken away 10 times without a new checkpoint"),
)


def grown(count: int, points: int = 15, objectives: Sequence[dict[str, str]] = (LOSS,)) -> Sweep:
    """Return a sweep of many jobs that has ended: some failed, some pruned, none like another."""
    draw = random.Random(count)
    told = Told(objectives, "-m launcher=eks sweep=optuna 'optim.lr=tag(log,interval(1e-4,1e-1))'")
    free = [BEGAN] * SLOTS
    for number in range(count):
        told.at = min(free)
        slot = free.index(told.at)
        lr, batch = float(f"{10 ** draw.uniform(-4, -1):.4g}"), draw.choice((16, 32, 64, 128))
        model, dropout = draw.choice(("mlp", "convnet", "resnet")), round(draw.uniform(0, 0.5), 3)
        told.job(number, optim__lr=lr, model=model, data__batch_size=batch, model__dropout=dropout)
        told.running(number)
        end = loss(lr, model, batch, draw.gauss(0, 1))
        fate = draw.random()
        for epoch in range(1, 1 + (points if fate > 0.15 else points // 3)):
            told.at += draw.uniform(0.5, 2.0)
            value = end + 2.0 * math.exp(-6 * epoch / points) + draw.gauss(0, 0.01)
            told.progress(number, epoch, points, value)
        if fate < 0.05:
            told.failed(number, *draw.choice(FAULTS))
        elif fate < 0.15:
            told.ended(number, "PRUNED", reason="Pruned")
        else:
            told.succeeded(number, *_values(end, batch, objectives))
        free[slot] = told.at
    return told.sweep


def _values(end: float, batch: int, objectives: Sequence[dict[str, str]]) -> Iterable[float]:
    found = (round(end, 5), round(0.99 - end / 4 + batch / 4000, 5), batch * (1 + end))
    return found[: len(objectives)]
