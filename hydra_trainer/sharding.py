"""trainer.strategy=fsdp: parameters, gradients and optimizer state sharded over the ranks (FSDP2).

Lightning's ModelParallelStrategy with a one-dimensional mesh. The layers in every ModuleList of
the model are sharded one by one, so that only one layer's parameters are whole at a time. It runs
on CPUs with gloo as well as on GPUs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import load as load_shards
from torch.distributed.checkpoint import save as save_shards
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from . import distributed
from .checkpoint import SHARDS, cannot_be_saved, digesting, sync_folder, write_state
from .errors import CheckpointError

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


class _Disk(FileSystem):
    """The file system that torch's writer of shards writes to.

    It knows size and digest of each file without reading it again, and a write that was refused
    raises what the disk said.
    """

    def __init__(self) -> None:
        self.written: dict[str, dict[str, Any]] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        with Path(path).open(mode, buffering=0) as raw, digesting(raw) as stream:  # type: ignore[arg-type]
            yield stream
        self.written[Path(path).name] = stream.facts()

    def rename(self, path: Any, new_path: Any) -> None:
        super().rename(path, new_path)
        self.written[Path(new_path).name] = self.written.pop(Path(path).name)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 with checkpoints that are committed as all others are.

    Every rank writes and digests its own shards; rank 0 writes the manifest.
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
        """Save all shards, then commit, in the foreground. What fails, fails on every rank."""
        folder, meta = Path(filepath).parent, dict(storage_options or {})
        self._core.writer.save_now(lambda: self._save(checkpoint, folder, meta))

    def _save(self, checkpoint: dict[str, Any], folder: Path, meta: dict[str, Any]) -> None:
        store, first = self._core.store, self.global_rank == 0
        assert store is not None
        try:
            self._on_all_ranks(lambda: store.clean(folder) if first else None)
            found = self._on_all_ranks(lambda: self._write(checkpoint, folder / SHARDS))
            if first:
                sync_folder(folder / SHARDS)
                files = {
                    f"{SHARDS}/{name}": facts for part in found for name, facts in part.items()
                }
                store.commit(folder, meta, files)
        except BaseException:
            if first:
                store.remove(folder)  # its room may be what the next one needs
            raise
        if first:
            self._core.prune()

    def _on_all_ranks(self, work: Callable[[], Any]) -> list[Any]:
        """Do a part of a save on every rank; return what each returned, or raise on all alike."""
        outcome: Any
        try:
            outcome = work()
        except (OSError, CheckpointError) as error:
            outcome = error
        outcomes: list[Any] = [None] * self.world_size
        dist.all_gather_object(outcomes, outcome)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes

    def _write(self, checkpoint: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
        """Write this rank's part as Lightning reads it; return size and digest of its files.

        Rank 0 writes as well what is not sharded.
        """
        sharded = {"state_dict": checkpoint.pop("state_dict")}
        for number, state in enumerate(checkpoint.pop("optimizer_states", [])):
            sharded[f"optimizer_{number}"] = state
        writer = FileSystemWriter(folder)
        writer.fs = disk = _Disk()
        try:
            save_shards(sharded, storage_writer=writer)
        except CheckpointException as error:  # on all ranks, with what each of them met
            causes = [cause for _, (cause, _) in sorted(error.failures.items())]
            refused = [cause for cause in causes if isinstance(cause, OSError)]
            raise refused[0] if refused else cannot_be_saved(causes[0]) from error
        if self.global_rank == 0:
            disk.written[METADATA] = write_state(checkpoint, folder / METADATA)
        return disk.written

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        with _plain_errors(Path(checkpoint_path)):
            return super().load_checkpoint(checkpoint_path, weights_only)


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the weights of a sharded checkpoint into a model that is sharded the same or not.

    Raises:
        CheckpointError: they cannot be read.
    """
    state = {"state_dict": model.state_dict()}
    with _plain_errors(path):
        load_shards(state, checkpoint_id=str(path))
    model.load_state_dict(state["state_dict"])


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Turn what torch raises when loading, which is no Exception, into a CheckpointError."""
    try:
        yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise CheckpointError(f"{path} cannot be loaded: {cause}.") from error


def is_sharded(model: torch.nn.Module) -> bool:
    """Tell whether a model's parameters are spread over ranks."""
    return any(hasattr(p, "placements") for p in model.parameters())
