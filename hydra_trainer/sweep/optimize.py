"""The jobs that Optuna proposes, one whenever there is room: see `sweep=optuna`."""

import math
from collections import deque
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hydra_trainer.errors import ConfigError

from . import settings
from .rows import Objective, Row, State
from .settings import OptunaConf
from .source import Asked
from .space import Space

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial


class Optimizer:
    """A source of jobs, for the engine: Optuna is asked each time that one can run.

    The study is opened with the first question, when the engine holds the lock of the directory.
    Trials that an earlier sitting left running come first, with their numbers and parameters: their
    jobs have the same names, by which the engine finds them.

    Raises:
        ConfigError: with everything that is wrong, before anything is written or sent.
    """

    sweeper = "optuna"
    ahead = False

    def __init__(
        self, space: Space, objectives: Sequence[Objective], conf: OptunaConf, directory: Path
    ) -> None:
        if problems := list(settings.problems(conf, space, objectives)):
            raise ConfigError(problems)
        _check_arguments(conf, space)
        self.space, self.conf = space, conf
        self.trials = settings.total(conf, space)
        self.total: int | None = self.trials
        self._objectives, self._directory = list(objectives), directory
        self._left: deque[FrozenTrial] = deque()
        self._running: dict[int, Trial] = {}

    def samples(self) -> list[Asked]:
        return self.space.samples()

    def next(self) -> Asked | None:
        from . import samplers, study

        with study.reached(self.conf):
            found = self._study  # opens it, and finds what is left
            if self._left:
                trial = study.taken_up(found, self._left.popleft())
            elif (new := study.proposed(found, self.conf, self._directory, self.trials)) is None:
                return None
            else:
                trial = new
            values = samplers.suggested(trial, self.space)
        self._running[trial.number] = trial
        return self.space.job(trial.number, values)

    def again(self, numbers: Sequence[int]) -> None:
        """Run the jobs of some trials once more: as new trials, since Optuna's stay as they are."""
        from . import study

        with study.reached(self.conf):
            for number in numbers:
                study.ask_again(self._study, number)

    def ended(self, number: int, row: Row) -> None:
        """Tell Optuna. What is not a number for each objective is a failure, never a value."""
        from optuna.trial import TrialState

        from . import study

        values = None
        state = TrialState.PRUNED if row.state is State.PRUNED else TrialState.FAIL
        if row.state is State.SUCCEEDED and self._comparable(row):
            state, values = TrialState.COMPLETE, row.values
        with study.reached(self.conf):
            self._study.tell(number, values, state, skip_if_finished=True)
        self._running.pop(number, None)

    def _comparable(self, row: Row) -> bool:
        return len(row.values) == len(self._objectives) and not any(map(math.isnan, row.values))

    def reported(self, number: int, epoch: int, value: float) -> bool:
        from . import study

        trial = self._running.get(number)
        if trial is None or self.conf.pruner == "none":
            return False
        with study.reached(self.conf):
            trial.report(value, epoch)
            return trial.should_prune()

    def open(self) -> None:
        """Open the study now: a database that cannot be used is better found before jobs are."""
        from . import study

        with study.reached(self.conf):
            assert self._study

    @cached_property
    def _study(self) -> "Study":
        from . import study

        found = study.opened(self.conf, self.space, self._objectives, self._directory)
        self._left.extend(study.unfinished(found, self.conf, self._directory))
        return found


def _check_arguments(conf: OptunaConf, space: Space) -> None:
    """Let Optuna look at what is for its classes."""
    try:
        from . import samplers
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise ConfigError(
            "sweep=optuna needs Optuna, which is not installed. Type pip install "
            "'hydra-trainer[sweep]'."
        ) from None
    samplers.sampler(conf, space)
    samplers.pruner(conf)
