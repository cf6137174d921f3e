"""launcher.check=true: what would stop a job on a cluster, found before anything is created there.

Everything is asked with the user's own rights and changes nothing: objects are read, creates are
dry runs. What these rights cannot see is said, not guessed.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from hydra_trainer.errors import LaunchError, did_you_mean
from hydra_trainer.findings import Finding

from .refusals import OPERATORS, AlreadyExists, ApiError
from .refusals import RIGHTS as RIGHTS_FILE
from .seen import Object, at, count, is_true, label, said
from .troubles import find


class Server(Protocol):
    """The part of `cluster.Cluster` that is needed here."""

    @property
    def context(self) -> str: ...
    @property
    def namespace(self) -> str: ...
    def version(self) -> str: ...
    def served(self, group_version: str) -> frozenset[str]: ...
    def get(self, resource: str, name: str) -> Object | None: ...
    def exists(self, resource: str, name: str) -> bool: ...
    def list(
        self, resource: str, *, labels: str = "", fields: str = ""
    ) -> tuple[list[Object], str]: ...
    def create(self, manifest: Object, *, dry_run: bool = False) -> Object: ...
    def allowed(self, verb: str, resource: str, subresource: str = "") -> bool: ...


# ---------------------------------------------------------------------------------------- rights


class Right(NamedTuple):
    """What a user must be allowed to do, and what for. deploy/rbac.yaml holds exactly these.

    `where` is the kind of job that needs it, `queue` for jobs in a Kueue queue, empty for all.
    Without a right that only the check needs, a job runs all the same.
    """

    resource: str
    verbs: tuple[str, ...]
    what_for: str
    where: str = ""
    subresource: str = ""
    only_check: bool = False

    @property
    def name(self) -> str:
        """Plural and group, as kubectl auth can-i takes them: `pods/log`, `jobs.batch`."""
        return "/".join(p for p in (self.resource.partition("/")[0], self.subresource) if p)


_JOB = ("create", "get", "list", "watch", "delete")
_FOR_JOB = "submit, status, list, wait, follow, cancel"

RIGHTS = (
    Right("pytorchjobs.kubeflow.org/v1", _JOB, _FOR_JOB, "PyTorchJob"),
    Right("trainjobs.trainer.kubeflow.org/v1alpha1", _JOB, _FOR_JOB, "TrainJob"),
    Right(
        "trainingruntimes.trainer.kubeflow.org/v1alpha1",
        ("create", "get", "patch", "delete"),
        "submit: the runtime of a TrainJob, which then owns it",
        "TrainJob",
    ),
    Right("hyperpodpytorchjobs.sagemaker.amazonaws.com/v1", _JOB, _FOR_JOB, "HyperPodPyTorchJob"),
    Right(
        "configmaps",
        ("create", "get", "patch", "delete"),
        "submit: configuration and code, which the job then owns",
    ),
    Right("pods", ("get", "list", "watch"), "status, list, wait, follow, logs, why"),
    Right("pods", ("get",), "logs, follow, why", subresource="log"),
    Right("events", ("list", "watch"), "status, follow, why"),
    Right("workloads.kueue.x-k8s.io/v1beta1", ("list",), "status, follow, why", "queue"),
    Right("localqueues.kueue.x-k8s.io/v1beta1", ("get",), "check", "queue", only_check=True),
    Right("namespaces", ("get",), "check", only_check=True),
    Right("persistentvolumeclaims", ("get",), "check", only_check=True),
    Right("resourcequotas", ("list",), "check", only_check=True),
    Right("serviceaccounts", ("get",), "check", only_check=True),
)


# ---------------------------------------------------------------------------------------- the job

KUEUE_VERSIONS = ("v1beta2", "v1beta1")
"""Versions of Kueue's API, the newest first: each is served for some releases of it."""


@dataclass(frozen=True)
class Plan:
    """What would be sent, taken apart: the job, its pods, and what they refer to."""

    server: Server
    items: list[Object]

    @property
    def job(self) -> Object:
        return self.items[-1]

    @property
    def kind(self) -> str:
        return str(self.job["kind"])

    @property
    def queue(self) -> str | None:
        return label(self.job, "kueue.x-k8s.io/queue-name")

    def roles(self) -> list[tuple[int, Object]]:
        """Return the number of pods and the pod template of each role."""
        spec = self.job["spec"]
        if self.kind == "TrainJob":
            return [(int(at(spec, "trainer", "numNodes") or 1), self._trainer_template())]
        roles = [*(spec.get("pytorchReplicaSpecs") or {}).values(), *spec.get("replicaSpecs", [])]
        return [(int(role.get("replicas") or 1), role["template"]) for role in roles]

    @property
    def pods(self) -> int:
        return sum(replicas for replicas, _ in self.roles())

    def pod_specs(self) -> list[Object]:
        return [template.get("spec") or {} for _, template in self.roles()]

    def named(self, key: str) -> list[str]:
        """Return the values of a field of the pods, each once."""
        return sorted({str(spec[key]) for spec in self.pod_specs() if spec.get(key)})

    def containers(self) -> Iterator[Object]:
        for spec in self.pod_specs():
            yield from [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]

    def volumes(self, source: str) -> dict[str, list[Object]]:
        """Return the volumes of a kind by the name of what is in them, each with its mounts."""
        keys = {"persistentVolumeClaim": "claimName", "secret": "secretName", "configMap": "name"}
        found: dict[str, list[Object]] = {}
        for spec in self.pod_specs():
            for volume in spec.get("volumes") or []:
                if name := at(volume, source, keys[source]):
                    mounts = [m for c in self.containers() for m in c.get("volumeMounts") or []]
                    found.setdefault(name, []).extend(
                        m for m in mounts if m["name"] == volume["name"]
                    )
        return found

    def _trainer_template(self) -> Object:
        """Return the pod template of the runtime that is sent along, or of the patch to one."""
        for item in self.items:
            if item["kind"] == "TrainingRuntime":
                return _node_template(at(item, "spec"))
        spec = self.job["spec"]
        patch = next(iter(spec.get("runtimePatches") or []), None)  # Trainer 2.2 and later
        override: Object = next(iter(spec.get("podTemplateOverrides") or []), {})
        template = _node_template(at(patch, "trainingRuntimeSpec")) if patch else override
        pod = {**(template.get("spec") or {})}
        node = spec.get("trainer") or {}
        ours = {"env": node.get("env"), "resources": node.get("resourcesPerNode")}
        pod["containers"] = [{**item, **ours} for item in pod.get("containers") or [{}]]
        return {"spec": pod}


def _node_template(runtime: Object | None) -> Object:
    jobs = at(runtime, "template", "spec", "replicatedJobs") or [{}]
    return at(jobs[0], "template", "spec", "template") or {}


# ---------------------------------------------------------------------------------------- checks


def preflight(server: Server, manifests: Object) -> list[Finding]:
    """Return what speaks for and against submitting a rendered List of objects now.

    Never raises for what it finds out: a cluster that cannot be reached is a finding, too.
    """
    plan = Plan(server, manifests["items"])
    found: list[Finding] = []
    for what, check in CHECKS.items():
        try:
            for finding in check(plan):
                found.append(finding)
        except ApiError as error:
            found.append(_unseen(what, error))
        except LaunchError as error:
            found.append(Finding("fail", what, _told(error)))
        if what in FIRST and found[-1].level == "fail":
            break  # all that follows would only say the same
    return found


def _unseen(what: str, error: ApiError) -> Finding:
    """Return the finding for what could not be looked at."""
    if error.code == 403:
        return Finding("warn", what, "not looked at, for want of rights.", _first_sentence(error))
    return Finding("warn", what, f"not looked at: {_first_sentence(error)}")


def _first_sentence(error: Exception) -> str:
    return str(error).split("\n", 1)[0]


def _told(error: LaunchError) -> str:
    return " ".join(str(error).split())


def _check_cluster(plan: Plan) -> Iterator[Finding]:
    version = plan.server.version()
    yield Finding("ok", f"cluster {plan.server.context}", f"answers, Kubernetes {version}.")


def _check_namespace(plan: Plan) -> Iterator[Finding]:
    name = plan.server.namespace
    found = plan.server.get("namespaces", name)
    what = f"namespace {name}"
    if found is None:
        advice = f"Type launcher.namespace=ANOTHER, or kubectl create namespace {name}."
        yield Finding("fail", what, "is not there.", advice)
        return
    if at(found, "status", "phase") == "Terminating":
        yield Finding("fail", what, "is being deleted.", "Type launcher.namespace=ANOTHER.")
        return
    yield Finding("ok", what, "is there.")
    level = label(found, "pod-security.kubernetes.io/enforce")
    if level == "restricted" and plan.kind == "PyTorchJob" and len(plan.roles()) > 1:
        yield Finding(
            "warn",
            what,
            "enforces the Pod Security level restricted, which refuses workers when the training "
            "operator's init container has no security context.",
            "Its flag --pytorch-init-container-template-file gives it one; jobs with "
            "resources.min_nodes have no init container.",
        )


def _check_kinds(plan: Plan) -> Iterator[Finding]:
    for item in plan.items:
        if item["apiVersion"] != "v1":
            yield _served(plan, item["apiVersion"], item["kind"].lower() + "s", item["kind"])
    if plan.kind == "TrainJob":
        yield _served(plan, "jobset.x-k8s.io/v1alpha2", "jobsets", "JobSet")


def _served(plan: Plan, group_version: str, plural: str, kind: str) -> Finding:
    if plural in plan.server.served(group_version):
        return Finding("ok", kind, f"{group_version} is served.")
    group = group_version.partition("/")[0]
    operator = OPERATORS.get(group, group)
    advice = f"Install {operator}, or choose another kind of job with launcher.api."
    return Finding("fail", kind, f"the cluster does not serve {plural} of {group_version}.", advice)


def _check_rights(plan: Plan) -> Iterator[Finding]:
    """Ask for each right. That for namespaces a Role gives for its own, which no review tells."""
    wheres = ("", plan.kind, "queue" if plan.queue else "")
    needed = [r for r in RIGHTS if r.where in wheres and r.resource != "namespaces"]
    missing = 0
    for right in needed:
        ask = lambda verb, r=right: plan.server.allowed(verb, r.resource, r.subresource)  # noqa: E731
        if verbs := [verb for verb in right.verbs if not ask(verb)]:
            missing += 1
            yield _may_not(plan, right, verbs)
    if not missing:
        yield Finding("ok", "rights", f"all {sum(len(r.verbs) for r in needed)} are given.")


def _may_not(plan: Plan, right: Right, verbs: list[str]) -> Finding:
    return Finding(
        "warn" if right.only_check else "fail",
        f"right to {', '.join(verbs)} {right.name}",
        f"is missing; needed for: {right.what_for}.",
        f"Have an administrator type kubectl apply -n {plan.server.namespace} -f {RIGHTS_FILE}.",
    )


def _check_claims(plan: Plan) -> Iterator[Finding]:
    for name, mounts in plan.volumes("persistentVolumeClaim").items():
        what = f"claim {name}"
        claim = plan.server.get("persistentvolumeclaims", name)
        if claim is None:
            yield Finding(
                "fail",
                what,
                "is not there.",
                f"Create it, or name another in storage.mounts; kubectl -n {plan.server.namespace} "
                "get pvc lists them.",
            )
            continue
        yield _claim_bound(plan, what, claim)
        writes = not all(mount.get("readOnly") for mount in mounts)
        if finding := _claim_shared(plan, what, claim, writes):
            yield finding


def _claim_bound(plan: Plan, what: str, claim: Object) -> Finding:
    phase = at(claim, "status", "phase")
    modes = ", ".join(at(claim, "spec", "accessModes") or [])
    if phase == "Bound":
        return Finding("ok", what, f"is bound, {modes}.")
    fields = f"involvedObject.kind=PersistentVolumeClaim,involvedObject.name={_name(claim)}"
    events = plan.server.list("events", fields=fields)[0]
    if any(event.get("reason") == "WaitForFirstConsumer" for event in events):
        return Finding("ok", what, f"is bound when the first pod comes, {modes}.")
    words = next((said(event) for event in reversed(events) if event.get("type") == "Warning"), "")
    return Finding(
        "fail",
        what,
        f"is {phase or 'not bound'}. {words}",
        f"See kubectl -n {plan.server.namespace} describe pvc {_name(claim)}: its StorageClass, "
        "and whether the CSI driver runs.",
    )


def _claim_shared(plan: Plan, what: str, claim: Object, writes: bool) -> Finding | None:
    modes = set(at(claim, "spec", "accessModes") or [])
    if plan.pods == 1 or "ReadWriteMany" in modes or ("ReadOnlyMany" in modes and not writes):
        return None
    wanted = "ReadWriteMany" if writes else "ReadWriteMany or ReadOnlyMany"
    return Finding(
        "fail",
        what,
        f"is {', '.join(sorted(modes))}, but {plan.pods} nodes share it, which takes {wanted}.",
        "Use EFS or FSx for Lustre for it (storage.mounts.NAME.claim), or type resources.nodes=1.",
    )


def _check_queue(plan: Plan) -> Iterator[Finding]:
    if plan.queue is None:
        return
    what = f"queue {plan.queue}"
    group = "kueue.x-k8s.io"
    served = [v for v in KUEUE_VERSIONS if "localqueues" in plan.server.served(f"{group}/{v}")]
    if not served:
        advice = "Leave out launcher.queue, or install Kueue."
        yield Finding("fail", what, "the cluster has no Kueue.", advice)
        return
    found = plan.server.get(f"localqueues.{group}/{served[0]}", plan.queue)
    see = f"kubectl -n {plan.server.namespace} get localqueues lists them."
    if found is None:
        yield Finding("fail", what, "is not there.", f"Type launcher.queue=ANOTHER; {see}")
        return
    conditions = [c for c in at(found, "status", "conditions") or [] if c["type"] == "Active"]
    active = next(iter(conditions), None)
    if not is_true(active):
        words = at(active, "message") or "Kueue has not looked at it yet"
        yield Finding("fail", what, f"lets nothing in: {words.rstrip('.')}.", f"Wait, or {see}")
        return
    waiting = at(found, "status", "pendingWorkloads") or 0
    yield Finding("ok", what, f"is active, {waiting} waiting in it.")


def _check_account(plan: Plan) -> Iterator[Finding]:
    for name in plan.named("serviceAccountName"):
        if plan.server.get("serviceaccounts", name) is not None:
            yield Finding("ok", f"service account {name}", "is there.")
            continue
        trouble, groups = find("refused", f'serviceaccount "{name}" not found')
        advice = trouble.advice.format(namespace=plan.server.namespace, **groups)
        yield Finding("fail", f"service account {name}", "is not there.", advice)


def _check_secrets(plan: Plan) -> Iterator[Finding]:
    """Only whether secrets are there: what is in them does not travel."""
    pulls = {s["name"] for spec in plan.pod_specs() for s in spec.get("imagePullSecrets") or []}
    wanted = dict.fromkeys(sorted(pulls), "launcher.image_pull_secrets")
    wanted |= dict.fromkeys(plan.volumes("secret"), "launcher.pod_overrides")
    for container in plan.containers():
        sources = [at(item, "valueFrom", "secretKeyRef") for item in container.get("env") or []]
        sources += [item.get("secretRef") for item in container.get("envFrom") or []]
        wanted |= {s["name"]: "launcher.secrets" for s in sources if s and not s.get("optional")}
    for name, key in wanted.items():
        yield _exists(plan, "secret", name, key)


def _exists(plan: Plan, kind: str, name: str, key: str) -> Finding:
    what = f"{kind} {name}"
    see = f"kubectl -n {plan.server.namespace} get {kind} {name}"
    try:
        if plan.server.exists(f"{kind}s", name):
            return Finding("ok", what, "is there.")
    except ApiError as error:
        if error.code != 403:
            raise
        detail = f"not looked at: {RIGHTS_FILE} leaves {kind}s alone."
        return Finding("warn", what, detail, f"See {see}.")
    return Finding("fail", what, "is not there.", f"Create it, or correct {key}.")


def _check_config_maps(plan: Plan) -> Iterator[Finding]:
    sent = {_name(item) for item in plan.items if item["kind"] == "ConfigMap"}
    for name in sorted(set(plan.volumes("configMap")) - sent):
        yield _exists(plan, "configmap", name, "launcher.pod_overrides")


def _check_priority(plan: Plan) -> Iterator[Finding]:
    for name in plan.named("priorityClassName"):
        what = f"priority class {name}"
        if plan.server.get("priorityclasses.scheduling.k8s.io/v1", name) is not None:
            yield Finding("ok", what, "is there.")
            continue
        listed, _ = plan.server.list("priorityclasses.scheduling.k8s.io/v1")
        hint = did_you_mean(name, map(_name, listed))
        advice = f"Type launcher.priority_class=ONE_THAT_EXISTS.{hint}"
        yield Finding("fail", what, "is not there.", advice)


# ---------------------------------------------------------------------------------------- quota

COUNTED = {"PyTorchJob": "pytorchjobs.kubeflow.org", "TrainJob": "trainjobs.trainer.kubeflow.org"}


def _check_quota(plan: Plan) -> Iterator[Finding]:
    quotas, _ = plan.server.list("resourcequotas")
    needed = _needed(plan)
    for quota in quotas:
        found = list(_quota_problems(plan, quota, needed))
        yield from found or [Finding("ok", f"quota {_name(quota)}", "has room.")]


def _quota_problems(plan: Plan, quota: Object, needed: dict[str, float]) -> Iterator[Finding]:
    what = f"quota {_name(quota)}"
    spec = quota.get("spec") or {}
    scoped = bool(spec.get("scopes") or spec.get("scopeSelector"))
    hard = at(quota, "status", "hard") or spec.get("hard") or {}
    used = at(quota, "status", "used") or {}
    may_be = " (it has scopes, and may not count this job)" if scoped else ""
    for key, limit in hard.items():
        name = {"cpu": "requests.cpu", "memory": "requests.memory"}.get(key, key)
        need, room = needed.get(name, 0.0), quantity(limit) - quantity(used.get(key, 0))
        if name in MUST_BE_SAID and name not in needed:
            yield Finding(
                "warn" if scoped else "fail",
                what,
                f"counts {key}, so that every pod must say how much it needs{may_be}.",
                "Type resources.cpus_per_node=N resources.memory_per_node=NGi, or pod_overrides.",
            )
        elif need > quantity(limit):
            detail = f"allows {key} {limit}, but the job needs {need:g}{may_be}."
            level = "warn" if scoped else "fail"
            yield Finding(level, what, detail, "Type a smaller job, or launcher.namespace=ANOTHER.")
        elif need > room:
            detail = f"has {key} {room:g} of {limit} left, but the job needs {need:g}{may_be}."
            yield Finding("warn", what, detail, "Its pods wait until others end.")


MUST_BE_SAID = ("requests.cpu", "requests.memory", "limits.cpu", "limits.memory")
"""What a pod is refused without when a quota counts it; other resources count as nothing."""


def _needed(plan: Plan) -> dict[str, float]:
    """Return what the job adds to each thing that a quota can count."""
    pods = float(plan.pods)
    total = {"pods": pods, "count/pods": pods}
    if plan.kind == "PyTorchJob":  # the operator makes a Service for each pod
        total |= {"services": pods, "count/services": pods}
    maps = float(sum(item["kind"] == "ConfigMap" for item in plan.items))
    total |= {"configmaps": maps, "count/configmaps": maps}
    total[f"count/{COUNTED.get(plan.kind, plan.kind)}"] = 1.0
    for replicas, template in plan.roles():
        for key, value in _pod_needs(at(template, "spec") or {}).items():
            total[key] = total.get(key, 0.0) + replicas * value
    return total


def _pod_needs(spec: Object) -> dict[str, float]:
    """Return `requests.X` and `limits.X` of one pod, for what all its containers name."""
    total: dict[str, float] = {}
    containers = spec.get("containers") or []
    for name in ("requests", "limits"):
        each = [_resources(container, name) for container in containers]
        for key in set.intersection(*map(set, each)) if each else ():
            total[f"{name}.{key}"] = sum(quantity(item[key]) for item in each)
    return total


def _resources(container: Object, name: str) -> dict[str, Any]:
    """Return the requests or limits of a container; a request defaults to the limit."""
    found = container.get("resources") or {}
    limits = found.get("limits") or {}
    return {**limits, **(found.get("requests") or {})} if name == "requests" else limits


UNITS = {
    **{unit: 1024.0**n for n, unit in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
    **{unit: 1000.0**n for n, unit in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    "m": 1e-3,
    "u": 1e-6,
    "n": 1e-9,
}


def quantity(text: Any) -> float:
    """Return a Kubernetes quantity as a number: 500m is 0.5, 16Gi is 2**34, 1e3 is 1000.

    Raises ValueError when it is none.
    """
    words = str(text).strip()
    unit = next((unit for unit in UNITS if words.endswith(unit)), "")
    return float(words.removesuffix(unit)) * UNITS.get(unit, 1.0)


# -------------------------------------------------------------------------------------- dry runs


def _check_objects(plan: Plan) -> Iterator[Finding]:
    """Let the server say what it would do with each object: schema, webhooks, policies."""
    operator = list(_check_operator(plan))
    yield from operator
    down = any(finding.level == "fail" for finding in operator)
    for item in plan.items:
        if not (down and item is plan.job):  # it would be tried again and again
            yield from _check_dry_run(plan, item)


def _check_operator(plan: Plan) -> Iterator[Finding]:
    """Send a job that the operator's webhook must refuse: a refusal shows that it is there.

    The webhook and the controller are one process, in the training operator 1.9 and in Trainer 2.
    """
    what = f"operator of {plan.kind}"
    try:
        if (probe := _probe(plan)) is not None:
            plan.server.create(probe, dry_run=True)
    except AlreadyExists:
        pass  # admission lets it through
    except LaunchError as error:
        yield from _judged(plan, what, error)
        return
    jobs, _ = plan.server.list(_resource(plan.job))
    if any(at(job, "status", "conditions") for job in jobs):
        yield Finding("ok", what, "has worked on jobs of this namespace before.")
        return
    detail = "cannot be told: nothing refuses a job that it would refuse, and it left no trace."
    yield Finding("warn", what, detail, _see_operator(plan))


def _judged(plan: Plan, what: str, error: LaunchError) -> Iterator[Finding]:
    """Return what the refusal of the probe says about the operator; rights are told elsewhere."""
    _, down, words = str(error).partition("failed calling webhook")
    if down:
        yield Finding("fail", what, f"does not answer: {down}{words}", _see_operator(plan))
    elif "denied the request" in str(error):
        yield Finding("ok", what, "answers.")


def _probe(plan: Plan) -> Object | None:
    """Return a job that the API server takes and only the operator's webhook refuses."""
    probe = copy.deepcopy(plan.job)
    if plan.kind == "PyTorchJob":
        roles = probe["spec"]["pytorchReplicaSpecs"]
        roles["Chief"] = next(iter(roles.values()))
        return probe
    if plan.kind == "TrainJob":
        probe["spec"]["runtimeRef"]["name"] = f"{_name(probe)[:50]}-absent"
        return probe
    return None


def _see_operator(plan: Plan) -> str:
    group = plan.job["apiVersion"].partition("/")[0]
    return f"See that {OPERATORS.get(group, group)} runs: kubectl get deployments -A."


def _check_dry_run(plan: Plan, item: Object) -> Iterator[Finding]:
    what = f"{item['kind']} {_name(item)}"
    try:
        plan.server.create(item, dry_run=True)
    except AlreadyExists:
        same = "a submit finds it" if item is plan.job else "it is used or replaced"
        yield Finding("ok", what, f"is accepted; there is one already, {same}.")
    except LaunchError as error:
        if item is plan.job and "must be created before" in str(error):
            # Trainer looks for the runtime, which a dry run does not leave behind.
            yield Finding("ok", what, "is refused only because its runtime is not there yet.")
        elif not _told_before(error):
            yield Finding("fail", what, _told(error))
    else:
        yield Finding("ok", what, "is accepted (dry run).")


def _told_before(error: LaunchError) -> bool:
    """Tell whether the check of kinds, or that of rights, has the same complaint."""
    if not isinstance(error, ApiError):
        return False
    return error.code == 404 or (error.code == 403 and '" cannot ' in error.message)


def _check_pods(plan: Plan) -> Iterator[Finding]:
    """Let the server judge the pods, as the operator would make them, where rights suffice.

    Only so do the Pod Security level, limit ranges and policies for pods come to light.
    """
    complete = [(n, t) for n, t in plan.roles() if _is_complete(t)]
    if not complete:
        return
    if not plan.server.allowed("create", "pods"):
        detail = "not tried against Pod Security and policies, for want of the right to create any."
        yield Finding("warn", "pods", detail)
        return
    template = complete[0][1]
    pod = {"apiVersion": "v1", "kind": "Pod", **copy.deepcopy(template)}
    pod["metadata"] = {**(pod.get("metadata") or {}), "name": f"{_name(plan.job)[:50]}-check"}
    pod["spec"]["restartPolicy"] = "Never"
    try:
        plan.server.create(pod, dry_run=True)
    except LaunchError as error:
        trouble, groups = find("refused", str(error))
        advice = trouble.advice.format(namespace=plan.server.namespace, **groups)
        yield Finding("fail", "pods", _told(error), advice)
    else:
        yield Finding("ok", "pods", f"{count(plan.pods, 'pod')} would be accepted.")


def _is_complete(template: Object) -> bool:
    """Tell whether a template is one by itself, not a patch for a runtime of the cluster."""
    containers = at(template, "spec", "containers") or []
    return bool(containers) and all(container.get("image") for container in containers)


def _name(item: Object) -> str:
    return str(item["metadata"]["name"])


def _resource(item: Object) -> str:
    return f"{item['kind'].lower()}s.{item['apiVersion']}"


CHECKS: dict[str, Callable[[Plan], Iterator[Finding]]] = {
    "cluster": _check_cluster,
    "namespace": _check_namespace,
    "kinds": _check_kinds,
    "rights": _check_rights,
    "queue": _check_queue,
    "claims": _check_claims,
    "secrets": _check_secrets,
    "config maps": _check_config_maps,
    "service account": _check_account,
    "priority class": _check_priority,
    "quota": _check_quota,
    "dry run": _check_objects,
    "pods": _check_pods,
}
FIRST = ("cluster", "namespace")
"""Checks without which the others make no sense."""
