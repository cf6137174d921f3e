"""A sweep that Optuna drives, from what Hydra hands over to its last job: `sweep=optuna`."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig

from hydra_trainer import config
from hydra_trainer.errors import ConfigError

from . import batch, running, settings, space
from .optimize import Optimizer
from .rows import Row, State


def run(
    words: Sequence[str], master: DictConfig, loader: Any, hydra_launcher: Any
) -> dict[int, Row]:
    """Search, and return the row of each job, by the number of its trial; empty after a dry run.

    Raises:
        ConfigError: something is wrong with what was typed; nothing was sent.
        JobFailed: no job brought a value. One that failed is a failed trial, and no more.
        HydraTrainerError, SystemExit: see running.run.
    """
    if not hasattr(hydra_launcher, "run"):
        raise ConfigError(
            f"sweep=optuna needs hydra/launcher=hydra_trainer, which takes one job after another; "
            f"{type(hydra_launcher).__name__} takes them in batches. Leave hydra/launcher out."
        )
    source = optimizer(words, master, loader, hydra_launcher.directory)
    rows: dict[int, Row] = hydra_launcher.run(source)
    if rows and not any(row.state is State.SUCCEEDED for row in rows.values()):
        batch.value(next(iter(rows.values())))
    return rows


def optimizer(words: Sequence[str], master: DictConfig, loader: Any, directory: Any) -> Optimizer:
    """Return the source of a sweep's jobs, as its configuration and its command line say."""
    conf = settings.read(master.sweep)
    goals = running.objectives(config.resolve_part(master, "objective"))
    return Optimizer(space.parse(words, conf.params, loader), goals, conf, directory)
