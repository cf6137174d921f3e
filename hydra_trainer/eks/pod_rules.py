"""What is wrong with a pod template although all its fields exist and have the right type.

The operators' schemas let these pass; the pods are then refused, never scheduled, or die. Limits
are those of kubernetes/pkg/apis/core/validation/validation.go.
"""

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any

from hydra_trainer.credentials import credential, secret_variable
from hydra_trainer.errors import did_you_mean
from hydra_trainer.instances import INSTANCES, ML, Instance, instance
from hydra_trainer.problems import Problem, entry, joined, shown, under
from hydra_trainer.trees import dig, objects

from .templates import Template

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
LABEL_WORDS = "at most 63 of lower case letters, digits and '-', with none of '-' at its ends"

GPUS = ("nvidia.com/gpu", "amd.com/gpu")
EFA = "vpc.amazonaws.com/efa"
INSTANCE_LABELS = ("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type")
GIB = 2**30

CHOICES = {
    "imagePullPolicy": ("Always", "IfNotPresent", "Never"),
    "terminationMessagePolicy": ("File", "FallbackToLogsOnError"),
    "operator": ("Exists", "Equal"),
    "effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "medium": ("", "Memory", "HugePages", "HugePages-2Mi", "HugePages-1Gi"),
    "fsGroupChangePolicy": ("OnRootMismatch", "Always"),
}


def template_problems(template: Template, kind: str) -> list[Problem]:
    """Return what is wrong with the pods that are made from a template of an object of `kind`."""
    body, spec = template.body, dig(template.body, "spec")
    found = [
        *label_problems(dig(body, "metadata")),
        *under("spec", _pod(spec)),
        *under("spec", _volumes(spec)),
        *under("spec", _placement(spec, kind)),
    ]
    reserved = _reserved(kind, template.trains)
    for path, container in all_containers(spec):
        problems = _container(container, spec)
        problems += _environment(container, reserved if path.startswith("containers") else None)
        found += under(f"spec.{path}", problems)
    return under(template.path, found) if template.path else found


def all_containers(spec: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Return (path in the pod spec, container) of each container that runs or has run."""
    return [
        (f"{key}[{index}]", container)
        for key in ("initContainers", "containers")
        for index, container in enumerate(objects(spec, key))
    ]


def choice(node: dict[str, Any], key: str, path: str = "") -> list[Problem]:
    """Return a problem if a field has none of the values that Kubernetes knows."""
    value, known = node.get(key), CHOICES[key]
    if value is None or value in known:
        return []
    words = ", ".join(word for word in known if word)
    hint = did_you_mean(str(value), known)
    message = f"Unsupported value: {shown(value)}: supported values: {words}.{hint}"
    return [Problem(joined(path, key), message)]


def duplicates(values: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """Yield the index and value of each text that was there before."""
    seen: set[str] = set()
    for index, value in enumerate(values):
        if isinstance(value, str):
            if value in seen:
                yield index, value
            seen.add(value)


# --------------------------------------------------------------------------------- labels and names


def label_problems(metadata: dict[str, Any]) -> list[Problem]:
    """Return what is wrong with the labels and annotations of an object or a template."""
    found = list(_map_problems(dig(metadata, "labels"), "metadata.labels"))
    for key in dig(metadata, "annotations"):
        if not _is_qualified(str(key)):
            found.append(Problem("metadata.annotations", _bad_key(str(key))))
    return found


def _map_problems(labels: dict[str, Any], path: str) -> Iterator[Problem]:
    for key, value in labels.items():
        if not _is_qualified(str(key)):
            yield Problem(path, _bad_key(str(key)))
        if isinstance(value, str) and value and not QUALIFIED.fullmatch(value):
            text = (
                f"Invalid value: {shown(value)}: the value of {key} must be at most 63 letters, "
                "digits, '-', '_' and '.', with a letter or a digit at both ends"
            )
            yield Problem(path, text)


def _is_qualified(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    return bool(QUALIFIED.fullmatch(name)) and (not slash or bool(SUBDOMAIN.fullmatch(prefix)))


def _bad_key(key: str) -> str:
    return (
        f"Invalid value: {shown(key)}: a key must be a name of at most 63 letters, digits, '-', "
        "'_' and '.', after an optional domain and a '/'"
    )


def _name_problem(value: Any, pattern: re.Pattern[str], path: str, what: str) -> list[Problem]:
    if not isinstance(value, str) or pattern.fullmatch(value):
        return []
    return [Problem(path, f"Invalid value: {shown(value)}: must be {what}")]


# ----------------------------------------------------------------------------------- the pod itself


def _pod(spec: dict[str, Any]) -> list[Problem]:
    found = choice(dig(spec, "securityContext"), "fsGroupChangePolicy", "securityContext")
    for key, low in (("terminationGracePeriodSeconds", 0), ("activeDeadlineSeconds", 1)):
        value = spec.get(key)
        if isinstance(value, int) and value < low:
            found.append(Problem(key, f"Invalid value: {value}: must be at least {low}"))
    for key in ("serviceAccountName", "priorityClassName"):
        found += _name_problem(spec.get(key), SUBDOMAIN, key, "the name of an object")
    for index, secret in enumerate(objects(spec, "imagePullSecrets")):
        path = f"imagePullSecrets[{index}].name"
        found += _name_problem(secret.get("name"), SUBDOMAIN, path, "the name of a Secret")
    names = [container.get("name") for _, container in all_containers(spec)]
    found += [
        Problem("containers", f"Duplicate value: {shown(name)}: each container needs its own name")
        for _, name in duplicates(names)
    ]
    return found


def _placement(spec: dict[str, Any], kind: str) -> list[Problem]:
    selector = dig(spec, "nodeSelector")
    found = list(_map_problems(selector, "nodeSelector"))
    for index, toleration in enumerate(objects(spec, "tolerations")):
        found += under(f"tolerations[{index}]", _toleration(toleration))
    for label in INSTANCE_LABELS:
        if isinstance(name := selector.get(label), str):
            found += _instance(name, label, spec, kind)
    return found


def _toleration(toleration: dict[str, Any]) -> list[Problem]:
    found = choice(toleration, "operator") + choice(toleration, "effect")
    if toleration.get("operator") == "Exists" and toleration.get("value"):
        value = toleration["value"]
        text = f"Invalid value: {shown(value)}: must be empty when the operator is Exists"
        found.append(Problem("value", text))
    if toleration.get("operator") != "Exists" and not toleration.get("key"):
        found.append(Problem("operator", "Invalid value: must be Exists when there is no key"))
    if toleration.get("tolerationSeconds") is not None and toleration.get("effect") != "NoExecute":
        found.append(Problem("effect", "Invalid value: must be NoExecute with tolerationSeconds"))
    return found


# ------------------------------------------------------------------------ against the instance type


def _instance(name: str, label: str, spec: dict[str, Any], kind: str) -> list[Problem]:
    path = entry("nodeSelector", label)
    machine = instance(name)
    if kind == "HyperPodPyTorchJob" and not name.startswith(ML):
        text = (
            f"Invalid value: {shown(name)}: HyperPod labels its nodes with SageMaker's names. Type "
            f"{ML}{name}."
        )
        return [Problem(path, text)]
    if machine is None:
        hint = did_you_mean(name.removeprefix(ML), INSTANCES)
        text = (
            f"Invalid value: {shown(name)}: this instance type is not known here, so its GPUs, EFA "
            f"and memory were not checked. It may be new, or misspelt.{hint}"
        )
        return [Problem(path, text, "warning")]
    return [
        problem
        for where, container in all_containers(spec)
        for problem in under(f"{where}.resources.limits", _against(container, name, machine))
    ]


def _against(container: dict[str, Any], name: str, machine: Instance) -> Iterator[Problem]:
    limits = {**dig(container, "resources", "requests"), **dig(container, "resources", "limits")}
    has: dict[str, tuple[float, str]] = dict.fromkeys(GPUS, (machine.gpus, "GPUs"))
    has[EFA] = (machine.efa, "EFA interfaces")
    has["cpu"] = (machine.vcpus, "vCPUs")
    has["memory"] = (machine.memory_gib * GIB, "bytes of memory")
    for key, value in limits.items():
        wanted = amount(value)
        if wanted is not None and key in has and wanted > has[key][0]:
            size = f"{machine.memory_gib} GiB" if key == "memory" else f"{has[key][0]:g}"
            text = f"Invalid value: {shown(value)}: {name} has {size} {has[key][1]}"
            yield Problem(entry("", key), text.replace("GiB bytes", "GiB"))


# --------------------------------------------------------------------------------------- quantities

SUFFIXES = {
    "n": 1e-9,
    "u": 1e-6,
    "m": 1e-3,
    "": 1.0,
    **{letter: 1000.0**power for power, letter in enumerate("kMGTPE", 1)},
    **{f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", 1)},
}


def amount(value: Any) -> float | None:
    """Return a quantity as a number, `1.5Gi` as bytes; None if it is none."""
    if isinstance(value, str):
        found = _parsed(value)
    else:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        found = float(value) if is_number else None
    return found if found is not None and math.isfinite(found) else None


def _parsed(text: str) -> float | None:
    digits = text.rstrip("KMGTPEkmnui") if text[-1:].isalpha() else text
    try:
        return float(digits) * SUFFIXES[text[len(digits) :]]
    except (ValueError, KeyError):
        return None


# ------------------------------------------------------------------------------------ one container

IMAGE = re.compile(
    r"(?:[A-Za-z0-9][A-Za-z0-9.-]*(?::\d+)?/)?"  # the registry
    r"[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|__?|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?(?:@[A-Za-z0-9]+:[a-fA-F0-9]{32,})?"
)
"""https://github.com/distribution/reference"""


def _container(container: dict[str, Any], spec: dict[str, Any]) -> list[Problem]:
    return [
        *_name_problem(container.get("name"), LABEL, "name", LABEL_WORDS),
        *choice(container, "imagePullPolicy"),
        *choice(container, "terminationMessagePolicy"),
        *_image(container.get("image")),
        *_resources(dig(container, "resources")),
        *_mounts(container, spec),
        *_words(container),
    ]


def _image(image: Any) -> Iterator[Problem]:
    if isinstance(image, str) and image and not IMAGE.fullmatch(image):
        text = (
            f"Invalid value: {shown(image)}: must be REGISTRY/NAME:TAG or REGISTRY/NAME@DIGEST, "
            "with a name in lower case"
        )
        yield Problem("image", text)


def _words(container: dict[str, Any]) -> Iterator[Problem]:
    for key in ("command", "args"):
        words = container.get(key)
        for index, word in enumerate(words if isinstance(words, list) else []):
            if isinstance(word, str) and credential(word):
                text = (
                    "Forbidden: there is something in this word that looks like a password or a "
                    "token, which anyone who may see the pod can read. Put it into a Secret, and "
                    "the Secret into launcher.secrets."
                )
                yield Problem(f"{key}[{index}]", text)


def _resources(resources: dict[str, Any]) -> list[Problem]:
    limits, requests = dig(resources, "limits"), dig(resources, "requests")
    found = [
        problem
        for key, value in requests.items()
        for problem in _request(key, value, limits.get(key))
    ]
    for side, values in (("limits", limits), ("requests", requests)):
        found += [
            Problem(entry(f"resources.{side}", key), f"Invalid value: {shown(value)}: {text}")
            for key, value in values.items()
            if (text := _bad_amount(key, amount(value)))
        ]
    everything = {**limits, **requests}
    if any(_is_hugepages(key) for key in everything) and not {"cpu", "memory"} & everything.keys():
        text = (
            "Forbidden: HugePages require cpu or memory. Type resources.memory_per_node=... or "
            "resources.cpus_per_node=..."
        )
        found.append(Problem("resources", text))
    return found


def _request(key: str, request: Any, limit: Any) -> Iterator[Problem]:
    """Check a request against the limit of the same resource."""
    wanted, most = amount(request), amount(limit)
    path = entry("resources.requests", key)
    if limit is None and not _overcommits(key):
        text = f"Required value: {key} cannot be overcommitted, so its limit must be {request} too"
        yield Problem(entry("resources.limits", key), text)
    elif wanted is not None and most is not None and wanted != most:
        if not _overcommits(key):
            text = f"Invalid value: {shown(request)}: must be equal to the limit of {limit}"
            yield Problem(path, text)
        elif wanted > most:
            text = f"Invalid value: {shown(request)}: must be at most the limit of {limit}"
            yield Problem(path, text)


def _overcommits(key: str) -> bool:
    """Tell whether a limit may be more than the request: not of devices and huge pages."""
    return "/" not in key and not _is_hugepages(key)


def _is_hugepages(key: str) -> bool:
    return key.startswith("hugepages-")


def _bad_amount(key: str, value: float | None) -> str | None:
    if value is not None and value < 0:
        return "must not be negative"
    if value is not None and "/" in key and value != int(value):
        return "must be a whole number: devices cannot be shared"
    return None


# -------------------------------------------------------------------------------------- environment

OPERATOR = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")


def _reserved(kind: str, trains: str | None) -> tuple[str, ...] | None:
    """Return what the operator sets in the containers of a template; PET_* always."""
    if kind == "PyTorchJob":
        return OPERATOR
    return () if trains == "node" else None


def _environment(container: dict[str, Any], reserved: tuple[str, ...] | None) -> list[Problem]:
    variables = objects(container, "env")
    found = [
        Problem(
            f"env[{index}].name", f"Duplicate value: {shown(name)}: only the last one would count"
        )
        for index, name in duplicates(variable.get("name") for variable in variables)
    ]
    for index, variable in enumerate(variables):
        found += under(f"env[{index}]", variable_problems(variable))
        name = str(variable.get("name"))
        if reserved is not None and (name.startswith("PET_") or name in reserved):
            text = f"Forbidden: {name} is set by the operator, whose value wins over this one"
            found.append(Problem(f"env[{index}].name", text))
    return found


VARIABLE = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


def variable_problems(variable: dict[str, Any]) -> list[Problem]:
    """Return what is wrong with one environment variable. Its value is never shown."""
    name, value = variable.get("name"), variable.get("value")
    found = []
    if isinstance(name, str) and not VARIABLE.fullmatch(name):
        found.append(Problem("name", *_bad_variable(name)))
    if value and variable.get("valueFrom"):
        found.append(Problem("valueFrom", "Invalid value: must not be given beside a value"))
    if isinstance(value, str) and isinstance(name, str) and secret_variable(name, value):
        text = (
            f"Forbidden: {name} looks like a credential, which anyone who may see the pod can "
            "read. Put it into a Secret: kubectl create secret generic NAME "
            f"--from-literal={name}=..., then launcher.secrets.{name}=NAME/{name} "
            "(valueFrom.secretKeyRef)."
        )
        found.append(Problem("value", text))
    return found


def _bad_variable(name: str) -> tuple[str, str]:
    """Return message and severity: since Kubernetes 1.34 most names are allowed."""
    if name and name.isascii() and name.isprintable() and "=" not in name:
        text = "before Kubernetes 1.34, a name must have letters, digits, '_', '-' and '.' only"
        return f"Invalid value: {shown(name)}: {text}", "warning"
    text = "must be printable ASCII characters without '='"
    return f"Invalid value: {shown(name)}: {text}", "error"


# ------------------------------------------------------------------------------- volumes and mounts


def _volumes(spec: dict[str, Any]) -> list[Problem]:
    volumes = objects(spec, "volumes")
    found = [
        Problem(f"volumes[{index}].name", f"Duplicate value: {shown(name)}")
        for index, name in duplicates(volume.get("name") for volume in volumes)
    ]
    used = _used_volumes(spec)
    for index, volume in enumerate(volumes):
        found += under(f"volumes[{index}]", _volume(volume, used))
    return found


def _used_volumes(spec: dict[str, Any]) -> set[Any]:
    return {
        str(mount.get("name"))
        for _, container in all_containers(spec)
        for key in ("volumeMounts", "volumeDevices")
        for mount in objects(container, key)
    }


def _volume(volume: dict[str, Any], used: set[Any]) -> list[Problem]:
    name = volume.get("name")
    found = _name_problem(name, LABEL, "name", LABEL_WORDS)
    sources = [key for key, value in volume.items() if key != "name" and value is not None]
    if len(sources) != 1:
        given = " and ".join(sources) or "none"
        text = f"Required value: a volume must have exactly one source, but has {given}"
        found.append(Problem("", text))
    if isinstance(name, str) and name not in used:
        text = f"Invalid value: {shown(name)}: no container mounts this volume"
        found.append(Problem("name", text, "warning"))
    found += choice(dig(volume, "emptyDir"), "medium", "emptyDir")
    claim = dig(volume, "persistentVolumeClaim").get("claimName")
    path = "persistentVolumeClaim.claimName"
    return found + _name_problem(claim, SUBDOMAIN, path, "the name of a PersistentVolumeClaim")


def _mounts(container: dict[str, Any], spec: dict[str, Any]) -> list[Problem]:
    mounts = objects(container, "volumeMounts")
    volumes = {str(volume.get("name")): volume for volume in objects(spec, "volumes")}
    found = [
        Problem(
            f"volumeMounts[{index}].mountPath", f"Duplicate value: {shown(path)}: must be unique"
        )
        for index, path in duplicates(mount.get("mountPath") for mount in mounts)
    ]
    for index, mount in enumerate(mounts):
        problems = [*_mount(mount, volumes), *_in_memory(mount, volumes, container)]
        found += under(f"volumeMounts[{index}]", problems)
    return found


def _mount(mount: dict[str, Any], volumes: dict[str, Any]) -> Iterator[Problem]:
    name, path, sub_path = (mount.get(key) for key in ("name", "mountPath", "subPath"))
    if isinstance(name, str) and name not in volumes:
        hint = did_you_mean(name, volumes)
        yield Problem("name", f"Not found: {shown(name)}: there is no such volume.{hint}")
    if isinstance(path, str) and (not path.startswith("/") or ":" in path):
        text = f"Invalid value: {shown(path)}: must be an absolute path without ':'"
        yield Problem("mountPath", text)
    if isinstance(sub_path, str) and (sub_path.startswith("/") or ".." in sub_path.split("/")):
        text = f"Invalid value: {shown(sub_path)}: must be a relative path without '..'"
        yield Problem("subPath", text)


def _in_memory(
    mount: dict[str, Any], volumes: dict[str, Any], container: dict[str, Any]
) -> Iterator[Problem]:
    """Check a volume in memory, such as /dev/shm, against the memory of its container."""
    empty = dig(volumes.get(str(mount.get("name"))), "emptyDir")
    medium = empty.get("medium")
    if medium == "Memory":
        size, limit = empty.get("sizeLimit"), dig(container, "resources", "limits").get("memory")
        if (amount(size) or 0) >= (amount(limit) or float("inf")):
            text = (
                f"Invalid value: this volume in memory takes up to {size}, but counts against the "
                f"container's memory limit of {limit}, which it must be well below. Type a smaller "
                "launcher.shm_size, or a larger resources.memory_per_node."
            )
            yield Problem("name", text)
    elif str(medium).startswith("HugePages") and not _has_hugepages(container):
        text = f"Invalid value: medium {medium} needs a limit for hugepages in resources"
        yield Problem("name", text)


def _has_hugepages(container: dict[str, Any]) -> bool:
    return any(_is_hugepages(key) for key in dig(container, "resources", "limits"))
