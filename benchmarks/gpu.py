"""What needs a GPU: gpt in tokens per second and of the card's peak, resnet18 in images."""

from collections.abc import Iterator
from statistics import median

import torch

from hydra_trainer.models.gpt import GPT

from . import hand
from .steps import CORE, _ours, _timed_wall
from .table import Row, compared

PEAK = 989e12
"""FLOP/s of an H100 or H200 (SXM) in bfloat16 without sparsity, by NVIDIA's data sheet."""

MIXED = [*CORE, "trainer.precision=bf16-mixed", "trainer.compile=true", "trainer.progress=bar"]


def rows(quick: bool) -> Iterator[Row]:
    """Yield the rows; on a machine without a GPU, that they were not measured."""
    if not torch.cuda.is_available():
        for name in ("gpt 124m, bf16, compiled: ours / by hand", "resnet18, 32x32: ours / by hand"):
            yield Row(name, "", "", note="no GPU here: not measured")
        return
    steps, rounds = (20, 1) if quick else (200, 3)
    yield from gpt("gpt_124m", batch=64, block=1024, steps=steps, rounds=rounds)
    yield from resnet18(batch=1024, steps=steps, rounds=rounds)


def gpt(
    model: str, batch: int, block: int, steps: int, rounds: int, words: list[str] = MIXED
) -> Iterator[Row]:
    """Yield step time against the loop by hand, and what it makes of the card."""
    overrides = [
        *words,
        f"model={model}",
        "model._target_=benchmarks.timed.TimedGPT",
        "data=synthetic_tokens",
        f"data.block_size={block}",
        f"data.batch_size={batch}",
        f"data.size={batch * (steps + 30)}",
    ]
    ours, by_hand = _both(overrides, steps, rounds)
    yield compared(f"step, {model}: ours / by hand", ours, by_hand, "ms", 1.01)
    tokens = batch * block / median(ours) * 1000
    share = tokens * _flops_per_token(overrides) / PEAK
    yield Row(
        f"... {model}", f"{tokens:,.0f} tokens/s", "", note=f"{share:.0%} of {PEAK:.3g} FLOP/s"
    )


def resnet18(batch: int, steps: int, rounds: int, words: list[str] = MIXED) -> Iterator[Row]:
    """Yield step time against the loop by hand, on random images of CIFAR-10's size."""
    overrides = [
        *words,
        "model=resnet18",
        "model._target_=benchmarks.timed.TimedResNet18",
        "data=synthetic",
        f"data.batch_size={batch}",
        f"data.size={batch * (steps + 30)}",
    ]
    ours, by_hand = _both(overrides, steps, rounds)
    yield compared("step, resnet18, 32x32: ours / by hand", ours, by_hand, "ms", 1.01)
    yield Row(
        "... resnet18", f"{batch / median(ours) * 1000:,.0f} images/s", "", note="for context"
    )


def _both(overrides: list[str], steps: int, rounds: int) -> tuple[list[float], list[float]]:
    ours, by_hand = [], []
    for _ in range(rounds):
        by_hand.append(_timed_wall(hand.run, overrides, steps))
        ours.append(_timed_wall(_ours, overrides, steps))
    return ours, by_hand


def _flops_per_token(overrides: list[str]) -> float:
    """6N + 12*L*d*T, as PaLM (Chowdhery et al., 2022, appendix B) counts it."""
    import tempfile
    from pathlib import Path

    from hydra_trainer.config import arguments
    from hydra_trainer.targets import instantiate

    from . import jobs

    with tempfile.TemporaryDirectory() as folder, torch.device("meta"):
        config = jobs.make(Path(folder, "run"), overrides)
        model = instantiate(arguments(config, "model"), hand.TRUST, "model")
    assert isinstance(model, GPT)
    return float(model.flops_per_token())
