"""How the jobs of a sweep are put into words, for the table and for the report."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from .rows import Row, Sweep

ONLY_HERE = (
    "launcher.detach",
    "launcher.dry_run",
    "launcher.check",
    "launcher.again",
    "again",
    "sweep",
)
"""Keys of how a sweep was run: a command that runs one of its jobs leaves them out."""

COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
OF_THE_SWEEP = ("hydra.launcher", "hydra.sweep", "hydra/launcher", "hydra/sweep")


def varied(rows: Sequence[Row]) -> list[str]:
    """Return the parameters that are not the same in all rows; all of them where none differs."""
    keys = dict.fromkeys(key for row in rows for key in row.params)
    found = [key for key in keys if len({repr(row.params.get(key, row)) for row in rows}) > 1]
    return found or list(keys)


def short(keys: Sequence[str]) -> dict[str, str]:
    """Return a name for each key: its last part, where no other key ends in the same."""
    last = {key: key.rpartition(".")[2] for key in keys}
    names = list(last.values())
    return {key: name if names.count(name) == 1 else key for key, name in last.items()}


def value(given: Any) -> str:
    """Return a parameter's value as one would type it; numbers with four digits."""
    if given is None:
        return "null"
    if isinstance(given, bool):
        return str(given).lower()
    return number(given) if isinstance(given, float) else plain(str(given))


def number(given: float) -> str:
    return f"{given:.4g}"


def plain(text: str) -> str:
    """Return a text that can be printed on one line: a terminal obeys nothing in it."""
    return "".join(char if char.isprintable() else " " for char in COLOUR.sub("", text))


def described(row: Row, names: dict[str, str]) -> str:
    """Return what sets a job apart: `lr=0.001 model=mlp`; its overrides where nothing does."""
    found = [f"{names[key]}={value(row.params[key])}" for key in names if key in row.params]
    return " ".join(found) or plain(" ".join(row.overrides)) or row.name


def cells(rows: Sequence[Row], all_rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return what sets jobs apart as the names of columns, and a list of cells for each row."""
    names = short(varied(all_rows))
    if not names:
        return ["overrides"], [[described(row, names)] for row in rows]
    found = [[value(row.params[key]) if key in row.params else "" for key in names] for row in rows]
    return list(names.values()), found


def reason(row: Row) -> str:
    """Return on one line why a job did not succeed; of a traceback, how it ends."""
    lines = [line.strip() for line in row.message.splitlines() if line.strip()]
    last = bool(lines) and lines[0].startswith("Traceback")
    message = plain(lines[-1 if last else 0]) if lines else ""
    parts = ["" if message.startswith(row.reason) else row.reason, message]
    return ": ".join(filter(None, parts)) or "no reason is known"


def duration(seconds: float) -> str:
    """Return a time as 0:42, 3:07, 2:03:07 or 3 d 4 h."""
    whole = max(0, round(seconds))
    if whole >= 2 * 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600} h"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return (f"{hours}:{minutes:02}" if hours else f"{minutes}") + f":{whole % 60:02}"


def spent(row: Row, now: float) -> float | None:
    """Return how many seconds a job has run, or ran; None: it has not begun.

    By its own clock where it told: the submitter may have looked away when it ended.
    """
    if row.state.ended and row.seconds is not None:
        return row.seconds
    begun = row.started or (row.sent if row.state.ended else None)
    return None if begun is None else max(0.0, (row.ended or now) - begun)


def command(sweep: Sweep, row: Row) -> str:
    """Return the command that runs a job by itself, ready to paste."""
    kept = [word for word in row.overrides if not _only_here(word)]
    return " ".join([sweep.program, *map(shlex.quote, (*_config_words(sweep.words), *kept))])


def again(sweep: Sweep) -> str:
    """Return the command that a sweep was begun with, ready to paste."""
    return " ".join([sweep.program, *map(shlex.quote, sweep.words)])


def _only_here(word: str) -> bool:
    key = word.lstrip("+~").partition("=")[0]
    return key in ONLY_HERE or key.startswith(("sweep.", *OF_THE_SWEEP))


def _config_words(words: Sequence[str]) -> list[str]:
    """Return what says where the configuration lies: `--config-dir conf`, hydra.searchpath=..."""
    kept, follows = [], False
    for word in words:
        option = word.startswith(("--config-", "-cn", "-cd", "-cp"))
        if follows or option or word.startswith("hydra.searchpath="):
            kept.append(word)
        follows = option and "=" not in word
    return kept
