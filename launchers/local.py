"""launcher=local: this machine.

One process trains in the process that submits, so that a debugger just works. More go through the
bootstrap and torchrun, exactly as they do in a container.
"""

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

from hydra_trainer.bootstrap import read_json
from hydra_trainer.config import NOT_TRAINING, get, without
from hydra_trainer.errors import ConfigError, LaunchError
from hydra_trainer.job import DONE, JobHandle, JobSpec, JobState, JobStatus

LOCK = ".lock"
CONFIG = "config.yaml"
KEEP = (LOCK, "previous")
"""Names in a run directory that stay when a run there is set aside."""


class LocalLauncher:
    """Runs a job on this machine, in its run directory.

    Args:
        max_restarts: how often the ranks are started again after one of them was lost.
        grace: seconds that ranks have to save after SIGTERM, before SIGKILL.
    """

    scheme = "local"

    def __init__(self, max_restarts: int = 3, grace: float = 120.0) -> None:
        if max_restarts < 0:
            raise ConfigError(
                f"launcher.max_restarts is {max_restarts}, but must be at least 0. "
                "Type launcher.max_restarts=3."
            )
        if not grace > 0:
            raise ConfigError(f"launcher.grace is {grace}, but must be above 0 (seconds).")
        self.max_restarts = max_restarts
        self.grace = grace

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

    def submit(self, job: JobSpec) -> JobHandle:
        """Run the job to its end, in this process when it has one rank.

        A run that is unfinished goes on; one that is finished is left alone. Raises what the
        training raised when it ran in this process.
        """
        spec = self.render(job)
        self._check_gpus(job)
        directory = Path(job.output).resolve()
        handle = JobHandle.local(directory)
        with _Lock(directory) as lock:
            if job.again:
                _set_aside(directory)
            elif _is_debugging(job.config) and _is_debugging(_config_of(directory)):
                _clear(directory)  # a debugger wants to see it all again
            elif _finished(directory, job) is not None:
                print("This run is finished already; its result:")
                return handle
            _claim(directory, job)
            lock.name_holder()
            if spec["command"]:
                self._supervise(spec, directory, lock)
            else:
                self._here(directory)
        return handle

    def _here(self, directory: Path) -> None:
        from hydra_trainer import worker

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
        if read_json(directory / "result.json") is None:
            raise LaunchError(
                f"The ranks ended with exit code {code} and left no result in {directory}. "
                f"See {directory / 'logs'}."
            )

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
            return JobStatus(JobState.RUNNING, message=f"in {directory}")
        result = read_json(directory / "result.json")
        if result is None:
            return JobStatus(
                JobState.FAILED,
                reason="Killed",
                message="ended without a result; run the same command again to go on",
            )
        state = {"completed": JobState.SUCCEEDED, "stopped": JobState.CANCELLED}.get(
            str(result.get("status")), JobState.FAILED
        )
        error = result.get("error") or {}
        code = result.get("exit_code")
        return JobStatus(state, error.get("type", ""), error.get("message", ""), code, result)

    def logs(self, handle: JobHandle, *, rank: int = 0, follow: bool = False) -> Iterator[str]:
        """Yield the lines of one rank's log file."""
        directory = _directory(handle)
        path = directory / "logs" / f"rank-{rank}.log"
        if not path.exists():
            there = sorted(p.name for p in path.parent.glob("rank-*.log"))
            raise LaunchError(
                f"{handle} has no log of rank {rank}; it has: {', '.join(there) or 'none'}."
            )
        with path.open() as file:
            while True:
                held = follow and _held(directory)
                yield from (line.rstrip("\n") for line in file)
                if not held:
                    return
                time.sleep(0.2)

    def wait(self, handle: JobHandle) -> JobStatus:
        """Return when no process holds the job any more."""
        directory = _directory(handle)
        with (directory / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
        return self.status(handle)

    def cancel(self, handle: JobHandle) -> None:
        """Send SIGTERM to the process that runs the job: it saves and stops."""
        directory = _directory(handle)
        if not _held(directory):
            return
        os.kill(int((directory / LOCK).read_text().split()[0]), signal.SIGTERM)

    def list(self) -> list[tuple[JobHandle, JobStatus]]:
        """Return the runs below ./runs."""
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
            holder = (self._directory / LOCK).read_text().strip() or "unknown"
            self.file.close()
            raise LaunchError(
                f"Another process (pid {holder}) is training in {self._directory}. Wait for it "
                f"(hydra-trainer wait {JobHandle.local(self._directory)}), or give this one "
                "another place: hydra.run.dir=..."
            ) from None
        # Loader workers are forked and outlive a killed parent for seconds; they hold nothing.
        os.register_at_fork(after_in_child=self.file.close)
        return self

    def name_holder(self) -> None:
        """Write down who holds it, for `cancel` and for the message above."""
        self.file.truncate(0)
        self.file.write(f"{os.getpid()}\n")
        self.file.flush()

    def __exit__(self, *exc: object) -> None:
        self.file.close()


def _held(directory: Path) -> bool:
    with (directory / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _directory(handle: JobHandle) -> Path:
    directory = Path(handle.path)
    if handle.scheme != "local":
        raise LaunchError(f"{handle} is not a local job.")
    if not (directory / CONFIG).exists():
        raise LaunchError(f"There is no run in {directory}: it holds no config.yaml.")
    return directory


def _finished(directory: Path, job: JobSpec) -> dict[str, Any] | None:
    """Return the result of this very run where it is complete."""
    result = read_json(directory / "result.json")
    if result is None or result.get("exit_code") != DONE:
        return None
    return result if result.get("identity") == job.identity else None


def _contents(directory: Path) -> list[Path]:
    """Return what a run wrote into its directory."""
    return [path for path in directory.iterdir() if path.name not in KEEP]


def _set_aside(directory: Path) -> None:
    """Move the run that is in a directory to previous/N."""
    found = _contents(directory)
    if not found or not (directory / CONFIG).exists():
        return
    numbers = [int(p.name) for p in (directory / "previous").glob("*") if p.name.isdigit()]
    place = directory / "previous" / str(max(numbers, default=0) + 1)
    place.mkdir(parents=True)
    for path in found:
        path.rename(place / path.name)


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
