"""The one class that Hydra needs for `-m`: it gives the jobs of a sweep to our engine.

Hydra knows launchers only from the namespace `hydra_plugins`; app.py registers this one, because
Hydra's own search misses it in an editable install. Nothing but Hydra is imported before a sweep.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from hydra_trainer.sweep.rows import Row
    from hydra_trainer.sweep.source import Source


class TrainerLauncher(Launcher):
    """Runs each job of a sweep with the launcher that its own configuration names.

    `max_concurrent` is how many may be in flight on each launcher: a number, or one for each, as
    in {local: 1, eks: 8}. Without it: one here, as many as there are on a cluster.
    """

    checks_all = True
    """All jobs of a batch are composed and checked before the first one is sent: see quick.py."""

    def __init__(self, max_concurrent: Any = None) -> None:
        self.max_concurrent = max_concurrent
        self.config: DictConfig
        self.hydra_context: HydraContext

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config

    @property
    def directory(self) -> Path:
        """Where the journal of the sweep lies, and the run directories of its jobs."""
        return Path(str(self.config.hydra.sweep.dir))

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run a batch of jobs; return what became of each, in order. A failed one raises nothing
        here: its JobReturn does when it is asked for its value."""
        from hydra_trainer.sweep import batch

        source = batch.source(job_overrides, initial_job_idx)
        rows = self.run(source)
        return [_returned(job.overrides, rows.get(job.number)) for job in source.jobs]

    def run(self, source: "Source") -> "dict[int, Row]":
        """Run the jobs of a source to their ends; return the row of each, by its number.

        Empty after a dry run. Raises what `hydra_trainer.sweep.running.run` raises.
        """
        from hydra_trainer.sweep import batch

        return batch.run(source, self)


def _returned(overrides: Sequence[str], row: "Row | None") -> JobReturn:
    from hydra_trainer.sweep import batch

    found = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    if row is not None:
        found.working_dir = row.output
        try:
            found.return_value = batch.value(row)
        except Exception as error:
            found.status, found.return_value = JobStatus.FAILED, error
    return found


def register() -> None:
    """Let Hydra find this class; its name in `hydra/launcher` is in config.py. Safe to repeat."""
    from hydra.core.plugins import Plugins

    Plugins.instance().register(TrainerLauncher)
