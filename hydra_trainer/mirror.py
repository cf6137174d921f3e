"""The small files of a run whose results are in S3: from its run directory there, and back.

Checkpoints go from memory to S3; what is beside them (config.yaml, result.json, metrics.csv,
TensorBoard's files, logs, pictures) is written into the run directory of the machine that trains,
as in any run. Rank 0 copies what has changed after every commit and at the end. A machine on which
the run goes on gets what is newer there, so that a resumed run has one metrics.csv.

In S3, `checkpoints.json` says where the checkpoints of the run are. A run that is set aside keeps
its own where they were written: they need not be copied.
"""

import contextlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from .bootstrap import read_json, write_json
from .checkpoints.store import POINTER
from .errors import ConfigError, Full, Gone
from .local.directory import CONFIG, KEEP, RESULT, NotStarted, refuse_other
from .objects import Objects, Settings

log = logging.getLogger(__name__)

KNOWN = ".mirror.json"
"""In a run directory: of each file its time, size and ETag when it was last the same here and
there."""

LARGEST = 64 << 20  # bytes of a file that is copied

NOT_COPIED = (*KEEP, "attempts", "job.json")
"""Names in a run directory that belong to this machine."""

_CHECKPOINTS = re.compile(r"checkpoints(-\d+)?")


class Kept:
    """Where in S3 a run is kept. All methods raise StorageError.

    Args:
        remote: s3://bucket/prefix of the run.
        settings: how S3 is reached.
    """

    def __init__(self, remote: str, settings: Settings) -> None:
        self.remote = remote
        self.objects = Objects(remote, settings)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Kept":
        """Return where a job with `run.remote` in its configuration is kept."""
        return cls(config["run"]["remote"], Settings.of(config))

    def result(self) -> dict[str, Any] | None:
        """Return the run's result.json; None where there is none."""
        try:
            found = json.loads(bytes(self.objects.get(RESULT)))
        except (Gone, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def fetch(self, directory: Path, without: tuple[str, ...] = ()) -> None:
        """Get the small files that are not here, or that another machine has written since.

        Where there is no run, neither there nor here, nothing is got.
        """
        known = _known(directory)
        there = list(self._small())
        if not (directory / CONFIG).exists() and CONFIG not in (found.key for found in there):
            return
        for found in there:
            path = directory / found.key
            is_known = path.exists() and known.get(found.key, [])[2:] == [found.etag]
            if found.key in without or is_known:
                continue
            content = bytes(self.objects.get(found.key, etag=found.etag))
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.fetched")
            temporary.write_bytes(content)
            facts = temporary.stat()
            temporary.replace(path)
            known[found.key] = [facts.st_mtime_ns, facts.st_size, found.etag]
        write_json(directory / KNOWN, known)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Set the run aside, and put it back where a job cannot be started after all."""
        number = self.set_aside()
        try:
            yield
        except (ConfigError, NotStarted, Full):
            if number is not None:
                self.put_back(number)
            raise

    def set_aside(self) -> int | None:
        """Move the run to previous/N, and return N; None where there is no run.

        Its checkpoints stay where they are. What comes next has others.
        """
        objects = self.objects
        names = [found.key for found in self._small()]
        if CONFIG not in names:
            return None
        numbers = [int(key.rpartition("/")[2]) for key in objects.folders("previous")]
        number = max(numbers, default=0) + 1
        old = {"uri": f"{self.remote}/checkpoints"}
        if POINTER in names:
            old = json.loads(bytes(objects.get(POINTER)))
        for name in names:
            objects.put(f"previous/{number}/{name}", objects.get(name))
        objects.put(f"previous/{number}/{POINTER}", json.dumps(old).encode())
        new = {"uri": f"{self.remote}/checkpoints-{number + 1}"}
        objects.put(POINTER, json.dumps(new).encode())
        objects.delete(*(name for name in names if name not in (POINTER, CONFIG)))
        objects.delete(CONFIG)
        return number

    def put_back(self, number: int) -> None:
        """Undo `set_aside`."""
        aside = self.objects.below(f"previous/{number}")
        names = [found.key for found in aside.list()]
        self.objects.delete(*(found.key for found in self._small()))
        for name in names:
            self.objects.put(name, aside.get(name))
        aside.delete(*names)

    def _small(self) -> Iterator[Any]:
        """Yield the objects that are no checkpoints."""
        for found in self.objects.list():
            first = found.key.partition("/")[0]
            if not _CHECKPOINTS.fullmatch(first) and first not in NOT_COPIED:
                yield found


class Mirror:
    """Brings the small files of one run to S3. May be used by the thread that writes checkpoints.

    Args:
        directory: the run directory.
        kept: where it brings them.
    """

    def __init__(self, directory: Path, kept: Kept) -> None:
        self.directory = directory
        self.kept = kept
        self.objects = kept.objects
        self._begun = False
        self._too_large: set[str] = set()

    def begin(self, config: dict[str, Any]) -> None:
        """Make the prefix this run's, and get what is newer there than here.

        Raises:
            ConfigError: the prefix belongs to a run with another configuration.
            StorageError: S3 does not answer, or refuses.
        """
        with contextlib.suppress(Gone):
            before = yaml.safe_load(bytes(self.objects.get(CONFIG)))
            refuse_other(self.kept.remote, before if isinstance(before, dict) else {}, config)
        self.kept.fetch(self.directory, without=(CONFIG, RESULT))
        self.objects.delete(RESULT)  # of a sitting before: the run is not at its end
        self._begun = True
        self.objects.put(CONFIG, (self.directory / CONFIG).read_bytes())

    def push(self, newest: str | None = None) -> None:
        """Copy what has changed, after a commit of the checkpoint `newest`. Never raises."""
        try:
            self._push(newest)
        except OSError as error:
            log.warning("The files beside the checkpoints are copied later: %s", error)

    def end(self) -> None:
        """Copy what has changed, the result last.

        Raises StorageError.
        """
        if self._begun:
            self._push(None)

    def _push(self, newest: str | None) -> None:
        if newest is not None:
            pointer = self.directory / POINTER
            where = (read_json(pointer) or {}).get("uri") or f"{self.kept.remote}/checkpoints"
            write_json(pointer, {"uri": where, "newest": newest})
        known = _known(self.directory)
        for path, name in sorted(_files(self.directory), key=lambda one: one[1] == RESULT):
            facts = path.stat()
            if facts.st_size > LARGEST:
                self._say_once(name)
            elif known.get(name, [])[:2] != [facts.st_mtime_ns, facts.st_size]:
                # Its time from before it is read: what is written meanwhile is copied next time.
                etag = self.objects.put(name, path.read_bytes())
                known[name] = [facts.st_mtime_ns, facts.st_size, etag]
        write_json(self.directory / KNOWN, known)

    def _say_once(self, name: str) -> None:
        if name not in self._too_large:
            self._too_large.add(name)
            log.warning("%s stays on this machine: it is larger than %d MiB.", name, LARGEST >> 20)


def _files(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yield the files of a run directory that are copied, and their keys."""
    for path in directory.rglob("*"):
        name = path.relative_to(directory).as_posix()
        first = name.partition("/")[0]
        if _CHECKPOINTS.fullmatch(first) or first in NOT_COPIED or path.name.startswith("."):
            continue
        if path.is_file():
            yield path, name


def _known(directory: Path) -> dict[str, list[Any]]:
    found: Mapping[str, Any] = read_json(directory / KNOWN) or {}
    return {name: facts for name, facts in found.items() if isinstance(facts, list)}
