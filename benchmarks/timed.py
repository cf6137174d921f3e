"""The models, with a stopwatch in training_step: what all sides of a comparison train."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, ClassVar

import torch

from hydra_trainer.models.convnet import ConvNet
from hydra_trainer.models.gpt import GPT
from hydra_trainer.models.mlp import MLP
from hydra_trainer.models.resnet18 import ResNet18

TIMES = "BENCHMARK_TIMES"
"""Environment: the file that a process of another machine part writes its marks to, with its rank
appended."""

KILL = "BENCHMARK_KILL"
"""Environment: the step at which rank 1 kills itself, in its first life."""


class Timed:
    """Notes the wall clock and this process's CPU time when the chosen steps begin."""

    marks: ClassVar[tuple[int, ...]] = (0,)
    """Steps of this process, counted from 0."""

    seen: ClassVar[list[tuple[float, float]]] = []
    """(wall, CPU) seconds at each mark."""

    count = 0

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.count in self.marks:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seen.append((time.time(), time.process_time()))
            self._tell()
        self.count += 1
        return super().training_step(batch, batch_idx)  # type: ignore[misc]

    def _tell(self) -> None:
        rank = os.environ.get("RANK", "0")
        if TIMES in os.environ:
            life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            Path(f"{os.environ[TIMES]}-{rank}-{life}").write_text(json.dumps(self.seen))
            if KILL in os.environ and (rank, life) == ("1", "0") and self.count:
                os.kill(os.getpid(), signal.SIGKILL)


def from_environment() -> None:
    """Set the marks of a process that was started with them."""
    if text := os.environ.get("BENCHMARK_MARKS"):
        Timed.marks = tuple(int(word) for word in text.split(","))


from_environment()


class TimedMLP(Timed, MLP):
    """mlp."""


class TimedConvNet(Timed, ConvNet):
    """convnet."""


class TimedGPT(Timed, GPT):
    """gpt."""


class TimedResNet18(Timed, ResNet18):
    """resnet18."""
