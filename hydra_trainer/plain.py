"""What is done to plain dicts on their way into a manifest or a request."""

from collections.abc import Iterator
from typing import Any


def clean(node: Any) -> Any:
    """Return a copy without None and without empty lists and mappings, but for an emptyDir."""
    if isinstance(node, dict):
        pairs = ((key, clean(value)) for key, value in node.items())
        return {k: v for k, v in pairs if k == "emptyDir" or not _nothing(v)}
    if isinstance(node, list):
        return [found for found in map(clean, node) if not _nothing(found)]
    return node


def _nothing(value: Any) -> bool:
    return value is None or value == {} or value == []


MERGE_KEYS = ("name", "mountPath", "key", "ChannelName", "Name", "Key")


def merge(base: Any, patch: Any) -> Any:
    """Return `base` with `patch` merged in, as a strategic merge patch does.

    Mappings merge by key, a None removes; lists of mappings merge by `name` (volumes, containers,
    env), `mountPath` (volumeMounts) or `key` (tolerations), in requests to AWS by `ChannelName`,
    `Name` or `Key`; other lists are replaced.
    """
    if isinstance(base, dict) and isinstance(patch, dict):
        merged = {**base, **{key: merge(base.get(key), value) for key, value in patch.items()}}
        return {key: value for key, value in merged.items() if value is not None}
    if isinstance(base, list) and isinstance(patch, list) and (key := _merge_key(base, patch)):
        return list(_merged_items(base, patch, key))
    return patch


def _merge_key(base: list[Any], patch: list[Any]) -> str | None:
    both = [*base, *patch]
    if not all(isinstance(item, dict) for item in both):
        return None
    order = (
        ("mountPath", "name", "key") if any("mountPath" in item for item in both) else MERGE_KEYS
    )
    return next((key for key in order if all(key in item for item in both)), None)


def _merged_items(base: list[Any], patch: list[Any], key: str) -> Iterator[Any]:
    changes = {item[key]: item for item in patch}
    for item in base:
        yield merge(item, changes.pop(item[key])) if item[key] in changes else item
    yield from changes.values()
