"""How fast things start: the command, a job, and a job after a kill; and what they weigh."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from . import jobs
from .steps import images
from .table import Row, compared
from .timed import KILL, TIMES

TRAIN = [sys.executable, "-m", "hydra_trainer"]


def command(quick: bool) -> Iterator[Row]:
    """Yield the row of `--cfg job` against the import that it cannot do without."""
    rounds = 2 if quick else 9
    shown, imported = [], []
    for _ in range(rounds):
        imported.append(_cpu([sys.executable, "-c", "import hydra"]))
        shown.append(_cpu([*TRAIN, "--cfg", "job"]))
    yield compared("--cfg job / import hydra", shown, imported, "s CPU", 2)


def _cpu(words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def restart(quick: bool) -> Iterator[Row]:
    """Yield the row of a job whose rank is killed: from the kill to the first new step."""
    again, cold = [], []
    for _ in range(1 if quick else 3):
        first, second = _killed()
        cold.append(first)
        again.append(second)
    yield compared("2 ranks, kill -9 to first new step / cold start", again, cold, "s", 1.5)


def _killed() -> tuple[float, float]:
    """Return the seconds of a cold start, and of the restart after rank 1 was killed."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            *images(128, 60, "convnet"),
            "trusted_modules=[benchmarks]",
            "checkpoint.every_n_steps=10",
            "resources.processes_per_node=2",
            f"hydra.run.dir={folder}/run",
        ]
        env = {
            **os.environ,
            TIMES: f"{folder}/times",
            "BENCHMARK_MARKS": "0,45",
            KILL: "45",
            "OMP_NUM_THREADS": "1",
        }
        begun = time.time()
        subprocess.run([*TRAIN, *words], env=env, check=True, capture_output=True)
        before, after = (json.loads(Path(folder, f"times-1-{life}").read_text()) for life in (0, 1))
    (first, _), (killed, _) = before
    return first - begun, after[0][0] - killed


MEMORY = """
import resource, sys
from pathlib import Path
from benchmarks import hand, jobs
from hydra_trainer import training, worker
side = {"ours": training.train, "hand": hand.run}[sys.argv[1]]
side(worker.read_config(Path(sys.argv[2])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)
"""


def memory(quick: bool) -> Iterator[Row]:
    """Yield the peak memory of a whole run, for context."""
    found = {}
    for side in ("hand", "ours"):
        with tempfile.TemporaryDirectory() as folder:
            path = jobs.write(Path(folder, "run"), images(128, 5 if quick else 50, "convnet"))
            done = subprocess.run(
                [sys.executable, "-c", MEMORY, side, str(path)],
                check=True,
                capture_output=True,
                text=True,
            )
        found[side] = float(done.stderr.split()[-1])
    yield compared("peak memory, convnet: ours / by hand", [found["ours"]], [found["hand"]], "MiB")
