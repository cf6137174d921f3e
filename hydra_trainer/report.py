"""What a user reads at the end. Every command in it can be pasted."""

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import bootstrap
from .job import JobHandle, JobSpec


def program() -> str:
    """Return what was typed before the first argument: `python train.py`, `hydra-trainer`."""
    script = Path(sys.argv[0])
    if script.name != "__main__.py" and script.suffix != ".py":
        return script.name if shutil.which(script.name) else shown(script)
    typed = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv[1:])]
    if typed[-1:] == [sys.argv[0]] or typed[-2:-1] == ["-m"]:
        return shlex.join(typed)
    return f"python {sys.argv[0]}"


def command(words: Sequence[str], *more: str) -> str:
    """Return a command with these arguments, ready to paste. A later value replaces an earlier."""
    keys = {word.partition("=")[0] for word in more}
    kept = [word for word in words if word.partition("=")[0] not in keys]
    return " ".join([program(), *map(shlex.quote, (*kept, *more))])


def shown(path: Path) -> str:
    """Return a path as short as it can be typed here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) and path != here else path)


def summary(
    result: dict[str, Any], job: JobSpec, words: Sequence[str], handle: JobHandle | None = None
) -> None:
    """Print a finished job's result and what to try next; `handle` of one that ran elsewhere."""
    directory = Path(job.output)
    words = [word for word in words if word != "again=true"]
    print()
    where = [("run directory", shown(directory)) if handle is None else ("job", str(handle))]
    if remote := job.config["run"].get("remote"):
        where.append(("kept in", remote))
    _print_table([list(row) for row in (*_rows(result, directory), *where)])
    print("\nNext:")
    for what, line in _next(job, directory, words):
        print(f"  # {what}\n  {line}")


def _rows(result: dict[str, Any], directory: Path) -> list[tuple[str, str]]:
    metrics = result.get("metrics") or {}
    objective = result.get("objective") or {}
    rows: list[tuple[str, str]] = []
    if (accuracy := metrics.get("test/acc")) is not None:
        rows.append(("test accuracy", f"{accuracy:.2%}"))
    if (loss := metrics.get("test/loss")) is not None:
        rows.append(("test loss", f"{loss:.4f}"))
    if objective.get("value") is not None:
        at = f"(best, step {objective['step']})"
        rows.append((str(objective["metric"]), f"{objective['value']:.4f} {at}"))
    rows.append(("trained", f"{result.get('steps')} steps, {result.get('epochs')} epochs"))
    rate = result.get("samples_per_second") or 0
    rows.append(("time", f"{result.get('seconds', 0):.1f} s, {rate:,.0f} samples/s"))
    if (directory / "metrics.png").exists():
        rows.append(("curves", shown(directory / "metrics.png")))
    return rows


def _next(job: JobSpec, directory: Path, words: list[str]) -> list[tuple[str, str]]:
    found = []
    rate = job.config["optim"].get("lr")
    own_place = any(word.startswith("hydra.run.dir=") for word in words)
    if job.config["debug"]["mode"] != "off":
        real = [word for word in words if not word.startswith("debug")]
        found.append(("train for real", command(real)))
    elif isinstance(rate, int | float) and not own_place:
        found.append(("try another learning rate", command(words, f"optim.lr={rate / 3:.1g}")))
    if (directory / "tensorboard").exists():
        found.append(("compare the curves of the runs, in a browser", _tensorboard(directory)))
    found.append(("run this one anew", command(words, "again=true")))
    found.append(("see what else can be chosen", f"{program()} --help"))
    return found


def _tensorboard(directory: Path) -> str:
    beside = Path(sys.executable).with_name("tensorboard")
    name = "tensorboard" if shutil.which("tensorboard") else shlex.quote(shown(beside))
    return f"{name} --logdir {shlex.quote(shown(directory.parent))}"


def _print_table(rows: Sequence[list[str]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print(f"  {'  '.join(cells)}".rstrip())


def stopped(directory: Path, unsaved: str | None) -> None:
    """Print how to go on after a stop; `unsaved` says why its save failed, None: it did not."""
    step, place = _saved_step(directory), shown(directory)
    if unsaved is not None:
        goes_on = "starts anew" if step is None else f"goes on from step {step}"
        print(f"stopped, but the last save failed: {unsaved}; the same command {goes_on}.")
    elif step is not None:
        print(f"stopped, and saved in {place}. The same command goes on from here.")
    else:
        print(f"stopped, with nothing saved in {place}. The same command starts anew.")


def failed(result: dict[str, Any]) -> str:
    """Return what to print of a job that failed elsewhere: which rank, and why."""
    return bootstrap.cause(result)


def _saved_step(directory: Path) -> int | None:
    """Return the step of the newest checkpoint in a run directory; None where there is none."""
    found = (directory / "checkpoints").glob("step=*/manifest.json")
    in_s3 = bootstrap.read_json(directory / "checkpoints.json") or {}
    names = [*(path.parent.name for path in found), str(in_s3.get("newest", ""))]
    steps = (re.match(r"step=(\d+)", name) for name in names)
    return max((int(step[1]) for step in steps if step), default=None)
