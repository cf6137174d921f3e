"""What a launcher is, and what all launchers share.

A launcher is one class in one file of launchers/, reached through `launcher._target_`; its keyword
arguments are its options. The core never names one.
"""

from collections.abc import Iterator
from typing import Any, Protocol

from .job import JobHandle, JobSpec, JobStatus


class Launcher(Protocol):
    """Runs jobs in one kind of place. Every method may be called again without harm."""

    scheme: str
    """The first word of its handles: `local`, `eks`, `sagemaker`."""

    def render(self, job: JobSpec) -> dict[str, Any]:
        """Return the exact object that `submit` sends: no network, clock, randomness, environment.

        Raises ConfigError when this place cannot run the job.
        """

    def submit(self, job: JobSpec) -> JobHandle:
        """Start the job, or find the one that is already there under the same identity.

        Raises ConfigError or LaunchError; nothing is left half-submitted.
        """

    def status(self, handle: JobHandle) -> JobStatus:
        """Return how the job goes now. Raises LaunchError when there is no such job."""

    def logs(self, handle: JobHandle, *, rank: int = 0, follow: bool = False) -> Iterator[str]:
        """Yield the lines that one rank printed; with `follow`, until the job has ended."""

    def wait(self, handle: JobHandle) -> JobStatus:
        """Return when the job has ended. An interrupt leaves the job to the launcher's policy."""

    def cancel(self, handle: JobHandle) -> None:
        """Ask the job to save and stop. Cancelling an ended job does nothing."""

    def list(self) -> list[tuple[JobHandle, JobStatus]]:
        """Return the jobs that this launcher knows."""


def run(launcher: Launcher, job: JobSpec) -> tuple[JobHandle, JobStatus]:
    """Submit a job and stay with it to its end."""
    handle = launcher.submit(job)
    return handle, launcher.wait(handle)
