"""What needs a GPU: gpt in tokens per second and of the card's peak, resnet18 in images."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch

from hydra_trainer import training
from hydra_trainer.config import arguments
from hydra_trainer.targets import instantiate

from . import hand, jobs
from .steps import CORE, WARM_UP, terminal
from .table import Row, compared
from .timed import Marks, watches

PEAK = 989e12
"""FLOP/s of an H100 or H200 (SXM) in bfloat16 without sparsity, by NVIDIA's data sheet."""

FAST = [*CORE, "trainer.progress=bar", "trainer.precision=bf16-mixed"]


def rows(quick: bool) -> Iterator[Row]:
    """Yield the rows; on a machine without a GPU, that they were not measured."""
    if not torch.cuda.is_available():
        for name in ("gpt 124m, bf16, compiled: ours / by hand", "resnet18, 32x32: ours / by hand"):
            yield Row(name, "", "", note="no GPU here: not measured")
        return
    steps, rounds = (20, 1) if quick else (200, 3)
    compiled = [*FAST, "trainer.compile=true"]
    yield from gpt("gpt_124m", 64, 1024, steps, rounds, compiled)
    yield from resnet18(1024, steps, rounds, compiled)


def gpt(
    model: str, batch: int, block: int, steps: int, rounds: int, overrides: list[str]
) -> Iterator[Row]:
    """Yield step time against the loop by hand, and what it makes of the card."""
    overrides = [
        *overrides,
        f"model={model}",
        "model._target_=benchmarks.timed.TimedGPT",
        "data=synthetic_tokens",
        f"data.block_size={block}",
        f"data.batch_size={batch}",
        f"data.size={batch * (steps + WARM_UP + 1)}",
    ]
    ours, by_hand = _both(overrides, steps, rounds)
    yield compared(f"step, {model}: ours / by hand", ours, by_hand, "ms", 1.01)
    tokens = batch * block / median(ours) * 1000
    share = tokens * flops_per_token(overrides) / PEAK
    note = f"{share:.1%} of {PEAK:.3g} FLOP/s"
    yield Row(f"... {model}", f"{tokens:,.0f} tokens/s", "", note=note)


def resnet18(batch: int, steps: int, rounds: int, overrides: list[str]) -> Iterator[Row]:
    """Yield step time against the loop by hand, on random images of CIFAR-10's size."""
    overrides = [
        *overrides,
        "model=resnet18",
        "model._target_=benchmarks.timed.TimedResNet18",
        "data=synthetic",
        f"data.batch_size={batch}",
        f"data.size={batch * (steps + WARM_UP + 1)}",
    ]
    ours, by_hand = _both(overrides, steps, rounds)
    yield compared("step, resnet18, 32x32: ours / by hand", ours, by_hand, "ms", 1.01)
    rate = f"{batch / median(ours) * 1000:,.0f} images/s"
    yield Row("... resnet18", rate, "", note="for context")


def _both(overrides: list[str], steps: int, rounds: int) -> tuple[list[float], list[float]]:
    """Return milliseconds of wall time per step: one side after the other, each fills the card."""
    ours, by_hand = [], []
    for _ in range(rounds):
        by_hand.append(_timed(hand.run, overrides, steps))
        ours.append(_timed(training.train, overrides, steps))
    return ours, by_hand


def _timed(side: Callable[[dict[str, Any]], Any], overrides: list[str], steps: int) -> float:
    marks = watches.watch = Marks([WARM_UP, WARM_UP + steps])
    try:
        with tempfile.TemporaryDirectory() as folder, terminal():
            side(jobs.make(Path(folder, "run"), overrides))
    finally:
        watches.watch = None
    (begun, _), (ended, _) = marks.seen
    return (ended - begun) / steps * 1000


def flops_per_token(overrides: list[str]) -> float:
    """Return the FLOPs of a training step per token, as the model counts them."""
    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        config = jobs.make(Path(folder, "run"), overrides)
        model: Any = instantiate(arguments(config, "model"), hand.TRUST, "model")
    return float(model.flops_per_token())
