"""Putting the archive of the code where a job on another machine finds it."""

from pathlib import Path

from .errors import LaunchError
from .job import JobSpec
from .storage import OPEN, local_folder


def place(job: JobSpec) -> None:
    """Put the archive at `code.place`, under the name of its digest, unless it is there.

    Nothing is to do where it travels in a ConfigMap or is in the image.

    Raises:
        LaunchError: the place cannot be written.
    """
    code = job.config["code"]
    name = f"{job.code.digest}.tar.gz"
    if code["delivery"] == "s3":
        _upload(f"{code['place'].rstrip('/')}/{name}", job.code.archive())
    elif code["delivery"] == "volume":
        _write(_folder(job) / name, job.code.archive())


def _folder(job: JobSpec) -> Path:
    """Return the folder of this machine that is `code.place`."""
    nodes = job.config["storage"]["mounts"]
    text = str(job.config["code"]["place"])
    for name in OPEN.findall(text):
        folder = local_folder(name, nodes)
        if folder is None:
            raise LaunchError(
                f"code.place is in the mount {name}, which this machine does not have. Type "
                f"storage.mounts.{name}.local=/path/of/it, or code.delivery=configmap."
            )
        text = OPEN.sub(folder, text)
    return Path(text).expanduser()


def _write(path: Path, content: bytes) -> None:
    if path.exists():
        return
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise LaunchError(f"code.place: {path} cannot be written: {error.strerror}.") from error


def _upload(url: str, content: bytes) -> None:
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise LaunchError(
            "code.delivery=s3 needs boto3. Type pip install 'hydra-trainer[sagemaker]'."
        ) from None
    bucket, _, key = url.removeprefix("s3://").partition("/")
    try:
        boto3.client("s3").put_object(Bucket=bucket, Key=key, Body=content)
    except (BotoCoreError, ClientError) as error:
        raise LaunchError(f"code.place: {url} cannot be written: {error}") from error
