"""What would stop a training job in an account, asked before anything is sent."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from hydra_trainer.findings import Finding

from .account import ABSENT, DENIED, Account, Refused

Object = dict[str, Any]

IMAGE = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.[a-z.]+/(?P<name>[^:@]+)"
    r"(:(?P<tag>[\w.-]+)|@(?P<digest>sha256:[0-9a-f]{64}))?"
)

SERVICE = "sagemaker.amazonaws.com"


def preflight(account: Account, request: Object, missing: list[str]) -> list[Finding]:
    """Look at all that a request refers to.

    Args:
        account: where it would be sent.
        request: the CreateTrainingJob request.
        missing: what the user has not said yet; a request has stand-ins for it.
    """
    found = [Finding("fail", "configuration", text) for text in missing]
    for look in (_caller, _role, _pass_role, _bucket, _image, _quotas, _network):
        found += _looked(look, account, request)
    return found


def _looked(
    look: Callable[[Account, Object], Iterator[Finding]], account: Account, request: Object
) -> Iterator[Finding]:
    """Yield what a look finds; that one may not look is no reason that a job would not run."""
    try:
        yield from look(account, request)
    except Refused as error:
        what = look.__name__.strip("_").replace("_", " ")
        if error.code not in DENIED:
            raise
        yield Finding("warn", what, "not looked at, for want of rights.")


def _caller(account: Account, request: Object) -> Iterator[Finding]:
    who = account.call("sts", "get_caller_identity")
    yield Finding("ok", "login", f"{who['Arn']} in {account.region}.")
    owner = request["RoleArn"].split(":")[4]
    if owner != who["Account"]:
        yield Finding(
            "fail",
            "account",
            f"you are in {who['Account']}, launcher.role is in {owner}.",
            "Type launcher.role=... of your account, or AWS_PROFILE=... of the other.",
        )


def _role(account: Account, request: Object) -> Iterator[Finding]:
    name = request["RoleArn"].rpartition("/")[2]
    try:
        role = account.call("iam", "get_role", RoleName=name)["Role"]
    except Refused as error:
        if error.code not in (*ABSENT, "NoSuchEntity"):
            raise
        yield Finding(
            "fail", f"role {name}", "is not there.", "docs/sagemaker.md says how to make it."
        )
        return
    trust = str(role.get("AssumeRolePolicyDocument", ""))
    if SERVICE not in trust:
        yield Finding(
            "fail",
            f"role {name}",
            f"does not trust {SERVICE}, so SageMaker cannot take it.",
            "docs/sagemaker.md says how to make it.",
        )
        return
    yield Finding("ok", f"role {name}", "trusts SageMaker.")


def _pass_role(account: Account, request: Object) -> Iterator[Finding]:
    who = account.call("sts", "get_caller_identity")["Arn"]
    if found := re.fullmatch(r"(arn:[^:]+):sts::(\d+):assumed-role/([^/]+)/.+", who):
        who = f"{found[1]}:iam::{found[2]}:role/{found[3]}"
    answer = account.call(
        "iam",
        "simulate_principal_policy",
        PolicySourceArn=who,
        ActionNames=["iam:PassRole", "sagemaker:CreateTrainingJob"],
        ResourceArns=[request["RoleArn"]],
    )
    for one in answer["EvaluationResults"]:
        action = one["EvalActionName"]
        if action == "iam:PassRole" and one["EvalDecision"] != "allowed":
            yield Finding(
                "fail",
                action,
                f"you may not pass {request['RoleArn']} to SageMaker.",
                "deploy/iam.json holds the right.",
            )
            return
    yield Finding("ok", "iam:PassRole", "you may pass the role.")


def _bucket(account: Account, request: Object) -> Iterator[Finding]:
    bucket = request["OutputDataConfig"]["S3OutputPath"].removeprefix("s3://").split("/")[0]
    try:
        answer = account.call("s3", "head_bucket", Bucket=bucket)
    except Refused as error:
        if error.code not in (*ABSENT, "NoSuchBucket", "403"):
            raise
        what = "is not yours to see." if error.code == "403" else "does not exist."
        yield Finding("fail", f"bucket {bucket}", what, "Type launcher.output=s3://BUCKET/PREFIX.")
        return
    region = answer.get("BucketRegion") or account.region
    if region != account.region:
        yield Finding(
            "fail",
            f"bucket {bucket}",
            f"is in {region}, the job in {account.region}.",
            f"Type launcher.output=s3://BUCKET of {account.region}, or launcher.region={region}.",
        )
        return
    yield Finding("ok", f"bucket {bucket}", "is there.")


def _image(account: Account, request: Object) -> Iterator[Finding]:
    image = request["AlgorithmSpecification"]["TrainingImage"]
    parts = IMAGE.fullmatch(image)
    if parts is None:
        yield Finding("warn", "image", f"{image} is not in Amazon ECR: not looked for.")
        return
    if parts["region"] != account.region:
        yield Finding("warn", "image", f"is in {parts['region']}, the job in {account.region}.")
    version = {"imageDigest": parts["digest"]} if parts["digest"] else {"imageTag": parts["tag"]}
    answer = account.call(
        "ecr",
        "batch_get_image",
        registryId=parts["account"],
        repositoryName=parts["name"],
        imageIds=[version if any(version.values()) else {"imageTag": "latest"}],
    )
    if answer.get("failures"):
        reason = answer["failures"][0].get("failureReason", "it is not there")
        yield Finding(
            "fail", f"image {image}", f"{reason}.", "Type launcher.image=..., or push it."
        )
        return
    yield Finding("ok", f"image {image}", "is there.")


def _quotas(account: Account, request: Object) -> Iterator[Finding]:
    """The quota of an instance type has its name in it, and no code that could be known."""
    asked = request["ResourceConfig"]
    wanted: dict[str, int] = {}
    for one in asked.get("InstanceGroups") or asked.get("InstancePreferences") or [asked]:
        name = one["InstanceType"]
        wanted[name] = wanted.get(name, 0) + int(one.get("InstanceCount") or 1)
    spot = "spot training job usage" if request.get("EnableManagedSpotTraining") else ""
    use = f"for {spot or 'training job usage'}"
    quotas = _all_quotas(account)
    for name, count in wanted.items():
        limit = quotas.get(f"{name} {use}")
        if limit is None:
            yield Finding("warn", "quota", f"none is known for {name} {use}.")
        elif limit < count:
            yield Finding(
                "fail",
                "quota",
                f"{name} {use}: {limit:g}, but {count} are asked for.",
                "Ask for more in Service Quotas, or choose another resources.instance_type.",
            )
        else:
            yield Finding("ok", "quota", f"{name} {use}: {limit:g}.")


def _all_quotas(account: Account) -> dict[str, float]:
    found: dict[str, float] = {}
    token: Object = {}
    while True:
        page = account.call(
            "service-quotas", "list_service_quotas", ServiceCode="sagemaker", **token
        )
        found |= {one["QuotaName"]: float(one["Value"]) for one in page["Quotas"]}
        if not page.get("NextToken"):
            return found
        token = {"NextToken": page["NextToken"]}


def _network(account: Account, request: Object) -> Iterator[Finding]:
    network = request.get("VpcConfig")
    if not network:
        return
    kinds = (
        ("describe_subnets", "SubnetIds", network["Subnets"], "launcher.subnets"),
        (
            "describe_security_groups",
            "GroupIds",
            network["SecurityGroupIds"],
            "launcher.security_groups",
        ),
    )
    for operation, words, names, key in kinds:
        try:
            account.call("ec2", operation, **{words: names})
        except Refused as error:
            if error.code in DENIED:
                raise
            yield Finding("fail", "network", str(error), f"Type {key}=[...].")
        else:
            yield Finding("ok", "network", f"{', '.join(names)}.")
