"""The one class that Hydra needs for sweeps that a service drives: SageMaker's tuner, Katib.

Like launcher.py beside it: registered by app.py, and nothing but Hydra is imported before a sweep.
"""

from typing import TYPE_CHECKING, Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from hydra_trainer.sweep.rows import Row


class ServiceSweeper(Sweeper):
    """Hands the search to the service that `sweep.service` names, and brings its results back."""

    def __init__(self, **_: Any) -> None:
        self.config: DictConfig
        self.hydra_context: HydraContext

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.hydra_context, self.config = hydra_context, config

    def sweep(self, arguments: list[str]) -> "dict[int, Row]":
        """Run the sweep; return the row of each job. Empty after a dry run.

        Raises what `hydra_trainer.sweep.services.run` raises.
        """
        from hydra_trainer.sweep import services

        return services.run(arguments, self.config, self.hydra_context.config_loader)


def register() -> None:
    """Let Hydra find this class; its name in `hydra/sweeper` is in config.py. Safe to repeat."""
    from hydra.core.plugins import Plugins

    Plugins.instance().register(ServiceSweeper)
