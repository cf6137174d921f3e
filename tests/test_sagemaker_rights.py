"""deploy/iam.json: whoever has it can do everything, and everything in it is used."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hydra_trainer import __main__ as verbs
from hydra_trainer.embedded import sagemaker
from hydra_trainer.embedded.sagemaker import Service
from hydra_trainer.job import JobState

from .conftest import REPOSITORY
from .sent import Sent

ACTIONS = {
    ("s3", "HeadObject"): {"s3:GetObject", "s3:ListBucket"},  # without the second, 403 for 404
    ("s3", "HeadBucket"): {"s3:ListBucket"},
    ("s3", "CreateBucket"): set(),  # in the embedded service only
    ("sagemaker", "CreateTrainingJob"): {
        *("sagemaker:CreateTrainingJob", "sagemaker:AddTags", "iam:PassRole")
    },
    ("sts", "GetCallerIdentity"): set(),  # open to everybody
}
"""What a call needs beside, or in place of, the action of its own name."""

NAMES = {"service-quotas": "servicequotas", "monitoring": "cloudwatch"}
"""Services by the name that IAM has for them."""

SLEEPS = "[sh, -c, 'echo here; trap \"exit 143\" TERM; while :; do sleep 0.1; done']"


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    with Service(tmp_path / "service", limits=False) as found:
        monkeypatch.setattr(sagemaker, "start", lambda home: found.endpoint)
        monkeypatch.chdir(REPOSITORY)
        yield found


def actions(calls: Counter[tuple[str, str]]) -> set[str]:
    found: set[str] = set()
    for service, operation in calls:
        own = {f"{NAMES.get(service, service)}:{operation}"}
        found |= ACTIONS.get((service, operation), own)
    return found


def running(entrypoint: str) -> str:
    return (
        "+launcher.request_overrides={AlgorithmSpecification: "
        f"{{ContainerEntrypoint: {entrypoint}, ContainerArguments: [x]}}}}"
    )


def test_each_right_is_used_and_no_other_is_needed(
    tmp_path: Path, service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = Sent(tmp_path, capsys, "launcher=sagemaker", "launcher.embedded=true")
    network = ["launcher.subnets=[subnet-0a1b2c3d]", "launcher.security_groups=[sg-0a1b2c3d]"]
    assert sent.type(*sent.words(*network), "launcher.check=true") == 0
    assert "fail" not in capsys.readouterr().out

    sent.send(running(SLEEPS))
    sent.until("here")
    handle = str(sent.handle)
    assert sent.send(running(SLEEPS)).handle == sent.handle  # which is there already
    for words in (["status", handle], ["why", handle], ["logs", handle, "--all"]):
        assert verbs.verb(words[0], words[1:]) == 0
    assert verbs.verb("list", ["sagemaker://embedded"]) == 0
    assert verbs.verb("cancel", [handle]) == 0
    assert verbs.verb("wait", [handle]) == 143
    assert sent.place.status(sent.handle).state is JobState.CANCELLED

    policy = json.loads((REPOSITORY / "deploy" / "iam.json").read_text())
    allowed: set[str] = set()
    for statement in policy["Statement"]:
        listed = statement["Action"]
        allowed |= {listed} if isinstance(listed, str) else set(listed)
    assert actions(Counter(service.calls)) == allowed
