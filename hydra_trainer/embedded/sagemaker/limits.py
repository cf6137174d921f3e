"""How often an account may call: a token bucket for each operation, as the real services have them.

| figure | from |
|---|---|
| ListTrainingJobs 2/s | its quota, which is not adjustable: aws-solutions/deepracer-on-aws#87 |
| GetLogEvents 25/s, DescribeLogStreams 25/s, FilterLogEvents 10/s | CloudWatch Logs quotas |
| GetCallerIdentity 600/s | STS quotas, of all its operations together |
| all others of SageMaker | assumed, so that clients mind: they are not published |

That five processes that create jobs are throttled is known (aws/sagemaker-python-sdk#645). How many
calls in a row a bucket holds is published for none: here it is a second or two of them.
"""

import threading
import time
from collections.abc import Mapping
from typing import NamedTuple

from .faults import THROTTLES
from .protocols import Call
from .refusals import AwsError


class Limit(NamedTuple):
    """Calls a second in the long run, and in a row."""

    rate: float
    burst: int


LIMITS: Mapping[str, Limit] = {
    "sagemaker:ListTrainingJobs": Limit(2, 2),
    "sagemaker:CreateTrainingJob": Limit(3, 5),
    "sagemaker:DescribeTrainingJob": Limit(10, 20),
    "sagemaker:StopTrainingJob": Limit(5, 10),
    "sagemaker:UpdateTrainingJob": Limit(5, 10),
    "sagemaker:DeleteTrainingJob": Limit(5, 10),
    "sagemaker:AddTags": Limit(5, 10),
    "sagemaker:ListTags": Limit(5, 10),
    "sagemaker:DeleteTags": Limit(5, 10),
    "sagemaker:CreateHyperParameterTuningJob": Limit(1, 2),
    "sagemaker:DescribeHyperParameterTuningJob": Limit(5, 10),
    "sagemaker:ListHyperParameterTuningJobs": Limit(2, 2),
    "sagemaker:ListTrainingJobsForHyperParameterTuningJob": Limit(2, 5),
    "sagemaker:StopHyperParameterTuningJob": Limit(2, 5),
    "logs:GetLogEvents": Limit(25, 25),
    "logs:DescribeLogStreams": Limit(25, 25),
    "logs:FilterLogEvents": Limit(10, 10),
    "sts:GetCallerIdentity": Limit(600, 600),
}

TEXTS = {"s3": "Please reduce your request rate.", "ec2": "Request limit exceeded."}


class Buckets:
    """The limits of an account in each region. May be shared by threads."""

    def __init__(self, limits: Mapping[str, Limit]) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._tokens: dict[tuple[str, str], tuple[float, float]] = {}  # how many, and when

    def take(self, call: Call) -> None:
        """Count a call. Raises AwsError when it is one too many."""
        limit = self._limits.get(call.name)
        if limit is None:
            return
        now, key = time.monotonic(), (call.region, call.name)
        with self._lock:
            tokens, then = self._tokens.get(key, (float(limit.burst), now))
            tokens = min(float(limit.burst), tokens + (now - then) * limit.rate)
            self._tokens[key] = (max(tokens - 1, 0.0) if tokens >= 1 else tokens, now)
        if tokens < 1:
            code = THROTTLES.get(call.service, "ThrottlingException")
            raise AwsError(code, TEXTS.get(call.service, "Rate exceeded"))
