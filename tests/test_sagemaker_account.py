"""What AWS, or the way there, does on a bad day: each of it is handled, or told in words.

Real boto3 against the embedded service. Time is that of a clock which only pauses move.
"""

import contextlib
import functools
import itertools
import json
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from hydra_trainer import __main__ as verbs
from hydra_trainer import config
from hydra_trainer.embedded import sagemaker
from hydra_trainer.embedded.sagemaker import Fault, Service, limits
from hydra_trainer.embedded.sagemaker import logs as embedded_logs
from hydra_trainer.errors import LaunchError
from hydra_trainer.job import JobHandle, JobSpec, JobState
from hydra_trainer.launchers.sagemaker import SagemakerLauncher
from hydra_trainer.retry import Retry
from hydra_trainer.sagemaker import account as accounts
from hydra_trainer.sagemaker import follow, logs, many
from hydra_trainer.sagemaker.account import Account, InUse
from hydra_trainer.sagemaker.logs import Logs
from hydra_trainer.sagemaker.pace import Pace

from .conftest import REPOSITORY
from .sent import Sent

Object = dict[str, Any]
REGION = "us-east-1"
EMBEDDED = ["launcher=sagemaker", "launcher.embedded=true"]
OWN = [
    "launcher=sagemaker",
    "launcher.role=arn:aws:iam::123456789012:role/training",
    "launcher.output=s3://your-bucket/runs",
    "resources.instance_type=ml.m5.xlarge",
]
FOREVER = 1e6


class Clock:
    """Time that passes in pauses only. `during` is called with each of them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.during: Callable[[float], None] = lambda seconds: None

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds
        self.during(seconds)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def clock() -> Iterator[Clock]:
    found = Clock()
    faked = SimpleNamespace(sleep=found.sleep, monotonic=found.monotonic)
    with pytest.MonkeyPatch.context() as patch:
        retry = Retry(sleep=found.sleep, clock=found.monotonic, spread=lambda low, high: high)
        patch.setattr(accounts, "RETRY", retry)
        for module in (follow, logs, many, limits):
            patch.setattr(module, "time", faked)
        yield found


@pytest.fixture(scope="module")
def whole_service(tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("service"), limits=False) as found:
        yield found


@pytest.fixture
def service(whole_service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(sagemaker, "start", lambda home: whole_service.endpoint)
    monkeypatch.chdir(REPOSITORY)
    yield whole_service
    whole_service.faults.clear()
    whole_service.delays.pending = 0.0


@pytest.fixture
def account(service: Service) -> Account:
    found = accounts.shared(REGION, service.endpoint)
    found.make_bucket("s3://your-bucket")
    found._paces.clear()  # what other tests have taught it
    return found


@pytest.fixture
def sent(tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]) -> Sent:
    return Sent(tmp_path, capsys, *EMBEDDED)


def asked(name: str, script: str = "exit 0", count: int = 1, **more: Any) -> Object:
    """Return a small request."""
    return {
        "TrainingJobName": name,
        "RoleArn": "arn:aws:iam::123456789012:role/training",
        "AlgorithmSpecification": {
            "TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1",
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["sh", "-c", script],
        },
        "OutputDataConfig": {"S3OutputPath": "s3://your-bucket/output"},
        "ResourceConfig": {
            "InstanceType": "ml.m5.xlarge",
            "InstanceCount": count,
            "VolumeSizeInGB": 30,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        **more,
    }


def running(script: str) -> str:
    return (
        "+launcher.request_overrides={AlgorithmSpecification: "
        f"{{ContainerEntrypoint: [sh, -c, {json.dumps(script)}], ContainerArguments: [x]}}}}"
    )


# --------------------------------------------------------------------------- too often, and not now

ARN = "arn:aws:sagemaker:us-east-1:123456789012:training-job/"
NUMBERS = itertools.count()
CALLS: dict[str, Callable[[Account], Any]] = {
    "sagemaker:CreateTrainingJob": lambda one: one.create(asked(f"busy-{next(NUMBERS)}")),
    "sagemaker:DescribeTrainingJob": lambda one: one.describe("talks"),
    "sagemaker:StopTrainingJob": lambda one: one.stop("talks"),
    "sagemaker:ListTrainingJobs": lambda one: list(one.jobs()),
    "sagemaker:ListTags": lambda one: one.tags(f"{ARN}talks"),
    "logs:DescribeLogStreams": lambda one: one.streams("talks"),
    "logs:GetLogEvents": lambda one: list(Logs(one, "talks").read()),
    "s3:CreateBucket": lambda one: one.make_bucket(f"s3://busy-{next(NUMBERS)}"),
    "s3:HeadObject": lambda one: one.has("s3://your-bucket/x"),
    "s3:PutObject": lambda one: one.put("s3://your-bucket/x", b"{}"),
    "s3:GetObject": lambda one: one.read_json("s3://your-bucket/x"),
    "sts:GetCallerIdentity": lambda one: one.call("sts", "get_caller_identity"),
    "iam:GetRole": lambda one: one.call("iam", "get_role", RoleName="training"),
    "ec2:DescribeSubnets": lambda one: one.call(
        "ec2", "describe_subnets", SubnetIds=["subnet-0a1b2c3d"]
    ),
    "servicequotas:ListServiceQuotas": lambda one: one.call(
        "service-quotas", "list_service_quotas", ServiceCode="sagemaker"
    ),
}
ONCE = ("sagemaker:CreateTrainingJob", "sagemaker:StopTrainingJob", "s3:CreateBucket")
"""What is refused once it is done."""

BAD_DAYS = {
    "throttled": Fault("throttle", times=9),
    "late": Fault("late", times=9),
    "lost": Fault("lost", times=9),
    "reset": Fault("reset", times=9),
    "unavailable": Fault("status", error="ServiceUnavailable", times=9),
}
"""Nine times: the tenth try is the last one."""


@pytest.fixture(scope="module")
def talks(whole_service: Service) -> str:
    """A job that has ended, and said a little."""
    one = accounts.shared(REGION, whole_service.endpoint)
    one.make_bucket("s3://your-bucket")
    one.put("s3://your-bucket/x", b"{}")
    one.create(asked("talks", "seq 30"))
    whole_service.wait("talks")
    return "talks"


@pytest.mark.parametrize("operation", CALLS)
@pytest.mark.parametrize("kind", BAD_DAYS)
def test_a_call_is_given_again_until_it_is_answered(
    operation: str, kind: str, talks: str, account: Account, service: Service
) -> None:
    fault = service.faults.add(replace(BAD_DAYS[kind], operation=operation))
    if operation in ONCE and kind in ("late", "lost"):
        with contextlib.suppress(InUse):  # by the try whose answer did not come
            CALLS[operation](account)
        assert fault.came <= 2
    else:
        CALLS[operation](account)
        assert fault.came == 9


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("throttle", times=None), "AWS is asked more often than it answers (Throttling"),
        (Fault("reset", times=None), "AWS cannot be reached: Connection was closed before we"),
        (Fault("status", error="InternalFailure", times=None), "AWS answers InternalFailure: The"),
    ],
)
def test_what_does_not_pass_ends_in_words(
    fault: Fault, words: str, account: Account, service: Service, clock: Clock
) -> None:
    service.faults.add(replace(fault))
    begun = clock.now
    with pytest.raises(LaunchError) as caught:
        account.create(asked("never"))
    text = str(caught.value)
    assert text.startswith("CreateTrainingJob was tried 10 times in ") and words in text
    assert "every command can be given again" in text
    assert 60 < clock.now - begun < 120
    service.faults.clear()
    assert account.describe("never") is None


def jobs_of_a_sweep(count: int, front: str) -> list[JobSpec]:
    job = composed("trainer.max_epochs=1")
    found = []
    for number in range(count):
        identity = f"{number:08x}" * 2
        name = f"{front}-{identity[:8]}"
        run = {**job.config["run"], "identity": identity, "name": name}
        config = {**job.config, "seed": number, "run": run}
        found.append(replace(job, config=config, identity=identity, name=name))
    return found


@functools.cache
def composed(*words: str) -> JobSpec:
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        plain = config.validate(compose("config", [*EMBEDDED, *words]))
    GlobalHydra.instance().clear()
    return config.to_job(plain, Path("runs/x"))


@pytest.mark.parametrize(("count", "again"), [(80, False), (40, True)])
def test_of_many_creates_on_a_bad_day_each_makes_one_job(
    count: int, again: bool, service: Service, account: Account
) -> None:
    service.delays.pending = FOREVER
    before = len(service.jobs.all())
    for seed, kind in enumerate(("lost", "reset", "late", "status", "throttle")):
        service.faults.add(Fault(kind, times=None, share=0.1, seed=seed))
    place, jobs = (
        SagemakerLauncher(embedded=True, again=again),
        jobs_of_a_sweep(count, f"bad{again}"),
    )
    handles = [place.submit(job) for job in jobs]
    service.faults.clear()
    assert [handle.path.partition("/")[2] for handle in handles] == [job.name for job in jobs]
    assert len(service.jobs.all()) == before + count
    assert {place.status(handle).state for handle in handles} == {JobState.PENDING}


# --------------------------------------------------------------------------------- who had the name


def test_the_name_of_a_job_that_is_there(sent: Sent, service: Service) -> None:
    service.delays.pending = FOREVER
    first = sent.send().handle
    assert sent.send().handle == first
    assert sent.type(*sent.words("launcher.volume_size=50")) == 1
    printed = sent.capsys.readouterr().err
    assert "is there already, with other settings" in printed and f"logs -f {first}" in printed
    assert sent.type(*sent.words("again=true")) == 1
    assert f"hydra-trainer cancel {first}" in sent.capsys.readouterr().err
    sent.place.cancel(first)
    assert sent.place.wait(first).state is JobState.CANCELLED
    assert sent.send().handle.path == f"{first.path}-2"


def test_a_job_that_is_run_anew_while_answers_are_lost(sent: Sent, service: Service) -> None:
    service.delays.pending = FOREVER
    service.faults.add(Fault("lost", operation="CreateTrainingJob"))
    first = sent.send("again=true").handle
    sent.place.cancel(first)
    sent.place.wait(first)
    service.faults.add(Fault("lost", operation="CreateTrainingJob"))
    assert sent.send("again=true").handle.path == f"{first.path}-2"


# ---------------------------------------------------------------------------------- what is refused

REFUSED: dict[str, tuple[Fault, list[str]]] = {
    "quota": (
        Fault(
            "status",
            error="ResourceLimitExceeded",
            operation="CreateTrainingJob",
            message="The account-level service limit 'ml.p4d.24xlarge for training job usage' is "
            "0 Instances, with current utilization of 0 Instances.",
        ),
        ["ml.p4d.24xlarge for training job usage", "Service Quotas", "resources.instance_type"],
    ),
    "rights": (
        Fault("status", error="AccessDeniedException", operation="CreateTrainingJob"),
        ["not authorized to perform: sagemaker:CreateTrainingJob", "deploy/iam.json"],
    ),
    "rights to S3": (
        Fault("status", error="AccessDenied", operation="s3:PutObject"),
        ["s3:PutObject", "deploy/iam.json"],
    ),
    "rights to look in S3": (
        Fault("status", error="AccessDenied", operation="s3:(Head|Put)", times=None),
        ["s3:PutObject", "deploy/iam.json"],
    ),
    "expired": (
        Fault("status", error="ExpiredTokenException", operation="sagemaker:", times=None),
        ["ExpiredTokenException", "aws sso login", "the same command"],
    ),
    "expired at S3": (
        Fault("status", error="ExpiredToken", operation="s3:", times=None),
        ["ExpiredToken", "aws sso login"],
    ),
    "invalid": (
        Fault("status", error="UnrecognizedClientException", operation="sagemaker:", times=None),
        ["UnrecognizedClientException", "renew the keys"],
    ),
    "invalid at S3": (
        Fault("status", error="InvalidAccessKeyId", operation="s3:", times=None),
        ["InvalidAccessKeyId", "renew the keys"],
    ),
    "clock": (
        Fault("status", error="RequestTimeTooSkewed", operation="s3:PutObject"),
        ["The clock of this machine is wrong"],
    ),
    "bucket": (
        Fault("status", error="NoSuchBucket", operation="s3:PutObject"),
        ["The bucket of launcher.output does not exist", "launcher.output=s3://BUCKET/PREFIX"],
    ),
}


@pytest.fixture
def own(sent: Sent, service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    """An account of the user's: nothing is made for him, and his environment says where it is."""
    for name, value in {
        "AWS_ENDPOINT_URL": service.endpoint,
        "AWS_ACCESS_KEY_ID": "mine",
        "AWS_SECRET_ACCESS_KEY": "mine",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": str(sent.folder / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(sent.folder / "credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    sent.where = tuple(OWN)
    yield sent
    accounts.shared.cache_clear()


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_to_do(
    name: str, sent: Sent, account: Account, service: Service
) -> None:
    fault, words = REFUSED[name]
    account._there.clear()  # of the code of another job
    service.faults.add(replace(fault))
    assert sent.type(*sent.words(f"seed={len(name)}"), "launcher.detach=true") == 1
    printed = sent.capsys.readouterr().err
    for word in words:
        assert word in printed, printed
    assert "Traceback" not in printed


def test_a_bucket_that_is_not_there(own: Sent) -> None:
    assert own.type(*own.words("launcher.output=s3://nobodys-bucket/x")) == 1
    assert "The bucket of launcher.output does not exist" in own.capsys.readouterr().err


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


LOGINS: dict[str, tuple[dict[str, str | None], list[str]]] = {
    "none": (
        {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None},
        ["there are no credentials", "aws configure sso", "launcher.embedded=true"],
    ),
    "half": ({"AWS_SECRET_ACCESS_KEY": None}, ["there are no credentials"]),
    "no region": ({"AWS_DEFAULT_REGION": None}, ["launcher.region=us-east-1"]),
    "profile": ({"AWS_PROFILE": "nobody"}, ["(nobody)", "aws configure list-profiles"]),
    "nobody answers": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:PORT"},
        ["AWS cannot be reached: Could not connect", "Look at the network and at launcher.region"],
    ),
}


@pytest.mark.parametrize("name", LOGINS)
def test_who_is_not_logged_in_is_told_what_to_type(
    name: str, own: Sent, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, words = LOGINS[name]
    for key, value in changed.items():
        if value is None:
            monkeypatch.delenv(key)
        else:
            monkeypatch.setenv(key, value.replace("PORT", str(closed_port())))
    assert own.type(*own.words()) == 1
    printed = own.capsys.readouterr().err
    for word in words:
        assert word in printed, printed
    assert "Traceback" not in printed


def test_a_job_that_is_not_there(own: Sent) -> None:
    for verb in ("status", "why", "logs", "cancel", "wait"):
        assert verbs.verb(verb, [f"sagemaker://{REGION}/nobody"]) == 1
        printed = own.capsys.readouterr().err
        assert f"There is no training job sagemaker://{REGION}/nobody" in printed
        assert f"hydra-trainer list sagemaker://{REGION}" in printed


# --------------------------------------------------------------------------------------------- logs


def read(found: Logs) -> list[tuple[str, str]]:
    return [(line.stream.partition("/")[2].rpartition("-")[0], line.text) for line in found.read()]


def test_no_line_is_lost_or_told_twice(
    account: Account, service: Service, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(embedded_logs, "MOST_EVENTS", 7)
    for seed, kind in enumerate(("lost", "reset", "late", "throttle")):
        service.faults.add(Fault(kind, operation="logs:", times=None, share=0.1, seed=seed))
    gate = tmp_path / "gate"
    script = f"seq 1 50; while [ ! -e {gate} ]; do sleep 0.02; done; seq 51 100"
    account.create(asked("speaks", script, count=2))
    found = Logs(account, "speaks", None)
    lines: list[tuple[str, str]] = []
    while len(lines) < 100:
        lines += read(found)
    gate.touch()
    service.wait("speaks")
    lines += read(found)
    assert read(found) == []
    for host in ("algo-1", "algo-2"):
        said = [text for name, text in lines if name == host]
        assert said == [str(number) for number in range(1, 101)]


def test_lines_of_two_instances_come_in_the_order_of_time(
    account: Account, service: Service
) -> None:
    account.create(asked("in-order", "for i in 1 2 3 4 5; do echo $i; sleep 0.02; done", count=2))
    service.wait("in-order")
    found = list(Logs(account, "in-order", None).read())
    assert len(found) == 10 and len({line.stream for line in found}) == 2
    assert [line.time for line in found] == sorted(line.time for line in found)
    assert [text for _, text in read(Logs(account, "in-order", "algo-2"))] == [*"12345"]


def test_an_instance_that_starts_again_goes_on_in_a_stream_of_its_own(
    account: Account, service: Service, tmp_path: Path
) -> None:
    first = tmp_path / "first"
    script = f"if [ -e {first} ]; then echo second; else touch {first}; echo first; sleep 60; fi"
    spot: Object = {
        "EnableManagedSpotTraining": True,
        "CheckpointConfig": {"S3Uri": "s3://your-bucket/spot/"},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 120},
    }
    account.create(asked("spot", script, **spot))
    found, lines = Logs(account, "spot"), list[tuple[str, str]]()
    while not lines:
        lines += read(found)
    service.interrupt("spot")
    service.wait("spot")
    lines += read(found)
    assert lines == [("algo-1", "first"), ("algo-1", "second")]
    streams = account.streams("spot")  # the time of each is in its name
    assert len(streams) == 2 and streams == sorted(streams)
    assert read(Logs(account, "spot")) == lines


@pytest.mark.parametrize("operation", ["DescribeLogStreams", "GetLogEvents"])
def test_what_nobody_has_logged_yet_has_no_lines(
    operation: str, talks: str, account: Account, service: Service
) -> None:
    found = Logs(account, talks)
    service.faults.add(Fault("status", error="ResourceNotFoundException", operation=operation))
    assert read(found) == []
    assert [text for _, text in read(found)] == [str(number) for number in range(1, 31)]


# ------------------------------------------------------------------------------------------ waiting


def since(service: Service, before: Counter[tuple[str, str]]) -> dict[str, int]:
    return {name: count for (_, name), count in (service.calls - before).items()}


def test_following_asks_once_each_pause(
    account: Account,
    service: Service,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    account.create(asked("followed", f"echo here; while [ ! -e {tmp_path}/end ]; do :; done"))
    pauses = []

    def during(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            (tmp_path / "end").touch()
            service.wait("followed")

    monkeypatch.setattr(clock, "during", during)
    before = Counter(service.calls)
    ended = follow.follow(account, "followed")
    assert ended["TrainingJobStatus"] == "Completed" and pauses == [logs.POLL] * 20
    calls = since(service, before)
    assert calls.pop("DescribeTrainingJob") == 21
    assert calls.pop("DescribeLogStreams") <= 21 and calls.pop("GetLogEvents") <= 22 and not calls
    printed = capsys.readouterr()
    assert printed.out == "here\n" and printed.err.count("Training  ") == 1


def test_many_jobs_are_waited_for_with_a_page_of_a_list_each_second(
    account: Account, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.delays.pending = FOREVER
    place, jobs = SagemakerLauncher(embedded=True), jobs_of_a_sweep(110, "many")
    handles = [place.submit(job) for job in jobs]
    left = [job.name for job in jobs]

    def during(seconds: float) -> None:
        for name in [left.pop() for _ in range(min(10, len(left)))]:
            service.runs.stop(service._job(name, REGION))
            service.wait(name)

    monkeypatch.setattr(clock, "during", during)
    before, begun = Counter(service.calls), clock.now
    ended = place.wait_all(handles)
    assert [*ended] == handles
    assert {status.state for status in ended.values()} == {JobState.CANCELLED}
    calls = since(service, before)
    assert 11 <= calls["ListTrainingJobs"] <= clock.now - begun + 1
    assert len(handles) <= calls["DescribeTrainingJob"] <= len(handles) + many.FEW
    assert calls.keys() <= {"ListTrainingJobs", "DescribeTrainingJob", "GetObject"}


def test_a_job_that_is_not_listed_yet_is_waited_for(
    account: Account, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list may not know yet what CreateTrainingJob knows."""
    service.delays.pending = FOREVER
    account.create(asked("late-in-lists"))
    place, handle = (
        SagemakerLauncher(embedded=True),
        JobHandle("sagemaker", "embedded/late-in-lists"),
    )
    page, pages = account.page, itertools.count()

    def late(**filters: Any) -> Object:
        return page(**filters) if next(pages) > 2 else {"TrainingJobSummaries": []}

    def during(seconds: float) -> None:
        if next(pauses) == 5:
            service.runs.stop(service._job("late-in-lists", REGION))
            service.wait("late-in-lists")

    pauses = itertools.count()
    monkeypatch.setattr(account, "page", late)
    monkeypatch.setattr(clock, "during", during)
    assert place.wait_all([handle])[handle].state is JobState.CANCELLED
    with pytest.raises(LaunchError, match="list sagemaker://embedded shows those that are"):
        place.wait_all([handle, JobHandle("sagemaker", "embedded/never-there")])


def test_cancelling_what_has_ended_does_nothing(
    talks: str, account: Account, service: Service
) -> None:
    handle = JobHandle("sagemaker", f"embedded/{talks}")
    before = Counter(service.calls)
    SagemakerLauncher(embedded=True).cancel(handle)
    assert since(service, before) == {"DescribeTrainingJob": 1}
    account.stop(talks)  # as where it ends between the two calls
    assert service.describe(talks)["TrainingJobStatus"] == "Completed"


# ------------------------------------------------------------------------------------------ results


@pytest.mark.parametrize("reading", ["absent", "denied"])
def test_without_a_result_in_s3_the_objective_is_cloudwatchs(
    reading: str, sent: Sent, service: Service
) -> None:
    if reading == "denied":
        service.faults.add(
            Fault("status", error="AccessDenied", operation="s3:GetObject", times=None)
        )
    sent.send(
        running("echo 'hydra-trainer result: val_accuracy=0.25'"), "objective.metric=val_accuracy"
    )
    status = sent.place.wait(sent.handle)
    assert status.state is JobState.SUCCEEDED and status.exit_code == 0
    assert status.result["objective"] == {"metric": "val_accuracy", "value": 0.25}


OLDER = {"status": "failed", "exit_code": 1, "error": {"message": "older", "traceback": "older"}}
COMPLETED = {"status": "completed", "exit_code": 0, "objective": {"metric": "x", "value": 9.0}}


@pytest.mark.parametrize("result", [OLDER, COMPLETED], ids=["failed", "completed"])
def test_a_failure_is_not_told_with_a_result_from_before_it(
    result: Object, sent: Sent, account: Account, service: Service
) -> None:
    sent.send(running("echo here; sleep 60"))
    place = service.describe(sent.name)["CheckpointConfig"]["S3Uri"]
    account.put(f"{place}result.json", json.dumps(result).encode())
    sent.until("here")
    service.crash(sent.name)
    status = sent.place.wait(sent.handle)
    assert (status.state, status.exit_code, status.result) == (JobState.FAILED, 1, None)
    assert "InternalServerError" in status.message and "older" not in sent.place.why(sent.handle)


def test_the_result_of_a_failure_is_that_of_the_same_exit_code(
    sent: Sent, account: Account, service: Service
) -> None:
    sent.send(running("exit 1"))
    service.wait(sent.name)
    place = service.describe(sent.name)["CheckpointConfig"]["S3Uri"]
    account.put(f"{place}result.json", json.dumps(OLDER).encode())
    assert sent.place.status(sent.handle).result == OLDER


# --------------------------------------------------------------------------------------------- pace


class Bucket:
    """What AWS counts with."""

    def __init__(self, clock: Clock, rate: float, burst: int) -> None:
        self.clock, self.rate, self.burst = clock, rate, burst
        self._tokens, self._then = float(burst), clock.now

    def take(self) -> bool:
        passed, self._then = self.clock.now - self._then, self.clock.now
        self._tokens = min(self.burst, self._tokens + passed * self.rate)
        self._tokens -= (is_one := self._tokens >= 1)
        return is_one


def ask(pace: Pace, bucket: Bucket, count: int, chance: random.Random) -> int:
    """Call until so many calls are accepted; return how many were refused."""
    refused = 0
    for _ in range(count):
        bucket.clock.now += chance.uniform(0.0, 0.3 / bucket.rate)  # what a client does meanwhile
        while True:
            pace.wait()
            bucket.clock.now += 0.01
            if bucket.take():
                pace.accepted()
                break
            pace.refused()
            refused += 1
            bucket.clock.now += chance.uniform(0.0, 0.25)
    return refused


@pytest.mark.parametrize(("rate", "burst"), [(2, 2), (3, 5), (10, 20), (25, 25), (1, 10)])
@pytest.mark.parametrize("seed", range(3))
def test_a_pace_is_learned_from_few_refusals(rate: float, burst: int, seed: int) -> None:
    clock = Clock()
    begun, bucket, pace = clock.now, Bucket(clock, rate, burst), Pace(clock.sleep, clock.monotonic)
    refused = ask(pace, bucket, 1000, random.Random(seed))
    assert refused <= 0.02 * (1000 + refused)
    assert (1000 - burst) / rate >= 0.95 * (clock.now - begun)


def test_a_pace_follows_a_rate_that_changes() -> None:
    clock, chance = Clock(), random.Random(1)
    bucket, pace = Bucket(clock, 10, 20), Pace(clock.sleep, clock.monotonic)
    ask(pace, bucket, 500, chance)
    bucket.rate = 3
    ask(pace, bucket, 100, chance)
    begun = clock.now
    assert ask(pace, bucket, 300, chance) <= 8
    assert 0.95 * (clock.now - begun) <= 300 / 3
    bucket.rate = 10
    ask(pace, bucket, 1500, chance)
    begun = clock.now
    ask(pace, bucket, 300, chance)
    assert 0.95 * (clock.now - begun) <= 300 / 10


def test_a_time_without_calls_says_nothing_of_the_rate() -> None:
    clock, chance = Clock(), random.Random(1)
    bucket, pace = Bucket(clock, 2, 2), Pace(clock.sleep, clock.monotonic)
    for _ in range(8):
        begun = clock.now
        ask(pace, bucket, 15, chance)
        clock.now += 60
    assert 0.95 * (clock.now - 60 - begun) <= 15 / 2


def test_a_sweep_keeps_to_the_limits_of_an_account(
    account: Account, service: Service, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = {"sagemaker:CreateTrainingJob": limits.Limit(3, 5)}
    monkeypatch.setattr(service.api, "_buckets", limits.Buckets(table))
    service.delays.pending = FOREVER
    place, jobs = SagemakerLauncher(embedded=True), jobs_of_a_sweep(150, "sweep")
    key = ("sagemaker", "CreateTrainingJob")
    before, begun = service.calls[key], clock.now
    throttled = service.throttled[key]
    for job in jobs:
        place.submit(job)
    refused = service.throttled[key] - throttled
    assert service.calls[key] - before == 150 + refused and refused <= 9
    assert 0.95 * (clock.now - begun) <= (150 - 5) / 3


def test_jobs_of_a_sweep_share_their_code_and_are_not_asked_after(
    sent: Sent, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed: list[Any] = []
    compose = ConfigLoaderImpl.load_sweep_config

    def counted(*words: Any, **named: Any) -> Any:
        composed.append(words)
        return compose(*words, **named)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    service.delays.pending = FOREVER
    accounts.shared.cache_clear()
    before = Counter(service.calls)
    assert sent.type("-m", *sent.words("seed=1,2,3"), "launcher.detach=true") == 0
    calls = since(service, before)
    calls.pop("ListTrainingJobs", None)  # one a second, of all jobs
    assert calls == {"CreateBucket": 1, "HeadObject": 1, "CreateTrainingJob": 3} | {
        "PutObject": calls["PutObject"]
    }
    assert calls["PutObject"] in (3, 4)  # the code may be there already
    assert len(composed) == 1  # of which the others are copies
