"""Optuna's samplers and pruners as a sweep uses them. Imports Optuna: only sweeps with it do this.

A sampler draws random numbers, and Optuna keeps no record of how many. Here each trial has one of
its own, made from the seed and the trial's number: what it proposes follows from what is in the
study, so a sweep that is taken up again proposes the same as one that was never stopped.
"""

import contextlib
import hashlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from hydra_trainer.errors import ConfigError, did_you_mean

from .settings import OptunaConf
from .space import Choice, Float, Space

# The engine tells what happens to the jobs; what Optuna has to say of itself is not for the user.
optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", module=r"optuna\b")
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)

Make = Callable[[int], BaseSampler]


class Afresh(BaseSampler):
    """Uses a new sampler for each trial. `make` makes it from a seed."""

    def __init__(self, make: Make, seed: int) -> None:
        self._make, self._seed = make, seed
        self._current: BaseSampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._current = self._make(seed_of(self._seed, trial.number))
        self._current.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._current.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._current.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        # One for each parameter: a trial whose submitter died between two of them is finished
        # as it would have been.
        one = self._make(seed_of(self._seed, trial.number, param_name))
        return one.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        """Nothing: of our samplers only Optuna's grid does something, and ends its own loop."""


class Sequence(optuna.samplers.QMCSampler):
    """The quasi-random sequence, in which a trial's number is its place.

    Optuna counts in the study, and a trial that is taken up again would be counted twice.
    """

    number = 0

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self.number = trial.number
        super().before_trial(study, trial)

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return max(self.number - 1, 0)  # the first trial is drawn at random


def seed_of(*parts: Any) -> int:
    """Return a seed that follows from some values: what NumPy takes, 32 bits."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


# ------------------------------------------------------------------------------- by their names

SAMPLER_CLASSES: dict[str, Any] = {
    "tpe": optuna.samplers.TPESampler,
    "cmaes": optuna.samplers.CmaEsSampler,
    "gp": optuna.samplers.GPSampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.GridSampler,
    "qmc": optuna.samplers.QMCSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
}
PRUNER_CLASSES: dict[str, Any] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "percentile": optuna.pruners.PercentilePruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "halving": optuna.pruners.SuccessiveHalvingPruner,
    "threshold": optuna.pruners.ThresholdPruner,
    "patient": optuna.pruners.PatientPruner,
}
NOT_TYPED = (
    "self",
    "seed",  # sweep.seed
    "search_space",
    "wrapped_pruner",
    "independent_sampler",
    "source_trials",
    "gamma",
    "weights",
    "constraints_func",
    "mutation",
    "crossover",
    "elite_population_selection_strategy",
    "child_generation_strategy",
    "after_trial_strategy",
    "warn_independent_sampling",
    "warn_asynchronous_seeding",
)
"""Arguments that are ours to give, or that no text stands for."""


def sampler(conf: OptunaConf, space: Space) -> BaseSampler:
    """Return the sampler of a sweep.

    Raises:
        ConfigError: `sweep.sampler_args` are not for it.
    """
    kind = SAMPLER_CLASSES[conf.sampler]
    _check_names(kind, conf.sampler, conf.sampler_args, "sampler")
    args = {**_defaults(conf.sampler, space), **conf.sampler_args}
    with _told_as(conf.sampler, "sampler"):
        return Afresh(_make(conf, space, args), conf.seed)


def _make(conf: OptunaConf, space: Space, args: dict[str, Any]) -> Make:
    if conf.sampler == "grid":
        values: Any = {key: list(one.all()) for key, one in space.params.items()}
        grid = optuna.samplers.GridSampler(values, seed=conf.seed)
        return lambda seed: grid  # one order for all trials
    if conf.sampler == "qmc":
        random = optuna.samplers.RandomSampler
        return lambda seed: Sequence(seed=conf.seed, independent_sampler=random(seed), **args)
    return lambda seed: SAMPLER_CLASSES[conf.sampler](seed=seed, **args)


def _defaults(name: str, space: Space) -> dict[str, Any]:
    """Return what we set differently from Optuna.

    constant_liar, which keeps TPE away from what is running, as measured in 64 trials of 20 to 40
    seeds: with choices it is better (6 x 5 x 4 of them, 16 in flight: 3 trials of 64 repeat one
    that is running, without it 27), without it a lone search over continuous numbers is (regret at
    4 in flight: 0.75 to 0.95 of that with it; at 16: 0.33 to 0.95).
    """
    if name == "tpe":
        return {"constant_liar": any(one.count is not None for one in space.params.values())}
    return {"scramble": True} if name == "qmc" else {}  # else the seed would change nothing


def pruner(conf: OptunaConf) -> BasePruner:
    """Return the pruner of a sweep.

    Raises:
        ConfigError: `sweep.pruner_args` are not for it.
    """
    kind = PRUNER_CLASSES[conf.pruner]
    _check_names(kind, conf.pruner, conf.pruner_args, "pruner")
    args = dict(conf.pruner_args)
    if conf.pruner == "percentile":
        args.setdefault("percentile", 25.0)
    with _told_as(conf.pruner, "pruner"):
        made: BasePruner = kind(None, **args) if conf.pruner == "patient" else kind(**args)
        return made


def _check_names(kind: type, name: str, given: Mapping[str, Any], what: str) -> None:
    known = [key for key in inspect.signature(kind).parameters if key not in NOT_TYPED]
    for key in given:
        if key not in known:
            raise ConfigError(
                f"sweep.{what}_args.{key} is not known to sweep.{what}={name}."
                f"{did_you_mean(key, known)} It has: {', '.join(known) or 'no arguments'}."
            )


@contextlib.contextmanager
def _told_as(name: str, what: str) -> Iterator[None]:
    """Turn what Optuna says of an argument into an error of ours."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ConfigError(f"sweep.{what}_args do not fit sweep.{what}={name}: {error}") from None


def suggested(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Return a trial's value for each parameter: those that it has, else what is proposed."""
    values: dict[str, Any] = {}
    for key, one in space.params.items():
        if isinstance(one, Choice):
            values[key] = trial.suggest_categorical(key, one.texts)
        elif isinstance(one, Float):
            values[key] = trial.suggest_float(key, one.low, one.high, step=one.step, log=one.log)
        else:
            values[key] = trial.suggest_int(key, one.low, one.high, step=one.step, log=one.log)
    return values
