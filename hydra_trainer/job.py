"""The nouns that every launcher speaks. Standard library only.

A `JobSpec` says what to run, a `JobHandle` says where it runs, a `JobStatus` says how it goes.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from .bundle import Bundle
from .errors import LaunchError

DONE = 0
USER_ERROR = 1
CONFIG_ERROR = 2
STOPPED = 143
"""Exit codes of a job. 0 done; 1 the user's code raised, do not run again; 2 the configuration is
wrong, do not run again; 143 stopped by SIGTERM after saving, run again; 128 + signal otherwise."""


@dataclass(frozen=True)
class Resources:
    """What one job needs: `nodes` machines with `processes_per_node` ranks each.

    `gpus_per_node` is None where the job takes what the machine has. `min_nodes` is set where it
    may go on with fewer machines. Memory in Kubernetes' words: 64Gi.
    """

    nodes: int = 1
    processes_per_node: int = 1
    gpus_per_node: int | None = None
    min_nodes: int | None = None
    cpus_per_node: float | None = None
    memory_per_node: str | None = None
    instance_type: str | None = None

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node


@dataclass(frozen=True)
class Mount:
    """A folder that the job reads or writes, by the name that `${mount:name}` uses.

    `path` is where the job sees it on Kubernetes, `local` where this machine does. `claim` is the
    PersistentVolumeClaim that holds it on Kubernetes, on SageMaker it is the id of a `file_system`
    (fs-...; with FSx, `mount_name` is the first part of its paths). Of kind s3, it is a `uri`, and
    `access` is how it is read: storage.ACCESS.
    """

    name: str
    kind: str = "host"
    local: str = ""
    path: str = ""
    claim: str = ""
    sub_path: str = ""
    read_only: bool = False
    file_system: str = ""
    mount_name: str = "fsx"
    uri: str = ""
    access: str = "stream"

    @property
    def streams(self) -> bool:
        """Whether nothing is mounted: the job gets the s3:// place, and reads it by itself."""
        return self.kind == "s3" and self.access == "stream"

    @property
    def place(self) -> str:
        """Return where it is in S3, without a / at the end; "" where it is not."""
        parts = (self.uri, self.sub_path) if self.uri else ()
        return "/".join(part.strip("/") for part in parts if part)


@dataclass(frozen=True)
class JobSpec:
    """One training job: everything a launcher needs, and nothing that depends on the clock.

    `config` is the resolved job configuration, as plain containers; `output` is the run directory
    as the submitting machine sees it; `identity` is the digest of what is trained, configuration
    and code; `code` are the files that the job brings along.
    """

    name: str
    identity: str
    config: dict[str, Any]
    output: str
    resources: Resources
    code: Bundle
    mounts: dict[str, Mount] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    again: bool = False


class JobState(StrEnum):
    """What a job is doing, in the words that all platforms share."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class Report:
    """How far a running job has come: `epoch` of `epochs` is done, and what it logged last."""

    epoch: int
    epochs: int
    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class JobStatus:
    """How a job goes. `exit_code` is None until it ended; `result` is its result.json, if any.

    `started` and `ended` are RFC 3339 times by the platform's clock. `progress` is the newest word
    of a job that runs (`Report`), where somebody asked for it.
    """

    state: JobState
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    result: dict[str, Any] | None = None
    restarts: int = 0
    started: str | None = None
    ended: str | None = None
    progress: Report | None = None


@dataclass(frozen=True)
class JobHandle:
    """Where a job runs, as a string that outlives the process: `local:///absolute/run/dir`."""

    scheme: str
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{quote(self.path)}"

    @classmethod
    def parse(cls, text: str) -> "JobHandle":
        """Read a handle back. Raises LaunchError when `text` has no scheme or no path."""
        parts = urlsplit(text)
        if not parts.scheme or "://" not in text or not (parts.netloc + parts.path):
            raise LaunchError(
                f"{text!r} is neither a run directory nor a handle, such as "
                "local:///absolute/run/dir. hydra-trainer list shows those in ./runs."
            )
        return cls(parts.scheme, unquote(parts.netloc + parts.path))

    @classmethod
    def local(cls, directory: Path) -> "JobHandle":
        return cls("local", str(directory.resolve()))
