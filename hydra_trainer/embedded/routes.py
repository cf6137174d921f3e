"""Which resource a URL is of, and which verb a request is.

https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-uris
"""

from typing import NamedTuple

from .access import Ask
from .kinds import BY_PATH, Kind
from .refusals import ApiError
from .wire import Request

VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch"}


class Target(NamedTuple):
    """What a request is for. `name` is empty for a collection, `namespace` for all of them."""

    kind: Kind
    namespace: str
    name: str
    subresource: str

    @property
    def resource(self) -> str:
        return self.kind.resource

    def asked(self, verb: str) -> Ask:
        return Ask(
            verb, self.kind.group, self.kind.plural, self.subresource, self.namespace, self.name
        )


def target(path: str, absent: frozenset[str]) -> Target | None:
    """Return what a path names, None when it is none of a resource.

    Args:
        absent: groups that the cluster does not have.
    """
    first, _, rest = path.strip("/").partition("/")
    parts = rest.split("/")
    depth = {"api": 1, "apis": 2}.get(first, 0)
    if not depth or len(parts) <= depth or parts[0] in absent:
        return None
    base, parts = "/".join([f"/{first}", *parts[:depth]]), parts[depth:]
    namespace = ""
    if parts[0] == "namespaces" and len(parts) > 2 and parts[2] not in ("status", "finalize"):
        namespace, parts = parts[1], parts[2:]
    kind = BY_PATH.get((base, parts[0]))
    if kind is None or len(parts) > 3 or "" in parts[1:] or (namespace and not kind.namespaced):
        return None
    name, subresource = [*parts[1:], "", ""][:2]
    return Target(kind, namespace, name, subresource)


def verb(request: Request, wanted: Target) -> str:
    """Return the verb, as Roles name it. Raises ApiError 405."""
    if request.method == "GET":
        if wanted.name:
            return "get"
        return "watch" if is_watch(request) else "list"
    if request.method == "DELETE":
        return "delete" if wanted.name else "deletecollection"
    if request.method in VERBS and bool(wanted.name) is (request.method != "POST"):
        return VERBS[request.method]
    if request.method == "POST" and wanted.subresource:
        return "create"
    text = "the server does not allow this method on the requested resource"
    raise ApiError(405, "MethodNotAllowed", text)


def is_watch(request: Request) -> bool:
    return request.query.get("watch") in ("true", "1")
