"""A checkpoint that one machine has, on all machines of a job.

Where results lie on EFS or FSx, every machine sees them. Elsewhere (SageMaker's checkpoint folder,
a pod's own disk) only the machine of rank 0 has what it wrote; the others get a copy when they
need one.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import distributed
from .checkpoint import Checkpoint
from .distributed import SideGroup
from .errors import CheckpointError

CHUNK = 64 << 20  # bytes that are sent at once


@contextmanager
def on_every_machine(path: Path, timeout_s: float) -> Iterator[Path]:
    """Yield where this machine has the state of a checkpoint: `path`, or a copy for the time.

    All ranks call it, with rank 0's path. Each machine trusts its own file only if its checksum is
    right: a folder that is synchronised in the background may hold half of one.

    Raises:
        CheckpointError: a machine has not got all parts of a sharded checkpoint.
    """
    if distributed.world_size() == distributed.local_world_size():
        yield path
        return
    leads = distributed.local_rank() == 0
    has_it = _has(path) if leads else True
    folder = None if has_it else tempfile.mkdtemp(prefix="hydra-trainer-checkpoint-")
    side = distributed.side_group(timeout_s)
    try:
        yield _place(path, has_it, folder, side)
        dist.barrier(side.group)  # all ranks of this machine have read the copy
    finally:
        distributed.leave(side)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _has(path: Path) -> bool:
    """Tell whether a checkpoint is whole on this machine; `path` is its file or its shards."""
    found = Checkpoint.read(path.parent)
    return found is not None and path.exists() and found.fault() is None


def _place(path: Path, has_it: bool, folder: str | None, side: SideGroup) -> Path:
    machine = os.environ.get("GROUP_RANK", "0")
    told: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(told, (machine, has_it, folder), group=side.group)
    if all(there for _, there, _ in told):
        return path
    copies = {where: Path(copy, path.name) for where, _, copy in told if copy is not None}
    size = [path.stat().st_size if path.is_file() else -1] if distributed.rank() == 0 else [0]
    dist.broadcast_object_list(size, src=0, group=side.group)
    if size[0] < 0:
        raise CheckpointError(
            f"{path} is a sharded checkpoint whose parts are on several machines, and this one has "
            "not got them all. Put storage.output on EFS or FSx (storage=efs, storage=fsx)."
        )
    _send(path, size[0], copies[machine] if folder is not None else None, side)
    return copies.get(machine, path)


def _send(path: Path, size: int, copy: Path | None, side: SideGroup) -> None:
    """Broadcast a file from rank 0; ranks with a place for a copy write one."""
    first = distributed.rank() == 0
    source = path.open("rb") if first else None
    target = copy.open("wb") if copy is not None else None
    try:
        for at in range(0, size, CHUNK):
            count = min(CHUNK, size - at)
            if source is not None:
                chunk = torch.frombuffer(bytearray(source.read(count)), dtype=torch.uint8)
            else:
                chunk = torch.empty(count, dtype=torch.uint8)
            chunk = chunk.to(side.device)
            dist.broadcast(chunk, src=0, group=side.group)
            if target is not None:
                target.write(chunk.cpu().numpy().data)
    finally:
        for file in (source, target):
            if file is not None:
                file.close()
    dist.barrier(side.group)  # the copy is whole before another rank of its machine reads it
