"""Amounts of resources: 2, 500m, 1800Gi.

https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
"""

import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

Object = dict[str, Any]

SUFFIXES = {
    **{letter: Decimal(10) ** power for letter, power in zip("num", (-9, -6, -3), strict=True)},
    **{letter: Decimal(1000) ** power for power, letter in enumerate(("", *"kMGTPE"))},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
}


def amount(text: Any) -> Decimal:
    """Return a quantity as a number. Raises ValueError for what is none."""
    match = re.fullmatch(r"([+-]?[0-9.]+(?:[eE][+-]?\d+)?)([A-Za-z]*)", str(text).strip())
    if not match or match[2] not in SUFFIXES:
        raise ValueError(f"{text!r} is no quantity such as 2, 500m or 16Gi")
    return Decimal(match[1]) * SUFFIXES[match[2]]


def requests(pod: Object) -> dict[str, Decimal]:
    """Return what a pod asks of its node; an init container counts where it needs more."""
    spec = pod["spec"]
    initial = [_requests(one) for one in spec.get("initContainers") or ()]
    return _most([_sum(_requests(one) for one in spec["containers"]), *initial])


def _requests(container: Object) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    wanted = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: amount(value) for name, value in wanted.items()}


def _sum(parts: Iterable[Mapping[str, Decimal]]) -> dict[str, Decimal]:
    total: dict[str, Decimal] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, Decimal(0)) + value
    return total


def _most(parts: Iterable[Mapping[str, Decimal]]) -> dict[str, Decimal]:
    most: dict[str, Decimal] = {}
    for part in parts:
        for name, value in part.items():
            most[name] = max(most.get(name, value), value)
    return most
