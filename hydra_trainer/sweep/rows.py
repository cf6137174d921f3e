"""What the jobs of a sweep have come to. Standard library only: the table and the report read this.

A `Row` is rebuilt from the journal's events (journal.py), in the order in which they were written.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Event = dict[str, Any]
"""One line of a journal: `event` says which kind it is; `at` is when, in seconds since 1970."""


class State(StrEnum):
    """What a job of a sweep is doing: a JobState, or one of two that only a sweep knows."""

    PLANNED = "PLANNED"  # not sent yet
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    PRUNED = "PRUNED"  # stopped by the sweep: its intermediate values were not good enough
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.PRUNED, State.CANCELLED)


@dataclass(frozen=True)
class Objective:
    """What a sweep compares its jobs by: a logged metric, and whether less or more is better."""

    metric: str
    mode: str = "min"  # min | max

    def better(self, one: float, other: float) -> bool:
        return one > other if self.mode == "max" else one < other


@dataclass
class Row:
    """One job of a sweep.

    `params` are what differs between the jobs, as values: {"optim.lr": 0.001, "model": "mlp"}.
    `values` are its objectives, in the order of `Sweep.objectives`; empty until it succeeded.
    `curve` holds (step, first objective) as it came, `progress` the newest word of a running job:
    {"epoch": 3, "epochs": 15, "step": 33, "values": {"val/loss": 0.12}}. Times are seconds since
    1970 by the submitter's clock. `basis` is what its identity follows from besides its overrides
    (composing.Composer.basis).
    """

    number: int
    name: str
    launcher: str
    overrides: list[str]
    params: dict[str, Any]
    output: str
    handle: str | None = None
    state: State = State.PLANNED
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    values: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)
    progress: dict[str, Any] | None = None
    sent: float | None = None
    started: float | None = None
    ended: float | None = None
    seconds: float | None = None
    attempts: int = 0
    retry: bool = False
    basis: str | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What makes it this job and no other: where it runs, and its name by content."""
        return self.launcher, self.name


@dataclass
class Sweep:
    """A sweep as its journal tells it.

    `words` is the command that began it, `cwd` where it was typed. `current` are the numbers of
    the rows that the newest sitting is about: rows of an earlier configuration stay, and are not
    among them. None: all are.
    """

    words: list[str] = field(default_factory=list)
    cwd: str = ""
    program: str = ""
    identity: str = ""
    sweeper: str = ""
    objectives: list[Objective] = field(default_factory=list)
    rows: dict[int, Row] = field(default_factory=dict)
    current: list[int] | None = None
    began: float | None = None

    def shown(self) -> list[Row]:
        """Return the rows of the newest sitting, in the order of their numbers."""
        numbers = sorted(self.rows) if self.current is None else self.current
        return [self.rows[number] for number in numbers]

    def ranked(self) -> list[Row]:
        """Return the rows with values, the best by the first objective first."""
        found = [row for row in self.shown() if row.state is State.SUCCEEDED and row.values]
        reverse = bool(self.objectives) and self.objectives[0].mode == "max"
        return sorted(found, key=lambda row: row.values[0], reverse=reverse)


def rebuild(events: Iterable[Event]) -> Sweep:
    """Return the sweep that a journal tells. Events of a kind that is not known are passed over."""
    sweep = Sweep()
    for event in events:
        apply(sweep, event)
    return sweep


def apply(sweep: Sweep, event: Event) -> None:
    """Let a sweep take in what happened next."""
    kind = event["event"]
    if kind == "sweep":
        _begin(sweep, event)
    elif kind == "plan":
        sweep.current = event["numbers"]
    elif kind == "job":
        _add(sweep, event)
    elif kind in _ROW_EVENTS:
        _ROW_EVENTS[kind](sweep.rows[event["number"]], event)


def _begin(sweep: Sweep, event: Event) -> None:
    sweep.words, sweep.cwd, sweep.program = event["words"], event["cwd"], event["program"]
    sweep.identity, sweep.sweeper = event["identity"], event["sweeper"]
    sweep.objectives = [Objective(**one) for one in event["objectives"]]
    if sweep.began is None:
        sweep.began = event["at"]


def _add(sweep: Sweep, event: Event) -> None:
    keys = ("number", "name", "launcher", "overrides", "params", "output")
    row = Row(**{key: event[key] for key in keys}, basis=event.get("basis"))
    sweep.rows[row.number] = row


def _sent(row: Row, event: Event) -> None:
    row.handle, row.state = event["handle"], State.PENDING
    row.sent, row.attempts, row.retry = event["at"], row.attempts + 1, False


def _running(row: Row, event: Event) -> None:
    row.state = State.RUNNING
    row.started = row.started or event["at"]


def _progress(row: Row, event: Event) -> None:
    row.progress = {key: event[key] for key in ("epoch", "epochs", "step", "values")}
    if event.get("value") is not None:
        row.curve.append((event["step"], event["value"]))


def _ended(row: Row, event: Event) -> None:
    row.state = State(event["state"])
    row.reason, row.message = event.get("reason", ""), event.get("message", "")
    row.exit_code, row.values = event.get("exit_code"), event.get("values") or []
    row.metrics, row.seconds = event.get("metrics") or {}, event.get("seconds")
    row.ended = event["at"]


def _retry(row: Row, event: Event) -> None:
    row.state, row.retry, row.ended = State.PLANNED, True, None
    row.reason = row.message = ""
    row.curve, row.progress, row.exit_code = [], None, None


_ROW_EVENTS = {
    "sent": _sent,
    "running": _running,
    "progress": _progress,
    "ended": _ended,
    "retry": _retry,
}
