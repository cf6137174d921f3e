"""The volumes of a pod, as folders of this machine.

| volume | folder |
|---|---|
| emptyDir | one of the pod's, gone with it |
| configMap, secret | the same, with a file for each key |
| hostPath | that folder |
| persistentVolumeClaim | `volumes/CLAIM` in the cluster's home: it outlives pods and jobs |

That a mount is read-only is not enforced. /dev/shm stays this machine's own.
"""

import base64
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .rewriting import Paths

Object = dict[str, Any]

Find = Callable[[str, str], Object | None]
"""Returns an object of the pod's namespace, by resource and name, if there is one."""

SHARED_MEMORY = "/dev/shm"


class NotMounted(Exception):
    """Why a volume is not there yet, in the kubelet's words."""


class Volumes:
    """The volumes of one pod, below a folder of its own."""

    def __init__(self, pod: Object, home: Path, folder: Path, find: Find) -> None:
        self._volumes = {one["name"]: one for one in pod["spec"].get("volumes") or ()}
        self._home = home
        self._folder = folder
        self._find = find
        self._places: dict[str, Path] = {}

    def mount(self) -> None:
        """Make what is missing. Raises NotMounted; may be called again."""
        for name, volume in self._volumes.items():
            if name not in self._places:
                try:
                    self._places[name] = self._place(volume)
                except (NotMounted, OSError) as error:
                    text = f'MountVolume.SetUp failed for volume "{name}" : {error}'
                    raise NotMounted(text) from None

    def paths(self, container: Object, report: Path) -> Paths:
        """Return where a container's paths are; its termination message goes to `report`."""
        places = {container["terminationMessagePath"]: report}
        for mount in container.get("volumeMounts") or ():
            if mount["mountPath"].rstrip("/") != SHARED_MEMORY:
                places[mount["mountPath"]] = self._inside(mount)
        return Paths(places)

    def _inside(self, mount: Object) -> Path:
        place = self._places[mount["name"]]
        if not mount.get("subPath"):
            return place
        inside = place / str(mount["subPath"])
        if not inside.exists():
            inside.mkdir(parents=True)
        return inside

    def _place(self, volume: Object) -> Path:
        if "hostPath" in volume:
            return _host_path(volume["hostPath"])
        if claim := volume.get("persistentVolumeClaim"):
            return _made(self._home / "volumes" / claim["claimName"])
        place = self._folder / "volumes" / volume["name"]
        shutil.rmtree(place, ignore_errors=True)
        if "configMap" in volume:
            source = volume["configMap"]
            return _written(place, self._content("configmap", source["name"], source), source)
        if "secret" in volume:
            source = volume["secret"]
            return _written(place, self._content("secret", source["secretName"], source), source)
        if "emptyDir" in volume:
            return _made(place)
        kinds = ", ".join(key for key in volume if key != "name")
        raise NotMounted(f"the embedded cluster has no volumes of this kind: {kinds}")

    def _content(self, kind: str, name: str, source: Object) -> dict[str, bytes]:
        found = self._find(f"{kind}s", name)
        if found is None and not source.get("optional"):
            raise NotMounted(f'{kind} "{name}" not found')
        return files(found or {})


def files(obj: Object) -> dict[str, bytes]:
    """Return what a ConfigMap or a Secret holds, by key."""
    encoded = obj.get("data" if obj.get("kind") == "Secret" else "binaryData") or {}
    plain = {} if obj.get("kind") == "Secret" else obj.get("data") or {}
    found = {key: base64.b64decode(value) for key, value in encoded.items()}
    return found | {key: value.encode() for key, value in plain.items()}


def _host_path(source: Object) -> Path:
    """https://kubernetes.io/docs/concepts/storage/volumes/#hostpath-volume-types"""
    path, kind = Path(source["path"]), source.get("type") or ""
    if kind == "FileOrCreate":
        path.touch()
    elif kind == "DirectoryOrCreate" or (not kind and not path.exists()):
        _made(path)
    wrong = (kind.startswith("Directory") and not path.is_dir()) or (
        kind.startswith("File") and not path.is_file()
    )
    if wrong:
        what = "directory" if kind.startswith("Directory") else "file"
        raise NotMounted(f"hostPath type check failed: {path} is not a {what}")
    return path


def _written(place: Path, content: dict[str, bytes], source: Object) -> Path:
    """Write the keys that a volume wants as files: all of them, or its `items`."""
    items = source.get("items") or [{"key": key, "path": key} for key in content]
    _made(place)
    for item in items:
        if item["key"] not in content:
            if source.get("optional"):
                continue
            raise NotMounted(f"references non-existent config key: {item['key']}")
        file = place / item["path"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content[item["key"]])
    return place


def _made(place: Path) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    return place
