"""Faults of disks, memory and processes, and the models and data that meet them.

`watch_disk` sees every call with which a save changes a disk, and may kill the process or fail
the call there: at a chosen call, not at a chosen time. `PowerCut` knows what a disk would still
hold when the power went.
"""

import os
import random
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from hydra_trainer.checkpoints import reading
from hydra_trainer.checkpoints.files import STATE, Hashing, Place
from hydra_trainer.checkpoints.store import Store
from hydra_trainer.checkpoints.writing import CommittedCheckpointIO, Writer
from hydra_trainer.models.mlp import MLP

from .drill import Drill, Strange

Watcher = Callable[[str, Path], None]


@contextmanager
def watch_disk(before: Watcher, after: Watcher = lambda call, path: None) -> Iterator[None]:
    """Call `before(call, path)` and `after` it around each write, fsync, rename and deletion.

    Writes are those of a checkpoint's files; each is done in two halves with `before` in between.
    """
    true = {name: getattr(os, name) for name in ("fsync", "replace", "unlink", "mkdir", "rmdir")}
    write = Hashing.write

    def watched(name: str) -> Callable[..., Any]:
        def call(what: Any, *args: Any, dir_fd: int | None = None, **kwargs: Any) -> Any:
            path = _path(what, dir_fd)
            before(name, path)
            if dir_fd is not None:
                kwargs["dir_fd"] = dir_fd
            result = true[name](what, *args, **kwargs)
            after(name, path)
            return result

        return call

    def halves(self: Any, data: Any) -> int:
        view = memoryview(data).cast("B")
        half = len(view) // 2
        done = write(self, view[:half])
        try:
            before("write", Path(self._file.name))
        except OSError as error:
            self.error = error  # as when the file itself refuses
            raise
        return done + write(self, view[half:])

    try:
        for name in true:
            setattr(os, name, watched(name))
        Hashing.write = halves  # type: ignore[method-assign]
        yield
    finally:
        for name, function in true.items():
            setattr(os, name, function)
        Hashing.write = write  # type: ignore[method-assign]


def _path(what: Any, dir_fd: int | None) -> Path:
    if isinstance(what, int):
        return Path(f"/proc/self/fd/{what}").readlink()
    folder = "" if dir_fd is None else Path(f"/proc/self/fd/{dir_fd}").readlink()
    return Path(folder, what)


class At:
    """A watcher that counts the calls below folders of a name and acts at one of them."""

    def __init__(self, number: int, act: Callable[[], None], folder: str = "checkpoints") -> None:
        self.number = number
        self.act = act
        self.folder = folder
        self.count = 0

    def __call__(self, call: str, path: Path) -> None:
        if self.folder in path.parts:
            self.count += 1
            if self.count == self.number:
                self.act()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def refuse(number: int) -> Callable[[], None]:
    def act() -> None:
        raise OSError(number, os.strerror(number))

    return act


def in_a_fork(function: Callable[[], None]) -> int:
    """Run a function in a fork of this process; return its exit code, -9 after SIGKILL."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class PowerCut:
    """Follows what is durable on a disk: contents that were fsynced, names whose folder was.

    Deletions count at once, but for files named `late`, whose deletion counts when their folder
    was fsynced: a disk is free to do either. `rebuild` makes what a power cut then leaves at
    worst. With `names` it makes the other extreme: every name is there, and files that were not
    fsynced are empty.
    """

    def __init__(self, root: Path, late: str = "") -> None:
        self.root = root
        self.late = late
        self.contents: dict[int, bytes] = {}
        self.names: dict[int, dict[str, tuple[int, bool]]] = {}
        self._note(root)

    def before(self, call: str, path: Path) -> None:
        if call in ("unlink", "rmdir") and path.name != self.late:
            inode = path.lstat().st_ino
            self.contents.pop(inode, None)
            self.names.pop(inode, None)
            self.names.get(path.parent.stat().st_ino, {}).pop(path.name, None)

    def after(self, call: str, path: Path) -> None:
        if call == "fsync":
            self._note(path)

    def _note(self, path: Path) -> None:
        inode = path.stat().st_ino
        if path.is_dir():
            entries = os.scandir(path)
            self.names[inode] = {e.name: (e.inode(), e.is_dir()) for e in entries}
        else:
            self.contents[inode] = path.read_bytes()

    def rebuild(self, place: Path, names: bool) -> Path:
        """Make what is left below `place`, an empty folder."""
        if names:
            for path in sorted(self.root.rglob("*")):
                copy = place / path.relative_to(self.root)
                if path.is_dir():
                    copy.mkdir(parents=True)
                else:
                    copy.write_bytes(self.contents.get(path.stat().st_ino, b""))
        else:
            self._rebuild(self.root.stat().st_ino, place)
        return place

    def _rebuild(self, folder: int, place: Path) -> None:
        place.mkdir(exist_ok=True)
        for name, (inode, is_folder) in self.names.get(folder, {}).items():
            if is_folder:
                self._rebuild(inode, place / name)
            else:
                (place / name).write_bytes(self.contents.get(inode, b""))


class Training:
    """A training without Lightning: each step is saved, and continued from wherever it stopped."""

    def __init__(
        self, directory: Path | Place, asynchronous: bool = True, size: int = 1000
    ) -> None:
        root = directory / "checkpoints" if isinstance(directory, Path) else directory
        self.store = Store(root)
        self.writer = Writer(asynchronous)
        self.io = CommittedCheckpointIO(self.store, self.writer, self.prune)
        self.size = size

    def prune(self, name: str) -> None:
        self.store.prune(2, 1, "loss", "min")

    def run(self, steps: int, saved: Callable[[int], None] = lambda step: None) -> None:
        """Train to `steps`; after a step, call `saved` with the last that is surely on disk."""
        found = reading.restore(self.store)
        step = found[0].step if found else 0
        weights = torch.zeros(self.size)
        if found:
            weights.copy_(found[1]["state_dict"]["weights"])
        while step < steps:
            step += 1
            weights.mul_(0.9).add_(torch.randn(self.size, generator=torch.manual_seed(step)))
            self.save(step, weights)
            saved(step if not self.writer.asynchronous else step - 1)
        self.writer.finish()
        saved(step)

    def save(self, step: int, weights: torch.Tensor) -> None:
        state = {"step": step, "state_dict": {"weights": weights, "tied": weights}}
        meta = {"step": step, "metrics": {"loss": random.Random(step).random()}}
        path = f"{self.store.uri}/{self.store.name(step, 'mid')}/{STATE}"
        self.io.save_checkpoint(state, path, meta)


# ------------------------------------------------------------------ models and data of whole jobs


class Faulty(Drill):
    """An MLP whose disk fails as FAULT says, or that is as any other.

    `kill:7` kills the process at the seventh call that changes a checkpoint; `count:FILE` writes
    down how many there are. `full:4:9` lets no file grow beyond 16 KiB after step 4 until step 9;
    `full:4:27:0` on rank 0 alone.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fault, *self.details = os.environ.get("FAULT", "none").split(":")
        self.calls = At(int(self.details[0]) if self.fault == "kill" else 0, die)
        if self.fault in ("kill", "count"):
            self._watching = watch_disk(self.calls)
            self._watching.__enter__()  # to the end of the process

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.fault == "full" and self.details[2:] in ([], [str(self.global_rank)]):
            begin, end = map(int, self.details[:2])
            if self.global_step in (begin, end):
                _limit_files(16 << 10 if self.global_step == begin else None)

    def on_fit_end(self) -> None:
        if self.fault == "count":
            Path(self.details[0]).write_text(str(self.calls.count))


class FullOnce(Drill):
    """Its disk is full while the end of the last epoch is saved, and no longer."""

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self.global_step == 27:
            _limit_files(16 << 10)

    def on_train_epoch_end(self) -> None:
        # It comes after the save, which has been written when another one could begin.
        self.trainer.callbacks[0].writer.finish()
        _limit_files(None)


def _limit_files(size: int | None) -> None:
    """Let no file of this process grow beyond a size in bytes."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


class Steep(MLP):
    """Its gradient stops being a number at step FAULT, while the loss still is one."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.global_step + 1 == int(os.environ["FAULT"]):
            next(self.parameters()).grad.fill_(float("inf"))


class Patient(Strange):
    """Its steps begin when nothing is being saved."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.trainer.callbacks[0].writer.finish()


class Closed(MLP):
    """Keeps something in its checkpoint that cannot even be saved."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["function"] = lambda: None


class Deadly(Dataset[Any]):
    """Something happens to the loader worker that loads sample 5.

    With `shm` no file of it may grow, and its process id is written into the file FAULT.
    """

    def __init__(self, death: str) -> None:
        self.death = death

    def __len__(self) -> int:
        return 512

    def __getitem__(self, index: int) -> Any:
        if index == 5:
            if self.death == "exit":
                os._exit(3)
            if self.death == "shm":
                Path(os.environ["FAULT"]).write_text(str(os.getpid()))
                _limit_files(1 << 10)  # /dev/shm is a file system
            else:
                os.kill(os.getpid(), signal.Signals[self.death])
        return torch.zeros(1, 8, 8), index % 10


class DeadlyData(LightningDataModule):
    """Digits whose loader workers die."""

    def __init__(self, death: str, batch_size: int) -> None:
        super().__init__()
        self.death = death
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Deadly(self.death), self.batch_size, num_workers=1)
