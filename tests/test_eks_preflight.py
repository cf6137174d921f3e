"""What launcher.check=true finds out about a cluster, and the rights in deploy/rbac.yaml."""

import copy
import fnmatch
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from hydra_trainer.eks.preflight import RIGHTS, preflight, quantity
from hydra_trainer.eks.refusals import AlreadyExists, ApiError
from hydra_trainer.errors import LaunchError
from hydra_trainer.findings import Finding, render_findings

from .conftest import REPOSITORY

Object = dict[str, Any]
NAME = "digits-3f2a1b9c"
KUEUE = "kueue.x-k8s.io"

# --------------------------------------------------------------------------- what would be sent


def template(**more: Any) -> Object:
    container = {
        "name": more.pop("container", "pytorch"),
        "image": "registry/train:1",
        "env": [
            {"name": "HYDRA_TRAINER_MOUNT_DATA", "value": "/mnt/data"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "key"}}},
        ],
        "resources": {
            "requests": {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "8"},
            "limits": {"memory": "16Gi", "nvidia.com/gpu": "8"},
        },
        "volumeMounts": [
            {"name": "job", "mountPath": "/hydra-trainer/job"},
            {"name": "claim-efs", "mountPath": "/mnt/data", "readOnly": more.pop("reads", False)},
        ],
    }
    spec = {
        "serviceAccountName": "trainer",
        "imagePullSecrets": [{"name": "registry"}],
        "containers": [container],
        "volumes": [
            {"name": "job", "configMap": {"name": NAME}},
            {"name": "claim-efs", "persistentVolumeClaim": {"claimName": "efs"}},
        ],
    }
    return {"metadata": {"labels": {"hydra-trainer.dev/job": NAME}}, "spec": spec | more}


def item(api: str, kind: str, spec: Object, **labels: str) -> Object:
    metadata = {"name": NAME, "labels": {"hydra-trainer.dev/job": NAME, **labels}}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


CONFIG = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": {}}
QUEUED = {f"{KUEUE}/queue-name": "gpus"}


def pytorchjob(nodes: int = 2, labels: Object | None = None, **more: Any) -> Object:
    role = {"restartPolicy": "ExitCode", "template": template(**more)}
    roles = {"Master": {"replicas": 1, **role}}
    if nodes > 1:
        roles["Worker"] = {"replicas": nodes - 1, **role}
    job = item("kubeflow.org/v1", "PyTorchJob", {"pytorchReplicaSpecs": roles}, **labels or {})
    return {"items": [CONFIG, job]}


def trainjob(runtime: bool = True) -> Object:
    api, own = "trainer.kubeflow.org/v1alpha1", template(container="node")
    node = {"name": "node", "template": {"spec": {"template": own}}}
    spec: Object = {"runtimeRef": {"name": NAME}, "trainer": {"numNodes": 2}}
    inside = {"template": {"spec": {"replicatedJobs": [node]}}}
    if runtime:
        items = [CONFIG, item(api, "TrainingRuntime", inside), item(api, "TrainJob", spec)]
        return {"items": items}
    container = own["spec"]["containers"][0]
    spec["trainer"] |= {"env": container.pop("env"), "resourcesPerNode": container.pop("resources")}
    del container["image"]
    spec["runtimePatches"] = [{"manager": "x.dev/y", "trainingRuntimeSpec": inside}]
    return {"items": [CONFIG, item(api, "TrainJob", spec)]}


def hyperpod() -> Object:
    spec = {"replicaSpecs": [{"name": "pod", "replicas": 2, "template": template()}]}
    return {"items": [CONFIG, item("sagemaker.amazonaws.com/v1", "HyperPodPyTorchJob", spec)]}


# ------------------------------------------------------------------------------ a cluster to ask

READY: dict[tuple[str, str], Object] = {
    ("namespaces", "team"): {"metadata": {"name": "team"}, "status": {"phase": "Active"}},
    ("serviceaccounts", "trainer"): {"metadata": {"name": "trainer"}},
    ("secrets", "registry"): {"metadata": {"name": "registry"}},
    ("secrets", "wandb"): {"metadata": {"name": "wandb"}},
    ("persistentvolumeclaims", "efs"): {
        "metadata": {"name": "efs"},
        "spec": {"accessModes": ["ReadWriteMany"]},
        "status": {"phase": "Bound"},
    },
    (f"localqueues.{KUEUE}/v1beta1", "gpus"): {
        "metadata": {"name": "gpus"},
        "status": {"pendingWorkloads": 3, "conditions": [{"type": "Active", "status": "True"}]},
    },
}
SERVED = {
    "kubeflow.org/v1": {"pytorchjobs"},
    "trainer.kubeflow.org/v1alpha1": {"trainjobs", "trainingruntimes"},
    "jobset.x-k8s.io/v1alpha2": {"jobsets"},
    "sagemaker.amazonaws.com/v1": {"hyperpodpytorchjobs"},
    f"{KUEUE}/v1beta1": {"localqueues", "workloads"},
}
HOOK = 'admission webhook "validator.pytorchjob.training-operator.kubeflow.org" denied the request'


def refused(code: int, message: str) -> ApiError:
    return ApiError(f"The cluster 'prod' refused: {message}", code, "Reason", message)


class Fake:
    """A cluster in a dict: what is there, what is served, and who may do what."""

    context, namespace = "prod", "team"

    def __init__(self, **objects: Object | None) -> None:
        self.objects = copy.deepcopy(READY)
        self.served_now: dict[str, set[str]] = {**SERVED}
        self.denied: set[str] = {"create pods", "get secrets", "get priorityclasses"}
        self.webhooks: list[Callable[[Object], None]] = [operator]
        self.created: list[Object] = []
        self.asked: list[str] = []

    def put(self, resource: str, name: str, thing: Object | None) -> "Fake":
        """Put an object in, or take it out."""
        self.objects.pop((resource, name), None)
        if thing is not None:
            self.objects[resource, name] = {"metadata": {"name": name}, **thing}
        return self

    def version(self) -> str:
        return "v1.33.2-eks-931bdca"

    def served(self, group_version: str) -> frozenset[str]:
        return frozenset(self.served_now.get(group_version, ()))

    def get(self, resource: str, name: str) -> Object | None:
        self._ask("get", resource)
        return self.objects.get((resource, name))

    def exists(self, resource: str, name: str) -> bool:
        return self.get(resource, name) is not None

    def list(
        self, resource: str, *, labels: str = "", fields: str = ""
    ) -> tuple[list[Object], str]:
        self._ask("list", resource)
        return [thing for (kind, _), thing in self.objects.items() if kind == resource], "1"

    def create(self, manifest: Object, *, dry_run: bool = False) -> Object:
        assert dry_run, "a check creates nothing"
        kind = manifest["kind"].lower() + "s"
        self._ask("create", kind)
        if manifest["apiVersion"] != "v1" and kind not in self.served(manifest["apiVersion"]):
            raise refused(404, "the server could not find the requested resource")
        for webhook in self.webhooks:
            webhook(manifest)
        if any(k.startswith(kind) and name == NAME for k, name in self.objects):
            raise AlreadyExists("is there", 409, "AlreadyExists", "is there")
        self.created.append(manifest)
        return manifest

    def allowed(self, verb: str, resource: str, subresource: str = "") -> bool:
        plural = resource.partition(".")[0]
        return f"{verb} {plural}/{subresource}".rstrip("/") not in self.denied

    def _ask(self, verb: str, resource: str) -> None:
        what = f"{verb} {resource.partition('.')[0]}"
        self.asked.append(what)
        if what in self.denied:
            raise refused(403, f'User "me" cannot {what}')


def operator(manifest: Object) -> None:
    """Refuse what the operators' webhooks refuse, in their words."""
    spec = manifest.get("spec", {})
    if "Chief" in spec.get("pytorchReplicaSpecs", {}):
        raise refused(403, f'{HOOK}: spec.pytorchReplicaSpecs: Unsupported value: "Chief"')
    if spec.get("runtimeRef", {}).get("name", "").endswith("-absent"):
        raise refused(403, f"{HOOK}: specified trainingRuntime must be created before the TrainJob")


def checked(fake: Fake, manifests: Object | None = None) -> dict[str, Finding]:
    """Return the findings by what was looked at, the worst where there are several."""
    before = copy.deepcopy(manifests)
    found: dict[str, Finding] = {}
    for finding in preflight(fake, manifests or pytorchjob()):
        worse = found.get(finding.what)
        if worse is None or "ok warn fail".index(finding.level) > "ok warn fail".index(worse.level):
            found[finding.what] = finding
    assert manifests == before
    return found


def levels(found: dict[str, Finding], level: str) -> list[str]:
    return [what for what, finding in found.items() if finding.level == level]


@pytest.mark.parametrize(
    "manifests",
    [pytorchjob(labels=QUEUED), trainjob(), trainjob(runtime=False), hyperpod()],
    ids=["PyTorchJob in a queue", "TrainJob", "TrainJob on a runtime of the cluster", "HyperPod"],
)
def test_nothing_stops_a_job_that_would_run(manifests: Object) -> None:
    """With the rights of deploy/rbac.yaml only: what they cannot see is said."""
    found = checked(Fake(), manifests)
    assert levels(found, "fail") == []
    kind = manifests["items"][-1]["kind"]
    unseen = {"secret registry", "secret wandb", "pods", f"operator of {kind}"}
    assert set(levels(found, "warn")) <= unseen
    assert found["claim efs"] == Finding("ok", "claim efs", "is bound, ReadWriteMany.")
    assert found["cluster prod"].detail == "answers, Kubernetes v1.33.2-eks-931bdca."
    assert ("queue gpus" in found) == (kind == "PyTorchJob")
    if kind != "HyperPodPyTorchJob":  # whose operator has no webhook that could be asked
        assert found[f"operator of {kind}"] == Finding("ok", f"operator of {kind}", "answers.")


def test_all_is_seen_with_more_rights() -> None:
    fake = Fake()
    fake.denied = set()
    assert levels(checked(fake), "ok") == list(checked(fake))
    assert fake.created[-1]["kind"] == "Pod"
    assert fake.created[-1]["spec"]["restartPolicy"] == "Never"


def claim(phase: str = "Bound", mode: str = "ReadWriteMany") -> Object:
    return {"spec": {"accessModes": [mode]}, "status": {"phase": phase}}


def event(reason: str, message: str, kind: str = "Warning") -> Object:
    about = {"kind": "PersistentVolumeClaim", "name": "efs"}
    return {"involvedObject": about, "reason": reason, "message": message, "type": kind}


def quota(hard: Object, used: Object | None = None, **spec: Any) -> Object:
    return {"spec": {"hard": hard, **spec}, "status": {"hard": hard, "used": used or {}}}


def queue(status: str, message: str) -> Object:
    active = {"type": "Active", "status": status, "message": message}
    other = {"type": "Other", "status": "True", "message": "of a later Kueue"}
    return {"status": {"conditions": [other, active]}}


def without(api: str) -> Fake:
    fake = Fake()
    fake.served_now.pop(api)
    return fake


def denying(*rights: str) -> Fake:
    fake = Fake()
    fake.denied |= set(rights)
    return fake


def webhook(message: str, kind: str = "PyTorchJob", error: Any = None) -> Fake:
    def refuse(manifest: Object) -> None:
        if manifest["kind"] == kind:
            raise error or refused(403, message)

    fake = Fake()
    fake.webhooks = [operator, refuse] if error is None else [refuse]
    fake.denied -= {"create pods"}
    return fake


Q, PVC, LQ = "resourcequotas", "persistentvolumeclaims", f"localqueues.{KUEUE}/v1beta1"
IN_QUEUE = pytorchjob(labels=QUEUED)
DOWN = LaunchError(
    "`create pytorchjobs` was tried 3 times: Internal error occurred: failed calling webhook "
    '"validator.pytorchjob.training-operator.kubeflow.org": no endpoints available for service '
    '"training-operator"'
)
SECURITY = 'pods "x" is forbidden: violates PodSecurity "restricted:latest": runAsNonRoot != true'

CASES: dict[str, tuple[Fake, Object, str, str, str]] = {
    # what is wrong: (the cluster, what is sent, level, what, words)
    "no namespace": (
        Fake().put("namespaces", "team", None), pytorchjob(),
        "fail", "namespace team", "kubectl create namespace team",
    ),
    "namespace being deleted": (
        Fake().put("namespaces", "team", {"status": {"phase": "Terminating"}}), pytorchjob(),
        "fail", "namespace team", "is being deleted",
    ),
    "restricted namespace, with an init container": (
        Fake().put("namespaces", "team", {"metadata": {"labels": {
            "pod-security.kubernetes.io/enforce": "restricted"}}}), pytorchjob(),
        "warn", "namespace team", "--pytorch-init-container-template-file",
    ),
    "no operator": (
        without("kubeflow.org/v1"), pytorchjob(),
        "fail", "PyTorchJob", "Install the Kubeflow training operator",
    ),
    "no JobSet": (
        without("jobset.x-k8s.io/v1alpha2"), trainjob(),
        "fail", "JobSet", "does not serve jobsets of jobset.x-k8s.io/v1alpha2",
    ),
    "no right to submit": (
        denying("create pytorchjobs", "delete pytorchjobs"), pytorchjob(),
        "fail", "right to create, delete pytorchjobs.kubeflow.org",
        "needed for: submit, status, list, wait, follow, cancel. Have an administrator type "
        "kubectl apply -n team -f deploy/rbac.yaml.",
    ),
    "no right to logs": (
        denying("get pods/log"), pytorchjob(),
        "fail", "right to get pods/log", "logs, follow, why",
    ),
    "no right to look at claims": (
        denying("get persistentvolumeclaims"), pytorchjob(),
        "warn", "right to get persistentvolumeclaims", "needed for: check.",
    ),
    "claim is not there": (
        Fake().put(PVC, "efs", None), pytorchjob(),
        "fail", "claim efs", "storage.mounts",
    ),
    "claim has no volume": (
        Fake().put(PVC, "efs", claim("Pending")).put(
            "events", "e", event("ProvisioningFailed", 'storageclass "efs-sc" not found')),
        pytorchjob(), "fail", "claim efs", 'is Pending. storageclass "efs-sc" not found',
    ),
    "claim waits for its first pod": (
        Fake().put(PVC, "efs", claim("Pending")).put(
            "events", "e", event("WaitForFirstConsumer", "waiting", "Normal")),
        pytorchjob(), "ok", "claim efs", "is bound when the first pod comes",
    ),
    "claim of one node, for two": (
        Fake().put(PVC, "efs", claim(mode="ReadWriteOnce")), pytorchjob(),
        "fail", "claim efs", "is ReadWriteOnce, but 2 nodes share it, which takes ReadWriteMany.",
    ),
    "claim of one node, for one": (
        Fake().put(PVC, "efs", claim(mode="ReadWriteOnce")), pytorchjob(nodes=1),
        "ok", "claim efs", "is bound, ReadWriteOnce.",
    ),
    "claim to read, for many": (
        Fake().put(PVC, "efs", claim(mode="ReadOnlyMany")), pytorchjob(reads=True),
        "ok", "claim efs", "is bound, ReadOnlyMany.",
    ),
    "claim to read, written": (
        Fake().put(PVC, "efs", claim(mode="ReadOnlyMany")), pytorchjob(),
        "fail", "claim efs", "takes ReadWriteMany.",
    ),
    "no Kueue": (
        without(f"{KUEUE}/v1beta1"), IN_QUEUE,
        "fail", "queue gpus", "Leave out launcher.queue",
    ),
    "queue is not there": (
        Fake().put(LQ, "gpus", None), IN_QUEUE,
        "fail", "queue gpus", "launcher.queue=ANOTHER",
    ),
    "queue is stopped": (
        Fake().put(LQ, "gpus", queue("False", "Can't submit new workloads to clusterQueue")),
        IN_QUEUE, "fail", "queue gpus", "lets nothing in: Can't submit new workloads",
    ),
    "queue is new": (
        Fake().put(LQ, "gpus", {}), IN_QUEUE,
        "fail", "queue gpus", "Kueue has not looked at it yet",
    ),
    "quota too small": (
        Fake().put(Q, "q", quota({"requests.nvidia.com/gpu": "16"})), pytorchjob(nodes=3),
        "fail", "quota q", "allows requests.nvidia.com/gpu 16, but the job needs 24.",
    ),
    "quota in use": (
        Fake().put(Q, "q", quota({"memory": "64Gi"}, {"memory": "48Gi"})), pytorchjob(),
        "warn", "quota q", "Its pods wait until others end.",
    ),
    "quota of services": (
        Fake().put(Q, "q", quota({"services": "1"})), pytorchjob(),
        "fail", "quota q", "allows services 1, but the job needs 2.",
    ),
    "quota that counts what no pod says": (
        Fake().put(Q, "q", quota({"limits.cpu": "100"})), pytorchjob(),
        "fail", "quota q", "counts limits.cpu, so that every pod must say",
    ),
    "quota of some pods only": (
        Fake().put(Q, "q", quota({"pods": "1"}, scopes=["BestEffort"])), pytorchjob(),
        "warn", "quota q", "may not count this job",
    ),
    "quota of some pods only, that counts what no pod says": (
        Fake().put(Q, "q", quota({"limits.cpu": "1"}, scopeSelector={"a": []})),
        pytorchjob(), "warn", "quota q", "counts limits.cpu",
    ),
    "quota with room": (
        Fake().put(Q, "q", quota({"cpu": "9", "pods": "2", "requests.memory": "32Gi"})),
        pytorchjob(), "ok", "quota q", "has room.",
    ),
    "service account is not there": (
        Fake().put("serviceaccounts", "trainer", None), pytorchjob(),
        "fail", "service account trainer", "kubectl -n team create serviceaccount trainer",
    ),
    "secret cannot be seen": (
        Fake(), pytorchjob(),
        "warn", "secret wandb", "See kubectl -n team get secret wandb.",
    ),
    "priority class cannot be seen": (
        Fake(), pytorchjob(priorityClassName="high"),
        "warn", "priority class", "not looked at, for want of rights.",
    ),
    "operator is down": (
        webhook("", error=DOWN), pytorchjob(),
        "fail", "operator of PyTorchJob", 'no endpoints available for service "training-operator"',
    ),
    "operator left no trace": (
        webhook("", kind="none", error=DOWN), pytorchjob(),
        "warn", "operator of PyTorchJob", "cannot be told",
    ),
    "operator that has no webhook but works": (
        webhook("", kind="none", error=DOWN).put(
            "pytorchjobs.kubeflow.org/v1", "other", {"status": {"conditions": [{}]}}),
        pytorchjob(), "ok", "operator of PyTorchJob", "has worked on jobs",
    ),
    "webhook refuses the job": (
        webhook(f"{HOOK}: spec.pytorchReplicaSpecs.Master.replicas: Invalid value"), pytorchjob(),
        "fail", f"PyTorchJob {NAME}", "Master.replicas: Invalid value",
    ),
    "policy refuses the configuration": (
        webhook("no ConfigMaps here", "ConfigMap"), pytorchjob(),
        "fail", f"ConfigMap {NAME}", "no ConfigMaps here",
    ),
    "the job is there already": (
        Fake().put("pytorchjobs.kubeflow.org/v1", NAME, {}), pytorchjob(),
        "ok", f"PyTorchJob {NAME}", "there is one already, a submit finds it.",
    ),
    "runtime of a TrainJob is not there yet": (
        webhook("specified trainingRuntime must be created before the TrainJob is created",
                "TrainJob"), trainjob(),
        "ok", f"TrainJob {NAME}", "its runtime is not there yet",
    ),
    "Pod Security refuses the pods": (
        webhook(SECURITY, "Pod"), pytorchjob(),
        "fail", "pods", "launcher.restricted=true",
    ),
    "pods cannot be tried": (
        Fake(), pytorchjob(),
        "warn", "pods", "for want of the right",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_stops_a_job_is_found(case: tuple[Fake, Object, str, str, str]) -> None:
    fake, manifests, level, what, words = case
    found = checked(fake, manifests)
    assert (found[what].level, found[what].what) == (level, what)
    assert words in f"{found[what].detail} {found[what].advice}"
    if level == "fail":
        assert len(levels(found, "fail")) == 1, "only what is wrong"


def test_secrets_are_looked_for_where_rights_suffice() -> None:
    fake = Fake().put("secrets", "registry", None).put("secrets", "wandb", None)
    fake.denied -= {"get secrets", "get priorityclasses"}
    fake.put("priorityclasses.scheduling.k8s.io/v1", "highest", {})
    found = checked(fake, pytorchjob(priorityClassName="higest"))
    assert "launcher.image_pull_secrets" in found["secret registry"].advice
    assert "launcher.secrets" in found["secret wandb"].advice
    assert "Did you mean 'highest'?" in found["priority class higest"].advice
    # the env of a TrainJob on a runtime of the cluster is not in a pod template
    assert found.keys() & {"secret wandb"} == checked(fake, trainjob(False)).keys() & {
        "secret wandb"
    }


def test_config_maps_of_overrides_must_be_there() -> None:
    volumes = [{"name": "x", "configMap": {"name": "extra"}}, {"name": "job", "configMap": CONFIG}]
    found = checked(Fake(), pytorchjob(volumes=volumes))
    assert found["configmap extra"].level == "fail"
    assert f"configmap {NAME}" not in found


def test_without_a_cluster_there_is_one_finding() -> None:
    class Unreachable(Fake):
        def version(self) -> str:
            raise LaunchError("There is no kubeconfig.\nType aws eks update-kubeconfig.")

    assert preflight(Unreachable(), pytorchjob()) == [
        Finding("fail", "cluster", "There is no kubeconfig. Type aws eks update-kubeconfig.")
    ]


def test_without_a_namespace_nothing_in_it_is_missed() -> None:
    fake = Fake()
    fake.objects.clear()
    found = preflight(fake, pytorchjob())
    assert [(finding.level, finding.what) for finding in found] == [
        ("ok", "cluster prod"),
        ("fail", "namespace team"),
    ]


def test_a_down_operator_is_asked_once() -> None:
    """Each try takes the whole budget of retries."""
    fake = webhook("", error=DOWN)
    checked(fake)
    assert fake.asked.count("create pytorchjobs") == 1


def test_findings_are_one_line_each_and_failures_come_last() -> None:
    text = render_findings(
        [
            Finding("fail", "claim a", "is\nnot there.", "Create it."),
            Finding("ok", "cluster", "answers."),
            Finding("warn", "pods", "not tried."),
            Finding("fail", "queue b", "is not there."),
        ]
    )
    assert text.splitlines() == [
        "ok    cluster: answers.",
        "warn  pods: not tried.",
        "fail  claim a: is not there. Create it.",
        "fail  queue b: is not there.",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", 0.5), ("16Gi", 2**34), ("1e3", 1000), ("2k", 2000), (3, 3), ("1.5Ti", 1.5 * 2**40)],
)
def test_quantities(text: Any, value: float) -> None:
    assert quantity(text) == value


# ------------------------------------------------------------------------------ deploy/rbac.yaml

RBAC = [
    thing
    for thing in yaml.safe_load_all((REPOSITORY / "deploy" / "rbac.yaml").read_text())
    if thing is not None
]


def only(kind: str) -> Object:
    (found,) = [thing for thing in RBAC if thing["kind"] == kind]
    return dict(found)


def given() -> dict[tuple[str, str], set[str]]:
    """Return the verbs of the Role by API group and resource."""
    found: dict[tuple[str, str], set[str]] = {}
    for rule in only("Role")["rules"]:
        assert set(rule) == {"apiGroups", "resources", "verbs"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                assert not found.get((group, resource)), "one rule for each"
                found[group, resource] = set(rule["verbs"])
    return found


def test_the_role_gives_what_is_used_and_nothing_else() -> None:
    wanted = {}
    for right in RIGHTS:
        plural, _, group = right.name.partition(".")
        wanted[group, plural] = set(right.verbs)
    assert given() == wanted


def test_the_role_has_no_wildcards_and_cannot_reach_secrets() -> None:
    assert {thing["kind"] for thing in RBAC} == {"Role", "RoleBinding", "ServiceAccount"}
    for (group, resource), verbs in given().items():
        assert "*" not in (group, resource, *verbs)
        assert not verbs & {"update", "deletecollection", "escalate", "bind", "impersonate"}
        assert not fnmatch.fnmatch(resource, "secrets*")
    assert ("", "pods/exec") not in given()
    assert "create" not in given()["", "pods"]


def test_who_has_the_role_and_who_the_pods_are() -> None:
    binding, account = only("RoleBinding"), only("ServiceAccount")
    assert binding["roleRef"]["name"] == only("Role")["metadata"]["name"]
    subjects = [(subject["kind"], subject["name"]) for subject in binding["subjects"]]
    assert subjects == [("Group", "hydra-trainer-users")]
    assert account["automountServiceAccountToken"] is False
    assert account["metadata"]["name"] not in [name for _, name in subjects]
    # kubectl apply -n NAMESPACE says where
    assert all("namespace" not in thing["metadata"] for thing in RBAC)
