"""The environment of a container, as the kubelet makes it.

All pods share the network of this machine, so the places where the pods of a job meet, which the
operators' variables name, become loopback and a port that only this job has.
"""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .mounts import Find, files
from .quantities import amount
from .rewriting import expand

Object = dict[str, Any]

LOOPBACK = "127.0.0.1"
HOSTS = ("MASTER_ADDR", "PET_MASTER_ADDR")
PORTS = ("MASTER_PORT", "PET_MASTER_PORT")
ENDPOINT = "PET_RDZV_ENDPOINT"


class ConfigError(Exception):
    """What a container's environment lacks, in the kubelet's words."""


def environment(container: Object, pod: Object, port: int, find: Find) -> dict[str, str]:
    """Return the variables of a container, in their order. Raises ConfigError.

    Args:
        port: where the pods of the job meet.
        find: finds ConfigMaps and Secrets.
    """
    env = {"HOSTNAME": str(pod["spec"].get("hostname") or pod["metadata"]["name"])}
    # What programs keep of a download, or of the fonts they found: an image has it inside.
    env["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    env |= _from(container.get("envFrom") or [], pod, find)
    for item in container.get("env") or ():
        value = _value(item, container, pod, find, env)
        if value is not None:
            env[item["name"]] = _here(item["name"], value, port)
    return env


def _here(name: str, value: str, port: int) -> str:
    """Return a variable of the operators as it is on this machine."""
    if name in HOSTS:
        return LOOPBACK
    if name in PORTS:
        return str(port)
    return f"{LOOPBACK}:{port}" if name == ENDPOINT else value


def _from(sources: list[Object], pod: Object, find: Find) -> dict[str, str]:
    found = {}
    for source in sources:
        for kind in ("configMap", "secret"):
            if reference := source.get(f"{kind}Ref"):
                obj = _object(kind.lower(), reference, find)
                for key, value in files(obj or {}).items():
                    found[source.get("prefix", "") + key] = value.decode()
    return found


def _value(
    item: Object, container: Object, pod: Object, find: Find, env: Mapping[str, str]
) -> str | None:
    source = item.get("valueFrom")
    if not source:
        return expand(str(item.get("value") or ""), env)
    if reference := source.get("fieldRef"):
        return field(pod, reference["fieldPath"])
    if reference := source.get("resourceFieldRef"):
        return _resource(container, reference)
    for kind in ("configMap", "secret"):
        if reference := source.get(f"{kind}KeyRef"):
            return _key(kind, reference, pod, find)
    raise ConfigError(f"{item['name']}: the embedded cluster does not know {', '.join(source)}")


def _key(kind: str, reference: Object, pod: Object, find: Find) -> str | None:
    obj = _object(kind.lower(), reference, find)
    content = files(obj or {}).get(reference["key"])
    if content is not None:
        return content.decode()
    if reference.get("optional"):
        return None
    what = "Secret" if kind == "secret" else "ConfigMap"
    where = f"{pod['metadata']['namespace']}/{reference['name']}"
    raise ConfigError(f"couldn't find key {reference['key']} in {what} {where}")


def _object(kind: str, reference: Object, find: Find) -> Object | None:
    found = find(f"{kind}s", reference["name"])
    if found is None and not reference.get("optional"):
        raise ConfigError(f'{kind} "{reference["name"]}" not found')
    return found


def field(pod: Object, path: str) -> str:
    """Return a field of a pod: `metadata.name`, `metadata.labels['key']`, `status.podIP`."""
    node: Any = pod
    for step in _steps(path):
        node = node.get(step) if isinstance(node, dict) else None
    return "" if node is None else str(node)


def _steps(path: str) -> Iterator[str]:
    head, bracket, key = path.partition("['")
    yield from head.split(".")
    if bracket:
        yield key.removesuffix("']")


def _resource(container: Object, reference: Object) -> str:
    kind, _, name = reference["resource"].partition(".")
    value = ((container.get("resources") or {}).get(kind) or {}).get(name)
    if value is None:
        raise ConfigError(f"the container has no {reference['resource']}")
    divisor = amount(reference.get("divisor") or "1")
    return str(math.ceil(amount(value) / (divisor or amount(1))))
