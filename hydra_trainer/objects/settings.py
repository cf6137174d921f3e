"""How S3 is reached: `storage.s3` of the configuration."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hydra_trainer.errors import ConfigError

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")

SHORTEST = 1.0  # seconds of a deadline


@dataclass(frozen=True)
class Settings:
    """What does not follow from a URI.

    Attributes:
        endpoint: the URL of a server that speaks S3; None: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL
            of the environment, and AWS itself without them.
        region: of the bucket; None: that of the environment or of the AWS profile.
        deadline_s: seconds within which a request is tried again. Large objects are many requests,
            each of which has as long.
    """

    endpoint: str | None = None
    region: str | None = None
    deadline_s: float = 60.0

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "Settings":
        """Return what a configuration says. Raises ConfigError."""
        node = (plain.get("storage") or {}).get("s3") or {}
        if found := problems(plain):
            raise ConfigError(found)
        deadline = node.get("deadline")
        return cls(
            endpoint=node.get("endpoint") or None,
            region=node.get("region") or None,
            deadline_s=cls.deadline_s if deadline is None else float(deadline),
        )

    @property
    def address(self) -> str | None:
        """The URL of the server; None for AWS."""
        found = self.endpoint or next(filter(None, map(os.environ.get, ENDPOINTS)), None)
        return found.rstrip("/") if found else None

    @property
    def place(self) -> str | None:
        """The region that is said here or in the environment."""
        return self.region or next(filter(None, map(os.environ.get, REGIONS)), None)


def problems(plain: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with `storage.s3`, one sentence each."""
    node = (plain.get("storage") or {}).get("s3") or {}
    found = []
    endpoint, deadline = node.get("endpoint"), node.get("deadline")
    if endpoint and not str(endpoint).startswith(("http://", "https://")):
        found.append(
            f"storage.s3.endpoint is {endpoint!r}, but must begin with https:// or http://. Type "
            f"storage.s3.endpoint=https://{endpoint}, or =null for AWS."
        )
    is_number = isinstance(deadline, int | float) and not isinstance(deadline, bool)
    if deadline is not None and not (is_number and deadline >= SHORTEST):
        found.append(
            f"storage.s3.deadline is {deadline!r}, but must be at least {SHORTEST:g} (seconds that "
            f"a request may be tried for). Type storage.s3.deadline={Settings.deadline_s:g}."
        )
    return found
