"""What a launcher is, and what all launchers share.

A launcher is one class in one file of launchers/, reached through `launcher._target_`; its keyword
arguments are its options. The core never names one.
"""

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import yaml

from .bootstrap import read_json, write_json
from .errors import LaunchError, did_you_mean
from .help import conf_folder
from .job import JobHandle, JobSpec, JobStatus

RECORD = "job.json"
"""In a run directory of this machine: the handle of a job that runs elsewhere, and its result."""


_Base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _Dumper(_Base):
    """Writes a file inside a manifest as one reads it, and no anchors for parts that repeat."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: Any, text: str) -> Any:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


class Launcher(Protocol):
    """Runs jobs in one kind of place. Every method may be called again without harm."""

    scheme: str
    """The first word of its handles: `local`, `eks`, `sagemaker`. Its configuration is the file of
    that name in the group `launcher`."""

    elsewhere: bool
    """Whether jobs run on other machines: then this one only writes down which they were."""

    language: str
    """In which a dry run prints: yaml, or json."""

    dry_run: bool
    """Print what `render` returns and stop."""

    check: bool
    """Say what would stop the job, and stop."""

    detach: bool
    """Do not wait for the job."""

    at_once: int | None
    """How many of its jobs a sweep has in flight where nobody says; None: all of them."""

    @classmethod
    def reaching(cls, handle: JobHandle) -> "Launcher":
        """Return a launcher that can be asked about the job of a handle."""

    def render(self, job: JobSpec) -> dict[str, Any]:
        """Return the exact object that `submit` sends: no network, clock, randomness, environment.

        Raises ConfigError when this place cannot run the job.
        """

    def facts(self, job: JobSpec) -> dict[str, str]:
        """Return what this place decides that could change the training: for `hydra-trainer diff`.

        `processes`, `machine`, `image`, and a key for each variable of the environment.
        """

    def preflight(self, job: JobSpec) -> bool:
        """Print what speaks for and against a submit now. Returns whether the job would run."""

    def submit(self, job: JobSpec) -> JobHandle:
        """Start the job, or find the one that is already there under the same identity.

        Raises ConfigError or LaunchError; nothing is left half-submitted.
        """

    def follow(self, handle: JobHandle) -> JobStatus:
        """Print what happens to a job until it ends, or until an interrupt lets go of it."""

    def status(self, handle: JobHandle) -> JobStatus:
        """Return how the job goes now. Raises LaunchError when there is no such job."""

    def why(self, handle: JobHandle) -> str:
        """Return one screen on what happened to a job, and what to change."""

    def logs(
        self, handle: JobHandle, *, rank: int | None = 0, follow: bool = False
    ) -> Iterator[str]:
        """Yield the lines that a rank printed, None: all ranks; `follow`: until the job ended."""

    def wait(self, handle: JobHandle) -> JobStatus:
        """Return when the job has ended."""

    def in_background(self) -> "Launcher":
        """Return the same launcher, whose `submit` does not wait for the job: for sweeps."""

    def watch(
        self, jobs: Callable[[], Collection[JobHandle]]
    ) -> Iterator[dict[JobHandle, JobStatus]]:
        """Yield how jobs go: what has changed, and at least every few seconds, if only {}.

        `jobs` is asked again and again: which jobs to tell about now, of one cluster and namespace,
        one region, or this machine. What was yielded once need not be again. A job that is not
        there (any more) is told as UNKNOWN. The requests do not grow with the number of jobs, but
        for the results of those that end. Ends never by itself; raises LaunchError when the place
        can no longer be asked.
        """

    def cancel(self, handle: JobHandle) -> None:
        """Ask the job to save and stop. Cancelling an ended job does nothing."""

    def list(self) -> list[tuple[JobHandle, JobStatus]]:
        """Return the jobs of this place that a launcher of ours started."""


def run(launcher: Launcher, job: JobSpec) -> tuple[JobHandle, JobStatus]:
    """Submit a job and stay with it to its end, or until it is let go of."""
    handle = launcher.submit(job)
    status = launcher.follow(handle)
    if launcher.elsewhere:
        record(Path(job.output), handle, status)
    return handle, status


def facts(job: JobSpec, machine: str, image: str, env: dict[str, str]) -> dict[str, str]:
    """Return `Launcher.facts` of a job whose resources are what the place gives it."""
    needed = job.resources
    count = f"{needed.nodes} x {needed.processes_per_node} = {needed.world_size}"
    device = "GPU" if needed.gpus_per_node else "CPU"
    harmless = ("HOME", "PYTHONUNBUFFERED", "HYDRA_TRAINER_")
    own = {key: value for key, value in env.items() if not key.startswith(harmless)}
    return {
        "processes": count,
        "device": device,
        "machine": machine,
        "image": image,
        **{f"env.{key}": str(value) for key, value in own.items()},
    }


def text(manifests: dict[str, Any], language: str = "yaml") -> str:
    """Return what a launcher rendered as YAML or JSON, the same bytes every time."""
    if language == "json":
        return json.dumps(manifests, indent=2, ensure_ascii=False) + "\n"
    return str(
        yaml.dump(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=2**31 - 1)
    )


def config_text(config: dict[str, Any], run_dir: str) -> str:
    """Return the config.yaml of a job that runs elsewhere, in a run directory as it sees it."""
    found = {
        **config,
        "run": {**config["run"], "dir": run_dir},
        # How it was sent is none of the worker's business, and not the same in each sitting.
        "launcher": {"_target_": config["launcher"]["_target_"]},
        "again": False,
    }
    return "".join(_section(json.dumps({key: value})) for key, value in found.items())


@functools.lru_cache(maxsize=256)  # most sections are the same in all jobs of a sweep
def _section(section: str) -> str:
    """Return a part of a configuration, given as JSON, as YAML."""
    made = text(json.loads(section))
    # Where a text ends in empty lines, the writer ends the document; more is to come.
    return made.removesuffix("...\n") if made.endswith("\n...\n") else made


def record(directory: Path, handle: JobHandle, status: JobStatus) -> None:
    """Write down on this machine which job it was, so that `hydra-trainer list` finds it."""
    directory.mkdir(parents=True, exist_ok=True)
    found = {"handle": str(handle), "state": str(status.state), "result": status.result}
    write_json(directory / RECORD, found)


def recorded(directory: Path) -> JobHandle | None:
    """Return the handle that was written down in a run directory."""
    found = read_json(directory / RECORD)
    with contextlib.suppress(LaunchError):
        return JobHandle.parse(str(found["handle"])) if found else None
    return None


def reaching(handle: JobHandle) -> Launcher:
    """Return a launcher that can be asked about a handle.

    Raises:
        LaunchError: no launcher has handles of this scheme.
    """
    folder = conf_folder() / "launcher"
    path = folder / f"{handle.scheme}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise LaunchError(
            f"{handle} is not a handle of ours: it must start with "
            f"{', '.join(f'{name}://' for name in known)}.{did_you_mean(handle.scheme, known)}"
        )
    module, _, name = yaml.safe_load(path.read_text())["_target_"].rpartition(".")
    found: Launcher = getattr(import_module(module), name).reaching(handle)
    return found


_sink: Callable[[str], None] | None = None


def say(line: str) -> None:
    """Print a line about a job to stderr: stdout is for what the job itself says."""
    if _sink is not None:
        _sink(line)
    else:
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def speaking_through(sink: Callable[[str], None]) -> Iterator[None]:
    """Hand over what is said to somebody else: a sweep has hundreds of jobs, and one table."""
    global _sink
    before, _sink = _sink, sink
    try:
        yield
    finally:
        _sink = before


class Once:
    """Says each warning once: the jobs of a sweep have most of them in common."""

    def __init__(self, out: Callable[[str], None] | None = None) -> None:
        self._out, self._said = out, set[str]()

    def __call__(self, line: str) -> None:
        if line.startswith("warning:") and line in self._said:
            return
        self._said.add(line)
        if self._out is None:
            print(line, file=sys.stderr, flush=True)
        elif line.startswith("warning:"):  # what is said of each job, the table shows
            self._out(line)

    def through(self, out: Callable[[str], None]) -> "Once":
        """Return one that says only warnings, and those through `out`, that were not said yet."""
        found = Once(out)
        found._said = self._said
        return found
