"""A job that is sent to a cluster or a service by typing the command, in this process."""

import sys
from pathlib import Path
from typing import Any

import pytest

from hydra_trainer import app
from hydra_trainer.job import JobHandle
from hydra_trainer.launcher import reaching

from .conftest import SHORT, Job
from .test_resume import assert_equal


class Sent:
    """A job that was sent, and detached from.

    Args:
        folder: where it may write.
        place: the words that say where it runs.
    """

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], *place: str) -> None:
        self.folder = folder
        self.capsys = capsys
        self.where = place
        self.handle = JobHandle("nowhere", "none")

    def send(self, *words: str, env: dict[str, str] | None = None) -> "Sent":
        """Type the command, in this process."""
        assert self.type(*self.words(*words, env=env), "launcher.detach=true") == 0
        self.handle = JobHandle.parse(self.capsys.readouterr().out.strip())
        return self

    def words(self, *more: str, env: dict[str, str] | None = None) -> list[str]:
        # As many threads as the reference: more would add up in another order.
        given = {"OMP_NUM_THREADS": "1", **(env or {})}
        drill = ", ".join(f"{key}: '{value}'" for key, value in given.items())
        place = [f"storage.output={self.folder}/runs", f"name={self.folder.name}"]
        return [*SHORT, *self.where, *place, f"+launcher.env={{{drill}}}", *more]

    def type(self, *words: str) -> int:
        sys.argv = ["train.py", *words]
        try:
            app.main()
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    @property
    def directory(self) -> Path:
        """The run directory: what the pods wrote, and the record of the handle."""
        return next((self.folder / "runs").iterdir())

    @property
    def name(self) -> str:
        """The job's name on the cluster."""
        return self.handle.path.rsplit("/", 1)[-1]

    @property
    def place(self) -> Any:
        return reaching(self.handle)

    def until(self, text: str) -> None:
        """Read rank 0's log until it says something."""
        for line in self.place.logs(self.handle, follow=True):
            if text in line:
                return
        raise AssertionError(f"{text!r} was never said")

    def assert_equal(self, reference: Job) -> None:
        assert_equal(Job(self.directory, []), reference)
