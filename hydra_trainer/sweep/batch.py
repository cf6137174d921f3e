"""Between Hydra and a sweep: from what Hydra's sweepers hand over to jobs, and back to values."""

import contextlib
import functools
import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from hydra_trainer import config, launcher, report
from hydra_trainer.errors import ConfigError, JobFailed
from hydra_trainer.job import DONE, STOPPED, USER_ERROR

from . import composing, running
from .copy import kept
from .engine import Planned, worth_another_try
from .journal import FILE, Journal, read
from .outcome import outcome
from .rows import Objective, Row, State, Sweep
from .source import Asked, Listed, Source


class HydraLauncher(Protocol):
    """What is needed of the class that Hydra made: the configuration of the sweep itself."""

    config: Any
    hydra_context: Any
    max_concurrent: Any

    @property
    def directory(self) -> Path: ...


def source(job_overrides: Sequence[Sequence[str]], first: int) -> Listed:
    """Return the jobs of a batch; `first` is the number of the first one in the whole sweep."""
    words = [dict(word.partition("=")[::2] for word in job) for job in job_overrides]
    keys = dict.fromkeys(key for job in words for key in job)
    varied = [key for key in keys if len({job.get(key) for job in words}) > 1]
    read = functools.cache(_value)
    return Listed(
        [
            Asked(first + index, job, {key: read(found[key]) for key in varied if key in found})
            for index, (job, found) in enumerate(zip(job_overrides, words, strict=True))
        ]
    )


def _value(text: str) -> Any:
    """Return the value of an override, as it is shown: a number, a truth, or text."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    found: Any = text
    with contextlib.suppress(Exception):
        found = OverridesParser.create().parse_override(f"x={text}").value()
    return found if isinstance(found, bool | int | float | str) or found is None else text


def run(jobs: Source, hydra_launcher: HydraLauncher) -> dict[int, Row]:
    """Run the jobs of a sweep; return the row of each one, by the source's number.

    Raises:
        ConfigError: a job is wrong, or the sweep is; nothing was sent.
        HydraTrainerError, SystemExit: see running.run.
    """
    limit = _limit(hydra_launcher.max_concurrent)
    if not gc.get_freeze_count():  # as in app.run: else a thousand configurations stay in memory
        gc.freeze()
    gc.enable()
    composer = composing.Composer(hydra_launcher.hydra_context.config_loader, hydra_launcher.config)
    voice = launcher.Once()
    with launcher.speaking_through(voice), kept(hydra_launcher.directory, hydra_launcher.config):
        return _run(jobs, hydra_launcher, composer, limit, voice)


def _run(
    jobs: Source,
    hydra_launcher: HydraLauncher,
    composer: composing.Composer,
    limit: "Limit",
    voice: launcher.Once,
) -> dict[int, Row]:
    directory = hydra_launcher.directory

    def plan(asked: Asked) -> Planned:
        return _planned(composer, asked, directory)

    asked = jobs.samples()
    done = _ended(asked, directory, composer) if jobs.ahead else {}
    try:
        planned = running.plan_all([one for one in asked if one.number not in done], plan)
    except ConfigError:
        _clear(directory)
        raise
    places = [one.place for one in planned.values()]
    if any(place.dry_run or place.check for place in places):
        _clear(directory)
        if any(place.dry_run for place in places):
            running.dry_run(planned.values())
            return {}
        sys.exit(running.check(planned.values()))
    if any(_debugging(one) for one in planned.values()):
        return _one_after_another(jobs, planned, hydra_launcher)
    _share_cores(limit("local"))
    header = _header(hydra_launcher, jobs.sweeper)
    with Journal(directory) as journal:
        known = planned if jobs.ahead else {}
        return running.run(jobs, known, plan, journal, header, done, limit, voice)


def _ended(asked: Sequence[Asked], directory: Path, composer: composing.Composer) -> dict[int, int]:
    """Return the rows of jobs that an earlier sitting saw end, by number: as in its journal, with
    the same overrides, files and code."""
    if not (directory / FILE).exists():
        return {}
    rows = read(directory).rows.values()
    ended = {
        (tuple(row.overrides), row.basis): row.number
        for row in rows
        if row.basis and row.state.ended and not worth_another_try(row)
    }
    found = {}
    for one in asked:
        basis = composer.basis(one.overrides) if ended else None
        row = ended.get((tuple(one.overrides), basis)) if basis else None
        if row is not None:
            found[one.number] = row
    return found


def _planned(composer: composing.Composer, asked: Asked, directory: Path) -> Planned:
    cfg = composer.compose(asked.overrides, asked.number)
    apart = "launcher" in asked.params
    plain, job, place = composing.planned(cfg, directory, composer.checked, apart)
    again = job.again or bool(plain["launcher"].get("again"))
    basis = composer.basis(asked.overrides)
    return Planned(replace(job, again=again), place, basis)


def value(row: Row) -> float | tuple[float, ...]:
    """Return the objective of a job, or all of them.

    Raises:
        JobFailed: the job brought none.
    """
    if row.state is State.SUCCEEDED and row.values:
        return row.values[0] if len(row.values) == 1 else tuple(row.values)
    what = " ".join(f"{key}={value}" for key, value in row.params.items()) or row.name
    text = " ".join(part for part in (row.state.lower(), row.reason, row.message) if part)
    code = STOPPED if row.state is not State.FAILED else row.exit_code or USER_ERROR
    raise JobFailed(f"job {row.number} ({what}): {text}", code)


def _header(hydra_launcher: HydraLauncher, sweeper: str) -> dict[str, Any]:
    goals = running.objectives(config.resolve_part(hydra_launcher.config, "objective"))
    return {
        "words": sys.argv[1:],
        "cwd": str(Path.cwd()),
        "program": report.program(),
        "identity": config.sweep_identity(hydra_launcher.config),
        "sweeper": sweeper,
        "objectives": [{"metric": one.metric, "mode": one.mode} for one in goals],
    }


Limit = Callable[[str], int | None]
"""How many jobs a launcher may have in flight, by its scheme; None: nobody said."""


def _limit(given: Any) -> Limit:
    """Raises ConfigError when hydra.launcher.max_concurrent makes no sense."""
    each = isinstance(given, Mapping)
    values = given.values() if each else [given]
    if any(v is not None and (not isinstance(v, int) or v < 1) for v in values):
        raise ConfigError(
            f"hydra.launcher.max_concurrent is {given}, but must be a whole number of at least 1, "
            "or one for each launcher. Type hydra.launcher.max_concurrent=8 or "
            "'hydra.launcher.max_concurrent={local: 1, eks: 8}'."
        )
    return lambda scheme: given.get(scheme) if each else given


def _share_cores(jobs: int | None) -> None:
    """Give each of several jobs at once on this machine its share of the cores: torch's threads
    would take all of them for each job. The jobs inherit it."""
    if jobs is not None and jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // jobs, 1)))


def _clear(directory: Path) -> None:
    """Take away what Hydra's sweeper leaves before it asks us, where nothing is run."""
    (directory / "multirun.yaml").unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        directory.rmdir()


# ------------------------------------------------------------------------------------- a debugger


def _debugging(planned: Planned) -> bool:
    return not planned.place.elsewhere and planned.job.config["debug"]["mode"] != "off"


def _one_after_another(
    jobs: Source, planned: dict[int, Planned], hydra_launcher: HydraLauncher
) -> dict[int, Row]:
    """Run jobs in this process, where a breakpoint() works; nothing is written down."""
    header = _header(hydra_launcher, jobs.sweeper)
    sweep = Sweep(objectives=[Objective(**one) for one in header["objectives"]])
    rows: dict[int, Row] = {}
    for asked in jobs.samples():
        job, place, _ = planned[asked.number]
        handle, status = launcher.run(place, job)
        found = outcome(status, sweep.objectives)
        row = Row(
            asked.number, job.name, place.scheme, [*asked.overrides], asked.params, job.output
        )
        row.handle, row.state, row.values = str(handle), found["state"], found["values"]
        row.reason, row.message, row.exit_code = found["reason"], found["message"], DONE
        rows[asked.number] = row
    return rows
