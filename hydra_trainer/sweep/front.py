"""Which jobs of a sweep are the best, by one objective or by several."""

from collections.abc import Sequence

from .rows import Objective, Row, Sweep


def front(rows: Sequence[Row], objectives: Sequence[Objective]) -> list[Row]:
    """Return the rows than which no other is as good in all objectives and better in one.

    The best by the first objective comes first. All rows must have values.
    """
    found: list[tuple[tuple[float, ...], Row]] = []
    signed = [(_as_losses(row, objectives), row) for row in rows]
    for losses, row in sorted(signed, key=lambda pair: (pair[0], pair[1].number)):
        # Whatever is better than a row stands before it in this order.
        if not any(_beats(other, losses) for other, _ in found):
            found.append((losses, row))
    return [row for _, row in found]


def scored(sweep: Sweep) -> list[Row]:
    """Return the rows that can be compared, the best by the first objective first.

    A row of a sitting with other objectives cannot.
    """
    return [row for row in sweep.ranked() if len(row.values) == len(sweep.objectives)]


def leaders(sweep: Sweep) -> list[Row]:
    """Return the best row by each objective, without repeats."""
    rows = scored(sweep)
    best = [
        min(rows, key=lambda row, index=index: _as_losses(row, sweep.objectives)[index])  # type: ignore[misc]
        for index in range(len(sweep.objectives) if rows else 0)
    ]
    return list({row.number: row for row in best}.values())


def _as_losses(row: Row, objectives: Sequence[Objective]) -> tuple[float, ...]:
    pairs = zip(row.values, objectives, strict=True)
    return tuple(-value if one.mode == "max" else value for value, one in pairs)


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
