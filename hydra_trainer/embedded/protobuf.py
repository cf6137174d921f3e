"""Bodies in Kubernetes' protobuf, which kubectl writes when it creates a built-in kind by flags.

`kubectl create namespace|configmap|secret|token|role ...`, `kubectl auth can-i` and `kubectl drain`
do; `kubectl apply` and `kubectl create -f` send JSON. Only these kinds are known, and no answer is
ever in protobuf. The numbers are those of the generated.proto files of k8s.io/api:
https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding
"""

import base64
from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
MAGIC = b"k8s\0"

STRING, NUMBER, TRUTH, BYTES = "string", "number", "truth", "bytes"

Field = tuple[str, Any]
"""Name in JSON; what it holds: one of the words above, another message, ("map", words), or a list
of one of these."""

Message = dict[int, Field]

OWNER: Message = {
    1: ("kind", STRING),
    3: ("name", STRING),
    4: ("uid", STRING),
    5: ("apiVersion", STRING),
    6: ("controller", TRUTH),
    7: ("blockOwnerDeletion", TRUTH),
}
META: Message = {
    1: ("name", STRING),
    2: ("generateName", STRING),
    3: ("namespace", STRING),
    5: ("uid", STRING),
    6: ("resourceVersion", STRING),
    11: ("labels", ("map", STRING)),
    12: ("annotations", ("map", STRING)),
    13: ("ownerReferences", [OWNER]),
    14: ("finalizers", [STRING]),
}
QUANTITY: Message = {1: ("", STRING)}
RULE: Message = {
    1: ("verbs", [STRING]),
    2: ("apiGroups", [STRING]),
    3: ("resources", [STRING]),
    4: ("resourceNames", [STRING]),
    5: ("nonResourceURLs", [STRING]),
}
SUBJECT: Message = {
    1: ("kind", STRING),
    2: ("apiGroup", STRING),
    3: ("name", STRING),
    4: ("namespace", STRING),
}
ROLE_REFERENCE: Message = {1: ("apiGroup", STRING), 2: ("kind", STRING), 3: ("name", STRING)}
ATTRIBUTES: Message = {
    1: ("namespace", STRING),
    2: ("verb", STRING),
    3: ("group", STRING),
    4: ("version", STRING),
    5: ("resource", STRING),
    6: ("subresource", STRING),
    7: ("name", STRING),
}
DELETE_OPTIONS: Message = {
    1: ("gracePeriodSeconds", NUMBER),
    2: ("preconditions", {1: ("uid", STRING)}),
    4: ("propagationPolicy", STRING),
    5: ("dryRun", [STRING]),
}

MESSAGES: dict[str, Message] = {
    "Namespace": {1: ("metadata", META)},
    "ConfigMap": {
        1: ("metadata", META),
        2: ("data", ("map", STRING)),
        3: ("binaryData", ("map", BYTES)),
        4: ("immutable", TRUTH),
    },
    "Secret": {
        1: ("metadata", META),
        2: ("data", ("map", BYTES)),
        3: ("type", STRING),
        4: ("stringData", ("map", STRING)),
        5: ("immutable", TRUTH),
    },
    "ServiceAccount": {1: ("metadata", META), 4: ("automountServiceAccountToken", TRUTH)},
    "ResourceQuota": {1: ("metadata", META), 2: ("spec", {1: ("hard", ("map", QUANTITY))})},
    "Role": {1: ("metadata", META), 2: ("rules", [RULE])},
    "ClusterRole": {1: ("metadata", META), 2: ("rules", [RULE])},
    "RoleBinding": {
        1: ("metadata", META),
        2: ("subjects", [SUBJECT]),
        3: ("roleRef", ROLE_REFERENCE),
    },
    "ClusterRoleBinding": {
        1: ("metadata", META),
        2: ("subjects", [SUBJECT]),
        3: ("roleRef", ROLE_REFERENCE),
    },
    "TokenRequest": {1: ("metadata", META), 2: ("spec", {4: ("expirationSeconds", NUMBER)})},
    "SelfSubjectAccessReview": {
        1: ("metadata", META),
        2: (
            "spec",
            {
                1: ("resourceAttributes", ATTRIBUTES),
                2: ("nonResourceAttributes", {1: ("path", STRING), 2: ("verb", STRING)}),
            },
        ),
    },
    "Eviction": {1: ("metadata", META), 2: ("deleteOptions", DELETE_OPTIONS)},
    "DeleteOptions": DELETE_OPTIONS,
}

ENVELOPE: Message = {
    1: ("type", {1: ("apiVersion", STRING), 2: ("kind", STRING)}),
    2: ("raw", None),
}


def decoded(body: bytes) -> Object | None:
    """Return the object as JSON would have it, None for a kind that is not known here.

    Raises ValueError for what is no protobuf of Kubernetes.
    """
    if not body.startswith(MAGIC):
        raise ValueError("it does not begin with k8s")
    envelope = _message(memoryview(body)[len(MAGIC) :], ENVELOPE)
    kind = envelope.get("type", {}).get("kind", "")
    if kind not in MESSAGES:
        return None
    return {**envelope["type"], **_message(envelope.get("raw", memoryview(b"")), MESSAGES[kind])}


def _message(data: memoryview, message: Message) -> Object:
    found: Object = {}
    for number, value in _fields(data):
        if number not in message:
            continue
        name, holds = message[number]
        if isinstance(holds, list):
            found.setdefault(name, []).append(_value(value, holds[0]))
        elif isinstance(holds, tuple):
            entry = _message(_bytes(value), {1: ("key", STRING), 2: ("value", holds[1])})
            found.setdefault(name, {})[entry.get("key", "")] = entry.get("value", "")
        elif value or holds != STRING:  # Go writes the empty ones too
            found[name] = _value(value, holds)
    return found


def _value(value: int | memoryview, holds: Any) -> Any:
    if isinstance(holds, dict):
        inner = _message(_bytes(value), holds)
        return inner.get("", inner)
    if holds == NUMBER:
        return value
    if holds == TRUTH:
        return bool(value)
    data = _bytes(value)
    if holds == BYTES:
        return base64.b64encode(data).decode()
    return str(data, "utf-8") if holds == STRING else data


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where bytes should be")
    return value


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and value of each field: https://protobuf.dev/programming-guides/encoding/"""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of the unknown type {kind}")
        if at + size > len(data):
            raise ValueError("it ends too early")
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 64:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
    raise ValueError("it ends too early")
