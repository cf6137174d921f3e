"""A checkpoint that one machine has, on all machines of a job.

Where results lie on EFS, on FSx or in S3, every machine sees them. Elsewhere (SageMaker's
checkpoint folder, a pod's own disk) only the machine of rank 0 has what it wrote; the others get a
copy when they need one.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import distributed
from .checkpoints.folder import Folder
from .checkpoints.store import Checkpoint
from .distributed import SideGroup
from .errors import CheckpointError

CHUNK = 64 << 20  # bytes that are sent at once


@contextmanager
def on_every_machine(found: Checkpoint, timeout_s: float) -> Iterator[Checkpoint]:
    """Yield a checkpoint where this machine has it: as it was `found`, or a copy for the time.

    All ranks call it, with what rank 0 found. Each machine trusts its own file only if its checksum
    is right: a folder that is synchronised in the background may hold half of one.

    Raises:
        CheckpointError: a machine has not got all parts of a sharded checkpoint.
    """
    if found.place.is_remote or distributed.world_size() == distributed.local_world_size():
        yield found
        return
    leads = distributed.local_rank() == 0
    has_it = _has(found) if leads else True
    folder = None if has_it else tempfile.mkdtemp(prefix="hydra-trainer-checkpoint-")
    side = distributed.side_group(timeout_s)
    try:
        yield _place(found, has_it, folder, side)
        dist.barrier(side.group)  # all ranks of this machine have read the copy
    finally:
        distributed.leave(side)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _has(found: Checkpoint) -> bool:
    """Tell whether a checkpoint is whole on this machine."""
    here = Checkpoint.read(found.place, found.name)
    return here is not None and here.files == found.files and here.fault() is None


def _place(found: Checkpoint, has_it: bool, folder: str | None, side: SideGroup) -> Checkpoint:
    machine = os.environ.get("GROUP_RANK", "0")
    told: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(told, (machine, has_it, folder), group=side.group)
    if all(there for _, there, _ in told):
        return found
    copies = {where: Path(copy) for where, _, copy in told if copy is not None}
    if found.is_sharded:
        raise CheckpointError(
            f"{found.state} is a sharded checkpoint whose parts are on several machines, and this "
            "one has not got them all. Put storage.output on EFS or FSx (storage=efs, "
            "storage=fsx), or in S3 (storage.output=s3://BUCKET/PREFIX)."
        )
    target = None
    if folder is not None:
        target = Path(folder, found.name, found.file)
        target.parent.mkdir()
    _send(Path(found.state), found.size, target, side)
    return replace(found, place=Folder(copies[machine])) if machine in copies else found


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
