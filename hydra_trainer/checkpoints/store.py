"""The checkpoints of a run: which there are, which are whole, and which are kept."""

import json
import logging
import math
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from hydra_trainer.errors import CheckpointError, Gone, StorageError

from .files import MANIFEST, SHARDS, STATE, Facts, Place, reason
from .folder import Folder

if TYPE_CHECKING:
    from hydra_trainer.objects import Settings

log = logging.getLogger(__name__)

PHASES = {"mid": "", "pending": "", "validated": "-val", "epoch end": "-end"}
"""How a checkpoint's name ends, by its position (callbacks.py), in order of time."""

POINTER = "checkpoints.json"
"""In a run directory: where its checkpoints are (`uri`), and which is the newest (`newest`)."""

_NAME = re.compile(r"step=(\d+)(-val|-end)?")


def place(uri: str | Path, settings: "Settings | None" = None) -> Place:
    """Return the place of a path or an s3:// URI."""
    if isinstance(uri, str) and uri.startswith("s3://"):
        from hydra_trainer.objects import Objects, Settings

        from .bucket import Bucket  # the library behind it comes with an extra

        return Bucket(Objects(uri, settings or Settings()))
    return Folder(Path(uri).expanduser())


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint: where it is and what its manifest says.

    Where the manifest is damaged, `flaw` says how, and `manifest` is empty.
    """

    place: Place
    name: str
    manifest: dict[str, Any]
    flaw: str | None = None

    @classmethod
    def read(cls, place: Place, name: str) -> "Checkpoint | None":
        """Return the checkpoint of a name; None where none was committed.

        Raises:
            StorageError: S3 does not say whether there is one. A disk that cannot read its
                manifest makes it a damaged one.
        """
        try:
            manifest = json.loads(bytes(place.read(name, MANIFEST)))
            digest = manifest.pop("xxh3")
        except (FileNotFoundError, NotADirectoryError, Gone):
            return None
        except StorageError:
            raise
        except OSError as error:
            return cls(place, name, {}, f"{MANIFEST} cannot be read: {reason(error)}")
        except (ValueError, KeyError, TypeError, AttributeError):
            return cls(place, name, {}, f"{MANIFEST} is not a whole manifest")
        if digest != _seal(manifest):
            flaw = f"{MANIFEST} has another checksum than when it was saved"
            return cls(place, name, {}, flaw)
        return cls(place, name, manifest)

    @property
    def uri(self) -> str:
        """Where it is: a folder's path, or an s3:// URI."""
        return f"{self.place.uri}/{self.name}"

    @property
    def step(self) -> int:
        return int(self.manifest["step"])

    @property
    def files(self) -> dict[str, Facts]:
        """What the manifest says of each file."""
        found: dict[str, Facts] = self.manifest.get("files", {})
        return found

    @property
    def is_sharded(self) -> bool:
        return any(file.startswith(f"{SHARDS}/") for file in self.files)

    @property
    def state(self) -> str:
        """Where its state is: a file, or the folder of its shards."""
        return f"{self.uri}/{SHARDS if self.is_sharded else self.file}"

    @property
    def file(self) -> str:
        """The name of the file with its state, where that is not sharded."""
        return next(iter(self.files), STATE)

    @property
    def size(self) -> int:
        """Bytes of all its files, as the manifest says."""
        return sum(int(facts.get("size", 0)) for facts in self.files.values())

    def metric(self, name: str) -> float | None:
        value = self.manifest.get("metrics", {}).get(name)
        return None if value is None or math.isnan(value) else float(value)

    def fault(self, digests: bool = True) -> str | None:
        """Return what is wrong with its files, or None when all are whole.

        Without `digests` only their sizes are looked at, which reads none of them.
        """
        if self.flaw is not None:
            return self.flaw
        found = (
            self.place.fault(self.name, file, facts, digests) for file, facts in self.files.items()
        )
        return next(filter(None, found), None)


class Store:
    """The checkpoints of one run. `damaged` holds the faults that it came upon, by name."""

    def __init__(self, root: Path | Place) -> None:
        self.place: Place = Folder(root) if isinstance(root, Path) else root
        self.damaged: dict[str, str] = {}

    @property
    def uri(self) -> str:
        return self.place.uri

    def name(self, step: int, position: str) -> str:
        return f"step={step:08d}{PHASES[position]}"

    def names(self) -> list[str]:
        """Return the names that are those of checkpoints, oldest first.

        Raises:
            CheckpointError, StorageError: they cannot be listed. To a caller that took this for
                "there are none", the run would start from zero.
        """
        return sorted((name for name in self.place.names() if _NAME.fullmatch(name)), key=_age)

    def all(self) -> list[Checkpoint]:
        """Return the committed checkpoints, damaged ones too, oldest first."""
        found = (Checkpoint.read(self.place, name) for name in self.names())
        return [checkpoint for checkpoint in found if checkpoint is not None]

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint, or None; say so where one had to be passed over."""
        for checkpoint in reversed(self.all()):
            fault = checkpoint.fault()
            if fault is None:
                return checkpoint
            self.pass_over(checkpoint, fault)
        return None

    def pass_over(self, checkpoint: Checkpoint, fault: str) -> None:
        """Take a checkpoint for damaged, and say so."""
        self.damaged[checkpoint.name] = fault
        log.warning(
            "The checkpoint %s is damaged (%s). Going back to the one before.",
            checkpoint.uri,
            fault,
        )

    def refuse_to_begin_anew(self) -> None:
        """Raise CheckpointError where something was saved, and all of it is damaged."""
        if self.damaged:
            faults = "; ".join(f"{name}: {fault}" for name, fault in self.damaged.items())
            raise CheckpointError(
                f"All checkpoints in {self.uri} are damaged ({faults}), and nothing was changed "
                "there. Put a good copy of one back, or type again=true to set this run aside "
                "and start anew."
            )

    def to_resume(self) -> Checkpoint | None:
        """Return the newest whole checkpoint; None where nothing was ever saved.

        Raises:
            CheckpointError: something was saved, and all of it is damaged.
        """
        latest = self.latest()
        if latest is None:
            self.refuse_to_begin_anew()
        return latest

    def whole(self) -> list[Checkpoint]:
        """Return the checkpoints of which no damage is known, oldest first."""
        return [
            checkpoint
            for checkpoint in self.all()
            if checkpoint.name not in self.damaged and checkpoint.fault(digests=False) is None
        ]

    def ranked(self, metric: str, mode: str) -> list[Checkpoint]:
        """Return the whole checkpoints that know the metric, best first; older ones win ties."""
        return _ranked(self.whole(), metric, mode)

    def clean(self, name: str) -> None:
        """Make room for a checkpoint, empty of what a killed save left there."""
        self.place.clean(name)
        self.damaged.pop(name, None)

    def commit(self, name: str, meta: dict[str, Any], files: dict[str, Facts]) -> None:
        """Write the manifest: from here on it is a checkpoint."""
        manifest = {**meta, "files": files}
        text = json.dumps({**manifest, "xxh3": _seal(manifest)}, indent=1)
        self.place.commit(name, text.encode())

    def remove(self, name: str) -> None:
        self.place.remove(name)

    def prune(self, keep_last: int, keep_best: int, metric: str, mode: str) -> None:
        """Delete all but the newest `keep_last` whole ones and the `keep_best` best, and leftovers.

        Nothing newer than the newest whole checkpoint is touched: it may be being written now.
        """
        whole = self.whole()
        kept = {c.name for c in whole[-keep_last:]}
        kept |= {c.name for c in _ranked(whole, metric, mode)[:keep_best]}
        for name in self.names():
            if whole and name not in kept and _age(name) < _age(whole[-1].name):
                self.remove(name)


def _ranked(whole: list[Checkpoint], metric: str, mode: str) -> list[Checkpoint]:
    sign = -1.0 if mode == "max" else 1.0
    valued = [(c.metric(metric), c) for c in whole]
    known = [(sign * value, c) for value, c in valued if value is not None]
    return [c for _, c in sorted(known, key=lambda item: item[0])]


def _age(name: str) -> tuple[int, int]:
    """Return a key that sorts names by the time at which their step was reached."""
    found = _NAME.fullmatch(name)
    assert found is not None, name
    return int(found[1]), ("", "-val", "-end").index(found[2] or "")


def _seal(manifest: dict[str, Any]) -> str:
    """Return the digest of what a manifest says, however it is laid out."""
    return xxhash.xxh3_128_hexdigest(json.dumps(manifest, sort_keys=True).encode())


def find(where: str, settings: "Settings | None" = None) -> list[Checkpoint]:
    """Return what a user means by a run, a checkpoint, or a file with a state: path or s3:// URI.

    Of a run, its checkpoints, newest first: the first of them that is whole is meant.

    Raises:
        CheckpointError: there is none, or the one that is meant is damaged, as far as sizes tell.
    """
    here = where if where.startswith("s3://") else str(Path(where).expanduser())
    parent, _, name = here.rstrip("/").rpartition("/")
    above, _, folder = parent.rpartition("/")
    if name == STATE and Checkpoint.read(place(above or ".", settings), folder) is not None:
        return find(parent, settings)
    chosen = _bare(place(above or ".", settings), folder, name)
    chosen = chosen or Checkpoint.read(place(parent or ".", settings), name)
    if chosen is not None:
        if fault := chosen.fault(digests=False):
            raise damaged(chosen, fault)
        return [chosen]
    for root in dict.fromkeys((stored(here, settings), here)):
        try:
            found = Store(place(root, settings)).all()
        except CheckpointError:
            continue
        if whole := [one for one in reversed(found) if one.fault(digests=False) is None]:
            return whole
    raise CheckpointError(
        f"checkpoint.init_from is {where!r}, but there is no whole checkpoint there: "
        f"{_describe(here, settings)}. Give a run directory, one of the folders below its "
        f"checkpoints/, or a {STATE}."
    )


def damaged(checkpoint: Checkpoint, fault: str) -> CheckpointError:
    return CheckpointError(f"The checkpoint {checkpoint.uri} is damaged: {fault}.")


def stored(run: str, settings: "Settings | None" = None) -> str:
    """Return where the checkpoints of a run directory are: those of a run with results in S3 are
    there, wherever one looks from.
    """
    parent, _, name = run.rstrip("/").rpartition("/")
    try:
        return str(json.loads(bytes(place(parent or ".", settings).read(name, POINTER)))["uri"])
    except (Gone, FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return f"{run.rstrip('/')}/checkpoints"


def _bare(there: Place, name: str, file: str) -> Checkpoint | None:
    """Return a file that no manifest describes as a checkpoint; None where it is no file."""
    if there.is_remote:
        is_file = bool(name) and file.endswith(".pt") and file in there.files(name)
    else:
        is_file = Path(there.uri, name, file).is_file()
    return Checkpoint(there, name, {"step": 0, "files": {file: {}}}) if is_file else None


def _describe(here: str, settings: "Settings | None") -> str:
    if here.startswith("s3://"):
        from hydra_trainer.objects import Objects, Settings

        names = [one.key for one in islice(Objects(here, settings or Settings()).list(), 9)]
        return _listed(here, names) if names else f"nothing begins with {here}/"
    path = Path(here)
    if path.is_file():
        return f"{path} is a file"
    if not path.exists():
        there = next(parent for parent in path.parents if parent.exists())
        return f"it does not exist; {_describe(str(there), settings)}"
    names = sorted(entry.name for entry in path.iterdir())
    return _listed(here, names) if names else f"{path} is empty"


def _listed(where: str, names: list[str]) -> str:
    return f"{where} holds {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
