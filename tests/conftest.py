"""What the drills share: a short job in a process of its own, and what it left behind."""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: threads do not survive a fork

import lightning.pytorch  # noqa: F401
import torchmetrics  # noqa: F401

if TYPE_CHECKING:
    from .world import World

REPOSITORY = Path(__file__).parent.parent


@dataclass
class Job:
    """A run directory and the command that trains in it."""

    directory: Path
    words: list[str]

    def start(self, *more: str, **env: str) -> subprocess.Popen[str]:
        """Start the command: same words, same directory, some environment."""
        return subprocess.Popen(
            [sys.executable, "train.py", *self.words, *more, f"hydra.run.dir={self.directory}"],
            cwd=REPOSITORY,
            env=environment() | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *more: str, **env: str) -> tuple[int, str]:
        """Run the command to its end; return its exit code and what it printed.

        The process is forked from this one, which has imported torch already: a real process, to
        be killed for real, in a fifth of the time.
        """
        words = [*self.words, *more, f"hydra.run.dir={self.directory}"]
        return forked(words, self.directory.parent, env)

    def result(self) -> dict[str, Any]:
        return dict(json.loads((self.directory / "result.json").read_text()))

    def state(self) -> dict[str, Any]:
        """The last checkpoint, less what may differ: how long it took."""
        from hydra_trainer import checkpoint

        last = checkpoint.Store(self.directory / "checkpoints").latest()
        assert last is not None, sorted(self.directory.rglob("*"))
        state = checkpoint.load(last.state)
        del state["hydra_trainer"]["seconds"]
        return state


def forked(words: list[str], folder: Path, env: dict[str, str]) -> tuple[int, str]:
    """Run `python train.py WORDS` in a fork of this process; return exit code and output."""
    printed = folder / f"output-{os.getpid()}.txt"
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            _become(words, printed, env)
            from hydra_trainer import app

            app.main()
            code = 0
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:  # as an interpreter does; the code is no one else's
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), printed.read_text()


def _become(words: list[str], printed: Path, env: dict[str, str]) -> None:
    """Turn a fork of the test process into `python train.py`."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    os.environ |= env
    os.chdir(REPOSITORY)
    sys.argv = ["train.py", *words]


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


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two ranks that nothing happened to. Its tests are in the group "ranks": it runs once."""
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
