"""sweep=katib: Kubeflow's Katib, as one Experiment, our PyTorchJob the template of its Trials.

A Trial's values are text in a variable of its pods, put there by Katib, which knows nothing of the
configuration. So all Trials share the ConfigMaps of one job, and the worker puts the values in.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from hydra_trainer import launcher, values
from hydra_trainer.bootstrap import TRIAL
from hydra_trainer.config import digest
from hydra_trainer.eks import marks
from hydra_trainer.eks.experiments import API, NAME_LENGTH
from hydra_trainer.errors import ConfigError, LaunchError, did_you_mean
from hydra_trainer.job import JobHandle, JobState
from hydra_trainer.plain import clean, merge

from .services import Look, Plan, Seen
from .space import Choice, Distribution, Float, Int

Object = dict[str, Any]

EXPERIMENTS = f"experiments.{API}"
TRIALS = f"trials.{API}"
OF_EXPERIMENT = "katib.kubeflow.org/experiment"
"""The label of a Trial that names its Experiment."""

ALGORITHMS = (
    *("random", "grid", "tpe", "multivariate-tpe", "bayesianoptimization"),
    *("cmaes", "sobol", "hyperband"),
)

SUFFIX = 8  # characters of a name from its content

FILTER = r"([^\s=]+)[ =]([-+]?[0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)"
"""Of the lines of a log: "METRIC VALUE" as it goes, and "METRIC=VALUE" of the result."""

NAME = "trial"
"""The parameter of the template that is the name of the Trial."""

ENDED = 'status.conditions.#(type=="{}")#|#(status=="True")#'

STATES = {
    "Succeeded": JobState.SUCCEEDED,
    "Failed": JobState.FAILED,
    "MetricsUnavailable": JobState.FAILED,
    "Killed": JobState.CANCELLED,
    "EarlyStopped": JobState.CANCELLED,
    "Running": JobState.RUNNING,
}
"""Conditions of a Trial, the ones that count first."""


@dataclass(frozen=True)
class Options:
    """How Katib searches. The same names are in conf/sweep/katib.yaml."""

    n_trials: int = 20
    max_concurrent: int = 4
    max_failed: int | None = None
    algorithm: str = "tpe"
    algorithm_settings: dict[str, Any] = field(default_factory=dict)
    early_stopping: str | None = None
    early_stopping_settings: dict[str, Any] = field(default_factory=dict)
    goal: float | None = None
    manifest_overrides: dict[str, Any] = field(default_factory=dict)


class Katib:
    """Katib, in the namespace of the launcher."""

    name = "katib"
    scheme = "eks"
    options = Options

    def __init__(self, options: Options) -> None:
        self._options = options

    @classmethod
    def reaching(cls, handle: JobHandle) -> "Experiment":
        place: Any = launcher.reaching(handle)
        return Experiment(handle, place.cluster(), place.embedded)

    def render(self, plan: Plan) -> Object:
        """Return the List of everything that is created: ConfigMaps, and the Experiment last.

        Raises:
            ConfigError: with everything that is wrong with it.
        """
        if problems := [*_problems(plan, self._options)]:
            raise ConfigError(problems)
        found = plan.place.render(plan.job)
        *others, job = found["items"]
        made = experiment(plan, self._options, job)
        if problems := [*_checked(made)]:
            raise ConfigError(problems)
        return {**found, "items": [*others, made]}

    def submit(self, plan: Plan) -> "Experiment":
        """Create the Experiment; the same one that is there already is followed."""
        place: Any = plan.place
        made = self.render(plan)["items"]
        cluster = place.reach(plan.job)
        name = made[-1]["metadata"]["name"]
        handle = JobHandle("eks", f"{cluster.context}/{cluster.namespace}/{name}")
        if (there := cluster.get(EXPERIMENTS, name)) is not None:
            _adopt(there, made[-1], handle)
        else:
            launcher.say(f"submitting {handle}")
            place.create(cluster, made)
        return Experiment(handle, cluster, place.embedded)


def _adopt(there: Object, wanted: Object, handle: JobHandle) -> None:
    """Check that an Experiment that is there already is the same one. Raises LaunchError."""
    marked = [one["metadata"].get("annotations", {}).get(marks.DIGEST) for one in (there, wanted)]
    if marked[0] != marked[1]:
        raise LaunchError(
            f"{handle} is there already, with other settings: the same search, with other "
            "resources, storage or launcher options. Type name=... for another one beside it."
        )
    launcher.say(f"{handle} is there already")


# ---------------------------------------------------------------------------------------- manifest


def experiment(plan: Plan, options: Options, job: Object) -> Object:
    """Return the Experiment whose Trials are like a PyTorchJob."""
    names = {key: f"p{number}" for number, key in enumerate(plan.keys)}
    plain = {
        "apiVersion": API,
        "kind": "Experiment",
        "metadata": {
            "name": experiment_name(job),
            "namespace": job["metadata"].get("namespace"),
            "labels": dict(marks.OURS),
        },
        "spec": {
            "objective": _objective(plan, options),
            "algorithm": _algorithm(options.algorithm, options.algorithm_settings),
            "earlyStopping": _algorithm(options.early_stopping, options.early_stopping_settings),
            "parallelTrialCount": options.max_concurrent,
            "maxTrialCount": options.n_trials,
            "maxFailedTrialCount": options.max_failed,
            "resumePolicy": "Never",
            "parameters": [
                _parameter(key, plan.space.params[name]) for key, name in plan.keys.items()
            ],
            "metricsCollectorSpec": {
                "collector": {"kind": "StdOut"},
                "source": {"filter": {"metricsFormat": [FILTER]}},
            },
            "trialTemplate": {
                "retain": True,  # the log and the result of each job stay
                "primaryContainerName": "pytorch",
                "primaryPodLabels": {"training.kubeflow.org/job-role": "master"},
                "successCondition": ENDED.format("Succeeded"),
                "failureCondition": ENDED.format("Failed"),
                "trialParameters": [
                    {"name": NAME, "reference": "${trialSpec.Name}"},
                    *({"name": short, "reference": key} for key, short in names.items()),
                ],
                "trialSpec": _template(job, names),
            },
        },
    }
    made: Object = merge(clean(plain), options.manifest_overrides)
    made["metadata"]["annotations"] = {marks.DIGEST: digest(made)}
    return made


def experiment_name(job: Object) -> str:
    """Return the name: at most 40 characters, the last of them from its content."""
    name = str(job["metadata"]["name"])
    front = name[: -SUFFIX - 1][: NAME_LENGTH - SUFFIX - 1].rstrip("-")
    return f"{front}-{name[-SUFFIX:]}"


def _objective(plan: Plan, options: Options) -> Object:
    goal = plan.job.config["objective"]
    all_of_them = [goal, *goal["others"]]
    return {
        "type": "maximize" if goal["mode"] == "max" else "minimize",
        "goal": options.goal,
        "objectiveMetricName": goal["metric"],
        "additionalMetricNames": [one["metric"] for one in goal["others"]],
        "metricStrategies": [{"name": one["metric"], "value": _which(one)} for one in all_of_them],
    }


def _which(goal: Object) -> str:
    """Return which of the values that were logged is the objective."""
    return str("latest" if goal.get("value", "best") == "last" else goal.get("mode", "min"))


def _algorithm(name: str | None, settings: dict[str, Any]) -> Object | None:
    if name is None:
        return None
    pairs = [{"name": str(key), "value": str(value)} for key, value in settings.items()]
    return {"algorithmName": name, "algorithmSettings": pairs}


def _parameter(key: str, one: Distribution) -> Object:
    if isinstance(one, Choice):
        listed = [_text(one.read(text)) for text in one.all()]
        return {"name": key, "parameterType": "categorical", "feasibleSpace": {"list": listed}}
    space = {"min": _text(one.low), "max": _text(one.high)}
    if one.step not in (None, 1):
        space["step"] = _text(one.step)
    if one.log:
        space["distribution"] = "logUniform"  # Katib 0.18 and later
    kind = "int" if isinstance(one, Int) else "double"
    return {"name": key, "parameterType": kind, "feasibleSpace": space}


def _text(value: Any) -> str:
    """Return a value as text. To some readers of YAML, 1e-05 without quotes is no text."""
    if isinstance(value, float) and math.isfinite(value):
        return format(Decimal(repr(value)), "f")
    return values.text_of(value)


def _template(job: Object, names: dict[str, str]) -> Object:
    """Return a PyTorchJob without a name, whose pods hear which Trial they are."""
    found: Object = json.loads(json.dumps(job))
    found["metadata"] = {"labels": found["metadata"]["labels"]}
    _rename(found, job["metadata"]["name"])
    chosen = {key: _place(short) for key, short in names.items()}
    told = json.dumps({"name": _place(NAME), "values": chosen}, separators=(",", ":"))
    for replica in found["spec"]["pytorchReplicaSpecs"].values():
        container = replica["template"]["spec"]["containers"][0]
        container["command"] = ["sh", "-c", _wrapped(container["command"])]
        container["env"] = [*container["env"], {"name": TRIAL, "value": told}]
    return found


def _place(name: str) -> str:
    return f"${{trialParameters.{name}}}"


def _rename(node: Any, name: str) -> None:
    """Let the labels that name the job, and what selects by them, name the Trial."""
    if isinstance(node, dict):
        if node.get(marks.JOB) == name:
            node[marks.JOB] = _place(NAME)
        for value in node.values():
            _rename(value, name)
    elif isinstance(node, list):
        for value in node:
            _rename(value, name)


def _wrapped(command: list[str]) -> str:
    """Return a command for `sh -c`, to whose end Katib adds `1>FILE 2>&1 && echo completed`.

    Katib joins words without quotes, but leaves what is after `sh -c` as it is. The shell is the
    first process then, and has to pass the SIGTERM on that lets training save.
    """
    return (
        f"{{ {shlex.join(command)} & p=$!; trap 'kill -TERM $p' TERM; wait $p; c=$?; "
        "while kill -0 $p 2>/dev/null; do wait $p; c=$?; done; (exit $c); }"
    )


# ------------------------------------------------------------------------------------ what is wrong


def _problems(plan: Plan, options: Options) -> Iterator[str]:
    place: Any = plan.place
    if place.api != "pytorchjob":
        yield (
            f"launcher.api is {place.api}, but sweep=katib starts PyTorchJobs. Type "
            "launcher.api=pytorchjob."
        )
    if options.algorithm not in ALGORITHMS:
        hint = did_you_mean(options.algorithm, ALGORITHMS)
        yield (
            f"sweep.algorithm is {options.algorithm!r}, but must be one of "
            f"{', '.join(ALGORITHMS)}.{hint}"
        )
    if options.early_stopping not in (None, "medianstop"):
        yield (
            f"sweep.early_stopping is {options.early_stopping!r}, but must be medianstop or null."
        )
    for key, least, value in (
        ("max_concurrent", 1, options.max_concurrent),
        ("max_failed", 0, options.max_failed),
    ):
        if value is not None and not least <= value <= options.n_trials:
            yield (
                f"sweep.{key} is {value}, but must be {least} to sweep.n_trials={options.n_trials}."
            )
    yield from _of_algorithm(plan, options)
    for key, name in plan.keys.items():
        yield from _unfit(key, plan.space.params[name])


def _of_algorithm(plan: Plan, options: Options) -> Iterator[str]:
    params = plan.space.params
    numbers = [one for one in params.values() if isinstance(one, Float | Int)]
    if options.algorithm == "cmaes" and len(numbers) < 2:
        yield (
            "sweep.algorithm is 'cmaes', which needs at least two numbers to search over. Type "
            "sweep.algorithm=tpe."
        )
    if options.algorithm == "hyperband":
        for key in ("r_l", "resource_name"):
            if key not in options.algorithm_settings:
                yield (
                    f"sweep.algorithm is 'hyperband', which needs {key}. Type "
                    "'sweep.algorithm_settings={r_l: 9, resource_name: trainer.max_epochs}'."
                )
    if options.algorithm == "grid":
        for key, one in params.items():
            if one.count is None:
                yield (
                    f"{key}={one.typed} has no end of values, but sweep.algorithm is 'grid'. Type "
                    f"{key}=range(...) in steps, or sweep.algorithm=tpe."
                )


def _unfit(key: str, one: Distribution) -> Iterable[str]:
    """Katib puts values into the JSON of a template as they are."""
    if not isinstance(one, Choice):
        return
    for text in one.all():
        told = _text(one.read(text))
        if json.dumps(json.dumps(told)) != json.dumps(f'"{told}"'):
            yield (
                f"{key} may be {text}, whose quotes, backslashes or letters Katib cannot put into "
                "a job. Type sweep=optuna, which can."
            )


KEYS = (
    (r"spec\.parallelTrialCount", "sweep.max_concurrent"),
    (r"spec\.maxTrialCount", "sweep.n_trials"),
    (r"spec\.maxFailedTrialCount", "sweep.max_failed"),
    (r"spec\.algorithm\b", "sweep.algorithm"),
    (r"spec\.earlyStopping\b", "sweep.early_stopping"),
    (r"spec\.objective\b", "objective"),
    (r"spec\.parameters\b", "the search space"),
    (r"metadata\.name", "name"),
)
"""Paths in an Experiment, and the key of ours that makes what is there."""


def _checked(made: Object) -> Iterator[str]:
    from hydra_trainer.eks.schema import schema_problems
    from hydra_trainer.eks.webhooks import webhook_problems

    for path, message, _ in (*schema_problems(made), *webhook_problems(made)):
        keys = (key for pattern, key in KEYS if re.match(pattern, path))
        key = next(keys, "sweep.manifest_overrides")
        yield f"{path}: {message.rstrip('.')}. It comes from {key}."


# --------------------------------------------------------------------------------------- following


class Experiment:
    """An Experiment that was created."""

    def __init__(self, handle: JobHandle, cluster: Any, quick: bool) -> None:
        self.handle = handle
        self.pause = 0.2 if quick else 1.0
        self._place, _, self._name = handle.path.rpartition("/")
        self._cluster = cluster
        self._status: Any = None
        self._trials: list[Object] = []

    def look(self) -> Look:
        """One call, and the list of its Trials only where its status has changed."""
        found = self._cluster.get(EXPERIMENTS, self._name)
        if found is None:
            gone = "it was deleted" if self._status is not None else "there is none of that name"
            return Look([self._seen(one) for one in self._trials], True, gone)
        status = found.get("status") or {}
        if status != self._status or not self._trials:
            labels = f"{OF_EXPERIMENT}={self._name}"
            self._trials, _ = self._cluster.list(TRIALS, labels=labels)
            self._status = status
        end = next((kind for kind in ("Failed", "Succeeded") if _holds(status, kind)), None)
        failure = _message(status, "Failed") if end == "Failed" else ""
        return Look([self._seen(one) for one in self._trials], end is not None, failure)

    def stop(self) -> None:
        """Katib cannot pause: the Experiment is deleted, and its jobs go with it, saving first."""
        self._cluster.delete(EXPERIMENTS, self._name)

    def _seen(self, one: Object) -> Seen:
        name, status = str(one["metadata"]["name"]), one.get("status") or {}
        kind = next((kind for kind in STATES if _holds(status, kind)), "")
        chosen = one["spec"].get("parameterAssignments") or []
        return Seen(
            name,
            JobHandle("eks", f"{self._place}/{name}"),
            {str(pair["name"]): str(pair["value"]) for pair in chosen},
            STATES.get(kind, JobState.PENDING),
            observed(one),
            reason=kind,
            message=_message(status, kind),
            pruned=kind == "EarlyStopped",
        )


def observed(trial: Object) -> float | None:
    """Return the objective of a Trial, as its collector read it; None: not (yet) a number."""
    objective = trial["spec"].get("objective") or {}
    metric = objective.get("objectiveMetricName")
    ways = {one["name"]: one["value"] for one in objective.get("metricStrategies") or ()}
    observation = (trial.get("status") or {}).get("observation") or {}
    for one in observation.get("metrics") or ():
        if one["name"] == metric:
            try:
                return float(one[ways.get(metric, "latest")])
            except (KeyError, ValueError):
                return None
    return None


def _condition(status: Object, kind: str) -> Object:
    found = (one for one in status.get("conditions") or () if one["type"] == kind)
    return next(found, {})


def _holds(status: Object, kind: str) -> bool:
    return _condition(status, kind).get("status") == "True"


def _message(status: Object, kind: str) -> str:
    return str(_condition(status, kind).get("message") or "")
