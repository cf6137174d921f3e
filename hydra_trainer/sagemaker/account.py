"""An AWS account, as the launcher needs it: a few calls, each safe to give again.

Each operation is asked for at its own pace, and again while AWS is busy or cannot be reached: not
by botocore, whose budget of retries is one for all jobs of a sweep, and is never given back when a
lost reply ends in "is there already". Errors become words that say what to type.
"""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from hydra_trainer.errors import Full, LaunchError
from hydra_trainer.retry import TRANSIENT, Attempts, Retry, Trouble

from .pace import Pace

Object = dict[str, Any]
Found = TypeVar("Found")

RETRY = Retry()
"""Of one call: 10 times in two minutes."""

LOGS = "/aws/sagemaker/TrainingJobs"

LOG_IN = "log in again (aws sso login, or renew the keys), then type the same command"

EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidClientTokenId"}
    | {"UnrecognizedClientException", "InvalidSignatureException", "SignatureDoesNotMatch"}
    | {"InvalidAccessKeyId", "InvalidToken", "AuthFailure", "TokenRefreshRequired"}
)
DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})
THROTTLED = frozenset(
    {"ThrottlingException", "Throttling", "ThrottledException", "RequestLimitExceeded", "SlowDown"}
    | {"TooManyRequestsException", "RequestThrottled", "RequestThrottledException", "429"}
)
SKEWED = frozenset({"RequestTimeTooSkewed", "RequestInTheFuture"})
QUOTA = re.compile(r"limit '.*' is (\d+) (?:.* request delta of (\d+))?")
"""How many a quota allows, and how many were asked for."""

ABSENT = frozenset({"NoSuchKey", "404", "NotFound", "ResourceNotFound"})


class InUse(LaunchError):
    """A training job of that name is there already."""


class Refused(LaunchError):
    """AWS says no; `code` is its error code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class OverQuota(Refused, Full):
    """A quota of the account has room for the job, but for those that hold it now."""


class Busy(LaunchError):
    """AWS did not do it, or its answer was lost: it may do it a moment later."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class Account:
    """SageMaker, its logs, and S3, in one region.

    Args:
        region: None: what the AWS configuration says.
        endpoint: an address that stands for all services: the embedded one's.
        key: what the user sets the region by.

    Raises:
        LaunchError: boto3 is not installed, no region is known, or there is no way to log in.
    """

    def __init__(
        self,
        region: str | None = None,
        endpoint: str | None = None,
        key: str = "launcher.region",
    ) -> None:
        try:
            import boto3
        except ImportError:
            raise LaunchError(
                "launcher=sagemaker needs boto3. Type pip install 'hydra-trainer[sagemaker]'."
            ) from None
        keys = {"aws_access_key_id": "embedded", "aws_secret_access_key": "embedded"}
        with explained():
            self.session = boto3.Session(region_name=region, **(keys if endpoint else {}))
        self.endpoint = endpoint
        self._new: set[str] = set()
        self._clients: dict[str, Any] = {}
        self._paces: dict[tuple[str, str], Pace] = {}
        self._there: set[str] = set()
        if self.session.region_name is None:
            raise LaunchError(
                f"{key} has no value, and your AWS configuration names no region. Type "
                f"{key}=us-east-1, or aws configure set region us-east-1."
            )
        self.region = str(self.session.region_name)

    def client(self, service: str) -> Any:
        """Return boto3's client for a service: one for all calls."""
        if service not in self._clients:
            from botocore.config import Config

            once = {"mode": "standard", "total_max_attempts": 1}
            style = {"addressing_style": "path"} if self.endpoint else {}
            config = Config(retries=once, s3=style, connect_timeout=10, max_pool_connections=20)
            with explained(service):
                self._clients[service] = self.session.client(
                    service, endpoint_url=self.endpoint, config=config
                )
        return self._clients[service]

    def call(self, service: str, operation: str, **words: Any) -> Object:
        """Call an operation of any service, in boto3's words. Raises Refused, LaunchError."""

        def ask(client: Any) -> Object:
            found: Object = getattr(client, operation)(**words)
            return found

        return self._until_done(service, operation, ask)

    def _until_done(self, service: str, operation: str, ask: Callable[[Any], Found]) -> Found:
        """Ask at the pace of an operation, and again while what keeps it may pass."""
        client = self.client(service)
        pace = self._paces.setdefault((service, operation), Pace(RETRY.sleep, RETRY.clock))
        attempts = Attempts(RETRY, client.meta.method_to_api_mapping[operation])
        while True:
            pace.wait()
            try:
                with explained(service):
                    found = ask(client)
            except Busy as error:
                if error.code in THROTTLED:
                    pace.refused()
                attempts.pause(Trouble(str(error)))
            except Refused:
                pace.accepted()
                raise
            else:
                pace.accepted()
                return found

    # --------------------------------------------------------------------------------- SageMaker

    def create(self, request: Object) -> None:
        """Create a training job. Raises InUse when there is one of that name."""
        self.call("sagemaker", "create_training_job", **request)

    def created(self, name: str) -> None:
        """Remember that a job has just been created."""
        self._new.add(name)

    def is_new(self, name: str) -> bool:
        """Tell, once, whether a job was created just now: there is nothing to ask for yet."""
        found = name in self._new
        self._new.discard(name)
        return found

    def describe(self, name: str) -> Object | None:
        """Return what there is to know of a job; None where there is none."""
        try:
            return self.call("sagemaker", "describe_training_job", TrainingJobName=name)
        except Refused as error:
            if error.code == "ValidationException" and "not found" in str(error).lower():
                return None
            if error.code in ABSENT:
                return None
            raise

    def stop(self, name: str) -> None:
        """Ask a job to stop. One that has ended stays as it is."""
        try:
            self.call("sagemaker", "stop_training_job", TrainingJobName=name)
        except Refused as error:
            if error.code != "ValidationException":
                raise

    def jobs(self, **filters: Any) -> Iterator[Object]:
        """Yield summaries of jobs, the newest first. Fetches a page when it is needed."""
        token: Object = {}
        while True:
            page = self.page(**filters, **token)
            yield from page["TrainingJobSummaries"]
            if not page.get("NextToken"):
                return
            token = {"NextToken": page["NextToken"]}

    def page(self, **filters: Any) -> Object:
        """Return one page of at most 100 summaries, the newest first."""
        order = {"SortBy": "CreationTime", "SortOrder": "Descending"}
        return self.call("sagemaker", "list_training_jobs", **order, MaxResults=100, **filters)

    def tags(self, arn: str) -> dict[str, str]:
        found = self.call("sagemaker", "list_tags", ResourceArn=arn)["Tags"]
        return {tag["Key"]: tag["Value"] for tag in found}

    # ------------------------------------------------------------------------------------- logs

    def streams(self, name: str) -> list[str]:
        """Return the log streams of a job, the oldest first: one for each start of an instance."""
        found: list[Object] = []
        wanted = {"logGroupName": LOGS, "logStreamNamePrefix": f"{name}/"}
        token: Object = {}
        while True:
            try:
                page = self.call("logs", "describe_log_streams", **wanted, **token)
            except Refused as error:
                if error.code == "ResourceNotFoundException":  # nobody has logged here yet
                    return []
                raise
            found += page["logStreams"]
            if not page.get("nextToken"):
                return [
                    str(stream["logStreamName"])
                    for stream in sorted(found, key=lambda one: one.get("creationTime", 0))
                ]
            token = {"nextToken": page["nextToken"]}

    def events(self, stream: str, token: str | None) -> tuple[list[Object], str]:
        """Return the next events of a stream, and the token for those after them."""
        after = {"nextToken": token} if token else {}
        page = self._events(stream, startFromHead=True, **after)
        return page["events"], str(page["nextForwardToken"])

    def last(self, stream: str, count: int) -> list[str]:
        """Return the last lines of a stream."""
        page = self._events(stream, startFromHead=False, limit=count)
        return [str(event["message"]) for event in page["events"]]

    def _events(self, stream: str, **words: Any) -> Object:
        return self.call("logs", "get_log_events", logGroupName=LOGS, logStreamName=stream, **words)

    # --------------------------------------------------------------------------------------- S3

    def put(self, uri: str, content: bytes, *, once: bool = False) -> None:
        """Write an object; with `once`, only where there is none: its name says what it holds."""
        if once and (uri in self._there or self.has(uri)):
            return
        bucket, key = _place(uri)
        self.call("s3", "put_object", Bucket=bucket, Key=key, Body=content)
        if once:
            self._there.add(uri)

    def has(self, uri: str) -> bool:
        bucket, key = _place(uri)
        try:
            self.call("s3", "head_object", Bucket=bucket, Key=key)
        except Refused as error:
            # Without s3:ListBucket, S3 answers 403 for what is not there. A HEAD has no words on
            # why: who has no rights, or is not logged in (400), hears it from what follows.
            if error.code in ABSENT or error.code in ("400", "403"):
                return False
            raise
        self._there.add(uri)
        return True

    def read_json(self, uri: str) -> Object | None:
        """Return a JSON object of S3; None where there is none, or none that may be read."""
        bucket, key = _place(uri)

        def read(client: Any) -> bytes:
            return bytes(client.get_object(Bucket=bucket, Key=key)["Body"].read())

        with contextlib.suppress(LaunchError, ValueError):
            found = json.loads(self._until_done("s3", "get_object", read))
            return found if isinstance(found, dict) else None
        return None

    def make_bucket(self, uri: str) -> None:
        """Make the bucket of a place: the embedded service has none by itself."""
        bucket, _ = _place(uri)
        if bucket in self._there:
            return
        try:
            self.call("s3", "create_bucket", Bucket=bucket)
        except Refused as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise
        self._there.add(bucket)


@functools.cache
def shared(region: str | None, endpoint: str | None = None) -> Account:
    """Return the account of this process, for all jobs of a sweep: clients are slow to make, and
    paces are learned."""
    return Account(region, endpoint)


def _place(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


# ----------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def explained(service: str = "sagemaker") -> Iterator[None]:
    """Say what an error of botocore means, and what to type."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        action = f"{service}:{error.operation_name}"
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        _explain(error.response.get("Error", {}), action, status)
    except exceptions.ProfileNotFound as error:
        raise LaunchError(
            f"{error}. Type AWS_PROFILE=NAME in front, with one that aws configure list-profiles "
            "prints."
        ) from error
    except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
        raise LaunchError(
            "AWS does not know who you are: there are no credentials. Type aws configure sso, or "
            "set AWS_PROFILE, then type the same command. launcher.embedded=true runs the job on "
            "this machine without an account."
        ) from error
    except (
        exceptions.SSOTokenLoadError,
        exceptions.UnauthorizedSSOTokenError,
        exceptions.TokenRetrievalError,
        exceptions.CredentialRetrievalError,
    ) as error:
        raise LaunchError(f"Your login at AWS is over ({error}): {LOG_IN}.") from error
    except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
        raise Busy(
            f"AWS cannot be reached: {error}. Look at the network and at launcher.region."
        ) from error
    except exceptions.BotoCoreError as error:
        raise LaunchError(str(error)) from error


def _explain(found: dict[str, str], action: str, status: int | None) -> NoReturn:
    """Raise what a refusal stands for. `action` is IAM's word for what was asked, mostly."""
    code, message = str(found.get("Code", "")), str(found.get("Message", ""))
    if code == "ResourceInUse":
        raise InUse(message)
    if code in EXPIRED:
        raise Refused(f"AWS does not accept your login ({code}: {message}): {LOG_IN}.", code)
    if code in SKEWED:
        raise Refused(f"The clock of this machine is wrong ({message}). Set it.", code)
    if code in DENIED or (code == "403" and action != "s3:HeadObject"):
        raise Refused(
            f"AWS does not let you call {action}: {message or code}. deploy/iam.json holds the "
            "rights that hydra-trainer needs: have them added to who you are.",
            code,
        )
    if code in THROTTLED:
        raise Busy(f"AWS is asked more often than it answers ({code}: {message}).", code)
    if status in TRANSIENT:
        raise Busy(f"AWS answers {code}: {message}", code)
    if code == "ResourceLimitExceeded":
        quota = QUOTA.search(message)
        fits = quota is None or int(quota[2] or 1) <= int(quota[1])
        raise (OverQuota if fits else Refused)(
            f"{message} Ask for more in Service Quotas (SageMaker, '... for training job usage'), "
            "choose another resources.instance_type, or cancel a job that holds it.",
            code,
        )
    if code == "NoSuchBucket":
        raise Refused(
            f"The bucket of launcher.output does not exist ({message}). Type launcher.output="
            "s3://BUCKET/PREFIX with one that does.",
            code,
        )
    raise Refused(f"{action}: {message or code}", code)
