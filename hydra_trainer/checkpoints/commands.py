"""hydra-trainer checkpoint list|verify|export: look at checkpoints, and take the weights out.

    hydra-trainer checkpoint list runs/convnet-digits-1a2b3c4d
    hydra-trainer checkpoint verify s3://bucket/runs/convnet-digits-1a2b3c4d
    hydra-trainer checkpoint export s3://bucket/runs/convnet-digits-1a2b3c4d weights

A place is a run directory, a folder of checkpoints, or one checkpoint; a path or an s3:// URI.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from hydra_trainer.errors import CheckpointError, Gone
from hydra_trainer.job import DONE, USER_ERROR

from .files import Place
from .store import Checkpoint, Store, place, stored

if TYPE_CHECKING:
    from hydra_trainer.objects import Settings

WEIGHTS = "model.safetensors"
CONFIG = "config.yaml"

LOADING = """
from safetensors.torch import load_file

weights = load_file("{path}")
model.load_state_dict(weights)"""


def main(words: Sequence[str]) -> int:
    """Run one of the commands and return the exit code."""
    parser = argparse.ArgumentParser(prog="hydra-trainer checkpoint", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    whats = parser.add_subparsers(dest="what", required=True)
    for name, about in (
        ("list", "the checkpoints, and whether their files are there in full"),
        ("verify", "read all of them, and say what is wrong"),
        ("export", "write the weights as safetensors, and the configuration"),
    ):
        one = whats.add_parser(name, help=about, description=about)
        one.add_argument("place", help="a run, its checkpoints, or one of them: path or s3:// URI")
        if name == "export":
            one.add_argument("folder", type=Path, help="where to write: a new or an empty folder")
            one.add_argument("--last", action="store_true", help="not the best of a run, the last")
    options = parser.parse_args(words)
    where = str(options.place).rstrip("/")
    if options.what == "export":
        return _export(where, options.folder, options.last)
    return (_list if options.what == "list" else _verify)(where)


def _settings(where: str) -> "Settings | None":
    """Return how a run directory of this machine says that S3 is reached; None: it does not."""
    try:
        config = yaml.safe_load(Path(where, CONFIG).read_text())
        if not config["run"].get("remote"):
            return None
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None
    from hydra_trainer.embedded import buckets
    from hydra_trainer.objects import Settings  # the library behind it comes with an extra

    buckets.join(config)  # where its S3 is on this machine
    return Settings.of(config)


def _places(where: str, settings: "Settings | None") -> tuple[Place, list[str], Place]:
    """Return the place of some checkpoints, their names, and the place of their run.

    Raises:
        CheckpointError: there are none.
    """
    parent, _, name = where.rpartition("/")
    above = place(parent or ".", settings)
    if Checkpoint.read(above, name) is not None:
        return above, [name], place(_up(parent or "."), settings)
    for root, run in ((stored(where, settings), where), (where, _up(where))):
        store = Store(place(root, settings))
        if names := store.names():
            return store.place, names, place(run, settings)
    raise CheckpointError(
        f"There are no checkpoints in {where}. Give a run directory, its checkpoints, or one of "
        "them."
    )


def _up(where: str) -> str:
    """Return the run directory of a folder of checkpoints."""
    if where.startswith("s3://"):
        return where.rpartition("/")[0]
    return str(Path(where).absolute().parent)


def _config(run: Place) -> dict[str, Any]:
    """Return the configuration of a run; empty where there is none."""
    try:
        found = yaml.safe_load(_text(run))
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(run: Place) -> bytes:
    """Return the config.yaml of a run."""
    return bytes(run.read("", CONFIG))


def _list(where: str) -> int:
    there, names, run = _places(where, _settings(where))
    goal = _config(run).get("objective") or {}
    rows = [["checkpoint", "step", str(goal.get("metric", "metrics")), "size", ""]]
    for name in names:
        found = Checkpoint.read(there, name)
        if found is None:
            rows.append([name, "", "", "", "not finished: the next save takes it away"])
            continue
        fault = found.fault(digests=False)
        step = str(found.manifest.get("step", ""))
        state = f"DAMAGED: {fault}" if fault else "whole"
        rows.append([name, step, _metrics(found, goal), f"{found.size / 1e6:,.1f} MB", state])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    print(there.uri)
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print(f"  {'  '.join(cells)}".rstrip())
    return DONE


def _metrics(found: Checkpoint, goal: dict[str, Any]) -> str:
    if "metric" in goal:
        value = found.metric(str(goal["metric"]))
        return "-" if value is None else f"{value:.4f}"
    values = found.manifest.get("metrics", {})
    return ", ".join(f"{name}={value:.4g}" for name, value in sorted(values.items())[:3]) or "-"


def _verify(where: str) -> int:
    there, names, _ = _places(where, _settings(where))
    damaged = 0
    for name in names:
        found = Checkpoint.read(there, name)
        if found is None:
            print(f"-        {name}: not finished; the next save takes it away")
        elif fault := found.fault():
            damaged += 1
            print(f"DAMAGED  {found.uri}: {fault}")
        else:
            print(f"ok       {found.uri}: {len(found.files)} file(s), {found.size / 1e6:,.1f} MB")
    if damaged:
        print(f"{damaged} of {len(names)} damaged: a run goes on with the newest whole one.")
    return USER_ERROR if damaged else DONE


def _export(where: str, folder: Path, last: bool) -> int:
    there, names, run = _places(where, _settings(where))
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder} is not empty. Give a new or an empty folder.")
    from .exporting import write_weights  # torch comes only here

    found, count = write_weights(_candidates(there, names, run, last), folder, WEIGHTS)
    try:
        (folder / CONFIG).write_bytes(_text(run))
    except (FileNotFoundError, NotADirectoryError, Gone):
        print(f"note: there is no {CONFIG} in {run.uri}; the weights are exported without it.")
    size = (folder / WEIGHTS).stat().st_size
    print(f"{found.uri}: {count} tensors, {size / 1e6:,.1f} MB, in {folder / WEIGHTS}")
    print(f"To load them, without this package:\n{LOADING.format(path=folder / WEIGHTS)}")
    return DONE


def _candidates(there: Place, names: list[str], run: Place, last: bool) -> list[Checkpoint]:
    """Return what to export, if it is whole, and what else, in this order."""
    store = Store(there)
    if len(names) == 1:
        only = Checkpoint.read(there, names[0])
        return [only] if only is not None else []
    newest = list(reversed(store.all()))
    goal = _config(run).get("objective") or {}
    if last or "metric" not in goal:
        return newest
    return store.ranked(str(goal["metric"]), str(goal.get("mode", "min"))) or newest
