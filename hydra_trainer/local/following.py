"""How jobs of this machine go, as they change: looked at again and again, while they run."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from hydra_trainer.errors import LaunchError
from hydra_trainer.job import JobHandle, JobState, JobStatus, Report
from hydra_trainer.progress import parse

from . import directory

PERIOD = 0.25  # seconds between two looks
MOST_BYTES = 65536  # of what a job has printed since the last look that are read, from the end
MOST_REPORTS = 16  # of a job that are told after one look, the newest

Changes = dict[JobHandle, JobStatus]


def changes(
    status: Callable[[JobHandle], JobStatus],
    jobs: Callable[[], Collection[JobHandle]],
    pause: Callable[[float], object],
) -> Iterator[Changes]:
    """Yield what `Launcher.watch` does. What a job reports is told one by one, before its end.

    A job that has ended is looked at again only after `jobs` has left it out once.
    """
    told: dict[JobHandle, JobStatus] = {}
    printed: dict[JobHandle, Printed] = {}
    ended: set[JobHandle] = set()
    while True:
        wanted = set(jobs())
        ended &= wanted
        for handle in told.keys() - wanted:
            del told[handle], printed[handle]
        found: Changes = {}
        for handle in wanted - ended:
            now = _ask(status, handle)
            output = printed.setdefault(handle, Printed(handle))
            runs = now.state is JobState.RUNNING
            reports = output.reports()
            for report in reports[:-1] if runs else reports:
                yield {handle: JobStatus(JobState.RUNNING, progress=report)}
            if runs:
                now = replace(now, progress=output.newest)
            if now != told.get(handle):
                found[handle] = told[handle] = now
            if now.state.ended:
                ended.add(handle)
                del told[handle], printed[handle]
        yield found
        pause(PERIOD)


def _ask(status: Callable[[JobHandle], JobStatus], handle: JobHandle) -> JobStatus:
    try:
        return status(handle)
    except LaunchError as error:
        return JobStatus(JobState.UNKNOWN, message=str(error))


class Printed:
    """Reads what a job reports from the lines that it prints, as they come."""

    def __init__(self, handle: JobHandle) -> None:
        self.newest: Report | None = None
        self._path = directory.printed(Path(handle.path))
        self._offset = 0

    def reports(self) -> list[Report]:
        """Return the reports since the last time."""
        *lines, rest = self._read().split(b"\n")
        self._offset -= len(rest)
        parsed = (parse(line.decode(errors="replace")) for line in lines)
        found = [report for report in parsed if report is not None][-MOST_REPORTS:]
        self.newest = found[-1] if found else self.newest
        return found

    def _read(self) -> bytes:
        try:
            with self._path.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._offset:  # a run that began anew
                    self._offset, self.newest = 0, None
                file.seek(max(self._offset, size - MOST_BYTES))
                found = file.read()
                self._offset = file.tell()
        except FileNotFoundError:  # it runs elsewhere, or in the foreground
            return b""
        return found
