"""What the data modules here share: loaders, checks of their keys, arrays in files."""

import os
import uuid
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from hydra_trainer.errors import ConfigError

Batch = tuple[torch.Tensor, torch.Tensor]
"""Images: float32 [B, C, H, W] and int64 [B]. Tokens: int64 [B, T] and int64 [B, T]."""


class BatchedDataset(Dataset[Batch]):
    """A dataset that makes a whole batch at once, several times faster than item by item.

    What it returns is a function of its seed, the epoch that the indices carry, and each index.
    """

    pure = True

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return the batch of these samples."""
        raise NotImplementedError

    def __getitem__(self, index: int) -> Batch:
        """Return one sample, for a look at the data; loaders call __getitems__."""
        first, second = self.__getitems__([range(len(self))[index]])
        return first[0], second[0]


def already_collated(batch: Any) -> Any:
    """Return `batch`: the collate_fn of a dataset that makes whole batches."""
    return batch


class DataModule(LightningDataModule):
    """Loaders over `train_set`, `val_set` and `test_set`, which `setup` of a subclass fills.

    `batch_size` is the number of samples of one step over all processes. The loaders are plain:
    hydra_trainer.data.resumable makes them resumable and shares them out.

    `problems` are what the checks below have found wrong with the other keys; all problems are
    raised together as one ConfigError.
    """

    train_set: BatchedDataset
    val_set: BatchedDataset
    test_set: BatchedDataset

    def __init__(self, batch_size: int, num_workers: int, seed: int, *problems: list[str]) -> None:
        found = [
            *whole_number("batch_size", batch_size, 1, 64),
            *whole_number("num_workers", num_workers, 0, 2),
            *chain.from_iterable(problems),
            *whole_number("seed", seed, 0, 0),
        ]
        if found:
            raise ConfigError(found)
        super().__init__()
        self.batch_size = batch_size
        self.num_workers = num_workers

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return the shuffled training batches; samples after the last whole batch are left out."""
        return self._loader(self.train_set, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return the validation batches, in order."""
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return the test batches, in order."""
        return self._loader(self.test_set)

    def _loader(self, dataset: BatchedDataset, **options: Any) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=already_collated,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
            **options,
        )


def whole_number(key: str, value: object, least: int, example: int) -> list[str]:
    """Return the problem with data.`key` when it is no whole number of at least `least`."""
    ok = isinstance(value, int) and not isinstance(value, bool) and value >= least
    return problem_unless(ok, key, value, f"a whole number, {least} or more", example)


def fraction(key: str, value: object, example: float) -> list[str]:
    """Return the problem with data.`key` when it is no number between 0 and 1."""
    ok = isinstance(value, int | float) and 0 < value < 1
    return problem_unless(ok, key, value, "a number between 0 and 1", example)


def flag(key: str, value: object) -> list[str]:
    """Return the problem with data.`key` when it is neither true nor false."""
    return problem_unless(isinstance(value, bool), key, value, "true or false", "true")


def location(key: str, value: object, what: str, example: str) -> list[str]:
    """Return the problem with data.`key` when it is no text that could be such a path.

    One in S3 is none, unless `what` names that.
    """
    if isinstance(value, str) and value.startswith("s3://") and "s3://" not in what:
        return [
            f"data.{key} is {value!r}, but these data are read from {what} of the machine. Type "
            f"data.{key}={example}, pack them for data=shards, which streams from S3 (docs/"
            "storage.md), or mount it: access=fastfile on SageMaker, access=csi on EKS."
        ]
    ok = isinstance(value, str) and value.strip() != ""
    return problem_unless(ok, key, value, f"the path of {what}", example)


def problem_unless(ok: bool, key: str, value: object, allowed: str, example: object) -> list[str]:
    """Return the sentence about data.`key` unless its value is `ok`."""
    return (
        [] if ok else [f"data.{key} is {value!r}, allowed is {allowed}: type data.{key}={example}"]
    )


def expand(path: str) -> Path:
    """Return the path with `~` and environment variables filled in, where they are known."""
    # Not Path.expanduser, which raises for a user without a home, as in many containers.
    return Path(os.path.expanduser(os.path.expandvars(path)))  # noqa: PTH111


class MappedArray:
    """A read-only array in a raw file, mapped on first use.

    It goes to a spawned loader worker as its path; numpy's own memmap would go as all its bytes.
    """

    def __init__(self, path: Path, dtype: str, shape: tuple[int, ...]) -> None:
        self.path = path
        self.dtype = dtype
        self.shape = shape
        self._array: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Index the array. Raises OSError when the file is gone, ValueError when it is short."""
        if self._array is None:
            self._array = np.memmap(self.path, dtype=self.dtype, mode="r", shape=self.shape)
        return self._array[key]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}


def write_atomically(path: Path, content: npt.NDArray[np.uint8]) -> None:
    """Write a file that is there in full or not at all, also when several processes write it.

    Raises OSError when the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two machines may write to one folder with equal process ids; and unlike tempfile's, this file
    # can be read by others who share the folder.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(np.ascontiguousarray(content).data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
