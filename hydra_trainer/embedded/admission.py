"""What the API server and the operators' webhooks refuse, and what they only take away.

The order is that of a real server: unknown fields (400), the namespace (404), types and values
(422), webhooks (403). https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

from hydra_trainer.eks.rules import webhook_problems
from hydra_trainer.eks.schema import schema_problems
from hydra_trainer.trees import dig

from . import refusals, trainer_webhook
from .kinds import Kind
from .refusals import ApiError
from .store import Store
from .values import Problem, fixed_problems, metadata_problems, value_problems

Object = dict[str, Any]

OBJECT_LIMIT = 3 << 19
"""Bytes of an object in etcd: 1.5 MiB."""

WEBHOOKS = {
    "pytorchjobs.kubeflow.org": "validator.pytorchjob.training-operator.kubeflow.org",
    "experiments.kubeflow.org": "validator.experiment.katib.kubeflow.org",
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
        """Look at a new object; take unknown fields away, and return what to warn of.

        Raises ApiError; for unknown fields too if the validation is Strict.
        """
        found, warnings = _schema(kind, obj, validation)
        if kind.namespaced:
            self._check_namespace(kind, namespace, obj)
        rules, denied = _rules(kind, obj)
        problems = [*metadata_problems(kind, obj), *value_problems(kind, obj), *found, *rules]
        _refuse(kind, obj, problems)
        self._webhooks(kind, namespace, denied, obj)
        return [*warnings, *_deprecated(kind, obj)]

    def update(self, kind: Kind, before: Object, obj: Object, validation: str) -> list[str]:
        """Look at the new version of an object, in the same way."""
        found, warnings = _schema(kind, obj, validation)
        rules, denied = _rules(kind, obj)
        problems = [
            *metadata_problems(kind, obj),
            *value_problems(kind, obj),
            *found,
            *rules,
            *fixed_problems(kind, before, obj),
        ]
        _refuse(kind, obj, problems)
        self._webhooks(kind, before["metadata"].get("namespace", ""), denied, obj, before)
        return [*warnings, *_deprecated(kind, obj)]

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

    def _webhooks(
        self,
        kind: Kind,
        namespace: str,
        denied: list[str],
        obj: Object,
        before: Object | None = None,
    ) -> None:
        """Refuse what a webhook denies: for what is in the object, or for what is around it."""
        if kind.kind == "TrainJob" and not denied:
            denied = trainer_webhook.problems(self._store, namespace, obj, before)
        if denied:
            text = denied[0] if len(denied) == 1 else f"[{', '.join(denied)}]"
            name = WEBHOOKS[kind.resource]
            message = f'admission webhook "{name}" denied the request: {text}'
            raise ApiError(403, "Forbidden", message)


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


def check_metadata(kind: Kind, obj: Object) -> None:
    """Raise ApiError 422 for a name, label or annotation that no object can have."""
    _refuse(kind, obj, metadata_problems(kind, obj))


def check_size(text: bytes) -> None:
    """Raise ApiError 500 for an object that etcd would not take."""
    if len(text) > OBJECT_LIMIT:
        raise ApiError(500, "", "etcdserver: request is too large")


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

CRD_RULES = ("metadata.name", "spec.managedBy", "spec.initializer.")
"""What of a TrainJob its CustomResourceDefinition has rules for: the webhook is not asked."""


def _rules(kind: Kind, obj: Object) -> tuple[list[Problem], list[str]]:
    """Return what the rules of a CustomResourceDefinition refuse, and what a webhook does."""
    rules, denied = [], []
    for path, message, _ in webhook_problems(obj) if kind.resource in WEBHOOKS else ():
        if kind.kind != "TrainJob" or not path.startswith(CRD_RULES):
            denied.append(f"{path}: {message}")
        elif path == "metadata.name":  # a rule of the whole object has no path, and no value
            rules.append(Problem("<nil>", f"Invalid value: {message.rpartition(': ')[2]}"))
        else:
            rules.append(Problem(path, message))
    return rules, denied


def _deprecated(kind: Kind, obj: Object) -> list[str]:
    """Return what the operator's webhook warns of."""
    if kind.kind == "PyTorchJob" and "nProcPerNode" in dig(obj, "spec", "elasticPolicy"):
        return ["spec.elasticPolicy.nProcPerNode is deprecated, use spec.nprocPerNode instead"]
    return []


def _schema(kind: Kind, obj: Object, validation: str) -> tuple[list[Problem], list[str]]:
    """Return what has a wrong type, and a warning for each unknown field, which is taken away.

    What a built-in kind cannot hold fails when it is decoded (400), with custom ones later (422).
    """
    # The status is written elsewhere: by controllers, and through its subresource.
    body = {key: value for key, value in obj.items() if not (kind.status and key == "status")}
    found = [problem for problem in schema_problems(body) if problem.severity == "error"]
    unknown = [one.path for one in found if one.message.startswith("unknown field")]
    warnings = [f'unknown field "{path}"' for path in unknown]
    if unknown and validation == "Strict":
        raise _undecodable(kind, f"strict decoding error: {', '.join(warnings)}")
    wrong = [one for one in found if one.path not in unknown]
    if not kind.custom:
        for path, message, _ in wrong:
            if message.startswith("Invalid value"):
                raise _undecodable(kind, f"json: {path}: {message}")
    for path in unknown:
        _take_away(obj, path)
    mistyped = [Problem(one.path, one.message, "FieldValueTypeInvalid") for one in wrong]
    return mistyped, [] if validation == "Ignore" else warnings


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
