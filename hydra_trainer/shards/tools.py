"""Looking at packed data: are they whole, and what do they hold."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from hydra_trainer.errors import DataError

from .format import INDEX, Block, Column, Index, Shard
from .places import Place
from .sources import SPLITS, TEXTS

READERS = 4
"""Shards that are read at once: a disk needs two, S3 more."""

SHOWN = 12  # classes, and characters of a text times five


def in_bytes(size: float) -> str:
    """Return a number of bytes for people: 12.5 MiB."""
    if size == 1:
        return "1 byte"
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:,.1f} {unit}"


def counted(number: int, word: str) -> str:
    """Return a number with its word: 1 shard, 2 shards."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def sets(where: Place) -> list[Place]:
    """Return the data set at a place, or those of its splits. Raises DataError for none."""
    if where.read(INDEX) is not None:
        return [where]
    found = [where.below(split) for split in SPLITS]
    found = [place for place in found if place.read(INDEX) is not None]
    if not found:
        raise DataError(
            f"{where.uri} holds no packed data: there is no {INDEX}, neither there nor in "
            f"{', '.join(SPLITS)}. A pack that was killed leaves none: type the same hydra-trainer "
            "data pack again."
        )
    return found


def index_of(where: Place) -> Index:
    """Return the index of a data set. Raises DataError where there is none, or it is damaged."""
    content = where.read(INDEX)
    if content is None:
        raise DataError(f"{where.uri}/{INDEX} does not exist: there is no packed data set.")
    return Index.parse(content, f"{where.uri}/{INDEX}")


def verify(where: Place, index: Index) -> Iterator[str]:
    """Read every shard, and return a sentence for each that is not as it was packed."""
    with ThreadPoolExecutor(READERS, "verify") as threads:
        found = threads.map(lambda shard: _fault(where, shard), index.shards)
        yield from (fault for fault in found if fault is not None)


def _fault(where: Place, shard: Shard) -> str | None:
    try:
        found = where.measure(shard.file)
    except (DataError, OSError) as error:
        return str(error)  # it names the file
    if found is None:
        return f"{shard.file} is missing"
    size, xxh3 = found
    if size != shard.size:
        return f"{shard.file} has {size:,} bytes instead of {shard.size:,}: cut short, or another"
    if xxh3 != shard.xxh3:
        return f"{shard.file} was altered: its checksum is {xxh3}, the index says {shard.xxh3}"
    return None


def described(where: Place, index: Index) -> str:
    """Return what a data set holds, for people."""
    sizes = [shard.size for shard in index.shards]
    rows = [
        ("samples", f"{index.samples:,}"),
        (
            "shards",
            f"{len(sizes):,} of up to {in_bytes(max(sizes))}, together {in_bytes(sum(sizes))}",
        ),
    ]
    rows += [(f"column {column.name}", _kind(column, index)) for column in index.columns]
    for name, value in index.facts.items():
        if name != "pack":
            rows.append((name, _short(value)))
    rows += [(f"sample 0, {name}", text) for name, text in _sample(where, index)]
    rows.append(("checksum", index.seal))
    width = max(len(name) for name, _ in rows)
    return "\n".join([where.uri, *(f"  {name:<{width}}  {text}" for name, text in rows)])


def _kind(column: Column, index: Index) -> str:
    if column.width is not None:
        shape = " x ".join(map(str, column.shape or ()))
        return f"{column.dtype}{f' [{shape}]' if shape else ''}, {in_bytes(column.width)} a sample"
    total = sum(shard.columns[column.name][1] for shard in index.shards)
    what = {"image": "PNG or JPEG", "utf-8": "text"}.get(column.encoding or "", column.dtype)
    return f"{what}, of any length, {in_bytes(total / index.samples)} a sample on average"


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > SHOWN:
        return f"{', '.join(map(str, value[:SHOWN]))}, ... ({len(value):,})"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _sample(where: Place, index: Index) -> Iterator[tuple[str, str]]:
    shard = index.shards[0]
    content = where.fetch(shard.file)
    taken = Block(index.columns, shard, content).take([0])
    for column in index.columns:
        value = np.asarray(taken[column.name][0])
        if column.encoding == "utf-8":
            text = value.tobytes().decode("utf-8", "replace")
            yield column.name, repr(text[: 5 * SHOWN]) + ("..." if len(text) > 5 * SHOWN else "")
        elif column.encoding == "image":
            kind = "PNG" if value[:4].tobytes() == b"\x89PNG" else "JPEG"
            yield column.name, f"{kind}, {in_bytes(value.nbytes)}"
        elif value.ndim == 0:
            yield column.name, _number(column, value, index)
        elif index.facts.get("encoding") in TEXTS:
            yield column.name, repr(value.tobytes()[: 5 * SHOWN].decode("utf-8", "replace")) + "..."
        elif value.size <= SHOWN:
            yield column.name, str(value.tolist())
        elif value.ndim == 1:
            yield column.name, f"{', '.join(map(str, value[:SHOWN].tolist()))}, ..."
        else:
            values = (
                f"{value.min()} to {value.max()}, {value.mean(dtype=np.float64):.1f} on average"
            )
            yield column.name, values


def _number(column: Column, value: Any, index: Index) -> str:
    classes = index.facts.get("classes")
    if column.name == "label" and isinstance(classes, list) and 0 <= value < len(classes):
        return f"{value} ({classes[int(value)]})"
    return str(value)
