"""What the service refuses: the shape of a request, and what its fields say together.

The words of the checks of a shape are those of the service's framework: "1 validation error
detected: Value 'x' at 'resourceConfig.instanceType' failed to satisfy constraint: Member must ...".
Of the other rules, "real" marks the words of the real service; the rest is as documented.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from .objects import Objects, split
from .refusals import AwsError, validation

Object = dict[str, Any]

PART = re.compile(r"\[(?P<inside>[^\]]*)\]|\.?(?P<name>[^.\[\]]+)")

NO_EFS_MODES = ("FastFile", "Pipe")

HOMOGENEOUS = "homogeneousCluster"
"""The name of the only group of a job that names none."""


def check_shape(request: Object, operation: str) -> None:
    """Check the fields of a request, each by itself. Raises AwsError."""
    # Imported here: the model of the service takes longer to read than this server to start.
    from hydra_trainer.sagemaker.shapes import OPERATIONS, shape_problems

    problems = shape_problems(request, operation) if operation in OPERATIONS else []
    if not problems:
        return
    for one in problems:
        if " is no field of " in f" {one.message}":
            raise validation(f"{one.path} {one.message}")
    said = [_constraint(request, operation, one.path, one.message) for one in problems]
    plural = "s" if len(said) > 1 else ""
    raise validation(f"{len(said)} validation error{plural} detected: {'; '.join(said)}")


def _constraint(request: Object, operation: str, path: str, message: str) -> str:
    """Say what is wrong with the field of a path, in the service's words."""
    from hydra_trainer.sagemaker.shapes import model

    shapes, name = model()["shapes"], model()["operations"][operation]
    value: Any = request
    words: list[str] = []
    for part in PART.finditer(path):
        shape = shapes[name]
        if field := part["name"]:
            words.append(field[:1].lower() + field[1:])
            name, value = shape["members"][field], value.get(field)
        elif shape["type"] == "list":
            words += [str(int(part["inside"]) + 1), "member"]  # the service counts from 1
            name, value = shape["member"], value[int(part["inside"])]
        else:
            words += [part["inside"], "member"]
            is_key = message.startswith("its name")
            name = shape["key" if is_key else "value"]
            value = part["inside"] if is_key else value[part["inside"]]
    given = "null" if value is None else f"'{value}'"
    must = _must(shapes[name], value)
    return f"Value {given} at '{'.'.join(words)}' failed to satisfy constraint: Member {must}"


def _must(shape: Object, value: Any) -> str:
    """Return what a value had to be. Raises AwsError when it is none of the type."""
    if value is None:
        return "must not be null"
    kind = shape["type"]
    if not isinstance(value, TYPES[kind]) or isinstance(value, bool) != (kind == "boolean"):
        raise AwsError("SerializationException", f"{value!r} can not be converted to a {kind}")
    if "enum" in shape:
        return f"must satisfy enum value set: [{', '.join(shape['enum'])}]"
    what, size = ("value", value) if kind in ("integer", "long") else ("length", len(value))
    if size > shape.get("max", size):
        return f"must have {what} less than or equal to {shape['max']}"
    if size < shape.get("min", size):
        return f"must have {what} greater than or equal to {shape['min']}"
    return f"must satisfy regular expression pattern: {shape.get('pattern', '')}"


TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "long": int,
    "float": (int, float),
    "boolean": bool,
    "list": list,
    "map": dict,
    "structure": dict,
    "timestamp": (int, float, str),
}


# ------------------------------------------------------------------------------ fields in a request


class Group(NamedTuple):
    """Instances of one type in a job."""

    name: str
    type: str
    size: int


def groups(request: Object) -> list[Group]:
    """Return the instances that a request asks for."""
    resources = request["ResourceConfig"]
    if several := resources.get("InstanceGroups"):
        return [
            Group(one["InstanceGroupName"], one["InstanceType"], one["InstanceCount"])
            for one in several
        ]
    preferred = (resources.get("InstancePreferences") or [{}])[0]
    kind = resources.get("InstanceType") or preferred.get("InstanceType") or ""
    count = resources.get("InstanceCount") or preferred.get("InstanceCount") or 1
    return [Group(HOMOGENEOUS, kind, count)]


def check_rules(request: Object) -> None:
    """Check what fields say together. Raises AwsError with the first thing that is wrong."""
    for problem in _problems(request):
        raise validation(problem)


def _problems(request: Object) -> Iterator[str]:
    yield from _parts(request)
    yield from _resources(request)
    yield from _spot(request)
    yield from _channels(request)
    for key in request.get("Environment") or ():
        if key.startswith("SAGEMAKER_INTERNAL_"):
            yield f"Environment variable {key} is reserved."
    checkpoints = (request.get("CheckpointConfig") or {}).get("LocalPath", "")
    if checkpoints and not checkpoints.startswith("/"):
        yield "CheckpointConfig.LocalPath has to be an absolute path."
    keys = [tag["Key"] for tag in request.get("Tags") or ()]
    if len(keys) > len(set(keys)):
        yield "Duplicate tag keys found. Please note that Tag keys are case insensitive."
    if any(key.lower().startswith("aws:") for key in keys):
        yield "Tag keys must not begin with 'aws:'."


def _parts(request: Object) -> Iterator[str]:
    if request.get("ServerlessJobConfig"):
        yield "the embedded service has no serverless jobs"
    algorithm = request.get("AlgorithmSpecification") or {}
    if not ({"TrainingImage", "AlgorithmName"} & algorithm.keys()):
        yield "You must specify either a TrainingImage or an AlgorithmName."
    if {"TrainingImage", "AlgorithmName"} <= algorithm.keys():
        yield "You can't specify both TrainingImage and AlgorithmName."
    for key in ("ResourceConfig", "StoppingCondition"):
        if not request.get(key):
            yield f"{key} is required."
    if "TrainingInputMode" not in algorithm:
        modes = [one.get("InputMode") for one in request.get("InputDataConfig") or ()]
        if not all(modes) or not modes:
            yield "TrainingInputMode is required."


def _resources(request: Object) -> Iterator[str]:
    resources = request.get("ResourceConfig") or {}
    ways = ("InstanceType", "InstanceGroups", "InstancePreferences")
    given = [key for key in ways if resources.get(key)]
    if len(given) != 1:
        said = " and ".join(given) or "none of them"
        yield f"ResourceConfig must have exactly one of {', '.join(ways)}; it has {said}."
    if "InstanceType" in given and not resources.get("InstanceCount"):
        yield "InstanceCount is required with InstanceType."
    if "InstanceGroups" in given and resources.get("InstanceCount"):
        yield "InstanceCount is not allowed with InstanceGroups."
    names = [one["InstanceGroupName"] for one in resources.get("InstanceGroups") or ()]
    if len(names) > len(set(names)):
        yield "InstanceGroupNames must be unique."


def _spot(request: Object) -> Iterator[str]:
    condition = request.get("StoppingCondition") or {}
    longest, waits = condition.get("MaxRuntimeInSeconds"), condition.get("MaxWaitTimeInSeconds")
    if not request.get("EnableManagedSpotTraining"):
        if waits is not None:  # real: Kenza-AI/sagify#111
            yield (
                "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining "
                "is set to true"
            )
        return
    if waits is None or waits < (longest or 86400):
        yield (
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to "
            "MaxRuntimeInSeconds"
        )
    if (request.get("ResourceConfig") or {}).get("KeepAlivePeriodInSeconds"):
        yield "KeepAlivePeriodInSeconds is not supported with managed spot training."


def _channels(request: Object) -> Iterator[str]:
    channels = request.get("InputDataConfig") or []
    names = [one["ChannelName"] for one in channels]
    if len(names) > len(set(names)):
        yield "Channel names must be unique."
    known = [one["InstanceGroupName"] for one in _group_list(request)]
    for channel in channels:
        sources = [key for key, value in channel["DataSource"].items() if value]
        if len(sources) != 1:
            yield f"Channel {channel['ChannelName']} must have exactly one data source."
        if "FileSystemDataSource" in sources:
            if not request.get("VpcConfig"):
                yield "VpcConfig is required when a channel has a FileSystemDataSource."
            if _mode(channel, request) in NO_EFS_MODES:
                yield "A FileSystemDataSource supports only File mode."
        source = channel["DataSource"].get("S3DataSource") or {}
        for name in source.get("InstanceGroupNames") or ():
            if name not in known:
                yield f"Instance group {name} of channel {channel['ChannelName']} does not exist."


def _group_list(request: Object) -> list[Object]:
    return list((request.get("ResourceConfig") or {}).get("InstanceGroups") or ())


def _mode(channel: Object, request: Object) -> str:
    of_job = (request.get("AlgorithmSpecification") or {}).get("TrainingInputMode")
    return str(channel.get("InputMode") or of_job or "File")


# ---------------------------------------------------------------------------- what has to be there


def check_role(arn: str, roles: set[str] | None) -> None:
    """Check that a role may be assumed. Raises AwsError.

    Args:
        roles: the names of those that there are; None for any.
    """
    if roles is not None and arn.rpartition("/")[2] not in roles:  # real
        raise validation(
            f"Could not assume role {arn}. Please ensure that the role exists and allows principal "
            "'sagemaker.amazonaws.com' to assume the role."
        )


def check_inputs(request: Object, region: str, objects: Objects) -> None:
    """Check that there is something in each place of S3 that a channel names. Raises AwsError."""
    for channel in request.get("InputDataConfig") or ():
        source = channel["DataSource"].get("S3DataSource")
        if source and not is_there(source["S3Uri"], objects):
            raise validation(absent(source["S3Uri"], region, request["RoleArn"]))


def is_there(uri: str, objects: Objects) -> bool:
    bucket, prefix = split(uri)
    return objects.exists(bucket) and bool(objects.list(bucket, prefix))


def absent(uri: str, region: str, role: str) -> str:
    """Say that there is nothing in a place. Real, to the letter."""
    bucket, _ = split(uri)
    return (
        f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that '
        f"the bucket exists in the selected region ({region}), that objects exist under that S3 "
        f'prefix, and that the role "{role}" has "s3:ListBucket" permissions on bucket "{bucket}".'
    )


def quota_name(request: Object, group: Group) -> str:
    """Return what Service Quotas calls the instances of a group."""
    spot = "spot " if request.get("EnableManagedSpotTraining") else ""
    return f"{group.type} for {spot}training job usage"


def check_quotas(request: Object, quotas: dict[str, int], running: list[Object]) -> None:
    """Check that there are instances left. Raises AwsError.

    Args:
        quotas: how many, by names as `quota_name` gives them; others are not limited.
        running: the requests of the jobs that are not over.
    """
    for group in groups(request):
        name = quota_name(request, group)
        used = sum(
            other.size for one in running for other in groups(one) if quota_name(one, other) == name
        )
        if used + group.size > quotas.get(name, used + group.size):  # real
            raise AwsError(
                "ResourceLimitExceeded",
                f"The account-level service limit '{name}' is {quotas[name]} Instances, with "
                f"current utilization of {used} Instances and a request delta of {group.size} "
                "Instances. Please use AWS Service Quotas to request an increase for this quota. "
                "If AWS Service Quotas is not available, contact AWS support to request an "
                "increase for this quota.",
            )
