"""A sweep from its first job's configuration to its report: what all sweepers share."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from hydra_trainer import launcher
from hydra_trainer.errors import ConfigError, HydraTrainerError
from hydra_trainer.job import CONFIG_ERROR, DONE

from . import table
from .engine import Detached, Engine, Planned, handles
from .journal import Journal
from .rows import Objective, Row, State, Sweep
from .source import Asked, Source

SHOWN = 5  # jobs whose faults are told in full; the others are counted

SILENCE = 3.0  # seconds after which one who waits hears how far it is


def objectives(config: dict[str, Any]) -> list[Objective]:
    """Return what the jobs of a sweep are compared by, the first one first."""
    goal = config["objective"]
    return [Objective(one["metric"], one["mode"]) for one in (goal, *goal["others"])]


def plan_all(asked: Sequence[Asked], plan: Callable[[Asked], Planned]) -> dict[int, Planned]:
    """Return the jobs that were asked for, rendered once to see that they can be.

    Raises:
        ConfigError: with what is wrong with any of them; nothing was sent.
    """
    made: dict[int, Planned] = {}
    wrong: dict[str, list[Asked]] = {}
    told = time.monotonic()
    for one in asked:
        if time.monotonic() - told > SILENCE:
            told = time.monotonic()
            launcher.say(f"checked {len(made)} of {len(asked)} jobs")
        try:
            made[one.number] = plan(one)
            made[one.number].place.render(made[one.number].job)
        except ConfigError as error:
            for problem in error.problems:
                wrong.setdefault(problem, []).append(one)
    if wrong:
        raise ConfigError([_of_jobs(text, jobs, len(asked)) for text, jobs in wrong.items()])
    return made


def _of_jobs(problem: str, jobs: list[Asked], all_of_them: int) -> str:
    if len(jobs) == all_of_them:
        return problem
    which = "; ".join(job.shown() for job in jobs[:SHOWN])
    more = f"; and {len(jobs) - SHOWN} more" if len(jobs) > SHOWN else ""
    return f"{problem} (in {len(jobs)} of {all_of_them} jobs: {which}{more})"


def dry_run(planned: Iterable[Planned]) -> None:
    """Print what each job would send, as one stream for kubectl, or one JSON document after
    another."""
    for job, place, _ in planned:
        if place.language == "yaml":
            print("---")
        print(launcher.text(place.render(job), place.language), end="")


def check(planned: Iterable[Planned]) -> int:
    """Ask each place once whether it would run such a job. Returns the exit code."""
    asked: list[Any] = []
    good = True
    for job, place, _ in planned:
        if place not in asked:
            asked.append(place)
            good = place.preflight(job) and good
    return DONE if good else CONFIG_ERROR


def run(
    source: Source,
    planned: dict[int, Planned],
    plan: Callable[[Asked], Planned],
    journal: Journal,
    header: dict[str, Any],
    done: dict[int, int],
    limit: Callable[[str], int | None],
    voice: launcher.Once,
) -> dict[int, Row]:
    """Run the jobs of a source; return the row of each one, by the source's number.

    Args:
        journal: open for writing.
        header: what the journal's `sweep` event says.
        done: rows of jobs that have ended and were not planned, by the source's number.

    Raises:
        ConfigError: the directory holds another sweep.
        HydraTrainerError: the sweep could not go on to its end.
        SystemExit: the user let go of it.
    """
    begin(journal, header)
    view = table.view(total=source.total)
    if changed := _changed(journal.sweep, source, planned):
        view.say(
            f"{changed} jobs are new: the configuration, the files or the code have changed since "
            "the last sitting"
        )
    engine = Engine(journal, plan, limit, view, _wish)
    try:
        with launcher.speaking_through(voice.through(view.say)):
            engine.run(source, planned, done)
    except Detached:
        view.close()
        _let_go(journal.sweep, journal.directory)
        sys.exit(DONE)
    except HydraTrainerError:
        view.close()
        if journal.sweep.rows:
            finish(journal.sweep, journal.directory)
        if any(handles(journal.sweep)):
            launcher.say(f"jobs go on: hydra-trainer sweep cancel {journal.directory} stops them")
        raise
    finally:
        view.close()
    finish(journal.sweep, journal.directory)
    return {number: journal.sweep.rows[row] for number, row in engine.rows_of.items()}


def begin(journal: Journal, header: dict[str, Any]) -> None:
    """Write down what a sweep is about. Raises ConfigError: the directory holds another one."""
    before = journal.sweep
    if before.began is not None and before.identity != header["identity"]:
        raise ConfigError(
            f"hydra.sweep.dir is {journal.directory}, which holds another sweep: "
            f"{' '.join(before.words)}. Give another directory, or type that command to go on "
            "with it."
        )
    same = all(
        getattr(before, key) == header[key] for key in ("words", "cwd", "program", "sweeper")
    )
    goals = [{"metric": one.metric, "mode": one.mode} for one in before.objectives]
    if before.began is None or not same or goals != header["objectives"]:
        journal.write({"event": "sweep", **header})


def _changed(sweep: Sweep, source: Source, planned: dict[int, Planned]) -> int:
    """Return how many jobs are not what the very same overrides were in an earlier sitting."""
    names: dict[tuple[str, ...], set[str]] = {}
    for row in sweep.rows.values():
        names.setdefault(tuple(row.overrides), set()).add(row.name)
    changed = 0
    for asked in source.samples() if planned else ():
        before = names.get(tuple(asked.overrides))
        made = planned.get(asked.number)
        changed += bool(before and made and made.job.name not in before)
    return changed


def finish(sweep: Sweep, directory: Path) -> None:
    """Print the table, and write sweep.csv and report.html."""
    (directory / table.CSV).write_text(table.csv(sweep))
    print(table.final(sweep, directory), flush=True)
    try:
        from . import report

        report.write(sweep, directory / table.REPORT)
    except (HydraTrainerError, ImportError) as error:
        launcher.say(f"no {table.REPORT}: {error}")


def _wish() -> str:
    """Ask what Ctrl-C means; where nobody can be asked, the jobs go on."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return "detach"
    with contextlib.suppress(KeyboardInterrupt, EOFError):
        print("\nLet the jobs go on [d], or save and stop them [c]? ", end="", file=sys.stderr)
        if sys.stdin.readline().strip().lower().startswith("c"):
            return "cancel"
    return "detach"


def _let_go(sweep: Sweep, directory: Path) -> None:
    rows = sweep.shown()
    flying = sum(row.handle is not None and not row.state.ended for row in rows)
    waiting = sum(row.state is State.PLANNED for row in rows)
    launcher.say(
        f"let go of the sweep: {flying} jobs go on by themselves, {waiting} were not sent. The "
        f"same command goes on; to look at it: hydra-trainer sweep status {directory}"
    )
