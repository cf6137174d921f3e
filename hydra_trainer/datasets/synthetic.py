"""Random images and random tokens, for benchmarks only: there is nothing in them to learn.

Made from the seed, so they have no source and no licence. A sample is copied out of a pool of at
most 64 MiB (or one sample), so that making it costs no more than reading a real one from memory.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from hydra_trainer.data import mix

from .base import Batch, BatchedDataset, DataModule, problem_unless, whole_number

POOL = 2**26  # bytes


@dataclass(eq=False)
class Repeated(BatchedDataset):
    """`size` samples, of which sample i is number i modulo the number of samples in the pool."""

    size: int
    pool: Batch

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return the batch of these samples."""
        inputs, targets = self.pool
        rows = torch.tensor(indices) % len(inputs)
        return inputs[rows], targets[rows]


def pools(
    size: int, seed: int, sample_bytes: int, make: Callable[[int, torch.Generator], Batch]
) -> Iterator[Repeated]:
    """Yield the samples to train, and a tenth as many to validate and to test."""
    tenth = math.ceil(size / 10)
    for part, length in enumerate([size, tenth, tenth]):
        count = max(1, min(length, POOL // sample_bytes))
        generator = torch.Generator().manual_seed(mix(seed, part))
        yield Repeated(length, make(count, generator))


class SyntheticImages(DataModule):
    """`size` random images of `shape` (C, H, W) to train, a tenth as many to validate and test.

    Batches are float32 [B, C, H, W], normal with mean 0 and variance 1, and int64 [B].
    Raises ConfigError for bad keys.
    """

    def __init__(
        self,
        shape: list[int],
        num_classes: int = 10,
        size: int = 50_000,
        batch_size: int = 128,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size,
            num_workers,
            seed,
            _shape(shape),
            whole_number("num_classes", num_classes, 2, 10),
            whole_number("size", size, 1, 50_000),
        )
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.size = size
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Make the pools."""
        parts = pools(self.size, self.seed, 4 * math.prod(self.shape), self._make)
        self.train_set, self.val_set, self.test_set = parts

    def _make(self, count: int, generator: torch.Generator) -> Batch:
        images = torch.randn(count, *self.shape, generator=generator)
        return images, torch.randint(self.num_classes, (count,), generator=generator)


def _shape(shape: object) -> list[str]:
    ok = isinstance(shape, list | tuple) and len(shape) == 3 and all(map(_is_size, shape))
    allowed = "three whole numbers, 1 or more: [channels, height, width]"
    return problem_unless(ok, "shape", shape, allowed, "[3,32,32]")


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class SyntheticTokens(DataModule):
    """`size` random windows of `block_size` tokens to train, a tenth as many to validate and test.

    Batches are int64 [B, T] twice, inputs and targets. Raises ConfigError for bad keys.
    """

    def __init__(
        self,
        vocab_size: int = 50_304,
        block_size: int = 1024,
        size: int = 10_000,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size,
            num_workers,
            seed,
            whole_number("vocab_size", vocab_size, 2, 50_304),
            whole_number("block_size", block_size, 1, 1024),
            whole_number("size", size, 1, 10_000),
        )
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.size = size
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Make the pools."""
        parts = pools(self.size, self.seed, 8 * (self.block_size + 1), self._make)
        self.train_set, self.val_set, self.test_set = parts

    def _make(self, count: int, generator: torch.Generator) -> Batch:
        shape = (count, self.block_size + 1)
        windows = torch.randint(self.vocab_size, shape, generator=generator)
        return windows[:, :-1], windows[:, 1:]
