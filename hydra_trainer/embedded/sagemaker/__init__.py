"""A small SageMaker on this machine, on which the instances of training jobs are local processes.

    from hydra_trainer.embedded import sagemaker
    endpoint = sagemaker.start(Path("~/.cache/hydra-trainer/sagemaker").expanduser())

It needs nothing but Python. boto3, the AWS CLI and the sagemaker SDK work against it, with
`endpoint_url` or AWS_ENDPOINT_URL, and any credentials: training jobs, their logs in CloudWatch,
S3, and what of STS, IAM, ECR, EC2 and Service Quotas is asked before a job is sent. It is what the
tests of launcher=sagemaker run against. Its process ends by itself when no job runs and nobody has
asked for anything for five minutes; jobs and objects stay.
"""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_trainer.embedded.background import Background

if TYPE_CHECKING:
    from .faults import Fault
    from .limits import Limit
    from .service import Service
    from .settings import Delays

__all__ = ["Delays", "Fault", "Limit", "Service", "address", "start", "stop"]

HERE = {"Service": "service", "Fault": "faults", "Limit": "limits", "Delays": "settings"}


def __getattr__(name: str) -> Any:
    """Import what somebody wants who has the service in his own process: a start does not."""
    if name not in HERE:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    from importlib import import_module

    return getattr(import_module(f".{HERE[name]}", __name__), name)


def address(home: Path) -> str | None:
    """Return the URL of the service that is, or was, in a folder; None: none ever was."""
    with contextlib.suppress(FileNotFoundError):
        return (home / "endpoint").read_text()
    return None


_SERVICES = Background(__name__, "service", address, "/embedded/calls")


def start(home: Path) -> str:
    """Return the URL of the service in a folder, whose process is started if none runs.

    Raises LaunchError when the process does not come up.
    """
    _SERVICES.start(home)
    return (home / "endpoint").read_text()


def stop(home: Path) -> None:
    """End the process of the service in a folder, and the instances of its jobs.

    Returns when it has ended; nothing happens when there is none. Raises LaunchError when it had to
    be killed.
    """
    _SERVICES.stop(home)
