"""Many jobs of a cluster, told of as they go: what is known of them, and what is asked for that."""

import gc
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest

from benchmarks import jobs
from hydra_trainer import embedded
from hydra_trainer.eks import channel, known, many, slim, state
from hydra_trainer.eks.known import KEPT, LAG, Book
from hydra_trainer.eks.state import Seen
from hydra_trainer.embedded import Embedded
from hydra_trainer.embedded.faults import Fault
from hydra_trainer.embedded.podlogs import log_file
from hydra_trainer.embedded.routes import verb
from hydra_trainer.errors import Full, LaunchError
from hydra_trainer.job import JobHandle, JobState, JobStatus, Report
from hydra_trainer.launchers.eks import EksLauncher
from hydra_trainer.retry import Retry

from . import test_eks_state as told

Object = dict[str, Any]
JOBS = "pytorchjobs.kubeflow.org"
TRAINJOBS = "trainjobs.trainer.kubeflow.org"
GOOD = {"status": "completed", "exit_code": 0, "objective": {"metric": "val/loss", "value": 0.5}}
QUIET = {"status": "completed", "exit_code": 0}
STOPPED = {"status": "stopped", "exit_code": 143}
PENDING, RUNNING, SUCCEEDED = JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED
FAILED, CANCELLED, UNKNOWN = JobState.FAILED, JobState.CANCELLED, JobState.UNKNOWN

# ------------------------------------------------------------------------------------ what is known


def job(name: str = "a", condition: str | None = None, uid: str = "u", **meta: Any) -> Object:
    role = {"replicas": 1, "template": {"spec": {"containers": []}}}
    conditions = [{"type": condition, "status": "True"}] if condition else []
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": "default", "uid": f"{uid}-{name}", **meta},
        "spec": {"pytorchReplicaSpecs": {"Master": role}},
        "status": {"conditions": conditions},
    }


def pod(
    name: str = "a",
    phase: str = "Running",
    result: Object | None = None,
    role: str = "master",
    grace: int = 60,
) -> Object:
    ended = phase in ("Succeeded", "Failed")
    code = int(phase == "Failed")
    terminated = {"terminated": {"exitCode": code, "message": json.dumps(result or "")}}
    shown = terminated if ended else {"running": {}} if phase == "Running" else {}
    containers = [{"name": "pytorch", "restartCount": 0, "state": shown}]
    labels = {"hydra-trainer.dev/job": name, "training.kubeflow.org/job-role": role}
    own = f"{name}-{role}-0"
    return {
        "metadata": {"name": own, "uid": f"uid-{own}", "labels": labels},
        "spec": {
            "nodeName": "n",
            "containers": [{"name": "pytorch"}],
            "terminationGracePeriodSeconds": grace,
        },
        "status": {"phase": phase, "containerStatuses": containers},
    }


def states(news: dict[str, JobStatus]) -> dict[str, JobState]:
    return {name: status.state for name, status in news.items()}


@pytest.fixture
def book() -> Book:
    """One that is asked for a job, which lists have shown to run."""
    found = Book()
    found.ask({"a"}, 0.0)
    found.take_lists([job(condition="Running")], [pod()], None)
    found.settle({"a"})
    assert states(found.news(0.0)) == {"a": RUNNING}
    return found


CASES = [
    *(case[0] for case in told.PENDING_CASES.values()),
    *(told.seen(told.pod(**told.RUN), case[0], job=told.FAILS)
      for case in told.FAILED_CASES.values()),
    told.seen(told.pod("node-0-1-q9wzt", "Succeeded", container="node", terminated=told.QUIET),
              told.pod("node-0-0-x7k2p", "Succeeded", container="node", terminated=told.DONE,
                       labels=told.FIRST), job=told.trainjob(told.condition("Complete"))),
    told.seen(told.pod("pods-0", last=told.LAST, restarts=2, **told.RUN), told.pod("pods-1"),
              job=told.hyperpodjob(told.condition("Running"), restarts=3)),
    told.seen(*told.BOTH, job=told.pytorchjob(told.RUNS, elastic=1, runPolicy=told.SUSPENDED)),
    Seen(None, [told.pod(**told.RUN)], []),
]  # fmt: skip


@pytest.mark.parametrize("shown", CASES)
def test_what_is_kept_of_objects_tells_the_same(shown: Seen) -> None:
    whole = shown._replace(events=[], workload=None)
    kept = slim.job(whole.job) if whole.job else None
    assert state.status(Seen(kept, [*map(slim.pod, whole.pods)], [])) == state.status(whole)


def test_what_is_kept_is_small() -> None:
    whole = EksLauncher(embedded=True).render(jobs.sweep(1, "eks")[0])["items"][-1]
    whole["metadata"]["uid"] = "u"
    assert len(json.dumps(slim.job(whole))) < len(json.dumps(whole)) / 5


def test_a_change_is_told_once(book: Book) -> None:
    assert book.news(1.0) == {}
    book.take_pod("MODIFIED", pod())
    assert book.news(2.0) == {}
    book.take_job("MODIFIED", job(condition="Restarting"))
    assert [status.reason for status in book.news(3.0).values()] == ["Restarting"]


def test_a_job_that_was_created_before_it_is_asked_for(book: Book) -> None:
    book.take_job("ADDED", job("b"))
    assert book.news(1.0) == {}
    book.ask({"a", "b"}, 1.0)
    assert states(book.news(1.0)) == {"b": PENDING}


def test_a_job_that_is_not_seen_yet_is_looked_for_before_it_is_unknown(book: Book) -> None:
    book.ask({"a", "b"}, 10.0)
    assert book.news(10.0 + LAG) == {} and book.unseen(9.9 + LAG) == set()
    assert book.unseen(10.0 + LAG) == {"b"}
    book.take_lists([job(condition="Running")], [], {"b"})
    book.settle({"b"})
    assert states(book.news(20.0)) == {"b": UNKNOWN}
    book.take_job("ADDED", job("b"))  # it is sent once more
    assert states(book.news(21.0)) == {"b": PENDING}


def test_a_name_that_is_still_asked_for_after_its_end_is_looked_for_once(book: Book) -> None:
    """It may be sent again while nobody looked at what is asked for, and be of another kind."""
    book.take_pod("MODIFIED", pod(phase="Succeeded", result=GOOD))
    book.take_job("MODIFIED", job(condition="Succeeded"))
    assert states(book.news(1.0)) == {"a": SUCCEEDED}
    assert book.unseen(0.9 + LAG) == set() and book.unseen(1.0 + LAG) == {"a"}
    book.take_lists([job(condition="Succeeded")], [pod(phase="Succeeded")], {"a"})
    book.settle({"a"})
    assert book.news(7.0) == {} and book.unseen(99.0) == set()
    book.take_lists([job(uid="v")], [], {"a"})
    assert states(book.news(8.0)) == {"a": PENDING}


def test_a_job_that_comes_while_it_is_looked_for(book: Book) -> None:
    """The lists are of before it was created, or the watch has told more since."""
    book.ask({"a", "b"}, 0.0)
    book.take_job("ADDED", job("b", "Running"))
    book.take_pod("ADDED", pod("b", "Succeeded", GOOD))
    book.take_lists([job("b")], [pod("b", "Pending")], {"b"})
    book.settle({"b"})
    assert states(book.news(1.0)) == {"b": RUNNING}
    book.take_job("MODIFIED", job("b", "Succeeded"))
    (status,) = book.news(2.0).values()
    assert (status.state, status.result) == (SUCCEEDED, GOOD)


def test_an_end_waits_for_the_end_of_its_pod(book: Book) -> None:
    book.take_job("MODIFIED", job(condition="Succeeded"))
    assert book.news(10.0) == {} and book.unclear(9.9 + LAG) == set()
    book.take_pod("MODIFIED", pod(phase="Succeeded", result=GOOD))
    (status,) = book.news(11.0).values()
    assert (status.state, status.result) == (SUCCEEDED, GOOD)
    assert len(book) == 0 and book.unclear(99.0) == set()


def test_an_end_does_not_wait_for_ever(book: Book) -> None:
    book.take_job("MODIFIED", job(condition="Succeeded"))
    assert book.news(10.0) == {}
    assert book.unclear(10.0 + LAG) == {"a"}
    book.take_lists([], [pod(phase="Succeeded", result=GOOD)], {"a"})
    book.settle({"a"})
    assert book.news(20.0)["a"].result == GOOD


@pytest.mark.parametrize("condition", ["Succeeded", "Failed"])
def test_an_end_whose_pods_are_gone_is_told_without_a_result(book: Book, condition: str) -> None:
    book.take_pod("DELETED", pod())
    book.take_job("MODIFIED", job(condition=condition))
    assert book.news(10.0) == {}
    book.settle({"a"})
    (status,) = book.news(20.0).values()
    assert (status.state, status.result) == (state.ENDS[condition], None)


def test_what_has_ended_before_anyone_looked_is_told_at_once() -> None:
    book = Book()
    book.ask({"a", "b"}, 0.0)
    pods = [pod(phase="Succeeded", result=GOOD), pod(role="worker")]
    book.take_lists([job(condition="Succeeded"), job("b", "Failed")], pods, None)
    book.settle({"a", "b"})
    found = book.news(0.0)
    assert states(found) == {"a": SUCCEEDED, "b": FAILED} and found["a"].result == GOOD


def test_a_success_waits_for_rank_0(book: Book) -> None:
    book.take_pod("ADDED", pod(role="worker"))
    book.take_job("MODIFIED", job(condition="Succeeded"))
    book.take_pod("MODIFIED", pod(phase="Succeeded", result=QUIET, role="worker"))
    assert book.news(1.0) == {}
    book.take_pod("MODIFIED", pod(phase="Succeeded", result=GOOD))
    assert book.news(2.0)["a"].result == GOOD


def test_a_success_does_not_wait_for_the_others(book: Book) -> None:
    book.take_pod("ADDED", pod(role="worker"))
    book.take_pod("MODIFIED", pod(phase="Succeeded", result=GOOD))
    book.take_job("MODIFIED", job(condition="Succeeded"))
    assert states(book.news(1.0)) == {"a": SUCCEEDED}


def test_a_pod_that_is_deleted_after_the_end_still_tells_its_result(book: Book) -> None:
    book.take_job("MODIFIED", job(condition="Failed"))
    book.take_pod("MODIFIED", pod(phase="Failed", result={"status": "failed", "exit_code": 3}))
    book.take_pod("DELETED", pod())
    assert book.news(1.0)["a"].exit_code == 3


def test_a_job_that_is_deleted_is_told_once_its_pods_have_saved(book: Book) -> None:
    book.take_job("DELETED", job())
    assert book.news(1.0) == {}
    book.take_pod("MODIFIED", pod(phase="Failed", result=STOPPED))
    (status,) = book.news(2.0).values()
    assert (status.state, status.result) == (CANCELLED, STOPPED)
    book.take_pod("DELETED", pod())
    assert book.news(3.0) == {} and len(book) == 0


def test_a_pod_of_a_deleted_job_that_does_not_end_is_not_waited_for_long(book: Book) -> None:
    book.take_job("DELETED", job())
    assert book.news(10.0) == {} and book.news(10.0 + 60 + LAG) == {}
    assert states(book.news(10.1 + 60 + LAG)) == {"a": CANCELLED}


def test_a_job_whose_end_is_known_may_be_deleted(book: Book) -> None:
    book.take_job("MODIFIED", job(condition="Succeeded"))
    assert book.news(1.0) == {}
    book.take_job("DELETED", job(condition="Succeeded"))
    assert states(book.news(2.0)) == {"a": SUCCEEDED}


def test_a_job_that_was_deleted_before_anyone_looked() -> None:
    book = Book()
    book.ask({"a", "b"}, 0.0)
    book.take_lists([], [pod()], None)
    book.settle({"a", "b"})
    assert states(book.news(0.0)) == {"b": UNKNOWN}
    book.take_pod("DELETED", pod())
    assert states(book.news(1.0)) == {"a": CANCELLED}


def test_a_name_that_comes_again_is_another_job(book: Book) -> None:
    """`again` deletes a job and creates it anew; the sweep asks for both by the same name."""
    book.take_pod("MODIFIED", pod(phase="Failed", result=STOPPED))
    book.take_job("MODIFIED", job(condition="Failed"))
    assert states(book.news(1.0)) == {"a": FAILED}
    book.take_job("MODIFIED", job(condition="Failed"))  # its time stamp was written
    assert book.news(2.0) == {} and len(book) == 0
    for asked in (set[str](), {"a"}):
        book.ask(asked, 3.0)
        book.take_job("MODIFIED", job(condition="Failed", deletionTimestamp="now"))
        book.take_job("DELETED", job(condition="Failed"))
        book.take_pod("DELETED", pod())
        assert book.news(3.0) == {}
    book.take_job("ADDED", job(uid="v"))
    assert states(book.news(4.0)) == {"a": PENDING}


def test_what_is_deleted_before_it_is_sent_again_is_not_the_end_of_that() -> None:
    """The watch may be behind: an end of an earlier sitting comes after the new job is known."""
    book = Book()
    book.take_lists([job(condition="Failed")], [], None)
    book.ask({"a"}, 1.0)
    book.take_job("MODIFIED", job(condition="Failed", deletionTimestamp="now"))
    book.take_job("DELETED", job(condition="Failed"))
    assert book.news(1.0) == {}
    book.take_job("ADDED", job(uid="v"))
    assert states(book.news(1.0)) == {"a": PENDING}


def test_nothing_is_kept_of_what_nobody_asks_for() -> None:
    book = Book()
    book.ask({"a"}, 0.0)
    book.take_lists(
        [job("old", "Succeeded"), job("older", "Failed"), job("theirs", "Running")],
        [pod("old", "Succeeded", GOOD), pod("older"), pod("theirs"), pod("gone", "Failed")],
        None,
    )
    book.take_pod("MODIFIED", pod("older", "Failed"))
    book.take_pod("DELETED", pod("older"))
    assert len(book) == 1  # theirs: it may be asked for in a moment
    book.take_job("MODIFIED", job("theirs", "Succeeded"))
    book.take_pod("MODIFIED", pod("theirs", "Succeeded", GOOD))
    assert book.news(1.0) == book.news(0.9 + KEPT) == {} and len(book) == 1
    assert book.news(1.0 + KEPT) == {} and len(book) == 0
    book.take_job("ADDED", job())
    book.ask(set(), 50.0)
    book.take_job("DELETED", job())
    assert book.news(50.0) == {} and len(book) == 0


def test_a_job_may_end_before_it_is_asked_for(book: Book) -> None:
    book.take_pod("ADDED", pod("b"))  # the other watch may be behind
    book.take_pod("MODIFIED", pod("b", "Succeeded", GOOD))
    book.take_job("ADDED", job("b"))
    book.take_job("MODIFIED", job("b", "Succeeded"))
    assert book.news(1.0) == book.news(30.0) == {}
    book.ask({"a", "b"}, 30.0)
    (status,) = book.news(99.0).values()
    assert (status.state, status.result) == (SUCCEEDED, GOOD) and len(book) == 1


def test_progress_is_told_while_a_job_runs(book: Book) -> None:
    assert book.readable == {"a": known.Readable("a-master-0", "pytorch")}
    report = Report(1, 3, 11, {"val/loss": 0.5})
    book.take_progress("a", report)
    assert book.news(1.0)["a"].progress == report and book.news(2.0) == {}
    book.take_pod("MODIFIED", pod(phase="Succeeded", result=GOOD))
    book.take_job("MODIFIED", job(condition="Succeeded"))
    assert book.news(3.0)["a"].progress is None and book.readable == {}
    book.take_progress("a", report)
    assert book.news(4.0) == {}


# ------------------------------------------------------------------------------- what is asked for


Changes = Iterator[dict[JobHandle, JobStatus]]


class Crowd:
    """A cluster whose jobs nobody runs: they do what a test says. `asked` counts the requests."""

    def __init__(self, cluster: Embedded) -> None:
        self.cluster = cluster
        self.asked: Counter[str] = Counter()
        self.left: set[JobHandle] = set()
        do = cluster.server._api._do

        def counted(wanted: Any, request: Any, *others: Any) -> Any:
            self.asked[f"{verb(request, wanted)} {wanted.resource}"] += 1
            return do(wanted, request, *others)

        cluster.server._api._do = counted  # type: ignore[method-assign, assignment]

    def add(self, *names: str, resource: str = JOBS) -> None:
        """Let jobs be created, and be asked for."""
        for name in names:
            made = job(name) if resource == JOBS else told.trainjob() | {"metadata": {"name": name}}
            made["metadata"] = {"name": name, "labels": {"app.kubernetes.io/managed-by": MANAGER}}
            self.cluster.store.create(resource, "default", {**made, "status": {}})
            self.left.add(handle(name))

    def run(self, *names: str) -> None:
        for name in names:
            self.set(JOBS, name, {"conditions": [{"type": "Running", "status": "True"}]})
            made = {"apiVersion": "v1", "kind": "Pod", **pod(name)}
            made["metadata"]["labels"] |= {"app.kubernetes.io/managed-by": MANAGER}
            self.cluster.store.create("pods", "default", made)

    def end(self, *names: str, kind: str = "Succeeded", result: Object = GOOD) -> None:
        for name in names:
            self.set("pods", f"{name}-master-0", pod(name, kind, result)["status"])
            self.set(JOBS, name, {"conditions": [{"type": kind, "status": "True"}]})

    def delete(self, name: str) -> None:
        self.cluster.store.remove("pods", "default", f"{name}-master-0")
        self.cluster.store.remove(JOBS, "default", name)

    def set(self, resource: str, name: str, status: Object) -> None:
        def write(found: Object) -> None:
            found["status"] = status

        self.cluster.store.change(resource, "default", name, write)

    def wait(self, changes: Changes, *wanted: str) -> dict[str, JobStatus]:
        """Listen until each of the jobs has come to a state: 'NAME STATE'."""
        left, found = {*wanted}, {}
        for one, status in heard(changes):
            found[name := one.path.rpartition("/")[2]] = status
            left.discard(f"{name} {status.state}")
            if status.state.ended or status.state is UNKNOWN:
                self.left.discard(one)
            if not left:
                break
        return found


def heard(changes: Changes) -> Iterator[tuple[JobHandle, JobStatus]]:
    """Yield what is told, one after the other. A test fails when nothing is for half a minute."""
    silent = 0
    while silent < 3000:
        found = next(changes)
        silent = 0 if found else silent + 1
        yield from found.items()
    raise AssertionError("nothing is told any more")


def progress(changes: Changes, name: str) -> Report:
    """Listen until it is told how far a job has come."""
    said = (status.progress for one, status in heard(changes) if one == handle(name))
    return next(report for report in said if report is not None)


MANAGER = "hydra-trainer"


def handle(name: str) -> JobHandle:
    return JobHandle("eks", f"embedded/default/{name}")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    with Embedded(tmp_path_factory.mktemp("cluster"), controllers=False) as found:
        yield found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there at once is looked for."""
    monkeypatch.setattr(known, "LAG", 0.0)
    monkeypatch.setattr(many, "BETWEEN", 0.0)


@pytest.fixture
def crowd(cluster: Embedded, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowd]:
    monkeypatch.setattr(embedded, "start", lambda home: cluster.kubeconfig)
    monkeypatch.setattr(many, "TICK", 0.01)
    monkeypatch.setattr(many, "GATHER", 0.0)
    do = cluster.server._api._do
    yield Crowd(cluster)
    cluster.server._api._do = do  # type: ignore[method-assign]
    cluster.faults.clear()
    for resource in (JOBS, TRAINJOBS, "pods"):
        for one in cluster.store.list(resource)[0]:
            cluster.store.remove(resource, "default", one["metadata"]["name"])


def watching(crowd: Crowd, **more: Any) -> Any:
    place = EksLauncher(embedded=True).in_background()
    assert place.detach
    return closing(place.watch(lambda: {*crowd.left}, **{"progress": False, **more}))


def test_two_hundred_jobs_are_told_of_by_two_lists_and_two_watches(crowd: Crowd) -> None:
    names = [f"job-{number}" for number in range(200)]
    crowd.add(*names[:50])
    with watching(crowd) as changes:
        crowd.wait(changes, *[f"{name} PENDING" for name in names[:50]])
        crowd.add(*names[50:])
        crowd.run(*names)
        crowd.wait(changes, *[f"{name} RUNNING" for name in names])
        crowd.end(*names[:150])
        crowd.end(*names[150:199], kind="Failed", result={"status": "failed", "exit_code": 7})
        crowd.delete(names[199])
        ends = [f"{name} SUCCEEDED" for name in names[:150]]
        ends += [f"{name} FAILED" for name in names[150:199]]
        found = crowd.wait(changes, *ends, f"{names[199]} CANCELLED")
    assert [found[name].result for name in names[:150]] == [GOOD] * 150
    assert {found[name].exit_code for name in names[150:199]} == {7}
    assert crowd.asked == {
        f"{verb} {kind}": 1 for verb in ("list", "watch") for kind in (JOBS, "pods")
    }


@pytest.mark.usefixtures("hasty")
def test_only_the_kinds_that_are_needed_are_watched(crowd: Crowd) -> None:
    crowd.add("train", resource=TRAINJOBS)
    with watching(crowd) as changes:
        crowd.wait(changes, "train PENDING")
        crowd.add("next", resource=TRAINJOBS)
        crowd.wait(changes, "next PENDING")  # so the watches are there
        assert crowd.asked[f"watch {JOBS}"] == 0
        crowd.add("a")  # of a kind that nobody watches yet
        crowd.wait(changes, "a PENDING")
        crowd.run("a")
        crowd.end("a")
        crowd.wait(changes, "a SUCCEEDED")
        watches = {key: count for key, count in crowd.asked.items() if key.startswith("watch")}
    assert watches == {f"watch {kind}": 1 for kind in (JOBS, TRAINJOBS, "pods")}
    assert "list hyperpodpytorchjobs.sagemaker.amazonaws.com" not in crowd.asked


@pytest.mark.parametrize(
    "faults",
    [
        [Fault("compact", after=2, times=None)],
        [Fault("silent", after=1, times=2), Fault("compact", after=3, times=2)],
        [Fault("reset", times=6)],
        [Fault("status", code=429, times=6)],
    ],
    ids=["410", "silent", "reset", "429"],
)
def test_nothing_is_missed_in_trouble(
    faults: list[Fault], crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once: Callable[..., Retry] = lambda **budget: Retry(**budget, sleep=lambda seconds: None)  # noqa: E731
    monkeypatch.setattr("hydra_trainer.retry.Retry", at_once)
    monkeypatch.setattr("hydra_trainer.eks.cluster.MARGIN", -119.8)
    names = [f"job-{number}" for number in range(20)]
    crowd.add(*names[:5])
    for fault in faults:
        crowd.cluster.faults.add(fault)
    with watching(crowd) as changes:
        crowd.wait(changes, *[f"{name} PENDING" for name in names[:5]])
        crowd.add(*names[5:])
        for name in names[:-1]:
            crowd.run(name)
            crowd.end(name)
        crowd.run(names[-1])
        crowd.wait(changes, *[f"{name} SUCCEEDED" for name in names[:-1]], f"{names[-1]} RUNNING")
        crowd.delete(names[-1])
        found = crowd.wait(changes, f"{names[-1]} CANCELLED")
    assert len(found) == 1
    assert sum(fault["came"] for fault in crowd.cluster.faults.list()) > 2


@pytest.mark.usefixtures("hasty")
def test_what_is_not_there_is_unknown(crowd: Crowd) -> None:
    crowd.left.add(handle("never"))
    with watching(crowd) as changes:
        assert crowd.wait(changes, "never UNKNOWN")["never"].reason == "NotFound"
        crowd.add("never")
        crowd.wait(changes, "never PENDING")


def test_nobody_is_asked_before_there_are_jobs_and_a_pause_is_told(crowd: Crowd) -> None:
    with watching(crowd) as changes:
        assert [next(changes) for _ in range(3)] == [{}, {}, {}]
        assert crowd.asked == {}
        crowd.add("a")
        crowd.wait(changes, "a PENDING")
        assert [next(changes) for _ in range(3)] == [{}, {}, {}]


def test_the_end_of_the_listener_ends_all_connections(crowd: Crowd) -> None:
    before = {*threading.enumerate()}
    crowd.add("a")
    with watching(crowd, progress=True) as changes:
        crowd.wait(changes, "a PENDING")
        crowd.add("b")
        crowd.wait(changes, "b PENDING")  # so the watches are there
        new = {*threading.enumerate()} - before
        threads = [one for one in new if one.name.startswith("eks-")]
        # One that looks for jobs, or reads a log, may be there as well.
        assert {one.name for one in threads} >= {"eks-pods", "eks-pytorchjobs.kubeflow.org/v1"}
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), thread
    channels = [one for one in gc.get_objects() if type(one) is channel._Channel]
    assert [one for one in channels if one.sock.fileno() >= 0 and not one.has_ended()] == []


@pytest.mark.parametrize("seen", [False, True])
def test_a_cluster_that_can_no_longer_be_asked_ends_it(seen: bool, crowd: Crowd) -> None:
    refused = Fault("status", code=403, times=None, message="maintenance")
    crowd.cluster.faults.add(Fault("compact", after=1))
    crowd.add("a")
    with watching(crowd) as changes, pytest.raises(LaunchError, match="maintenance"):
        if seen:
            crowd.wait(changes, "a PENDING")
        crowd.cluster.faults.add(refused)
        crowd.run("a")  # after which the watch is told that it is too old, and lists
        crowd.wait(changes, "a SUCCEEDED")


def test_a_job_that_is_deleted_is_waited_for_no_longer(crowd: Crowd) -> None:
    names = ["a", "b"]
    crowd.add(*names)
    crowd.run(*names)
    with ThreadPoolExecutor(1) as thread:
        waits = thread.submit(EksLauncher(embedded=True).wait_all, [handle(name) for name in names])
        while not crowd.asked[f"watch {JOBS}"]:
            pass
        crowd.delete("a")
        crowd.end("b")
        found = waits.result()
    assert [found[handle(name)].state for name in names] == [CANCELLED, SUCCEEDED]


# ---------------------------------------------------------------------------------------- progress


def write(crowd: Crowd, name: str, *lines: str) -> None:
    found = crowd.cluster.store.get("pods", "default", f"{name}-master-0")
    file = log_file(crowd.cluster.home, found, "pytorch", 0)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.writelines(f"2026-11-24T12:00:00Z stdout F {line}\n" for line in lines)


def test_how_far_jobs_have_come_is_read_from_one_log_a_second(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(many, "READ_EVERY", 0.01)
    crowd.add("a", "b", "c")
    crowd.run("a", "b")
    write(crowd, "a", "epoch 1/3  step 11  val/loss 0.5000  100 samples/s", "and so on")
    write(crowd, "b", "importing")
    with watching(crowd, progress=True) as changes:
        assert progress(changes, "a") == Report(1, 3, 11, {"val/loss": 0.5})
        write(crowd, "b", "epoch 2/3  step 22  val/loss 0.4000  100 samples/s")
        assert progress(changes, "b").step == 22


def test_logs_are_read_in_turn_and_never_without_a_pause() -> None:
    pauses: list[float] = []
    read: list[str] = []

    class Logs:
        def logs(self, pod: str, **more: Any) -> Iterator[str]:
            read.append(pod)
            assert more == {"container": "pytorch", "tail": many.LAST_LINES}
            if pod == "p1":
                raise LaunchError("it is away")
            yield "epoch 1/1  step 1  val/loss 1.0000  1 samples/s"

    def wait(seconds: float) -> bool:
        pauses.append(seconds)
        if len(pauses) == 5:
            del teller.book.readable["j1"]
        return len(pauses) == 9

    teller = many.Teller(Logs(), lambda ask: iter(()), progress=True)  # type: ignore[arg-type]
    teller.read_logs(lambda seconds: True)
    assert read == []
    for number in range(3):
        teller.book.readable[f"j{number}"] = known.Readable(f"p{number}", "pytorch")
    teller.read_logs(wait)
    assert read == ["p0", "p1", "p2", "p0", "p2", "p0", "p2", "p0"]
    assert pauses == [many.READ_EVERY] * 9 and many.READ_EVERY >= 1.0


def test_who_may_not_read_logs_is_told_once(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(many, "READ_EVERY", 0.0)
    crowd.add("a")
    crowd.run("a")
    fault = crowd.cluster.faults.add(Fault("status", code=403, path="/log$", times=None))
    with watching(crowd, progress=True) as changes:
        crowd.wait(changes, "a RUNNING")
        while not fault.came:
            next(changes)
        crowd.end("a")
        crowd.wait(changes, "a SUCCEEDED")
    assert fault.came == 1
    assert capsys.readouterr().err.startswith("It cannot be told how far jobs have come: ")


# ------------------------------------------------------------------------------------------- quotas

QUOTA = (
    'pytorchjobs.kubeflow.org "x" is forbidden: exceeded quota: jobs, requested: '
    "count/pytorchjobs.kubeflow.org=1, used: count/pytorchjobs.kubeflow.org={used}, limited: "
    "count/pytorchjobs.kubeflow.org={used}"
)


@pytest.mark.parametrize(("used", "skip"), [(20, 0), (20, 1), (0, 0)])
def test_a_quota_that_is_used_up_is_full(used: int, skip: int, crowd: Crowd) -> None:
    """The dry run says so, or somebody else was faster. Where none is allowed it is never free."""
    message = QUOTA.format(used=used)
    fault = Fault("status", code=403, message=message, method="POST", path="jobs$", skip=skip)
    crowd.cluster.faults.add(fault)
    with pytest.raises(LaunchError, match="exceeded quota: jobs") as caught:
        EksLauncher(embedded=True).submit(jobs.sweep(1, "eks")[0])
    assert isinstance(caught.value, Full) == (used > 0)
