"""The services that are asked before a job is sent: STS, IAM, ECR, EC2, Service Quotas.

They know enough for a check to pass, or not: a role that is none of the service's `roles`, an image
with `no-such-image` in its name, a subnet or security group with `none` in its id.
"""

from typing import Any

from .protocols import Call, Operations
from .refusals import AwsError
from .runs import UNKNOWN_IMAGE
from .settings import Settings

Object = dict[str, Any]

VPC = "vpc-0123456789abcdef0"
UNKNOWN_ID = "none"
QUOTAS = 100
"""Of instances of a type that the service's `quotas` do not have."""


class Others:
    """Their operations, by service."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.operations: dict[str, Operations] = {
            "sts": {"GetCallerIdentity": self._identity},
            "iam": {"GetRole": self._role, "SimulatePrincipalPolicy": self._simulate},
            "ecr": {"DescribeImages": self._images, "BatchGetImage": self._image},
            "ec2": {
                "DescribeSubnets": self._subnets,
                "DescribeSecurityGroups": self._security_groups,
            },
            "servicequotas": {"ListServiceQuotas": self._quotas},
        }

    def _identity(self, call: Call) -> Object:
        account = self._settings.account
        return {
            "Arn": f"arn:aws:iam::{account}:user/embedded",
            "UserId": "AIDAEMBEDDED",
            "Account": account,
        }

    def _role(self, call: Call) -> Object:
        name = call.parameters["RoleName"]
        if self._settings.roles is not None and name not in self._settings.roles:
            text = f"The role with name {name} cannot be found."
            raise AwsError("NoSuchEntity", text, 404)
        trust = (
            "%7B%22Version%22%3A%222012-10-17%22%2C%22Statement%22%3A%5B%7B%22Effect%22%3A%22Allow"
            "%22%2C%22Principal%22%3A%7B%22Service%22%3A%22sagemaker.amazonaws.com%22%7D%2C%22Action"
            "%22%3A%22sts%3AAssumeRole%22%7D%5D%7D"
        )
        role = {
            "Path": "/",
            "RoleName": name,
            "RoleId": "AROAEMBEDDED",
            "Arn": f"arn:aws:iam::{self._settings.account}:role/{name}",
            "CreateDate": "2026-01-01T00:00:00Z",
            "AssumeRolePolicyDocument": trust,
            "MaxSessionDuration": 3600,
        }
        return {"Role": role}

    def _simulate(self, call: Call) -> Object:
        actions = [
            value for key, value in call.parameters.items() if key.startswith("ActionNames.member.")
        ]
        results = [
            {"EvalActionName": one, "EvalResourceName": "*", "EvalDecision": "allowed"}
            for one in actions
        ]
        return {"EvaluationResults": results, "IsTruncated": False}

    def _images(self, call: Call) -> Object:
        repository = self._repository(call)
        ids = call.parameters.get("imageIds") or [{"imageTag": "latest"}]
        if any(UNKNOWN_IMAGE in str(one) for one in ids):
            text = (
                f"The image with imageId {ids[0]} does not exist within the repository with name "
                f"'{repository}' in the registry with id '{self._registry(call)}'"
            )
            raise AwsError("ImageNotFoundException", text)
        details = [
            {
                "registryId": self._registry(call),
                "repositoryName": repository,
                "imageDigest": one.get("imageDigest") or "sha256:" + "0" * 64,
                **({"imageTags": [one["imageTag"]]} if "imageTag" in one else {}),
            }
            for one in ids
        ]
        return {"imageDetails": details}

    def _image(self, call: Call) -> Object:
        repository = self._repository(call)
        found, failures = [], []
        for one in call.parameters.get("imageIds") or ():
            if UNKNOWN_IMAGE in str(one):
                text = "Requested image not found"
                missing = {"failureCode": "ImageNotFound", "failureReason": text}
                failures.append({"imageId": one, **missing})
            else:
                named = {"registryId": self._registry(call), "repositoryName": repository}
                found.append({**named, "imageId": one, "imageManifest": "{}"})
        return {"images": found, "failures": failures}

    def _repository(self, call: Call) -> str:
        name = str(call.parameters["repositoryName"])
        if UNKNOWN_IMAGE in name:
            text = (
                f"The repository with name '{name}' does not exist in the registry with id "
                f"'{self._registry(call)}'"
            )
            raise AwsError("RepositoryNotFoundException", text)
        return name

    def _registry(self, call: Call) -> str:
        return str(call.parameters.get("registryId") or self._settings.account)

    def _subnets(self, call: Call) -> Object:
        ids = _ids(call, "SubnetId")
        _check(ids, "InvalidSubnetID.NotFound", "The subnet ID '{}' does not exist")
        rows = [
            {
                "subnetId": one,
                "vpcId": VPC,
                "state": "available",
                "availabilityZone": f"{call.region}a",
                "cidrBlock": "10.0.0.0/16",
                "availableIpAddressCount": 1000,
            }
            for one in ids
        ]
        return {"subnetSet": rows}

    def _security_groups(self, call: Call) -> Object:
        ids = _ids(call, "GroupId")
        _check(ids, "InvalidGroup.NotFound", "The security group '{}' does not exist")
        owner = self._settings.account
        rows = [{"groupId": one, "groupName": one, "vpcId": VPC, "ownerId": owner} for one in ids]
        return {"securityGroupInfo": rows}

    def _quotas(self, call: Call) -> Object:
        """List those of the types that the model of the service knows."""
        from hydra_trainer.sagemaker.shapes import model

        if call.parameters.get("ServiceCode") != "sagemaker":
            text = "The request failed because the specified service does not exist."
            raise AwsError("NoSuchResourceException", text)
        names = [
            f"{kind} for {spot}training job usage"
            for kind in model()["shapes"]["TrainingInstanceType"]["enum"]
            for spot in ("", "spot ")
        ]
        rows = [
            {
                "ServiceCode": "sagemaker",
                "ServiceName": "Amazon SageMaker",
                "QuotaName": name,
                "QuotaCode": f"L-{number:08X}",
                "Value": float(self._settings.quotas.get(name, QUOTAS)),
                "Unit": "None",
                "Adjustable": True,
                "GlobalQuota": False,
            }
            for number, name in enumerate(names)
        ]
        start = int(call.parameters.get("NextToken") or 0)
        size = int(call.parameters.get("MaxResults") or 100)
        more = {"NextToken": str(start + size)} if len(rows) > start + size else {}
        return {"Quotas": rows[start : start + size], **more}


def _ids(call: Call, name: str) -> list[str]:
    """Return the ids of a form: SubnetId.1=subnet-..., or those of a filter."""
    given = call.parameters.items()
    return [value for key, value in given if key.startswith((f"{name}.", "Filter.1.Value."))]


def _check(ids: list[str], code: str, text: str) -> None:
    for one in ids:
        if UNKNOWN_ID in one:
            raise AwsError(code, text.format(one))
