"""The offline checks of launcher=sagemaker: fields, rules across them, images, instance types."""

import copy
import dataclasses
import functools
import itertools
import json
import random
import re
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import botocore
import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from hydra_trainer.errors import ConfigError
from hydra_trainer.instances import INSTANCES, Instance, instance
from hydra_trainer.problems import shown
from hydra_trainer.sagemaker import rules, shapes
from hydra_trainer.sagemaker.images import (
    ACCOUNT,
    REGIONS,
    RELEASES,
    SMP_ACCOUNT,
    framework_of,
    image,
    smddp_problem,
)
from hydra_trainer.sagemaker.options import Options
from hydra_trainer.sagemaker.request import CODE, CONFIG
from hydra_trainer.sagemaker.rules import key_of, rule_problems
from hydra_trainer.sagemaker.shapes import OPERATIONS, Problem, compiled, shape_problems

Object = dict[str, Any]

# ---------------------------------------------------------------------- requests made from botocore

SAMPLES = (
    "A",
    "s3://bucket/prefix",
    "fs-0123456789abcdef0",
    "arn:aws:iam::123456789012:role/service-role/training",
    "arn:aws:sagemaker:us-east-1:123456789012:training-plan/plan",
    "arn:aws:sagemaker:us-east-1:123456789012:mlflow-tracking-server/server",
    "arn:aws:sagemaker:us-east-1:123456789012:model-package-group/group",
    "arn:aws:sagemaker:us-east-1:123456789012:model-package/group/1",
    "arn:aws:sagemaker:us-east-1:aws:hub-content/Hub/Model/name/1.0.0",
    "arn:aws:sagemaker:us-east-1:aws:hub-content/Hub/DataSet/name/1.0.0",
    "arn:aws:lambda:us-east-1:123456789012:function:login",
    "32K",
)
"""One of these is right for each pattern of the service."""

BAD = ("\n", "\r", "\u2028", "\t", "é!", "-", "arn:aws:iam::12345678901:role/x" + "x" * 60)
"""For each pattern that refuses something, one of these is not right."""


@functools.cache
def service() -> Object:
    return dict(Loader().load_service_model("sagemaker", "service-2"))


def shape(name: str) -> Object:
    return dict(service()["shapes"][name])


def of_length(text: str, least: int, most: int) -> bool:
    return least <= len(text) <= most


def accepted(shape: Object, text: str) -> bool:
    pattern = shape.get("pattern")
    return of_length(text, shape.get("min", 0), shape.get("max", 10**6)) and (
        pattern is None or compiled(pattern).fullmatch(text) is not None
    )


def full(name: str) -> Any:
    """Return a value of a shape that has everything in it."""
    node = shape(name)
    match node["type"]:
        case "structure":
            return {key: full(part["shape"]) for key, part in node["members"].items()}
        case "list":
            return [full(node["member"]["shape"]) for _ in range(min(2, node.get("max", 2)))]
        case "map":
            return {full(node["key"]["shape"]): full(node["value"]["shape"])}
        case "boolean":
            return True
        case "integer" | "long":
            return max(node.get("min", 0), 1)
        case "float":
            return 0.5
        case "timestamp":
            return 1767225600
    if "enum" in node:
        return node["enum"][-1]
    return next(text for text in SAMPLES if accepted(node, text))


def request_of(operation: str) -> Object:
    made: Object = full(service()["operations"][operation]["input"]["shape"])
    return made


Fault = tuple[str, Any, str]
"""A path, what is put there (... takes it away), and what the message must say."""


def faults(name: str, value: Any, path: str = "") -> Iterator[Fault]:
    """Yield one fault of each kind for each place of a value of a shape."""
    node, step = shape(name), f"{path}." if path else ""
    kind = node["type"]
    yield from wrong_types(kind, path)
    if kind == "structure":
        yield f"{step}Surprise", 1, "is no field of"
        for key in node.get("required", ()):
            yield f"{step}{key}", ..., "is missing"
        for key, part in node["members"].items():
            yield from faults(part["shape"], value[key], f"{step}{key}")
    elif kind == "list":
        if node.get("min", 0):
            yield path, [], "has 0 items"
        if "max" in node:
            yield path, value[:1] * (node["max"] + 1), f"has {node['max'] + 1} items"
        yield from faults(node["member"]["shape"], value[0], f"{path}[0]")
    elif kind == "map":
        yield from map_faults(node, value, path)
    elif kind == "string":
        yield from string_faults(node, path)
    elif kind in ("integer", "long"):
        yield path, node.get("min", -(2**63)) - 1, "but must be"
        yield path, node.get("max", 2**63) + 1, "but must be"


def wrong_types(kind: str, path: str) -> Iterator[Fault]:
    others: dict[str, Any] = {
        "structure": [],
        "map": "A",
        "list": {},
        "string": 7,
        "boolean": "true",
    }
    others |= {"integer": "3", "long": 1.5, "float": "0.5", "timestamp": {}}
    if path:
        yield path, others[kind], "but must be"
        yield path, None, "is null, but must be"
    if path and kind in ("integer", "long", "float", "string"):
        yield path, True, "is true, but must be"


def map_faults(node: Object, value: Object, path: str) -> Iterator[Fault]:
    (key,) = value
    many = {f"A{index}": value[key] for index in range(node["max"] + 1)}
    yield path, many, f"has {len(many)} entries"
    for _, bad, _ in string_faults(shape(node["key"]["shape"]), path):
        yield f"{path}[{bad}]", value[key], "its name is"
    yield from faults(node["value"]["shape"], value[key], f"{path}[{key}]")


def string_faults(node: Object, path: str) -> Iterator[Fault]:
    if "enum" in node:
        word = node["enum"][0]
        yield path, word.swapcase() + "s", 'begin with "ml."' if "ml." in word else "one of"
        return
    if node.get("min", 0):
        yield path, "", "it has 0"
    if "max" in node:
        yield path, "a" * (node["max"] + 1), f"it has {node['max'] + 1}"
    fits = [text for text in BAD if of_length(text, node.get("min", 0), node.get("max", 10**6))]
    yield from [(path, text, f"is {shown(text)}") for text in fits if not accepted(node, text)][:1]


def planted(request: Object, path: str, value: Any) -> Object:
    """Return a copy with something else at a path; ... takes it away."""
    made = copy.deepcopy(request)
    node: Any = made
    *way, last = steps(path)
    for step in way:
        node = node[step]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return made


def steps(path: str) -> list[Any]:
    """Split a path. A name of a map's entry may have anything in it, at the end of the path."""
    out: list[Any] = []
    while path:
        if path.startswith("["):
            inner, _, path = path[1:].partition("]") if path[1].isdigit() else (path[1:-1], "", "")
            out.append(int(inner) if inner.isdigit() else inner)
        else:
            end = min((path.find(sign) for sign in ".[" if sign in path), default=len(path))
            out.append(path[:end])
            path = path[end:]
        path = path.removeprefix(".")
    return out


def errors(found: list[Problem]) -> list[Problem]:
    return [problem for problem in found if problem.severity == "error"]


# ------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_request_with_every_field_is_right(operation: str) -> None:
    assert shape_problems(request_of(operation), operation) == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_each_fault_is_found_where_it_is(operation: str) -> None:
    request = request_of(operation)
    name = service()["operations"][operation]["input"]["shape"]
    count = 0
    for path, value, words in faults(name, request):
        found = shape_problems(planted(request, path, value), operation)
        assert [problem.path for problem in found] == [path], (path, value, found)
        assert words in found[0].message and found[0].severity == "error", found
        count += 1
    assert count > (700 if operation == "CreateTrainingJob" else 4)


def test_what_is_just_within_the_limits_is_right() -> None:
    limits = {
        "TrainingJobName": "a" * 63,
        "HyperParameters": {"a" * 256: "a" * 2500},
        "ResourceConfig.InstanceCount": 2**31 - 1,
        "ResourceConfig.KeepAlivePeriodInSeconds": 21600,
        "StoppingCondition.MaxRuntimeInSeconds": 1,
        "StoppingCondition.MaxPendingTimeInSeconds": 1800,
        "InputDataConfig[0].ShuffleConfig": {"Seed": -(2**63)},
        "Environment": {f"A{index}": "\n" * 512 for index in range(100)},
    }
    for path, value in limits.items():
        assert shape_problems(planted(a_request(), path, value)) == []


def test_several_faults_are_all_found() -> None:
    request = request_of("CreateTrainingJob")
    kinds = [fault for fault in faults("CreateTrainingJobRequest", request) if "[" not in fault[0]]
    chance = random.Random(7)
    for _ in range(100):
        chosen = {
            path.partition(".")[0]: (path, value) for path, value, _ in chance.sample(kinds, 5)
        }
        bad = request
        for path, value in chosen.values():
            bad = planted(bad, path, value)
        found = {problem.path for problem in shape_problems(bad)}
        assert found == {path for path, _ in chosen.values()}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_botocore_refuses_is_refused(operation: str) -> None:
    model = ServiceModel(service()).operation_model(operation).input_shape
    request = request_of(operation)
    seen = 0
    planned = [*faults(model.name, request)]
    for path, value, _ in random.Random(7).sample(planned, min(len(planned), 150)):
        bad = planted(request, path, value)
        if ParamValidator().validate(bad, model).has_errors():
            seen += 1
            assert errors(shape_problems(bad, operation)), (path, value)
    assert seen and not ParamValidator().validate(request, model).has_errors()


def test_shapes_are_those_of_botocore() -> None:
    """Of another version, they may differ: what is valid there must be so here all the same."""
    recorded = shapes.model()
    if recorded["botocore"] == botocore.__version__:
        assert shapes.FILE.read_text() == shapes.written(shapes.from_botocore()), (
            "shapes.json is not what botocore has: run python -m hydra_trainer.sagemaker.shapes"
        )
    for problem in shape_problems(a_request()):
        raise AssertionError(problem)


def test_checks_need_no_boto() -> None:
    code = (
        "import sys; from hydra_trainer.sagemaker.shapes import shape_problems; shape_problems({});"
        "sys.exit(any(name.startswith(('boto', 'torch')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_patterns_are_javas() -> None:
    assert not compiled(".*").fullmatch("a\u2028b")
    assert not compiled(".+").fullmatch("a\r")
    assert compiled(r"[.]\.").fullmatch("..")
    assert not compiled(r"[.]\.").fullmatch("a.")
    assert not compiled(r"\d{3}").fullmatch("\u0663" * 3)
    assert not compiled("[a-z]+").fullmatch("a\n")


def test_a_tags_characters_are_those_of_unicode() -> None:
    tag = compiled(shape("TagKey")["pattern"])
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    wanted = [
        text for text in every if unicodedata.category(text)[0] in "LZN" or text in "_.:/=+-@"
    ]
    assert "".join(tag.findall(every)) == "".join(wanted)


def a_request() -> Object:
    """Return what launcher=sagemaker sends for an ordinary job."""
    return {
        "TrainingJobName": "digits-89abcdef",
        "RoleArn": "arn:aws:iam::123456789012:role/service-role/training",
        "AlgorithmSpecification": {
            "TrainingImage": (
                "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.13-cu133-amzn2023-sagemaker"
            ),
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["/bin/bash", "/opt/ml/input/data/code/start.sh"],
            "MetricDefinitions": [{"Name": "loss", "Regex": r"loss=(\S+)"}],
        },
        "InputDataConfig": [
            {
                "ChannelName": "code",
                "DataSource": {
                    "S3DataSource": {
                        "S3DataType": "S3Prefix",
                        "S3Uri": "s3://bucket/code",
                        "S3DataDistributionType": "FullyReplicated",
                    }
                },
            },
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://bucket/output", "CompressionType": "NONE"},
        "ResourceConfig": {
            "InstanceType": "ml.p4d.24xlarge",
            "InstanceCount": 2,
            "VolumeSizeInGB": 100,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
        "CheckpointConfig": {"S3Uri": "s3://bucket/checkpoints"},
        "Environment": {"NCCL_DEBUG": "INFO"},
        "Tags": [{"Key": "team", "Value": "vision"}],
    }


AN_ARN = "ARN, such as arn:aws:iam::123456789012:role/training"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "ResourceConfig.InstanceType",
            "p4d.24xlarge",
            'is "p4d.24xlarge", but must begin with "ml.". Did you mean \'ml.p4d.24xlarge\'?',
        ),
        (
            "ResourceConfig.InstanceType",
            "ml.p4d.24xlrage",
            "is \"ml.p4d.24xlrage\", which is not known here. Did you mean 'ml.p4d.24xlarge'?",
        ),
        (
            "Environment[A-B]",
            "",
            "its name is \"A-B\", but must be letters, digits and '_', and not begin with a digit",
        ),
        (
            "Environment[LONG]",
            "x" * 513,
            f'is "{"x" * 75}..., but must be of at most 512 characters; it has 513',
        ),
        ("Environment[N]", 3, 'is 3, but must be a string (put it in quotes: "3")'),
        ("Enviroment", {}, "is no field of CreateTrainingJobRequest. Did you mean 'Environment'?"),
        ("RetryStrategy", {}, "is missing, but is required"),
        (
            "InputDataConfig[0].InputMode",
            "Fastfile",
            "is \"Fastfile\", but must be one of Pipe, File, FastFile. Did you mean 'FastFile'?",
        ),
        ("StoppingCondition.MaxRuntimeInSeconds", 0, "is 0, but must be at least 1"),
        ("ResourceConfig.KeepAlivePeriodInSeconds", 21601, "is 21601, but must be at most 21600"),
        ("Tags", [{"Key": "a", "Value": "b"}] * 51, "has 51 items, but must have at most 50"),
        (
            "RoleArn",
            "training-role-of-the-team",
            f'is "training-role-of-the-team": it is no {AN_ARN}',
        ),
        (
            "RoleArn",
            "arn:aws:iam::12345678901:role/x",
            "is \"arn:aws:iam::12345678901:role/x\": its account is '12345678901', but must have "
            "12 digits; it has 11 characters",
        ),
        (
            "RoleArn",
            "arn:aws:iam::123456789012:user/ada",
            'is "arn:aws:iam::123456789012:user/ada": it is that of a user, but must be that of a '
            f"role, {AN_ARN[5:]}",
        ),
        (
            "RoleArn",
            "arn:aws:sts::123456789012:assumed-role/training/ada",
            'is "arn:aws:sts::123456789012:assumed-role/training/ada": it is that of a session, '
            f"but must be that of the role itself, {AN_ARN[5:]}",
        ),
        (
            "RoleArn",
            "arn:aws:iam::123456789012",
            f'is "arn:aws:iam::123456789012": it is no {AN_ARN}',
        ),
        (
            "RoleArn",
            "urn:a:iam::1:role/training",
            f'is "urn:a:iam::1:role/training": it is no {AN_ARN}',
        ),
        (
            "RoleArn",
            "arn:gcp:iam::123456789012:role/training",
            'is "arn:gcp:iam::123456789012:role/training": it is of gcp:iam, but a role is of '
            "aws:iam",
        ),
        (
            "RoleArn",
            "arn:aws:s3:::bucket/role/training",
            'is "arn:aws:s3:::bucket/role/training": it is of aws:s3, but a role is of aws:iam',
        ),
        (
            "RoleArn",
            "arn:aws:iam:us-east-1:123456789012:role/x",
            'is "arn:aws:iam:us-east-1:123456789012:role/x": a role is in no region, but this '
            "is in us-east-1",
        ),
        (
            "RoleArn",
            "arn:aws:iam::123456789012:role/x y",
            "is \"arn:aws:iam::123456789012:role/x y\": the name of the role is 'x y', but must be "
            "letters, digits and any of _+=,.@-/",
        ),
    ],
)
def test_the_message_says_what_to_change(path: str, value: Any, message: str) -> None:
    (problem,) = shape_problems(planted(a_request(), path, value))
    assert problem.message == (message if message.endswith("?") else f"{message}.")
    within = {"RetryStrategy": ".MaximumRetryAttempts", "HyperParameters": "[a]"}
    assert problem.path == path + within.get(path, "")
    assert problem.severity == ("warning" if "not known here" in message else "error")


# -------------------------------------------------------------------------------------------- rules


def changed(changes: Object) -> Object:
    """Return an ordinary request with changes: a path, and what is there instead (... for none)."""
    made = a_request()
    for path, value in changes.items():
        made = planted(made, path, value)
    return made


def disk(**fields: Any) -> Object:
    source = {
        "FileSystemId": "fs-0123456789abcdef0",
        "FileSystemType": "FSxLustre",
        "FileSystemAccessMode": "rw",
        "DirectoryPath": "/fsx/data",
    }
    return {
        "ChannelName": "data",
        "DataSource": {"FileSystemDataSource": source | fields},
    }


def bucket(name: str, **fields: Any) -> Object:
    source = {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/data", **fields}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def group(name: str, kind: str = "ml.g5.xlarge", number: int = 1) -> Object:
    return {"InstanceGroupName": name, "InstanceType": kind, "InstanceCount": number}


VPC = {"Subnets": ["subnet-0123456789abcdef0"], "SecurityGroupIds": ["sg-0123456789abcdef0"]}
SPOT: Object = {
    "EnableManagedSpotTraining": True,
    "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200},
}
NO_TYPE: Object = {"ResourceConfig.InstanceType": ..., "ResourceConfig.InstanceCount": ...}
GROUPS: Object = {**NO_TYPE, "ResourceConfig.InstanceGroups": [group("a"), group("b")]}
CHOICE = [{"InstanceType": "ml.p5.48xlarge"}, {"InstanceType": "ml.p4d.24xlarge"}]
CHOICES: Object = {
    "ResourceConfig.InstanceType": ...,
    "ResourceConfig.InstancePreferences": CHOICE,
}
PLAN = "arn:aws:sagemaker:us-east-1:123456789012:training-plan/plan"

RIGHT: dict[str, Object] = {
    "ordinary": {},
    "spot": SPOT,
    "spot on a disk": {
        **SPOT,
        "CheckpointConfig": ...,
        "InputDataConfig": [disk()],
        "VpcConfig": VPC,
    },
    "spot with as long to wait": {**SPOT, "StoppingCondition.MaxWaitTimeInSeconds": 3600},
    "efs": {"InputDataConfig": [disk(FileSystemType="EFS", DirectoryPath="/")], "VpcConfig": VPC},
    "groups": GROUPS,
    "data for a group": {
        **GROUPS,
        "InputDataConfig": [bucket("data", InstanceGroupNames=["b"])],
    },
    "choices": CHOICES,
    "choices with counts": {
        **NO_TYPE,
        "ResourceConfig.InstancePreferences": [{**one, "InstanceCount": 2} for one in CHOICE],
    },
    "warm": {"ResourceConfig.KeepAlivePeriodInSeconds": 3600},
    "plan": {"ResourceConfig.TrainingPlanArn": PLAN},
    "a disk of its own": {"ResourceConfig.VolumeSizeInGB": ...},
    "an encrypted volume": {
        "ResourceConfig.InstanceType": "ml.m5.xlarge",
        "ResourceConfig.VolumeKmsKeyId": "alias/key",
    },
    "a type that is new": {"ResourceConfig.InstanceType": "ml.q1.xlarge"},
    "an image of one's own": {
        "AlgorithmSpecification.TrainingImage": (
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn/team/train@sha256:" + "0" * 64
        )
    },
    "a registry in the VPC": {
        "AlgorithmSpecification.TrainingImage": "registry.corp/train:1",
        "AlgorithmSpecification.TrainingImageConfig": {"TrainingRepositoryAccessMode": "Vpc"},
    },
    "regular expressions of Java": {
        "AlgorithmSpecification.MetricDefinitions[0].Regex": r"(?:a|b)\p{Space}(?<value>[0-9]++)"
    },
    "an access point": {
        "OutputDataConfig.S3OutputPath": "s3://arn:aws:s3:us-east-1:1:accesspoint/x"
    },
    "an algorithm of the marketplace": {
        "AlgorithmSpecification": {"AlgorithmName": "algorithm", "TrainingInputMode": "File"}
    },
    "a run of 28 days": {"StoppingCondition.MaxRuntimeInSeconds": 2419200},
    "MLflow": {"MlflowConfig": full("MlflowConfig")},
    "isolated": {"EnableNetworkIsolation": True},
    "a hyperparameter called as a secret": {"HyperParameters": {"MAX_TOKEN": "a" * 20}},
    "an image of one's own for ARM": {
        "ResourceConfig.InstanceType": "ml.p6e-gb200.36xlarge",
        "AlgorithmSpecification.TrainingImage": "123456789012.dkr.ecr.us-east-1.amazonaws.com/a:1",
    },
    "places in an UltraServer": {"ResourceConfig.InstancePlacementConfig": {}},
    "a choice with a plan": {
        **CHOICES,
        "ResourceConfig.InstancePreferences": [
            {**CHOICE[0], "TrainingPlanArns": [PLAN]},
            CHOICE[1],
        ],
    },
    "serverless, with how to read its input": {
        "ServerlessJobConfig": full("ServerlessJobConfig"),
        "AlgorithmSpecification": {"TrainingInputMode": "File"},
    },
    "serverless": {
        "ServerlessJobConfig": full("ServerlessJobConfig"),
        "ResourceConfig": ...,
        "StoppingCondition": ...,
        "AlgorithmSpecification": ...,
    },
}


@pytest.mark.parametrize("changes", RIGHT.values(), ids=RIGHT)
def test_a_request_that_is_right(changes: Object) -> None:
    request = changed(changes)
    assert rule_problems(request) == []
    assert errors(shape_problems(request)) == []


METRIC = "AlgorithmSpecification.MetricDefinitions"
SOURCE = "InputDataConfig[0].DataSource"
IMAGE = "AlgorithmSpecification.TrainingImage"
RESOURCES = "ResourceConfig"
WAIT = "StoppingCondition.MaxWaitTimeInSeconds"

WRONG: list[tuple[Object, str, str]] = [
    ({"ResourceConfig": ...}, "ResourceConfig", "is required unless the job is serverless"),
    ({"StoppingCondition": ...}, "StoppingCondition", "is missing"),
    ({"AlgorithmSpecification": ...}, "AlgorithmSpecification", "is missing"),
    # the container
    ({IMAGE: ...}, "AlgorithmSpecification", "has no TrainingImage"),
    ({"AlgorithmSpecification.AlgorithmName": "a"}, "AlgorithmSpecification", "has both"),
    ({IMAGE: "pytorch/pytorch:2.13"}, IMAGE, "type launcher.image=ACCOUNT.dkr.ecr"),
    ({IMAGE: "public.ecr.aws/deep-learning-containers/pytorch:2.13"}, IMAGE, "from Amazon ECR"),
    ({f"{RESOURCES}.InstanceType": "ml.p6e-gb200.36xlarge"}, f"{RESOURCES}.InstanceType", "? ARM"),
    (
        {f"{METRIC}[0].Regex": "loss=(x"},
        f"{METRIC}[0].Regex",
        "but that is no regular expression (",
    ),
    ({f"{METRIC}[0].Regex": "loss=x"}, f"{METRIC}[0].Regex", "such as loss=([0-9.]+)."),
    ({f"{METRIC}[0].Regex": "(a)(b)"}, f"{METRIC}[0].Regex", "? Write (?:...) for the others."),
    (
        {METRIC: [{"Name": "loss", "Regex": "(a)"}, {"Name": "loss", "Regex": "(b)"}]},
        f"{METRIC}[1].Name",
        '? is "loss", which there is already.',
    ),
    # data
    (
        {"InputDataConfig": [bucket("a"), bucket("b"), bucket("a")]},
        "InputDataConfig[2].ChannelName",
        'is "a", which an earlier channel is called',
    ),
    (
        {"InputDataConfig": [disk()]},
        f"{SOURCE}.FileSystemDataSource",
        "Type 'launcher.subnets=[subnet-...]' 'launcher.security_groups=[sg-...]'.",
    ),
    ({SOURCE: {}}, SOURCE, "is empty, but must have one of S3DataSource, FileSystemDataSource"),
    (
        {
            "InputDataConfig": [disk(DirectoryPath="data")],
            "VpcConfig": VPC,
        },
        f"{SOURCE}.FileSystemDataSource.DirectoryPath",
        'is "data", but must begin with /.',
    ),
    (
        {"InputDataConfig": [disk(DirectoryPath="/")], "VpcConfig": VPC},
        f"{SOURCE}.FileSystemDataSource.DirectoryPath",
        "aws fsx describe-file-systems tells it (MountName).",
    ),
    (
        {f"{SOURCE}.DatasetSource": full("DatasetSource")},
        SOURCE,
        "has S3DataSource and DatasetSource, but must have one",
    ),
    (
        {**GROUPS, "InputDataConfig": [bucket("data", InstanceGroupNames=["a", "aa"])]},
        f"{SOURCE}.S3DataSource.InstanceGroupNames[1]",
        "is \"aa\", but there are a, b. Did you mean 'a'?",
    ),
    (
        {"InputDataConfig": [bucket("data", InstanceGroupNames=["a"])]},
        f"{SOURCE}.S3DataSource.InstanceGroupNames[0]",
        "there are no InstanceGroups",
    ),
    (
        {"OutputDataConfig.S3OutputPath": "https://bucket.s3.amazonaws.com/x"},
        "OutputDataConfig.S3OutputPath",
        "must begin with s3://",
    ),
    ({"CheckpointConfig.S3Uri": "s3://My_Bucket/x"}, "CheckpointConfig.S3Uri", "lower case"),
    (
        {"InputDataConfig": [bucket("data", S3Uri="https://bucket/x")]},
        f"{SOURCE}.S3DataSource.S3Uri",
        "must begin with s3://",
    ),
    *[
        ({"CheckpointConfig.LocalPath": place}, "CheckpointConfig.LocalPath", words)
        for place, words in {
            "checkpoints": "must begin with /",
            "/opt/ml/input/data/code": "SageMaker's input is in /opt/ml/input",
            "/opt/ml": "SageMaker's input is in /opt/ml/input",
            "/": "SageMaker's input is in /opt/ml/input",
            "/opt/ml/model/checkpoints": "? sent to S3 at the end as well",
        }.items()
    ],
    # the network
    (
        {"VpcConfig": {**VPC, "Subnets": VPC["SecurityGroupIds"]}},
        "VpcConfig.Subnets[0]",
        'is "sg-0123456789abcdef0", but must begin with subnet-.',
    ),
    (
        {"VpcConfig": {**VPC, "SecurityGroupIds": ["default"]}},
        "VpcConfig.SecurityGroupIds[0]",
        'is "default", but must begin with sg-.',
    ),
    (
        {"EnableNetworkIsolation": True, "MlflowConfig": full("MlflowConfig")},
        "MlflowConfig",
        "Type launcher.network_isolation=false or launcher.mlflow=null.",
    ),
    # tags, secrets
    ({"Tags": [{"Key": "AWS:x", "Value": ""}]}, "Tags[0].Key", "begin with aws: are AWS's own"),
    (
        {"Tags": [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]},
        "Tags[1].Key",
        'is "a", which there is already.',
    ),
    ({"Environment.KEY": "AKIA" + "A" * 16}, "Environment[KEY]", "looks like a credential"),
    ({"Environment.WANDB_API_KEY": "0" * 40}, "Environment[WANDB_API_KEY]", "? may be a secret"),
    (
        {"HyperParameters": {"token": "hf_" + "a" * 30}},
        "HyperParameters[token]",
        "which launcher.role lets the code read.",
    ),
    # instances
    (NO_TYPE, RESOURCES, "has no InstanceType. Type resources.instance_type="),
    (
        {f"{RESOURCES}.InstanceCount": ...},
        f"{RESOURCES}.InstanceCount",
        "is missing. Type resources.nodes=1.",
    ),
    ({f"{RESOURCES}.InstanceCount": 0}, f"{RESOURCES}.InstanceCount", "must be at least 1."),
    (
        {f"{RESOURCES}.InstanceGroups": [group("a")], f"{RESOURCES}.InstanceCount": ...},
        f"{RESOURCES}.InstanceGroups",
        "Leave out launcher.instance_groups or resources.instance_type.",
    ),
    (
        {f"{RESOURCES}.InstancePreferences": CHOICE},
        f"{RESOURCES}.InstancePreferences",
        "Leave out launcher.instance_preferences or resources.instance_type.",
    ),
    ({**GROUPS, f"{RESOURCES}.InstanceCount": 2}, f"{RESOURCES}.InstanceCount", "have their own"),
    (
        {**GROUPS, f"{RESOURCES}.InstanceGroups": [group("a"), group("a")]},
        f"{RESOURCES}.InstanceGroups[1].InstanceGroupName",
        'is "a", which an earlier group is called.',
    ),
    (
        {**GROUPS, f"{RESOURCES}.InstanceGroups": [group("a", number=0)]},
        f"{RESOURCES}.InstanceGroups[0].InstanceCount",
        "must be at least 1",
    ),
    (
        {**GROUPS, f"{RESOURCES}.KeepAlivePeriodInSeconds": 60},
        f"{RESOURCES}.KeepAlivePeriodInSeconds",
        "Type launcher.keep_alive=null.",
    ),
    *[
        ({f"{RESOURCES}.{key}": value}, f"{RESOURCES}.{key}", "is for SageMaker to tell")
        for key, value in {
            "SelectedInstanceType": "ml.g5.xlarge",
            "SelectedInstanceCount": 1,
        }.items()
    ],
    (
        {**CHOICES, f"{RESOURCES}.InstancePreferences": [*CHOICE, CHOICE[0]]},
        f"{RESOURCES}.InstancePreferences[2].InstanceType",
        'is "ml.p5.48xlarge", which there is already.',
    ),
    (
        {**CHOICES, f"{RESOURCES}.InstancePreferences": [{**CHOICE[0], "InstanceCount": 1}]},
        f"{RESOURCES}.InstanceCount",
        "is there, but InstancePreferences have their own.",
    ),
    (
        {
            **CHOICES,
            f"{RESOURCES}.InstanceCount": ...,
            f"{RESOURCES}.InstancePreferences": [{**CHOICE[0], "InstanceCount": 1}, CHOICE[1]],
        },
        f"{RESOURCES}.InstancePreferences",
        "must all have an InstanceCount",
    ),
    (
        {
            **CHOICES,
            f"{RESOURCES}.InstanceCount": ...,
            f"{RESOURCES}.InstancePreferences": [{**CHOICE[0], "InstanceCount": 0}],
        },
        f"{RESOURCES}.InstancePreferences[0].InstanceCount",
        "is 0, but must be at least 1.",
    ),
    (
        {
            **NO_TYPE,
            f"{RESOURCES}.InstanceGroups": [group("a"), group("b", "ml.c5.xlarge")],
            f"{RESOURCES}.VolumeSizeInGB": ...,
        },
        f"{RESOURCES}.VolumeSizeInGB",
        "is missing, but ml.c5.xlarge has no disk",
    ),
    (
        {**CHOICES, f"{RESOURCES}.InstancePlacementConfig": {}},
        f"{RESOURCES}.InstancePlacementConfig",
        "cannot be beside InstancePreferences.",
    ),
    (
        {
            **CHOICES,
            f"{RESOURCES}.InstancePreferences": [{**CHOICE[0], "TrainingPlanArns": [PLAN]}],
            f"{RESOURCES}.TrainingPlanArn": PLAN,
        },
        f"{RESOURCES}.TrainingPlanArn",
        "InstancePreferences have their own.",
    ),
    (
        {f"{RESOURCES}.InstanceType": "ml.m5.xlarge", f"{RESOURCES}.VolumeSizeInGB": ...},
        f"{RESOURCES}.VolumeSizeInGB",
        "is missing, but ml.m5.xlarge has no disk of its own. Type launcher.volume_size=100.",
    ),
    (
        {f"{RESOURCES}.VolumeKmsKeyId": "alias/key"},
        f"{RESOURCES}.VolumeKmsKeyId",
        "Type launcher.volume_kms_key=null.",
    ),
    # spot, times
    ({WAIT: 7200}, WAIT, "Type launcher.spot=true or launcher.max_wait=null."),
    (
        {**SPOT, WAIT: ...},
        WAIT,
        "is missing, but a spot job needs it. Type launcher.max_wait=7200: seconds",
    ),
    (
        {**SPOT, WAIT: 3599},
        WAIT,
        "is 3599, but must be at least the 3600 of MaxRuntimeInSeconds. Type launcher.max_wait=72",
    ),
    (
        {**SPOT, "StoppingCondition": {"MaxWaitTimeInSeconds": 86399}},
        WAIT,
        "must be at least the 86400 of MaxRuntimeInSeconds",
    ),
    (
        {**SPOT, "CheckpointConfig": ...},
        "CheckpointConfig",
        "Type launcher.output=s3://BUCKET/PREFIX, or storage=efs.",
    ),
    (
        {
            **SPOT,
            "CheckpointConfig": ...,
            "VpcConfig": VPC,
            "InputDataConfig": [disk(FileSystemAccessMode="ro")],
        },
        "CheckpointConfig",
        "begins anew",
    ),
    (
        {**SPOT, f"{RESOURCES}.KeepAlivePeriodInSeconds": 60},
        f"{RESOURCES}.KeepAlivePeriodInSeconds",
        "Type launcher.keep_alive=null or launcher.spot=false.",
    ),
    (
        {**SPOT, f"{RESOURCES}.TrainingPlanArn": PLAN},
        f"{RESOURCES}.TrainingPlanArn",
        "Type launcher.spot=false or launcher.training_plan=null.",
    ),
    (
        {**SPOT, **CHOICES},
        f"{RESOURCES}.InstancePreferences",
        "is there, but not for spot jobs.",
    ),
    (
        {"StoppingCondition.MaxRuntimeInSeconds": 2419201},
        "StoppingCondition.MaxRuntimeInSeconds",
        "Type launcher.max_run=2419200.",
    ),
]


@pytest.mark.parametrize(("changes", "path", "words"), WRONG)
def test_a_rule_that_is_broken(changes: Object, path: str, words: str) -> None:
    """Of words that begin with a question mark, the problem is a warning."""
    request = changed(changes)
    found = rule_problems(request)
    assert [problem.path for problem in found] == [path]
    assert words.removeprefix("? ") in found[0].message and found[0].message[-1] in ".?"
    assert found[0].severity == ("warning" if words.startswith("?") else "error")
    # What the fields' own check says as well would be said twice.
    assert errors(shape_problems(request)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("CheckpointConfig.S3Uri", "bucket/x"),
        ("CheckpointConfig.S3Uri", "s3:///x"),
        ("StoppingCondition.MaxWaitTimeInSeconds", "7200"),
        ("ResourceConfig.InstanceCount", -1),
        ("ResourceConfig.InstanceType", "m5.xlarge"),
        ("RoleArn", "training"),
        ("AlgorithmSpecification.MetricDefinitions[0].Regex", ""),
        ("AlgorithmSpecification.MetricDefinitions[0].Regex", ...),
        ("ResourceConfig", []),
        ("InputDataConfig[0].DataSource", "s3://bucket/data"),
    ],
)
def test_what_is_wrong_with_one_field_is_said_once(path: str, value: Any) -> None:
    request = planted(a_request(), path, value)
    assert len(shape_problems(request)) == 1
    assert rule_problems(request) == []


def test_rules_bear_whatever_a_field_holds() -> None:
    request = request_of("CreateTrainingJob")
    for path, value, _ in faults("CreateTrainingJobRequest", request):
        bad = planted(request, path, value)
        for problem in rule_problems(bad):
            assert problem.message[-1] in ".?" and problem.path
        bad.pop("ServerlessJobConfig", None)
        rule_problems(bad)
    rule_problems({})


def test_every_field_has_the_key_that_makes_it() -> None:
    keys = {
        "TrainingJobName": "name",
        "Environment[A-B]": "launcher.env.A-B",
        "Environment[A\nB]": "launcher.env.A\nB",
        "HyperParameters[x]": "launcher.hyperparameters",
        "OutputDataConfig": "launcher.output",
        "OutputDataConfig.KmsKeyId": "launcher.kms_key",
        "CheckpointConfig.S3Uri": "launcher.output",
        "CheckpointConfig.LocalPath": None,
        "AlgorithmSpecification.ContainerEntrypoint[0]": None,
        "AlgorithmSpecification.ContainerArguments": "code.pip",
        "AlgorithmSpecification.MetricDefinitions[3].Regex": "launcher.metrics",
        "ResourceConfig.InstanceGroups[0].InstanceCount": "launcher.instance_groups",
        "ResourceConfig.InstancePreferences[0].InstanceType": "launcher.instance_preferences",
        "ResourceConfig.InstancePreferences[0].InstanceCount": "resources.nodes",
        "VpcConfig": "launcher.security_groups",
        "VpcConfig.Subnets[0]": "launcher.subnets",
        "Tags[0].Value": "launcher.tags",
        "ExperimentConfig.TrialName": "launcher.request_overrides.ExperimentConfig.TrialName",
        "Surprise": "launcher.request_overrides.Surprise",
    }
    assert {path: key_of(path) for path in keys} == keys


def test_keys_are_those_of_the_options() -> None:
    options = {field.name for field in dataclasses.fields(Options)}
    for _, key in rules.KEYS:
        if key and key.startswith("launcher."):
            assert key.split(".")[1] in options, key


def test_a_channel_has_the_name_of_its_mount() -> None:
    request = changed({"InputDataConfig": [bucket(CODE), bucket(CONFIG), bucket("images")]})
    paths = [f"InputDataConfig[{index}].DataSource" for index in range(3)]
    found = [key_of(path, request) for path in paths]
    assert found == ["launcher.output", "launcher.output", "storage.mounts.images"]
    assert key_of("InputDataConfig", request) == key_of(paths[2]) == "storage.mounts"
    request["AlgorithmSpecification"]["ContainerArguments"] = ["--grace=110", "--pip=einops"]
    path = "AlgorithmSpecification.ContainerArguments"
    assert key_of(f"{path}[1]", request) == "code.pip"
    assert key_of(f"{path}[0]", request) is None


# ------------------------------------------------------------------------------------------- images


def sdk_data(name: str) -> Object:
    """Return what the SageMaker SDK says of the images of a framework, without importing it."""
    spec = find_spec("sagemaker")
    for place in (spec and spec.submodule_search_locations) or ():
        file = Path(place, "core", "image_uri_config", f"{name}.json")
        if file.exists():
            return dict(json.loads(file.read_text())["training"]["versions"])
    pytest.skip("sagemaker-core is not installed")


def test_images_are_those_of_the_sdk() -> None:
    old = {version: entry for version, entry in sdk_data("pytorch").items() if dated(version)}
    new = sdk_data("pytorch-amzn2023")
    assert sorted(RELEASES) == sorted([*old, *new])
    for version, entry in {**old, **new}.items():
        assert set(entry["registries"]) <= set(REGIONS)
        for region, processor in itertools.product(REGIONS, ("gpu", "cpu")):
            if region not in entry["registries"]:
                with pytest.raises(ConfigError, match="only"):
                    image(version, processor == "gpu", region)
                continue
            if version in old:
                tag = f"{version}-{processor}-{entry['py_versions'][-1]}"
            else:
                tag = f"{entry['tag_prefix']}-{entry['container_version'][processor]}"
            host = f"{entry['registries'][region]}.dkr.ecr.{region}.{domain(region)}"
            found = image(version, processor == "gpu", region)
            assert found == f"{host}/{entry['repository']}:{tag}"


def dated(version: str) -> bool:
    return tuple(map(int, version.split("."))) >= (2, 4)


def domain(region: str) -> str:
    """Return what names end with in a region, as botocore has it."""
    for partition in Loader().load_data("partitions")["partitions"]:
        if re.fullmatch(partition["regionRegex"], region):
            return str(partition["outputs"]["dnsSuffix"])
    raise AssertionError(region)


@pytest.mark.parametrize("region", REGIONS)
def test_an_image_is_where_its_region_is(region: str) -> None:
    found = image("2.13", True, region)
    assert found.startswith(f"{REGIONS[region]}.dkr.ecr.{region}.{domain(region)}/pytorch:2.13-")
    assert framework_of(found) == ("2.13", True)
    assert framework_of(image("2.9", False, region)) == ("2.9.0", False)
    assert shape_problems(planted(a_request(), "AlgorithmSpecification.TrainingImage", found)) == []


def test_a_version_may_be_given_as_torch_has_it() -> None:
    amazon = image("2.13", True, "us-east-1")
    assert amazon == image("2.13.1", True, "us-east-1") == image("2.13.0+cu133", True, "us-east-1")
    assert image("2.5", True, "us-east-1") == image("2.5.1", True, "us-east-1")
    assert "2.10.0" in image("2.10", True, "us-east-1")


@pytest.mark.parametrize(
    ("torch", "region", "words"),
    [
        ("2.1", "us-east-1", "2.14. 2.10 needs quotes: 'launcher.torch=\"2.10\"'."),
        ("2", "us-east-1", "AWS has containers for 2.4.0, "),
        ("2.5.0", "us-east-1", "AWS has containers for 2.4.0, 2.5.1, "),
        ("2.5.1.2", "us-east-1", "AWS has containers for 2.4.0, 2.5.1, "),
        ("3.0", "us-east-1", "Type launcher.torch=2.14, or launcher.image="),
        ("2.13", "us-east-9", "Did you mean 'us-east-2'?"),
        ("2.14", "cn-north-1", "2.12, 2.13 only. Type launcher.torch=2.13."),
        ("2.5", "eusc-de-east-1", "for 2.9.0, "),
    ],
)
def test_an_image_that_is_not_there_names_those_that_are(
    torch: str, region: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        image(torch, True, region)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "framework"),
    [
        (
            f"{ACCOUNT}.dkr.ecr.us-west-2.amazonaws.com/pytorch-training:"
            "2.10.0-gpu-py313-cu130-ubuntu22.04-sagemaker",
            ("2.10.0", True),
        ),
        (f"{ACCOUNT}.dkr.ecr.us-west-2.amazonaws.com/pytorch:2.12-cpu-amzn2023", ("2.12", False)),
        (f"{ACCOUNT}.dkr.ecr.us-west-2.amazonaws.com/pytorch:latest", None),
        ("123456789012.dkr.ecr.us-west-2.amazonaws.com/pytorch:2.13-cu133", None),
        ("pytorch/pytorch:2.13", None),
    ],
)
def test_what_an_image_is(name: str, framework: tuple[str, bool] | None) -> None:
    assert framework_of(name) == framework


@pytest.mark.parametrize(
    ("name", "machine", "words"),
    [
        ("pytorch-training:2.3.0-gpu-py311-cu121-ubuntu20.04-sagemaker", "p4d.24xlarge", None),
        ("pytorch-training:2.0.1-gpu-py310", "p4de.24xlarge", None),
        ("smdistributed-modelparallel:2.4.1-gpu-py311-cu121", "p4d.24xlarge", None),
        ("own:1", "p4d.24xlarge", None),
        ("own:1", "p5.48xlarge", "not on ml.p5.48xlarge."),
        (
            "pytorch-training:2.3.0-cpu-py311",
            "p4d.24xlarge",
            "pytorch-training:2.3.0-cpu-py311 does",
        ),
        ("pytorch:2.13-cu133-amzn2023-sagemaker", "p4d.24xlarge", "2.4.1-gpu-py311-cu121."),
        ("smdistributed-modelparallel:2.8.0-gpu-py311", "p4d.24xlarge", "does not have it"),
    ],
)
def test_smddp_needs_its_instances_and_images(name: str, machine: str, words: str | None) -> None:
    account = {"smdistributed-modelparallel": SMP_ACCOUNT, "own": "1" * 12}
    host = f"{account.get(name.split(':')[0], ACCOUNT)}.dkr.ecr.us-east-1.amazonaws.com"
    found = smddp_problem(f"{host}/{name}", f"ml.{machine}")
    assert (found is None) if words is None else (found is not None and words in found)


# ----------------------------------------------------------------------------------- instance types

OF_CPUS = re.compile(r"ml\.[cmrt]\d")
RETIRED = {"ml.p2.xlarge", "ml.p2.8xlarge", "ml.p2.16xlarge"}
"""K80: PyTorch has not been built for them since 2.0."""


def test_every_accelerated_instance_type_is_known() -> None:
    names = shape("TrainingInstanceType")["enum"]
    lacking = [
        name
        for name in names
        if not OF_CPUS.match(name) and name not in RETIRED and instance(name) is None
    ]
    assert not lacking, f"hydra_trainer/instances.py lacks {', '.join(lacking)}"


def test_what_instances_have_agrees_with_their_names() -> None:
    assert instance("ml.p6e-gb200.36xlarge") == Instance(4, "GB200", 8, 144, 960)
    for name, machine in INSTANCES.items():
        if OF_CPUS.match(f"ml.{name}"):
            assert machine[:2] == (0, ""), name
        size = re.search(r"\.(\d+)xlarge", name)
        if size and machine.gpu != "GB200":
            assert machine.vcpus == 4 * int(size[1]), name
