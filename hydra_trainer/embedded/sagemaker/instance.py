"""One instance of a job: its private /opt/ml, and the process that its container is.

| of the container | here |
|---|---|
| /opt/ml | `opt/ml` in the instance's folder, which is gone with the instance |
| a channel of S3 | a folder with copies, for File and FastFile alike |
| a channel of a file system | a link to the folder that stands for it |
| /tmp/hydra-trainer | `tmp` in the instance's folder |
| the LocalPath of checkpoints, of TensorBoard | below /opt/ml, or a folder of the instance |

Those paths are rewritten where the request has them: ContainerEntrypoint, ContainerArguments and
the values of Environment. What a file or the program itself has of them is not: the program finds
/opt/ml through SAGEMAKER_BASE_DIR, as the official toolkit does.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hydra_trainer.embedded.process import Process
from hydra_trainer.embedded.rewriting import Paths

from .checks import Group
from .objects import Objects, Stored, split
from .settings import Settings

Object = dict[str, Any]

ML = "/opt/ml"
CHECKPOINTS = "/opt/ml/checkpoints"
TENSORBOARD = "/opt/ml/output/tensorboard"

TMP = "/tmp/hydra-trainer"
"""What is in /tmp of a container and named in its request; all of /tmp may hold this service."""

NOT_STARTED = 127
"""Exit code of a container whose command does not exist, as a shell gives it."""


class ClientError(Exception):
    """Why a job fails through its request: what follows "ClientError: " in its FailureReason."""


class Host(NamedTuple):
    """A place in a job."""

    name: str
    group: Group


def hosts(groups: list[Group]) -> list[Host]:
    """Return algo-1, algo-2, ...: through all groups."""
    places = [group for group in groups for _ in range(group.size)]
    return [Host(f"algo-{number}", group) for number, group in enumerate(places, 1)]


class Instance:
    """The instance of one host.

    Args:
        request: of the job.
        folder: its own; what is there is of another one, and goes.
    """

    def __init__(
        self, settings: Settings, request: Object, host: Host, all_hosts: list[Host], folder: Path
    ) -> None:
        self.host = host
        self.folder = folder
        self.ml = folder / "opt" / "ml"
        self._settings = settings
        self._request = request
        self._hosts = all_hosts
        self._process: Process | None = None
        self._folders = {ML: self.ml, TMP: folder / "tmp"}
        self.checkpoints = self._place("CheckpointConfig", CHECKPOINTS)
        self.tensorboard = self._place("TensorBoardOutputConfig", TENSORBOARD)
        self._paths = Paths(self._folders)

    def _place(self, part: str, otherwise: str) -> Path:
        """Return the folder for the LocalPath of a part of the request: it may be anywhere."""
        local = ((self._request.get(part) or {}).get("LocalPath") or otherwise).rstrip("/")
        if local.startswith(f"{ML}/"):
            return self.ml / local.removeprefix(f"{ML}/")
        return self._folders.setdefault(local, self.folder / local.strip("/"))

    # ------------------------------------------------------------------------------------ preparing

    def prepare(self) -> None:
        """Make /opt/ml, without the data."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("input/config", "input/data", "model", "output/data", "code"):
            (self.ml / name).mkdir(parents=True)
        for place in (self.checkpoints, self.tensorboard):
            place.mkdir(parents=True, exist_ok=True)
        config = self.ml / "input" / "config"
        for name, content in self._configuration().items():
            (config / f"{name}.json").write_text(json.dumps(content))

    def _configuration(self) -> dict[str, Any]:
        """https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html"""
        names = [one.name for one in self._hosts]
        groups = dict.fromkeys(one.group for one in self._hosts)
        resources = {
            "current_host": self.host.name,
            "current_instance_type": self.host.group.type,
            "current_group_name": self.host.group.name,
            "hosts": names,
            "instance_groups": [
                {
                    "instance_group_name": group.name,
                    "instance_type": group.type,
                    "hosts": [one.name for one in self._hosts if one.group == group],
                }
                for group in groups
            ],
            "network_interface_name": "lo",
        }
        found = {
            "hyperparameters": self._request.get("HyperParameters") or {},
            "resourceconfig": resources,
            "inputdataconfig": {one["ChannelName"]: self._channel(one) for one in self._channels()},
        }
        if checkpoints := self._request.get("CheckpointConfig"):
            found["checkpointconfig"] = {"LocalPath": CHECKPOINTS, **checkpoints}
        return found

    def _channel(self, channel: Object) -> Object:
        source = channel["DataSource"].get("S3DataSource") or {}
        found = {
            "TrainingInputMode": self._mode(channel),
            "S3DistributionType": source.get("S3DataDistributionType") or "FullyReplicated",
            "RecordWrapperType": channel.get("RecordWrapperType") or "None",
        }
        if kind := channel.get("ContentType"):
            found["ContentType"] = kind
        return found

    def _mode(self, channel: Object) -> str:
        of_job = self._request["AlgorithmSpecification"].get("TrainingInputMode")
        return str(channel.get("InputMode") or of_job or "File")

    def _channels(self) -> list[Object]:
        """Return the channels that this instance has: one may be for some groups only."""
        return [
            channel
            for channel in self._request.get("InputDataConfig") or ()
            if self.host.group.name in _of_groups(channel, self.host.group.name)
        ]

    def download(self) -> None:
        """Fetch the data of the channels. Raises ClientError."""
        for channel in self._channels():
            folder = self.ml / "input" / "data" / channel["ChannelName"]
            if files := channel["DataSource"].get("FileSystemDataSource"):
                folder.symlink_to(file_system(files, self._settings))
                continue
            mode = self._mode(channel)
            if mode == "Pipe":
                raise ClientError("the embedded service has no Pipe mode")
            folder.mkdir()
            self._fetch(channel["DataSource"]["S3DataSource"], folder, channel)
            if mode == "FastFile":
                for file in filter(Path.is_file, folder.rglob("*")):
                    file.chmod(0o444)

    def _fetch(self, source: Object, folder: Path, channel: Object) -> None:
        objects = self._settings.objects
        wanted = _objects(source, objects)
        if source.get("S3DataDistributionType") == "ShardedByS3Key":
            sharing = [
                one.name
                for one in self._hosts
                if one.group.name in _of_groups(channel, one.group.name)
            ]
            wanted = wanted[sharing.index(self.host.name) :: len(sharing)]
        for bucket, prefix, stored in wanted:
            objects.download(bucket, [stored], prefix, folder)

    # -------------------------------------------------------------------------------------- running

    def start(
        self, env: dict[str, str], log: Path, mark: str, ended: Callable[[int], None]
    ) -> None:
        """Start the container. Its end is told in any case, from another thread."""
        words = command(self._request)
        given = self._request.get("Environment") or {}
        env = {
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME")
            or str(Path("~/.cache").expanduser()),
            **env,
            "SAGEMAKER_BASE_DIR": str(self.ml),
            **{key: self._paths.here(value) for key, value in given.items()},
        }
        try:
            here = [self._paths.here(word) for word in words]
            self._process = Process(here, env, self.folder, log, mark, ended)
        except OSError:
            ended(NOT_STARTED)

    def signal(self, number: int) -> None:
        if self._process:
            self._process.signal(number)

    def kill(self) -> None:
        if self._process:
            self._process.kill()

    def failure(self) -> str:
        """Return what the program wrote to output/failure."""
        try:
            return (self.ml / "output" / "failure").read_text(errors="replace").strip()
        except OSError:
            return ""

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def command(request: Object) -> list[str]:
    """Return what a container runs; nothing where only its image would say.

    Without an entrypoint in the request, that of AWS's images hands over to the sagemaker-training
    toolkit, which runs the script that two hyperparameters name, with all others as its arguments.
    """
    algorithm = request["AlgorithmSpecification"]
    if algorithm.get("ContainerEntrypoint"):
        return [*algorithm["ContainerEntrypoint"], *(algorithm.get("ContainerArguments") or ())]
    given = request.get("HyperParameters") or {}
    if "sagemaker_program" not in given:
        return []
    folder, program = (_decoded(given.get(f"sagemaker_{key}", ML)) for key in _TOOLKIT)
    others = {key: text for key, text in given.items() if not key.startswith("sagemaker_")}
    words = [word for key, text in others.items() for word in (f"--{key}", _decoded(text))]
    return ["python", f"{folder}/{program}", *words]


_TOOLKIT = ("submit_directory", "program")


def _decoded(text: str) -> str:
    """Return a hyperparameter as the toolkit reads it: JSON, or else as it is."""
    try:
        return str(json.loads(text))
    except ValueError:
        return text


def _of_groups(channel: Object, own: str) -> list[str]:
    source = channel["DataSource"].get("S3DataSource") or {}
    return list(source.get("InstanceGroupNames") or [own])


def _objects(source: Object, objects: Objects) -> list[tuple[str, str, Stored]]:
    """Return the objects of a data source: bucket, what their file names begin after, object."""
    bucket, prefix = split(source["S3Uri"])
    if source["S3DataType"] == "S3Prefix":
        return [(bucket, _base(prefix, one.key), one) for one in objects.list(bucket, prefix)]
    if source["S3DataType"] != "ManifestFile":
        raise ClientError(f"the embedded service has no S3DataType {source['S3DataType']}")
    _, file = objects.open(bucket, prefix)
    with file:
        entries = json.load(file)
    found = []
    bucket, start = split(entries[0]["prefix"])
    for name in entries[1:]:
        if (stored := objects.find(bucket, start + name)) is None:
            raise ClientError(f"Data download failed:NoSuchKey (404): s3://{bucket}/{start}{name}")
        found.append((bucket, start, stored))
    return found


def _base(prefix: str, key: str) -> str:
    """Return the part of a key that is left out of a file's name: a prefix may end in a name."""
    if not prefix or prefix.endswith("/") or key[len(prefix) :].startswith("/"):
        return prefix
    return prefix[: prefix.rfind("/") + 1]


def file_system(source: Object, settings: Settings) -> Path:
    """Return the folder that stands for a directory of a file system. Raises ClientError."""
    name, directory = source["FileSystemId"], source["DirectoryPath"].strip("/")
    mapped = settings.file_systems.get(name)
    folder = (mapped or settings.home / "file-systems" / name) / directory
    if mapped is None:
        folder.mkdir(parents=True, exist_ok=True)
    elif not folder.is_dir():
        raise ClientError(
            f"Unable to mount file system: {name}. Directory path {source['DirectoryPath']} does "
            "not exist."
        )
    return folder.resolve()
