"""A sweep while it runs, on a terminal: one table on stderr, drawn in place."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.cells import cell_len

from .front import scored
from .grid import GAP, begun, columns, cut, fitted
from .rows import Row, State, Sweep
from .tally import Tally, best_words, left, summary, tally
from .words import cells, duration, number, reason, spent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

REFRESH = 0.5  # seconds between two drawings, at least
SHARE = 0.007  # of one core, at most, goes into drawing: with 1,000 jobs it takes some 6 ms
MIN_WORDS = 8  # cells for what sets a job apart, at least
RIGHT = (0, 2, 3, 4)  # columns that end at the same place
BAR = 40  # cells
WIDE = 120  # cells from which on there is room for the names of jobs

STYLES = {
    State.RUNNING: "cyan",
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.PRUNED: "yellow",
    State.CANCELLED: "magenta",
}
"""Colours of states; the others are dim."""


class Table:
    """One table, drawn in place, never higher than the screen."""

    def __init__(self, console: "Console", total: int | None, clock: Callable[[], float]) -> None:
        from rich.live import Live

        self._console, self._total, self._clock = console, total, clock
        self._began = clock()
        self._next = 0.0
        self._sweep: Sweep | None = None
        self._live: Live | None = Live(
            console=console,
            auto_refresh=False,  # a thread of its own draws as often as it likes
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # what goes into a pipe stays there
            vertical_overflow="crop",
        )
        self._live.start()

    def update(self, sweep: Sweep) -> None:
        self._sweep = sweep
        now = time.monotonic()
        if self._live is None or now < self._next:
            return
        before = time.thread_time()
        self._draw()
        self._next = now + max(REFRESH, (time.thread_time() - before) / SHARE)

    def _draw(self) -> None:
        from rich.text import Text

        assert self._sweep is not None and self._live is not None
        width, height = self._console.size
        lines = frame(self._sweep, self._clock(), self._began, width, height - 1, self._total)
        self._live.update(Text("\n", no_wrap=True).join(lines), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take the table away and leave a line on the whole sweep; once more is no harm."""
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        if self._sweep is not None:
            self.say(summary(self._sweep, self._clock(), self._began, self._total))


def frame(
    sweep: Sweep, now: float, began: float, width: int, height: int, total: int | None
) -> "list[Text]":
    """Return the lines of the table, at most `height`, each at most `width` cells wide."""
    rows = sweep.shown()
    found = tally(rows, total)
    lines = _head(sweep, rows, found, now, began, width)
    room = height - len(lines) - 3  # a blank line, the names of the columns, '... and 940 more'
    shown = _chosen(sweep, rows, room)
    if shown:
        lines += [_line(""), *jobs(sweep, shown, rows, now, width)]
    hidden = found.total - len(shown)
    if hidden and shown:
        rest = tally(
            [row for row in rows if row.number not in {one.number for one in shown}], hidden
        )
        lines.append(_line(begun(f"  ... and {hidden:,} more: {rest.words()}", width), "dim"))
    return lines[: max(height, 1)]


def _line(text: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(text, style, no_wrap=True)


def _head(
    sweep: Sweep, rows: Sequence[Row], found: Tally, now: float, began: float, width: int
) -> "list[Text]":
    from rich.text import Text

    count = f"  {found.ended:,} of {found.total:,} "
    parts = _bar(found, min(BAR, max(0, width - len(count) - 2)))
    bar = Text.assemble((count, "bold"), *parts, no_wrap=True)
    bar.truncate(width)
    bar.truncate(width)
    time_left = left(rows, now, found.total)
    times = duration(now - began) + (f", about {duration(time_left)} left" if time_left else "")
    words = [
        _line(begun(f"  {text}", width)) for text in (found.words(), times + best_words(sweep))
    ]
    return [bar, *words]


def _bar(found: Tally, size: int) -> list[tuple[str, str]]:
    """Return a bar in the colours of the states: those that have ended first, then what runs."""
    states = [*(state for state in State if state.ended), State.RUNNING]
    parts, drawn, counted = [], 0, 0
    for state in states:
        counted += found.states[state]
        upto = round(size * counted / max(1, found.total))
        parts.append(("━" * (upto - drawn), STYLES[state]))
        drawn = upto
    return [*parts, ("━" * (size - drawn), "dim")]


def _chosen(sweep: Sweep, rows: Sequence[Row], room: int) -> list[Row]:
    """Return the rows to show: what runs, the newest failures, the best, and then the others."""
    by_state: dict[State, list[Row]] = {state: [] for state in State}
    for row in rows:
        by_state[row.state].append(row)
    failed = sorted(by_state[State.FAILED], key=lambda row: -(row.ended or 0))
    best = scored(sweep)
    few = max(0, room) // 5
    running = by_state[State.RUNNING][: max(0, room - len(failed[:few]) - len(best[:few]))]
    spare = max(0, room - len(running) - len(failed[:few]))
    best = best[: max(len(best[:few]), spare)]
    failed = failed[: max(0, room - len(running) - len(best))]
    states = (State.PENDING, State.PRUNED, State.CANCELLED, State.UNKNOWN, State.PLANNED)
    others = [row for state in states for row in by_state[state]]
    return [*running, *failed, *best, *others][: max(0, room)]


def jobs(
    sweep: Sweep, shown: Sequence[Row], rows: Sequence[Row], now: float, width: int
) -> "list[Text]":
    """Return a line for each row that is shown, under the names of the columns."""
    from rich.text import Text

    several, wide = len({row.launcher for row in rows}) > 1, width >= WIDE
    where = [("name" if wide else "where")] if several or wide else []
    metric = sweep.objectives[0].metric if sweep.objectives else "objective"
    title = ["job", "state", "epoch", cut(metric, 14), "time", *where]
    facts = columns([title, *(_facts(row, now, bool(where), wide) for row in shown)], RIGHT)
    room = width - sum(map(cell_len, facts[0])) - GAP * (len(title) + 1)
    what = fitted(*cells(shown, rows), max(MIN_WORDS, room))
    size = cell_len(what[0])
    lines = []
    for row, (job, state, *rest), text in zip((None, *shown), facts, what, strict=True):
        tail = "  ".join(rest)
        if row and row.state is State.FAILED:
            tail = begun(reason(row), width - cell_len(job + state) - size - GAP * 4)
        style = STYLES.get(row.state, "dim") if row else "dim"
        parts = (f"  {job}  ", (state, style), f"  {text}  ", (tail, "" if row else "dim"))
        line = Text.assemble(*parts, no_wrap=True)
        line.truncate(width)
        lines.append(line)
    return lines


def _facts(row: Row, now: float, where: bool, wide: bool) -> list[str]:
    progress = row.progress
    epoch = f"{progress['epoch']}/{progress['epochs']}" if progress else ""
    seconds = spent(row, now)
    time_spent = "" if seconds is None else duration(seconds)
    place = [f"{row.launcher} {cut(row.name, 32)}" if wide else row.launcher] if where else []
    return [str(row.number), row.state.lower(), epoch, _objective(row), time_spent, *place]


def _objective(row: Row) -> str:
    if row.values:
        return number(row.values[0])
    return number(row.curve[-1][1]) if row.curve else ""
