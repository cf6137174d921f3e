"""What a training job is doing, from what DescribeTrainingJob says of it."""

import re
from datetime import datetime
from typing import Any

from hydra_trainer.job import DONE, STOPPED, USER_ERROR, JobState, JobStatus

Object = dict[str, Any]

ENDED = {
    "Completed": JobState.SUCCEEDED,
    "Failed": JobState.FAILED,
    "Stopped": JobState.CANCELLED,
}

WAITING = frozenset(
    {"Starting", "Pending", "LaunchingMLInstances", "PreparingTrainingStack"}
    | {"DownloadingTrainingImage", "Interrupted", "Restarting"}
)
"""Secondary states in which no code of ours runs."""

OVERDUE = {
    "MaxRuntimeExceeded": "launcher.max_run",
    "MaxWaitTimeExceeded": "launcher.max_wait",
}
"""Secondary states of a job that was ended for its time, and the option that gives more."""

EXIT_CODE = re.compile(r"exit code:? (\d+)", re.IGNORECASE)


def status(found: Object, result: Object | None = None) -> JobStatus:
    """Return how a job goes.

    Args:
        found: the answer of DescribeTrainingJob.
        result: the job's result.json, if it could be read.
    """
    secondary = str(found.get("SecondaryStatus") or found["TrainingJobStatus"])
    state = ENDED.get(found["TrainingJobStatus"])
    if state is None:
        state = JobState.PENDING if secondary in WAITING else JobState.RUNNING
    message = str(found.get("FailureReason") or "") or _message(found)
    code, kept = None, _objective(found)
    if state is JobState.SUCCEEDED:
        code = DONE
        kept = result if (result or {}).get("status") == "completed" else kept
    elif secondary in OVERDUE:
        state, code = JobState.FAILED, STOPPED
        message = _overdue(secondary)
    elif state is JobState.CANCELLED:
        code, message = STOPPED, message or "It was stopped."
        kept = result if (result or {}).get("status") == "stopped" else None
    elif state is JobState.FAILED:
        code = exit_code(found)
        # A result may be of a try before: what ended this one may not have let it write any.
        told = EXIT_CODE.search(str(found.get("FailureReason") or ""))
        same = (result or {}).get("status") == "failed" and (result or {}).get("exit_code") == code
        kept = result if told and same else None
    return JobStatus(
        state,
        reason=secondary,
        message=message,
        exit_code=code,
        result=kept if state.ended else None,
        restarts=interruptions(found),
        started=_time(found.get("TrainingStartTime")),
        ended=_time(found.get("TrainingEndTime")),
    )


def exit_code(found: Object) -> int:
    """Return the exit code that a failure's reason names; 1 where it names none."""
    named = EXIT_CODE.search(str(found.get("FailureReason") or ""))
    return int(named[1]) if named else USER_ERROR


def interruptions(found: Object) -> int:
    """Return how often the instances were taken away."""
    transitions = found.get("SecondaryStatusTransitions") or []
    return sum(one["Status"] == "Interrupted" for one in transitions)


def told(transition: Object) -> str:
    """Return one line on a change of the secondary state."""
    return "  ".join(p for p in (transition["Status"], transition.get("StatusMessage", "")) if p)


def _message(found: Object) -> str:
    transitions = found.get("SecondaryStatusTransitions") or [{}]
    return str(transitions[-1].get("StatusMessage") or "")


def _overdue(secondary: str) -> str:
    key = OVERDUE[secondary]
    return (
        f"Its time was over ({secondary}), after it had saved. Type the same command with a larger "
        f"{key} (seconds): it goes on from there."
    )


def _objective(found: Object) -> Object | None:
    """Return a result of what CloudWatch read from the log, for who may not read the output."""
    values = {one["MetricName"]: one["Value"] for one in found.get("FinalMetricDataList") or []}
    if "objective" not in values:
        return None
    definitions = found.get("AlgorithmSpecification", {}).get("MetricDefinitions") or []
    names = [one["Name"] for one in definitions if one["Name"] != "objective"]
    metric = names[0] if names else "objective"
    return {
        "status": "completed",
        "exit_code": DONE,
        "objective": {"metric": metric, "value": float(values["objective"])},
    }


def _time(value: Any) -> str | None:
    return value.isoformat() if isinstance(value, datetime) else None


# ---------------------------------------------------------------------------------------- why

HINTS = (
    (r"CapacityError|capacity", "launcher.instance_preferences, launcher.spot or another region"),
    (r"ResourceLimitExceeded", "a larger quota, or another resources.instance_type"),
    (r"No S3 objects found", "storage.mounts.NAME.uri: there is nothing at that place"),
    (r"CannotPull|pull.*image|image.*not found|manifest unknown", "launcher.image"),
    (r"AccessDenied|not authorized|Access denied", "the rights of launcher.role (deploy/iam.json)"),
    (r"exit code:? 137|out of memory|OutOfMemory|OOM", "data.batch_size, or an instance with more"),
    (r"No space left", "launcher.volume_size"),
    (r"Connection closed by peer|lost another rank", "nothing: another rank ended first"),
    (r"subnet|security group", "launcher.subnets and launcher.security_groups"),
)
"""What a reason looks like, and what to change then."""


def why(found: Object, result: Object | None, last: dict[str, list[str]]) -> str:
    """Return one screen: what happened, when, the last lines that tell, and what to change.

    Args:
        found: the answer of DescribeTrainingJob.
        result: the job's result.json, if it could be read.
        last: stream of the log: its last lines.
    """
    seen = status(found, result)
    lines = ["  ".join(p for p in (seen.state, seen.reason) if p)]
    lines += _wrapped(seen.message)
    for one in (found.get("SecondaryStatusTransitions") or [])[-8:]:
        lines.append(f"  {_time(one.get('StartTime')) or '':25}  {told(one)}")
    error = (seen.result or {}).get("error") or {}
    if error.get("traceback"):
        lines += ["", *str(error["traceback"]).rstrip().splitlines()[-20:]]
    for stream, said in last.items():
        if said and not error.get("traceback"):
            lines += ["", f"The last lines of {stream}:", *(f"  {line}" for line in said)]
    hint = hints(found, seen)
    return "\n".join([*lines, "", hint] if hint else lines)


def hints(found: Object, seen: JobStatus) -> str:
    """Return what to change; nothing where nothing is known."""
    if seen.state is JobState.SUCCEEDED or found.get("SecondaryStatus") in OVERDUE:
        return ""
    text = f"{seen.message} {found.get('FailureReason') or ''}"
    for pattern, key in HINTS:
        if re.search(pattern, text, re.IGNORECASE):
            return f"To change: {key}."
    return ""


def _wrapped(text: str) -> list[str]:
    return [f"  {line}" for line in text.strip().splitlines()]
