"""What a container starts first. Standard library only, one file.

    python bootstrap.py [--nproc-per-node N] [--max-restarts N] [--grace S] [--report FILE] CONFIG

Starts torchrun's agent with one worker per rank, forwards SIGTERM to the ranks, keeps the exit
code true (torchrun alone answers 1 to everything) and hands the result to the platform:

    0     done
    143   stopped by SIGTERM, after saving: run again
    130   the same by Ctrl-C
    1     the user's code raised: do not run again
    2     the configuration is wrong: do not run again
    128+N a rank was ended by signal N

Ranks and bootstrap talk through notes: small files in a folder of this machine, whose path is in
HYDRA_TRAINER_NOTES.
"""

import argparse
import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Any

NOTES = "HYDRA_TRAINER_NOTES"
REPORT_LIMIT = 4096
"""Bytes that Kubernetes keeps of a termination message (terminationMessagePath)."""

POLL = 0.1  # seconds between two looks at the notes

# ------------------------------------------------------------------------------- the rank's side


def supervised() -> bool:
    """Tell whether a bootstrap watches this process."""
    return NOTES in os.environ


def announce() -> None:
    """Tell the bootstrap this rank's process id, so that it can pass signals on."""
    if supervised():
        notes = Path(os.environ[NOTES])
        (notes / f"exit-{_rank()}.json").unlink(missing_ok=True)  # of the attempt before
        write_json(notes / f"pid-{_rank()}.json", {"pid": os.getpid()})


def leave_note(outcome: dict[str, Any]) -> None:
    """Tell the bootstrap how this rank ended."""
    if supervised():
        note = {**outcome, "rank": int(_rank()), "at": time.monotonic()}
        write_json(Path(os.environ[NOTES], f"exit-{_rank()}.json"), note)


def should_not_start() -> bool:
    """Tell whether the job is over already: torchrun restarts ranks without asking."""
    return supervised() and Path(os.environ[NOTES], "over").exists()


def _rank() -> str:
    return os.environ.get("RANK", "0")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader sees all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None where there is none."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


# -------------------------------------------------------------------------------- the parent side


class Supervisor:
    """Runs torchrun's agent for this machine and knows how it ended."""

    def __init__(self, command: list[str], notes: Path, grace: float) -> None:
        self.command = command
        self.notes = notes
        self.grace = grace
        self.signum = 0
        self._deadline = float("inf")
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Start the ranks and return the job's exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        env = {**os.environ, NOTES: str(self.notes)}
        # A session of its own: Ctrl-C on a terminal reaches us alone, and we pass it on once.
        self._process = subprocess.Popen(
            self.command, env=env, start_new_session=True, preexec_fn=_die_with_parent
        )
        forwarded = False
        while (code := self._wait()) is None:
            if self.signum and not forwarded:
                forwarded = True
                self._deadline = time.monotonic() + self.grace
                self._forward()
            if time.monotonic() > self._deadline or self._fatal() is not None:
                self._kill()
        return self._code(code)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            self._kill()
            os._exit(128 + signum)
        self.signum = signum

    def _wait(self) -> int | None:
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(POLL)
        return None

    def _forward(self) -> None:
        """Pass the signal to the ranks themselves: torchrun would kill them 30 seconds later.

        Ranks that torchrun starts from now on end at once.
        """
        assert self._process is not None
        (self.notes / "over").touch()
        pids = self._pids()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, self.signum)
        if not pids:
            self._process.send_signal(signal.SIGTERM)

    def _pids(self) -> list[int]:
        notes = (read_json(path) for path in self.notes.glob("pid-*.json"))
        return [int(note["pid"]) for note in notes if note]

    def _kill(self) -> None:
        """End the agent and every rank, now."""
        assert self._process is not None
        (self.notes / "over").touch()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in self._pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _exits(self) -> list[dict[str, Any]]:
        notes = [read_json(path) for path in self.notes.glob("exit-*.json")]
        return sorted((note for note in notes if note), key=lambda note: note["at"])

    def _fatal(self) -> dict[str, Any] | None:
        """Return the first note that says: starting again cannot help."""
        for note in self._exits():
            if note["exit_code"] in (1, 2) and not note.get("error", {}).get("lost_peer"):
                return note
        return None

    def root_cause(self) -> dict[str, Any] | None:
        """Return the note of the rank that failed first, or what torchrun saw of it."""
        if (fatal := self._fatal()) is not None:
            return fatal
        seen = read_json(self.notes / "failures.json")
        failures = seen["failures"] if seen else []
        killed = [f for f in failures if f["exit_code"] < 0]
        for found in (killed or failures)[:1]:
            number = -found["exit_code"]
            code = 128 + number if number > 0 else found["exit_code"]
            what = signal.Signals(number).name if number > 0 else f"exit code {code}"
            return {
                "status": "failed",
                "exit_code": code,
                "rank": found["rank"],
                "error": {
                    "type": "RankEnded",
                    "message": f"rank {found['rank']} was ended by {what}{_hint(number)}",
                    "traceback": "",
                },
            }
        return next((note for note in self._exits() if note["exit_code"]), None)

    def _code(self, returned: int) -> int:
        codes = [note["exit_code"] for note in self._exits()]
        if (fatal := self._fatal()) is not None:
            return int(fatal["exit_code"])
        stopped = [code for code in codes if code in (143, 130)]
        if stopped:
            return int(stopped[0])
        if returned == 0 and codes and not any(codes):
            return 0
        if self.signum:
            return 128 + self.signum
        cause = self.root_cause()
        return int(cause["exit_code"]) if cause else 128 - returned if returned < 0 else 1


def _hint(number: int) -> str:
    if number == signal.SIGKILL:
        return ": often the kernel, short of memory (data.batch_size, or more memory)"
    if number == signal.SIGBUS:
        return ": often a full /dev/shm (data.num_workers=0, or a larger one)"
    return ""


def _die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the process that started us dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def compact(result: dict[str, Any], limit: int = REPORT_LIMIT) -> str:
    """Return a result as JSON of at most `limit` bytes, dropping the least useful parts first.

    What always stays: status, exit code, and as much as fits of the objective and the error; of a
    traceback, its end.
    """

    def text(value: dict[str, Any]) -> str:
        return json.dumps(value, separators=(",", ":"), ensure_ascii=True)

    slim = dict(result)
    for key in ("", "versions", "metrics", "checkpoints", "code_digest", "identity", "name"):
        slim.pop(key, None)
        if len(text(slim)) <= limit:
            return text(slim)
    error = dict(slim.get("error") or {})
    slim = {key: slim[key] for key in ("status", "exit_code", "rank", "objective") if key in slim}
    for key in ("type", "message", "traceback"):
        value = str(error.get(key, ""))
        if not value:
            continue
        slim["error"] = {**slim.get("error", {}), key: value}
        # Each step drops what is over; escapes make characters longer than one byte.
        while value and (over := len(text(slim)) - limit) > 0:
            value = (
                value[max(over // 6, 1) :] if key == "traceback" else value[: -max(over // 6, 1)]
            )
            slim["error"][key] = value
    if len(text(slim)) > limit:
        slim = {key: slim[key] for key in ("status", "exit_code") if key in slim}
    return text(slim)


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bootstrap", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("config", type=Path, help="the resolved configuration, config.yaml")
    parser.add_argument("--nnodes", type=int, default=1, help="machines of the job")
    parser.add_argument("--nproc-per-node", type=int, default=1, help="ranks on each machine")
    parser.add_argument("--max-restarts", type=int, default=3, help="restarts after a lost rank")
    parser.add_argument("--grace", type=float, default=120.0, help="seconds between stop and kill")
    parser.add_argument("--run-dir", type=Path, help="run directory; default: the config's folder")
    parser.add_argument("--report", type=Path, help="file for the result, at most 4,096 bytes")
    return parser.parse_args(words)


def _command(options: argparse.Namespace) -> list[str]:
    agent = [sys.executable, "-m", "hydra_trainer.elastic"]
    return [
        *agent,
        f"--nnodes={options.nnodes}",
        f"--nproc-per-node={options.nproc_per_node}",
        f"--max-restarts={options.max_restarts}",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=127.0.0.1:0",  # any free port: no other job on this machine is met
        "--monitor-interval=0.1",
        "-m",
        "hydra_trainer.worker",
        str(options.config),
    ]


def main(words: list[str] | None = None) -> int:
    """Run the job of one machine and return its exit code."""
    options = _arguments(sys.argv[1:] if words is None else words)
    _die_with_parent()
    notes = Path(tempfile.mkdtemp(prefix="hydra-trainer-"))
    run_dir = options.run_dir or options.config.parent
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(options.grace)))
    # Shared with the agent, the store of a restarted group still holds the addresses of the ranks
    # before it, which the new ones try to reach (torch 2.13: "Gloo connectFullMesh failed").
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see app.py
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads(options.nproc_per_node)))
    try:
        supervisor = Supervisor(_command(options), notes, options.grace)
        code = supervisor.run()
        result = _result(supervisor, run_dir, code)
        if options.report is not None:
            options.report.write_text(compact(result))
    finally:
        shutil.rmtree(notes, ignore_errors=True)
    return code


def _result(supervisor: Supervisor, run_dir: Path, code: int) -> dict[str, Any]:
    """Return the job's result; write it where rank 0 could not, or did not know the cause."""
    path = run_dir / "result.json"
    result = read_json(path)
    if result is not None and result.get("exit_code") == code:
        return result
    cause = supervisor.root_cause() or {}
    result = {
        "status": "stopped" if code in (130, 143) else "failed",
        **{key: value for key, value in cause.items() if key != "at"},
        "exit_code": code,
    }
    if code == 0:  # no rank 0 on this machine: its result is another machine's
        return {"status": "completed", "exit_code": 0}
    with contextlib.suppress(OSError):
        write_json(path, result)
    return result


def _threads(processes: int) -> int:
    """Return how many threads each rank may use, so that all together fill the machine."""
    return max(len(os.sched_getaffinity(0)) // max(processes, 1), 1)


if __name__ == "__main__":
    sys.exit(main())
