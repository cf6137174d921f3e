"""What AWS says when it does not do what was asked."""


class AwsError(Exception):
    """A refusal, by its code. `status` is that of HTTP."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
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
