"""`hydra-trainer` and `python -m hydra_trainer`: train, or ask after a job by its handle."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import launcher
from .errors import HydraTrainerError, LaunchError
from .job import DONE, USER_ERROR, JobHandle, JobState, JobStatus

VERBS = {
    "status": "say how a job goes",
    "logs": "print what a rank has logged",
    "why": "say on one screen what happened to a job, and what to change",
    "wait": "return when a job has ended, with its exit code",
    "cancel": "ask a job to save and stop",
    "list": "list the jobs that were started from here",
    "diff": "say what differs between two jobs, and whether it could change the training",
    "sweep": "look at a sweep, stop it, or run its failed jobs again: sweep status DIR",
    "checkpoint": "list or verify checkpoints, or export weights: checkpoint list RUN",
    "data": "pack data for training, look at them, measure where they lie: data pack SOURCE DEST",
    "storage": "find the file system of a cluster's claim: storage resolve --claim NAME; "
    "start an S3 on this machine: storage embedded",
}


def main() -> None:
    """Take a verb, or else train with the words as Hydra overrides."""
    # As with `python -m`: your own package lies where you type.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    words = sys.argv[1:]
    if words[:1] and words[0] in VERBS:
        sys.exit(verb(words[0], words[1:]))
    from .app import main as train

    train()


def verb(name: str, words: Sequence[str]) -> int:
    """Run one verb and return the exit code."""
    try:
        if name == "checkpoint":
            from .checkpoints.commands import main as checkpoint

            return checkpoint(list(words))
        if name == "sweep":
            from .sweep.commands import main as sweep

            return sweep(list(words))
        if name == "data":
            from .shards.commands import main as data

            return data(list(words))
        options = _parser(name).parse_args(words)
        code: int = globals()[f"_{name}"](options)
    except HydraTrainerError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # its reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"hydra-trainer {name}", description=VERBS[name])
    if name == "list":
        parser.add_argument(
            "place",
            nargs="?",
            default="runs",
            help="a folder of runs, eks://CONTEXT/NAMESPACE or sagemaker://REGION",
        )
        return parser
    if name == "diff":
        words = "overrides in quotes, as one would type them: 'launcher=eks resources.nodes=2'"
        parser.add_argument("left", help=words)
        parser.add_argument("right", help="the same, of the other job")
        return parser
    if name == "storage":
        whats = parser.add_subparsers(dest="what", required=True)
        about = 'print the variables by which AWS\'s clients find it: eval "$(...)"'
        whats.add_parser("embedded", help=about, description=about)
        about = "print overrides by which launcher=sagemaker mounts the file system of a claim"
        resolve = whats.add_parser("resolve", help=about, description=about)
        resolve.add_argument("--claim", required=True, help="a PersistentVolumeClaim")
        resolve.add_argument("--context", help="of the kubeconfig; without it, the current one")
        resolve.add_argument("--namespace", help="without it, the context's")
        resolve.add_argument("--mount", default="output", help="the mount of the config it is for")
        resolve.add_argument("--region", help="without it, the AWS configuration's")
        return parser
    parser.add_argument("job", help="its run directory or its handle, as it was printed")
    if name == "logs":
        parser.add_argument("-f", "--follow", action="store_true", help="until the job has ended")
        parser.add_argument("--rank", type=int, default=0, help="whose log; 0 without it")
        parser.add_argument("--all", action="store_true", help="those of all ranks")
    return parser


def _handle(text: str) -> JobHandle:
    directory = Path(text)
    if "://" in text or not directory.is_dir():
        return JobHandle.parse(text)
    return launcher.recorded(directory) or JobHandle.local(directory)


def _status(options: argparse.Namespace) -> int:
    handle = _handle(options.job)
    print(_line(launcher.reaching(handle).status(handle)))
    return DONE


def _why(options: argparse.Namespace) -> int:
    handle = _handle(options.job)
    print(launcher.reaching(handle).why(handle))
    return DONE


def _wait(options: argparse.Namespace) -> int:
    handle = _handle(options.job)
    status = launcher.reaching(handle).wait(handle)
    print(_line(status))
    return DONE if status.state is JobState.SUCCEEDED else status.exit_code or USER_ERROR


def _logs(options: argparse.Namespace) -> int:
    handle = _handle(options.job)
    rank = None if options.all else options.rank
    for line in launcher.reaching(handle).logs(handle, rank=rank, follow=options.follow):
        print(line, flush=True)
    return DONE


def _cancel(options: argparse.Namespace) -> int:
    handle = _handle(options.job)
    place = launcher.reaching(handle)
    before = place.status(handle)
    place.cancel(handle)
    if before.state.ended:
        print(f"It had ended: {_line(before)}")
    elif (after := _state(handle)).state.ended:
        print(f"It has ended: {_line(after)}")
    else:
        print(f"Asked to save and stop. To see it end: hydra-trainer wait {handle}")
    return DONE


def _diff(options: argparse.Namespace) -> int:
    from .compare import diff

    print(diff(options.left, options.right))
    return DONE


def _storage(options: argparse.Namespace) -> int:
    if options.what == "embedded":
        from . import storage
        from .embedded import buckets

        for name, value in buckets.start(storage.embedded_home()).items():
            print(f"export {name}={value}")
        return DONE
    from .sagemaker.claims import resolve

    place = options.context, options.namespace
    print(resolve(options.claim, options.mount, *place, options.region))
    return DONE


def _list(options: argparse.Namespace) -> int:
    if "://" in options.place:
        handle = JobHandle.parse(options.place)
        found = launcher.reaching(handle).list()
    else:
        handles = [_handle(str(path)) for path in _runs(Path(options.place))]
        found = [(handle, _state(handle)) for handle in handles]
    if not found:
        print(f"No jobs in {options.place}. For another place: hydra-trainer list PLACE")
    for handle, status in found:
        print(f"{handle}  {_line(status)}")
    return DONE


def _runs(folder: Path) -> list[Path]:
    files = [path for name in ("config.yaml", launcher.RECORD) for path in folder.glob(f"*/{name}")]
    return sorted({path.parent for path in files})


def _state(handle: JobHandle) -> JobStatus:
    try:
        return launcher.reaching(handle).status(handle)
    except LaunchError as error:
        return JobStatus(JobState.UNKNOWN, message=str(error))


def _line(status: JobStatus) -> str:
    """Return a status on one line: state, reason, message, objective."""
    objective = (status.result or {}).get("objective") or {}
    value = f"{objective['metric']}={objective['value']}" if objective.get("value") else ""
    message = " ".join(status.message.split())
    return "  ".join(part for part in (status.state, status.reason, message, value) if part)


if __name__ == "__main__":
    main()
