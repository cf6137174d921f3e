"""The format of packed data: a folder, or a prefix of S3, with an index and shards.

    index.json       {"kind": "hydra-trainer shards", "version": 1, "samples": 60000,
                      "columns": [{"name": "image", "dtype": "uint8", "shape": [3, 32, 32],
                                   "encoding": null}, ...],
                      "shards": [{"file": "00000-0f3a.bin", "samples": 21829, "size": 67102208,
                                  "xxh3": "...", "columns": {"image": [0, 67058688], ...}}, ...],
                      "facts": {"classes": [...], ...}, "xxh3": "..."}
    00000-....bin    one region for each column, at the offset and of the bytes the index says

A region begins at a multiple of 64 bytes, with zeros before it. All numbers are little-endian. A
column with a shape is an array [samples, *shape]. One without a shape holds as many values for each
sample as it likes: offsets uint64 [samples + 1], counted in values, and then the values, so that
sample i is values[offsets[i]:offsets[i + 1]]. `encoding` says what such values are: "image" (a PNG
or JPEG file), "utf-8" (text), or null. `facts` is for people and for data modules, any JSON.

`xxh3` of a shard is xxh3_128 over its file; that of the index over its other keys as compact JSON
with sorted keys. A shard's name ends in its checksum, so that no shard is ever written over another
one. The index is written last: where there is none, there is no data set.

This module knows bytes. Who reads and writes them is in reading.py and writing.py.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from hydra_trainer.errors import DataError

KIND = "hydra-trainer shards"
VERSION = 1
INDEX = "index.json"
ALIGN = 64
OFFSET = np.dtype("<u8")
DTYPES = {
    "bool": np.dtype("?"),
    **{
        f"{word}{8 * width}": np.dtype(f"<{code}{width}")
        for word, code, widths in [("uint", "u", 1248), ("int", "i", 1248), ("float", "f", 248)]
        for width in map(int, str(widths))
    },
}
"""What a value can be, by its name in the index."""
ENCODINGS = ("image", "utf-8")

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}")
_HASH = re.compile(r"[0-9a-f]{32}")

Values = npt.NDArray[Any]
Taken = dict[str, Values | list[Values]]


def checksum(content: Any) -> str:
    """Return the xxh3_128 of a buffer, as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(content)


def aligned(offset: int) -> int:
    """Return the first multiple of 64 that is not below `offset`."""
    return -(-offset // ALIGN) * ALIGN


@dataclass(frozen=True)
class Column:
    """One of the values that each sample has. `shape` is None where samples differ in length."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    encoding: str | None = None

    @property
    def values(self) -> np.dtype[Any]:
        """The dtype of numpy, little-endian."""
        return DTYPES[self.dtype]

    @property
    def width(self) -> int | None:
        """Bytes of one sample, or None where samples differ in length."""
        return None if self.shape is None else self.values.itemsize * math.prod(self.shape)


@dataclass(frozen=True)
class Shard:
    """One file: its samples, bytes and checksum, and (offset, bytes) of each column's region."""

    file: str
    samples: int
    size: int
    xxh3: str
    columns: Mapping[str, tuple[int, int]]

    def fault(self, content: Any) -> str | None:
        """Return what is wrong with the bytes of this shard, or None when they are right."""
        size = memoryview(content).nbytes
        if size != self.size:
            return f"{self.file} has {size} bytes, the index says {self.size}"
        if (found := checksum(content)) != self.xxh3:
            return f"{self.file} has the checksum {found}, the index says {self.xxh3}"
        return None


@dataclass(frozen=True)
class Index:
    """What a data set holds and where."""

    columns: tuple[Column, ...]
    shards: tuple[Shard, ...]
    facts: Mapping[str, Any]

    @cached_property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The number of each shard's first sample, and at the end that of all: int64 [shards + 1].

        Sample n is in shard np.searchsorted(starts, n, side="right") - 1.
        """
        return np.cumsum([0, *(shard.samples for shard in self.shards)], dtype=np.int64)

    @cached_property
    def seal(self) -> str:
        """The checksum of all that the index says: equal for equal data, another for other data."""
        return _seal(self._document())

    def column(self, name: str) -> Column:
        """Return the column of that name. Raises DataError when there is none."""
        for column in self.columns:
            if column.name == name:
                return column
        known = ", ".join(column.name for column in self.columns)
        raise DataError(f"The data set has no column {name!r}. It has: {known}.")

    def dump(self) -> bytes:
        """Return the content of index.json. The same index gives the same bytes."""
        document = self._document()
        return json.dumps({**document, "xxh3": _seal(document)}, allow_nan=False).encode() + b"\n"

    def _document(self) -> dict[str, Any]:
        return {
            "kind": KIND,
            "version": VERSION,
            "samples": self.samples,
            "columns": [
                {
                    "name": column.name,
                    "dtype": column.dtype,
                    "shape": None if column.shape is None else list(column.shape),
                    "encoding": column.encoding,
                }
                for column in self.columns
            ],
            "shards": [
                {
                    "file": shard.file,
                    "samples": shard.samples,
                    "size": shard.size,
                    "xxh3": shard.xxh3,
                    "columns": {name: list(region) for name, region in shard.columns.items()},
                }
                for shard in self.shards
            ],
            "facts": dict(self.facts),
        }

    @classmethod
    def parse(cls, content: bytes, where: str) -> "Index":
        """Read the content of the index.json that is at `where`.

        Raises:
            DataError: it is no index, of a version that this program does not read, damaged, or
                says what no index can say; names the key and its value.
        """
        try:
            return _parse(_sealed(content))
        except _Flaw as flaw:
            raise DataError(f"{where} {flaw}") from None


class _Flaw(Exception):
    pass


DAMAGED = "Put a good copy of it back, or pack the data again: hydra-trainer data pack"


def _sealed(content: bytes) -> dict[str, Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _Flaw(f"is no whole index, it is no JSON ({error}). {DAMAGED}") from None
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise _Flaw(
            f'is not the index of a packed data set: it lacks "kind": "{KIND}". Give the place '
            "that hydra-trainer data pack wrote to."
        )
    version = document.get("version")
    if version != VERSION:
        raise _Flaw(f"has the version {version!r}, this program reads {VERSION}: update it.")
    seal = document.pop("xxh3", None)
    if seal != _seal(document):
        raise _Flaw(f"is damaged, its checksum is not that of what it says. {DAMAGED}")
    return document


def _seal(document: Mapping[str, Any]) -> str:
    return checksum(json.dumps(document, sort_keys=True, separators=(",", ":")).encode())


def _parse(document: dict[str, Any]) -> Index:
    _keys(document, "", ("kind", "version", "samples", "columns", "shards", "facts"))
    columns = tuple(_column(node, i) for i, node in enumerate(_list(document, "columns")))
    names = [column.name for column in columns]
    if twice := {name for name in names if names.count(name) > 1}:
        raise _Flaw(f"has the column {min(twice)!r} twice.")
    shards = tuple(_shard(node, i, columns) for i, node in enumerate(_list(document, "shards")))
    files = [shard.file for shard in shards]
    if len(set(files)) != len(files):
        raise _Flaw("has one file as two of its shards.")
    if not isinstance(document["facts"], dict):
        raise _Flaw(f"says facts is {document['facts']!r}, but it must be a mapping.")
    index = Index(columns, shards, document["facts"])
    if document["samples"] != index.samples:
        found = document["samples"]
        raise _Flaw(f"says samples is {found!r}, but its shards have {index.samples}.")
    return index


def _column(node: Any, at: int) -> Column:
    place = f"columns[{at}]"
    _keys(node, place, ("name", "dtype", "shape", "encoding"))
    name, dtype, shape, encoding = (node[key] for key in ("name", "dtype", "shape", "encoding"))
    if not isinstance(name, str) or not name:
        raise _Flaw(f"says {place}.name is {name!r}, but it must be text.")
    if dtype not in list(DTYPES):
        raise _Flaw(f"says {place}.dtype is {dtype!r}, but it must be one of {', '.join(DTYPES)}.")
    if shape is not None:
        if not isinstance(shape, list):
            raise _Flaw(f"says {place}.shape is {shape!r}, but it must be a list or null.")
        shape = tuple(_whole(size, f"{place}.shape", 1) for size in shape)
    if encoding is not None and (encoding not in ENCODINGS or shape is not None):
        allowed = "null" if shape is not None else f"one of {', '.join(ENCODINGS)} or null"
        raise _Flaw(f"says {place}.encoding is {encoding!r}, but it must be {allowed}.")
    return Column(name, dtype, shape, encoding)


def _shard(node: Any, at: int, columns: Sequence[Column]) -> Shard:
    place = f"shards[{at}]"
    _keys(node, place, ("file", "samples", "size", "xxh3", "columns"))
    file, digest = node["file"], node["xxh3"]
    if not isinstance(file, str) or not _FILE.fullmatch(file) or file == INDEX:
        raise _Flaw(f"says {place}.file is {file!r}, but it must be the plain name of a file.")
    if not isinstance(digest, str) or not _HASH.fullmatch(digest):
        raise _Flaw(f"says {place}.xxh3 is {digest!r}, but it must be 32 hexadecimal digits.")
    samples = _whole(node["samples"], f"{place}.samples", 1)
    size = _whole(node["size"], f"{place}.size", 1)
    _keys(node["columns"], f"{place}.columns", [column.name for column in columns])
    regions = {}
    end = 0
    for column in columns:
        name = f"{place}.columns.{column.name}"
        region = node["columns"][column.name]
        if not isinstance(region, list) or len(region) != 2:
            raise _Flaw(f"says {name} is {region!r}, but it must be [offset, bytes].")
        start, length = (_whole(number, name, 0) for number in region)
        if start != aligned(end) or start + length > size:
            raise _Flaw(
                f"says {name} is {region}, but the region must begin at {aligned(end)} and end "
                f"within the {size} bytes of the file."
            )
        _check_length(column, samples, length, name)
        regions[column.name] = (start, length)
        end = start + length
    if end != size:
        raise _Flaw(f"says {place}.size is {size}, but its columns end at {end}.")
    return Shard(file, samples, size, digest, regions)


def _check_length(column: Column, samples: int, length: int, name: str) -> None:
    if column.width is not None:
        if length != samples * column.width:
            raise _Flaw(
                f"says {name} has {length} bytes, but {samples} samples of {column.width} bytes "
                f"have {samples * column.width}."
            )
        return
    offsets = OFFSET.itemsize * (samples + 1)
    if length < offsets or (length - offsets) % column.values.itemsize:
        raise _Flaw(
            f"says {name} has {length} bytes, but it must have {offsets} of offsets and whole "
            f"values of {column.values.itemsize} bytes."
        )


def _keys(node: Any, place: str, wanted: Sequence[str]) -> None:
    of = f" of {place}" if place else ""
    if not isinstance(node, dict):
        raise _Flaw(f"says {place} is {node!r}, but it must be a mapping.")
    if missing := [key for key in wanted if key not in node]:
        raise _Flaw(f"lacks the keys{of}: {', '.join(missing)}.")
    if unknown := [key for key in node if key not in wanted]:
        raise _Flaw(f"has unknown keys{of}: {', '.join(map(str, unknown))}.")


def _list(document: dict[str, Any], key: str) -> list[Any]:
    node = document[key]
    if not isinstance(node, list) or not node:
        raise _Flaw(f"says {key} is {node!r}, but it must be a list that is not empty.")
    return node


def _whole(value: Any, name: str, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _Flaw(f"says {name} is {value!r}, but it must be a whole number, {least} or more.")
    return value


class Block:
    """The samples of one shard, over its bytes: a buffer or a memory map, which is not copied.

    `fixed[name]` is the array [samples, *shape] of a column with a shape; `ragged[name]` is
    (offsets int64 [samples + 1], values) of one without. Both are views and read-only.

    Raises DataError when the bytes are not as many as the index says, or offsets are not in order.
    Checksums are not looked at: see Shard.fault.
    """

    def __init__(self, columns: Sequence[Column], shard: Shard, content: Any) -> None:
        self.shard = shard
        raw = np.frombuffer(content, np.uint8)
        raw.flags.writeable = False
        if len(raw) != shard.size:
            raise DataError(f"{shard.file} has {len(raw)} bytes, the index says {shard.size}.")
        self.fixed: dict[str, Values] = {}
        self.ragged: dict[str, tuple[npt.NDArray[np.int64], Values]] = {}
        for column in columns:
            start, length = shard.columns[column.name]
            region = raw[start : start + length]
            if column.shape is not None:
                array = region.view(column.values).reshape(shard.samples, *column.shape)
                self.fixed[column.name] = array
            else:
                self.ragged[column.name] = _ragged(column, shard, region)

    def take(self, rows: npt.ArrayLike, names: Sequence[str] | None = None) -> Taken:
        """Return these samples, in this order: of all columns, or of those named.

        A column with a shape becomes a new array [rows, *shape]; one without becomes a list of
        views into the block, one for each row. Raises IndexError for a row that is not there.
        """
        numbers = np.asarray(rows)
        taken: Taken = {}
        for name in names if names is not None else [*self.fixed, *self.ragged]:
            if name in self.fixed:
                taken[name] = self.fixed[name][numbers]
            else:
                offsets, values = self.ragged[name]
                begins = offsets[:-1][numbers].tolist()
                ends = offsets[1:][numbers].tolist()
                taken[name] = [values[i:j] for i, j in zip(begins, ends, strict=True)]
        return taken


def _ragged(column: Column, shard: Shard, region: Values) -> tuple[npt.NDArray[np.int64], Values]:
    head = OFFSET.itemsize * (shard.samples + 1)
    offsets = region[:head].view(OFFSET).view(np.int64)
    values = region[head:].view(column.values)
    if offsets[0] != 0 or offsets[-1] != len(values) or np.any(offsets[1:] < offsets[:-1]):
        raise DataError(f"{shard.file}: the offsets of column {column.name!r} are out of order.")
    return offsets, values
