"""Which parameters of a sweep matter, by what the jobs have come to."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

from .front import scored
from .rows import Row, Sweep
from .scales import is_number, is_spread, log_fits
from .words import value, varied

FEWEST = 4  # jobs from which anything can be told
TREES_UP_TO = 60  # jobs; with more, a forest takes seconds, and the other way has enough of them
MOST_OPTIONS = 24  # of a choice: one that is another for each job says nothing


class Importance(NamedTuple):
    """Shares of the parameters, the largest first, and how they were found or why they were not."""

    shares: list[tuple[str, float]]
    told: str


def importances(sweep: Sweep) -> list[Importance]:
    """Return the importance for each objective. optuna reads rows of any sweeper, grids too."""
    rows = scored(sweep)
    return [_importance(rows, index) for index in range(len(sweep.objectives))]


def _importance(rows: Sequence[Row], index: int) -> Importance:
    values = [row.values[index] for row in rows]
    if len(rows) < FEWEST:
        return Importance([], f"It takes at least {FEWEST} jobs that succeeded to tell.")
    if not is_spread(values):
        return Importance([], "All jobs have come to the same value.")
    columns = _columns(rows)
    if not columns:
        return Importance([], "No parameter differs in a way that can be compared.")
    if len(columns) == 1:
        return Importance([], f"Only {next(iter(columns))} differs between the jobs.")
    try:
        return _evaluated(columns, values)
    except ImportError:
        return Importance([], "optuna is not installed: pip install 'hydra-trainer[sweep]'.")


def _columns(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return the values of each parameter: numbers where all are, or else what one would type."""
    found = {}
    for key in varied(rows):
        column: list[Any] = [row.params.get(key) for row in rows]
        if not all(map(is_number, column)):
            column = [
                value(one) if key in row.params else ""
                for one, row in zip(column, rows, strict=True)
            ]
        elif log_fits(column):  # optuna's trees would weigh a learning rate by its size
            column = [math.log(one) for one in column]
        if len(set(column)) > 1 and (is_number(column[0]) or len(set(column)) <= MOST_OPTIONS):
            found[key] = column
    return found


def _evaluated(columns: dict[str, list[Any]], values: Sequence[float]) -> Importance:
    import optuna
    from optuna.importance import FanovaImportanceEvaluator, PedAnovaImportanceEvaluator

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study()
        kinds = {key: _distribution(column) for key, column in columns.items()}
        jobs = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        study.add_trials(
            optuna.create_trial(params=job, distributions=kinds, value=one)
            for job, one in zip(jobs, values, strict=True)
        )
        few = len(values) <= TREES_UP_TO
        evaluator: Any = FanovaImportanceEvaluator(seed=0) if few else PedAnovaImportanceEvaluator()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(verbosity)
    how = "fANOVA" if few else "PED-ANOVA"
    shares = [(key, round(float(share), 4)) for key, share in found.items()]
    return Importance(shares, f"{how} over {len(values):,} jobs, by optuna")


def _distribution(column: Sequence[Any]) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not is_number(column[0]):
        return CategoricalDistribution(sorted(set(column)))
    return FloatDistribution(min(column), max(column))
