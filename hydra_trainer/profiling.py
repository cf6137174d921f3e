"""debug=profile: a trace of some steps, and the ten most expensive operations."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.profiler import ProfilerActivity, profile, schedule

from . import distributed

SKIP = 5
"""Steps before the recording: the first ones load code and find algorithms."""


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
            order = "self_cuda_time_total" if self._gpu else "self_cpu_time_total"
            print(
                recorded.key_averages().table(sort_by=order, row_limit=10, max_name_column_width=40)
            )
            print(f"trace: {self._path} (open it at https://ui.perfetto.dev)", flush=True)
