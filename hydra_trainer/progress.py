"""Showing how training goes: a bar on a terminal, plain lines in a log, and reading those back."""

import re
import sys
import time
from typing import Protocol

from .job import Report

REFRESH = 0.1  # seconds between two updates of the bar, at least
SHARE = 0.01  # of the time, at most, goes into drawing it: an update takes some 5 ms of CPU
LINE_EVERY = 30.0  # seconds between two lines within an epoch


class Progress(Protocol):
    """What the training loop tells whoever shows it."""

    def start(self, epochs: int, steps_per_epoch: int) -> None: ...

    def step(self, epoch: int, batch: int, samples: int) -> None:
        """Called after every batch: must be cheap."""

    def metrics(self, values: dict[str, float]) -> None: ...

    def epoch(self, epoch: int, step: int) -> None: ...

    def say(self, text: str) -> None: ...

    def stop(self) -> None: ...


class Silent:
    """Shows nothing: for every rank but the first, and for debuggers."""

    def start(self, epochs: int, steps_per_epoch: int) -> None: ...

    def step(self, epoch: int, batch: int, samples: int) -> None: ...

    def metrics(self, values: dict[str, float]) -> None: ...

    def epoch(self, epoch: int, step: int) -> None: ...

    def say(self, text: str) -> None: ...

    def stop(self) -> None: ...


class Lines:
    """One line per epoch, and one every 30 seconds within a long one."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}
        self._epochs = self._batches = 0
        self._samples = 0
        self._since = self._last = time.monotonic()

    def start(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs, self._batches = epochs, steps_per_epoch
        self._since = self._last = time.monotonic()

    def step(self, epoch: int, batch: int, samples: int) -> None:
        self._samples += samples
        if time.monotonic() - self._last > LINE_EVERY:
            self._line(f"epoch {epoch + 1}/{self._epochs}  batch {batch}/{self._batches}")

    def metrics(self, values: dict[str, float]) -> None:
        self._values |= values

    def epoch(self, epoch: int, step: int) -> None:
        self._line(f"epoch {epoch + 1}/{self._epochs}  step {step}")

    def _line(self, head: str) -> None:
        now = time.monotonic()
        rate = self._samples / max(now - self._since, 1e-9)
        parts = (head, shown(self._values), f"{rate:,.0f} samples/s")
        self.say("  ".join(part for part in parts if part))
        self._since = self._last = now
        self._samples = 0

    def say(self, text: str) -> None:
        print(text, flush=True)

    def stop(self) -> None: ...


class Bar:
    """A bar over all steps with the newest metrics, and a line for each epoch above it."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} samples/s"),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[values]}"),
            auto_refresh=False,  # a thread of its own draws as often as it likes
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None, rate="-", values="")
        self._values: dict[str, float] = {}
        self._epochs = self._batches = self._samples = 0
        self._rate = "-"
        self._interval = REFRESH
        self._since = time.monotonic()

    def start(self, epochs: int, steps_per_epoch: int) -> None:
        self._epochs, self._batches = epochs, steps_per_epoch
        self._bar.update(self._task, total=epochs * steps_per_epoch)
        self._bar.start()
        self._since = time.monotonic()

    def step(self, epoch: int, batch: int, samples: int) -> None:
        self._samples += samples
        now = time.monotonic()
        if now - self._since < self._interval:
            return
        self._rate = f"{self._samples / (now - self._since):,.0f}"
        self._since, self._samples = now, 0
        self._bar.update(
            self._task,
            description=f"epoch {epoch + 1}/{self._epochs}",
            completed=epoch * self._batches + batch,
            rate=self._rate,
            values=shown(self._values),
            refresh=True,
        )
        self._interval = max(REFRESH, (time.monotonic() - now) / SHARE)

    def metrics(self, values: dict[str, float]) -> None:
        self._values |= values

    def epoch(self, epoch: int, step: int) -> None:
        self.say(f"epoch {epoch + 1}/{self._epochs}  step {step}  {shown(self._values)}")

    def say(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)

    def stop(self) -> None:
        self._bar.stop()


def shown(values: dict[str, float]) -> str:
    """Return metrics as `train/loss 0.1234  val/acc 0.9812`, with six digits that count."""
    return "  ".join(f"{name} {value:.6g}" for name, value in sorted(values.items()))


_LINE = re.compile(r"epoch (\d+)/(-?\d+)  step (\d+)(?:  (\S.*\S))?  [\d,]+ samples/s")
_VALUE = re.compile(r"(\S.*) ([-+]?(?:\d+(?:\.\d*)?(?:e[-+]\d+)?|inf|nan))")


def parse(line: str) -> Report | None:
    """Read back the line that `Lines` prints after an epoch; None: it is another line."""
    found = _LINE.fullmatch(line.rstrip("\r\n"))
    if found is None:
        return None
    epoch, epochs, step, metrics = found.groups()
    values = [_VALUE.fullmatch(part) for part in metrics.split("  ")] if metrics else []
    named = {value[1]: float(value[2]) for value in values if value is not None}
    if len(named) < len(values):
        return None
    return Report(int(epoch), int(epochs), int(step), named)


def choose(kind: str, first: bool) -> Progress:
    """Return what `trainer.progress` means here: a bar on a terminal, lines elsewhere."""
    if not first or kind == "off":
        return Silent()
    if kind == "bar" or (kind == "auto" and sys.stdout.isatty()):
        return Bar()
    return Lines()
