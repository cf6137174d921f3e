"""How far a sweep is: how many jobs are in which state, and how long the rest may take."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from .front import scored
from .rows import Row, State, Sweep
from .words import duration, number, spent

ORDER = (
    State.RUNNING,
    State.PENDING,
    State.SUCCEEDED,
    State.FAILED,
    State.PRUNED,
    State.CANCELLED,
    State.UNKNOWN,
    State.PLANNED,
)


class Tally(NamedTuple):
    """How far a sweep is. `total` counts jobs that nobody has asked for yet, too."""

    total: int
    states: Counter[State]

    @property
    def ended(self) -> int:
        return sum(count for state, count in self.states.items() if state.ended)

    def words(self) -> str:
        return ", ".join(f"{count} {state.lower()}" for state, count in self._counts() if count)

    def _counts(self) -> list[tuple[State, int]]:
        unasked = self.total - self.states.total()
        more = {State.PLANNED: unasked}
        return [(state, self.states[state] + more.get(state, 0)) for state in ORDER]


def tally(rows: Sequence[Row], total: int | None = None) -> Tally:
    return Tally(max(total or 0, len(rows)), Counter(row.state for row in rows))


def left(rows: Sequence[Row], now: float, total: int) -> float | None:
    """Return in how many seconds all jobs may have ended, were they all as long as those before.

    None: no job has come far enough to tell, or none is running.
    """
    running = [row for row in rows if row.state is State.RUNNING]
    done = [row for row in rows if row.state in (State.SUCCEEDED, State.PRUNED)]
    lengths = [seconds for row in done if (seconds := spent(row, now)) is not None]
    lengths = lengths or [length for row in running if (length := _foreseen(row, now))]
    if not lengths or not running:
        return None
    length = sum(lengths) / len(lengths)
    waiting = total - sum(row.state.ended for row in rows) - len(running)
    rest = sum(max(0.0, length - (spent(row, now) or 0.0)) for row in running)
    return (waiting * length + rest) / len(running)


def _foreseen(row: Row, now: float) -> float | None:
    """Return how long a running job may take in all, by its progress."""
    progress, so_far = row.progress, spent(row, now)
    if not progress or not progress["epoch"] or so_far is None:
        return None
    return float(so_far * progress["epochs"] / progress["epoch"])


def best_words(sweep: Sweep) -> str:
    if not (best := scored(sweep)[:1]):
        return ""
    return f"; best {sweep.objectives[0].metric} {number(best[0].values[0])} (job {best[0].number})"


def summary(sweep: Sweep, now: float, began: float, total: int | None) -> str:
    """Return on one line how far a sweep is."""
    rows = sweep.shown()
    found = tally(rows, total)
    time_left = left(rows, now, found.total)
    ahead = f", about {duration(time_left)} left" if time_left else ""
    told = (
        f"{found.ended:,} of {found.total:,} jobs have ended after {duration(now - began)}{ahead}"
    )
    return f"{told}: {found.words() or 'none was asked for'}{best_words(sweep)}"
