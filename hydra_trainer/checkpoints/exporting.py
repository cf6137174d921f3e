"""The weights of a checkpoint as one file of safetensors."""

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from hydra_trainer.errors import CheckpointError

from . import reading, shards
from .store import Checkpoint


def write_weights(found: list[Checkpoint], folder: Path, name: str) -> tuple[Checkpoint, int]:
    """Write the weights of the first of some checkpoints that is whole; return it, and how many.

    Raises:
        CheckpointError: none is whole, or it has no weights.
    """
    if not found:
        raise CheckpointError("None of the checkpoints is finished.")
    chosen, state = reading.opened(found)
    weights = shards.weights(chosen) if chosen.is_sharded else state["state_dict"]
    seen: set[int] = set()
    apart: dict[str, Tensor] = {}
    for key, value in weights.items():
        if isinstance(value, Tensor):
            # The format has no tied weights: each name has numbers of its own.
            place = value.untyped_storage().data_ptr()
            apart[key] = value.clone() if place in seen else value.contiguous()
            seen.add(place)
    if not apart:
        raise CheckpointError(f"{chosen.uri} has no weights.")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{name}.tmp"
    save_file(apart, temporary, metadata={"format": "pt"})
    temporary.replace(folder / name)
    return chosen, len(apart)
