"""`python -m benchmarks [NAME ...] [--quick]`: measure, and print one table."""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator

from . import checkpoints, clusters, gpu, loading, services, sittings, starts, steps, sweeps
from .table import Row, show

ALL: dict[str, Callable[[bool], Iterator[Row]]] = {
    "steps": steps.one_process,
    "ranks": steps.two_ranks,
    "command": starts.command,
    "checkpoint": checkpoints.rows,
    "restart": starts.restart,
    "memory": starts.memory,
    "dry_run": clusters.dry_run,
    "creates": clusters.creates,
    "waiting": clusters.waiting,
    "sagemaker_dry_run": services.dry_run,
    "submit": services.submit,
    "sweep": services.sweep,
    "sweep_jobs": sweeps.composing,
    "sitting": sittings.sitting,
    "slots": sittings.slots,
    "loading": loading.local,
    "streaming": loading.streamed,
    "loader_wait": loading.waiting,
    "gpu": gpu.rows,
}


def main(words: list[str]) -> int:
    """Run the chosen benchmarks. Returns 1 when a target was missed; a quick run judges nothing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ALL))
    parser.add_argument("--quick", action="store_true", help="small and once: does it run?")
    options = parser.parse_args(words)
    if unknown := set(options.names) - ALL.keys():
        parser.error(f"unknown: {', '.join(unknown)}; known: {', '.join(ALL)}")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # what it says when a Trainer is made
    rows: list[Row] = []
    for name in options.names or ALL:
        begun = time.monotonic()
        print(f"measuring {name} ...", end=" ", file=sys.stderr, flush=True)
        rows += ALL[name](options.quick)
        print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    show(rows)
    return int(not options.quick and any(row.verdict == "MISSED" for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
