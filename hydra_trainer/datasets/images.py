"""Labelled images in fixed records, held in memory or in a file."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from .augment import Augmentation
from .base import Batch, BatchedDataset, MappedArray

# Splits do not follow data.seed, so that runs with other seeds are compared on the same samples.
SPLIT_SEED = 1


class Finish:
    """What every image gets: augmentation, and each channel normalised.

    A pixel is divided by `largest`, minus its channel's mean, over its standard deviation.
    """

    def __init__(
        self,
        largest: int,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
    ) -> None:
        self.augmentation = augmentation
        spread = torch.tensor(std).view(-1, 1, 1)
        self.scale = 1.0 / (largest * spread)
        self.offset = -torch.tensor(mean).view(-1, 1, 1) / spread

    def __call__(self, pixels: npt.NDArray[np.uint8], indices: list[int]) -> torch.Tensor:
        """Return float32 [B, C, H, W] of uint8 [B, C, H, W], which may be used up."""
        if self.augmentation is None:
            return self._normalised(pixels)
        words = self.augmentation.words(indices)
        images = self._normalised(self.augmentation.move(pixels, words))
        return self.augmentation.cut(images, words)

    def _normalised(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        images = torch.from_numpy(np.ascontiguousarray(pixels)).float()
        return images.mul_(self.scale).add_(self.offset)


class ImageDataset(BatchedDataset):
    """Some `rows` of records uint8 [N, 1 + C*H*W], each a label and the pixels, channel by channel.

    (That is a record of CIFAR-10's binary version.) A batch is float32 [B, C, H, W], finished as
    Finish says; and the labels, int64 [B].
    """

    def __init__(
        self,
        records: npt.NDArray[np.uint8] | MappedArray,
        rows: npt.NDArray[np.int64],
        shape: Sequence[int],
        *,
        largest: int,
        mean: Sequence[float],
        std: Sequence[float],
        augmentation: Augmentation | None = None,
    ) -> None:
        self.records = records
        self.rows = rows
        self.shape = tuple(shape)
        self.augmentation = augmentation
        self.finish = Finish(largest, mean, std, augmentation)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return (float32 [B, C, H, W], int64 [B])."""
        records = self.records[self.rows[indices]]
        labels = torch.from_numpy(records[:, 0].astype(np.int64))
        return self.finish(records[:, 1:].reshape(-1, *self.shape), indices), labels


def shuffled_rows(count: int) -> npt.NDArray[np.int64]:
    """Return the numbers below `count` in an order that is always the same."""
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    return torch.randperm(count, generator=generator).numpy()
