"""A sweep while it runs, in a log: a line for each change that matters, on stderr."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from .front import scored
from .grid import begun, cut
from .rows import Row, State, Sweep
from .tally import best_words, summary, tally
from .words import described, duration, number, reason, short, spent, varied

if TYPE_CHECKING:
    from rich.console import Console

PACE = 2.0  # seconds between two groups of lines, at least
TOGETHER = 8  # ends that are told one by one in such a group; the others are summed up
SUMMARY = 60.0  # seconds between two lines on the whole sweep, at least


class Lines:
    """One line for each change that matters; where many happen at once, one for all of them."""

    def __init__(self, console: "Console", total: int | None, clock: Callable[[], float]) -> None:
        self._console, self._total, self._clock = console, total, clock
        self._began = self._summed_up = clock()
        self._next = 0.0
        self._sent: dict[int, float | None] = {}
        self._ended: dict[int, float | None] = {}
        self._sweep: Sweep | None = None

    def update(self, sweep: Sweep) -> None:
        first, self._sweep = self._sweep is None, sweep
        now = self._clock()
        if first:
            self._begin(sweep, now)
        elif now >= self._next:
            self._tell(sweep, now)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Tell what has not been told, and how far the sweep is; once more is no harm."""
        if self._sweep is not None:
            self._tell(self._sweep, self._clock())
            self.say(summary(self._sweep, self._clock(), self._began, self._total))
            self._sweep = None

    def _begin(self, sweep: Sweep, now: float) -> None:
        rows = sweep.shown()
        self._sent = {row.number: row.sent for row in rows}
        self._ended = {row.number: row.ended for row in rows}
        if any(row.sent or row.ended for row in rows):
            found = tally(rows, self._total)
            self.say(f"{found.total:,} jobs, of which the journal says: {found.words()}")
        self._next = now + PACE

    def _tell(self, sweep: Sweep, now: float) -> None:
        rows = sweep.shown()
        sent = [row for row in rows if row.sent and row.sent != self._sent.get(row.number)]
        ended = [row for row in rows if row.ended and row.ended != self._ended.get(row.number)]
        if not sent and not ended:
            return
        self._next = now + PACE
        self._sent |= {row.number: row.sent for row in sent}
        self._ended |= {row.number: row.ended for row in ended}
        if sent:
            self.say(_sent_words(sent))
        self._tell_ends(sweep, sorted(ended, key=lambda row: row.ended or 0), now)
        if ended and now - self._summed_up >= SUMMARY:
            self._summed_up = now
            self.say(summary(sweep, now, self._began, self._total))

    def _tell_ends(self, sweep: Sweep, ended: Sequence[Row], now: float) -> None:
        names = short(varied(sweep.shown()))
        best = [row.number for row in scored(sweep)[:1]]
        for row in ended[:TOGETHER]:
            self.say(_end_words(sweep, row, [row.number] == best, names, now))
        if others := ended[TOGETHER:]:
            self.say(f"{len(others)} more have ended: {tally(others).words()}{best_words(sweep)}")


def _sent_words(rows: Sequence[Row]) -> str:
    places = Counter(row.launcher for row in rows)
    if len(rows) == 1:
        return f"sent job {rows[0].number} to {rows[0].launcher}"
    return "sent " + ", ".join(f"{count} jobs to {place}" for place, count in places.items())


def _end_words(sweep: Sweep, row: Row, best: bool, names: dict[str, str], now: float) -> str:
    seconds = spent(row, now)
    time_spent = "" if seconds is None else f" after {duration(seconds)}"
    head = f"job {row.number} ({cut(described(row, names), 100)}) {row.state.lower()}{time_spent}"
    if row.state is not State.SUCCEEDED:
        return head if row.state is State.PRUNED else f"{head}: {begun(reason(row), 200)}"
    pairs = zip(sweep.objectives, row.values, strict=False)
    values = ", ".join(f"{one.metric} {number(value)}" for one, value in pairs)
    return f"{head}: {values}{', the best so far' if best else ''}"
