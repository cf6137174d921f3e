"""What a user reads at the end."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def command(words: Sequence[str], *more: str) -> str:
    """Return the command that was typed, with more words, ready to paste."""
    return " ".join([program(), *(shlex.quote(w) for w in (*words, *more))])


def program() -> str:
    """Return how this program was called: `python train.py`, `hydra-trainer` and so on."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return f"python -m {path.parent.name}"
    return f"python {sys.argv[0]}" if path.suffix == ".py" else path.name


def shown(path: Path) -> str:
    """Return a path as short as it can be typed here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) and path != here else path)


def summary(result: dict[str, Any], directory: Path, words: Sequence[str]) -> None:
    """Print the result of a finished job and what to try next."""
    print("\n".join(summary_lines(result, directory, words)))


def summary_lines(result: dict[str, Any], directory: Path, words: Sequence[str]) -> list[str]:
    """Return the summary as lines."""
    rows = _rows(result, directory)
    width = max(len(name) for name, _ in rows) + 2
    lines = ["", *(f"  {name:<{width}}{value}" for name, value in rows), "", "Next:"]
    for what, line in _next(directory, [word for word in words if word != "again=true"]):
        lines += [f"  # {what}", f"  {line}"]
    return lines


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
    rows.append(("run directory", shown(directory)))
    return rows


def _next(directory: Path, words: Sequence[str]) -> list[tuple[str, str]]:
    found = [("run this one anew", command(words, "again=true"))]
    if not any(word.startswith("hydra.run.dir=") for word in words):
        found.append(("change a value: another run", command(words, "optim.lr=1e-3")))
    if (directory / "tensorboard").exists():
        place = shlex.quote(shown(directory.parent))
        found.append(("compare the runs", f"tensorboard --logdir {place}"))
    return found


def stopped(directory: Path) -> None:
    """Print how to go on after a stop."""
    print(f"stopped, and saved in {shown(directory)}. The same command goes on from here.")


def failed(result: dict[str, Any], handle: str) -> str:
    """Return what to print of a job that failed elsewhere: who, why, and where to look."""
    error = result.get("error") or {}
    trace = str(error.get("traceback") or "").rstrip()
    head = f"error: rank {result.get('rank', '?')} failed: {error.get('message') or 'no message'}"
    return "\n".join([*([trace] if trace else []), head, f"logs: {handle} (logs/ in it)"])
