"""Where data and results lie: the mounts of the configuration.

`storage.mounts` maps a name to a folder of this machine, or to a mapping that says where the folder
is on each platform. `${mount:name}` in the configuration stays open until the worker, which gets
the answer from its environment (`variable`) or, on this machine, from `local`.
"""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from .errors import ConfigError, did_you_mean
from .job import Mount

KINDS = ("efs", "fsx", "s3", "pvc", "host")
"""What a mount can be. efs, fsx, s3 and pvc come through a PersistentVolumeClaim on Kubernetes."""

INPUT_MODES = ("File", "FastFile", "Pipe")

FIELDS = tuple(field.name for field in fields(Mount) if field.name != "name")
NAME = re.compile(r"[a-z]([a-z0-9_]{0,30}[a-z0-9])?")
OPEN = re.compile(r"\$\{mount:\s*([^}]*?)\s*\}")


def variable(name: str) -> str:
    """Return the environment variable that tells a worker where a mount is."""
    return f"HYDRA_TRAINER_MOUNT_{name.upper()}"


def mounts(plain: dict[str, Any]) -> dict[str, Mount]:
    """Return the mounts of a configuration that `mount_problems` has nothing against."""
    return {name: _mount(name, node) for name, node in plain["storage"]["mounts"].items()}


def _mount(name: str, node: Any) -> Mount:
    if isinstance(node, str):
        return Mount(name, local=node, path=f"/mnt/{name}")
    given = {key: value for key, value in node.items() if value is not None}
    return Mount(name, **{"path": f"/mnt/{name}", **given})


def mount_problems(plain: dict[str, Any]) -> list[str]:
    """Return what is wrong with the mounts, and with the `${mount:name}` that refer to them."""
    nodes = plain["storage"]["mounts"]
    problems = [text for name, node in nodes.items() for text in _node_problems(name, node)]
    used = set(OPEN.findall(json.dumps(plain, default=str)))
    problems += [
        f"The config uses ${{mount:{name}}}, but storage.mounts has no {name!r} (it has: "
        f"{', '.join(sorted(nodes)) or 'none'}).{did_you_mean(name, nodes)} "
        f"Type +storage.mounts.{name}=/path/of/it."
        for name in sorted(used - set(nodes))
    ]
    return problems


def _node_problems(name: str, node: Any) -> list[str]:
    key = f"storage.mounts.{name}"
    problems = []
    if not NAME.fullmatch(name):
        problems.append(
            f"{key}: the name of a mount must be lower-case letters, digits and _, at most 32, and "
            "start with a letter."
        )
    if isinstance(node, str):
        return problems
    if not isinstance(node, dict):
        text = f"{key} is {node!r}, but must be a folder of this machine or a mapping"
        return [*problems, f"{text} of {', '.join(FIELDS)}."]
    for word in sorted(set(node) - set(FIELDS)):
        hint = did_you_mean(str(word), FIELDS)
        problems.append(f"{key}.{word} is not known.{hint} {key} has: {', '.join(FIELDS)}.")
    kind = node.get("kind", "host")
    if kind not in KINDS:
        problems.append(
            f"{key}.kind is {kind!r}, but must be one of {', '.join(KINDS)}."
            f"{did_you_mean(str(kind), KINDS)}"
        )
    problems += _field_problems(key, node)
    return problems


def _field_problems(key: str, node: dict[str, Any]) -> list[str]:
    problems = []
    for word in ("local", "path", "claim", "sub_path", "file_system", "mount_name", "uri"):
        value = node.get(word)
        if not isinstance(value, str | None):
            problems.append(f"{key}.{word} is {value!r}, but must be text.")
    mode = node.get("input_mode", "File")
    if mode not in INPUT_MODES:
        problems.append(
            f"{key}.input_mode is {mode!r}, but must be one of {', '.join(INPUT_MODES)}."
            f"{did_you_mean(str(mode), INPUT_MODES)}"
        )
    uri = node.get("uri") or "s3://"
    if isinstance(uri, str) and not uri.startswith("s3://"):
        problems.append(f"{key}.uri is {uri!r}, but must be s3://BUCKET/PREFIX.")
    path, below = node.get("path") or "/", node.get("sub_path") or ""
    if isinstance(path, str) and (not path.startswith("/") or ":" in path):
        problems.append(
            f"{key}.path is {path!r}, but must be absolute and without a colon. Type "
            f"{key}.path=/mnt/{key.rsplit('.', 1)[-1]}."
        )
    if isinstance(below, str) and (below.startswith("/") or ".." in Path(below).parts):
        problems.append(f"{key}.sub_path is {below!r}, but must be relative and without '..'.")
    if not isinstance(node.get("read_only", False), bool):
        problems.append(f"{key}.read_only is {node['read_only']!r}, but must be true or false.")
    return problems


def local_folder(node: Any) -> str | None:
    """Return where this machine has a mount; None where it has not."""
    return node if isinstance(node, str) else node.get("local") or None


def local_output(plain: dict[str, Any]) -> Path:
    """Return the folder on this machine below which run directories are made.

    Where `storage.output` is in a mount that this machine does not have, it is `runs`: for what
    the launcher writes down about the job.
    """
    nodes = plain["storage"]["mounts"]
    output = str(plain["storage"]["output"])
    for name in OPEN.findall(output):
        folder = local_folder(nodes[name]) if name in nodes else None
        if folder is None:
            return Path("runs")
        output = OPEN.sub(folder, output)
    return Path(output).expanduser()


def answer(name: str, nodes: dict[str, Any], environ: dict[str, str]) -> str:
    """Return what `${mount:name}` is on this machine.

    Raises:
        ConfigError: this machine does not have it.
    """
    if place := environ.get(variable(name)):
        return place
    folder = local_folder(nodes[name]) if name in nodes else None
    if folder is None:
        raise ConfigError(
            f"storage.mounts.{name} has no folder on this machine. Type "
            f"storage.mounts.{name}.local=/path/of/it."
        )
    return str(Path(folder).expanduser())
