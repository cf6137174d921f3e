"""What the end of a job means to its sweep."""

import math
from collections.abc import Sequence
from typing import Any

from hydra_trainer.errors import LaunchError
from hydra_trainer.job import JobState, JobStatus

from .rows import Objective, State


class NoObjective(LaunchError):
    """A job succeeded and logged nothing of what the sweep compares its jobs by.

    `outcome` is what is written down of the job all the same.
    """

    def __init__(self, message: str, outcome: dict[str, Any]) -> None:
        super().__init__(message)
        self.outcome = outcome


def outcome(status: JobStatus, objectives: Sequence[Objective]) -> dict[str, Any]:
    """Return the fields of the journal's `ended` event for a job that has ended.

    Raises:
        NoObjective: it succeeded, and an objective is not among what it logged.
    """
    result = status.result or {}
    metrics = result.get("metrics") or {}
    found: dict[str, Any] = {
        "state": State(status.state),
        "reason": status.reason,
        "message": status.message,
        "exit_code": status.exit_code,
        "metrics": metrics,
        "seconds": result.get("seconds"),
        "values": [],
    }
    if status.state is not JobState.SUCCEEDED:
        return found
    if status.result is None:
        message = "it succeeded, but its result is gone with its pods"
        return found | {"state": State.FAILED, "reason": "NoResult", "message": message}
    told = [result.get("objective") or {}, *(result.get("others") or [])]
    by_name = {one.get("metric"): one.get("value") for one in told}
    values = [by_name.get(one.metric) for one in objectives]
    if all(_finite(value) for value in values):
        return found | {"values": values}
    bad = [one.metric for one, value in zip(objectives, values, strict=True) if not _finite(value)]
    if unknown := [name for name in bad if name not in metrics]:
        known = ", ".join(sorted(metrics)) or "nothing that came back"
        key = "objective.metric" if unknown[0] == objectives[0].metric else "objective.others"
        raise NoObjective(
            f"{key} is {unknown[0]}, which the jobs do not log; they log: {known}. Type "
            f"{key}=... with one of these names, and a mode: min or max.",
            found | {"state": State.FAILED, "reason": "NoObjective", "message": unknown[0]},
        )
    message = f"{bad[0]} is not a finite number"
    return found | {"state": State.FAILED, "reason": "NotFinite", "message": message}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
