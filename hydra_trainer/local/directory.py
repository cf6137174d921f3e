"""A run directory: what is in it, and to which run it belongs."""

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from difflib import unified_diff
from pathlib import Path
from typing import Any

import yaml

from hydra_trainer.bootstrap import read_json
from hydra_trainer.config import NOT_TRAINING, get, without
from hydra_trainer.errors import ConfigError, Full, LaunchError
from hydra_trainer.job import DONE, JobHandle, JobSpec

LOCK = ".lock"
CONFIG = "config.yaml"
RESULT = "result.json"
KEEP = (LOCK, "previous")
"""Names in a run directory that stay when a run there is set aside."""


class NotStarted(LaunchError):
    """A job could not be started: nothing of it has run."""


def of(handle: JobHandle) -> Path:
    """Return the directory of a handle. Raises LaunchError when no run is there."""
    directory = Path(handle.path)
    if handle.scheme != "local":
        raise LaunchError(f"{handle} is not a local job.")
    if not (directory / CONFIG).exists():
        raise LaunchError(f"There is no run in {directory}: it holds no config.yaml.")
    return directory


def printed(directory: Path) -> Path:
    """Return the file of what rank 0 of a job in the background prints."""
    return directory / "logs" / "rank-0.out"


def is_done(directory: Path, job: JobSpec) -> bool:
    """Tell whether this very run is complete."""
    result = read_json(directory / RESULT) or {}
    return result.get("exit_code") == DONE and result.get("identity") == job.identity


def is_of(directory: Path, job: JobSpec) -> bool:
    """Tell whether a directory belongs to this very run."""
    return bool(get(_config_of(directory), "run.identity") == job.identity)


def wants_a_fresh_look(directory: Path, job: JobSpec) -> bool:
    """Tell whether a debug run is repeated: then a debugger wants to see it all again."""
    return is_debugging(job.config) and is_debugging(_config_of(directory))


def is_debugging(config: dict[str, Any]) -> bool:
    return bool(get(config, "debug.mode", "off") != "off")


@contextlib.contextmanager
def claimed(directory: Path, job: JobSpec) -> Iterator[None]:
    """Make a directory the job's, and for `again` set aside what is there; the caller holds it.

    Where a ConfigError tells that the job cannot run after all, or it could not be started, a
    directory that was new, or whose run was set aside, is as it was.
    """
    new = not (directory / CONFIG).exists()
    aside = _set_aside(directory) if job.again else None
    if wants_a_fresh_look(directory, job):
        _clear(directory)
    _claim(directory, job)
    try:
        yield
    except (ConfigError, NotStarted, Full):
        if new or aside is not None:
            _clear(directory)
        if aside is not None:
            _put_back(directory, aside)
        raise


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


def _claim(directory: Path, job: JobSpec) -> None:
    """Write config.yaml, unless the directory belongs to another run: then refuse."""
    path = directory / CONFIG
    if path.exists():
        refuse_other(directory, _config_of(directory), job.config)
    elif strange := [p.name for p in _contents(directory)]:
        raise ConfigError(
            f"hydra.run.dir is {directory}, which holds {', '.join(sorted(strange)[:3])} but no "
            "run. Give an empty or a new directory."
        )
    temporary = directory / ".config.yaml.tmp"
    temporary.write_text(yaml.safe_dump(job.config, sort_keys=False, allow_unicode=True))
    temporary.replace(path)


def refuse_other(where: Path | str, before: dict[str, Any], config: dict[str, Any]) -> None:
    """Raise ConfigError where a place, in S3 too, belongs to a run with another configuration.

    Where only the code is another, say so.
    """
    if get(before, "run.identity") == get(config, "run.identity"):
        return
    old, new = (_training(one) for one in (before, config))
    if old != new:
        difference = "\n".join(
            line
            for line in unified_diff(_lines(old), _lines(new), "that run", "this one", lineterm="")
            if line[:1] in "+-" and line[:3] not in ("+++", "---")
        )
        raise ConfigError(
            f"{'hydra.run.dir' if isinstance(where, Path) else 'storage.output'} is {where}, which "
            "belongs to a run with another configuration "
            f"(- there, + here):\n{difference}\nGive another directory, go on with the "
            "configuration that is there, or add again=true to set it aside and start anew."
        )
    if get(before, "run.code_digest") != get(config, "run.code_digest"):
        print(
            f"note: the code has changed since {where} was begun; going on with the code of "
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
