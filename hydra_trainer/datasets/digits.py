"""Handwritten digits: 1,797 grey images of 8x8 pixels in ten classes, without a download.

They ship with scikit-learn and are the test part of "Optical Recognition of Handwritten Digits"
by E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49, licence CC BY 4.0. Pixels are 0 to 16.
"""

import importlib.util
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hydra_trainer.errors import DataError

from .augment import Augmentation
from .base import DataModule, flag
from .images import ImageDataset, shuffled_rows

TRAIN, VAL = 1197, 300  # the other 300 are the test set
LARGEST = 16
MEAN, STD = 0.3053, 0.3760  # of pixel / 16, over all images


class Digits(DataModule):
    """The digits, split once and for all: 1,197 to train, 300 to validate, 300 to test.

    Batches are float32 [B, 1, 8, 8] and int64 [B]. `augment` moves each training image by up to
    one pixel. Raises ConfigError for bad keys, DataError when scikit-learn's file is missing.
    """

    def __init__(
        self, batch_size: int = 64, num_workers: int = 0, augment: bool = False, seed: int = 0
    ) -> None:
        super().__init__(batch_size, num_workers, seed, flag("augment", augment))
        self.augmentation = Augmentation(seed, padding=1, pad_mode="constant") if augment else None

    def setup(self, stage: str) -> None:
        """Read the images, in some milliseconds."""
        records = read_digits()
        rows = shuffled_rows(len(records))
        self.train_set = _dataset(records, rows[:TRAIN], self.augmentation)
        self.val_set = _dataset(records, rows[TRAIN : TRAIN + VAL])
        self.test_set = _dataset(records, rows[TRAIN + VAL :])


def _dataset(
    records: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    augmentation: Augmentation | None = None,
) -> ImageDataset:
    return ImageDataset(
        records,
        rows,
        (1, 8, 8),
        largest=LARGEST,
        mean=[MEAN],
        std=[STD],
        augmentation=augmentation,
    )


def read_digits() -> npt.NDArray[np.uint8]:
    """Return the records, uint8 [1797, 65]: the digit, then its pixels.

    The file is read without importing scikit-learn, which takes seconds.
    Raises DataError when it is missing or damaged.
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise DataError("data=digits needs scikit-learn: pip install scikit-learn")
    file = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(file, np.uint8, delimiter=",").reshape(TRAIN + 2 * VAL, 65)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(
            f"{file} is missing or damaged ({error}): pip install --force-reinstall scikit-learn"
        ) from error
    return np.roll(table, 1, axis=1)
