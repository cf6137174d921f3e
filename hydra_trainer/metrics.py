"""metrics.csv: one row per logged step, kept whole over stops and resumes; and its picture."""

import csv
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

FILE = "metrics.csv"


class CSVLog(Logger):
    """Appends to metrics.csv; a resumed run first drops the rows that it will write again.

    Columns are `step` and one per metric. A new metric rewrites the file, which happens a few
    times at the start; every other row is appended and flushed.
    """

    def __init__(self, save_dir: str, resume_step: int = 0) -> None:
        super().__init__()
        self._path = Path(save_dir) / FILE
        self._columns = ["step"]
        self._rows: list[dict[str, str]] = []
        self._resume_step = resume_step
        self._started = False

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._path.parent)

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Hyperparameters are in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if not self._started:
            self._start()
        row = {"step": str(step or 0)}
        row |= {name: f"{value:.9g}" for name, value in metrics.items()}
        new = [name for name in row if name not in self._columns]
        self._rows.append(row)
        if new:
            self._columns += new
            self._rewrite()
        else:
            self._append(row)

    def _start(self) -> None:
        self._started = True
        if not self._path.exists():
            return
        with self._path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if _step(row) <= self._resume_step]
            self._columns = list(reader.fieldnames or self._columns)
        self._rows = [{k: v for k, v in row.items() if k and v} for row in rows]
        self._rewrite()

    def _rewrite(self) -> None:
        temporary = self._path.with_name(f".{FILE}.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="")
            writer.writeheader()
            writer.writerows(self._rows)
        temporary.replace(self._path)

    def _append(self, row: dict[str, str]) -> None:
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns, restval="").writerow(row)


def _step(row: Mapping[str, str | None]) -> float:
    try:
        return float(row["step"] or "nan")
    except (KeyError, ValueError):
        return math.inf  # a torn last line: dropped, and written again


def read(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Return {metric: (steps, values)} of a metrics.csv."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if name and name != "step" and value:
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
    return series


def draw(directory: Path, title: str) -> Path | None:
    """Draw metrics.csv as metrics.png: losses left, other metrics right. None without a file."""
    if not (directory / FILE).exists():
        return None
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.ticker import LogLocator, NullFormatter

    series = read(directory / FILE)
    shown = {n: s for n, s in series.items() if "/" in n and not n.startswith("test/")}
    losses = {n: s for n, s in shown.items() if "loss" in n}
    others = {n: s for n, s in shown.items() if "loss" not in n}
    panels = [(label, group) for label, group in (("loss", losses), ("metric", others)) if group]
    if not panels:
        return None
    width = 5.6 * len(panels)
    figure = Figure(figsize=(width, 3.8))
    # Margins in inches. A layout engine would find them in as long as the drawing takes.
    figure.subplots_adjust(
        left=0.75 / width, right=1 - 0.35 / width, bottom=0.14, top=0.88, wspace=0.22
    )
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (label, group) in zip(axes, panels, strict=True):
        for name, (steps, values) in group.items():
            marker = "o" if len(steps) < 40 else None
            axis.plot(steps, values, label=name, marker=marker, markersize=3, linewidth=1.4)
            best = min(values) if label == "loss" else max(values)
            axis.annotate(f"{best:.4g}", (steps[values.index(best)], best), fontsize=8)
        positive = all(value > 0 for _, values in group.values() for value in values)
        if label == "loss" and positive:
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(NullFormatter())
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=9)
    path = directory / "metrics.png"
    figure.savefig(path, dpi=130)
    return path
