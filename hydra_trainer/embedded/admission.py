"""What the API server and the operators' webhooks refuse, and what they only take away.

The order is that of a real server: unknown fields (400), the namespace (404), types and values
(422), webhooks (403). https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from . import refusals
from .kinds import Kind
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
QUALIFIED = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
DATA_KEY = r"[-._a-zA-Z0-9]+"

CONFIG_LIMIT = 1 << 20
ANNOTATIONS_LIMIT = 256 << 10
"""Bytes of the data of a ConfigMap or Secret, and of the annotations of any object."""

OBJECT_LIMIT = 3 << 19
"""Bytes of an object in etcd: 1.5 MiB."""

WEBHOOKS = {
    "pytorchjobs.kubeflow.org": "validator.pytorchjob.training-operator.kubeflow.org",
    "trainjobs.trainer.kubeflow.org": "validator.trainjob.trainer.kubeflow.org",
    "trainingruntimes.trainer.kubeflow.org": "validator.trainingruntime.trainer.kubeflow.org",
    "clustertrainingruntimes.trainer.kubeflow.org": (
        "validator.clustertrainingruntime.trainer.kubeflow.org"
    ),
    "jobsets.jobset.x-k8s.io": "vjobset.kb.io",
    "hyperpodpytorchjobs.sagemaker.amazonaws.com": "vhyperpodpytorchjob.kb.io",
}

FIXED = {
    "trainjobs.trainer.kubeflow.org": ("runtimeRef", "initializer", "trainer", "managedBy"),
    "jobs.batch": ("completions", "completionMode", "selector", "template"),
    "jobsets.jobset.x-k8s.io": ("replicatedJobs",),
    "persistentvolumeclaims": ("accessModes", "storageClassName", "volumeMode"),
}
"""The fields of a spec that cannot be changed."""


class Problem(NamedTuple):
    """`reason` as in a cause of a Status: FieldValueInvalid, FieldValueRequired ..."""

    path: str
    message: str
    reason: str = "FieldValueInvalid"


class Admission:
    """Judges what is written, by what is in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, kind: Kind, namespace: str, obj: Object, validation: str) -> None:
        """Look at a new object; take unknown fields away unless the validation is Strict.

        Raises ApiError.
        """
        found = _schema(kind, obj, validation)
        if kind.namespaced:
            self._check_namespace(kind, namespace, obj)
        _refuse(kind, obj, [*_metadata(kind, obj), *_values(kind, obj), *found])
        self._webhooks(kind, namespace, obj)

    def update(self, kind: Kind, before: Object, obj: Object, validation: str) -> None:
        """Look at the new version of an object."""
        found = _schema(kind, obj, validation)
        problems = [*_metadata(kind, obj), *_values(kind, obj), *found, *_fixed(kind, before, obj)]
        _refuse(kind, obj, problems)
        self._webhooks(kind, before["metadata"].get("namespace", ""), obj)

    def _check_namespace(self, kind: Kind, namespace: str, obj: Object) -> None:
        place = self._store.record("namespaces", "", namespace).load()
        if "deletionTimestamp" in place["metadata"]:
            why = (
                f"unable to create new content in namespace {namespace} because it is being "
                "terminated"
            )
            raise refusals.forbidden(kind.resource, obj["metadata"].get("name", ""), why)

    def _webhooks(self, kind: Kind, namespace: str, obj: Object) -> None:
        if kind.resource not in WEBHOOKS:
            return
        problems = [f"{path}: {message}" for path, message in _webhook_problems(obj)]
        if kind.kind == "TrainJob" and not problems:
            problems = self._runtime_problems(namespace, obj)
        if problems:
            text = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
            name = WEBHOOKS[kind.resource]
            message = f'admission webhook "{name}" denied the request: {text}'
            raise ApiError(403, "Forbidden", message)

    def _runtime_problems(self, namespace: str, job: Object) -> list[str]:
        """Tell whether the runtime of a TrainJob is missing."""
        reference = (job.get("spec") or {}).get("runtimeRef") or {}
        kind = reference.get("kind", "ClusterTrainingRuntime")
        resource = f"{kind.lower()}s.trainer.kubeflow.org"
        name = str(reference.get("name"))
        try:
            self._store.record(resource, namespace if kind == "TrainingRuntime" else "", name)
        except ApiError:
            lower = kind[0].lower() + kind[1:]
            return [
                f"spec.runtimeRef: Invalid value: {refusals.quoted(reference)}: "
                f'{kind}.trainer.kubeflow.org "{name}" not found: specified {lower} must be '
                "created before the TrainJob is created"
            ]
        return []


def check_body(kind: Kind, namespace: str, name: str, obj: Any) -> Object:
    """Return what came as the object that the URL is of. Raises ApiError 400 when it is not."""
    if not isinstance(obj, dict):
        raise refusals.bad_request(f"the object provided is unrecognized: it is no {kind.kind}")
    given = (obj.get("apiVersion") or kind.api_version, obj.get("kind") or kind.kind)
    if given != (kind.api_version, kind.kind):
        text = f"{given[1]} in version {given[0]!r} cannot be handled as a {kind.kind}"
        raise refusals.bad_request(text.replace("'", '"'))
    meta = obj.setdefault("metadata", {})
    if not isinstance(meta, dict):
        raise refusals.bad_request("metadata: it is no object")
    if meta.get("namespace") and meta["namespace"] != namespace:
        text = (
            "the namespace of the provided object does not match the namespace sent on the request"
        )
        raise refusals.bad_request(text)
    if name and meta.setdefault("name", name) != name:
        text = (
            f"the name of the object ({meta['name']}) does not match the name on the URL ({name})"
        )
        raise refusals.bad_request(text)
    obj["apiVersion"], obj["kind"] = given
    return obj


def check_size(text: bytes) -> None:
    """Raise ApiError 500 for an object that etcd would not take."""
    if len(text) > OBJECT_LIMIT:
        raise ApiError(500, "InternalError", "etcdserver: request is too large")


def _refuse(kind: Kind, obj: Object, problems: Iterable[Problem]) -> None:
    found = list(problems)
    if not found:
        return
    name = obj["metadata"].get("name") or obj["metadata"].get("generateName", "")
    words = [f"{path}: {message}" if path else message for path, message, _ in found]
    text = words[0] if len(words) == 1 else f"[{', '.join(words)}]"
    causes = [
        {"reason": reason, "message": message, "field": path} for path, message, reason in found
    ]
    details = {
        "name": name,
        **({"group": kind.group} if kind.group else {}),
        "kind": kind.kind,
        "causes": causes,
    }
    message = f'{kind.full_kind} "{name}" is invalid: {text}'
    raise ApiError(422, "Invalid", message, details)


# -------------------------------------------------------------------------------- schemas, webhooks


def _schema(kind: Kind, obj: Object, validation: str) -> list[Problem]:
    """Return what has a wrong type. Unknown fields are refused (400), or taken away."""
    unknown, wrong = [], []
    for path, message in _schema_problems(obj):
        if message.startswith("unknown field"):
            unknown.append(path)
        else:
            wrong.append(Problem(path, message, "FieldValueTypeInvalid"))
    if unknown and validation == "Strict":
        words = ", ".join(f'unknown field "{path}"' for path in unknown)
        raise refusals.bad_request(
            f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: strict '
            f"decoding error: {words}"
        )
    for path in unknown:
        _take_away(obj, path)
    return wrong


def _take_away(obj: Any, path: str) -> None:
    steps = [step for step in re.split(r"[.\[\]]", path) if step]
    try:
        for step in steps[:-1]:
            obj = obj[int(step)] if isinstance(obj, list) else obj[step]
        del obj[steps[-1]]
    except (KeyError, IndexError, ValueError, TypeError):
        return  # it was below another unknown field


def _schema_problems(obj: Object) -> list[tuple[str, str]]:
    try:
        from hydra_trainer.eks.schema import schema_problems
    except ImportError:
        return []
    return [(problem.path, problem.message) for problem in schema_problems(obj)]


def _webhook_problems(obj: Object) -> list[tuple[str, str]]:
    try:
        from hydra_trainer.eks.rules import webhook_problems
    except ImportError:
        return []
    return [(problem.path, problem.message) for problem in webhook_problems(obj)]


# ------------------------------------------------------------------------------------------- values


def _metadata(kind: Kind, obj: Object) -> list[Problem]:
    meta = obj["metadata"]
    name, path = meta.get("name"), "metadata.name"
    if not name:
        if meta.get("generateName"):
            path, name = "metadata.generateName", meta["generateName"].rstrip("-.") or "-"
        else:
            text = "Required value: name or generateName is required"
            return [Problem(path, text, "FieldValueRequired")]
    return [
        *_name_problems(kind, str(name), path),
        *_label_problems(meta.get("labels") or {}),
        *_annotation_problems(meta.get("annotations") or {}),
    ]


def _name_problems(kind: Kind, name: str, path: str) -> list[Problem]:
    if kind.group == "rbac.authorization.k8s.io":
        return []
    if kind.resource in ("namespaces", "services"):
        pattern, limit, what = LABEL, 63, "a lowercase RFC 1123 label"
        text = (
            "must consist of lower case alphanumeric characters or '-', and must start and end "
            f"with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for "
            f"validation is '{LABEL}')"
        )
    else:
        pattern, limit, what = SUBDOMAIN, 253, "a lowercase RFC 1123 subdomain"
        text = (
            "must consist of lower case alphanumeric characters, '-' or '.', and must start and "
            "end with an alphanumeric character (e.g. 'example.com', regex used for validation is "
            f"'{SUBDOMAIN}')"
        )
    problems = []
    if not re.fullmatch(pattern, name):
        value = refusals.quoted(name)
        problems.append(Problem(path, f"Invalid value: {value}: {what} {text}"))
    if len(name) > limit:
        value = refusals.quoted(name)
        problems.append(
            Problem(path, f"Invalid value: {value}: must be no more than {limit} characters")
        )
    return problems


def _label_problems(labels: Object) -> list[Problem]:
    problems = []
    for key, value in labels.items():
        prefix, _, name = key.rpartition("/")
        if not re.fullmatch(QUALIFIED, name) or len(name) > 63 or len(prefix) > 253:
            text = f"Invalid value: {refusals.quoted(key)}: name part must consist of alphanumeric "
            problems.append(Problem("metadata.labels", f"{text}characters, '-', '_' or '.'"))
        if value and (not re.fullmatch(QUALIFIED, str(value)) or len(str(value)) > 63):
            text = (
                f"Invalid value: {refusals.quoted(value)}: a valid label must be an empty string "
                "or consist of alphanumeric characters, '-', '_' or '.', and must start and end "
                "with an alphanumeric character, and must be no more than 63 bytes"
            )
            problems.append(Problem("metadata.labels", text))
    return problems


def _annotation_problems(annotations: Object) -> list[Problem]:
    size = sum(len(str(key).encode()) + len(str(val).encode()) for key, val in annotations.items())
    if size <= ANNOTATIONS_LIMIT:
        return []
    text = f"Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"
    return [Problem("metadata.annotations", text, "FieldValueTooLong")]


def _values(kind: Kind, obj: Object) -> list[Problem]:
    check = VALUES.get(kind.resource)
    return check(obj) if check else []


def _config_problems(config: Object) -> list[Problem]:
    """https://kubernetes.io/docs/concepts/configuration/configmap/"""
    problems, size = [], 0
    for field in ("data", "binaryData"):
        for key, value in (config.get(field) or {}).items():
            if not re.fullmatch(DATA_KEY, key) or len(key) > 253 or key in (".", ".."):
                text = (
                    f"Invalid value: {refusals.quoted(key)}: a valid config key must consist of "
                    "alphanumeric characters, '-', '_' or '.'"
                )
                problems.append(Problem(f"{field}[{key}]", text))
            size += len(_decoded(value) if field == "binaryData" else str(value).encode())
    if size > CONFIG_LIMIT:
        text = f"Too long: may not be more than {CONFIG_LIMIT} bytes"
        problems.append(Problem("[]", text, "FieldValueTooLong"))
    return problems


def _decoded(value: Any) -> bytes:
    try:
        return base64.b64decode(str(value), validate=True)
    except binascii.Error:
        text = "illegal base64 data at input byte 0"
        raise refusals.bad_request(f'ConfigMap in version "v1" cannot be handled: {text}') from None


VALUES: dict[str, Callable[[Object], list[Problem]]] = {"configmaps": _config_problems}


def _fixed(kind: Kind, before: Object, obj: Object) -> list[Problem]:
    """Return what was changed and cannot be."""
    was, now = before.get("spec") or {}, obj.get("spec") or {}
    if before.get("immutable"):
        text = "Forbidden: field is immutable when `immutable` is set"
        fields = ("data", "binaryData", "immutable")
        return [
            Problem(key, text, "FieldValueForbidden")
            for key in fields
            if before.get(key) != obj.get(key)
        ]
    if kind.resource == "pods" and _without_changeable(was) != _without_changeable(now):
        text = (
            "Forbidden: pod updates may not change fields other than "
            "`spec.containers[*].image`,`spec.initContainers[*].image`,"
            "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing "
            "tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was "
            "previously negative)"
        )
        return [Problem("spec", text, "FieldValueForbidden")]
    return [
        Problem(f"spec.{key}", "Invalid value: field is immutable")
        for key in FIXED.get(kind.resource, ())
        if was.get(key) != now.get(key)
    ]


def _without_changeable(spec: Object) -> Object:
    rest = {
        key: value
        for key, value in spec.items()
        if key not in ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")
    }
    for field in ("containers", "initContainers"):
        rest[field] = [{**one, "image": ""} for one in spec.get(field) or ()]
    return rest
