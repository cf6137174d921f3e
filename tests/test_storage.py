"""storage: what a mount is on this machine, what is refused, and the S3 on this machine."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hydra_trainer import __main__ as verbs
from hydra_trainer import storage, values
from hydra_trainer.embedded import buckets, sagemaker
from hydra_trainer.embedded.sagemaker import users
from hydra_trainer.errors import ConfigError

from .conftest import REPOSITORY

Plain = dict[str, Any]
S3: Plain = {"endpoint": None, "region": None, "embedded": False}
PLACE = {"kind": "s3", "uri": "s3://bucket/sets/", "sub_path": "cifar"}


def plain(output: str = "runs", mounts: Plain | None = None, **s3: Any) -> Plain:
    return {"storage": {"output": output, "mounts": mounts or {}, "s3": {**S3, **s3}}}


# ------------------------------------------------------------------------------ on this machine

ANSWERS: dict[str, tuple[Any, str]] = {
    "a folder": ("~/data", f"{Path.home()}/data"),
    "a claim that this machine has as well": ({"kind": "efs", "local": "/efs"}, "/efs"),
    "streamed": (PLACE, "s3://bucket/sets/cifar"),
    "streamed, with a copy here": ({**PLACE, "local": "/copy"}, "/copy"),
    "a channel, with a copy here": ({**PLACE, "access": "file", "local": "/copy"}, "/copy"),
    "a cache": ({"kind": "cache"}, f"{Path.home()}/.cache/hydra-trainer/name"),
    "a cache elsewhere": ({"kind": "cache", "local": "/nvme"}, "/nvme"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_mount_is_on_this_machine(name: str) -> None:
    node, found = ANSWERS[name]
    assert storage.storage_problems(plain(mounts={"name": node})) == []
    assert storage.answer("name", {"name": node}, {}) == found
    assert storage.answer("name", {"name": node}, {storage.variable("name"): "/there"}) == "/there"


def test_a_mount_that_this_machine_has_not() -> None:
    for access, words in (("fastfile", "access=stream"), ("csi", "access=stream")):
        with pytest.raises(ConfigError, match=words):
            storage.answer("data", {"data": {**PLACE, "access": access}}, {})
    with pytest.raises(ConfigError, match=r"storage.mounts.data.local=/path/of/it\.$"):
        storage.answer("data", {"data": {"kind": "efs", "claim": "c"}}, {})


OUTPUTS: list[tuple[str, Any, str | None, str]] = [
    ("runs", None, None, "runs"),
    ("s3://bucket/runs/", None, "s3://bucket/runs", "runs"),
    ("s3://bucket", None, "s3://bucket", "runs"),
    ("${mount:out}", "/disk", None, "/disk"),
    ("${mount:out}/mine", PLACE, "s3://bucket/sets/cifar/mine", "runs"),
    ("${mount:out}", {**PLACE, "local": "/copy"}, "s3://bucket/sets/cifar", "runs"),
    ("${mount:out}", {"kind": "efs", "claim": "c"}, None, "runs"),
]


@pytest.mark.parametrize(("output", "node", "remote", "local"), OUTPUTS)
def test_where_runs_are_kept(output: str, node: Any, remote: str | None, local: str) -> None:
    config = plain(output, {"out": node} if node else {})
    assert storage.storage_problems(config) == []
    assert storage.remote_output(config) == remote
    assert storage.local_output(config) == Path(local)


def test_a_trial_is_kept_below_the_run_of_all_trials() -> None:
    run = {"name": "all", "dir": "/x/all", "remote": "s3://b/runs/all", "code_digest": ""}
    config = {"lr": 1.0, "run": run}
    made = values.of_trial(config, {"name": "t-1", "values": {"lr": "2"}})["run"]
    assert (made["dir"], made["remote"]) == ("/x/all/t-1", "s3://b/runs/all/t-1")
    made = values.of_trial({**config, "run": {**run, "remote": None}}, {"name": "t", "values": {}})
    assert made["run"]["remote"] is None


# --------------------------------------------------------------------------------- what is refused

DATA = "storage.mounts.data"
REFUSED: dict[str, tuple[Plain, list[str]]] = {
    "no bucket": (plain("s3://My_Bucket/runs"), ["'My_Bucket' cannot be a bucket", "3 to 63"]),
    "an address": (plain("s3://10.0.0.1/runs"), ["'10.0.0.1' cannot be a bucket"]),
    "another service": (plain("gs://bucket/runs"), ["'gs://bucket/runs'", "s3://BUCKET/PREFIX"]),
    "a mount without a bucket": (
        plain(mounts={"data": {**PLACE, "uri": "s3:///x"}}),
        [f"{DATA}.uri is 's3:///x'", "cannot be a bucket"],
    ),
    "a place as a folder": (
        plain(mounts={"data": "s3://bucket/x"}),
        [f"'{DATA}={{kind: s3, uri: s3://bucket/x}}'"],
    ),
    "no place": (
        plain(mounts={"data": {"kind": "s3", "claim": "c"}}),
        [f"{DATA}.uri has no value", f"{DATA}.access=csi for its claim"],
    ),
    "no such access": (
        plain(mounts={"data": {**PLACE, "access": "FastFile"}}),
        ["'FastFile'", "stream, file, fastfile, csi", "Did you mean 'fastfile'?"],
    ),
    "the name it had": (
        plain(mounts={"data": {**PLACE, "input_mode": "File"}}),
        [f"{DATA}.input_mode is not known", "access"],
    ),
    "access to a disk": (
        plain(mounts={"data": {"kind": "efs", "access": "file"}}),
        [f"{DATA}.access is 'file'", "only a mount of kind s3"],
    ),
    "output on what is read only": (
        plain("${mount:data}/runs", {"data": {"kind": "efs", "claim": "c", "read_only": True}}),
        ["storage.output is in the mount 'data', which is read-only"],
    ),
    "output on a file system over S3": (
        plain("${mount:data}", {"data": {**PLACE, "access": "csi", "claim": "c"}}),
        ["rename", "storage.output=s3://bucket/sets/cifar"],
    ),
    "output in a cache": (
        plain("${mount:tmp}", {"tmp": {"kind": "cache"}}),
        ["kind cache, which goes with the machine", "storage.output=s3://"],
    ),
    "all at once": (
        plain("${mount:x}", {"A": "/a", "b": 3, "c": {"kind": "efz"}, "d": {"path": "mnt"}}),
        ["no 'x'", "storage.mounts.A:", "storage.mounts.b is 3", "'efz'", "'mnt'"],
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input(name: str) -> None:
    config, words = REFUSED[name]
    found = "\n".join(storage.storage_problems(config))
    for word in words:
        assert word in found, found


BUCKETS = {
    # docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
    **dict.fromkeys(["abc", "a" * 63, "a.b-c", "0.0", "1.2.3.4.5", "name--use1-az4--x-s3"], True),
    **dict.fromkeys(["", "ab", "a" * 64, "Abc", "a_b", "-ab", "ab-", ".ab", "ab.", "a..b"], False),
    "192.168.5.4": False,
    "point-metadata-s3alias": True,
    "arn:aws:s3:eu-west-1:111122223333:accesspoint": False,
}


@pytest.mark.parametrize("bucket", BUCKETS)
def test_the_names_that_a_bucket_can_have(bucket: str) -> None:
    assert (storage.place_problems("key", f"s3://{bucket}/prefix") == []) is BUCKETS[bucket]
    assert (storage.place_problems("key", f"s3://{bucket}") == []) is BUCKETS[bucket]


def test_data_that_cannot_be_streamed_say_so() -> None:
    from hydra_trainer.datasets.cifar10 import CIFAR10

    with pytest.raises(ConfigError, match=r"data.root is 's3://bucket/x'.*data=shards"):
        CIFAR10("s3://bucket/x")


def test_a_stand_in_is_for_rehearsals() -> None:
    config = plain(f"s3://{storage.STAND_IN}/runs")
    assert "storage.s3.bucket=NAME" in storage.stand_in_problems(config)[0]
    assert storage.stand_in_problems(plain(f"s3://{storage.STAND_IN}/runs", embedded=True)) == []
    assert storage.stand_in_problems(plain("s3://my-bucket/runs")) == []


def test_the_lifecycle_rule_of_the_documentation_is_one() -> None:
    from botocore.session import Session
    from botocore.validate import validate_parameters

    text = (REPOSITORY / "docs" / "storage.md").read_text()
    rule = text.partition("--lifecycle-configuration '")[2].partition("'")[0]
    model = Session().get_service_model("s3")
    asked = {"Bucket": "bucket", "LifecycleConfiguration": json.loads(rule)}
    shape = model.operation_model("PutBucketLifecycleConfiguration").input_shape
    validate_parameters(asked, shape)


# ------------------------------------------------------------------------------- S3 on this machine


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The folder of the embedded service, as another machine's user would have it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in (*buckets.ADDRESSES, *storage.REGIONS):
        monkeypatch.delenv(name, raising=False)
    yield storage.embedded_home()
    buckets.leave(storage.embedded_home())
    sagemaker.stop(storage.embedded_home())


def test_who_joins_finds_s3_and_keeps_it_up(home: Path) -> None:
    environ: dict[str, str] = {}
    buckets.join(plain(), environ)
    assert not environ and not home.exists()  # only who asks for it
    buckets.join(plain(embedded=True, endpoint="http://store"), environ)
    assert not environ and not home.exists()
    buckets.join(plain(embedded=True), environ)
    assert environ["AWS_ENDPOINT_URL_S3"] == sagemaker.address(home)
    assert users.is_used(home)
    before = dict(environ)
    buckets.join(plain(embedded=True), environ)
    assert environ == before
    other = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    buckets.join(plain(embedded=True), other)  # a container of the embedded SageMaker
    assert other == {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}


def test_a_bucket_is_there_on_first_use(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import boto3
    from botocore.exceptions import ClientError

    assert verbs.verb("storage", ["embedded"]) == 0
    words = [line.removeprefix("export ") for line in capsys.readouterr().out.splitlines()]
    found = dict(word.split("=", 1) for word in words)
    client = boto3.client(
        "s3",
        endpoint_url=found["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
        region_name=found["AWS_DEFAULT_REGION"],
    )
    with pytest.raises(ClientError, match="404"):
        client.head_bucket(Bucket="not-used-yet")
    assert client.list_objects_v2(Bucket="read-first")["KeyCount"] == 0
    client.put_object(Bucket="written-first", Key="a", Body=b"x")
    names = [one["Name"] for one in client.list_buckets()["Buckets"]]
    assert names == ["read-first", "written-first"]


def test_a_service_with_a_user_has_work(tmp_path: Path) -> None:
    with sagemaker.Service(tmp_path / "service") as service:
        assert not service.is_working
        user = users.use(service.home)
        assert service.is_working
        # The user's children hold it, too: a rank that outlives its bootstrap.
        child = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[user.fileno()]
        )
        user.close()
        assert service.is_working
        child.communicate(b"\n")
        assert not service.is_working
    with (tmp_path / "service" / users.USERS).open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody is left


def test_a_container_does_not_take_the_service_along(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank in a pod may be who starts it; all that has the pod's mark ends with the pod."""
    from hydra_trainer.embedded.process import MARK, kill_marked

    monkeypatch.setenv(MARK, f"{home}|pod|")
    buckets.start(home)
    kill_marked(f"{home}|pod|")
    os.kill(int((home / "lock").read_text()), 0)
    assert json.loads(_get(f"{sagemaker.address(home)}/embedded/calls"))["calls"] == {}


def _get(url: str) -> bytes:
    from urllib.request import urlopen

    with urlopen(url) as answer:
        found: bytes = answer.read()
    return found
