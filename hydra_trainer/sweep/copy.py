"""The copy of a sweep's journal in S3, beside the runs: for a machine that does not come back.

It lies at OUTPUT/sweeps/FOLDER/journal.jsonl. Whoever types the same command on another machine
begins with it. Every write is on the condition that nobody has written since, so that two machines
with one sweep find out; the jobs themselves are safe, for their names are theirs alone.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from hydra_trainer import launcher
from hydra_trainer.errors import Changed, ConfigError, Exists, StorageError
from hydra_trainer.storage import remote_output

from .journal import FILE
from .table import CSV, REPORT

if TYPE_CHECKING:
    from hydra_trainer.objects import Objects

EVERY = 10.0
"""Seconds between two looks whether the journal has grown."""


@contextmanager
def kept(directory: Path, master: DictConfig) -> Iterator[None]:
    """Keep a copy of the journal in a directory, where the runs of a sweep are kept in S3.

    Raises:
        ConfigError: another machine went on with the sweep, and so did this one.
        StorageError: S3 does not answer, or refuses.
    """
    plain: dict[str, Any] = {"storage": OmegaConf.to_container(master.storage, resolve=True)}
    output = remote_output(plain)
    if output is None or OmegaConf.select(master, "launcher.dry_run"):
        yield
        return
    if plain["storage"]["s3"]["embedded"]:
        from hydra_trainer.embedded import buckets

        buckets.join(plain)
    from hydra_trainer.objects import Objects, Settings

    place = f"{output}/sweeps/{directory.name}"
    copy = Copy(directory, Objects(place, Settings.of(plain)))
    copy.fetch()
    with copy:
        yield


class Copy:
    """Sends the journal of a directory to S3 whenever it has grown. Use it as a context."""

    def __init__(self, directory: Path, objects: "Objects") -> None:
        self._directory, self._objects = directory, objects
        self._etag: str | None = None
        self._sent, self._lost = 0, False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="journal-copy", daemon=True)

    def fetch(self) -> None:
        """Begin with the copy where it knows more than the journal here. Raises as `kept` does."""
        facts = self._objects.head(FILE)
        if facts is None:
            return
        there = bytes(self._objects.get(FILE, etag=facts.etag))
        here = self._read()
        if not (there.startswith(here) or here.startswith(there)):
            raise ConfigError(
                f"The sweep in {self._directory} went on here, and on another machine, which "
                f"keeps its journal at {self._objects.uri}/{FILE}. To go on with that one, move "
                f"{self._directory / FILE} away; for a sweep of its own, type hydra.sweep.dir=..."
            )
        if len(there) > len(here):
            self._directory.mkdir(parents=True, exist_ok=True)
            new = self._directory / f".{FILE}.new"
            new.write_bytes(there)
            new.replace(self._directory / FILE)
            launcher.say(f"going on with the journal at {self._objects.uri}")
        self._etag, self._sent = facts.etag, len(there)

    def __enter__(self) -> "Copy":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ending.set()
        self._thread.join()
        self.send()
        for name in (CSV, REPORT):
            if not self._lost and (path := self._directory / name).exists():
                self._safely(lambda path=path: self._objects.put(path.name, path.read_bytes()))

    def send(self) -> None:
        """Send the journal if it has grown. Never raises: the one here is what counts."""
        content = self._read()
        if self._lost or len(content) <= self._sent:
            return
        if self._safely(lambda: self._put(content)):
            self._sent = len(content)

    def _put(self, content: bytes) -> None:
        if self._etag is None:
            self._etag = self._objects.put(FILE, content, if_absent=True)
        else:
            self._etag = self._objects.put(FILE, content, if_match=self._etag)

    def _safely(self, work: Any) -> bool:
        try:
            work()
        except (Changed, Exists):
            self._lost = True
            launcher.say(
                f"another machine runs this sweep as well: the journal at {self._objects.uri} is "
                "its own from now on"
            )
            return False
        except StorageError as error:
            launcher.say(f"the copy of the journal is late: {error}")
            return False
        return True

    def _read(self) -> bytes:
        """Return the whole lines of the journal here."""
        path = self._directory / FILE
        data = path.read_bytes() if path.exists() else b""
        return data[: data.rfind(b"\n") + 1]

    def _work(self) -> None:
        while not self._ending.wait(EVERY):
            self.send()
