"""From a job to its CreateTrainingJob request. Pure: no network, clock, randomness, environment."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from hydra_trainer import launcher, storage
from hydra_trainer.bootstrap import RESULT
from hydra_trainer.config import get
from hydra_trainer.errors import ConfigError
from hydra_trainer.instances import ML, Instance, instance
from hydra_trainer.job import JobSpec, Mount, Resources
from hydra_trainer.plain import clean, merge
from hydra_trainer.storage import OPEN, variable

from . import images
from .options import (
    CLIENTS,
    PLACEHOLDER_OUTPUT,
    PLACEHOLDER_REGION,
    PLACEHOLDER_ROLE,
    Options,
)

OPT = "/opt/ml"
CODE = "code"  # the channel with the archive of the code
CONFIG = "config"  # the channel with config.yaml
WORK = f"{OPT}/code"  # where the code is unpacked
CHECKPOINTS = f"{OPT}/checkpoints"
OUTPUT = "output"  # the mount that holds the run directories
SCRATCH = "/tmp/hydra-trainer"  # on the instance's disk, and gone with it
ARCHIVE = "code.tar.gz"

START = (
    f"import tarfile;exec(tarfile.open('{OPT}/input/data/{CODE}/{ARCHIVE}')"
    ".extractfile('hydra_trainer/bootstrap.py').read())"
)
"""Runs the bootstrap out of the archive: one object in S3, and no shell between SIGTERM and it."""

INPUT_MODES = {"file": "File", "fastfile": "FastFile"}
"""Of a channel, by the access of a mount."""

MARGIN = 10
"""Seconds of the grace period that the bootstrap keeps for its report."""

SUFFIX = 8  # hex characters of the identity, at the end of a name
ROOM = 63 - 4  # characters of a name; the rest counts sittings: -2, -3, ...
LONGEST = 28 * 24 * 3600  # seconds, of MaxWaitTimeInSeconds

IDENTITY = "hydra-trainer:identity"  # a tag: of what is trained
DIGEST = "hydra-trainer:request-digest"  # a tag: of all that was asked for

LACKING = (
    "lightning>=2.6.6,<2.7",
    "hydra-core>=1.3.8,<1.4",
    "omegaconf>=2.3.1,<2.4",
    "torchmetrics>=1.9",
    "rich>=14.3",
    "safetensors>=0.5",
    "xxhash>=3.5",
    "tensorboard>=2.20",
    "scikit-learn>=1.6",
    "matplotlib>=3.10",
)
"""What AWS's containers have not of what this package needs."""

FOR_S3 = ("obstore>=0.12.1",)
"""What they have not where a job itself reads or writes S3: the extra of that name."""


def job_name(job: JobSpec) -> str:
    """Return the name of the training job: at most 59 characters, ending in the identity."""
    front = re.sub(r"[^A-Za-z0-9]+", "-", job.name[: -SUFFIX - 1]).strip("-") or "job"
    front = front[: ROOM - SUFFIX - 1].rstrip("-")
    return f"{front}-{job.identity[:SUFFIX]}"


def request(job: JobSpec, options: Options) -> dict[str, Any]:
    """Return the request of a job.

    Raises:
        ConfigError: with everything that SageMaker cannot do for the job, as far as it can be seen
            before there is a request.
    """
    job = whole_instances(job, options)
    mounts, problems = _mounts(job, options)
    problems += [*_option_problems(job, options), *_batch_problems(job)]
    if problems:
        raise ConfigError(problems)
    name = job_name(job)
    plain = {
        "TrainingJobName": name,
        "RoleArn": options.role or PLACEHOLDER_ROLE,
        "AlgorithmSpecification": _algorithm(job, options, mounts),
        "InputDataConfig": [*_channels(job, options, mounts)],
        "OutputDataConfig": {
            "S3OutputPath": f"{output(options)}/output",
            "KmsKeyId": options.kms_key,
            "CompressionType": "NONE",
        },
        "ResourceConfig": _resources(job, options),
        "StoppingCondition": _stopping(options),
        "CheckpointConfig": _checkpoints(mounts, options, name),
        "VpcConfig": _network(options, mounts),
        "EnableNetworkIsolation": options.network_isolation or None,
        "EnableInterContainerTrafficEncryption": options.encrypt_traffic or None,
        "EnableManagedSpotTraining": options.spot or None,
        "RetryStrategy": {"MaximumRetryAttempts": options.retries},
        "TensorBoardOutputConfig": _tensorboard(job, options, mounts, name),
        "RemoteDebugConfig": {"EnableRemoteDebug": options.remote_debug or None},
        "InfraCheckConfig": {"EnableInfraCheck": options.infra_check or None},
        "MlflowConfig": _mlflow(options, name),
        "Environment": _environment(job, options, mounts),
        "HyperParameters": _hyperparameters(job, options),
    }
    made: dict[str, Any] = merge(clean(plain), options.request_overrides)
    digest = _digest([made, config(job, options)])
    made["Tags"] = [
        *({"Key": IDENTITY, "Value": job.identity}, {"Key": DIGEST, "Value": digest}),
        *({"Key": str(key), "Value": str(value)} for key, value in options.tags.items()),
    ]
    return made


def config(job: JobSpec, options: Options) -> str:
    """Return config.yaml for the containers."""
    return launcher.config_text(job.config, _run_dir(job, options))


def output(options: Options) -> str:
    """Return the s3:// place of everything that a job of ours has in S3, without a / at the end."""
    return (options.output or PLACEHOLDER_OUTPUT).rstrip("/")


def code_place(job: JobSpec, options: Options) -> str:
    """Return the s3:// folder of the archive, which the jobs of a sweep share."""
    base = job.config["code"]["place"] if job.config["code"]["delivery"] == "s3" else None
    return f"{(base or output(options) + '/code').rstrip('/')}/{job.code.digest}/"


def config_place(options: Options, name: str) -> str:
    """Return the s3:// folder of a job's config.yaml."""
    return f"{output(options)}/jobs/{name}/"


def checkpoint_place(options: Options, name: str) -> str:
    """Return the s3:// folder that SageMaker keeps like a job's run directory."""
    return f"{output(options)}/runs/{name}/"


def _digest(made: Any) -> str:
    text = json.dumps(made, sort_keys=True, separators=(",", ":"))
    text = text.replace('"--again",', "")  # a second run of the same is the same job
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ------------------------------------------------------------------------------------- resources


def types(job: JobSpec, options: Options) -> list[str]:
    """Return the instance types that may be used, in SageMaker's words."""
    groups = [str(group.get("InstanceType", "")) for group in options.instance_groups]
    found = options.instance_preferences or groups or [job.resources.instance_type or "m5.xlarge"]
    return [name if name.startswith(ML) else f"{ML}{name}" for name in found]


def whole_instances(job: JobSpec, options: Options) -> JobSpec:
    """Return a job that uses what an instance has: SageMaker gives no parts of one."""
    needed = job.resources
    known = _smallest(types(job, options))
    nodes = sum(int(group.get("InstanceCount", 1)) for group in options.instance_groups)
    given = job.config["resources"]
    gpus = needed.gpus_per_node
    if gpus is None and known is not None and known.gpus and not _on_cpu(job):
        gpus = known.gpus
    processes = given["processes_per_node"] or max(gpus or 0, 1)
    changed: Resources = replace(
        needed, nodes=nodes or needed.nodes, gpus_per_node=gpus, processes_per_node=processes
    )
    return replace(job, resources=changed)


def _smallest(names: list[str]) -> Instance | None:
    known = [found for found in map(instance, names) if found is not None]
    return min(known, key=lambda one: one.gpus) if known else None


def _on_cpu(job: JobSpec) -> bool:
    return bool(job.config["trainer"]["accelerator"] == "cpu")


def _resources(job: JobSpec, options: Options) -> dict[str, Any]:
    names = types(job, options)
    found: dict[str, Any] = {
        "VolumeSizeInGB": options.volume_size,
        "VolumeKmsKeyId": options.volume_kms_key,
        "KeepAlivePeriodInSeconds": options.keep_alive,
        "TrainingPlanArn": options.training_plan,
    }
    count = job.resources.nodes
    if options.instance_groups:
        pairs = zip(options.instance_groups, names, strict=True)
        found["InstanceGroups"] = [{**group, "InstanceType": name} for group, name in pairs]
    elif options.instance_preferences:
        found["InstancePreferences"] = [
            {"InstanceType": name, "InstanceCount": count} for name in names
        ]
    else:
        found |= {"InstanceType": names[0], "InstanceCount": count}
    return found


def _stopping(options: Options) -> dict[str, Any]:
    wait = options.max_wait
    if options.spot and wait is None:
        wait = min(2 * options.max_run, max(LONGEST, options.max_run))
    return {
        "MaxRuntimeInSeconds": options.max_run,
        "MaxWaitTimeInSeconds": wait,
        "MaxPendingTimeInSeconds": options.max_pending,
    }


# ------------------------------------------------------------------------------------ the container


def _algorithm(job: JobSpec, options: Options, mounts: list[Mount]) -> dict[str, Any]:
    return {
        "TrainingImage": image(job, options),
        "TrainingInputMode": "File",
        "ContainerEntrypoint": _entrypoint(job),
        "ContainerArguments": _arguments(job, options, mounts),
        "MetricDefinitions": [*_metrics(job, options)],
    }


def image(job: JobSpec, options: Options) -> str:
    """Return the image: the user's, or AWS's for that torch, accelerator and region."""
    if options.image is not None:
        return options.image
    return images.image(
        str(options.torch), bool(job.resources.gpus_per_node), options.region or PLACEHOLDER_REGION
    )


def _entrypoint(job: JobSpec) -> list[str]:
    if job.config["code"]["delivery"] == "image":
        return ["python", "-m", "hydra_trainer.bootstrap"]
    return ["python", "-c", START]


def _arguments(job: JobSpec, options: Options, mounts: list[Mount]) -> list[str]:
    code = job.config["code"]
    unpacks = [f"--code={OPT}/input/data/{CODE}/{ARCHIVE}", f"--work={WORK}"]
    lacking = [*LACKING, *(FOR_S3 if storage.uses_s3(job.config) else ())]
    wanted = [*(lacking if options.image is None and not options.embedded else ()), *code["pip"]]
    return [
        f"--sagemaker={OPT}",
        f"--nproc-per-node={job.resources.processes_per_node}",
        f"--max-restarts={options.max_restarts}",
        f"--grace={max(options.grace - MARGIN, 1)}",
        f"--run-dir={_path(_run_dir(job, options), mounts)}",
        *(["--again"] if options.again or job.again else []),
        *(unpacks if code["delivery"] != "image" else []),
        *(f"--pip={requirement}" for requirement in wanted),
        f"{OPT}/input/data/{CONFIG}/config.yaml",
    ]


def _environment(job: JobSpec, options: Options, mounts: list[Mount]) -> dict[str, str]:
    plain = {"PYTHONUNBUFFERED": "1"}
    plain |= {variable(mount.name): mount.path for mount in mounts}
    plain |= storage.environment(job.config)
    if job.resources.gpus_per_node and job.resources.nodes > 1:
        plain["NCCL_DEBUG"] = "WARN"
    return {key: str(value) for key, value in {**plain, **job.env, **options.env}.items()}


def _metrics(job: JobSpec, options: Options) -> Iterator[dict[str, str]]:
    """Yield what CloudWatch reads from the log: the objective at the end, and as it goes."""
    number = "([-+0-9.eEinfa]+)"
    metric = str(job.config["objective"]["metric"])
    yield {"Name": "objective", "Regex": f"{RESULT} {re.escape(metric)}={number}"}
    yield {"Name": metric, "Regex": f"{re.escape(metric)} {number}"}
    for name, pattern in options.metrics.items():
        yield {"Name": str(name), "Regex": str(pattern)}


def _hyperparameters(job: JobSpec, options: Options) -> dict[str, str]:
    found = {}
    for key in options.hyperparameters:
        value = get(job.config, key)
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            found[key[:256]] = text[:2500]
    return found


def _tensorboard(
    job: JobSpec, options: Options, mounts: list[Mount], name: str
) -> dict[str, Any] | None:
    if not options.tensorboard:
        return None
    return {
        "LocalPath": f"{_path(_run_dir(job, options), mounts)}/tensorboard",
        "S3OutputPath": f"{output(options)}/tensorboard/{name}",
    }


def _mlflow(options: Options, name: str) -> dict[str, Any] | None:
    if options.mlflow is None:
        return None
    return {"MlflowResourceArn": options.mlflow, "MlflowRunName": name}


# --------------------------------------------------------------------------------- mounts, channels


def _run_dir(job: JobSpec, options: Options) -> str:
    """Return the run directory as the configuration of the worker names it.

    Where `storage.output` is a folder of the machine that submits, the run directory is the folder
    that SageMaker keeps in S3. Of a run that is kept in S3 by ourselves, it is on the instance.
    """
    if storage.remote_output(job.config) is not None:
        return f"${{mount:{storage.SCRATCH}}}/{job.name}"
    place = str(job.config["storage"]["output"])
    if OPEN.search(place) and _output_is_mounted(job):
        return f"{place.rstrip('/')}/{job.name}"
    return f"${{mount:{OUTPUT}}}"


def _output_is_mounted(job: JobSpec) -> bool:
    """Tell whether results go to a file system that SageMaker mounts."""
    names = OPEN.findall(str(job.config["storage"]["output"]))
    found = [job.mounts[name] for name in names if name in job.mounts]
    return bool(found) and all(mount.kind in ("efs", "fsx") for mount in found)


def _path(text: str, mounts: list[Mount]) -> str:
    """Return a path of the configuration as the container sees it."""
    found = {mount.name: mount for mount in mounts}
    return OPEN.sub(lambda match: found[match[1]].path, text)


def _mounts(job: JobSpec, options: Options) -> tuple[list[Mount], list[str]]:
    """Return the mounts that the containers get, with their paths there, and what is wrong.

    The path of one that is streamed is its place in S3.
    """
    text = str({k: v for k, v in job.config.items() if k not in ("storage", "launcher")})
    used = set(OPEN.findall(text))
    is_remote = storage.remote_output(job.config) is not None
    if _output_is_mounted(job):
        used |= set(OPEN.findall(str(job.config["storage"]["output"])))
    found, problems = [], []
    for name, mount in job.mounts.items():
        if name == OUTPUT and not _output_is_mounted(job):
            continue
        if _has_place(mount) or name in used:
            found.append(replace(mount, path=_place(mount)))
            problems += _place_problems(mount, options)
    if is_remote:
        found.append(Mount(storage.SCRATCH, kind="cache", path=f"{SCRATCH}/runs"))
    elif not _output_is_mounted(job):
        found.append(Mount(OUTPUT, kind="checkpoints", path=CHECKPOINTS))
    return found, problems


def _without_channels(job: JobSpec) -> dict[str, Any]:
    """Return the configuration without the mounts that SageMaker brings."""
    nodes = job.config["storage"]["mounts"]
    streamed = {name: node for name, node in nodes.items() if job.mounts[name].streams}
    return {**job.config, "storage": {**job.config["storage"], "mounts": streamed}}


def _place(mount: Mount) -> str:
    """Return what a mount is in the containers."""
    if mount.streams:
        return mount.place
    return f"{SCRATCH if mount.kind == 'cache' else f'{OPT}/input/data'}/{mount.name}"


def _has_place(mount: Mount) -> bool:
    if mount.kind in ("efs", "fsx"):
        return bool(mount.file_system)
    return mount.kind == "s3" and mount.access != "csi"


def _place_problems(mount: Mount, options: Options) -> list[str]:
    key = f"storage.mounts.{mount.name}"
    if _has_place(mount) or mount.kind == "cache":
        return []
    if mount.kind == "s3":
        return [
            f"{key}.access is 'csi', a driver of Kubernetes. Type {key}.access=stream, or file or "
            f"fastfile for a channel{'' if mount.uri else f', with {key}.uri=s3://BUCKET/PREFIX'}."
        ]
    if options.embedded:
        return []
    if mount.kind in ("efs", "fsx"):
        return [
            f"{key}.file_system has no value, but launcher=sagemaker mounts {mount.kind} by the id "
            f"of the file system. Type {key}.file_system=fs-...; hydra-trainer storage resolve "
            f"--claim {mount.claim or 'NAME'} finds it from the claim of a cluster."
        ]
    return [
        f"{key} is {mount.local or mount.kind}, which SageMaker cannot mount. Type storage=efs, "
        f"storage=fsx, or '{key}={{kind: s3, uri: s3://BUCKET/PREFIX}}'."
    ]


def _channels(job: JobSpec, options: Options, mounts: list[Mount]) -> Iterator[dict[str, Any]]:
    if job.config["code"]["delivery"] != "image":
        yield _from_s3(CODE, code_place(job, options), "File")
    yield _from_s3(CONFIG, config_place(options, job_name(job)), "File")
    for mount in mounts:
        if mount.access in INPUT_MODES and mount.kind == "s3":
            yield _from_s3(mount.name, f"{mount.place}/", INPUT_MODES[mount.access])
        elif _is_disk(mount):
            yield {"ChannelName": mount.name, "DataSource": {"FileSystemDataSource": _disk(mount)}}


def _is_disk(mount: Mount) -> bool:
    """Tell whether a mount is a file system: of AWS, or in a rehearsal of this machine."""
    return mount.kind not in ("s3", "cache", "checkpoints")


def _from_s3(name: str, uri: str, mode: str) -> dict[str, Any]:
    source = {
        "S3DataType": "S3Prefix",
        "S3Uri": uri,
        "S3DataDistributionType": "FullyReplicated",
    }
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}, "InputMode": mode}


def _disk(mount: Mount) -> dict[str, Any]:
    """Return the source of a file system: of FSx, paths begin with the name that it mounts by."""
    front = f"/{mount.mount_name}" if mount.kind == "fsx" else ""
    # A folder of this machine that stands for it in a rehearsal is that folder already.
    path = f"{front}/{mount.sub_path}".rstrip("/") if mount.file_system else ""
    return {
        "FileSystemId": stand_in(mount),
        "FileSystemType": "FSxLustre" if mount.kind == "fsx" else "EFS",
        "FileSystemAccessMode": "ro" if mount.read_only else "rw",
        "DirectoryPath": path or "/",
    }


def stand_in(mount: Mount) -> str:
    """Return the id of a file system; of a folder of this machine, one made from its path."""
    if mount.file_system:
        return mount.file_system
    return "fs-" + hashlib.sha256((mount.local or mount.name).encode()).hexdigest()[:17]


def _network(options: Options, mounts: list[Mount]) -> dict[str, Any]:
    groups, subnets = [*options.security_groups], [*options.subnets]
    if options.embedded and any(map(_is_disk, mounts)):
        groups, subnets = groups or ["sg-00000000"], subnets or ["subnet-00000000"]
    return {"SecurityGroupIds": groups, "Subnets": subnets}


def _checkpoints(mounts: list[Mount], options: Options, name: str) -> dict[str, Any] | None:
    if not any(mount.kind == "checkpoints" for mount in mounts):
        return None
    return {"S3Uri": checkpoint_place(options, name), "LocalPath": CHECKPOINTS}


# -------------------------------------------------------------------------------- what is refused


def _option_problems(job: JobSpec, options: Options) -> Iterator[str]:
    if options.client not in CLIENTS:
        yield f"launcher.client is {options.client!r}, but must be one of {', '.join(CLIENTS)}."
    chosen = [key for key in ("instance_preferences", "instance_groups") if getattr(options, key)]
    if job.config["resources"]["instance_type"]:
        chosen.append("resources.instance_type")
    if len(chosen) > 1:
        yield f"{' and '.join(chosen)} are set, but SageMaker takes one of them. Leave one out."
    if job.resources.min_nodes is not None:
        yield (
            f"resources.min_nodes is {job.resources.min_nodes}, but SageMaker starts all instances "
            "or none. Leave it out, or type launcher=eks."
        )
    if job.config["code"]["delivery"] == "volume":
        yield (
            "code.delivery is 'volume', but on SageMaker code comes from S3. Leave it out, or type "
            "code.delivery=image."
        )
    wants_pip = options.image is None or job.config["code"]["pip"]
    if options.network_isolation and wants_pip:
        what = "code.pip" if job.config["code"]["pip"] else "launcher.image=null"
        yield (
            f"launcher.network_isolation is true with {what}, but then nothing can be installed "
            "when the job starts. Put it into an image (docker/Dockerfile), and type "
            "launcher.image=ACCOUNT.dkr.ecr.REGION.amazonaws.com/NAME:TAG 'code.pip=[]'."
        )
    if options.network_isolation and storage.uses_s3(_without_channels(job)):
        yield (
            "launcher.network_isolation is true, but the job itself reads or writes S3, which it "
            "cannot reach then. Type access=fastfile for mounts of kind s3, and storage.output=runs"
            ": SageMaker then keeps the run directory in S3 (launcher.output)."
        )
    yield from _instance_problems(job, options)
    if job.config["storage"]["s3"]["embedded"] and not options.embedded:
        yield storage.NOT_REACHED.format(what="instance of AWS")
    sharded = job.config["trainer"]["strategy"] == "fsdp"
    kept = _output_is_mounted(job) or storage.remote_output(job.config) is not None
    if sharded and job.resources.nodes > 1 and not kept:
        yield (
            "trainer.strategy is 'fsdp' on several instances, whose checkpoints are in parts, but "
            "each instance has a folder of its own. Type storage.output=s3://BUCKET/PREFIX, or put "
            "it on EFS or FSx (storage=efs, storage=fsx)."
        )


def _instance_problems(job: JobSpec, options: Options) -> Iterator[str]:
    names = types(job, options)
    for name in names:
        known, wanted = instance(name), job.resources.gpus_per_node
        if known is not None and wanted and wanted != known.gpus:
            has = f"{known.gpus} GPUs" if known.gpus else "no GPU"
            yield (
                f"resources.gpus_per_node is {wanted}, but {name} has {has}, and SageMaker gives "
                "whole instances. Leave resources.gpus_per_node out, or choose another type."
            )
    backend = job.config["trainer"]["process_group_backend"]
    if backend == "smddp":
        problem = images.smddp_problem(image(job, options), names[0])
        if problem:
            yield (
                f"trainer.process_group_backend is 'smddp': {problem} Type "
                "trainer.process_group_backend=auto for NCCL."
            )


def _batch_problems(job: JobSpec) -> Iterator[str]:
    batch, size = job.config["data"].get("batch_size"), job.resources.world_size
    if isinstance(batch, int) and batch % size:
        lower = max(batch // size, 1) * size
        yield (
            f"data.batch_size is {batch}, but must be divisible by the {size} processes of "
            f"{job.resources.nodes} x {job.resources.processes_per_node}. Type "
            f"data.batch_size={lower} or data.batch_size={lower + size}."
        )
