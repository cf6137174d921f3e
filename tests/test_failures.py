"""What a user reads, and what is left, when something fails: whole jobs with real faults."""

import math
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hydra_trainer import worker
from hydra_trainer.bootstrap import NOTES, read_json
from hydra_trainer.callbacks import Core
from hydra_trainer.checkpoints import reading
from hydra_trainer.checkpoints.files import MANIFEST, STATE
from hydra_trainer.checkpoints.store import Checkpoint, Store
from hydra_trainer.checkpoints.writing import Writer
from hydra_trainer.data import explain_loader_failure
from hydra_trainer.preemption import NoStopFlag, Stopped
from hydra_trainer.progress import choose

from .conftest import REPOSITORY, SHORT, Job, environment
from .drill import Drill, same
from .test_datasets import archive
from .test_resume import assert_equal

Make = Callable[..., Job]
Hit = Callable[..., dict[str, str]]
FAULTY = "model._target_=tests.faults.Faulty"
TWO = "resources.processes_per_node=2"


def whole(job: Job) -> list[Checkpoint]:
    return [c for c in Store(job.directory / "checkpoints").all() if c.fault() is None]


def failed(job: Job, code: int, printed: str) -> str:
    """Check that a job failed as it should, with a message and no traceback; return the message."""
    assert code == 1, printed
    assert "Traceback" not in printed
    assert printed.count("error: ") == 1
    result = job.result()
    assert (result["status"], result["exit_code"]) == ("failed", 1)
    message = printed[printed.index("error: ") :]
    assert result["error"]["message"] in message
    return message


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A run that nothing happened to, and how many calls its saves made."""
    folder = tmp_path_factory.mktemp("reference")
    job = Job(folder / "run", [*SHORT, FAULTY])
    code, printed = job.run(FAULT=f"count:{folder / 'calls'}")
    assert code == 0, printed
    return job


# --------------------------------------------------------------------------------- killed, damaged


@contextmanager
def other_file_system(name: str) -> Iterator[str]:
    place = Path("/dev/shm", f"hydra-trainer-{os.getpid()}-{name}")
    place.mkdir()
    try:
        yield str(place)
    finally:
        shutil.rmtree(place)


def kill_until_done(job: Job, draw: random.Random, calls: int, most: int) -> int:
    """Run a job, killed at a random call of its saves `most` times at most. Returns the kills."""
    with other_file_system(job.directory.parent.name) as elsewhere:
        for kills in range(most + 1):
            number = draw.randint(1, calls)
            fault = {"FAULT": f"kill:{number}"} if kills < most else {}
            code, printed = job.run(TMPDIR=elsewhere, **fault)
            if code == 0:
                return kills
            assert code == -9, printed
    pytest.fail("a run that nobody killed did not end")


@pytest.mark.parametrize("seed", range(1))
def test_kills_inside_saves(job: Make, reference: Job, seed: int) -> None:
    calls = int((reference.directory.parent / "calls").read_text())
    assert calls > 300
    drill = job("run", FAULTY)
    assert kill_until_done(drill, random.Random(seed), calls // 2, most=2) > 0
    assert_equal(drill, reference)


def test_a_stop_right_after_a_resume_does_not_save_again(job: Make, hit: Hit) -> None:
    """It would write over the only good checkpoint, with the same."""
    drill = job("run", FAULTY, "checkpoint.every_n_steps=null")
    code, printed = drill.run(**hit("SIGTERM", "val", 9))
    assert code == 143, printed
    before = drill.state()
    again = hit("SIGTERM", "val", 9) | {"DRILL_DONE": str(drill.directory.parent / "again")}
    code, printed = drill.run(**again, FAULT="kill:1")
    assert code == 143, printed
    assert "going on from step 9" in printed
    assert same(drill.state(), before)


@pytest.mark.soak
@pytest.mark.parametrize("asynchronous", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_many_kills_inside_saves(job: Make, reference: Job, seed: int, asynchronous: bool) -> None:
    calls = int((reference.directory.parent / "calls").read_text())
    drill = job("run", FAULTY, f"checkpoint.asynchronous={str(asynchronous).lower()}")
    kills = kill_until_done(drill, random.Random(f"{seed} {asynchronous}"), calls // 4, most=50)
    assert kills > 0
    print(f"{kills} kills")
    assert_equal(drill, reference)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_many_kills_inside_saves_of_two_ranks(job: Make, reference: Job, seed: int) -> None:
    """Each run is killed as often as it is restarted, and then once more."""
    calls = int((reference.directory.parent / "calls").read_text())
    undisturbed, drill = job("undisturbed", FAULTY, TWO), job("run", FAULTY, TWO)
    code, printed = undisturbed.run()
    assert code == 0, printed
    draw, code = random.Random(seed), 137
    for _ in range(20):
        code, printed = drill.run(FAULT=f"kill:{draw.randint(1, calls // 4)}")
        assert code in (0, 137), printed
        if code == 0:
            break
    if code:
        code, printed = drill.run()
    assert code == 0, printed
    assert_equal(drill, undisturbed)


def test_a_damaged_checkpoint_is_passed_over(job: Make, hit: Hit, reference: Job) -> None:
    drill = job("run", FAULTY)
    code, printed = drill.run(**hit("SIGKILL", "train", 13))
    assert code == -9, printed
    before, newest = whole(drill)[-2:]
    path = Path(newest.state)
    path.write_bytes(path.read_bytes()[:-100])
    code, printed = drill.run()
    assert code == 0, printed
    assert f"{newest.uri} is damaged (state.pt has" in printed
    assert f"going on from step {before.step}: {before.uri}" in printed
    assert_equal(drill, reference)


def test_all_checkpoints_are_damaged(job: Make, hit: Hit, reference: Job) -> None:
    """The user decides, and both ways that the message names are ways out."""
    drill = job("run", FAULTY, "checkpoint.asynchronous=false")
    code, printed = drill.run(**hit("SIGKILL", "train", 7))
    assert code == -9, printed
    good = shutil.copytree(drill.directory / "checkpoints", drill.directory.parent / "good")
    for manifest in drill.directory.rglob(MANIFEST):
        manifest.write_text("{")
    code, printed = drill.run()
    message = failed(drill, code, printed)
    assert f"All checkpoints in {drill.directory}/checkpoints are damaged" in message
    assert "step=00000006: manifest.json is not a whole manifest" in message

    code, printed = drill.run("again=true", "trainer.max_epochs=1")
    assert code == 0, printed
    assert "going on" not in printed
    aside = drill.directory / "previous" / "1" / "checkpoints"
    shutil.rmtree(aside)
    shutil.copytree(good, aside)
    back = Job(aside.parent, drill.words)
    code, printed = back.run()
    assert code == 0, printed
    assert "going on from step 6" in printed
    assert_equal(back, reference)


def test_a_checkpoint_of_another_model(job: Make, hit: Hit) -> None:
    """The code of a model may change under a run; its weights are then another model's."""
    drill, other = job("run"), job("other", "model.hidden=8")
    for each, step in ((drill, 5), (other, 7)):
        code, printed = each.run(**hit("SIGKILL", "train", step))
        assert code == -9, printed
    shutil.rmtree(drill.directory / "checkpoints")
    shutil.copytree(other.directory / "checkpoints", drill.directory / "checkpoints")
    before = whole(drill)
    code, printed = drill.run()
    message = failed(drill, code, printed)
    assert "is the checkpoint of another model than Drill" in message
    assert "(8, 64) saved, (16, 64) here" in message
    assert "another hydra.run.dir" in message
    assert whole(drill) == before


# ------------------------------------------------------------------------------------ full disks


def test_a_disk_that_is_full_for_a_while(job: Make, reference: Job) -> None:
    drill = job("run", FAULTY)
    code, printed = drill.run(FAULT="full:7:20")
    assert code == 0, printed
    assert printed.count("could not be saved: [Errno 27] File too large. Training goes on") == 1
    assert printed.count("Checkpoints can be saved again.") == 1
    assert_equal(drill, reference)


@pytest.mark.parametrize("asynchronous", ["true", pytest.param("false", marks=pytest.mark.soak)])
def test_a_disk_that_is_full_to_the_end(job: Make, reference: Job, asynchronous: str) -> None:
    """The run keeps what it had, says so, and goes on from there when there is room."""
    drill = job("run", FAULTY, f"checkpoint.asynchronous={asynchronous}")
    code, printed = drill.run(FAULT="full:7:99")
    message = failed(drill, code, printed)
    assert "The final weights could not be saved: [Errno 27] File too large. Make room" in message
    kept = whole(drill)
    assert [c.step for c in kept] in ([4, 6], [2, 4])  # that of step 6 was perhaps being written
    assert set((drill.directory / "checkpoints").iterdir()) == {Path(c.uri) for c in kept}
    code, printed = drill.run()
    assert code == 0, printed
    assert f"going on from step {kept[-1].step}" in printed
    assert_equal(drill, reference)


@pytest.mark.parametrize(
    ("words", "full", "saved"),
    [
        ([], "7:99", [4, 6]),
        ([], "0:99", []),
        pytest.param(
            [TWO], "7:99:0", [4, 6], marks=[pytest.mark.xdist_group("ranks"), pytest.mark.soak]
        ),
    ],
)
def test_a_stop_while_the_disk_is_full(
    job: Make, hit: Hit, reference: Job, words: list[str], full: str, saved: list[int]
) -> None:
    drill = job("run", FAULTY, *words)
    code, printed = drill.run(**hit("SIGTERM", "train", 10), FAULT=f"full:{full}")
    assert code == 143, printed
    steps = [c.step for c in whole(drill)]
    assert steps[-1:] == saved[-1:] or steps[-1:] == saved[:1]  # that of step 6 was being written
    goes_on = f"goes on from step {steps[-1]}" if saved else "starts anew"
    told = (
        f"stopped, but the last save failed: [Errno 27] File too large; the same command {goes_on}."
    )
    assert printed.count("stopped, ") == printed.count(told) == 1, printed
    if not words:
        code, printed = drill.run()
        assert code == 0, printed
        assert_equal(drill, reference)


def test_a_result_that_cannot_be_written_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path))
    outcome = worker.failure({}, Stopped(signal.SIGTERM, "[Errno 28] No space left on device"))
    worker._write_down(outcome, tmp_path / "nowhere", first=True)
    note = read_json(tmp_path / "exit-0.json") or {}
    assert (note["exit_code"], note["unsaved"]) == (143, "[Errno 28] No space left on device")


class Validated(Drill):
    """It is also hit when an epoch's validation is over."""

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self._hit("validated")


def test_a_stop_at_the_end_of_an_epoch_that_is_not_to_be_saved(
    job: Make, hit: Hit, reference: Job
) -> None:
    """It is saved all the same."""
    words = ["checkpoint.every_n_steps=null", "checkpoint.every_n_epochs=2"]
    drill = job("run", "model._target_=tests.test_failures.Validated", *words)
    code, printed = drill.run(**hit("SIGTERM", "validated", 9))
    assert code == 143, printed
    assert "stopped, and saved in" in printed
    code, printed = drill.run()
    assert code == 0, printed
    assert "going on from step 9" in printed
    assert_equal(drill, reference)


def test_the_final_save_is_tried_once_more(job: Make, reference: Job) -> None:
    """And what it then saves is what it would have saved at first."""
    drill = job("run", "model._target_=tests.faults.FullOnce")
    code, printed = drill.run()
    assert code == 0, printed
    assert "could not be saved: [Errno 27] File too large" in printed
    assert_equal(drill, reference)


@pytest.mark.xdist_group("ranks")
def test_two_ranks_one_of_which_cannot_save(job: Make) -> None:
    """Only rank 0 writes; the others must not wait for ever for what it does about a failure.

    The ports that everybody uses are taken, which is none of this job's business.
    """
    with ExitStack() as stack:
        for port in (29400, 29500, 29501):
            taken = stack.enter_context(socket.socket())
            try:
                taken.bind(("", port))
                taken.listen()
            except OSError:
                pass  # taken already
        drill = job("run", FAULTY, TWO, "trainer.max_epochs=1", "checkpoint.asynchronous=false")
        code, printed = drill.run(FAULT="full:3:99:0", MASTER_PORT="29500")
    message = failed(drill, code, printed)
    assert "rank 0 failed: The final weights could not be saved: [Errno 27]" in message
    assert [c.step for c in whole(drill)] == [2]


def assert_told_once(code: int, printed: str) -> None:
    assert code == 1, printed
    assert len(re.findall(r"^error: rank [01] failed: the drill divided", printed, re.M)) == 1
    assert printed.count("Traceback") == 1, printed
    assert printed.count('raise ZeroDivisionError("the drill divided by zero")') == 1


@pytest.mark.xdist_group("ranks")
def test_an_error_on_all_ranks_is_told_once(job: Make, hit: Hit) -> None:
    """By the command that started the ranks."""
    assert_told_once(*job("run", TWO).run(**hit("raise", "train", 5, "all")))


@pytest.mark.soak
@pytest.mark.xdist_group("ranks")
def test_an_error_in_a_container_is_told_by_its_bootstrap(
    job: Make, hit: Hit, tmp_path: Path
) -> None:
    drill, fault = job("run", TWO), hit("raise", "train", 5, "all")
    drill.run(**fault)
    options = ["--nproc-per-node=2", f"--report={tmp_path / 'report'}"]
    container = subprocess.run(
        [
            sys.executable,
            "-m",
            "hydra_trainer.bootstrap",
            *options,
            drill.directory / "config.yaml",
        ],
        cwd=REPOSITORY,
        env=environment() | fault | {"DRILL_DONE": str(tmp_path / "again")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert_told_once(container.returncode, container.stdout)


# ------------------------------------------------------------------------ what must not be saved


@pytest.mark.parametrize(
    ("model", "words", "reason"),
    [
        ("tests.drill.Strange", [], "objects of pathlib.PosixPath, which cannot be loaded safely"),
        ("tests.faults.Patient", ["checkpoint.every_n_steps=null"], "pathlib.PosixPath"),
        ("tests.faults.Closed", [], "cannot be saved"),
        ("tests.faults.Closed", ["checkpoint.asynchronous=false"], "cannot be saved"),
    ],
)
def test_unsafe_objects_end_the_run_at_its_first_save(
    job: Make, model: str, words: list[str], reason: str
) -> None:
    drill = job("run", f"model._target_={model}", "trainer.max_epochs=2", *words)
    code, printed = drill.run()
    message = failed(drill, code, printed)
    assert reason in message
    assert "Keep tensors, numbers, strings, lists and dicts in state_dict()" in message
    # That is in the first epoch, or, saving at its end, in the next step.
    assert printed.count("val/acc") == (words == ["checkpoint.every_n_steps=null"])
    assert list(drill.directory.rglob(STATE)) == []


@pytest.mark.parametrize(
    ("words", "fault", "good"),
    [
        (["trainer.log_every_n_steps=1000"], "nan", "step=00000012"),
        (["checkpoint.every_n_steps=1"], "nan", "step=00000013"),
        (["checkpoint.every_n_steps=1"], "steep", "step=00000013"),
        (["trainer.log_every_n_steps=1000", "trainer.max_steps=14"], "steep", "step=00000012"),
    ],
)
def test_nan(job: Make, hit: Hit, words: list[str], fault: str, good: str) -> None:
    """A loss, or a gradient, that stops being a number at step 14."""
    words = ["model._target_=tests.faults.Steep", *words] if fault == "steep" else words
    drill = job("run", *words)
    code, printed = drill.run(**hit("nan", "train", 13), FAULT="14")
    message = failed(drill, code, printed)
    assert "became NaN or infinite" in message and "step 14" in message
    assert f"the last good checkpoint is {drill.directory}/checkpoints/{good}." in message or (
        f"the last good checkpoint is {drill.directory}/checkpoints/{good};" in message
    )
    assert "optim.lr" in message
    for found in whole(drill):
        assert found.step < 14
        for weight in reading.load(found)["state_dict"].values():
            assert math.isfinite(weight.sum())


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_metric_that_is_no_number_is_not_the_best(mode: str) -> None:
    goal = {"metric": "val/loss", "mode": mode}
    config = {"trainer": {"log_every_n_steps": 1}, "checkpoint": {}, "objective": goal}
    core = Core(NoStopFlag(), choose("off", True), config, None, Writer(), {})
    for step, value in enumerate([math.nan, 1.0, math.nan]):
        metrics = {"val/loss": torch.tensor(value)}
        trainer: Any = SimpleNamespace(callback_metrics=metrics, global_step=step)
        core._take_metrics(trainer)
    assert core.goals[0].best == {"value": 1.0, "step": 1}


def test_nan_before_anything_was_saved(job: Make, hit: Hit) -> None:
    drill = job()
    code, printed = drill.run(**hit("nan", "train", 0))
    assert "at step 1; there is no checkpoint" in failed(drill, code, printed)


# ----------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("death", "reason"),
    [
        ("SIGKILL", "A loader worker was killed (SIGKILL), most often because memory ran out"),
        ("exit", "A loader worker ended without an error"),
        ("shm", "/dev/shm is full. Give it more room"),
    ],
)
def test_a_loader_worker_that_dies(job: Make, death: str, reason: str) -> None:
    words = ["data._target_=tests.faults.DeadlyData", f"+data.death={death}"]
    words += ["+data.info.shape=[1,8,8]", "+data.info.num_classes=10"]
    drill = job("run", "data=own", *words, "+data.batch_size=128")
    drill.words.remove("data.batch_size=128")
    note = drill.directory.parent / "worker"
    code, printed = drill.run(FAULT=str(note))
    if note.exists():  # torch leaves the file that it could not enlarge
        for file in Path("/dev/shm").glob(f"torch_{note.read_text()}_*"):
            file.unlink()
    message = failed(drill, code, printed)
    assert reason in message
    assert "data.num_workers=0" in message
    log = (drill.directory / "logs" / "rank-0.log").read_text()
    assert "Traceback" in log  # for whoever wants to know more


def test_a_worker_that_dies_between_making_a_batch_and_handing_it_over() -> None:
    batches: Any = iter(DataLoader(TensorDataset(torch.zeros(8)), batch_size=4, num_workers=1))
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        while not batches._data_queue._reader.poll(1):
            pass
        os.kill(batches._workers[0].pid, signal.SIGKILL)
        os.waitid(os.P_PID, batches._workers[0].pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises((RuntimeError, OSError, EOFError)) as caught:
            next(batches)
        # The cause is what torch raises where it does not see yet that the worker is gone.
        error = caught.value.__cause__ or caught.value
        explained = explain_loader_failure(error)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert isinstance(error, OSError | EOFError)
    assert "A loader worker ended without an error" in str(explained)


CIFAR10 = ["data=cifar10", "model=mlp", "data.num_workers=0", "trainer.max_epochs=1"]


def test_cifar10_from_a_small_archive(job: Make, tmp_path: Path) -> None:
    """100 random images in the original format, through the reader of the real ones."""
    archive(tmp_path / "data")
    words = [*CIFAR10, f"data.root={tmp_path / 'data'}", "data.md5=null", "data.batch_size=10"]
    drill = job("run", *words)
    code, printed = drill.run(XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert code == 0, printed
    result = drill.result()
    assert (result["steps"], result["status"]) == (9, "completed")
    assert result["metrics"].keys() >= {"val/loss", "val/acc", "test/acc"}


def no_folder(root: Path) -> None: ...


def empty_folder(root: Path) -> None:
    root.mkdir()


def other_archive(root: Path) -> None:
    archive(root)


def torn_archive(root: Path) -> None:
    file = archive(root)
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("prepare", "words", "reasons"),
    [
        (no_folder, [], ["does not exist", "cifar-10-python.tar.gz", "data.root=FOLDER"]),
        (empty_folder, [], ["has none of: cifar-10-python.tar.gz", "put it there as it is"]),
        (
            other_archive,
            [],
            ["cifar-10-python.tar.gz has the MD5", "c58f30108f718f92721af3b95e74349a"],
        ),
        (torn_archive, ["data.md5=null"], ["cifar-10-python.tar.gz", "damaged or cut short"]),
    ],
)
def test_data_that_are_not_right(
    job: Make,
    tmp_path: Path,
    prepare: Callable[[Path], Any],
    words: list[str],
    reasons: list[str],
) -> None:
    prepare(tmp_path / "data")
    drill = job("run", *CIFAR10, f"data.root={tmp_path / 'data'}", *words)
    code, printed = drill.run(XDG_CACHE_HOME=str(tmp_path / "cache"))
    message = failed(drill, code, printed)
    assert str(tmp_path / "data") in message
    for reason in reasons:
        assert reason in message


# ------------------------------------------------------------------------------ other weights


def test_init_from(job: Make, reference: Job) -> None:
    """A run that learns nothing ends with the weights that it began with."""
    source = whole(reference)[-1]
    drill = job("run", "optim.lr=1e-30", f"checkpoint.init_from={reference.directory}")
    code, printed = drill.run("trainer.max_epochs=1")
    assert code == 0, printed
    assert "going on" not in printed
    theirs = reading.load(source)
    assert drill.state()["global_step"] == 9
    assert same(drill.state()["state_dict"], theirs["state_dict"])
    assert not torch.equal(
        next(iter(theirs["state_dict"].values())),
        next(iter(reading.load(whole(reference)[0])["state_dict"].values())),
    )


@pytest.mark.parametrize(
    ("place", "words", "reason"),
    [
        ("nowhere", [], "but there is no whole checkpoint there: it does not exist; {tmp} holds"),
        ("file", [], "{tmp}/file cannot be read as a checkpoint"),
        ("run", ["model.hidden=8"], "is the checkpoint of another model"),
    ],
)
def test_init_from_a_wrong_place(
    job: Make, reference: Job, tmp_path: Path, place: str, words: list[str], reason: str
) -> None:
    (tmp_path / "file").write_text("no checkpoint")
    root = reference.directory if place == "run" else tmp_path / place
    drill = job("drill", *words, f"checkpoint.init_from={root}")
    code, printed = drill.run()
    assert reason.format(tmp=tmp_path) in failed(drill, code, printed)
