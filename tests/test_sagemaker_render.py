"""The requests of launcher=sagemaker: golden files, what is in them, what is refused."""

import copy
import functools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hydra_trainer import config, launcher
from hydra_trainer.bundle import Bundle
from hydra_trainer.errors import ConfigError
from hydra_trainer.job import JobSpec
from hydra_trainer.launchers.sagemaker import SagemakerLauncher
from hydra_trainer.sagemaker import request
from hydra_trainer.sagemaker.rules import rule_problems
from hydra_trainer.sagemaker.shapes import shape_problems

GOLDEN = Path(__file__).with_name("golden")
CODE = Bundle({}, "0123456789abcdef")
IDENTITY = "89abcdef01234567"
ROLE = "launcher.role=arn:aws:iam::111122223333:role/training"
OWN = [ROLE, "launcher.output=s3://bucket/prefix", "launcher.region=eu-central-1"]
IMAGE = "launcher.image=111122223333.dkr.ecr.eu-central-1.amazonaws.com/train:1"
GPU = "resources.instance_type=ml.g5.12xlarge"
VPC = ["launcher.subnets=[subnet-0a1b2c3d]", "launcher.security_groups=[sg-0a1b2c3d]"]
EFS = [
    "storage=efs",
    "storage.mounts.data.file_system=fs-0123456789abcdef0",
    "storage.mounts.output.file_system=fs-0123456789abcdef0",
    *VPC,
]


@pytest.fixture(scope="module", autouse=True)
def hydra() -> Iterator[None]:
    config.register()
    GlobalHydra.instance().clear()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        yield


def job(*words: str) -> tuple[JobSpec, SagemakerLauncher]:
    """Return a job and its launcher, from a command line."""
    made, place = composed(words)
    return replace(made, config=copy.deepcopy(made.config)), place


@functools.cache
def composed(words: tuple[str, ...]) -> tuple[JobSpec, SagemakerLauncher]:
    plain = config.validate(compose("config", ["launcher=sagemaker", *words]))
    named = {k: v for k, v in plain["launcher"].items() if k != "_target_"}
    made = config.to_job(plain, Path("runs/x"))
    name = f"{made.name[:-9]}-89abcdef"  # the rest of it depends on every line of this package
    made.config["run"] = {"name": name, "dir": "", "identity": IDENTITY, "code_digest": CODE.digest}
    return replace(made, name=name, code=CODE, identity=IDENTITY), SagemakerLauncher(**named)


def rendered(*words: str) -> dict[str, Any]:
    made, place = job(*words)
    return place.render(made)


def channels(made: dict[str, Any]) -> dict[str, Any]:
    return {one["ChannelName"]: one for one in made["InputDataConfig"]}


# ----------------------------------------------------------------------------------------- golden

WORDS: dict[str, list[str]] = {
    "sagemaker": [],
    "sagemaker-spot": [
        *OWN,
        GPU,
        "name=my run",
        "resources.nodes=2",
        "launcher.spot=true",
        "launcher.max_run=86400",
        "launcher.retries=3",
        "launcher.encrypt_traffic=true",
        "launcher.tensorboard=true",
        "launcher.mlflow=arn:aws:sagemaker:eu-central-1:111122223333:mlflow-tracking-server/runs",
        "+launcher.env={WANDB_PROJECT: digits}",
        "+launcher.tags={team: research}",
        "+launcher.metrics={lr: 'lr ([0-9.e-]+)'}",
    ],
    "sagemaker-efs": [
        *OWN,
        *EFS,
        IMAGE,
        "data=cifar10",
        "resources.instance_type=p4d.24xlarge",
        "resources.nodes=2",
        "data.batch_size=128",
        "launcher.keep_alive=1800",
        "launcher.kms_key=alias/training",
        "code.delivery=image",
    ],
    "sagemaker-fsx": [
        *OWN,
        *VPC,
        IMAGE,
        "storage=fsx",
        "data=cifar10",
        "storage.mounts.data.file_system=fs-0123456789abcdef0",
        "storage.mounts.data.mount_name=abcdef12",
        "storage.mounts.output.file_system=fs-0123456789abcdef0",
        "storage.mounts.output.mount_name=abcdef12",
        "launcher.instance_preferences=[p4d.24xlarge,ml.p4de.24xlarge]",
        "launcher.remote_debug=true",
        "launcher.infra_check=true",
    ],
    "sagemaker-s3": [
        *OWN,
        IMAGE,
        "data=cifar10",
        "storage.mounts.data={kind: s3, uri: 's3://data/sets', access: fastfile}",
        "launcher.network_isolation=true",
        "launcher.training_plan=arn:aws:sagemaker:eu-central-1:111122223333:training-plan/plan",
        "resources.instance_type=p5.48xlarge",
        "data.batch_size=128",
    ],
    "sagemaker-s3-only": [
        *OWN,
        "storage=s3",
        "storage.s3.bucket=my-bucket",
        "storage.s3.region=eu-central-1",
        "data=cifar10",
        "data.cache='${mount:cache}'",
        "launcher.spot=true",
        "resources.instance_type=g5.xlarge",
    ],
}


@pytest.mark.parametrize("name", WORDS)
def test_golden(name: str) -> None:
    text = launcher.text(rendered(*WORDS[name]), "json")
    path = GOLDEN / f"{name}.json"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text(), f"WRITE_GOLDEN=1 pytest {Path(__file__).name}; git diff"


@pytest.mark.parametrize("name", WORDS)
def test_a_request_is_what_botocore_and_we_accept(name: str) -> None:
    from botocore.session import Session
    from botocore.validate import validate_parameters

    made = json.loads((GOLDEN / f"{name}.json").read_text())
    model = Session().get_service_model("sagemaker").operation_model("CreateTrainingJob")
    validate_parameters(made, model.input_shape)
    assert [*shape_problems(made), *rule_problems(made)] == []


# ------------------------------------------------------------------------------------ what is in it


def test_what_is_not_asked_for_is_absent() -> None:
    text = json.dumps(rendered())
    for word in (
        "VpcConfig",
        "obstore",
        "Spot",
        "Kms",
        "Isolation",
        "Retry",
        "Mlflow",
        "KeepAlive",
        "null",
    ):
        assert word not in text, word


def test_an_instance_is_used_whole() -> None:
    made = rendered(GPU)
    assert "--nproc-per-node=4" in made["AlgorithmSpecification"]["ContainerArguments"]
    assert made["AlgorithmSpecification"]["TrainingImage"].endswith("cu133-amzn2023-sagemaker")
    assert made["ResourceConfig"]["InstanceType"] == "ml.g5.12xlarge"
    on_cpu = rendered(GPU, "trainer.accelerator=cpu", "resources.processes_per_node=2")
    assert "--nproc-per-node=2" in on_cpu["AlgorithmSpecification"]["ContainerArguments"]


def test_code_and_configuration_are_in_places_named_by_what_they_hold() -> None:
    found = channels(rendered(*OWN))
    uris = {name: one["DataSource"]["S3DataSource"]["S3Uri"] for name, one in found.items()}
    assert uris == {
        "code": "s3://bucket/prefix/code/0123456789abcdef/",
        "config": "s3://bucket/prefix/jobs/convnet-digits-89abcdef/",
    }


def test_a_mount_is_where_the_worker_looks_for_it() -> None:
    made = rendered(*WORDS["sagemaker-fsx"])
    disk = channels(made)["data"]["DataSource"]["FileSystemDataSource"]
    assert disk["DirectoryPath"] == "/abcdef12/data" and disk["FileSystemAccessMode"] == "ro"
    assert made["Environment"]["HYDRA_TRAINER_MOUNT_DATA"] == "/opt/ml/input/data/data"
    written = yaml.safe_load(request.config(*job(*WORDS["sagemaker-fsx"])))
    assert written["run"]["dir"] == "${mount:output}/convnet-cifar10-89abcdef"
    words = made["AlgorithmSpecification"]["ContainerArguments"]
    assert "--run-dir=/opt/ml/input/data/output/convnet-cifar10-89abcdef" in words
    assert "CheckpointConfig" not in made  # results are on the file system already


def test_without_a_file_system_the_run_directory_is_kept_in_s3() -> None:
    made = rendered(*OWN)
    assert made["CheckpointConfig"] == {
        "S3Uri": "s3://bucket/prefix/runs/convnet-digits-89abcdef/",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert yaml.safe_load(request.config(*job(*OWN)))["run"]["dir"] == "${mount:output}"
    assert made["Environment"]["HYDRA_TRAINER_MOUNT_OUTPUT"] == "/opt/ml/checkpoints"


def test_a_run_that_we_keep_in_s3_is_not_kept_there_by_sagemaker_too() -> None:
    made = rendered(*WORDS["sagemaker-s3-only"])  # on spot instances
    assert "CheckpointConfig" not in made
    assert made["Environment"] == {
        "PYTHONUNBUFFERED": "1",
        "HYDRA_TRAINER_MOUNT_DATA": "s3://my-bucket/data",
        "HYDRA_TRAINER_MOUNT_CACHE": "/tmp/hydra-trainer/cache",
        "HYDRA_TRAINER_MOUNT__SCRATCH": "/tmp/hydra-trainer/runs",
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    assert set(channels(made)) == {"code", "config"}
    written = yaml.safe_load(request.config(*job(*WORDS["sagemaker-s3-only"])))
    assert written["run"]["dir"] == "${mount:_scratch}/convnet-cifar10-89abcdef"
    words = made["AlgorithmSpecification"]["ContainerArguments"]
    assert "--run-dir=/tmp/hydra-trainer/runs/convnet-cifar10-89abcdef" in words
    assert "--pip=obstore>=0.12.1" in words


@pytest.mark.parametrize(("access", "mode"), [("file", "File"), ("fastfile", "FastFile")])
def test_a_channel_has_the_input_mode_of_its_mount(access: str, mode: str) -> None:
    mount = "storage.mounts.data={kind: s3, uri: s3://bucket/sets/, sub_path: cifar, access: "
    made = rendered(*OWN, "data=cifar10", f"{mount}{access}}}")
    found = channels(made)["data"]
    assert found["InputMode"] == mode
    assert found["DataSource"]["S3DataSource"]["S3Uri"] == "s3://bucket/sets/cifar/"
    assert made["Environment"]["HYDRA_TRAINER_MOUNT_DATA"] == "/opt/ml/input/data/data"


def test_shards_on_several_instances_may_be_kept_in_s3() -> None:
    rendered(GPU, "resources.nodes=2", "trainer.strategy=fsdp", "storage.output=s3://bucket/runs")


def test_what_awss_containers_lack_is_what_we_need() -> None:
    import tomllib

    needs = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
    there = ("torch>", "numpy", "pyyaml")  # in every image of AWS for PyTorch
    assert list(request.LACKING) == [one for one in needs if not one.startswith(there)]
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert list(request.FOR_S3) == extras["s3"]


def test_request_overrides_are_the_last_word() -> None:
    override = (
        "+launcher.request_overrides={Environment: {PYTHONUNBUFFERED: '0', X: '1'}, "
        "InputDataConfig: [{ChannelName: config, ContentType: text/yaml}]}"
    )
    made = rendered(override)
    assert made["Environment"]["PYTHONUNBUFFERED"] == "0" and made["Environment"]["X"] == "1"
    assert channels(made)["config"]["ContentType"] == "text/yaml" and len(channels(made)) == 2


def test_how_it_is_sent_makes_another_digest_and_again_does_not() -> None:
    def digest(*words: str) -> str:
        tags = {tag["Key"]: tag["Value"] for tag in rendered(*words)["Tags"]}
        return str(tags[request.DIGEST])

    assert digest("again=true") == digest() != digest("launcher.volume_size=200")
    assert digest("launcher.detach=true") == digest()


@settings(max_examples=300, deadline=None)
@example("x", "\n")
@given(st.text(max_size=120), st.text(max_size=400))
def test_any_name_and_value(name: str, value: str) -> None:
    spec, place = job()
    front = config.job_name({**spec.config, "name": name or None}, IDENTITY)
    spec = replace(spec, name=front)
    spec.config["trusted_modules"] = [value]
    made = request.request(spec, place)
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,58}", made["TrainingJobName"])
    assert made["TrainingJobName"].endswith("-89abcdef")
    assert yaml.safe_load(request.config(spec, place))["trusted_modules"] == [value]


# --------------------------------------------------------------------------------- what is refused

LONG = "x" * 600
REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "role": (
        ["launcher.role=arn:aws:iam::1111:role/x"],
        ["RoleArn", "12 digits", "launcher.role"],
    ),
    "user": (["launcher.role=arn:aws:iam::111122223333:user/x"], ["RoleArn", "role"]),
    "gpus": (
        [GPU, "resources.gpus_per_node=8", "data.batch_size=64"],
        ["resources.gpus_per_node is 8", "ml.g5.12xlarge has 4 GPUs"],
    ),
    "batch": ([GPU, "data.batch_size=6"], ["data.batch_size is 6", "4 processes", "=4 or"]),
    "efs without an id": (
        ["storage=efs", "data=cifar10"],
        ["storage.mounts.data.file_system", "fs-...", "storage resolve --claim efs-claim"],
    ),
    "efs without a network": ([*EFS[:3], "data=cifar10"], ["launcher.subnets"]),
    "a folder of this machine": (["data=cifar10"], ["storage.mounts.data is ~/data", "kind: s3"]),
    "results in a channel": (
        [
            "storage=efs",
            "+storage.mounts.output={kind: s3, access: file, uri: s3://bucket/runs}",
        ],
        ["storage.output", "access file", "rename", "storage.output=s3://bucket/runs"],
    ),
    "results on a read-only disk": (
        [*EFS, "storage.output='${mount:data}/runs'"],
        ["'data', which is read-only", "storage.mounts.data.read_only=false"],
    ),
    "a driver of kubernetes": (
        ["storage=s3", "data=cifar10", "storage.mounts.data.access=csi"],
        ["storage.mounts.data.access is 'csi'", "storage.mounts.data.access=stream"],
    ),
    "an s3 on this machine": (
        ["storage=s3", "storage.s3.embedded=true"],
        ["no instance of AWS", "launcher.embedded=true"],
    ),
    "isolation and s3": (
        [IMAGE, "storage=s3", "launcher.network_isolation=true"],
        ["launcher.network_isolation", "access=fastfile", "storage.output=runs"],
    ),
    "a variable that is too long": ([f"+launcher.env={{A: {LONG}}}"], ["Environment", "512"]),
    "a requirement that is too long": ([f"code.pip=[{LONG[:300]}]"], ["256"]),
    "too many tags": (
        ["+launcher.tags={" + ", ".join(f"t{i}: x" for i in range(49)) + "}"],
        ["Tags", "50"],
    ),
    "too many channels": (
        [
            f"+storage.mounts.m{i}={{kind: s3, access: file, uri: 's3://bucket/{i}'}}"
            for i in range(19)
        ],
        ["InputDataConfig", "20"],
    ),
    "too many hyperparameters": (
        [
            "+launcher.request_overrides.HyperParameters={"
            + ", ".join(f"h{i}: '1'" for i in range(101))
            + "}"
        ],
        ["HyperParameters", "100"],
    ),
    "output": (["launcher.output=/home/me"], ["S3OutputPath", "s3://", "launcher.output"]),
    "a warm pool with spot": (
        ["launcher.spot=true", "launcher.keep_alive=600"],
        ["KeepAlive", "launcher.keep_alive"],
    ),
    "isolation with pip": (
        [IMAGE, "launcher.network_isolation=true", "code.pip=[einops]"],
        ["launcher.network_isolation", "code.pip"],
    ),
    "isolation without an image": (["launcher.network_isolation=true"], ["launcher.image"]),
    "min_nodes": (["resources.min_nodes=1"], ["resources.min_nodes", "launcher=eks"]),
    "two ways to choose": (
        [GPU, "launcher.instance_preferences=[g5.xlarge]"],
        ["instance_preferences", "resources.instance_type"],
    ),
    "smddp": (
        [GPU, "trainer.process_group_backend=smddp"],
        ["process_group_backend", "p4d", "=auto"],
    ),
    "torch": (["launcher.torch=1.0"], ["1.0", "2.13"]),
    "client": (["launcher.client=boto"], ["launcher.client", "boto3, sdk"]),
    "volume": (["code.delivery=volume", "code.place=/x"], ["code.delivery"]),
    "fsdp": (
        [GPU, "resources.nodes=2", "trainer.strategy=fsdp"],
        ["trainer.strategy", "storage=efs"],
    ),
    "wait": (["launcher.spot=true", "launcher.max_wait=5"], ["MaxWaitTime", "launcher.max_wait"]),
}


@pytest.mark.parametrize("name", [name for name in REFUSED if REFUSED[name][1]])
def test_bad_input(name: str) -> None:
    words, parts = REFUSED[name]
    with pytest.raises(ConfigError) as caught:
        rendered(*words)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_a_type_without_ml_is_understood() -> None:
    assert rendered("resources.instance_type=g5.xlarge") == rendered(
        "resources.instance_type=ml.g5.xlarge"
    )


def test_a_credential_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    rendered("+launcher.env={AWS_SECRET_ACCESS_KEY: abcdefghijklmnopqrstuvwx}")
    assert "launcher.env.AWS_SECRET_ACCESS_KEY" in capsys.readouterr().err


def test_a_type_that_is_not_known_is_warned_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert rendered("resources.instance_type=g5.xlarj")["ResourceConfig"]["InstanceType"]
    assert "Did you mean 'ml.g5.xlarge'?" in capsys.readouterr().err
