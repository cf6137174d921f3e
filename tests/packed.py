"""Small packed data sets, for the tests of what reads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hydra_trainer.shards.format import DTYPES, Column, Index
from hydra_trainer.shards.places import Folder
from hydra_trainer.shards.writing import Writer

Sample = Mapping[str, Any]


def pack(folder: Path, parts: Sequence[Sample], facts: Mapping[str, Any] | None = None) -> Index:
    """Write a set of one shard for each of `parts`: columns by name.

    An array is a column with a shape; a list of bytes one without, of encoded images.
    """
    columns = [_column(name, values) for name, values in parts[0].items()]
    with Writer(Folder(folder), columns) as writer:
        for part in parts:
            writer.add({c.name: _values(c, part[c.name]) for c in columns})
            writer._flush()
        index = writer.finish(facts or {})
        writer.commit()
    return index


def _column(name: str, values: Any) -> Column:
    if isinstance(values, np.ndarray):
        dtype = next(key for key, one in DTYPES.items() if one == values.dtype)
        return Column(name, dtype, values.shape[1:])
    return Column(name, "uint8", None, "image")


def _values(column: Column, values: Any) -> Any:
    if column.shape is not None:
        return values
    ends = np.cumsum([0, *map(len, values)])
    return ends.astype(np.int64), np.frombuffer(b"".join(values), np.uint8)


def numbered(folder: Path, sizes: Sequence[int], width: int = 8, **facts: Any) -> Index:
    """Write a set whose sample n says that it is number n, in both of its columns."""
    starts = np.cumsum([0, *sizes])
    parts = [
        {
            "id": np.arange(start, start + size, dtype=np.int64),
            "data": np.repeat(np.arange(start, start + size, dtype=np.int32)[:, None], width, 1),
        }
        for start, size in zip(starts, sizes, strict=False)
    ]
    return pack(folder, parts, facts)
