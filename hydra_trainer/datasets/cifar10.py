"""CIFAR-10: 60,000 colour images of 32x32 pixels in ten classes, read from the original archives.

Collected by A. Krizhevsky, V. Nair and G. Hinton, https://www.cs.toronto.edu/~kriz/cifar.html; cite
A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. The page names no
licence. Nothing is downloaded here: put cifar-10-python.tar.gz or cifar-10-binary.tar.gz, or what
they unpack to, into data.root.

The images are unpacked once into a cache of two files in the record format of the binary version
(label, 1,024 red, 1,024 green, 1,024 blue bytes), which all processes of a machine map together.
"""

import gzip
import hashlib
import io
import logging
import os
import pickle
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from hydra_trainer.errors import ConfigError, DataError

from .augment import Augmentation
from .base import (
    DataModule,
    MappedArray,
    expand,
    flag,
    fraction,
    location,
    problem_unless,
    whole_number,
    write_atomically,
)
from .images import ImageDataset, shuffled_rows

log = logging.getLogger(__name__)

Array = npt.NDArray[np.uint8]
Records = Array | MappedArray
PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
SHAPE = (3, 32, 32)
RECORD = 1 + 3 * 32 * 32
CLASSES = 10
MEAN = [0.4914, 0.4822, 0.4465]  # of pixel / 255, over the 50,000 training images
STD = [0.2470, 0.2435, 0.2616]
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
FULL_BATCH = 10_000  # records of each batch as published
# Of the files inside the python archive. torchvision's datasets/cifar.py checks the same sums.
BATCH_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
PUBLISHED = "published"
# It finds damage, not attacks; machines in FIPS mode allow it for that.
md5sum = partial(hashlib.md5, usedforsecurity=False)


class CIFAR10(DataModule):
    """CIFAR-10, with `val_fraction` of the training images held out to validate.

    `root` is the folder of the archive or of the unpacked batches (or one of these themselves).
    `md5` is the sum that an archive must have: "published", another sum, or None to check none;
    with "published", unpacked python batches of the published size are checked too.
    `augment`: random crop with 4 pixels of reflection, and flip; `cutout` is a square's side.
    `cache` is the folder of the unpacked copy; None is hydra-trainer in $XDG_CACHE_HOME or
    ~/.cache. When it cannot be written the images are kept in memory.

    Batches are float32 [B, 3, 32, 32] and int64 [B]. Raises ConfigError for bad keys, DataError
    for files that are missing, incomplete, damaged or not what they should be.
    """

    def __init__(
        self,
        root: str,
        batch_size: int = 128,
        num_workers: int = 2,
        augment: bool = True,
        cutout: int = 0,
        val_fraction: float = 0.1,
        md5: str | None = PUBLISHED,
        cache: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size,
            num_workers,
            seed,
            location("root", root, "a folder", "~/data/cifar10"),
            flag("augment", augment),
            whole_number("cutout", cutout, 0, 16),
            fraction("val_fraction", val_fraction, 0.1),
            _md5_key(md5),
            [] if cache is None else location("cache", cache, "a folder, or null", "null"),
        )
        self.root = expand(root)
        self.md5 = md5
        self.cache = cache
        self.val_fraction = val_fraction
        self.augmentation = (
            Augmentation(seed, padding=4 if augment else 0, flip=augment, cutout=cutout)
            if augment or cutout
            else None
        )
        self._parts: tuple[Records, Records] | None = None

    def prepare_data(self) -> None:
        """Unpack into the cache, in one process of each machine."""
        self._load()

    def setup(self, stage: str) -> None:
        """Map the images and split them; always the same split."""
        train, test = self._load()
        rows = shuffled_rows(len(train))
        held_out = max(1, round(len(train) * self.val_fraction))
        self.train_set = _dataset(train, rows[held_out:], self.augmentation)
        self.val_set = _dataset(train, rows[:held_out])
        self.test_set = _dataset(test, np.arange(len(test)))

    def _load(self) -> tuple[Records, Records]:
        if self._parts is None:
            self._parts = load(self.root, self.md5, self.cache)
        return self._parts


def _md5_key(md5: object) -> list[str]:
    ok = md5 in (None, PUBLISHED) or bool(re.fullmatch(r"[0-9a-fA-F]{32}", str(md5)))
    return problem_unless(ok, "md5", md5, "published, null, or 32 hexadecimal digits", PUBLISHED)


def _dataset(
    records: Records,
    rows: npt.NDArray[np.int64],
    augmentation: Augmentation | None = None,
) -> ImageDataset:
    return ImageDataset(
        records, rows, SHAPE, largest=255, mean=MEAN, std=STD, augmentation=augmentation
    )


@dataclass(frozen=True)
class Layout:
    """One of the two published versions: its names, its archive's sum, how a batch is read."""

    archive: str
    folder: str
    md5: str
    suffix: str
    parse: Callable[[bytes, str], Array]

    @property
    def files(self) -> list[str]:
        return [batch + self.suffix for batch in BATCHES]


def load(root: Path, md5: str | None, cache: str | None) -> tuple[Records, Records]:
    """Return the training and the test records, uint8 [N, 3073], from the cache when it has them.

    Raises DataError as `read` does.
    """
    try:
        source, layout = find(root)
        copies = _copies(source, layout, md5, cache)
        if copies and all(map(_is_whole, copies)):
            return _mapped(copies[0]), _mapped(copies[1])
        records = read(source, layout, md5)
    except OSError as error:
        raise DataError(f"data.root={root} cannot be read: {error}") from error
    return _keep(records, copies)


def _keep(records: tuple[Array, Array], copies: list[Path]) -> tuple[Records, Records]:
    if not copies:
        return records
    try:
        for copy, part in zip(copies, records, strict=True):
            write_atomically(copy, part)
    except OSError as error:
        log.warning("CIFAR-10 stays in memory, data.cache cannot be written: %s", error)
        return records
    return _mapped(copies[0]), _mapped(copies[1])


def _copies(source: Path, layout: Layout, md5: str | None, cache: str | None) -> list[Path]:
    """Name the cache's files after what they are a copy of; none when there is no home folder."""
    files = [source] if source.is_file() else [source / name for name in layout.files]
    facts = [
        (str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.exists()
    ]
    name = hashlib.sha256(repr((facts, md5)).encode()).hexdigest()[:16]
    try:
        folder = expand(cache) if cache else _default_cache()
    except RuntimeError:  # no home folder
        return []
    return [folder / f"cifar10-{name}-{part}.bin" for part in ("train", "test")]


def _default_cache() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "hydra-trainer"


def _is_whole(copy: Path) -> bool:
    return copy.is_file() and copy.stat().st_size > 0 and copy.stat().st_size % RECORD == 0


def _mapped(copy: Path) -> MappedArray:
    return MappedArray(copy, "u1", (copy.stat().st_size // RECORD, RECORD))


def find(root: Path) -> tuple[Path, Layout]:
    """Return the archive or the folder of batches at `root`, archives first, and its layout.

    Raises DataError that says what is looked for and where to get it.
    """
    for candidate, layout in _candidates(root):
        if candidate.exists():
            return candidate, layout
    looked_for = ", ".join(name for layout in LAYOUTS for name in (layout.archive, layout.folder))
    state = "has none of" if root.exists() else "does not exist; it should hold one of"
    raise DataError(
        f"data.root={root} {state}: {looked_for}. Get an archive from {PAGE}, put it there as it "
        "is, or type data.root=FOLDER."
    )


def _candidates(root: Path) -> Iterator[tuple[Path, Layout]]:
    for layout in LAYOUTS:
        yield (root if root.name == layout.archive else root / layout.archive), layout
    for layout in LAYOUTS:
        yield root / layout.folder, layout
    for layout in LAYOUTS:
        if any((root / name).exists() for name in layout.files):
            yield root, layout


def read(source: Path, layout: Layout, md5: str | None) -> tuple[Array, Array]:
    """Read an archive or a folder of batches: the training and the test records, uint8 [N, 3073].

    Raises DataError when the sum is not `md5`, a batch is missing, or one is damaged.
    """
    if source.is_file():
        _check_archive(source, layout, md5)
        batches = _read_archive(source, layout)
    else:
        batches = _read_folder(source, layout, md5)
    missing = [name for name in layout.files if name not in batches]
    if missing:
        raise DataError(
            f"{source} is incomplete, it lacks {', '.join(missing)}: get the archive again "
            f"from {PAGE}."
        )
    *train, test = (batches[name] for name in layout.files)
    return np.concatenate(train), test


def _check_archive(archive: Path, layout: Layout, md5: str | None) -> None:
    if md5 is None:
        return
    expected = layout.md5 if md5 == PUBLISHED else md5.lower()
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, md5sum).hexdigest()
    if found != expected:
        whose = "the published one" if md5 == PUBLISHED else "data.md5"
        raise DataError(
            f"{archive} has the MD5 {found}, {whose} is {expected}: the download was damaged or "
            f"cut short, or it is another archive. Get it again from {PAGE}; if it is meant to be "
            f"another one in this format, type data.md5={found} (or data.md5=null: no check)."
        )


def _read_archive(archive: Path, layout: Layout) -> dict[str, Array]:
    """Parse the batches as they stream by. No member is written anywhere, whatever its path."""
    batches = {}
    try:
        # Mode "r|gz" would not compare the sum at the end of the stream.
        with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                path = PurePosixPath(member.name)
                if path.name in layout.files and path.parent.name == layout.folder:
                    batches[path.name] = layout.parse(_content(tar, member), str(archive / path))
            while stream.read(2**20):
                pass
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{archive} cannot be read, it is damaged or cut short ({error}): get it again "
            f"from {PAGE}."
        ) from error
    return batches


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member) if member.isfile() else None
    if file is None:
        raise tarfile.TarError(f"{member.name} is no plain file")
    return file.read()


def _read_folder(folder: Path, layout: Layout, md5: str | None) -> dict[str, Array]:
    if md5 not in (None, PUBLISHED):
        raise ConfigError(
            f"data.md5={md5} is the sum of an archive, but {folder} is a folder: type "
            "data.md5=null or data.md5=published."
        )
    batches = {}
    for name in layout.files:
        file = folder / name
        if file.is_file():
            content = file.read_bytes()
            batches[name] = layout.parse(content, str(file))
            if md5 == PUBLISHED and len(batches[name]) == FULL_BATCH and not layout.suffix:
                _check_batch(file, content)
    return batches


def _check_batch(file: Path, content: bytes) -> None:
    found = md5sum(content).hexdigest()
    if found != BATCH_MD5[file.name]:
        raise DataError(
            f"{file} has the MD5 {found}, the published one is {BATCH_MD5[file.name]}: unpack the "
            "archive again; if it is meant to be another file, type data.md5=null."
        )


def parse_binary(content: bytes, name: str) -> Array:
    """Return the records uint8 [N, 3073] of a batch of the binary version.

    Raises DataError when it is no whole number of records, or a label is no class.
    """
    if not content or len(content) % RECORD:
        raise DataError(
            f"{name} has {len(content)} bytes, which is no whole number of records of {RECORD} "
            f"bytes: it is damaged or cut short. Get the archive again from {PAGE}."
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, RECORD)
    _check_labels(records[:, 0], name)
    return records


def parse_python(content: bytes, name: str) -> Array:
    """Return the records uint8 [N, 3073] of a batch of the python version, a pickled dictionary.

    Raises DataError when it is something else, or a label is no class.
    """
    pixels, labels = _unpickle(content, name)
    if len(pixels) == 0 or pixels.shape[1] != RECORD - 1 or len(labels) != len(pixels):
        raise DataError(
            f"{name} holds {pixels.shape[0]} images of {pixels.shape[1]} bytes and {len(labels)} "
            f"labels; as many labels as images, of {RECORD - 1} bytes, are right."
        )
    _check_labels(labels, name)
    return np.concatenate([labels.astype(np.uint8)[:, None], pixels], axis=1)


def _check_labels(labels: npt.NDArray[Any], name: str) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= CLASSES))
    if len(wrong):
        raise DataError(
            f"{name}: record {wrong[0]} has the label {labels[wrong[0]]}, allowed is 0 to "
            f"{CLASSES - 1}. The file is damaged or is not CIFAR-10 (CIFAR-100 has two labels)."
        )


def _unpickle(content: bytes, name: str) -> tuple[Array, npt.NDArray[np.int64]]:
    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        # The published files were written by Python 2, whose text is bytes.
        fields = {key.encode() if isinstance(key, str) else key: batch[key] for key in batch}
        labels = np.array(fields[b"labels"], dtype=np.int64).reshape(-1)
        return _pixels(fields[b"data"]), labels
    except Exception as error:  # a damaged pickle can raise anything
        raise DataError(
            f"{name} cannot be read as a batch of CIFAR-10 ({type(error).__name__}: {error}): "
            f"get the archive again from {PAGE}."
        ) from error


def _pixels(data: Any) -> Array:
    """Make the array that a pickle describes by (version, shape, dtype, by columns, bytes)."""
    if not isinstance(data, _Described):
        raise TypeError("its 'data' is no array")
    _, shape, dtype, by_columns, content = data.state
    if dtype.arguments[0] not in ("u1", b"u1") or len(shape) != 2:
        raise TypeError("its 'data' is no array of rows of bytes")
    return np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_columns else "C")


class _Described:
    """What a pickle wants to be made by a call, with what arguments and what state; not made."""

    state: Sequence[Any] = ()

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.state = state


def _encode(text: str, _latin1: str) -> bytes:
    # How Python 3 spells bytes in pickles of protocols 0 to 2.
    return text.encode("latin-1")


class _BatchUnpickler(pickle.Unpickler):
    """An unpickler that calls nothing, numpy neither: a pickle names the functions it wants called.

    These are all that a batch needs. The first is the name that the published files (numpy 1.6,
    Python 2) use.
    """

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _Described,
        ("numpy._core.multiarray", "_reconstruct"): _Described,
        ("numpy", "ndarray"): _Described,
        ("numpy", "dtype"): _Described,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for that function, if it is allowed."""
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs")
        return self.ALLOWED[module, name]


LAYOUTS = [
    Layout(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        md5="c58f30108f718f92721af3b95e74349a",
        suffix="",
        parse=parse_python,
    ),
    Layout(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        suffix=".bin",
        parse=parse_binary,
    ),
]
