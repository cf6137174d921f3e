"""The options of launcher=sagemaker, as the configuration names them."""

from dataclasses import dataclass, field
from typing import Any

PLACEHOLDER_ROLE = "arn:aws:iam::123456789012:role/hydra-trainer"
PLACEHOLDER_OUTPUT = "s3://your-bucket/hydra-trainer"
PLACEHOLDER_REGION = "us-east-1"
"""Stand for the user's own in a dry run and in the embedded service."""

CLIENTS = ("boto3", "sdk")

HYPERPARAMETERS = (
    "model._target_",
    "data._target_",
    "optim.lr",
    "data.batch_size",
    "trainer.max_epochs",
    "seed",
)


@dataclass(frozen=True)
class Options:
    """How a training job is asked for, and what it runs in.

    What is None or empty does not appear in the request.
    """

    region: str | None = None
    """None: the AWS configuration's (AWS_REGION, the profile)."""
    role: str | None = None
    """ARN of the role that the job runs as (deploy/iam.json)."""
    output: str | None = None
    """s3://bucket/prefix: code, configuration, checkpoints and results go below it."""
    client: str = "boto3"
    """boto3, or sdk: the same request through the SageMaker Python SDK."""

    image: str | None = None
    """None: the AWS Deep Learning Container for `torch`, with what it lacks installed at start."""
    torch: str | float = "2.13"
    """Version of that container."""

    spot: bool = False
    max_run: int = 5 * 24 * 3600
    """Seconds that the job may take, without waiting for capacity."""
    max_wait: int | None = None
    """With spot: seconds for waiting and running together; None: twice max_run, at most 28 days."""
    max_pending: int | None = None
    """Seconds that the job may wait for capacity."""
    retries: int | None = None
    """How often SageMaker starts the job again after an error of its own, 1 to 30."""
    keep_alive: int | None = None
    """Seconds that the instances stay for the next job: a warm pool."""
    training_plan: str | None = None
    """ARN of a plan with reserved capacity."""
    instance_preferences: list[str] = field(default_factory=list)
    """Instance types, the best first, in place of resources.instance_type."""
    instance_groups: list[dict[str, Any]] = field(default_factory=list)
    """InstanceGroups of a heterogeneous cluster, in the words of the API."""
    volume_size: int = 100
    """GB of each instance's volume. Types with an NVMe disk use that instead."""

    subnets: list[str] = field(default_factory=list)
    security_groups: list[str] = field(default_factory=list)
    """A VPC, which EFS and FSx need."""
    encrypt_traffic: bool = False
    """Between instances."""
    network_isolation: bool = False
    kms_key: str | None = None
    """For the output in S3."""
    volume_kms_key: str | None = None

    env: dict[str, str] = field(default_factory=dict)
    hyperparameters: list[str] = field(default_factory=lambda: [*HYPERPARAMETERS])
    """Keys of the configuration that the console shows. Training reads none of them."""
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    """Metric: regular expression with one group. The objective's are there by themselves."""
    tensorboard: bool = False
    """Let SageMaker upload TensorBoard's logs while it trains."""
    remote_debug: bool = False
    """Allow a shell in the container through SSM."""
    infra_check: bool = False
    """Look at the GPUs and their network before it starts."""
    mlflow: str | None = None
    """ARN of an MLflow tracking server or app."""

    grace: int = 120
    """Seconds between SIGTERM and SIGKILL: what SageMaker gives, on a stop and on a spot notice."""
    max_restarts: int = 3
    """How often torchrun starts the ranks again before the job fails."""
    request_overrides: dict[str, Any] = field(default_factory=dict)
    """Merged into the request at the end."""

    dry_run: bool = False
    """Print the request and stop."""
    check: bool = False
    """Say what would stop the job in that account, and stop."""
    detach: bool = False
    """Submit and return."""
    again: bool = False
    """Run a finished job anew."""
    embedded: bool = False
    """Run the job in a small service on this machine instead."""
