"""The SageMaker Python SDK against the embedded service: skipped where it is not installed."""

import json
from pathlib import Path
from typing import Any

import pytest

from hydra_trainer.embedded.sagemaker import Service
from hydra_trainer.sagemaker.account import Account, InUse

GOLDEN = Path(__file__).with_name("golden")


@pytest.fixture
def service(tmp_path: Path) -> Any:
    pytest.importorskip("sagemaker.core.resources")
    with Service(tmp_path / "home") as found:
        yield found


@pytest.mark.parametrize("name", ["sagemaker", "sagemaker-spot", "sagemaker-efs", "sagemaker-fsx"])
def test_the_sdk_sends_the_same_request(
    service: Service, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hydra_trainer.sagemaker import sdk

    monkeypatch.setenv("AWS_ENDPOINT_URL", service.endpoint)
    request = json.loads((GOLDEN / f"{name}.json").read_text())
    account = Account("us-east-1", service.endpoint)
    for channel in request["InputDataConfig"]:
        if "S3DataSource" in channel["DataSource"]:
            uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
            account.make_bucket(uri)
            account.put(f"{uri}x", b"")
    sdk.create(account, request)
    found = account.describe(request["TrainingJobName"])
    assert found is not None
    for key in ("SelectedInstanceType", "SelectedInstanceCount"):
        found["ResourceConfig"].pop(key, None)
    assert {key: found.get(key) for key in request if key != "Tags"} == {
        key: value for key, value in request.items() if key != "Tags"
    }
    tags = {tag["Key"]: tag["Value"] for tag in request["Tags"]}
    assert account.tags(found["TrainingJobArn"]) == tags
    with pytest.raises(InUse):
        sdk.create(account, request)
