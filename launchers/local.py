"""launcher=local: this machine.

One process trains in the process that submits, so that a debugger just works. More go through the
bootstrap and torchrun, exactly as they do in a container.
"""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

import yaml

from hydra_trainer import launcher
from hydra_trainer.bootstrap import read_json
from hydra_trainer.config import NOT_TRAINING, get, without
from hydra_trainer.errors import ConfigError, LaunchError
from hydra_trainer.job import CONFIG_ERROR, DONE, JobHandle, JobSpec, JobState, JobStatus

LOCK = ".lock"
CONFIG = "config.yaml"
KEEP = (LOCK, "previous")
"""Names in a run directory that stay when a run there is set aside."""

LAST_LINES = 10  # of a log, that `why` shows


class LocalLauncher:
    """Runs a job on this machine, in its run directory.

    Args:
        max_restarts: how often the ranks are started again after one of them was lost, at least 0.
        grace: seconds that ranks have to save after SIGTERM, before SIGKILL; above 0.
        dry_run: print the command and the configuration, and stop.
        check: say what would stop the job, and stop.
    """

    scheme = "local"
    elsewhere = False
    language = "yaml"

    def __init__(
        self,
        max_restarts: int = 3,
        grace: float = 120.0,
        dry_run: bool = False,
        check: bool = False,
    ) -> None:
        self.max_restarts = max_restarts
        self.grace = grace
        self.dry_run = dry_run
        self.check = check

    @classmethod
    def reaching(cls, handle: JobHandle) -> "LocalLauncher":
        """Return a launcher for a run of this machine."""
        return cls()

    def facts(self, job: JobSpec) -> dict[str, str]:
        """Return what of the training is decided here."""
        return launcher.facts(job, "this machine", "this Python", dict(job.env))

    def render(self, job: JobSpec) -> dict[str, Any]:
        """Return the command and the configuration of the job."""
        if job.resources.nodes != 1:
            raise ConfigError(
                f"resources.nodes is {job.resources.nodes} with launcher=local, but this machine "
                "is one node. Type resources.nodes=1."
            )
        processes = job.resources.processes_per_node
        command = [
            sys.executable,
            "-m",
            "hydra_trainer.bootstrap",
            f"--nproc-per-node={processes}",
            f"--max-restarts={self.max_restarts}",
            f"--grace={self.grace:g}",
            str(Path(job.output) / CONFIG),
        ]
        return {
            "command": [] if processes == 1 else command,
            "env": dict(job.env),
            "config": job.config,
        }

    def preflight(self, job: JobSpec) -> bool:
        """Say whether this machine can run the job. Raises ConfigError where it cannot."""
        self.render(job)
        self._check_gpus(job)
        print("ok    this machine can run it")
        return True

    def submit(self, job: JobSpec) -> JobHandle:
        """Run the job to its end, in this process when it has one rank.

        A run that is unfinished goes on; one that is finished is left alone.

        Raises:
            ConfigError: the configuration is wrong after all, which only torch could tell; the
                directory is as it was.
            LaunchError: another process trains in the directory, or the ranks left no result.
            Exception: what the training raised, when it ran in this process.
        """
        spec = self.render(job)
        self._check_gpus(job)
        directory = Path(job.output).resolve()
        with _Lock(directory) as lock:
            if not job.again and not _wants_a_fresh_look(directory, job) and _done(directory, job):
                print("This run is finished already; its result:")
            else:
                self._train(spec, directory, job, lock)
        return JobHandle.local(directory)

    def _train(self, spec: dict[str, Any], directory: Path, job: JobSpec, lock: "_Lock") -> None:
        new = not (directory / CONFIG).exists()
        aside = _set_aside(directory) if job.again else None
        if _wants_a_fresh_look(directory, job):
            _clear(directory)
        _claim(directory, job)
        try:
            if spec["command"]:
                self._supervise(spec, directory, lock)
            else:
                self._here(spec, directory)
        except ConfigError:
            if new or aside is not None:
                _clear(directory)
            if aside is not None:
                _put_back(directory, aside)
            raise

    def _here(self, spec: dict[str, Any], directory: Path) -> None:
        from hydra_trainer import worker

        os.environ.update(spec["env"])
        worker.run(worker.read_config(directory / CONFIG))

    def _supervise(self, spec: dict[str, Any], directory: Path, lock: "_Lock") -> None:
        """Start the bootstrap, pass on the signals that we get, and wait for it.

        It holds the lock as well: when this process is killed, the ranks are still saving, and
        the same command must not start beside them.
        """
        (directory / "result.json").unlink(missing_ok=True)
        process = subprocess.Popen(
            spec["command"],
            env={**os.environ, **spec["env"]},
            start_new_session=True,
            pass_fds=[lock.file.fileno()],
        )

        def forward(signum: int, frame: FrameType | None) -> None:
            process.send_signal(signum)

        before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        result = read_json(directory / "result.json")
        if result is None:
            raise LaunchError(
                f"The ranks ended with exit code {code} and left no result in {directory}. "
                f"See {directory / 'logs'}."
            )
        if result.get("exit_code") == CONFIG_ERROR:
            raise ConfigError(str((result.get("error") or {}).get("message")).split("\n"))

    def _check_gpus(self, job: JobSpec) -> None:
        wanted = job.resources.gpus_per_node
        if not wanted:
            return
        import torch  # only here: a job without GPUs need not wait for it

        there = torch.cuda.device_count()
        if there < wanted:
            raise ConfigError(
                f"resources.gpus_per_node is {wanted}, but this machine has {there}. Type "
                f"resources.gpus_per_node={there}"
                + ("." if there else ", or leave it out to train on the CPU.")
            )

    def status(self, handle: JobHandle) -> JobStatus:
        """Return how the job goes, from its result and from whether a process holds it."""
        directory = _directory(handle)
        if _held(directory):
            return JobStatus(JobState.RUNNING, message=f"pid {_holder(directory)}")
        result = read_json(directory / "result.json")
        if result is None:
            return JobStatus(
                JobState.FAILED,
                reason="Killed",
                message="it ended without a result; the same command goes on",
            )
        code = result.get("exit_code")
        if result.get("status") == "stopped":
            why = result.get("unsaved")
            saved = f"it stopped, but could not save: {why}" if why else "it saved and stopped"
            message = f"{saved}; the same command goes on"
            return JobStatus(JobState.CANCELLED, "Stopped", message, code, result)
        error = result.get("error") or {}
        state = JobState.SUCCEEDED if code == DONE else JobState.FAILED
        return JobStatus(state, error.get("type", ""), error.get("message", ""), code, result)

    def logs(
        self, handle: JobHandle, *, rank: int | None = 0, follow: bool = False
    ) -> Iterator[str]:
        """Yield the lines of one rank's log file; with `follow`, until nobody holds the job."""
        directory = _directory(handle)
        names = sorted(path.stem for path in (directory / "logs").glob("rank-*.log"))
        wanted = names if rank is None else [f"rank-{rank}"]
        if missing := [name for name in wanted if name not in names]:
            raise LaunchError(
                f"{handle} has no log of rank {missing[0][5:]}; it has: "
                f"{', '.join(f'{name}.log' for name in names) or 'none'}."
            )
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context((directory / "logs" / f"{n}.log").open()) for n in wanted]
            while True:
                held = follow and _held(directory)
                for name, file in zip(wanted, files, strict=True):
                    front = f"[{name}] " if rank is None else ""
                    yield from (f"{front}{line.rstrip()}" for line in file)
                if not held:
                    return
                time.sleep(0.2)

    def follow(self, handle: JobHandle) -> JobStatus:
        """Return how it ended: `submit` has printed the rest."""
        return self.status(handle)

    def why(self, handle: JobHandle) -> str:
        """Return the state of a run, its error with the traceback, and the end of its log."""
        status = self.status(handle)
        trace = ((status.result or {}).get("error") or {}).get("traceback") or ""
        parts = (status.state, status.reason, status.message)
        lines = [" ".join(part for part in parts if part), *str(trace).splitlines()]
        with contextlib.suppress(LaunchError):
            lines += ["", "the end of rank 0's log:", *list(self.logs(handle))[-LAST_LINES:]]
        return "\n".join(lines)

    def wait(self, handle: JobHandle) -> JobStatus:
        """Return when no process holds the job any more."""
        directory = _directory(handle)
        with contextlib.suppress(FileNotFoundError), (directory / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        return self.status(handle)

    def cancel(self, handle: JobHandle) -> None:
        """Send SIGTERM to the process that runs the job: it saves and stops.

        Raises LaunchError when the process is another user's.
        """
        directory = _directory(handle)
        if not _held(directory):
            return
        pid = _holder(directory)
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass  # it was killed, and the ranks that still hold the job are stopping already
        except PermissionError:
            raise LaunchError(f"{handle} is run by process {pid} of another user.") from None

    def list(self) -> list[tuple[JobHandle, JobStatus]]:
        """Return the runs in ./runs."""
        found = sorted(path.parent for path in Path("runs").glob(f"*/{CONFIG}"))
        handles = [JobHandle.local(directory) for directory in found]
        return [(handle, self.status(handle)) for handle in handles]


class _Lock:
    """Holds a run directory: two processes must not train in one.

    The kernel lets go of it when the last process that has the file open ends, however it ends.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> "_Lock":
        self._directory.mkdir(parents=True, exist_ok=True)
        self.file: TextIO = (self._directory / LOCK).open("a+")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            handle = JobHandle.local(self._directory)
            raise LaunchError(
                f"Another process (pid {_holder(self._directory)}) is training in "
                f"{self._directory}. Wait for it (hydra-trainer wait {handle}), or give this one "
                "another place: hydra.run.dir=..."
            ) from None
        # Loader workers are forked and outlive a killed parent for seconds; they hold nothing.
        os.register_at_fork(after_in_child=self.file.close)
        # Who it is, for `cancel` and for the message above.
        self.file.truncate(0)
        self.file.write(f"{os.getpid()}\n")
        self.file.flush()
        return self

    def __exit__(self, *exc: object) -> None:
        if not (self._directory / CONFIG).exists():  # it was not, or is no longer, a run
            (self._directory / LOCK).unlink()
            with contextlib.suppress(OSError):
                self._directory.rmdir()
        self.file.close()


def _held(directory: Path) -> bool:
    with contextlib.suppress(FileNotFoundError), (directory / LOCK).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _holder(directory: Path) -> int:
    """Return the process that holds a directory; 0 in the moment before it has written so."""
    return int((directory / LOCK).read_text().strip() or 0)


def _directory(handle: JobHandle) -> Path:
    directory = Path(handle.path)
    if handle.scheme != "local":
        raise LaunchError(f"{handle} is not a local job.")
    if not (directory / CONFIG).exists():
        raise LaunchError(f"There is no run in {directory}: it holds no config.yaml.")
    return directory


def _done(directory: Path, job: JobSpec) -> bool:
    """Tell whether this very run is complete."""
    result = read_json(directory / "result.json") or {}
    return result.get("exit_code") == DONE and result.get("identity") == job.identity


def _wants_a_fresh_look(directory: Path, job: JobSpec) -> bool:
    """Tell whether a debug run is repeated: then a debugger wants to see it all again."""
    return _is_debugging(job.config) and _is_debugging(_config_of(directory))


def _contents(directory: Path) -> list[Path]:
    """Return what a run wrote into its directory."""
    return [path for path in directory.iterdir() if path.name not in KEEP]


def _set_aside(directory: Path) -> Path | None:
    """Move the run that is in a directory to previous/N, and return that."""
    found = _contents(directory)
    if not (directory / CONFIG).exists():
        return None
    numbers = [int(p.name) for p in (directory / "previous").glob("*") if p.name.isdigit()]
    place = directory / "previous" / str(max(numbers, default=0) + 1)
    place.mkdir(parents=True)
    for path in found:
        path.rename(place / path.name)
    return place


def _put_back(directory: Path, place: Path) -> None:
    for path in place.iterdir():
        path.rename(directory / path.name)
    for folder in (place, place.parent):
        with contextlib.suppress(OSError):
            folder.rmdir()


def _clear(directory: Path) -> None:
    for path in _contents(directory):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _config_of(directory: Path) -> dict[str, Any]:
    """Return the configuration of the run in a directory; empty where there is none."""
    path = directory / CONFIG
    loaded = yaml.safe_load(path.read_text()) if path.exists() else None
    return loaded if isinstance(loaded, dict) else {}


def _is_debugging(config: dict[str, Any]) -> bool:
    return bool(get(config, "debug.mode", "off") != "off")


def _claim(directory: Path, job: JobSpec) -> None:
    """Write config.yaml, unless the directory belongs to another run: then refuse."""
    path = directory / CONFIG
    if path.exists():
        _refuse_other(directory, _config_of(directory), job)
    elif strange := [p.name for p in _contents(directory)]:
        raise ConfigError(
            f"hydra.run.dir is {directory}, which holds {', '.join(sorted(strange)[:3])} but no "
            "run. Give an empty or a new directory."
        )
    temporary = directory / ".config.yaml.tmp"
    temporary.write_text(yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True))
    temporary.replace(path)


def _refuse_other(directory: Path, before: dict[str, Any], job: JobSpec) -> None:
    if get(before, "run.identity") == job.identity:
        return
    old, new = (_training(config) for config in (before, job.config))
    if old != new:
        difference = "\n".join(
            line
            for line in unified_diff(_lines(old), _lines(new), "that run", "this one", lineterm="")
            if line[:1] in "+-" and line[:3] not in ("+++", "---")
        )
        raise ConfigError(
            f"hydra.run.dir is {directory}, which belongs to a run with another configuration "
            f"(- there, + here):\n{difference}\nGive another directory, go on with the "
            "configuration that is there, or add again=true to set it aside and start anew."
        )
    if get(before, "run.code_digest") != job.config["run"]["code_digest"]:
        print(
            f"note: the code has changed since {directory} was begun; going on with the code of "
            "today. again=true starts anew.",
            file=sys.stderr,
        )


def _training(config: dict[str, Any]) -> dict[str, Any]:
    return without(config, NOT_TRAINING)


def _lines(node: Any, key: str = "") -> list[str]:
    """Return a configuration as sorted `key: value` lines."""
    if isinstance(node, dict) and node:
        return [
            line
            for name in sorted(node)
            for line in _lines(node[name], f"{key}.{name}" if key else name)
        ]
    return [f"{key}: {json.dumps(node)}"]
