"""Whole jobs through the embedded cluster: the real client, real torchrun and gloo, two pods."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hydra_trainer import __main__ as verbs
from hydra_trainer import embedded
from hydra_trainer.embedded import Embedded
from hydra_trainer.job import JobState
from hydra_trainer.launcher import RECORD, recorded

from .conftest import REPOSITORY, Job
from .sent import Sent

# With the tests of two ranks in one worker: they share a reference, and fill two cores.
pytestmark = pytest.mark.xdist_group("ranks")

EKS = ["launcher=eks", "launcher.embedded=true", "resources.nodes=2"]
Hit = Callable[..., dict[str, str]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("cluster")) as found:
        yield found


@pytest.fixture(autouse=True)
def here(cluster: Embedded, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cluster of this process instead of one in the background."""
    monkeypatch.setattr(embedded, "start", lambda home: cluster.kubeconfig)
    monkeypatch.chdir(REPOSITORY)


@pytest.fixture
def sent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sent:
    return Sent(tmp_path, capsys, *EKS)


def test_two_pods_train_what_two_ranks_train_here(
    sent: Sent, reference: Job, cluster: Embedded, hit: Hit
) -> None:
    """Their nodes are drained in the middle: they save, and new ones go on from there."""
    env = hit("until", "train", 13)
    sent.send(env=env)
    sent.until("waiting")
    cluster.controllers.kubelet.drain()
    status = sent.place.wait(sent.handle)
    assert status.state is JobState.SUCCEEDED, sent.place.why(sent.handle)
    sent.assert_equal(reference)
    assert "going on from step" in "".join(sent.place.logs(sent.handle))
    assert status.exit_code == 0
    assert status.result["objective"] == reference.result()["objective"]
    assert_found_again(sent, sent.words(env=env))


def assert_found_again(sent: Sent, words: list[str]) -> None:
    """The verbs of a job that is done, by its handle and its directory; then its own command."""
    handle = str(sent.handle)
    told = sent.capsys
    assert recorded(sent.directory) == sent.handle and (sent.directory / RECORD).exists()
    assert verbs.verb("status", [str(sent.directory)]) == 0
    status = told.readouterr().out  # the other pod may still be ending
    assert status.startswith("SUCCEEDED  Completed  ") and "val/loss=" in status
    assert verbs.verb("wait", [handle]) == 0
    assert verbs.verb("logs", [handle]) == 0
    assert "2 processes, CPU" in told.readouterr().out
    assert verbs.verb("logs", [handle, "--all"]) == 0
    assert verbs.verb("logs", [handle, "--rank", "7"]) == 1
    assert "has no rank 7" in told.readouterr().err
    assert verbs.verb("why", [handle]) == 0
    assert "SUCCEEDED" in told.readouterr().out
    assert sent.type(*words) == 0
    printed = told.readouterr()
    assert "is there already" in printed.err and "test accuracy" in printed.out


@pytest.mark.soak
def test_two_pods_that_nothing_happens_to(sent: Sent, reference: Job) -> None:
    sent.send()
    assert sent.place.wait(sent.handle).state is JobState.SUCCEEDED
    sent.assert_equal(reference)
    assert_found_again(sent, sent.words())


@pytest.mark.soak
@pytest.mark.parametrize("role", ["worker", "master"])
def test_a_pod_that_is_killed_is_made_anew(
    sent: Sent, reference: Job, cluster: Embedded, hit: Hit, role: str
) -> None:
    """The master holds the store through which all others meet."""
    sent.send(env=hit("hang", "train", 13))
    sent.until("hanging")
    cluster.controllers.kubelet.kill("default", f"{sent.name}-{role}-0")
    status = sent.place.wait(sent.handle)
    assert status.state is JobState.SUCCEEDED, sent.place.why(sent.handle)
    sent.assert_equal(reference)


@pytest.mark.soak
@pytest.mark.parametrize("api", ["trainjob", "hyperpod"])
def test_the_other_operators_train_the_same(sent: Sent, reference: Job, api: str) -> None:
    sent.send(f"launcher.api={api}")
    status = sent.place.wait(sent.handle)
    assert status.state is JobState.SUCCEEDED, sent.place.why(sent.handle)
    sent.assert_equal(reference)


@pytest.mark.soak
def test_an_error_in_the_users_code_ends_the_job_and_is_told(
    sent: Sent, hit: Hit, capsys: pytest.CaptureFixture[str]
) -> None:
    sent.send("resources.nodes=1", env=hit("raise", "train", 3))
    status = sent.place.wait(sent.handle)
    assert (status.state, status.exit_code) == (JobState.FAILED, 1)
    assert verbs.verb("why", [str(sent.handle)]) == 0
    told = capsys.readouterr().out
    assert "the drill divided by zero" in told and "ZeroDivisionError" in told
    assert verbs.verb("wait", [str(sent.handle)]) == 1


@pytest.mark.soak
def test_cancel_lets_a_job_save(sent: Sent, cluster: Embedded, hit: Hit) -> None:
    sent.send("resources.nodes=1", env=hit("until", "train", 5))
    sent.until("waiting")
    sent.place.cancel(sent.handle)
    assert sent.place.wait(sent.handle).state is JobState.CANCELLED
    assert Job(sent.directory, []).state()["global_step"] == 6
    left = [
        cluster.store.list(kind, "default", labels=f"hydra-trainer.dev/job={name}")[0]
        for kind in ("pods", "configmaps")
        for name in [sent.name]
    ]
    assert left == [[], []]
