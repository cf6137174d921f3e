"""POST, PUT, PATCH and DELETE: what a client may write, checked as a real server checks it."""

import json
from collections.abc import Callable
from typing import Any

import yaml

from . import defaults, metadata, patches, protobuf, reading, refusals
from .access import Access, User
from .admission import Admission, check_body, check_size
from .history import Object
from .refusals import ApiError, bad_request
from .routes import Target
from .store import Record, Store
from .wire import Request, Response

ACCOUNTS = "serviceaccounts"

WARNINGS = 20  # in one answer: clients take headers of some KiB only


class Writing:
    """Changes a store as clients ask for it."""

    def __init__(self, store: Store, access: Access) -> None:
        self._store = store
        self._access = access
        self._admission = Admission(store)

    def create(self, target: Target, request: Request, user: User) -> Response:
        """Raises ApiError 400, 403, 404, 409 or 422."""
        body = check_body(target.kind, target.namespace, "", _decoded(request))
        if target.kind.kind == "SelfSubjectAccessReview":
            return Response(json.dumps(self._access.review(user, body)).encode(), 201)
        return self._create(target, request, body)

    def create_part(self, target: Target, request: Request) -> Response:
        """POST to a subresource: the eviction of a pod, a token of a service account."""
        if (target.resource, target.subresource) == ("pods", "eviction"):
            options = (_decoded(request) or {}).get("deleteOptions") or {}
            grace = options.get("gracePeriodSeconds")
            self._store.delete("pods", target.namespace, target.name, grace=grace)
            return Response(json.dumps(_success(target, None)).encode(), 201)
        if (target.resource, target.subresource) == (ACCOUNTS, "token"):
            self._store.record(ACCOUNTS, target.namespace, target.name)
            return Response(json.dumps(self._token(target, _decoded(request))).encode(), 201)
        raise no_part(target)

    def replace(self, target: Target, request: Request) -> Response:
        """Raises ApiError 400, 404, 409 or 422."""
        body = check_body(target.kind, target.namespace, target.name, _decoded(request))
        if target.kind.custom:
            self._admission.conditional(target.kind, body)

        def write(found: Object) -> list[str]:
            metadata.check_unchanged(target.resource, found["metadata"], body["metadata"])
            return self._take_over(target, request, found, body)

        return self._update(target, request, write)

    def patch(self, target: Target, request: Request) -> Response:
        """Raises ApiError 400, 404, 409, 415 or 422. A server-side apply may create the object."""
        media_type = request.headers.get("content-type", "").partition(";")[0]
        patch = _decoded(request)
        if media_type == patches.APPLY and self._find(target) is None:
            body = check_body(target.kind, target.namespace, target.name, patch)
            return self._create(target, request, body)

        def write(found: Object) -> list[str]:
            was = found["metadata"]
            body = patches.patched(found, patch, media_type, custom=target.kind.custom)
            if not isinstance(body, dict) or not isinstance(body.get("metadata"), dict):
                raise bad_request("the patch leaves no object")
            metadata.check_unchanged(target.resource, was, body["metadata"])
            return self._take_over(target, request, found, body)

        return self._update(target, request, write)

    def delete(self, target: Target, request: Request) -> Response:
        """Raises ApiError 404 or 409."""
        options = _options(request)
        record = self._store.record(target.resource, target.namespace, target.name)
        if not options.get("dryRun"):
            left = self._delete(record, options)
            if target.kind.kind in ("Pod", "Namespace") or self._find(target) is not None:
                return Response(json.dumps(left).encode())
        return Response(json.dumps(_success(target, record)).encode())

    def delete_all(self, target: Target, request: Request) -> Response:
        """Delete a collection, or what of it the selectors match."""
        options = _options(request)
        labels, fields = (request.query.get(f"{one}Selector", "") for one in ("label", "field"))
        records, version = self._store.records(
            target.resource, target.namespace or None, labels, fields
        )
        for record in records:
            if not options.get("dryRun"):
                self._delete(record, options)
        head = {"kind": f"{target.kind.kind}List", "apiVersion": target.kind.api_version}
        items = [record.load() for record in records]
        body = {**head, "metadata": {"resourceVersion": version}, "items": items}
        return Response(json.dumps(body).encode())

    def _create(self, target: Target, request: Request, body: Object) -> Response:
        kind = target.kind
        if kind.status and (kind.custom or kind.kind == "Pod"):
            body.pop("status", None)
        warnings = self._admission.create(kind, target.namespace, body, _validation(request))
        check_size(request.body)
        record = self._store.insert(
            target.resource, target.namespace, body, dry_run=_is_dry(request)
        )
        text = reading.as_accepted(kind, record.text, request)
        return Response(text, 201, headers=_warned(warnings))

    def _take_over(
        self, target: Target, request: Request, found: Object, body: Object
    ) -> list[str]:
        """Change an object to what a client wants it to be, if it may; return what to warn of."""
        before = metadata.copied(found)
        metadata.take_over(
            found, body, status=target.subresource == "status", split=target.kind.status
        )
        if target.subresource:
            return []
        if target.kind.custom:  # those of a CustomResourceDefinition are for old objects too
            defaults.apply(target.kind, found)
        return self._admission.update(target.kind, before, found, _validation(request))

    def _update(
        self, target: Target, request: Request, write: Callable[[Object], list[str]]
    ) -> Response:
        if target.subresource not in ("", "status") or (
            target.subresource and not target.kind.status
        ):
            raise no_part(target)
        warnings: list[str] = []
        record = self._store.update(
            target.resource,
            target.namespace,
            target.name,
            lambda found: warnings.extend(write(found)),
            dry_run=_is_dry(request),
        )
        text = reading.as_accepted(target.kind, record.text, request)
        return Response(text, headers=_warned(warnings))

    def _delete(self, record: Record, options: Object) -> Object:
        return self._store.delete(
            *record.key,
            grace=options.get("gracePeriodSeconds"),
            propagation=options.get("propagationPolicy") or "Background",
            uid=(options.get("preconditions") or {}).get("uid"),
        )

    def _find(self, target: Target) -> Record | None:
        try:
            return self._store.record(target.resource, target.namespace, target.name)
        except ApiError:
            return None

    def _token(self, target: Target, review: Any) -> Object:
        """Answer a TokenRequest (`kubectl create token`). The token does not expire here."""
        name = f"system:serviceaccount:{target.namespace}:{target.name}"
        everybody = "system:serviceaccounts"
        groups = (everybody, f"{everybody}:{target.namespace}", "system:authenticated")
        token = self._access.token(User(name, groups))
        status = {"token": token, "expirationTimestamp": metadata.now(3600)}
        head = {"kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1"}
        return {**head, "metadata": {}, "spec": (review or {}).get("spec") or {}, "status": status}


def no_part(target: Target) -> ApiError:
    """Return the error for a subresource that there is not."""
    if target.subresource in ("exec", "attach", "portforward", "ephemeralcontainers"):
        text = (
            f"the embedded cluster has no {target.subresource}: its pods are processes of this "
            "machine, which a debugger or a shell can reach directly"
        )
        return ApiError(501, "NotImplemented", text)
    return ApiError(404, "NotFound", "the server could not find the requested resource")


def _decoded(request: Request) -> Any:
    """Return the body. Raises ApiError 400 or 415."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0]
    try:
        if media_type == protobuf.MEDIA_TYPE:
            return _from_protobuf(request.body)
        if media_type.endswith("yaml"):
            return yaml.safe_load(request.body)
        if request.body and not media_type.endswith("json"):
            raise patches.unsupported("application/json, application/yaml")
        return request.json() if request.body else None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise bad_request(f"the body of the request cannot be decoded: {error}") from None


def _from_protobuf(body: bytes) -> Object:
    obj = protobuf.decoded(body)
    if obj is None:
        raise patches.unsupported("application/json, application/yaml")
    return obj


def _options(request: Request) -> Object:
    """Return the DeleteOptions, which may be in the query too."""
    body = _decoded(request)
    options: Object = dict(body) if isinstance(body, dict) else {}
    for key in ("propagationPolicy", "dryRun"):
        if key in request.query:
            options[key] = request.query[key]
    grace = request.query.get("gracePeriodSeconds", options.get("gracePeriodSeconds"))
    try:
        options["gracePeriodSeconds"] = None if grace is None else int(grace)
    except (TypeError, ValueError):
        raise bad_request("gracePeriodSeconds is no number") from None
    return options


def _is_dry(request: Request) -> bool:
    wanted = request.query.get("dryRun", "")
    if wanted not in ("", "All"):
        text = f'dryRun: Unsupported value: {refusals.quoted(wanted)}: supported values: "All"'
        raise ApiError(422, "Invalid", text)
    return bool(wanted)


def _validation(request: Request) -> str:
    return request.query.get("fieldValidation", "Warn")


def _warned(warnings: list[str]) -> dict[str, str]:
    """Return the header that warns a client; kubectl shows each warning on a line of its own."""
    if not warnings:
        return {}
    return {"Warning": ", ".join(f"299 - {json.dumps(text)}" for text in warnings[:WARNINGS])}


def _success(target: Target, record: Record | None) -> Object:
    status: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if record:
        details = refusals.details(target.resource, target.name, uid=record.uid)
        status["details"] = details
    return status
