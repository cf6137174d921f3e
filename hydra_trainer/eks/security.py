"""Pods that Pod Security "restricted" refuses."""

from collections.abc import Iterator
from typing import Any

from hydra_trainer.problems import Problem
from hydra_trainer.trees import dig, objects

VOLUMES = frozenset(
    {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
)

SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)

PROFILES = ("RuntimeDefault", "Localhost")
SELINUX_TYPES = ("", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")


def restricted_problems(pod_spec: dict[str, Any]) -> list[Problem]:
    """Return what Pod Security "restricted" would refuse in a pod spec; paths are in the spec.

    https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted
    A namespace enforces it with the label pod-security.kubernetes.io/enforce.
    """
    pod = dig(pod_spec, "securityContext")
    problems = [*_host(pod_spec), *_volume_types(pod_spec), *_sysctls(pod)]
    for path, container in _all_containers(pod_spec):
        own = dig(container, "securityContext")
        problems += [
            Problem(f"{path}.{where}", f"Forbidden by Pod Security restricted: {text}")
            for where, text in (*_container(own), *_inherited(own, pod), *_ports(container))
        ]
    return problems


def _all_containers(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in ("initContainers", "containers", "ephemeralContainers"):
        for index, container in enumerate(objects(spec, key)):
            yield f"{key}[{index}]", container


def _host(spec: dict[str, Any]) -> Iterator[Problem]:
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield Problem(key, "Forbidden by Pod Security restricted: must not be true")


def _volume_types(spec: dict[str, Any]) -> Iterator[Problem]:
    for index, volume in enumerate(objects(spec, "volumes")):
        for kind in volume.keys() - VOLUMES - {"name"}:
            text = f"must be one of {', '.join(sorted(VOLUMES))}"
            path = f"volumes[{index}].{kind}"
            yield Problem(path, f"Forbidden by Pod Security restricted: {text}")


def _sysctls(pod: dict[str, Any]) -> Iterator[Problem]:
    for index, sysctl in enumerate(objects(pod, "sysctls")):
        if sysctl.get("name") not in SYSCTLS:
            text = f"must be one of {', '.join(sorted(SYSCTLS))}"
            path = f"securityContext.sysctls[{index}].name"
            yield Problem(path, f"Forbidden by Pod Security restricted: {text}")


def _container(own: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Check what a container must say itself: (path in the container, what must be)."""
    if own.get("privileged"):
        yield "securityContext.privileged", "must not be true"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "securityContext.allowPrivilegeEscalation", "must be false"
    if own.get("procMount") not in (None, "Default"):
        yield "securityContext.procMount", "must be Default"
    capabilities = dig(own, "capabilities")
    if "ALL" not in _words(capabilities, "drop"):
        yield "securityContext.capabilities.drop", "must have ALL"
    if added := [word for word in _words(capabilities, "add") if word != "NET_BIND_SERVICE"]:
        text = f"must not have {', '.join(map(str, added))}, but at most NET_BIND_SERVICE"
        yield "securityContext.capabilities.add", text


def _words(node: dict[str, Any], key: str) -> list[Any]:
    found = node.get(key)
    return found if isinstance(found, list) else []


def _inherited(own: dict[str, Any], pod: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Check what a container may say itself or take from its pod."""
    if {**pod, **own}.get("runAsNonRoot") is not True:
        yield "securityContext.runAsNonRoot", "must be true, here or in the pod"
    if 0 in (own.get("runAsUser"), pod.get("runAsUser")):
        yield "securityContext.runAsUser", "must not be 0"
    profile = dig(own, "seccompProfile") or dig(pod, "seccompProfile")
    if profile.get("type") not in PROFILES:
        text = "must be RuntimeDefault or Localhost, here or in the pod"
        yield "securityContext.seccompProfile.type", text
    for context in (own, pod):
        selinux = dig(context, "seLinuxOptions")
        if selinux.get("type", "") not in SELINUX_TYPES or {"user", "role"} & selinux.keys():
            yield (
                "securityContext.seLinuxOptions",
                "must have a container type only",
            )
        if dig(context, "appArmorProfile").get("type", "RuntimeDefault") not in PROFILES:
            yield "securityContext.appArmorProfile.type", "must be RuntimeDefault or Localhost"
        if dig(context, "windowsOptions").get("hostProcess"):
            yield "securityContext.windowsOptions.hostProcess", "must not be true"


def _ports(container: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for index, port in enumerate(objects(container, "ports")):
        if port.get("hostPort"):
            yield f"ports[{index}].hostPort", "must not be set"
