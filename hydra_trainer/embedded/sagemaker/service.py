"""The embedded service in this process: its server, its objects, and the jobs that run."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra_trainer.embedded.home import LOCK, hold
from hydra_trainer.embedded.listening import LOOPBACK
from hydra_trainer.embedded.wire import Request

from .api import Api
from .faults import Faults
from .jobs import OVER, Job, Jobs
from .limits import LIMITS, Limit
from .logs import Logs
from .objects import Objects
from .others import Others
from .refusals import AwsError
from .runs import Runs
from .s3 import S3
from .server import Server
from .settings import ACCOUNT, GRACE, Delays, Settings
from .training import Training
from .tuning import Tuning
from .users import is_used

Object = dict[str, Any]

ENDPOINT = "endpoint"
"""The file in the home with the URL."""

REGION = "us-east-1"


class Service:
    """A service that lives as long as a `with` block; its jobs and objects stay in `home`.

        with Service(home) as service:
            client = boto3.client("sagemaker", endpoint_url=service.endpoint)
            service.faults.add(Fault("lost", operation="CreateTrainingJob"))
            service.interrupt("job")

    Raises BlockingIOError when another process has a service in that home.

    Args:
        home: a folder of its own, which is made if need be.
        grace: seconds between SIGTERM and SIGKILL.
        limits: whether calls are throttled: by LIMITS, not at all, or by a table of that kind.
        delays: how long things take that take no time here.
        file_systems: the folder of this machine that stands for a file system, by its id. Others
            are folders in the home.
        roles: the names of the roles that there are; None for any.
        quotas: how many instances there may be at a time, such as
            {"ml.p4d.24xlarge for training job usage": 0}; others are not limited.
        instances: how many run at a time; jobs that are one too many are Pending. None: any number.
        account: the id of the AWS account.
        make_buckets: whether S3 makes a bucket that is used and not there.
        wait: whether to wait for another process that has the home, to its end.
    """

    def __init__(
        self,
        home: Path,
        *,
        grace: float = GRACE,
        limits: bool | Mapping[str, Limit] = True,
        delays: Delays | None = None,
        file_systems: Mapping[str, Path] | None = None,
        roles: set[str] | None = None,
        quotas: Mapping[str, int] | None = None,
        instances: int | None = None,
        account: str = ACCOUNT,
        make_buckets: bool = False,
        wait: bool = False,
    ) -> None:
        self.home = home.absolute()
        self.delays = delays or Delays()
        self.file_systems = dict(file_systems or {})
        self._limits: Mapping[str, Limit] = (
            (LIMITS if limits else {}) if isinstance(limits, bool) else limits
        )
        self._given = {
            "grace": grace,
            "roles": roles,
            "quotas": dict(quotas or {}),
            "instances": instances,
            "account": account,
        }
        self._make_buckets = make_buckets
        self._wait = wait

    def __enter__(self) -> "Service":
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = hold(self.home / LOCK, wait=self._wait)
        self.objects = Objects(self.home / "s3")
        settings = Settings(
            self.home,
            self.objects,
            delays=self.delays,
            file_systems=self.file_systems,
            **self._given,  # type: ignore[arg-type]
        )
        self.jobs = Jobs(self.home / "jobs")
        self.runs = Runs(settings, self.jobs)
        training = Training(settings, self.jobs, self.runs)
        self.tuning = Tuning(self.home / "tuning", self.jobs, training, settings.account)
        self.api = Api(
            {
                "sagemaker": {**training.operations, **self.tuning.operations},
                "logs": Logs(settings).operations,
                **Others(settings).operations,
            },
            S3(self.objects, self.home / "uploads", make_buckets=self._make_buckets),
            {"interrupt": self._interrupt, "crash": self._crash, "stop": self._stop},
            self._limits,
        )
        self.server = Server(self.api, port_of(self.home))
        self.endpoint = settings.endpoint = f"http://{LOOPBACK}:{self.server.port}"
        self.runs.resume()
        self.tuning.resume()
        self.server.start()
        new = self.home / f"{ENDPOINT}.new"
        new.write_text(self.endpoint)
        new.rename(self.home / ENDPOINT)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.server.stop()
        self.tuning.close()
        self.runs.close()
        self._lock.close()

    @property
    def is_working(self) -> bool:
        """Whether a job runs, a tuner has jobs to start, or somebody else uses S3."""
        return self.runs.is_working or self.tuning.is_working or is_used(self.home)

    @property
    def calls(self) -> Counter[tuple[str, str]]:
        """How often each operation was asked for, by service and name."""
        return self.api.calls

    @property
    def throttled(self) -> Counter[tuple[str, str]]:
        """How often one was refused for being asked for too often, by limits or faults."""
        return self.api.throttled

    @property
    def faults(self) -> Faults:
        return self.api.faults

    def interrupt(self, name: str, region: str = REGION) -> None:
        """Take the spot instances of a job away. Raises ValueError when it has none."""
        job = self._job(name, region)
        if not job.request.get("EnableManagedSpotTraining") or job.secondary != "Training":
            raise ValueError(f"{name} runs on no spot instances: it is {job.secondary}")
        self.runs.tell(job, "interrupt")

    def crash(self, name: str, region: str = REGION) -> None:
        """Let the instances of a job break: an InternalServerError. Raises ValueError."""
        job = self._job(name, region)
        if job.is_over:
            raise ValueError(f"{name} is {job.status}")
        self.runs.tell(job, "crash")

    def describe(self, name: str, region: str = REGION) -> Object:
        """Return the description of a job, without counting it as a call. Raises ValueError."""
        return self.jobs.description(self._job(name, region))

    def wait(
        self,
        name: str,
        is_so: Callable[[Object], Any] = lambda job: job["TrainingJobStatus"] in OVER,
        seconds: float = 60.0,
        region: str = REGION,
    ) -> Object:
        """Return the description of a job as soon as something is true of it: that it is over.

        Raises TimeoutError, ValueError.
        """
        job = self._job(name, region)

        def look() -> Object | None:
            found = self.jobs.description(job)
            return found if is_so(found) else None

        return dict(self.jobs.wait(look, seconds))

    def _job(self, name: str, region: str) -> Job:
        if (found := self.jobs.find(region, name)) is None:
            raise ValueError(f"no training job {name} in {region}")
        return found

    def _interrupt(self, request: Request) -> object:
        return _told(request, self.interrupt)

    def _crash(self, request: Request) -> object:
        return _told(request, self.crash)

    def _stop(self, request: Request) -> object:
        if request.method == "POST":
            self.server.on_stop()
        return {}


def port_of(home: Path) -> int:
    """Return the port of the service that was in a folder last; 0 for none."""
    try:
        return int((home / ENDPOINT).read_text().rpartition(":")[2])
    except (OSError, ValueError):
        return 0


def _told(request: Request, tell: Callable[[str, str], None]) -> object:
    """Do what `{"TrainingJobName": ..., "Region": ...}` asks for. Raises AwsError."""
    try:
        given = request.json()
        tell(given["TrainingJobName"], given.get("Region") or REGION)
    except (ValueError, KeyError, TypeError) as error:
        raise AwsError("BadRequest", str(error)) from None
    return {}
