"""The request of a dry run, sent by other hands than ours."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hydra_trainer.embedded import sagemaker
from hydra_trainer.embedded.sagemaker import Service
from hydra_trainer.sagemaker.account import Account

from .conftest import REPOSITORY
from .sent import Sent

NAME = "by-hand"
SHOWS = "[sh, -c, 'ls /opt/ml/input/data/code /opt/ml/input/data/config']"
WORDS = (
    "+launcher.request_overrides={AlgorithmSpecification: "
    f"{{ContainerEntrypoint: {SHOWS}, ContainerArguments: [x]}}}}"
)


def by_boto3(service: Service, path: Path) -> None:
    request = {**json.loads(path.read_text()), "TrainingJobName": NAME}
    Account("us-east-1", service.endpoint).client("sagemaker").create_training_job(**request)


def by_aws(service: Service, path: Path) -> None:
    program = shutil.which("aws")
    if program is None:
        pytest.skip("the AWS command line is not installed")
    keys = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    place = {"AWS_ENDPOINT_URL": service.endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
    # As docs/sagemaker.md says.
    words = ["sagemaker", "create-training-job", "--training-job-name", NAME]
    words += ["--cli-input-json", f"file://{path}"]
    subprocess.run([program, *words], env={**os.environ, **keys, **place}, check=True)


@pytest.mark.parametrize("send", [by_boto3, by_aws])
def test_a_dry_run_is_a_request_as_it_is(
    send: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = Sent(tmp_path, capsys, "launcher=sagemaker", "launcher.embedded=true")
    monkeypatch.chdir(REPOSITORY)
    with Service(tmp_path / "service") as service:
        monkeypatch.setattr(sagemaker, "start", lambda home: service.endpoint)
        sent.send(WORDS)  # puts code and configuration into S3
        assert sent.type(*sent.words(WORDS), "launcher.dry_run=true") == 0
        path = tmp_path / "request.json"
        path.write_text(capsys.readouterr().out)
        send(service, path)
        ours, theirs = service.wait(sent.name), service.wait(NAME)
    assert theirs["TrainingJobStatus"] == "Completed"
    for key in json.loads(path.read_text()).keys() - {"TrainingJobName", "Tags"}:
        assert theirs[key] == ours[key], key
