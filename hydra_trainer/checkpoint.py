"""Checkpoints that are committed or do not exist.

On disk, below the run directory:

    checkpoints/step=00000120/state.pt          fsynced; with trainer.strategy=fsdp, shards/*
    checkpoints/step=00000120/manifest.json     written last: size and digest of every file
    checkpoints/step=00000120-val/              of the same step, after it was validated

A folder without a manifest is not a checkpoint, whatever it holds. Every file is written under
another name in the same folder, fsynced, renamed, and the folder fsynced, so that neither a kill
nor a power cut leaves half a file under a final name, on a local disk or on NFS. A reader checks
sizes and digests and takes the newest checkpoint that is whole.

This module knows files and tensors. When to save, and what, is in callbacks.py.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from .errors import CheckpointError

log = logging.getLogger(__name__)

STATE = "state.pt"
SHARDS = "shards"
MANIFEST = "manifest.json"
_BLOCK = 4 << 20  # bytes read at a time when a file is checked


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint: its folder and what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def state(self) -> Path:
        """Where its state lies: a file, or the folder of its shards."""
        shards = self.path / SHARDS
        return shards if shards.is_dir() else self.path / STATE

    def metric(self, name: str) -> float | None:
        value = self.manifest.get("metrics", {}).get(name)
        return None if value is None else float(value)

    def fault(self) -> str | None:
        """Return what is wrong with its files, or None when all are whole."""
        for name, wanted in self.manifest["files"].items():
            file = self.path / name
            if not file.is_file():
                return f"{name} is missing"
            if (size := file.stat().st_size) != wanted["size"]:
                return f"{name} has {size} bytes instead of {wanted['size']}"
            if digest_of(file) != wanted["blake2b"]:
                return f"{name} has another checksum than when it was saved"
        return None


class Store:
    """The checkpoints of one run directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, step: int, validated: bool = False) -> Path:
        return self.root / f"step={step:08d}{'-val' if validated else ''}"

    def all(self) -> list[Checkpoint]:
        """Return the committed checkpoints, oldest first. Unreadable manifests are left out."""
        found = []
        for path in self.root.glob(f"step=*/{MANIFEST}"):
            try:
                manifest = json.loads(path.read_text())
                found.append(Checkpoint(path.parent, manifest))
                int(manifest["step"]), dict(manifest["files"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                log.warning("%s cannot be read (%s); that checkpoint is ignored", path, error)
                found = [c for c in found if c.path != path.parent]
        return sorted(found, key=lambda checkpoint: checkpoint.path.name)

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None; say so where one had to be passed over."""
        for checkpoint in reversed(self.all()):
            fault = checkpoint.fault()
            if fault is None:
                return checkpoint
            log.warning(
                "The checkpoint of step %d is damaged (%s): %s. Going back to the one before.",
                checkpoint.step,
                fault,
                checkpoint.path,
            )
        return None

    def ranked(self, metric: str, mode: str) -> list[Checkpoint]:
        """Return the checkpoints that know the metric, best first; the older one wins a tie."""
        sign = -1.0 if mode == "max" else 1.0
        known = [(c.metric(metric), c) for c in self.all()]
        valued = [(sign * value, c.path.name, c) for value, c in known if value is not None]
        return [c for _, _, c in sorted(valued, key=lambda item: item[:2])]

    def clean(self, folder: Path) -> Path:
        """Make the folder of a checkpoint, empty: what a killed save left there is removed."""
        if folder.exists():
            # The manifest goes first: from here on this is no checkpoint.
            (folder / MANIFEST).unlink(missing_ok=True)
            sync_folder(folder)
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        return folder

    def commit(self, folder: Path, meta: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
        """Write the manifest: from here on the folder is a checkpoint."""
        text = json.dumps({**meta, "files": files}, indent=1)
        write_atomically(folder / MANIFEST, lambda file: file.write(text.encode()))
        sync_folder(self.root)

    def prune(self, keep_last: int, keep_best: int, metric: str, mode: str) -> None:
        """Delete all but the newest `keep_last` and the `keep_best` best, and leftovers."""
        checkpoints = self.all()
        kept = {c.path for c in checkpoints[-keep_last:]}
        kept |= {c.path for c in self.ranked(metric, mode)[:keep_best]}
        newest = checkpoints[-1].path.name if checkpoints else ""
        for folder in self.root.glob("step=*"):
            # A folder newer than every commit may be one that is being written now.
            if folder not in kept and folder.name < newest:
                (folder / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(folder, ignore_errors=True)


class _Hashing(io.RawIOBase):
    """A file that digests what passes through it, so that a save reads nothing twice."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.blake2b(digest_size=16)
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.digest.update(data)
        written = self._file.write(data)
        self.size += written
        return written

    def flush(self) -> None:
        self._file.flush()


def digest_of(path: Path) -> str:
    """Return the BLAKE2b digest of a file, 16 bytes as 32 hex characters."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[Any], object]) -> dict[str, Any]:
    """Write a file so that its name never stands for half of it. Returns size and digest.

    The other name is in the same folder: $TMPDIR may be another filesystem, where a rename is a
    copy, and a copy can tear.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb", buffering=0) as raw:
            hashing = _Hashing(raw)
            write(hashing)
            os.fsync(raw.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return {"size": hashing.size, "blake2b": hashing.digest.hexdigest()}


class _Staging:
    """Buffers that are filled again at each save, so that a save costs one copy and no malloc.

    On a GPU they are pinned, which is what makes the copy fast.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return `state` with every tensor copied to the CPU; containers are new ones."""
        self._done: dict[tuple[Any, ...], Tensor] = {}
        copied: dict[str, Any] = self._node(state, ())
        return copied

    def _node(self, node: Any, key: tuple[Any, ...]) -> Any:
        if isinstance(node, Tensor):
            return self._tensor(node.detach(), key)
        if isinstance(node, dict):
            return {name: self._node(value, (*key, name)) for name, value in node.items()}
        if type(node) in (list, tuple):
            return type(node)(self._node(value, (*key, i)) for i, value in enumerate(node))
        return node

    def _tensor(self, tensor: Tensor, key: tuple[Any, ...]) -> Tensor:
        # Tied weights have two names and one memory: they stay one, here and in the file.
        same = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and same in self._done:
            return self._done[same]
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._buffers[key] = buffer
        buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        self._done[same] = buffer
        return buffer


class Writer:
    """Writes one checkpoint at a time, in a thread unless told otherwise.

    A save that fails leaves the earlier checkpoints as they are; training goes on, and `error`
    holds the reason until a later save succeeds.
    """

    def __init__(self, asynchronous: bool = True) -> None:
        self.asynchronous = asynchronous
        self.error: BaseException | None = None
        self._staging = _Staging()
        self._thread: threading.Thread | None = None

    def save(self, state: dict[str, Any], work: Callable[[dict[str, Any]], None]) -> None:
        """Run `work(copy of state)`: in the background, after the save before it has ended."""
        self.finish()
        if not self.asynchronous:
            self._run(work, state)
            return
        staged = self._staging.copy(state)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        # Not a daemon: a process that ends in peace ends its save first.
        self._thread = threading.Thread(target=self._run, args=(work, staged), name="checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Return when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, work: Callable[[dict[str, Any]], None], state: dict[str, Any]) -> None:
        try:
            work(state)
            self.error = None
        except OSError as error:
            self.error = error
            log.error(
                "This checkpoint could not be saved: %s. Training goes on; the earlier "
                "checkpoints are as they were.",
                error,
            )
        except BaseException as error:
            self.error = error
            log.exception("This checkpoint could not be saved")


class CommittedCheckpointIO(CheckpointIO):
    """Lightning's door to the store, for strategies that gather the state on rank 0.

    `storage_options` carries the manifest's entries: step, metrics, world_size and so on.
    """

    def __init__(self, store: Store, writer: Writer, after: Callable[[], None]) -> None:
        self._store = store
        self._writer = writer
        self._after = after

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        meta = dict(storage_options or {})
        folder = Path(path).parent

        def work(state: dict[str, Any]) -> None:
            self._store.clean(folder)
            written = write_atomically(folder / STATE, lambda file: torch.save(state, file))
            refuse_unsafe(folder / STATE)
            self._store.commit(folder, meta, {STATE: written})
            self._after()

        self._writer.save(checkpoint, work)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        shutil.rmtree(Path(path).parent, ignore_errors=True)

    def teardown(self) -> None:
        self._writer.finish()


def load(path: Path) -> dict[str, Any]:
    """Return the state in a checkpoint file, tensors and plain values only, on the CPU.

    Raises:
        CheckpointError: the file is not one, or holds objects that could run code.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"There is no checkpoint file {path}.") from None
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise CheckpointError(f"{path} is a torch file, but not a checkpoint of this package.")
    return loaded


def refuse_unsafe(path: Path) -> None:
    """Raise CheckpointError when a file that was just written could not be loaded again.

    Loading takes tensors and plain values only; better to learn that now than after a crash.
    """
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if names:
        raise CheckpointError(
            f"The checkpoint holds objects of {', '.join(sorted(names))}, which cannot be loaded "
            "safely. Keep tensors, numbers, strings, lists and dicts in state_dict() and in "
            "save_hyperparameters() of the model, the data and the callbacks."
        )


def check_weights(state: dict[str, Any], model: torch.nn.Module, path: Path) -> None:
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
            f"{path} is the checkpoint of another model than {type(model).__name__}: "
            f"{'; '.join(parts)}. Use the model it was saved with, or another hydra.run.dir."
        )


def find(place: str) -> Path:
    """Return the state file that a user means by a checkpoint folder, file or run directory.

    Raises:
        CheckpointError: there is no whole checkpoint there.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return path
    if (path / MANIFEST).is_file():
        checkpoint = Checkpoint(path, json.loads((path / MANIFEST).read_text()))
        if fault := checkpoint.fault():
            raise CheckpointError(f"The checkpoint {path} is damaged: {fault}.")
        return checkpoint.state
    latest = Store(path / "checkpoints").latest()
    if latest is None:
        raise CheckpointError(
            f"checkpoint.init_from is {place!r}, but there is no whole checkpoint there. Give a "
            "run directory, or one of the folders below its checkpoints/."
        )
    return latest.state


@contextlib.contextmanager
def closing(writer: Writer) -> Iterator[None]:
    """Finish what is being written, whatever happens inside."""
    try:
        yield
    finally:
        writer.finish()
