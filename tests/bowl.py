"""A model whose validation loss is a known function of its arguments, whatever it is trained on."""

import math
from pathlib import Path

import torch
from lightning import LightningModule
from torch import Tensor, nn


class Bowl(LightningModule):
    """Its loss is least at rate = 0.01 and shift = 2; it raises where the shift is `hole`, while
    there is no file `mended`.

    The loss comes down to that from epoch to epoch, as a real one does.
    """

    def __init__(
        self, rate: float = 0.01, shift: float = 2.0, hole: float = -1.0, mended: str = ""
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.rate, self.shift = rate, shift
        self.broken = shift == hole and not Path(mended or "/none").exists()

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        if self.broken:
            raise ValueError("this bowl has a hole")
        return (self.weight**2).sum()

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        goal = bowl(self.rate, self.shift) + 1.0 / (self.current_epoch + 1) - 1.0
        self.log("val/loss", goal)
        self.log("val/acc", 1.0 / (1.0 + goal))


def bowl(rate: float, shift: float) -> float:
    return 1.1 + (math.log10(rate) + 2) ** 2 + (shift - 2) ** 2
