"""Lightning as its documentation shows it: defaults, self.log with prog_bar, nothing tuned."""

from pathlib import Path
from typing import Any

from lightning import LightningModule, Trainer
from torch import nn

from hydra_trainer import optim
from hydra_trainer.config import arguments
from hydra_trainer.data import resumable
from hydra_trainer.targets import instantiate

from .hand import TRUST


class Stock(LightningModule):
    """The same model and optimizer, logging its loss in every step."""

    def __init__(self, model: Any, config: dict[str, Any], steps: int) -> None:
        super().__init__()
        self.model, self.config, self.steps = model, config, steps

    # As Lightning has it: our core makes it cheaper for all modules of a process (overhead.py).
    __setattr__ = nn.Module.__setattr__

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.model.training_step(batch, batch_idx)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        return optim.build(self.model, self.config["optim"], TRUST, self.steps)


def run(config: dict[str, Any], **options: Any) -> None:
    """Train one epoch, or trainer.max_steps."""
    data: Any = instantiate(arguments(config, "data"), TRUST, "data")
    data.prepare_data()
    data.setup("fit")
    loader = resumable(
        data.train_dataloader(), seed=config["seed"], rank=0, world_size=1, train=True
    )
    model = instantiate(arguments(config, "model"), TRUST, "model")
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        max_steps=config["trainer"]["max_steps"],
        default_root_dir=Path(config["run"]["dir"]),
        **options,
    )
    trainer.fit(Stock(model, config, len(loader)), loader)
