"""The optimizer and its schedule, from `optim` in the config."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from .errors import ConfigError
from .targets import instantiate

FUSED = tuple(f"torch.optim.{name}" for name in ("AdamW", "Adam", "SGD", "Adagrad"))
"""Optimizers with a fused kernel: one launch for all parameters, on the CPU as on a GPU."""


def parameter_groups(model: nn.Module, decay: str, weight_decay: float) -> list[dict[str, Any]]:
    """Split the trainable parameters into those that weight decay applies to and the rest.

    `decay="matrices"`: parameters with two or more dimensions, as GPT-2 and its successors do;
    biases, norms and other vectors are left alone. `decay="all"`: everything.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if decay == "all":
        return [{"params": trainable, "weight_decay": weight_decay}]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def multiplier(
    name: str, warmup_steps: int, final: float, total_steps: int
) -> Callable[[int], float]:
    """Return step -> share of the learning rate: linear warm-up, then constant, cosine or linear.

    Steps are optimizer steps from 0. The share reaches 1 at the end of the warm-up and `final` at
    `total_steps`. Cosine as in SGDR (Loshchilov and Hutter, 2017) without restarts.
    """

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if name == "constant":
            return 1.0
        length = max(total_steps - warmup_steps, 1)
        done = min((step - warmup_steps) / length, 1.0)
        falling = 1 - done if name == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return final + (1 - final) * falling

    return share


def build(
    model: nn.Module,
    arguments: dict[str, Any],
    trusted: Iterable[str],
    total_steps: float,
    fused: bool = True,
) -> dict[str, Any]:
    """Return what LightningModule.configure_optimizers returns.

    Args:
        model: whose parameters to train.
        arguments: `optim` of the config: `_target_`, its keyword arguments, `schedule`, `decay`.
        trusted: prefixes that `_target_` may have.
        total_steps: optimizer steps of the whole run; infinite is allowed with `constant`.
        fused: use the fused kernel of an optimizer that has one.

    Raises:
        ConfigError: the optimizer does not take these arguments.
    """
    node = dict(arguments)
    schedule = dict(node.pop("schedule", None) or {"name": "constant"})
    decay = node.pop("decay", "all")
    if decay not in ("matrices", "all"):
        raise ConfigError(f"optim.decay is {decay!r}, but must be matrices or all.")
    groups = parameter_groups(model, decay, float(node.get("weight_decay") or 0.0))
    if node["_target_"] in FUSED and fused:
        node.setdefault("fused", True)
    optimizer = instantiate(node, tuple(trusted), "optim", params=groups)
    name = schedule.get("name", "constant")
    if name != "constant" and not math.isfinite(total_steps):
        raise ConfigError(
            f"optim.schedule.name is {name!r}, but the length of the run is unknown. Type "
            "trainer.max_steps=N, or optim.schedule.name=constant."
        )
    share = multiplier(
        name,
        int(schedule.get("warmup_steps", 0)),
        float(schedule.get("final", 0.0)),
        int(total_steps) if math.isfinite(total_steps) else 0,
    )
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": LambdaLR(optimizer, share), "interval": "step"},
    }
