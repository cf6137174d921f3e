"""The operations of SageMaker that concern training jobs."""

import base64
import binascii
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from . import checks, jobs
from .jobs import Job
from .protocols import Call, Operations
from .refusals import AwsError, not_found, validation

if TYPE_CHECKING:
    from .runs import Runs
    from .settings import Settings

Object = dict[str, Any]

PAGE = 10  # summaries, unless MaxResults says another number
MOST_TAGS = 50

IN_SUMMARY = (
    "TrainingJobName",
    "TrainingJobArn",
    "CreationTime",
    "TrainingEndTime",
    "LastModifiedTime",
    "TrainingJobStatus",
    "SecondaryStatus",
)

ORDERS = {
    "Name": lambda job: job.name,
    "CreationTime": lambda job: job.state["CreationTime"],
    "Status": lambda job: job.status,
}


class Training:
    """Takes requests; `runs` runs the jobs."""

    def __init__(self, settings: "Settings", known: jobs.Jobs, runs: "Runs") -> None:
        self._settings = settings
        self._jobs = known
        self._runs = runs
        self.operations: Operations = {
            "CreateTrainingJob": self._create,
            "DescribeTrainingJob": self._describe,
            "ListTrainingJobs": self._list,
            "StopTrainingJob": self._stop,
            "UpdateTrainingJob": self._update,
            "DeleteTrainingJob": self._delete,
            "AddTags": self._add_tags,
            "ListTags": self._list_tags,
            "DeleteTags": self._delete_tags,
        }

    def _create(self, call: Call) -> Object:
        checks.check_shape(call.parameters, call.operation)
        return {"TrainingJobArn": self.create(call.region, call.parameters).arn}

    def create(self, region: str, request: Object, state: Object | None = None) -> Job:
        """Start a training job, whose description has `state` as well. Raises AwsError."""
        name = request["TrainingJobName"]
        arn = f"arn:aws:sagemaker:{region}:{self._settings.account}:training-job/{name}"
        if self._jobs.find(region, name):
            raise _taken(arn)
        self.check(region, request)
        job = jobs.new(region, request, arn)
        job.state |= state or {}
        if not self._jobs.add(job):
            raise _taken(arn)
        self._runs.start(job)
        return job

    def check(self, region: str, request: Object) -> None:
        """Check what a request says, and that what it names is there. Raises AwsError."""
        checks.check_rules(request)
        checks.check_role(request["RoleArn"], self._settings.roles)
        checks.check_inputs(request, region, self._settings.objects)
        running = [one.request for one in self._jobs.all(region) if not one.is_over]
        checks.check_quotas(request, self._settings.quotas, running)

    def stop(self, job: Job) -> None:
        self._runs.stop(job)

    def _describe(self, call: Call) -> Object:
        return self._jobs.description(self._job(call))

    def _list(self, call: Call) -> Object:
        wanted = call.parameters
        checks.check_shape(wanted, call.operation)
        order = ORDERS[wanted.get("SortBy", "CreationTime")]
        backwards = wanted.get("SortOrder", "Descending") == "Descending"
        found = [one for one in self._jobs.all(call.region) if _is_wanted(one, wanted)]
        found.sort(key=lambda one: (order(one), one.name), reverse=backwards)
        if token := wanted.get("NextToken"):
            last = _read(token)
            place = [[order(one), one.name] for one in found]
            found = [
                one
                for one, at in zip(found, place, strict=True)
                if (at < last if backwards else at > last)
            ]
        size = wanted.get("MaxResults", PAGE)
        page = found[:size]
        described = [self._jobs.description(one) for one in page]
        answer: Object = {"TrainingJobSummaries": [_summary(one) for one in described]}
        if len(found) > size:
            answer["NextToken"] = _written([order(page[-1]), page[-1].name])
        return answer

    def _stop(self, call: Call) -> Object:
        job = self._job(call)
        if job.is_over:
            raise validation(_rejected(job))
        self._runs.stop(job)
        return {}

    def _update(self, call: Call) -> Object:
        job = self._job(call)
        keep = (call.parameters.get("ResourceConfig") or {}).get("KeepAlivePeriodInSeconds")
        with self._jobs.change(job):
            if keep is not None:
                job.request["ResourceConfig"]["KeepAlivePeriodInSeconds"] = keep
            for part in ("ProfilerConfig", "ProfilerRuleConfigurations", "RemoteDebugConfig"):
                if part in call.parameters:
                    job.request[part] = call.parameters[part]
        return {"TrainingJobArn": job.arn}

    def _delete(self, call: Call) -> Object:
        job = self._job(call)
        if not job.is_over:
            raise AwsError("ResourceInUse", _rejected(job))
        self._jobs.remove(job)
        return {}

    def _job(self, call: Call) -> Job:
        """Return the job that is asked for. Raises AwsError."""
        checks.check_shape(call.parameters, call.operation)
        found = self._jobs.find(call.region, call.parameters["TrainingJobName"])
        if found is None:
            raise not_found()
        return found

    # --------------------------------------------------------------------------------------- tags

    def _add_tags(self, call: Call) -> Object:
        job = self._tagged(call)
        with self._jobs.change(job):
            tags = {one["Key"]: one for one in job.request.get("Tags") or ()}
            tags |= {one["Key"]: one for one in call.parameters["Tags"]}
            if len(tags) > MOST_TAGS:
                text = f"A resource has at most {MOST_TAGS} tags."
                raise AwsError("ResourceLimitExceeded", text)
            job.request["Tags"] = list(tags.values())
        return {"Tags": list(tags.values())}

    def _list_tags(self, call: Call) -> Object:
        return {"Tags": list(self._tagged(call).request.get("Tags") or ())}

    def _delete_tags(self, call: Call) -> Object:
        job = self._tagged(call)
        with self._jobs.change(job):
            kept = [
                one
                for one in job.request.get("Tags") or ()
                if one["Key"] not in call.parameters["TagKeys"]
            ]
            job.request["Tags"] = kept
        return {}

    def _tagged(self, call: Call) -> Job:
        checks.check_shape(call.parameters, call.operation)
        arn = call.parameters["ResourceArn"]
        found = next((one for one in self._jobs.all(call.region) if one.arn == arn), None)
        if found is None:
            raise not_found()
        return found


def _rejected(job: Job) -> str:
    """Real, of StopTrainingJob."""
    return f"The request was rejected because the training job is in status {job.status}."


def _taken(arn: str) -> AwsError:
    """Real."""
    return AwsError(
        "ResourceInUse",
        "Training job names must be unique within an AWS account and region, and a training job "
        f"with this name already exists ({arn})",
    )


def _is_wanted(job: Job, wanted: Object) -> bool:
    created, modified = job.state["CreationTime"], job.state["LastModifiedTime"]
    status, plan = wanted.get("StatusEquals"), wanted.get("TrainingPlanArnEquals")
    return (
        "WarmPoolStatusEquals" not in wanted  # there are no warm pools
        and plan in (None, job.request["ResourceConfig"].get("TrainingPlanArn"))
        and wanted.get("NameContains", "").lower() in job.name.lower()
        and status in (None, job.status)
        and _seconds(wanted, "CreationTimeAfter", 0.0) <= created
        and created <= _seconds(wanted, "CreationTimeBefore", float("inf"))
        and _seconds(wanted, "LastModifiedTimeAfter", 0.0) <= modified
        and modified <= _seconds(wanted, "LastModifiedTimeBefore", float("inf"))
    )


def _seconds(wanted: Object, key: str, otherwise: float) -> float:
    given = wanted.get(key, otherwise)
    if isinstance(given, str):
        return datetime.fromisoformat(given).timestamp()
    return float(given)


def _summary(described: Object) -> Object:
    return {key: described[key] for key in IN_SUMMARY if key in described}


def _written(place: list[Any]) -> str:
    return base64.b64encode(json.dumps(place).encode()).decode()


def _read(token: str) -> list[Any]:
    try:
        return list(json.loads(base64.b64decode(token)))
    except (binascii.Error, ValueError):
        raise validation("Invalid pagination token.") from None
