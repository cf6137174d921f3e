"""From a claim of a cluster to what SageMaker needs to mount the same file system.

    claim -> PersistentVolume -> fs-... -> mount targets -> subnets, security groups

The security groups are those of the mount targets: SageMaker's instances get them, and a file
system commonly lets in its own group; the cluster's own group is added, which the nodes use.
"""

from typing import Any, NamedTuple

from hydra_trainer.errors import LaunchError

from .account import Account

Object = dict[str, Any]

DRIVERS = {"efs.csi.aws.com": "efs", "fsx.csi.aws.com": "fsx"}

MOST_SUBNETS = 16
MOST_GROUPS = 5
"""What VpcConfig takes (CreateTrainingJob)."""


class FileSystem(NamedTuple):
    """A file system of AWS, and where it can be reached from."""

    kind: str
    id: str
    sub_path: str
    mount_name: str
    subnets: list[str]
    security_groups: list[str]


def resolve(
    claim: str, mount: str, context: str | None, namespace: str | None, region: str | None = None
) -> str:
    """Return the overrides that give launcher=sagemaker the file system of a claim.

    Args:
        claim: the name of a PersistentVolumeClaim.
        mount: the mount of the configuration that it is for.
        context: of the kubeconfig; None: the current one.
        namespace: None: the context's.
        region: of the cluster; None: the AWS configuration's.

    Raises:
        LaunchError: the claim is not bound, is not on EFS or FSx, or one of the two sides cannot
            be asked.
    """
    from hydra_trainer.eks.cluster import Cluster

    cluster = Cluster(context, namespace)
    found = find(cluster, Account(region, key="--region"), claim)
    words = [
        f"storage.mounts.{mount}.kind={found.kind}",
        f"storage.mounts.{mount}.file_system={found.id}",
        *([f"storage.mounts.{mount}.mount_name={found.mount_name}"] if found.mount_name else []),
        *([f"storage.mounts.{mount}.sub_path={found.sub_path}"] if found.sub_path else []),
        f"'launcher.subnets=[{','.join(found.subnets)}]'",
        f"'launcher.security_groups=[{','.join(found.security_groups)}]'",
    ]
    return " \\\n    ".join(words)


def find(cluster: Any, account: Account, claim: str) -> FileSystem:
    """Return the file system of a claim.

    Args:
        cluster: an `eks.cluster.Cluster`.
        account: of the cluster's region.
        claim: the name of a PersistentVolumeClaim in the cluster's namespace.
    """
    kind, handle, mount_name = _volume(cluster, claim)
    identity, _, rest = handle.partition(":")
    path, _, access_point = rest.partition(":")
    if access_point:
        path = _access_point(account, access_point)
    looked_up = _efs(account, identity) if kind == "efs" else _fsx(account, identity)
    subnets, groups = looked_up
    return FileSystem(
        kind, identity, path.strip("/"), mount_name, subnets[:MOST_SUBNETS], groups[:MOST_GROUPS]
    )


def _volume(cluster: Any, claim: str) -> tuple[str, str, str]:
    """Return the kind of the file system, its volume handle, and FSx's mount name."""
    found = cluster.get("persistentvolumeclaims", claim)
    if found is None:
        raise LaunchError(
            f"There is no claim {claim!r} in namespace {cluster.namespace}. kubectl get pvc -n "
            f"{cluster.namespace} shows those that are there."
        )
    name = found["spec"].get("volumeName")
    if not name:
        raise LaunchError(
            f"The claim {claim!r} is bound to no volume yet. kubectl describe pvc {claim} -n "
            f"{cluster.namespace} says why."
        )
    volume = cluster.get("persistentvolumes", name) or {"spec": {}}
    source = volume["spec"].get("csi") or {}
    kind = DRIVERS.get(str(source.get("driver")))
    if kind is None:
        raise LaunchError(
            f"The claim {claim!r} is on the driver {source.get('driver') or 'of no CSI'}, but "
            f"SageMaker mounts EFS and FSx for Lustre: {', '.join(DRIVERS)}."
        )
    attributes = source.get("volumeAttributes") or {}
    return kind, str(source["volumeHandle"]), str(attributes.get("mountname") or "")


def _access_point(account: Account, identity: str) -> str:
    """Return the folder of an access point: SageMaker mounts folders, not access points."""
    found = account.call("efs", "describe_access_points", AccessPointId=identity)
    points = found["AccessPoints"]
    return str(points[0].get("RootDirectory", {}).get("Path", "/")) if points else "/"


def _efs(account: Account, identity: str) -> tuple[list[str], list[str]]:
    targets = account.call("efs", "describe_mount_targets", FileSystemId=identity)["MountTargets"]
    if not targets:
        raise LaunchError(f"The file system {identity} has no mount targets: nothing can reach it.")
    groups: dict[str, None] = {}
    for target in targets:
        named = {"MountTargetId": target["MountTargetId"]}
        found = account.call("efs", "describe_mount_target_security_groups", **named)
        groups |= dict.fromkeys(found["SecurityGroups"])
    return [str(target["SubnetId"]) for target in targets], list(groups)


def _fsx(account: Account, identity: str) -> tuple[list[str], list[str]]:
    found = account.call("fsx", "describe_file_systems", FileSystemIds=[identity])["FileSystems"]
    if not found:
        raise LaunchError(f"There is no file system {identity} in {account.region}.")
    interfaces = account.call(
        "ec2", "describe_network_interfaces", NetworkInterfaceIds=found[0]["NetworkInterfaceIds"]
    )["NetworkInterfaces"]
    groups = {group["GroupId"]: None for one in interfaces for group in one["Groups"]}
    return [str(subnet) for subnet in found[0]["SubnetIds"]], list(groups)
