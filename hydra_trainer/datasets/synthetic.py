"""Random images and random tokens, for benchmarks only: there is nothing in them to learn.

Made from the seed, so they have no source and no licence. A sample is copied out of a pool of at
most 64 MiB, so that making it costs no more than reading a real one from memory.
"""

import math

import torch

from hydra_trainer.data import mix

from .base import (
    Batch,
    BatchedDataset,
    DataModule,
    loader_keys,
    problem_unless,
    report,
    whole_number,
)

POOL = 2**24  # numbers of 4 bytes: float32 pixels, int32 tokens
TRAIN, VAL, TEST = 0, 1, 2


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
        report(
            loader_keys(batch_size, num_workers),
            _shape_key(shape),
            whole_number("num_classes", num_classes, 2, 10),
            whole_number("size", size, 1, 50_000),
            whole_number("seed", seed, 0, 0),
        )
        super().__init__(batch_size, num_workers)
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.size = size
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Make the pools."""
        tenth = math.ceil(self.size / 10)
        self.train_set = RandomImages(self.size, self.shape, self.num_classes, self.seed, TRAIN)
        self.val_set = RandomImages(tenth, self.shape, self.num_classes, self.seed, VAL)
        self.test_set = RandomImages(tenth, self.shape, self.num_classes, self.seed, TEST)


def _shape_key(shape: list[int]) -> list[str]:
    ok = (
        isinstance(shape, list | tuple)
        and len(shape) == 3
        and all(isinstance(n, int) and n > 0 for n in shape)
    )
    return problem_unless(ok, "shape", shape, "[channels, height, width]", "[3,32,32]")


class RandomImages(BatchedDataset):
    """Sample i is image i modulo the number of images in the pool."""

    def __init__(
        self, size: int, shape: tuple[int, ...], num_classes: int, seed: int, part: int
    ) -> None:
        self.size = size
        pool = max(1, min(size, POOL // math.prod(shape)))
        generator = torch.Generator().manual_seed(mix(seed, part))
        self.images = torch.randn(pool, *shape, generator=generator)
        self.labels = torch.randint(num_classes, (pool,), generator=generator)

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return (float32 [B, C, H, W], int64 [B])."""
        rows = torch.tensor(indices) % len(self.images)
        return self.images[rows], self.labels[rows]


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
        report(
            loader_keys(batch_size, num_workers),
            whole_number("vocab_size", vocab_size, 2, 50_304),
            whole_number("block_size", block_size, 1, 1024),
            whole_number("size", size, 1, 10_000),
            whole_number("seed", seed, 0, 0),
        )
        super().__init__(batch_size, num_workers)
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.size = size
        self.seed = seed

    def setup(self, stage: str) -> None:
        """Make the pools."""
        tenth = math.ceil(self.size / 10)
        self.train_set = self._part(self.size, TRAIN)
        self.val_set = self._part(tenth, VAL)
        self.test_set = self._part(tenth, TEST)

    def _part(self, size: int, part: int) -> "RandomTokens":
        return RandomTokens(size, self.vocab_size, self.block_size, self.seed, part)


class RandomTokens(BatchedDataset):
    """Sample i is window i modulo the number of windows in the pool."""

    def __init__(self, size: int, vocab_size: int, block_size: int, seed: int, part: int) -> None:
        self.size = size
        pool = max(1, min(size, POOL // (block_size + 1)))
        generator = torch.Generator().manual_seed(mix(seed, part))
        shape = (pool, block_size + 1)
        self.windows = torch.randint(vocab_size, shape, generator=generator, dtype=torch.int32)

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return inputs and targets, both int64 [B, T]."""
        windows = self.windows[torch.tensor(indices) % len(self.windows)]
        return windows[:, :-1].long(), windows[:, 1:].long()
