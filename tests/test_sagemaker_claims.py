"""hydra-trainer storage resolve: from a claim of a cluster to what SageMaker mounts."""

from typing import Any

import pytest

from hydra_trainer import __main__ as verbs
from hydra_trainer.eks import cluster
from hydra_trainer.errors import LaunchError
from hydra_trainer.sagemaker import claims

Object = dict[str, Any]


def volume(handle: str, driver: str = "efs.csi.aws.com", **attributes: str) -> Object:
    source = {"driver": driver, "volumeHandle": handle, "volumeAttributes": attributes}
    return {"spec": {"csi": source}}


class Cluster:
    """A cluster with one claim on one volume."""

    namespace = "team"

    def __init__(self, found: Object, bound: bool = True) -> None:
        self.found = found
        self.bound = bound

    def get(self, resource: str, name: str) -> Object | None:
        if resource == "persistentvolumes":
            return self.found
        spec = {"volumeName": "pv-1"} if self.bound else {}
        return {"spec": spec} if name == "efs-claim" else None


class Account:
    """An account with a file system; answers in the words of boto3."""

    region = "eu-central-1"

    def __init__(self, **answers: Object) -> None:
        self.answers: Object = {
            "describe_mount_targets": {
                "MountTargets": [
                    {"MountTargetId": "fsmt-1", "SubnetId": "subnet-a"},
                    {"MountTargetId": "fsmt-2", "SubnetId": "subnet-b"},
                ]
            },
            "describe_mount_target_security_groups": {"SecurityGroups": ["sg-a"]},
            "describe_access_points": {"AccessPoints": [{"RootDirectory": {"Path": "/teams/x"}}]},
            "describe_file_systems": {
                "FileSystems": [{"SubnetIds": ["subnet-c"], "NetworkInterfaceIds": ["eni-1"]}]
            },
            "describe_network_interfaces": {
                "NetworkInterfaces": [{"Groups": [{"GroupId": "sg-c"}]}]
            },
        } | answers

    def call(self, service: str, operation: str, **words: Any) -> Object:
        found: Object = self.answers[operation]
        return found


@pytest.mark.parametrize(
    ("handle", "path"),
    [
        ("fs-0123456789abcdef0", ""),
        ("fs-0123456789abcdef0:/data", "data"),
        ("fs-0123456789abcdef0::fsap-0123456789abcdef0", "teams/x"),
    ],
)
def test_efs(handle: str, path: str) -> None:
    found = claims.find(Cluster(volume(handle)), Account(), "efs-claim")  # type: ignore[arg-type]
    assert found == claims.FileSystem(
        "efs", "fs-0123456789abcdef0", path, "", ["subnet-a", "subnet-b"], ["sg-a"]
    )


def test_fsx() -> None:
    disk = volume("fs-0123456789abcdef0", "fsx.csi.aws.com", mountname="abcdef12")
    found = claims.find(Cluster(disk), Account(), "efs-claim")  # type: ignore[arg-type]
    assert found == claims.FileSystem(
        "fsx", "fs-0123456789abcdef0", "", "abcdef12", ["subnet-c"], ["sg-c"]
    )


def test_the_verb_prints_what_to_add(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Cluster(volume("fs-0123456789abcdef0:/data"))
    monkeypatch.setattr(cluster, "Cluster", lambda context, namespace: place)
    monkeypatch.setattr(claims, "Account", lambda region, key: Account())
    assert verbs.verb("storage", ["resolve", "--claim", "efs-claim", "--mount", "data"]) == 0
    assert capsys.readouterr().out.split(" \\\n    ") == [
        "storage.mounts.data.kind=efs",
        "storage.mounts.data.file_system=fs-0123456789abcdef0",
        "storage.mounts.data.sub_path=data",
        "'launcher.subnets=[subnet-a,subnet-b]'",
        "'launcher.security_groups=[sg-a]'\n",
    ]


def test_without_a_region_it_says_what_this_verb_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cluster, "Cluster", lambda context, namespace: Cluster(volume("fs-1")))
    for name in ("AWS_DEFAULT_REGION", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    assert verbs.verb("storage", ["resolve", "--claim", "efs-claim"]) == 1
    printed = capsys.readouterr().err
    assert "Type --region=us-east-1" in printed and "launcher.region" not in printed


BAD: list[tuple[Cluster, Account, str, str]] = [
    (Cluster(volume("fs-1")), Account(), "other", "kubectl get pvc -n team"),
    (Cluster(volume("fs-1"), bound=False), Account(), "efs-claim", "kubectl describe pvc"),
    (Cluster(volume("vol-1", "ebs.csi.aws.com")), Account(), "efs-claim", "ebs.csi.aws.com"),
    (
        Cluster(volume("fs-1")),
        Account(describe_mount_targets={"MountTargets": []}),
        "efs-claim",
        "no mount targets",
    ),
]


@pytest.mark.parametrize(("place", "account", "claim", "words"), BAD)
def test_a_claim_that_leads_nowhere(
    place: Cluster, account: Account, claim: str, words: str
) -> None:
    with pytest.raises(LaunchError, match=words):
        claims.find(place, account, claim)  # type: ignore[arg-type]
