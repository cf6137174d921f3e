"""Where data and results lie: the mounts of the configuration.

`storage.mounts` maps a name to a folder of this machine, or to a mapping that says where the folder
is on each platform. `${mount:name}` in the configuration stays open until the worker, which gets
the answer from its environment (`variable`) or, on this machine, from the configuration. The answer
is a folder, or the s3:// place itself where the data are streamed.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from .errors import ConfigError, did_you_mean
from .job import Mount

KINDS = ("efs", "fsx", "s3", "pvc", "host", "cache")
"""What a mount can be. efs, fsx and pvc come through a PersistentVolumeClaim on Kubernetes. A cache
is a folder on the disk of the machine that runs the job, and may go with it."""

ACCESS = ("stream", "file", "fastfile", "csi")
"""How a mount of kind s3 is read: stream is our reader, file and fastfile are input modes of
SageMaker, csi is the Mountpoint driver of a cluster."""

SCRATCH = "_scratch"
"""The mount, which no user can have, for the run directories of runs that are kept in S3: a folder
of the container, where the small files are written before they are sent."""

STAND_IN = "your-bucket"
"""Stands for the user's bucket in a dry run, and on the embedded service."""

REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables with the region: boto3 looks at the second one only."""

NOT_REACHED = (
    "storage.s3.embedded is true, but no {what} reaches the S3 on this machine. Type "
    "launcher.embedded=true to run the job here as well, or storage.s3.embedded=false."
)

FIELDS = tuple(field.name for field in fields(Mount) if field.name != "name")
NAME = re.compile(r"[a-z]([a-z0-9_]{0,30}[a-z0-9])?")
OPEN = re.compile(r"\$\{mount:\s*([^}]*?)\s*\}")
BUCKET = re.compile(r"(?!.*\.\.|(\d{1,3}\.){3}\d{1,3}$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
"""docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html; an access point has an
alias that is such a name, too."""


def variable(name: str) -> str:
    """Return the environment variable that tells a worker where a mount is."""
    return f"HYDRA_TRAINER_MOUNT_{name.upper()}"


def mounts(plain: dict[str, Any]) -> dict[str, Mount]:
    """Return the mounts of a configuration that `storage_problems` has nothing against."""
    return {name: _mount(name, node) for name, node in plain["storage"]["mounts"].items()}


def _mount(name: str, node: Any) -> Mount:
    if not isinstance(node, dict):
        return Mount(name, local=str(node or ""), path=f"/mnt/{name}")
    given = {key: node[key] for key in FIELDS if node.get(key) is not None}
    usual = {"path": f"/mnt/{name}"}
    if given.get("kind") == "cache":
        usual["local"] = f"~/.cache/hydra-trainer/{name}"
    return Mount(name, **{**usual, **given})


# --------------------------------------------------------------------------------- on this machine


EMBEDDED = "HYDRA_TRAINER_EMBEDDED_S3"
"""The variable that tells pods of the embedded cluster where that folder is."""


def embedded_home() -> Path:
    """Return the folder of the embedded SageMaker service, whose S3 all commands here share."""
    if place := os.environ.get(EMBEDDED):
        return Path(place)
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "hydra-trainer" / "embedded-sagemaker"


def local_folder(name: str, nodes: dict[str, Any]) -> str | None:
    """Return where this machine has a mount, as it was typed; None where it has not."""
    return _mount(name, nodes[name]).local or None if name in nodes else None


def local_output(plain: dict[str, Any]) -> Path:
    """Return the folder on this machine below which run directories are made.

    Where `storage.output` is in S3, or in a mount that this machine does not have, it is `runs`:
    for what is written down here about the job.
    """
    nodes = plain["storage"]["mounts"]
    output = str(plain["storage"]["output"])
    if remote_output(plain) is not None:
        return Path("runs")
    for name in OPEN.findall(output):
        folder = local_folder(name, nodes)
        if folder is None:
            return Path("runs")
        output = OPEN.sub(folder, output)
    return Path(output).expanduser()


def remote_output(plain: dict[str, Any]) -> str | None:
    """Return the s3:// place below which runs are kept, without a / at the end.

    None where they are in folders.
    """
    nodes = plain["storage"]["mounts"]

    def filled(match: re.Match[str]) -> str:
        found = _mount(match[1], nodes[match[1]]) if match[1] in nodes else None
        return found.place if found is not None and found.streams else match[0]

    output = OPEN.sub(filled, str(plain["storage"]["output"]))
    return output.rstrip("/") if output.startswith("s3://") else None


def answer(name: str, nodes: dict[str, Any], environ: dict[str, str]) -> str:
    """Return what `${mount:name}` is on this machine.

    Raises:
        ConfigError: this machine does not have it.
    """
    if place := environ.get(variable(name)):
        return place
    mount = _mount(name, nodes.get(name))
    if mount.local:
        return str(Path(mount.local).expanduser())
    if mount.streams:
        return mount.place
    key = f"storage.mounts.{name}"
    or_stream = f", or {key}.access=stream" if mount.kind == "s3" else ""
    raise ConfigError(
        f"{key} has no folder on this machine. Type {key}.local=/path/of/it{or_stream}."
    )


def uses_s3(plain: dict[str, Any]) -> bool:
    """Tell whether a job itself reads or writes S3: not what a launcher does for it."""
    return "s3://" in json.dumps({k: v for k, v in plain.items() if k not in ("launcher", "code")})


def stand_in_problems(plain: dict[str, Any]) -> list[str]:
    """Return what the user has to say before a job can be sent to a real place."""
    node = plain["storage"]
    if node["s3"]["embedded"] or f"s3://{STAND_IN}/" not in json.dumps(node):
        return []
    return [
        f"storage.s3.bucket is {STAND_IN}, which stands for yours. Type storage.s3.bucket=NAME, or "
        "storage.s3.embedded=true for an S3 on this machine."
    ]


def with_embedded_s3(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose S3 is that of this machine, unless it names another."""
    s3 = plain["storage"]["s3"]
    if s3["endpoint"] or not uses_s3(plain):
        return plain
    return {**plain, "storage": {**plain["storage"], "s3": {**s3, "embedded": True}}}


def environment(plain: dict[str, Any]) -> dict[str, str]:
    """Return the variables by which every client of S3 in a job finds it."""
    s3 = plain["storage"]["s3"]
    found = {"AWS_ENDPOINT_URL_S3": s3["endpoint"], **dict.fromkeys(REGIONS, s3["region"])}
    return {key: str(value) for key, value in found.items() if value and uses_s3(plain)}


# --------------------------------------------------------------------------------- what is refused


def storage_problems(plain: dict[str, Any]) -> list[str]:
    """Return what is wrong with `storage`, and with the `${mount:name}` that refer to it."""
    nodes = plain["storage"]["mounts"]
    problems = [text for name, node in nodes.items() for text in _node_problems(name, node)]
    used = set(OPEN.findall(json.dumps(plain, default=str)))
    problems += [
        f"The config uses ${{mount:{name}}}, but storage.mounts has no {name!r} (it has: "
        f"{', '.join(sorted(nodes)) or 'none'}).{did_you_mean(name, nodes)} "
        f"Type +storage.mounts.{name}=/path/of/it."
        for name in sorted(used - set(nodes))
    ]
    return [*problems, *_output_problems(plain)]


def _output_problems(plain: dict[str, Any]) -> Iterator[str]:
    """Yield why run directories cannot be made below storage.output."""
    output = str(plain["storage"]["output"])
    if "://" in output and not output.startswith("s3://"):
        yield f"storage.output is {output!r}, but must be a folder or s3://BUCKET/PREFIX."
        return
    if (remote := remote_output(plain)) is not None:
        yield from place_problems("storage.output", remote)
    for name in OPEN.findall(output):
        mount = _mount(name, plain["storage"]["mounts"].get(name))
        where = f"storage.output is in the mount {name!r}"
        if mount.kind == "s3" and not mount.streams:
            yield (
                f"{where} of kind s3 with access {mount.access}, but in a folder a checkpoint is "
                "committed by a rename, which S3 does not have. Type storage.output="
                f"{mount.place or 's3://BUCKET/PREFIX'}: checkpoints then go to S3 by its own API."
            )
        elif mount.read_only:
            yield (
                f"{where}, which is read-only. Type storage.mounts.{name}.read_only=false, or "
                "another storage.output."
            )
        elif mount.kind == "cache":
            yield (
                f"{where} of kind cache, which goes with the machine. Type storage.output=s3://"
                "BUCKET/PREFIX, or storage=efs."
            )


def place_problems(key: str, place: Any) -> list[str]:
    """Return what is wrong with an s3:// place that a key of the configuration has."""
    if not isinstance(place, str) or not place.startswith("s3://"):
        return [f"{key} is {place!r}, but must be s3://BUCKET/PREFIX."]
    bucket = place.removeprefix("s3://").partition("/")[0]
    if BUCKET.fullmatch(bucket):
        return []
    return [
        f"{key} is {place!r}, but {bucket!r} cannot be a bucket: its name is 3 to 63 lower-case "
        "letters, digits, '-' and '.', and no address. Type aws s3 ls to see yours."
    ]


def _node_problems(name: str, node: Any) -> list[str]:
    key = f"storage.mounts.{name}"
    problems = []
    if not NAME.fullmatch(name):
        problems.append(
            f"{key}: the name of a mount must be lower-case letters, digits and _, at most 32, and "
            "start with a letter."
        )
    if isinstance(node, str):
        if node.startswith("s3://"):
            problems.append(
                f"{key} is {node!r}, which is no folder. Type '{key}={{kind: s3, uri: {node}}}'."
            )
        return problems
    if not isinstance(node, dict):
        text = f"{key} is {node!r}, but must be a folder of this machine or a mapping"
        return [*problems, f"{text} of {', '.join(FIELDS)}."]
    for word in sorted(set(node) - set(FIELDS)):
        hint = did_you_mean(str(word), FIELDS)
        problems.append(f"{key}.{word} is not known.{hint} {key} has: {', '.join(FIELDS)}.")
    for word, allowed in (("kind", KINDS), ("access", ACCESS)):
        value = node.get(word) or allowed[0]
        if value not in allowed:
            problems.append(
                f"{key}.{word} is {value!r}, but must be one of {', '.join(allowed)}."
                f"{did_you_mean(str(value).lower(), allowed)}"
            )
    return problems or [*_field_problems(key, node)]


def _field_problems(key: str, node: dict[str, Any]) -> Iterator[str]:
    texts = ("local", "path", "claim", "sub_path", "file_system", "mount_name", "uri")
    wrong = [word for word in texts if not isinstance(node.get(word), str | None)]
    for word in wrong:
        yield f"{key}.{word} is {node[word]!r}, but must be text."
    if not isinstance(node.get("read_only") or False, bool):
        yield f"{key}.read_only is {node['read_only']!r}, but must be true or false."
    if wrong:
        return
    if node.get("uri"):
        yield from place_problems(f"{key}.uri", node["uri"])
    elif node.get("kind") == "s3" and (node.get("access") or ACCESS[0]) != "csi":
        or_claim = f", or {key}.access=csi for its claim" if node.get("claim") else ""
        yield f"{key}.uri has no value. Type {key}.uri=s3://BUCKET/PREFIX{or_claim}."
    if node.get("access") and node.get("kind") != "s3":
        yield (
            f"{key}.access is {node['access']!r}, but only a mount of kind s3 has it. Leave it "
            f"out, or type {key}.kind=s3."
        )
    path, below = node.get("path") or "/", node.get("sub_path") or ""
    if not path.startswith("/") or ":" in path:
        yield (
            f"{key}.path is {path!r}, but must be absolute and without a colon. Type "
            f"{key}.path=/mnt/{key.rsplit('.', 1)[-1]}."
        )
    if below.startswith("/") or ".." in Path(below).parts:
        yield f"{key}.sub_path is {below!r}, but must be relative and without '..'."
