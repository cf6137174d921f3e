"""The files of sharded checkpoints, for torch.distributed.checkpoint to write and read."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemBase

from hydra_trainer.errors import CheckpointError

from .files import SHARDS, Facts, Place
from .reading import State, inspect_shards
from .store import Checkpoint

INDEX = ".metadata"
"""torch's name for what tells which part of a tensor is where."""


class Shards(FileSystemBase):
    """The files of one sharded checkpoint, for torch's writer and reader of shards.

    Paths are names in the checkpoint's shards/. It knows size and digest of each file that it
    wrote without reading it again, and a write that was refused raises what the place said.
    """

    def __init__(self, place: Place, name: str) -> None:
        self.place, self.name = place, name
        self.written: dict[str, Facts] = {}

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        file = str(path).removesuffix(".tmp")  # the place itself writes files whole or not at all
        if mode != "rb":
            with self.place.writing(self.name, f"{SHARDS}/{file}") as out:
                yield out
            self.written[file] = out.facts()
        elif file == INDEX:
            yield io.BytesIO(self.part(file))
        else:
            yield partial(self.part, file)

    def part(self, file: str, start: int = 0, length: int | None = None) -> Any:
        return self.place.read(self.name, f"{SHARDS}/{file}", start, length)

    def rename(self, path: Any, new_path: Any) -> None:
        """It has its final name."""

    def concat_path(self, path: Any, suffix: str) -> str:
        return suffix

    def init_path(self, path: Any) -> Any:
        return path

    def mkdir(self, path: Any) -> None:
        """Its place makes what it needs."""

    def exists(self, path: Any) -> bool:
        return False  # the folder was cleaned

    def rm_file(self, path: Any) -> None:
        """There is nothing to remove: see `exists`."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class Reader(FileSystemReader):
    """Reads what it needs of a shard, one request for each tensor."""

    def __init__(self, shards: Shards) -> None:
        super().__init__("")
        self.fs = shards  # type: ignore[assignment]

    def _slice_file(self, file: Any, sinfo: Any) -> io.BytesIO:
        return io.BytesIO(file(sinfo.offset, sinfo.length))


def load_weights(model: nn.Module, found: Checkpoint) -> None:
    """Load the weights of a sharded checkpoint into a model that is sharded the same or not.

    Raises:
        CheckpointError: they cannot be read.
    """
    state = {"state_dict": model.state_dict()}
    with plain_errors(found.state):
        load(state, storage_reader=Reader(Shards(found.place, found.name)))
    model.load_state_dict(state["state_dict"])


@contextmanager
def plain_errors(where: str) -> Iterator[None]:
    """Turn what torch raises when loading, which is no Exception, into a CheckpointError."""
    try:
        yield
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise CheckpointError(f"{where} cannot be loaded: {cause}.") from error


def weights(found: Checkpoint) -> State:
    """Return the weights of a sharded checkpoint, put together in this process.

    Raises:
        CheckpointError: they cannot be read.
    """
    wanted = inspect_shards(found)["state_dict"]
    state = {"state_dict": {name: torch.empty_like(w, device="cpu") for name, w in wanted.items()}}
    with plain_errors(found.state):
        load(state, storage_reader=Reader(Shards(found.place, found.name)), no_dist=True)
    return state["state_dict"]
