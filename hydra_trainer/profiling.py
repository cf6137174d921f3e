"""debug=profile: a trace of some steps, and the ten most expensive operations."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

from . import distributed

SKIP = 5
"""Steps before the recording: the first ones load code and find algorithms."""

ROWS = 10


class Profile(Callback):
    """Records `steps` training steps and writes trace-RANK.json into the run directory.

    Open the file at https://ui.perfetto.dev or in chrome://tracing.
    """

    def __init__(self, directory: Path, steps: int, gpu: bool) -> None:
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if gpu else [])
        self._path = directory / f"trace-{distributed.rank()}.json"
        self._gpu = gpu
        self._profile = profile(
            activities=activities,
            schedule=schedule(wait=SKIP - 1, warmup=1, active=steps, repeat=1),
            on_trace_ready=self._ready,
            record_shapes=True,
        )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._profile.start()

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._profile.step()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._profile.stop()

    def _ready(self, recorded: Any) -> None:
        recorded.export_chrome_trace(str(self._path))
        if distributed.rank() == 0:
            print(most_expensive(recorded.key_averages(), self._gpu))
            print(f"trace: {self._path} (open it at https://ui.perfetto.dev)", flush=True)


def most_expensive(averages: Iterable[Any], gpu: bool) -> str:
    """Return the operations with the most time of their own, at most ten, as a table.

    Own time is that of an operation less that of the operations it calls; on a GPU, that of the
    kernels it starts. torch's own table cuts names at a width.

    Args:
        averages: what `profile.key_averages()` returns.
        gpu: count the time on the GPU, not that on the CPU.
    """
    clock = "self_device_time_total" if gpu else "self_cpu_time_total"
    found = [(float(getattr(each, clock)), each) for each in averages if _is_operation(each)]
    found.sort(key=lambda row: -row[0])
    total = sum(time for time, _ in found) or 1.0  # microseconds
    rows = (
        f"{time / 1e3:>10.3f} ms  {time / total:>6.1%}  {each.count:>7}  {each.key}"
        for time, each in found[:ROWS]
    )
    head = f"{'GPU' if gpu else 'CPU'} time, own   share    calls  operation"
    return "\n".join([head, *rows])


def _is_operation(event: Any) -> bool:
    """Tell operations from whole steps, and from kernels, which their operations count already."""
    return event.device_type == DeviceType.CPU and not event.key.startswith("ProfilerStep")
