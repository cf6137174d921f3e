"""The protocols of AWS: what a request asks of which service, and how an answer is written.

SageMaker, CloudWatch Logs, ECR and Service Quotas take JSON, named by the header X-Amz-Target; STS,
IAM and EC2 take a form and answer XML; all that is neither is for S3.
"""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from hydra_trainer.embedded.wire import Request, Response

from .refusals import AwsError, unknown_operation

JSON_TARGETS = {
    "SageMaker": "sagemaker",
    "Logs_20140328": "logs",
    "AmazonEC2ContainerRegistry_V20150921": "ecr",
    "ServiceQuotasV20190624": "servicequotas",
}

QUERY_VERSIONS = {"2011-06-15": "sts", "2010-05-08": "iam", "2016-11-15": "ec2"}

NAMESPACES = {
    "sts": "https://sts.amazonaws.com/doc/2011-06-15/",
    "iam": "https://iam.amazonaws.com/doc/2010-05-08/",
    "ec2": "http://ec2.amazonaws.com/doc/2016-11-15/",
    "s3": "http://s3.amazonaws.com/doc/2006-03-01/",
}

JSON_TYPE = "application/x-amz-json-1.1"
XML_TYPE = "text/xml"

Object = dict[str, Any]


@dataclass(frozen=True)
class Call:
    """An operation that was asked for.

    `parameters` are those of JSON or of a form; S3 reads its own from the request. `region` and
    `key` (the id of the access key) are what the signature names; the signature is not checked.
    """

    service: str
    operation: str
    request: Request
    parameters: Object = field(default_factory=dict)
    region: str = ""
    key: str = ""

    @property
    def name(self) -> str:
        """The operation as IAM names it, such as sagemaker:CreateTrainingJob."""
        return f"{self.service}:{self.operation}"


Operations = Mapping[str, Callable[[Call], Object]]
"""By name. What they return is written in the protocol of their service."""


def read(request: Request, s3_operation: Callable[[Request], str]) -> Call:
    """Return what a request asks for. Raises AwsError when it cannot be read."""
    key, region = _signed_by(request)
    if target := request.headers.get("x-amz-target"):
        prefix, _, operation = target.partition(".")
        if prefix not in JSON_TARGETS:
            raise unknown_operation(target)
        return Call(JSON_TARGETS[prefix], operation, request, _json(request), region, key)
    if request.method == "POST" and request.path == "/" and b"Action=" in request.body:
        form = dict(parse_qsl(request.body.decode(), keep_blank_values=True))
        service = QUERY_VERSIONS.get(form.get("Version", ""), "")
        if not service:
            raise unknown_operation(form.get("Action", ""))
        return Call(service, form["Action"], request, form, region, key)
    return Call("s3", s3_operation(request), request, {}, region, key)


def answer(call: Call, found: Object) -> Response:
    """Write an answer."""
    headers = {"x-amzn-RequestId": str(uuid.uuid4())}
    if call.service in ("sts", "iam"):
        inside = xml({f"{call.operation}Result": found}, "member")
        inside += xml({"ResponseMetadata": {"RequestId": headers["x-amzn-RequestId"]}})
        body = wrapped(f"{call.operation}Response", inside, NAMESPACES[call.service])
        return Response(body, type=XML_TYPE, headers=headers)
    if call.service == "ec2":
        inside = xml({"requestId": headers["x-amzn-RequestId"], **found}, "item")
        body = wrapped(f"{call.operation}Response", inside, NAMESPACES["ec2"])
        return Response(body, type=XML_TYPE, headers=headers)
    return Response(json.dumps(found).encode(), type=JSON_TYPE, headers=headers)


def refusal(service: str, request: Request, error: AwsError) -> Response:
    """Write a refusal as a service does."""
    headers = {"x-amzn-RequestId": str(uuid.uuid4())}
    if service in ("sts", "iam"):
        kind = "Sender" if error.status < 500 else "Receiver"
        one = {"Error": {"Type": kind, "Code": error.code, "Message": error.message}}
        body = wrapped("ErrorResponse", xml(one), NAMESPACES[service])
        return Response(body, error.status, XML_TYPE, headers)
    if service == "ec2":
        errors = {"Errors": {"Error": {"Code": error.code, "Message": error.message}}}
        return Response(wrapped("Response", xml(errors)), error.status, XML_TYPE, headers)
    if service == "s3":
        said = {"Code": error.code, "Message": error.message, "Resource": request.path}
        has_body = request.method != "HEAD" and error.status != 304
        body = wrapped("Error", xml(said)) if has_body else b""
        return Response(body, error.status, "application/xml", headers | error.headers)
    # Those that the model of the service knows have "Message", those of all services "message".
    key = "message" if error.code.endswith("Exception") else "Message"
    body = json.dumps({"__type": error.code, key: error.message}).encode()
    return Response(body, error.status, JSON_TYPE, headers)


def xml(values: Object, item: str = "") -> str:
    """Return values as elements; those of a list each in an `item`, or without one side by side."""
    return "".join(_element(name, value, item) for name, value in values.items())


def wrapped(name: str, inside: str, namespace: str = "") -> bytes:
    """Return a whole document."""
    space = f' xmlns="{namespace}"' if namespace else ""
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<{name}{space}>{inside}</{name}>'.encode()


def _element(name: str, value: Any, item: str) -> str:
    if isinstance(value, dict):
        return f"<{name}>{xml(value, item)}</{name}>"
    if isinstance(value, list):
        if not item:
            return "".join(_element(name, one, item) for one in value)
        return f"<{name}>{''.join(_element(item, one, item) for one in value)}</{name}>"
    if isinstance(value, bool):
        value = str(value).lower()
    return f"<{name}>{escape(str(value))}</{name}>"


def _json(request: Request) -> Object:
    try:
        found = request.json() if request.body else {}
    except ValueError:
        raise AwsError("SerializationException", "Could not parse request body into json") from None
    if not isinstance(found, dict):
        raise AwsError(
            "SerializationException", "Start of structure or map found where not expected"
        )
    return found


def _signed_by(request: Request) -> tuple[str, str]:
    """Return the id of the key and the region that a signature names: those of its scope.

    AWS4-HMAC-SHA256 Credential=AKIA.../20261124/us-east-1/sagemaker/aws4_request, ...
    """
    given = request.headers.get("authorization", "").partition("Credential=")[2]
    # Presigned, now or by clients of the past.
    given = given or request.query.get("X-Amz-Credential", "")
    given = given or request.query.get("AWSAccessKeyId", "")
    key, *scope = given.partition(",")[0].split("/")
    return key, scope[1] if len(scope) > 1 else ""
