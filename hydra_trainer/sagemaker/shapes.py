"""What a request to SageMaker may hold, checked without boto3 and without the service.

`shapes.json` beside this file is the part of botocore's model of the service that the requests here
need: botocore has all of it in 5 MB, and itself checks neither lengths, patterns nor enums. After
an upgrade of botocore, make it again:

    python -m hydra_trainer.sagemaker.shapes

Messages are sentences that go on from the path: `ResourceConfig.InstanceCount is "2", but must ...`
"""

import functools
import json
import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra_trainer.errors import did_you_mean
from hydra_trainer.instances import ML
from hydra_trainer.problems import FEW, NONE, Problem, shown, under

__all__ = ["Problem", "shape_problems"]

FILE = Path(__file__).with_name("shapes.json")

OPERATIONS = (
    "CreateTrainingJob",
    "UpdateTrainingJob",
    "StopTrainingJob",
    "DeleteTrainingJob",
    "DescribeTrainingJob",
    "ListTrainingJobs",
    "AddTags",
    "ListTags",
    "DeleteTags",
    "CreateHyperParameterTuningJob",
    "DescribeHyperParameterTuningJob",
    "ListHyperParameterTuningJobs",
    "ListTrainingJobsForHyperParameterTuningJob",
    "StopHyperParameterTuningJob",
)

Shape = dict[str, Any]


def shape_problems(request: Any, operation: str = "CreateTrainingJob") -> list[Problem]:
    """Return what is wrong with the fields of a request: types, names, limits, patterns, enums.

    Args:
        request: what boto3 would be given, as plain data.
        operation: one of OPERATIONS.

    Paths are `InputDataConfig[3].ChannelName`, and `Environment[A-B]` for an entry of a map. An
    instance type that is not known is of severity "warning": the service may be newer than this.
    """
    found = _problems(model()["operations"][operation], request)
    return [problem._replace(message=_sentence(problem.message)) for problem in found]


def _sentence(message: str) -> str:
    return message if message.endswith((".", "?")) else f"{message}."


@functools.cache
def model() -> dict[str, Any]:
    """Return shapes.json: `botocore` (its version), `operations` (their inputs) and `shapes`."""
    return dict(json.loads(FILE.read_text()))


def _problems(name: str, value: Any) -> list[Problem]:
    """Check with the shape of a name. While all is right this builds nothing."""
    shape: Shape = model()["shapes"][name]
    kinds, check = KINDS[shape["type"]]
    # To Python, True is an integer as well.
    if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
        return _wrong(value, TYPES[shape["type"]] + _quotes(shape, value))
    return check(name, shape, value)


def _wrong(value: Any, what: str) -> list[Problem]:
    return [Problem("", f"is {shown(value)}, but must be {what}")]


def _quotes(shape: Shape, value: Any) -> str:
    is_number = isinstance(value, int | float)
    return f' (put it in quotes: "{shown(value)}")' if is_number and _is_text(shape) else ""


def _is_text(shape: Shape) -> bool:
    return bool(shape["type"] == "string")


def _limits(shape: Shape, most: int | None = None) -> str:
    """Return the limits in words: "at least 1", "at most 256", "1 to 63"."""
    low, high = shape.get("min", 0), shape.get("max", most)
    if high is None:
        return f"at least {low}"
    return f"{low} to {high}" if low else f"at most {high}"


def _count(shape: Shape, value: Any, what: str) -> list[Problem]:
    """Check how many there are of what: items, entries."""
    if shape.get("min", 0) <= len(value) <= shape.get("max", len(value)):
        return NONE
    return [Problem("", f"has {len(value)} {what}, but must have {_limits(shape)}")]


def _integer(name: str, shape: Shape, value: int) -> list[Problem]:
    most = 2**63 - 1 if shape["type"] == "long" else 2**31 - 1
    if shape.get("min", -most - 1) <= value <= shape.get("max", most):
        return NONE
    return _wrong(value, _limits(shape, most if value > most else None))


def _string(name: str, shape: Shape, value: str) -> list[Problem]:
    if "enum" in shape:
        return NONE if value in shape["enum"] else _not_one_of(name, shape["enum"], value)
    if not shape.get("min", 0) <= len(value) <= shape.get("max", len(value)):
        return _wrong(value, f"of {_limits(shape)} characters; it has {len(value)}")
    pattern = shape.get("pattern")
    if pattern is None or compiled(pattern).fullmatch(value):
        return NONE
    if name == "RoleArn":
        return [Problem("", f"is {shown(value)}: {_role_fault(value)}")]
    return _wrong(value, PLAIN_WORDS.get(name) or PLAIN_WORDS.get(pattern) or f"like {pattern}")


def _role_fault(arn: str) -> str:
    """Return what the ARN of a role has wrong: the pattern alone would not help."""
    parts = arn.split(":")
    if len(parts) != 6 or parts[0] != "arn":
        return f"it is no ARN, such as {ROLE}"
    _, partition, service, region, account, resource = parts
    kind, _, name = resource.partition("/")
    if service == "sts":
        return f"it is that of a session, but must be that of the role itself, such as {ROLE}"
    if service != "iam" or not partition.startswith("aws"):
        return f"it is of {partition}:{service}, but a role is of aws:iam"
    if region:
        return f"a role is in no region, but this is in {region}"
    if not re.fullmatch(r"[0-9]{12}", account):
        return (
            f"its account is {account!r}, but must have 12 digits; it has {len(account)} characters"
        )
    if kind != "role":
        return f"it is that of a {kind}, but must be that of a role, such as {ROLE}"
    return f"the name of the role is {name!r}, but must be letters, digits and any of _+=,.@-/"


def _not_one_of(name: str, known: list[str], value: str) -> list[Problem]:
    if name.endswith("InstanceType") and value.startswith(ML):
        text = f"is {shown(value)}, which is not known here.{did_you_mean(value, known)}"
        return [Problem("", text, "warning")]
    if name.endswith("InstanceType"):
        hint = did_you_mean(ML + value, known)
        return [Problem("", f'is {shown(value)}, but must begin with "{ML}".{hint}')]
    listed = f"one of {', '.join(known)}." if len(known) <= FEW else "one of those that there are."
    return _wrong(value, listed + did_you_mean(value, known))


def _list(name: str, shape: Shape, value: list[Any]) -> list[Problem]:
    problems = _count(shape, value, "items")
    for index, item in enumerate(value):
        if found := _problems(shape["member"], item):
            problems = problems + under(f"[{index}]", found)
    return problems


def _map(name: str, shape: Shape, value: dict[str, Any]) -> list[Problem]:
    problems = _count(shape, value, "entries")
    for key, item in value.items():
        if named := _problems(shape["key"], key):
            named = [problem._replace(message=f"its name {problem.message}") for problem in named]
        if found := named + _problems(shape["value"], item):
            problems = problems + under(f"[{key}]", found)
    return problems


def _structure(name: str, shape: Shape, value: dict[str, Any]) -> list[Problem]:
    members, problems = shape["members"], NONE
    for key, item in value.items():
        if key not in members:
            problems = [*problems, Problem(str(key), _unknown(name, key, members))]
        elif found := _problems(members[key], item):
            problems = problems + under(key, found)
    missing = [key for key in shape.get("required", ()) if key not in value]
    return problems + [Problem(key, "is missing, but is required") for key in missing]


def _unknown(name: str, key: Any, members: dict[str, str]) -> str:
    listed = f", which has {', '.join(members)}" if len(members) <= FEW else ""
    return f"is no field of {name}{listed}.{did_you_mean(str(key), members)}"


def _timestamp(name: str, shape: Shape, value: Any) -> list[Problem]:
    return NONE


KINDS: dict[str, tuple[Any, Callable[[str, Shape, Any], list[Problem]]]] = {
    "structure": (dict, _structure),
    "map": (dict, _map),
    "list": ((list, tuple), _list),
    "string": (str, _string),
    "boolean": (bool, lambda name, shape, value: NONE),
    "integer": (int, _integer),
    "long": (int, _integer),
    "float": ((int, float), lambda name, shape, value: NONE),
    "timestamp": ((int, float, str, datetime), _timestamp),
}

TYPES = {
    "structure": "an object",
    "map": "an object",
    "list": "a list",
    "string": "a string",
    "boolean": "true or false",
    "integer": "an integer",
    "long": "an integer",
    "float": "a number",
    "timestamp": "a time, as seconds since 1970 or as 2026-01-31T12:00:00Z",
}

NO_BREAKS = "without line breaks"
ROLE = "arn:aws:iam::123456789012:role/training"

PLAIN_WORDS = {
    ".*": NO_BREAKS,
    ".+": NO_BREAKS,
    "TrainingJobName": "letters and digits, with hyphens between them",
    "HyperParameterTuningJobName": "letters and digits, with hyphens between them",
    "ExperimentEntityName": "letters and digits, with hyphens between them",
    "ChannelName": "letters, digits, '.', '-' and '_'",
    "TrainingEnvironmentKey": "letters, digits and '_', and not begin with a digit",
    "HyperParameterTrainingJobEnvironmentKey": (
        "letters, digits and '_', and not begin with a digit"
    ),
    "S3Uri": "a place in S3, such as s3://bucket/prefix",
    "FileSystemId": "the id of a file system, such as fs-0123456789abcdef0",
    "SubnetId": "the id of a subnet, such as subnet-0123456789abcdef0",
    "SecurityGroupId": "the id of a security group, such as sg-0123456789abcdef0",
    "TagKey": "letters, digits, spaces and any of _.:/=+-@",
    "TagValue": "letters, digits, spaces and any of _.:/=+-@",
}
"""What a pattern says, by the name of the shape or by the pattern."""


# ---------------------------------------------------------------------------- the service's regexes

SPACES = " \\u00a0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"
JAVA = {r"\p{Alnum}": "a-zA-Z0-9", r"\p{L}": r"\w", r"\p{N}": "", r"\p{Z}": SPACES}
"""Classes that Python lacks; \\w holds the letters and the numbers, and `_`, which is always beside
them."""

DOT = re.compile(r"\\.|\[(?:\\.|[^\]])*\]|\.")


@functools.cache
def compiled(pattern: str) -> re.Pattern[str]:
    r"""Return one of the service's patterns in Python's words. It must match the whole value.

    The service is written in Java: `.` is no line break of any kind there (which is why the pattern
    of an environment variable's value is [\S\s]*), and \w, \d and \s are of ASCII.
    """
    unicode = r"\p{L}" in pattern
    pattern = DOT.sub(lambda hit: r"[^\n\r\x85\u2028\u2029]" if hit[0] == "." else hit[0], pattern)
    for java, python in JAVA.items():
        pattern = pattern.replace(java, python)
    return re.compile(pattern, 0 if unicode else re.ASCII)


# ------------------------------------------------------------------------------- making shapes.json


def from_botocore() -> dict[str, Any]:
    """Return what shapes.json should hold, from the botocore that is installed."""
    import botocore
    from botocore.loaders import Loader

    service = Loader().load_service_model("sagemaker", "service-2")
    inputs = {name: service["operations"][name]["input"]["shape"] for name in OPERATIONS}
    shapes: dict[str, Shape] = {}
    waiting = list(inputs.values())
    while waiting:
        name = waiting.pop()
        if name not in shapes:
            shapes[name] = _compact(service["shapes"][name])
            waiting += _parts(shapes[name])
    return {
        "botocore": botocore.__version__,
        "operations": inputs,
        "shapes": dict(sorted(shapes.items())),
    }


def _compact(shape: Shape) -> Shape:
    """Return what is checked of a shape; its parts are given by their names alone."""
    kept = ("type", "required", "min", "max", "pattern", "enum")
    small = {key: shape[key] for key in kept if key in shape}
    if "members" in shape:
        small["members"] = {key: part["shape"] for key, part in shape["members"].items()}
    return small | {key: shape[key]["shape"] for key in ("member", "key", "value") if key in shape}


def _parts(shape: Shape) -> list[str]:
    named = [shape[key] for key in ("member", "key", "value") if key in shape]
    return [*named, *shape.get("members", {}).values()]


def written(model: dict[str, Any]) -> str:
    """Return the text of shapes.json: a shape a line, so that a diff tells what is new."""
    shapes = ",\n".join(
        f"{json.dumps(name)}:{json.dumps(shape, separators=(',', ':'))}"
        for name, shape in model["shapes"].items()
    )
    head = json.dumps({key: model[key] for key in ("botocore", "operations")}, indent=0)
    return f'{head[:-2]},\n"shapes": {{\n{shapes}\n}}}}\n'


if __name__ == "__main__":
    FILE.write_text(written(from_botocore()))
    print(f"{FILE}: botocore {json.loads(FILE.read_text())['botocore']}")
