"""Faults on request: what AWS, or the way there, does on a bad day.

    service.faults.add(Fault("status", error="ExpiredTokenException", operation="sagemaker:"))
    service.faults.add(Fault("lost", operation="CreateTrainingJob", times=3))
    service.faults.add(Fault("throttle", share=0.2, times=None, seed=7))
    service.faults.add(Fault("half", operation="s3:GetObject", after=1000))
    service.faults.add(Fault("status", error="ExpiredToken", key="AKIAOLD", times=None))

The same is a POST of `{"kind": "lost", "operation": "CreateTrainingJob"}` to /embedded/faults, a
DELETE of which ends all of them; a GET lists them, and how often each came.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from hydra_trainer.embedded import faults
from hydra_trainer.embedded.wire import Request

from .protocols import Call
from .refusals import AwsError
from .settings import ACCOUNT

TEXTS = {
    "AccessDeniedException": "User: {user} is not authorized to perform: {operation} because no "
    "identity-based policy allows the {operation} action",
    "AccessDenied": "Access Denied",
    "ExpiredTokenException": "The security token included in the request is expired",
    "ExpiredToken": "The security token included in the request is expired",
    "UnrecognizedClientException": "The security token included in the request is invalid.",
    "InvalidClientTokenId": "The security token included in the request is invalid",
    "ThrottlingException": "Rate exceeded",
    "Throttling": "Rate exceeded",
    "RequestLimitExceeded": "Request limit exceeded.",
    "SlowDown": "Please reduce your request rate.",
    "InternalFailure": "The request processing has failed because of an unknown error, exception "
    "or failure.",
    "InternalError": "We encountered an internal error. Please try again.",
    "ServiceUnavailable": "Service is unable to handle request.",
}

STATUSES = {
    "AccessDenied": 403,
    "ExpiredToken": 403,
    "InvalidClientTokenId": 403,
    "SlowDown": 503,
    "InternalFailure": 500,
    "InternalError": 500,
    "ServiceUnavailable": 503,
    "RequestLimitExceeded": 503,
}
"""Other codes come with 400."""

THROTTLES = {"s3": "SlowDown", "ec2": "RequestLimitExceeded", "sts": "Throttling"}

OF_BODIES = {
    "half": "break the connection off after `after` bytes of a body",
    "stall": "say nothing more after `after` bytes of a body, and do not end either",
    "slow": "after `after` bytes of a body, send fifty a second",
    "etag": "answer with the ETag of another object",
    "changed": "answer, and let the object be another one of that size from then on",
}
"""What else can be wrong with the answer to GetObject."""

USER = f"arn:aws:iam::{ACCOUNT}:user/embedded"


@dataclass
class Fault(faults.Fault):
    """One kind of trouble, for the calls that it is for. What is not said here is as in `faults`.

    Args:
        kind: "status" (refuse), "late" (do it, and refuse all the same), "lost" (do it, and break
            the connection off), "reset" (break it off), "throttle", or one of OF_BODIES.
        error: the code of a refusal.
        key: the id of the access key that it is for; empty for all.
        operation: a regular expression that is looked for in names such as
            sagemaker:CreateTrainingJob or s3:PutObject; empty for all.
    """

    kinds: ClassVar[Mapping[str, str]] = {**faults.Fault.kinds, **OF_BODIES}

    error: str = "InternalFailure"
    operation: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if self.kind == "throttle":
            self.kind, self.error = "status", "throttle"
        self.path = self.path or self.operation
        super().__post_init__()

    def strikes(self, request: Request, is_watch: bool, is_log: bool) -> bool:
        if self.key and self.key != request.headers["key"]:
            return False
        return super().strikes(request, is_watch, is_log)

    def refuses(self, call: Call) -> AwsError:
        """Return what goes with the code."""
        code = self.error
        if code == "throttle":
            code = THROTTLES.get(call.service, "ThrottlingException")
        text = self.message or TEXTS.get(code, code).format(user=USER, operation=call.name)
        return AwsError(code, text, STATUSES.get(code, 400))


class Faults(faults.Faults):
    """The faults of a service. May be shared by threads."""

    def over(self, call: Call) -> Fault | None:
        """Return the first fault that comes over a call, if one does."""
        asked = Request(call.request.method, call.name, headers={"key": call.key})
        found = self.strike(asked, is_watch=False, is_log=False)
        return found if isinstance(found, Fault) else None

    def answer(self, request: Request) -> Any:
        """Do what was asked of /embedded/faults, and return what to answer. Raises AwsError."""
        if request.method == "POST":
            self.add(_parsed(request))
            return {"faults": self.list()}
        return super().answer(request)


def _parsed(request: Request) -> Fault:
    known = [one.name for one in fields(Fault) if one.init]
    try:
        given = dict(request.json())
        if unknown := given.keys() - set(known):
            raise ValueError(f"no such key: {', '.join(unknown)}; there are {', '.join(known)}")
        return Fault(**given)
    except (TypeError, ValueError, re.error) as error:
        raise AwsError("BadFault", f"no fault: {error}") from None
