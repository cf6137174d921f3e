"""The scheduler in small: it gives each pod a node, or says in its own words why there is none.

Of a node, it looks at taints, `unschedulable`, and what is in `status.allocatable`. An extended
resource that is not there is none (GPUs), but CPU and memory that are not there are not counted: as
the node of the start has them, the machine is what it is. A node selector has to match the labels
that the node has; it stands for any machine in those that it does not have, and so for affinity.
"""

from collections.abc import Collection, Iterator
from decimal import Decimal
from typing import Any

from .control import Key
from .events import Recorder
from .podstatus import OVER, condition
from .quantities import amount, requests
from .store import Store

Object = dict[str, Any]

UNCOUNTED = ("cpu", "memory", "ephemeral-storage")


class Scheduler:
    """Brings pods one step on: to a node.

    Args:
        store: where nodes, pods and claims are.
        claims: the PersistentVolumeClaims that exist besides those in the store; None: any.
    """

    resource = "pods"

    def __init__(self, store: Store, claims: Collection[str] | None = None) -> None:
        self._store = store
        self._claims = claims
        self._events = Recorder(store, "default-scheduler")
        self._placed: dict[str, tuple[str, dict[str, Decimal]]] = {}  # by uid: node, requests
        self._waiting: dict[str, Key] = {}  # by uid

    def note(self, kind: str, resource: str, obj: Object) -> Iterator[Key]:
        """Take in a change; yield the pods that it may let go on."""
        if resource == "pods":
            uid = obj["metadata"]["uid"]
            is_over = kind == "DELETED" or (obj.get("status") or {}).get("phase") in OVER
            if kind == "DELETED":
                self._waiting.pop(uid, None)
            if is_over and uid in self._placed:
                del self._placed[uid]
                yield from self._waiting.values()
            elif not is_over and obj["spec"].get("nodeName"):
                self._placed[uid] = (obj["spec"]["nodeName"], requests(obj))
        elif resource in ("nodes", "persistentvolumeclaims"):
            yield from self._waiting.values()

    def reconcile(self, pod: Object) -> None:
        meta = pod["metadata"]
        if pod["spec"].get("nodeName") or meta.get("deletionTimestamp"):
            return
        problem = self._claim_problem(pod)
        nodes, _ = self._store.list("nodes")
        problems = [] if problem else [(node, self._problem(node, pod)) for node in nodes]
        fit = [node for node, text in problems if text is None]
        if fit:
            self._place(pod, min(fit, key=self._load)["metadata"]["name"])
            return
        words = [text for _, text in problems if text]
        counted = sorted(f"{words.count(text)} {text}" for text in {*words})
        self._refuse(pod, f"0/{len(nodes)} nodes are available: {problem or ', '.join(counted)}.")

    def _load(self, node: Object) -> int:
        return sum(name == node["metadata"]["name"] for name, _ in self._placed.values())

    # -------------------------------------------------------------------------------------- writing

    def _place(self, pod: Object, node: str) -> None:
        where = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self._waiting.pop(pod["metadata"]["uid"], None)

        def place(found: Object) -> None:
            found["spec"]["nodeName"] = node
            found["status"] |= {"hostIP": "127.0.0.1", "podIP": "127.0.0.1"}
            found["status"]["podIPs"] = [{"ip": "127.0.0.1"}]
            _set(found, condition(None, "PodScheduled", True))

        self._placed[pod["metadata"]["uid"]] = (node, requests(pod))
        self._store.change("pods", *where, place)
        text = f"Successfully assigned {'/'.join(where)} to {node}"
        self._events.tell(pod, "Scheduled", text)

    def _refuse(self, pod: Object, why: str) -> None:
        where = pod["metadata"]["namespace"], pod["metadata"]["name"]
        self._waiting[pod["metadata"]["uid"]] = ("pods", *where)
        count = why.partition("/")[2].partition(" ")[0]
        why += f" no new claims to deallocate, preemption: 0/{count} nodes are available: {count} "
        why += "Preemption is not helpful for scheduling."
        found = condition(None, "PodScheduled", False, "Unschedulable", why)

        def refuse(obj: Object) -> None:
            before = [one.get("message") for one in obj["status"].get("conditions") or ()]
            if why not in before:
                _set(obj, found)

        self._store.change("pods", *where, refuse)
        self._events.tell(pod, "FailedScheduling", why, "Warning")

    # ------------------------------------------------------------------------------------- judging

    def _problem(self, node: Object, pod: Object) -> str | None:
        """Return why a pod does not fit on a node."""
        spec, labels = node.get("spec") or {}, node["metadata"].get("labels") or {}
        if spec.get("unschedulable"):
            return "node(s) were unschedulable"
        for taint in spec.get("taints") or ():
            if taint["effect"] != "PreferNoSchedule" and not _tolerated(taint, pod):
                return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
        for key, value in (pod["spec"].get("nodeSelector") or {}).items():
            if labels.get(key, value) != value:
                return "node(s) didn't match Pod's node affinity/selector"
        return self._insufficient(node, requests(pod))

    def _insufficient(self, node: Object, wanted: dict[str, Decimal]) -> str | None:
        name, has = node["metadata"]["name"], (node.get("status") or {}).get("allocatable") or {}
        there = [used for where, used in self._placed.values() if where == name]
        if "pods" in has and len(there) >= amount(has["pods"]):
            return "Too many pods"
        for resource, value in wanted.items():
            if resource in has or resource not in UNCOUNTED:
                used = sum((one.get(resource, Decimal(0)) for one in there), Decimal(0))
                if value and used + value > amount(has.get(resource, 0)):
                    return f"Insufficient {resource}"
        return None

    def _claim_problem(self, pod: Object) -> str | None:
        namespace = pod["metadata"]["namespace"]
        for volume in pod["spec"].get("volumes") or ():
            if claim := volume.get("persistentVolumeClaim"):
                name = claim["claimName"]
                found, _ = self._store.list(
                    "persistentvolumeclaims", namespace, fields=f"metadata.name={name}"
                )
                if not found and self._claims is not None and name not in self._claims:
                    return f'persistentvolumeclaim "{name}" not found'
                if found and (found[0].get("status") or {}).get("phase") != "Bound":
                    return "pod has unbound immediate PersistentVolumeClaims"
        return None


def _tolerated(taint: Object, pod: Object) -> bool:
    """https://kubernetes.io/docs/concepts/scheduling-eviction/taint-and-toleration/"""
    return any(
        one.get("key") in (None, "", taint["key"])
        and one.get("effect") in (None, "", taint["effect"])
        and (one.get("operator") == "Exists" or one.get("value", "") == taint.get("value", ""))
        for one in pod["spec"].get("tolerations") or ()
    )


def _set(pod: Object, found: Object) -> None:
    others = pod["status"].get("conditions") or []
    pod["status"]["conditions"] = [*(o for o in others if o["type"] != found["type"]), found]
