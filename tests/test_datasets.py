"""The data sets that come with the package: what they hold, how they augment, what they refuse."""

import gzip
import hashlib
import inspect
import io
import multiprocessing
import os
import pickle
import pwd
import re
import resource
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from sklearn.datasets import load_digits

from hydra_trainer import config
from hydra_trainer.data import GOLDEN, Indices, mix, resumable
from hydra_trainer.datasets import cifar10, digits, synthetic, tokens
from hydra_trainer.datasets.augment import Augmentation, below, random_words
from hydra_trainer.datasets.base import Batch, BatchedDataset, DataModule
from hydra_trainer.datasets.cifar10 import CIFAR10
from hydra_trainer.datasets.digits import Digits
from hydra_trainer.datasets.synthetic import SyntheticImages, SyntheticTokens
from hydra_trainer.datasets.tokens import Tokens
from hydra_trainer.errors import ConfigError, DataError
from hydra_trainer.targets import TRUSTED, instantiate

from .conftest import REPOSITORY

CONF = REPOSITORY / "conf" / "data"


def ready(module: DataModule) -> DataModule:
    module.prepare_data()
    module.setup("fit")
    return module


def everything(dataset: BatchedDataset) -> Batch:
    return dataset.__getitems__(list(range(len(dataset))))


def same(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# --- small archives of CIFAR-10, in the published formats ---

COUNT = 20  # images of a batch, 10,000 in the published one
NAMES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
_random = np.random.default_rng(0)
LABELS = _random.integers(0, 10, (6, COUNT))
PIXELS = _random.integers(0, 256, (6, COUNT, 3072), dtype=np.uint8)
RECORDS = np.concatenate([LABELS[..., None].astype(np.uint8), PIXELS], axis=2)
FOLDERS = {"python": "cifar-10-batches-py", "binary": "cifar-10-batches-bin"}


class Python2Pickler(pickle._Pickler):
    """Writes what Python 2 and numpy 1.6 wrote: text is bytes, arrays come from numpy.core."""

    write: Callable[[bytes], object]
    memoize: Callable[[object], None]
    dispatch: ClassVar[dict[type, Callable[..., None]]] = pickle._Pickler.dispatch.copy()

    def save_text(self, text: str | bytes) -> None:
        raw = text.encode() if isinstance(text, str) else text
        short = len(raw) < 256
        head = b"U" + bytes([len(raw)]) if short else b"T" + struct.pack("<i", len(raw))
        self.write(head + raw)
        self.memoize(text)

    def save_global(self, obj: Any, name: Any = None) -> None:
        module = obj.__module__.replace("_core", "core")
        self.write(f"c{module}\n{obj.__name__}\n".encode())
        self.memoize(obj)

    dispatch[bytes] = dispatch[str] = save_text


def python2(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def fields(number: int, **other: Any) -> dict[str, Any]:
    """What the dictionary of a python batch holds."""
    return {
        "batch_label": f"training batch {number + 1} of 5",
        "labels": LABELS[number].tolist(),
        "data": PIXELS[number],
        "filenames": [f"image_{image}.png" for image in range(COUNT)],
    } | other


def members(version: str) -> dict[str, bytes]:
    """The files of a published archive, by name; the last batch first, as order means nothing."""
    if version == "binary":
        batches = {f"{name}.bin": RECORDS[i].tobytes() for i, name in enumerate(NAMES)}
        batches["batches.meta.txt"] = b"airplane\n"
    else:
        batches = {name: python2(fields(i)) for i, name in enumerate(NAMES)}
        batches["batches.meta"] = python2({"label_names": ["airplane"]})
    folder = FOLDERS[version]
    return {f"{folder}/{name}": batches[name] for name in reversed(batches)}


def pack(path: Path, files: dict[str, bytes | tarfile.TarInfo]) -> Path:
    """Write a tar.gz; a TarInfo is a member that has no content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            if isinstance(content, tarfile.TarInfo):
                tar.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def unpack(root: Path, version: str) -> Path:
    for name, content in members(version).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root / FOLDERS[version]


def archive(root: Path, version: str = "python", **replaced: Any) -> Path:
    """Write a small archive; `replaced` has other contents of its batches, or None for no file."""
    files: dict[str, Any] = dict(members(version))
    for name, content in replaced.items():
        files[f"{FOLDERS[version]}/{name}{'.bin' if version == 'binary' else ''}"] = content
    kept = {name: content for name, content in files.items() if content is not None}
    return pack(root / f"cifar-10-{version}.tar.gz", kept)


def load(root: Path, md5: str | None = None, cache: str | None = None) -> Any:
    """The training and the test records."""
    return [part[:] for part in cifar10.load(root, md5, cache)]


@pytest.fixture(autouse=True)
def copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Path]]:
    """Keep away from the user's cache; list what is in the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    return lambda: sorted((tmp_path / "caches" / "hydra-trainer").glob("*"))


def is_right(parts: Any) -> bool:
    train, test = parts
    return np.array_equal(train, RECORDS[:5].reshape(-1, 3073)) and np.array_equal(test, RECORDS[5])


# --- what all of them share ---


def digits_module(folder: Path, **keys: Any) -> DataModule:
    return Digits(batch_size=100, augment=True, **keys)


def cifar10_module(folder: Path, **keys: Any) -> DataModule:
    archive(folder)
    return CIFAR10(str(folder), 8, cutout=8, val_fraction=0.3, md5=None, **keys)


def tokens_module(folder: Path, **keys: Any) -> DataModule:
    np.random.default_rng(1).integers(0, 99, 5000).astype("<u2").tofile(folder / "tokens.bin")
    return Tokens(str(folder / "tokens.bin"), block_size=16, batch_size=32, **keys)


def text_module(folder: Path, **keys: Any) -> DataModule:
    return Tokens(block_size=256, batch_size=200, **keys)


def images_module(folder: Path, **keys: Any) -> DataModule:
    return SyntheticImages([3, 5, 4], size=90, batch_size=16, **keys)


def windows_module(folder: Path, **keys: Any) -> DataModule:
    return SyntheticTokens(vocab_size=50, block_size=7, size=90, batch_size=16, **keys)


Make = Callable[..., DataModule]
every_module = pytest.mark.parametrize(
    "make",
    [
        digits_module,
        cifar10_module,
        tokens_module,
        text_module,
        images_module,
        windows_module,
    ],
)


def epochs(module: DataModule, rank: int = 0, world_size: int = 1) -> list[Batch]:
    """Two epochs of a process's training batches, as the training core loads them."""
    options: dict[str, Any] = {"rank": rank, "world_size": world_size, "train": True}
    loader = resumable(ready(module).train_dataloader(), seed=5, **options)
    return [*loader, *loader]


@every_module
def test_batches_are_the_same_with_any_workers_and_on_any_processes(
    make: Make, tmp_path: Path
) -> None:
    alone = epochs(make(tmp_path, num_workers=0))
    workers = epochs(make(tmp_path, num_workers=2))
    ranks = [epochs(make(tmp_path, num_workers=0), rank, 2) for rank in range(2)]
    joined = [[*map(torch.cat, zip(*halves, strict=True))] for halves in zip(*ranks, strict=True)]
    assert len(alone) == len(workers) == len(joined) > 2
    assert all(map(same, alone, workers))
    assert all(map(same, alone, joined))


@every_module
def test_a_batch_is_its_samples_in_every_run_and_copy(make: Make, tmp_path: Path) -> None:
    module, other = ready(make(tmp_path)), ready(make(tmp_path))
    for name in ("train_set", "val_set", "test_set"):
        dataset = getattr(module, name)
        batch = everything(dataset)
        assert same(batch, map(torch.stack, zip(*dataset, strict=True)))
        assert same(dataset[-1], (part[-1] for part in batch))
        assert same(batch, everything(getattr(other, name)))
        assert same(batch, everything(pickle.loads(pickle.dumps(dataset))))


def test_loaders_shuffle_and_drop_the_tail_in_training_only() -> None:
    module = ready(Digits(batch_size=100))
    train, val, test = module.train_dataloader(), module.val_dataloader(), module.test_dataloader()
    assert [len(loader) for loader in (train, val, test)] == [11, 3, 3]
    assert ready(Digits(num_workers=1)).train_dataloader().persistent_workers
    assert torch.equal(torch.cat([y for _, y in val]), everything(module.val_set)[1])
    assert not torch.equal(next(iter(train))[1], module.train_set.__getitems__([*range(100)])[1])


@pytest.mark.parametrize("make", [cifar10_module, tokens_module])
def test_a_file_goes_to_a_worker_as_its_path(make: Make, tmp_path: Path) -> None:
    module = ready(make(tmp_path))
    everything(module.train_set)
    assert len(pickle.dumps(module.train_set)) < 4000


# --- augmentation ---

IMAGES = _random.integers(0, 256, (12, 3, 8, 10), dtype=np.uint8)
ALL = Augmentation(3, padding=2, flip=True, cutout=3)


def augmented(images: npt.NDArray[Any], indices: list[int], how: Augmentation) -> torch.Tensor:
    words = how.words(indices)
    return how.cut(torch.from_numpy(how.move(images.copy(), words)).float() + 1, words)


def test_random_words_are_splitmix64_at_any_place() -> None:
    key = state = 2**64 - 5
    stream = []
    for _ in range(5 * 40):
        state = (state + GOLDEN) % 2**64
        word = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
        stream.append(word ^ word >> 31)
    table = np.array(stream, dtype=np.uint64).reshape(40, 5)
    assert np.array_equal(random_words(key, [0, 39, 7], 5), table[[0, 39, 7]])


def slowly(image: npt.NDArray[Any], how: Augmentation, words: list[int]) -> npt.NDArray[Any]:
    """One image, pixel by pixel."""
    _, height, width = image.shape
    top, left = (word % (2 * how.padding + 1) - how.padding for word in words[:2])
    flip = how.flip and words[2] % 2
    first_row = words[3] % height - how.cutout // 2
    first_column = words[4] % width - how.cutout // 2
    result = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            if row - first_row in range(how.cutout) and column - first_column in range(how.cutout):
                continue
            i, j = row + top, (width - 1 - column if flip else column) + left
            if how.pad_mode == "reflect":
                i, j = reflected(i, height), reflected(j, width)
            inside = i in range(height) and j in range(width)
            result[:, row, column] = image[:, i, j] + 1.0 if inside else 1.0
    return result


def reflected(i: int, length: int) -> int:
    """-1 is 1, -2 is 2; `length` is length - 2."""
    return abs(i) if i < length else 2 * (length - 1) - i


@pytest.mark.parametrize(
    "how",
    [
        ALL,
        Augmentation(0),
        Augmentation(1, padding=4),
        Augmentation(2, padding=1, pad_mode="constant"),
        Augmentation(3, flip=True),
        Augmentation(4, cutout=4),
        Augmentation(5, cutout=40),
    ],
)
def test_augmentation_of_a_batch_is_that_of_each_image(how: Augmentation) -> None:
    indices = [0, 10**9, *range(2, 12)]
    expected = [
        slowly(image, how, words)
        for image, words in zip(IMAGES, how.words(indices).tolist(), strict=True)
    ]
    assert np.array_equal(augmented(IMAGES, indices, how), np.stack(expected))


def test_augmentation_is_a_function_of_seed_epoch_and_index_alone() -> None:
    def at(indices: list[int], epoch: int = 0, seed: int = 3) -> torch.Tensor:
        how = Augmentation(seed, padding=2, flip=True, cutout=3)
        return augmented(IMAGES[indices], Indices(indices, epoch), how)

    whole = at([*range(12)])
    assert torch.equal(at([7, 2, 11]), whole[[7, 2, 11]])
    assert all(torch.equal(at([i])[0], whole[i]) for i in range(12))
    one = np.repeat(IMAGES[:1], 12, axis=0)
    assert len({image.numpy().tobytes() for image in augmented(one, [*range(12)], ALL)}) == 12
    for other in (at([*range(12)], epoch=1), at([*range(12)], seed=4)):
        assert sum(map(torch.equal, whole, other)) == 0


def test_every_offset_flip_and_square_is_as_likely_as_another() -> None:
    words = Augmentation(0).words(Indices(range(20_000), epoch=4))
    pairs = [(below(words[:, a], 9), below(words[:, b], 9)) for a, b in [(0, 1), (2, 3), (3, 4)]]
    for first, second in pairs:
        counts = np.bincount(first * 9 + second, minlength=81)
        # 80 degrees of freedom: chance alone exceeds 140 once in 30,000 tries.
        assert ((counts - 20_000 / 81) ** 2 / (20_000 / 81)).sum() < 140
    assert abs(below(words[:, 2], 2).mean() - 0.5) < 0.015
    assert set(below(words[:, 0], 3)) == {0, 1, 2}


# --- digits ---


def test_the_digits_are_those_of_scikit_learn() -> None:
    records = digits.read_digits()
    expected = load_digits()
    assert records.dtype == np.uint8
    assert np.array_equal(records[:, 0], expected.target)
    assert np.array_equal(records[:, 1:], expected.data)
    scaled = expected.data / digits.LARGEST
    assert [scaled.mean(), scaled.std()] == pytest.approx([digits.MEAN, digits.STD], abs=5e-5)


def test_digits_are_split_for_good_and_normalised() -> None:
    module = Digits(seed=7)
    module.setup("fit")
    sets: list[Any] = [module.train_set, module.val_set, module.test_set]
    assert [len(part) for part in sets] == [1197, 300, 300]
    rows = np.concatenate([part.rows for part in sets])
    assert sorted(rows) == [*range(1797)]
    assert rows[:5].tolist() == [787, 1636, 1466, 1031, 1778]
    images, labels = everything(module.test_set)
    expected = load_digits()
    assert (images.dtype, images.shape) == (torch.float32, (300, 1, 8, 8))
    pixels = torch.from_numpy(expected.images[rows[-300:]] / 16).float()
    assert torch.allclose(images[:, 0] * digits.STD + digits.MEAN, pixels, atol=1e-6)
    assert np.array_equal(labels, expected.target[rows[-300:]])


def test_only_the_training_digits_are_augmented() -> None:
    plain, moved = ready(Digits()), ready(Digits(augment=True))
    assert same(everything(plain.val_set), everything(moved.val_set))
    assert same(everything(plain.test_set), everything(moved.test_set))
    assert not same(everything(plain.train_set), everything(moved.train_set))


CUT_SHORT = gzip.compress(b"1,2\n" * 99, mtime=0)[:-9]


@pytest.mark.filterwarnings("ignore:loadtxt. input contained no data")
@pytest.mark.parametrize("content", [None, b"", b"no gzip", CUT_SHORT])
def test_a_damaged_scikit_learn_is_named(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sklearn" / "datasets" / "data" / "digits.csv.gz"
    file.parent.mkdir(parents=True)
    (tmp_path / "sklearn" / "__init__.py").touch()
    if content is not None:
        file.write_bytes(content)
    monkeypatch.delitem(sys.modules, "sklearn")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(DataError, match=rf"{file} .*pip install --force-reinstall scikit-learn"):
        ready(Digits())


def test_a_missing_scikit_learn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sklearn")
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(DataError, match="data=digits needs scikit-learn: pip install"):
        ready(Digits())


# --- cifar10: what is read ---


@pytest.mark.parametrize("version", ["python", "binary"])
def test_every_form_of_cifar10_gives_the_same_images(version: str, tmp_path: Path) -> None:
    file = archive(tmp_path / "archive", version)
    folder = unpack(tmp_path / "unpacked", version)
    for root in (file.parent, file, folder.parent, folder):
        assert is_right(load(root)), root


def test_an_archive_goes_before_a_folder(tmp_path: Path) -> None:
    (tmp_path / FOLDERS["python"]).mkdir()
    archive(tmp_path, "binary")
    assert is_right(load(tmp_path))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_batches_that_python_3_pickled_are_read(protocol: int) -> None:
    for data in (PIXELS[0], np.asfortranarray(PIXELS[0])):
        content = pickle.dumps(fields(0, data=data), protocol)
        assert np.array_equal(cifar10.parse_python(content, "name"), RECORDS[0])


def test_cifar10_is_split_for_good_and_normalised(tmp_path: Path) -> None:
    archive(tmp_path)
    keys: dict[str, Any] = {"md5": None, "augment": False}
    one: Any = ready(CIFAR10(str(tmp_path), seed=1, **keys))
    two: Any = ready(CIFAR10(str(tmp_path), seed=2, **keys))
    assert [len(s) for s in (one.train_set, one.val_set, one.test_set)] == [90, 10, 20]
    rows = np.concatenate([one.train_set.rows, one.val_set.rows])
    assert sorted(rows) == [*range(100)]
    assert np.array_equal(one.val_set.rows, two.val_set.rows)
    images, labels = everything(one.test_set)
    assert (images.dtype, images.shape) == (torch.float32, (20, 3, 32, 32))
    mean, std = np.array([0.4914, 0.4822, 0.4465]), np.array([0.2470, 0.2435, 0.2616])
    pixels = PIXELS[5].reshape(20, 3, 32, 32) / 255
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    assert np.allclose(images, expected, atol=1e-5)
    assert np.array_equal(labels, LABELS[5])


@pytest.mark.parametrize(
    ("augment", "cutout", "how"),
    [
        (True, 0, Augmentation(4, padding=4, flip=True)),
        (True, 8, Augmentation(4, padding=4, flip=True, cutout=8)),
        (False, 8, Augmentation(4, cutout=8)),
        (False, 0, None),
    ],
)
def test_only_the_training_images_are_augmented(
    augment: bool, cutout: int, how: Augmentation | None, tmp_path: Path
) -> None:
    archive(tmp_path)
    module: Any = ready(CIFAR10(str(tmp_path), augment=augment, cutout=cutout, md5=None, seed=4))
    assert module.train_set.augmentation == how
    blank = (everything(module.train_set)[0] == 0).all(1).sum((1, 2))  # pixels of each image
    assert (blank.min() >= cutout**2 / 4) and (blank.max() <= cutout**2)
    assert module.val_set.augmentation is None
    assert module.test_set.augmentation is None


# --- cifar10: what is refused ---


def test_the_sum_of_an_archive_is_checked(tmp_path: Path) -> None:
    file = archive(tmp_path / "data")
    found = hashlib.md5(file.read_bytes()).hexdigest()
    with pytest.raises(DataError, match=f"{found}, the published one is c58f30108f7") as error:
        load(file.parent, "published")
    typed = re.findall(r"type data\.md5=(\w+) \(or data\.md5=null", str(error.value))
    assert typed == [found]
    assert is_right(load(file, found))
    assert is_right(load(file, found.upper()))
    assert is_right(load(file, None))
    with pytest.raises(DataError, match=f"{found}, data.md5 is {'0' * 32}: .* data.md5={found}"):
        load(file, "0" * 32)


def test_the_sums_of_unpacked_batches_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = unpack(tmp_path / "data", "python")
    assert is_right(load(folder, "published"))  # smaller than the published ones: other data
    with pytest.raises(ConfigError, match=r"data.md5=0+ is the sum of an archive.*data.md5=null"):
        load(folder, "0" * 32)
    monkeypatch.setattr(cifar10, "FULL_BATCH", COUNT)
    with pytest.raises(DataError, match=r"data_batch_1 has the MD5 .*c99cafc15.*data.md5=null"):
        load(folder, "published", str(tmp_path / "other"))
    assert is_right(load(folder))


def cifar100() -> bytes:
    return python2({"data": PIXELS[0], "fine_labels": [1] * COUNT, "coarse_labels": [0] * COUNT})


GET_AGAIN = r"et (it|the archive) again from https://www.cs.toronto.edu/~kriz/cifar.html"
BAD_PYTHON: list[tuple[Any, str]] = [
    (None, rf"is incomplete, it lacks data_batch_3: g{GET_AGAIN}"),
    (b"", rf"python.tar.gz/.*data_batch_3 cannot be read .* g{GET_AGAIN}"),
    (python2(fields(2))[:-9], rf"data_batch_3 cannot be read .* g{GET_AGAIN}"),
    (b"\0" * 99, "data_batch_3 cannot be read"),
    (python2([1, 2]), "data_batch_3 cannot be read"),
    (cifar100(), "data_batch_3 cannot be read .*b'labels'"),
    (python2(fields(2, labels=[*range(91, 91 - COUNT, -1)])), "record 0 has the label 91.*0 to 9"),
    (python2(fields(2, labels=[3, -1] * 10)), "record 1 has the label -1, allowed is 0 to 9"),
    (python2(fields(2, labels=[1])), "20 images of 3072 bytes and 1 labels; as many"),
    (python2(fields(2, labels="a")), "data_batch_3 cannot be read"),
    (python2(fields(2, data=PIXELS[0][:, :99])), "20 images of 99 bytes"),
    (python2(fields(2, data=PIXELS[0][:0], labels=[])), "0 images of 3072 bytes"),
    (python2(fields(2, data=PIXELS[0].astype("i1"))), "its 'data' is no array of rows of bytes"),
    (python2(fields(2, data=PIXELS[0].reshape(-1))), "its 'data' is no array of rows of bytes"),
    (python2(fields(2, data=PIXELS[0].tobytes())), rf"its 'data' is no array\): g{GET_AGAIN}"),
]
BAD_BINARY: list[tuple[Any, str]] = [
    (None, r"it lacks data_batch_3.bin: get"),
    (b"", rf"data_batch_3.bin has 0 bytes, .* 3073 bytes: .* G{GET_AGAIN}"),
    (RECORDS[2].tobytes()[:-1], "has 61459 bytes, which is no whole number of records of 3073"),
    (b"\x01" + RECORDS[2].tobytes() + b"\x02" * 3072, "the label .* allowed is 0 to 9"),
    (b"\x0a" + RECORDS[2].tobytes()[1:], r"record 0 has the label 10, .* \(CIFAR-100 has two"),
]


@pytest.mark.parametrize(
    ("version", "content", "message"),
    [
        *(("python", *case) for case in BAD_PYTHON),
        *(("binary", *case) for case in BAD_BINARY),
    ],
)
def test_a_batch_that_is_not_right_is_named(
    version: str,
    content: bytes | None,
    message: str,
    tmp_path: Path,
    copies: Callable[[], list[Path]],
) -> None:
    archive(tmp_path / "data", version, data_batch_3=content)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "data")
    assert not copies()


@pytest.mark.parametrize("root", ["missing", "empty", "file"])
def test_a_root_without_the_data_says_what_belongs_there(root: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(DataError) as error:
        load(tmp_path / root)
    for word in (*FOLDERS.values(), "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz"):
        assert word in str(error.value)
    state = "does not exist" if root == "missing" else "has none of"
    assert str(error.value).startswith(f"data.root={tmp_path / root} {state}")
    assert cifar10.PAGE in str(error.value)
    assert "type data.root=FOLDER" in str(error.value)


def cut_short(content: bytes) -> Iterator[bytes]:
    for length in (0, 1, 9, 10, 11, 100, len(content) // 3, len(content) // 2):
        yield content[:length]
    for missing in (2000, 500, 9, 8, 4, 1):
        yield content[:-missing]


def flipped(content: bytes) -> Iterator[bytes]:
    for place in (0, 1, 2, *range(50, len(content), len(content) // 23), len(content) - 5):
        yield content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


@pytest.mark.parametrize("version", ["python", "binary"])
@pytest.mark.parametrize("damaged", [cut_short, flipped])
def test_a_damaged_archive_is_refused_without_an_md5_too(
    version: str,
    damaged: Callable[[bytes], Iterator[bytes]],
    tmp_path: Path,
    copies: Callable[[], list[Path]],
) -> None:
    file = archive(tmp_path / "data", version)
    for content in damaged(file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"{file}.* g{GET_AGAIN}"):
            load(file)
    assert not copies()


class Call:
    """A pickle of it calls a function when it is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def evil_pickles(place: str) -> Iterator[tuple[bytes, str]]:
    make = Call(os.mkdir, place)
    for protocol in (0, 2, 4):
        yield pickle.dumps(make, protocol), "posix.mkdir"
        yield pickle.dumps(fields(0, data=make), protocol), "posix.mkdir"
    yield python2(fields(0, filenames=[Call(eval, f"__import__('os').mkdir({place!r})")])), "eval"
    yield pickle.dumps(Call(np.load, place)), "numpy.load"
    yield b"\x80\x04\x8c\x05numpy\x8c\x0cndarray.dump\x93.", "numpy.ndarray.dump"


def test_a_pickle_cannot_call_anything(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for content, name in evil_pickles(str(made)):
        archive(tmp_path / "data", data_batch_1=content)
        with pytest.raises(DataError, match=rf"asks for \S*{name}, which no batch needs"):
            load(tmp_path / "data")
        assert not made.exists()


def link(name: str, kind: bytes, to: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, to
    return member


def test_a_member_of_an_archive_is_written_nowhere(
    tmp_path: Path, copies: Callable[[], list[Path]]
) -> None:
    inside = tmp_path / "data"
    files: dict[str, Any] = {"../up": b"x", f"{tmp_path}/absolute": b"x", **members("python")}
    files["another/data_batch_1"] = b"x"
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        files[kind.decode()] = link(f"{FOLDERS['python']}/link{kind.decode()}", kind, "/etc")
    file = pack(inside / "cifar-10-python.tar.gz", files)
    assert is_right(load(inside))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
        name = f"{FOLDERS['python']}/data_batch_1"
        pack(file, {**members("python"), name: link(name, kind, "/etc/hostname")})
        with pytest.raises(DataError, match="data_batch_1 is no plain file"):
            load(inside)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "caches"}
    assert [*inside.iterdir()] == [file]
    assert [path.suffix for path in copies()] == [".bin", ".bin"]


# --- cifar10: the unpacked copy ---


def overwrite(file: Path, content: bytes, later: int = 0) -> None:
    """Change a file's content, and its time by `later` nanoseconds."""
    before = file.stat()
    file.write_bytes(content[: before.st_size].ljust(before.st_size))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + later))


@pytest.mark.parametrize("form", ["archive", "folder"])
def test_the_copy_is_used_until_the_source_changes(
    form: str, tmp_path: Path, copies: Callable[[], list[Path]]
) -> None:
    root = tmp_path / "data"
    source = archive(root) if form == "archive" else unpack(root, "python") / "data_batch_2"
    assert is_right(load(root))
    overwrite(source, b"no longer readable")
    assert is_right(load(root))
    overwrite(source, b"no longer readable", later=1000)
    with pytest.raises(DataError):
        load(root)
    source.unlink()
    if form == "archive":
        archive(root)
    else:
        unpack(root, "python")
    os.utime(source, ns=(0, 0))
    assert is_right(load(root))
    assert len(copies()) == 4


def test_a_copy_is_checked_again_under_another_sum(tmp_path: Path) -> None:
    file = archive(tmp_path / "data")
    assert is_right(load(file))
    with pytest.raises(DataError, match="MD5"):
        load(file, "published")


def test_half_a_copy_is_made_anew(tmp_path: Path, copies: Callable[[], list[Path]]) -> None:
    file = archive(tmp_path / "data")
    load(file)
    test, train = copies()
    train.write_bytes(train.read_bytes()[:-1])
    assert is_right(load(file))
    test.unlink()
    assert is_right(load(file))
    train.write_bytes(b"")
    assert is_right(load(file))


def test_the_copy_can_be_shared(tmp_path: Path, copies: Callable[[], list[Path]]) -> None:
    before = os.umask(0o022)
    try:
        load(archive(tmp_path / "data"))
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in copies()} == {0o644}


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let writing fail in the middle, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("cache", ["occupied/cache", "caches/hydra-trainer"])
def test_without_room_for_a_copy_the_images_stay_in_memory(
    cache: str, tmp_path: Path, copies: Callable[[], list[Path]], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "occupied").touch()
    file = archive(tmp_path / "data")
    with files_of_at_most(100_000):
        records: Any = cifar10.load(file, None, str(tmp_path / cache))
    assert all(type(part) is np.ndarray for part in records)
    assert is_right(records)
    assert "stays in memory, data.cache cannot be written" in caplog.text
    assert not copies()


@pytest.mark.parametrize(
    ("cache", "environment", "folder"),
    [
        ("{0}/own", {"XDG_CACHE_HOME": "/", "HOME": "/"}, "own"),
        ("~/own", {"HOME": "{0}/home"}, "home/own"),
        (None, {"XDG_CACHE_HOME": "{0}/caches", "HOME": "/"}, "caches/hydra-trainer"),
        (None, {"HOME": "{0}/home"}, "home/.cache/hydra-trainer"),
        (None, {}, None),
    ],
)
def test_the_copy_lies_in_data_cache_or_the_users(
    cache: str | None,
    environment: dict[str, str],
    folder: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_such_user(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", no_such_user)  # as in a container with a user of no name
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    file = archive(tmp_path / "data")
    assert is_right(load(file, cache=cache and cache.format(tmp_path)))
    folders = [path.relative_to(tmp_path).parent.as_posix() for path in tmp_path.rglob("*.bin")]
    assert folders == ([folder, folder] if folder else [])


def test_a_home_that_is_not_known_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)
    with pytest.raises(DataError, match=r"data\.root=~/data/cifar10 does not exist"):
        ready(CIFAR10("~/data/cifar10"))


def test_a_root_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SOMEWHERE", str(tmp_path))
    for root in ("~/data", "$SOMEWHERE/data"):
        assert CIFAR10(root).root == tmp_path / "data"


def load_and_tell(file: Path) -> bool:
    return is_right(load(file))


def test_two_processes_make_the_copy_at_the_same_time(
    tmp_path: Path, copies: Callable[[], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork = multiprocessing.get_context("fork")
    meeting = fork.Barrier(2)
    write = cifar10.write_atomically

    def write_when_both_are_here(path: Path, content: npt.NDArray[np.uint8]) -> None:
        meeting.wait(60)
        write(path, content)

    monkeypatch.setattr(cifar10, "write_atomically", write_when_both_are_here)
    file = archive(tmp_path / "data")
    with ProcessPoolExecutor(2, mp_context=fork) as pool:
        assert [*pool.map(load_and_tell, [file, file])] == [True, True]
    assert [path.suffix for path in copies()] == [".bin", ".bin"]


# --- tokens ---


def token_file(folder: Path, values: npt.ArrayLike, dtype: str = "<u2") -> str:
    path = folder / "tokens.bin"
    np.asarray(values).astype(dtype).tofile(path)
    return str(path)


def test_the_built_in_text_is_the_language_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    from pydoc_data.topics import topics

    text = "\n\n".join(text for _, text in sorted(topics.items()))
    codes = bytes(code if code < 128 else 0 for code in map(ord, text))
    assert tokens.text_tokens().tobytes() == codes
    module: Any = ready(Tokens())
    assert module.digest == hashlib.sha256(codes).hexdigest()
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"lacks pydoc_data.topics.*type data.path=FILE"):
        ready(Tokens())


@pytest.mark.parametrize(
    ("dtype", "stored"), [("uint8", "u1"), ("uint16", "<u2"), ("uint32", "<u4")]
)
def test_a_file_of_tokens_is_read_as_it_says(dtype: str, stored: str, tmp_path: Path) -> None:
    largest = np.iinfo(stored).max
    values = np.random.default_rng(2).integers(0, largest, 2000, endpoint=True)
    values[-1] = largest
    path = token_file(tmp_path, values, stored)
    module: Any = ready(Tokens(path, dtype, vocab_size=largest + 1, block_size=10))
    inputs, targets = everything(module.test_set)
    assert (inputs.dtype, inputs.shape) == (torch.int64, (9, 10))
    assert np.array_equal(inputs.flatten(), values[1900:1990])
    assert np.array_equal(targets.flatten(), values[1901:1991])
    assert module.digest is None
    assert type(module.test_set.tokens[:]) is np.memmap


def test_sets_are_disjoint_and_targets_are_one_token_on(tmp_path: Path) -> None:
    path = token_file(tmp_path, range(1000))
    module = ready(Tokens(path, vocab_size=1000, block_size=7, val_fraction=0.2, test_fraction=0.1))
    for dataset, begin, end, unused in [
        (module.train_set, 0, 700, 13),  # up to 6 before the first window
        (module.val_set, 700, 900, 6),
        (module.test_set, 900, 1000, 6),
    ]:
        inputs, targets = everything(dataset)
        assert torch.equal(inputs + 1, targets)
        assert begin <= inputs.min()
        assert end - 1 - unused <= targets.max() < end
    first = everything(module.val_set)[0].flatten().tolist()
    assert first == [*range(700, 700 + len(first))]


@pytest.mark.parametrize("size", range(95, 104))
def test_each_epoch_begins_at_an_offset_of_its_own(size: int, tmp_path: Path) -> None:
    module: Any = Tokens(
        token_file(tmp_path, range(size)), vocab_size=256, block_size=8, val_fraction=0.1, seed=3
    )
    module.test_fraction = 0.1
    train = ready(module).train_set
    everywhere, offsets = [*range(len(train))], set()
    assert len(train) == (train.end - 8) // 8  # type: ignore[attr-defined]
    for epoch in range(60):
        inputs, targets = train.__getitems__(Indices(everywhere, epoch))
        offset = int(inputs[0, 0])
        assert offset == mix(3, epoch) % 8
        assert inputs.flatten().tolist() == [*range(offset, offset + 8 * len(train))]
        assert torch.equal(inputs + 1, targets)
        offsets.add(offset)
    assert offsets == {*range(8)}


def test_a_file_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    path, count = tmp_path / "tokens.bin", 2**36
    with path.open("wb") as file:
        file.truncate(2 * count)  # sparse: 128 GiB that take no room
        file.seek(2 * (count - 17))
        file.write(np.arange(17, dtype="<u2").tobytes())
    module = ready(Tokens(str(path), block_size=8, test_fraction=0.25))
    cut = (count // 4 - 1) % 8  # tokens at the end that fill no window
    inputs, targets = module.test_set[-1]
    assert inputs.tolist() == [*range(8 - cut, 16 - cut)]
    assert torch.equal(inputs + 1, targets)


@pytest.mark.parametrize(
    ("content", "keys", "message"),
    [
        (None, {}, "cannot be read .*No such file.*raw uint16.*data.path=null"),
        ("folder", {}, "cannot be read .*directory.*data.path=null"),
        (b"", {}, "has 0 bytes.*empty"),
        (b"\0" * 999, {}, "has 999 bytes, no whole number of uint16 tokens of 2 bytes"),
        (b"\0" * 998, {"dtype": "uint32"}, "no whole number of uint32 tokens of 4 bytes"),
        (b"\0" * 400, {}, r"200 tokens, of which the training set gets 180: .*block_size=128"),
        (b"\0" * 4000, {}, "2000 tokens, of which the validation set gets 100: .*smaller"),
        (b"\0" * 6000, {"test_fraction": 0.01}, "3000 tokens, of which the test set gets 30"),
        (b"\x2c\x01" * 5000, {}, "the token 300, .*vocab_size=128 .*type data.vocab_size=301"),
    ],
)
def test_a_file_of_tokens_that_is_not_right_is_named(
    content: Any, keys: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "tokens.bin"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{path}\b.*{message}"):
        ready(Tokens(str(path), **keys))


@pytest.mark.parametrize("place", [50, 800, 950])
def test_a_token_that_is_too_large_is_found_anywhere(
    place: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "CHECKED_AT_START", 10)
    values = np.zeros(1000)
    values[place] = 128
    keys: dict[str, Any] = {"block_size": 8, "val_fraction": 0.2, "test_fraction": 0.1}
    module = ready(Tokens(token_file(tmp_path, values), **keys))
    with pytest.raises(DataError, match=r"the token 128, .*type data.vocab_size=129"):
        for dataset in (module.train_set, module.val_set, module.test_set):
            everything(dataset)


# --- synthetic ---


def test_synthetic_images_are_normal_and_come_from_the_seed() -> None:
    module = ready(SyntheticImages([3, 8, 8], num_classes=7, size=2000))
    images, labels = everything(module.train_set)
    assert (images.dtype, images.shape) == (torch.float32, (2000, 3, 8, 8))
    assert [images.mean(), images.std()] == pytest.approx([0, 1], abs=0.01)
    assert set(labels.tolist()) == {*range(7)}
    assert [len(module.val_set), len(module.test_set)] == [200, 200]
    other = ready(SyntheticImages([3, 8, 8], num_classes=7, size=2000, seed=1))
    firsts = [s[0][0] for s in (module.train_set, module.val_set, module.test_set, other.train_set)]
    assert len({image.numpy().tobytes() for image in firsts}) == 4


def test_synthetic_tokens_are_windows_shifted_by_one() -> None:
    module = ready(SyntheticTokens(vocab_size=30, block_size=16, size=95))
    inputs, targets = everything(module.train_set)
    assert (inputs.dtype, inputs.shape) == (torch.int64, (95, 16))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert set(inputs.flatten().tolist()) == {*range(30)}
    assert [len(module.val_set), len(module.test_set)] == [10, 10]


def test_synthetic_samples_repeat_beyond_64_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "POOL", 4 * 3 * 8 * 8 * 5)
    train = ready(SyntheticImages([3, 8, 8], size=12)).train_set
    assert same(train[0], train[10])
    assert not same(train[0], train[4])
    assert len(everything(train)[0]) == len(train) == 12


# --- keys ---

COUNTING: list[Any] = [0, -1, 1.5, "8", True, None, float("nan")]
FROM_ZERO = COUNTING[1:]
FRACTION: list[Any] = [0, 1, -0.1, 1.5, float("nan"), "0.1", None, True]
FLAG: list[Any] = [1, "yes", None]
TEXT: list[Any] = ["", " ", 5, ["x"]]
LOADING = {"batch_size": COUNTING, "num_workers": FROM_ZERO, "seed": FROM_ZERO}
BAD_KEYS: dict[type[DataModule], dict[str, list[Any]]] = {
    Digits: {**LOADING, "augment": FLAG},
    CIFAR10: {
        **LOADING,
        "root": [*TEXT, None],
        "augment": FLAG,
        "cutout": FROM_ZERO,
        "val_fraction": FRACTION,
        "md5": ["", "Published", "0" * 31, "0" * 33, "g" * 32, 5, False],
        "cache": TEXT,
    },
    Tokens: {
        **LOADING,
        "path": TEXT,
        "dtype": ["int8", "", None, 8, ["uint8"]],
        "vocab_size": [1, *COUNTING],
        "block_size": COUNTING,
        "val_fraction": [*FRACTION, 0.95],
        "test_fraction": FRACTION,
    },
    SyntheticImages: {
        **LOADING,
        "shape": [[3, 32], [3, 32, 0], [3, 32, 1.5], [3, 32, True], 5, "3,32,32", None],
        "num_classes": [1, *COUNTING],
        "size": COUNTING,
    },
    SyntheticTokens: {
        **LOADING,
        "vocab_size": [1, *COUNTING],
        "block_size": COUNTING,
        "size": COUNTING,
    },
}
REQUIRED: dict[str, Any] = {"root": "data", "shape": [3, 4, 4]}


def parameters(kind: type[DataModule]) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(kind).parameters)


def given(kind: type[DataModule], **keys: Any) -> dict[str, Any]:
    """The arguments that `kind` cannot be without, and `keys`."""
    return {key: REQUIRED[key] for key in REQUIRED if key in parameters(kind)} | keys


@pytest.mark.parametrize(
    ("kind", "key", "values"),
    [
        pytest.param(kind, key, values, id=f"{kind.__name__}.{key}")
        for kind, keys in BAD_KEYS.items()
        for key, values in keys.items()
    ],
)
def test_a_bad_value_says_what_to_type_and_that_works(
    kind: type[DataModule], key: str, values: list[Any]
) -> None:
    for value in values:
        with pytest.raises(ConfigError) as error:
            kind(**given(kind, **{key: value}))
        (problem,) = error.value.problems
        found = re.fullmatch(r"data\.(\w+) is (.*), allowed is .*: type data\.(\w+)=(.+)", problem)
        assert found, problem
        assert found.group(1, 2, 3) == (key, repr(value), key)
        kind(**given(kind, **{key: yaml.safe_load(found[4])}))


@pytest.mark.parametrize("kind", BAD_KEYS)
def test_every_key_is_checked_and_all_problems_come_together(kind: type[DataModule]) -> None:
    bad = {key: values[0] for key, values in BAD_KEYS[kind].items()}
    assert set(bad) == set(parameters(kind))
    with pytest.raises(ConfigError) as error:
        kind(**bad)
    told = [problem.split()[0] for problem in error.value.problems]
    assert sorted(told) == sorted(f"data.{key}" for key in bad)


# --- the files of conf/data ---

FILES = {
    "cifar10": CIFAR10,
    "digits": Digits,
    "synthetic": SyntheticImages,
    "synthetic_tokens": SyntheticTokens,
    "tokens": Tokens,
}


def test_each_file_is_tested() -> None:
    packed = {"shards", "shards_tokens"}  # tests/test_shards_training.py
    assert {path.stem for path in CONF.glob("*.yaml")} == {*FILES, *packed, "own"}


@pytest.mark.parametrize(("name", "kind"), FILES.items())
def test_a_file_has_the_arguments_of_its_class_and_describes_what_it_makes(
    name: str, kind: type[DataModule], tmp_path: Path
) -> None:
    config.register()  # ${mount:...} stays open
    whole = OmegaConf.create({"seed": 0, "data": OmegaConf.load(CONF / f"{name}.yaml")})
    node: Any = OmegaConf.to_container(whole, resolve=True)
    arguments = config.arguments(node, "data")
    assert set(arguments) == {"_target_", *parameters(kind)}
    defaults = {key: p.default for key, p in parameters(kind).items() if p.default is not p.empty}
    assert defaults == {key: arguments[key] for key in defaults}

    if kind is CIFAR10:
        archive(tmp_path)
        arguments |= {"root": str(tmp_path), "md5": None}
    module = instantiate(arguments, TRUSTED, "data")
    assert type(module) is kind
    inputs, targets = ready(module).val_set.__getitems__([0, 1])
    info = node["data"]["info"]
    if "shape" in info:
        assert list(inputs.shape[1:]) == info["shape"]
        assert targets.max() < info["num_classes"]
    else:
        assert inputs.shape[1] == targets.shape[1] == info["block_size"]
        assert inputs.max() < info["vocab_size"]
