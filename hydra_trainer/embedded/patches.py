"""The four kinds of PATCH. Each takes an object apart from nothing else and returns a new one.

Merge patch: RFC 7396. JSON patch: RFC 6902. Strategic merge patch and server-side apply:
https://kubernetes.io/docs/tasks/manage-kubernetes-objects/update-api-object-kubectl-patch/
"""

import copy
from collections.abc import Callable
from typing import Any

from .refusals import ApiError, bad_request

Object = dict[str, Any]

JSON_PATCH = "application/json-patch+json"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"

MERGE_KEYS = {
    "ownerReferences": "uid",
    "containers": "name",
    "initContainers": "name",
    "ephemeralContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumeDevices": "devicePath",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
    "conditions": "type",
    "secrets": "name",
}
"""The lists of built-in kinds that are merged by a key of their items."""

SETS = frozenset({"finalizers"})
"""The lists of scalars that are merged."""


def patched(obj: Object, patch: Any, media_type: str, *, custom: bool) -> Object:
    """Return what an object becomes. Raises ApiError 400, 415 or 422.

    Args:
        custom: whether it is of a kind that the server knows no strategic merge for.
    """
    if media_type == STRATEGIC and custom:
        accepted = ", ".join((JSON_PATCH, MERGE, APPLY))
        raise unsupported(accepted)
    if media_type == JSON_PATCH:
        return _json_patch(obj, patch)
    if not isinstance(patch, dict):
        raise bad_request("error decoding patch: it is no object")
    functions: dict[str, Callable[[Any, Any], Any]] = {
        MERGE: merged,
        STRATEGIC: strategic,
        APPLY: applied,
    }
    if media_type not in functions:
        raise unsupported(", ".join((JSON_PATCH, MERGE, STRATEGIC, APPLY)))
    return dict(functions[media_type](obj, patch))


def unsupported(accepted: str) -> ApiError:
    text = (
        "the body of the request was in an unknown format - accepted media types include: "
        f"{accepted}"
    )
    return ApiError(415, "UnsupportedMediaType", text)


def merged(value: Any, patch: Any) -> Any:
    """RFC 7396: objects are merged, null takes away, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    for key, change in patch.items():
        if change is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), change)
    return result


def strategic(value: Any, patch: Any, key: str = "") -> Any:
    """Like `merged`, but lists whose items have a key are merged, and `$patch` says otherwise."""
    if isinstance(patch, list):
        return _merged_list(value, patch, key)
    if not isinstance(patch, dict):
        return patch
    if patch.get("$patch") == "replace":
        return {name: part for name, part in patch.items() if name != "$patch"}
    if patch.get("$patch") == "delete":
        return {}
    result = dict(value) if isinstance(value, dict) else {}
    if "$retainKeys" in patch:
        result = {name: part for name, part in result.items() if name in patch["$retainKeys"]}
    for name, change in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            result[field] = [one for one in result.get(field) or [] if one not in change]
        elif name.startswith("$"):
            continue
        elif change is None:
            result.pop(name, None)
        else:
            result[name] = strategic(result.get(name), change, name)
    return result


def applied(value: Any, patch: Any, key: str = "") -> Any:
    """Server-side apply of one manager: what the patch names is as it says, the rest stays.

    Who owns which field is not kept: fields that a manager no longer names stay too.
    """
    if isinstance(patch, list):
        return _merged_list(value, patch, key)
    if not isinstance(patch, dict):
        return patch
    result = dict(value) if isinstance(value, dict) else {}
    return {**result, **{k: applied(result.get(k), change, k) for k, change in patch.items()}}


def _merged_list(value: Any, patch: list[Any], key: str) -> list[Any]:
    there = value if isinstance(value, list) else []
    if key in SETS:
        return [*there, *(one for one in patch if one not in there)]
    by = MERGE_KEYS.get(key)
    items = [one for one in patch if isinstance(one, dict)]
    if not by or len(items) < len(patch) or any(by not in one for one in items):
        return [one for one in patch if one != {"$patch": "replace"}]
    result = {one[by]: one for one in there if isinstance(one, dict) and by in one}
    for item in items:
        if item.get("$patch") == "delete":
            result.pop(item[by], None)
        else:
            result[item[by]] = strategic(result.get(item[by]), item)
    return list(result.values())


def _json_patch(obj: Object, operations: Any) -> Object:
    """RFC 6902. Raises ApiError 400 for what is no patch, 422 for one that does not fit."""
    if not isinstance(operations, list):
        raise bad_request("error decoding patch: it is no list of operations")
    box = {"": copy.deepcopy(obj)}
    for operation in operations:
        try:
            _operate(box, operation)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            text = f"the server rejected our request due to an error in our request: {operation}"
            raise ApiError(422, "Invalid", text) from None
    return box[""]


def _operate(box: Object, operation: Object) -> None:
    verb, path = operation["op"], operation["path"]
    if verb in ("move", "copy"):
        value = copy.deepcopy(_at(box, operation["from"]))
        if verb == "move":
            _take_away(box, operation["from"])
        _add(box, path, value)
    elif verb == "remove":
        _take_away(box, path)
    elif verb == "test":
        if _at(box, path) != operation["value"]:
            raise ValueError
    elif verb in ("add", "replace"):
        if verb == "replace":
            _take_away(box, path)
        _add(box, path, operation["value"])
    else:
        raise ValueError


def _steps(path: str) -> list[str]:
    """Return the steps of a JSON pointer, the first of which leads out of the box."""
    return [step.replace("~1", "/").replace("~0", "~") for step in path.split("/")]


def _at(box: Any, path: str) -> Any:
    for step in _steps(path):
        box = box[int(step)] if isinstance(box, list) else box[step]
    return box


def _parent(box: Object, path: str) -> tuple[Any, str]:
    above, _, _ = path.rpartition("/")
    return (_at(box, above), _steps(path)[-1]) if path else (box, "")


def _add(box: Object, path: str, value: Any) -> None:
    parent, step = _parent(box, path)
    if not isinstance(parent, list):
        parent[step] = value
    elif step == "-":
        parent.append(value)
    elif 0 <= int(step) <= len(parent):
        parent.insert(int(step), value)
    else:
        raise IndexError


def _take_away(box: Object, path: str) -> None:
    parent, step = _parent(box, path)
    del parent[int(step) if isinstance(parent, list) else step]
