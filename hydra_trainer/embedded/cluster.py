"""The embedded cluster in this process: a store, its server, and the controllers that run pods."""

import contextlib
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any

from . import kubeconfig
from .access import User
from .history import Object
from .home import KUBECONFIG, LOCK, hold
from .kinds import KINDS, Kind
from .kubelet import Kubelet
from .operators import Controllers
from .podlogs import LOGS
from .refusals import ApiError
from .server import Server
from .store import Store, now

EVENTS_FOR = 3600.0  # seconds, as in a real cluster

NAMESPACES = ("default", "kube-system")


class Embedded:
    """A cluster that lives as long as a `with` block; its objects stay in `home`.

        with Embedded(home) as cluster:
            cluster.faults.add(Fault("lost", method="POST", times=3))
            subprocess.run(["kubectl", "--kubeconfig", cluster.kubeconfig, "get", "pods"])
            cluster.controllers.kubelet.kill("default", "job-worker-0")

    `store` has its objects. Raises BlockingIOError when another process has a cluster in that home.

    Args:
        home: a folder of its own, which is made if need be.
        absent: API groups that nobody has installed, such as kubeflow.org.
        capacity: extended resources of the node, such as {"nvidia.com/gpu": 8}.
        claims: the PersistentVolumeClaims that pods find; None: any, made on use.
        controllers: whether operators and a kubelet run, or objects just stay as they are.
        wait: whether to wait for another process that has the home, to its end.
    """

    def __init__(
        self,
        home: Path,
        *,
        absent: frozenset[str] = frozenset(),
        capacity: dict[str, int] | None = None,
        claims: list[str] | None = None,
        controllers: bool = True,
        wait: bool = False,
    ) -> None:
        self.home = home
        self.kubeconfig = home / KUBECONFIG
        self._absent = absent
        self._capacity = capacity
        self._claims = claims
        self._with_controllers = controllers
        self._wait = wait
        self.controllers: Any = None

    def __enter__(self) -> "Embedded":
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = hold(self.home / LOCK, wait=self._wait)
        self.store = Store(self.home)
        _seed(self.store, self._absent)
        self.tidy()
        before = kubeconfig.read(self.kubeconfig)
        port = before.port if before else 0
        self.server = Server(self.store, self.home, port=port, absent=self._absent)
        self.faults = self.server.faults
        if self._with_controllers:
            kubelet = Kubelet(self.store, self.home, self._capacity, self._claims)
            self.controllers = Controllers(self.store, self.home, kubelet)
            self.controllers.start()
        self.server.start()
        kubeconfig.write(self.kubeconfig, self.server.entry())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        if self.controllers:
            self.controllers.stop()
        self.server.stop()
        self.store.close()
        self._lock.close()

    def kubeconfig_of(self, name: str, *groups: str, namespace: str = "default") -> Path:
        """Return a kubeconfig for a user, who may do what Roles that are bound to it say."""
        token = self.server.access.token(User(name, (*groups, "system:authenticated")))
        file = self.home / f"kubeconfig.{name.replace('/', '_')}"
        return kubeconfig.write(file, self.server.entry(token), namespace)

    def tidy(self) -> None:
        """Forget events of more than an hour ago, and the logs of pods that are gone."""
        folders = [*(self.home / LOGS).glob("*")]
        pods = {record.uid for record in self.store.records("pods")[0]}
        for folder in folders:
            if folder.name.rpartition("_")[2] not in pods:
                shutil.rmtree(folder, ignore_errors=True)
        oldest = now(-EVENTS_FOR)
        for event in self.store.list("events")[0]:
            if str(event.get("lastTimestamp") or event["metadata"]["creationTimestamp"]) < oldest:
                self.store.remove(
                    "events", event["metadata"]["namespace"], event["metadata"]["name"]
                )

    @property
    def is_working(self) -> bool:
        """Whether a container runs."""
        return any(_runs(record.load()) for record in self.store.records("pods")[0])


def _runs(pod: Object) -> bool:
    """Whether a container of a pod runs: of its own, or of those before."""
    status = pod.get("status") or {}
    known = [*(status.get("containerStatuses") or ()), *(status.get("initContainerStatuses") or ())]
    return any("running" in (one.get("state") or {}) for one in known)


def _seed(store: Store, absent: frozenset[str]) -> None:
    """Make what every cluster has from the start."""
    for name in NAMESPACES:
        _ensure(store, "namespaces", "", {"metadata": {"name": name}})
        _ensure(store, "serviceaccounts", name, {"metadata": {"name": "default"}})
    resource = "customresourcedefinitions.apiextensions.k8s.io"
    for kind in KINDS:
        if kind.custom and kind.group in absent:
            store.remove(resource, "", kind.resource)
        elif kind.custom:
            _ensure(store, resource, "", _definition(kind))


def _ensure(store: Store, resource: str, namespace: str, obj: Object) -> None:
    with contextlib.suppress(ApiError):
        store.insert(resource, namespace, obj)


def _definition(kind: Kind) -> Object:
    """Return the CustomResourceDefinition of a kind, without its schema."""
    schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": kind.version,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "additionalPrinterColumns": [
            {"name": name, "jsonPath": path, "type": "string"} for name, path in kind.columns
        ],
        **({"subresources": {"status": {}}} if kind.status else {}),
    }
    names = {
        "plural": kind.plural,
        "singular": kind.kind.lower(),
        "kind": kind.kind,
        "listKind": f"{kind.kind}List",
        "shortNames": list(kind.short),
    }
    spec = {
        "group": kind.group,
        "names": names,
        "scope": "Namespaced" if kind.namespaced else "Cluster",
        "versions": [version],
    }
    established = {"type": "Established", "status": "True", "reason": "InitialNamesAccepted"}
    status = {
        "conditions": [established],
        "acceptedNames": names,
        "storedVersions": [kind.version],
    }
    return {"metadata": {"name": kind.resource}, "spec": spec, "status": status}
