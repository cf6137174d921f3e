"""What the drills share: a short job in a process of its own, and what it left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import TYPE_CHECKING, Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: threads do not survive a fork

import lightning.pytorch  # noqa: F401
import torch.distributed.run  # noqa: F401
import torchmetrics  # noqa: F401

from .forks import Forked

if TYPE_CHECKING:
    from .world import World

REPOSITORY = Path(__file__).parent.parent


@dataclass
class Job:
    """A run directory and the command that trains in it.

    Its processes are forked from this one, which has imported torch already: real processes, to be
    killed for real, in a fifth of the time. With `anew`, they are started by Python.
    """

    directory: Path
    words: list[str]
    anew: bool = False

    def start(self, *more: str, **env: str) -> subprocess.Popen[str]:
        """Start the command: same words, same directory, some environment."""
        return _started(self._words(more), env, self.anew, stdin=PIPE, stdout=PIPE)

    def run(self, *more: str, **env: str) -> tuple[int, str]:
        """Run the command to its end; return its exit code and what it printed."""
        return forked(self._words(more), self.directory.parent, env, self.anew)

    def _words(self, more: Sequence[str]) -> list[str]:
        return [*self.words, *more, f"hydra.run.dir={self.directory}"]

    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "result.json").read_text()))

    def state(self) -> dict[str, Any]:
        """The last checkpoint, less what may differ: how long it took."""
        from hydra_trainer.checkpoints import reading, store

        checkpoints = store.Store(store.place(store.stored(str(self.directory))))
        found = reading.restore(checkpoints)
        assert found is not None, sorted(self.directory.rglob("*"))
        state = found[1]
        del state["hydra_trainer"]["seconds"]
        return state


def forked(
    words: list[str], folder: Path, env: dict[str, str], anew: bool = False
) -> tuple[int, str]:
    """Run `python train.py WORDS` in a fork of this process; return exit code and output."""
    printed = folder / f"output-{os.getpid()}.txt"
    with printed.open("w") as file:  # a pipe would stay open as long as any child lives
        code = _started(words, env, anew, stdin=DEVNULL, stdout=file).wait()
    return code, printed.read_text()


def _started(
    words: list[str], env: dict[str, str], anew: bool, **streams: Any
) -> subprocess.Popen[str]:
    return (subprocess.Popen if anew else Forked)(
        [sys.executable, "train.py", *words],
        cwd=REPOSITORY,
        env=environment() | env,
        stderr=STDOUT,
        text=True,
        **streams,
    )


def environment() -> dict[str, str]:
    """One thread for each process, and the tests importable for `_target_`."""
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(REPOSITORY)])}
    if "PYTHONPATH" in os.environ:
        here["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    return {**os.environ, **here}


SHORT = [
    "model._target_=tests.drill.Drill",
    "model=mlp",
    "model.hidden=16",
    "model.dropout=0.2",
    "trusted_modules=[tests]",
    "data.batch_size=128",
    "trainer.max_epochs=3",
    "trainer.log_every_n_steps=3",
    "checkpoint.every_n_steps=2",
    "logger=csv",
]
"""Nine steps an epoch on the digits, a checkpoint every second step."""


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Job]:
    """Make jobs, each in a run directory of its own below tmp_path."""

    def make(name: str = "run", *words: str) -> Job:
        return Job(tmp_path / name, [*SHORT, *words])

    return make


@pytest.fixture
def hit(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """Make the environment for a drill: `hit("SIGKILL", "train", step=13)`."""

    def make(event: str, place: str, step: int, who: str = "0") -> dict[str, str]:
        done = tmp_path / f"done-{event}-{place}-{step}-{who}"
        return {"DRILL": f"{event}:{place}:{step}:{who}", "DRILL_DONE": str(done)}

    return make


TWO = "resources.processes_per_node=2"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one worker, where they share what its fixtures have made."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two ranks that nothing happened to.

    Its tests are in the group "ranks": it runs once.
    """
    folder = tmp_path_factory.mktemp("reference")
    (folder / "seen").mkdir()
    job = Job(folder / "run", [*SHORT, TWO])
    code, printed = job.run(DRILL_SEEN=str(folder / "seen"))
    assert code == 0, printed
    return job


@pytest.fixture
def world(tmp_path: Path) -> "Iterator[World]":
    """An embedded cluster with its controllers, and no server."""
    from .world import World

    with World(tmp_path / "home") as found:
        yield found
