"""What a step of Lightning's Trainer does that this package has no use for, taken out.

Each costs a few microseconds many times a step; together they are half of what the Trainer adds to
a small model's step (docs/performance.md). All are undone with the Trainer, except for the first,
which does nothing but save time.
"""

import contextlib
from collections import OrderedDict
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")


def _set(self: LightningModule, name: str, value: Any) -> None:
    """Set an attribute; the one that Lightning sets 50 times a step, without torch's checks."""
    if name == "_current_fx_name":
        self.__dict__[name] = value
    else:
        nn.Module.__setattr__(self, name, value)


if "__setattr__" not in LightningModule.__dict__:
    LightningModule.__setattr__ = _set  # type: ignore[assignment]


def trim(trainer: Trainer, model: LightningModule, data: LightningDataModule) -> None:
    """Make the steps of this Trainer cheaper; what they compute stays the same."""
    _without_profiler(trainer)
    _with_one_look_at_the_signature(trainer)
    wanted = any(is_overridden(hook, owner) for hook in TRANSFER_HOOKS for owner in (model, data))
    if trainer.strategy.root_device.type == "cpu" and not wanted:
        _without_transfer(trainer)


def _without_profiler(trainer: Trainer) -> None:
    """Enter one empty context around every hook instead of a new generator (see profiling.py)."""
    nothing = contextlib.nullcontext()
    trainer.profiler.profile = lambda action_name: nothing  # type: ignore[attr-defined]


def _with_one_look_at_the_signature(trainer: Trainer) -> None:
    """Ask once whether training_step takes batch_idx: Lightning inspects it in every step."""
    loop = trainer.fit_loop.epoch_loop
    build = loop._build_kwargs
    takes_index: list[bool] = []

    def build_kwargs(kwargs: OrderedDict[str, Any], batch: Any, batch_idx: int) -> Any:
        if not takes_index:
            kwargs = build(kwargs, batch, batch_idx)
            takes_index.append("batch_idx" in kwargs)
            return kwargs
        kwargs["batch"] = batch
        if takes_index[0]:
            kwargs["batch_idx"] = batch_idx
        return kwargs

    loop._build_kwargs = build_kwargs  # type: ignore[method-assign]


def _without_transfer(trainer: Trainer) -> None:
    """Leave batches where they are: they were made on the CPU, and stay there."""

    def batch_to_device(
        batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        return batch

    trainer.strategy.batch_to_device = batch_to_device  # type: ignore[method-assign]
