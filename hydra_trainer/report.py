"""What a user reads at the end."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def command(words: Sequence[str], *more: str) -> str:
    """Return the command that was typed, with more words, ready to paste."""
    return " ".join(["python train.py", *(shlex.quote(w) for w in (*words, *more))])


def summary(result: dict[str, Any], directory: Path, words: Sequence[str]) -> None:
    """Print the result of a finished job and what to try next."""
    print("\n".join(summary_lines(result, directory, [w for w in words if w != "again=true"])))


def summary_lines(result: dict[str, Any], directory: Path, words: Sequence[str]) -> list[str]:
    """Return the summary as lines."""
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
    rows.append(("run directory", str(directory)))
    width = max(len(name) for name, _ in rows) + 2
    lines = ["", *(f"  {name:<{width}}{value}" for name, value in rows), "", "Next:"]
    lines += [
        f"  {command(words, 'again=true'):<50}  # run this one anew",
        f"  {command(words, 'optim.lr=1e-3'):<50}  # another value: another run",
        f"  {'tensorboard --logdir ' + str(directory.parent):<50}  # look; or {directory.name}"
        "/metrics.png",
    ]
    return lines


def stopped(directory: Path) -> None:
    """Print how to go on after a stop."""
    print(f"stopped, and saved in {directory}. The same command goes on from here.")


def failed(result: dict[str, Any], handle: str) -> str:
    """Return what to print of a job that failed elsewhere: who, why, and where to look."""
    error = result.get("error") or {}
    trace = str(error.get("traceback") or "").rstrip()
    head = f"error: rank {result.get('rank', '?')} failed: {error.get('message') or 'no message'}"
    return "\n".join([*([trace] if trace else []), head, f"logs: {handle} (logs/ in it)"])
