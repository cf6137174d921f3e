"""The offline checks of launcher=sagemaker: fields, rules across them, images, instance types."""

import copy
import functools
import random
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

import botocore
import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from hydra_trainer.sagemaker import shapes
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
    others |= {"integer": "3", "long": 1.5, "timestamp": {}}
    if path:
        yield path, others[kind], "but must be"
        yield path, None, "is null, but must be"
    if path and kind in ("integer", "long", "string"):
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
    yield from [(path, text, "but must be") for text in fits if not accepted(node, text)][:1]


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
    for path, value, _ in faults(model.name, request):
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
    for number in range(sys.maxunicode + 1):
        text = chr(number)
        wanted = unicodedata.category(text)[0] in "LZN" or text in "_.:/=+-@"
        assert bool(tag.fullmatch(text)) == wanted, hex(number)


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
    ],
)
def test_the_message_says_what_to_change(path: str, value: Any, message: str) -> None:
    (problem,) = shape_problems(planted(a_request(), path, value))
    assert problem.message == message
    assert problem.path == (path if path != "RetryStrategy" else f"{path}.MaximumRetryAttempts")
    assert problem.severity == ("warning" if "not known here" in message else "error")
