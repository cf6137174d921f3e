"""Whole jobs through the embedded service: real boto3, real torchrun and gloo, two instances."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hydra_trainer import __main__ as verbs
from hydra_trainer.embedded import sagemaker
from hydra_trainer.embedded.sagemaker import Service
from hydra_trainer.job import JobHandle, JobState
from hydra_trainer.launcher import recorded
from hydra_trainer.launchers import sagemaker as launched
from hydra_trainer.sagemaker.account import Account

from .conftest import REPOSITORY, Job
from .sent import Sent
from .test_resume import assert_equal

# With the tests of two ranks in one worker: they share a reference, and fill two cores.
pytestmark = pytest.mark.xdist_group("ranks")

TWO = ["launcher=sagemaker", "launcher.embedded=true", "resources.nodes=2"]
Hit = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture(autouse=True)
def here(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service of this process instead of one in the background."""
    monkeypatch.setattr(sagemaker, "start", lambda home: service.endpoint)
    monkeypatch.setattr(launched, "HOME", service.home)
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sent:
    return Sent(tmp_path, capsys, *TWO)


def fetched(sent: Sent, service: Service) -> Job:
    """Return the run directory that SageMaker keeps in S3, as a folder of this machine."""
    account = Account("us-east-1", service.endpoint)
    found = account.describe(sent.name)
    assert found is not None
    bucket, _, prefix = found["CheckpointConfig"]["S3Uri"].removeprefix("s3://").partition("/")
    s3 = account.client("s3")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for one in page["Contents"]:
            path = sent.folder / "fetched" / one["Key"].removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, one["Key"], str(path))
    return Job(sent.folder / "fetched", [])


def test_two_spot_instances_train_what_two_ranks_train_here(
    sent: Sent, reference: Job, service: Service, hit: Hit
) -> None:
    """Taken away in the middle, they save; new ones go on with the very next sample."""
    before = Counter(service.calls)
    words = ("launcher.spot=true",)
    env = hit("until", "train", 13)
    sent.send(*words, env=env)
    sending = Counter(service.calls) - before
    asked = {name: count for (_, name), count in sending.items() if name != "CreateBucket"}
    assert asked == {"HeadObject": 1, "PutObject": 2, "CreateTrainingJob": 1}
    sent.until("waiting")
    service.interrupt(sent.name)
    status = sent.place.wait(sent.handle)
    assert status.state is JobState.SUCCEEDED, sent.place.why(sent.handle)
    assert (status.restarts, status.exit_code) == (1, 0)
    assert status.result["objective"] == reference.result()["objective"]
    assert_equal(fetched(sent, service), reference)
    assert "going on from step" in "".join(sent.place.logs(sent.handle))
    assert_found_again(sent, sent.words(*words, env=env))


def assert_found_again(sent: Sent, words: list[str]) -> None:
    """The verbs of a job that is done, by its handle and its directory; then its own command."""
    handle = str(sent.handle)
    told = sent.capsys
    assert recorded(sent.directory) == sent.handle
    assert verbs.verb("status", [str(sent.directory)]) == 0
    assert told.readouterr().out.startswith("SUCCEEDED  Completed  ")
    assert verbs.verb("wait", [handle]) == 0
    assert verbs.verb("logs", [handle]) == 0
    assert "2 processes, CPU" in told.readouterr().out
    assert verbs.verb("logs", [handle, "--all"]) == 0
    assert "algo-1  " in told.readouterr().out
    assert verbs.verb("logs", [handle, "--rank", "7"]) == 1
    assert "has no rank 7" in told.readouterr().err
    assert verbs.verb("why", [handle]) == 0
    assert "SUCCEEDED" in told.readouterr().out
    assert verbs.verb("list", ["sagemaker://embedded"]) == 0
    assert handle in told.readouterr().out
    assert sent.type(*words) == 0
    printed = told.readouterr()
    assert "is there already" in printed.err and "test accuracy" in printed.out


@pytest.mark.soak
def test_two_instances_that_nothing_happens_to(
    sent: Sent, reference: Job, service: Service
) -> None:
    sent.send()
    assert sent.place.wait(sent.handle).state is JobState.SUCCEEDED, sent.place.why(sent.handle)
    assert_equal(fetched(sent, service), reference)
    assert_found_again(sent, sent.words())


@pytest.mark.soak
def test_a_stopped_job_goes_on_with_the_same_command(sent: Sent, hit: Hit) -> None:
    sent.where = (*TWO[:2],)
    env = hit("until", "train", 13)
    sent.send(env=env)
    sent.until("waiting")
    sent.place.cancel(sent.handle)
    status = sent.place.wait(sent.handle)
    assert (status.state, status.exit_code) == (JobState.CANCELLED, 143)
    first = sent.handle
    sent.send(env=env)
    assert sent.handle == JobHandle("sagemaker", f"{first.path}-2")
    assert sent.place.wait(sent.handle).state is JobState.SUCCEEDED
    assert "going on from step" in "".join(sent.place.logs(sent.handle))


@pytest.mark.soak
def test_results_go_to_a_file_system(sent: Sent) -> None:
    """And a rehearsal leaves them where a run of this machine would."""
    words = ["trainer.max_epochs=1", "storage=efs", f"storage.mounts.output.local={sent.folder}/x"]
    sent.where = (*TWO[:2], *words)
    assert sent.type(*[word for word in sent.words() if not word.startswith("storage.output")]) == 0
    (directory,) = (sent.folder / "x").iterdir()
    assert Job(directory, []).result()["status"] == "completed"
    assert Job(directory, []).state()["global_step"] == 9
    assert recorded(directory) is not None


@pytest.mark.soak
def test_an_error_in_the_users_code_is_told(
    sent: Sent, service: Service, hit: Hit, capsys: pytest.CaptureFixture[str]
) -> None:
    sent.send("resources.nodes=1", env=hit("raise", "train", 3))
    status = sent.place.wait(sent.handle)
    assert (status.state, status.exit_code) == (JobState.FAILED, 1)
    found = Account("us-east-1", service.endpoint).describe(sent.name)
    assert found is not None
    assert "the drill divided by zero" in found["FailureReason"]
    assert "drill.py" in found["FailureReason"] and len(found["FailureReason"]) <= 1100
    assert verbs.verb("why", [str(sent.handle)]) == 0
    told = capsys.readouterr().out
    assert "the drill divided by zero" in told and "ZeroDivisionError" in told
    assert verbs.verb("wait", [str(sent.handle)]) == 1


@pytest.mark.soak
def test_settings_that_differ_are_refused_and_again_runs_anew(
    sent: Sent, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    sent.where = (*TWO[:2], "trainer.max_epochs=1")
    sent.send()
    assert sent.place.wait(sent.handle).state is JobState.SUCCEEDED
    assert sent.type(*sent.words("launcher.volume_size=50")) == 1
    assert "is there already, with other settings" in capsys.readouterr().err
    first = sent.handle
    sent.send("again=true")
    assert sent.handle == JobHandle("sagemaker", f"{first.path}-2")
    assert sent.place.wait(sent.handle).state is JobState.SUCCEEDED
    log = "\n".join(sent.place.logs(sent.handle))
    assert "epoch 1/1" in log and "going on" not in log
