"""Loads states: tensors and plain values only, with the digest taken on the way."""

import io
import pickle
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from hydra_trainer.errors import CheckpointError, Gone, StorageError

from .files import SHARDS, reason
from .store import Checkpoint, Store, damaged

State = dict[str, Any]


class Damaged(CheckpointError):
    """A checkpoint whose bytes are not those that were saved; `fault` says of which file."""

    def __init__(self, checkpoint: Checkpoint, fault: str) -> None:
        super().__init__(str(damaged(checkpoint, fault)))
        self.fault = fault


def restore(store: Store) -> tuple[Checkpoint, State] | None:
    """Return the newest whole checkpoint with its state; None where nothing was ever saved.

    Each is read once, for its digest and its state. Of a sharded one, the state is what
    `inspect_shards` says.

    Raises:
        CheckpointError: something was saved, and all of it is damaged; or it is whole, and no state
            of ours.
    """
    found = first_whole(reversed(store.all()), store.pass_over)
    if found is None:
        store.refuse_to_begin_anew()
    return found


def opened(found: list[Checkpoint]) -> tuple[Checkpoint, State]:
    """Return the first of some checkpoints that is whole, with its state.

    Raises:
        CheckpointError: none is.
    """
    faults: list[CheckpointError] = []
    chosen = first_whole(found, lambda checkpoint, fault: faults.append(damaged(checkpoint, fault)))
    if chosen is None:
        raise faults[0]
    return chosen


def first_whole(
    checkpoints: Iterable[Checkpoint], pass_over: Callable[[Checkpoint, str], object]
) -> tuple[Checkpoint, State] | None:
    """Return the first of some checkpoints that is whole, with its state; None: none is.

    `pass_over` is told of those before it, and what is wrong with them.
    """
    for checkpoint in checkpoints:
        if checkpoint.is_sharded and (fault := checkpoint.fault()):
            pass_over(checkpoint, fault)
            continue
        try:
            if checkpoint.flaw is not None:
                raise Damaged(checkpoint, checkpoint.flaw)
            return checkpoint, (inspect_shards if checkpoint.is_sharded else load)(checkpoint)
        except Damaged as error:
            pass_over(checkpoint, error.fault)
    return None


def load(checkpoint: Checkpoint, *, verify: bool = True) -> State:
    """Return the state of a checkpoint, on the CPU.

    The weights (`state_dict`) may be maps of its file, to be copied soon; all else is in memory of
    its own.

    Args:
        checkpoint: one that is not sharded.
        verify: whether to look at its digest, which costs no second read.

    Raises:
        Damaged: it has another size or digest than when it was saved.
        CheckpointError: the file is no state, or holds objects that could run code.
        StorageError: S3 does not give it.
    """
    file = checkpoint.file
    facts = checkpoint.files[file] if verify else {}
    try:
        with checkpoint.place.reading(checkpoint.name, file, facts) as reading:
            if reading.flaw is not None:
                raise Damaged(checkpoint, reading.flaw)
            try:
                loaded = torch.load(
                    reading.source,
                    map_location="cpu",
                    weights_only=True,
                    mmap=reading.is_mapped or None,
                )
            except StorageError:
                raise
            except Exception as error:
                if fault := reading.finish():
                    raise Damaged(checkpoint, fault) from None
                raise CheckpointError(
                    f"{checkpoint.state} cannot be read as a checkpoint: {_why(error)}"
                ) from error
            if fault := reading.finish():
                raise Damaged(checkpoint, fault)
    except (FileNotFoundError, Gone):
        raise Damaged(checkpoint, f"{file} is missing") from None
    except StorageError:
        raise
    except OSError as error:
        raise Damaged(checkpoint, f"{file} cannot be read: {reason(error)}") from error
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise CheckpointError(
            f"{checkpoint.state} is a torch file, but not a checkpoint of this package."
        )
    if not reading.is_mapped:
        return loaded
    # What stays a map keeps the file from going, and a file that is cut off kills the process.
    return {key: value if key == "state_dict" else _own(value) for key, value in loaded.items()}


def _own(node: Any) -> Any:
    """Return the same values in memory of their own."""
    if isinstance(node, Tensor):
        return node.clone()
    if isinstance(node, dict):
        node.update({key: _own(value) for key, value in node.items()})
        return node
    if type(node) in (list, tuple):
        return type(node)(_own(value) for value in node)
    return node


def _why(error: Exception) -> str:
    """Return an error of torch.load without its advice: to execute what is in the file."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds objects that could run code"
    return str(error).split("\n")[0]


class _IndexUnpickler(pickle.Unpickler):
    """An unpickler for the index of a sharded checkpoint that can make what an index holds."""

    ALLOWED = (
        ("torch.distributed.checkpoint.metadata", "BytesStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "ChunkStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "Metadata"),
        ("torch.distributed.checkpoint.metadata", "MetadataIndex"),
        ("torch.distributed.checkpoint.metadata", "StorageMeta"),
        ("torch.distributed.checkpoint.metadata", "TensorProperties"),
        ("torch.distributed.checkpoint.metadata", "TensorStorageMetadata"),
        ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        ("torch.serialization", "_get_layout"),
        ("torch", "Size"),
        ("pathlib", "PosixPath"),
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no index needs")


def inspect_shards(checkpoint: Checkpoint) -> State:
    """Return the state of a sharded checkpoint with weights that have a shape and no data.

    torch.distributed.checkpoint 2.13 unpickles the index, and whatever is no tensor, unguarded
    (filesystem.py read_metadata, default_planner.py load_bytes). So both are read here first, as
    plain values only: what passes can be loaded.

    Raises:
        CheckpointError: it cannot be read, or holds objects that could run code.
        StorageError: S3 does not give it.
    """

    def read(file: str, start: int = 0, length: int | None = None) -> io.BytesIO:
        name = checkpoint.name
        return io.BytesIO(checkpoint.place.read(name, f"{SHARDS}/{file}", start, length))

    weights = {}
    try:
        index = _IndexUnpickler(read(".metadata")).load()
        for place, info in index.storage_data.items():
            entry = index.state_dict_metadata[place.fqn]
            if hasattr(entry, "size"):
                if place.fqn.startswith("state_dict."):
                    name = place.fqn.removeprefix("state_dict.")
                    dtype = entry.properties.dtype
                    weights[name] = torch.empty(entry.size, dtype=dtype, device="meta")
            else:
                torch.load(read(info.relative_path, info.offset, info.length), weights_only=True)
    except StorageError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{checkpoint.state} cannot be read as a checkpoint: {error}"
        ) from error
    return {"state_dict": weights}


def check_weights(state: State, model: torch.nn.Module, where: str) -> None:
    """Raise CheckpointError when a checkpoint's weights are not those of this model."""
    have, want = state["state_dict"], model.state_dict()
    missing = sorted(want.keys() - have.keys())
    extra = sorted(have.keys() - want.keys())
    shapes = sorted(
        f"{name}: {tuple(have[name].shape)} saved, {tuple(want[name].shape)} here"
        for name in want.keys() & have.keys()
        if isinstance(want[name], Tensor) and have[name].shape != want[name].shape
    )
    if missing or extra or shapes:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in (
                ("weights are missing in it", missing),
                ("weights are unknown here", extra),
                ("have another shape", shapes),
            )
            if names
        ]
        raise CheckpointError(
            f"{where} is the checkpoint of another model than {type(model).__name__}: "
            f"{'; '.join(parts)}. Use the model it was saved with, or another hydra.run.dir."
        )
