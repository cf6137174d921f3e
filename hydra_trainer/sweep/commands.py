"""`hydra-trainer sweep status|table|report|cancel|retry-failed DIR`.

All of them work from the journal. Where nobody runs the sweep, what has ended meanwhile is looked
up first and written down: one who closed the laptop need not start the sweep again to read it.
"""

import argparse
import os
import re
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

from hydra_trainer import launcher
from hydra_trainer.errors import LaunchError
from hydra_trainer.job import DONE, JobHandle, JobState, JobStatus

from . import journal, table
from .engine import group_of, handles
from .journal import Journal
from .outcome import NoObjective, outcome
from .rows import Event, Row, State, Sweep

VERBS = {
    "status": "say how a sweep goes",
    "table": "print its jobs, the best one first",
    "report": "write report.html and sweep.csv anew",
    "cancel": "ask all of its jobs to save and stop",
    "retry-failed": "run those of its jobs again that failed",
}

LOOKS = 20
"""Times that a watcher may have nothing to tell before jobs it never spoke of are let be."""


def main(words: list[str]) -> int:
    """Run one verb; return the exit code. Raises HydraTrainerError."""
    parser = argparse.ArgumentParser(prog="hydra-trainer sweep")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="|".join(VERBS))
    for name, what in VERBS.items():
        verb = verbs.add_parser(name, help=what, description=what)
        verb.add_argument("directory", type=Path, help="of the sweep: runs/sweeps/...")
        if name == "retry-failed":
            reason = "only those with this reason, as the table shows it; may be given again"
            verb.add_argument("--reason", action="append", default=[], help=reason)
    options = parser.parse_args(words)
    code: int = globals()[f"_{options.verb.replace('-', '_')}"](options)
    return code


def _status(options: argparse.Namespace) -> int:
    sweep = refreshed(options.directory)
    print(table.status(sweep, journal.writer(options.directory), options.directory))
    return DONE


def _table(options: argparse.Namespace) -> int:
    print(table.final(refreshed(options.directory), options.directory))
    return DONE


def _report(options: argparse.Namespace) -> int:
    from . import report

    sweep = refreshed(options.directory)
    (options.directory / table.CSV).write_text(table.csv(sweep))
    report.write(sweep, options.directory / table.REPORT)
    print(options.directory / table.REPORT)
    return DONE


def _cancel(options: argparse.Namespace) -> int:
    _stop_submitter(options.directory)
    _stop_service(options.directory)
    with Journal(options.directory) as book:
        _refresh(book)
        asked = [(row, handle) for row, handle in handles(book.sweep)]
        for row, handle in asked:
            launcher.reaching(handle).cancel(handle)
            print(f"job {row.number}: {handle} was asked to save and stop")
        waiting = sum(row.state is State.PLANNED for row in book.sweep.shown())
    print(
        f"{len(asked)} jobs asked to stop; {waiting} were not sent. The same command goes on: "
        f"{command(book.sweep)}"
    )
    return DONE


def _stop_submitter(directory: Path) -> None:
    """End the process that runs a sweep, so that it sends no more jobs; those it sent go on."""
    journal.read(directory)
    who = journal.writer(directory)
    if who is None:
        return
    found = re.fullmatch(r"pid (\d+) on (.+)", who)
    if not found or found[2] != socket.gethostname():
        raise LaunchError(f"{who} runs this sweep. Press Ctrl-C there, or type this there.")
    os.kill(int(found[1]), signal.SIGTERM)
    journal.wait(directory)


def _stop_service(directory: Path) -> None:
    """Let a service that drives this sweep start no more jobs."""
    if not (directory / "service.json").exists():
        return
    from . import services

    if (search := services.begun(directory)) is not None:
        search.stop()
        print(f"{search.handle} was asked to stop: it starts no more jobs")


def _retry_failed(options: argparse.Namespace) -> int:
    with Journal(options.directory) as book:
        _refresh(book)
        failed = [row for row in book.sweep.shown() if row.state is State.FAILED]
        chosen = [row for row in failed if not options.reason or row.reason in options.reason]
        if not chosen:
            reasons = sorted({row.reason for row in failed})
            known = f" Reasons there are: {', '.join(reasons)}." if reasons else ""
            raise LaunchError(f"No job of this sweep has failed like that.{known}")
        book.write(*[{"event": "retry", "number": row.number} for row in chosen])
        sweep = book.sweep
    words = [word for word in sweep.words if word != "again=true"]
    launcher.say(f"{len(chosen)} jobs again: {command(sweep)}")
    os.chdir(sweep.cwd)
    sys.argv[1:] = words
    from hydra_trainer.app import main

    main()
    return DONE


def command(sweep: Sweep) -> str:
    """Return the command that a sweep was begun with, ready to paste."""
    import shlex

    return " ".join([sweep.program, *map(shlex.quote, sweep.words)])


# --------------------------------------------------------------------------------- looking again


def refreshed(directory: Path) -> Sweep:
    """Return a sweep, with what became of its jobs since its submitter left."""
    sweep = journal.read(directory)
    if journal.writer(directory) is not None or not any(handles(sweep)):
        return sweep
    with Journal(directory) as book:
        _refresh(book)
        return book.sweep


def _refresh(book: Journal) -> None:
    flying = {handle: row for row, handle in handles(book.sweep)}
    by_group: dict[str, list[JobHandle]] = {}
    for handle in flying:
        by_group.setdefault(group_of(handle), []).append(handle)
    for together in by_group.values():
        for handle, status in _look(together):
            if event := _event(flying[handle], status, book.sweep):
                book.write(event)


def _look(together: list[JobHandle]) -> Iterable[tuple[JobHandle, JobStatus]]:
    """Yield how each job of one place goes, once."""
    place = launcher.reaching(together[0])
    left, quiet = set(together), 0
    for found in place.watch(lambda: set(together)):
        quiet = 0 if found else quiet + 1
        for handle in left & found.keys():
            yield handle, found[handle]
        left -= found.keys()
        if not left or quiet > LOOKS:
            return


def _event(row: Row, status: JobStatus, sweep: Sweep) -> Event | None:
    if status.state.ended:
        try:
            return {"event": "ended", "number": row.number, **outcome(status, sweep.objectives)}
        except NoObjective as error:
            return {"event": "ended", "number": row.number, **error.outcome}
    if status.state is JobState.RUNNING and row.state is not State.RUNNING:
        return {"event": "running", "number": row.number}
    return None
