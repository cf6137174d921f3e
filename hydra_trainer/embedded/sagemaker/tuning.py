"""Tuning jobs: they choose values at random, and start real training jobs with them.

What a strategy says is checked, and a grid is one; all others are a random search here, and no job
is stopped early. Everything else is as of the service: its jobs have what their definition says,
the values among their hyperparameters, and the objective from their own logs.
"""

import contextlib
import hashlib
import itertools
import json
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import checks, jobs
from .jobs import Job, Jobs
from .protocols import Call, Operations
from .refusals import AwsError, validation
from .training import Training

Object = dict[str, Any]

IN_PROGRESS, STOPPING = "InProgress", "Stopping"
OVER = frozenset({"Completed", "Failed", "Stopped"})

LOOK = 1.0
"""Seconds between two looks at the jobs of a tuning job, if nothing happens."""

PAGE = 10  # summaries, unless MaxResults says another number

NOT_DESCRIBED = ("Tags",)

IN_SUMMARY = (
    "TrainingJobArn",
    "CreationTime",
    "TrainingStartTime",
    "TrainingEndTime",
    "TrainingJobStatus",
    "FailureReason",
)

COUNTED = {
    "Completed": "Completed",
    "Failed": "NonRetryableError",
    "Stopped": "Stopped",
}
"""Status of a training job, and the counter that has it; InProgress otherwise."""


class Tuning:
    """Takes requests, and drives each tuning job in a thread of its own, below a folder."""

    def __init__(self, folder: Path, known: Jobs, training: Training, account: str) -> None:
        self._folder = folder
        self._jobs = known
        self._training = training
        self._account = account
        self._lock = threading.RLock()
        self._closed = False
        self._found: dict[jobs.Key, Object] = {}
        for file in sorted(folder.glob("*/*.json")):
            with contextlib.suppress(ValueError):
                known_as = json.loads(file.read_text())
                self._found[known_as["region"], file.stem] = known_as
        self.operations: Operations = {
            "CreateHyperParameterTuningJob": self._create,
            "DescribeHyperParameterTuningJob": self._describe,
            "ListHyperParameterTuningJobs": self._list,
            "ListTrainingJobsForHyperParameterTuningJob": self._list_jobs,
            "StopHyperParameterTuningJob": self._stop,
            "ListTags": self._list_tags,
        }

    def resume(self) -> None:
        """Go on with those of another process."""
        for key, found in self._found.items():
            if found["status"] not in OVER:
                self._drive(key)

    @property
    def is_working(self) -> bool:
        with self._lock:
            return any(found["status"] not in OVER for found in self._found.values())

    def close(self) -> None:
        self._closed = True

    # ----------------------------------------------------------------------------------- operations

    def _create(self, call: Call) -> Object:
        request = call.parameters
        checks.check_shape(request, call.operation)
        for problem in _problems(request):
            raise validation(problem)
        name = request["HyperParameterTuningJobName"]
        key = (call.region, name)
        arn = f"arn:aws:sagemaker:{call.region}:{self._account}:hyper-parameter-tuning-job/{name}"
        first = _training_job(request, f"{name}-001-00000000", {})
        self._training.check(call.region, first)
        with self._lock:
            if key in self._found:
                text = (
                    "Hyper parameter tuning job names must be unique within an AWS account and "
                    f"region, and a tuning job with this name already exists ({arn})"
                )
                raise AwsError("ResourceInUse", text)
            now = time.time()
            self._found[key] = {
                "region": call.region,
                "request": request,
                "arn": arn,
                "status": IN_PROGRESS,
                "created": now,
                "modified": now,
                "jobs": [],
            }
            self._save(key)
        self._drive(key)
        return {"HyperParameterTuningJobArn": arn}

    def _describe(self, call: Call) -> Object:
        key, found = self._of(call)
        seen = [self._summary(key, one) for one in found["jobs"]]
        given = {name: one for name, one in found["request"].items() if name not in NOT_DESCRIBED}
        statuses = [COUNTED.get(one["TrainingJobStatus"], "InProgress") for one in seen]
        names = ("Completed", "InProgress", "RetryableError", "NonRetryableError", "Stopped")
        valued = [one for one in seen if one["ObjectiveStatus"] == "Succeeded"]
        answer = {
            **given,
            "HyperParameterTuningJobArn": found["arn"],
            "HyperParameterTuningJobStatus": found["status"],
            "CreationTime": found["created"],
            "LastModifiedTime": found["modified"],
            "TrainingJobStatusCounters": {one: statuses.count(one) for one in names},
            "ObjectiveStatusCounters": {
                status: sum(one["ObjectiveStatus"] == status for one in seen)
                for status in ("Succeeded", "Pending", "Failed")
            },
        }
        if valued:
            answer["BestTrainingJob"] = _best(valued, found["request"])
        for name, part in (("ended", "HyperParameterTuningEndTime"), ("reason", "FailureReason")):
            if name in found:
                answer[part] = found[name]
        return answer

    def _list(self, call: Call) -> Object:
        checks.check_shape(call.parameters, call.operation)
        wanted = call.parameters.get("NameContains", "")
        with self._lock:
            found = [
                (key[1], one)
                for key, one in self._found.items()
                if key[0] == call.region and wanted in key[1]
            ]
        return {
            "HyperParameterTuningJobSummaries": [
                {
                    "HyperParameterTuningJobName": name,
                    "HyperParameterTuningJobArn": one["arn"],
                    "HyperParameterTuningJobStatus": one["status"],
                    "Strategy": one["request"]["HyperParameterTuningJobConfig"]["Strategy"],
                    "CreationTime": one["created"],
                    "TrainingJobStatusCounters": {},
                    "ObjectiveStatusCounters": {},
                    "ResourceLimits": one["request"]["HyperParameterTuningJobConfig"][
                        "ResourceLimits"
                    ],
                }
                for name, one in found
            ]
        }

    def _list_jobs(self, call: Call) -> Object:
        key, found = self._of(call)
        seen = [self._summary(key, one) for one in found["jobs"]]  # in the order of their creation
        if call.parameters.get("SortOrder", "Descending") == "Descending":
            seen.reverse()
        try:
            start = int(call.parameters.get("NextToken", "0"))
        except ValueError:
            raise validation("Invalid pagination token.") from None
        end = start + call.parameters.get("MaxResults", PAGE)
        answer: Object = {"TrainingJobSummaries": seen[start:end]}
        if end < len(seen):
            answer["NextToken"] = str(end)
        return answer

    def _stop(self, call: Call) -> Object:
        key, found = self._of(call)
        with self._lock:
            if found["status"] in OVER:
                raise validation(
                    "The request was rejected because the hyper parameter tuning job is in status "
                    f"{found['status']}."
                )
            self._change(key, status=STOPPING)
        for job in self._running(key):
            self._training.stop(job)
        return {}

    def _list_tags(self, call: Call) -> Object:
        arn = str(call.parameters.get("ResourceArn"))
        with self._lock:
            for found in self._found.values():
                if found["arn"] == arn:
                    return {"Tags": list(found["request"].get("Tags") or ())}
        return self._training.operations["ListTags"](call)

    def _of(self, call: Call) -> tuple[jobs.Key, Object]:
        checks.check_shape(call.parameters, call.operation)
        key = (call.region, call.parameters["HyperParameterTuningJobName"])
        if (found := self._found.get(key)) is None:
            raise AwsError("ResourceNotFound", f"Amazon SageMaker can't find a tuning job {key[1]}")
        return key, found

    # ------------------------------------------------------------------------------------- the jobs

    def _summary(self, key: jobs.Key, one: Object) -> Object:
        job = self._jobs.find(key[0], one["name"])
        gone = {"TrainingJobStatus": "Stopped", "CreationTime": 0.0, "TrainingJobArn": ""}
        described: Object = gone if job is None else self._jobs.description(job)
        summary = {part: described[part] for part in IN_SUMMARY if part in described}
        summary |= {"TrainingJobName": one["name"], "TunedHyperParameters": one["values"]}
        metric = _objective(self._found[key]["request"])
        values = {m["MetricName"]: m["Value"] for m in described.get("FinalMetricDataList") or ()}
        if metric["MetricName"] in values:
            summary["FinalHyperParameterTuningJobObjectiveMetric"] = {
                **metric,
                "Value": values[metric["MetricName"]],
            }
            summary["ObjectiveStatus"] = "Succeeded"
        else:
            over = summary["TrainingJobStatus"] in jobs.OVER
            summary["ObjectiveStatus"] = "Failed" if over else "Pending"
        return summary

    def _running(self, key: jobs.Key) -> list[Job]:
        known = (self._jobs.find(key[0], one["name"]) for one in self._found[key]["jobs"])
        return [job for job in known if job is not None and not job.is_over]

    # ----------------------------------------------------------------------------------- the driver

    def _drive(self, key: jobs.Key) -> None:
        name = f"tuning-{key[1]}"
        threading.Thread(target=self._run, args=(key,), name=name, daemon=True).start()

    def _run(self, key: jobs.Key) -> None:
        try:
            self._search(key)
        except AwsError as error:
            self._change(key, status="Failed", ended=time.time(), reason=error.message)

    def _search(self, key: jobs.Key) -> None:
        found = self._found[key]
        limits = found["request"]["HyperParameterTuningJobConfig"]["ResourceLimits"]
        values = _values(found["request"], key[1])
        for _ in found["jobs"]:  # of another process
            next(values, None)
        left = True
        while not self._closed:
            running = self._running(key)
            while (
                left
                and found["status"] == IN_PROGRESS
                and len(running) < limits["MaxParallelTrainingJobs"]
            ):
                if (chosen := next(values, None)) is None:
                    left = False
                elif job := self._start(key, chosen):
                    running.append(job)
            if not running and (not left or found["status"] == STOPPING):
                self._end(key)
                return
            self._wait(lambda seen=running: any(job.is_over for job in seen))  # type: ignore[misc]

    def _wait(self, is_so: Callable[[], bool]) -> None:
        with contextlib.suppress(TimeoutError):
            self._jobs.wait(is_so, LOOK)

    def _start(self, key: jobs.Key, chosen: dict[str, str]) -> Job | None:
        """Start the next training job; None where the tuning job was stopped meanwhile."""
        with self._lock:
            found = self._found[key]
            if found["status"] != IN_PROGRESS:
                return None
            number = len(found["jobs"]) + 1
            tail = hashlib.sha256(f"{found['arn']}-{number}".encode()).hexdigest()[:8]
            name = f"{key[1]}-{number:03d}-{tail}"
            found["jobs"].append({"name": name, "values": chosen})
            self._change(key)
            request = _training_job(found["request"], name, chosen)
            return self._training.create(key[0], request, {"TuningJobArn": found["arn"]})

    def _end(self, key: jobs.Key) -> None:
        found = self._found[key]
        seen = [self._summary(key, one) for one in found["jobs"]]
        if found["status"] == STOPPING:
            self._change(key, status="Stopped", ended=time.time())
        elif any(one["ObjectiveStatus"] == "Succeeded" for one in seen):
            self._change(key, status="Completed", ended=time.time())
        else:
            reason = "All training jobs failed. Please take a look at the training jobs failures."
            self._change(key, status="Failed", ended=time.time(), reason=reason)

    def _change(self, key: jobs.Key, **more: Any) -> None:
        with self._lock:
            self._found[key] |= {"modified": time.time(), **more}
            self._save(key)

    def _save(self, key: jobs.Key) -> None:
        file = self._folder / key[0] / f"{key[1]}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        new.write_text(json.dumps(self._found[key]))
        new.rename(file)


# --------------------------------------------------------------------------------------- requests

SHARED = (
    "RoleArn",
    "InputDataConfig",
    "VpcConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
    "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "CheckpointConfig",
    "RetryStrategy",
    "Environment",
)


def _training_job(request: Object, name: str, values: dict[str, str]) -> Object:
    """Return the request of a training job with some values."""
    definition = request["TrainingJobDefinition"]
    made = {part: definition[part] for part in SHARED if part in definition}
    made = json.loads(json.dumps(made))
    static = definition.get("StaticHyperParameters") or {}
    return {
        **made,
        "TrainingJobName": name,
        "AlgorithmSpecification": dict(definition["AlgorithmSpecification"]),
        "HyperParameters": {
            **static,
            **values,
            "_tuning_objective_metric": _objective(request)["MetricName"],
        },
    }


def _objective(request: Object) -> Object:
    return dict(request["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"])


def _best(valued: list[Object], request: Object) -> Object:
    worst_last = _objective(request)["Type"] == "Maximize"
    part = "FinalHyperParameterTuningJobObjectiveMetric"
    return sorted(valued, key=lambda one: one[part]["Value"], reverse=worst_last)[0]


# ------------------------------------------------------------------------------------------- values


def _values(request: Object, name: str) -> Iterator[dict[str, str]]:
    """Yield the values of one training job after another."""
    tuning = request["HyperParameterTuningJobConfig"]
    ranges = tuning["ParameterRanges"]
    most = tuning["ResourceLimits"].get("MaxNumberOfTrainingJobs")
    if tuning["Strategy"] == "Grid":
        listed = ranges["CategoricalParameterRanges"]
        names = [one["Name"] for one in listed]
        for chosen in itertools.product(*(one["Values"] for one in listed)):
            yield dict(zip(names, chosen, strict=True))
        return
    draw = random.Random(str(tuning.get("RandomSeed", name)))
    for _ in range(most):
        yield {
            **{one["Name"]: repr(_number(one, draw)) for one in _part(ranges, "Continuous")},
            **{one["Name"]: str(round(_number(one, draw))) for one in _part(ranges, "Integer")},
            **{one["Name"]: draw.choice(one["Values"]) for one in _part(ranges, "Categorical")},
        }


def _part(ranges: Object, kind: str) -> list[Object]:
    return list(ranges.get(f"{kind}ParameterRanges") or ())


def _number(one: Object, draw: random.Random) -> float:
    low, high = float(one["MinValue"]), float(one["MaxValue"])
    if one.get("ScalingType") == "Logarithmic":
        return math.exp(draw.uniform(math.log(low), math.log(high)))
    return draw.uniform(low, high)


# ------------------------------------------------------------------------------------------- checks


def _problems(request: Object) -> Iterator[str]:
    """Yield what is wrong although each field is right, as documented."""
    if not request.get("TrainingJobDefinition"):
        yield "TrainingJobDefinition is required: the embedded service has no list of definitions"
        return
    tuning = request["HyperParameterTuningJobConfig"]
    if not tuning.get("HyperParameterTuningJobObjective"):
        yield "HyperParameterTuningJobObjective is required."
        return
    metric = tuning["HyperParameterTuningJobObjective"]["MetricName"]
    algorithm = request["TrainingJobDefinition"]["AlgorithmSpecification"]
    if metric not in [one["Name"] for one in algorithm.get("MetricDefinitions") or ()]:
        yield f"The objective metric {metric} is not among the MetricDefinitions."
    yield from _limit_problems(tuning)
    ranges = tuning.get("ParameterRanges") or {}
    listed = [one for part in ranges.values() for one in part]
    if not listed:
        yield "ParameterRanges must have at least one range."
    names = [one["Name"] for one in listed]
    static = request["TrainingJobDefinition"].get("StaticHyperParameters") or {}
    if len({*names, *static}) < len(names) + len(static):
        yield "The names of hyperparameters must be unique, static ones included."
    for kind in ("Continuous", "Integer"):
        for one in _part(ranges, kind):
            yield from _range_problems(one, kind)


def _limit_problems(tuning: Object) -> Iterator[str]:
    limits, grid = tuning["ResourceLimits"], tuning["Strategy"] == "Grid"
    most = limits.get("MaxNumberOfTrainingJobs")
    if grid and {*(tuning.get("ParameterRanges") or {})} - {"CategoricalParameterRanges"}:
        yield "Grid search supports only categorical hyperparameters."
    if not grid and most is None:
        yield "MaxNumberOfTrainingJobs is required."
    if most is not None and limits["MaxParallelTrainingJobs"] > most:
        yield "MaxParallelTrainingJobs must be at most MaxNumberOfTrainingJobs."
    if tuning["Strategy"] == "Hyperband" and tuning.get("TrainingJobEarlyStoppingType") == "Auto":
        yield "Hyperband has its own early stopping: TrainingJobEarlyStoppingType must be Off."


def _range_problems(one: Object, kind: str) -> Iterator[str]:
    try:
        read = int if kind == "Integer" else float
        low, high = read(one["MinValue"]), read(one["MaxValue"])
    except ValueError:
        yield f"MinValue and MaxValue of {one['Name']} must be numbers."
        return
    if not low < high:
        yield f"MinValue of {one['Name']} must be less than its MaxValue."
    if one.get("ScalingType") == "Logarithmic" and low <= 0:
        yield f"A logarithmic range must be above 0; {one['Name']} begins at {one['MinValue']}."
