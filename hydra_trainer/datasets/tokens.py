"""Token windows for language models, from a file of token ids or from a text that is always there.

The default text is `pydoc_data.topics` of the Python that runs this: the language reference as
`help()` shows it, about 465,000 characters, copyright Python Software Foundation, PSF License
Version 2. It differs between Python versions, so its SHA-256 is kept as `Tokens.digest`. A token
of it is an ASCII code; 0 stands for each character outside ASCII (about 1 in 800).

A file (`path`) is raw token ids, little-endian, without a header, the train.bin of nanoGPT for
one; it is memory-mapped, so it may be larger than memory.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hydra_trainer.data import epoch_of, mix
from hydra_trainer.errors import DataError

from .base import (
    Batch,
    BatchedDataset,
    DataModule,
    MappedArray,
    expand,
    fraction,
    location,
    problem_unless,
    whole_number,
)

DTYPES = {"uint8": "u1", "uint16": "<u2", "uint32": "<u4"}
TEXT = "pydoc_data.topics"
CHECKED_AT_START = 2**24  # tokens, in some 10 ms; each batch is checked anyway

Array = npt.NDArray[Any] | MappedArray


class Tokens(DataModule):
    """Windows of `block_size` tokens and the same windows one token on, as inputs and targets.

    `path` is the file, `dtype` how it holds a token (uint8, uint16, uint32); None is the text
    above. The last `test_fraction` of it is the test set, the `val_fraction` before that the
    validation set. `digest` is the SHA-256 of the text's tokens, None for a file.

    Batches are int64 [B, T] twice. Raises ConfigError for bad keys, DataError when the file is
    missing, cut short, too small, or has a token that is not below `vocab_size`.
    """

    def __init__(
        self,
        path: str | None = None,
        dtype: str = "uint16",
        vocab_size: int = 128,
        block_size: int = 128,
        batch_size: int = 32,
        num_workers: int = 0,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size,
            num_workers,
            seed,
            [] if path is None else location("path", path, "a file, or null", "null"),
            problem_unless(dtype in list(DTYPES), "dtype", dtype, " | ".join(DTYPES), "uint16"),
            whole_number("vocab_size", vocab_size, 2, 128),
            whole_number("block_size", block_size, 1, 128),
            _fractions(val_fraction, test_fraction),
        )
        self.path = None if path is None else expand(path)
        self.dtype = dtype
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.seed = seed
        self.digest: str | None = None

    def setup(self, stage: str) -> None:
        """Map the file (or make the text's tokens) and split it."""
        tokens = self._tokens()
        test = len(tokens) - int(len(tokens) * self.test_fraction)
        val = test - int(len(tokens) * self.val_fraction)
        self.train_set = self._windows(tokens, "training", 0, val, shifted=True)
        self.val_set = self._windows(tokens, "validation", val, test)
        self.test_set = self._windows(tokens, "test", test, len(tokens))
        self.train_set.check(tokens[:CHECKED_AT_START])

    def _tokens(self) -> Array:
        if self.path is not None:
            return map_tokens(self.path, self.dtype)
        tokens = text_tokens()
        self.digest = hashlib.sha256(tokens.tobytes()).hexdigest()
        return tokens

    def _windows(
        self, tokens: Array, part: str, begin: int, end: int, shifted: bool = False
    ) -> "TokenWindows":
        name = str(self.path or TEXT)
        # With the offset of a shifted epoch, up to block_size - 1, a window less may fit.
        least = 2 * self.block_size if shifted else self.block_size + 1
        if end - begin < least:
            raise DataError(
                f"{name} has {len(tokens)} tokens, of which the {part} set gets {end - begin}: "
                f"too few for one window of data.block_size={self.block_size}. Type a smaller "
                "data.block_size, other fractions, or give a longer file."
            )
        return TokenWindows(
            tokens=tokens,
            begin=begin,
            end=end,
            block_size=self.block_size,
            vocab_size=self.vocab_size,
            name=name,
            seed=self.seed if shifted else None,
        )


def _fractions(val: float, test: float) -> list[str]:
    problems = [*fraction("val_fraction", val, 0.05), *fraction("test_fraction", test, 0.05)]
    if problems or val + test < 1:
        return problems
    allowed = f"a number below {1 - test:g}, to leave some to train on (data.test_fraction={test})"
    return problem_unless(False, "val_fraction", val, allowed, f"{(1 - test) / 2:g}")


@dataclass(eq=False, kw_only=True)
class TokenWindows(BatchedDataset):
    """The windows of tokens[begin:end], side by side.

    With a `seed` each epoch begins them at an offset of its own, below `block_size`, so that the
    model does not see the same cuts again; the number of windows is the same for any offset.
    """

    tokens: Array
    begin: int
    end: int
    block_size: int
    vocab_size: int
    name: str
    seed: int | None

    def __len__(self) -> int:
        lost = 1 if self.seed is None else self.block_size
        return (self.end - self.begin - lost) // self.block_size

    def __getitems__(self, indices: list[int]) -> Batch:
        """Return inputs and targets, both int64 [B, T].

        Raises DataError when a token is not below `vocab_size`.
        """
        starts = np.asarray(indices) * self.block_size + self.offset(epoch_of(indices))
        part = self.tokens[self.begin : self.end]
        windows = np.lib.stride_tricks.sliding_window_view(part, self.block_size + 1)[starts]
        self.check(windows)
        inputs, targets = windows[:, :-1].astype(np.int64), windows[:, 1:].astype(np.int64)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def offset(self, epoch: int) -> int:
        """Return where the first window of this epoch begins."""
        return 0 if self.seed is None else mix(self.seed, epoch) % self.block_size

    def check(self, tokens: npt.NDArray[Any]) -> None:
        """Raise DataError when a token is not below `vocab_size`."""
        largest = int(tokens.max())
        if largest >= self.vocab_size:
            raise DataError(
                f"{self.name} has the token {largest}, which data.vocab_size={self.vocab_size} "
                f"does not allow: type data.vocab_size={largest + 1} or more, or the right "
                "data.dtype."
            )


def map_tokens(path: Path, dtype: str) -> MappedArray:
    """Return the file's tokens, memory-mapped.

    Raises DataError when it cannot be read or its size does not fit the dtype.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise DataError(
            f"data.path={path} cannot be read ({error}): give a file of token ids (raw "
            f"{dtype}, little-endian), or type data.path=null for the built-in text."
        ) from error
    width = np.dtype(DTYPES[dtype]).itemsize
    if size == 0 or size % width:
        raise DataError(
            f"{path} has {size} bytes, no whole number of {dtype} tokens of {width} bytes: it is "
            "empty, cut short, or needs another data.dtype."
        )
    return MappedArray(path, DTYPES[dtype], (size // width,))


def text_tokens() -> npt.NDArray[np.uint8]:
    """Return the built-in text as ASCII codes, uint8 [N], with 0 for every other character.

    Raises DataError when this Python came without it.
    """
    try:
        from pydoc_data.topics import topics  # half a megabyte that only this text needs
    except ImportError as error:
        raise DataError(
            f"This Python lacks {TEXT}, the built-in text: type data.path=FILE of token ids."
        ) from error
    text = "\n\n".join(topics[name] for name in sorted(topics))
    codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
    return np.where(codes < 128, codes, 0).astype(np.uint8)
