"""Which cluster, which namespace, as whom: what the kubeconfig says, without any client.

The same rules as kubectl's: $KUBECONFIG may name several files, and of two entries with the same
name the first one counts.
"""

import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from hydra_trainer.errors import LaunchError, did_you_mean

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod finds the credentials of its service account."""

IN_CLUSTER = "in-cluster"
"""The name of the context that a pod has without a kubeconfig."""

WRITE_ONE = "aws eks update-kubeconfig --name CLUSTER --region REGION"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Context:
    """One entry of the kubeconfig, with what it refers to.

    `files` is None where the credentials are those of the pod that this runs in.
    """

    name: str
    namespace: str | None
    server: str
    files: str | None
    cluster: dict[str, Any] = field(default_factory=dict)
    user: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """The server without its path, which may hold a token."""
        parts = urlsplit(self.server)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def is_loopback(self) -> bool:
        return urlsplit(self.server).hostname in LOOPBACK


def find(name: str | None, kubeconfig: str | None = None) -> Context:
    """Return the context called `name`, or the current one.

    Looks in the file `kubeconfig`, else in those of $KUBECONFIG, else in ~/.kube/config; without
    any file, in the service account that Kubernetes mounts into a pod.

    Raises LaunchError with what to type when there is no such context.
    """
    files = _files(kubeconfig)
    present = [file for file in files if file.is_file()]
    if not present:
        if name in (None, IN_CLUSTER) and (SERVICE_ACCOUNT / "token").is_file():
            return _in_cluster()
        raise LaunchError(_no_kubeconfig(files))
    merged = _merged(present)
    found = _named(merged, "contexts", name or _current(merged), present)
    entry = found.get("context") or {}
    cluster = _named(merged, "clusters", entry.get("cluster"), present).get("cluster") or {}
    users = [user for user in merged["users"] if user.get("name") == entry.get("user")]
    context = Context(
        name=found["name"],
        namespace=entry.get("namespace"),
        server=str(cluster.get("server", "")).rstrip("/"),
        files=os.pathsep.join(str(file) for file in present),
        cluster=cluster,
        user=(users[0].get("user") or {}) if users else {},
    )
    _check_server(context)
    return context


def _files(kubeconfig: str | None) -> list[Path]:
    named = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    return [Path(part).expanduser() for part in named.split(os.pathsep) if part]


def _no_kubeconfig(files: list[Path]) -> str:
    looked = " and ".join(str(file) for file in files)
    return (
        f"There is no cluster to send the job to: {looked} does not exist. Type `{WRITE_ONE}` to "
        "write it, set KUBECONFIG to where it is, or rehearse the job on this machine with "
        "launcher.embedded=true."
    )


def _merged(files: list[Path]) -> dict[str, Any]:
    merged: dict[str, Any] = {"contexts": [], "clusters": [], "users": []}
    for file in files:
        content = _read(file)
        merged["current-context"] = merged.get("current-context") or content.get("current-context")
        for kind in ("contexts", "clusters", "users"):
            merged[kind] += content.get(kind) or []
    return merged


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LaunchError(f"The kubeconfig {file} cannot be read: {error}") from error
    if not isinstance(content or {}, dict):
        raise LaunchError(f"{file} is not a kubeconfig. Type `{WRITE_ONE}` to write one.")
    return content or {}


def _current(merged: dict[str, Any]) -> str:
    if current := merged.get("current-context"):
        return str(current)
    raise LaunchError(
        "The kubeconfig has no current context. Type launcher.context=NAME, or `kubectl config "
        f"use-context NAME`; there are: {_names(merged['contexts'])}."
    )


def _named(
    merged: dict[str, Any], kind: str, name: str | None, files: list[Path]
) -> dict[str, Any]:
    for entry in merged[kind]:
        if entry.get("name") == name:
            return dict(entry)
    what = kind.removesuffix("s")
    where = " and ".join(str(file) for file in files)
    known = [str(entry.get("name")) for entry in merged[kind]]
    raise LaunchError(
        f"There is no {what} {name!r} in {where}.{did_you_mean(str(name), known)} There are: "
        f"{_names(merged[kind])}. Type launcher.context=NAME, or `{WRITE_ONE}` to add it."
    )


def _names(entries: list[dict[str, Any]]) -> str:
    return ", ".join(sorted({str(entry.get("name")) for entry in entries})) or "none"


def _check_server(context: Context) -> None:
    """Raise LaunchError where the connection could not be trusted."""
    if not context.server:
        raise LaunchError(
            f"The kubeconfig gives no server for the context {context.name!r}. Type "
            f"`{WRITE_ONE}` to write it again."
        )
    if context.cluster.get("insecure-skip-tls-verify"):
        raise LaunchError(
            f"The kubeconfig switches off the check of the server's certificate for the context "
            f"{context.name!r} (insecure-skip-tls-verify), and whoever answers would get the "
            "job's code and your credentials. Give it certificate-authority-data instead: "
            f"`{WRITE_ONE}` does."
        )
    if not context.server.startswith("https://") and not context.is_loopback:
        raise LaunchError(
            f"The context {context.name!r} has the server {context.address}, which is not https: "
            "your credentials would travel in the clear. Only this machine is reached without it."
        )


def _in_cluster() -> Context:
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "kubernetes.default.svc")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    namespace = SERVICE_ACCOUNT / "namespace"
    return Context(
        name=IN_CLUSTER,
        namespace=namespace.read_text().strip() if namespace.is_file() else None,
        server=f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        files=None,
    )


def login(context: Context) -> str:
    """Return the sentence that says how to get new credentials for a context."""
    plugin = context.user.get("exec")
    if plugin and Path(str(plugin.get("command"))).name in ("aws", "aws-iam-authenticator"):
        return _aws_login(context, plugin)
    if plugin:
        command = shlex.join([str(plugin.get("command")), *map(str, plugin.get("args") or [])])
        return f"Its credentials come from `{command}`: type that to see what it says."
    if context.files is None:
        return "Its credentials are those of this pod's service account: is it still there?"
    if "tokenFile" in context.user:
        return f"Its token is in {context.user['tokenFile']}: have that file written again."
    return (
        f"Its credentials stand in {context.files}: get that file anew from whoever runs the "
        f"cluster; for EKS, `{WRITE_ONE}`."
    )


def _aws_login(context: Context, plugin: dict[str, Any]) -> str:
    """Name the two commands: the first for AWS itself, the second for the cluster."""
    words = [str(word) for word in plugin.get("args") or []]
    settings = {str(pair.get("name")): str(pair.get("value")) for pair in plugin.get("env") or []}
    profile = _option(words, "--profile") or settings.get("AWS_PROFILE")
    cluster = _option(words, "--cluster-name", "--cluster-id", "-i") or "CLUSTER"
    region = _option(words, "--region") or _region(context.server) or "REGION"
    role = _option(words, "--role-arn", "--role", "-r")
    who = ["--profile", profile] if profile else []
    sign_in = shlex.join(["aws", "sso", "login", *who])
    update = ["aws", "eks", "update-kubeconfig", "--name", cluster, "--region", region, *who]
    update += ["--role-arn", role] if role else []
    update += ["--alias", context.name]
    return f"Type `{sign_in}`, and if that does not help `{shlex.join(update)}`."


def _option(words: list[str], *names: str) -> str | None:
    for word, following in zip(words, [*words[1:], ""], strict=True):
        name, _, value = word.partition("=")
        if name in names:
            return value or following or None
    return None


def _region(server: str) -> str | None:
    """Return the region of https://ID.gr7.eu-west-1.eks.amazonaws.com."""
    found = re.search(r"\.([a-z0-9-]+)\.eks\.amazonaws\.com", server)
    return found[1] if found else None
