"""Who asks, and what they may do: bearer tokens, and Roles as `kubectl apply -f rbac.yaml` leaves.

The owner of the cluster may do everything. Others are known by tokens that the cluster gave out for
a user or a service account, and may do what Roles and ClusterRoles that are bound to them say:
https://kubernetes.io/docs/reference/access-authn-authz/rbac/
"""

import json
import os
import secrets
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .history import Object
from .refusals import ApiError, details
from .store import Store

MASTERS = "system:masters"
BINDINGS = "rolebindings.rbac.authorization.k8s.io"
CLUSTER_BINDINGS = "clusterrolebindings.rbac.authorization.k8s.io"
ROLES = {
    "Role": "roles.rbac.authorization.k8s.io",
    "ClusterRole": "clusterroles.rbac.authorization.k8s.io",
}
OPEN = ("/version", "/livez", "/readyz", "/healthz")
"""What who gives no token may ask for, as on EKS."""

NEVER = {("secrets", "list"), ("secrets", "watch"), ("secrets", "deletecollection")}
"""No one may look through the secrets here: a launcher that needs to is wrong."""


class User(NamedTuple):
    name: str
    groups: tuple[str, ...] = ()

    @property
    def account(self) -> tuple[str, str] | None:
        """The (namespace, name) of a service account."""
        kind, _, rest = self.name.partition(":serviceaccount:")
        namespace, _, name = rest.partition(":")
        return (namespace, name) if kind == "system" and name else None


OWNER = User("embedded", (MASTERS, "system:authenticated"))
ANONYMOUS = User("system:anonymous", ("system:unauthenticated",))


class Ask(NamedTuple):
    """What somebody wants to do. `name` and `namespace` may be empty."""

    verb: str
    group: str
    plural: str
    subresource: str = ""
    namespace: str = ""
    name: str = ""

    @property
    def part(self) -> str:
        return f"{self.plural}/{self.subresource}" if self.subresource else self.plural


class Access:
    """The tokens, in a file of the home that only its owner can read, and the rules in a store."""

    def __init__(self, store: Store, file: Path) -> None:
        self._store = store
        self._file = file
        self._lock = threading.Lock()
        self._users: dict[str, User] = {}
        if file.exists():
            for token, (name, groups) in json.loads(file.read_text()).items():
                self._users[token] = User(name, tuple(groups))

    def owner(self) -> str:
        """Return the token of the owner."""
        known = [token for token, user in self._users.items() if user == OWNER]
        return known[0] if known else self.token(OWNER)

    def token(self, user: User) -> str:
        """Return a new token, by which a user is known from now on."""
        token = secrets.token_hex(16)
        with self._lock:
            self._users[token] = user
            new = self._file.with_suffix(".new")
            file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(file, "w") as stream:
                json.dump(self._users, stream)
            new.rename(self._file)
        return token

    def user(self, token: str | None) -> User:
        """Return whose token it is. Raises ApiError 401 when it is nobody's."""
        if token is None:
            return ANONYMOUS
        if user := self._users.get(token):
            return user
        raise ApiError(401, "Unauthorized", "Unauthorized")

    def check_path(self, user: User, method: str, path: str) -> None:
        """Raise ApiError 403 for a path that is of no resource, and not open to a user."""
        if user == ANONYMOUS and path not in OPEN:
            raise _forbidden_path(user, method, path)
        if path.startswith("/embedded/") and MASTERS not in user.groups:
            raise _forbidden_path(user, method, path)

    def check(self, user: User, ask: Ask) -> None:
        """Raise ApiError 403 when a user may not do something.

        A request for a namespace is one in that namespace, so a Role there can give it; a review
        of the same right takes the namespace that it names. As in a real server.
        """
        if ask.plural == "namespaces" and not ask.group:
            ask = ask._replace(namespace=ask.name)
        if not self.allows(user, ask):
            raise _forbidden(user, ask)

    def allows(self, user: User, ask: Ask) -> bool:
        if (ask.plural, ask.verb) in NEVER and not ask.group:
            return False
        if MASTERS in user.groups:
            return True
        if ask.plural == "selfsubjectaccessreviews" and user != ANONYMOUS:
            return True
        return any(_covers(rule, ask) for rule in self._rules(user, ask.namespace))

    def review(self, user: User, review: Object) -> Object:
        """Answer a SelfSubjectAccessReview."""
        spec = review.get("spec") or {}
        wanted = spec.get("resourceAttributes") or {}
        keys = {"verb": "verb", "group": "group", "plural": "resource", "name": "name"}
        keys |= {"subresource": "subresource", "namespace": "namespace"}
        ask = Ask(**{key: str(wanted.get(name, "")) for key, name in keys.items()})
        is_path = "nonResourceAttributes" in spec
        allowed = user != ANONYMOUS if is_path else self.allows(user, ask)
        return {**review, "status": {"allowed": allowed}}

    def _rules(self, user: User, namespace: str) -> Iterator[Object]:
        """Yield the rules that are bound to a user, in a namespace and everywhere."""
        bindings = self._store.list(CLUSTER_BINDINGS)[0]
        if namespace:
            bindings += self._store.list(BINDINGS, namespace)[0]
        for binding in bindings:
            if any(_is_for(subject, user, binding) for subject in binding.get("subjects") or ()):
                yield from self._role(binding["roleRef"], namespace)

    def _role(self, reference: Object, namespace: str) -> list[Object]:
        place = namespace if reference["kind"] == "Role" else ""
        try:
            role = self._store.get(ROLES[reference["kind"]], place, reference["name"])
        except (ApiError, KeyError):
            return []
        return role.get("rules") or []


def _is_for(subject: Object, user: User, binding: Object) -> bool:
    kind, name = subject.get("kind"), subject.get("name")
    if kind == "ServiceAccount":
        namespace = subject.get("namespace") or binding["metadata"].get("namespace")
        return user.account == (namespace, name)
    return name in user.groups if kind == "Group" else kind == "User" and name == user.name


def _covers(rule: Object, ask: Ask) -> bool:
    def has(key: str, *values: str) -> bool:
        return any(value in (rule.get(key) or ()) for value in ("*", *values))

    resources = (ask.part, f"*/{ask.subresource}") if ask.subresource else (ask.part,)
    names: list[Any] = rule.get("resourceNames") or []
    if not (
        has("verbs", ask.verb) and has("apiGroups", ask.group) and has("resources", *resources)
    ):
        return False
    return not names or ask.name in names


def _forbidden(user: User, ask: Ask) -> ApiError:
    resource = f"{ask.plural}.{ask.group}" if ask.group else ask.plural
    name = f' "{ask.name}"' if ask.name else ""
    where = f'in the namespace "{ask.namespace}"' if ask.namespace else "at the cluster scope"
    text = (
        f'{resource}{name} is forbidden: User "{user.name}" cannot {ask.verb} resource '
        f'"{ask.part}" in API group "{ask.group}" {where}'
    )
    return ApiError(403, "Forbidden", text, details(resource, ask.name))


def _forbidden_path(user: User, method: str, path: str) -> ApiError:
    verb = {"GET": "get", "HEAD": "get", "PUT": "update"}.get(method, method.lower())
    text = f'forbidden: User "{user.name}" cannot {verb} path "{path}"'
    return ApiError(403, "Forbidden", text, {})
