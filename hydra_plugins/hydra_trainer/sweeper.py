"""The one class that Hydra needs for `sweep=optuna`: it gives Optuna's jobs to our launcher.

Like launcher.py beside it: registered by app.py, and nothing but Hydra is imported before a sweep.
"""

from typing import TYPE_CHECKING, Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from hydra_trainer.sweep.rows import Row


class OptunaSweeper(Sweeper):
    """Searches as the section `sweep` of the configuration says, over what was typed."""

    def __init__(self, **_: Any) -> None:
        self.config: DictConfig
        self.hydra_context: HydraContext

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        from hydra.core.plugins import Plugins

        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> "dict[int, Row]":
        """Run the sweep; return the row of each job, by the number of its trial.

        Raises:
            ConfigError: something is wrong with what was typed; nothing was sent.
            JobFailed: there are jobs, and none brought a value. One that failed is a failed trial.
            HydraTrainerError, SystemExit: as the launcher's `run` does.
        """
        from hydra_trainer.sweep import search

        return search.run(arguments, self.config, self.hydra_context.config_loader, self.launcher)


def register() -> None:
    """Let Hydra find this class; its name in `hydra/sweeper` is in config.py. Safe to repeat."""
    from hydra.core.plugins import Plugins

    Plugins.instance().register(OptunaSweeper)
