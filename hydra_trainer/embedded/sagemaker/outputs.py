"""What a job leaves in S3: its model and its output data."""

import tarfile
import tempfile
from pathlib import Path
from typing import Any

from .instance import Instance
from .objects import Objects, files, split

Object = dict[str, Any]


def upload(request: Object, instances: list[Instance], objects: Objects) -> str:
    """Write model and output data of all instances; return where the model is.

    Of files that several instances have, that of the first one counts. Raises AwsError.
    """
    config = request["OutputDataConfig"]
    where = f"{config['S3OutputPath'].rstrip('/')}/{request['TrainingJobName']}/output"
    bucket, prefix = split(where)
    model = _merged([one.ml / "model" for one in instances])
    data = _merged([one.ml / "output" / "data" for one in instances])
    if config.get("CompressionType") == "NONE":
        for folder, found in (("model", model), ("data", data)):
            for name, file in found.items():
                objects.put(bucket, f"{prefix}/{folder}/{name}", file)
        return f"{where}/model/"
    _pack(model, objects, bucket, f"{prefix}/model.tar.gz")
    if data:
        _pack(data, objects, bucket, f"{prefix}/output.tar.gz")
    return f"{where}/model.tar.gz"


def _merged(folders: list[Path]) -> dict[str, Path]:
    return {
        file.relative_to(folder).as_posix(): file
        for folder in reversed(folders)
        for file in files(folder)
    }


def _pack(found: dict[str, Path], objects: Objects, bucket: str, key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "whole.tar.gz"
        with tarfile.open(whole, "w:gz", compresslevel=1) as tar:
            for name, file in sorted(found.items()):
                tar.add(file, name)
        objects.put(bucket, key, whole)
