"""The kinds of objects that the embedded cluster knows, and how the API names them."""

from collections.abc import Iterable
from dataclasses import dataclass

READ_ONLY = ("get", "list")
ALL_VERBS = (
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
)


@dataclass(frozen=True)
class Kind:
    """One resource of the API. `columns` are those of `kubectl get`: (title, path in the object),
    the path in the words of a CustomResourceDefinition's additionalPrinterColumns."""

    plural: str
    group: str
    version: str
    kind: str
    namespaced: bool = True
    short: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    status: bool = True  # whether it has the subresource of that name
    custom: bool = False  # defined by a CustomResourceDefinition
    verbs: tuple[str, ...] = ALL_VERBS
    columns: tuple[tuple[str, str], ...] = ()

    @property
    def resource(self) -> str:
        """How the store and the error messages call it: `pods`, `pytorchjobs.kubeflow.org`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def path(self) -> str:
        """The part of the URL that its group and version are served under."""
        return f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"

    @property
    def full_kind(self) -> str:
        """How an Invalid error calls it: `Pod`, `PyTorchJob.kubeflow.org`."""
        return f"{self.kind}.{self.group}" if self.group else self.kind


STATE = (("State", ".status.conditions[-1:].type"), ("Age", ".metadata.creationTimestamp"))

KINDS = (
    Kind("namespaces", "", "v1", "Namespace", namespaced=False, short=("ns",)),
    Kind("nodes", "", "v1", "Node", namespaced=False, short=("no",)),
    Kind("pods", "", "v1", "Pod", short=("po",), categories=("all",)),
    Kind("configmaps", "", "v1", "ConfigMap", short=("cm",), status=False),
    Kind("events", "", "v1", "Event", short=("ev",), status=False),
    Kind("services", "", "v1", "Service", short=("svc",), categories=("all",)),
    Kind("secrets", "", "v1", "Secret", status=False),
    Kind("serviceaccounts", "", "v1", "ServiceAccount", short=("sa",), status=False),
    Kind("persistentvolumeclaims", "", "v1", "PersistentVolumeClaim", short=("pvc",)),
    Kind("resourcequotas", "", "v1", "ResourceQuota", short=("quota",)),
    Kind("jobs", "batch", "v1", "Job", categories=("all",)),
    Kind("storageclasses", "storage.k8s.io", "v1", "StorageClass", False, ("sc",), status=False),
    Kind("roles", "rbac.authorization.k8s.io", "v1", "Role", status=False),
    Kind("rolebindings", "rbac.authorization.k8s.io", "v1", "RoleBinding", status=False),
    Kind("clusterroles", "rbac.authorization.k8s.io", "v1", "ClusterRole", False, status=False),
    Kind(
        "clusterrolebindings",
        "rbac.authorization.k8s.io",
        "v1",
        "ClusterRoleBinding",
        False,
        status=False,
    ),
    Kind(
        "customresourcedefinitions",
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
        namespaced=False,
        short=("crd", "crds"),
        categories=("api-extensions",),
        status=False,
        verbs=READ_ONLY,
    ),
    Kind(
        "selfsubjectaccessreviews",
        "authorization.k8s.io",
        "v1",
        "SelfSubjectAccessReview",
        namespaced=False,
        status=False,
        verbs=("create",),
    ),
    Kind("pytorchjobs", "kubeflow.org", "v1", "PyTorchJob", custom=True, columns=STATE),
    Kind("experiments", "kubeflow.org", "v1beta1", "Experiment", custom=True, columns=STATE),
    Kind("trials", "kubeflow.org", "v1beta1", "Trial", custom=True, columns=STATE),
    Kind("trainjobs", "trainer.kubeflow.org", "v1alpha1", "TrainJob", custom=True, columns=STATE),
    Kind(
        "trainingruntimes",
        "trainer.kubeflow.org",
        "v1alpha1",
        "TrainingRuntime",
        status=False,
        custom=True,
    ),
    Kind(
        "clustertrainingruntimes",
        "trainer.kubeflow.org",
        "v1alpha1",
        "ClusterTrainingRuntime",
        namespaced=False,
        status=False,
        custom=True,
    ),
    Kind(
        "jobsets",
        "jobset.x-k8s.io",
        "v1alpha2",
        "JobSet",
        custom=True,
        columns=(
            ("TerminalState", ".status.terminalState"),
            ("Restarts", ".status.restarts"),
            ("Completed", ".status.conditions[?(@.type=='Completed')].status"),
            ("Suspended", ".spec.suspend"),
            ("Age", ".metadata.creationTimestamp"),
        ),
    ),
    Kind(
        "hyperpodpytorchjobs",
        "sagemaker.amazonaws.com",
        "v1",
        "HyperPodPyTorchJob",
        short=("hppj",),
        custom=True,
        columns=(
            ("Status", ".status.conditions[-1:].type"),
            ("Age", ".metadata.creationTimestamp"),
        ),
    ),
    Kind(
        "localqueues",
        "kueue.x-k8s.io",
        "v1beta1",
        "LocalQueue",
        short=("queue", "queues", "lq"),
        custom=True,
        columns=(
            ("ClusterQueue", ".spec.clusterQueue"),
            ("Pending Workloads", ".status.pendingWorkloads"),
            ("Admitted Workloads", ".status.admittedWorkloads"),
        ),
    ),
    Kind(
        "clusterqueues",
        "kueue.x-k8s.io",
        "v1beta1",
        "ClusterQueue",
        namespaced=False,
        short=("cq",),
        custom=True,
        columns=(
            ("Cohort", ".spec.cohort"),
            ("Pending Workloads", ".status.pendingWorkloads"),
        ),
    ),
    Kind(
        "workloads",
        "kueue.x-k8s.io",
        "v1beta1",
        "Workload",
        short=("wl", "kueueworkload"),
        custom=True,
        columns=(
            ("Queue", ".spec.queueName"),
            ("Reserved in", ".status.admission.clusterQueue"),
            ("Admitted", ".status.conditions[?(@.type=='Admitted')].status"),
            ("Finished", ".status.conditions[?(@.type=='Finished')].status"),
            ("Age", ".metadata.creationTimestamp"),
        ),
    ),
)

BY_RESOURCE = {kind.resource: kind for kind in KINDS}
BY_PATH = {(kind.path, kind.plural): kind for kind in KINDS}


def group_versions() -> list[str]:
    """Return the API versions in the order they are served: `v1` first."""
    return list(dict.fromkeys(kind.api_version for kind in KINDS))


def of_group_version(api_version: str, kinds: Iterable[Kind] = KINDS) -> list[Kind]:
    return [kind for kind in kinds if kind.api_version == api_version]
