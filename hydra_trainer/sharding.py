"""trainer.strategy=fsdp: parameters, gradients and optimizer state sharded over the ranks (FSDP2).

Lightning's ModelParallelStrategy with a one-dimensional mesh. The layers in every ModuleList of
the model are sharded one by one, so that only one layer's parameters are whole at a time. It runs
on CPUs with gloo as well as on GPUs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint import load as load_shards
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from . import distributed
from .checkpoint import SHARDS, digest_of, sync_folder

if TYPE_CHECKING:
    from .callbacks import Core

STEPS = ("training_step", "validation_step", "test_step")
METADATA = "meta.pt"
"""Lightning's name for what is not sharded: loops, callbacks, schedules."""


def shard(model: LightningModule) -> None:
    """Shard the model in place over its strategy's mesh; Lightning asks before the test, too."""
    if is_sharded(model):
        return
    mesh = model.device_mesh["data_parallel"]  # type: ignore[index]
    for module in list(model.modules()):
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for step in STEPS:
        # Lightning calls these, not forward, and parameters are gathered around forward.
        register_fsdp_forward_method(model, step)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 with checkpoints that are committed as all others are.

    Every rank writes its own shards and digests them; rank 0 writes the manifest.
    """

    def __init__(self, core: "Core") -> None:
        super().__init__(data_parallel_size=distributed.world_size(), tensor_parallel_size=1)
        self._core = core

    def connect(self, model: LightningModule) -> None:
        super().connect(model)
        if not hasattr(model, "_hydra_trainer_sharded"):
            model._hydra_trainer_sharded = True  # type: ignore[assignment]
            model.configure_model = lambda: shard(model)  # type: ignore[method-assign]

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Save all shards, then commit. Synchronous."""
        store = self._core.store
        assert store is not None
        folder = Path(filepath).parent
        if self.global_rank == 0:
            store.clean(folder)
        dist.barrier()
        super().save_checkpoint(checkpoint, folder / SHARDS)
        dist.barrier()
        files: list[Any] = [None] * self.world_size
        dist.all_gather_object(files, self._digests(folder))
        if self.global_rank == 0:
            sync_folder(folder / SHARDS)
            merged = {name: facts for found in files for name, facts in found.items()}
            store.commit(folder, dict(storage_options or {}), merged)
            self._core.prune()

    def _digests(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Return size and digest of the files that this rank wrote."""
        names = [f"__{self.global_rank}_*"]
        if self.global_rank == 0:
            names += [".metadata", METADATA]
        return {
            f"{SHARDS}/{path.name}": {"size": path.stat().st_size, "blake2b": digest_of(path)}
            for name in names
            for path in (folder / SHARDS).glob(name)
        }


def load_weights(model: LightningModule, path: Path) -> None:
    """Load the weights of a sharded checkpoint into a model that is sharded the same or not."""
    state = {"state_dict": model.state_dict()}
    load_shards(state, checkpoint_id=str(path))
    model.load_state_dict(state["state_dict"])


def is_sharded(model: torch.nn.Module) -> bool:
    """Tell whether a model's parameters are spread over ranks."""
    return any(hasattr(p, "placements") for p in model.parameters())
