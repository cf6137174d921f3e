"""The embedded SageMaker, through boto3: what it takes, what it refuses, and how its jobs run."""

import contextlib
import functools
import io
import json
import subprocess
import sys
import tarfile
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from hydra_trainer.embedded import sagemaker
from hydra_trainer.embedded.sagemaker import Delays, Fault, Limit, Service
from hydra_trainer.embedded.sagemaker.logs import GROUP

from .world import Pipe

Object = dict[str, Any]

REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/training"
IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/training:1"

FOREVER = "exec sleep 600"
"""For a shell, which would have the signal wait for its child."""

SESSION = boto3.Session(aws_access_key_id="me", aws_secret_access_key="mine", region_name=REGION)
ONCE = Config(retries={"total_max_attempts": 1})


def client(endpoint: str, name: str, region: str = REGION) -> Any:
    """A client that asks once only."""
    return SESSION.client(name, endpoint_url=endpoint, config=ONCE, region_name=region)


class Aws:
    """A service with clients for it, and a bucket."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.endpoint = service.endpoint
        service.objects.make("bucket")

    @functools.cached_property
    def sagemaker(self) -> Any:
        return client(self.endpoint, "sagemaker")

    @functools.cached_property
    def s3(self) -> Any:
        return client(self.endpoint, "s3")

    @functools.cached_property
    def logs(self) -> Any:
        return client(self.endpoint, "logs")

    def create(self, script: str = "true", **more: Any) -> str:
        """Create a job that runs a script; return its name."""
        request = job(script, **more)
        self.sagemaker.create_training_job(**request)
        return str(request["TrainingJobName"])

    def run(self, script: str = "true", **more: Any) -> Object:
        """Run a job to its end; return its description."""
        return self.service.wait(self.create(script, **more))

    def until(self, name: str, secondary: str) -> Object:
        return self.service.wait(name, lambda job: job["SecondaryStatus"] == secondary)

    def put(self, key: str, body: bytes = b"") -> str:
        self.s3.put_object(Bucket="bucket", Key=key, Body=body)
        return f"s3://bucket/{key}"

    def get(self, key: str) -> bytes:
        return bytes(self.s3.get_object(Bucket="bucket", Key=key)["Body"].read())

    def keys(self, prefix: str) -> list[str]:
        found = self.s3.list_objects_v2(Bucket="bucket", Prefix=prefix)
        return [one["Key"].removeprefix(prefix) for one in found.get("Contents") or ()]

    def streams(self, name: str) -> list[str]:
        found = self.logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=f"{name}/")
        return [one["logStreamName"] for one in found["logStreams"]]

    def events(self, stream: str, **more: Any) -> Object:
        asked = {"logGroupName": GROUP, "logStreamName": stream, "startFromHead": True, **more}
        return dict(self.logs.get_log_events(**asked))

    def log(self, name: str, host: int = 1) -> list[str]:
        """What an instance said, in its last start."""
        streams = [one for one in self.streams(name) if f"/algo-{host}-" in one]
        return [event["message"] for event in self.events(streams[-1])["events"]]


def job(script: str = "true", *, name: str = "", instances: int = 1, **more: Any) -> Object:
    if len(script) > 256 or "\n" in script:  # more than an argument takes
        more["Environment"] = {"SCRIPT": script, **more.get("Environment", {})}
        script = 'eval "$SCRIPT"'
    algorithm = {
        "TrainingImage": IMAGE,
        "TrainingInputMode": "File",
        "ContainerEntrypoint": ["sh", "-c"],
        "ContainerArguments": [script],
        **more.pop("algorithm", {}),
    }
    resources = {"InstanceType": "ml.m5.large", "InstanceCount": instances, "VolumeSizeInGB": 10}
    request = {
        "TrainingJobName": name or f"job-{uuid.uuid4().hex[:8]}",
        "RoleArn": ROLE,
        "AlgorithmSpecification": algorithm,
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/out", "CompressionType": "NONE"},
        "ResourceConfig": resources,
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        **more,
    }
    return {key: value for key, value in request.items() if value is not None}


def channel(uri: str, name: str = "data", **more: Any) -> Object:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, **more.pop("source", {})}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, **more}


SPOT = {
    "EnableManagedSpotTraining": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 600, "MaxWaitTimeInSeconds": 600},
}


@contextlib.contextmanager
def refused(code: str, words: str = "") -> Iterator[None]:
    with pytest.raises(ClientError) as caught:
        yield
    error = caught.value.response["Error"]
    assert error["Code"] == code, error
    assert words in error["Message"]


def passed(description: Object) -> list[str]:
    return [one["Status"] for one in description["SecondaryStatusTransitions"]]


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    """One service for all tests that want nothing special of it."""
    with Service(tmp_path_factory.mktemp("service"), grace=10, limits=False) as service:
        yield Aws(service)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Aws]]:
    """Make services as the test wants them; those of one test share a home."""
    with contextlib.ExitStack() as made:

        def make(**options: Any) -> Aws:
            options = {"grace": 10, "limits": False, **options}
            return Aws(made.enter_context(Service(tmp_path / "home", **options)))

        yield make


@pytest.fixture
def pipe(tmp_path: Path) -> Pipe:
    return Pipe(tmp_path / "pipe")


# --------------------------------------------------------------------------------------------- jobs


def test_a_job_on_two_instances(aws: Aws) -> None:
    script = "echo $0 on $(hostname); echo model > /opt/ml/model/it; echo /opt/ml"
    done = aws.run(script, instances=2, HyperParameters={"lr": "0.1"})
    assert done["TrainingJobStatus"] == done["SecondaryStatus"] == "Completed"
    assert passed(done) == [
        "Starting",
        "Pending",
        "Downloading",
        "Training",
        "Uploading",
        "Completed",
    ]
    assert all(
        before["EndTime"] == after["StartTime"]
        for before, after in zip(
            done["SecondaryStatusTransitions"][:-1],
            done["SecondaryStatusTransitions"][1:],
            strict=True,
        )
    )
    assert done["CreationTime"] <= done["TrainingStartTime"] <= done["TrainingEndTime"]
    name = done["TrainingJobName"]
    assert [one.rpartition("-")[0] for one in aws.streams(name)] == [
        f"{name}/algo-1",
        f"{name}/algo-2",
    ]
    assert aws.get(f"out/{name}/output/model/it") == b"model\n"
    assert done["ModelArtifacts"] == {"S3ModelArtifacts": f"s3://bucket/out/{name}/output/model/"}


def test_a_description_has_all_of_the_request_but_its_tags(aws: Aws) -> None:
    request = job(
        Environment={"COLOUR": "red"},
        RetryStrategy={"MaximumRetryAttempts": 1},
        Tags=[{"Key": "team", "Value": "a"}],
        HyperParameters={"lr": "0.1"},
    )
    arn = aws.sagemaker.create_training_job(**request)["TrainingJobArn"]
    aws.service.wait(request["TrainingJobName"])
    found = aws.sagemaker.describe_training_job(TrainingJobName=request["TrainingJobName"])
    tags = request.pop("Tags")
    assert {key: found[key] for key in request} == request
    assert "Tags" not in found
    assert found["TrainingJobArn"] == arn
    assert aws.sagemaker.list_tags(ResourceArn=arn)["Tags"] == tags


def test_what_a_container_finds(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    show = "cat /opt/ml/input/config/{}.json; echo"
    configs = ("hyperparameters", "resourceconfig", "inputdataconfig", "checkpointconfig")
    script = "; ".join([*map(show.format, configs), "env"])
    name = aws.create(
        script,
        instances=2,
        Environment={"PLACE": "/opt/ml/model", "OTHER": "s3://b/opt/ml"},
        HyperParameters={"lr": "0.1", "name": "it's"},
        InputDataConfig=[channel(aws.put("found/a", b"x"), "train", ContentType="text/plain")],
        CheckpointConfig={"S3Uri": "s3://bucket/found-checkpoints"},
    )
    aws.service.wait(name)
    hyper, resources, inputs, checkpoints, *lines = aws.log(name, 2)
    assert json.loads(hyper) == {"lr": "0.1", "name": "it's"}
    assert json.loads(resources) == {
        "current_host": "algo-2",
        "current_instance_type": "ml.m5.large",
        "current_group_name": "homogeneousCluster",
        "hosts": ["algo-1", "algo-2"],
        "instance_groups": [
            {
                "instance_group_name": "homogeneousCluster",
                "instance_type": "ml.m5.large",
                "hosts": ["algo-1", "algo-2"],
            }
        ],
        "network_interface_name": "lo",
    }
    assert json.loads(inputs) == {
        "train": {
            "TrainingInputMode": "File",
            "S3DistributionType": "FullyReplicated",
            "RecordWrapperType": "None",
            "ContentType": "text/plain",
        }
    }
    assert json.loads(checkpoints) == {
        "LocalPath": "/opt/ml/checkpoints",
        "S3Uri": "s3://bucket/found-checkpoints",
    }
    env = dict(line.partition("=")[::2] for line in lines)
    assert env["TRAINING_JOB_NAME"] == name
    assert env["TRAINING_JOB_ARN"].endswith(f":training-job/{name}")
    assert env["AWS_ENDPOINT_URL"] == aws.endpoint
    assert env["PLACE"] == f"{env['SAGEMAKER_BASE_DIR']}/model"
    assert env["OTHER"] == "s3://b/opt/ml"
    assert env["PET_MASTER_ADDR"] == "127.0.0.1"
    assert "OMP_NUM_THREADS" not in env
    other = dict(line.partition("=")[::2] for line in aws.log(name, 1)[4:])
    assert env["PET_MASTER_PORT"] == other["PET_MASTER_PORT"]
    assert env["SAGEMAKER_BASE_DIR"] != other["SAGEMAKER_BASE_DIR"]


def test_groups_of_instances(aws: Aws) -> None:
    groups = [
        {"InstanceGroupName": "big", "InstanceType": "ml.m5.large", "InstanceCount": 1},
        {"InstanceGroupName": "small", "InstanceType": "ml.c5.xlarge", "InstanceCount": 2},
    ]
    only = channel(aws.put("groups/a", b"x"), "big", source={"InstanceGroupNames": ["big"]})
    done = aws.run(
        "cat /opt/ml/input/config/resourceconfig.json; echo; ls /opt/ml/input/data",
        ResourceConfig={"InstanceGroups": groups, "VolumeSizeInGB": 1},
        InputDataConfig=[only],
    )
    said = [aws.log(done["TrainingJobName"], number) for number in (1, 2, 3)]
    seen = [json.loads(lines[0]) for lines in said]
    assert [one["current_group_name"] for one in seen] == ["big", "small", "small"]
    assert seen[2]["current_host"] == "algo-3"
    assert [one["hosts"] for one in seen[0]["instance_groups"]] == [
        ["algo-1"],
        ["algo-2", "algo-3"],
    ]
    assert [lines[1:] for lines in said] == [["big"], [], []]


def test_a_job_that_fails(aws: Aws) -> None:
    done = aws.run("echo what broke > /opt/ml/output/failure; exit 3")
    assert done["TrainingJobStatus"] == "Failed"
    assert done["FailureReason"] == "AlgorithmError: what broke, exit code: 3"
    assert passed(done)[-2:] == ["Uploading", "Failed"]
    assert "ModelArtifacts" not in done


def test_a_failure_of_many_words_keeps_its_exit_code(aws: Aws) -> None:
    done = aws.run("head -c 5000 /dev/zero | tr '\\0' x > /opt/ml/output/failure; exit 1")
    assert len(done["FailureReason"]) == 1024
    assert done["FailureReason"].endswith("xxx, exit code: 1")


def test_a_job_that_fails_without_a_word(aws: Aws) -> None:
    assert aws.run("exit 1")["FailureReason"] == "AlgorithmError: , exit code: 1"
    done = aws.run(algorithm={"ContainerEntrypoint": ["/no/such/program"]})
    assert done["FailureReason"] == "AlgorithmError: , exit code: 127"


def test_one_instance_that_fails_ends_the_others(aws: Aws, pipe: Pipe) -> None:
    script = f"""
        if grep -q '"current_host": "algo-2"' /opt/ml/input/config/resourceconfig.json
        then echo of two > /opt/ml/output/failure; exit 5
        fi
        trap 'echo told to end > {pipe.path}; exit 0' TERM
        sleep 600 & wait"""
    done = aws.run(script, instances=2)
    assert done["FailureReason"] == "AlgorithmError: of two, exit code: 5"


def test_an_image_that_is_not_there(aws: Aws) -> None:
    image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/no-such-image:1"
    done = aws.run(algorithm={"TrainingImage": image})
    expected = "ClientError: Cannot find repository: no-such-image in registry ID: 123456789012"
    assert done["FailureReason"].startswith(expected)
    assert passed(done) == ["Starting", "Pending", "Failed"]
    with contextlib.suppress(aws.logs.exceptions.ResourceNotFoundException):  # no group at all yet
        assert aws.streams(done["TrainingJobName"]) == []


def test_a_job_needs_an_entrypoint(aws: Aws) -> None:
    request = job()
    del request["AlgorithmSpecification"]["ContainerEntrypoint"]
    aws.sagemaker.create_training_job(**request)
    done = aws.service.wait(request["TrainingJobName"])
    assert "needs a ContainerEntrypoint" in done["FailureReason"]


def test_a_job_is_stopped(aws: Aws, pipe: Pipe) -> None:
    script = f"""
        trap 'echo bye > /opt/ml/model/last; exit 0' TERM
        echo here > {pipe.path}
        sleep 600 & wait"""
    name = aws.create(script)
    assert pipe.hear() == "here\n"
    aws.sagemaker.stop_training_job(TrainingJobName=name)
    done = aws.service.wait(name)
    assert (done["TrainingJobStatus"], done["SecondaryStatus"]) == ("Stopped", "Stopped")
    assert passed(done)[-4:] == ["Training", "Stopping", "Uploading", "Stopped"]
    assert "FailureReason" not in done
    assert aws.get(f"out/{name}/output/model/last") == b"bye\n"
    with refused("ValidationException", "because the training job is in status Stopped."):
        aws.sagemaker.stop_training_job(TrainingJobName=name)


def test_a_job_that_does_not_listen_is_killed(make: Callable[..., Aws], pipe: Pipe) -> None:
    aws = make(grace=0.2)
    name = aws.create(f"trap '' TERM; echo here > {pipe.path}; while :; do sleep 1; done")
    pipe.hear()
    aws.sagemaker.stop_training_job(TrainingJobName=name)
    assert aws.service.wait(name)["TrainingJobStatus"] == "Stopped"


def test_a_job_is_stopped_before_it_has_instances(make: Callable[..., Aws]) -> None:
    aws = make(delays=Delays(pending=600))
    name = aws.create()
    waiting = aws.until(name, "Pending")
    said = waiting["SecondaryStatusTransitions"][-1]["StatusMessage"]
    assert said == "Training job waiting for capacity"
    aws.sagemaker.stop_training_job(TrainingJobName=name)
    done = aws.service.wait(name)
    assert passed(done) == ["Starting", "Pending", "Stopping", "Stopped"]
    assert "TrainingStartTime" not in done


def test_a_job_that_takes_too_long(aws: Aws) -> None:
    done = aws.run(FOREVER, StoppingCondition={"MaxRuntimeInSeconds": 1})
    assert (done["TrainingJobStatus"], done["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    assert done["TrainingTimeInSeconds"] == done["BillableTimeInSeconds"] >= 1


def test_names(aws: Aws) -> None:
    request = job("echo x")
    aws.sagemaker.create_training_job(**request)
    name = request["TrainingJobName"]
    aws.service.wait(name)
    with refused("ResourceInUse", f"with this name already exists (arn:aws:sagemaker:{REGION}:"):
        aws.sagemaker.create_training_job(**request)
    aws.sagemaker.delete_training_job(TrainingJobName=name)
    for ask in (aws.sagemaker.describe_training_job, aws.sagemaker.stop_training_job):
        with refused("ValidationException", "Requested resource not found."):
            ask(TrainingJobName=name)
    aws.sagemaker.create_training_job(**request)
    aws.service.wait(name)
    assert len(aws.streams(name)) == 2  # a job that is deleted leaves its log


def test_a_region_knows_its_own_jobs(aws: Aws) -> None:
    name = aws.create()
    with refused("ValidationException", "Requested resource not found."):
        client(aws.endpoint, "sagemaker", "eu-west-1").describe_training_job(TrainingJobName=name)


def test_a_job_that_runs_is_not_deleted(make: Callable[..., Aws]) -> None:
    aws = make(delays=Delays(starting=600))
    name = aws.create()
    with refused("ResourceInUse", "is in status InProgress"):
        aws.sagemaker.delete_training_job(TrainingJobName=name)


def test_metrics(aws: Aws) -> None:
    metrics = [
        {"Name": "loss", "Regex": "loss=([0-9.]+)"},
        {"Name": "none", "Regex": "never=([0-9.]+)"},
    ]
    done = aws.run("echo loss=2; echo loss=0.5", algorithm={"MetricDefinitions": metrics})
    [metric] = done["FinalMetricDataList"]
    assert (metric["MetricName"], metric["Value"]) == ("loss", 0.5)


def test_a_job_waits_for_instances(make: Callable[..., Aws], pipe: Pipe) -> None:
    aws = make(instances=2)
    first = aws.create(f"echo here > {pipe.path}; {FOREVER}")
    pipe.hear()
    second = aws.create(instances=2)
    third = aws.create()
    for name in (second, third):
        aws.until(name, "Pending")
    assert aws.service.describe(third)["SecondaryStatus"] == "Pending"
    aws.sagemaker.stop_training_job(TrainingJobName=first)
    done = [aws.service.wait(name) for name in (second, third)]
    assert [one["TrainingJobStatus"] for one in done] == ["Completed"] * 2
    assert done[0]["TrainingStartTime"] < done[1]["TrainingStartTime"]


def test_instances_by_preference(aws: Aws) -> None:
    wanted = [{"InstanceType": "ml.p5.48xlarge", "InstanceCount": 1}]
    resources = {"InstancePreferences": wanted, "VolumeSizeInGB": 1}
    found = aws.run(ResourceConfig=resources)["ResourceConfig"]
    assert (found["SelectedInstanceType"], found["SelectedInstanceCount"]) == ("ml.p5.48xlarge", 1)


def test_tags(aws: Aws) -> None:
    request = job(Tags=[{"Key": "team", "Value": "a"}])
    arn = aws.sagemaker.create_training_job(**request)["TrainingJobArn"]
    more = [{"Key": "team", "Value": "b"}, {"Key": "run", "Value": "1"}]
    aws.sagemaker.add_tags(ResourceArn=arn, Tags=more)
    assert aws.sagemaker.list_tags(ResourceArn=arn)["Tags"] == more
    aws.sagemaker.delete_tags(ResourceArn=arn, TagKeys=["team"])
    assert aws.sagemaker.list_tags(ResourceArn=arn)["Tags"] == more[1:]


def test_update_keeps_instances_longer(aws: Aws) -> None:
    name = aws.run()["TrainingJobName"]
    aws.sagemaker.update_training_job(
        TrainingJobName=name, ResourceConfig={"KeepAlivePeriodInSeconds": 60}
    )
    found = aws.sagemaker.describe_training_job(TrainingJobName=name)
    assert found["ResourceConfig"]["KeepAlivePeriodInSeconds"] == 60


# ------------------------------------------------------------------------------------------ listing


def test_jobs_are_listed(make: Callable[..., Aws]) -> None:
    aws = make()
    for hour, name in enumerate(("one-a", "two-a", "one-b")):
        aws.service.wait(aws.create(name=name, script="false" if name == "two-a" else "true"))
        known = aws.service.jobs.find(REGION, name)
        assert known is not None
        # boto3 sends whole seconds.
        known.state |= {"CreationTime": 1e9 + hour * 3600, "LastModifiedTime": 1e9 + hour * 3600}

    def names(**asked: Any) -> list[str]:
        found = aws.sagemaker.list_training_jobs(**asked)["TrainingJobSummaries"]
        return [one["TrainingJobName"] for one in found]

    assert names() == ["one-b", "two-a", "one-a"]
    assert names(SortOrder="Ascending") == ["one-a", "two-a", "one-b"]
    assert names(SortBy="Name") == ["two-a", "one-b", "one-a"]
    assert names(NameContains="one") == ["one-b", "one-a"]
    assert names(StatusEquals="Failed") == ["two-a"]
    middle = aws.sagemaker.describe_training_job(TrainingJobName="two-a")["CreationTime"]
    assert names(CreationTimeAfter=middle) == ["one-b", "two-a"]
    assert names(CreationTimeBefore=middle) == ["two-a", "one-a"]
    assert names(LastModifiedTimeAfter=middle) == ["one-b", "two-a"]
    assert names(LastModifiedTimeBefore=middle) == ["two-a", "one-a"]
    pages = aws.sagemaker.get_paginator("list_training_jobs").paginate(MaxResults=2)
    found = [[one["TrainingJobName"] for one in page["TrainingJobSummaries"]] for page in pages]
    assert found == [["one-b", "two-a"], ["one-a"]]


def test_a_page_goes_on_though_jobs_are_added(make: Callable[..., Aws]) -> None:
    aws = make(delays=Delays(starting=600))
    for number in range(3):
        aws.create(name=f"job-{number}")
    page = aws.sagemaker.list_training_jobs(MaxResults=2)
    aws.create(name="new")
    rest = aws.sagemaker.list_training_jobs(MaxResults=2, NextToken=page["NextToken"])
    assert [one["TrainingJobName"] for one in rest["TrainingJobSummaries"]] == ["job-0"]


# ----------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"TrainingJobName": "a_b"}, "Value 'a_b' at 'trainingJobName' failed to satisfy"),
        ({"TrainingJobName": "a" * 64}, "length less than or equal to 63"),
        ({"Environment": {"A": "x" * 513}}, "at 'environment.A.member' failed"),
        ({"Environment": {"A-B": "x"}}, "Value 'A-B' at 'environment.A-B.member'"),
        ({"HyperParameters": {str(n): "" for n in range(101)}}, "less than or equal to 100"),
        ({"RoleArn": f"{ROLE} training"}, "at 'roleArn' failed to satisfy constraint"),
        ({"StoppingCondition": None}, "StoppingCondition is required"),
        ({"AlgorithmSpecification": {"TrainingInputMode": "File"}}, "either a TrainingImage or"),
        ({"Tags": [{"Key": "a", "Value": ""}] * 2}, "Duplicate tag keys"),
        (
            {"StoppingCondition": {"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 1}},
            "It is only supported when EnableManagedSpotTraining is set to true",
        ),
        ({"EnableManagedSpotTraining": True}, "must be present and be greater than or equal"),
        (
            {
                **SPOT,
                "ResourceConfig": {
                    "InstanceType": "ml.m5.large",
                    "InstanceCount": 1,
                    "VolumeSizeInGB": 1,
                    "KeepAlivePeriodInSeconds": 60,
                },
            },
            "KeepAlivePeriodInSeconds is not supported",
        ),
        (
            {"ResourceConfig": {"VolumeSizeInGB": 1}},
            "exactly one of InstanceType, InstanceGroups, InstancePreferences",
        ),
        (
            {"ResourceConfig": {"InstanceType": "ml.zz.large", "InstanceCount": 1}},
            "at 'resourceConfig.instanceType' failed to satisfy constraint: Member must satisfy "
            "enum value set: [ml.m4.xlarge",
        ),
        (
            {
                "InputDataConfig": [
                    {
                        "ChannelName": "efs",
                        "DataSource": {
                            "FileSystemDataSource": {
                                "FileSystemId": "fs-0123456789abcdef0",
                                "FileSystemType": "EFS",
                                "FileSystemAccessMode": "ro",
                                "DirectoryPath": "/data",
                            }
                        },
                    }
                ]
            },
            "VpcConfig is required",
        ),
        ({"InputDataConfig": [channel("s3://bucket/none")] * 2}, "Channel names must be unique"),
        (
            {"InputDataConfig": [channel("s3://bucket/none")]},
            'No S3 objects found under S3 URL "s3://bucket/none" given in input data source.',
        ),
        (
            {"InputDataConfig": [channel("s3://no-such-bucket/none")]},
            '"s3:ListBucket" permissions on bucket "no-such-bucket".',
        ),
    ],
)
def test_what_is_refused(aws: Aws, change: Object, words: str) -> None:
    with refused("ValidationException", words):
        aws.sagemaker.create_training_job(**job(**change))


def test_a_role_that_is_not_there(make: Callable[..., Aws]) -> None:
    aws = make(roles={"other"})
    with refused("ValidationException", f"Could not assume role {ROLE}. Please ensure that"):
        aws.create()
    iam = client(aws.endpoint, "iam")
    assert iam.get_role(RoleName="other")["Role"]["Arn"].endswith(":role/other")
    with refused("NoSuchEntity"):
        iam.get_role(RoleName="training")


def test_instances_are_limited(make: Callable[..., Aws]) -> None:
    quota = "ml.m5.large for training job usage"
    aws = make(quotas={quota: 3}, delays=Delays(starting=600))
    aws.create(instances=2)
    words = (
        f"The account-level service limit '{quota}' is 3 Instances, with current utilization of 2 "
        "Instances and a request delta of 2 Instances."
    )
    with refused("ResourceLimitExceeded", words):
        aws.create(instances=2)
    pages = client(aws.endpoint, "service-quotas").get_paginator("list_service_quotas")
    found = {
        one["QuotaName"]: one["Value"]
        for page in pages.paginate(ServiceCode="sagemaker")
        for one in page["Quotas"]
    }
    assert found[quota] == 3.0
    assert found["ml.p5.48xlarge for spot training job usage"] == 100.0


def test_who_does_not_sign_is_refused(aws: Aws) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{aws.endpoint}/bucket/key")


def test_an_unknown_operation(aws: Aws) -> None:
    with refused("UnknownOperationException"):
        aws.sagemaker.list_models()


# --------------------------------------------------------------------------------- data and outputs


def test_a_channel_has_the_objects_below_a_prefix(aws: Aws) -> None:
    for key in ("in/a", "in/deep/b", "in2/c"):
        aws.put(key, key.encode())
    done = aws.run(
        "cd /opt/ml/input/data; find . -type f | sort; cat folder/deep/b",
        InputDataConfig=[
            channel("s3://bucket/in/", "folder"),
            channel("s3://bucket/in", "prefix"),
            channel("s3://bucket/in/a", "file", InputMode="FastFile"),
        ],
    )
    assert aws.log(done["TrainingJobName"]) == [
        "./file/a",
        "./folder/a",
        "./folder/deep/b",
        "./prefix/a",
        "./prefix/deep/b",
        "./prefix/in2/c",
        "in/deep/b",
    ]


def test_a_channel_in_shards_and_by_a_manifest(aws: Aws) -> None:
    for number in range(5):
        aws.put(f"shards/{number}", b"x")
    entries = [{"prefix": "s3://bucket/shards/"}, "3", "1"]
    manifest = aws.put("manifest.json", json.dumps(entries).encode())
    done = aws.run(
        "cd /opt/ml/input/data; echo $(ls shards) and $(ls named)",
        instances=2,
        InputDataConfig=[
            channel(
                "s3://bucket/shards/", "shards", source={"S3DataDistributionType": "ShardedByS3Key"}
            ),
            channel(manifest, "named", source={"S3DataType": "ManifestFile"}),
        ],
    )
    name = done["TrainingJobName"]
    assert [*aws.log(name, 1), *aws.log(name, 2)] == ["0 2 4 and 1 3", "1 3 and 1 3"]


def file_system(name: str, directory: str = "/data") -> Object:
    source = {
        "FileSystemId": name,
        "FileSystemType": "FSxLustre",
        "FileSystemAccessMode": "rw",
        "DirectoryPath": directory,
    }
    return {
        "InputDataConfig": [{"ChannelName": "fsx", "DataSource": {"FileSystemDataSource": source}}],
        "VpcConfig": {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]},
    }


def test_a_file_system_is_a_folder_that_all_share(make: Callable[..., Aws], tmp_path: Path) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    aws = make(file_systems={"fs-0123456789abcdef0": tmp_path / "shared"})
    script = "date > /opt/ml/input/data/fsx/from-$PET_MASTER_PORT"
    for name in ("fs-0123456789abcdef0", "fs-0123456789abcdef1"):
        assert aws.run(script, **file_system(name))["TrainingJobStatus"] == "Completed"
    assert len(list((tmp_path / "shared" / "data").iterdir())) == 1
    own = aws.service.home / "file-systems" / "fs-0123456789abcdef1" / "data"
    assert len(list(own.iterdir())) == 1
    done = aws.run(**file_system("fs-0123456789abcdef0", "/none"))
    assert "Directory path /none does not exist" in done["FailureReason"]


def test_outputs_as_they_are(aws: Aws) -> None:
    script = "cd /opt/ml; mkdir model/deep; echo m > model/deep/m; echo d > output/data/d"
    name = aws.run(script)["TrainingJobName"]
    assert aws.keys(f"out/{name}/output/") == ["data/d", "model/deep/m"]


def test_outputs_in_archives(aws: Aws) -> None:
    done = aws.run(
        "cd /opt/ml; hostname=$(grep -o algo-. input/config/resourceconfig.json | head -1);"
        " echo $hostname > model/who; echo m > model/$hostname; echo d > output/data/d",
        instances=2,
        OutputDataConfig={"S3OutputPath": "s3://bucket/packed/"},
    )
    name = done["TrainingJobName"]
    place = f"packed/{name}/output/model.tar.gz"
    assert done["ModelArtifacts"] == {"S3ModelArtifacts": f"s3://bucket/{place}"}
    with tarfile.open(fileobj=io.BytesIO(aws.get(place))) as tar:
        assert tar.getnames() == ["algo-1", "algo-2", "who"]
        who = tar.extractfile("who")
        assert who is not None and who.read() == b"algo-1\n"
    with tarfile.open(fileobj=io.BytesIO(aws.get(f"packed/{name}/output/output.tar.gz"))) as tar:
        assert tar.getnames() == ["d"]


def test_outputs_without_a_bucket(aws: Aws) -> None:
    done = aws.run(OutputDataConfig={"S3OutputPath": "s3://no-such-bucket/out"})
    assert done["FailureReason"].startswith("ClientError: Artifact upload failed: NoSuchBucket")


def test_a_container_reaches_s3(aws: Aws) -> None:
    aws.put("reached/a", b"from outside")
    code = (
        "import boto3; s3 = boto3.client('s3');"
        "body = s3.get_object(Bucket='bucket', Key='reached/a')['Body'].read();"
        "s3.put_object(Bucket='bucket', Key='reached/b', Body=body + b', and back')"
    )
    words = ["python", "-c", code]
    algorithm = {"ContainerEntrypoint": words[:1], "ContainerArguments": words[1:]}
    assert aws.run(algorithm=algorithm)["TrainingJobStatus"] == "Completed"
    assert aws.get("reached/b") == b"from outside, and back"


# -------------------------------------------------------------------------------- checkpoints, spot


def test_checkpoints_go_to_s3_while_a_job_runs(aws: Aws, pipe: Pipe) -> None:
    aws.put("kept/old", b"old")
    script = f"""
        cat /opt/ml/checkpoints/old
        mkdir /opt/ml/checkpoints/step
        echo one > /opt/ml/checkpoints/step/1
        read line < {pipe.path}
        rm /opt/ml/checkpoints/step/1
        echo two > /opt/ml/checkpoints/step/2"""
    name = aws.create(script, CheckpointConfig={"S3Uri": "s3://bucket/kept/"})
    aws.service.wait(name, lambda job: "step/1" in aws.keys("kept/"))
    with pipe.path.open("w") as end:
        end.write("go\n")
    aws.service.wait(name)
    assert aws.log(name) == ["old"]
    assert aws.keys("kept/") == ["old", "step/1", "step/2"]


def test_tensorboard_has_its_files_in_s3(aws: Aws) -> None:
    name = aws.run(
        "echo events > /logs/tb/events",
        TensorBoardOutputConfig={"S3OutputPath": "s3://bucket/tb", "LocalPath": "/logs/tb"},
    )["TrainingJobName"]
    assert aws.get(f"tb/{name}/tensorboard-output/events") == b"events\n"


def test_spot_instances_are_taken_away(aws: Aws, pipe: Pipe) -> None:
    script = f"""
        echo again >> /cp/starts; echo m=$(wc -l < /cp/starts)
        test $(wc -l < /cp/starts) = 3 && exit 0
        echo local > /opt/ml/model/only-here
        trap 'echo saved >> /cp/saved; exit 143' TERM
        echo here > {pipe.path}
        sleep 600 & wait"""
    config = {"S3Uri": "s3://bucket/spot", "LocalPath": "/cp"}
    metrics = [{"Name": "m", "Regex": "m=([12])"}]
    name = aws.create(
        script, CheckpointConfig=config, algorithm={"MetricDefinitions": metrics}, **SPOT
    )
    assert pipe.hear() == "here\n"
    aws.service.interrupt(name)
    assert pipe.hear() == "here\n"
    body = json.dumps({"TrainingJobName": name}).encode()
    urllib.request.urlopen(f"{aws.endpoint}/embedded/interrupt", body).close()
    done = aws.service.wait(name)
    assert passed(done) == [
        *("Starting", "Pending", "Downloading", "Training", "Interrupted") * 2,
        *("Starting", "Pending", "Downloading", "Training", "Uploading", "Completed"),
    ]
    assert aws.get("spot/starts") == b"again\n" * 3
    assert aws.get("spot/saved") == b"saved\n" * 2
    assert aws.keys(f"out/{name}/output/") == []
    assert len(aws.streams(name)) == 3
    assert [one["Value"] for one in done["FinalMetricDataList"]] == [2.0]  # of a stream before
    assert done["BillableTimeInSeconds"] <= done["TrainingTimeInSeconds"]


def test_only_spot_instances_that_train_are_taken_away(aws: Aws) -> None:
    name = aws.run()["TrainingJobName"]
    with pytest.raises(ValueError, match="runs on no spot instances"):
        aws.service.interrupt(name)


def test_a_spot_job_that_waits_too_long(make: Callable[..., Aws]) -> None:
    aws = make(delays=Delays(pending=600))
    condition = {"MaxRuntimeInSeconds": 1, "MaxWaitTimeInSeconds": 1}
    done = aws.run(EnableManagedSpotTraining=True, StoppingCondition=condition)
    assert (done["TrainingJobStatus"], done["SecondaryStatus"]) == (
        "Stopped",
        "MaxWaitTimeExceeded",
    )


def test_a_stop_during_an_interruption(make: Callable[..., Aws], pipe: Pipe) -> None:
    aws = make()
    script = f"""
        trap 'echo told > {pipe.path}; read line < {pipe.path}.go; exit 0' TERM
        echo here > {pipe.path}
        sleep 600 & wait"""
    go = Pipe(Path(f"{pipe.path}.go"))
    name = aws.create(script, **SPOT)
    pipe.hear()
    aws.service.interrupt(name)
    assert pipe.hear() == "told\n"
    aws.sagemaker.stop_training_job(TrainingJobName=name)
    go.path.write_text("\n")
    done = aws.service.wait(name)
    assert done["TrainingJobStatus"] == "Stopped"
    assert "Interrupted" not in passed(done)


def test_an_internal_error_is_tried_again_if_one_says_so(aws: Aws, pipe: Pipe) -> None:
    script = f"echo here > {pipe.path}; {FOREVER}"
    name = aws.create(script, RetryStrategy={"MaximumRetryAttempts": 1})
    pipe.hear()
    aws.service.crash(name)
    pipe.hear()
    aws.service.crash(name)
    done = aws.service.wait(name)
    assert passed(done)[4:6] == ["Restarting", "Pending"]
    assert done["FailureReason"].startswith("InternalServerError: We encountered an internal error")


# --------------------------------------------------------------------------------------------- logs


def test_a_log_is_read_forwards_and_backwards(aws: Aws) -> None:
    name = aws.run("for n in 1 2 3 4 5; do echo line $n; done; echo")["TrainingJobName"]
    [stream] = aws.streams(name)

    def read(**asked: Any) -> tuple[list[str], str, str]:
        found = aws.events(stream, **asked)
        said = [event["message"].removeprefix("line ") for event in found["events"]]
        return said, found["nextForwardToken"], found["nextBackwardToken"]

    said, forward, backward = read(limit=2)
    assert said == ["1", "2"]
    said, forward, _ = read(limit=3, nextToken=forward)
    assert said == ["3", "4", "5"]
    said, last, _ = read(nextToken=forward)
    assert said == [""]
    assert read(nextToken=last)[:2] == ([], last)
    assert read(nextToken=backward)[::2] == ([], backward)
    said, _, backward = read(startFromHead=False, limit=2)
    assert said == ["5", ""]
    said, forward, _ = read(nextToken=backward, limit=3)
    assert said == ["2", "3", "4"]
    assert read(nextToken=forward)[0] == ["5", ""]
    with refused("InvalidParameterException", "nextToken is invalid"):
        read(nextToken="x")


def test_a_log_by_time(aws: Aws) -> None:
    name = aws.run("echo one; echo two")["TrainingJobName"]
    [stream] = aws.streams(name)
    first, second = aws.events(stream)["events"]
    assert aws.events(stream, startTime=second["timestamp"] + 1)["events"] == []
    assert first in aws.events(stream, endTime=first["timestamp"] + 1)["events"]
    assert aws.events(stream, endTime=first["timestamp"])["events"] == []


def test_a_log_comes_late(make: Callable[..., Aws], pipe: Pipe) -> None:
    aws = make(delays=Delays(logs=600))
    name = aws.create(f"echo early; echo here > {pipe.path}; {FOREVER}")
    pipe.hear()
    with refused("ResourceNotFoundException", "The specified log group does not exist."):
        aws.streams(name)
    aws.service.delays.logs = 0
    assert aws.log(name) == ["early"]
    with refused("ResourceNotFoundException", "The specified log stream does not exist."):
        aws.events(f"{name}/algo-2-1")


def test_a_tail_goes_on_with_what_comes(aws: Aws, pipe: Pipe) -> None:
    name = aws.create(f"echo one; read line < {pipe.path}; echo $line")
    aws.service.wait(name, lambda job: job["SecondaryStatus"] == "Training" and said(aws, name))
    [stream] = aws.streams(name)
    token = aws.events(stream, startFromHead=False)["nextForwardToken"]
    assert aws.events(stream, nextToken=token)["events"] == []
    with pipe.path.open("w") as end:
        end.write("two\n")
    aws.service.wait(name)
    [event] = aws.events(stream, nextToken=token)["events"]
    assert event["message"] == "two"


def said(aws: Aws, name: str) -> bool:
    with contextlib.suppress(ClientError):
        return bool(aws.streams(name))
    return False


def test_streams_are_listed(make: Callable[..., Aws]) -> None:
    aws = make()
    for name in ("first", "second"):
        aws.service.wait(aws.create("echo x", name=name, instances=2))

    def names(**asked: Any) -> list[str]:
        pages = aws.logs.get_paginator("describe_log_streams").paginate(
            logGroupName=GROUP, PaginationConfig={"PageSize": 3}, **asked
        )
        found = [one["logStreamName"] for page in pages for one in page["logStreams"]]
        return [name.rpartition("-")[0] for name in found]

    each = ["first/algo-1", "first/algo-2", "second/algo-1", "second/algo-2"]
    assert names() == each
    assert names(descending=True) == each[::-1]
    assert names(orderBy="LastEventTime", descending=True)[-1].startswith("first")
    assert names(logStreamNamePrefix="second/algo-1") == ["second/algo-1"]
    assert names(logStreamNamePrefix="sec") == each[2:]
    with refused("InvalidParameterException", "Cannot order by LastEventTime"):
        names(orderBy="LastEventTime", logStreamNamePrefix="second")


def test_events_of_all_streams(aws: Aws) -> None:
    script = "for n in 1 2 3; do echo line $n of $(basename $PWD); done"
    name = aws.run(script, instances=2)["TrainingJobName"]
    pages = aws.logs.get_paginator("filter_log_events")

    def read(**asked: Any) -> list[str]:
        found = pages.paginate(logGroupName=GROUP, PaginationConfig={"PageSize": 2}, **asked)
        return [event["message"] for page in found for event in page["events"]]

    whole = [f"line {n} of algo-{host}" for host in (1, 2) for n in (1, 2, 3)]
    assert sorted(read(logStreamNamePrefix=f"{name}/"), key=lambda line: line[-1]) == whole
    [first, _] = aws.streams(name)
    assert read(logStreamNames=[first]) == whole[:3]
    assert read(logStreamNames=[first], filterPattern='"line 2"') == whole[1:2]


# ----------------------------------------------------------------------------------------------- s3


def test_objects(aws: Aws) -> None:
    put = aws.s3.put_object(
        Bucket="bucket", Key="o/a b+c/ü", Body=b"hello", Metadata={"who": "me"}, ContentType="a/b"
    )
    got = aws.s3.get_object(Bucket="bucket", Key="o/a b+c/ü")
    assert (got["Body"].read(), got["ETag"], got["Metadata"]) == (
        b"hello",
        put["ETag"],
        {"who": "me"},
    )
    assert (got["ContentType"], got["ContentLength"]) == ("a/b", 5)
    assert got["ChecksumCRC32"] == put["ChecksumCRC32"]
    head = aws.s3.head_object(Bucket="bucket", Key="o/a b+c/ü")
    assert (head["ContentLength"], head["ETag"]) == (5, put["ETag"])
    part = aws.s3.get_object(Bucket="bucket", Key="o/a b+c/ü", Range="bytes=1-2")
    assert (part["Body"].read(), part["ContentRange"]) == (b"el", "bytes 1-2/5")
    aws.s3.copy_object(
        Bucket="bucket", Key="o/copy", CopySource={"Bucket": "bucket", "Key": "o/a b+c/ü"}
    )
    assert aws.get("o/copy") == b"hello"
    aws.s3.delete_object(Bucket="bucket", Key="o/copy")
    with refused("NoSuchKey"):
        aws.get("o/copy")
    with refused("404"):
        aws.s3.head_object(Bucket="bucket", Key="o/copy")
    with refused("InvalidRange"):
        aws.s3.get_object(Bucket="bucket", Key="o/a b+c/ü", Range="bytes=5-")
    with refused("NoSuchBucket"):
        aws.s3.get_object(Bucket="no-such-bucket", Key="a")
    with refused("404"):
        aws.s3.head_bucket(Bucket="no-such-bucket")


def test_keys_that_are_no_paths(aws: Aws) -> None:
    keys = ["odd/a", "odd/a/b", "odd/a//b", "odd/../x", "odd/" + "n" * 300, "odd/.", "odd/slash/"]
    for key in keys:
        aws.put(key, key.encode())
    assert [aws.get(key).decode() for key in keys] == keys
    assert aws.keys("odd/") == sorted(key.removeprefix("odd/") for key in keys)
    deleted = aws.s3.delete_objects(
        Bucket="bucket", Delete={"Objects": [{"Key": key} for key in keys]}
    )
    assert len(deleted["Deleted"]) == len(keys)
    assert aws.keys("odd/") == []


def test_an_object_that_must_not_be_there(aws: Aws) -> None:
    aws.s3.put_object(Bucket="bucket", Key="once", Body=b"first", IfNoneMatch="*")
    with refused("PreconditionFailed"):
        aws.s3.put_object(Bucket="bucket", Key="once", Body=b"second", IfNoneMatch="*")
    assert aws.get("once") == b"first"


def test_objects_are_listed_as_folders(aws: Aws) -> None:
    for key in ("tree/a", "tree/b/1", "tree/b/2", "tree/c/1"):
        aws.put(key)
    pages = aws.s3.get_paginator("list_objects_v2").paginate(
        Bucket="bucket", Prefix="tree/", Delimiter="/", PaginationConfig={"PageSize": 2}
    )
    found = list(pages)
    assert [page["KeyCount"] for page in found] == [2, 1]
    assert [one["Key"] for page in found for one in page.get("Contents") or ()] == ["tree/a"]
    prefixes = [one["Prefix"] for page in found for one in page.get("CommonPrefixes") or ()]
    assert prefixes == ["tree/b/", "tree/c/"]
    after = aws.s3.list_objects_v2(Bucket="bucket", Prefix="tree/", StartAfter="tree/b/1")
    assert [one["Key"] for one in after["Contents"]] == ["tree/b/2", "tree/c/1"]


def test_large_files_go_in_parts(aws: Aws, tmp_path: Path) -> None:
    content = bytes(range(256)) * (80 << 10)  # 20 MiB
    (tmp_path / "large").write_bytes(content)
    aws.s3.upload_file(str(tmp_path / "large"), "bucket", "large")
    head = aws.s3.head_object(Bucket="bucket", Key="large")
    assert (head["ContentLength"], head["ETag"][-3:]) == (len(content), '-3"')
    aws.s3.download_file("bucket", "large", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == content


def test_a_body_in_chunks_with_its_checksum(aws: Aws) -> None:
    """As clients send it that do not know the checksum before: over https, boto3, too."""

    def put(checksum: str) -> None:
        body = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:" + checksum.encode() + b"\r\n\r\n"
        request = urllib.request.Request(f"{aws.endpoint}/bucket/chunked", body, method="PUT")
        request.add_header("Authorization", f"AWS4-HMAC-SHA256 Credential=me/1/{REGION}/s3/x")
        request.add_header("x-amz-content-sha256", "STREAMING-UNSIGNED-PAYLOAD-TRAILER")
        request.add_header("Content-Encoding", "aws-chunked")
        urllib.request.urlopen(request).close()

    put("NhCmhg==")
    assert aws.get("chunked") == b"hello"
    with pytest.raises(urllib.error.HTTPError, match="400"):
        put("AAAAAA==")


# ------------------------------------------------------------------------ limits, faults, preflight


def test_calls_are_counted_and_limited(make: Callable[..., Aws]) -> None:
    aws = make(limits={"sagemaker:ListTrainingJobs": Limit(rate=1e-6, burst=2)})
    for _ in range(2):
        aws.sagemaker.list_training_jobs()
    with refused("ThrottlingException", "Rate exceeded"):
        aws.sagemaker.list_training_jobs()
    client(aws.endpoint, "sagemaker", "eu-west-1").list_training_jobs()
    assert aws.service.calls["sagemaker", "ListTrainingJobs"] == 4
    assert aws.service.throttled["sagemaker", "ListTrainingJobs"] == 1
    with urllib.request.urlopen(f"{aws.endpoint}/embedded/calls") as answer:
        assert json.load(answer)["throttled"] == {"sagemaker:ListTrainingJobs": 1}


def test_faults(make: Callable[..., Aws]) -> None:
    aws = make()
    faults = aws.service.faults
    faults.add(Fault("status", error="ExpiredTokenException", operation="sagemaker:"))
    with refused("ExpiredTokenException", "The security token included in the request is expired"):
        aws.create()
    faults.add(Fault("status", error="AccessDeniedException", operation="Create"))
    with refused("AccessDeniedException", "not authorized to perform: sagemaker:CreateTrainingJob"):
        aws.create()
    faults.add(Fault("throttle", operation="s3:PutObject"))
    with refused("SlowDown"):
        aws.put("x")
    faults.add(Fault("reset", operation="Create"))
    with pytest.raises(BotoCoreError):
        aws.create(name="reset")
    faults.add(Fault("lost", operation="Create"))
    with pytest.raises(BotoCoreError):
        aws.create(name="lost")
    faults.add(Fault("late", error="InternalFailure", operation="Create"))
    with refused("InternalFailure"):
        aws.create(name="late")
    found = aws.sagemaker.list_training_jobs(SortBy="Name")["TrainingJobSummaries"]
    assert [one["TrainingJobName"] for one in found] == ["lost", "late"]


def test_faults_by_http(make: Callable[..., Aws]) -> None:
    aws = make()
    url = f"{aws.endpoint}/embedded/faults"
    body = {"kind": "status", "error": "SlowDown", "operation": "GetObject", "times": 2}
    urllib.request.urlopen(url, json.dumps(body).encode()).close()
    with refused("SlowDown"):
        aws.get("none")
    with urllib.request.urlopen(url) as answer:
        [fault] = json.load(answer)["faults"]
    assert (fault["came"], fault["times"]) == (1, 2)
    urllib.request.urlopen(urllib.request.Request(url, method="DELETE")).close()
    with refused("NoSuchKey"):
        aws.get("none")
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(url, b'{"kind": "none"}')


def test_what_is_asked_before_a_job_is_sent(aws: Aws) -> None:
    assert client(aws.endpoint, "sts").get_caller_identity()["Account"] == "123456789012"
    ecr = client(aws.endpoint, "ecr")
    [image] = ecr.describe_images(repositoryName="training", imageIds=[{"imageTag": "1"}])[
        "imageDetails"
    ]
    assert image["imageTags"] == ["1"]
    with refused("RepositoryNotFoundException"):
        ecr.describe_images(repositoryName="no-such-image")
    [failure] = ecr.batch_get_image(
        repositoryName="training", imageIds=[{"imageTag": "no-such-image"}]
    )["failures"]
    assert failure["failureCode"] == "ImageNotFound"
    ec2 = client(aws.endpoint, "ec2")
    [subnet] = ec2.describe_subnets(SubnetIds=["subnet-1"])["Subnets"]
    assert subnet["SubnetId"] == "subnet-1"
    with refused("InvalidSubnetID.NotFound"):
        ec2.describe_subnets(SubnetIds=["subnet-none"])
    [group] = ec2.describe_security_groups(GroupIds=["sg-1"])["SecurityGroups"]
    assert group["VpcId"] == subnet["VpcId"]
    with refused("InvalidGroup.NotFound"):
        ec2.describe_security_groups(GroupIds=["sg-none"])


# -------------------------------------------------------------------------------------- the process


def test_all_stays_when_a_service_ends(make: Callable[..., Aws], tmp_path: Path) -> None:
    with Service(tmp_path / "home", limits=False) as service:
        aws = Aws(service)
        aws.put("kept", b"kept")
        aws.put("gone")
        aws.s3.delete_object(Bucket="bucket", Key="gone")
        done = aws.run("echo said")
        script = "test -e /opt/ml/checkpoints/there && exit 0; " + FOREVER
        names = [
            aws.create(script),
            aws.create(
                f"touch /opt/ml/checkpoints/there; {script}",
                RetryStrategy={"MaximumRetryAttempts": 1},
            ),
        ]
        for name in names:
            aws.until(name, "Training")
    again = make()
    assert again.endpoint == aws.endpoint
    assert again.get("kept") == b"kept"
    assert again.keys("gone") == []
    name = done["TrainingJobName"]
    assert again.service.describe(name) == done
    assert again.log(name) == ["said"]
    lost, retried = map(again.service.wait, names)
    assert lost["FailureReason"].startswith("InternalServerError")
    assert retried["TrainingJobStatus"] == "Completed"
    assert "Restarting" in passed(retried)


def test_buckets_are_listed_as_the_aws_command_line_reads_them(aws: Aws) -> None:
    aws.s3.create_bucket(Bucket="another")
    found = aws.s3.list_buckets()["Buckets"]
    assert {"another", "bucket"} <= {one["Name"] for one in found}
    assert all(one["CreationDate"].year >= 2026 for one in found)


def test_a_home_has_one_service(make: Callable[..., Aws], tmp_path: Path) -> None:
    make()
    with pytest.raises(BlockingIOError), Service(tmp_path / "home"):
        pass


def test_a_process_of_its_own(tmp_path: Path) -> None:
    home = tmp_path / "home"
    endpoint = sagemaker.start(home)
    try:
        assert sagemaker.start(home) == endpoint
        client(endpoint, "s3").create_bucket(Bucket="bucket")
        client(endpoint, "sagemaker").create_training_job(**job(FOREVER, name="it"))
    finally:
        sagemaker.stop(home)
    sagemaker.stop(home)
    assert not (home / "jobs" / REGION / "it" / "lock").exists()
    with pytest.raises(BotoCoreError):
        client(endpoint, "sagemaker").list_training_jobs()


def test_the_server_needs_no_sdk() -> None:
    code = (
        "import sys; from hydra_trainer.embedded.sagemaker import __main__;"
        "print([name for name in ('boto3', 'botocore', 'hydra', 'torch') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
