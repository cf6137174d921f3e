"""What torchrun starts on every rank: `python -m hydra_trainer.worker config.yaml`.

The configuration is resolved but for `${mount:...}` and `${run:...}`, which only this machine can
answer. In a local run with one process, `run` is called in the user's own process.
"""

import contextlib
import ctypes
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import bootstrap, storage, values
from .errors import ConfigError, HydraTrainerError
from .job import CONFIG_ERROR, DONE, USER_ERROR
from .preemption import NoStopFlag, StopFlag, Stopped

if TYPE_CHECKING:
    from .mirror import Mirror

log = logging.getLogger(__name__)

LOST_PEER = re.compile(
    r"gloo|NCCL|ncclSystemError|ProcessGroup|Connection (closed|reset) by peer|"
    r"Broken pipe|Socket Timeout|TCPStore|remote process exited",
    re.IGNORECASE,
)


def read_config(path: Path) -> dict[str, Any]:
    """Return the configuration of a run, with mounts and run places filled in.

    That of a trial is written into its run directory as well, with the values of the trial.

    Raises:
        ConfigError: the file is not there or not a configuration of ours, or a trial has values
            that are none of it.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if not path.is_file():
        raise ConfigError(f"There is no configuration file {path}.")
    try:
        config = OmegaConf.load(path)
        if trial := bootstrap.trial():
            config = OmegaConf.create(values.of_trial(OmegaConf.to_container(config), trial))  # type: ignore[arg-type]
        register_answers(config)
        plain = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, AttributeError) as error:
        raise ConfigError(f"{path} is not a resolved configuration: {error}") from error
    assert isinstance(plain, dict)
    if OmegaConf.select(config, "storage.s3.embedded"):
        from .embedded import buckets

        buckets.join(plain)  # type: ignore[arg-type]
    if trial and _rank() == 0:
        _keep(OmegaConf.to_yaml(config), Path(plain["run"]["dir"]))
    return {str(key): value for key, value in plain.items()}


def _keep(text: str, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".config.yaml.{os.getpid()}.tmp"
    temporary.write_text(text)
    temporary.replace(directory / "config.yaml")


def register_answers(config: Any) -> None:
    """Answer `${mount:name}` and `${run:name}` for this machine."""
    from omegaconf import OmegaConf

    mounts: Any = OmegaConf.to_container(config.storage.mounts)

    def mount(name: str) -> str:
        return storage.answer(name, mounts, dict(os.environ))

    OmegaConf.register_new_resolver("mount", mount, replace=True)
    OmegaConf.register_new_resolver("run", lambda name: config.run[name], replace=True)


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Train in this process and write result.json. Returns the result.

    Raises what `training.train` raises, after writing what happened into result.json.
    """
    directory = Path(config["run"]["dir"])
    first = _rank() == 0
    mirror = _mirror(config, directory) if first else None
    debugging = config["debug"]["mode"] in ("default", "attach")
    with _log_file(directory):
        try:
            with NoStopFlag() if debugging else StopFlag() as flag:
                if not bootstrap.supervised():
                    # With other ranks, a signal ends the process until training starts: there is
                    # nothing to save yet, and a rank that waits for a lost one would not hear it.
                    flag.install()
                if mirror is not None:
                    mirror.begin(config)
                result = _train(config, flag, directory, mirror)
                if first:
                    bootstrap.write_json(directory / "result.json", result)
                if mirror is not None:
                    mirror.end()
        except BaseException as error:
            with _deaf_to_children():
                explained = _explain(error)
                log.info("the run ended", exc_info=error)  # the terminal gets less of it
                _write_down(failure(config, explained or error), directory, first)
                if mirror is not None:
                    with contextlib.suppress(OSError):
                        mirror.end()
                if explained is not None:
                    raise explained from error
                raise
    bootstrap.leave_note({"exit_code": DONE})
    return result


def _mirror(config: dict[str, Any], directory: Path) -> "Mirror | None":
    """Return who brings results to S3, where they are to go there."""
    if not config["run"].get("remote"):
        return None
    from .mirror import Kept, Mirror  # the library behind it comes with an extra

    return Mirror(directory, Kept.of(config))


def _train(
    config: dict[str, Any], flag: StopFlag, directory: Path, mirror: "Mirror | None"
) -> dict[str, Any]:
    first = _rank() == 0
    if config["debug"]["mode"] == "attach":
        _wait_for_debugger(int(config["debug"]["port"]))
    from . import metrics, training

    if first:
        training.write_environment(directory, config)
    result = training.train(config, flag, mirror)
    if first:
        metrics.draw(directory, config["run"]["name"])
    return result


@contextlib.contextmanager
def _deaf_to_children() -> Iterator[None]:
    """Let an error be written down before a second loader worker dies.

    torch's handler of SIGCHLD raises that a worker died, wherever the process then is.
    """
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _explain(error: BaseException) -> HydraTrainerError | None:
    """Return the plain words for an error of the loader workers; None for any other error."""
    data = sys.modules.get(f"{__package__}.data")  # without it, training did not come that far
    if data is None or isinstance(error, HydraTrainerError) or not isinstance(error, Exception):
        return None
    found: HydraTrainerError | None = data.explain_loader_failure(error)
    return found


def _write_down(outcome: dict[str, Any], directory: Path, first: bool) -> None:
    if first or outcome["status"] != "stopped":
        if first:
            # A disk that is full must not hide why the run ended.
            with contextlib.suppress(OSError):
                bootstrap.write_json(directory / "result.json", outcome)
        bootstrap.leave_note(outcome)


def failure(config: dict[str, Any], error: BaseException) -> dict[str, Any]:
    """Return the result of a run that ended with `error`."""
    stopped = isinstance(error, Stopped)
    unsaved = {"unsaved": error.unsaved} if isinstance(error, Stopped) and error.unsaved else {}
    # What is raised on purpose says all in its message; the log file has the rest.
    told = stopped or isinstance(error, HydraTrainerError)
    text = "" if told else "".join(traceback.format_exception(error))
    return {
        "status": "stopped" if stopped else "failed",
        "exit_code": exit_code(error),
        **unsaved,
        "name": config.get("run", {}).get("name"),
        "identity": config.get("run", {}).get("identity"),
        "rank": _rank(),
        "error": {
            "type": type(error).__name__,
            "message": str(error),
            "traceback": text,
            "lost_peer": lost_peer(error),
        },
    }


def exit_code(error: BaseException) -> int:
    """Return the exit code that an exception stands for (see job.py)."""
    if isinstance(error, Stopped):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, ConfigError):
        return CONFIG_ERROR
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return USER_ERROR


def lost_peer(error: BaseException) -> bool:
    """Tell whether an exception only says that another rank went away.

    Such an error is a consequence: the group is started again, which helps when the cause was a
    lost machine or a killed process.
    """
    if isinstance(error, HydraTrainerError) or int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    if type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError"):
        return True
    return isinstance(error, RuntimeError) and bool(LOST_PEER.search(str(error)))


@contextlib.contextmanager
def _log_file(directory: Path) -> Iterator[None]:
    """Send log records to this rank's own file, and rank 0's warnings to the terminal too."""
    rank = _rank()
    folder = directory / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(folder / f"rank-{rank}.log")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    own = logging.getLogger("hydra_trainer")
    own.setLevel(logging.INFO)
    handlers: list[logging.Handler] = [file]
    if rank == 0:
        terminal = logging.StreamHandler()
        terminal.setLevel(logging.WARNING)
        terminal.setFormatter(logging.Formatter("%(message)s"))
        handlers.append(terminal)
    for handler in handlers:
        own.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            own.removeHandler(handler)
            handler.close()


def _wait_for_debugger(port: int) -> None:
    try:
        import debugpy
    except ImportError:
        raise ConfigError(
            "debug=attach needs debugpy. Type pip install 'hydra-trainer[debug]'."
        ) from None
    try:
        host, bound = debugpy.listen(("127.0.0.1", port))
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"debug.port is {port}, but debugpy cannot listen there: {error}. Type debug.port=0 "
            "for any free port."
        ) from error
    print(f"waiting for a debugpy client on {host}:{bound}", flush=True)
    debugpy.wait_for_client()


def _die_with_parent() -> None:
    """Ask Linux to kill this rank when torchrun dies: nobody else could find it then."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))  # distributed.rank(), without torch


def _own_output(directory: Path, rank: int) -> None:
    """Rank 0 prints; every other rank has a file."""
    if rank == 0:
        return
    folder = directory / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    file = os.open(folder / f"rank-{rank}.out", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    for descriptor in (1, 2):
        os.dup2(file, descriptor)


def main(arguments: list[str] | None = None) -> int:
    """Run one rank. Returns the code to exit with.

    Under our bootstrap, the true code goes into a note, and torchrun sees 0 where it must not
    start the group again: a stop that was asked for is not a failure.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 1:
        print("usage: python -m hydra_trainer.worker CONFIG.yaml", file=sys.stderr)
        return CONFIG_ERROR
    if bootstrap.supervised():
        _die_with_parent()
    bootstrap.announce()
    if bootstrap.should_not_start():
        return DONE
    code = _guarded(Path(words[0]))
    return DONE if code > 128 and bootstrap.supervised() else code


def _guarded(path: Path) -> int:
    config: dict[str, Any] = {}
    try:
        config = read_config(path)
        _own_output(Path(config["run"]["dir"]), _rank())
        run(config)
    except (Stopped, KeyboardInterrupt, Exception) as error:
        if not config:
            bootstrap.leave_note(failure(config, error))
        _tell(error)
        return exit_code(error)
    return DONE


def _tell(error: BaseException) -> None:
    """Print why this rank ended, unless its bootstrap, or who started that, tells it for all."""
    if lost_peer(error):
        reason = str(error).strip().split("\n")[0]
        print(f"rank {_rank()} lost another rank: {reason}", file=sys.stderr, flush=True)
    elif bootstrap.supervised() or isinstance(error, Stopped):
        return
    elif isinstance(error, HydraTrainerError):
        print(f"error: {error}", file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of the process group may still wait for a peer that is gone.
    os._exit(code)
