"""What it costs to send jobs to SageMaker: a dry run, a submit, a sweep within an account's limits.

    python -m benchmarks.services HOME

is the embedded service in a process of its own, with its rate limits; its jobs wait for capacity
and are never run. It ends with its standard input.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import urlopen

from .starts import REPOSITORY, TRAIN, in_turns
from .table import Row, compared, limited

DRY_RUN = [*TRAIN, "launcher=sagemaker", "launcher.dry_run=true"]
HEAVY = (
    "from hydra_trainer.app import main; main(); import sys; "
    "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'boto3', 'botocore')))"
)
SUBMIT = [
    *TRAIN,
    "launcher=sagemaker",
    "launcher.role=arn:aws:iam::123456789012:role/training",
    "launcher.output=s3://bench/runs",
    "launcher.detach=true",
    "resources.instance_type=ml.m5.xlarge",
]
BARE = (
    "import boto3; session = boto3.Session(region_name='us-east-1'); "
    "session.client('s3'); session.client('sagemaker')"
)
SDK = """
import sagemaker
try:
    from sagemaker.train import ModelTrainer
except ImportError:
    pass
"""
"""What a script imports to send a job with the SDK: 3 has nothing in its __init__, 2 has all."""

LESS = 2.0  # seconds of CPU
SHARE = 0.95  # of the rate that is allowed
FOREVER = 1e6


def dry_run(quick: bool) -> Iterator[Row]:
    """Yield the rows of a dry run: CPU time against the import that it avoids."""
    rendered, imported = in_turns(DRY_RUN, "import torch", quick)
    name = "CPU time, launcher=sagemaker launcher.dry_run=true / import torch"
    yield compared(name, rendered, imported, "s CPU", 0.25)
    light = subprocess.run([sys.executable, "-c", HEAVY, *DRY_RUN[2:]], capture_output=True)
    note = "met" if light.returncode == 0 else "MISSED"
    yield Row("... neither torch nor boto3 is imported", "", "", note=note)
    yield _many(100 if quick else 1000)


def _many(count: int) -> Row:
    """Return the row of a thousand jobs that differ in one value."""
    from hydra_trainer.launchers.sagemaker import SagemakerLauncher

    from . import jobs

    place, sweep = SagemakerLauncher(embedded=True), jobs.sweep(count, "sagemaker")
    begun = time.process_time()
    for job in sweep:
        place.render(job)
    seconds = (time.process_time() - begun) * 1000 / count
    return limited("1,000 requests rendered and checked", seconds, "s CPU", 2)


# ---------------------------------------------------------------------------------------- submits


def submit(quick: bool) -> Iterator[Row]:
    """Yield the rows of a submit: its calls, and its CPU time against the SDK's import."""
    with serving() as there:
        words = [*SUBMIT, f"storage.output={there.home}/runs"]
        before = there.calls()
        _run([*words, "seed=1000"], there.env)
        asked = sum(there.calls().values()) - sum(before.values())
        yield limited("AWS calls of a submit", asked, "", 4)
        ours, bare, sdk = [], [], []
        for turn in range(2 if quick else 12):
            bare.append(_run([sys.executable, "-c", BARE], there.env))
            ours.append(_run([*words, f"seed={turn}"], there.env))
            if find_spec("sagemaker"):
                sdk.append(_run([sys.executable, "-c", SDK], there.env))
    yield compared("CPU time, a submit / boto3 and its clients", ours[1:], bare[1:], "s CPU")
    yield _less(ours[1:], sdk[1:])


def _less(ours: list[float], sdk: list[float]) -> Row:
    """Return the row of what a submit takes less than the import of the SDK."""
    name = f"CPU time, a submit and {LESS:g} s / import of the SageMaker SDK"
    if sdk:
        return compared(name, [spent + LESS for spent in ours], sdk, "s CPU", 1)
    return Row(name, "", "", note="the SDK is not installed: not compared")


# ----------------------------------------------------------------------------------------- sweeps


def sweep(quick: bool) -> Iterator[Row]:
    """Yield the rows of a sweep of a thousand jobs: how near to what an account may ask for."""
    from hydra_trainer.embedded.sagemaker.limits import LIMITS

    count, allowed = 7 if quick else 1000, LIMITS["sagemaker:CreateTrainingJob"]
    with serving() as there:
        words = [f"seed=range({count})", f"storage.output={there.home}/runs"]
        _run([*TRAIN, "-m", *SUBMIT[len(TRAIN) :], *words], there.env)
        calls, throttled, times = there.calls(), there.throttled(), there.created()
    name = f"a sweep of {count:,} jobs:"
    note = "met" if len(times) == count else "MISSED"
    yield Row(f"{name} created", f"{len(times):,}", "", note=note)
    least = (count - allowed.burst) / allowed.rate
    yield compared(
        f"{name} time / what the limit allows", [times[-1] - times[0]], [least], "s", 1 / SHARE
    )
    share = 100 * sum(throttled.values()) / sum(calls.values())
    yield limited(f"{name} calls throttled", share, "%", 2)
    creates = calls["sagemaker:CreateTrainingJob"]
    share = 100 * throttled.get("sagemaker:CreateTrainingJob", 0) / creates
    yield limited(f"{name} creates throttled", share, "%", 2)
    yield Row(f"{name} AWS calls a job", f"{sum(calls.values()) / count:.3g}", "")


# ----------------------------------------------------------------------------------------- both


class Serving(NamedTuple):
    """A service in another process, and the environment in which it is AWS."""

    home: Path
    endpoint: str
    env: dict[str, str]

    def calls(self) -> dict[str, int]:
        return dict(self._counted()["calls"])

    def throttled(self) -> dict[str, int]:
        return dict(self._counted()["throttled"])

    def _counted(self) -> Any:
        with urlopen(f"{self.endpoint}/embedded/calls") as answer:
            return json.load(answer)

    def created(self) -> list[float]:
        """Return when its jobs were created, the first one first."""
        jobs = self.home.glob("service/jobs/*/*/job.json")
        return sorted(json.loads(job.read_text())["state"]["CreationTime"] for job in jobs)


@contextlib.contextmanager
def serving() -> Iterator[Serving]:
    """A service with a bucket, and compiled code that is kept, as it is where a command ran."""
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, f"{folder}/service"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdin and process.stdout
        endpoint = process.stdout.readline().strip()
        env = {**os.environ, "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        env |= {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": "us-east-1"}
        env |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
        try:
            yield Serving(Path(folder), endpoint, env)
        finally:
            process.stdin.close()
            process.wait()


def _run(words: list[str], env: dict[str, str]) -> float:
    """Run a command to its end; return its seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, capture_output=True, env=env, cwd=REPOSITORY)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def serve(home: str) -> None:
    """Be a service until the standard input ends."""
    import boto3

    from hydra_trainer.embedded.sagemaker import Delays, Service

    with Service(Path(home), delays=Delays(pending=FOREVER)) as service:
        keys = {"aws_access_key_id": "bench", "aws_secret_access_key": "bench"}
        client = boto3.client("s3", endpoint_url=service.endpoint, region_name="us-east-1", **keys)
        client.create_bucket(Bucket="bench")
        print(service.endpoint, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1])
