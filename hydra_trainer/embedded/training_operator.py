"""PyTorchJob of kubeflow.org/v1, as Kubeflow's training operator 1.9.4 brings it on.

Its rules, its words, and where it is wrong: what a real cluster shows is what this one shows. Read
in kubeflow/trainer v1.9.4: pkg/controller.v1/{common,pytorch}, pkg/core, pkg/util/status.go.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .admission import check_metadata
from .control import (
    Family,
    Key,
    find,
    holds,
    labels_of,
    phase_of,
    reference,
    seconds_since,
    status_of,
    where,
    write_status,
)
from .events import Recorder
from .kinds import BY_RESOURCE
from .metadata import copied, now
from .pytorch_env import (
    CONTAINER,
    defaulted,
    init_container,
    ports_of,
    variables,
)
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

OPERATOR = "pytorchjob-controller"
MANAGERS = (None, "kubeflow.org/training-operator")
GROUP = "training.kubeflow.org"

RETRYABLE = 128
"""With restartPolicy ExitCode, exit codes from here on are tried again, others are permanent."""

NO_CODE = 0xBEEF
"""What the operator takes for the exit code of a pod whose container has none: it is retryable."""


class PyTorchJobs:
    """The training operator."""

    resource = "pytorchjobs.kubeflow.org"

    def __init__(self, store: Store, family: Family) -> None:
        self.store = store
        self.family = family
        self.events = Recorder(store, OPERATOR)
        self.told: set[str] = set()
        """The pods (by uid) of which it was told how they ended."""

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        if kind == "DELETED" and resource == "pods":
            self.told.discard(obj["metadata"]["uid"])
        return ()

    def reconcile(self, job: Object) -> float | None:
        managed_by = (job["spec"].get("runPolicy") or {}).get("managedBy")
        if managed_by not in MANAGERS or job["metadata"].get("deletionTimestamp"):
            return None
        turn = _Turn(self, job)
        turn.run()
        write_status(self.store, job, turn.status)
        return turn.expires_in


class _Turn:
    """One look at a job: from what there is to what is to be, and what is to be said of it."""

    def __init__(self, operator: PyTorchJobs, job: Object) -> None:
        self.operator = operator
        self.store = operator.store
        self.job = job
        self.namespace, self.name = where(job)
        self.spec = defaulted(job)
        self.policy = self.spec["runPolicy"]
        self.roles: dict[str, Object] = self.spec["pytorchReplicaSpecs"]
        self.status = status_of(job)
        self.pods = operator.family.children(job, "pods")
        self.expires_in: float | None = None

    def run(self) -> None:
        self._set("Created", f"PyTorchJob {self.name} is created.")
        if self._is_finished:
            self._after()
            return
        if self.policy.get("suspend"):
            self._suspend()
            return
        if holds(self.status, "Suspended"):
            self._resume()
        self._tell_of_trouble()
        if message := self._exceeds():
            self.status.setdefault("completionTime", now())
            self._tell("Failed", message)
            self._set("Failed", message)
            return
        for role in self.roles:
            self._pods(role)
            self._services(role)
        self._judge()

    @property
    def _is_finished(self) -> bool:
        return holds(self.status, "Succeeded") or holds(self.status, "Failed")

    # ------------------------------------------------------------------------------ suspend, resume

    def _suspend(self) -> None:
        """Suspending takes all pods away, whatever cleanPodPolicy says."""
        self._clean(lambda pod: True)
        for counts in (self.status.get("replicaStatuses") or {}).values():
            counts.pop("active", None)
        message = f"PyTorchJob {self.name} is suspended."
        if holds(self.status, "Running"):
            self._set("Running", message, "False", reason="Suspended")
        if not holds(self.status, "Suspended"):
            self._tell("Suspended", message)
            self._set("Suspended", message)

    def _resume(self) -> None:
        message = f"PyTorchJob {self.name} is resumed."
        self._set("Suspended", message, "False", reason="Resumed")
        self.status["startTime"] = now()
        self._tell("Resumed", message)

    # --------------------------------------------------------------------------------------- limits

    def _exceeds(self) -> str:
        """Return why the job has failed by its own limits, if it has.

        The deadline is only looked at when something else has happened: the operator's own timer
        does nothing.
        """
        limit = self.policy.get("backoffLimit")
        if limit is not None:
            restarts = sum(map(self._restarts, self.pods))
            # Pods that failed count as one retry: the operator's own number of them is always 0.
            if restarts > 0 or self._has_new_failure if limit == 0 else restarts >= limit:
                why = "it has reached the specified backoff limit"
                return f"Job {self.name} has failed because {why}"
        seconds, started = self.policy.get("activeDeadlineSeconds"), self.status.get("startTime")
        if seconds is not None and started and seconds_since(started) >= seconds:
            why = "it was active longer than specified deadline"
            return f"Job {self.name} has failed because {why}"
        return ""

    @property
    def _has_new_failure(self) -> bool:
        """Whether a pod has failed that the status does not count yet."""
        counts = (self.status.get("replicaStatuses") or {}).values()
        failed = sum(phase_of(pod) == "Failed" for pod in self.pods)
        wanted = sum(role["replicas"] for role in self.roles.values())
        is_new = failed > sum(int(one.get("failed", 0)) for one in counts)
        return is_new and sum(map(_is_active, self.pods)) != wanted

    def _restarts(self, pod: Object) -> int:
        """Return the restarts that backoffLimit counts: in place, of pods that run."""
        role = self.roles.get(labels_of(pod).get(f"{GROUP}/replica-type", "").capitalize())
        if phase_of(pod) != "Running" or role is None or role["restartPolicy"] == "Never":
            return 0
        return sum(int(one["restartCount"]) for one in _states(pod))

    # ---------------------------------------------------------------------------- pods and Services

    def _pods(self, role: str) -> None:
        spec, counts = self.roles[role], {"active": 0, "succeeded": 0, "failed": 0}
        slots: dict[int, Object] = {}
        for pod in self.pods:
            if labels_of(pod).get(f"{GROUP}/replica-type") == role.lower():
                slots[int(labels_of(pod)[f"{GROUP}/replica-index"])] = pod
        for index in range(max([spec["replicas"], *(number + 1 for number in slots)])):
            if index not in slots:
                if index < spec["replicas"]:
                    self._make_pod(role, index)
                continue
            pod = slots[index]
            if index >= spec["replicas"]:
                self._delete("pods", "Pod", pod)
            self._restart(role, pod)
            if kind := _counted_as(pod):
                counts[kind] += 1
        selector = ",".join(f"{GROUP}/{key}={value}" for key, value in self._labels(role).items())
        statuses = self.status.setdefault("replicaStatuses", {})
        statuses[role] = {**{k: v for k, v in counts.items() if v}, "selector": selector}

    def _restart(self, role: str, pod: Object) -> None:
        """Make room for a pod that failed, or fail the job, as restartPolicy wants it."""
        code, policy = _exit_code(pod), self.roles[role]["restartPolicy"]
        if code is not None and pod["metadata"]["uid"] not in self.operator.told:
            self.operator.told.add(pod["metadata"]["uid"])
            text = f"Pod: {self.namespace}.{pod['metadata']['name']} exited with code {code}"
            self.operator.events.tell(self.job, "ExitedWithCode", text)
        if phase_of(pod) != "Failed" or policy == "Never":
            return
        if policy != "ExitCode" or (NO_CODE if code is None else code) >= RETRYABLE:
            self._delete("pods", "Pod", pod)
            message = f"job {self.name} is restarting because {role} replica(s) failed."
            self._tell("Restarting", message, "Warning")
            self._set("Restarting", message)
        else:
            # No completionTime: so ttlSecondsAfterFinished never deletes such a job.
            message = f'job "{self.name}" is failing because "{role}" replica(s) failed.'
            self._tell("Failed", message, "Warning")
            self._set("Failed", message)

    def _make_pod(self, role: str, index: int) -> None:
        spec: Object = copied(self.roles[role])
        template = spec["template"]
        name = f"{self.name}-{role.lower()}-{index}"
        metadata = template.get("metadata") or {}
        pod = template["spec"]
        if pod.get("restartPolicy"):
            text = (
                "Restart policy in pod template will be overwritten by restart policy in replica "
                "spec"
            )
            self.operator.events.tell(self.job, "SetPodTemplateRestartPolicy", text, "Warning")
        policy = spec["restartPolicy"]
        pod["restartPolicy"] = "Never" if policy == "ExitCode" else policy
        env = variables(self.name, self.spec, role, index)
        for container in pod["containers"]:
            container["env"] = [*(container.get("env") or ()), *env]
        if role == "Worker" and "Master" in self.roles:
            waits = init_container(self.name)
            pod["initContainers"] = [*(pod.get("initContainers") or ()), waits]
        labels = {
            **(metadata.get("labels") or {}),
            **{f"{GROUP}/{key}": value for key, value in self._labels(role, index).items()},
        }
        meta = {"name": name, "labels": labels, "annotations": metadata.get("annotations") or {}}
        self._create("pods", "Pod", {"metadata": meta, "spec": pod})

    def _services(self, role: str) -> None:
        there = {
            int(labels_of(one)[f"{GROUP}/replica-index"]): one
            for one in self.operator.family.children(self.job, "services")
            if labels_of(one).get(f"{GROUP}/replica-type") == role.lower()
        }
        wanted = range(self.roles[role]["replicas"])
        for index in (one for one in wanted if one not in there):
            found = {**self._labels(role), "replica-index": str(index)}
            labels = {f"{GROUP}/{key}": value for key, value in found.items()}
            ports = ports_of(self.roles[role])
            spec = {"clusterIP": "None", "selector": labels, "ports": ports}
            meta = {"name": f"{self.name}-{role.lower()}-{index}", "labels": labels}
            self._create("services", "Service", {"metadata": meta, "spec": spec})
        for index in (one for one in there if one not in wanted):
            self._delete("services", "Service", there[index])

    def _labels(self, role: str, index: int | None = None) -> dict[str, str]:
        """Return the operator's labels, without the group, of a role or of one of its pods."""
        found = {
            "job-name": self.name,
            "operator-name": OPERATOR,
            "replica-type": role.lower(),
        }
        if index is None:
            return found
        found["replica-index"] = str(index)
        is_first = role == "Master" or ("Master" not in self.roles and index == 0)
        return {**found, "job-role": "master"} if is_first else found

    def _create(self, resource: str, kind: str, obj: Object) -> None:
        """Create a pod or a Service. Raises ApiError: then this look at the job is over."""
        obj["metadata"]["ownerReferences"] = [reference(self.job)]
        name = obj["metadata"]["name"]
        try:
            check_metadata(BY_RESOURCE[resource], obj)
            self.store.create(resource, self.namespace, obj)
        except ApiError as error:
            text = f"Error creating: {error.message}"
            self.operator.events.tell(self.job, f"FailedCreate{kind}", text, "Warning")
            raise
        text = f"Created {kind.lower()}: {name}"
        self.operator.events.tell(self.job, f"SuccessfulCreate{kind}", text)

    def _delete(self, resource: str, kind: str, obj: Object) -> None:
        if obj["metadata"].get("deletionTimestamp"):
            return
        with contextlib.suppress(ApiError):
            self.store.delete(resource, *where(obj))
            text = f"Deleted {kind.lower()}: {obj['metadata']['name']}"
            self.operator.events.tell(self.job, f"SuccessfulDelete{kind}", text)

    # --------------------------------------------------------------------------------------- status

    def _judge(self) -> None:
        """Write down what the pods mean for the job."""
        self.status.setdefault("startTime", now())
        for role, spec in self.roles.items():
            counts = self.status["replicaStatuses"][role]
            active, succeeded, failed = (
                int(counts.get(key, 0)) for key in ("active", "succeeded", "failed")
            )
            is_done = succeeded == spec["replicas"]
            if role == "Master":
                if active:
                    self._set("Running", f"PyTorchJob {self.name} is running.")
                if is_done:  # whatever the workers do
                    self._succeed(f"PyTorchJob {self.name} is successfully completed.")
                    return
            elif "Master" not in self.roles:
                full = f"PyTorchJob {self.namespace}/{self.name}"
                if is_done or (self.spec.get("elasticPolicy") and succeeded):
                    self._succeed(f"{full} successfully completed.")
                elif active:
                    self._set("Running", f"{full} is running.")
            if failed and spec["replicas"] > succeeded + active:
                self._judge_failures(role, failed)

    def _judge_failures(self, role: str, failed: int) -> None:
        why = f"because {failed} {role} replica(s) failed."
        if self.roles[role]["restartPolicy"] != "Never":
            message = f"PyTorchJob {self.name} is restarting {why}"
            self._tell("Restarting", message, "Warning")
            self._set("Restarting", message)
            return
        message = f"PyTorchJob {self.name} is failed {why}"
        self._tell("Failed", message)
        self.status.setdefault("completionTime", now())
        self._set("Failed", message)

    def _succeed(self, message: str) -> None:
        self._tell("Succeeded", message)
        self.status.setdefault("completionTime", now())
        self._set("Succeeded", message)

    def _after(self) -> None:
        """Clean up after a job that has finished."""
        policy = self.policy["cleanPodPolicy"]
        if policy == "Running":
            self._clean(lambda pod: phase_of(pod) in ("Running", "Pending"))
        elif policy != "None":  # Sometimes is as good as All: nobody checks
            self._clean(lambda pod: True)
        if holds(self.status, "Succeeded"):
            for counts in (self.status.get("replicaStatuses") or {}).values():
                if active := counts.pop("active", 0):
                    counts["succeeded"] = counts.get("succeeded", 0) + active
        seconds = self.policy.get("ttlSecondsAfterFinished")
        ended = self.status.get("completionTime")
        if seconds is not None and ended:
            self.expires_in = max(0.0, seconds - seconds_since(ended))
            if not self.expires_in:
                with contextlib.suppress(ApiError):
                    self.store.delete(self.operator.resource, self.namespace, self.name)

    def _clean(self, wanted: Callable[[Object], bool]) -> None:
        services = {
            one["metadata"]["name"]: one
            for one in self.operator.family.children(self.job, "services")
        }
        for pod in self.pods:
            if wanted(pod):
                self._delete("pods", "Pod", pod)
                if service := services.get(pod["metadata"]["name"]):
                    self._delete("services", "Service", service)

    def _set(self, kind: str, message: str, value: str = "True", *, reason: str = "") -> None:
        """Set a condition. Nothing follows Failed; Running and Restarting exclude each other."""
        if holds(self.status, "Failed"):
            return
        reason = f"PyTorchJob{reason or kind}"
        conditions = self.status.get("conditions") or []
        old = find(conditions, kind)
        if old and (old["status"], old["reason"]) == (value, reason):
            return
        time = now()
        new = {"type": kind, "status": value, "reason": reason, "message": message}
        new["lastUpdateTime"] = time
        same = old is not None and old["status"] == value
        new["lastTransitionTime"] = old["lastTransitionTime"] if old and same else time
        gone = {kind, {"Running": "Restarting", "Restarting": "Running"}.get(kind, kind)}
        kept = [one for one in conditions if one["type"] not in gone]
        if kind in ("Succeeded", "Failed"):
            kept = [{**one, "status": "False"} if one["type"] == "Running" else one for one in kept]
        self.status["conditions"] = [*kept, new]

    def _tell(self, reason: str, message: str, kind: str = "Normal") -> None:
        self.operator.events.tell(self.job, f"PyTorchJob{reason}", message, kind)

    def _tell_of_trouble(self) -> None:
        """Repeat at the job what its pods wait for, and how containers of theirs ended."""
        for pod in filter(_is_active, self.pods):
            for reason, text in _troubles(pod):
                text = f"Error pod {pod['metadata']['name']} {text}"
                self.operator.events.tell(self.job, reason, text, "Warning")


def _is_active(pod: Object) -> bool:
    is_over = phase_of(pod) in ("Succeeded", "Failed")
    return not is_over and "deletionTimestamp" not in pod["metadata"]


def _troubles(pod: Object) -> Iterator[tuple[str, str]]:
    """Yield reasons and messages: of the containers, or of those before, or of the last condition.

    Once there are statuses of containers, the operator takes those before for ready.
    """
    status = pod.get("status") or {}
    states = status.get("containerStatuses") or status.get("initContainerStatuses") or ()
    for one in states:
        waiting, ended = (one["state"].get(key) or {} for key in ("waiting", "terminated"))
        if waiting.get("message"):
            yield (
                waiting["reason"],
                f"container {one['name']} waiting message: {waiting['message']}",
            )
        if ended.get("exitCode"):
            message = ended.get("message", "")
            text = f"exitCode: {ended['exitCode']} terminated message: {message}"
            yield ended["reason"], f"container {one['name']} {text}"
    conditions = status.get("conditions")
    if conditions and not states:
        last = max(conditions, key=lambda one: one.get("lastTransitionTime") or "")
        if last["status"] != "True":
            yield last.get("reason", ""), f"condition message: {last.get('message', '')}"


def _states(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _exit_code(pod: Object) -> int | None:
    """Return how the training container ended, if it has."""
    for one in _states(pod):
        if one["name"] == CONTAINER and (ended := one["state"].get("terminated")):
            return int(ended["exitCode"])
    return None


def _counted_as(pod: Object) -> str:
    phase = phase_of(pod)
    if phase == "Running":
        return "failed" if pod["metadata"].get("deletionTimestamp") else "active"
    return {"Succeeded": "succeeded", "Failed": "failed"}.get(phase, "")
