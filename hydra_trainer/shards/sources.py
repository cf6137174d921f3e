"""What can be packed: CIFAR-10, folders of images, parquet, text and token files.

`sources` looks at a path and returns, for each split, a Source: columns, facts, and batches that
are read only when asked for.
"""

import codecs
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hydra_trainer.errors import ConfigError, DataError, did_you_mean

from .format import DTYPES, Column, checksum
from .writing import Batch, Ragged

if TYPE_CHECKING:
    import pyarrow
    from PIL import Image

SPLITS = ("train", "val", "test")
TEXT = "builtin:text"
FORMS = ("cifar10", "images", "parquet", "text", "tokens")
CIFAR = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz", "cifar-10-batches-py")
CIFAR_BINARY = "cifar-10-batches-bin"
IMAGES = (".png", ".jpg", ".jpeg")
PARQUET = (".parquet", ".pq")
TOKENS = {"uint8": "u1", "uint16": "<u2", "uint32": "<u4"}
TEXTS = ("ascii", "utf-8")
SEED = 1  # of the order that images are packed in, always the same
READ = 1 << 20  # tokens or bytes of text at a time
PILES = 64  # images at a time


@dataclass(frozen=True)
class Options:
    """What one can choose about reading a source.

    Attributes:
        form: one of FORMS; None is to find out.
        split: only this one; None is all that there are. A source without splits of its own
            becomes this one as a whole, unless something is to be held out.
        resize: height and width that every image gets, cut to that form around its middle.
        mode: RGB or L (grey), of decoded images.
        fields: the columns of a parquet file to pack; None is all.
        tokens: how to read text (ascii, utf-8) or token ids (uint8, uint16, uint32); None is ascii
            for text and uint16 for token ids.
        block_size: tokens that a model sees at once; a sample has one more.
        val_fraction, test_fraction: what to hold out of a source that has no splits of its own;
            None is the usual of that form.
        md5: of a CIFAR-10 archive: published, another sum, or null for no check.
    """

    form: str | None = None
    split: str | None = None
    resize: tuple[int, int] | None = None
    mode: str = "RGB"
    fields: Sequence[str] | None = None
    tokens: str | None = None
    block_size: int = 128
    val_fraction: float | None = None
    test_fraction: float | None = None
    md5: str = "published"


@dataclass(frozen=True)
class Source:
    """One split of what is to be packed.

    `identity` names what it is made from, files and sizes; `samples` is None where only reading
    tells. `moments` is the image column whose mean and deviation are wanted.
    """

    columns: tuple[Column, ...]
    batches: Callable[[], Iterator[Batch]]
    identity: Any
    samples: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    moments: str | None = None


def sources(path: str, options: Options) -> dict[str, Source]:
    """Return what to pack for each split, in the order train, val, test.

    Raises:
        ConfigError: options that are wrong, all together.
        DataError: there is nothing that can be packed, or it cannot be read.
    """
    if problems := list(_problems(path, options)):
        raise ConfigError(problems)
    form = options.form or form_of(path)
    place = Path(os.path.expanduser(path))  # noqa: PTH111
    try:
        found: dict[str, Source] = READERS[form](place, options)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if options.split is None:
        return {split: found[split] for split in SPLITS if split in found}
    if options.split not in found:
        raise DataError(
            f"{path} gives no split {options.split!r}, it gives: {', '.join(found)}. Type --split "
            f"{next(iter(found))}, or --{options.split}-fraction 0.1 to hold one out."
        )
    return {options.split: found[options.split]}


def _problems(path: str, options: Options) -> Iterator[str]:
    if "://" in path:
        yield f"{path} is not a file or folder of this machine: copy it here first, or mount it."
    if options.split is not None and options.split not in SPLITS:
        yield (
            f"--split {options.split} is not one of {', '.join(SPLITS)}."
            f"{did_you_mean(options.split, SPLITS)}"
        )
    for name in ("val", "test"):
        share = getattr(options, f"{name}_fraction")
        if share is not None and not 0 <= share < 1:
            yield f"--{name}-fraction {share:g} must be 0 or more and below 1."
    if (options.val_fraction or 0) + (options.test_fraction or 0) >= 1:
        yield "--val-fraction and --test-fraction leave nothing to train on: make them smaller."
    if options.block_size < 1:
        yield f"--block-size {options.block_size} must be 1 or more."
    if options.resize is not None and min(options.resize) < 1:
        yield f"--resize {' '.join(map(str, options.resize))} must be 1 or more."


def _alone(options: Options) -> str | None:
    """Return the split that a source without splits is as a whole; None where it is shared out."""
    held_out = options.val_fraction is not None or options.test_fraction is not None
    return None if held_out else options.split


def form_of(path: str) -> str:
    """Return the form of what lies at a path. Raises DataError when it is none."""
    place = Path(os.path.expanduser(path))  # noqa: PTH111
    if path == TEXT:
        return "text"
    if place.is_file():
        if place.name in CIFAR:
            return "cifar10"
        by_suffix = {**dict.fromkeys(PARQUET, "parquet"), ".txt": "text", ".bin": "tokens"}
        if place.suffix.lower() in by_suffix:
            return by_suffix[place.suffix.lower()]
    elif place.is_dir():
        if place.name in (*CIFAR, CIFAR_BINARY):
            return "cifar10"
        if any((place / name).exists() for name in (*CIFAR, CIFAR_BINARY)):
            return "cifar10"
        for file in _walk(place):
            for form, suffixes in (("images", IMAGES), ("parquet", PARQUET), ("text", (".txt",))):
                if file.suffix.lower() in suffixes:
                    return form
    else:
        raise DataError(f"{path} does not exist. Give a file or a folder.")
    raise DataError(
        f"{path} is nothing that can be packed. Give a CIFAR-10 archive or folder, a folder of "
        "class folders of PNG or JPEG files, parquet files, .txt files, or a .bin file of token "
        f"ids; or say what it is: --form {'|'.join(FORMS)}. For a text that is always there: "
        f"{TEXT}."
    )


def _walk(folder: Path) -> Iterator[Path]:
    """Return the files below a folder, in an order that is always the same."""
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith("."):
                yield Path(root, name)


def _sizes(files: Sequence[Path], root: Path) -> str:
    """Return a short name of these files and their sizes."""
    facts = [f"{file.relative_to(root)}\0{file.stat().st_size}" for file in files]
    return checksum("\n".join(facts).encode("utf-8", "surrogateescape"))


def _class_dtype(classes: int) -> str:
    return "uint8" if classes <= 2**8 else "uint16" if classes <= 2**16 else "uint32"


def _ragged(items: Sequence[bytes]) -> Ragged:
    offsets = np.cumsum([0, *map(len, items)], dtype=np.int64)
    return offsets, np.frombuffer(b"".join(items), np.uint8)


# ----------------------------------------------------------------------------------------- CIFAR-10


# In the order of their labels, as batches.meta of the archive has them.
CIFAR_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)


def _cifar10(place: Path, options: Options) -> dict[str, Source]:
    """The split of `python train.py data=cifar10`: sample for sample the same."""
    from hydra_trainer.datasets import cifar10
    from hydra_trainer.datasets.images import shuffled_rows

    try:
        archive, layout = cifar10.find(place)
        md5 = None if options.md5 == "null" else options.md5
        train, test = cifar10.read(archive, layout, md5)
    except (DataError, ConfigError) as error:
        # Its sentences name the keys of data=cifar10.
        text = str(error).replace("data.md5=", "--md5 ").replace("data.root=", "")
        raise DataError(text) from error
    rows = shuffled_rows(len(train))
    share = 0.1 if options.val_fraction is None else options.val_fraction
    held_out = max(1, round(len(train) * share)) if share else 0
    columns = (Column("image", "uint8", cifar10.SHAPE), Column("label", "uint8", ()))
    facts = {"source": "CIFAR-10", "classes": list(CIFAR_CLASSES)}
    whole = checksum(np.ascontiguousarray(train)) + checksum(np.ascontiguousarray(test))
    parts = {"train": (train, rows[held_out:]), "val": (train, rows[:held_out])}
    parts["test"] = (test, np.arange(len(test)))
    return {
        split: Source(
            columns,
            partial(_records, records, chosen, cifar10.SHAPE),
            identity=[whole, share],
            samples=len(chosen),
            facts=facts,
            moments="image",
        )
        for split, (records, chosen) in parts.items()
        if len(chosen)
    }


def _records(
    records: npt.NDArray[np.uint8], rows: npt.NDArray[np.int64], shape: Sequence[int]
) -> Iterator[Batch]:
    for begin in range(0, len(rows), 4096):
        part = records[rows[begin : begin + 4096]]
        yield {"image": part[:, 1:].reshape(-1, *shape), "label": part[:, 0]}


# ------------------------------------------------------------------------------------------- images


def _images(place: Path, options: Options) -> dict[str, Source]:
    own = {split: place / split for split in SPLITS if (place / split).is_dir()}
    roots = own or {_alone(options) or "train": place}
    listed = {split: _listed(root) for split, root in roots.items()}
    classes = sorted({name for files in listed.values() for name, _ in files})
    numbers = {name: number for number, name in enumerate(classes)}
    order = np.random.Generator(np.random.PCG64(SEED))
    found = {}
    for split, files in listed.items():
        # In the order of the classes, a shard would hold one class.
        mixed = [files[i] for i in order.permutation(len(files))]
        parts = {split: mixed} if own or _alone(options) else _held_out(mixed, options)
        for name, part in parts.items():
            found[name] = _image_source(place, part, classes, numbers, options)
    return found


def _listed(root: Path) -> list[tuple[str, Path]]:
    """Return (class, file) of each image, sorted."""
    found = [file for file in _walk(root) if file.suffix.lower() in IMAGES]
    if not found:
        raise DataError(f"{root} has no images, PNG or JPEG, in folders of their classes.")
    if loose := [file for file in found if file.parent == root]:
        raise DataError(
            f"{loose[0]} is in no folder of a class: an image of a cat goes to {root / 'cat'}."
        )
    return [(file.relative_to(root).parts[0], file) for file in found]


def _held_out(items: list[Any], options: Options) -> dict[str, list[Any]]:
    count = len(items)
    test = round(count * (options.test_fraction or 0))
    val = round(count * (options.val_fraction or 0))
    parts = {"train": items[test + val :], "val": items[test : test + val], "test": items[:test]}
    return {split: part for split, part in parts.items() if part}


def _image_source(
    place: Path,
    files: list[tuple[str, Path]],
    classes: list[str],
    numbers: Mapping[str, int],
    options: Options,
) -> Source:
    label = Column("label", _class_dtype(len(classes)), ())
    if options.resize is None:
        image = Column("image", "uint8", None, "image")
    else:
        channels = 3 if options.mode == "RGB" else 1
        image = Column("image", "uint8", (channels, *options.resize))
    return Source(
        (image, label),
        partial(_decoded, files, numbers, label, options),
        identity=_sizes([file for _, file in files], place),
        samples=len(files),
        facts={"source": place.resolve().name, "classes": classes},
        moments=None if options.resize is None else "image",
    )


def _decoded(
    files: list[tuple[str, Path]], numbers: Mapping[str, int], label: Column, options: Options
) -> Iterator[Batch]:
    with ThreadPoolExecutor(os.cpu_count() or 1, "images") as threads:
        for begin in range(0, len(files), PILES):
            part = files[begin : begin + PILES]
            paths = [path for _, path in part]
            labels = np.array([numbers[name] for name, _ in part], label.values)
            if options.resize is None:
                images: Any = _ragged(list(threads.map(_whole_image, paths)))
            else:
                decode = partial(_pixels, size=options.resize, mode=options.mode)
                images = np.stack(list(threads.map(decode, paths)))
            yield {"image": images, "label": labels}


def _whole_image(path: Path) -> bytes:
    """Return the file of an image that can be decoded: later, in training, is too late to see."""
    content = path.read_bytes()
    with _opened(path, content) as image:
        # Of a JPEG only the eighth part, which reads all of the file and computes little.
        image.draft(image.mode, (1, 1))
        image.load()
    return content


def _pixels(path: Path, size: tuple[int, int], mode: str) -> npt.NDArray[np.uint8]:
    """Return an image as uint8 [C, H, W], cut to the form of `size` around its middle."""
    from PIL import Image, ImageOps

    height, width = size
    with _opened(path, path.read_bytes()) as image:
        upright = ImageOps.exif_transpose(image).convert(mode)
        fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(fitted, np.uint8)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


class _opened:
    """An image, whose faults are DataErrors that name the file."""

    def __init__(self, path: Path, content: bytes) -> None:
        self.path, self.content = path, content

    def __enter__(self) -> "Image.Image":
        try:
            from PIL import Image
        except ImportError as error:
            raise DataError(_extra("Images", "pillow", error)) from error
        try:
            self.image: Image.Image = Image.open(io.BytesIO(self.content), formats=["PNG", "JPEG"])
        except Exception as error:
            raise self._damaged(error) from error
        return self.image

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self.image.close()
        if isinstance(error, Exception):  # a damaged file can raise anything
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path} is no PNG or JPEG, or damaged ({error}): put a good one there, or delete "
            "it, and type the same again."
        )


def _extra(what: str, package: str, error: ImportError) -> str:
    return (
        f"{what} need {package}, which is not installed ({error}): "
        "pip install 'hydra-trainer[data]'."
    )


# ------------------------------------------------------------------------------------------ parquet


def _parquet(place: Path, options: Options) -> dict[str, Source]:
    try:
        import pyarrow.parquet  # of an extra
    except ImportError as error:
        raise DataError(_extra("Parquet files", "pyarrow", error)) from error
    files = [place] if place.is_file() else [f for f in _walk(place) if f.suffix.lower() in PARQUET]
    if not files:
        raise DataError(f"{place} has no {' or '.join(PARQUET)} files.")
    root = place.parent if place.is_file() else place
    by_split: dict[str, list[Path]] = {}
    for file in files:
        split = _split_of(file.relative_to(root)) or _alone(options) or "train"
        by_split.setdefault(split, []).append(file)
    schemas = {file: _schema(file, options.fields) for file in files}
    columns = schemas[files[0]]
    for file, other in schemas.items():
        if other != columns:
            raise DataError(
                f"{file} has other columns than {files[0]}: {_described(other)} instead of "
                f"{_described(columns)}. Pack them apart, or choose some: --fields NAME ..."
            )
    columns = tuple(_with_encoding(files[0], column) for column in columns)
    found = {}
    for split, part in by_split.items():
        counts = [pyarrow.parquet.read_metadata(file).num_rows for file in part]
        whole = len(by_split) > 1
        shares = {split: (0.0, 1.0)} if whole else _shares(split, options)
        for name, (low, high) in shares.items():
            found[name] = Source(
                columns,
                partial(_rows, part, columns, low, high),
                identity=[_sizes(part, root), low, high],
                samples=sum(counts) if (low, high) == (0.0, 1.0) else None,
                facts={"source": place.resolve().name},
            )
    return found


def _split_of(path: Path) -> str | None:
    """Return the split that a folder or the beginning of a name says: train-00000.parquet."""
    names = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
    words = [*path.parts[:-1], path.stem.partition("-")[0]]
    return next((names[word.lower()] for word in words if word.lower() in names), None)


def _shares(split: str, options: Options) -> dict[str, tuple[float, float]]:
    val, test = options.val_fraction or 0.0, options.test_fraction or 0.0
    edges = {"test": (0.0, test), "val": (test, test + val), split: (test + val, 1.0)}
    return {name: (low, high) for name, (low, high) in edges.items() if high > low}


def _described(columns: Sequence[Column]) -> str:
    return ", ".join(
        f"{c.name} {c.dtype}{'' if c.shape is None else list(c.shape)}" for c in columns
    )


def _schema(file: Path, fields: Sequence[str] | None) -> tuple[Column, ...]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_schema(file).empty_table()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{file} is no whole parquet file: {error}") from error
    schema = _flat(table).schema
    names = list(fields) if fields is not None else schema.names
    for name in names:
        if name not in schema.names:
            raise DataError(
                f"--fields {name}: {file} has no such column.{did_you_mean(name, schema.names)} It "
                f"has: {', '.join(schema.names)}."
            )
    return tuple(_column(file, schema.field(name), schema.names) for name in names)


def _flat(table: "pyarrow.Table") -> "pyarrow.Table":
    """Make columns of the fields of structs: image.bytes of image."""
    import pyarrow

    while any(pyarrow.types.is_struct(kind) for kind in table.schema.types):
        table = table.flatten()
    return table


def _column(file: Path, field: "pyarrow.Field", names: Sequence[str]) -> Column:
    import pyarrow

    types, kind = pyarrow.types, field.type
    shape: tuple[int, ...] = ()
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_string(kind) or types.is_large_string(kind):
        return Column(field.name, "uint8", None, "utf-8")
    if types.is_binary(kind) or types.is_large_binary(kind):
        return Column(field.name, "uint8", None)
    if types.is_fixed_size_binary(kind):
        return Column(field.name, "uint8", (kind.byte_width,))
    ragged = types.is_list(kind) or types.is_large_list(kind)
    if ragged:
        kind = kind.value_type
    while types.is_fixed_size_list(kind) and not ragged:
        shape = (*shape, kind.list_size)
        kind = kind.value_type
    dtype = {"halffloat": "float16", "float": "float32", "double": "float64"}.get(
        str(kind), str(kind)
    )
    if dtype not in DTYPES or (dtype == "bool" and (ragged or shape)):
        others = " ".join(name for name in names if name != field.name)
        raise DataError(
            f"{file}: the column {field.name!r} is {field.type}, which a shard cannot hold; it "
            "holds numbers, true and false, lists of numbers, text and bytes. Leave it out: "
            f"--fields {others or 'NAME'}"
        )
    return Column(field.name, dtype, None if ragged else shape)


def _with_encoding(file: Path, column: Column) -> Column:
    """See whether bytes are images: by those of the first row."""
    import pyarrow.parquet

    if column.shape is not None or column.encoding is not None or column.dtype != "uint8":
        return column
    for batch in pyarrow.parquet.ParquetFile(file).iter_batches(1):
        first = _flat(pyarrow.Table.from_batches([batch])).column(column.name)[0].as_py()
        if isinstance(first, bytes) and first.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff")):
            return Column(column.name, "uint8", None, "image")
        break
    return column


def _rows(
    files: Sequence[Path], columns: Sequence[Column], low: float, high: float
) -> Iterator[Batch]:
    import pyarrow
    import pyarrow.parquet

    row = 0
    for file in files:
        tops = sorted({column.name.partition(".")[0] for column in columns})
        begin = row
        try:
            # Read as it comes: a row group at once may be gigabytes.
            opened = pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
            known = set(opened.schema_arrow.names)
            # A name may have a dot of its own.
            tops = [t for t in {*tops, *(c.name for c in columns)} if t in known]
            for batch in opened.iter_batches(_rows_at_once(opened), columns=sorted(tops)):
                table = _flat(pyarrow.Table.from_batches([batch]))
                found = {
                    c.name: _values(file, c, table.column(c.name), row - begin) for c in columns
                }
                chosen = _between(row, len(batch), low, high)
                row += len(batch)
                if chosen is None:
                    yield found
                elif len(chosen):
                    yield {c.name: _chosen(c, found[c.name], chosen) for c in columns}
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file} is no whole parquet file: {error}") from error


def _rows_at_once(file: "pyarrow.parquet.ParquetFile") -> int:
    """Return how many rows have some 8 MB, for memory is bounded."""
    meta = file.metadata
    total = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
    return int(min(65536, max(1, (8 << 20) * max(meta.num_rows, 1) // max(total, 1))))


def _between(first: int, count: int, low: float, high: float) -> npt.NDArray[np.int64] | None:
    """Return which of the rows belong to a share of all: by a hash of their number."""
    if (low, high) == (0.0, 1.0):
        return None
    numbers = np.arange(first, first + count, dtype=np.uint64)
    # The finaliser of splitmix64: numbers that follow each other come out far apart.
    mixed = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    places = ((mixed ^ (mixed >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / 2.0**53
    return np.flatnonzero((places >= low) & (places < high))


def _chosen(column: Column, part: Any, rows: npt.NDArray[np.int64]) -> Any:
    if column.shape is not None:
        return part[rows]
    offsets, values = part
    pieces = [values[offsets[i] : offsets[i + 1]] for i in rows]
    return np.cumsum([0, *map(len, pieces)], dtype=np.int64), np.concatenate(pieces)


def _values(file: Path, column: Column, chunked: "pyarrow.ChunkedArray", row: int) -> Any:
    """Return a column of a batch as arrays. Raises DataError where a row has no value."""
    import pyarrow
    import pyarrow.compute

    types = pyarrow.types
    # Of one piece, as they mostly come, it would make a copy.
    array = chunked.chunk(0) if chunked.num_chunks == 1 else chunked.combine_chunks()
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    _no_nulls(file, column, array, row)
    if column.shape is None:
        if types.is_list(array.type) or types.is_large_list(array.type):
            inner = array.values
            offsets = np.asarray(array.offsets)
        else:
            offsets, inner = _bytes_of(array)
            return offsets, inner
        part = inner.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
        _no_nulls(file, column, part, row)
        return offsets.astype(np.int64) - int(offsets[0]), _numbers(part, column)
    if types.is_fixed_size_binary(array.type):
        width = array.type.byte_width
        raw = np.frombuffer(array.buffers()[1], np.uint8)
        begin = array.offset * width
        return raw[begin : begin + len(array) * width].reshape(len(array), width)
    count = len(array)
    while types.is_fixed_size_list(array.type):
        array = array.flatten()
        _no_nulls(file, column, array, row)
    return _numbers(array, column).reshape(count, *column.shape)


def _bytes_of(array: Any) -> Ragged:
    import pyarrow

    large = pyarrow.types.is_large_string(array.type) or pyarrow.types.is_large_binary(array.type)
    _, offsets, data = array.buffers()
    width = np.dtype("<i8" if large else "<i4")
    begins = np.frombuffer(offsets, width, len(array) + 1, array.offset * width.itemsize)
    values = np.frombuffer(data, np.uint8) if data is not None else np.empty(0, np.uint8)
    return begins.astype(np.int64), values


def _numbers(array: Any, column: Column) -> npt.NDArray[Any]:
    return np.asarray(array.to_numpy(zero_copy_only=False), column.values)


def _no_nulls(file: Path, column: Column, array: Any, row: int) -> None:
    if array.null_count:
        raise DataError(
            f"{file}: the column {column.name!r} has {array.null_count} empty values in the rows "
            f"from {row} on. Fill them in, or leave the column out with --fields."
        )


# ---------------------------------------------------------------------------------- text and tokens


def _text(place: Path, options: Options) -> dict[str, Source]:
    encoding = options.tokens or "ascii"
    if encoding not in TEXTS:
        allowed = ", ".join(TEXTS)
        raise ConfigError(f"--tokens {encoding}: text is read as one of {allowed}.")
    if str(place) == TEXT:
        from hydra_trainer.datasets.tokens import text_tokens

        tokens = text_tokens()
        identity, name = checksum(tokens), "pydoc_data.topics"
        count = len(tokens)
        read = partial(_slices, tokens)
        encoding = "ascii"
    else:
        files = [place] if place.is_file() else [f for f in _walk(place) if f.suffix == ".txt"]
        if not files:
            raise DataError(f"{place} has no .txt files.")
        root = place.parent if place.is_file() else place
        identity, name = _sizes(files, root), place.resolve().name
        count = sum(map(len, _codes(files, encoding)))
        read = partial(_codes, files, encoding)
    facts = {
        "source": name,
        "encoding": encoding,
        "vocab_size": 128 if encoding == "ascii" else 256,
    }
    return _windowed(read, count, "uint8", [identity, encoding], facts, name, options)


def _tokens(place: Path, options: Options) -> dict[str, Source]:
    dtype = options.tokens or "uint16"
    if dtype not in TOKENS:
        raise ConfigError(f"--tokens {dtype}: token ids are one of {', '.join(TOKENS)}.")
    width = np.dtype(TOKENS[dtype]).itemsize
    size = place.stat().st_size
    if size == 0 or size % width:
        raise DataError(
            f"{place} has {size} bytes, no whole number of {dtype} tokens of {width} bytes: it is "
            f"empty, cut short, or needs another --tokens ({', '.join(TOKENS)})."
        )
    read = partial(_stored, place, TOKENS[dtype])
    largest = max(int(part.max()) for part in read())
    facts = {"source": place.name, "vocab_size": largest + 1}
    identity = [_sizes([place], place.parent), dtype]
    return _windowed(read, size // width, dtype, identity, facts, place.name, options)


def _stored(path: Path, dtype: str) -> Iterator[npt.NDArray[Any]]:
    with path.open("rb") as file:
        while len(part := np.fromfile(file, dtype, READ)):
            yield part


def _slices(tokens: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    for begin in range(0, len(tokens), READ):
        yield tokens[begin : begin + READ]


def _codes(files: Sequence[Path], encoding: str) -> Iterator[npt.NDArray[np.uint8]]:
    """Return texts one after the other, an empty line between two, as codes.

    utf-8: its bytes. ascii: one code for each character, 0 for what is outside ASCII.
    """
    for number, file in enumerate(files):
        decoder = codecs.getincrementaldecoder("utf-8")()
        with file.open("rb") as stream:
            if number:
                yield np.frombuffer(b"\n\n", np.uint8)
            while True:
                chunk = stream.read(READ)
                try:
                    decoder.decode(chunk, final=not chunk)
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{file} is not text in UTF-8 ({error.reason} near byte "
                        f"{stream.tell() - len(chunk) + error.start}): convert it, or give token "
                        "ids in a .bin file."
                    ) from error
                if not chunk:
                    break
                codes = np.frombuffer(chunk, np.uint8)
                if encoding == "ascii":
                    # A character is one byte that is no continuation, 10xxxxxx.
                    codes = codes[(codes & 0xC0) != 0x80]
                    codes = np.where(codes < 128, codes, 0).astype(np.uint8)
                yield codes


def _windowed(
    read: Callable[[], Iterator[npt.NDArray[Any]]],
    count: int,
    dtype: str,
    identity: Any,
    facts: Mapping[str, Any],
    name: str,
    options: Options,
) -> dict[str, Source]:
    """Cut tokens into windows as data=tokens does: the last ones validate and test.

    A sample is block_size + 1 tokens, inputs and targets; the next begins with its last token.
    """
    shares = [0.05 if f is None else f for f in (options.val_fraction, options.test_fraction)]
    test = count - int(count * shares[1])
    val = test - int(count * shares[0])
    edges = {"train": (0, val), "val": (val, test), "test": (test, count)}
    if (alone := _alone(options)) is not None:
        edges = {alone: (0, count)}
    block = options.block_size
    found = {}
    for split, (begin, end) in edges.items():
        if begin == end:
            continue
        windows = (end - begin - 1) // block
        if windows < 1:
            raise DataError(
                f"{name} has {count} tokens, of which the {split} set gets {end - begin}: too few "
                f"for one window of --block-size {block}. Type a smaller --block-size, other "
                "fractions, or give a longer text."
            )
        found[split] = Source(
            (Column("tokens", dtype, (block + 1,)),),
            partial(_windows, read, begin, windows, block, DTYPES[dtype]),
            identity=[identity, begin, end, block],
            samples=windows,
            facts={**facts, "block_size": block},
        )
    return found


def _windows(
    read: Callable[[], Iterator[npt.NDArray[Any]]],
    begin: int,
    windows: int,
    block: int,
    dtype: np.dtype[Any],
) -> Iterator[Batch]:
    left = np.empty(0, dtype)
    position = 0
    for part in read():
        skip = min(max(begin - position, 0), len(part))
        position += len(part)
        left = np.concatenate([left, part[skip:].astype(dtype, copy=False)])
        count = min((len(left) - 1) // block, windows)
        if count > 0:
            cut = np.lib.stride_tricks.sliding_window_view(left, block + 1)[: count * block : block]
            yield {"tokens": cut.copy()}
            left = left[count * block :]
            windows -= count
        if not windows:
            return


READERS: dict[str, Callable[[Path, Options], dict[str, Source]]] = {
    "cifar10": _cifar10,
    "images": _images,
    "parquet": _parquet,
    "text": _text,
    "tokens": _tokens,
}
