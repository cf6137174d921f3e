"""The local launcher's verbs, and the result contract of the bootstrap."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hydra_trainer import __main__ as verbs
from hydra_trainer import bootstrap
from hydra_trainer.errors import LaunchError
from hydra_trainer.job import JobHandle, JobState
from hydra_trainer.launchers.local import LocalLauncher

from .conftest import Job

Hit = Callable[..., dict[str, str]]


def test_the_verbs_on_a_run_through_its_life(
    job: Callable[..., Job], hit: Hit, capsys: pytest.CaptureFixture[str]
) -> None:
    launcher, drill = LocalLauncher(), job("a run")
    handle = str(JobHandle.local(drill.directory))
    assert " " not in handle

    with drill.start(**hit("hang", "train", 5)) as process:
        assert process.stdout is not None
        while "hanging" not in process.stdout.readline():
            assert process.poll() is None
        assert launcher.status(JobHandle.parse(handle)).state is JobState.RUNNING
        code, printed = drill.run()
        assert (code, "Another process" in printed) == (1, True), printed
        process.kill()
    assert launcher.status(JobHandle.parse(handle)).reason == "Killed"
    assert verbs.verb("wait", [handle]) == 1

    assert drill.run(**hit("SIGTERM", "train", 7))[0] == 143
    assert launcher.status(JobHandle.parse(handle)).state is JobState.CANCELLED
    assert verbs.verb("wait", [handle]) == 143

    assert drill.run()[0] == 0
    capsys.readouterr()
    assert verbs.verb("status", [handle]) == 0
    assert capsys.readouterr().out.startswith("SUCCEEDED  val/loss=")
    assert verbs.verb("logs", [handle]) == 0
    assert verbs.verb("cancel", [handle]) == 0
    assert verbs.verb("logs", [handle, "--rank", "3"]) == 1
    assert "has no log of rank 3; it has: rank-0.log" in capsys.readouterr().err


def test_cancel_makes_a_running_job_save_and_stop(job: Callable[..., Job], hit: Hit) -> None:
    drill = job("run", "trainer.max_epochs=1000", "checkpoint.every_n_steps=null")
    with drill.start() as process:
        assert process.stdout is not None
        while "epoch 1/1000" not in process.stdout.readline():
            assert process.poll() is None
        LocalLauncher().cancel(JobHandle.local(drill.directory))
        process.stdout.read()
    assert process.returncode == 143
    assert drill.state()["global_step"] >= 9


@pytest.mark.parametrize("text", ["", "nonsense", "local://", "/absolute/dir"])
def test_what_is_no_handle(text: str) -> None:
    with pytest.raises(
        LaunchError, match=r"is neither a run directory nor a handle, such as local:///"
    ):
        JobHandle.parse(text)


def test_a_handle_of_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verbs.verb("status", [str(JobHandle.local(tmp_path))]) == 1
    assert "There is no run in" in capsys.readouterr().err
    assert verbs.verb("status", ["eks://context/namespace/name"]) == 1
    with pytest.raises(SystemExit) as caught:
        verbs.verb("status", [])
    assert caught.value.code == 2


@given(st.text(min_size=1))
def test_a_handle_comes_back(name: str) -> None:
    handle = JobHandle("local", f"/runs/{name}")
    assert JobHandle.parse(str(handle)) == handle


TEXT = st.text(max_size=6000)


@settings(deadline=None)
@given(
    message=TEXT,
    trace=TEXT,
    metrics=st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=50),
)
def test_a_report_fits_into_what_kubernetes_keeps(
    message: str, trace: str, metrics: dict[str, float]
) -> None:
    result: dict[str, Any] = {
        "status": "failed",
        "exit_code": 1,
        "rank": 3,
        "objective": {"metric": "val/loss", "value": 0.5},
        "metrics": metrics,
        "error": {"type": "ValueError", "message": message, "traceback": trace},
    }
    text = bootstrap.compact(result)
    assert len(text.encode()) <= bootstrap.REPORT_LIMIT
    back = json.loads(text)
    assert (back["status"], back["exit_code"]) == ("failed", 1)
    if len(json.dumps(message)) < 2000:
        assert back["objective"]["value"] == 0.5
        assert back["error"]["message"] == message
        assert trace.endswith(back["error"].get("traceback", ""))


def test_a_report_and_an_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration that no rank can read: exit code 2, and the report says why."""
    (tmp_path / "config.yaml").write_text("nothing: here\n")
    report = tmp_path / "report"
    pid = os.fork()
    if pid == 0:
        words = ["--nproc-per-node=2", "--report", str(report), str(tmp_path / "config.yaml")]
        os._exit(bootstrap.main(words))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 2
    told = json.loads(report.read_text())
    assert (told["status"], told["exit_code"]) == ("failed", 2)
    assert "is not a resolved configuration" in told["error"]["message"]
    assert json.loads((tmp_path / "result.json").read_text())["exit_code"] == 2
