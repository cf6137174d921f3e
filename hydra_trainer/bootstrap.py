"""What a container starts first. Standard library only, one file.

    python bootstrap.py [--nproc-per-node N] [--code FILE] [--report FILE] ... CONFIG

Unpacks the code, starts torchrun's agent with one worker per rank, forwards SIGTERM to the ranks,
keeps the exit code true (torchrun alone answers 1 to everything) and hands the result to the
platform. Where the other machines are, it knows from the variables that Kubeflow's operators set:
PET_NNODES, PET_NODE_RANK, and PET_MASTER_ADDR, PET_MASTER_PORT or PET_RDZV_ENDPOINT; or from
SageMaker's resourceconfig.json.

    0     done
    143   stopped by SIGTERM, after saving: run again
    130   the same by Ctrl-C
    1     the user's code raised: do not run again
    2     the configuration is wrong: do not run again
    141   this machine lost the others, or never found them: run again
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
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

NOTES = "HYDRA_TRAINER_NOTES"
TRIAL = "HYDRA_TRAINER_TRIAL"
"""The variable in which a tuning service says which trial this is: its name, and its values as
text, by dotted key of the configuration: {"name": "a-1", "values": {"optim.lr": "0.01"}}."""

LOST = 141
"""Exit code of a machine whose peers went away: 128 + SIGPIPE, a broken connection."""

REPORT_LIMIT = 4096
"""Bytes that Kubernetes keeps of a termination message (terminationMessagePath)."""

FAILURE_LIMIT = 980
"""Characters for output/failure: SageMaker keeps 1,024 in its FailureReason, and its own words,
"AlgorithmError:" and the exit code, are among them."""

RESULT = "hydra-trainer result:"
"""Begins the line by which SageMaker's metrics, and Katib's, get the objective."""

PORT = "29500"  # where the instances of a SageMaker job meet: torchrun's own default

POLL = 0.1  # seconds between two looks at the notes

READ_TIMEOUT = 20
"""Seconds without an answer from the machine that they meet on: one that writes a checkpoint may be
slow, one that is gone answers with a reset, at once, unless its node is gone as well."""

JOIN_TIMEOUT = 1800
"""Seconds that machines wait for each other, and for the one that they meet on: a cluster may have
to start it first."""

KEEP_ALIVE = 2
"""Seconds between two signs of life. After three that are missing, a machine has lost its place to
the one that comes instead. Less would not be sooner, since a pod takes as long to be made anew, and
the times are compared, by clocks that may differ."""

MOST_FILES = 100_000
MOST_BYTES = 2**31  # of the unpacked code

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


def trial() -> dict[str, Any] | None:
    """Return which trial of a tuning service this run is; None: it is no trial."""
    text = os.environ.get(TRIAL)
    found: dict[str, Any] | None = json.loads(text) if text else None
    return found


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

    def _seen(self) -> dict[str, Any]:
        """Return what torchrun's agent saw."""
        return read_json(self.notes / "failures.json") or {"failures": []}

    def _lost(self) -> str | None:
        """Return in which words this machine lost the others; None where a rank of it was lost."""
        seen = self._seen()
        if any(failure["exit_code"] < 0 for failure in seen["failures"]):
            return None
        if seen.get("lost"):
            return str(seen["lost"])
        found = (note.get("error") or {} for note in self._exits())
        return next((str(error["message"]) for error in found if error.get("lost_peer")), None)

    def root_cause(self) -> dict[str, Any] | None:
        """Return the note of the rank that failed first, or what torchrun saw of it."""
        if (fatal := self._fatal()) is not None:
            return fatal
        seen = self._seen()
        if seen.get("lost"):
            message = f"the other machines were not found, or were lost: {seen['lost']}"
            error = {"type": "LostPeers", "message": message, "traceback": ""}
            return {"status": "failed", "exit_code": LOST, "error": error}
        failures = seen["failures"]
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
        if returned > 0 and not self.signum and self._lost() is not None:
            return LOST
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
    kept = ("status", "exit_code", "rank", "objective", "others")
    slim = {key: slim[key] for key in kept if key in slim}
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
    add = parser.add_argument
    add("config", type=Path, help="the resolved configuration, config.yaml")
    add("--nproc-per-node", type=int, default=1, help="ranks on each machine")
    add("--max-restarts", type=int, default=3, help="restarts after a lost rank")
    add("--attempts", type=int, default=0, help="starts without a new checkpoint; 0: no limit")
    add("--grace", type=float, default=120.0, help="seconds between stop and kill")
    add("--run-dir", type=Path, help="run directory; default: the config's folder")
    add("--report", type=Path, help="file for the result, at most 4,096 bytes")
    add("--sagemaker", type=Path, metavar="DIR", help="/opt/ml, in a container of SageMaker")
    add("--trial", action="store_true", help="take the values of SageMaker's hyperparameters.json")
    add("--again", action="store_true", help="set aside a run that is complete")
    add("--code", help="archive of the code: a file, or s3://bucket/key")
    add("--work", type=Path, default=Path("code"), help="folder to unpack it into")
    add("--pip", action="append", default=[], help="a requirement to install; may be repeated")
    return parser.parse_args(words)


def _command(options: argparse.Namespace, notes: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "hydra_trainer.elastic"),
        f"--nproc-per-node={options.nproc_per_node}",
        f"--max-restarts={options.max_restarts}",
        "--monitor-interval=0.1",
        f"--log-dir={notes / 'torchrun'}",  # it would leave a folder in /tmp each time
        "--rdzv-backend=c10d",
        *_rendezvous(os.environ),
        *("-m", "hydra_trainer.worker", str(options.config)),
    ]


def _rendezvous(environ: Mapping[str, str]) -> list[str]:
    """Return torchrun's arguments that say where the machines meet.

    They always meet through torchrun's c10d store, on the first of them: with the static
    rendezvous, a machine that is made anew would not be waited for.
    """
    nodes = environ.get("PET_NNODES", "1")
    if nodes == "1":
        return ["--nnodes=1", "--rdzv-endpoint=127.0.0.1:0"]  # any free port: no job meets another
    first, port = environ.get("PET_MASTER_ADDR"), environ.get("PET_MASTER_PORT")
    endpoint = environ.get("PET_RDZV_ENDPOINT") or f"{first}:{port}"
    # A store that is silent for longer went with its machine; this one then ends, and meets the
    # others anew.
    conf = f"join_timeout={JOIN_TIMEOUT},read_timeout={READ_TIMEOUT}"
    conf += f",keep_alive_interval={KEEP_ALIVE}"
    if "PET_NODE_RANK" not in environ:
        return [f"--nnodes={nodes}", f"--rdzv-endpoint={endpoint}", f"--rdzv-conf={conf}"]
    hosts = environ["PET_NODE_RANK"] == "0"
    return [
        f"--nnodes={nodes}",
        f"--rdzv-endpoint={endpoint}",
        f"--rdzv-conf={conf},is_host={str(hosts).lower()}",
        # The name that the others know it by; a pod may not know its own.
        *([f"--local-addr={endpoint.rpartition(':')[0]}"] if hosts else []),
    ]


# ----------------------------------------------------------------------------------------- code


def _fetch(place: str, folder: Path) -> Path:
    """Return the archive as a file of this machine."""
    if not place.startswith("s3://"):
        return Path(place)
    import boto3  # what the image has for S3; the other ways to deliver code need nothing

    bucket, _, key = place.removeprefix("s3://").partition("/")
    path = folder / "code.tar.gz"
    boto3.client("s3").download_file(bucket, key, str(path))
    return path


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .tar.gz of plain files into a folder, which is made anew.

    Raises:
        ValueError: it holds anything but files below the folder, or more than MOST_FILES of them
            or MOST_BYTES in all. Nothing was unpacked.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(archive, "r:gz") as opened:
        members = []
        total = 0
        for member in opened:
            parts = Path(member.name).parts
            if not (member.isfile() or member.isdir()) or member.name.startswith("/"):
                raise ValueError(f"{archive} holds {member.name!r}, which is not a plain file")
            if ".." in parts:
                raise ValueError(f"{archive} holds {member.name!r}, outside of its folder")
            total += member.size
            members.append(member)
            if len(members) > MOST_FILES or total > MOST_BYTES:
                raise ValueError(f"{archive} holds more than {MOST_FILES} files or {MOST_BYTES} B")
        for member in members:
            if member.isfile() and (content := opened.extractfile(member)) is not None:
                target = folder / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
                target.chmod(member.mode & 0o755)


def _prepare(options: argparse.Namespace) -> None:
    """Make the code importable, by this machine's ranks too."""
    paths = []
    options.config = options.config.absolute()
    if options.code:
        work = options.work.absolute()
        work.parent.mkdir(parents=True, exist_ok=True)
        unpack(_fetch(options.code, work.parent), work)
        os.chdir(work)
        paths.append(str(work))
    if options.pip:
        place = str(Path(tempfile.mkdtemp(prefix="hydra-trainer-pip-")))
        install = ("-m", "pip", "install", "--quiet", "--no-input", f"--target={place}")
        subprocess.run([sys.executable, *install, *options.pip], check=True)
        paths.append(place)
    if paths:
        # Of the script itself, Python has put its folder first: not for the ranks.
        old = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *([old] if old else [])])


# --------------------------------------------------------------------------------------- attempts


def _give_up(run_dir: Path, limit: int) -> dict[str, Any] | None:
    """Count this start; return a result instead of training where there were too many.

    A start counts that follows another one without a new checkpoint in between: a cluster starts
    a pod again for ever. Each machine counts its own, by its host name.
    """
    if not limit:
        return None
    path = run_dir / "attempts" / f"{socket.gethostname()}.json"
    found = [p.parent.name for p in (run_dir / "checkpoints").glob("*/manifest.json")]
    # Of a run with results in S3, rank 0 notes the newest here.
    found.append(str((read_json(run_dir / "checkpoints.json") or {}).get("newest", "")))
    newest = max(found)
    before = read_json(path) or {}
    count = int(before.get("count", 0)) + 1 if before.get("newest") == newest else 1
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"count": count, "newest": newest})
    if count <= limit:
        return None
    last = ((read_json(run_dir / "result.json") or {}).get("error") or {}).get("message")
    message = f"gave up after {limit} starts without a new checkpoint (launcher.attempts)" + (
        f"; the last one: {last}" if last else ""
    )
    error = {"type": "TooManyAttempts", "message": message, "traceback": ""}
    return {"status": "failed", "exit_code": 1, "error": error}


def main(words: list[str] | None = None) -> int:
    """Run the job of one machine and return its exit code."""
    options = _arguments(sys.argv[1:] if words is None else words)
    _die_with_parent()
    run_dir = (options.run_dir or options.config.parent).absolute()
    if options.sagemaker:
        _read_hosts(options.sagemaker)
        if options.trial:
            _read_trial(options.sagemaker)
    if found := trial():
        run_dir /= str(found["name"])
    if options.again and _is_first_node():
        _set_aside(run_dir)
    if (ended := _give_up(run_dir, options.attempts)) is not None:
        _report(options, ended)
        return int(ended["exit_code"])
    try:
        _prepare(options)
    except (OSError, ValueError, ImportError, subprocess.CalledProcessError) as error:
        message = f"the code could not be unpacked or installed: {error}"
        text = {"type": type(error).__name__, "message": message, "traceback": ""}
        _report(options, {"status": "failed", "exit_code": 2, "error": text})
        return 2
    _keep_config(options.config, run_dir)
    return _supervise(options, run_dir)


def _keep_config(config: Path, run_dir: Path) -> None:
    """Leave a copy of the configuration in the run directory, where it came from elsewhere."""
    if config.parent != run_dir and _is_first_node():
        run_dir.mkdir(parents=True, exist_ok=True)
        temporary = run_dir / f".config.yaml.{os.getpid()}.tmp"
        temporary.write_bytes(config.read_bytes())
        temporary.replace(run_dir / "config.yaml")


def _is_first_node() -> bool:
    return os.environ.get("PET_NODE_RANK", "0") == "0"


def _read_hosts(opt: Path) -> None:
    """Take from SageMaker's resourceconfig.json what Kubeflow's operators say in variables.

    Variables that are there stay: they say where the instances meet when their names lead nowhere.
    """
    found = read_json(opt / "input" / "config" / "resourceconfig.json") or {}
    hosts = sorted(found.get("hosts") or ["localhost"], key=_number)
    current = found.get("current_host", hosts[0])
    os.environ["PET_NNODES"] = str(len(hosts))
    os.environ["PET_NODE_RANK"] = str(hosts.index(current))
    os.environ.setdefault("PET_MASTER_ADDR", hosts[0])
    os.environ.setdefault("PET_MASTER_PORT", PORT)
    if interface := found.get("network_interface_name"):
        os.environ.setdefault("NCCL_SOCKET_IFNAME", interface)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)


def _read_trial(opt: Path) -> None:
    """Take from SageMaker's hyperparameters.json what its tuner chose for this training job."""
    given = read_json(opt / "input" / "config" / "hyperparameters.json") or {}
    own = ("sagemaker_", "_")  # of the toolkit, and of the tuner itself
    chosen = {key: value for key, value in given.items() if not key.startswith(own)}
    os.environ[TRIAL] = json.dumps({"name": os.environ["TRAINING_JOB_NAME"], "values": chosen})


def _number(host: str) -> tuple[int, str]:
    """Order algo-2 before algo-10."""
    digits = host.rpartition("-")[2]
    return (int(digits) if digits.isdigit() else 0, host)


def _set_aside(run_dir: Path) -> None:
    """Move a run that is complete to previous/N: it was asked for anew.

    One that is not complete goes on: the platform may have started this container again.
    """
    if (read_json(run_dir / "result.json") or {}).get("status") != "completed":
        return
    numbers = [int(p.name) for p in (run_dir / "previous").glob("*") if p.name.isdigit()]
    place = run_dir / "previous" / str(max(numbers, default=0) + 1)
    found = [path for path in run_dir.iterdir() if path.name != "previous"]
    place.mkdir(parents=True)
    for path in sorted(found, key=lambda path: path.name != "result.json"):
        path.rename(place / path.name)


def _report(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Hand the result to the platform, and tell the log why the job ended early.

    Without a report, whoever started us reads result.json and tells it.
    """
    if options.report is None and options.sagemaker is None:
        return
    if options.report is not None:
        options.report.write_text(compact(result))
    if result["status"] == "failed":
        print(cause(result), file=sys.stderr, flush=True)
    elif unsaved := result.get("unsaved"):
        print(f"stopped, but the last save failed: {unsaved}", file=sys.stderr, flush=True)
    if options.sagemaker is not None:
        _report_to_sagemaker(options.sagemaker / "output", result)
    if options.sagemaker is not None or trial():
        _print_objective(result)


def _print_objective(result: dict[str, Any]) -> None:
    """Leave the objective in the log, in all its digits, where a service reads it."""
    objective = result.get("objective") or {}
    if objective.get("value") is not None and result["status"] == "completed":
        print(f"{RESULT} {objective['metric']}={objective['value']!r}", flush=True)


def _report_to_sagemaker(output: Path, result: dict[str, Any]) -> None:
    """Leave the result in output/data, a failure in output/failure."""
    with contextlib.suppress(OSError):
        if _is_first_node():
            (output / "data").mkdir(parents=True, exist_ok=True)
            (output / "data" / "result.json").write_text(compact(result))
        if result["status"] == "failed":
            (output / "failure").write_text(failure_text(result))


def failure_text(result: dict[str, Any], limit: int = FAILURE_LIMIT) -> str:
    """Return the words on a failure that fit: who failed and why, then the end of the traceback."""
    error = result.get("error") or {}
    who = f"rank {result['rank']} failed: " if "rank" in result else ""
    head = f"{who}{error.get('message') or 'no message'}"[: limit * 3 // 4]
    room = limit - len(head) - len("\n...\n")
    trace = str(error.get("traceback") or "").rstrip()
    if not trace or room <= 0:
        return head
    return f"{head}\n{trace if len(trace) <= room else '...' + trace[-room:]}"


def cause(result: dict[str, Any]) -> str:
    """Return what to print of a job that failed: the traceback, if any, which rank, and why."""
    error = result.get("error") or {}
    trace = str(error.get("traceback") or "").rstrip()
    who = f"rank {result['rank']} failed: " if "rank" in result else ""
    lines = [trace] if trace else []
    return "\n".join([*lines, f"error: {who}{error.get('message') or 'no message'}"])


def _supervise(options: argparse.Namespace, run_dir: Path) -> int:
    notes = Path(tempfile.mkdtemp(prefix="hydra-trainer-"))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(int(options.grace)))
    # Shared with the agent, the store of a restarted group still holds the addresses of the ranks
    # before it, which the new ones try to reach (torch 2.13: "Gloo connectFullMesh failed").
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see app.py
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads(options.nproc_per_node)))
    try:
        supervisor = Supervisor(_command(options, notes), notes, options.grace)
        code = supervisor.run()
        result = _result(supervisor, run_dir, code)
        _report(options, result)
    finally:
        shutil.rmtree(notes, ignore_errors=True)
    return code


def _result(supervisor: Supervisor, run_dir: Path, code: int) -> dict[str, Any]:
    """Return the job's result; write it where rank 0 could not, or did not know the cause."""
    path = run_dir / "result.json"
    result = read_json(path)
    only_told = ((result or {}).get("error") or {}).get("lost_peer")  # rank 0 was not the cause
    if result is not None and result.get("exit_code") == code and not only_told:
        return result
    stopped = code in (130, 143)
    cause = supervisor.root_cause() or ({} if stopped else _silent(code))
    result = {
        "status": "stopped" if stopped else "failed",
        **{key: value for key, value in cause.items() if key != "at"},
        "exit_code": code,
    }
    if code == 0:  # no rank 0 on this machine: its result is another machine's
        return {"status": "completed", "exit_code": 0}
    with contextlib.suppress(OSError):
        write_json(path, result)
    return result


def _silent(code: int) -> dict[str, Any]:
    """Return what can be said where no rank came far enough to say why it ended."""
    message = f"torchrun ended with exit code {code} before a rank could start: see the log's end"
    return {"error": {"type": "NotStarted", "message": message, "traceback": ""}}


def _threads(processes: int) -> int:
    """Return how many threads each rank may use, so that all together fill the machine."""
    return max(len(os.sched_getaffinity(0)) // max(processes, 1), 1)


if __name__ == "__main__":
    sys.exit(main())
