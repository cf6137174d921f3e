"""What the training operator fills in for a PyTorchJob: defaults, and its pods' environment.

As kubeflow/trainer v1.9.4 does it, in pkg/apis/kubeflow.org/v1/pytorch_defaults.go and
pkg/controller.v1/pytorch/{envvar,master,elastic,initcontainer}.go. The defaults are the
controller's own: the stored object does not show them.
"""

from collections.abc import Iterator
from typing import Any

from .metadata import copied

Object = dict[str, Any]
Variables = Iterator[tuple[str, Any]]

CONTAINER = "pytorch"
PORT_NAME, PORT = "pytorchjob-port", 23456

INIT_IMAGE = "alpine:3.10"
INIT_TRIES = 100
INIT_RESOURCES = {
    "limits": {"cpu": "100m", "memory": "20Mi"},
    "requests": {"cpu": "50m", "memory": "10Mi"},
}


def defaulted(job: Object) -> Object:
    """Return the spec of a job as the operator sees it; Master comes first."""
    spec: Object = copied(job["spec"])
    spec.setdefault("runPolicy", {}).setdefault("cleanPodPolicy", "None")
    elastic = spec.get("elasticPolicy")
    if not (elastic and elastic.get("nProcPerNode")):
        spec.setdefault("nprocPerNode", "auto")
    replicas = spec["pytorchReplicaSpecs"]
    spec["pytorchReplicaSpecs"] = {
        role: _role(replicas[role]) for role in ("Master", "Worker") if role in replicas
    }
    if elastic is not None and "Worker" in replicas:
        for key in ("minReplicas", "maxReplicas"):
            elastic.setdefault(key, replicas["Worker"]["replicas"])
    return spec


def _role(role: Object) -> Object:
    role.setdefault("replicas", 1)
    role.setdefault("restartPolicy", "OnFailure")
    for container in role["template"]["spec"]["containers"]:
        ports = container.setdefault("ports", []) if container["name"] == CONTAINER else None
        if ports is not None and all(port.get("name") != PORT_NAME for port in ports):
            ports.append({"name": PORT_NAME, "containerPort": PORT, "protocol": "TCP"})
    return dict(role)


def ports_of(role: Object) -> list[Object]:
    """Return the ports of the Service of each pod of a role: those of its training container."""
    for container in role["template"]["spec"]["containers"]:
        if container["name"] == CONTAINER:
            named = {port.get("name"): port["containerPort"] for port in container["ports"]}
            return [{**({"name": name} if name else {}), "port": at} for name, at in named.items()]
    return []


def port_of(role: Object) -> int:
    """Return the port at which the pods of a role are reached."""
    for container in role["template"]["spec"]["containers"]:
        for port in container.get("ports") or ():
            if port.get("name") == PORT_NAME:
                return int(port["containerPort"])
    return PORT


def variables(name: str, spec: Object, role: str, index: int) -> list[Object]:
    """Return the variables of all containers of a pod, in the operator's order.

    They come after the user's own, and so win.

    Args:
        name: the job's.
        spec: as `defaulted` returns it.
    """
    found = [("PYTHONUNBUFFERED", 1), *_master(name, spec, role, index)]
    if each := spec.get("nprocPerNode"):
        found.append(("PET_NPROC_PER_NODE", each))
    if spec.get("elasticPolicy"):
        found += _elastic(name, spec)
    else:
        found.append(("PET_NNODES", _total(spec)))
    return [{"name": key, "value": str(value)} for key, value in found]


def _total(spec: Object) -> int:
    return sum(int(role["replicas"]) for role in spec["pytorchReplicaSpecs"].values())


def _master(name: str, spec: Object, role: str, index: int) -> Variables:
    """Nothing of this without a Master: not even a rank."""
    master = spec["pytorchReplicaSpecs"].get("Master")
    if not master:
        return
    port, rank, each = port_of(master), index + (role == "Worker"), spec.get("nprocPerNode", "")
    yield from (("MASTER_PORT", port), ("PET_MASTER_PORT", port))
    yield from ((key, f"{name}-master-0") for key in ("MASTER_ADDR", "PET_MASTER_ADDR"))
    # "auto" counts as one process, elasticPolicy.nProcPerNode does not count, and RANK is that of
    # the pod: nobody but torchrun can use them.
    yield "WORLD_SIZE", _total(spec) * (int(each) if each.isdigit() else 1)
    yield from (("RANK", rank), ("PET_NODE_RANK", rank))


def _elastic(name: str, spec: Object) -> Variables:
    policy, workers = spec["elasticPolicy"], spec["pytorchReplicaSpecs"]["Worker"]
    host = policy.get("rdzvHost") or f"{name}-worker-0"
    yield "PET_RDZV_ENDPOINT", f"{host}:{policy.get('rdzvPort') or port_of(workers)}"
    yield "PET_RDZV_BACKEND", policy.get("rdzvBackend") or "c10d"
    yield "PET_NNODES", f"{policy['minReplicas']}:{policy['maxReplicas']}"
    if "maxRestarts" in policy:
        yield "PET_MAX_RESTARTS", policy["maxRestarts"]
    if "nProcPerNode" in policy:
        yield "PET_NPROC_PER_NODE", policy["nProcPerNode"]
    if "rdzvId" in policy:
        yield "PET_RDZV_ID", policy["rdzvId"]
    if (conf := policy.get("rdzvConf")) is not None:
        if not conf:
            raise ValueError("spec.elasticPolicy.rdzvConf is empty: here the operator panics")
        yield "PET_RDZV_CONF", ",".join(f"{one['key']}={one['value']}" for one in conf)
    if policy.get("standalone"):
        yield "PET_STANDALONE", ""


def init_container(name: str) -> Object:
    """Return what keeps a worker back until the master's name is in DNS."""
    script = (
        f"for i in $(seq {INIT_TRIES}); do nslookup {name}-master-0 && exit 0; "
        "echo waiting for master; sleep 2; done; exit 1"
    )
    return {
        "name": "init-pytorch",
        "image": INIT_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "resources": INIT_RESOURCES,
        "command": ["sh", "-c", script],
    }
