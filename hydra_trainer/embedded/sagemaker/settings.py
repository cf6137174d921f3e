"""What a service is told when it is made, for all of its parts."""

from dataclasses import dataclass, field
from pathlib import Path

from .objects import Objects

ACCOUNT = "123456789012"

GRACE = 120.0
"""Seconds between SIGTERM and SIGKILL.
https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_StopTrainingJob.html"""


@dataclass
class Delays:
    """Seconds that something takes longer than here; may be changed while jobs run.

    Args:
        starting: from the acceptance of a job.
        pending: for capacity. A spot job waits for it after each interruption, too.
        downloading: of the image.
        uploading: of the model.
        logs: from a line of a log until CloudWatch has it.
    """

    starting: float = 0.0
    pending: float = 0.0
    downloading: float = 0.0
    uploading: float = 0.0
    logs: float = 0.0


@dataclass
class Settings:
    """See Service."""

    home: Path
    objects: Objects
    grace: float = GRACE
    delays: Delays = field(default_factory=Delays)
    file_systems: dict[str, Path] = field(default_factory=dict)
    roles: set[str] | None = None
    quotas: dict[str, int] = field(default_factory=dict)
    instances: int | None = None
    account: str = ACCOUNT
    endpoint: str = ""
