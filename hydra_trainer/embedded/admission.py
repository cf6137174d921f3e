"""What the API server and the operators' webhooks refuse, and what they only take away.

The order is that of a real server: unknown fields (400), the namespace (404), types and values
(422), webhooks (403). https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from hydra_trainer.eks.rules import webhook_problems
from hydra_trainer.eks.schema import schema_problems

from . import refusals
from .kinds import Kind
from .refusals import ApiError
from .store import Store
from .values import Problem, fixed_problems, metadata_problems, value_problems

Object = dict[str, Any]

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


class Admission:
    """Judges what is written, by what is in a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def create(self, kind: Kind, namespace: str, obj: Object, validation: str) -> list[str]:
        """Look at a new object; return the unknown fields, which are taken away.

        Raises ApiError; for unknown fields too if the validation is Strict.
        """
        found, unknown = _schema(kind, obj, validation)
        if kind.namespaced:
            self._check_namespace(kind, namespace, obj)
        _refuse(kind, obj, [*metadata_problems(kind, obj), *value_problems(kind, obj), *found])
        self._webhooks(kind, namespace, obj)
        return unknown

    def update(self, kind: Kind, before: Object, obj: Object, validation: str) -> list[str]:
        """Look at the new version of an object, in the same way."""
        found, unknown = _schema(kind, obj, validation)
        problems = [
            *metadata_problems(kind, obj),
            *value_problems(kind, obj),
            *found,
            *fixed_problems(kind, before, obj),
        ]
        _refuse(kind, obj, problems)
        self._webhooks(kind, before["metadata"].get("namespace", ""), obj)
        return unknown

    def conditional(self, kind: Kind, obj: Object) -> None:
        """Refuse to replace a custom object, whatever it is by now. Raises ApiError 422."""
        if not obj["metadata"].get("resourceVersion"):
            text = "Invalid value: 0: must be specified for an update"
            _refuse(kind, obj, [Problem("metadata.resourceVersion", text)])

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
        problems = [f"{path}: {message}" for path, message, _ in webhook_problems(obj)]
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
    obj["metadata"] = {key: value for key, value in meta.items() if value is not None}
    _check_types(kind, obj)
    return obj


def _check_types(kind: Kind, obj: Object) -> None:
    """Raise ApiError 400 where what every kind has is of another type."""
    meta = obj["metadata"]
    wrong = [f"metadata.{key}" for key, is_good in METADATA.items() if not is_good(meta.get(key))]
    wrong += [key for key in ("spec", "status") if not isinstance(obj.get(key) or {}, dict)]
    if wrong:
        raise _undecodable(kind, f"json: cannot unmarshal Go struct field {kind.kind}.{wrong[0]}")


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_map(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_text, value.values())))


def _is_owners(value: Any) -> bool:
    """Whether all owners have what every one has."""
    if not isinstance(value or [], list):
        return False
    needed = {"apiVersion", "kind", "name", "uid"}
    return all(isinstance(one, dict) and needed <= one.keys() for one in value or ())


METADATA: dict[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "generateName": _is_text,
    "namespace": _is_text,
    "uid": _is_text,
    "resourceVersion": _is_text,
    "labels": _is_map,
    "annotations": _is_map,
    "ownerReferences": _is_owners,
    "finalizers": lambda value: isinstance(value or [], list) and all(map(_is_text, value or ())),
}


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


def _schema(kind: Kind, obj: Object, validation: str) -> tuple[list[Problem], list[str]]:
    """Return what has a wrong type, and the unknown fields: refused (400), or taken away.

    What a built-in kind cannot hold fails when it is decoded (400), with custom ones later (422).
    """
    found = [problem for problem in schema_problems(obj) if problem.severity == "error"]
    unknown = [one.path for one in found if one.message.startswith("unknown field")]
    if unknown and validation == "Strict":
        words = ", ".join(f'unknown field "{path}"' for path in unknown)
        raise _undecodable(kind, f"strict decoding error: {words}")
    wrong = [one for one in found if one.path not in unknown]
    if not kind.custom:
        for path, message, _ in wrong:
            if message.startswith("Invalid value"):
                raise _undecodable(kind, f"json: {path}: {message}")
    for path in unknown:
        _take_away(obj, path)
    return [Problem(one.path, one.message, "FieldValueTypeInvalid") for one in wrong], unknown


def _undecodable(kind: Kind, why: str) -> ApiError:
    return refusals.bad_request(
        f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}: {why}'
    )


def _take_away(obj: Any, path: str) -> None:
    """Delete what `spec.containers[0].x` or `spec.limits[a.b/c]` leads to."""
    steps = [word or key for key, word in re.findall(r"\[([^\]]*)\]|([^.\[\]]+)", path)]
    try:
        for step in steps[:-1]:
            obj = obj[int(step)] if isinstance(obj, list) else obj[step]
        del obj[steps[-1]]
    except (KeyError, IndexError, ValueError, TypeError):
        return  # it was below another unknown field
