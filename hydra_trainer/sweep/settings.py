"""The keys of conf/sweep/optuna.yaml, and what is wrong with their values. Optuna is not needed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hydra_trainer.errors import ConfigError, did_you_mean

from .rows import Objective
from .space import Choice, Space

SAMPLERS = ("tpe", "cmaes", "gp", "random", "grid", "qmc", "nsgaii")
PRUNERS = ("none", "median", "percentile", "hyperband", "halving", "threshold", "patient")

TRIALS = 32
"""How many trials there are where nobody says."""

GRID = 100_000
"""Combinations of a grid that Optuna is asked to keep in memory."""


@dataclass
class OptunaConf:
    """How Optuna searches. The same names are in conf/sweep/optuna.yaml, with their meanings."""

    n_trials: int | None = None
    sampler: str = "tpe"
    sampler_args: dict[str, Any] = field(default_factory=dict)
    pruner: str = "none"
    pruner_args: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    storage: str | None = None
    study_name: str | None = None
    params: dict[str, Any] = field(default_factory=dict)


def read(node: DictConfig) -> OptunaConf:
    """Return the section `sweep` of a configuration.

    Raises:
        ConfigError: a key is not known, or its value is of another kind.
    """
    try:
        plain: Any = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"sweep: {_line(error)}") from None
    known = list(OptunaConf.__dataclass_fields__)
    problems: list[str] = []
    good: dict[str, Any] = {}
    for key, value in plain.items():
        if value is None:
            continue  # as where it is left out
        if key not in known:
            hint = did_you_mean(key, known)
            problems.append(f"sweep.{key} is not known.{hint} sweep has: {', '.join(known)}.")
            continue
        try:
            OmegaConf.merge(_schema(), {key: value})
        except OmegaConfBaseException as error:
            problems.append(f"sweep.{key} is {value!r}: {_line(error)}.")
        else:
            good[key] = value
    if problems:
        raise ConfigError(problems)
    found: OptunaConf = OmegaConf.to_object(OmegaConf.merge(_schema(), good))  # type: ignore
    return found


def _schema() -> DictConfig:
    return OmegaConf.structured(OptunaConf)


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")


def total(conf: OptunaConf, space: Space) -> int:
    """Return how many trials there are to be, of those that make sense."""
    if conf.sampler != "grid":
        return conf.n_trials or TRIALS
    size = space.combinations() or 0
    return min(conf.n_trials or size, size)


def problems(conf: OptunaConf, space: Space, objectives: Sequence[Objective]) -> Iterable[str]:
    """Yield everything that is wrong, but for what only Optuna itself can say."""
    if conf.n_trials is not None and conf.n_trials < 1:
        yield f"sweep.n_trials is {conf.n_trials}, but must be at least 1. Type sweep.n_trials=32."
    for key, value, allowed in (
        ("sampler", conf.sampler, SAMPLERS),
        ("pruner", conf.pruner, PRUNERS),
    ):
        if value not in allowed:
            hint = did_you_mean(value, allowed)
            yield f"sweep.{key} is {value!r}, but must be one of {', '.join(allowed)}.{hint}"
    if conf.seed < 0:
        yield f"sweep.seed is {conf.seed}, but must be at least 0. Type sweep.seed=0."
    if conf.storage is not None and "://" not in conf.storage:
        yield (
            f"sweep.storage is {conf.storage!r}, but must be the URL of a database, such as "
            "sqlite:///sweeps.db, or null: a file in the sweep's own directory."
        )
    if conf.study_name is not None and not conf.study_name.strip():
        yield "sweep.study_name is empty. Leave it out, or type sweep.study_name=mine."
    if conf.pruner != "none" and len(objectives) > 1:
        yield (
            f"sweep.pruner is {conf.pruner!r} with {len(objectives)} objectives, but jobs are only "
            "pruned by one. Type sweep.pruner=none, or leave out objective.others."
        )
    if not space.params:
        yield (
            "sweep=optuna has nothing to search over. Type what may vary, such as "
            "'optim.lr=tag(log,interval(1e-5,1e-1))' or model=mlp,convnet."
        )
    else:
        yield from _of_sampler(conf.sampler, space, objectives)


def _of_sampler(sampler: str, space: Space, objectives: Sequence[Objective]) -> Iterable[str]:
    if sampler == "grid":
        for key, one in space.params.items():
            if one.count is None:
                yield (
                    f"{key}={one.typed} has no end of values, but sweep.sampler is 'grid'. Type "
                    f"{key}=range(...) in steps, a list of values, or sweep.sampler=tpe."
                )
        size = space.combinations()
        if size is not None and size > GRID:
            yield (
                f"sweep.sampler is 'grid', but there are {size} combinations, more than {GRID}. "
                "Type sweep.sampler=random or sweep.sampler=tpe."
            )
    if sampler == "cmaes":
        yield from _of_cmaes(space, objectives)


def _of_cmaes(space: Space, objectives: Sequence[Objective]) -> Iterable[str]:
    if len(objectives) > 1:
        yield (
            f"sweep.sampler is 'cmaes' with {len(objectives)} objectives, but it knows one only. "
            "Type sweep.sampler=nsgaii or sweep.sampler=tpe."
        )
    if all(isinstance(one, Choice) for one in space.params.values()):
        yield (
            "sweep.sampler is 'cmaes', but there is no number to search over, and it draws choices "
            "at random. Type sweep.sampler=tpe."
        )
    if find_spec("cmaes") is None:
        yield (
            "sweep.sampler=cmaes needs cmaes, which is not installed. Type pip install "
            "'hydra-trainer[sweep]'."
        )
