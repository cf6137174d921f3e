"""What people read of a sweep on a terminal or in a log, and sweep.csv."""

import csv as csv_module
import io
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len

from .front import front, leaders, scored
from .grid import begun, columns, cut, fitted
from .rows import Row, State, Sweep
from .tally import best_words, tally
from .words import again, cells, command, duration, number, reason, spent, value

if TYPE_CHECKING:
    from rich.console import Console

    from .lines import Lines
    from .live import Table

SHOWN = 30  # rows with an objective in the last table
FAILURES = 10  # failures below it

CSV = "sweep.csv"
REPORT = "report.html"


def view(
    console: "Console | None" = None,
    total: int | None = None,
    clock: Callable[[], float] = time.time,
) -> "Table | Lines":
    """Return what shows a sweep on stderr: a table on a terminal, plain lines elsewhere.

    `total` is how many jobs there will be, where the sweep does not hold all of them yet.
    """
    from rich.console import Console

    console = console or Console(stderr=True)
    if console.is_interactive:
        from .live import Table

        return Table(console, total, clock)
    from .lines import Lines

    return Lines(console, total, clock)


# ------------------------------------------------------------------------------------ at the end


def final(sweep: Sweep, directory: Path | None = None, width: int | None = None) -> str:
    """Return the jobs of a sweep by objective, the best one's command, and what to type next.

    `directory` is the sweep's, for the commands; `width` the terminal's where it is not given.
    """
    width = width or shutil.get_terminal_size().columns
    rows = sweep.shown()
    parts = [
        [_counted(rows)],
        *_ranking(sweep, rows, directory, width),
        _failures(rows, width),
        *_best(sweep),
        _next(sweep, rows, directory),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _counted(rows: Sequence[Row]) -> str:
    found = tally(rows)
    times = [at for row in rows for at in (row.sent, row.ended) if at is not None]
    took = f" in {duration(max(times) - min(times))}" if times else ""
    if found.ended < found.total:
        return f"{found.ended:,} of {found.total:,} jobs have ended: {found.words()}"
    return f"{found.total:,} jobs{took}: {found.words() or 'none was asked for'}"


def _ranking(
    sweep: Sweep, rows: Sequence[Row], directory: Path | None, width: int
) -> Iterator[list[str]]:
    """Yield the rows with objectives, the best first; of several objectives the front first."""
    good = scored(sweep)
    pruned = [row for row in rows if row.state is State.PRUNED]
    stopped = [row for row in rows if row.state is State.CANCELLED]
    several = len(sweep.objectives) > 1
    ahead = front(good, sweep.objectives) if several else []
    chosen = {row.number for row in ahead}
    rest = [*(row for row in good if row.number not in chosen), *pruned, *stopped]
    if ahead:
        more = ahead[SHOWN:]
        yield [
            "The Pareto front: none is better in one objective and as good in the others.",
            *_lines(sweep, rows, ahead[:SHOWN], width),
            *_and_more(more, directory),
        ]
    room = max(0, SHOWN - len(ahead))
    if rest[:room]:
        title = ["The others:"] if ahead else []
        yield [*title, *_lines(sweep, rows, rest[:room], width), *_and_more(rest[room:], directory)]
    elif rest:
        yield _and_more(rest, directory)


def _and_more(rows: Sequence[Row], directory: Path | None) -> list[str]:
    where = f": {_path(directory, CSV)}" if directory else f"; {CSV} holds all of them"
    return [f"  ... and {len(rows):,} more{where}"] if rows else []


def _lines(sweep: Sweep, all_rows: Sequence[Row], rows: Sequence[Row], width: int) -> list[str]:
    places = len({row.launcher for row in all_rows}) > 1
    ended = {row.state for row in rows} != {State.SUCCEEDED}
    names = [_title(one.metric) for one in sweep.objectives] or ["objective"]
    title = ["job", *names, "time", *["where"] * places, *["state"] * ended]
    told = [title]
    for row in rows:
        values = [number(value) for value in row.values] or _last(row)
        values += [""] * (len(names) - len(values))
        where, state = [row.launcher] * places, [row.state.lower()] * ended
        told.append([str(row.number), *values[: len(names)], _time(row), *where, *state])
    facts = ["  " + "  ".join(line) for line in columns(told, right=range(len(names) + 2))]
    what = fitted(*cells(rows, all_rows), width - cell_len(facts[0]) - 2)
    return [f"{left}  {right}".rstrip() for left, right in zip(facts, what, strict=True)]


def _title(metric: str) -> str:
    return cut(metric, 14)


def _last(row: Row) -> list[str]:
    return [f"({number(row.curve[-1][1])})"] if row.curve else []


def _time(row: Row) -> str:
    seconds = spent(row, row.ended or 0.0)
    return "" if seconds is None else duration(seconds)


def _failures(rows: Sequence[Row], width: int) -> list[str]:
    failed = sorted((row for row in rows if row.state is State.FAILED), key=lambda row: row.number)
    if not failed:
        return []
    shown = failed[:FAILURES]
    numbers = columns([["job"], *([str(row.number)] for row in shown)], right=[0])
    room = width - cell_len(numbers[0][0]) - 6
    what = fitted(*cells(shown, rows), room // 2)
    reasons = ["reason", *(begun(reason(row), room - cell_len(what[0])) for row in shown)]
    lines = [
        f"  {job}  {text}  {why}".rstrip()
        for (job,), text, why in zip(numbers, what, reasons, strict=True)
    ]
    by_reason: dict[str, int] = {}
    for row in failed[FAILURES:]:
        by_reason[row.reason or "unknown"] = by_reason.get(row.reason or "unknown", 0) + 1
    rest = ", ".join(f"{count} {name}" for name, count in by_reason.items())
    more = [begun(f"  ... and {len(failed) - FAILURES:,} more: {rest}", width)] if rest else []
    return [f"{len(failed):,} failed:", *lines, *more]


def _best(sweep: Sweep) -> Iterator[list[str]]:
    """Yield the command of the best job, by each objective."""
    for row in leaders(sweep):
        pairs = zip(sweep.objectives, row.values, strict=True)
        values = ", ".join(f"{one.metric} {number(value)}" for one, value in pairs)
        yield [f"Best: job {row.number}, {values}", f"  {command(sweep, row)}"]


def _next(sweep: Sweep, rows: Sequence[Row], directory: Path | None) -> list[str]:
    found = []
    place = _path(directory) if directory else "DIR"
    failed = [row for row in rows if row.state is State.FAILED]
    if directory and any(row.ended for row in rows):
        found.append(("all of it in a browser", _path(directory, REPORT)))
    if failed and failed[0].handle:
        words = f"hydra-trainer why {failed[0].handle}"
        found.append((f"what happened to job {failed[0].number}", words))
    if failed:
        words = f"hydra-trainer sweep retry-failed {place}"
        found.append(("run what failed again", words))
    if any(not row.state.ended or row.state is State.CANCELLED for row in rows):
        found.append(("go on with what has not ended", again(sweep)))
    return ["Next:", *(f"  # {what}\n  {line}" for what, line in found)] if found else []


def _path(directory: Path, name: str = "") -> str:
    return shlex.quote(str(directory / name))


# ---------------------------------------------------------------------------------- in between


def status(
    sweep: Sweep,
    writer: str | None,
    directory: Path | None = None,
    width: int | None = None,
    now: float | None = None,
) -> str:
    """Return how a sweep goes; `writer` is who runs it (journal.writer), None: nobody."""
    width = width or shutil.get_terminal_size().columns
    rows = sweep.shown()
    found = tally(rows)
    goes_on = found.ended < found.total or found.states[State.CANCELLED]
    lines = [
        f"{found.ended:,} of {found.total:,} jobs have ended: {found.words()}{best_words(sweep)}"
    ]
    if writer:
        lines.append(f"{writer} runs it")
    elif goes_on:
        lines.append(f"nobody runs it; to go on: {again(sweep)}")
    running = [row for row in rows if row.state is State.RUNNING]
    if running:
        from .live import jobs

        shown = jobs(sweep, running[:SHOWN], rows, time.time() if now is None else now, width)
        lines += ["", *(line.plain.rstrip() for line in shown)]
        more = len(running) - SHOWN
        lines += [f"  ... and {more:,} more that run"] if more > 0 else []
    if found.states[State.FAILED]:
        lines += ["", *_failures(rows, width)]
    if found.ended:
        lines += [
            "",
            f"The table: hydra-trainer sweep table {_path(directory) if directory else 'DIR'}",
        ]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------- sweep.csv

FIXED = ("number", "name", "launcher", "state")
LAST = ("seconds", "started", "ended", "handle", "reason", "message")


def csv(sweep: Sweep) -> str:
    """Return sweep.csv: a line for each job; parameters, objectives and metrics are columns.

    A parameter called like another column is `param.NAME` there, a metric like an objective, whose
    best value that one may be, `last.NAME`.
    """
    rows = sweep.shown()
    goals = [one.metric for one in sweep.objectives]
    params = list(dict.fromkeys(key for row in rows for key in row.params))
    metrics = sorted({name for row in rows for name in row.metrics})
    taken = {*FIXED, *LAST, *goals}
    head = [
        *FIXED,
        *(f"param.{key}" if key in taken else key for key in params),
        *goals,
        *(f"last.{key}" if key in {*taken, *params} else key for key in metrics),
        *LAST,
    ]
    text = io.StringIO()
    writer = csv_module.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(_record(row, params, len(goals), metrics) for row in rows)
    return text.getvalue()


def _record(row: Row, params: Sequence[str], goals: int, metrics: Sequence[str]) -> list[Any]:
    values = [*row.values, *[""] * goals][:goals]
    times = [_rfc3339(row.started), _rfc3339(row.ended)]
    return [
        *(row.number, row.name, row.launcher, row.state),
        *(_cell(row.params.get(key, "")) for key in params),
        *values,
        *(row.metrics.get(name, "") for name in metrics),
        *("" if row.seconds is None else row.seconds, *times, row.handle or ""),
        *(row.reason, row.message),
    ]


def _cell(given: Any) -> Any:
    """Return a parameter's value in full; a truth and null as in YAML."""
    return given if isinstance(given, float) else value(given)


def _rfc3339(at: float | None) -> str:
    if at is None:
        return ""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
