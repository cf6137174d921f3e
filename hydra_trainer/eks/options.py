"""The options of launcher=eks, as the configuration names them."""

from dataclasses import dataclass, field
from typing import Any

APIS = ("pytorchjob", "trainjob", "hyperpod")

PLACEHOLDER = "hydra-trainer:latest"
"""Stands for the user's image in a dry run and in the embedded cluster, which pulls none."""


@dataclass(frozen=True)
class Options:
    """How a job is sent to a Kubernetes cluster, and what its pods look like.

    What is None or empty does not appear in the manifests.
    """

    api: str = "pytorchjob"
    """pytorchjob (kubeflow.org/v1), trainjob (trainer.kubeflow.org/v1alpha1) or hyperpod."""
    trainer_version: str | float = "2.3"
    """Version of Kubeflow Trainer, for api=trainjob: its fields differ before 2.2."""
    runtime: str | None = None
    """A ClusterTrainingRuntime to build on, for api=trainjob; None: one of our own per job."""

    context: str | None = None
    """Context of the kubeconfig; None: the current one."""
    namespace: str | None = None
    """None: the context's."""

    image: str | None = PLACEHOLDER
    image_pull_policy: str | None = None
    image_pull_secrets: list[str] = field(default_factory=list)
    service_account: str | None = None

    gpu_resource: str = "nvidia.com/gpu"
    efa: int | None = None
    """EFA interfaces per pod; None: all of the instance type where a job has several nodes."""
    hugepages: str = "5120Mi"
    """Of 2 MiB, with EFA: what its provider maps for its buffers."""
    shm_size: str | None = "8Gi"
    """Of /dev/shm, in memory and counted against the pod's; None: the 64 MiB of the runtime."""

    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    """Besides the one for GPUs."""
    together: str | None = None
    """zone or rack: all pods of a job close to each other."""
    spot: bool = False
    """Karpenter's spot capacity."""
    priority_class: str | None = None
    queue: str | None = None
    """A Kueue LocalQueue."""
    queue_priority: str | None = None
    """A Kueue WorkloadPriorityClass."""
    scheduling_policy: dict[str, Any] = field(default_factory=dict)
    """runPolicy.schedulingPolicy, for an operator with a gang scheduler."""

    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    """Of the pods."""
    istio: bool = False
    """Let Istio put its sidecar into the pods, which then do not end by themselves."""
    env: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    """Environment variable: secret-name/key."""

    active_deadline: int | None = None
    """Seconds from the start of the job, after which it fails."""
    ttl: int = 7 * 24 * 3600
    """Seconds that a finished job stays: a laptop that was away still finds its result."""
    grace: int = 120
    """Seconds between SIGTERM and SIGKILL, which is also a spot notice."""
    max_restarts: int = 3
    """How often torchrun starts the ranks again before the pod ends."""
    attempts: int = 10
    """How often the job is started again without a new checkpoint before it gives up."""

    restricted: bool = True
    """A security context that Pod Security "restricted" accepts."""
    ipc_lock: bool = False
    """Add IPC_LOCK, which some EFA installations want and "restricted" forbids."""
    run_as_user: int | None = 1000
    fs_group: int | None = 1000
    pod_overrides: dict[str, Any] = field(default_factory=dict)
    """Merged into the pod template at the end; lists of named things merge by name."""

    dry_run: bool = False
    """Print the manifests and stop."""
    check: bool = False
    """Say what would stop the job on that cluster, and stop."""
    detach: bool = False
    """Submit and return."""
    again: bool = False
    """Run a finished job anew."""
    embedded: bool = False
    """Run the job in a small cluster on this machine instead."""
