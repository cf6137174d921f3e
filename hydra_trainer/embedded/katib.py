"""Katib: Experiments, whose Trials get values at random, and the jobs of Trials.

A grid is one; every other algorithm is a random search here, and no Trial is stopped early. All
else is as in kubeflow/katib, pkg/controller.v1beta1/{experiment,trial}: a Trial is made from the
template with the values filled in as text, and its metrics are what the filter of the collector
finds in the log of the primary pod. Its pods are not wrapped: the log is read where it is.
"""

import contextlib
import itertools
import json
import math
import random
import re
import string
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .control import (
    RESOURCES,
    Family,
    Key,
    holds,
    labels_of,
    reference,
    settle,
    status_of,
    where,
    write_status,
)
from .events import Recorder
from .metadata import copied, now
from .podlogs import LINE, log_file
from .refusals import ApiError
from .store import Store

Object = dict[str, Any]

TRIALS = "trials.kubeflow.org"
OF_EXPERIMENT = "katib.kubeflow.org/experiment"
FILTER = r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)"
"""What Katib looks for where an Experiment names no filter: NAME=VALUE."""

PARALLEL = 3  # Trials at a time, where an Experiment does not say

UNAVAILABLE = "unavailable"

END = re.compile(r'#\(type=="(\w+)"\)')
"""In a successCondition or failureCondition: the condition of the job."""

COUNTS = {
    "Succeeded": ("trialsSucceeded", "succeededTrialList"),
    "Failed": ("trialsFailed", "failedTrialList"),
    "MetricsUnavailable": ("trialMetricsUnavailable", "metricsUnavailableTrialList"),
    "Running": ("trialsRunning", "runningTrialList"),
    "": ("trialsPending", "pendingTrialList"),
}
"""The condition of a Trial, and where the status of its Experiment counts and lists it."""


class Experiments:
    """Makes the Trials of Experiments."""

    resource = "experiments.kubeflow.org"

    def __init__(self, store: Store, family: Family) -> None:
        self._store = store
        self._family = family
        self._events = Recorder(store, "experiment-controller")

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        return ()

    def reconcile(self, experiment: Object) -> None:
        if experiment["metadata"].get("deletionTimestamp"):
            return
        status = status_of(experiment)
        if holds(status, "Succeeded") or holds(status, "Failed"):
            return
        settle(status, "Created", "True", "ExperimentCreated", "Experiment is created")
        status.setdefault("startTime", now())
        trials = self._family.children(experiment, TRIALS)
        _count(status, trials)
        if not self._ended(experiment, status, trials):
            self._start(experiment, trials)
            settle(status, "Running", "True", "ExperimentRunning", "Experiment is running")
        if (best := _best(experiment["spec"], trials)) is not None:
            status["currentOptimalTrial"] = {
                "bestTrialName": best["metadata"]["name"],
                "parameterAssignments": best["spec"]["parameterAssignments"],
                "observation": best["status"]["observation"],
            }
        write_status(self._store, experiment, status)

    def _ended(self, experiment: Object, status: Object, trials: list[Object]) -> bool:
        spec = experiment["spec"]
        failed = status.get("trialsFailed", 0) + status.get("trialMetricsUnavailable", 0)
        done = failed + status.get("trialsSucceeded", 0)
        most = spec.get("maxFailedTrialCount")
        if most is not None and failed > most:
            reason = "ExperimentMaxFailedTrialsReached"
            text = "Experiment has failed because max failed count has reached"
            return self._end(experiment, status, "Failed", reason, text)
        if _reached(spec, _best(spec, trials)):
            reason = "ExperimentGoalReached"
            text = "Experiment has succeeded because Objective goal has reached"
            return self._end(experiment, status, "Succeeded", reason, text)
        wanted = len(self._all(experiment))
        if done >= wanted:
            reason = "ExperimentMaxTrialsReached"
            text = "Experiment has succeeded because max trial count has reached"
            return self._end(experiment, status, "Succeeded", reason, text)
        return False

    def _end(
        self, experiment: Object, status: Object, kind: str, reason: str, message: str
    ) -> bool:
        settle(status, "Running", "False", reason, message)
        settle(status, kind, "True", reason, message)
        status["completionTime"] = now()
        self._events.tell(experiment, reason, message)
        return True

    def _all(self, experiment: Object) -> list[dict[str, str]]:
        return list(_assignments(experiment["spec"], experiment["metadata"]["uid"]))

    def _start(self, experiment: Object, trials: list[Object]) -> None:
        running = sum(not _is_over(one) for one in trials)
        room = int(experiment["spec"].get("parallelTrialCount") or PARALLEL) - running
        first = len(trials)
        for number, chosen in enumerate(self._all(experiment)[first:][: max(room, 0)], first):
            self._make(experiment, chosen, number)

    def _make(self, experiment: Object, chosen: dict[str, str], number: int) -> None:
        namespace, name = where(experiment)
        draw = random.Random(f"{experiment['metadata']['uid']}-{number}")
        tail = "".join(draw.choices(string.ascii_lowercase + string.digits, k=8))
        spec, template = experiment["spec"], experiment["spec"]["trialTemplate"]
        trial = {
            "apiVersion": experiment["apiVersion"],
            "kind": "Trial",
            "metadata": {
                "name": f"{name}-{tail}",
                "labels": {**labels_of(experiment), OF_EXPERIMENT: name},
                "ownerReferences": [reference(experiment)],
            },
            "spec": {
                "objective": copied(spec["objective"]),
                "parameterAssignments": [{"name": k, "value": v} for k, v in chosen.items()],
                "runSpec": _filled(template, f"{name}-{tail}", namespace, chosen),
                "retainRun": bool(template.get("retain")),
                "metricsCollector": copied(spec.get("metricsCollectorSpec") or {}),
                "primaryPodLabels": template.get("primaryPodLabels") or {},
                "primaryContainerName": template["primaryContainerName"],
                "successCondition": template["successCondition"],
                "failureCondition": template["failureCondition"],
            },
        }
        with contextlib.suppress(ApiError):  # it was made a moment ago
            self._store.create(TRIALS, namespace, trial)


class Trials:
    """Makes the job of each Trial, and reads its metrics when it has ended."""

    resource = TRIALS

    def __init__(self, store: Store, family: Family, home: Path) -> None:
        self._store = store
        self._family = family
        self._home = home
        self._events = Recorder(store, "trial-controller")

    def note(self, kind: str, resource: str, obj: Object) -> Iterable[Key]:
        return ()

    def reconcile(self, trial: Object) -> None:
        if trial["metadata"].get("deletionTimestamp") or _is_over(trial):
            return
        status, spec = status_of(trial), trial["spec"]
        settle(status, "Created", "True", "TrialCreated", "Trial is created")
        status.setdefault("startTime", now())
        run = spec["runSpec"]
        resource = RESOURCES.get((run["apiVersion"], run["kind"]), "")
        jobs = self._family.children(trial, resource)
        if not jobs:
            self._make(trial, status, resource)
        else:
            self._follow(trial, status, jobs[0], resource)
        write_status(self._store, trial, status)

    def _make(self, trial: Object, status: Object, resource: str) -> None:
        job = copied(trial["spec"]["runSpec"])
        job["metadata"]["ownerReferences"] = [reference(trial)]
        try:
            self._store.create(resource, where(trial)[0], job)
        except ApiError as error:
            settle(status, "Failed", "True", "TrialFailed", error.message)

    def _follow(self, trial: Object, status: Object, job: Object, resource: str) -> None:
        spec, ended = trial["spec"], job.get("status") or {}
        text = "Trial is running"
        settle(status, "Running", "True", "TrialRunning", text)
        if holds(ended, _end_of(spec["failureCondition"])):
            kind, text = "Failed", "Trial has failed"
        elif holds(ended, _end_of(spec["successCondition"])):
            kind, text = "Succeeded", "Trial has succeeded"
        else:
            return
        status["observation"] = {"metrics": [*_observed(spec, self._lines(trial, job))]}
        if kind == "Succeeded" and not _has_objective(spec, status["observation"]):
            kind, text = "MetricsUnavailable", "Metrics are not available"
            settle(status, "Succeeded", "False", f"Trial{kind}", text)
        settle(status, "Running", "False", f"Trial{kind}", text)
        settle(status, kind, "True", f"Trial{kind}", text)
        status["completionTime"] = now()
        self._events.tell(trial, f"Trial{kind}", text)
        if not spec.get("retainRun"):
            with contextlib.suppress(ApiError):
                self._store.delete(resource, *where(job))

    def _lines(self, trial: Object, job: Object) -> Iterator[str]:
        """Yield the lines that the primary pod of a Trial has printed."""
        spec = trial["spec"]
        wanted = (spec.get("primaryPodLabels") or {}).items()
        for pod in self._family.children(job, "pods"):
            if wanted <= labels_of(pod).items():
                folder = log_file(self._home, pod, spec["primaryContainerName"], 0).parent
                for file in sorted(folder.glob("*.log")):
                    for line in file.read_bytes().splitlines():
                        if found := LINE.fullmatch(line):
                            yield found[3].decode(errors="replace")


# ------------------------------------------------------------------------------------------- values


def _assignments(spec: Object, seed: str) -> Iterator[dict[str, str]]:
    """Yield the values of one Trial after another: the same ones each time it is asked."""
    most = spec.get("maxTrialCount")
    if spec["algorithm"]["algorithmName"] == "grid":
        names = [one["name"] for one in spec["parameters"]]
        listed = itertools.product(*(_listed(one) for one in spec["parameters"]))
        for chosen in itertools.islice(listed, most):
            yield dict(zip(names, chosen, strict=True))
        return
    draw = random.Random(seed)
    for _ in range(most or 1):
        yield {one["name"]: _drawn(one, draw) for one in spec["parameters"]}


def _listed(one: Object) -> list[str]:
    space = one["feasibleSpace"]
    if "list" in space:
        return list(space["list"])
    low, high, step = (float(space.get(key, "1")) for key in ("min", "max", "step"))
    count = math.floor((high - low) / step + 1e-9) + 1
    return [_number(one, low + number * step) for number in range(count)]


def _drawn(one: Object, draw: random.Random) -> str:
    space = one["feasibleSpace"]
    if "list" in space:
        return str(draw.choice(space["list"]))
    if "step" in space:
        return str(draw.choice(_listed(one)))
    low, high = float(space["min"]), float(space["max"])
    if space.get("distribution") == "logUniform":
        return _number(one, math.exp(draw.uniform(math.log(low), math.log(high))))
    return _number(one, draw.uniform(low, high))


def _number(one: Object, value: float) -> str:
    return str(round(value)) if one["parameterType"] == "int" else repr(value)


def _filled(template: Object, name: str, namespace: str, chosen: dict[str, str]) -> Object:
    """Return the job of a Trial: the template, in which values stand as they are, as text."""
    text = json.dumps(template["trialSpec"])
    run = template["trialSpec"]
    about = {"Name": name, "Namespace": namespace, "Kind": run["kind"]}
    about["APIVersion"] = run["apiVersion"]
    meta = {f"${{trialSpec.{key}}}": value for key, value in about.items()}
    for one in template["trialParameters"]:
        wanted = one["reference"]
        value = meta[wanted] if wanted in meta else chosen[wanted]
        text = text.replace(f"${{trialParameters.{one['name']}}}", value)
    made: Object = json.loads(text)
    made.setdefault("metadata", {}).update({"name": name, "namespace": namespace})
    return made


# ------------------------------------------------------------------------------------------ metrics


def _observed(spec: Object, lines: Iterable[str]) -> Iterator[Object]:
    """Yield the metrics of a log, as the collector of stdout finds them."""
    objective = spec["objective"]
    names = [objective["objectiveMetricName"], *(objective.get("additionalMetricNames") or ())]
    source = (spec.get("metricsCollector") or {}).get("source") or {}
    formats = (source.get("filter") or {}).get("metricsFormat") or [FILTER]
    found: dict[str, list[float]] = {name: [] for name in names}
    for line in lines:
        if any(name in line for name in names):
            for pattern in formats:
                for match in re.finditer(pattern, line):
                    name, value = match[1].strip(), match[2].strip()
                    with contextlib.suppress(ValueError):
                        if name in found:
                            found[name].append(float(value))
    for name, logged in found.items():
        if logged:
            ends = {"min": min(logged), "max": max(logged), "latest": logged[-1]}
            yield {"name": name, **{key: repr(value) for key, value in ends.items()}}
    if not found[names[0]]:
        yield {"name": names[0], **dict.fromkeys(("min", "max", "latest"), UNAVAILABLE)}


def _has_objective(spec: Object, observation: Object) -> bool:
    name = spec["objective"]["objectiveMetricName"]
    return any(
        one["name"] == name and one["latest"] != UNAVAILABLE for one in observation["metrics"]
    )


def _value(spec: Object, trial: Object) -> float | None:
    """Return the objective of a Trial, by the strategy for it."""
    objective = spec["objective"]
    name, default = objective["objectiveMetricName"], objective["type"][:3]
    ways = {one["name"]: one["value"] for one in objective.get("metricStrategies") or ()}
    for one in ((trial.get("status") or {}).get("observation") or {}).get("metrics") or ():
        if one["name"] == name and one["latest"] != UNAVAILABLE:
            return float(one[ways.get(name, default)])
    return None


def _best(spec: Object, trials: Iterable[Object]) -> Object | None:
    good = [one for one in trials if holds(one.get("status"), "Succeeded")]
    valued = [(value, one) for one in good if (value := _value(spec, one)) is not None]
    most = spec["objective"]["type"] == "maximize"
    valued.sort(key=lambda pair: pair[0], reverse=most)
    return valued[0][1] if valued else None


def _reached(spec: Object, best: Object | None) -> bool:
    goal = spec["objective"].get("goal")
    if goal is None or best is None:
        return False
    value = _value(spec, best)
    assert value is not None
    return value >= goal if spec["objective"]["type"] == "maximize" else value <= goal


# ------------------------------------------------------------------------------------------- states


def _end_of(condition: str) -> str:
    found = END.search(condition)
    return found[1] if found else ""


def _kind(trial: Object) -> str:
    return next((kind for kind in COUNTS if kind and holds(trial.get("status"), kind)), "")


def _is_over(trial: Object) -> bool:
    return _kind(trial) in ("Succeeded", "Failed", "MetricsUnavailable")


def _count(status: Object, trials: list[Object]) -> None:
    """Write down how many Trials are in which state."""
    for kind, (count, listed) in COUNTS.items():
        names = sorted(one["metadata"]["name"] for one in trials if _kind(one) == kind)
        status.pop(count, None)
        status.pop(listed, None)
        if names:
            status |= {count: len(names), listed: names}
    status["trials"] = len(trials)
