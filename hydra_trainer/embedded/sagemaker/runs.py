"""How a job goes from one state to the next: in a thread of its own, from acceptance to the end.

Starting, Pending, Downloading, Training, Uploading, and Completed or Failed; Stopping and Stopped
where somebody asks for it. After an interruption of its spot instances, or an error of the
service's own with a RetryStrategy, all begins again with new instances and what checkpoints there
are in S3.
"""

import contextlib
import math
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from hydra_trainer.embedded.process import kill_marked

from . import checks, jobs, logs, metrics, outputs
from .capacity import Capacity
from .instance import ClientError, Instance, command, hosts
from .jobs import Job, Jobs
from .refusals import AwsError
from .settings import Settings
from .sync import Mirror

Object = dict[str, Any]

POLL = 0.2
"""Seconds between two looks at the files of a job that go to S3 while it runs."""

REASON_LIMIT = 1024  # characters of a FailureReason

UNKNOWN_IMAGE = "no-such-image"
"""In the name of an image: rehearse one that cannot be pulled."""

LOOPBACK = "127.0.0.1"

INTERNAL = "InternalServerError: We encountered an internal error. Please try again."

SPOT_SHARE = 0.3
"""Of the time on spot instances, what is billed: their price, in parts of the full one."""

LONGEST_WAIT = 60.0
"""Seconds between two looks whether a job has to end, without such files."""

MOST_RUNTIME = 86400
"""Seconds, where a StoppingCondition has none."""


class Event(NamedTuple):
    """What happens to a run: "ready" (it has instances), "exit" of a host, "stop", "interrupt",
    "crash", or "close"."""

    kind: str
    host: str = ""
    code: int = 0


class Ending(NamedTuple):
    """How a try ended. `again` is the state in which the next one begins, empty for none."""

    status: str
    secondary: str
    message: str
    reason: str = ""
    again: str = ""


COMPLETED = Ending(jobs.COMPLETED, "Completed", "Training job completed")
STOPPED = Ending(jobs.STOPPED, "Stopped", "Training job stopped")
TOO_LONG = Ending(
    jobs.STOPPED,
    "MaxRuntimeExceeded",
    "Training job runtime exceeded MaxRuntimeInSeconds provided",
)
WAITED = Ending(
    jobs.STOPPED,
    "MaxWaitTimeExceeded",
    "Training job wait time exceeded MaxWaitTimeInSeconds provided",
)
INTERRUPTED = Ending(
    jobs.IN_PROGRESS, "Interrupted", "Spot instances were interrupted", again="Starting"
)
CRASHED = Ending(jobs.FAILED, "Failed", "Training job failed", INTERNAL)


def failed(reason: str) -> Ending:
    return Ending(jobs.FAILED, "Failed", "Training job failed", reason[:REASON_LIMIT])


class Over(Exception):
    """A try is over."""

    def __init__(self, ending: Ending) -> None:
        super().__init__(ending.secondary)
        self.ending = ending


class Closed(Exception):
    """The service ends."""


class Runs:
    """The runs of all jobs that are not over."""

    def __init__(self, settings: Settings, known: Jobs) -> None:
        self.settings = settings
        self.jobs = known
        self.capacity = Capacity(settings.instances)
        self._lock = threading.Lock()
        self._runs: dict[jobs.Key, Run] = {}

    def start(self, job: Job) -> None:
        with self._lock:
            run = self._runs[job.key] = Run(self, job)
        run.start()

    def resume(self) -> None:
        """Go on with the jobs of another process, whose instances have gone with it."""
        kill_marked(mark(self.settings.home))
        for job in self.jobs.all():
            if not job.is_over:
                self.start(job)

    def stop(self, job: Job) -> None:
        """Ask for the end of a job, unless somebody has already."""
        with self.jobs.change(job):
            if job.is_over or job.status == jobs.STOPPING:
                return
            job.enter(jobs.STOPPING, "Stopping", "Stopping the training job")
        self.tell(job, "stop")

    def tell(self, job: Job, kind: str) -> None:
        if run := self._runs.get(job.key):
            run.events.put(Event(kind))

    @property
    def is_working(self) -> bool:
        return bool(self._runs)

    def close(self) -> None:
        """End all instances at once; the jobs stay what they are."""
        with self._lock:
            running = list(self._runs.values())
        for run in running:
            run.events.put(Event("close"))
        for run in running:
            run.join()

    def forget(self, job: Job) -> None:
        with self._lock:
            self._runs.pop(job.key, None)


class Run(threading.Thread):
    """One job. Its thread lives as long as its processes, which would end with it."""

    def __init__(self, runs: Runs, job: Job) -> None:
        super().__init__(name=f"job-{job.name}", daemon=True)
        self.events: queue.Queue[Event] = queue.Queue()
        self._runs = runs
        self._settings = runs.settings
        self._jobs = runs.jobs
        self._job = job
        self._request = job.request
        self._instances: list[Instance] = []
        self._live: set[str] = set()
        self._codes: dict[str, int] = {}
        self._mirrors: list[Mirror] = []
        self._trained = float(job.state.get("trained", 0.0))
        self._began: float | None = None

    def run(self) -> None:
        with contextlib.suppress(Closed):
            try:
                self._whole()
            except Closed:
                self._kill()
                raise
            except Exception as error:
                traceback.print_exc(file=sys.stderr)
                self._kill()
                self._runs.capacity.release(self)
                self._finish(failed(f"{INTERNAL} ({type(error).__name__}: {error})"))
        self._runs.forget(self._job)

    def _whole(self) -> None:
        if self._job.status == jobs.STOPPING:
            self._finish(STOPPED)
            return
        if self._job.state["attempts"]:  # of another process
            ending = self._again(CRASHED)
            if not ending.again:
                self._finish(ending)
                return
            self._enter(ending.again, STARTING[ending.again])
        while (ending := self._try()).again:
            if ending.status == jobs.IN_PROGRESS:
                self._enter(ending.secondary, ending.message)
            self._enter(ending.again, STARTING[ending.again])
        self._finish(ending)

    def _try(self) -> Ending:
        """Go through all states once."""
        with self._jobs.change(self._job):
            self._job.state["attempts"] += 1
        ending = self._ending_of_try()
        self._kill()
        if ending.again and self._job.status == jobs.STOPPING:
            ending = STOPPED
        if not ending.again and self._codes:
            ending = self._upload(ending)
        self._count()
        for instance in self._instances:
            instance.remove()
        self._runs.capacity.release(self)
        return ending

    def _ending_of_try(self) -> Ending:
        try:
            self._wait_for_instances()
            self._download()
            return self._train()
        except Over as over:
            return over.ending
        except ClientError as error:
            return failed(f"ClientError: {error}")
        except AwsError as error:
            return failed(f"ClientError: Data download failed: {error.code}: {error.message}")

    def _again(self, ending: Ending) -> Ending:
        """Let a job that crashed be tried again, if its RetryStrategy says so."""
        most = (self._request.get("RetryStrategy") or {}).get("MaximumRetryAttempts", 0)
        retries = int(self._job.state.get("retries", 0))
        if retries >= most:
            return ending
        with self._jobs.change(self._job):
            self._job.state["retries"] = retries + 1
        return ending._replace(again="Restarting")

    # ----------------------------------------------------------------------------------- the states

    def _enter(self, secondary: str, message: str, status: str = "") -> None:
        """Go to a state, unless the job is to stop: it stays Stopping then."""
        with self._jobs.change(self._job):
            if self._job.status == jobs.STOPPING and not status:
                return
            self._job.enter(status or jobs.IN_PROGRESS, secondary, message)

    def _wait_for_instances(self) -> None:
        delays = self._settings.delays
        self._began, self._codes, self._mirrors = None, {}, []
        self._pause(delays.starting)
        self._enter("Pending", "Training job waiting for capacity")
        self._pause(delays.pending)
        places = hosts(checks.groups(self._request))
        self._runs.capacity.take(self, len(places), lambda: self.events.put(Event("ready")))
        while self._next() != Event("ready"):
            pass
        self._enter("Pending", "Preparing the instances for training")
        image = self._request["AlgorithmSpecification"].get("TrainingImage", "")
        if UNKNOWN_IMAGE in image:
            raise ClientError(_no_image(image, self._request["RoleArn"]))
        if not command(self._request):
            raise ClientError(
                "the embedded service has no images: the job needs a ContainerEntrypoint in its "
                "AlgorithmSpecification, or a sagemaker_program for the toolkit of AWS's images"
            )
        if "InstancePreferences" in self._request["ResourceConfig"]:
            with self._jobs.change(self._job):
                self._request["ResourceConfig"] |= {
                    "SelectedInstanceType": places[0].group.type,
                    "SelectedInstanceCount": len(places),
                }
        folder = self._jobs.place(self._job.key) / "instances"
        self._instances = [
            Instance(self._settings, self._request, one, places, folder / one.name)
            for one in places
        ]

    def _download(self) -> None:
        self._enter("Downloading", "Downloading input data")
        with self._jobs.change(self._job):
            self._began = time.time()
            self._job.state.setdefault("TrainingStartTime", self._began)
        for instance in self._instances:
            instance.prepare()
            instance.download()
            self._mirrors += self._mirrors_of(instance)
        self._enter("Downloading", "Downloading the training image")
        self._pause(self._settings.delays.downloading)

    def _mirrors_of(self, instance: Instance) -> Iterator[Mirror]:
        objects = self._settings.objects
        if config := self._request.get("CheckpointConfig"):
            mirror = Mirror(instance.checkpoints, objects, config["S3Uri"])
            mirror.restore()
            yield mirror
        if config := self._request.get("TensorBoardOutputConfig"):
            uri = f"{config['S3OutputPath'].rstrip('/')}/{self._job.name}/tensorboard-output"
            yield Mirror(instance.tensorboard, objects, uri)

    def _train(self) -> Ending:
        self._enter("Training", "Training image download completed. Training in progress.")
        port = _free_port()
        self._live = {one.host.name for one in self._instances}
        for instance in self._instances:
            name = instance.host.name
            log = logs.new_file(self._settings.home, *self._job.key, name)
            marked = f"{mark(self._settings.home)}{self._job.region}|{self._job.name}|{name}|"
            instance.start(self._env(port), log, marked, self._exit_of(name))
        while self._live:
            event = self._next()
            if event and event.code:
                self._end()
                first = next(one for one in self._instances if one.host.name == event.host)
                return failed(_algorithm_error(first.failure(), event.code))
        return COMPLETED

    def _upload(self, ending: Ending) -> Ending:
        """Write what the job made to S3; tell how it ended with that."""
        self._enter("Uploading", "Uploading generated training model", self._job.status)
        self._linger(self._settings.delays.uploading)
        try:
            self._send_files()
            place = outputs.upload(self._request, self._instances, self._settings.objects)
        except AwsError as error:
            if ending.status == jobs.FAILED:
                return ending
            return failed(f"ClientError: Artifact upload failed: {error.code}: {error.message}")
        if ending.status != jobs.FAILED:
            with self._jobs.change(self._job):
                self._job.state["ModelArtifacts"] = {"S3ModelArtifacts": place}
        return ending

    def _finish(self, ending: Ending) -> None:
        found = self._metrics()
        with self._jobs.change(self._job):
            if found:
                self._job.state["FinalMetricDataList"] = found
            if ending.reason:
                self._job.state["FailureReason"] = ending.reason
            self._job.enter(ending.status, ending.secondary, ending.message)

    def _metrics(self) -> list[Object]:
        """Return the last values, of the logs of all tries."""
        algorithm = self._request.get("AlgorithmSpecification") or {}
        if not (definitions := algorithm.get("MetricDefinitions")):
            return []
        since = int(self._job.state["CreationTime"]) * 1000
        events = [
            event
            for stream in logs.streams(self._settings.home, *self._job.key)
            if stream.started >= since  # others are of a job that had the name before
            for event in logs.read(stream.file)
        ]
        return metrics.final(definitions, sorted(events, key=lambda one: one.timestamp))

    # ----------------------------------------------------------------------------------- the events

    def _next(self, until: float = math.inf) -> Event | None:
        """Return what happens next; None when nothing has until a time.

        Meanwhile, files go to S3. Raises Over when the job is to end, Closed.
        """
        while True:
            self._send_files()
            now = time.time()
            limit, ending = min(self._limits(), key=lambda one: one[0])
            if limit <= now:
                self._enter("Stopping", "Stopping the training job", jobs.STOPPING)
                self._end()
                raise Over(ending)
            if until <= now:
                return None
            look = now + (POLL if self._mirrors else LONGEST_WAIT)
            with contextlib.suppress(queue.Empty):
                return self._met(self.events.get(timeout=min(limit, until, look) - now))

    def _limits(self) -> Iterator[tuple[float, Ending]]:
        """Yield the times at which the job has to end, and how."""
        yield math.inf, COMPLETED
        condition, created = self._request["StoppingCondition"], self._job.state["CreationTime"]
        if self._began is not None:
            longest = condition.get("MaxRuntimeInSeconds", MOST_RUNTIME)
            yield self._began + longest - self._trained, TOO_LONG
        elif (longest := condition.get("MaxPendingTimeInSeconds")) is not None:
            yield created + longest, STOPPED
        if self._request.get("EnableManagedSpotTraining"):
            yield created + condition["MaxWaitTimeInSeconds"], WAITED

    def _met(self, event: Event) -> Event:
        """Take an event in. Raises Over, Closed."""
        if event.kind == "exit":
            self._live.discard(event.host)
            self._codes[event.host] = event.code
        elif event.kind == "close":
            raise Closed
        elif event.kind == "ready" or (event.kind == "interrupt" and not self._live):
            pass
        elif event.kind == "crash":
            raise Over(self._again(CRASHED))
        else:
            self._end()
            raise Over(STOPPED if event.kind == "stop" else INTERRUPTED)
        return event

    def _pause(self, seconds: float) -> None:
        """Let time pass. Raises Over when the job is to end meanwhile."""
        until = time.time() + seconds
        while self._next(until):
            pass

    def _linger(self, seconds: float) -> None:
        """Let time pass after the training, whatever happens."""
        until = time.time() + seconds
        while (left := until - time.time()) > 0:
            self._hear(left)

    def _end(self) -> None:
        """Ask the containers to end; end those that do not."""
        for instance in self._alive():
            instance.signal(signal.SIGTERM)
        until = time.time() + self._settings.grace
        while self._live and (left := until - time.time()) > 0:
            self._send_files()
            self._hear(min(left, POLL))
        self._kill()
        self._send_files()

    def _kill(self) -> None:
        """End all containers, and wait until they have."""
        for instance in self._alive():
            instance.kill()
        while self._live:
            self._hear(LONGEST_WAIT)

    def _hear(self, seconds: float) -> None:
        """Wait for a container that ends; nothing else counts any more. Raises Closed."""
        with contextlib.suppress(queue.Empty):
            event = self.events.get(timeout=seconds)
            if event.kind in ("exit", "close"):
                self._met(event)

    def _alive(self) -> list[Instance]:
        return [one for one in self._instances if one.host.name in self._live]

    # ------------------------------------------------------------------------------------ the rest

    def _exit_of(self, host: str) -> Callable[[int], None]:
        return lambda code: self.events.put(Event("exit", host, code))

    def _send_files(self) -> None:
        for mirror in self._mirrors:
            mirror.send()

    def _count(self) -> None:
        """Add the time of a try to that of the job."""
        if self._began is None:
            return
        self._trained += time.time() - self._began
        share = SPOT_SHARE if self._request.get("EnableManagedSpotTraining") else 1.0
        with self._jobs.change(self._job):
            self._job.state |= {
                "trained": self._trained,
                "TrainingTimeInSeconds": math.ceil(self._trained),
                "BillableTimeInSeconds": math.ceil(self._trained * share),
            }

    def _env(self, port: int) -> dict[str, str]:
        """Return what a container has in its environment, beside what its request gives."""
        return {
            "TRAINING_JOB_NAME": self._job.name,
            "TRAINING_JOB_ARN": self._job.arn,
            "AWS_REGION": self._job.region,
            "AWS_DEFAULT_REGION": self._job.region,
            "AWS_ACCESS_KEY_ID": "embedded",
            "AWS_SECRET_ACCESS_KEY": "embedded",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": self._settings.endpoint,
            # The names algo-1, ... mean nothing here: all instances are on this machine.
            "PET_MASTER_ADDR": LOOPBACK,
            "PET_MASTER_PORT": str(port),
        }


def _free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listener:
        return int(listener.getsockname()[1])


def _algorithm_error(text: str, code: int) -> str:
    """Return a FailureReason, which ends with the exit code however long the text is."""
    head, tail = "AlgorithmError: ", f", exit code: {code}"
    return head + text[: REASON_LIMIT - len(head) - len(tail)] + tail


def _no_image(image: str, role: str) -> str:
    registry, _, name = image.partition("/")
    repository = (name or registry).partition("@")[0].partition(":")[0]
    return (
        f"Cannot find repository: {repository} in registry ID: {registry.partition('.')[0]} Please "
        f"check if your ECR repository exists and role {role} has proper pull permissions for "
        "SageMaker: ecr:BatchCheckLayerAvailability, ecr:BatchGetImage, ecr:GetDownloadUrlForLayer"
    )


STARTING = {"Starting": "Starting the training job", "Restarting": "Restarting the training job"}


def mark(home: Path) -> str:
    """Return what the marks of all processes of a service begin with."""
    return f"{home}|sagemaker|"
