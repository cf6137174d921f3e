"""The process group: which backend, how long ranks wait for each other, how they agree to stop."""

import os
import time
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .errors import ConfigError
from .preemption import StopFlag


def rank() -> int:
    """This process's rank among all, as torchrun told it; 0 without torchrun."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes train together, as torchrun told it; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_rank() -> int:
    """This process's rank among those of this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def use_gpu(accelerator: str) -> bool:
    """Decide between GPU and CPU for every process of this machine.

    Raises:
        ConfigError: a GPU for each process was asked for, and there are fewer.
    """
    if accelerator == "cpu":
        return False
    there, wanted = torch.cuda.device_count(), local_world_size()
    if there >= wanted:
        return True
    if accelerator == "gpu":
        raise ConfigError(
            f"trainer.accelerator is 'gpu' with {wanted} processes on this machine, but it has "
            f"{there} GPUs. Type trainer.accelerator=cpu, or resources.processes_per_node="
            f"{max(there, 1)}."
        )
    return False


def backend_for(name: str, gpu: bool) -> str:
    """Return the backend that `trainer.process_group_backend` means here.

    Raises:
        ConfigError: this backend does not exist on this machine.
    """
    if name == "auto":
        return "nccl" if gpu else "gloo"
    if name == "nccl" and not (gpu and dist.is_nccl_available()):
        raise ConfigError(
            "trainer.process_group_backend is 'nccl', but NCCL needs a GPU for every process and "
            "a CUDA build of torch. Type trainer.process_group_backend=gloo."
        )
    if name == "smddp":
        try:
            # The import registers the backend with torch.
            import smdistributed.dataparallel.torch.torch_smddp  # noqa: F401
        except ImportError:
            raise ConfigError(
                "trainer.process_group_backend is 'smddp', but smdistributed-dataparallel is not "
                "here: it exists only inside some Amazon SageMaker images, for ml.p4d.24xlarge "
                "and ml.p4de.24xlarge. Type trainer.process_group_backend=nccl, or =auto."
            ) from None
    return name


def start(backend: str, timeout_s: float) -> None:
    """Join the process group that torchrun described. Ranks wait `timeout_s` for each other."""
    if world_size() > 1 and not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def set_timeout(seconds: float) -> None:
    """Set how long one collective may take, for every group: start-up needs more than a step."""
    if dist.is_initialized():
        for group in (None, *_extra_groups):
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


_extra_groups: list[Any] = []


class SideGroup(NamedTuple):
    """All ranks, for what is no gradient: where tensors of it must be, and how to leave it."""

    group: Any
    device: torch.device


def side_group(timeout_s: float) -> SideGroup:
    """Return a gloo group of all ranks, apart from the one that gradients go through.

    SMDDP can neither have a second group nor another backend beside it: there it is the group of
    the gradients. https://docs.aws.amazon.com/sagemaker/latest/dg/data-parallel-faq.html
    """
    if dist.get_backend() == "smddp":
        on_gpu = torch.cuda.is_available()
        device = torch.device("cuda", local_rank()) if on_gpu else torch.device("cpu")
        return SideGroup(dist.group.WORLD, device)
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
    _extra_groups.append(group)
    return SideGroup(group, torch.device("cpu"))


def leave(side: SideGroup) -> None:
    """Leave a side group before the end."""
    if side.group in _extra_groups:
        _extra_groups.remove(side.group)
        dist.destroy_process_group(side.group)


def stop() -> None:
    """Leave the process group."""
    _extra_groups.clear()
    if dist.is_initialized():
        dist.destroy_process_group()


class Agreement:
    """Lets ranks agree that one of them was asked to stop, without holding up the steps.

    Every few calls the flags are reduced (maximum) in a side group. The reduction runs while the
    next steps do, and is read at the next check, so a step never waits for it; a signal is acted
    upon after at most two intervals. Interval: `every` calls, fewer where steps are slow, so that
    an interval is about a second at most. It is computed from reduced values, hence the same on
    every rank.
    """

    def __init__(self, flag: StopFlag, every: int, side: SideGroup | None) -> None:
        self._flag = flag
        self._every = every
        self._group = side.group if side is not None else None
        self._work: Any | None = None
        self._values = torch.zeros(2, device=side.device if side is not None else None)
        self._interval = 1
        self._left = 1
        self._since = time.monotonic()

    def check(self) -> int:
        """Return the signal that all ranks act upon now, or 0. All ranks call it equally often."""
        if self._group is None:
            return self._flag.signum
        self._left -= 1
        if self._left:
            return 0
        waited = self._interval
        signum = self._read()
        now = time.monotonic()
        self._values[0] = float(self._flag.signum)
        self._values[1] = (now - self._since) / waited
        self._since = now
        self._left = self._interval
        if not signum:
            self._work = dist.all_reduce(
                self._values, dist.ReduceOp.MAX, group=self._group, async_op=True
            )
        return signum

    def _read(self) -> int:
        if self._work is None:
            return 0
        self._work.wait()
        self._work = None
        signum, seconds = self._values.tolist()
        self._interval = min(self._every, max(1, int(1.0 / max(seconds, 1e-6))))
        return int(signum)

    def settle(self) -> None:
        """Wait for the reduction that is under way, if any."""
        if self._work is not None:
            self._work.wait()
            self._work = None
