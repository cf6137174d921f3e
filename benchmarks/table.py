"""One row per comparison, and how they are printed."""

from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Row:
    """What was compared with what. Without a target it is there for context."""

    name: str
    ours: str
    baseline: str
    ratio: float | None = None
    spread: str = ""
    target: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.ratio is None or self.target is None:
            return self.note
        return "met" if self.ratio <= self.target else "MISSED"


def compared(
    name: str, ours: list[float], baseline: list[float], unit: str, target: float | None = None
) -> Row:
    """Make a row from pairs of figures, each pair taken one right after the other.

    The ratio is the median of the pairs' ratios: what disturbs the machine for longer than a pair
    disturbs both sides of it. The spread is that of their middle half.
    """
    ratios = sorted(a / b for a, b in zip(ours, baseline, strict=True))
    quarter = len(ratios) // 4
    return Row(
        name,
        f"{median(ours):.4g} {unit}",
        f"{median(baseline):.4g} {unit}",
        median(ratios),
        f"{ratios[quarter]:.2f}-{ratios[-1 - quarter]:.2f}",
        target,
    )


def limited(name: str, found: float, unit: str, limit: float) -> Row:
    """Make a row of a figure that has a limit, and no baseline."""
    return Row(name, f"{found:.3g} {unit}".rstrip(), "", note=verdict(found, limit, unit))


def verdict(found: float, limit: float, unit: str) -> str:
    return f"{'met' if found <= limit else 'MISSED'} ({f'{limit:g} {unit}'.rstrip()})"


def show(rows: list[Row]) -> None:
    """Print the table: on a terminal, in a log and in a Markdown file alike."""
    head = ("what", "ours", "baseline", "ratio", "middle half", "target", "")
    lines = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for number, line in enumerate(lines):
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("| " + " | ".join(cells) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|", flush=True)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    target = "" if row.target is None else f"<= {row.target:g}"
    return row.name, row.ours, row.baseline, ratio, row.spread, target, row.verdict
