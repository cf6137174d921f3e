"""The time of one training step: our core, a loop by hand, Lightning with its defaults."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from hydra_trainer import training

from . import hand, jobs, stock
from .table import Row, compared
from .timed import TIMES, Timed

CORE = ["trainer.max_epochs=1", "trainer.limit_val_batches=0", "trainer.limit_test_batches=0"]
"""One epoch, and no validation inside the timed steps; all else is a default run's: metrics.csv,
TensorBoard, progress bar, a checkpoint at the end."""

WARM_UP = 20  # steps before the clock starts


def images(batch: int, steps: int, model: str) -> list[str]:
    """Return overrides for a model on images of the default data's size, 8x8."""
    name = {"mlp": "TimedMLP", "convnet": "TimedConvNet"}[model]
    return [
        *CORE,
        f"model={model}",
        f"model._target_=benchmarks.timed.{name}",
        "data=synthetic",
        "data.shape=[1,8,8]",
        f"data.batch_size={batch}",
        f"data.size={batch * (steps + WARM_UP + 1)}",
        "trainer.progress=bar",
    ]


def one_process(quick: bool) -> Iterator[Row]:
    """Yield the rows of one process: CPU time, on one thread, so that other load counts little."""
    for model, batch, steps, target in (("convnet", 128, 100, 1.05), ("mlp", 16, 600, 1.7)):
        steps, rounds = (steps // 20, 1) if quick else (steps, 5)
        overrides = images(batch, steps, model)
        times = _alternate([hand.run, _ours, _stock], overrides, steps, rounds)
        by_hand, ours, defaults = times
        name = f"step, {model}, batch {batch}"
        yield compared(f"{name}: ours / by hand", ours, by_hand, "ms CPU", target)
        yield compared(f"{name}: Lightning's defaults / by hand", defaults, by_hand, "ms CPU")


def _ours(config: dict[str, Any]) -> None:
    training.train(config)


def _stock(config: dict[str, Any]) -> None:
    stock.run(config)


def _alternate(
    sides: list[Callable[[dict[str, Any]], None]], overrides: list[str], steps: int, rounds: int
) -> list[list[float]]:
    """Return, for each side, the CPU milliseconds of a step in every round."""
    found: list[list[float]] = [[] for _ in sides]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(rounds):
            for side, times in zip(sides, found, strict=True):
                times.append(_timed(side, overrides, steps))
    finally:
        torch.set_num_threads(threads)
    return found


def _timed(side: Callable[[dict[str, Any]], None], overrides: list[str], steps: int) -> float:
    (_, begun), (_, ended) = _marks(side, overrides, steps)
    return (ended - begun) / steps * 1000


def _timed_wall(side: Callable[[dict[str, Any]], None], overrides: list[str], steps: int) -> float:
    (begun, _), (ended, _) = _marks(side, overrides, steps)
    return (ended - begun) / steps * 1000


def _marks(
    side: Callable[[dict[str, Any]], None], overrides: list[str], steps: int
) -> list[tuple[float, float]]:
    Timed.marks = (WARM_UP, WARM_UP + steps)
    Timed.seen.clear()
    with tempfile.TemporaryDirectory() as folder, _terminal():
        side(jobs.make(Path(folder, "run"), overrides))
    return list(Timed.seen)


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Let progress bars draw, as on a terminal, and throw away what they draw."""
    before = os.environ.get("FORCE_COLOR")
    os.environ["FORCE_COLOR"] = "1"
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    finally:
        os.environ.pop("FORCE_COLOR")
        if before is not None:
            os.environ["FORCE_COLOR"] = before


def two_ranks(quick: bool) -> Iterator[Row]:
    """Yield the row of two gloo ranks under torchrun: CPU time of both."""
    steps, rounds = (10, 1) if quick else (100, 4)
    overrides = [*images(128, steps, "convnet"), "resources.processes_per_node=2"]
    ours, by_hand = [], []
    for _ in range(rounds):
        by_hand.append(_launched("benchmarks.hand", overrides, steps))
        ours.append(_launched("hydra_trainer.worker", overrides, steps))
    yield compared("step, convnet, 2 ranks: ours / DDP by hand", ours, by_hand, "ms CPU", 1.05)


def _launched(module: str, overrides: list[str], steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        path = jobs.write(Path(folder, "run"), overrides)
        marks = f"{WARM_UP},{WARM_UP + steps}"
        env = {
            **os.environ,
            TIMES: str(Path(folder, "times")),
            "BENCHMARK_MARKS": marks,
            "OMP_NUM_THREADS": "1",
        }
        agent = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        subprocess.run(
            [sys.executable, *agent, "-m", module, str(path)],
            env=env,
            check=True,
            capture_output=True,
        )
        times = [json.loads(file.read_text()) for file in Path(folder).glob("times-*")]
    assert len(times) == 2
    return sum(ended - begun for (_, begun), (_, ended) in times) / steps * 1000
