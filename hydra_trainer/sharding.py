"""trainer.strategy=fsdp: parameters, gradients and optimizer state sharded over the ranks (FSDP2).

Lightning's ModelParallelStrategy with a one-dimensional mesh. The layers in every ModuleList of
the model are sharded one by one, so that only one layer's parameters are whole at a time. It runs
on CPUs with gloo as well as on GPUs.
"""

import io
from collections.abc import Callable
from datetime import timedelta
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
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from . import distributed
from .checkpoints.files import SHARDS, Facts, Place
from .checkpoints.reading import State
from .checkpoints.shards import Reader, Shards, plain_errors
from .checkpoints.store import Checkpoint
from .checkpoints.writing import cannot_be_saved, name_in, write_state
from .errors import CheckpointError

if TYPE_CHECKING:
    from .callbacks import Core

STEPS = ("training_step", "validation_step", "test_step")
METADATA = "meta.pt"
"""What is not sharded: loops, callbacks, schedules."""
LONGEST = timedelta(hours=1)
"""How long a rank that has written its shards waits for the others. One that died is noticed at
once."""


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

    Every rank stages, writes and digests its own shards behind training; when all have, rank 0
    writes the manifest. The threads of the ranks that do so agree in a group of their own, which no
    gradient goes through, and all of them come to the same end: what fails, fails on every rank.
    """

    def __init__(self, core: "Core") -> None:
        super().__init__(data_parallel_size=distributed.world_size(), tensor_parallel_size=1)
        self._core = core
        self._group: Any = None

    def connect(self, model: LightningModule) -> None:
        super().connect(model)
        if not hasattr(model, "_hydra_trainer_sharded"):
            model._hydra_trainer_sharded = True  # type: ignore[assignment]
            model.configure_model = lambda: shard(model)  # type: ignore[method-assign]

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the shards where they are: the copy that is written is made of them."""
        assert self.model is not None
        return get_model_state_dict(self.model)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        assert self.model is not None
        return get_optimizer_state_dict(self.model, getattr(optimizer, "optimizer", optimizer))

    def save_checkpoint(
        self, checkpoint: State, filepath: Any, storage_options: Any | None = None
    ) -> None:
        """Save all shards, then commit."""
        name, meta = name_in(filepath), dict(storage_options or {})
        writer = self._core.writer
        if dist.get_backend() == "smddp":  # which has no second group for the threads
            writer.save_now(lambda: self._save(checkpoint, name, meta))
            return
        if self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=LONGEST)
        writer.save(checkpoint, lambda state: self._save(state, name, meta))

    def _save(self, checkpoint: State, name: str, meta: dict[str, Any]) -> None:
        store, first = self._core.store, self.global_rank == 0
        assert store is not None
        try:
            self._on_all_ranks(lambda: store.clean(name) if first else None)
            found = self._on_all_ranks(lambda: self._write(checkpoint, store.place, name))
            if first:
                store.place.sync(name, SHARDS)
                files = {
                    f"{SHARDS}/{name}": facts for part in found for name, facts in part.items()
                }
            # A commit that fails is known to all ranks, too: they act alike.
            self._on_all_ranks(lambda: store.commit(name, meta, files) if first else None)
        except BaseException:
            if first:
                store.remove(name)  # its room may be what the next one needs
            raise
        if first:
            self._core.committed(name)

    def _on_all_ranks(self, work: Callable[[], Any]) -> list[Any]:
        """Do a part of a save on every rank; return what each returned, or raise on all alike."""
        outcome: Any
        try:
            outcome = work()
        except (OSError, CheckpointError) as error:
            outcome = error
        outcomes: list[Any] = [None] * self.world_size
        dist.all_gather_object(outcomes, outcome, group=self._group)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome
        return outcomes

    def _write(self, checkpoint: State, place: Place, name: str) -> dict[str, Facts]:
        """Write this rank's part; return size and digest of its files.

        Rank 0 writes as well what is not sharded.
        """
        rest = dict(checkpoint)
        sharded = {"state_dict": rest.pop("state_dict")}
        for number, state in enumerate(rest.pop("optimizer_states", [])):
            sharded[f"optimizer_{number}"] = state
        writer = FileSystemWriter("", sync_files=False)  # the place does it
        writer.fs = shards = Shards(place, name)  # type: ignore[assignment]
        try:
            save_shards(sharded, storage_writer=writer, process_group=self._group)
        except CheckpointException as error:  # on all ranks, with what each of them met
            causes = [cause for _, (cause, _) in sorted(error.failures.items())]
            refused = [cause for cause in causes if isinstance(cause, OSError)]
            raise refused[0] if refused else cannot_be_saved(causes[0]) from error
        if self.global_rank == 0:
            shards.written[METADATA] = write_state(rest, place, name, f"{SHARDS}/{METADATA}")
        return shards.written

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> State:
        """Read this rank's part of the weights and the optimizers' states; return the rest."""
        store, model = self._core.store, self.model
        assert store is not None and model is not None and self.lightning_module is not None
        found = Checkpoint(store.place, name_in(checkpoint_path), {})
        shards = Shards(found.place, found.name)
        with plain_errors(str(checkpoint_path)):
            weights = {"state_dict": get_model_state_dict(model)}
            load_shards(weights, storage_reader=Reader(shards))
            strict = self.lightning_module.strict_loading
            model.load_state_dict(weights["state_dict"], strict=strict)
            options = StateDictOptions(cpu_offload=True)
            for number, optimizer in enumerate(self.optimizers):
                key = f"optimizer_{number}"
                states = {key: get_optimizer_state_dict(model, optimizer)}
                load_shards(states, storage_reader=Reader(shards))
                set_optimizer_state_dict(
                    model, optimizer, optim_state_dict=states[key], options=options
                )
        rest: State = torch.load(io.BytesIO(shards.part(METADATA)), weights_only=True)
        return rest


def is_sharded(model: torch.nn.Module) -> bool:
    """Tell whether a model's parameters are spread over ranks."""
    return any(hasattr(p, "placements") for p in model.parameters())
