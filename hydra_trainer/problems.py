"""What is wrong with something that is to be sent, and where in it."""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """Something that is wrong with a manifest or a request, or (severity "warning") may be.

    `path` is that of the field in the object, `spec.pytorchReplicaSpecs.Master.replicas`; of a
    manifest, `message` begins as the API server's own do: "unknown field", "Invalid value: ...",
    "Required value: ...".
    """

    path: str
    message: str
    severity: str = "error"


NONE: list[Problem] = []
"""What a check returns when nothing is wrong: never to be changed."""

FEW = 12  # names that are all listed when one is unknown

IDENTIFIER = re.compile(r"[A-Za-z_]\w*")


def shown(value: Any) -> str:
    """Return a value as it would be typed, shortened."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else f"{text[:76]}..."


def under(step: str, found: Iterable[Problem]) -> list[Problem]:
    """Return problems of a part as problems of the whole; `step` leads to the part."""
    return [problem._replace(path=joined(step, problem.path)) for problem in found]


def joined(step: str, path: str) -> str:
    return step + (f".{path}" if step and path and not path.startswith("[") else path)


def entry(path: str, key: str) -> str:
    """Return the path of an entry of a map: `limits.memory`, `limits[nvidia.com/gpu]`."""
    return joined(path, key if IDENTIFIER.fullmatch(key) else f"[{key}]")
