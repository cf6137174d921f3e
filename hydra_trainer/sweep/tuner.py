"""sweep=sagemaker_tuner: SageMaker's own tuner, as one CreateHyperParameterTuningJob.

A tuning job has no place for a command: the entrypoint of the image starts, and in AWS's own images
it runs the script that the hyperparameter `sagemaker_program` names. Ours lies beside config.yaml,
and does what the command of a training job does.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hydra_trainer import launcher, values
from hydra_trainer.errors import ConfigError, LaunchError, did_you_mean
from hydra_trainer.job import JobHandle, JobState
from hydra_trainer.plain import clean, merge
from hydra_trainer.sagemaker import request
from hydra_trainer.sagemaker.shapes import Problem, shape_problems

from .services import Look, Plan, Seen
from .space import Choice, Distribution, Int

Object = dict[str, Any]

OPERATION = "CreateHyperParameterTuningJob"
STRATEGIES = ("Bayesian", "Random", "Hyperband", "Grid")
EARLY = ("Off", "Auto")

NAME = 32  # characters of a tuning job's name
SUFFIX = 8  # of them from its content
MOST_VALUES = 30  # of one parameter, of which there may be as many

SCRIPT = "start.py"
"""In the channel of the configuration: what the image's entrypoint runs."""

OF_ALL = """\
import os
import sys

ML = os.environ.get("SAGEMAKER_BASE_DIR", "/opt/ml")
sys.argv[1:] = [word.replace("/opt/ml", ML) for word in {words}]
"""
FROM_ARCHIVE = """\
import tarfile

with tarfile.open(f"{ML}/input/data/code/code.tar.gz") as archive:
    code = archive.extractfile("hydra_trainer/bootstrap.py").read()
exec(code)
"""
FROM_IMAGE = """\
from hydra_trainer.bootstrap import main

sys.exit(main())
"""

ENDED = ("Completed", "Failed", "Stopped", "DeleteFailed")

STATES = {
    "Completed": JobState.SUCCEEDED,
    "Failed": JobState.FAILED,
    "Stopped": JobState.CANCELLED,
}

LAG = 10
"""Looks after the end of a tuning job until a list that has fewer jobs than it counted is
believed."""


@dataclass(frozen=True)
class Options:
    """How SageMaker searches. The same names are in conf/sweep/sagemaker_tuner.yaml."""

    n_trials: int = 20
    max_concurrent: int = 4
    strategy: str = "Bayesian"
    early_stopping: str = "Off"
    seed: int | None = None
    max_runtime: int | None = None
    target: float | None = None
    patience: int | None = None
    warm_start: list[str] = field(default_factory=list)
    request_overrides: dict[str, Any] = field(default_factory=dict)


class Tuner:
    """SageMaker's tuner."""

    name = "sagemaker_tuner"
    scheme = "sagemaker"
    options = Options

    def __init__(self, options: Options) -> None:
        self._options = options

    @classmethod
    def reaching(cls, handle: JobHandle) -> "TuningJob":
        place: Any = launcher.reaching(handle)
        return TuningJob(handle, place.account(), place.embedded)

    def render(self, plan: Plan) -> Object:
        """Return the CreateHyperParameterTuningJob request.

        Raises:
            ConfigError: with everything that is wrong with it.
        """
        if problems := [*_problems(plan, self._options)]:
            raise ConfigError(problems)
        training = plan.place.render(plan.job)
        left = _left_out(training)
        made = tuning_job(plan, self._options, training)
        problems = [*left, *(_told(one) for one in shape_problems(made, OPERATION))]
        if problems:
            raise ConfigError(problems)
        return made

    def submit(self, plan: Plan) -> "TuningJob":
        """Create the tuning job; the same one that is there already is followed."""
        from hydra_trainer.sagemaker.account import InUse

        launcher_of: Any = plan.place
        place, account, training = launcher_of.reach(plan.job)
        made = self.render(replace(plan, place=place))
        handle = place.handle(account, made["HyperParameterTuningJobName"])
        launcher.say(f"submitting {handle}")
        place.put(account, plan.job)
        where = request.config_place(place, request.job_name(plan.job))
        account.put(f"{where}{SCRIPT}", script(plan, training).encode())
        try:
            account.call("sagemaker", "create_hyper_parameter_tuning_job", **made)
        except InUse:
            _adopt(account, made, handle)
        return TuningJob(handle, account, place.embedded)


def _adopt(account: Any, made: Object, handle: JobHandle) -> None:
    """Check that a tuning job that is there already is the same one. Raises LaunchError."""
    name = made["HyperParameterTuningJobName"]
    operation = "describe_hyper_parameter_tuning_job"
    there = account.call("sagemaker", operation, HyperParameterTuningJobName=name)
    wanted = {tag["Key"]: tag["Value"] for tag in made["Tags"]}[request.DIGEST]
    if account.tags(there["HyperParameterTuningJobArn"]).get(request.DIGEST) != wanted:
        raise LaunchError(
            f"{handle} is there already, with other settings: the same search, with other "
            "resources, storage or launcher options. Type name=... for another one beside it."
        )
    launcher.say(f"{handle} is there already")
    if there["HyperParameterTuningJobStatus"] == "Stopped":
        launcher.say(
            f"it was stopped. To go on from its results: name=... sweep.warm_start=[{name}]"
        )


# ----------------------------------------------------------------------------------------- request


def tuning_job(plan: Plan, options: Options, training: Object) -> Object:
    """Return the request, from that of a training job of the fixed part."""
    goal = plan.job.config["objective"]
    plain = {
        "HyperParameterTuningJobName": tuning_name(plan),
        "HyperParameterTuningJobConfig": {
            "Strategy": options.strategy,
            "StrategyConfig": _strategy(plan, options),
            "HyperParameterTuningJobObjective": {
                "Type": "Maximize" if goal["mode"] == "max" else "Minimize",
                "MetricName": goal["metric"],
            },
            "ResourceLimits": {
                # A grid has as many as it has, and the service wants to hear no number.
                "MaxNumberOfTrainingJobs": None if options.strategy == "Grid" else options.n_trials,
                "MaxParallelTrainingJobs": options.max_concurrent,
                "MaxRuntimeInSeconds": options.max_runtime,
            },
            "ParameterRanges": _ranges(plan, options),
            "TrainingJobEarlyStoppingType": options.early_stopping,
            "TuningJobCompletionCriteria": {
                "TargetObjectiveMetricValue": options.target,
                "BestObjectiveNotImproving": {
                    "MaxNumberOfTrainingJobsNotImproving": options.patience
                },
            },
            "RandomSeed": options.seed,
        },
        "TrainingJobDefinition": _definition(plan, training),
        "WarmStartConfig": _warm_start(options),
        "Tags": training["Tags"],
    }
    made: Object = merge(clean(plain), options.request_overrides)
    return made


def tuning_name(plan: Plan) -> str:
    """Return the name: at most 32 characters, the last of them from its content."""
    front = request.job_name(plan.job)[: -SUFFIX - 1][: NAME - SUFFIX - 1].rstrip("-")
    return f"{front}-{plan.job.identity[:SUFFIX]}"


def _strategy(plan: Plan, options: Options) -> Object | None:
    if options.strategy != "Hyperband":
        return None
    most = int(plan.job.config["trainer"]["max_epochs"])
    return {"HyperbandStrategyConfig": {"MinResource": 1, "MaxResource": most}}


def _warm_start(options: Options) -> Object | None:
    if not options.warm_start:
        return None
    parents = [{"HyperParameterTuningJobName": name} for name in options.warm_start]
    return {
        "ParentHyperParameterTuningJobs": parents,
        "WarmStartType": "IdenticalDataAndAlgorithm",
    }


KEPT = (
    "RoleArn",
    "InputDataConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
    "CheckpointConfig",
    "VpcConfig",
    "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "RetryStrategy",
    "Environment",
)
"""Parts of a training job that a definition has as well."""

REPLACED = ("TrainingJobName", "AlgorithmSpecification", "HyperParameters", "Tags")


def _left_out(training: Object) -> Iterator[str]:
    """Yield what a training job has and a tuning job has no place for."""
    from hydra_trainer.sagemaker.rules import key_of

    for part in training:
        if part not in KEPT and part not in REPLACED:
            key = key_of(part) or f"launcher.request_overrides.{part}"
            yield (
                f"{key} is set, but a tuning job has no {part} for its training jobs. Leave it "
                "out, or type sweep=optuna, which starts ordinary jobs."
            )


def _definition(plan: Plan, training: Object) -> Object:
    algorithm = training["AlgorithmSpecification"]
    channel = f"{request.OPT}/input/data/{request.CONFIG}"
    return {
        # The toolkit in AWS's images reads both as JSON.
        "StaticHyperParameters": {
            "sagemaker_program": json.dumps(SCRIPT),
            "sagemaker_submit_directory": json.dumps(channel),
        },
        "AlgorithmSpecification": {
            "TrainingImage": algorithm["TrainingImage"],
            "TrainingInputMode": algorithm["TrainingInputMode"],
            "MetricDefinitions": [*_metrics(plan, algorithm["MetricDefinitions"])],
        },
        **{part: training[part] for part in KEPT if part in training},
    }


def _metrics(plan: Plan, definitions: list[Object]) -> Iterator[Object]:
    """Yield what is read from the log. The objective as it goes ("METRIC VALUE"), for early
    stopping, and at the very end, where it counts, that of the result ("METRIC=VALUE"): the best
    value, or the last one, as objective.value says."""
    metric = str(plan.job.config["objective"]["metric"])
    for one in definitions:
        if one["Name"] == metric:
            yield {"Name": metric, "Regex": rf"\s{re.escape(metric)}[ =]([-+0-9.eEinfa]+)"}
        else:
            yield one


def script(plan: Plan, training: Object) -> str:
    """Return the script that starts a training job's work, as its command would."""
    words = [*training["AlgorithmSpecification"]["ContainerArguments"]]
    words.insert(-1, "--trial")
    lines = ",\n".join(f"    {json.dumps(word)}" for word in words)
    image = plan.job.config["code"]["delivery"] == "image"
    return OF_ALL.format(words=f"[\n{lines},\n]") + (FROM_IMAGE if image else FROM_ARCHIVE)


# ------------------------------------------------------------------------------------------ ranges


def _ranges(plan: Plan, options: Options) -> Object:
    found: dict[str, list[Object]] = {}
    for key, name in plan.keys.items():
        one: Any = plan.space.params[name]
        if _counted(one, options):
            chosen = [values.text_of(one.read(value)) for value in one.all()]
            entry: Object = {"Name": key, "Values": chosen}
            found.setdefault("CategoricalParameterRanges", []).append(entry)
            continue
        kind = "Integer" if isinstance(one, Int) else "Continuous"
        entry = {
            "Name": key,
            "MinValue": one.text(one.low),
            "MaxValue": one.text(one.high),
            "ScalingType": "Logarithmic" if one.log else "Linear",
        }
        found.setdefault(f"{kind}ParameterRanges", []).append(entry)
    return found


def _counted(one: Distribution, options: Options) -> bool:
    """Tell whether the values of a parameter are listed one by one: the service has no steps."""
    if isinstance(one, Choice) or options.strategy == "Grid":
        return True
    return one.step not in (None, 1)


# ------------------------------------------------------------------------------------ what is wrong


def _problems(plan: Plan, options: Options) -> Iterator[str]:
    """Yield what the service would say no to, and what no shape of it tells."""
    for key, allowed in (("strategy", STRATEGIES), ("early_stopping", EARLY)):
        value = getattr(options, key)
        if value not in allowed:
            hint = did_you_mean(value, allowed)
            yield f"sweep.{key} is {value!r}, but must be one of {', '.join(allowed)}.{hint}"
    if options.max_concurrent > options.n_trials:
        yield (
            f"sweep.max_concurrent is {options.max_concurrent}, but must be at most "
            f"sweep.n_trials={options.n_trials}."
        )
    if options.strategy == "Hyperband" and options.early_stopping != "Off":
        # dg/automatic-model-tuning-early-stopping
        yield (
            "sweep.early_stopping is 'Auto', but Hyperband stops jobs by itself. Type "
            "sweep.early_stopping=Off."
        )
    if len(plan.objectives) > 1:
        yield (
            f"objective.others has {len(plan.objectives) - 1} more objectives, but SageMaker's "
            "tuner knows one only. Type objective.others=[] or sweep=optuna sweep.sampler=nsgaii."
        )
    for key, name in plan.keys.items():
        yield from _parameter_problems(key, plan.space.params[name], options)


def _parameter_problems(key: str, one: Distribution, options: Options) -> Iterable[str]:
    if not _counted(one, options):
        return
    if one.count is None:
        yield (
            f"{key}={one.typed} has no end of values, but sweep.strategy is 'Grid'. Type "
            f"{key}=range(...) in steps, or sweep.strategy=Bayesian."
        )
    elif one.count > MOST_VALUES:
        yield (
            f"{key}={one.typed} are {one.count} values, but SageMaker's tuner takes at most "
            f"{MOST_VALUES} that are listed, and it knows no steps. Type {key}=interval(...), or "
            "larger steps."
        )


KEYS = {
    "Strategy": "sweep.strategy",
    "ResourceLimits.MaxNumberOfTrainingJobs": "sweep.n_trials",
    "ResourceLimits.MaxParallelTrainingJobs": "sweep.max_concurrent",
    "ResourceLimits.MaxRuntimeInSeconds": "sweep.max_runtime",
    "RandomSeed": "sweep.seed",
    "TrainingJobEarlyStoppingType": "sweep.early_stopping",
    "TuningJobCompletionCriteria.TargetObjectiveMetricValue": "sweep.target",
    "HyperParameterTuningJobObjective.MetricName": "objective.metric",
}
"""Paths in the tuner's part of the request, and the key of ours that makes what is there."""


def _told(problem: Problem) -> str:
    """Return a problem with the key to change."""
    from hydra_trainer.sagemaker.rules import key_of

    part, _, rest = problem.path.partition(".")
    key: str | None = f"sweep.request_overrides.{problem.path}"
    if part == "TrainingJobDefinition":
        key = key_of(rest)
    elif part == "HyperParameterTuningJobConfig":
        key = KEYS.get(rest, "the search space" if rest.startswith("ParameterRanges") else key)
    elif part == "WarmStartConfig":
        key = "sweep.warm_start"
    return f"{problem.path} {problem.message}" + (f" It comes from {key}." if key else "")


# --------------------------------------------------------------------------------------- following


class TuningJob:
    """A tuning job that was created."""

    def __init__(self, handle: JobHandle, account: Any, quick: bool) -> None:
        self.handle = handle
        self.pause = 0.2 if quick else 1.0
        self._region, _, self._name = handle.path.partition("/")
        self._account = account
        self._counted: Any = None
        self._jobs: dict[str, Object] = {}
        self._lag = 0

    def look(self) -> Look:
        """One call, and the list of its jobs only where the numbers have changed."""
        found = self._call("describe_hyper_parameter_tuning_job")
        status = found["HyperParameterTuningJobStatus"]
        counted = found["TrainingJobStatusCounters"]
        if (status, counted) != self._counted or self._lag:
            self._list()
            self._counted = status, counted
        total = sum(counted.get(key, 0) for key in COUNTERS)
        ended = status in ENDED and (len(self._jobs) >= total or self._lag >= LAG)
        self._lag = self._lag + 1 if status in ENDED else 0
        early = found["HyperParameterTuningJobConfig"].get("TrainingJobEarlyStoppingType") == "Auto"
        hyperband = found["HyperParameterTuningJobConfig"]["Strategy"] == "Hyperband"
        prunes = (early or hyperband) and status in ("InProgress", "Completed")
        failure = "" if status == "Completed" else str(found.get("FailureReason") or status.lower())
        jobs = [self._seen(one, prunes) for one in self._jobs.values()]
        return Look(jobs, ended, failure if ended else "")

    def stop(self) -> None:
        from hydra_trainer.sagemaker.account import Refused

        try:
            self._call("stop_hyper_parameter_tuning_job")
        except Refused as error:
            if error.code != "ValidationException":  # it has ended
                raise

    def _list(self) -> None:
        """Read the list, the newest first, up to where all is known."""
        left = {name for name, one in self._jobs.items() if not _has_ended(one)}
        token: Object = {}
        while True:
            page = self._call(
                "list_training_jobs_for_hyper_parameter_tuning_job",
                SortBy="CreationTime",
                SortOrder="Descending",
                MaxResults=100,
                **token,
            )
            known = {*self._jobs}
            for one in page["TrainingJobSummaries"]:
                self._jobs[one["TrainingJobName"]] = one
                left.discard(one["TrainingJobName"])
            names = {one["TrainingJobName"] for one in page["TrainingJobSummaries"]}
            if not page.get("NextToken") or (names <= known and not left):
                return
            token = {"NextToken": page["NextToken"]}
            time.sleep(self.pause)

    def _seen(self, one: Object, prunes: bool) -> Seen:
        name, status = str(one["TrainingJobName"]), one["TrainingJobStatus"]
        waiting = JobState.RUNNING if one.get("TrainingStartTime") else JobState.PENDING
        state = STATES.get(status, waiting)
        final = one.get("FinalHyperParameterTuningJobObjectiveMetric") or {}
        value = final.get("Value")
        return Seen(
            name,
            JobHandle("sagemaker", f"{self._region}/{name}"),
            {str(key): str(text) for key, text in one["TunedHyperParameters"].items()},
            state,
            None if value is None else float(value),
            reason=status,
            message=str(one.get("FailureReason") or ""),
            pruned=prunes and state is JobState.CANCELLED,
        )

    def _call(self, operation: str, **words: Any) -> Object:
        found: Object = self._account.call(
            "sagemaker", operation, HyperParameterTuningJobName=self._name, **words
        )
        return found


COUNTERS = ("Completed", "InProgress", "RetryableError", "NonRetryableError", "Stopped")


def _has_ended(one: Object) -> bool:
    return one["TrainingJobStatus"] in STATES
