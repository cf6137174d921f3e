"""Rows of cells as lines that fit a width: what does not fit is cut in the middle."""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

GAP = 2  # blanks between two columns
NAME = 6  # cells of a column's name that are left where room is short
CAPS = (32, 24, 16, 12, 10, 8)  # cells that a column may take, tried one after the other


def cut(text: str, width: int) -> str:
    """Return a text in at most `width` cells of a terminal: its beginning and its end."""
    if cell_len(text) <= width:
        return text
    if width < 8:
        return set_cell_size(text, max(0, width)).rstrip()
    tail = (width - 3) // 2
    end = text
    while cell_len(end) > tail:
        end = end[1:]
    return f"{set_cell_size(text, width - 3 - tail)}...{end}"


def begun(text: str, width: int) -> str:
    """Return a text in at most `width` cells: its beginning, for sentences."""
    if cell_len(text) <= width:
        return text
    return f"{set_cell_size(text, width - 3).rstrip()}..." if width > 3 else cut(text, width)


def fitted(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Return one text for the head and one for each row, in columns, at most `width` cells wide.

    Where there is not enough room, first the names of columns are cut, then the longest cells;
    where there is none for columns, each row is `name=cell name=cell`, cut in the middle.
    """
    if not head:
        return [""] * (1 + len(rows))
    gaps = GAP * (len(head) - 1)
    needed = [max((cell_len(row[i]) for row in rows), default=0) for i in range(len(head))]
    named = [max(size, cell_len(name)) for size, name in zip(needed, head, strict=True)]
    brief = [max(size, min(full, NAME)) for size, full in zip(needed, named, strict=True)]
    for widths in (named, brief, *([min(size, cap) for size in brief] for cap in CAPS)):
        if sum(widths) + gaps <= width:
            cells = [[cut(c, w) for c, w in zip(row, widths, strict=True)] for row in (head, *rows)]
            return ["  ".join(line) for line in columns(cells)]
    joined = (" ".join(map("=".join, zip(head, row, strict=True))) for row in rows)
    return [line for (line,) in columns([[""], *([cut(text, width)] for text in joined)])]


def columns(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[list[str]]:
    """Return the cells with blanks, each as wide as the widest of its column.

    `right` are the columns that end, not begin, at the same place.
    """
    widths = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
    return [
        [_padded(cell, widths[i], i in right) for i, cell in enumerate(cells)] for cells in rows
    ]


def _padded(cell: str, width: int, right: bool) -> str:
    blanks = " " * (width - cell_len(cell))
    return blanks + cell if right else cell + blanks
