"""An AWS account, as the launcher needs it: a few calls, each safe to give again.

boto3 tries again by itself what may be repeated; here errors become words that say what to type.
"""

import contextlib
import json
from collections.abc import Iterator
from typing import Any, NoReturn

from hydra_trainer.errors import LaunchError

Object = dict[str, Any]

TRIES = 10
"""Of one call, botocore's way: at most 20 s between two, and with its own rate after throttling."""

LOGS = "/aws/sagemaker/TrainingJobs"

LOG_IN = "log in again (aws sso login, or renew the keys), then type the same command"

EXPIRED = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidClientTokenId"}
    | {"UnrecognizedClientException", "InvalidSignatureException", "SignatureDoesNotMatch"}
)
DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation"})
THROTTLED = frozenset({"ThrottlingException", "Throttling", "RequestLimitExceeded", "SlowDown"})
ABSENT = frozenset({"NoSuchKey", "404", "NotFound", "ResourceNotFound"})


class InUse(LaunchError):
    """A training job of that name is there already."""


class Refused(LaunchError):
    """AWS says no; `code` is its error code."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Account:
    """SageMaker, its logs, and S3, in one region.

    Args:
        region: None: what the AWS configuration says.
        endpoint: an address that stands for all services: the embedded one's.

    Raises:
        LaunchError: boto3 is not installed, no region is known, or there is no way to log in.
    """

    def __init__(self, region: str | None = None, endpoint: str | None = None) -> None:
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
        self._clients: dict[str, Any] = {}
        self._there: set[str] = set()
        if self.session.region_name is None:
            raise LaunchError(
                "launcher.region has no value, and your AWS configuration names no region. Type "
                "launcher.region=us-east-1, or aws configure set region us-east-1."
            )
        self.region = str(self.session.region_name)

    def client(self, service: str) -> Any:
        """Return boto3's client for a service: one for all calls, so that it learns its rate."""
        if service not in self._clients:
            from botocore.config import Config

            retries = {"mode": "adaptive", "total_max_attempts": TRIES}
            style = {"addressing_style": "path"} if self.endpoint else {}
            config = Config(retries=retries, s3=style, connect_timeout=10, max_pool_connections=20)
            with explained():
                self._clients[service] = self.session.client(
                    service, endpoint_url=self.endpoint, config=config
                )
        return self._clients[service]

    def call(self, service: str, operation: str, **words: Any) -> Object:
        """Call an operation of any service, in boto3's words. Raises Refused, LaunchError."""
        client = self.client(service)
        with explained():
            found: Object = getattr(client, operation)(**words)
        return found

    # --------------------------------------------------------------------------------- SageMaker

    def create(self, request: Object) -> None:
        """Create a training job. Raises InUse when there is one of that name."""
        client = self.client("sagemaker")
        with explained():
            client.create_training_job(**request)

    def describe(self, name: str) -> Object | None:
        """Return what there is to know of a job; None where there is none."""
        client = self.client("sagemaker")
        try:
            with explained():
                found: Object = client.describe_training_job(TrainingJobName=name)
        except Refused as error:
            if error.code == "ValidationException" and "not found" in str(error).lower():
                return None
            if error.code in ABSENT:
                return None
            raise
        return found

    def stop(self, name: str) -> None:
        """Ask a job to stop. One that has ended stays as it is."""
        client = self.client("sagemaker")
        try:
            with explained():
                client.stop_training_job(TrainingJobName=name)
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
        client = self.client("sagemaker")
        with explained():
            found: Object = client.list_training_jobs(
                SortBy="CreationTime", SortOrder="Descending", MaxResults=100, **filters
            )
        return found

    def tags(self, arn: str) -> dict[str, str]:
        client = self.client("sagemaker")
        with explained():
            found = client.list_tags(ResourceArn=arn)["Tags"]
        return {tag["Key"]: tag["Value"] for tag in found}

    # ------------------------------------------------------------------------------------- logs

    def streams(self, name: str) -> list[str]:
        """Return the log streams of a job, the oldest first: one for each start of an instance."""
        client, found = self.client("logs"), []
        token: Object = {}
        while True:
            try:
                with explained():
                    page = client.describe_log_streams(
                        logGroupName=LOGS, logStreamNamePrefix=f"{name}/", **token
                    )
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
        client = self.client("logs")
        after = {"nextToken": token} if token else {}
        with explained():
            page = client.get_log_events(
                logGroupName=LOGS, logStreamName=stream, startFromHead=True, **after
            )
        return page["events"], str(page["nextForwardToken"])

    def last(self, stream: str, count: int) -> list[str]:
        """Return the last lines of a stream."""
        client = self.client("logs")
        with explained():
            page = client.get_log_events(
                logGroupName=LOGS, logStreamName=stream, startFromHead=False, limit=count
            )
        return [str(event["message"]) for event in page["events"]]

    # --------------------------------------------------------------------------------------- S3

    def put(self, uri: str, content: bytes, *, once: bool = False) -> None:
        """Write an object; with `once`, only where there is none: its name says what it holds."""
        if once and (uri in self._there or self.has(uri)):
            return
        bucket, key = _place(uri)
        client = self.client("s3")
        with explained():
            client.put_object(Bucket=bucket, Key=key, Body=content)
        if once:
            self._there.add(uri)

    def has(self, uri: str) -> bool:
        bucket, key = _place(uri)
        client = self.client("s3")
        try:
            with explained():
                client.head_object(Bucket=bucket, Key=key)
        except Refused as error:
            # Without s3:ListBucket, S3 answers 403 for what is not there.
            if error.code in ABSENT or error.code == "403":
                return False
            raise
        self._there.add(uri)
        return True

    def read_json(self, uri: str) -> Object | None:
        """Return a JSON object of S3; None where there is none, or none that may be read."""
        bucket, key = _place(uri)
        client = self.client("s3")
        with contextlib.suppress(LaunchError, ValueError), explained():
            body = client.get_object(Bucket=bucket, Key=key)["Body"].read()
            found = json.loads(body)
            return found if isinstance(found, dict) else None
        return None

    def make_bucket(self, uri: str) -> None:
        """Make the bucket of a place: the embedded service has none by itself."""
        try:
            self.call("s3", "create_bucket", Bucket=_place(uri)[0])
        except Refused as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise


def _place(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


# ----------------------------------------------------------------------------------------- errors


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Say what an error of botocore means, and what to type."""
    from botocore import exceptions

    try:
        yield
    except exceptions.ClientError as error:
        _explain(error.response.get("Error", {}), error.operation_name)
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
    except (exceptions.EndpointConnectionError, exceptions.HTTPClientError) as error:
        raise LaunchError(
            f"AWS cannot be reached: {error}. Look at the network and at launcher.region, then "
            "type the same command: a job that was sent is found."
        ) from error
    except exceptions.BotoCoreError as error:
        raise LaunchError(str(error)) from error


def _explain(found: dict[str, str], operation: str) -> NoReturn:
    code, message = str(found.get("Code", "")), str(found.get("Message", ""))
    if code == "ResourceInUse":
        raise InUse(message)
    if code in EXPIRED:
        raise Refused(f"AWS does not accept your login ({code}: {message}): {LOG_IN}.", code)
    if code in DENIED or (code == "403" and operation != "HeadObject"):
        raise Refused(
            f"AWS does not let you call {operation}: {message or code}. deploy/iam.json holds the "
            "rights that hydra-trainer needs: have them added to who you are.",
            code,
        )
    if code in THROTTLED:
        raise Refused(
            f"AWS answers {operation} more slowly than it is asked, {TRIES} times in a row "
            f"({message}). Type the same command a little later: what was sent is found.",
            code,
        )
    if code == "ResourceLimitExceeded":
        raise Refused(
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
    raise Refused(f"{operation}: {message or code}", code)
