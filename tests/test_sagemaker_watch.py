"""Many training jobs, told of as they go: which pages of a list are asked for, and how often.

Real boto3 against the embedded service. Its jobs are never run: they are what a test makes of them.
"""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from hydra_trainer.embedded import sagemaker
from hydra_trainer.embedded.sagemaker import Fault, Service, jobs
from hydra_trainer.errors import Full, LaunchError
from hydra_trainer.job import JobHandle, JobState, JobStatus
from hydra_trainer.launchers.sagemaker import SagemakerLauncher, _ended
from hydra_trainer.sagemaker import account as accounts
from hydra_trainer.sagemaker import many
from hydra_trainer.sagemaker.account import Account
from hydra_trainer.sagemaker.many import EVERY, FEW, LAG, PATIENCE, Teller

from .test_sagemaker_account import REGION, Clock, asked

Object = dict[str, Any]
News = dict[str, JobStatus]
GOOD = {"status": "completed", "exit_code": 0, "objective": {"metric": "val/loss", "value": 0.5}}
PENDING, RUNNING, SUCCEEDED = JobState.PENDING, JobState.RUNNING, JobState.SUCCEEDED
FAILED, CANCELLED, UNKNOWN = JobState.FAILED, JobState.CANCELLED, JobState.UNKNOWN


class Region:
    """The training jobs of a region. `now` is the time at which the next one is created."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.now = 1_800_000_000.0
        self._before = Counter(service.calls)

    def add(self, *names: str) -> None:
        for name in names:
            arn = f"arn:aws:sagemaker:{REGION}:123456789012:training-job/{name}"
            place = {"S3Uri": f"s3://your-bucket/{name}"}
            job = jobs.new(REGION, asked(name, CheckpointConfig=place), arn)
            job.state["CreationTime"] = self.now
            self.now += 1.0
            assert self.service.jobs.add(job)

    def run(self, *names: str) -> None:
        self.enter("InProgress", "Training", *names)

    def end(self, *names: str, status: str = "Completed", result: Object | None = None) -> None:
        for name in names:
            if result is not None:
                place = accounts.shared(REGION, self.service.endpoint)
                place.put(f"s3://your-bucket/{name}/result.json", json.dumps(result).encode())
            self.enter(status, status, name)

    def enter(self, status: str, secondary: str, *names: str) -> None:
        for name in names:
            job = self.service._job(name, REGION)
            with self.service.jobs.change(job):
                job.enter(status, secondary, "")

    def remove(self, name: str) -> None:
        self.service.jobs.remove(self.service._job(name, REGION))

    def asked(self) -> dict[str, int]:
        """Return how often each operation was called since this was asked last, without S3's."""
        before, self._before = self._before, Counter(self.service.calls)
        counted = self._before - before
        return {name: count for (service, name), count in counted.items() if service != "s3"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), limits=False) as found:
        found.objects.make("your-bucket")
        yield found


@pytest.fixture
def region(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Region]:
    monkeypatch.setattr(sagemaker, "start", lambda home: service.endpoint)
    yield Region(service)
    service.faults.clear()
    for job in service.jobs.all():
        service.jobs.remove(job)


@pytest.fixture
def account(service: Service) -> Account:
    return accounts.shared(REGION, service.endpoint)


class Told:
    """What a Teller tells of `names`, by a clock that only its pauses move."""

    def __init__(self, account: Account, *names: str, **more: Any) -> None:
        self.clock = Clock()
        self.names = {*names}
        self.news: list[News] = []
        words = {"sleep": self.clock.sleep, "clock": self.clock.monotonic, **more}
        self._changes = Teller(account, lambda name: _ended(account, name), **words).tell(
            lambda: self.names
        )

    def __call__(self, seconds: float = EVERY) -> dict[str, JobState]:
        """Listen for so long; return the state of each job that was told of."""
        found: News = {}
        until = self.clock.now + seconds
        for news in self._changes:
            found |= news
            if not news and self.clock.now >= until:
                break
        self.news.append(found)
        return {name: status.state for name, status in found.items()}


def test_two_hundred_jobs_are_told_of_by_a_page_a_second(region: Region, account: Account) -> None:
    names = [f"job-{number:03}" for number in range(200)]
    region.add(*names[:150])
    told = Told(account, *names[:150])
    assert told(4.0) == dict.fromkeys(names[:150], PENDING)
    told.names |= {*names[150:]}
    region.add(*names[150:])
    region.run(*names)
    assert told(4.0) == dict.fromkeys(names, RUNNING)
    assert told(4.0) == {}
    assert region.asked() == {"ListTrainingJobs": 12}  # by then the thirteenth is due
    region.end(*names[:20], result=GOOD)
    region.end(*names[180:199], status="Failed")
    region.end(names[199], status="Stopped")
    ends = dict.fromkeys(names[:20], SUCCEEDED) | dict.fromkeys(names[180:199], FAILED)
    assert told(4.0) == ends | {names[199]: CANCELLED}
    assert [told.news[-1][name].result for name in names[:20]] == [GOOD] * 20
    told.names.clear()
    assert told(4.0) == {}
    assert region.asked() == {"ListTrainingJobs": 4, "DescribeTrainingJob": 40}


def test_pages_end_with_the_oldest_job_that_is_asked_for(region: Region, account: Account) -> None:
    """An account keeps the jobs of years."""
    region.add(*[f"old-{number}" for number in range(250)], "a")
    region.add(*[f"later-{number}" for number in range(120)], "b")
    told = Told(account, "b")
    assert told() == {"b": PENDING} and region.asked() == {"ListTrainingJobs": 1}
    told.names.add("a")  # on the second page, as far as anyone knows: it is asked for by its name
    assert told(LAG) == {"a": PENDING}
    assert set(region.asked()) == {"ListTrainingJobs"}
    region.run("a")
    assert told(1.0) == {"a": RUNNING}
    assert region.asked()["DescribeTrainingJob"] == 1
    told()
    region.asked()
    region.end("a")
    assert told(2.0) == {"a": SUCCEEDED}
    assert region.asked() == {"ListTrainingJobs": 2, "DescribeTrainingJob": 1}


def test_many_that_were_never_seen_are_looked_for_on_all_pages(
    region: Region, account: Account
) -> None:
    names = [f"a-{number}" for number in range(FEW + 1)]
    region.add(*names, *[f"later-{number}" for number in range(230)])
    region.run(*names)
    told = Told(account, *names)
    assert told(3.0) == dict.fromkeys(names, RUNNING)
    assert region.asked() == {"ListTrainingJobs": 3}


def test_a_job_that_is_not_listed_yet_is_new(
    region: Region, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    region.add("a")
    told, page = Told(account, "a"), account.page
    empty: Callable[..., Object] = lambda **words: {"TrainingJobSummaries": []}  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(account, "page", empty)
        assert told() == {"a": PENDING} and told(LAG - 2) == {}
        assert region.asked() == {}
        region.run("a")
        assert told(2.0) == {"a": RUNNING}  # it is asked for by its name
        region.end("a")
        assert told() == {"a": SUCCEEDED}
    assert account.page == page and told(3.0) == {}


def test_what_is_not_there_is_unknown_and_may_come(region: Region, account: Account) -> None:
    told = Told(account, "a")
    assert told(LAG - 1) == {"a": PENDING}
    assert told(2.0) == {"a": UNKNOWN} and told.news[-1]["a"].reason == "NotFound"
    region.asked()
    assert told(5.0) == {} and set(region.asked()) == {"ListTrainingJobs"}
    region.add("a")
    assert told() == {"a": PENDING}
    region.remove("a")
    assert told(2.0) == {"a": UNKNOWN}


def test_an_end_is_told_when_it_can_be_described(
    region: Region, account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What answers ListTrainingJobs may be ahead of what answers DescribeTrainingJob."""
    region.add("a")
    region.run("a")
    before = account.describe("a")
    region.end("a", result=GOOD)
    told, describe = Told(account, "a"), account.describe
    monkeypatch.setattr(account, "describe", lambda name: before)
    assert told() == {"a": RUNNING} and told() == {}
    monkeypatch.setattr(account, "describe", describe)
    assert told() == {"a": SUCCEEDED} and told.news[-1]["a"].result == GOOD


def test_aws_may_be_away_for_a_while(
    region: Region, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    retry = accounts.Retry(sleep=clock.sleep, clock=clock.monotonic, spread=lambda low, high: high)
    monkeypatch.setattr(accounts, "RETRY", retry)
    own = Account(REGION, service.endpoint)
    region.add("a")
    told = Told(own, "a", clock=clock.monotonic, sleep=clock.sleep)
    told.clock = clock
    assert told() == {"a": PENDING}
    service.faults.add(Fault("status", error="ServiceUnavailable", times=20))
    region.run("a")
    assert told(300.0) == {"a": RUNNING}
    service.faults.add(Fault("status", error="ServiceUnavailable", times=None))
    begun = clock.now
    with pytest.raises(LaunchError, match="ServiceUnavailable"):
        told(PATIENCE * 2)
    assert clock.now - begun > PATIENCE
    service.faults.clear()


# ----------------------------------------------------------------------------------- the launcher


def handle(name: str) -> JobHandle:
    return JobHandle("sagemaker", f"embedded/{name}")


Changes = Iterator[dict[JobHandle, JobStatus]]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(many, "EVERY", 0.01)
    monkeypatch.setattr(many, "TICK", 0.01)


def heard(changes: Changes) -> tuple[JobHandle, JobStatus]:
    """Return what is told next. A test fails when nothing is for half a minute."""
    found = next((found for found, _ in zip(changes, range(3000), strict=False) if found), {})
    assert found, "nothing is told any more"
    return next(iter(found.items()))


@pytest.mark.usefixtures("quick")
def test_a_launcher_watches_the_jobs_that_are_asked_for(region: Region) -> None:
    place, left = SagemakerLauncher(region="eu-west-1").in_background(), set[JobHandle]()
    assert place.detach
    with closing(place.watch(lambda: {*left})) as changes:
        assert [next(changes) for _ in range(3)] == [{}, {}, {}]
        assert region.asked() == {}
        for name in ("a", "b"):
            region.add(name)
            left.add(handle(name))
            one, status = heard(changes)
            assert (one, status.state) == (handle(name), PENDING)
        assert [next(changes) for _ in range(3)] == [{}, {}, {}]
        region.end("a", result=GOOD)
        one, status = heard(changes)
        assert (one, status.state, status.result) == (handle("a"), SUCCEEDED, GOOD)
    place = SagemakerLauncher.reaching(handle("a"))
    assert place.wait_all([handle("a")]) == {handle("a"): status}


@pytest.mark.usefixtures("quick")
def test_the_end_of_the_listener_ends_the_asking(region: Region) -> None:
    before = {*threading.enumerate()}
    region.add("a")
    with closing(SagemakerLauncher(embedded=True).watch(lambda: {handle("a")})) as changes:
        heard(changes)
        asking = [one for one in {*threading.enumerate()} - before if one.name == "sagemaker-many"]
    assert len(asking) == 1
    asking[0].join(20)
    assert not asking[0].is_alive()
    region.asked()
    assert region.asked() == {}


@pytest.mark.usefixtures("quick")
def test_a_refusal_is_raised_to_the_listener(region: Region, service: Service) -> None:
    service.faults.add(Fault("status", error="AccessDeniedException", times=None))
    with (
        closing(SagemakerLauncher(embedded=True).watch(lambda: {handle("a")})) as changes,
        pytest.raises(LaunchError, match="sagemaker:ListTrainingJobs"),
    ):
        heard(changes)


# ------------------------------------------------------------------------------------------ quotas

LIMIT = (
    "The account-level service limit 'ml.m5.xlarge for training job usage' is {limit} Instances, "
    "with current utilization of {used} Instances and a request delta of {delta} Instances."
)


@pytest.mark.parametrize(
    ("message", "is_full"),
    [
        (LIMIT.format(limit=4, used=4, delta=1), True),
        (LIMIT.format(limit=4, used=2, delta=4), True),
        (LIMIT.format(limit=4, used=2, delta=5), False),
        (LIMIT.format(limit=0, used=0, delta=1), False),
        ("Too many of something.", True),
    ],
)
def test_a_quota_that_is_used_up_is_full(
    message: str, is_full: bool, region: Region, account: Account, service: Service
) -> None:
    """One that the job alone exceeds has no room later either."""
    service.faults.add(
        Fault("status", error="ResourceLimitExceeded", operation="CreateTraining", message=message)
    )
    with pytest.raises(accounts.Refused, match="Ask for more in Service Quotas") as caught:
        account.create(asked("full"))
    assert isinstance(caught.value, Full) == is_full
    assert caught.value.code == "ResourceLimitExceeded"
