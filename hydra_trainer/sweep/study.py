"""The study of a sweep: where Optuna writes down its trials, found again or begun."""

import contextlib
import fcntl
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hydra_trainer import config
from hydra_trainer.errors import ConfigError, LaunchError

from . import samplers
from .rows import Objective
from .settings import OptunaConf
from .space import Space

FILE = "optuna.log"
"""In the directory of a sweep: the study, where `sweep.storage` names no database."""

ABOUT = "hydra_trainer"
"""The attribute of a study that says what it searches, to be compared with in the next sitting."""

OWNER = "sweep"
"""The attribute of a trial that says where its sweep lies: in a database, there may be several."""


def opened(
    conf: OptunaConf, space: Space, objectives: Sequence[Objective], directory: Path
) -> Study:
    """Return the study of a sweep, ready to be asked. The caller holds the sweep's lock.

    Raises:
        ConfigError: it is there already, and searches something else.
        LaunchError: it cannot be read or written.
    """
    about = _about(space, objectives)
    storage = _storage(conf, directory)
    study = _study(storage, _name(conf, about, storage), objectives)
    study.sampler, study.pruner = samplers.sampler(conf, space), samplers.pruner(conf)
    before = study.user_attrs.get(ABOUT)
    if before is None and not study.get_trials(deepcopy=False):
        study.set_user_attr(ABOUT, about)
    elif before != about:
        where = str(directory / FILE) if conf.storage is None else hidden(conf.storage)
        raise ConfigError(_another(study.study_name, where, before, about))
    return study


def _study(storage: BaseStorage, name: str, objectives: Sequence[Objective]) -> Study:
    # Without a load first, Optuna would compare directions, in words of its own.
    with contextlib.suppress(KeyError):
        return optuna.load_study(study_name=name, storage=storage)
    ways = [StudyDirection[f"{one.mode}imize".upper()] for one in objectives]
    return optuna.create_study(storage=storage, study_name=name, directions=ways)


def _name(conf: OptunaConf, about: dict[str, Any], storage: BaseStorage) -> str:
    """Return the study's name: as given, that of the only one in our file, or one by content."""
    if conf.study_name is not None:
        return conf.study_name
    if conf.storage is None and (there := storage.get_all_studies()):
        return str(there[0].study_name)
    how = [conf.sampler, conf.sampler_args, conf.pruner, conf.pruner_args, conf.seed]
    return f"sweep-{config.digest([about, how])[:8]}"


def unfinished(study: Study, conf: OptunaConf, directory: Path) -> list[FrozenTrial]:
    """Return the trials that an earlier sitting has left running, in the order of their numbers."""
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    mine = _owner(directory)
    return [one for one in running if conf.storage is None or one.user_attrs.get(OWNER) == mine]


def taken_up(study: Study, trial: FrozenTrial) -> optuna.Trial:
    """Return a trial, to go on with it: it may lack parameters that nobody lived to propose."""
    return optuna.Trial(study, trial._trial_id)


def proposed(study: Study, conf: OptunaConf, directory: Path, most: int) -> optuna.Trial | None:
    """Return a new trial; None where the study has as many as it may: failed ones count, too."""
    begun = study.get_trials(deepcopy=False)
    waiting = sum(one.state is TrialState.WAITING for one in begun)  # to be run once more
    if not waiting and len(begun) >= most:
        return None
    trial = study.ask()
    if conf.storage is not None:
        trial.set_user_attr(OWNER, _owner(directory))
    return trial


def ask_again(study: Study, number: int) -> None:
    """Let the next trial have the parameters of an earlier one; once, however often it is asked."""
    trials = study.get_trials(deepcopy=False)
    if number >= len(trials):
        return
    params = trials[number].params
    left = (TrialState.WAITING, TrialState.RUNNING)
    if not any(
        one.system_attrs.get("fixed_params") == params for one in trials if one.state in left
    ):
        study.enqueue_trial(params)


def _owner(directory: Path) -> str:
    return str(directory.resolve())


# ------------------------------------------------------------------------------------- comparing


def _about(space: Space, objectives: Sequence[Objective]) -> dict[str, Any]:
    return {
        "space": space.described(),
        "fixed": sorted(word for word in space.fixed if not config.NOT_SWEEP.match(word)),
        "objectives": [f"{one.metric} ({one.mode})" for one in objectives],
    }


def _another(name: str, where: str, before: dict[str, Any] | None, now: dict[str, Any]) -> str:
    if before is None:
        found = "was not begun by a sweep of ours"
    else:
        found = f"searches something else: {'; '.join(_differences(before, now))}"
    return (
        f"The study {name} in {where} {found}. To begin another one, type sweep.study_name=NAME or "
        "another hydra.sweep.dir; to go on with it, type what it has."
    )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterable[str]:
    old, new = before["space"], now["space"]
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            had = f"it has {key}={old[key]}" if key in old else f"it has no {key}"
            yield f"{had}, and you {f'type {key}={new[key]}' if key in new else 'leave it out'}"
    for key, what in (("objectives", "objectives"), ("fixed", "for all jobs")):
        if before[key] != now[key]:
            had, given = (", ".join(one[key]) or "nothing" for one in (before, now))
            yield f"{what}, it has {had}, and you type {given}"


# --------------------------------------------------------------------------------------- storages


def _storage(conf: OptunaConf, directory: Path) -> BaseStorage:
    if conf.storage is not None:
        return RDBStorage(conf.storage)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / FILE
    _mend(path)
    lock: Any = Lock(path)
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except (ValueError, KeyError, AssertionError) as error:
        raise LaunchError(
            f"{path} cannot be read ({error!r}). Put it back as it was; or move it away, and the "
            "same trials are proposed again, from the first one."
        ) from None


def _mend(path: Path) -> None:
    """Cut off the line that a killed process left unfinished: Optuna would write on behind it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        data = file.read()
        file.truncate(data.rfind(b"\n") + 1)


class Lock:
    """Optuna's own lock outlives a killed process by half a minute; the kernel's does not."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes]

    def acquire(self) -> bool:
        self._file = self._path.open("ab")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        return True

    def release(self) -> None:
        self._file.close()


@contextlib.contextmanager
def reached(conf: OptunaConf) -> Iterator[None]:
    """Turn what may go wrong with a storage into an error of ours."""
    from sqlalchemy.exc import SQLAlchemyError  # as heavy as Optuna, which needs it, too

    broken = (OSError, ImportError, SQLAlchemyError, optuna.exceptions.StorageInternalError)
    try:
        yield
    except broken as error:
        where = "the sweep's own directory" if conf.storage is None else hidden(conf.storage)
        detail = str(error).split("\n")[0]
        raise LaunchError(f"sweep.storage: {where} cannot be used: {detail}") from None


def hidden(url: str) -> str:
    """Return the URL of a database without its password."""
    return re.sub(r"(://[^/@]*:)[^/@]*@", r"\1***@", url)
