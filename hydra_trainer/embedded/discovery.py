"""What the server says of itself: its version, its APIs and their resources, and their schemas.

kubectl asks for these before anything else, and once in six hours.
https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api
"""

import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from .kinds import KINDS, Kind, group_versions, of_group_version
from .wire import Request, Response

Object = dict[str, Any]

VERSION = {"major": "1", "minor": "36", "gitVersion": "v1.36.0+hydra-trainer"}
"""The version of Kubernetes whose behaviour is shown."""

PARTS = {
    "pods": (("log", "Pod", ("get",)), ("eviction", "Eviction", ("create",))),
    "serviceaccounts": (("token", "TokenRequest", ("create",)),),
}
"""Subresources beside status: name, kind, verbs."""

HEALTH = ("/healthz", "/livez", "/readyz")


OPENAPI_V2 = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"


class Discovery:
    """Answers for the kinds of all groups but those that are absent."""

    def __init__(self, absent: frozenset[str]) -> None:
        self._kinds = [kind for kind in KINDS if kind.group not in absent]

    def answer(self, request: Request) -> Response | None:
        """Return the answer, None for a path that is none of discovery."""
        path = request.path.rstrip("/")
        if path in HEALTH:
            return Response(b"ok", type="text/plain")
        if path == "/openapi/v2":
            # kubectl checks a List by itself, against this. An empty document knows no kind, and
            # leaves each item to the server.
            return Response(type=OPENAPI_V2)
        if path in ("/api", "/apis") and "as=APIGroupDiscoveryList" in _accepted(request):
            return _aggregated(self._groups(core=path == "/api"), request)
        body = self._documents.get(path)
        return None if body is None else Response(json.dumps(body).encode())

    @cached_property
    def _documents(self) -> dict[str, Object]:
        documents: dict[str, Object] = {
            "": {"paths": ["/api", "/api/v1", "/apis", *HEALTH, "/openapi/v3", "/version"]},
            "/version": {**VERSION, "platform": "embedded"},
            "/api": {"kind": "APIVersions", "versions": ["v1"]},
            "/apis": {
                "kind": "APIGroupList",
                "apiVersion": "v1",
                "groups": [_group(name, versions) for name, versions in self._versions().items()],
            },
            "/openapi/v3": {"paths": {}},
        }
        for name, versions in self._versions().items():
            documents[f"/apis/{name}"] = {
                "kind": "APIGroup",
                "apiVersion": "v1",
                **_group(name, versions),
            }
        for api_version in group_versions():
            if kinds := of_group_version(api_version, self._kinds):
                self._describe(kinds, documents)
        return documents

    def _describe(self, kinds: list[Kind], documents: dict[str, Object]) -> None:
        """Add the documents for one group and version."""
        path = kinds[0].path
        documents[path] = {
            "kind": "APIResourceList",
            "apiVersion": "v1",
            "groupVersion": kinds[0].api_version,
            "resources": [entry for kind in kinds for entry in _resources(kind)],
        }
        schema = _schema(kinds)
        digest = hashlib.sha256(json.dumps(schema).encode()).hexdigest()
        documents[f"/openapi/v3{path}"] = schema
        where = f"/openapi/v3{path}?hash={digest}"
        documents["/openapi/v3"]["paths"][path[1:]] = {"serverRelativeURL": where}

    def _versions(self) -> dict[str, list[str]]:
        """Return the versions of each named group."""
        found: dict[str, list[str]] = {}
        for kind in self._kinds:
            if kind.group and kind.version not in found.setdefault(kind.group, []):
                found[kind.group].append(kind.version)
        return found

    def _groups(self, *, core: bool) -> list[Object]:
        """Return the groups of the aggregated form."""
        groups = {"": ["v1"]} if core else self._versions()
        return [
            {
                "metadata": {"name": name, "creationTimestamp": None},
                "versions": [
                    {"version": version, "freshness": "Current", "resources": self._found(api)}
                    for version in versions
                    for api in [f"{name}/{version}" if name else version]
                ],
            }
            for name, versions in groups.items()
        ]

    def _found(self, api_version: str) -> list[Object]:
        return [_discovered(kind) for kind in of_group_version(api_version, self._kinds)]


def _accepted(request: Request) -> str:
    return request.headers.get("accept", "")


def _aggregated(groups: list[Object], request: Request) -> Response:
    """Return the form that saves a client a request for each group: v2, or v2beta1 if wanted."""
    version = "v2" if "v=v2;" in _accepted(request) else "v2beta1"
    body = {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": groups,
    }
    kind = f"application/json;g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
    return Response(json.dumps(body).encode(), type=kind)


def _group(name: str, versions: list[str]) -> Object:
    listed = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def _parts(kind: Kind) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    if kind.status:
        yield "status", kind.kind, ("get", "patch", "update")
    yield from PARTS.get(kind.resource, ())


def _resources(kind: Kind) -> Iterator[Object]:
    """Yield the entries of an APIResourceList: the resource, and its subresources."""
    entry: Object = {
        "name": kind.plural,
        "singularName": kind.kind.lower(),
        "namespaced": kind.namespaced,
        "kind": kind.kind,
        "verbs": list(kind.verbs),
    }
    if kind.short:
        entry["shortNames"] = list(kind.short)
    if kind.categories:
        entry["categories"] = list(kind.categories)
    yield entry
    for name, part, verbs in _parts(kind):
        yield {
            "name": f"{kind.plural}/{name}",
            "singularName": "",
            "namespaced": kind.namespaced,
            "kind": part,
            "verbs": list(verbs),
        }


def _discovered(kind: Kind) -> Object:
    """Return a resource in the aggregated form."""
    response = {"group": kind.group, "version": kind.version, "kind": kind.kind}
    return {
        "resource": kind.plural,
        "responseKind": response,
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "singularResource": kind.kind.lower(),
        "verbs": list(kind.verbs),
        "shortNames": list(kind.short),
        "categories": list(kind.categories),
        "subresources": [
            {
                "subresource": name,
                "responseKind": {**response, "kind": part},
                "verbs": list(verbs),
            }
            for name, part, verbs in _parts(kind)
        ],
    }


def _schema(kinds: list[Kind]) -> Object:
    """Return an OpenAPI v3 document: which kinds can be patched, and that the server validates.

    The schemas themselves are left out: kubectl leaves the validation to a server that takes
    `fieldValidation`, and knows the built-in kinds.
    """
    query = [
        {"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": True}}
        for name in ("dryRun", "fieldManager", "fieldValidation")
    ]
    paths, schemas = {}, {}
    for kind in kinds:
        gvk = {"group": kind.group, "version": kind.version, "kind": kind.kind}
        place = "/namespaces/{namespace}" if kind.namespaced else ""
        paths[f"{kind.path}{place}/{kind.plural}/{{name}}"] = {
            "patch": {
                "parameters": query,
                "responses": {"200": {"description": "OK"}},
                "x-kubernetes-action": "patch",
                "x-kubernetes-group-version-kind": gvk,
            }
        }
        name = ".".join([*reversed((kind.group or "core").split(".")), kind.version, kind.kind])
        schemas[name] = {
            "type": "object",
            "x-kubernetes-group-version-kind": [gvk],
            "x-kubernetes-preserve-unknown-fields": True,
        }
    info = {"title": "Kubernetes", "version": VERSION["gitVersion"]}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": schemas}}
