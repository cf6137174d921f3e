"""The kubeconfig of an embedded cluster: written for its clients, read to find it again."""

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import yaml

NAME = "embedded"
"""Of the context, the cluster and the user."""


class Entry(NamedTuple):
    """Where a server is, and who asks. The URL has the token too, in its path."""

    server: str
    token: str

    @property
    def port(self) -> int:
        return urlsplit(self.server).port or 0


def write(file: Path, entry: Entry, namespace: str = "default") -> Path:
    """Write a kubeconfig that only its owner can read, in one step."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": NAME,
        "clusters": [{"name": NAME, "cluster": {"server": entry.server}}],
        "users": [{"name": NAME, "user": {"token": entry.token}}],
        "contexts": [
            {"name": NAME, "context": {"cluster": NAME, "user": NAME, "namespace": namespace}}
        ],
    }
    new = file.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
        yaml.safe_dump(content, stream, sort_keys=False)
    new.rename(file)
    return file


def read(file: Path) -> Entry | None:
    """Return what a kubeconfig says, None when there is none."""
    try:
        content = yaml.safe_load(file.read_text())
        server = content["clusters"][0]["cluster"]["server"]
        return Entry(str(server), str(content["users"][0]["user"]["token"]))
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError):
        return None
