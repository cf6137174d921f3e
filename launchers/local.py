"""launcher=local: this machine.

One process trains in the process that submits, so that a debugger just works. More go through the
bootstrap and torchrun, exactly as they do in a container. In the background, both are processes of
their own, which nothing that happens to the one that submits can reach.

What runs here are made of is in hydra_trainer/local; this file is the way through it.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hydra_trainer import launcher, storage
from hydra_trainer.bootstrap import read_json
from hydra_trainer.config import get
from hydra_trainer.errors import ConfigError, LaunchError
from hydra_trainer.job import CONFIG_ERROR, DONE, JobHandle, JobSpec, JobState, JobStatus
from hydra_trainer.local import directory as runs
from hydra_trainer.local import following, gpus, lock, nursery
from hydra_trainer.local.directory import CONFIG, RESULT
from hydra_trainer.local.lock import Held, Lock

if TYPE_CHECKING:
    from hydra_trainer.mirror import Kept

LAST_LINES = 10  # of a log, that `why` shows


@dataclass(frozen=True)
class LocalLauncher:
    """Runs a job on this machine, in its run directory."""

    # how often the ranks are started again after one of them was lost, at least 0
    max_restarts: int = 3
    # seconds that ranks have to save after SIGTERM, before SIGKILL; above 0
    grace: float = 120.0
    # start the job in the background, and return
    detach: bool = False
    # S3 on this machine as well, where the job uses any
    embedded: bool = False
    # print the command and the configuration, and stop
    dry_run: bool = False
    # say what would stop the job, and stop
    check: bool = False

    scheme = "local"
    elsewhere = False
    language = "yaml"
    at_once = 1

    @classmethod
    def reaching(cls, handle: JobHandle) -> "LocalLauncher":
        """Return a launcher for a run of this machine."""
        return cls()

    def facts(self, job: JobSpec) -> dict[str, str]:
        """Return what of the training is decided here."""
        return launcher.facts(job, "this machine", "this Python", dict(job.env))

    def render(self, job: JobSpec) -> dict[str, Any]:
        """Return the command and the configuration of the job."""
        job = self._own(job)
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
            "env": {**storage.environment(job.config), **job.env},
            "config": job.config,
        }

    def _own(self, job: JobSpec) -> JobSpec:
        """Return a job with S3 on this machine, if it is to be."""
        return replace(job, config=storage.with_embedded_s3(job.config)) if self.embedded else job

    def preflight(self, job: JobSpec) -> bool:
        """Say whether this machine can run the job. Raises ConfigError where it cannot."""
        self.render(job)
        self._check_gpus(job)
        print("ok    this machine can run it")
        return True

    def submit(self, job: JobSpec) -> JobHandle:
        """Run the job to its end, in this process when it has one rank; `detach`: only start it.

        A run that is unfinished goes on; one that is finished is left alone. In the background,
        one that runs is adopted; a debugger needs the foreground, so debug runs stay there.

        Raises:
            ConfigError: the configuration is wrong after all, which only torch could tell; the
                directory is as it was.
            LaunchError: another process trains in the directory, the ranks left no result, or the
                job could not be started.
            Full: jobs in the background hold the GPUs that it wants.
            Exception: what the training raised, when it ran in this process.
        """
        job = self._own(job)
        spec = self.render(job)
        if problems := storage.stand_in_problems(job.config):
            raise ConfigError(problems)
        directory = Path(job.output).resolve()
        if spec["config"]["storage"]["s3"]["embedded"]:
            from hydra_trainer.embedded import buckets

            buckets.join(spec["config"])
        behind = self.detach and not runs.is_debugging(job.config)
        self._check_gpus(job, behind)
        handle = JobHandle.local(directory)
        try:
            with Lock(directory) as held:
                self._submit(spec, directory, job, held, behind)
        except Held:
            if job.again or not (behind and runs.is_of(directory, job)):
                raise
            launcher.say(f"{handle} is there already")
        return handle

    def _submit(
        self, spec: dict[str, Any], directory: Path, job: JobSpec, held: Lock, behind: bool
    ) -> None:
        kept = _kept(job)
        if kept is not None and not job.again:
            kept.fetch(directory)  # what another machine has done
        fresh = job.again or runs.wants_a_fresh_look(directory, job)
        if not fresh and runs.is_done(directory, job):
            print("This run is finished already; its result:", file=sys.stderr if behind else None)
            return
        anew = kept.aside() if kept is not None and fresh else contextlib.nullcontext()
        with anew, runs.claimed(directory, job):
            if behind:
                self._behind(spec, directory, job, held)
            elif spec["command"]:
                self._supervise(spec, directory, held)
            else:
                self._here(spec, directory, held)

    def _behind(self, spec: dict[str, Any], directory: Path, job: JobSpec, held: Lock) -> None:
        """Start the job in the background. It holds the directory, and GPUs of its own."""
        env = {**os.environ, **spec["env"]}
        with gpus.reserved(_wanted_gpus(job)) as own:
            if own:
                env[gpus.VISIBLE] = ",".join(own)
            files = [held.file.fileno(), *(file.fileno() for file in own.values())]
            nursery.start(nursery.Birth(str(directory), spec["command"], env), files)

    def _here(self, spec: dict[str, Any], directory: Path, held: Lock) -> None:
        from hydra_trainer import worker

        lock.sign(held.file)
        os.environ.update(spec["env"])
        worker.run(worker.read_config(directory / CONFIG))

    def _supervise(self, spec: dict[str, Any], directory: Path, held: Lock) -> None:
        """Start the bootstrap, pass on the signals that we get, and wait for it.

        It holds the lock as well: when this process is killed, the ranks are still saving, and
        the same command must not start beside them.
        """
        lock.sign(held.file)
        (directory / RESULT).unlink(missing_ok=True)
        process = subprocess.Popen(
            spec["command"],
            env={**os.environ, **spec["env"]},
            start_new_session=True,
            pass_fds=[held.file.fileno()],
        )

        def forward(signum: int, frame: FrameType | None) -> None:
            process.send_signal(signum)

        before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            code = process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        result = read_json(directory / RESULT)
        if result is None:
            raise LaunchError(
                f"The ranks ended with exit code {code} and left no result in {directory}. "
                f"See {directory / 'logs'}."
            )
        if result.get("exit_code") == CONFIG_ERROR:
            raise ConfigError(str((result.get("error") or {}).get("message")).split("\n"))

    def _check_gpus(self, job: JobSpec, behind: bool = False) -> None:
        wanted = job.resources.gpus_per_node
        if not wanted:
            return
        there = len(gpus.visible()) if behind else _count_with_torch()
        if there < wanted:
            raise ConfigError(
                f"resources.gpus_per_node is {wanted}, but this machine has {there}. Type "
                f"resources.gpus_per_node={there}"
                + ("." if there else ", or leave it out to train on the CPU.")
            )

    def in_background(self) -> "LocalLauncher":
        """Return this launcher with `detach`."""
        return replace(self, detach=True)

    def status(self, handle: JobHandle) -> JobStatus:
        """Return how the job goes, from its result and from whether a process holds it."""
        directory = runs.of(handle)
        started = _written(directory / "environment.json")
        if lock.is_held(directory):
            pid = lock.holder(directory)
            told = f"pid {pid}" if pid is not None else ""
            return JobStatus(JobState.RUNNING, message=told, started=started)
        result = read_json(directory / RESULT)
        if result is None:
            return JobStatus(
                JobState.FAILED,
                reason="Killed",
                message="it ended without a result; the same command goes on",
                started=started,
            )
        ended = _written(directory / RESULT)
        return replace(_ended(result), started=started, ended=ended)

    def logs(
        self, handle: JobHandle, *, rank: int | None = 0, follow: bool = False
    ) -> Iterator[str]:
        """Yield the lines of one rank's log file; with `follow`, until nobody holds the job.

        Of rank 0 in the background, what it printed.
        """
        directory = runs.of(handle)
        found = {path.stem: path for path in sorted((directory / "logs").glob("rank-*.log"))}
        if (printed := runs.printed(directory)).exists():
            found[printed.stem] = printed
        wanted = sorted(found) if rank is None else [f"rank-{rank}"]
        if missing := [name for name in wanted if name not in found]:
            raise LaunchError(
                f"{handle} has no log of rank {missing[0][5:]}; it has: "
                f"{', '.join(path.name for path in found.values()) or 'none'}."
            )
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(found[name].open()) for name in wanted]
            while True:
                held = follow and lock.is_held(directory)
                for name, file in zip(wanted, files, strict=True):
                    front = f"[{name}] " if rank is None else ""
                    yield from (f"{front}{line.rstrip()}" for line in file)
                if not held:
                    return
                time.sleep(0.2)

    def follow(self, handle: JobHandle) -> JobStatus:
        """Return how it ended, or, in the background, how it goes: `submit` has done the rest."""
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
        lock.wait(runs.of(handle))
        return self.status(handle)

    def watch(
        self,
        jobs: Callable[[], Collection[JobHandle]],
        pause: Callable[[float], object] = time.sleep,
    ) -> Iterator[dict[JobHandle, JobStatus]]:
        """Yield how jobs go, and what they report; `pause` waits until the next look."""
        return following.changes(self.status, jobs, pause)

    def cancel(self, handle: JobHandle) -> None:
        """Send SIGTERM to the process that runs the job: it saves and stops.

        Raises LaunchError when the process is another user's.
        """
        directory = runs.of(handle)
        while (held := lock.is_held(directory)) and (pid := lock.holder(directory)) is None:
            time.sleep(0.01)  # it has not signed yet
        if not held:
            return
        assert pid is not None
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


def _kept(job: JobSpec) -> "Kept | None":
    """Return where in S3 a run is kept; None where it is not."""
    if not get(job.config, "run.remote"):
        return None
    from hydra_trainer.mirror import Kept  # the library behind it comes with an extra

    return Kept.of(job.config)


def _count_with_torch() -> int:
    import torch  # only here: a job without GPUs need not wait for it

    return torch.cuda.device_count()


def _wanted_gpus(job: JobSpec) -> int:
    """Return how many GPUs a job takes where there are so many: one for each process."""
    if get(job.config, "trainer.accelerator") == "cpu":
        return 0
    return job.resources.gpus_per_node or job.resources.processes_per_node


def _ended(result: dict[str, Any]) -> JobStatus:
    """Return the status that a result.json stands for."""
    code = result.get("exit_code")
    if result.get("status") == "stopped":
        why = result.get("unsaved")
        saved = f"it stopped, but could not save: {why}" if why else "it saved and stopped"
        message = f"{saved}; the same command goes on"
        return JobStatus(JobState.CANCELLED, "Stopped", message, code, result)
    error = result.get("error") or {}
    state = JobState.SUCCEEDED if code == DONE else JobState.FAILED
    return JobStatus(state, error.get("type", ""), error.get("message", ""), code, result)


def _written(path: Path) -> str | None:
    """Return when a file was written; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return at.isoformat(timespec="seconds").replace("+00:00", "Z")
    return None
