"""What it costs to send a job to a cluster: a dry run, the jobs of a sweep, creates, waiting."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .starts import TRAIN, in_turns
from .table import Row, compared

DRY_RUN = [*TRAIN, "launcher=eks", "launcher.dry_run=true"]
HEAVY = (
    "from hydra_trainer.app import main; main(); import sys; "
    "sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'kubernetes')))"
)


def dry_run(quick: bool) -> Iterator[Row]:
    """Yield the rows of a dry run: CPU time against the import that it avoids."""
    rendered, imported = in_turns(DRY_RUN, "import torch", quick)
    name = "CPU time, launcher=eks launcher.dry_run=true / import torch"
    yield compared(name, rendered, imported, "s CPU", 0.25)
    light = subprocess.run([sys.executable, "-c", HEAVY, *DRY_RUN[2:]], capture_output=True)
    note = "met" if light.returncode == 0 else "MISSED"
    yield Row("... neither torch nor kubernetes is imported", "", "", note=note)
    yield from _many(quick)


def _many(quick: bool) -> Iterator[Row]:
    """Yield the row of a thousand jobs that differ in one value."""
    from hydra_trainer.launchers.eks import EksLauncher

    job, count = _job(), 100 if quick else 1000
    place = EksLauncher(embedded=True)
    begun = time.process_time()
    for number in range(count):
        config = {**job.config, "seed": number}
        place.render(replace(job, config=config, identity=f"{number:016x}"))
    seconds = (time.process_time() - begun) * 1000 / count
    note = "met" if seconds <= 2 else "MISSED"
    yield Row("1,000 jobs rendered and checked", f"{seconds:.2f} s CPU", "", note=f"{note} (2 s)")


def _job(*words: str) -> Any:
    from hydra import compose, initialize_config_module

    from hydra_trainer import config

    config.register()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        plain = config.validate(compose("config", ["launcher=eks", *words]))
    return config.to_job(plain, Path("runs/x"))
