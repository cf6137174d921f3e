"""What the API server says when it does not do what was asked: Status objects, in its own words."""

import json
from typing import Any


class ApiError(Exception):
    """A refusal. `details` is that of the Status: name, group, kind (the resource), causes.

    What the server itself cannot name has no reason.
    """

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details

    def status(self) -> dict[str, Any]:
        """Return the Status object that a client gets."""
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            **({"reason": self.reason} if self.reason else {}),
        }
        if self.details:
            status["details"] = self.details
        return {**status, "code": self.code}


def details(resource: str, name: str, **more: Any) -> dict[str, Any]:
    plural, _, group = resource.partition(".")
    return {"name": name, **({"group": group} if group else {}), "kind": plural, **more}


def bad_request(message: str) -> ApiError:
    return ApiError(400, "BadRequest", message)


def not_found(resource: str, name: str) -> ApiError:
    return ApiError(404, "NotFound", f'{resource} "{name}" not found', details(resource, name))


def already_exists(resource: str, name: str) -> ApiError:
    text = f'{resource} "{name}" already exists'
    return ApiError(409, "AlreadyExists", text, details(resource, name))


def conflict(resource: str, name: str, why: str = "") -> ApiError:
    why = why or (
        "the object has been modified; please apply your changes to the latest version and try "
        "again"
    )
    text = f'Operation cannot be fulfilled on {resource} "{name}": {why}'
    return ApiError(409, "Conflict", text, details(resource, name))


def forbidden(resource: str, name: str, why: str) -> ApiError:
    quoted = f' "{name}"' if name else ""
    text = f"{resource}{quoted} is forbidden: {why}"
    return ApiError(403, "Forbidden", text, details(resource, name))


def expired(message: str) -> ApiError:
    return ApiError(410, "Expired", message)


def too_old(since: int, oldest: int) -> ApiError:
    return expired(f"too old resource version: {since} ({oldest})")


def quoted(value: Any) -> str:
    """Return a value as the server writes it into its messages."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
