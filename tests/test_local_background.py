"""launcher=local in the background: jobs that outlive who sent them, and what is told of them."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

# What a job imports: a fork while another thread imports it would wait for that thread forever.
import boto3  # noqa: F401
import pytest
import torch.utils.tensorboard  # noqa: F401
import yaml
from hydra import compose, initialize_config_module

from hydra_trainer import __main__ as verbs
from hydra_trainer import config
from hydra_trainer.errors import ConfigError, Full, LaunchError
from hydra_trainer.job import JobHandle, JobSpec, JobState, JobStatus, Report
from hydra_trainer.launchers import local
from hydra_trainer.launchers.local import LocalLauncher
from hydra_trainer.local import following, gpus, helper, lock, nursery
from hydra_trainer.local.directory import NotStarted, printed

from .conftest import SHORT, TWO, Job, environment
from .test_resume import assert_equal

pytestmark = pytest.mark.xdist_group("background")  # they share a job that nothing happened to

Hit = Callable[..., dict[str, str]]
REAL = nursery.Nursery._spawn
HERE = LocalLauncher()
BEHIND = HERE.in_background()


class Fork:
    """A process that is forked from this one: what subprocess.Popen is to a program."""

    def __init__(self, be: Callable[[], None]) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                be()
            os._exit(1)

    def poll(self) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


class Forked(nursery.Nursery):
    """The helper as a fork of this process, which has imported torch already."""

    def _spawn(self, stdin: int, stdout: int) -> Any:
        def be() -> None:
            os.dup2(stdin, 0)
            for descriptor in (1, 2):
                os.dup2(stdout, descriptor)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            os.closerange(3, stdin)
            os.closerange(stdin + 1, 1000)
            helper.main()

        return Fork(be)


@pytest.fixture(autouse=True)
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A helper of its own for each test, by a fork; and no GPU."""
    monkeypatch.setattr(nursery, "Nursery", Forked)
    monkeypatch.setattr(nursery, "_nursery", None)
    monkeypatch.setenv(gpus.VISIBLE, "")
    yield
    if nursery._nursery is not None:
        nursery._nursery.close()


def spec(directory: Path, *words: str) -> JobSpec:
    config.register()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        plain = config.validate(compose("config", [*SHORT, *words]))
    return config.to_job(plain, directory)


@pytest.fixture
def send(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., JobHandle]]:
    """Start a job in the background, with a drill in its environment. None is left behind."""
    handles = []

    def started(job: JobSpec, drill: dict[str, str] | None = None) -> JobHandle:
        with monkeypatch.context() as patch:
            for key, value in (drill or {}).items():
                patch.setenv(key, value)
            handles.append(BEHIND.submit(job))
        return handles[-1]

    yield started
    for handle in handles:
        end(handle)


def end(handle: JobHandle) -> None:
    if lock.is_held(Path(handle.path)):
        os.kill(pid_of(handle), signal.SIGKILL)


def reach(handle: JobHandle, word: str) -> None:
    """Return when a job has printed a word."""
    assert any(word in line for line in HERE.logs(handle, follow=True)), [*HERE.logs(handle)]


def go(drill: dict[str, str]) -> None:
    """Let a job go on that waits."""
    Path(f"{drill['DRILL_DONE']}-go").touch()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that ran in the foreground, in a fork of this process, as others here do."""
    job = Job(tmp_path_factory.mktemp("undisturbed") / "run", SHORT)
    code, said = job.run()
    assert code == 0, said
    return job


# -------------------------------------------------------------------------------- real jobs


def test_two_jobs_at_once(
    tmp_path: Path,
    send: Callable[..., JobHandle],
    hit: Hit,
    undisturbed: Job,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drills = [hit("wait", "train", 3), hit("wait", "train", 4)]
    jobs = [spec(tmp_path / name) for name in ("one", "two")]
    handles = [send(job, drill) for job, drill in zip(jobs, drills, strict=True)]
    for handle in handles:
        reach(handle, "waiting")
        assert HERE.status(handle).state is JobState.RUNNING
    capsys.readouterr()

    assert BEHIND.submit(jobs[0]) == handles[0]
    assert f"{handles[0]} is there already" in capsys.readouterr().err
    for place, job in ((HERE, jobs[0]), (BEHIND, replace(jobs[0], again=True))):
        with pytest.raises(LaunchError, match="Another process"):
            place.submit(job)
    other = spec(tmp_path / "one", "model.hidden=8")
    with pytest.raises(LaunchError, match="Another process"):
        BEHIND.submit(other)

    for drill in drills:
        go(drill)
    reports: dict[JobHandle, list[Report]] = {handle: [] for handle in handles}
    ends: dict[JobHandle, JobStatus] = {}
    for changes in BEHIND.watch(lambda: handles):
        for handle, status in changes.items():
            if status.progress and status.progress not in reports[handle]:
                reports[handle].append(status.progress)
            if status.state.ended:
                ends[handle] = status
        if len(ends) == 2:
            break
    for handle in handles:
        assert [(r.epoch, r.epochs, r.step) for r in reports[handle]] == [
            (1, 3, 9),
            (2, 3, 18),
            (3, 3, 27),
        ]
        end = ends[handle]
        assert (end.state, end.exit_code) == (JobState.SUCCEEDED, 0)
        assert end.started is not None and end.ended is not None and end.started <= end.ended
        assert end.result is not None
        assert reports[handle][-1].values["val/loss"] == pytest.approx(
            end.result["metrics"]["val/loss"], rel=1e-5
        )
        assert_equal(Job(Path(handle.path), []), undisturbed)

    before = printed(tmp_path / "one").read_text()
    assert send(jobs[0]) == handles[0]
    assert "finished already" in capsys.readouterr().err
    assert printed(tmp_path / "one").read_text() == before


def test_a_cancelled_job_goes_on_with_the_same_command(
    tmp_path: Path, send: Callable[..., JobHandle], hit: Hit, undisturbed: Job
) -> None:
    job = spec(tmp_path / "run")
    handle = send(job, hit("until", "train", 5))
    reach(handle, "waiting")
    assert verbs.verb("cancel", [str(handle)]) == 0
    assert verbs.verb("wait", [str(handle)]) == 143
    assert HERE.status(handle).state is JobState.CANCELLED
    assert send(job) == handle
    assert HERE.wait(handle).state is JobState.SUCCEEDED
    assert "going on from step 6" in printed(tmp_path / "run").read_text()
    assert_equal(Job(tmp_path / "run", []), undisturbed)


def test_a_failed_job_says_why_and_starts_again(
    tmp_path: Path, send: Callable[..., JobHandle], hit: Hit, undisturbed: Job
) -> None:
    job, drill = spec(tmp_path / "run"), hit("raise", "train", 5)
    handle = send(job, drill)
    status = HERE.wait(handle)
    assert (status.state, status.exit_code) == (JobState.FAILED, 1)
    why = HERE.why(handle)
    assert "FAILED ZeroDivisionError the drill divided by zero" in why
    assert 'raise ZeroDivisionError("the drill divided by zero")' in why
    assert send(job, drill) == handle  # what hits it does so once
    assert HERE.wait(handle).state is JobState.SUCCEEDED
    assert_equal(Job(tmp_path / "run", []), undisturbed)


def test_what_only_torch_can_tell(tmp_path: Path, send: Callable[..., JobHandle]) -> None:
    status = HERE.wait(send(spec(tmp_path / "run", "trainer.process_group_backend=smddp")))
    assert (status.state, status.exit_code, status.reason) == (JobState.FAILED, 2, "ConfigError")
    assert "smdistributed-dataparallel is not here" in status.message


def test_a_job_outlives_a_killed_submitter(
    tmp_path: Path,
    hit: Hit,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """With the real helper, as one types it, below a process that orphans fall to."""
    words = [*SHORT, "trainer.max_epochs=1", f"hydra.run.dir={tmp_path}/run"]
    drill = hit("wait", "train", 1)
    script = (
        "import ctypes, os; ctypes.CDLL(None).prctl(36, 1)\n"  # PR_SET_CHILD_SUBREAPER
        "from hydra_trainer import app; app.main(); os.write(1, b'.'); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, *words, "launcher.detach=true"],
        env=environment() | drill,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        handle = JobHandle.parse(process.stdout.readline().strip())
        request.addfinalizer(lambda: end(handle))
        assert process.stdout.read(1) == "."
        [child] = children(process.pid) - {pid_of(handle)}
        process.kill()
    await_end(child)
    reach(handle, "waiting")
    assert parent(pid_of(handle)) not in (child, process.pid)

    sent = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    # Of that code: somebody may be editing it.
    job = replace(spec(tmp_path / "run"), identity=sent["run"]["identity"])
    assert HERE.status(handle).state is JobState.RUNNING
    assert BEHIND.submit(job) == handle
    assert "is there already" in capsys.readouterr().err
    go(drill)
    assert HERE.wait(handle).state is JobState.SUCCEEDED


@pytest.mark.soak
def test_two_ranks(tmp_path: Path, send: Callable[..., JobHandle], hit: Hit) -> None:
    job, drill = spec(tmp_path / "run", TWO), hit("wait", "train", 5)
    handle = send(job, drill)
    reach(handle, "waiting")
    HERE.cancel(handle)
    go(drill)
    assert HERE.wait(handle).exit_code == 143
    assert HERE.wait(send(job)).state is JobState.SUCCEEDED


# ------------------------------------------------------------------- other programs, no training


def birth(directory: Path, script: str) -> nursery.Birth:
    """A job that is a program of its own, as one of several ranks is."""
    directory.mkdir()
    (directory / "config.yaml").touch()
    return nursery.Birth(str(directory), [sys.executable, "-S", "-c", script], dict(os.environ))


def test_a_program_holds_the_lock_until_its_end(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    script = "import os, signal; print(os.getsid(0), os.getppid(), flush=True); signal.pause()"
    job, handle = birth(tmp_path / "run", script), JobHandle.local(tmp_path / "run")
    with lock.Lock(tmp_path / "run") as held:
        nursery.start(job, [held.file.fileno()])
    request.addfinalizer(lambda: end(handle))
    assert nursery._nursery is not None
    helpers = nursery._nursery._process.pid
    nursery._nursery.close()
    session, above = next(HERE.logs(handle, follow=True)).split()
    assert int(session) == pid_of(handle)
    assert int(above) != helpers
    with pytest.raises(lock.Held, match=f"pid {session}"), lock.Lock(tmp_path / "run"):
        pass
    HERE.cancel(handle)
    assert HERE.wait(handle).reason == "Killed"
    assert "ended without a result" in HERE.why(handle)


def test_a_stop_before_training_has_begun(
    tmp_path: Path, send: Callable[..., JobHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(words: list[str]) -> int:
        print("here")
        signal.pause()
        return 0

    monkeypatch.setattr(helper.worker, "main", main)
    job = spec(tmp_path / "run")
    handle = send(job)
    reach(handle, "here")
    HERE.cancel(handle)
    status = HERE.wait(handle)
    assert (status.state, status.exit_code) == (JobState.CANCELLED, 143)
    end(send(job))
    assert HERE.wait(handle).reason == "Killed"  # not what the sitting before has left


def test_a_job_that_cannot_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(directory: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(helper, "printed", full)
    with pytest.raises(NotStarted, match=r"could not be started: OSError.*No space left"):
        BEHIND.submit(spec(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_job_that_is_killed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper, "printed", lambda directory: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(NotStarted, match="it was killed before it began"):
        BEHIND.submit(spec(tmp_path / "run"))


def test_a_helper_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho there is no torch here >&2; exit 3\n")
    program.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr(Forked, "_spawn", REAL)
        patch.setattr(sys, "executable", str(program))
        with pytest.raises(NotStarted, match="has ended: there is no torch here"):
            BEHIND.submit(spec(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_helper_that_was_killed_is_replaced(tmp_path: Path) -> None:
    for name in ("one", "two"):
        job = birth(tmp_path / name, "")
        with lock.Lock(tmp_path / name) as held:
            nursery.start(job, [held.file.fileno()])
        lock.wait(tmp_path / name)
        assert nursery._nursery is not None
        os.kill(nursery._nursery._process.pid, signal.SIGKILL)
        nursery._nursery._process.wait()


def test_debugging_stays_in_the_foreground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def here(self: LocalLauncher, plan: dict[str, Any], directory: Path, held: lock.Lock) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LocalLauncher, "_here", here)
    with pytest.raises(KeyboardInterrupt):
        BEHIND.submit(spec(tmp_path / "run", "debug=default"))


# --------------------------------------------------------------------------------------------- GPUs


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make this a machine with some GPUs."""
    monkeypatch.setattr(gpus.tempfile, "tempdir", str(tmp_path))

    def make(count: int) -> None:
        lines = [f"echo 'GPU {n}: NVIDIA H100 (UUID: GPU-{n})'" for n in range(count)]
        program = tmp_path / f"{count}" / "nvidia-smi"
        program.parent.mkdir()
        program.write_text("\n".join(["#!/bin/sh", '[ "$1" = -L ] || exit 1', *lines, ""]))
        program.chmod(0o755)
        monkeypatch.delenv(gpus.VISIBLE)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)

    return make


@pytest.fixture
def born(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str | None, list[int]]]:
    """What jobs are born with: the GPUs that they see, and copies of the files that they hold."""
    found: list[tuple[str | None, list[int]]] = []

    def start(birth: nursery.Birth, files: list[int]) -> None:
        found.append((birth.env.get(gpus.VISIBLE), [os.dup(file) for file in files]))

    monkeypatch.setattr(local.nursery, "start", start)
    return found


def test_each_job_gets_gpus_of_its_own(
    tmp_path: Path,
    machine: Callable[[int], None],
    born: list[tuple[str | None, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine(4)
    one, two = (), ("resources.gpus_per_node=2",)
    for name, words in {"a": one, "b": two, "c": ("trainer.accelerator=cpu",)}.items():
        BEHIND.submit(spec(tmp_path / name, *words))
    assert [seen for seen, _ in born] == ["0", "1,2", None]
    with pytest.raises(Full, match=r"wants 2 GPUs, but of the 4 of this machine.* hold 3"):
        BEHIND.submit(spec(tmp_path / "d", *two))
    assert not (tmp_path / "d").exists()
    for file in born[0][1]:
        os.close(file)  # the first one ends
    BEHIND.submit(spec(tmp_path / "d", *two))
    assert born[-1][0] == "0,3"

    monkeypatch.setenv(gpus.VISIBLE, "7,GPU-x,-1,5")
    BEHIND.submit(spec(tmp_path / "e"))
    assert born[-1][0] == "7"
    with pytest.raises(Full):
        BEHIND.submit(spec(tmp_path / "f", *two))


def test_more_gpus_than_there_are(tmp_path: Path, machine: Callable[[int], None]) -> None:
    machine(2)
    with pytest.raises(ConfigError, match="gpus_per_node is 4, but this machine has 2"):
        BEHIND.submit(spec(tmp_path / "run", "resources.gpus_per_node=4"))


def test_one_gpu_is_shared(
    tmp_path: Path, machine: Callable[[int], None], born: list[tuple[str | None, list[int]]]
) -> None:
    machine(1)
    for name in ("a", "b"):
        BEHIND.submit(spec(tmp_path / name))
    assert [seen for seen, _ in born] == [None, None]


# ------------------------------------------------------------------------------------- following


def test_what_is_told_of_jobs(tmp_path: Path) -> None:
    handle = JobHandle("local", str(tmp_path))
    asked: list[JobHandle] = []
    now: dict[str, JobStatus] = {}
    jobs = [handle]

    def status(handle: JobHandle) -> JobStatus:
        asked.append(handle)
        if "status" not in now:
            raise LaunchError("it is not there")
        return now["status"]

    paused: list[float] = []
    changes = following.changes(status, lambda: jobs, paused.append)
    assert next(changes)[handle].state is JobState.UNKNOWN
    now["status"] = JobStatus(JobState.RUNNING)
    assert next(changes) == {handle: JobStatus(JobState.RUNNING)}
    assert next(changes) == {}

    out = printed(tmp_path)
    out.parent.mkdir()
    out.write_text("epoch 1/3  step 9  val/loss 0.5  9 samples/s\nepoch 2/3  step 1")
    first, second, third = (
        Report(1, 3, 9, {"val/loss": 0.5}),
        Report(2, 3, 18, {"val/loss": 0.25}),
        Report(3, 3, 27, {"val/loss": 0.125}),
    )
    assert next(changes) == {handle: JobStatus(JobState.RUNNING, progress=first)}
    with out.open("a") as file:
        file.write("8  val/loss 0.25  9 samples/s\n")
        file.write("epoch 3/3  step 27  val/loss 0.125  9 samples/s\n")
    now["status"] = JobStatus(JobState.SUCCEEDED)
    assert next(changes) == {handle: JobStatus(JobState.RUNNING, progress=second)}
    assert next(changes) == {handle: JobStatus(JobState.RUNNING, progress=third)}
    assert next(changes) == {handle: JobStatus(JobState.SUCCEEDED)}

    del asked[:]
    assert [next(changes), next(changes), asked] == [{}, {}, []]
    jobs.clear()
    assert next(changes) == {}
    jobs.append(handle)
    now["status"] = JobStatus(JobState.RUNNING)
    out.write_text("epoch 1/3  step 9  val/loss 0.5  9 samples/s\n")
    assert next(changes) == {handle: JobStatus(JobState.RUNNING, progress=first)}
    assert len(paused) == 8


def children(pid: int) -> set[int]:
    return {int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def pid_of(handle: JobHandle) -> int:
    found = lock.holder(Path(handle.path))
    assert found is not None
    return found


def await_end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        file = os.pidfd_open(pid)
        select.select([file], [], [])
        os.close(file)
