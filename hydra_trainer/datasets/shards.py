"""Packed data sets, on a disk or in S3: images with labels, windows of tokens, or any columns.

    python train.py data=shards data.root=s3://bucket/prefix data.shape=[3,32,32]
    python train.py data=shards_tokens model=gpt data.root=/mnt/data/text

`hydra-trainer data pack` makes them (docs/storage.md). `root` holds one set, or the sets train, val
and test below it; a set for validation or test that is not there is held out of the training set.
Sample by sample the batches are the same for data on a disk, a mount, or in S3.
"""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hydra_trainer.data import Order
from hydra_trainer.data import Place as Position
from hydra_trainer.errors import ConfigError, DataError, did_you_mean
from hydra_trainer.objects import Settings
from hydra_trainer.shards.cache import Cache
from hydra_trainer.shards.format import INDEX, Index, Taken
from hydra_trainer.shards.order import Layout
from hydra_trainer.shards.places import Place
from hydra_trainer.shards.places import place as place_of
from hydra_trainer.shards.reading import Reader, Selection, read_index

from .augment import Augmentation, Words
from .base import (
    Batch,
    BatchedDataset,
    DataModule,
    expand,
    flag,
    location,
    problem_unless,
    whole_number,
)
from .images import Finish

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class Packed(BatchedDataset):
    """Samples of a packed data set, in the order that is quickest to read.

    What a subclass makes of the columns is in `_batch`.
    """

    ahead = True

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitems__(self, indices: list[int]) -> Any:
        """Return the batch of these samples. Raises DataError, StorageError."""
        place: Position | None = getattr(indices, "place", None)
        return self._batch(self.reader.take(indices, place), indices)

    def epoch_order(self, seed: int, epoch: int, shuffle: bool) -> Order:
        """Return the order of an epoch (hydra_trainer.data.MakeOrder)."""
        return self.reader.order(seed, epoch, shuffle)

    def _batch(self, taken: Taken, indices: list[int]) -> Any:
        raise NotImplementedError


class PackedModule(DataModule):
    """What the data modules here share: where the data are, how they are split, mixed, and kept.

    Raises ConfigError for bad keys; `setup` raises DataError for data that are missing, damaged, or
    not what the keys say, and StorageError when S3 does not give them.
    """

    s3: Settings = Settings()
    """How S3 is reached: what storage.s3 says, once training begins."""

    def __init__(
        self,
        root: str,
        batch_size: int,
        num_workers: int,
        val_fraction: float,
        test_fraction: float,
        buffer: int | str,
        rank_lanes: int,
        batch_lanes: int,
        cache: str | None,
        cache_size: int | str,
        seed: int,
        *problems: list[str],
    ) -> None:
        super().__init__(
            batch_size,
            num_workers,
            seed,
            location("root", root, "a folder, or s3://BUCKET/PREFIX", "s3://BUCKET/PREFIX"),
            _share("val_fraction", val_fraction),
            _share("test_fraction", test_fraction),
            _size("buffer", buffer, "512MiB"),
            whole_number("rank_lanes", rank_lanes, 1, 8),
            whole_number("batch_lanes", batch_lanes, 1, 4),
            [] if cache is None else location("cache", cache, "a folder, or null", "null"),
            _size("cache_size", cache_size, "100GiB"),
            *problems,
        )
        self.root = root
        self.seed = seed
        self.fractions = {"val": val_fraction, "test": test_fraction}
        self.layout = Layout(batch_size, size_of(buffer), rank_lanes, batch_lanes)
        self.cache = None if cache is None else Cache(expand(cache), size_of(cache_size))
        self.seal: str | None = None
        self.facts: Mapping[str, Any] = {}

    def setup(self, stage: str) -> None:
        """Read the indexes, and open what they describe."""
        root = self.root if "://" in self.root else str(expand(self.root))
        place, own = place_of(root, self.s3), {}
        index = read_index(place)
        if index is None:
            whole, place = place, place.below("train")
            index = read_index(place)
            own = {part: whole.below(part) for part in ("val", "test")}
        if index is None:
            raise DataError(
                f"data.root={self.root} has no packed data: there is neither {root}/{INDEX} nor "
                f"{root}/train/{INDEX}. Pack some: hydra-trainer data pack SOURCE {self.root}, or "
                "type data.root=PLACE."
            )
        self.seal, self.facts = index.seal, index.facts
        low, held_out = 0.0, {}
        for part in ("val", "test"):
            found = read_index(own[part]) if own else None
            if found is not None:
                held_out[part] = self._set(own[part], found)
            else:
                high = low + self.fractions[part]
                held_out[part] = self._set(place, index, low, high)
                low = high
        self.train_set = self._set(place, index, low, 1.0, train=True)
        self.val_set, self.test_set = held_out["val"], held_out["test"]

    def _set(
        self, place: Place, index: Index, low: float = 0.0, high: float = 1.0, train: bool = False
    ) -> Packed:
        self.check(f"{place.uri}/{INDEX}", index)
        selection = Selection(index, low, high)
        if not len(selection):
            raise DataError(
                f"{place.uri} has {index.samples} samples, of which a share of {high - low:g} is "
                "none: give more data, or type a larger data.val_fraction and data.test_fraction."
            )
        reader = Reader(place, index, self.layout, selection, self.columns(), self.cache)
        return self.open(reader, train)

    def columns(self) -> Sequence[str] | None:
        """Return the columns that are read; None for all."""
        return None

    def check(self, where: str, index: Index) -> None:
        """Raise DataError when an index is not what the keys say."""
        for name in self.columns() or ():
            if name not in (known := [column.name for column in index.columns]):
                raise DataError(
                    f"{where} has no column {name!r}, it has {', '.join(known)}."
                    f"{did_you_mean(name, known)}"
                )

    def open(self, reader: Reader, train: bool) -> Packed:
        """Return the data set over a reader."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint has to know: which data these are, and how they are ordered."""
        layout = self.layout
        return {
            "data": self.seal,
            "order": [layout.batch_size, layout.buffer, layout.rank_lanes, layout.batch_lanes],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the order that the run began with.

        Raises DataError when it began with other data.
        """
        if self.seal is not None and state["data"] != self.seal:
            raise DataError(
                f"The checkpoint was made with other data than data.root={self.root} has now: "
                f"their index has the checksum {state['data']}, this one {self.seal}. Give the "
                "same data, or start a new run: again=true."
            )
        self.layout = Layout(*state["order"])
        for part in (self.train_set, self.val_set, self.test_set):
            assert isinstance(part, Packed)
            part.reader.layout = self.layout


# ------------------------------------------------------------------------------------------ images


class Shards(PackedModule):
    """Labelled images: uint8 [C, H, W] as they are, or PNG and JPEG files decoded on the way.

    `image` and `label` are the columns; `shape` and `num_classes` what the model is built for. An
    encoded image is cut to the form of `shape` around its middle, and resized. `augment` is, in
    training, a random crop with `padding` pixels of reflection and a flip; of encoded images, a
    crop of 8% to 100% of the area with sides of 3:4 to 4:3, and a flip. `cutout` is a square's
    side. `mean` and `std` are of pixel / 255; None: what the index says, else ImageNet's.

    Batches are float32 [B, C, H, W] and int64 [B].
    """

    def __init__(
        self,
        root: str,
        shape: list[int],
        num_classes: int = 10,
        image: str = "image",
        label: str = "label",
        mean: list[float] | None = None,
        std: list[float] | None = None,
        augment: bool = True,
        padding: int = 4,
        cutout: int = 0,
        batch_size: int = 128,
        num_workers: int = 2,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        buffer: int | str = "512MiB",
        rank_lanes: int = 8,
        batch_lanes: int = 4,
        cache: str | None = None,
        cache_size: int | str = "100GiB",
        seed: int = 0,
    ) -> None:
        super().__init__(
            root,
            batch_size,
            num_workers,
            val_fraction,
            test_fraction,
            buffer,
            rank_lanes,
            batch_lanes,
            cache,
            cache_size,
            seed,
            _shape(shape),
            whole_number("num_classes", num_classes, 2, 10),
            _name("image", image),
            _name("label", label),
            _channels("mean", mean, shape, "[0.49,0.48,0.45]"),
            _channels("std", std, shape, "[0.25,0.24,0.26]"),
            flag("augment", augment),
            whole_number("padding", padding, 0, 4),
            whole_number("cutout", cutout, 0, 16),
        )
        self.shape = tuple(shape)
        self.num_classes = num_classes
        self.image, self.label = image, label
        self.mean, self.std = mean, std
        self.augment, self.padding, self.cutout = augment, padding, cutout

    def columns(self) -> list[str]:
        """Return the columns that are read."""
        return [self.image, self.label]

    def check(self, where: str, index: Index) -> None:
        """Raise DataError when an index is not what the keys say."""
        super().check(where, index)
        image, label = index.column(self.image), index.column(self.label)
        shown = ",".join(map(str, image.shape or ()))
        if image.shape is None and image.encoding != "image":
            raise DataError(
                f"{where}: the column {image.name!r} holds no images. Type data.image=NAME for the "
                "one that does."
            )
        if image.shape is not None and (image.dtype != "uint8" or len(image.shape) != 3):
            raise DataError(
                f"{where}: the column {image.name!r} is {image.dtype} [{shown}], images are uint8 "
                "[channels, height, width]. Type data.image=NAME for another column."
            )
        if image.shape is not None and image.shape != self.shape:
            raise DataError(
                f"{where}: its images are [{shown}], data.shape is {list(self.shape)}: type "
                f"data.shape=[{shown}]."
            )
        if label.shape != () or not label.dtype.startswith(("int", "uint")):
            raise DataError(
                f"{where}: the column {label.name!r} is not one whole number for each sample. Type "
                "data.label=NAME for the one that is."
            )
        classes = index.facts.get("classes")
        if isinstance(classes, list) and len(classes) != self.num_classes:
            raise DataError(
                f"{where} has {len(classes)} classes, data.num_classes is {self.num_classes}: type "
                f"data.num_classes={len(classes)}."
            )

    def open(self, reader: Reader, train: bool) -> Packed:
        """Return the images of a reader."""
        is_encoded = reader.index.column(self.image).shape is None
        moves = train and (self.augment or self.cutout > 0)
        augmentation = Augmentation(
            self.seed,
            padding=self.padding if self.augment and not is_encoded else 0,
            flip=self.augment,
            cutout=self.cutout,
        )
        mean, std = self.mean or self.facts.get("mean"), self.std or self.facts.get("std")
        usual = IMAGENET if self.shape[0] == 3 else GREY
        finish = Finish(255, mean or usual[0], std or usual[1], augmentation if moves else None)
        return PackedImages(reader, self, finish, crops=train and self.augment)


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
GREY = ([0.45], [0.225])


class PackedImages(Packed):
    """The images and labels of a reader, as `module` says."""

    def __init__(self, reader: Reader, module: Shards, finish: Finish, crops: bool) -> None:
        super().__init__(reader)
        self.shape, self.num_classes = module.shape, module.num_classes
        self.image, self.label = module.image, module.label
        self.finish = finish
        self.crops = crops

    def _batch(self, taken: Taken, indices: list[int]) -> Batch:
        images, labels = taken[self.image], np.asarray(taken[self.label]).astype(np.int64)
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise DataError(
                f"{self.reader.uri} has the label {labels[np.argmax(np.abs(labels))]}, but "
                f"data.num_classes={self.num_classes} allows 0 to {self.num_classes - 1}."
            )
        if isinstance(images, list):
            images = self._decoded(images, indices)
        return self.finish(images, indices), torch.from_numpy(labels)

    def _decoded(self, files: list[Any], indices: list[int]) -> npt.NDArray[np.uint8]:
        augmentation = self.finish.augmentation
        words = augmentation.words(indices) if self.crops and augmentation else None
        pixels = np.empty((len(files), *self.shape), np.uint8)
        for row, file in enumerate(files):
            chosen = None if words is None else words[row]
            try:
                pixels[row] = decode(file, self.shape, chosen)
            except (OSError, ValueError, SyntaxError) as error:
                raise DataError(
                    f"{self.reader.uri}: sample {indices[row]} cannot be decoded as an image "
                    f"({error}). Pack the data again without it."
                ) from error
        return pixels


def decode(file: Any, shape: Sequence[int], words: Words | None) -> npt.NDArray[np.uint8]:
    """Return the pixels uint8 [C, H, W] of a PNG or JPEG file, from a random part or the middle.

    Raises what pillow raises for damaged files: OSError, ValueError, SyntaxError.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ConfigError(
            "Images in files need the package pillow. Type pip install 'hydra-trainer[data]'."
        ) from None
    channels, height, width = shape
    image = Image.open(io.BytesIO(file))
    before = image.size
    part = _middle(before, width / height) if words is None else _part(before, words)
    left, top, across, down = part
    mode = "RGB" if channels == 3 else "L"
    # A JPEG of many more pixels than wanted is decoded to fewer, at a fraction of the cost.
    image.draft(mode, (math.ceil(before[0] * width / across), math.ceil(before[1] * height / down)))
    x, y = image.size[0] / before[0], image.size[1] / before[1]
    box = (
        left * x,
        top * y,
        min((left + across) * x, image.size[0]),
        min((top + down) * y, image.size[1]),
    )
    resized = image.convert(mode).resize((width, height), Image.Resampling.BILINEAR, box)
    pixels = np.asarray(resized, np.uint8).reshape(height, width, channels)
    return pixels.transpose(2, 0, 1)


Part = tuple[float, float, float, float]
"""Left, top, width, height, in pixels."""


def _middle(size: tuple[int, int], ratio: float) -> Part:
    """Return the largest part with this width / height, around the middle."""
    width = min(size[0], size[1] * ratio)
    height = width / ratio
    return (size[0] - width) / 2, (size[1] - height) / 2, width, height


def _part(size: tuple[int, int], words: Words) -> Part:
    """Return a random part: 8% to 100% of the area, sides of 3:4 to 4:3 (Szegedy et al. 2015)."""
    area, ratio = (int(word) >> 32 for word in words[:2])
    across, down = (int(word) & 0xFFFFFFFF for word in words[:2])
    surface = size[0] * size[1] * (0.08 + 0.92 * area / 2**32)
    form = math.exp((2 * ratio / 2**32 - 1) * math.log(4 / 3))
    width, height = min(math.sqrt(surface * form), size[0]), min(math.sqrt(surface / form), size[1])
    left = (size[0] - width) * across / 2**32
    return left, (size[1] - height) * down / 2**32, width, height


# ------------------------------------------------------------------------------------------ tokens


class ShardTokens(PackedModule):
    """Windows of tokens, and the same windows one token on, as inputs and targets.

    The column `tokens` holds block_size + 1 of them for each sample. Batches are int64 [B, T]
    twice.
    """

    def __init__(
        self,
        root: str,
        vocab_size: int = 128,
        block_size: int = 128,
        tokens: str = "tokens",
        batch_size: int = 32,
        num_workers: int = 0,
        val_fraction: float = 0.05,
        test_fraction: float = 0.05,
        buffer: int | str = "512MiB",
        rank_lanes: int = 8,
        batch_lanes: int = 4,
        cache: str | None = None,
        cache_size: int | str = "100GiB",
        seed: int = 0,
    ) -> None:
        super().__init__(
            root,
            batch_size,
            num_workers,
            val_fraction,
            test_fraction,
            buffer,
            rank_lanes,
            batch_lanes,
            cache,
            cache_size,
            seed,
            whole_number("vocab_size", vocab_size, 2, 128),
            whole_number("block_size", block_size, 1, 128),
            _name("tokens", tokens),
        )
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.tokens = tokens

    def columns(self) -> list[str]:
        """Return the columns that are read."""
        return [self.tokens]

    def check(self, where: str, index: Index) -> None:
        """Raise DataError when an index is not what the keys say."""
        super().check(where, index)
        column = index.column(self.tokens)
        is_whole = column.dtype.startswith(("int", "uint"))
        if column.shape is None or len(column.shape) != 1 or column.shape[0] < 2 or not is_whole:
            raise DataError(
                f"{where}: the column {column.name!r} has no windows of tokens, whole numbers "
                "[block_size + 1]. Type data.tokens=NAME for the one that has."
            )
        if column.shape[0] != self.block_size + 1:
            raise DataError(
                f"{where}: its windows have {column.shape[0]} tokens, data.block_size is "
                f"{self.block_size}: type data.block_size={column.shape[0] - 1}."
            )
        needed = index.facts.get("vocab_size")
        if isinstance(needed, int) and needed > self.vocab_size:
            raise DataError(
                f"{where} has {needed} tokens, data.vocab_size is {self.vocab_size}: type "
                f"data.vocab_size={needed} or more."
            )

    def open(self, reader: Reader, train: bool) -> Packed:
        """Return the windows of a reader."""
        return PackedTokens(reader, self.tokens, self.vocab_size)


class PackedTokens(Packed):
    """The windows of a reader."""

    def __init__(self, reader: Reader, tokens: str, vocab_size: int) -> None:
        super().__init__(reader)
        self.tokens = tokens
        self.vocab_size = vocab_size

    def _batch(self, taken: Taken, indices: list[int]) -> Batch:
        windows = torch.from_numpy(np.asarray(taken[self.tokens]).astype(np.int64))
        if len(windows) and (largest := int(windows.max())) >= self.vocab_size:
            raise DataError(
                f"{self.reader.uri} has the token {largest}, which data.vocab_size="
                f"{self.vocab_size} does not allow: type data.vocab_size={largest + 1} or more."
            )
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


# ----------------------------------------------------------------------------------- other columns


class ShardColumns(PackedModule):
    """Any columns: batches are dictionaries of tensors [B, *shape].

    A column whose samples differ in length is a list of tensors, of texts where it holds texts.

        python train.py data=own data._target_=hydra_trainer.datasets.shards.ShardColumns \
          +data.root=s3://bucket/prefix +data.names=[x,y] +data.batch_size=64

    `names` are the columns that are read; None is all.
    """

    def __init__(
        self,
        root: str,
        names: list[str] | None = None,
        batch_size: int = 128,
        num_workers: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        buffer: int | str = "512MiB",
        rank_lanes: int = 8,
        batch_lanes: int = 4,
        cache: str | None = None,
        cache_size: int | str = "100GiB",
        seed: int = 0,
    ) -> None:
        super().__init__(
            root,
            batch_size,
            num_workers,
            val_fraction,
            test_fraction,
            buffer,
            rank_lanes,
            batch_lanes,
            cache,
            cache_size,
            seed,
            [problem for name in names or [] for problem in _name("names", name)],
        )
        self.names = names

    def columns(self) -> list[str] | None:
        """Return the columns that are read; None for all."""
        return self.names

    def open(self, reader: Reader, train: bool) -> Packed:
        """Return the samples of a reader."""
        return PackedColumns(reader)


class PackedColumns(Packed):
    """The samples of a reader, as dictionaries."""

    def __getitem__(self, index: int) -> Any:
        """Return one sample, for a look at the data; loaders call __getitems__."""
        batch = self.__getitems__([range(len(self))[index]])
        return {name: values[0] for name, values in batch.items()}

    def _batch(self, taken: Taken, indices: list[int]) -> dict[str, Any]:
        return {name: self._column(name, values) for name, values in taken.items()}

    def _column(self, name: str, values: Any) -> Any:
        if isinstance(values, np.ndarray):
            return torch.from_numpy(values)
        if self.reader.columns[name].encoding == "utf-8":
            return [value.tobytes().decode() for value in values]
        return [torch.from_numpy(value) for value in values]


# ------------------------------------------------------------------------------ checks of the keys


def size_of(text: int | str) -> int:
    """Return the bytes that 512MiB, 2GiB or a number says. Raises ValueError."""
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)(I?B)?", str(text).strip().upper())
    if not found:
        raise ValueError(f"{text!r} is no number of bytes")
    return int(found[1]) * UNITS[found[2]]


def _size(key: str, value: Any, example: str) -> list[str]:
    try:
        ok = size_of(value) > 0
    except ValueError:
        ok = False
    return problem_unless(ok, key, value, "bytes, above 0, such as 64MiB or 2GiB", example)


def _share(key: str, value: Any) -> list[str]:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 0.5
    return problem_unless(ok, key, value, "a number above 0 and below 0.5", 0.1)


def _name(key: str, value: Any) -> list[str]:
    ok = isinstance(value, str) and value != ""
    return problem_unless(ok, key, value, "the name of a column", "NAME")


def _shape(shape: Any) -> list[str]:
    ok = (
        isinstance(shape, list | tuple)
        and len(shape) == 3
        and all(isinstance(size, int) and size > 0 for size in shape)
        and shape[0] in (1, 3)
    )
    allowed = "[channels, height, width] with 1 or 3 channels"
    return problem_unless(ok, "shape", shape, allowed, "[3,32,32]")


def _channels(key: str, values: Any, shape: Any, example: str) -> list[str]:
    ok = values is None or (
        isinstance(values, list | tuple)
        and isinstance(shape, list | tuple)
        and len(values) == shape[0]
        and all(isinstance(value, int | float) for value in values)
        and (key != "std" or all(value > 0 for value in values))
    )
    return problem_unless(ok, key, values, "one number for each channel, or null", example)
