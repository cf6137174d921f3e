"""From a request to its answer: which service, may one ask, and what comes of it."""

import json
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping

from hydra_trainer.embedded.wire import Broken, Request, Response

from . import protocols, s3
from .faults import Fault, Faults
from .limits import Buckets, Limit
from .protocols import Call, Operations
from .refusals import AwsError, unknown_operation
from .wire import Content

OWN = "/embedded/"
"""What the paths of the service's own requests begin with; no bucket has that name."""


class Api:
    """All services on one port.

    Args:
        services: their operations, by name; what is none of theirs is for S3.
        own: what is asked under OWN, by the rest of the path.
    """

    def __init__(
        self,
        services: Mapping[str, Operations],
        objects: s3.S3,
        own: Mapping[str, Callable[[Request], object]],
        limits: Mapping[str, Limit],
    ) -> None:
        self.faults = Faults()
        self.calls: Counter[tuple[str, str]] = Counter()
        self.throttled: Counter[tuple[str, str]] = Counter()
        self._services = services
        self._s3 = objects
        self._own = {**own, "faults": self.faults.answer, "calls": self._counted}
        self._buckets = Buckets(limits)
        self._lock = threading.Lock()

    def answer(self, request: Request) -> Response:
        """Raises Broken where a fault is that there is no answer."""
        service = "sagemaker"
        try:
            if request.path.startswith(OWN):
                return self._answer_own(request)
            call = protocols.read(request, s3.operation)
            service = call.service
            return self._answer(call)
        except AwsError as error:
            return protocols.refusal(service, request, error)
        except Broken:
            raise
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            text = f"{type(error).__name__}: {error}"
            failure = AwsError("InternalError" if service == "s3" else "InternalFailure", text, 500)
            return protocols.refusal(service, request, failure)

    def _answer(self, call: Call) -> Response:
        with self._lock:
            self.calls[call.service, call.operation] += 1
        fault = self.faults.over(call)
        try:
            if fault and fault.kind == "reset":
                raise Broken
            if fault and fault.kind == "status":
                raise fault.refuses(call)
            if call.service == "s3":
                self._s3.check_region(call)
            _check_signed(call)
            self._buckets.take(call)
        except AwsError as error:
            if error.code in THROTTLES:
                with self._lock:
                    self.throttled[call.service, call.operation] += 1
            raise
        response = self._do(call)
        return self._spoilt(call, fault, response) if fault else response

    def _do(self, call: Call) -> Response:
        if call.service == "s3":
            return self._s3.answer(call)
        operation = self._services[call.service].get(call.operation)
        if operation is None:
            raise unknown_operation(call.name)
        try:
            return protocols.answer(call, operation(call))
        except KeyError as error:
            text = (
                f"1 validation error detected: Value null at {error} failed to satisfy constraint: "
            )
            raise AwsError("ValidationException", f"{text}Member must not be null") from error

    def _spoilt(self, call: Call, fault: Fault, response: Response) -> Response:
        """Return what is left of an answer with a fault."""
        if fault.kind == "lost":
            raise Broken
        if fault.kind == "late":
            raise fault.refuses(call)
        if isinstance(response, Content):
            return self._s3.spoilt(call, fault, response)
        return response

    def _answer_own(self, request: Request) -> Response:
        name = request.path.removeprefix(OWN)
        if name not in self._own:
            raise AwsError("NoSuchPath", f"there are {', '.join(sorted(self._own))}", 404)
        return Response(json.dumps(self._own[name](request)).encode())

    def _counted(self, request: Request) -> object:
        """Say how often each operation was asked for, and how often too often."""
        with self._lock:
            return {
                "calls": {":".join(key): count for key, count in self.calls.items()},
                "throttled": {":".join(key): count for key, count in self.throttled.items()},
            }


THROTTLES = frozenset({"ThrottlingException", "Throttling", "SlowDown", "RequestLimitExceeded"})


def _check_signed(call: Call) -> None:
    """Check that somebody signed: by whom, and whether rightly, is not looked at."""
    if call.key:
        return
    if call.service == "s3":
        raise AwsError("AccessDenied", "Access Denied", 403)
    code = {"sagemaker": "MissingAuthenticationTokenException"}.get(call.service)
    raise AwsError(code or "MissingAuthenticationToken", "Missing Authentication Token", 403)
