"""The loop that a careful person writes by hand: the baseline of our training core.

It trains the same model on the same batches with the same optimizer and schedule, reads the loss at
the same interval, writes it to a CSV file, and does nothing else. Under torchrun it is DDP:
`torchrun ... -m benchmarks.hand config.yaml`.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hydra_trainer import distributed, worker
from hydra_trainer.config import arguments
from hydra_trainer.data import resumable
from hydra_trainer.optim import build
from hydra_trainer.targets import TRUSTED, instantiate

TRUST = (*TRUSTED, "benchmarks")


class Steps(nn.Module):
    """Gives DDP a forward: the training step."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Any, number: int) -> Any:
        return self.model.training_step(batch, number)


def run(config: dict[str, Any]) -> None:
    """Train one epoch, or trainer.max_steps."""
    conf, rank, ranks = config["trainer"], distributed.rank(), distributed.world_size()
    device = torch.device("cuda" if distributed.use_gpu(conf["accelerator"]) else "cpu")
    torch.manual_seed(config["seed"])
    torch.set_float32_matmul_precision("high")
    data: Any = instantiate(arguments(config, "data"), TRUST, "data")
    data.prepare_data()
    data.setup("fit")
    loader = resumable(
        data.train_dataloader(), seed=config["seed"], rank=rank, world_size=ranks, train=True
    )
    model = _model(config, device)
    total = conf["max_steps"] if conf["max_steps"] > 0 else len(loader)
    built = build(model, config["optim"], TRUST, total)
    step: Callable[..., Tensor] = model.training_step
    if ranks > 1:
        step = DistributedDataParallel(Steps(model), gradient_as_bucket_view=True)
    with Path(config["run"]["dir"], f"hand-{rank}.csv").open("w") as log:
        _train(conf, step, islice(loader, total), built, device, log)


def _model(config: dict[str, Any], device: torch.device) -> Any:
    model: Any = instantiate(arguments(config, "model"), TRUST, "model").to(device)
    if device.type == "cuda" and model.channels_last:
        model.to(memory_format=torch.channels_last)
    if config["trainer"]["compile"]:
        model.compile()
    return model


def _train(
    conf: dict[str, Any],
    step: Callable[..., Tensor],
    batches: Iterable[Any],
    built: dict[str, Any],
    device: torch.device,
    log: TextIO,
) -> None:
    optimizer, schedule = built["optimizer"], built["lr_scheduler"]["scheduler"]
    every = conf["log_every_n_steps"]
    mixed = torch.autocast(device.type, torch.bfloat16)
    cast = mixed if conf["precision"] == "bf16-mixed" else contextlib.nullcontext()
    losses = torch.zeros((), device=device)
    for number, batch in enumerate(batches, 1):
        moved = [part.to(device, non_blocking=True) for part in batch]
        with cast:
            loss = step(moved, number)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses += loss.detach()
        if number % every == 0:
            log.write(f"{number},{losses.item() / every}\n")
            log.flush()
            losses.zero_()


def main() -> None:
    """One rank, as torchrun starts it."""
    dist.init_process_group("gloo")
    run(worker.read_config(Path(sys.argv[1])))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
