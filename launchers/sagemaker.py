"""launcher=sagemaker: an Amazon SageMaker training job.

What a job looks like there is in hydra_trainer/sagemaker; this file is the way through it.
"""

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra_trainer import launcher
from hydra_trainer.errors import ConfigError, LaunchError
from hydra_trainer.job import JobHandle, JobSpec, JobState, JobStatus
from hydra_trainer.sagemaker import request
from hydra_trainer.sagemaker.options import (
    PLACEHOLDER_OUTPUT,
    PLACEHOLDER_REGION,
    PLACEHOLDER_ROLE,
    Options,
)
from hydra_trainer.storage import embedded_home, stand_in_problems

if TYPE_CHECKING:
    from hydra_trainer.sagemaker.account import Account

EMBEDDED = "embedded"
"""The region of the service on this machine."""

HOME = embedded_home()

OURS = re.compile(r".+-[0-9a-f]{8}(-\d+)?")
"""The name of a job that we sent: a list does not show tags."""

LAST_LINES = 20  # of a log, that `why` reads


@dataclass(frozen=True)
class SagemakerLauncher(Options):
    """Sends a job to SageMaker, follows it, and brings its result back."""

    scheme = "sagemaker"
    elsewhere = True
    language = "json"
    at_once = None

    @classmethod
    def reaching(cls, handle: JobHandle) -> "SagemakerLauncher":
        """Return a launcher for the region of a handle."""
        region, _ = _parts(handle)
        return cls(region=None if region == EMBEDDED else region, embedded=region == EMBEDDED)

    # ----------------------------------------------------------------------------------- render

    def render(self, job: JobSpec) -> dict[str, Any]:
        """Return the CreateTrainingJob request.

        Raises:
            ConfigError: with everything that is wrong with it.
        """
        made = request.request(job, self)
        problems, warnings = _checked(made)
        stand_ins = [*_stand_ins(job, self)] if self.dry_run else []
        for text in (*warnings, *stand_ins):
            launcher.say(f"warning: {text}")
        if problems:
            raise ConfigError(problems)
        return made

    def facts(self, job: JobSpec) -> dict[str, str]:
        """Return what of the training is decided here: processes, machine, image, environment."""
        whole = request.whole_instances(job, self)
        machine = ", ".join(name.removeprefix("ml.") for name in request.types(whole, self))
        env = self.render(job)["Environment"]
        return launcher.facts(whole, machine, request.image(whole, self), env)

    # ----------------------------------------------------------------------------------- submit

    def preflight(self, job: JobSpec) -> bool:
        """Print what would stop the job in that account. Returns whether nothing would."""
        from hydra_trainer.findings import render_findings
        from hydra_trainer.sagemaker.preflight import preflight

        account = self.account()
        made = replace(self, region=account.region).render(job)
        if self.embedded:
            self._prepare_embedded(account, job)
        findings = preflight(account, made, [] if self.embedded else [*_stand_ins(job, self)])
        print(render_findings(findings))
        return not any(finding.level == "fail" for finding in findings)

    def submit(self, job: JobSpec) -> JobHandle:
        """Create the job, or find it: the same job is adopted, another one of that name refused.

        Raises:
            ConfigError: the job is wrong; nothing was sent.
            Full: a quota of the account has no room for one more job.
            LaunchError: SageMaker refuses it, or cannot be reached.
        """
        place, account, made = self.reach(job)
        return place._send(account, job, made)

    def reach(self, job: JobSpec) -> tuple["SagemakerLauncher", "Account", dict[str, Any]]:
        """Return this launcher in its region, the account, and the request of a job.

        Raises:
            ConfigError: the job is wrong, or what it needs was not said.
            LaunchError: there is no way into the account.
        """
        missing = [] if self.embedded else [*_stand_ins(job, self)]
        if missing:
            raise ConfigError(missing)
        account = self.account()
        place = replace(self, region=account.region)
        made = place.render(job)
        if self.embedded:
            self._prepare_embedded(account, job)
        return place, account, made

    def put(self, account: "Account", job: JobSpec) -> None:
        """Put the code and the configuration of a job where its request says."""
        if job.config["code"]["delivery"] != "image":
            archive = f"{request.code_place(job, self)}{request.ARCHIVE}"
            account.put(archive, job.code.archive(), once=True)
        place = f"{request.config_place(self, request.job_name(job))}config.yaml"
        account.put(place, request.config(job, self).encode())

    def _send(self, account: "Account", job: JobSpec, made: dict[str, Any]) -> JobHandle:
        from hydra_trainer.sagemaker.account import InUse

        name = str(made["TrainingJobName"])
        launcher.say(f"submitting {self.handle(account, name)}")
        self.put(account, job)
        # Looked for before where it is not adopted: what is there after a lost answer is ours.
        anew = self.again or job.again
        if anew and account.describe(name) is not None:
            return self._beside(account, job, made)
        try:
            self._create(account, made)
        except InUse:
            if not anew:
                return self._beside(account, job, made)
        return self.handle(account, name)

    def _create(self, account: "Account", made: dict[str, Any]) -> None:
        if self.client == "sdk":
            from hydra_trainer.sagemaker import sdk

            sdk.create(account, made)
        else:
            account.create(made)
        account.created(made["TrainingJobName"])

    def _beside(self, account: "Account", job: JobSpec, made: dict[str, Any]) -> JobHandle:
        """Find the job that has the name: adopt it, or send another one that goes on from it.

        A name of SageMaker's is never free again, so later sittings are NAME-2, NAME-3, ...
        """
        from hydra_trainer.sagemaker.account import InUse

        name = str(made["TrainingJobName"])
        sittings = _sittings(account, name)
        newest = f"{name}-{max(sittings)}" if max(sittings) > 1 else name
        there = account.describe(newest)
        if there is None:  # ListTrainingJobs may not know yet what CreateTrainingJob knows
            raise LaunchError(f"{newest} was there, and is gone. Type the same command again.")
        handle = self.handle(account, newest)
        running = there["TrainingJobStatus"] in ("InProgress", "Stopping")
        anew = self.again or job.again
        if running and anew:
            raise LaunchError(
                f"{handle} is still there ({there['TrainingJobStatus']}). To run it anew, type "
                f"hydra-trainer cancel {handle}, then the same command."
            )
        wanted = {tag["Key"]: tag["Value"] for tag in made["Tags"]}[request.DIGEST]
        if not anew and (running or there["TrainingJobStatus"] != "Stopped"):
            if account.tags(there["TrainingJobArn"]).get(request.DIGEST) == wanted:
                launcher.say(f"{handle} is there already")
                return handle
            raise LaunchError(
                f"{handle} is there already, with other settings: the same training, with other "
                "resources, storage or launcher options. To follow it as it is, type hydra-trainer "
                f"logs -f {handle}; to replace it, add launcher.again=true; to run both, add "
                "name=..."
            )
        later = f"{name}-{max(sittings) + 1}"
        made = {**made, "TrainingJobName": later}
        if "CheckpointConfig" in made:
            before = there.get("CheckpointConfig", {}).get("S3Uri")
            fresh = request.checkpoint_place(self, later)
            uri = before if before and not anew else fresh
            made["CheckpointConfig"] = {**made["CheckpointConfig"], "S3Uri": uri}
        if not anew:
            launcher.say(f"{newest} was stopped: {later} goes on from there")
        with contextlib.suppress(InUse):  # somebody typed the same at the same time
            self._create(account, made)
        return self.handle(account, later)

    def account(self) -> "Account":
        """Return the account: one for all jobs of a process."""
        from hydra_trainer.sagemaker.account import shared

        if self.embedded:
            from hydra_trainer.embedded import sagemaker

            return shared(PLACEHOLDER_REGION, sagemaker.start(HOME))
        return shared(self.region)

    def _prepare_embedded(self, account: "Account", job: JobSpec) -> None:
        """Make what an account would have: a bucket, and folders of this machine to mount."""
        account.make_bucket(request.output(self))
        disks = HOME / "file-systems"
        for mount in job.mounts.values():
            link = disks / request.stand_in(mount)
            stands_in = mount.local and not mount.file_system and mount.kind not in ("s3", "cache")
            if stands_in and not link.exists():
                disks.mkdir(parents=True, exist_ok=True)
                Path(mount.local).expanduser().mkdir(parents=True, exist_ok=True)
                link.symlink_to(Path(mount.local).expanduser().absolute())

    def handle(self, account: "Account", name: str) -> JobHandle:
        return JobHandle("sagemaker", f"{EMBEDDED if self.embedded else account.region}/{name}")

    # ------------------------------------------------------------------------------------ verbs

    def status(self, handle: JobHandle) -> JobStatus:
        """Return how a job goes; once it has ended, with its result."""
        account = self.account()
        return _status(account, _described(account, handle))

    def why(self, handle: JobHandle) -> str:
        """Return one screen on what happened, with the last lines of the logs that tell."""
        from hydra_trainer.sagemaker import state

        account = self.account()
        found = _described(account, handle)
        name = str(found["TrainingJobName"])
        last = {}
        for stream in account.streams(name)[-4:]:
            with contextlib.suppress(LaunchError):
                last[stream] = account.last(stream, LAST_LINES)
        return state.why(found, _result(account, found), last)

    def logs(
        self, handle: JobHandle, *, rank: int | None = 0, follow: bool = False
    ) -> Iterator[str]:
        """Yield the lines of the instance that a rank is on; None: of all, in the order of time."""
        from hydra_trainer.sagemaker.logs import Logs, host_of

        account = self.account()
        found = _described(account, handle)
        name, each = str(found["TrainingJobName"]), _processes(found)
        if rank is not None and not 0 <= rank < each * _instances(found):
            raise LaunchError(
                f"{handle} has no rank {rank}: it has {_instances(found)} instances of {each} "
                "ranks each."
            )
        logs = Logs(account, name, None if rank is None else host_of(rank, each))

        def ended() -> bool:
            return not follow or _has_ended(account.describe(name))

        for line in logs.follow(ended):
            host = line.stream.partition("/")[2].rpartition("-")[0]
            yield f"{host}  {line.text}" if rank is None else line.text

    def follow(self, handle: JobHandle) -> JobStatus:
        """Print changes of the state and rank 0's log until the job ends.

        Ctrl-C lets go of the job, which goes on.
        """
        if self.detach:
            if self.account().is_new(_parts(handle)[1]):
                return JobStatus(JobState.PENDING, reason="Starting")
            return self.status(handle)
        from hydra_trainer.sagemaker.follow import follow

        account = self.account()
        try:
            return _status(account, follow(account, _parts(handle)[1], self._pause))
        except KeyboardInterrupt:
            launcher.say(
                f"let go of {handle}, which goes on. To see it again: hydra-trainer logs -f"
            )
            return JobStatus(JobState.RUNNING)

    @property
    def _pause(self) -> float:
        from hydra_trainer.sagemaker.logs import POLL

        return 0.2 if self.embedded else POLL

    def wait(self, handle: JobHandle) -> JobStatus:
        """Return when a job has ended."""
        return self.wait_all([handle])[handle]

    def wait_all(self, handles: list[JobHandle]) -> dict[JobHandle, JobStatus]:
        """Return how jobs of one region ended, once all have: one page of a list each second."""
        from hydra_trainer.sagemaker import many

        account = self.account()
        left = {_parts(handle)[1]: handle for handle in handles}
        ended: dict[JobHandle, JobStatus] = {}
        teller = many.Teller(account, lambda name: _ended(account, name), lag=0.0)
        for found in teller.tell(lambda: left):
            for name, status in found.items():
                if status.state is JobState.UNKNOWN:
                    raise _absent(left[name])
                if status.state.ended:
                    ended[left.pop(name)] = status
            if not left:
                break
        return {handle: ended[handle] for handle in handles}

    def in_background(self) -> "SagemakerLauncher":
        """Return the same launcher, whose `follow` does not wait for the job."""
        return replace(self, detach=True)

    def watch(
        self, jobs: Callable[[], Collection[JobHandle]]
    ) -> Iterator[dict[JobHandle, JobStatus]]:
        """Yield how jobs of one region go: one page of a list each second tells of all of them.

        A job that has ended is described, and its result read. How far a running one has come is
        not told: its log costs as many calls as there are jobs, which the account has few of.
        """
        from hydra_trainer.sagemaker import many

        while not (first := jobs()):
            yield {}
            time.sleep(many.TICK)
        account = self._of(next(iter(first))).account()
        handles: dict[str, JobHandle] = {}

        def names() -> Collection[str]:
            found = {_parts(handle)[1]: handle for handle in jobs()}
            handles.update(found)
            return found

        def tell(sleep: Callable[[float], object]) -> Iterator[many.News]:
            teller = many.Teller(account, lambda name: _ended(account, name), sleep=sleep)
            return teller.tell(names)

        with contextlib.closing(many.apart(tell)) as changes:
            for found in changes:
                yield {handles[name]: status for name, status in found.items()}

    def _of(self, handle: JobHandle) -> "SagemakerLauncher":
        """Return a launcher for the region of a handle, whatever the configuration says by now."""
        region, _ = _parts(handle)
        embedded = region == EMBEDDED
        return replace(self, region=None if embedded else region, embedded=embedded)

    def cancel(self, handle: JobHandle) -> None:
        """Stop a job and wait for its end: its ranks get SIGTERM and two minutes to save."""
        account = self.account()
        if not _has_ended(_described(account, handle)):
            account.stop(_parts(handle)[1])
            while not _has_ended(account.describe(_parts(handle)[1])):
                time.sleep(self._pause)

    def list(self) -> list[tuple[JobHandle, JobStatus]]:
        """Return the jobs of the region that have names like ours."""
        from hydra_trainer.sagemaker import state

        account = self.account()
        return [
            (self.handle(account, one["TrainingJobName"]), state.status(one))
            for one in account.jobs()
            if OURS.fullmatch(one["TrainingJobName"])
        ]


# ---------------------------------------------------------------------------------- what is there


def _parts(handle: JobHandle) -> tuple[str, str]:
    """Return region and name."""
    region, _, name = handle.path.partition("/")
    if handle.scheme != "sagemaker" or "/" in name:
        raise LaunchError(f"{handle} is not the handle of a training job: sagemaker://REGION/NAME.")
    return region, name


def _described(account: "Account", handle: JobHandle) -> dict[str, Any]:
    found = account.describe(_parts(handle)[1])
    if found is None:
        raise _absent(handle)
    return found


def _absent(handle: JobHandle) -> LaunchError:
    return LaunchError(
        f"There is no training job {handle}. hydra-trainer list sagemaker://{_parts(handle)[0]} "
        "shows those that are there."
    )


def _ended(account: "Account", name: str) -> JobStatus | None:
    """Return how a job ended, with its result; None where there is no such job any more."""
    found = account.describe(name)
    return None if found is None else _status(account, found)


def _has_ended(found: dict[str, Any] | None) -> bool:
    from hydra_trainer.sagemaker.state import ENDED

    return found is None or found["TrainingJobStatus"] in ENDED


def _sittings(account: "Account", name: str) -> list[int]:
    """Return the numbers of a job's sittings: NAME is the first."""
    found = [1]
    for one in account.jobs(NameContains=name):
        if match := re.fullmatch(re.escape(name) + r"-(\d+)", one["TrainingJobName"]):
            found.append(int(match[1]))
    return found


def _status(account: "Account", found: dict[str, Any]) -> JobStatus:
    from hydra_trainer.sagemaker import state

    return state.status(found, _result(account, found) if _has_ended(found) else None)


def _result(account: "Account", found: dict[str, Any]) -> dict[str, Any] | None:
    """Return the job's result.json: from its run directory in S3, or from its output."""
    kept = found.get("CheckpointConfig", {}).get("S3Uri")
    output = str(found["OutputDataConfig"]["S3OutputPath"]).rstrip("/")
    other = f"{output}/{found['TrainingJobName']}/output/data/result.json"
    result = account.read_json(f"{kept.rstrip('/')}/result.json") if kept else None
    return result or account.read_json(other)


def _processes(found: dict[str, Any]) -> int:
    """Return how many ranks an instance has."""
    words = found["AlgorithmSpecification"].get("ContainerArguments") or []
    text = next((word for word in words if word.startswith("--nproc-per-node=")), "=1")
    return int(text.partition("=")[2])


def _instances(found: dict[str, Any]) -> int:
    asked = found["ResourceConfig"]
    groups = sum(int(group["InstanceCount"]) for group in asked.get("InstanceGroups") or [])
    return groups or int(asked.get("SelectedInstanceCount") or asked.get("InstanceCount") or 1)


# ------------------------------------------------------------------------------- what is checked


def _stand_ins(job: JobSpec, options: Options) -> Iterator[str]:
    """Yield what the user has to say before the job can be sent."""
    if not options.role:
        yield (
            f"launcher.role has no value ({PLACEHOLDER_ROLE} stands for it in a dry run). Type "
            "launcher.role=arn:aws:iam::ACCOUNT:role/NAME; docs/sagemaker.md makes one."
        )
    if not options.output:
        yield (
            f"launcher.output has no value ({PLACEHOLDER_OUTPUT} stands for it in a dry run). Type "
            "launcher.output=s3://BUCKET/PREFIX."
        )
    yield from stand_in_problems(job.config)
    chosen = options.instance_preferences or options.instance_groups
    if not (chosen or job.resources.instance_type):
        yield (
            "resources.instance_type has no value (m5.xlarge stands for it in a dry run). Type "
            "resources.instance_type=ml.g5.xlarge, or another one."
        )
    if options.dry_run and not options.region and not options.image:
        yield (
            f"launcher.region has no value: the image is that of {PLACEHOLDER_REGION}. Type "
            "launcher.region=REGION, or launcher.image=..."
        )


def _checked(made: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return what is wrong with a request, and what may be."""
    from hydra_trainer.sagemaker.rules import key_of, rule_problems
    from hydra_trainer.sagemaker.shapes import shape_problems

    problems: list[str] = []
    warnings: list[str] = []
    for found in (*shape_problems(made), *rule_problems(made)):
        key = key_of(found.path, made)
        source = f" It comes from {key}." if key and key not in found.message else ""
        text = f"{found.path} {found.message}{source}"
        (warnings if found.severity == "warning" else problems).append(text)
    return problems, warnings
