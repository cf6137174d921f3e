"""How S3 is reached: `storage.s3` of the configuration."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")


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
        """Return what `storage.s3` of a checked configuration says."""
        node = (plain.get("storage") or {}).get("s3") or {}
        return cls(
            endpoint=node.get("endpoint") or None,
            region=node.get("region") or None,
            deadline_s=float(node.get("deadline") or cls.deadline_s),
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
