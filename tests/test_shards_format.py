"""The format of packed data: what is written can be read, and nothing else can."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hydra_trainer.errors import DataError
from hydra_trainer.shards import format as shards
from hydra_trainer.shards.format import Block, Column, Index, Shard, checksum
from hydra_trainer.shards.writing import joined

RNG = np.random.default_rng(0)
COLUMNS = (
    Column("image", "uint8", (3, 2)),
    Column("text", "uint8", None, "utf-8"),
    Column("label", "int64", ()),
    Column("points", "float32", None),
)


def ragged(items: list[Any], dtype: str) -> tuple[Any, Any]:
    offsets = np.cumsum([0, *map(len, items)])
    return offsets, np.concatenate([np.asarray(item, dtype) for item in items])


IMAGES = RNG.integers(0, 256, (4, 3, 2), dtype=np.uint8)
TEXTS = [b"a", b"", b"three", "é".encode()]
LABELS = np.array([3, -1, 2**40, 0])
POINTS = [[1.5, 2.5], [], [0.0], [3.0, 4.0, 5.0]]
BATCH = {
    "image": IMAGES,
    "text": ragged([list(text) for text in TEXTS], "u1"),
    "label": LABELS,
    "points": ragged(POINTS, "<f4"),
}


def made(columns: Any = COLUMNS, batch: Any = BATCH, samples: int = 4) -> tuple[Index, bytes]:
    content, regions = joined(columns, [batch], samples)
    shard = Shard("00000-a.bin", samples, len(content), checksum(content), regions)
    return Index(tuple(columns), (shard,), {"classes": ["a", "b"]}), bytes(content)


INDEX, CONTENT = made()


def test_what_was_packed_comes_back_in_any_order() -> None:
    block = Block(INDEX.columns, INDEX.shards[0], CONTENT)
    taken = block.take([2, 0, 2, 1])
    assert np.array_equal(taken["image"], IMAGES[[2, 0, 2, 1]])
    assert [bytes(text) for text in taken["text"]] == [b"three", b"a", b"three", b""]
    assert np.array_equal(taken["label"], LABELS[[2, 0, 2, 1]])
    assert [list(points) for points in taken["points"]] == [[0.0], [1.5, 2.5], [0.0], []]
    assert list(block.take([0], ["label"])) == ["label"]
    with pytest.raises(IndexError):
        block.take([4])


@pytest.mark.parametrize("dtype", list(shards.DTYPES))
@pytest.mark.parametrize("shift", [0, 1])
def test_every_dtype_comes_back_from_any_buffer(dtype: str, shift: int) -> None:
    values = RNG.integers(0, 100, (5, 3)).astype(shards.DTYPES[dtype])
    columns = (Column("c", "uint8", ()), Column("x", dtype, (3,)), Column("y", dtype, None))
    batch = {
        "c": np.zeros(5, np.uint8),
        "x": values,
        "y": (np.arange(6) * 3, values.ravel()),
    }
    index, content = made(columns, batch, 5)
    # One byte on: as a body that came over a network may lie.
    block = Block(index.columns, index.shards[0], memoryview(bytes(shift) + content)[shift:])
    assert np.array_equal(block.take([4, 1])["x"], values[[4, 1]])
    assert np.array_equal(block.take([4, 1])["y"], values[[4, 1]])
    assert block.fixed["x"].dtype == shards.DTYPES[dtype]


def test_the_bytes_are_these_for_good() -> None:
    """What others may have written a reader for: change VERSION before you change this."""
    columns = (Column("a", "uint16", (2,)), Column("b", "uint8", None, "image"))
    batch = {
        "a": np.array([[1, 2], [3, 4]], np.uint16),
        "b": ragged([[7], [8, 9]], "u1"),
    }
    index, content = made(columns, batch, 2)
    assert content == (
        bytes([1, 0, 2, 0, 3, 0, 4, 0])
        + bytes(56)
        + bytes([0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0])
        + bytes([7, 8, 9])
    )
    assert index.dump().decode() == (
        '{"kind": "hydra-trainer shards", "version": 1, "samples": 2, "columns": [{"name": "a", '
        '"dtype": "uint16", "shape": [2], "encoding": null}, {"name": "b", "dtype": "uint8", '
        '"shape": null, "encoding": "image"}], "shards": [{"file": "00000-a.bin", "samples": 2, '
        '"size": 91, "xxh3": "' + checksum(content) + '", "columns": {"a": [0, 8], "b": [64, 27]}'
        '}], "facts": {"classes": ["a", "b"]}, "xxh3": "' + index.seal + '"}\n'
    )
    assert index.seal == "a12d7e7dcca18d194aec58898409165f"


def test_an_index_is_read_as_it_was_written() -> None:
    assert Index.parse(INDEX.dump(), "index.json") == INDEX
    assert Index.parse(INDEX.dump(), "index.json").seal == INDEX.seal
    assert list(INDEX.starts) == [0, 4]
    assert INDEX.column("label").width == 8
    with pytest.raises(DataError, match=r"no column 'labels'. It has: image, text, label, points"):
        INDEX.column("labels")


Change = Callable[[dict[str, Any]], object]


def put(*keys: Any, to: Any) -> Change:
    def change(document: dict[str, Any]) -> None:
        node: Any = document
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = to

    return change


SAYS_WRONG: dict[str, tuple[Change, str]] = {
    "a newer version": (put("version", to=2), "has the version 2, this program reads 1"),
    "another file": (put("kind", to="x"), 'is not the index of a packed data set: it lacks "kind"'),
    "a key too many": (put("more", to=1), "has unknown keys: more"),
    "a key too few": (lambda d: d.pop("facts"), "lacks the keys: facts"),
    "no columns": (put("columns", to=[]), r"says columns is \[\], but it must be a list that"),
    "no shards": (put("shards", to=[]), r"says shards is \[\]"),
    "a column of nothing": (put("columns", 0, to=3), r"says columns\[0\] is 3, but .* a mapping"),
    "a name": (put("columns", 1, "name", to=""), r"columns\[1\].name is '', but it must be text"),
    "a name twice": (put("columns", 1, "name", to="image"), "has the column 'image' twice"),
    "a dtype": (put("columns", 0, "dtype", to="object"), "dtype is 'object', but .* one of bool"),
    "a shape": (put("columns", 0, "shape", to="3"), "shape is '3', but it must be a list or null"),
    "a shape of 0": (put("columns", 0, "shape", 0, to=0), "shape is 0, .* a whole number, 1 or"),
    "an encoding": (put("columns", 1, "encoding", to="gif"), "encoding is 'gif', .* one of image"),
    "encoded numbers": (put("columns", 0, "encoding", to="image"), "'image', but it must be null"),
    "a way out": (put("shards", 0, "file", to="../x"), r"file is '\.\./x', .* the plain name of"),
    "the index itself": (put("shards", 0, "file", to="index.json"), "file is 'index.json'"),
    "no checksum": (put("shards", 0, "xxh3", to="12"), "xxh3 is '12', .* 32 hexadecimal digits"),
    "a true number": (put("shards", 0, "samples", to=True), "samples is True, .* whole number"),
    "samples": (
        put("shards", 0, "samples", to=5),
        "has 24 bytes, but 5 samples of 6 bytes have 30",
    ),
    "another sum": (put("samples", to=5), "says samples is 5, but its shards have 4"),
    "a size": (put("shards", 0, "size", to=10_000), "size is 10000, but its columns end at"),
    "a region": (put("shards", 0, "columns", "image", to=[0]), r"image is \[0\], .* \[offset, b"),
    "a region elsewhere": (put("shards", 0, "columns", "image", 0, to=64), "must begin at 0"),
    "a region too long": (put("shards", 0, "columns", "points", 1, to=9999), "end within the"),
    "half a value": (put("shards", 0, "columns", "points", 1, to=41), "whole values of 4 bytes"),
    "a column without region": (
        lambda d: d["shards"][0]["columns"].pop("text"),
        r"lacks the keys of shards\[0\].columns: text",
    ),
    "one file twice": (
        lambda d: d["shards"].append(d["shards"][0]),
        "has one file as two of its shards",
    ),
    "facts": (put("facts", to=[]), r"says facts is \[\], but it must be a mapping"),
}


@pytest.mark.parametrize("name", SAYS_WRONG)
def test_an_index_that_says_what_cannot_be_is_refused(name: str) -> None:
    change, words = SAYS_WRONG[name]
    document = json.loads(INDEX.dump())
    del document["xxh3"]
    change(document)
    document["xxh3"] = shards._seal(document)
    with pytest.raises(DataError, match=f"^s3://b/index.json .*{words}"):
        Index.parse(json.dumps(document).encode(), "s3://b/index.json")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, INDEX.dump()[:-9]])
def test_half_an_index_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match=r"place is no whole index, it is no JSON .* data pack"):
        Index.parse(content, "place")


@pytest.mark.parametrize("content", [b"[]", b"3", b"{}", b'{"version": 1}'])
def test_another_json_is_refused(content: bytes) -> None:
    with pytest.raises(DataError, match="is not the index of a packed data set"):
        Index.parse(content, "place")


def test_an_index_that_was_edited_is_refused() -> None:
    edited = INDEX.dump().replace(b'["a", "b"]', b'["b", "a"]')
    assert edited != INDEX.dump()
    with pytest.raises(DataError, match="is damaged, its checksum is not that of what it says"):
        Index.parse(edited, "place")


def test_a_shard_that_was_changed_is_named() -> None:
    shard = INDEX.shards[0]
    assert shard.fault(CONTENT) is None
    for at in range(len(CONTENT)):
        changed = bytearray(CONTENT)
        changed[at] ^= 1
        assert "00000-a.bin has the checksum" in str(shard.fault(changed))
    assert (
        shard.fault(CONTENT[:-1])
        == f"00000-a.bin has {len(CONTENT) - 1} bytes, the index says {len(CONTENT)}"
    )
    with pytest.raises(DataError, match=r"00000-a.bin has \d+ bytes, the index says"):
        Block(INDEX.columns, shard, CONTENT[:-1])


@pytest.mark.parametrize(("at", "value"), [(0, 1), (2, 99), (2, 2**63), (4, 3)])
def test_offsets_out_of_order_are_refused(at: int, value: int) -> None:
    shard = INDEX.shards[0]
    changed = bytearray(CONTENT)
    start = shard.columns["text"][0] + 8 * at
    changed[start : start + 8] = value.to_bytes(8, "little")
    with pytest.raises(DataError, match=r"00000-a.bin: the offsets of column 'text' are out of"):
        Block(INDEX.columns, shard, changed)


def test_a_block_does_not_let_its_bytes_be_written() -> None:
    block = Block(INDEX.columns, INDEX.shards[0], bytearray(CONTENT))
    for view in (block.fixed["image"], block.ragged["text"][1], block.take([0])["text"][0]):
        with pytest.raises(ValueError, match="read-only"):
            view[:] = 0


def test_the_format_and_the_commands_need_no_torch() -> None:
    code = (
        "import sys, hydra_trainer.shards.format, hydra_trainer.shards.commands as c; "
        "c._parser(); print([m for m in 'torch obstore pyarrow PIL'.split() if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
