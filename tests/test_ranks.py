"""Two ranks under torchrun: a lost rank, a stop that reaches one of them, and who is told what."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hydra_trainer.job import JobHandle, JobState
from hydra_trainer.launchers.local import LocalLauncher

from .conftest import REPOSITORY, TWO, Job
from .drill import same
from .test_resume import assert_equal

# In one worker: they share a reference, and two ranks fill two cores.
pytestmark = pytest.mark.xdist_group("ranks")

Hit = Callable[..., dict[str, str]]


def seen(folder: Path) -> dict[int, list[str]]:
    """Return the samples of each step, over all ranks."""
    steps: dict[int, list[str]] = {}
    for note in sorted(folder.iterdir()):
        steps.setdefault(int(note.name[:3]), []).extend(note.read_text().split())
    return steps


def processes_of(directory: Path) -> list[str]:
    """Return the command lines of all processes that have a file of a run directory open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            files = [file.readlink() for file in (process / "fd").iterdir()]
            if any(file.is_relative_to(directory) for file in files):
                found.append((process / "cmdline").read_text().replace("\0", " "))
    return found


def test_a_killed_rank_is_started_again(reference: Job, job: Callable[..., Job], hit: Hit) -> None:
    drill = job("run", TWO)
    code, printed = drill.run(**hit("SIGKILL", "train", 13, "1"))
    assert code == 0, printed
    assert "going on from step 12" in printed
    assert_equal(drill, reference)
    assert processes_of(drill.directory) == []


def test_a_stop_that_reaches_one_rank(
    reference: Job, job: Callable[..., Job], hit: Hit, tmp_path: Path
) -> None:
    """All ranks save the same step and end; one process goes on with the very next samples."""
    where = {"DRILL_SEEN": str(tmp_path / "seen")}
    (tmp_path / "seen").mkdir()
    drill = job("run", TWO, "checkpoint.every_n_steps=null")
    code, printed = drill.run(**hit("SIGTERM", "train", 4, "1"), **where)
    assert code == 143, printed
    assert drill.result()["status"] == "stopped"
    step = drill.state()["global_step"]
    assert 5 <= step < 27
    assert len(drill.state()["hydra_trainer"]["ranks"]) == 2

    alone = Job(drill.directory, [word for word in drill.words if word != TWO])
    code, printed = alone.run(**where)
    assert code == 0, printed
    assert f"going on from step {step}" in printed
    result = alone.result()
    assert (result["steps"], result["world_size"]) == (27, 1)
    assert seen(tmp_path / "seen") == seen(reference.directory.parent / "seen")


@pytest.mark.soak
def test_a_stop_that_reaches_all_ranks(reference: Job, job: Callable[..., Job], hit: Hit) -> None:
    """In the middle of a validation: it starts again, and counts nothing twice."""
    drill = job("run", TWO, "trainer.stop_check_every_n_steps=1")
    code, printed = drill.run(**hit("SIGTERM", "val", 9, "all"))
    assert code == 143, printed
    assert drill.state()["global_step"] == 9
    code, printed = drill.run()
    assert code == 0, printed
    assert_equal(drill, reference)


@pytest.mark.soak
def test_a_stopped_and_a_killed_launcher(reference: Job, job: Callable[..., Job], hit: Hit) -> None:
    drill = job("run", TWO)
    code, printed = drill.run(**hit("SIGTERM", "end", 5, "launcher"))
    assert code == 143, printed
    assert drill.state()["global_step"] >= 5

    with drill.start(**hit("SIGKILL", "train", 25, "launcher")) as process:
        assert process.wait() == -9
        handle = JobHandle.local(drill.directory)
        # Nobody is left to wait for the ranks; they save, stop, and let go of the directory.
        assert LocalLauncher().wait(handle).state in (JobState.CANCELLED, JobState.SUCCEEDED)
        assert processes_of(drill.directory) == []

    code, printed = drill.run()
    assert code == 0, printed
    assert_equal(drill, reference)


def test_an_error_on_one_rank_ends_the_job(job: Callable[..., Job], hit: Hit) -> None:
    """The user's own error is shown with its rank, and nothing is started again."""
    drill = job("run", TWO)
    code, printed = drill.run(**hit("raise", "train", 5, "1"))
    assert code == 1, printed
    result = drill.result()
    assert (result["status"], result["exit_code"], result["rank"]) == ("failed", 1, 1)
    assert result["error"]["type"] == "ZeroDivisionError"
    assert 'raise ZeroDivisionError("the drill divided by zero")' in result["error"]["traceback"]
    assert "error: rank 1 failed: the drill divided by zero" in printed
    assert printed.count("2 processes") == 1
    status = LocalLauncher().status(JobHandle.local(drill.directory))
    assert (status.state, status.exit_code) == (JobState.FAILED, 1)


def test_ranks_keep_their_own_logs(reference: Job) -> None:
    logs = sorted(path.name for path in (reference.directory / "logs").iterdir())
    assert logs == ["rank-0.log", "rank-1.log", "rank-1.out"]


def test_every_rank_draws_its_own_numbers(reference: Job) -> None:
    """Dropout differs between ranks; the samples do too, and together they are each epoch once."""
    first, second = reference.state()["hydra_trainer"]["ranks"]
    assert not same(first["random"]["torch"], second["random"]["torch"])
    steps = seen(reference.directory.parent / "seen")
    assert sorted(steps) == list(range(27))
    for epoch in range(3):
        samples = [name for step in range(9) for name in steps[9 * epoch + step]]
        assert len(samples) == 9 * 128
        assert len(set(samples)) > 0.99 * len(samples)  # digits has a few equal images


STAND_IN = """
import torch.distributed as dist
from torch.distributed import ProcessGroupGloo

def make(store, rank, size, timeout):
    return ProcessGroupGloo(store, rank, size, timeout=timeout)

dist.Backend.register_backend("smddp", make, devices=["cpu"])
real = dist.new_group

def new_group(*arguments, **options):  # as SMDDP's documentation says of it
    raise RuntimeError("smddp has no second group, and no other backend beside it")

dist.new_group = new_group
plain = dist.all_reduce

def all_reduce(tensor, op=dist.ReduceOp.SUM, group=None, async_op=False):
    if op != dist.ReduceOp.AVG:
        return plain(tensor, op, group, async_op)
    plain(tensor, dist.ReduceOp.SUM, group)  # gloo has no average
    tensor.copy_(tensor / dist.get_world_size())

dist.all_reduce = all_reduce
"""


def test_smddp_is_alone(job: Callable[..., Job], reference: Job, tmp_path: Path) -> None:
    """With a module that registers a backend of its name, and like it knows one group only."""
    place = tmp_path / "smdistributed" / "dataparallel" / "torch"
    place.mkdir(parents=True)
    for folder in (place, place.parent, place.parent.parent):
        (folder / "__init__.py").touch()
    (place / "torch_smddp.py").write_text(STAND_IN)
    drill = job("run", TWO, "trainer.process_group_backend=smddp")
    code, printed = drill.run(PYTHONPATH=f"{tmp_path}{os.pathsep}{REPOSITORY}")
    assert code == 0, printed
    assert_equal(drill, reference)
