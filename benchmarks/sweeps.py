"""What a sweep costs.

    python -m benchmarks.sweeps LAUNCHER COUNT

composes, checks and renders COUNT jobs, and prints the seconds of CPU that one more of them takes.
Nothing here imports torch: a sweep that runs elsewhere does not either.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .table import Row, compared

if TYPE_CHECKING:
    from hydra_trainer.sweep.composing import Composer

REPOSITORY = Path(__file__).parent.parent
TORCH = [sys.executable, "-c", "import time, torch; print(time.process_time())"]

PER_JOB = 0.02  # of the CPU time of `import torch`


def composing(quick: bool) -> Iterator[Row]:
    """Yield the rows of one more job of a sweep: composed, checked and rendered."""
    for place in ("eks", "sagemaker"):
        one_more = [sys.executable, "-m", __name__, place, "20" if quick else "200"]
        imported, ours = [], []
        for _ in range(2 if quick else 8):
            imported.append(_told(TORCH))
            ours.append(_told(one_more))
        name = f"CPU time, one more job of a sweep, launcher={place} / import torch"
        yield compared(name, ours[1:], imported[1:], "s CPU", PER_JOB)


def _told(words: list[str]) -> float:
    """Return the figure that a command prints."""
    done = subprocess.run(words, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    return float(done.stdout)


def one_more_job(place: str, count: int) -> float:
    """Return the seconds of CPU of a job that differs from others in its learning rate and seed."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from hydra_plugins.hydra_trainer import launcher
    from hydra_trainer import config, quick
    from hydra_trainer.sweep.composing import Composer

    quick.shorten_start([])
    config.register()
    launcher.register()
    with initialize_config_module("hydra_trainer.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        composer = Composer(loader, loader.load_configuration("config", [], RunMode.MULTIRUN))
        _job(composer, place, 0)
        begun = time.process_time()
        for number in range(1, count + 1):
            _job(composer, place, number)
        return (time.process_time() - begun) / count


def _job(composer: "Composer", place: str, number: int) -> None:
    from hydra_trainer.sweep.composing import planned

    words = [f"launcher={place}", f"optim.lr={number / 10000 + 1e-5}", f"seed={number}"]
    _, job, made = planned(composer.compose(words, number), Path("runs"), composer.checked)
    made.render(job)


if __name__ == "__main__":
    print(one_more_job(sys.argv[1], int(sys.argv[2])))
