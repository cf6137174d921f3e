"""What is wrong with a CreateTrainingJob request although each of its fields is right.

Most of it is said nowhere but in the service's documentation, where no source is named in the
descriptions of the fields: docs.aws.amazon.com/sagemaker/latest/APIReference/API_ and the name of
the object. The words after `dg/` are pages of docs.aws.amazon.com/sagemaker/latest/dg/.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from hydra_trainer.credentials import credential, secret_variable
from hydra_trainer.errors import did_you_mean
from hydra_trainer.instances import ML
from hydra_trainer.problems import Problem, joined, shown, under
from hydra_trainer.storage import BUCKET, SCRATCH, variable
from hydra_trainer.trees import count, dig, objects

from .images import framework_of

__all__ = ["Problem", "key_of", "rule_problems"]

Request = dict[str, Any]

DAY = 24 * 3600
LONGEST = 28 * DAY
"""Seconds that a job may run, and that it may if it does not say."""


def rule_problems(request: Request) -> list[Problem]:
    """Return what SageMaker would refuse or fail at, and (severity "warning") what may be meant.

    Fields that are missing or of a wrong type are `shape_problems`' to report, not that of a rule.
    """
    rules = (_algorithm, _metrics, _channels, _places, _paths, _network, _tags, _secrets)
    found = [problem for rule in rules for problem in rule(request)]
    if "ServerlessJobConfig" not in request:  # which SageMaker finds the instances for
        compute = (_parts, _instances, _volume, _spot, _times)
        found += [problem for rule in compute for problem in rule(request)]
    return found


def _text(node: Request, key: str) -> str:
    """Return a string field, or an empty string."""
    found = node.get(key)
    return found if isinstance(found, str) else ""


def _parts(request: Request) -> Iterator[Problem]:
    """These were required until there were serverless jobs, which have none of them."""
    for key in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"):
        if key not in request:
            yield Problem(key, "is missing, but is required unless the job is serverless.")


# ------------------------------------------------------------------------------------ the container

ECR = re.compile(r"\d{12}\.dkr\.ecr(-fips)?\.[a-z0-9-]+\.[a-z0-9.-]+/[^:@]+([:@].+)?")


def _algorithm(request: Request) -> Iterator[Problem]:
    algorithm, path = dig(request, "AlgorithmSpecification"), "AlgorithmSpecification"
    named = [key for key in ("TrainingImage", "AlgorithmName") if key in algorithm]
    if algorithm and len(named) != 1 and "ServerlessJobConfig" not in request:
        has = "both TrainingImage and AlgorithmName" if named else "no TrainingImage"
        yield Problem(path, f"has {has}, but needs one image. Type launcher.image=...")
    image = _text(algorithm, "TrainingImage")
    if image and not ECR.fullmatch(image) and "TrainingImageConfig" not in algorithm:
        # dg/docker-containers-adapt-your-own-private-registry
        text = (
            f"is {shown(image)}, but SageMaker takes images from Amazon ECR (or from a registry in "
            "your VPC, with a TrainingImageConfig). Push it there, and type "
            "launcher.image=ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG."
        )
        yield Problem(f"{path}.TrainingImage", text)
    for where, instance in _types(request):
        if instance.startswith(ARM) and framework_of(image):
            text = f"is {instance}, which has ARM CPUs, but AWS's image {shown(image)} is for x86."
            yield Problem(where, text, "warning")


ARM = ("ml.p6e-",)


def _metrics(request: Request) -> Iterator[Problem]:
    """dg/define-train-metrics: the value is what the group of the regular expression finds.

    What happens with two groups, or two metrics of a name, is not said there.
    """
    path = "AlgorithmSpecification.MetricDefinitions"
    metrics = objects(dig(request, "AlgorithmSpecification"), "MetricDefinitions")
    for index, metric in enumerate(metrics):
        if regex := _text(metric, "Regex"):
            yield from under(f"{path}[{index}].Regex", _regex(regex))
    for index, name in _repeated(_text(metric, "Name") for metric in metrics):
        text = f"is {shown(name)}, which there is already."
        yield Problem(f"{path}[{index}].Name", text, "warning")


def _regex(regex: str) -> Iterator[Problem]:
    # The service reads it as Java does: these are what Python calls otherwise, or lacks.
    python = re.sub(r"\(\?<(?=[A-Za-z])", "(?P<", re.sub(r"\\p\{\w+\}", "x", regex))
    try:
        groups = re.compile(python).groups
    except re.error as error:
        yield Problem("", f"is {shown(regex)}, but that is no regular expression ({error}).")
        return
    if not groups:
        text = f"is {shown(regex)}, but must have the value in parentheses, such as loss=([0-9.]+)."
        yield Problem("", text)
    elif groups > 1:
        text = f"is {shown(regex)}, of which only the first group in parentheses is the value."
        yield Problem("", f"{text} Write (?:...) for the others.", "warning")


def _repeated(names: Iterator[str]) -> Iterator[tuple[int, str]]:
    """Yield the place of each name that was there before."""
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        if name and seen[name] > 1:
            yield index, name


# -------------------------------------------------------------------------------------------- data

SOURCES = ("S3DataSource", "FileSystemDataSource", "DatasetSource")


def _channels(request: Request) -> Iterator[Problem]:
    channels, path = objects(request, "InputDataConfig"), "InputDataConfig"
    names = [_text(channel, "ChannelName") for channel in channels]
    for index, name in _repeated(iter(names)):
        text = f"is {shown(name)}, which an earlier channel is called: each is a folder of its own."
        yield Problem(f"{path}[{index}].ChannelName", text)
    groups = [
        _text(group, "InstanceGroupName")
        for group in objects(dig(request, "ResourceConfig"), "InstanceGroups")
    ]
    for index, channel in enumerate(channels):
        source = channel.get("DataSource")
        if not isinstance(source, dict):
            continue
        where = f"{path}[{index}].DataSource"
        yield from under(where, _source(source, groups))
        if "FileSystemDataSource" in source and "VpcConfig" not in request:
            # dg/train-vpc: a file system is reached through the VPC only
            text = (
                "is a file system, which is reached through a VPC only. Type "
                "'launcher.subnets=[subnet-...]' 'launcher.security_groups=[sg-...]'."
            )
            yield Problem(f"{where}.FileSystemDataSource", text)


def _source(source: Request, groups: list[str]) -> Iterator[Problem]:
    named = [key for key in SOURCES if key in source]
    if len(named) != 1:
        has = f"has {' and '.join(named)}" if named else "is empty"
        yield Problem("", f"{has}, but must have one of {', '.join(SOURCES)}.")
    yield from under("FileSystemDataSource", _file_system(dig(source, "FileSystemDataSource")))
    wanted = dig(source, "S3DataSource").get("InstanceGroupNames")
    for index, name in enumerate(wanted if isinstance(wanted, list) else ()):
        if name not in groups:
            known = f"there are {', '.join(groups)}" if groups else "there are no InstanceGroups"
            text = f"is {shown(name)}, but {known}.{did_you_mean(str(name), groups)}"
            yield Problem(f"S3DataSource.InstanceGroupNames[{index}]", text)


def _file_system(source: Request) -> Iterator[Problem]:
    directory = source.get("DirectoryPath")
    if not isinstance(directory, str):
        return
    if not directory.startswith("/"):
        yield Problem("DirectoryPath", f"is {shown(directory)}, but must begin with /.")
    elif source.get("FileSystemType") == "FSxLustre" and directory == "/":
        # github.com/aws/sagemaker-python-sdk/pull/4257
        text = (
            'is "/", but on FSx must begin with the name that the file system mounts by, such as '
            "/fsx or /a1b2c3d4: aws fsx describe-file-systems tells it (MountName)."
        )
        yield Problem("DirectoryPath", text)


def _places(request: Request) -> Iterator[Problem]:
    """Check what is in S3: the pattern of the service lets https:// and any bucket pass.

    An access point has an ARN instead of a bucket.
    """
    for path, place in _uris(request):
        bucket = place.removeprefix("s3://").partition("/")[0]
        if place.startswith("https://"):
            yield Problem(path, f"is {shown(place)}, but must begin with s3://.")
        elif bucket and not BUCKET.fullmatch(bucket) and not bucket.startswith("arn:"):
            text = f"is {shown(place)}, but a bucket's name is 3 to 63 lower case letters, digits,"
            yield Problem(path, f"{text} '-' and '.'.")


def _uris(request: Request) -> Iterator[tuple[str, str]]:
    fixed = (
        *(("OutputDataConfig", "S3OutputPath"), ("CheckpointConfig", "S3Uri")),
        *(("TensorBoardOutputConfig", "S3OutputPath"), ("DebugHookConfig", "S3OutputPath")),
        ("ProfilerConfig", "S3OutputPath"),
    )
    found = [(f"{node}.{key}", dig(request, node).get(key)) for node, key in fixed]
    for index, channel in enumerate(objects(request, "InputDataConfig")):
        place = dig(channel, "DataSource", "S3DataSource").get("S3Uri")
        found.append((f"InputDataConfig[{index}].DataSource.S3DataSource.S3Uri", place))
    # What begins otherwise does not pass the pattern.
    good = ("s3://", "https://")
    return ((path, at) for path, at in found if isinstance(at, str) and at.startswith(good))


def _paths(request: Request) -> Iterator[Problem]:
    """dg/model-train-storage: which folders SageMaker fills, and sends to S3 at the end.

    What is below CheckpointConfig.LocalPath goes both ways all the time.
    """
    for node in ("CheckpointConfig", "TensorBoardOutputConfig", "DebugHookConfig"):
        place = dig(request, node).get("LocalPath")
        if not isinstance(place, str):
            continue
        path, folder = f"{node}.LocalPath", f"{place.rstrip('/')}/"
        if not place.startswith("/"):
            yield Problem(path, f"is {shown(place)}, but must begin with /.")
        elif "/opt/ml/input/".startswith(folder) or folder.startswith("/opt/ml/input/"):
            yield Problem(path, f"is {shown(place)}, but SageMaker's input is in /opt/ml/input.")
        elif folder.startswith("/opt/ml/model/"):
            text = f"is {shown(place)}, all of which is sent to S3 at the end as well."
            yield Problem(path, text, "warning")


# ----------------------------------------------------------------------------------------- network


def _network(request: Request) -> Iterator[Problem]:
    vpc = dig(request, "VpcConfig")
    for key, start in (("Subnets", "subnet-"), ("SecurityGroupIds", "sg-")):
        names = vpc.get(key)
        for index, name in enumerate(names if isinstance(names, list) else ()):
            if isinstance(name, str) and not name.startswith(start):
                text = f"is {shown(name)}, but must begin with {start}."
                yield Problem(f"VpcConfig.{key}[{index}]", text)
    if request.get("EnableNetworkIsolation") is True and "MlflowConfig" in request:
        # dg/mkt-algo-model-internet-free: no calls outward, and no credentials in the container
        text = (
            "is there, but the job is isolated from the network, so MLflow cannot be reached. Type "
            "launcher.network_isolation=false or launcher.mlflow=null."
        )
        yield Problem("MlflowConfig", text)


# ----------------------------------------------------------------------------------- tags, secrets


def _tags(request: Request) -> Iterator[Problem]:
    """docs.aws.amazon.com/tag-editor/latest/userguide/tagging.html"""
    tags = objects(request, "Tags")
    for index, tag in enumerate(tags):
        if _text(tag, "Key").lower().startswith("aws:"):
            text = f"is {shown(tag['Key'])}, but tags that begin with aws: are AWS's own."
            yield Problem(f"Tags[{index}].Key", text)
    for index, key in _repeated(_text(tag, "Key") for tag in tags):
        yield Problem(f"Tags[{index}].Key", f"is {shown(key)}, which there is already.")


def _secrets(request: Request) -> Iterator[Problem]:
    """API_CreateTrainingJob: no secrets. Whoever may describe the job can read them."""
    advice = "Keep it in AWS Secrets Manager, which launcher.role lets the code read"
    for field in ("HyperParameters", "Environment"):
        for name, value in dig(request, field).items():
            if not isinstance(value, str):
                continue
            if credential(value):
                text = f"looks like a credential, which all who may see the job can read. {advice}."
                yield Problem(f"{field}[{name}]", text)
            elif field == "Environment" and secret_variable(str(name), value):
                text = f"may be a secret, which all who may see the job can read. {advice}."
                yield Problem(f"{field}[{name}]", text, "warning")


# --------------------------------------------------------------------------------------- instances


def _types(request: Request) -> Iterator[tuple[str, str]]:
    """Yield the instance types of a request, with their paths."""
    resources = dig(request, "ResourceConfig")
    if name := _text(resources, "InstanceType"):
        yield "ResourceConfig.InstanceType", name
    for key in ("InstanceGroups", "InstancePreferences"):
        for index, item in enumerate(objects(resources, key)):
            if name := _text(item, "InstanceType"):
                yield f"ResourceConfig.{key}[{index}].InstanceType", name


def _instances(request: Request) -> Iterator[Problem]:
    resources, path = dig(request, "ResourceConfig"), "ResourceConfig"
    ways = [key for key in WAYS if resources.get(key)]
    if isinstance(request.get(path), dict) and not ways:
        yield Problem(path, "has no InstanceType. Type resources.instance_type=ml.g5.xlarge.")
    if len(ways) > 1:
        text = (
            f"is there beside {ways[0]}, but SageMaker takes one of them. Leave out {WAYS[ways[1]]}"
        )
        yield Problem(f"{path}.{ways[1]}", f"{text} or {WAYS[ways[0]]}.")
    for key in ("SelectedInstanceType", "SelectedInstanceCount"):
        if key in resources:
            yield Problem(f"{path}.{key}", "is for SageMaker to tell, and not to be asked for.")
    found = [*_plain(resources), *_groups(resources), *_preferences(resources)]
    yield from under(path, found)


WAYS = {
    "InstanceType": "resources.instance_type",
    "InstanceGroups": "launcher.instance_groups",
    "InstancePreferences": "launcher.instance_preferences",
}
"""How instances are asked for, and the key for it."""


def _plain(resources: Request) -> Iterator[Problem]:
    asked = {*WAYS, "InstanceCount"} & resources.keys()
    if asked == {"InstanceType"}:
        yield Problem("InstanceCount", "is missing. Type resources.nodes=1.")
    if "InstanceGroups" in resources and "InstanceCount" in resources:
        yield Problem("InstanceCount", "is there beside InstanceGroups, which have their own.")
    yield from _counted(resources, "")


def _counted(node: Request, path: str) -> Iterator[Problem]:
    if count(node, "InstanceCount", 1) == 0:
        yield Problem(joined(path, "InstanceCount"), "is 0, but must be at least 1.")


def _groups(resources: Request) -> Iterator[Problem]:
    groups = objects(resources, "InstanceGroups")
    for index, name in _repeated(_text(group, "InstanceGroupName") for group in groups):
        text = f"is {shown(name)}, which an earlier group is called."
        yield Problem(f"InstanceGroups[{index}].InstanceGroupName", text)
    for index, group in enumerate(groups):
        yield from _counted(group, f"InstanceGroups[{index}]")
    if groups and count(resources, "KeepAlivePeriodInSeconds", 0):
        # dg/train-warm-pools, "Considerations"
        text = (
            "is there, but groups of instances cannot be kept warm. Type launcher.keep_alive=null."
        )
        yield Problem("KeepAlivePeriodInSeconds", text)


def _preferences(resources: Request) -> Iterator[Problem]:
    """API_ResourceConfig, API_InstancePreference"""
    chosen, path = objects(resources, "InstancePreferences"), "InstancePreferences"
    for index, name in _repeated(_text(item, "InstanceType") for item in chosen):
        text = f"is {shown(name)}, which there is already."
        yield Problem(f"{path}[{index}].InstanceType", text)
    for index, item in enumerate(chosen):
        yield from _counted(item, f"{path}[{index}]")
    with_count = sum("InstanceCount" in item for item in chosen)
    if chosen and "InstanceCount" in resources and with_count:
        yield Problem("InstanceCount", f"is there, but {path} have their own.")
    elif chosen and "InstanceCount" not in resources and with_count < len(chosen):
        yield Problem(path, "must all have an InstanceCount, or be given one for all.")
    if chosen and "InstancePlacementConfig" in resources:
        yield Problem("InstancePlacementConfig", f"cannot be beside {path}.")
    if "TrainingPlanArn" in resources and any("TrainingPlanArns" in item for item in chosen):
        yield Problem("TrainingPlanArn", f"is there, but {path} have their own.")


EBS_ONLY = re.compile(
    r"ml\.(p2|p3|c4|c5n?|c6i|c7i(-flex)?|c8i(-flex)?|m[45]|m6i|m7i(-flex)?|"
    r"m8i(-flex)?|r5|r6i|r7i|r8i(-flex)?|t3)\."
)
"""Families without a disk of their own; the others that train have NVMe disks of a fixed size."""


def _volume(request: Request) -> Iterator[Problem]:
    """API_ResourceConfig, VolumeSizeInGB and VolumeKmsKeyId"""
    resources = dig(request, "ResourceConfig")
    names = [name for _, name in _types(request) if name.startswith(ML)]
    for name in names:
        if EBS_ONLY.match(name) and not count(resources, "VolumeSizeInGB", 0):
            text = f"is missing, but {name} has no disk of its own. Type launcher.volume_size=100."
            yield Problem("ResourceConfig.VolumeSizeInGB", text)
            break
    own = [name for name in names if not EBS_ONLY.match(name)]
    if "VolumeKmsKeyId" in resources and own:
        text = (
            f"is there, but {own[0]} has disks of its own, which it encrypts by itself. Type "
            "launcher.volume_kms_key=null."
        )
        yield Problem("ResourceConfig.VolumeKmsKeyId", text)


# ------------------------------------------------------------------------------------- spot, times


def _spot(request: Request) -> Iterator[Problem]:
    """dg/model-managed-spot-training"""
    stopping, resources = dig(request, "StoppingCondition"), dig(request, "ResourceConfig")
    longest, wait = "StoppingCondition.MaxWaitTimeInSeconds", stopping.get("MaxWaitTimeInSeconds")
    if request.get("EnableManagedSpotTraining") is not True:
        if isinstance(wait, int):
            # the service: "It is only supported when EnableManagedSpotTraining is set to true"
            text = f"is {wait}, but only a spot job has it. Type launcher.spot=true or"
            yield Problem(longest, f"{text} launcher.max_wait=null.")
        return
    run = count(stopping, "MaxRuntimeInSeconds", DAY)
    if wait is None:
        text = f"is missing, but a spot job needs it. Type launcher.max_wait={2 * run}"
        yield Problem(longest, f"{text}: seconds for waiting and running together.")
    elif isinstance(wait, int) and wait < run:
        text = f"is {wait}, but must be at least the {run} of MaxRuntimeInSeconds. Type"
        yield Problem(longest, f"{text} launcher.max_wait={2 * run}, or a lower launcher.max_run.")
    kept = _writes_to_disk(request) or KEPT in dig(request, "Environment")
    if "CheckpointConfig" not in request and not kept:
        text = (
            "is missing, but without checkpoints a spot job begins anew after each interruption. "
            "Type launcher.output=s3://BUCKET/PREFIX, or storage=efs."
        )
        yield Problem("CheckpointConfig", text)
    yield from under("ResourceConfig", _not_with_spot(resources))


KEPT = variable(SCRATCH)
"""The variable that a job has which itself keeps its run in S3."""


def _writes_to_disk(request: Request) -> bool:
    """Tell whether the job writes to a file system, which an interruption does not take away."""
    return any(
        dig(channel, "DataSource", "FileSystemDataSource").get("FileSystemAccessMode") == "rw"
        for channel in objects(request, "InputDataConfig")
    )


def _not_with_spot(resources: Request) -> Iterator[Problem]:
    if count(resources, "KeepAlivePeriodInSeconds", 0):
        # dg/train-warm-pools, "Considerations"
        text = "is there, but spot instances cannot be kept warm. Type launcher.keep_alive=null or"
        yield Problem("KeepAlivePeriodInSeconds", f"{text} launcher.spot=false.")
    if "TrainingPlanArn" in resources:
        # dg/reserve-capacity-with-training-plans: a plan is capacity that is paid for already
        text = "is there, but a plan has no spot instances. Type launcher.spot=false or"
        yield Problem("TrainingPlanArn", f"{text} launcher.training_plan=null.")
    if resources.get("InstancePreferences"):
        text = "is there, but not for spot jobs. Type resources.instance_type=... instead, or"
        yield Problem("InstancePreferences", f"{text} launcher.spot=false.")


def _times(request: Request) -> Iterator[Problem]:
    """API_StoppingCondition: at most 28 days, whatever the quota of the account."""
    run = count(dig(request, "StoppingCondition"), "MaxRuntimeInSeconds", 0)
    if run > LONGEST:
        text = f"is {run}, but must be at most {LONGEST}, which are 28 days. Type launcher.max_run"
        yield Problem("StoppingCondition.MaxRuntimeInSeconds", f"{text}={LONGEST}.")


# -------------------------------------------------------------------------------------------- keys

NAMED = r"\[(?P<name>.*)\]"

KEYS = (
    (r"TrainingJobName", "name"),
    (r"RoleArn", "launcher.role"),
    (r"AlgorithmSpecification\.TrainingImage", "launcher.image"),
    (r"AlgorithmSpecification\.MetricDefinitions.*", "launcher.metrics"),
    (rf"HyperParameters{NAMED}", "launcher.hyperparameters"),
    (r"HyperParameters", "launcher.hyperparameters"),
    (rf"Environment{NAMED}", "launcher.env.{name}"),
    (r"Environment", "launcher.env"),
    (r"InputDataConfig.*", "storage.mounts"),
    (r"OutputDataConfig\.KmsKeyId", "launcher.kms_key"),
    (r"(OutputDataConfig|CheckpointConfig)(\.S3\w+)?", "launcher.output"),
    (r"TensorBoardOutputConfig\.S3OutputPath", "launcher.output"),
    (r"TensorBoardOutputConfig.*", "launcher.tensorboard"),
    (r"ResourceConfig\.InstanceType", "resources.instance_type"),
    (r"ResourceConfig\.InstanceCount", "resources.nodes"),
    (r"ResourceConfig\.VolumeSizeInGB", "launcher.volume_size"),
    (r"ResourceConfig\.VolumeKmsKeyId", "launcher.volume_kms_key"),
    (r"ResourceConfig\.KeepAlivePeriodInSeconds", "launcher.keep_alive"),
    (r"ResourceConfig\.TrainingPlanArn", "launcher.training_plan"),
    (r"ResourceConfig\.InstanceGroups.*", "launcher.instance_groups"),
    (
        r"ResourceConfig\.InstancePreferences(\[\d+\]\.InstanceType)?",
        "launcher.instance_preferences",
    ),
    (r"ResourceConfig\.InstancePreferences\[\d+\]\.InstanceCount", "resources.nodes"),
    (r"ResourceConfig", "resources.instance_type"),
    (r"VpcConfig\.Subnets.*", "launcher.subnets"),
    (r"VpcConfig(\.SecurityGroupIds.*)?", "launcher.security_groups"),
    (r"StoppingCondition\.MaxRuntimeInSeconds", "launcher.max_run"),
    (r"StoppingCondition\.MaxWaitTimeInSeconds", "launcher.max_wait"),
    (r"StoppingCondition\.MaxPendingTimeInSeconds", "launcher.max_pending"),
    (r"Tags.*", "launcher.tags"),
    (r"EnableNetworkIsolation", "launcher.network_isolation"),
    (r"EnableInterContainerTrafficEncryption", "launcher.encrypt_traffic"),
    (r"EnableManagedSpotTraining", "launcher.spot"),
    (r"RetryStrategy.*", "launcher.retries"),
    (r"RemoteDebugConfig.*", "launcher.remote_debug"),
    (r"InfraCheckConfig.*", "launcher.infra_check"),
    (r"MlflowConfig(\.MlflowResourceArn)?", "launcher.mlflow"),
    (r"MlflowConfig\.MlflowRunName", "name"),
    (r"AlgorithmSpecification\.ContainerArguments.*", "code.pip"),
    (
        r"AlgorithmSpecification(\.(ContainerEntrypoint|TrainingInputMode).*)?|StoppingCondition",
        None,
    ),
    (r"CheckpointConfig\.LocalPath", None),
)
"""A path, and the key of ours that makes what is there (None: nothing that is typed)."""


def key_of(path: str, request: Request | None = None) -> str | None:
    """Return the key of the configuration to change, for the path of a Problem.

    What no key of ours makes comes from launcher.request_overrides. Only with the request can it
    tell which mount a channel is, and whether an argument comes from code.pip.
    """
    for pattern, key in KEYS:
        if hit := re.fullmatch(pattern, path, re.DOTALL):
            made = key and key.format(**hit.groupdict())
            return _exactly(made, path, request) if request and made else made
    return f"launcher.request_overrides.{path}"


def _exactly(key: str, path: str, request: Request) -> str | None:
    """Return the key for an item of a list that several keys make."""
    place = re.search(r"\[(\d+)\]", path)
    index = int(place[1]) if place else -1
    if key == "storage.mounts" and place:
        name = _text(objects(request, "InputDataConfig")[index], "ChannelName")
        return "launcher.output" if name in OURS else f"storage.mounts.{name}"
    if key == "code.pip" and place:
        argument = dig(request, "AlgorithmSpecification")["ContainerArguments"][index]
        return key if str(argument).startswith("--pip=") else None
    return key


OURS = ("code", "config")
"""The channels of the code and of the configuration, which lie below launcher.output."""
