"""S3 for those who have no AWS: that of the embedded SageMaker service, for a job that trains here.

The service ends by itself when nobody asks for anything; a process that has joined keeps it up, for
a training may go on for long between two checkpoints.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import IO, Any

from hydra_trainer.storage import REGIONS, embedded_home

from . import sagemaker
from .sagemaker.users import use

ADDRESSES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")

_joined: dict[Path, IO[str]] = {}


def join(plain: dict[str, Any], environ: MutableMapping[str, str] = os.environ) -> None:
    """Let this process and its children use the S3 on this machine, if the job is to.

    Nothing happens where the environment names another address, as in a container of the embedded
    SageMaker, or the configuration does.

    Raises LaunchError when the service does not come up.
    """
    s3 = plain["storage"]["s3"]
    if s3["embedded"] and not s3["endpoint"]:
        home = embedded_home()
        named = [environ[key] for key in ADDRESSES if environ.get(key)]
        if not named or named[0] == sagemaker.address(home):
            environ.update(start(home))


def start(home: Path) -> dict[str, str]:
    """Start the service in a folder, keep it up, and return the variables for a client of S3."""
    if home not in _joined:
        _joined[home] = use(home)  # before it is started: then it does not end meanwhile
    return {
        "AWS_ENDPOINT_URL_S3": sagemaker.start(home),
        "AWS_ACCESS_KEY_ID": "embedded",
        "AWS_SECRET_ACCESS_KEY": "embedded",
        **dict.fromkeys(REGIONS, "us-east-1"),
    }


def leave(home: Path) -> None:
    """Keep the service in a folder up no longer."""
    if home in _joined:
        _joined.pop(home).close()
