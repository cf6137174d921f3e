"""What an API server says when it will not, in words that say what to type.

ApiError               any refusal: `code`, `reason` and `message` are the server's own
├── AlreadyExists      the name is taken
├── Absent             there is no such object
└── Expired            the list or watch goes on from a version that the server has forgotten
"""

import json
import re
from typing import Any, NamedTuple

from hydra_trainer.errors import LaunchError

from .kubeconfig import Context

RIGHTS = "deploy/rbac.yaml"
GUIDE = "docs/eks.md"

OPERATORS = {
    "kubeflow.org": "the Kubeflow training operator 1.9 (kubeflow.org/v1)",
    "trainer.kubeflow.org": "Kubeflow Trainer 2.1 or later (trainer.kubeflow.org/v1alpha1)",
    "jobset.x-k8s.io": "JobSet, which Kubeflow Trainer needs",
    "sagemaker.amazonaws.com": "the EKS add-on amazon-sagemaker-hyperpod-training-operator",
    "kueue.x-k8s.io": "Kueue",
}
"""API group -> what has to be installed for a cluster to serve it."""

CONFIG_KEYS = (
    (r"metadata\.namespace", "launcher.namespace"),
    (r"metadata\.name$", "name"),
    (r"elasticPolicy\.(min|max)Replicas", "resources.min_nodes"),
    (r"(replicas|numNodes|parallelism|completions)$", "resources.nodes"),
    (r"(nprocPerNode|numProcPerNode)$", "resources.processes_per_node"),
    (r"imagePullSecrets", "launcher.image_pull_secrets"),
    (r"imagePullPolicy$", "launcher.image_pull_policy"),
    (r"image$", "launcher.image"),
    (r"serviceAccountName$", "launcher.service_account"),
    (r"nodeSelector", "launcher.node_selector"),
    (r"tolerations", "launcher.tolerations"),
    (r"[aA]ffinity", "launcher.together"),
    (r"priorityClassName$", "launcher.priority_class"),
    (r"securityContext", "launcher.restricted"),
    (r"terminationGracePeriodSeconds$", "launcher.grace"),
    (r"activeDeadlineSeconds$", "launcher.active_deadline"),
    (r"ttlSecondsAfterFinished$", "launcher.ttl"),
    (r"schedulingPolicy", "launcher.scheduling_policy"),
    (r"runtimeRef", "launcher.runtime"),
    (r"queue-name", "launcher.queue"),
    (r"secretKeyRef", "launcher.secrets"),
    (r"[.\]]env(\[|$)", "launcher.env"),
    (r"emptyDir\.sizeLimit$", "launcher.shm_size"),
    (r"(volumes|volumeMounts)", "storage.mounts"),
    (r"(limits|requests).*efa", "launcher.efa"),
    (r"(limits|requests).*hugepages", "launcher.hugepages"),
    (r"(limits|requests).*gpu", "resources.gpus_per_node"),
    (r"annotations", "launcher.annotations"),
    (r"labels", "launcher.labels"),
    (r"^(data|binaryData)", "code.delivery"),
)
"""A path in an object, as a pattern -> the key of the configuration that it is rendered from."""

PATH = re.compile(r"(?<![\w.])(?:spec|metadata|data|binaryData)(?:[.\[][\w./\[\]*-]+)")


class Call(NamedTuple):
    """One thing that is asked of the server: `create` of `pytorchjobs.kubeflow.org/v1` ..."""

    verb: str
    resource: str
    namespace: str
    name: str = ""
    subresource: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.what}"

    @property
    def what(self) -> str:
        where = f" in namespace {self.namespace}" if self.namespace else ""
        part = f" ({self.subresource})" if self.subresource else ""
        return f"{self.plural} {self.name}".rstrip() + part + where

    @property
    def plural(self) -> str:
        return self.resource.partition(".")[0]

    @property
    def group(self) -> str:
        return self.resource.partition("/")[0].partition(".")[2]


class ApiError(LaunchError):
    """The server refused. `code`, `reason` and `message` are what it said itself."""

    def __init__(self, text: str, code: int, reason: str, message: str) -> None:
        super().__init__(text)
        self.code = code
        self.reason = reason
        self.message = message


class AlreadyExists(ApiError):
    """There is an object of that name."""


class Absent(ApiError):
    """The kind and the namespace are known, and there is no object of that name."""


class Expired(ApiError):
    """The server has forgotten the resourceVersion that a list or watch was to go on from."""


def status_of(code: int, body: bytes) -> dict[str, Any]:
    """Return the Status object of an answer; what is none becomes one, with the text as message."""
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if isinstance(status, dict) and status.get("kind") == "Status":
        return status
    text = body.decode("utf-8", "replace").strip()
    return {"kind": "Status", "code": code, "message": text[:1000] or f"HTTP {code}"}


def is_anonymous(status: dict[str, Any]) -> bool:
    """Whether the server refused because it does not know who asks."""
    return 'User "system:anonymous"' in str(status.get("message"))


def refusal(call: Call, context: Context, status: dict[str, Any]) -> ApiError:
    """Return the error for the Status of an answer that is not worth another try."""
    code, reason = int(status.get("code") or 0), str(status.get("reason", ""))
    message = str(status.get("message", ""))
    if code == 409 and reason == "AlreadyExists":
        return AlreadyExists(f"{call.what} exists already.", code, reason, message)
    if code == 404 and _is_absent(call, status):
        text = f"There is no {call.what} of the cluster {context.name!r}."
        return Absent(text, code, reason, message)
    if code == 410:
        return Expired(f"{call}: {message}", code, reason, message)
    explain = {403: _forbidden, 404: _not_found, 413: _too_large}.get(code, _refused)
    return ApiError(explain(call, context, status), code, reason, message)


def _is_absent(call: Call, status: dict[str, Any]) -> bool:
    """Whether a 404 says that the object is not there, rather than its kind or its namespace."""
    details = status.get("details") or {}
    if call.group:
        return bool(call.name) and details.get("name") == call.name
    return bool(call.name) and call.verb != "create" and details.get("kind") != "namespaces"


def _forbidden(call: Call, context: Context, status: dict[str, Any]) -> str:
    """Tell missing rights, which an administrator gives, from quotas and policies."""
    message = str(status.get("message", ""))
    who = re.search(r'User "([^"]*)" cannot', message)
    if message and not who:
        return _refused(call, context, status)
    resource = f"{call.plural}.{call.group}" if call.group else call.plural
    resource += f" --subresource={call.subresource}" if call.subresource else ""
    part = f"/{call.subresource}" if call.subresource else ""
    group = f" (API group {call.group})" if call.group else ""
    where = f" in namespace {call.namespace}" if call.namespace else ""
    option = f" --namespace {call.namespace}" if call.namespace else ""
    return (
        f"{who[1] if who else 'You'} may not {call.verb} {call.plural}{part}{group}{where} of the "
        f"cluster {context.name!r}. {RIGHTS} holds the rights that suffice: have an administrator "
        f"type `kubectl apply{option} -f {RIGHTS}`; `kubectl auth can-i {call.verb} "
        f"{resource}{option}` tells whether it helped."
    )


def _not_found(call: Call, context: Context, status: dict[str, Any]) -> str:
    """Tell an object that is not there from a namespace or a kind that is not."""
    details = status.get("details") or {}
    if details.get("kind") == "namespaces":
        return (
            f"There is no namespace {call.namespace!r} in the cluster {context.name!r}. Type "
            f"launcher.namespace=NAME, or `kubectl create namespace {call.namespace}`."
        )
    if not call.group:
        return _refused(call, context, status)
    operator = OPERATORS.get(call.group, f"whatever serves {call.group}")
    return (
        f"The cluster {context.name!r} does not know {call.resource}. Install {operator}, as "
        f"{GUIDE} describes, or choose another launcher.api."
    )


def _too_large(call: Call, context: Context, status: dict[str, Any]) -> str:
    return (
        f"{call.what} is too large for the cluster {context.name!r}: {status.get('message')} "
        "Type code.delivery=s3, code.delivery=volume or code.delivery=image."
    )


def _refused(call: Call, context: Context, status: dict[str, Any]) -> str:
    """Give the server's words, and the keys of the configuration that the paths in them are of."""
    text = f"The cluster {context.name!r} refused to {call}: {status.get('message')}"
    causes = (status.get("details") or {}).get("causes") or []
    fields = [str(cause["field"]) for cause in causes if cause.get("field")]
    paths = dict.fromkeys([*fields, *PATH.findall(str(status.get("message")))])
    keys = {path: config_key(path) for path in paths}
    lines = [f"\n  {path}: {key} in the configuration" for path, key in keys.items() if key]
    return text + "".join(lines)


def config_key(path: str) -> str | None:
    """Return the key that a path such as spec.pytorchReplicaSpecs.Worker.replicas comes from."""
    return next((key for pattern, key in CONFIG_KEYS if re.search(pattern, path)), None)
