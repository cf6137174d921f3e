"""Augmentation of whole batches, with randomness that is counted instead of drawn.

Sample i of epoch e is augmented by a hash of (seed, e, i): the same in any loader worker, on any
process, and after any resume, and no state has to be saved.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from hydra_trainer.data import GOLDEN, epoch_of, mix

Pixels = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


def random_words(key: int, indices: npt.ArrayLike, count: int) -> Words:
    """Return `count` random 64-bit words for each index: uint64 [B, count].

    Index i gets outputs i*count to (i+1)*count-1 of the splitmix64 stream that starts at `key`
    (Steele, Lea and Flood, OOPSLA 2014), which can be computed at any place.
    """
    first = np.asarray(indices, dtype=np.uint64)[:, None] * np.uint64(count)
    counter = first + np.arange(1, count + 1, dtype=np.uint64)
    words = np.asarray(counter * np.uint64(GOLDEN) + np.uint64(key), dtype=np.uint64)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def below(words: Words, limit: int) -> npt.NDArray[np.int64]:
    """Return numbers in [0, limit); their bias is limit / 2^64."""
    return (words % np.uint64(limit)).astype(np.int64)


@dataclass(frozen=True)
class Augmentation:
    """Random crop of the padded image, horizontal flip and cutout, all optional.

    `padding` in pixels on every side, filled by reflection or with zeros (He et al. 2016,
    arXiv:1512.03385, section 4.2, use 4 and a flip for CIFAR). `cutout` is the side of a square
    set to the data's mean (DeVries and Taylor 2017, arXiv:1708.04552), 0 for none; its centre
    may lie anywhere, so part of it can be outside.
    """

    seed: int
    padding: int = 0
    pad_mode: Literal["reflect", "constant"] = "reflect"
    flip: bool = False
    cutout: int = 0

    def words(self, indices: list[int]) -> Words:
        """Return the random words of these samples in the epoch that `indices` carry: [B, 5]."""
        return random_words(mix(self.seed, epoch_of(indices)), indices, 5)

    def move(self, images: Pixels, words: Words) -> Pixels:
        """Return the images uint8 [B, C, H, W] cropped and flipped; those given may be used up."""
        if self.padding:
            span = 2 * self.padding + 1
            images = crop(
                images,
                below(words[:, 0], span),
                below(words[:, 1], span),
                self.padding,
                self.pad_mode,
            )
        if self.flip:
            flipped = below(words[:, 2], 2) == 1
            images[flipped] = images[flipped, :, :, ::-1]
        return images

    def cut(self, images: torch.Tensor, words: Words) -> torch.Tensor:
        """Return the normalised images float32 [B, C, H, W] with a square of each set to 0."""
        if not self.cutout:
            return images
        height, width = images.shape[-2:]
        rows = self._inside(below(words[:, 3], height), height)
        columns = self._inside(below(words[:, 4], width), width)
        square = torch.from_numpy(rows[:, :, None] & columns[:, None, :])
        return images.masked_fill_(square[:, None], 0.0)

    def _inside(self, centre: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.bool_]:
        offset = np.arange(length) - centre[:, None] + self.cutout // 2
        return (offset >= 0) & (offset < self.cutout)


def crop(
    images: Pixels,
    top: npt.NDArray[np.int64],
    left: npt.NDArray[np.int64],
    padding: int,
    pad_mode: Literal["reflect", "constant"],
) -> Pixels:
    """Cut image b of uint8 [B, C, H, W] out of its padded self at (top[b], left[b])."""
    height, width = images.shape[-2:]
    sides = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    padded = np.pad(images, sides, mode=pad_mode)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (height, width), axis=(2, 3))
    return windows[np.arange(len(images)), :, top, left]
