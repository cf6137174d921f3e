"""The models, with a stopwatch in training_step: what all sides of a comparison train."""

import contextlib
import json
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from hydra_trainer import progress
from hydra_trainer.models.convnet import ConvNet
from hydra_trainer.models.gpt import GPT
from hydra_trainer.models.mlp import MLP
from hydra_trainer.models.resnet18 import ResNet18

WATCH = "BENCHMARK_WATCH"
"""Environment: the stopwatch of a process of its own, as JSON: class and keyword arguments."""

PATIENCE = 120  # seconds for another side to give the turn back


class Marks:
    """Notes (wall, CPU) seconds when the chosen steps of this process begin, counted from 0.

    Args:
        steps: at which steps.
        file: where to write them, with the rank and the restart count of the process appended.
        kills: rank 1 kills itself at the last of `steps` in this many of its lives.
    """

    def __init__(self, steps: list[int], file: str = "", kills: int = 0) -> None:
        self.steps = steps
        self.file = file
        self.kills = kills
        self.seen: list[tuple[float, float]] = []

    def __call__(self, step: int) -> None:
        if step not in self.steps:
            return
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seen.append((time.time(), time.process_time()))
        rank, life = _rank(), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        if self.file:
            Path(f"{self.file}-{rank}-{life}").write_text(json.dumps(self.seen))
        if rank == "1" and int(life) < self.kills and step == self.steps[-1]:
            os.kill(os.getpid(), signal.SIGKILL)


class Turns:
    """Lets loops take turns of a few steps, so that whatever else the machine does meets all alike.

    The loops sit in a ring; a byte in a named pipe is the right to go on. Loops of several ranks
    make one ring for each rank.

    Args:
        folder: where `ring` made the pipes.
        side: which of the `sides` this loop is.
        warm_up: steps before the first turn.
        every: steps of a turn.
        turns: how many turns each side has; it trains at least one step more.
    """

    def __init__(
        self, folder: str, side: int, sides: int, warm_up: int, every: int, turns: int
    ) -> None:
        self.first, self.every, self.last = warm_up, every, warm_up + every * turns
        pipes = [Path(folder, f"{_rank()}-{n % sides}") for n in (side, side + 1)]
        self._mine, self._next = (os.open(pipe, os.O_RDWR) for pipe in pipes)
        self._report = Path(folder, f"spent-{side}-{_rank()}")
        self._since = 0.0
        self.spent: list[float] = []
        """CPU seconds of this process in each of its turns."""
        self.waited = 0.0
        """Seconds in which it was the others' turn."""

    def __call__(self, step: int) -> None:
        if step < self.first or step > self.last or (step - self.first) % self.every:
            return
        if step == self.first:
            self._wait()  # go round once, so that all have arrived before any begins
        else:
            self.spent.append(time.process_time() - self._since)
        self.pass_on()
        self._wait()
        self._since = time.process_time()
        if step == self.last:
            self._report.write_text(json.dumps(self.spent))
            self.pass_on()

    def _wait(self) -> None:
        begun = time.monotonic()
        ready, _, _ = select.select([self._mine], [], [], PATIENCE)
        if not ready or os.read(self._mine, 1) != b".":
            raise RuntimeError("The other side of this comparison ended before its time.")
        self.waited += time.monotonic() - begun

    def pass_on(self) -> None:
        os.write(self._next, b".")

    def give_up(self) -> None:
        """End the loop that waits for this one."""
        os.write(self._next, b"!")

    def close(self) -> None:
        for pipe in (self._mine, self._next):
            os.close(pipe)


@contextlib.contextmanager
def ring(sides: int, ranks: int = 1) -> Iterator[Path]:
    """Make the pipes for Turns in a folder of their own; the first side has the first turn."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as held:
        folder = Path(name)
        for rank in range(ranks):
            for side in range(sides):
                os.mkfifo(folder / f"{rank}-{side}")
                # Held open all the time: a pipe that nobody has open forgets what is in it.
                pipe = os.open(folder / f"{rank}-{side}", os.O_RDWR)
                held.callback(os.close, pipe)
                os.write(pipe, b"." if side == 0 else b"")
        yield folder


def _rank() -> str:
    return os.environ.get("RANK", "0")


class Watches(threading.local):
    """The stopwatch of each thread: several loops may run in one process."""

    watch: Callable[[int], None] | None = None

    def tick(self, step: int) -> None:
        watch = self.watch or _of_process
        if watch is not None:
            watch(step)


watches = Watches()
_of_process: Callable[[int], None] | None = None


def from_environment() -> None:
    """Make the stopwatch that this process was started with."""
    global _of_process
    if text := os.environ.get(WATCH):
        kind, arguments = json.loads(text)
        _of_process = {"Marks": Marks, "Turns": Turns}[kind](**arguments)
        if isinstance(_of_process, Turns):
            progress.time = clock(_of_process)


def clock(turns: Turns) -> Any:
    """Make the `time` of our progress bar, which draws by the clock: others' turns take none."""
    return SimpleNamespace(monotonic=lambda: time.monotonic() - turns.waited)


from_environment()


class Timed:
    """Tells the stopwatch of its thread when a step begins."""

    count = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        watches.tick(self.count)
        self.count += 1
        return super().training_step(batch, batch_idx)  # type: ignore[misc]


class TimedMLP(Timed, MLP):
    """mlp."""


class TimedConvNet(Timed, ConvNet):
    """convnet."""


class TimedGPT(Timed, GPT):
    """gpt."""


class TimedResNet18(Timed, ResNet18):
    """resnet18."""
