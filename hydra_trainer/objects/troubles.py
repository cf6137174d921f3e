"""What went wrong with a request: whether another try may help, and what to say if not."""

import http.client
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from hydra_trainer.errors import StorageError

STATUS = re.compile(r"non-2xx status code: (\d{3})")
FIELD = re.compile(r"<(Code|Message|Region)>([^<]*)</")
EXPECTED = re.compile(r"expecting '([a-z0-9-]+)'")
CAUSE = re.compile(r'message: "([^"]+)"|error: "([^"]+)"')
DELETED = re.compile(r"failed for key .*?: (.*) \(code: (\w+)\)")
METHOD = re.compile(r"Error performing (?:GET|HEAD|PUT|POST|DELETE) (http\S+)")
NO_URL = "builder error"
REDIRECT = "Received redirect without LOCATION"
ROLE = re.compile(r"https?://[^/]+/latest/(api/token|meta-data)")
"""What a machine is asked for the credentials of its role."""

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
KEYS = frozenset({"InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch"})
DELETE_STATUS = {"AccessDenied": 403, "InternalError": 500, "SlowDown": 503}
AGAIN = frozenset({"RequestTimeout", "ConditionalRequestConflict", "OperationAborted"})
"""Codes with a status of 4xx that S3 asks to be tried again after."""


@dataclass(frozen=True)
class Trouble:
    """What the library said about a request.

    Attributes:
        status: of HTTP; 0 when there was no answer.
        code: that of S3, such as NoSuchKey; empty when it gave none, as for HEAD.
        message: what S3 wrote for people.
        region: where the bucket is, if S3 said so.
        said: what the library said, in one line.
        asked: the URL, as far as it is known.
    """

    status: int
    code: str
    message: str
    region: str
    said: str
    asked: str

    @property
    def is_expired(self) -> bool:
        return self.code in EXPIRED

    @property
    def is_elsewhere(self) -> bool:
        """Whether the bucket is in another region."""
        if self.code in ("PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraint"):
            return True
        is_region = self.code == "AuthorizationHeaderMalformed" and bool(self.region)
        return is_region or REDIRECT in self.said or self.status in (301, 307)

    @property
    def is_passing(self) -> bool:
        """Whether the same request may go through later."""
        if self.is_elsewhere or NO_URL in self.said:
            return False
        return not self.status or self.status >= 500 or self.status == 429 or self.code in AGAIN

    @property
    def wants_keys(self) -> bool:
        """Whether there was no answer because there are no credentials to ask with."""
        return ROLE.match(self.asked) is not None

    @property
    def words(self) -> str:
        """What happened, for people."""
        if self.status:
            text = f" {self.message.rstrip('.')}." if self.message else ""
            return f"HTTP {self.status} {self.code}.{text}".replace(" .", ".")
        return self.said


def read(error: BaseException) -> Trouble:
    """Return what an exception of the library says: it has it in its text alone."""
    text = str(error)
    head = text.partition("\n\nDebug source:")[0]
    status = STATUS.search(head)
    fields = dict(FIELD.findall(head))
    if of_one := DELETED.search(head):  # an answer of 200 to DeleteObjects, in which one failed
        code = of_one[2]
        return Trouble(DELETE_STATUS.get(code, 400), code, of_one[1], "", head, "")
    expected = EXPECTED.search(fields.get("Message", ""))
    asked = METHOD.search(head)
    return Trouble(
        status=int(status[1]) if status else 0,
        code=fields.get("Code", ""),
        message=fields.get("Message", ""),
        region=fields.get("Region", "") or (expected[1] if expected else ""),
        said=_said(text, head),
        asked=asked[1] if asked else "",
    )


def _said(text: str, head: str) -> str:
    """Return the innermost cause, where there is no answer."""
    if REDIRECT in head:
        return REDIRECT
    if "TimedOut" in text:
        return "The server did not answer in time."
    if "IncompleteBody" in text or "IncompleteMessage" in text:
        return "The connection ended in the middle of an answer."
    if found := CAUSE.search(text):
        return f"{(found[1] or found[2]).capitalize().rstrip('.')}."
    return " ".join(head.split())[:300]


@dataclass(frozen=True)
class Asked:
    """A request, as its errors name it.

    Attributes:
        action: as IAM names it, such as s3:GetObject.
        key: of the object, or a prefix; empty for the bucket.
    """

    action: str
    bucket: str
    key: str = ""

    @property
    def what(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def resource(self) -> str:
        """The ARN that a policy has to name."""
        if self.action == "s3:ListBucket":
            return f"arn:aws:s3:::{self.bucket}"
        return f"arn:aws:s3:::{self.bucket}/{self.key}"

    def __str__(self) -> str:
        return f"{self.action} of {self.what}"


def refusal(asked: Asked, trouble: Trouble, *, region: str, keys: str) -> StorageError:
    """Return the error for a request that another try would not help."""
    if trouble.is_elsewhere:
        there = f" It is in {trouble.region}." if trouble.region else ""
        type_ = trouble.region or "REGION"
        return StorageError(
            f"{asked}: the bucket {asked.bucket} is not in the region {region}.{there} Type "
            f"storage.s3.region={type_}, or set AWS_REGION={type_}."
        )
    if trouble.wants_keys:
        return StorageError(
            f"{asked}: there are no AWS credentials, and this machine has no role. Type aws "
            "configure, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the job a role."
        )
    if trouble.code == "NoSuchBucket":
        return StorageError(
            f"{asked}: there is no bucket {asked.bucket}. Correct the name, or type aws s3 mb "
            f"s3://{asked.bucket}."
        )
    if trouble.is_expired:
        return StorageError(
            f"{asked}: the AWS credentials ({keys}) have expired, and those that came when they "
            "were asked for anew have, too. Type aws sso login or renew them where they come from."
        )
    if trouble.code in KEYS:
        return StorageError(
            f"{asked}: S3 does not know the AWS credentials ({keys}): {trouble.code}. Look at "
            "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if trouble.code == "RequestTimeTooSkewed":
        return StorageError(f"{asked}: this machine's clock is wrong. {trouble.message}")
    if trouble.status in (401, 403):
        also = ""
        if asked.action == "s3:GetObject":
            also = (
                " (S3 says the same of an object that is not there to somebody without "
                f"s3:ListBucket on arn:aws:s3:::{asked.bucket}.)"
            )
        return StorageError(
            f"{asked}: access denied. The credentials ({keys}) need {asked.action} on "
            f"{asked.resource}: allow it in the policy of their role or user, or of the bucket."
            f"{also}"
        )
    return StorageError(f"{asked} failed: {trouble.words}")


def region_of(bucket: str, address: str | None, region: str, seconds: float) -> str:
    """Return the region that S3 says a bucket is in, which it tells everybody; "" if it does not.

    The library does not pass on the header of a redirect that says so.
    """
    url = urlsplit(address or f"https://s3.{region}.amazonaws.com")
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=seconds)
    try:
        connection.request("HEAD", f"{url.path}/{bucket}")
        return connection.getresponse().headers.get("x-amz-bucket-region", "")
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()
