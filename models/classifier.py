"""What all classifiers share: the loss, and metrics that are exact on any number of ranks."""

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy


class Classifier(LightningModule):
    """Cross-entropy over the last dimension of the logits.

    A subclass defines `forward`: inputs [B, ...] to logits [B, *, K], for int64 targets [B, *]
    in [0, K). The * is empty for images and the sequence for tokens.

    Logs `val/loss`, `val/acc`, `test/loss`, `test/acc` when an epoch ends: means over all targets
    of all ranks, whatever the sizes of the batches.

    Args:
        num_classes: K, at least 2.

    Raises:
        ValueError: an argument is out of its range; the message names it `model.num_classes`.
    """

    channels_last: ClassVar[bool] = False
    """Whether the core should move this model and its images to torch.channels_last on a GPU."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        at_least("num_classes", num_classes, 2)
        self.val_loss, self.val_accuracy = _metrics(num_classes)
        self.test_loss, self.test_accuracy = _metrics(num_classes)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the mean loss of the batch, a scalar still on the device."""
        inputs, targets = batch
        return F.cross_entropy(self(inputs).flatten(0, -2), targets.flatten())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add the batch to the validation metrics."""
        self._update(batch, self.val_loss, self.val_accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add the batch to the test metrics."""
        self._update(batch, self.test_loss, self.test_accuracy)

    def on_validation_epoch_end(self) -> None:
        """Log `val/loss` and `val/acc` over all ranks."""
        self._log("val", self.val_loss, self.val_accuracy)

    def on_test_epoch_end(self) -> None:
        """Log `test/loss` and `test/acc` over all ranks."""
        self._log("test", self.test_loss, self.test_accuracy)

    def _update(self, batch: tuple[Tensor, Tensor], loss: Metric, accuracy: Metric) -> None:
        inputs, targets = batch
        logits, targets = self(inputs).flatten(0, -2), targets.flatten()
        loss.update(F.cross_entropy(logits, targets, reduction="none"))
        accuracy.update(logits.argmax(-1), targets)

    def _log(self, stage: str, loss: Metric, accuracy: Metric) -> None:
        # compute() already gives every rank the same number; without sync_dist Lightning warns.
        self.log(f"{stage}/loss", loss.compute(), sync_dist=True)
        self.log(f"{stage}/acc", accuracy.compute(), sync_dist=True)
        loss.reset()
        accuracy.reset()


def _metrics(num_classes: int) -> tuple[MeanMetric, MulticlassAccuracy]:
    # A mean over single losses instead of weighted batch means: torchmetrics 1.9 ignores weights
    # when its NaN check is off, and that check waits for the device and leaves NaNs out.
    return (
        MeanMetric(nan_strategy="disable"),
        MulticlassAccuracy(num_classes, average="micro", validate_args=False),
    )


def at_least(name: str, value: int, low: int) -> None:
    """Check a whole number.

    Raises:
        ValueError: it is not an integer, or below `low`; the message names it `model.NAME`.
    """
    if not _whole(value) or value < low:
        raise ValueError(
            f"model.{name} is {value!r}, but must be a whole number, at least {low}. "
            f"Type model.{name}={low} or more."
        )


def fraction(name: str, value: float) -> None:
    """Check a share in [0, 1), such as dropout.

    Raises:
        ValueError: it is outside; the message names it `model.NAME`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(
            f"model.{name} is {value!r}, but must be at least 0 and below 1. "
            f"Type model.{name}=0.1, or 0 for none."
        )


def image_shape(value: Sequence[int], smallest: int = 1) -> tuple[int, int, int]:
    """Return `model.input_shape` as (channels, height, width).

    Args:
        value: the sizes of one image.
        smallest: the least height and width, in pixels.

    Raises:
        ValueError: it is not three whole numbers, or one is too small.
    """
    sizes = list(value) if isinstance(value, Sequence) else []
    if len(sizes) == 3 and all(map(_whole, sizes)) and sizes[0] >= 1 and min(sizes[1:]) >= smallest:
        return sizes[0], sizes[1], sizes[2]
    raise ValueError(
        f"model.input_shape is {value!r}, but must be [channels, height, width], at least "
        f"[1, {smallest}, {smallest}]. Type 'model.input_shape=[3,32,32]', or choose data that "
        "describe images: data=digits."
    )


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
