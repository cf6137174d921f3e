"""Sweeps that a service drives: it chooses the values, starts the jobs and knows how they ended.

The service gets the fixed part of the configuration as one job, and the search space in its own
words. What its jobs came to goes into the same journal as that of any other sweep, so the table and
the report are the same. One module for each service: tuner.py, katib.py.
"""

import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_trainer import config, launcher, report, values
from hydra_trainer.bootstrap import read_json, write_json
from hydra_trainer.errors import ConfigError, JobFailed, LaunchError, did_you_mean
from hydra_trainer.job import CONFIG_ERROR, DONE, USER_ERROR, JobHandle, JobSpec, JobState
from hydra_trainer.launcher import Launcher

from . import composing, running, space, table
from .copy import kept
from .journal import Journal
from .outcome import NoObjective, outcome
from .rows import Event, Objective, Row, State
from .space import Space

RECORD = "service.json"
"""In the directory of a sweep: which service drives it, and the handle of its search."""


@dataclass(frozen=True)
class Plan:
    """A search: a job for the fixed part of the configuration, and what varies.

    `job` has the first value of everything that varies. `keys` are the dotted keys that vary, each
    with its key in `space`.
    """

    job: JobSpec
    place: Launcher
    space: Space
    objectives: list[Objective]
    keys: dict[str, str]


@dataclass(frozen=True)
class Seen:
    """A job of a search, as its service tells of it. `value` is its objective, as far as known."""

    name: str
    handle: JobHandle
    values: dict[str, str]
    state: JobState
    value: float | None = None
    reason: str = ""
    message: str = ""
    pruned: bool = False


@dataclass(frozen=True)
class Look:
    """How a search goes: `failure` says why it ended, where it did not simply finish."""

    jobs: list[Seen]
    ended: bool
    failure: str = ""


class Search(Protocol):
    """A search that runs."""

    handle: JobHandle

    pause: float
    """Seconds between two looks."""

    def look(self) -> Look:
        """Return how it goes. Raises LaunchError."""

    def stop(self) -> None:
        """Let it start no more jobs, and those that run save and stop. Safe to repeat."""


class Service(Protocol):
    """One kind of service; made of its options, which are the section `sweep`."""

    name: str
    """As typed: sweep=NAME."""

    scheme: str
    """Of the launcher whose jobs it starts."""

    options: type
    """The dataclass of its options."""

    def __init__(self, options: Any) -> None: ...

    @classmethod
    def reaching(cls, handle: JobHandle) -> Search:
        """Return a search that was begun before."""

    def render(self, plan: Plan) -> dict[str, Any]:
        """Return the exact object that `submit` sends. Raises ConfigError: all that is wrong."""

    def submit(self, plan: Plan) -> Search:
        """Begin the search, or find it. Raises ConfigError, LaunchError."""


def run(words: Sequence[str], master: DictConfig, loader: Any) -> dict[int, Row]:
    """Run a search to its end; return the row of each of its jobs. Empty after a dry run.

    Raises:
        ConfigError: something is wrong; nothing was sent.
        JobFailed: it ended, and no job brought a value.
        LaunchError, SystemExit: it could not be followed to its end, or somebody let go of it.
    """
    directory = Path(str(master.hydra.sweep.dir))
    kind = _kind(str(master.sweep.service))
    options = _options(kind, master.sweep)
    service: Service = kind(options)
    plan = planned(words, master, loader, service, directory)
    place: Any = plan.place
    if place.dry_run:
        print(launcher.text(service.render(plan), place.language), end="")
        return {}
    if place.check:
        service.render(plan)
        sys.exit(DONE if place.preflight(plan.job) else CONFIG_ERROR)
    with kept(directory, master), Journal(directory) as journal:
        running.begin(journal, _header(master, service, plan))
        search = service.submit(plan)
        record = {"service": str(master.sweep.service), "handle": str(search.handle)}
        write_json(directory / RECORD, record)
        if place.detach:
            print(search.handle)
            return {}
        return _followed(search, journal, plan)


def _kind(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if not module.startswith("hydra_trainer."):
        raise ConfigError(f"sweep.service is {path}, which is none of ours. Type sweep=katib.")
    return getattr(import_module(module), name)


def _options(kind: Any, node: Any) -> Any:
    """Return the section `sweep` as the options of a service. Raises ConfigError."""
    try:
        plain: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"sweep: {_line(error)}.") from None
    plain = {str(key): value for key, value in plain.items() if key not in ("service", "params")}
    schema = OmegaConf.structured(kind.options)
    OmegaConf.set_readonly(schema, False)
    problems = []
    for key, value in plain.items():
        if key not in schema:
            hint = did_you_mean(key, list(schema))
            known = ", ".join(map(str, schema))
            problems.append(f"sweep.{key} is not known.{hint} sweep={kind.name} has: {known}.")
            continue
        if value is None:
            continue
        try:
            schema[key] = value
        except OmegaConfBaseException as error:
            problems.append(f"sweep.{key} is {value!r}: {_line(error)}.")
    if problems:
        raise ConfigError(problems)
    found = OmegaConf.to_object(schema)
    for key in ("n_trials", "max_concurrent"):
        if getattr(found, key) < 1:
            problems.append(
                f"sweep.{key} is {getattr(found, key)}, but must be at least 1. Type sweep.{key}=4."
            )
    if problems:
        raise ConfigError(problems)
    return found


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def _header(master: DictConfig, service: Service, plan: Plan) -> dict[str, Any]:
    return {
        "words": sys.argv[1:],
        "cwd": str(Path.cwd()),
        "program": report.program(),
        "identity": config.sweep_identity(master),
        "sweeper": service.name,
        "objectives": [{"metric": one.metric, "mode": one.mode} for one in plan.objectives],
    }


# -------------------------------------------------------------------------------- what is searched


def planned(
    words: Sequence[str], master: DictConfig, loader: Any, service: Service, directory: Path
) -> Plan:
    """Return what a command line asks a service to search. Raises ConfigError."""
    params = OmegaConf.to_container(master.sweep.get("params") or OmegaConf.create({}))
    assert isinstance(params, dict)
    wanted = space.parse(words, {str(key): value for key, value in params.items()}, loader)
    if not wanted.params:
        raise ConfigError(
            f"sweep={service.name} has nothing to search over. Type what may vary, such as "
            "'optim.lr=tag(log,interval(1e-5,1e-1))'."
        )
    composer = composing.Composer(loader, master)
    samples = wanted.samples()
    made = []
    for one in samples:
        cfg = composer.compose(one.overrides, one.number)
        made.append(composing.planned(cfg, directory, composer.checked))
    _, job, place = made[0]
    if place.scheme != service.scheme:
        raise ConfigError(
            f"sweep={service.name} starts its own jobs, of launcher={service.scheme}, but this is "
            f"launcher={place.scheme}. Type launcher={service.scheme}, or sweep=optuna, which "
            "starts jobs anywhere."
        )
    check_values([(one.params, found[0]) for one, found in zip(samples, made, strict=True)])
    goals = running.objectives(config.resolve_part(master, "objective"))
    keys = {key.lstrip("+"): key for key in wanted.params}
    how = OmegaConf.to_container(master.sweep, resolve=True)
    digest = config.digest({"job": job.identity, "space": wanted.described(), "sweep": how})
    return Plan(_named(job, digest), place, wanted, goals, keys)


def _named(job: JobSpec, identity: str) -> JobSpec:
    """Return the job of the fixed part under a name of its own: none of the real jobs' names."""
    name = f"{job.name[:-8]}{identity[:8]}"
    run_ = {**job.config["run"], "name": name, "identity": identity}
    return replace(job, name=name, identity=identity, config={**job.config, "run": run_})


def check_values(samples: Sequence[tuple[Mapping[str, Any], dict[str, Any]]]) -> None:
    """Check that values, put into the first configuration, make each of the others.

    That is all that a service can do. A model=mlp,convnet is more than a value; and what was worked
    out from a value when the job was composed would stay that of the first one.

    Args:
        samples: what varies, and the configuration that Hydra composes with it.

    Raises:
        ConfigError: with the keys that are more than values.
    """
    first = samples[0][1]
    if groups := [key for key in samples[0][0] if _is_group(first, key)]:
        raise ConfigError(
            f"{groups[0]} chooses between files, but a service can only give values. Type "
            f"sweep=optuna, which composes each job; or one file, and what varies in it."
        )
    stale: dict[str, None] = {}
    for params, wanted in samples[1:]:
        texts = {key: values.text_of(value) for key, value in params.items()}
        stale |= dict.fromkeys(values.differing(values.applied(first, texts), wanted))
    if stale:
        varied = ", ".join(samples[0][0])
        raise ConfigError(
            f"{', '.join(stale)} would not follow {varied}: the service gives values to jobs that "
            "are composed already. Type sweep=optuna, which composes each job; or a value of its "
            "own for what depends on it."
        )


def _is_group(plain: dict[str, Any], key: str) -> bool:
    missing = object()
    found = config.get(plain, key, missing)
    return found is missing or isinstance(found, dict)


def typed(plan: Plan, given: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a job that a service started, and the overrides that make the same."""
    texts = {key: given[key] for key in plan.keys if key in given}
    whole = values.applied(plan.job.config, texts)
    params = {key: config.get(whole, key) for key in texts}
    words = [f"{plan.keys[key]}={space.text_of(value)}" for key, value in params.items()]
    return params, [*plan.space.fixed, *words]


# -------------------------------------------------------------------------------------- following


def _followed(search: Search, journal: Journal, plan: Plan) -> dict[int, Row]:
    view = table.view()
    try:
        found = _until_ended(search, journal, plan, view)
    except KeyboardInterrupt:
        view.close()
        launcher.say(
            f"let go of {search.handle}, which goes on. The same command follows it again; to stop "
            f"it: hydra-trainer sweep cancel {journal.directory}"
        )
        sys.exit(DONE)
    finally:
        view.close()
    running.finish(journal.sweep, journal.directory)
    rows = {row.number: row for row in journal.sweep.shown()}
    if not any(row.state is State.SUCCEEDED for row in rows.values()):
        text = found.failure or "no job of it brought a value"
        raise JobFailed(f"{search.handle}: {text}", USER_ERROR)
    if found.failure:
        launcher.say(f"{search.handle}: {found.failure}")
    return rows


def _until_ended(search: Search, journal: Journal, plan: Plan, view: Any) -> Look:
    wrong: NoObjective | None = None
    while True:
        found = search.look()
        for seen in found.jobs:
            try:
                journal.write(*events(seen, journal, plan))
            except NoObjective as error:
                wrong = error
        view.update(journal.sweep)
        if wrong is not None:
            search.stop()
            raise wrong
        if found.ended:
            return found
        time.sleep(search.pause)


def events(seen: Seen, journal: Journal, plan: Plan) -> Iterable[Event]:
    """Return what is new of a job that a service started.

    Raises NoObjective where it logged none of what it was to be compared by; that is written down.
    """
    sweep = journal.sweep
    row = next((one for one in sweep.rows.values() if one.name == seen.name), None)
    found: list[Event] = []
    if row is None:
        number = max(sweep.rows, default=-1) + 1
        params, words = typed(plan, seen.values)
        told = {"launcher": plan.place.scheme, "output": str(journal.directory / seen.name)}
        job = {"event": "job", "number": number, "name": seen.name, **told}
        found = [
            {**job, "overrides": words, "params": params},
            {"event": "sent", "number": number, "handle": str(seen.handle)},
        ]
    else:
        number = row.number
    if row is not None and row.state.ended:
        return []
    if seen.state is JobState.RUNNING and (row is None or row.state is not State.RUNNING):
        found.append({"event": "running", "number": number})
    if seen.state.ended:
        try:
            found.append({"event": "ended", "number": number, **_outcome(seen, plan)})
        except NoObjective as error:
            journal.write(*found, {"event": "ended", "number": number, **error.outcome})
            raise
    return found


def _outcome(seen: Seen, plan: Plan) -> dict[str, Any]:
    """Return how a job ended: from its own result; else by what the service knows."""
    found: dict[str, Any] = {
        "state": State(seen.state),
        "reason": seen.reason,
        "message": seen.message,
        "values": [],
    }
    try:
        status = plan.place.status(seen.handle)
    except LaunchError:  # the service has cleaned up
        status = None
    # The platform may have read the objective where the result itself cannot be.
    if status is not None and status.state.ended and (status.result or seen.value is None):
        found = outcome(status, plan.objectives)
    if found["state"] is State.SUCCEEDED and not found["values"] and seen.value is not None:
        found["values"] = [seen.value]
    if seen.pruned:
        found |= {"state": State.PRUNED, "reason": "Pruned", "message": ""}
    return found


# --------------------------------------------------------------------------------- for the commands


def begun(directory: Path) -> Search | None:
    """Return the search of a sweep's directory; None: no service drives that sweep."""
    found = read_json(directory / RECORD)
    if found is None:
        return None
    search: Search = _kind(found["service"]).reaching(JobHandle.parse(found["handle"]))
    return search
