"""What AWS says when it does not do what was asked."""

from collections.abc import Mapping


class AwsError(Exception):
    """A refusal, by its code. `status` is that of HTTP, `headers` go with it from S3."""

    def __init__(
        self,
        code: str,
        message: str,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.headers = dict(headers or {})
        self.code = code
        self.message = message
        self.status = status


def validation(message: str) -> AwsError:
    return AwsError("ValidationException", message)


def not_found() -> AwsError:
    """A training job that is not there: not ResourceNotFound, as its documentation says.

    https://github.com/aws/aws-sdk/issues/165
    """
    return validation("Requested resource not found.")


def unknown_operation(name: str) -> AwsError:
    text = f"The embedded service does not know the operation {name}"
    return AwsError("UnknownOperationException", text, 404)
