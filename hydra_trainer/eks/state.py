"""How a job on a cluster goes, read from what the cluster shows of it. Pure: dicts in, words out.

The conditions of a job tell less than the truth: a PyTorchJob is `Created` while its pods cannot
be scheduled, `Running` while a worker still waits for an image, and its last condition may be
`Suspended=False`. So `status` looks at conditions, pods, events and Kueue's workload together, and
calls a job ended only when a condition that means so is True. troubles.py has the table of what
goes wrong.
"""

import json
import re
import signal
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from hydra_trainer.job import DONE, STOPPED, USER_ERROR, JobState, JobStatus

from .seen import (
    CONTAINERS,
    Object,
    Seen,
    at,
    container,
    count,
    first_line,
    has_started,
    holds_rank_0,
    is_true,
    label,
    matters,
    said,
    source,
    subject,
    tidy,
    times,
    waits_of,
    when,
)
from .troubles import Trouble, find

__all__ = ["Seen", "matters", "status", "why", "worth_reading"]

OPERATOR_PATIENCE = 60.0
"""Seconds after which a job that nobody has touched means that no operator is there."""

ENDS = {
    "Succeeded": JobState.SUCCEEDED,  # PyTorchJob
    "Complete": JobState.SUCCEEDED,  # TrainJob
    "Completed": JobState.SUCCEEDED,  # HyperPodPyTorchJob
    "Failed": JobState.FAILED,
}
"""Conditions that end a job when they are True, by type."""

REFUSALS = ("FailedCreate", "FailedCreatePod", "FailedCreateService", "CreationFailed")
"""How the reasons of events end that say: the API server refused what a controller wanted."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
EVENTS_SHOWN = 8
LOG_LINES_SHOWN = 8
TRACEBACK_LINES_SHOWN = 12
WIDTH = 100  # characters at which our sentences are wrapped
WIDEST = 140  # characters at which lines of events, logs and tracebacks are cut


class Ending(NamedTuple):
    """How the training container of one pod ended: in this attempt (`now`) or in one before.

    `happened` is said to the user; `words` is what the table is asked with, one fact a line.
    """

    pod: str
    node: str
    at: str
    code: int
    happened: str
    words: str
    report: Object | None
    now: bool
    consequence: bool


class Verdict(NamedTuple):
    """What `status` and `why` both start from."""

    state: JobState
    reason: str = ""
    message: str = ""
    advice: str = ""
    pod: str = ""
    ending: Ending | None = None
    exit_code: int | None = None


# ---------------------------------------------------------------------------------------- status


def status(seen: Seen, *, age: float | None = None) -> JobStatus:
    """Return how the job goes.

    `age` is how long ago the job was created, in seconds by the server's clock; without it,
    nobody is called absent. `restarts` counts what the cluster still remembers: containers that
    were started again, and events of pods made anew, which live an hour.
    """
    found = _verdict(seen, age)
    return JobStatus(
        state=found.state,
        reason=found.reason,
        message=found.message,
        exit_code=found.exit_code,
        result=_result(seen, found) if found.state.ended else None,
        restarts=_restarts(seen),
        started=_started(seen),
        ended=_ended(seen) if found.state.ended else None,
    )


def _verdict(seen: Seen, age: float | None) -> Verdict:
    job = seen.job
    if job is None or at(job, "metadata", "deletionTimestamp"):
        return _deleted(seen)
    condition = _end(job)
    if condition is None:
        return _queued(seen) or _held_up(seen, age) or _running(seen)
    if ENDS[condition["type"]] is JobState.SUCCEEDED:
        return _succeeded(seen)
    return _failed(seen, condition)


def _end(job: Object | None) -> Object | None:
    """Return the condition that ends the job: by type and status, wherever it stands."""
    conditions = at(job, "status", "conditions") or []
    return next((item for item in conditions if item["type"] in ENDS and is_true(item)), None)


def _deleted(seen: Seen) -> Verdict:
    saving = [pod for pod in seen.pods if at(pod, "status", "phase") == "Running"]
    if not seen.pods and seen.job is None:
        return Verdict(
            JobState.UNKNOWN,
            "NotFound",
            "There is no such job here: it was cancelled, its time to live (launcher.ttl) has "
            "passed, or it was never sent.",
        )
    message = f"The job was deleted; {len(saving)} of its pods are saving." if saving else ""
    return Verdict(
        JobState.CANCELLED, "Deleted", message or "The job was deleted.", exit_code=STOPPED
    )


def _succeeded(seen: Seen) -> Verdict:
    # With a Master, its success is the job's, whatever the workers do.
    left = [pod for pod in seen.pods if at(pod, "status", "phase") == "Running"]
    message = f"{count(left, 'pod')} of it still running, being ended." if left else ""
    return Verdict(JobState.SUCCEEDED, "Completed", message, exit_code=DONE)


def _failed(seen: Seen, condition: Object) -> Verdict:
    words = str(condition.get("message") or "")
    ending = _first_failure(seen)
    trouble, groups = find("ended", f"{condition.get('reason', '')}\n{words}")
    late = trouble.reason == "DeadlineExceeded"  # then the pods were stopped, whatever they say
    if ending is not None and not late:
        trouble, groups = _trouble_of(ending)
    told = _told(seen, ending) if ending else ""
    pod = ending.pod if ending else ""
    code = ending.code if ending else _code_of_events(seen)
    return Verdict(
        JobState.FAILED,
        trouble.reason,
        (f"{words} {told}".strip() if late else told or words) or "The job left no word why.",
        _advice(seen, trouble, groups, pod),
        pod,
        ending,
        code if code is not None else STOPPED if late else USER_ERROR,
    )


def _queued(seen: Seen) -> Verdict | None:
    """Return what Kueue says about a job that it has not let in, or has sent back."""
    assert seen.job is not None
    queue = at(seen.workload, "spec", "queueName") or label(seen.job, QUEUE_LABEL)
    if seen.workload is None and not seen.suspended:
        return None  # no queue, or Kueue has let it in
    if queue is None:
        return Verdict(
            JobState.PENDING,
            "Suspended",
            "The job is suspended.",
            f"Type kubectl -n {seen.namespace} patch {seen.kind.lower()} {seen.name} "
            f"--type merge -p '{_unsuspend(seen)}'.",
        )
    conditions = {item["type"]: item for item in at(seen.workload, "status", "conditions") or []}
    if is_true(conditions.get("Admitted")):
        return None
    evicted = conditions.get("Evicted", {})
    waiting = [conditions[kind] for kind in ("QuotaReserved", "Admitted") if kind in conditions]
    against = [item for item in waiting if not is_true(item)][:1]
    reason = next((item.get("reason") for item in against), "")
    against = ([evicted] if is_true(evicted) else []) + against
    words = ". ".join(item["message"].rstrip(".") for item in against if item.get("message"))
    sent_back = is_true(evicted) and evicted.get("reason") == "Preempted"
    return Verdict(
        JobState.PENDING,
        "Inadmissible" if reason == "Inadmissible" else "Preempted" if sent_back else "Queued",
        f"Waiting in queue {queue}: " + (f"{tidy(words)}." if words else "not judged yet."),
        "Wait until the queue has room, or type launcher.queue=ANOTHER, a smaller resources.nodes "
        f"or resources.gpus_per_node. See kubectl -n {seen.namespace} get localqueue,workload.",
    )


def _unsuspend(seen: Seen) -> str:
    inside = {"suspend": False}
    spec = inside if at(seen.job, "spec", "suspend") else {"runPolicy": inside}
    return json.dumps({"spec": spec})


def _held_up(seen: Seen, age: float | None) -> Verdict | None:
    """Return what keeps pods from starting, when enough of them wait to matter."""
    verdict = _blocked(seen) or _refused(seen) or _unnoticed(seen, age) or _starting(seen)
    if verdict is None:
        return None
    if _enough(seen):
        return Verdict(JobState.RUNNING, "Elastic", _progress(seen) + verdict.message)
    if _restarts(seen) or _restarting(seen):
        return verdict._replace(state=JobState.RUNNING, reason="Restarting")
    return verdict


def _restarting(seen: Seen) -> bool:
    waits = [wait for pod in seen.live for wait in waits_of(pod)]
    looping = any(wait.get("reason") == "CrashLoopBackOff" for wait in waits)
    return looping or any(map(is_true, seen.conditions("Restarting")))


def _enough(seen: Seen) -> bool:
    """Tell whether an elastic job has its minimum of pods."""
    least = at(seen.job, "spec", "elasticPolicy", "minReplicas")
    return least is not None and sum(map(has_started, seen.live)) >= least


def _blocked(seen: Seen) -> Verdict | None:
    """Return why a pod cannot start; pods that never will come before those that may."""
    waiting = [pod for pod in seen.live if not has_started(pod)]
    found = [(pod, *block) for pod in waiting if (block := _block(seen, pod)) is not None]
    if not found:
        return None
    order = ("container", "image", "unschedulable")
    pod, place, words = min(found, key=lambda item: order.index(item[1]))
    same = [item for item in found if item[1] == place]
    trouble, groups = find(place, words)
    which = f"{len(same)} of {len(seen.live)} pods: " if len(seen.live) > 1 else ""
    return Verdict(
        JobState.PENDING,
        trouble.reason,
        which + tidy(words),
        _advice(seen, trouble, groups, pod["metadata"]["name"]),
        pod["metadata"]["name"],
    )


def _block(seen: Seen, pod: Object) -> tuple[str, str] | None:
    """Return the place and the words of what holds up one pod."""
    for condition in at(pod, "status", "conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return "unschedulable", _unschedulable(seen, pod, condition)
    for wait in waits_of(pod):
        reason, message = wait.get("reason", ""), wait.get("message", "")
        if "Image" in reason or reason == "RegistryUnavailable":
            return "image", f"{reason}: {_pull_words(seen, pod) or message}"
        if reason.startswith(("CreateContainer", "RunContainer", "PreStartHook", "PostStartHook")):
            return "container", f"{reason}: {message}"
    for event in reversed(seen.events_of(pod["metadata"]["name"])):
        if event["reason"] in ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox"):
            return "container", f"{event['reason']}: {event.get('message', '')}"
        if event["reason"] in ("Pulling", "Pulled", "Started"):
            break  # later than the failure
    return None


def _unschedulable(seen: Seen, pod: Object, condition: Object) -> str:
    """Return the scheduler's words, and the autoscaler's when it has something to add."""
    words = tidy(condition.get("message") or condition.get("reason") or "")
    for event in reversed(seen.events_of(pod["metadata"]["name"])):
        if event["reason"] in ("TriggeredScaleUp", "Nominated"):
            return f"{words} A node is on its way: {tidy(event.get('message', ''))}"
        if source(event) == "karpenter" and event["reason"] == "FailedScheduling":
            return f"{words} Karpenter: {tidy(event.get('message', ''))}"
        if event["reason"] == "NotTriggerScaleUp":
            return f"{words} The autoscaler: {tidy(event.get('message', ''))}"
    return words


def _pull_words(seen: Seen, pod: Object) -> str:
    """Return why an image does not come: `Back-off pulling image` alone does not say it."""
    for event in reversed(seen.events_of(pod["metadata"]["name"])):
        if event["reason"] == "Failed" and "ailed to pull" in event.get("message", ""):
            return str(event["message"])
    return ""


def _refused(seen: Seen) -> Verdict | None:
    """Return why the API server does not let the operator make the pods."""
    if len(seen.live) >= seen.wanted:
        return None
    for event in reversed(seen.events_of()):
        reason, message = event["reason"], event.get("message", "")
        if reason.endswith(REFUSALS):
            trouble, groups = find("refused", message)
            advice = _advice(seen, trouble, groups, "")
            return Verdict(JobState.PENDING, trouble.reason, tidy(message), advice)
    return None


def _unnoticed(seen: Seen, age: float | None) -> Verdict | None:
    """Return a verdict for a job that no operator has touched."""
    assert seen.job is not None
    noticed = any("kueue" not in source(event) for event in seen.events_of())
    if noticed or seen.pods or any((seen.job.get("status") or {}).values()):
        return None
    if age is None or age < OPERATOR_PATIENCE:
        return Verdict(JobState.PENDING, "Submitted", "No operator has answered yet.")
    kind = seen.kind
    return Verdict(
        JobState.PENDING,
        "OperatorAbsent",
        f"No operator has touched this {kind} in {age:.0f} seconds: it is not installed, not "
        "running, or does not watch this namespace.",
        f"See kubectl get deployments --all-namespaces for the {_OPERATORS.get(kind, kind)}. "
        "launcher.check=true tells more; launcher.api chooses another kind of job.",
    )


_OPERATORS = {
    "PyTorchJob": "Kubeflow training operator (training-operator)",
    "TrainJob": "Kubeflow Trainer (kubeflow-trainer-controller-manager) and JobSet",
    "HyperPodPyTorchJob": "HyperPod training operator (namespace aws-hyperpod)",
}


def _starting(seen: Seen) -> Verdict | None:
    live = seen.live
    if len(live) >= seen.wanted and all(map(has_started, live)):
        return None
    return Verdict(JobState.PENDING, "Starting", _progress(seen).rstrip())


def _progress(seen: Seen) -> str:
    ready = sum(map(has_started, seen.live))
    return f"{ready} of {max(seen.wanted, len(seen.live))} pods have started. "


def _running(seen: Seen) -> Verdict:
    ending = _first_failure(seen)
    if ending is not None and (ending.now or _restarting(seen)):
        trouble, groups = _trouble_of(ending)
        advice = _advice(seen, trouble, groups, ending.pod)
        told = _told(seen, ending)
        return Verdict(JobState.RUNNING, "Restarting", told, advice, ending.pod, ending)
    done = [pod for pod in seen.live if at(pod, "status", "phase") == "Succeeded"]
    if done:
        return Verdict(JobState.RUNNING, "Ending", f"{count(done, 'pod')} of it done.")
    return Verdict(JobState.RUNNING, "Restarting" if _restarting(seen) else "Running")


# ---------------------------------------------------------------------- how containers have ended


def _first_failure(seen: Seen) -> Ending | None:
    """Return the ending that the others followed from; of attempts before only if no other."""
    failures = [ending for ending in _endings(seen) if ending.code]
    if now := [ending for ending in failures if ending.now]:
        return min(now, key=lambda ending: (ending.consequence, ending.at))
    return max(failures, key=lambda ending: (not ending.consequence, ending.at), default=None)


def _endings(seen: Seen) -> Iterator[Ending]:
    """Yield how containers ended, the pod that most likely holds rank 0 first."""
    live = seen.live
    for pod in sorted(seen.pods, key=lambda pod: not holds_rank_0(pod)):
        found = container(pod)
        now = at(found, "state", "terminated")
        if now or at(pod, "status", "reason"):
            yield _ending(pod, now or {}, now=pod in live)
        elif before := at(found, "lastState", "terminated"):
            yield _ending(pod, before, now=False)


def _ending(pod: Object, terminated: Object, *, now: bool) -> Ending:
    # An evicted pod may have lost the records of its containers.
    code = int(terminated.get("exitCode", 128 + signal.SIGKILL))
    message = str(terminated.get("message") or "")
    report = _report(message)
    code = int((report or {}).get("exit_code") or code)
    error = (report or {}).get("error") or {}
    raised = f"{error.get('type', '')}: {error.get('message', '')}" if error else ""
    outside = _outside(pod, terminated)
    # What is no report of ours is the end of the log (FallbackToLogsOnError).
    last = "" if report else message.strip().rpartition("\n")[2]
    peer = "lost peer" if error.get("lost_peer") else ""
    text = error.get("traceback", "") if report else message
    words = [outside, _signal(code), peer, f"exit code {code}", raised, text]
    return Ending(
        pod=pod["metadata"]["name"],
        node=at(pod, "spec", "nodeName") or "",
        at=terminated.get("finishedAt") or "",
        code=code,
        happened=tidy(outside.replace("\n", ": "))
        or first_line(raised)
        or _signal(code)
        or last
        or "ended",
        words="\n".join(word for word in words if word),
        report=report,
        now=now,
        consequence=not outside and (code in (STOPPED, 130) or bool(peer)),
    )


def _outside(pod: Object, terminated: Object) -> str:
    """Return what was done to the pod, or to its container, from outside; mostly nothing."""
    reason, message = at(pod, "status", "reason"), at(pod, "status", "message")
    if reason:
        return f"{reason}\n{message}" if message else str(reason)
    if disruption := _disruption(pod):
        return disruption
    reason = terminated.get("reason") or ""
    if reason in ("StartError", "ContainerCannotRun"):
        return f"{reason}\n{terminated.get('message') or ''}"
    return "" if reason in ("Error", "Completed") else str(reason)


def _trouble_of(ending: Ending) -> tuple[Trouble, dict[str, str]]:
    never_ran = ending.words.startswith(("StartError", "ContainerCannotRun"))
    return find("container" if never_ran else "ended", ending.words)


def _disruption(pod: Object) -> str:
    """Return the reason of the pod's DisruptionTarget condition, when it is True."""
    for condition in at(pod, "status", "conditions") or []:
        if condition["type"] == "DisruptionTarget" and is_true(condition):
            return str(condition.get("reason", ""))
    return ""


def _report(text: str) -> Object | None:
    """Return what our bootstrap left as the termination message (bootstrap.compact)."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) and "exit_code" in value else None


def _signal(code: int) -> str:
    try:
        return signal.Signals(code - 128).name if code > 128 else ""
    except ValueError:
        return ""


def _told(seen: Seen, ending: Ending) -> str:
    """Return one sentence: who ended, and how."""
    rank = f"rank {ending.report['rank']}, " if ending.report and "rank" in ending.report else ""
    return f"{rank}pod {seen.short(ending.pod)}: {ending.happened} (exit code {ending.code})"


def _result(seen: Seen, found: Verdict) -> Object | None:
    """Return the result.json that the pods handed over: rank 0's, or the first failing rank's."""
    if found.ending is not None:
        return found.ending.report
    reports = [e.report for e in _endings(seen) if e.now and e.report]
    wanted = [r for r in reports if found.state is not JobState.SUCCEEDED or not r["exit_code"]]
    # Rank 0 alone knows the objective; with c10d it may be on any pod.
    return max(wanted, key=lambda r: ("objective" in r, "metrics" in r), default=None)


def _code_of_events(seen: Seen) -> int | None:
    """Return the exit code that the operator noted down, when the pods are gone."""
    for event in reversed(seen.events_of()):
        found = re.search(r"exited with code (\d+)", event.get("message") or "")
        if found and int(found[1]):
            return int(found[1])
    return None


def _restarts(seen: Seen) -> int:
    containers = sum(int(container(pod).get("restartCount") or 0) for pod in seen.pods)
    pods = sum(times(event) for event in seen.events_of() if event["reason"].endswith("Restarting"))
    sets = [int(label(pod, "jobset.sigs.k8s.io/restart-attempt") or 0) for pod in seen.pods]
    replaced = len(seen.pods) - len(seen.live)
    hyperpod = int(at(seen.job, "status", "restartCount") or 0)
    return max(containers + pods + replaced + max(sets, default=0), hyperpod)


def _started(seen: Seen) -> str | None:
    """Return when training first ran, as far as the pods still tell."""
    found = [at(item, "lastTransitionTime") for item in seen.conditions("Running")]
    for pod in seen.pods:
        for state in ("state", "lastState"):
            ran = at(container(pod), state)
            found += [at(ran, "running", "startedAt"), at(ran, "terminated", "startedAt")]
    return min((time for time in found if time), default=at(seen.job, "status", "startTime"))


def _ended(seen: Seen) -> str | None:
    # A PyTorchJob that failed with a permanent exit code has no completionTime.
    condition = _end(seen.job) or {}
    last = max((ending.at for ending in _endings(seen)), default="")
    time = at(seen.job, "status", "completionTime") or condition.get("lastTransitionTime") or last
    return time or None


# ------------------------------------------------------------------------------------------- why


def why(seen: Seen, logs: dict[str, list[str]], *, age: float | None = None) -> str:
    """Return one screen of plain text: what happened, by whom, and what to type.

    `logs` holds the last lines of pods, by name; `worth_reading` says which.
    """
    found = _verdict(seen, age)
    parts = [
        _headline(seen, found),
        _traceback(found),
        _event_lines(seen),
        _log_lines(seen, found, logs),
        "\n".join(_wrapped(f"What to do: {_after_logs(seen, found, logs)}"))
        if found.advice
        else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def worth_reading(seen: Seen) -> list[tuple[str, bool]]:
    """Return the pods whose last log lines `why` shows, and whether of the container before.

    At most two: the one that failed first, and the one that holds rank 0.
    """
    found = _verdict(seen, None)
    first = [pod["metadata"]["name"] for pod in seen.pods if holds_rank_0(pod)]
    started = {pod["metadata"]["name"]: pod for pod in seen.pods if has_started(pod)}
    names = [name for name in dict.fromkeys([found.pod, *first]) if name in started][:2]
    return [(name, bool(list(waits_of(started[name])))) for name in names]


def _headline(seen: Seen, found: Verdict) -> str:
    code = "" if found.exit_code is None else f", exit code {found.exit_code}"
    restarts = f", {count(_restarts(seen), 'restart')}" if _restarts(seen) else ""
    first = f"{seen.name}: {found.state} ({found.reason}){code}{restarts}"
    node = f" on node {found.ending.node}" if found.ending and found.ending.node else ""
    return "\n".join([first, *_wrapped(found.message + node), *_objective(seen, found)])


def _objective(seen: Seen, found: Verdict) -> list[str]:
    result = _result(seen, found) or {} if found.state.ended else {}
    goal = result.get("objective") or {}
    steps = f" after {result['steps']} steps" if "steps" in result else ""
    return [f"{goal['metric']} {goal['value']}{steps}"] if goal.get("value") is not None else []


def _traceback(found: Verdict) -> str:
    error = (found.ending.report or {}).get("error") or {} if found.ending else {}
    lines = str(error.get("traceback", "")).rstrip().splitlines()
    lines = lines or (str(error.get("message", "")).splitlines()[1:])
    return _section("Traceback", lines[-TRACEBACK_LINES_SHOWN:])


def _event_lines(seen: Seen) -> str:
    """Return the events that matter, newest last; one line for what was said again and again."""
    groups: dict[tuple[str, str], list[Object]] = {}
    for event in seen.events_of():
        if matters(event):
            words = re.sub(r"\d+|[\w.-]*" + re.escape(seen.name) + r"[\w.-]*", "#", said(event))
            groups.setdefault((event["reason"], words), []).append(event)
    latest = sorted(groups.values(), key=lambda group: when(group[-1]))
    return _section("Events", [_event_line(seen, group) for group in latest[-EVENTS_SHOWN:]])


def _event_line(seen: Seen, group: list[Object]) -> str:
    names = list(dict.fromkeys(seen.short(subject(event)) for event in group))
    who = names[-1] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    total = sum(map(times, group))
    again = f" (x{total})" if total > len(names) else ""
    return f"{when(group[-1])[11:19]} {group[-1]['reason']} {who}: {said(group[-1])}{again}"


def _log_lines(seen: Seen, found: Verdict, logs: dict[str, list[str]]) -> str:
    for pod in (found.pod, *logs):
        if lines := [line for line in logs.get(pod, []) if line.strip()]:
            return _section(f"Last lines of {seen.short(pod)}", lines[-LOG_LINES_SHOWN:])
    return ""


def _after_logs(seen: Seen, found: Verdict, logs: dict[str, list[str]]) -> str:
    """Return the advice; a rank that could not report may have said in its log what it died of."""
    silent = found.ending is not None and found.ending.report is None
    if found.reason in ("Signal", "Failed", "BackoffLimit") or (
        silent and found.reason == "UserError"
    ):
        trouble, groups = find("ended", "\n".join(logs.get(found.pod, [])))
        if trouble.words:
            return _advice(seen, trouble, groups, found.pod)
    return found.advice


def _section(title: str, lines: list[str]) -> str:
    body = [f"  {_plain(line)}" for line in lines if line.strip()]
    return "\n".join([f"{title}:", *body]) if body else ""


def _plain(line: str) -> str:
    """Return a line without what a terminal would obey, cut to a line's width."""
    line = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.rstrip().rsplit("\r", 1)[-1])
    line = "".join(c if c.isprintable() else " " for c in line.expandtabs(4)).rstrip()
    return line if len(line) <= WIDEST else line[: WIDEST - 3] + "..."


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(tidy(text), WIDTH, break_on_hyphens=False, break_long_words=False)


# -------------------------------------------------------------------------------------- troubles


def _advice(seen: Seen, trouble: Trouble, groups: dict[str, str], pod: str) -> str:
    return trouble.advice.format_map(_Facts(_facts(seen, groups, pod) | groups))


class _Facts(dict[str, str]):
    """What an unknown name becomes in advice: the name, for the user to fill in."""

    def __missing__(self, key: str) -> str:
        return key.upper()


def _facts(seen: Seen, groups: dict[str, str], pod: str) -> dict[str, str]:
    """Return what the advice may say about the job as it is now."""
    named = [item for item in seen.pods if item["metadata"]["name"] == pod]
    spec = at(next(iter(named or seen.pods), None), "spec") or {}
    containers = spec.get("containers") or []
    ours = [item for item in containers if item["name"] in CONTAINERS] or containers
    main: Object = next(iter(ours), {})
    limits = at(main, "resources", "limits") or {}
    claim, mount = _mount(spec, main, groups.get("claim"))
    now = {
        "image": main.get("image"),
        "memory": limits.get("memory"),
        "gpus": limits.get(groups.get("gpu", "")),
        "nodes": seen.wanted if seen.job else None,
        "claim_now": claim,
    }
    facts = {key: f" (now {value})" if value else "" for key, value in now.items()}
    return facts | {"namespace": seen.namespace, "claim": claim or "NAME", "mount": mount}


def _mount(spec: Object, main: Object, claim: str | None) -> tuple[str | None, str]:
    """Return a claim of the pod, the given one or any, and its mount's name in `storage.mounts`."""
    claims = {
        volume["name"]: str(name)
        for volume in spec.get("volumes") or []
        if (name := at(volume, "persistentVolumeClaim", "claimName"))
    }
    volume = next((key for key, name in claims.items() if name == claim), next(iter(claims), ""))
    paths = {m["mountPath"] for m in main.get("volumeMounts") or [] if m["name"] == volume}
    names = [
        item["name"].removeprefix(_MOUNT_ENV).lower()
        for item in main.get("env") or []
        if item["name"].startswith(_MOUNT_ENV) and item.get("value") in paths
    ]
    return claims.get(volume), next(iter(names), "NAME")


_MOUNT_ENV = "HYDRA_TRAINER_MOUNT_"
