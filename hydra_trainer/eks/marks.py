"""The labels and annotations that we put on objects, and find them by."""

MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "hydra-trainer"
JOB = "hydra-trainer.dev/job"
IDENTITY = "hydra-trainer.dev/identity"  # an annotation: of what is trained
DIGEST = "hydra-trainer.dev/spec-digest"  # an annotation: of all that was sent

OURS = {MANAGED_BY: MANAGER}
"""On everything that we made."""

ALL = f"{MANAGED_BY}={MANAGER}"
"""Selects everything that we made."""


def of_job(name: str) -> str:
    """Return what selects everything of one job."""
    return f"{JOB}={name}"
