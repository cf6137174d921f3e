"""How what a container's spec says is said on this machine.

A path that a container sees under a mountPath is one in a folder here, so such paths are rewritten
wherever the spec has them: in command, args, workingDir and the values of the environment.
"""

import re
from collections.abc import Mapping
from pathlib import Path

REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


class Paths:
    """Rewrites the paths of a container.

    Args:
        places: the folder, or file, of this machine that is seen under a path of the container.
    """

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = {path.rstrip("/") or "/": str(place) for path, place in places.items()}
        longest_first = sorted(self._places, key=len, reverse=True)
        words = "|".join(map(re.escape, longest_first))
        self._pattern = re.compile(rf"(?<![\w./-])(?:{words})(?=/|$|[^\w.-])") if words else None

    def here(self, text: str) -> str:
        """Return a text with the paths of this machine."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda match: self._places[match[0]], text)


def expand(text: str, env: Mapping[str, str]) -> str:
    """Fill in $(NAME) as Kubernetes does: $$ is a $, an unknown name stays as it is."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        return env.get(match[1], match[0])

    return REFERENCE.sub(value, text)
