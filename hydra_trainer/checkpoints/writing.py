"""Saves behind training: a copy, a thread, and one checkpoint at a time."""

import contextlib
import copy
import ctypes
import io
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor

from hydra_trainer.errors import CheckpointError
from hydra_trainer.pieces import together

from .files import STATE, Facts, Place
from .reading import State, load
from .store import Checkpoint, Store

log = logging.getLogger(__name__)

PIECE = 4 << 20  # bytes that a thread copies at once

PLAIN = (
    "Keep tensors, numbers, strings, lists and dicts in state_dict(), on_save_checkpoint() and "
    "save_hyperparameters() of the model, the data and the callbacks."
)


class _Staging:
    """Buffers that are filled again at each save, so that a save costs one copy and no malloc.

    On a GPU they are pinned, which is what makes the copy fast.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def copy(self, state: State) -> State:
        """Return a snapshot of `state` on the CPU: later changes of what it holds do not reach it.

        It is overwritten by the next call.
        """
        self._done: dict[tuple[Any, ...], Tensor] = {}
        self._pieces: list[tuple[int, int, int]] = []
        copied: State = self._node(state, ())
        together(lambda piece: ctypes.memmove(*piece), self._pieces)
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

    def _tensor(self, tensor: Any, key: tuple[Any, ...]) -> Any:
        if hasattr(tensor, "placements"):  # a DTensor: this rank's part of it
            part = self._tensor(tensor.to_local(), key)
            return type(tensor)(part, tensor._spec, requires_grad=False)
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
        if tensor.is_cpu and tensor.stride() == buffer.stride() and _is_dense(tensor):
            self._later(tensor, buffer)
        else:
            buffer.copy_(tensor, non_blocking=tensor.is_cuda)
        self._done[same] = buffer
        return buffer

    def _later(self, tensor: Tensor, buffer: Tensor) -> None:
        """Have memory copied when all of it is known."""
        source, target, size = tensor.data_ptr(), buffer.data_ptr(), tensor.nbytes
        for at in range(0, size, PIECE):
            self._pieces.append((target + at, source + at, min(PIECE, size - at)))


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether its numbers, as they are, fill the memory from its first to its last one."""
    if tensor.is_conj() or tensor.is_neg():
        return False
    return bool(torch.ops.aten.is_non_overlapping_and_dense(tensor))


def _snapshot(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception as error:
        raise cannot_be_saved(error) from error


class Writer:
    """Writes one checkpoint at a time, in a thread unless told otherwise.

    A save that the disk or S3 refuses (OSError) leaves the earlier checkpoints as they are, and
    `error` holds the reason until a later save succeeds. Training goes on, or `check` raises it, as
    `stops` says. Any other error would meet every save: `check` raises it.
    """

    def __init__(self, asynchronous: bool = True, stops: bool = False) -> None:
        self.asynchronous = asynchronous
        self.stops = stops
        self.error: OSError | None = None
        self._fault: BaseException | None = None
        self._staging = _Staging()
        self._thread: threading.Thread | None = None

    def save(self, state: State, work: Callable[[State], None]) -> None:
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

    def check(self, *, is_ending: bool = False) -> None:
        """Raise the error of a save that no later save can make good, or that is to stop the run.

        A run that `is_ending` for another reason tells by itself what was refused.

        Raises:
            CheckpointError: the disk or S3 refused a save, and checkpoint.on_failure is stop.
        """
        if self._fault is not None:
            raise self._fault
        if self.stops and self.error is not None and not is_ending:
            raise CheckpointError(
                f"A checkpoint could not be saved, and checkpoint.on_failure is stop: {self.error} "
                "The earlier checkpoints are as they were. When it can be saved again, type the "
                "same command to go on from the last one; checkpoint.on_failure=continue trains on."
            ) from self.error

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            # The same again and again is for the log file.
            repeated = self.error is not None and self.error.errno == error.errno
            log.log(
                logging.INFO if repeated or self.stops else logging.ERROR,
                "This checkpoint could not be saved: %s. Training goes on; the earlier "
                "checkpoints are as they were.",
                str(error).rstrip("."),
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

    What Lightning takes for paths ends in the name of a checkpoint and that of a file in it.
    `storage_options` carries the manifest's entries: step, metrics, world_size and so on.
    """

    def __init__(self, store: Store, writer: Writer, after: Callable[[str], None]) -> None:
        self._store = store
        self._writer = writer
        self._after = after
        self._given: State | None = None

    def give(self, state: State) -> None:
        """Take a state that was loaded already, for the next `load_checkpoint`."""
        self._given = state

    def save_checkpoint(
        self, checkpoint: State, path: Any, storage_options: Any | None = None
    ) -> None:
        meta = dict(storage_options or {})
        name = name_in(path)

        def work(state: State) -> None:
            try:
                self._store.clean(name)
                written = write_state(state, self._store.place, name, STATE)
                self._store.commit(name, meta, {STATE: written})
            except BaseException:
                self._store.remove(name)  # its room may be what the next one needs
                raise
            self._after(name)

        self._writer.save(checkpoint, work)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = True
    ) -> State:
        given, self._given = self._given, None
        if given is not None:
            return given
        found = Checkpoint.read(self._store.place, name_in(path))
        if found is None:
            raise CheckpointError(f"There is no checkpoint {path}.")
        return load(found)

    def remove_checkpoint(self, path: Any) -> None:
        self._store.remove(name_in(path))

    def teardown(self) -> None:
        self._writer.finish()


def name_in(path: Any) -> str:
    """Return the name of the checkpoint in what Lightning takes for the path of its state."""
    return str(path).rsplit("/", 2)[-2]


def write_state(state: State, place: Place, name: str, file: str) -> Facts:
    """Write a state that can be loaded again as tensors and plain values. Returns size and digest.

    Raises:
        CheckpointError: it holds something else.
        OSError: the disk or S3 refused it.
    """
    refuse_unsafe(state)
    size = sum(part.nbytes() for part in _storages(state).values())
    with place.writing(name, file, size) as out:
        try:
            torch.save(state, out)  # type: ignore[arg-type]  # it needs write and flush only
        except Exception as error:
            raise cannot_be_saved(error) from error
    return out.facts()


def _storages(node: Any, found: dict[int, Any] | None = None) -> dict[int, Any]:
    """Return the memory below a state, by where it is."""
    found = {} if found is None else found
    if isinstance(node, Tensor) and node.layout == torch.strided:
        storage = node.untyped_storage()
        found[storage.data_ptr()] = storage
    elif isinstance(node, dict | list | tuple):
        for value in node.values() if isinstance(node, dict) else node:
            _storages(value, found)
    return found


def cannot_be_saved(error: BaseException) -> CheckpointError:
    return CheckpointError(f"The checkpoint holds something that cannot be saved: {error}. {PLAIN}")


def refuse_unsafe(state: State) -> None:
    """Raise CheckpointError when a state could not be loaded again from what is going to be saved.

    Loading takes tensors and plain values only; better to learn that now than after a crash. The
    same is saved without the numbers: it costs as much as the state has names.
    """
    without = io.BytesIO()
    try:
        torch.save(_hollow(state), without)
    except Exception as error:
        raise cannot_be_saved(error) from error
    try:
        without.seek(0)
        torch.load(without, map_location="cpu", weights_only=True)
    except Exception as error:
        names: list[str] = []
        with contextlib.suppress(Exception):  # it does not know all that a pickle can hold
            without.seek(0)
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(without))
        reason = f"objects of {', '.join(names)}" if names else f"something ({_first_line(error)})"
        raise CheckpointError(
            f"The checkpoint holds {reason}, which cannot be loaded safely. {PLAIN}"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


def _hollow(node: Any) -> Any:
    """Return a state whose plain tensors have no numbers."""
    if type(node) in (Tensor, torch.nn.Parameter) and node.layout == torch.strided:
        return torch.empty(0, dtype=node.dtype)
    if type(node) in (dict, OrderedDict):
        hollow = type(node)((key, _hollow(value)) for key, value in node.items())
        if isinstance(node, OrderedDict):
            hollow.__dict__.update(node.__dict__)
        return hollow
    if type(node) in (list, tuple):
        return type(node)(_hollow(value) for value in node)
    return node


@contextlib.contextmanager
def closing(writer: Writer) -> Iterator[None]:
    """Finish what is being written, whatever happens inside."""
    try:
        yield
    finally:
        writer.finish()
