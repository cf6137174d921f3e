"""Checkpoints that are committed or do not exist.

On disk, below the run directory:

    checkpoints/step=00000120/state.pt          fsynced; with trainer.strategy=fsdp, shards/*
    checkpoints/step=00000120/manifest.json     written last: size and digest of every file
    checkpoints/step=00000120-val/              of the same step, after it was validated
    checkpoints/step=00000120-end/              of the same step, at the end of its epoch

A folder without a manifest is not a checkpoint, whatever it holds. Every file is written under
another name in the same folder, fsynced, renamed, and the folder fsynced, so that neither a kill
nor a power cut leaves half a file under a final name, on a local disk or on NFS. A reader checks
sizes and digests and takes the newest checkpoint that is whole. No save touches a checkpoint that
is whole: each position of a run has a folder of its own.

This module knows files and tensors. When to save, and what, is in callbacks.py.
"""

import contextlib
import copy
import errno
import io
import json
import logging
import math
import os
import pickle
import re
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
import xxhash
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from .errors import CheckpointError

log = logging.getLogger(__name__)

STATE = "state.pt"
SHARDS = "shards"
MANIFEST = "manifest.json"
PHASES = {"mid": "", "pending": "", "validated": "-val", "epoch end": "-end"}
"""How a folder's name ends, by the position of its checkpoint (callbacks.py), in order of time."""

PLAIN = (
    "Keep tensors, numbers, strings, lists and dicts in state_dict(), on_save_checkpoint() and "
    "save_hyperparameters() of the model, the data and the callbacks."
)

_FOLDER = re.compile(r"step=(\d+)(-val|-end)?")
_BLOCK = 4 << 20  # bytes read at a time when a file is checked


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint: its folder and what its manifest says.

    Where the manifest is damaged, `flaw` says how, and `manifest` is empty.
    """

    path: Path
    manifest: dict[str, Any]
    flaw: str | None = None

    @classmethod
    def read(cls, folder: Path) -> "Checkpoint | None":
        """Return the checkpoint in a folder; None where none was committed."""
        try:
            manifest = json.loads((folder / MANIFEST).read_bytes())
            digest = manifest.pop("xxh3")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return cls(folder, {}, f"{MANIFEST} cannot be read: {error.strerror}")
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls(folder, {}, f"{MANIFEST} is not a whole manifest")
        if digest != _seal(manifest):
            return cls(folder, {}, f"{MANIFEST} has another checksum than when it was saved")
        return cls(folder, manifest)

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
        return None if value is None or math.isnan(value) else float(value)

    def fault(self, digests: bool = True) -> str | None:
        """Return what is wrong with its files, or None when all are whole.

        Without `digests` only their sizes are looked at, which reads none of them.
        """
        if self.flaw is not None:
            return self.flaw
        for name, wanted in self.manifest["files"].items():
            try:
                size = (self.path / name).stat().st_size
                if size != wanted["size"]:
                    return f"{name} has {size} bytes instead of {wanted['size']}"
                if digests and digest_of(self.path / name) != wanted["xxh3"]:
                    return f"{name} has another checksum than when it was saved"
            except FileNotFoundError:
                return f"{name} is missing"
            except OSError as error:
                return f"{name} cannot be read: {error.strerror}"
        return None


class Store:
    """The checkpoints of one run directory. `damaged` holds the faults that `latest` came upon."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.damaged: dict[Path, str] = {}

    def folder(self, step: int, position: str) -> Path:
        return self.root / f"step={step:08d}{PHASES[position]}"

    def folders(self) -> list[Path]:
        """Return the folders that are named as checkpoints are, oldest first.

        Raises:
            CheckpointError: they cannot be listed. To a caller that took this for "there are
                none", the run would start from zero.
        """
        try:
            found = [path for path in self.root.iterdir() if _FOLDER.fullmatch(path.name)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(
                f"The checkpoints in {self.root} cannot be listed: {error.strerror}. Make the "
                "folder readable, or type again=true to set the run aside and start anew."
            ) from error
        return sorted(found, key=_age)

    def all(self) -> list[Checkpoint]:
        """Return the committed checkpoints, damaged ones too, oldest first."""
        found = (Checkpoint.read(folder) for folder in self.folders())
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None; say so where one had to be passed over."""
        for checkpoint in reversed(self.all()):
            fault = checkpoint.fault()
            if fault is None:
                return checkpoint
            self.damaged[checkpoint.path] = fault
            log.warning(
                "The checkpoint %s is damaged (%s). Going back to the one before.",
                checkpoint.path,
                fault,
            )
        return None

    def to_resume(self) -> Checkpoint | None:
        """Return the newest whole checkpoint; None where nothing was ever saved.

        Raises:
            CheckpointError: something was saved, and all of it is damaged.
        """
        latest = self.latest()
        if latest is None and self.damaged:
            faults = "; ".join(f"{path.name}: {fault}" for path, fault in self.damaged.items())
            raise CheckpointError(
                f"All checkpoints in {self.root} are damaged ({faults}), and nothing was changed "
                "there. Put a good copy of one back, or type again=true to set this run aside "
                "and start anew."
            )
        return latest

    def whole(self) -> list[Checkpoint]:
        """Return the checkpoints of which no damage is known, oldest first."""
        return [
            checkpoint
            for checkpoint in self.all()
            if checkpoint.path not in self.damaged and checkpoint.fault(digests=False) is None
        ]

    def ranked(self, metric: str, mode: str) -> list[Checkpoint]:
        """Return the whole checkpoints that know the metric, best first; older ones win ties."""
        sign = -1.0 if mode == "max" else 1.0
        valued = [(c.metric(metric), c) for c in self.whole()]
        known = [(sign * value, c) for value, c in valued if value is not None]
        return [c for _, c in sorted(known, key=lambda item: item[0])]

    def clean(self, folder: Path) -> Path:
        """Make the folder of a checkpoint, empty of what a killed save left there."""
        if folder.exists():
            self.remove(folder)
        if not self.root.exists():
            self.root.mkdir(parents=True)
            for parent in self.root.parents:
                with contextlib.suppress(PermissionError):
                    sync_folder(parent)
        # On NFS a file that someone still reads leaves a .nfs file, and its folder, behind.
        folder.mkdir(exist_ok=True)
        self.damaged.pop(folder, None)
        return folder

    def commit(self, folder: Path, meta: dict[str, Any], files: dict[str, dict[str, Any]]) -> None:
        """Write the manifest: from here on the folder is a checkpoint."""
        manifest = {**meta, "files": files}
        text = json.dumps({**manifest, "xxh3": _seal(manifest)}, indent=1)
        # First the folder's own name is made durable, then what makes it a checkpoint.
        sync_folder(self.root)
        write_atomically(folder / MANIFEST, lambda file: file.write(text.encode()))

    def remove(self, folder: Path) -> None:
        """Delete a checkpoint; first of all it stops being one. What resists is left for later."""
        try:
            (folder / MANIFEST).unlink(missing_ok=True)
            sync_folder(folder)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("The checkpoint %s cannot be deleted: %s", folder, error.strerror)
            return
        shutil.rmtree(folder, ignore_errors=True)

    def prune(self, keep_last: int, keep_best: int, metric: str, mode: str) -> None:
        """Delete all but the newest `keep_last` whole ones and the `keep_best` best, and leftovers.

        Nothing newer than the newest whole checkpoint is touched: it may be being written now.
        """
        whole = self.whole()
        kept = {c.path for c in whole[-keep_last:]}
        kept |= {c.path for c in self.ranked(metric, mode)[:keep_best]}
        for folder in self.folders():
            if whole and folder not in kept and _age(folder) < _age(whole[-1].path):
                self.remove(folder)


def _age(folder: Path) -> tuple[int, int]:
    """Return a key that sorts folders by the time at which their step was reached."""
    found = _FOLDER.fullmatch(folder.name)
    assert found is not None, folder
    return int(found[1]), ("", "-val", "-end").index(found[2] or "")


def _seal(manifest: dict[str, Any]) -> str:
    """Return the digest of what a manifest says, however it is laid out."""
    text = json.dumps(manifest, sort_keys=True)
    return xxhash.xxh3_128_hexdigest(text.encode())


class _Hashing(io.RawIOBase):
    """A file that digests what passes through it, so that a save reads nothing twice."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = xxhash.xxh3_128()
        self.size = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Write all of it: Linux takes at most 2 GiB at a time, less when the disk fills up."""
        view = memoryview(data).cast("B")
        self.digest.update(view)
        self.size += len(view)
        try:
            rest = view
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return len(view)

    def flush(self) -> None:
        self._file.flush()

    def tell(self) -> int:
        return self.size

    def fileno(self) -> int:
        return self._file.fileno()

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says of the file: its size in bytes and its digest."""
        return {"size": self.size, "xxh3": self.digest.hexdigest()}


@contextlib.contextmanager
def digesting(file: BinaryIO) -> Iterator[_Hashing]:
    """Digest what is written to a file, and raise the error that there really was.

    torch's writer runs on after a write that failed, and raises what that led to.
    """
    hashing = _Hashing(file)
    try:
        yield hashing
    except Exception:
        if hashing.error is not None:
            raise hashing.error from None
        raise


def digest_of(path: Path) -> str:
    """Return the xxh3_128 digest of a file, 16 bytes as 32 hex characters."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where its file system can: FUSE and SMB may not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: Path, write: Callable[[_Hashing], object]) -> dict[str, Any]:
    """Write a file so that its name never stands for half of it. Returns size and digest.

    The other name is in the same folder: $TMPDIR may be another filesystem, where a rename is a
    copy, and a copy can tear.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb", buffering=0) as raw, digesting(raw) as hashing:
            write(hashing)
            os.fsync(raw.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return hashing.facts()


class _Staging:
    """Buffers that are filled again at each save, so that a save costs one copy and no malloc.

    On a GPU they are pinned, which is what makes the copy fast.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def copy(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return a snapshot of `state` on the CPU: later changes of what it holds do not reach it.

        It is overwritten by the next call.
        """
        self._done: dict[tuple[Any, ...], Tensor] = {}
        copied: dict[str, Any] = self._node(state, ())
        return copied

    def _node(self, node: Any, key: tuple[Any, ...]) -> Any:
        if isinstance(node, Tensor):
            return self._tensor(node.detach(), key)
        if type(node) in (dict, OrderedDict):
            copied = type(node)((name, self._node(v, (*key, name))) for name, v in node.items())
            if isinstance(node, OrderedDict):
                # state_dict() keeps the version of each module's layout in an attribute.
                copied.__dict__.update(_snapshot(node.__dict__))
            return copied
        if type(node) in (list, tuple):
            return type(node)(self._node(value, (*key, i)) for i, value in enumerate(node))
        return _snapshot(node)

    def _tensor(self, tensor: Tensor, key: tuple[Any, ...]) -> Tensor:
        if tensor.layout != torch.strided:
            return tensor.to("cpu", copy=True)
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


def _snapshot(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception as error:
        raise cannot_be_saved(error) from error


class Writer:
    """Writes one checkpoint at a time, in a thread unless told otherwise.

    A save that the disk refuses (OSError) leaves the earlier checkpoints as they are; training
    goes on, and `error` holds the reason until a later save succeeds. Any other error would meet
    every save: `check` raises it.
    """

    def __init__(self, asynchronous: bool = True) -> None:
        self.asynchronous = asynchronous
        self.error: OSError | None = None
        self._fault: BaseException | None = None
        self._staging = _Staging()
        self._thread: threading.Thread | None = None

    def save(self, state: dict[str, Any], work: Callable[[dict[str, Any]], None]) -> None:
        """Run `work(copy of state)`: in the background, after the save before it has ended."""
        if not self.asynchronous:
            self.save_now(lambda: work(state))
            return
        self.finish()
        self.check()
        staged = self._staging.copy(state)
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()
        # Not a daemon: a process that ends in peace ends its save first.
        job = (lambda: work(staged),)
        self._thread = threading.Thread(target=self._run, args=job, name="checkpoint")
        self._thread.start()

    def save_now(self, work: Callable[[], None]) -> None:
        """Run `work()` in the foreground, after the save before it has ended."""
        self.finish()
        self.check()
        self._run(work)
        self.check()

    def finish(self) -> None:
        """Return when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def check(self) -> None:
        """Raise the error of a save that no later save can make good."""
        if self._fault is not None:
            raise self._fault

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            # The same again and again is for the log file.
            repeated = self.error is not None and self.error.errno == error.errno
            log.log(
                logging.INFO if repeated else logging.ERROR,
                "This checkpoint could not be saved: %s. Training goes on; the earlier "
                "checkpoints are as they were.",
                error,
            )
            self.error = error
        except BaseException as error:
            self._fault = error
        else:
            if self.error is not None:
                log.warning("Checkpoints can be saved again.")
            self.error = None


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
            try:
                self._store.clean(folder)
                written = write_state(state, folder / STATE)
                self._store.commit(folder, meta, {STATE: written})
            except BaseException:
                self._store.remove(folder)  # its room may be what the next one needs
                raise
            self._after()

        self._writer.save(checkpoint, work)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        self._store.remove(Path(path).parent)

    def teardown(self) -> None:
        self._writer.finish()


def write_state(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """Write a state that can be loaded again as tensors and plain values. Returns size and digest.

    Raises:
        CheckpointError: it holds something else.
        OSError: the disk refused it.
    """
    written = write_atomically(path, lambda file: _dump(state, file))
    refuse_unsafe(path)
    return written


def _dump(state: dict[str, Any], file: _Hashing) -> None:
    try:
        torch.save(state, file)  # type: ignore[arg-type]  # it needs write and flush only
    except Exception as error:
        raise cannot_be_saved(error) from error


def cannot_be_saved(error: BaseException) -> CheckpointError:
    return CheckpointError(f"The checkpoint holds something that cannot be saved: {error}. {PLAIN}")


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
        raise CheckpointError(f"{path} cannot be read as a checkpoint: {_why(error)}") from error
    if not isinstance(loaded, dict) or "state_dict" not in loaded:
        raise CheckpointError(f"{path} is a torch file, but not a checkpoint of this package.")
    return loaded


def _why(error: Exception) -> str:
    """Return an error of torch.load without its advice: to execute what is in the file."""
    if isinstance(error, pickle.UnpicklingError):
        return "it is damaged, or holds objects that could run code"
    return str(error).split("\n")[0]


def refuse_unsafe(path: Path) -> None:
    """Raise CheckpointError when a file that was just written could not be loaded again.

    Loading takes tensors and plain values only; better to learn that now than after a crash.
    Tensors are mapped, not read: it costs as much as the state has names.
    """
    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except OSError:
        raise
    except Exception as error:
        names: list[str] = []
        with contextlib.suppress(Exception):  # it does not know all that a pickle can hold
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
        reason = f"objects of {', '.join(names)}" if names else f"something ({_why(error)})"
        raise CheckpointError(
            f"The checkpoint holds {reason}, which cannot be loaded safely. {PLAIN}"
        ) from error


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


def inspect_shards(folder: Path) -> dict[str, Any]:
    """Return the state of a sharded checkpoint with weights that have a shape and no data.

    torch.distributed.checkpoint 2.13 unpickles the index, and whatever is no tensor, unguarded
    (filesystem.py read_metadata, default_planner.py load_bytes). So both are read here first, as
    plain values only: what passes can be loaded.

    Raises:
        CheckpointError: it cannot be read, or holds objects that could run code.
    """
    weights = {}
    try:
        with (folder / ".metadata").open("rb") as file:
            index = _IndexUnpickler(file).load()
        for place, info in index.storage_data.items():
            entry = index.state_dict_metadata[place.fqn]
            if hasattr(entry, "size"):
                if place.fqn.startswith("state_dict."):
                    name = place.fqn.removeprefix("state_dict.")
                    weights[name] = torch.empty(entry.size, device="meta")
            else:
                with (folder / info.relative_path).open("rb") as file:
                    file.seek(info.offset)
                    torch.load(io.BytesIO(file.read(info.length)), weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{folder} cannot be read as a checkpoint: {error}") from error
    return {"state_dict": weights}


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
    """Return the state that a user means by a run directory, a checkpoint's folder, or a file.

    Raises:
        CheckpointError: there is no whole checkpoint there.
    """
    path = Path(place).expanduser()
    if path.name == STATE and (path.parent / MANIFEST).exists():
        path = path.parent
    if path.is_file():
        return path
    chosen = Checkpoint.read(path)
    if chosen is not None and (fault := chosen.fault()):
        raise CheckpointError(f"The checkpoint {path} is damaged: {fault}.")
    for root in (path / "checkpoints", path):
        if chosen is None and root.is_dir():
            chosen = Store(root).latest()
    if chosen is None:
        raise CheckpointError(
            f"checkpoint.init_from is {place!r}, but there is no whole checkpoint there: "
            f"{_describe(path)}. Give a run directory, one of the folders below its checkpoints/, "
            f"or a {STATE}."
        )
    return chosen.state


def _describe(path: Path) -> str:
    if path.is_file():
        return f"{path} is a file"
    if not path.exists():
        there = next(parent for parent in path.parents if parent.exists())
        return f"it does not exist; {_describe(there)}"
    names = sorted(entry.name for entry in path.iterdir())
    more = ", ..." if len(names) > 8 else ""
    return f"{path} holds {', '.join(names[:8])}{more}" if names else f"{path} is empty"


@contextlib.contextmanager
def closing(writer: Writer) -> Iterator[None]:
    """Finish what is being written, whatever happens inside."""
    try:
        yield
    finally:
        writer.finish()
