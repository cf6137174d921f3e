"""Looking into an object that may not be as it should be."""

from typing import Any


def dig(node: Any, *keys: str) -> dict[str, Any]:
    """Return the object at a path, or an empty one where there is none."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def objects(node: Any, key: str) -> list[dict[str, Any]]:
    """Return the list of objects under a key; an item that is none becomes an empty one.

    What is no list or no object is the schema's to report, not that of a rule.
    """
    found = node.get(key) if isinstance(node, dict) else None
    if not isinstance(found, list):
        return []
    return [item if isinstance(item, dict) else {} for item in found]


def count(node: dict[str, Any], key: str, default: int) -> int:
    """Return an integer field, or the default."""
    found = node.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else default
