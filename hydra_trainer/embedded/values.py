"""What values the fields of an object may have, where a schema does not say: names, labels, sizes.

https://kubernetes.io/docs/concepts/overview/working-with-objects/names/
"""

import base64
import binascii
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from hydra_trainer.trees import dig

from . import refusals
from .kinds import Kind

Object = dict[str, Any]

LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
SUBDOMAIN = rf"{LABEL}(\.{LABEL})*"
QUALIFIED = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
DATA_KEY = re.compile(r"[-._a-zA-Z0-9]+")


class Rule(NamedTuple):
    """How a name has to look."""

    pattern: re.Pattern[str]
    limit: int  # characters
    words: str


AS_LABEL = Rule(
    re.compile(LABEL),
    63,
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and "
    "must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used "
    f"for validation is '{LABEL}')",
)
AS_SUBDOMAIN = Rule(
    re.compile(SUBDOMAIN),
    253,
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or "
    "'.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used "
    f"for validation is '{SUBDOMAIN}')",
)

CONFIG_LIMIT = 1 << 20
ANNOTATIONS_LIMIT = 256 << 10
"""Bytes of the data of a ConfigMap or Secret, and of the annotations of any object."""

FIXED = {
    "pytorchjobs.kubeflow.org": ("runPolicy.schedulingPolicy.queue",),
    "trainjobs.trainer.kubeflow.org": (
        "runtimeRef",
        "initializer",
        "trainer",
        "managedBy",
        "activeDeadlineSeconds",
    ),
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


def metadata_problems(kind: Kind, obj: Object) -> list[Problem]:
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
        *(
            problem
            for key, value in (meta.get("labels") or {}).items()
            for problem in _label_problems(key, value or "")
        ),
        *_annotation_problems(meta.get("annotations") or {}),
    ]


def _name_problems(kind: Kind, name: str, path: str) -> list[Problem]:
    if kind.group == "rbac.authorization.k8s.io":
        return []
    rule = AS_LABEL if kind.resource in ("namespaces", "services") else AS_SUBDOMAIN
    problems = []
    if not rule.pattern.fullmatch(name):
        problems.append(rule.words)
    if len(name) > rule.limit:
        problems.append(f"must be no more than {rule.limit} characters")
    value = refusals.quoted(name)
    return [Problem(path, f"Invalid value: {value}: {words}") for words in problems]


@lru_cache(maxsize=4096)
def _label_problems(key: str, value: str) -> tuple[Problem, ...]:
    """https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set"""
    problems = []
    prefix, _, name = key.rpartition("/")
    if not QUALIFIED.fullmatch(name) or len(name) > 63 or len(prefix) > 253:
        words = "name part must consist of alphanumeric characters, '-', '_' or '.'"
        problems.append(f"Invalid value: {refusals.quoted(key)}: {words}")
    if value and (not QUALIFIED.fullmatch(value) or len(value) > 63):
        words = (
            "a valid label must be an empty string or consist of alphanumeric characters, '-', "
            "'_' or '.', and must start and end with an alphanumeric character, and must be no "
            "more than 63 bytes"
        )
        problems.append(f"Invalid value: {refusals.quoted(value)}: {words}")
    return tuple(Problem("metadata.labels", text) for text in problems)


def _annotation_problems(annotations: Object) -> list[Problem]:
    size = sum(len(str(key).encode()) + len(str(val).encode()) for key, val in annotations.items())
    if size <= ANNOTATIONS_LIMIT:
        return []
    text = f"Too long: may not be more than {ANNOTATIONS_LIMIT} bytes"
    return [Problem("metadata.annotations", text, "FieldValueTooLong")]


def value_problems(kind: Kind, obj: Object) -> list[Problem]:
    check = VALUES.get(kind.resource)
    return check(obj) if check else []


def _config_problems(config: Object) -> list[Problem]:
    """https://kubernetes.io/docs/concepts/configuration/configmap/"""
    problems, size = [], 0
    for field in ("data", "binaryData"):
        for key, value in (config.get(field) or {}).items():
            if not DATA_KEY.fullmatch(key) or len(key) > 253 or key in (".", ".."):
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


def _scale_problems(job: Object) -> list[Problem]:
    """The number that the subresource `scale` of the CustomResourceDefinition is about."""
    count = dig(job, "spec", "pytorchReplicaSpecs", "Worker").get("replicas")
    if not isinstance(count, int) or count >= 0:
        return []
    text = f"Invalid value: {count}: should be a non-negative integer"
    return [Problem(".spec.pytorchReplicaSpecs.Worker.replicas", text)]


VALUES: dict[str, Callable[[Object], list[Problem]]] = {
    "configmaps": _config_problems,
    "pytorchjobs.kubeflow.org": _scale_problems,
}


def fixed_problems(kind: Kind, before: Object, obj: Object) -> list[Problem]:
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
    problems = []
    for path in FIXED.get(kind.resource, ()):
        *parents, key = path.split(".")
        old, new = dig(was, *parents).get(key), dig(now, *parents).get(key)
        # A rule of a CustomResourceDefinition, `self == oldSelf`, is only asked where both are.
        if old != new and not (kind.custom and None in (old, new)):
            shown = "" if isinstance(new, dict | list) else f"{refusals.quoted(new)}: "
            what = f"spec.{path}" if parents else "field"
            problems.append(Problem(f"spec.{path}", f"Invalid value: {shown}{what} is immutable"))
    return problems


def _without_changeable(spec: Object) -> Object:
    rest = {
        key: value
        for key, value in spec.items()
        if key not in ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds")
    }
    for field in ("containers", "initContainers"):
        rest[field] = [{**one, "image": ""} for one in spec.get(field) or ()]
    return rest
